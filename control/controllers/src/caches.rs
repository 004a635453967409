//! The caches of this process: one watch for each kind that a controller reads.

use std::sync::Arc;

use control_client::{Change, Client, Object, Store, pods};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
    ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Takes an object's metadata, and whether the object was deleted.
pub type MetaHandler = Box<dyn Fn(&ObjectMeta, bool) + Send + Sync>;

macro_rules! caches {
    ($($(#[$doc:meta])* $field:ident: $kind:ty = ($namespace:expr, $fields:expr, $trim:expr),)*) => {
        /// One cache a kind.
        pub struct Caches {
            $($(#[$doc])* pub $field: Arc<Store<$kind>>,)*
        }

        impl Caches {
            /// Starts all watches.
            pub fn start(client: &Client) -> Self {
                $(
                    let $field = Store::new(client.clone(), $trim);
                    $field.start($namespace, $fields);
                )*
                Self { $($field,)* }
            }

            /// Offers every cache that holds all objects of its kind, by group and plural; whoever wants
            /// it gives a function for the metadata of what changes, and whether it was deleted.
            pub fn each_whole(&self, mut offer: impl FnMut(&str, &str) -> Option<MetaHandler>) {
                $(
                    let (namespace, fields): (Option<&str>, Option<&str>) = ($namespace, $fields);
                    if namespace.is_none() && fields.is_none()
                        && let Some(handler) = offer(
                            &<$kind as kube::Resource>::group(&()),
                            &<$kind as kube::Resource>::plural(&()),
                        )
                    {
                        self.$field.subscribe(move |change| {
                            handler(&change.object().metadata, matches!(change, Change::Deleted(_)));
                        });
                    }
                )*
            }

            /// Waits until each cache holds what the server holds.
            pub async fn synced(&self) {
                $(self.$field.synced().await;)*
            }
        }
    };
}

fn whole<K: Object>(_: &mut K) {}

/// The images on a node are for the scheduler alone, and the longest list that a node has.
fn node(node: &mut Node) {
    if let Some(status) = &mut node.status {
        status.images = None;
    }
}

caches! {
    namespaces: Namespace = (None, None, whole),
    nodes: Node = (None, None, node),
    pods: Pod = (None, None, pods::trim),
    services: Service = (None, None, whole),
    service_accounts: ServiceAccount = (None, None, whole),
    /// Only kube-root-ca.crt of each namespace.
    root_cas: ConfigMap = (None, Some("metadata.name=kube-root-ca.crt"), whole),
    /// Only bootstrap tokens.
    bootstrap_tokens: Secret = (Some("kube-system"), Some("type=bootstrap.kubernetes.io/token"), whole),
    /// Only tokens of service accounts.
    account_tokens: Secret = (None, Some("type=kubernetes.io/service-account-token"), whole),
    /// Only the heartbeats of nodes.
    node_leases: Lease = (Some("kube-node-lease"), None, whole),
    requests: CertificateSigningRequest = (None, None, whole),
    slices: EndpointSlice = (None, None, whole),
    endpoints: Endpoints = (None, None, whole),
    deployments: Deployment = (None, None, whole),
    replica_sets: ReplicaSet = (None, None, whole),
    replication_controllers: ReplicationController = (None, None, whole),
    daemon_sets: DaemonSet = (None, None, whole),
    stateful_sets: StatefulSet = (None, None, whole),
    revisions: ControllerRevision = (None, None, whole),
    jobs: Job = (None, None, whole),
    cron_jobs: CronJob = (None, None, whole),
    budgets: PodDisruptionBudget = (None, None, whole),
    quotas: ResourceQuota = (None, None, whole),
    cluster_roles: ClusterRole = (None, None, whole),
    claims: PersistentVolumeClaim = (None, None, whole),
    volumes: PersistentVolume = (None, None, whole),
    classes: StorageClass = (None, None, whole),
}
