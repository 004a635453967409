//! What the watches said, and what of it is in the kernel.

use crate::model::{self, Ports, ServiceKey};
use crate::{conntrack, rules};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use node_client::{Change, apply};
use node_sys::nft::NftError;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long a Service whose load balancer has no address any more is still answered: clients learn of it late, by names
/// that they have resolved before.
const LINGER: Duration = Duration::from_secs(300);

/// Everything kube-proxy knows.
#[derive(Debug)]
pub(crate) struct State {
    node: String,
    settings: rules::Settings,
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<String, EndpointSlice>,
    /// This node's addresses where it is part of load balancers. It answers there for every Service that has some
    /// addresses, whether this one is among them or not: before clients can read it, and after they have; and where a
    /// provider translates it, packets never bear the one that they read.
    own: Vec<Ipv4Addr>,
    /// Services that have lost their last address, and until when they are answered.
    leaving: BTreeMap<ServiceKey, Instant>,
    heard: (bool, bool),
    /// What the kernel has; `None` before the first transaction and after a refused one.
    applied: Option<(Ports, BTreeSet<Ipv4Addr>)>,
}

impl State {
    pub(crate) fn new(node: String, own: Vec<Ipv4Addr>, settings: rules::Settings) -> Self {
        State {
            node,
            own,
            settings,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            leaving: BTreeMap::new(),
            heard: (false, false),
            applied: None,
        }
    }

    /// Takes a change of Services.
    pub(crate) fn services(&mut self, change: Change<Service>, now: Instant) {
        self.heard.0 |= matches!(change, Change::All(_));
        let answered = |services: &BTreeMap<ServiceKey, Service>| -> BTreeSet<ServiceKey> {
            let all = services.iter().filter(|(_, s)| model::is_balanced(s) && model::has_address(s));
            all.map(|(key, _)| key.clone()).collect()
        };
        let before = answered(&self.services);
        apply(&mut self.services, change);
        let after = answered(&self.services);
        for gone in before.difference(&after) {
            self.leaving.insert(gone.clone(), now + LINGER);
        }
        let services = &self.services;
        // One that is no load balancer any more, or gone, has nothing to answer for.
        self.leaving.retain(|key, _| services.get(key).is_some_and(model::is_balanced) && !after.contains(key));
    }

    /// When the next Service is answered no more.
    pub(crate) fn next_end(&self) -> Option<Instant> {
        self.leaving.values().min().copied()
    }

    /// Takes a change of EndpointSlices.
    pub(crate) fn slices(&mut self, change: Change<EndpointSlice>) {
        self.heard.1 |= matches!(change, Change::All(_));
        apply(&mut self.slices, change);
    }

    /// Rules are only written once both kinds were heard of in full:
    /// half a picture would take running services away.
    pub(crate) fn complete(&self) -> bool {
        self.heard == (true, true)
    }

    /// Brings the kernel to what the watches said; `false` when nothing had to change.
    pub(crate) fn sync(&mut self, now: Instant) -> Result<bool, NftError> {
        self.leaving.retain(|_, end| *end > now);
        let wanted = self.wanted();
        let local = rules::local_endpoints(&wanted);
        let fresh = self.applied.is_none();
        let (old, old_local) = self.applied.take().unwrap_or_default();
        let mut batch = rules::transaction(&old, &wanted, &self.settings, fresh);
        rules::hairpin(&mut batch, &old_local, &local);
        if batch.is_empty() {
            self.applied = Some((wanted, local));
            return Ok(false);
        }
        batch.commit()?;
        conntrack::forget_stale(&old, &wanted);
        self.applied = Some((wanted, local));
        Ok(true)
    }

    fn wanted(&self) -> Ports {
        let mut by_service: BTreeMap<ServiceKey, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in self.slices.values() {
            if let Some(key) = model::service_of(slice) {
                by_service.entry(key).or_default().push(slice);
            }
        }
        let mut out = Ports::new();
        for (key, service) in &self.services {
            let slices = by_service.get(key).map_or(&[][..], Vec::as_slice);
            out.extend(model::ports_of(service, slices, &self.node));
        }
        self.answer_here(&mut out);
        out
    }

    /// Adds this node's own addresses to what load balancers answer, where no other Service has them.
    fn answer_here(&self, ports: &mut Ports) {
        let held: BTreeSet<(Ipv4Addr, u8, u16)> = ports
            .values()
            .flat_map(|p| p.external_ips.iter().chain([&p.cluster_ip]).map(|ip| (*ip, p.protocol, p.port)))
            .collect();
        let balanced = self.services.iter().filter(|(key, service)| {
            model::is_balanced(service) && (model::has_address(service) || self.leaving.contains_key(*key))
        });
        for (service, _) in balanced {
            let own = format!("{service}:");
            for (_, port) in ports.range_mut(own.clone()..).take_while(|(key, _)| key.starts_with(&own)) {
                port.external_ips
                    .extend(self.own.iter().filter(|ip| !held.contains(&(**ip, port.protocol, port.port))));
                port.external_ips.sort_unstable();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, kind: &str, ips: &[&str]) -> Service {
        let ingress: Vec<_> = ips.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "a"},
            "spec": {"type": kind, "clusterIP": "10.32.0.5", "ports": [{"port": 80, "protocol": "TCP"}]},
            "status": {"loadBalancer": {"ingress": ingress}},
        }))
        .expect("a Service")
    }

    #[test]
    fn a_node_answers_at_its_own_addresses_before_and_after_clients_read_them() {
        let start = Instant::now();
        let mut state = State::new(
            "n".into(),
            vec![Ipv4Addr::new(10, 0, 0, 1)],
            rules::Settings { pod_cidr: (Ipv4Addr::new(10, 1, 0, 0), 16) },
        );
        let answered = |state: &mut State, name: &str, now: Instant| -> Vec<String> {
            state.leaving.retain(|_, end| *end > now);
            let ports = state.wanted();
            let port = ports.get(&format!("a/{name}:/TCP"));
            port.map(|p| p.external_ips.iter().map(ToString::to_string).collect()).unwrap_or_default()
        };
        let apply = |state: &mut State, service| state.services(Change::Apply(service), start);
        // No port is a Service's before the cluster has given it one.
        apply(&mut state, service("web", "LoadBalancer", &[]));
        assert!(answered(&mut state, "web", start).is_empty());
        apply(&mut state, service("web", "LoadBalancer", &["10.0.0.2"]));
        assert_eq!(answered(&mut state, "web", start), ["10.0.0.1", "10.0.0.2"]);
        apply(&mut state, service("web", "LoadBalancer", &["10.0.0.1", "10.0.0.2"]));
        assert_eq!(answered(&mut state, "web", start), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(state.next_end(), None);
        // The last address leaves.
        apply(&mut state, service("web", "LoadBalancer", &[]));
        assert_eq!(state.next_end(), Some(start + LINGER));
        assert_eq!(answered(&mut state, "web", start + LINGER - Duration::from_secs(1)), ["10.0.0.1"]);
        assert!(answered(&mut state, "web", start + LINGER).is_empty());
        // Another Service has the address.
        apply(&mut state, service("other", "ClusterIP", &["10.0.0.1"]));
        apply(&mut state, service("web", "LoadBalancer", &["10.0.0.2"]));
        assert_eq!(answered(&mut state, "web", start), ["10.0.0.2"]);
        state.services(Change::Delete(service("other", "ClusterIP", &[])), start);
        // Somebody else's load balancer, and what is none any more.
        let mut foreign = service("web", "LoadBalancer", &["10.0.0.2"]);
        foreign.spec.as_mut().expect("a spec").load_balancer_class = Some("example.com/lb".into());
        apply(&mut state, foreign);
        assert_eq!(answered(&mut state, "web", start), ["10.0.0.2"]);
        apply(&mut state, service("web", "LoadBalancer", &[]));
        apply(&mut state, service("web", "ClusterIP", &[]));
        assert!(answered(&mut state, "web", start).is_empty() && state.next_end().is_none());
    }
}
