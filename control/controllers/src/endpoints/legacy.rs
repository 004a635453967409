//! Endpoints, the older form, for clients that still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use control_client::{Key, pods};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::slices::HEADLESS;
use super::{addresses, is_headless, ports_of};
use crate::context::Context;

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
/// More addresses than this do not fit into one object.
const MOST: usize = 1000;

fn address(pod: &Pod, ip: String, service: &Service) -> EndpointAddress {
    let spec = pods::spec(pod);
    let in_subdomain = spec.subdomain == service.metadata.name;
    EndpointAddress {
        ip,
        hostname: spec.hostname.clone().filter(|h| !h.is_empty() && in_subdomain),
        node_name: spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    }
}

/// Name, number, protocol and application protocol.
type Port = (String, i32, String, Option<String>);

fn plan(service: &Service, selected: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let wants_v6 =
        service.spec.as_ref().and_then(|s| s.ip_families.as_ref()).and_then(|f| f.first()).is_some_and(|f| f == "IPv6");
    let mut groups: BTreeMap<Vec<Port>, EndpointSubset> = BTreeMap::new();
    for pod in selected.iter().take(MOST) {
        if pods::is_terminating(pod) && !publish {
            continue;
        }
        let Some(ip) = addresses(pod).into_iter().find(|a| a.contains(':') == wants_v6) else { continue };
        let ports: Vec<_> = ports_of(pod, service)
            .into_iter()
            .map(|p| {
                (p.name.unwrap_or_default(), p.port.unwrap_or_default(), p.protocol.unwrap_or_default(), p.app_protocol)
            })
            .collect();
        if ports.is_empty() && !is_headless(service) {
            continue;
        }
        let subset = groups.entry(ports).or_default();
        let list = if pods::is_ready(pod) || publish { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address(pod, ip, service));
    }
    groups
        .into_iter()
        .map(|(ports, mut subset)| {
            for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
                list.sort_by(|a, b| a.ip.cmp(&b.ip));
            }
            let ports: Vec<_> = ports
                .into_iter()
                .map(|(name, port, protocol, app_protocol)| EndpointPort {
                    name: Some(name).filter(|n| !n.is_empty()),
                    port,
                    protocol: Some(protocol),
                    app_protocol,
                })
                .collect();
            subset.ports = Some(ports).filter(|p| !p.is_empty());
            subset
        })
        .collect()
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    labels
}

pub async fn reconcile(context: &Context, service: &Service, selected: &[Arc<Pod>]) -> anyhow::Result<()> {
    let cache = &context.caches.endpoints;
    let subsets = plan(service, selected);
    let labels = labels(service);
    match cache.get(&Key::of(service)) {
        None => {
            let endpoints = Endpoints {
                metadata: ObjectMeta {
                    name: service.metadata.name.clone(),
                    namespace: service.metadata.namespace.clone(),
                    labels: Some(labels),
                    ..ObjectMeta::default()
                },
                subsets: Some(subsets),
            };
            cache.create(&endpoints).await?;
        }
        Some(present) => {
            let same = present.subsets.as_deref().unwrap_or_default() == subsets
                && present.metadata.labels.as_ref() == Some(&labels);
            if same {
                return Ok(());
            }
            let mut updated = (*present).clone();
            updated.subsets = Some(subsets);
            updated.metadata.labels = Some(labels);
            cache.replace(&updated).await?;
        }
    }
    Ok(())
}

pub async fn delete(context: &Context, key: &Key) -> anyhow::Result<()> {
    if let Some(present) = context.caches.endpoints.get(key) {
        context.caches.endpoints.delete(&present).await?;
    }
    Ok(())
}
