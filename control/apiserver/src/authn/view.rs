//! What the security layers read of the cluster: a synchronous view of the watch caches.

use std::sync::Arc;

use serde_json::Value;

/// Group and plural of a kind, for example `("", "pods")`.
pub type Gr = (&'static str, &'static str);

pub const PODS: Gr = ("", "pods");
pub const NODES: Gr = ("", "nodes");
pub const SECRETS: Gr = ("", "secrets");
pub const NAMESPACES: Gr = ("", "namespaces");
pub const CONFIG_MAPS: Gr = ("", "configmaps");
pub const SERVICES: Gr = ("", "services");
pub const SERVICE_ACCOUNTS: Gr = ("", "serviceaccounts");
pub const PVS: Gr = ("", "persistentvolumes");
pub const PVCS: Gr = ("", "persistentvolumeclaims");
pub const LIMIT_RANGES: Gr = ("", "limitranges");
pub const RESOURCE_QUOTAS: Gr = ("", "resourcequotas");
pub const REPLICATION_CONTROLLERS: Gr = ("", "replicationcontrollers");
pub const DEPLOYMENTS: Gr = ("apps", "deployments");
pub const REPLICA_SETS: Gr = ("apps", "replicasets");
pub const STATEFUL_SETS: Gr = ("apps", "statefulsets");
pub const STORAGE_CLASSES: Gr = ("storage.k8s.io", "storageclasses");
pub const VOLUME_ATTACHMENTS: Gr = ("storage.k8s.io", "volumeattachments");
pub const PRIORITY_CLASSES: Gr = ("scheduling.k8s.io", "priorityclasses");
pub const RUNTIME_CLASSES: Gr = ("node.k8s.io", "runtimeclasses");
pub const INGRESS_CLASSES: Gr = ("networking.k8s.io", "ingressclasses");
pub const PDBS: Gr = ("policy", "poddisruptionbudgets");
pub const ROLES: Gr = ("rbac.authorization.k8s.io", "roles");
pub const ROLE_BINDINGS: Gr = ("rbac.authorization.k8s.io", "rolebindings");
pub const CLUSTER_ROLES: Gr = ("rbac.authorization.k8s.io", "clusterroles");
pub const CLUSTER_ROLE_BINDINGS: Gr = ("rbac.authorization.k8s.io", "clusterrolebindings");
pub const CSI_DRIVERS: Gr = ("storage.k8s.io", "csidrivers");
pub const CSRS: Gr = ("certificates.k8s.io", "certificatesigningrequests");

/// Reads from memory; never blocks on the store. Objects are in the storage version.
pub trait ClusterView: Send + Sync {
    /// One object; `namespace` is empty for cluster-scoped kinds.
    fn get(&self, gr: Gr, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// All objects of a kind, in one namespace or in all (`""`).
    fn list(&self, gr: Gr, namespace: &str) -> Vec<Arc<Value>>;

    /// Whether a pod that is bound to the node is wanted; ends with the first that is.
    fn any_on_node(&self, node: &str, wanted: &mut dyn FnMut(&Value) -> bool) -> bool;

    /// The uid and deletion time (maybe empty) of an object, cheaply.
    fn life(&self, gr: Gr, namespace: &str, name: &str) -> Option<(String, String)> {
        let object = self.get(gr, namespace, name)?;
        Some((str_at(&object, "/metadata/uid").to_string(), str_at(&object, "/metadata/deletionTimestamp").to_string()))
    }

    /// A number that grows with every change of any object of the kind.
    fn revision(&self, gr: Gr) -> u64;
}

impl ClusterView for crate::registry::Registry {
    fn get(&self, gr: Gr, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.get(gr.0, gr.1, namespace, name).map(|o| Arc::new(o.value()))
    }

    fn list(&self, gr: Gr, namespace: &str) -> Vec<Arc<Value>> {
        let namespace = (!namespace.is_empty()).then_some(namespace);
        self.list(gr.0, gr.1, namespace).iter().map(|o| Arc::new(o.value())).collect()
    }

    fn any_on_node(&self, node: &str, wanted: &mut dyn FnMut(&Value) -> bool) -> bool {
        let (pods, _) = self.cache(PODS.0, PODS.1).list_of(None, node);
        !node.is_empty() && pods.iter().any(|pod| wanted(&pod.value()))
    }

    fn life(&self, gr: Gr, namespace: &str, name: &str) -> Option<(String, String)> {
        #[derive(serde::Deserialize)]
        struct Light {
            metadata: Meta,
        }
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            deletion_timestamp: Option<String>,
        }
        let object = self.get(gr.0, gr.1, namespace, name)?;
        let light: Light = object.parse().ok()?;
        Some((object.uid.to_string(), light.metadata.deletion_timestamp.unwrap_or_default()))
    }

    fn revision(&self, gr: Gr) -> u64 {
        self.resource_revision(gr.0, gr.1)
    }
}

/// String at a JSON pointer, empty when absent.
pub fn str_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Name of an object.
pub fn name_of(value: &Value) -> &str {
    str_at(value, "/metadata/name")
}

/// Namespace of an object, empty for cluster-scoped ones.
pub fn namespace_of(value: &Value) -> &str {
    str_at(value, "/metadata/namespace")
}

/// Array at a JSON pointer, empty when absent.
pub fn items_at<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
pub(crate) mod fake {
    //! A view over a plain map, for unit tests.
    use std::collections::BTreeMap;
    use std::sync::{Mutex, MutexGuard};

    use super::*;

    type Key = (Gr, String, String);

    #[derive(Default)]
    pub struct FakeView {
        objects: Mutex<BTreeMap<Key, Arc<Value>>>,
        rev: std::sync::atomic::AtomicU64,
    }

    impl FakeView {
        fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Value>>> {
            self.objects.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }
        pub fn put(&self, gr: Gr, value: Value) {
            let key = (gr, namespace_of(&value).to_string(), name_of(&value).to_string());
            self.lock().insert(key, Arc::new(value));
            self.rev.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        pub fn remove(&self, gr: Gr, ns: &str, name: &str) {
            self.lock().remove(&(gr, ns.to_string(), name.to_string()));
            self.rev.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    impl ClusterView for FakeView {
        fn get(&self, gr: Gr, namespace: &str, name: &str) -> Option<Arc<Value>> {
            self.lock().get(&(gr, namespace.to_string(), name.to_string())).cloned()
        }
        fn list(&self, gr: Gr, namespace: &str) -> Vec<Arc<Value>> {
            let all = self.lock();
            all.iter()
                .filter(|((g, ns, _), _)| *g == gr && (namespace.is_empty() || ns == namespace))
                .map(|(_, v)| v.clone())
                .collect()
        }
        fn any_on_node(&self, node: &str, wanted: &mut dyn FnMut(&Value) -> bool) -> bool {
            self.list(PODS, "").iter().any(|pod| str_at(pod, "/spec/nodeName") == node && wanted(pod))
        }
        fn revision(&self, _: Gr) -> u64 {
            self.rev.load(std::sync::atomic::Ordering::SeqCst)
        }
    }
}
