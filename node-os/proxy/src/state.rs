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

/// How long an address that has left a Service's load balancer is still answered: clients learn of it late, by names
/// that they have resolved before.
const LINGER: Duration = Duration::from_secs(300);

/// Everything kube-proxy knows.
#[derive(Debug)]
pub(crate) struct State {
    node: String,
    settings: rules::Settings,
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<String, EndpointSlice>,
    /// Addresses that have left a load balancer, and until when they are answered.
    leaving: BTreeMap<(ServiceKey, Ipv4Addr), Instant>,
    heard: (bool, bool),
    /// What the kernel has; `None` before the first transaction and after a refused one.
    applied: Option<(Ports, BTreeSet<Ipv4Addr>)>,
}

impl State {
    pub(crate) fn new(node: String, settings: rules::Settings) -> Self {
        State {
            node,
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
        let balanced = |services: &BTreeMap<ServiceKey, Service>| -> BTreeSet<(ServiceKey, Ipv4Addr)> {
            let all = services.iter();
            all.flat_map(|(key, s)| model::balancer_ips(s).into_iter().map(|ip| (key.clone(), ip))).collect()
        };
        let before = balanced(&self.services);
        apply(&mut self.services, change);
        let after = balanced(&self.services);
        for gone in before.difference(&after) {
            self.leaving.insert(gone.clone(), now + LINGER);
        }
        let services = &self.services;
        // One that is no load balancer any more, or gone, has nothing to answer for.
        self.leaving.retain(|(key, ip), _| {
            services.get(key).is_some_and(model::is_balanced) && !after.contains(&(key.clone(), *ip))
        });
    }

    /// When the next address is answered no more.
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
        self.linger(&mut out);
        out
    }

    /// Adds the addresses that are leaving, where no other Service has them by now.
    fn linger(&self, ports: &mut Ports) {
        let held: BTreeSet<(Ipv4Addr, u8, u16)> = ports
            .values()
            .flat_map(|p| p.external_ips.iter().chain([&p.cluster_ip]).map(|ip| (*ip, p.protocol, p.port)))
            .collect();
        for (service, ip) in self.leaving.keys() {
            let own = format!("{service}:");
            for (_, port) in ports.range_mut(own.clone()..).take_while(|(key, _)| key.starts_with(&own)) {
                if !held.contains(&(*ip, port.protocol, port.port)) {
                    port.external_ips.push(*ip);
                    port.external_ips.sort_unstable();
                }
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
    fn an_address_that_has_left_is_answered_for_a_while() {
        let start = Instant::now();
        let mut state = State::new("n".into(), rules::Settings { pod_cidr: (Ipv4Addr::new(10, 1, 0, 0), 16) });
        let answered = |state: &mut State, name: &str, now: Instant| -> Vec<String> {
            state.leaving.retain(|_, end| *end > now);
            let ports = state.wanted();
            let port = ports.get(&format!("a/{name}:/TCP"));
            port.map(|p| p.external_ips.iter().map(ToString::to_string).collect()).unwrap_or_default()
        };
        let apply = |state: &mut State, service| state.services(Change::Apply(service), start);
        apply(&mut state, service("web", "LoadBalancer", &["10.0.0.1", "10.0.0.2"]));
        assert_eq!(state.next_end(), None);
        apply(&mut state, service("web", "LoadBalancer", &["10.0.0.2"]));
        assert_eq!(answered(&mut state, "web", start), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(state.next_end(), Some(start + LINGER));
        // Another Service has the address now.
        apply(&mut state, service("other", "LoadBalancer", &["10.0.0.1"]));
        assert_eq!(answered(&mut state, "web", start), ["10.0.0.2"]);
        state.services(Change::Delete(service("other", "LoadBalancer", &[])), start);
        // It comes back, and leaves again.
        apply(&mut state, service("web", "LoadBalancer", &["10.0.0.1", "10.0.0.2"]));
        assert_eq!(state.next_end(), None);
        apply(&mut state, service("web", "LoadBalancer", &["10.0.0.2"]));
        assert_eq!(answered(&mut state, "web", start + LINGER - Duration::from_secs(1)).len(), 2);
        assert_eq!(answered(&mut state, "web", start + LINGER), ["10.0.0.2"]);
        // What is no load balancer any more lets go at once.
        apply(&mut state, service("web", "LoadBalancer", &[]));
        apply(&mut state, service("web", "ClusterIP", &[]));
        assert!(answered(&mut state, "web", start).is_empty() && state.next_end().is_none());
    }
}
