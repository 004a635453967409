//! EndpointSlices for Endpoints that people wrote themselves, of Services without a selector.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_client::{Key, Queue, owner};
use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::selector_of;
use super::slices::SERVICE_NAME;
use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Leader election once kept its records in Endpoints; those are no endpoints.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    context.caches.endpoints.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    context.caches.services.subscribe({
        let (queue, endpoints) = (queue.clone(), context.caches.endpoints.clone());
        move |change| {
            let key = Key::of(&**change.object());
            if endpoints.get(&key).is_some() {
                queue.add(key);
            }
        }
    });
    let context = context.clone();
    runner::run("endpointslicemirroring", &queue, 1, move |key| {
        let context = context.clone();
        async move { work(&context, &key).await }
    });
}

fn wanted(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        for family in ["IPv4", "IPv6"] {
            let part = |list: &Option<Vec<EndpointAddress>>, ready: bool| {
                list.iter()
                    .flatten()
                    .filter(|a| a.ip.contains(':') == (family == "IPv6"))
                    .map(|a| Endpoint {
                        addresses: vec![a.ip.clone()],
                        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
                        hostname: a.hostname.clone(),
                        node_name: a.node_name.clone(),
                        target_ref: a.target_ref.clone(),
                        ..Endpoint::default()
                    })
                    .collect::<Vec<_>>()
            };
            let mut all = part(&subset.addresses, true);
            all.extend(part(&subset.not_ready_addresses, false));
            if all.is_empty() {
                continue;
            }
            let ports = subset.ports.iter().flatten().map(|p| EndpointPort {
                name: Some(p.name.clone().unwrap_or_default()),
                port: Some(p.port),
                protocol: Some(p.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: p.app_protocol.clone(),
            });
            let name = endpoints.metadata.name.clone().unwrap_or_default();
            let mut labels: BTreeMap<_, _> = endpoints.metadata.labels.clone().unwrap_or_default();
            labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
            labels.insert(SERVICE_NAME.to_owned(), name.clone());
            slices.push(EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{name}-")),
                    namespace: endpoints.metadata.namespace.clone(),
                    labels: Some(labels),
                    owner_references: Some(vec![owner::controller_reference(endpoints)]),
                    ..ObjectMeta::default()
                },
                address_type: family.to_owned(),
                ports: Some(ports.collect()),
                endpoints: Some(all),
            });
        }
    }
    slices
}

async fn work(context: &Context, key: &Key) -> Worked {
    let caches = &context.caches;
    let endpoints = caches.endpoints.get(key).filter(|e| {
        let label = e.metadata.labels.as_ref().and_then(|l| l.get(SKIP));
        let leads = e.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(LEADER));
        label.is_none_or(|v| v != "true") && !leads
    });
    let by_people = caches.services.get(key).is_some_and(|s| {
        let external = s.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("ExternalName");
        selector_of(&s).is_none() && !external
    });
    let wanted = endpoints.filter(|_| by_people).map(|e| wanted(&e)).unwrap_or_default();
    let mut present: Vec<_> = caches
        .slices
        .in_namespace(&key.namespace)
        .into_iter()
        .filter(|s| {
            let label = |k: &str| s.metadata.labels.as_ref().and_then(|l| l.get(k)).map(String::as_str);
            label(MANAGED_BY) == Some(MANAGER) && label(SERVICE_NAME) == Some(&key.name)
        })
        .collect();
    for slice in wanted {
        let same = |p: &Arc<EndpointSlice>| {
            p.address_type == slice.address_type && p.ports == slice.ports && p.endpoints == slice.endpoints
        };
        if let Some(at) = present.iter().position(same) {
            present.remove(at);
        } else {
            caches.slices.create(&slice).await?;
        }
    }
    for stale in present {
        caches.slices.delete(&stale).await?;
    }
    Ok(Outcome::Done)
}
