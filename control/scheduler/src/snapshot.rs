//! What the cycle looks at: nodes with the pods on them, kept up to date change by change.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use control_client::pods;
use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use crate::resources::{self, Resources};

/// A rule about other pods, with its selectors made complete.
#[derive(Debug, Clone)]
pub struct Term {
    pub selector: Option<LabelSelector>,
    pub namespaces: BTreeSet<String>,
    pub namespace_selector: Option<LabelSelector>,
    pub topology_key: String,
}

/// A port on the node itself: address, protocol, number.
pub type HostPort = (String, String, i32);

/// A pod, with what the cycle asks for again and again taken out once.
#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub priority: i32,
    pub requests: Resources,
    pub score_requests: (i64, i64),
    pub host_ports: Vec<HostPort>,
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    pub preferred_affinity: Vec<(i64, Term)>,
    pub preferred_anti_affinity: Vec<(i64, Term)>,
}

impl PodInfo {
    pub fn new(pod: Arc<Pod>) -> Arc<Self> {
        let spec = pods::spec(&pod).into_owned();
        let affinity = spec.affinity.as_ref();
        let toward = affinity.and_then(|a| a.pod_affinity.as_ref());
        let away = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let terms = |list: Option<&Vec<PodAffinityTerm>>| {
            list.into_iter().flatten().map(|t| Term::new(t, &pod)).collect::<Vec<_>>()
        };
        let weighted = |list: Option<&Vec<k8s_openapi::api::core::v1::WeightedPodAffinityTerm>>| {
            list.into_iter()
                .flatten()
                .map(|t| (i64::from(t.weight), Term::new(&t.pod_affinity_term, &pod)))
                .collect::<Vec<_>>()
        };
        Arc::new(Self {
            priority: spec.priority.unwrap_or(0),
            requests: resources::of_pod(&spec),
            score_requests: resources::of_pod_for_score(&spec),
            host_ports: host_ports(&spec),
            affinity: terms(toward.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            anti_affinity: terms(away.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())),
            preferred_affinity: weighted(
                toward.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred_anti_affinity: weighted(
                away.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            ),
            pod,
        })
    }

    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    fn has_affinity(&self) -> bool {
        !(self.affinity.is_empty()
            && self.anti_affinity.is_empty()
            && self.preferred_affinity.is_empty()
            && self.preferred_anti_affinity.is_empty())
    }
}

impl Term {
    fn new(term: &PodAffinityTerm, pod: &Pod) -> Self {
        let mut selector = term.label_selector.clone();
        if let Some(selector) = &mut selector {
            add_label_keys(selector, term.match_label_keys.as_deref(), "In", pod);
            add_label_keys(selector, term.mismatch_label_keys.as_deref(), "NotIn", pod);
        }
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(pod.metadata.namespace.clone().unwrap_or_default());
        }
        Self {
            selector,
            namespaces,
            namespace_selector: term.namespace_selector.clone(),
            topology_key: term.topology_key.clone(),
        }
    }
}

/// Adds the pod's own values of the keys as requirements.
pub fn add_label_keys(selector: &mut LabelSelector, keys: Option<&[String]>, operator: &str, pod: &Pod) {
    for key in keys.unwrap_or_default() {
        let Some(value) = pod.metadata.labels.as_ref().and_then(|l| l.get(key)) else { continue };
        selector.match_expressions.get_or_insert_default().push(LabelSelectorRequirement {
            key: key.clone(),
            operator: operator.to_owned(),
            values: Some(vec![value.clone()]),
        });
    }
}

fn host_ports(spec: &k8s_openapi::api::core::v1::PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|p| *p > 0)?;
            let address = p.host_ip.clone().filter(|a| !a.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned());
            Some((address, p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), port))
        })
        .collect()
}

/// A node and the pods on it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    pub name: String,
    /// None for a moment where a pod is known before its node.
    pub node: Option<Arc<Node>>,
    pub allocatable: Resources,
    pub requested: Resources,
    pub score_requested: (i64, i64),
    pub pods: Vec<Arc<PodInfo>>,
}

impl NodeInfo {
    fn set_node(&mut self, node: Arc<Node>) {
        self.allocatable = Resources::parse(node.status.as_ref().and_then(|s| s.allocatable.as_ref()));
        self.node = Some(node);
    }

    pub fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.score_requested.0 += pod.score_requests.0;
        self.score_requested.1 += pod.score_requests.1;
        self.pods.push(pod);
    }

    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|p| p.uid() == uid)?;
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.requests);
        self.score_requested.0 -= pod.score_requests.0;
        self.score_requested.1 -= pod.score_requests.1;
        Some(pod)
    }

    pub fn labels(&self) -> Option<&control_client::selector::Labels> {
        self.node.as_ref().and_then(|n| n.metadata.labels.as_ref())
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }
}

/// All nodes.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub nodes: Vec<NodeInfo>,
    index: HashMap<String, usize>,
    /// Where each pod stands, by uid.
    places: HashMap<String, String>,
    /// How many pods have rules about other pods, so that most cycles need not look for them.
    pub with_affinity: usize,
    pub with_anti_affinity: usize,
    /// How many nodes hold each image.
    pub images: HashMap<String, usize>,
}

impl Snapshot {
    pub fn get(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|at| &self.nodes[*at])
    }

    fn entry(&mut self, name: &str) -> &mut NodeInfo {
        let at = match self.index.get(name) {
            Some(at) => *at,
            None => {
                self.nodes.push(NodeInfo { name: name.to_owned(), ..NodeInfo::default() });
                self.index.insert(name.to_owned(), self.nodes.len() - 1);
                self.nodes.len() - 1
            }
        };
        &mut self.nodes[at]
    }

    /// How many nodes there are to choose from.
    pub fn node_count(&self) -> usize {
        self.nodes.iter().filter(|n| n.node.is_some()).count()
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        self.count_images(&name, false);
        self.entry(&name).set_node(node);
        self.count_images(&name, true);
    }

    pub fn remove_node(&mut self, name: &str) {
        self.count_images(name, false);
        let Some(at) = self.index.get(name).copied() else { return };
        self.nodes[at].node = None;
        self.forget_if_empty(name);
    }

    fn count_images(&mut self, name: &str, add: bool) {
        let Some(node) = self.get(name).and_then(|n| n.node.clone()) else { return };
        for image in node.status.iter().flat_map(|s| s.images.iter().flatten()).flat_map(|i| i.names.iter().flatten()) {
            let count = self.images.entry(image.clone()).or_insert(0);
            *count = if add { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                self.images.remove(image);
            }
        }
    }

    fn forget_if_empty(&mut self, name: &str) {
        let Some(at) = self.index.get(name).copied() else { return };
        if self.nodes[at].node.is_some() || !self.nodes[at].pods.is_empty() {
            return;
        }
        self.nodes.swap_remove(at);
        self.index.remove(name);
        if let Some(moved) = self.nodes.get(at) {
            self.index.insert(moved.name.clone(), at);
        }
    }

    /// Puts the pod on the node, in place of what was known of it.
    pub fn set_pod(&mut self, node: &str, pod: Arc<PodInfo>) {
        self.remove_pod(pod.uid());
        self.with_affinity += usize::from(pod.has_affinity());
        self.with_anti_affinity += usize::from(!pod.anti_affinity.is_empty());
        self.places.insert(pod.uid().to_owned(), node.to_owned());
        self.entry(node).add(pod);
    }

    pub fn remove_pod(&mut self, uid: &str) {
        let Some(node) = self.places.remove(uid) else { return };
        if let Some(pod) = self.entry(&node).remove(uid) {
            self.with_affinity -= usize::from(pod.has_affinity());
            self.with_anti_affinity -= usize::from(!pod.anti_affinity.is_empty());
        }
        self.forget_if_empty(&node);
    }

    pub fn place_of(&self, uid: &str) -> Option<&str> {
        self.places.get(uid).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    #[test]
    fn sums_follow_pods() {
        let mut snapshot = Snapshot::default();
        snapshot.set_node(fake::node("a", "2", "4Gi"));
        snapshot.set_pod("a", PodInfo::new(fake::pod("p", "500m")));
        snapshot.set_pod("a", PodInfo::new(fake::pod("p", "700m")));
        assert_eq!(snapshot.get("a").unwrap().requested.cpu_milli, 700);
        // A node that goes before its pods stays until they are gone.
        snapshot.remove_node("a");
        assert_eq!((snapshot.nodes.len(), snapshot.node_count()), (1, 0));
        snapshot.remove_pod("p");
        assert!(snapshot.nodes.is_empty());
    }
}
