//! Services of type LoadBalancer, where no provider's balancer stands in front: the addresses of the workers themselves.
//!
//! `status.loadBalancer` holds the addresses of all nodes that are Ready, take pods, are not control planes and do not bear
//! the label `node.kubernetes.io/exclude-from-external-load-balancers`; kube-proxy on every node answers there. A node that is
//! cordoned leaves the list, so that clients who follow it are elsewhere before the node's pods end.
//!
//! The ports are the nodes' own, so one port can serve one Service (the older one has it), and only those ports are given
//! away that are open to everybody on workers: a Service on another would take a node's own port from the cluster.
//! Services with a `loadBalancerClass` belong to somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use control_client::{Key, Queue};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
pub(crate) const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";
const NODE_PORTS: std::ops::RangeInclusive<i32> = 30_000..=32_767;
const WEB_PORTS: [i32; 2] = [80, 443];

/// What a Service's status should say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// These addresses.
    Addresses(Vec<String>),
    /// None, for this reason.
    Refused(String),
    /// It is not ours: nothing is touched.
    Foreign,
}

/// The addresses under which clients outside reach Services, sorted.
fn addresses<'a>(nodes: impl Iterator<Item = &'a Node>) -> Vec<String> {
    let serving: BTreeSet<String> = nodes.filter(|node| serves(node)).flat_map(addresses_of).collect();
    serving.into_iter().collect()
}

fn serves(node: &Node) -> bool {
    let label = |name: &str| node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(name));
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    ready && !cordoned && node.metadata.deletion_timestamp.is_none() && !label(EXCLUDE) && !label(CONTROL_PLANE)
}

/// Those outside where the node has any, else those inside.
fn addresses_of(node: &Node) -> Vec<String> {
    let of = |kind: &str| -> Vec<String> {
        let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        all.filter(|a| a.type_ == kind && a.address.parse::<std::net::IpAddr>().is_ok())
            .map(|a| a.address.clone())
            .collect()
    };
    let outside = of("ExternalIP");
    if outside.is_empty() { of("InternalIP") } else { outside }
}

fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.type_.as_deref()) == Some("LoadBalancer")
        && spec.is_some_and(|s| s.load_balancer_class.is_none())
        && service.metadata.deletion_timestamp.is_none()
}

type Port = (String, i32);

fn ports(service: &Service) -> Vec<Port> {
    let all = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    all.map(|port| (port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port.port)).collect()
}

fn node_ports(service: &Service) -> Vec<Port> {
    let all = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    all.filter_map(|port| Some((port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port.node_port?))).collect()
}

/// What each Service's status should say; the older of two Services has a port that both want.
fn plan(services: &[Arc<Service>], addresses: &[String]) -> BTreeMap<Key, Wanted> {
    let age = |service: &Arc<Service>| {
        let made: Option<Time> = service.metadata.creation_timestamp.clone();
        (made.map(|time| time.0), Key::of(&**service))
    };
    let mut sorted: Vec<&Arc<Service>> = services.iter().collect();
    sorted.sort_by_key(|service| age(service));
    let mut taken: BTreeMap<Port, Key> = BTreeMap::new();
    let mut out = BTreeMap::new();
    for service in sorted {
        let key = Key::of(&**service);
        let wanted = if is_ours(service) { judge(service, &key, addresses, &mut taken) } else { Wanted::Foreign };
        // A NodePort answers at the same addresses.
        for port in node_ports(service) {
            taken.entry(port).or_insert_with(|| key.clone());
        }
        out.insert(key, wanted);
    }
    out
}

fn judge(service: &Service, key: &Key, addresses: &[String], taken: &mut BTreeMap<Port, Key>) -> Wanted {
    let ports = ports(service);
    if let Some((_, port)) = ports.iter().find(|(_, port)| !WEB_PORTS.contains(port) && !NODE_PORTS.contains(port)) {
        return Wanted::Refused(format!(
            "port {port} of a worker is not open to clients outside; use 80, 443, or one from {} to {}",
            NODE_PORTS.start(),
            NODE_PORTS.end()
        ));
    }
    let held = ports.iter().find_map(|port| Some((port, taken.get(port).filter(|holder| *holder != key)?)));
    if let Some(((protocol, port), holder)) = held {
        return Wanted::Refused(format!("port {port}/{protocol} of the workers belongs to Service {holder} already"));
    }
    for port in ports {
        taken.insert(port, key.clone());
    }
    Wanted::Addresses(addresses.to_vec())
}

/// The addresses that a Service's status has, sorted.
fn current(service: &Service) -> Vec<String> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let mut all: Vec<String> =
        balancer.iter().flat_map(|b| b.ingress.iter().flatten()).filter_map(|i| i.ip.clone()).collect();
    all.sort();
    all
}

pub fn start(context: &Arc<Context>) {
    // One look at all: which Service has a port depends on the others.
    let queue = Arc::new(Queue::<Key>::default());
    let all = || Key::new("", "all");
    context.caches.services.subscribe({
        let queue = queue.clone();
        move |change| {
            let balanced =
                |service: &Service| service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("LoadBalancer");
            if balanced(change.object()) || change.old().is_some_and(|old| balanced(old)) {
                queue.add(all());
            }
        }
    });
    context.caches.nodes.subscribe({
        let queue = queue.clone();
        move |change| {
            let view = |node: &Node| serves(node).then(|| addresses_of(node));
            // Nodes report every few seconds; most of that is not of interest here.
            let gone = matches!(change, control_client::Change::Deleted(_));
            if gone || change.old().is_none_or(|old| view(old) != view(change.object())) {
                queue.add(all());
            }
        }
    });
    let context = context.clone();
    runner::run("service-lb", &queue, 1, move |_| {
        let context = context.clone();
        async move { work(&context).await }
    });
}

async fn work(context: &Context) -> Worked {
    let nodes = context.caches.nodes.list();
    let services = context.caches.services.list();
    let addresses = addresses(nodes.iter().map(|node| &**node));
    for (key, wanted) in plan(&services, &addresses) {
        let Some(service) = services.iter().find(|service| Key::of(&***service) == key) else { continue };
        let addresses = match wanted {
            Wanted::Foreign => continue,
            Wanted::Addresses(addresses) => addresses,
            Wanted::Refused(why) => {
                // The recorder joins events that say the same.
                context.events.warning(&**service, "SyncLoadBalancerFailed", why);
                Vec::new()
            }
        };
        if current(service) == addresses {
            continue;
        }
        let ingress: Vec<LoadBalancerIngress> = addresses
            .into_iter()
            .map(|ip| LoadBalancerIngress {
                ip: Some(ip),
                ip_mode: Some("VIP".to_owned()),
                ..LoadBalancerIngress::default()
            })
            .collect();
        let patch = json!({"status": {"loadBalancer": {"ingress": ingress}}});
        match context.caches.services.merge(Some("status"), service, &patch).await {
            Err(failure) if failure.is_not_found() => {}
            other => drop(other?),
        }
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(name: &str, change: Value) -> Node {
        let mut node = json!({
            "metadata": {"name": name, "labels": {}},
            "spec": {},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": format!("10.0.0.{}", name.len())}],
            },
        });
        for (part, value) in change.as_object().expect("an object") {
            for (field, value) in value.as_object().expect("an object") {
                node[part][field] = value.clone();
            }
        }
        serde_json::from_value(node).expect("a Node")
    }

    #[test]
    fn only_nodes_that_serve_are_named() {
        let cases = [
            (json!({}), vec!["10.0.0.1"]),
            (json!({"spec": {"unschedulable": true}}), vec![]),
            (json!({"spec": {"unschedulable": false}}), vec!["10.0.0.1"]),
            (json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}), vec![]),
            (json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}), vec![]),
            (json!({"status": {"conditions": []}}), vec![]),
            (json!({"metadata": {"labels": {EXCLUDE: ""}}}), vec![]),
            (json!({"metadata": {"labels": {CONTROL_PLANE: ""}}}), vec![]),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), vec![]),
            (
                json!({"status": {"addresses": [
                    {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "ExternalIP", "address": "192.0.2.1"},
                    {"type": "ExternalIP", "address": "2001:db8::1"}, {"type": "ExternalDNS", "address": "w"}
                ]}}),
                vec!["192.0.2.1", "2001:db8::1"],
            ),
        ];
        for (change, wanted) in cases {
            assert_eq!(addresses([node("w", change.clone())].iter()), wanted, "{change}");
        }
        let nodes = [node("worker", json!({})), node("w", json!({}))];
        assert_eq!(addresses(nodes.iter()), ["10.0.0.1", "10.0.0.6"]);
    }

    fn service(name: &str, made: &str, ports: &[i32], change: Value) -> Arc<Service> {
        let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port, "protocol": "TCP"})).collect();
        let mut service = json!({
            "metadata": {"name": name, "namespace": "a", "creationTimestamp": format!("2026-01-01T00:00:{made}Z")},
            "spec": {"type": "LoadBalancer", "ports": ports},
        });
        for (field, value) in change.as_object().expect("an object") {
            service["spec"][field] = value.clone();
        }
        Arc::new(serde_json::from_value(service).expect("a Service"))
    }

    #[test]
    fn a_port_has_one_service_and_is_open_to_clients() {
        let here = ["10.0.0.1".to_owned()];
        let given = || Wanted::Addresses(here.to_vec());
        let services = [
            service("younger", "05", &[80], json!({})),
            service("older", "01", &[443, 80], json!({})),
            service("udp", "06", &[], json!({"ports": [{"port": 80, "protocol": "UDP"}]})),
            service("high", "02", &[30_080], json!({})),
            service("kubelet", "00", &[10_250], json!({})),
            // Its own NodePort, another's that is older, and another's that is younger.
            service("own", "03", &[], json!({"ports": [{"port": 30_100, "protocol": "TCP", "nodePort": 30_100}]})),
            service("node", "03", &[], json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30_200}]})),
            service("late", "04", &[30_200], json!({})),
            service("early", "01", &[30_300], json!({})),
            service("later", "09", &[], json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 30_300}]})),
            service("class", "00", &[80], json!({"loadBalancerClass": "metallb"})),
            service("inside", "00", &[80], json!({"type": "ClusterIP"})),
        ];
        let plan = plan(&services, &here);
        let of = |name: &str| plan[&Key::new("a", name)].clone();
        assert_eq!((of("older"), of("udp"), of("high")), (given(), given(), given()));
        assert_eq!((of("class"), of("inside")), (Wanted::Foreign, Wanted::Foreign));
        let Wanted::Refused(why) = of("younger") else { panic!("{:?}", of("younger")) };
        assert_eq!(why, "port 80/TCP of the workers belongs to Service a/older already");
        assert_eq!((of("own"), of("early")), (given(), given()));
        let Wanted::Refused(why) = of("late") else { panic!("{:?}", of("late")) };
        assert_eq!(why, "port 30200/TCP of the workers belongs to Service a/node already");
        let Wanted::Refused(why) = of("kubelet") else { panic!("{:?}", of("kubelet")) };
        assert!(why.starts_with("port 10250 of a worker is not open"), "{why}");
    }

    #[test]
    fn what_the_status_has_is_compared_without_order() {
        let mut service = (*service("s", "00", &[80], json!({}))).clone();
        assert!(current(&service).is_empty());
        service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "b"}, {"ip": "a"}]}})).ok();
        assert_eq!(current(&service), ["a", "b"]);
    }
}
