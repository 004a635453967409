//! EndpointSlices of Services with a selector.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use control_client::{Key, owner, pods};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{addresses, is_headless, ports_of};
use crate::context::Context;

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints in one slice.
const FULL: usize = 100;

#[derive(Debug, PartialEq)]
enum Action {
    Create(EndpointSlice),
    Update(EndpointSlice),
    Delete(EndpointSlice),
}

pub fn is_ours(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|m| m == MANAGER)
}

pub fn service_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(SERVICE_NAME).map(String::as_str)
}

fn families(service: &Service) -> Vec<&'static str> {
    let listed = service.spec.as_ref().and_then(|s| s.ip_families.as_deref()).unwrap_or_default();
    if listed.is_empty() {
        return vec!["IPv4", "IPv6"];
    }
    listed.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect()
}

fn endpoint(pod: &Pod, address: &str, service: &Service, zone: Option<&String>) -> Endpoint {
    let spec = pods::spec(pod);
    let publish = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses) == Some(true);
    let terminating = pods::is_terminating(pod);
    let serving = pods::is_ready(pod) || publish;
    let named = spec.hostname.as_ref().filter(|h| !h.is_empty());
    let in_subdomain = spec.subdomain == service.metadata.name;
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: named.filter(|_| in_subdomain).cloned(),
        node_name: spec.node_name.clone(),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        zone: zone.cloned(),
        ..Endpoint::default()
    }
}

/// Address type and ports, by which endpoints share slices. Ports as text, to have an order.
type Group = (&'static str, String);

fn port_text(ports: &[EndpointPort]) -> String {
    ports
        .iter()
        .map(|p| {
            format!(
                "{}/{}/{}/{};",
                p.name.as_deref().unwrap_or_default(),
                p.port.unwrap_or_default(),
                p.protocol.as_deref().unwrap_or("TCP"),
                p.app_protocol.as_deref().unwrap_or_default()
            )
        })
        .collect()
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.insert(SERVICE_NAME.to_owned(), service.metadata.name.clone().unwrap_or_default());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    labels
}

fn new_slice(service: &Service, family: &str, ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.metadata.name.as_deref().unwrap_or_default())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![owner::controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.to_vec()),
    }
}

fn id(endpoint: &Endpoint) -> &str {
    endpoint.target_ref.as_ref().and_then(|t| t.uid.as_deref()).unwrap_or_default()
}

fn plan(
    service: &Service,
    selected: &[Arc<Pod>],
    zone: impl Fn(&str) -> Option<String>,
    present: &[Arc<EndpointSlice>],
) -> Vec<Action> {
    let mut groups: BTreeMap<Group, (Vec<EndpointPort>, Vec<Endpoint>)> = BTreeMap::new();
    for family in families(service) {
        for pod in selected {
            let of_family = |a: &String| a.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6() == (family == "IPv6"));
            let Some(address) = addresses(pod).into_iter().find(of_family) else { continue };
            let ports = ports_of(pod, service);
            let zone = zone(pods::node_name(pod));
            let group = groups.entry((family, port_text(&ports))).or_insert_with(|| (ports, Vec::new()));
            group.1.push(endpoint(pod, &address, service, zone.as_ref()));
        }
        // A service without pods has one empty slice, so that clients see that it has none.
        if !groups.keys().any(|(f, _)| *f == family) && service.spec.as_ref().is_some_and(|s| s.ip_families.is_some()) {
            groups.insert((family, String::new()), (Vec::new(), Vec::new()));
        }
    }
    let mut actions = Vec::new();
    let mut used = vec![false; present.len()];
    for ((family, text), (ports, mut wanted)) in groups {
        wanted.sort_by(|a, b| id(a).cmp(id(b)));
        let mut kept: Vec<(usize, Vec<Endpoint>)> = Vec::new();
        for (index, slice) in present.iter().enumerate() {
            if slice.address_type != family || port_text(slice.ports.as_deref().unwrap_or_default()) != text {
                continue;
            }
            let before = slice.endpoints.as_deref().unwrap_or_default();
            let mut stays = Vec::new();
            // Endpoints stay in their slice, so that one pod's change touches one slice.
            for old in before {
                if let Some(at) = wanted.iter().position(|w| id(w) == id(old)) {
                    stays.push(wanted.remove(at));
                }
            }
            used[index] = true;
            kept.push((index, stays));
        }
        for (_, endpoints) in &mut kept {
            let room = FULL.saturating_sub(endpoints.len()).min(wanted.len());
            endpoints.extend(wanted.drain(..room));
        }
        let has_any = kept.iter().any(|(_, e)| !e.is_empty()) || !wanted.is_empty();
        let mut placeholder_kept = false;
        for (index, endpoints) in kept {
            let slice = &present[index];
            if endpoints.is_empty() && (has_any || placeholder_kept) {
                actions.push(Action::Delete((**slice).clone()));
                continue;
            }
            placeholder_kept |= endpoints.is_empty();
            let mut updated = new_slice(service, family, &ports, endpoints);
            let same = slice.endpoints.as_deref().unwrap_or_default()
                == updated.endpoints.as_deref().unwrap_or_default()
                && slice.metadata.labels == updated.metadata.labels;
            if !same {
                let meta = &mut updated.metadata;
                meta.generate_name = slice.metadata.generate_name.clone();
                meta.name = slice.metadata.name.clone();
                meta.uid = slice.metadata.uid.clone();
                meta.resource_version = slice.metadata.resource_version.clone();
                meta.annotations = slice.metadata.annotations.clone();
                meta.finalizers = slice.metadata.finalizers.clone();
                actions.push(Action::Update(updated));
            }
        }
        if !has_any && !placeholder_kept {
            actions.push(Action::Create(new_slice(service, family, &ports, Vec::new())));
        }
        while !wanted.is_empty() {
            let part: Vec<Endpoint> = wanted.drain(..wanted.len().min(FULL)).collect();
            actions.push(Action::Create(new_slice(service, family, &ports, part)));
        }
    }
    for (index, slice) in present.iter().enumerate() {
        if !used[index] {
            actions.push(Action::Delete((**slice).clone()));
        }
    }
    actions
}

fn present(context: &Context, key: &Key) -> Vec<Arc<EndpointSlice>> {
    let all = context.caches.slices.in_namespace(&key.namespace);
    all.into_iter().filter(|s| is_ours(s) && service_of(s) == Some(&key.name)).collect()
}

pub async fn reconcile(context: &Context, service: &Service, selected: &[Arc<Pod>]) -> anyhow::Result<()> {
    let zone = |node: &str| {
        let node: Arc<Node> = context.caches.nodes.named("", node)?;
        node.metadata.labels.as_ref()?.get(ZONE).cloned()
    };
    let present = present(context, &Key::of(service));
    for action in plan(service, selected, zone, &present) {
        match action {
            Action::Create(slice) => {
                context.caches.slices.create(&slice).await?;
            }
            Action::Update(slice) => {
                context.caches.slices.replace(&slice).await?;
            }
            Action::Delete(slice) => context.caches.slices.delete(&slice).await?,
        }
    }
    Ok(())
}

pub async fn delete_all(context: &Context, key: &Key) -> anyhow::Result<()> {
    for slice in present(context, key) {
        context.caches.slices.delete(&slice).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus, ServicePort, ServiceSpec};

    fn service() -> Service {
        Service {
            metadata: ObjectMeta { name: Some("web".into()), namespace: Some("n".into()), ..ObjectMeta::default() },
            spec: Some(ServiceSpec {
                ip_families: Some(vec!["IPv4".into()]),
                ports: Some(vec![ServicePort { port: 80, ..ServicePort::default() }]),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        }
    }

    fn pod(uid: &str, ready: bool) -> Arc<Pod> {
        Arc::new(Pod {
            metadata: ObjectMeta { uid: Some(uid.into()), name: Some(uid.into()), ..ObjectMeta::default() },
            status: Some(PodStatus {
                pod_ip: Some("10.0.0.1".into()),
                conditions: Some(vec![PodCondition {
                    type_: "Ready".into(),
                    status: if ready { "True" } else { "False" }.into(),
                    ..PodCondition::default()
                }]),
                ..PodStatus::default()
            }),
            ..Pod::default()
        })
    }

    #[test]
    fn slices_follow_pods_with_few_changes() {
        let none = |_: &str| None;
        // No pods: an empty slice.
        let actions = plan(&service(), &[], none, &[]);
        let [Action::Create(empty)] = &actions[..] else { panic!("{actions:?}") };
        assert!(empty.endpoints.as_ref().unwrap().is_empty());
        // The first pod takes the place of the placeholder.
        let mut placeholder = empty.clone();
        placeholder.metadata.name = Some("web-1".into());
        let actions = plan(&service(), &[pod("a", true)], none, &[Arc::new(placeholder)]);
        assert!(matches!(&actions[..], [Action::Create(_), Action::Delete(_)]), "{actions:?}");
        // Nothing new: nothing to do.
        let Action::Create(first) = &actions[0] else { panic!() };
        let first = Arc::new(first.clone());
        assert_eq!(plan(&service(), &[pod("a", true)], none, std::slice::from_ref(&first)), []);
        // Readiness changes in place.
        let actions = plan(&service(), &[pod("a", false)], none, std::slice::from_ref(&first));
        let [Action::Update(slice)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(slice.endpoints.as_ref().unwrap()[0].conditions.as_ref().unwrap().ready, Some(false));
        // 150 pods need a second slice, and the first pod stays where it was.
        let many: Vec<_> = (0..150).map(|i| pod(&format!("p{i:03}"), true)).chain([pod("a", true)]).collect();
        let actions = plan(&service(), &many, none, &[first]);
        assert_eq!(actions.len(), 2);
    }
}
