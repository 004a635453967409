//! The Node object: what the machine is, how it feels, and that it lives.

pub mod build;
pub mod facts;
pub mod lease;
pub mod update;

use crate::options::Options;
use crate::quantity;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The runtime must have answered a listing within this time for the node to be ready.
const RELIST_LIMIT: Duration = Duration::from_secs(180);

/// Signals of pressure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Memory is short.
    pub memory: bool,
    /// Disk is short.
    pub disk: bool,
    /// Process ids are short.
    pub pids: bool,
}

#[derive(Debug, Default)]
struct State {
    node: Option<Node>,
    runtime_version: String,
    network_trouble: Option<String>,
    runtime_trouble: Option<String>,
    images_imported: bool,
    relisted: Option<Instant>,
    pressure: Pressure,
}

/// What is known of this node, for all parts.
pub struct NodeState {
    facts: facts::Facts,
    capacity: BTreeMap<String, Quantity>,
    allocatable: BTreeMap<String, Quantity>,
    labels: BTreeMap<String, String>,
    has_runtime: bool,
    state: Mutex<State>,
}

impl NodeState {
    /// Reads what the machine is.
    pub fn new(options: &Options) -> NodeState {
        let facts = facts::read(&options.flags.root_dir);
        let capacity = build::capacity(&facts, options);
        let allocatable = build::allocatable(&capacity, options);
        NodeState {
            labels: build::labels(&facts, options),
            facts,
            capacity,
            allocatable,
            has_runtime: options.runtime.is_some(),
            state: Mutex::new(State {
                network_trouble: Some("the container runtime has not answered yet".into()),
                ..Default::default()
            }),
        }
    }

    /// Facts of the machine.
    pub fn facts(&self) -> &facts::Facts {
        &self.facts
    }

    /// All that the machine has.
    pub fn capacity(&self) -> &BTreeMap<String, Quantity> {
        &self.capacity
    }

    /// What pods may have of it.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.allocatable.clone()
    }

    /// Bytes of memory of the machine.
    pub fn memory_capacity(&self) -> i64 {
        self.capacity.get("memory").map_or(0, quantity::value)
    }

    /// Bytes that pods together may use: all but what is reserved.
    pub fn pods_memory_limit(&self) -> i64 {
        self.allocatable.get("memory").map_or(0, quantity::value) + build::eviction_memory(self.memory_capacity())
    }

    /// Thousandths of cpus.
    pub fn cpu_milli(&self) -> i64 {
        self.allocatable.get("cpu").map_or(1000, quantity::milli)
    }

    /// Labels: the API's, once the node is registered.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let state = crate::lock(&self.state);
        state.node.as_ref().and_then(|n| n.metadata.labels.clone()).unwrap_or_else(|| self.labels.clone())
    }

    /// The labels that the kubelet itself gives.
    pub fn own_labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }

    /// The Node as the API last showed it.
    pub fn object(&self) -> Option<Node> {
        crate::lock(&self.state).node.clone()
    }

    /// Uid of the Node, once it is registered.
    pub fn uid(&self) -> Option<String> {
        crate::lock(&self.state).node.as_ref().and_then(|n| n.metadata.uid.clone())
    }

    /// Remembers the Node as the API shows it.
    pub fn set_object(&self, mut node: Node) {
        node.metadata.managed_fields = None;
        crate::lock(&self.state).node = Some(node);
    }

    /// Name and version of the runtime.
    pub fn runtime_version(&self) -> String {
        crate::lock(&self.state).runtime_version.clone()
    }

    /// The runtime has said what it is.
    pub fn set_runtime_version(&self, version: String) {
        crate::lock(&self.state).runtime_version = version;
    }

    /// Baked images are there.
    pub fn images_imported(&self) {
        crate::lock(&self.state).images_imported = true;
    }

    /// A listing of containers succeeded.
    pub fn relisted(&self) {
        crate::lock(&self.state).relisted = Some(Instant::now());
    }

    /// A listing of containers failed; how long ago the last good one was decides.
    pub fn relist_failed(&self) {
        tracing::debug!("the runtime did not list its containers");
    }

    /// What the runtime said of itself and of the network.
    pub fn set_trouble(&self, runtime: Option<String>, network: Option<String>) {
        let mut state = crate::lock(&self.state);
        state.runtime_trouble = runtime;
        state.network_trouble = network;
    }

    /// Why pods cannot have a network now.
    pub fn network_trouble(&self) -> Option<String> {
        crate::lock(&self.state).network_trouble.clone()
    }

    /// Pressure, as eviction sees it.
    pub fn pressure(&self) -> Pressure {
        crate::lock(&self.state).pressure
    }

    /// Eviction has looked.
    pub fn set_pressure(&self, pressure: Pressure) {
        crate::lock(&self.state).pressure = pressure;
    }

    /// Why the node is not ready; empty: it is.
    pub fn troubles(&self) -> Vec<String> {
        if !self.has_runtime {
            return Vec::new();
        }
        let state = crate::lock(&self.state);
        let mut list = Vec::new();
        if state.runtime_version.is_empty() {
            list.push("container runtime is down".to_string());
        } else if !state.images_imported {
            list.push("images of the node's own are still being imported".to_string());
        }
        if let Some(trouble) = &state.runtime_trouble {
            list.push(format!("container runtime not ready: {trouble}"));
        }
        if let Some(trouble) = &state.network_trouble {
            list.push(format!("container runtime network not ready: {trouble}"));
        }
        if state.relisted.is_some_and(|at| at.elapsed() > RELIST_LIMIT) {
            list.push(format!(
                "PLEG is not healthy: containers were last listed more than {} s ago",
                RELIST_LIMIT.as_secs()
            ));
        }
        list
    }
}
