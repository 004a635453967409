//! `node.json`: who this node is, after metadata, user-data and `cluster.json` were merged.

use crate::{Reserved, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// A taint of the Node object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// Taint key.
    pub key: String,
    /// Taint value, may be empty.
    #[serde(default)]
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// This node's identity and settings. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Node {
    /// Node name = host name.
    pub name: String,
    /// Role, the same as the image's.
    pub role: Role,
    /// InternalIP first, then further addresses of this node.
    pub addresses: Vec<IpAddr>,
    /// Addresses under which the platform reaches this node from outside: ExternalIP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_addresses: Vec<IpAddr>,
    /// `host:port` of the masters' API servers, for the balancer's first list.
    pub api_endpoints: Vec<String>,
    /// Labels of the Node object.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Taints of the Node object.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// What the system keeps for itself.
    #[serde(default)]
    pub reserved: Reserved,
    /// `spec.providerID`, where the platform has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider_id: Option<String>,
    /// A master without a store waits for a backup, and serves nothing until then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub await_backup: bool,
    /// Where there are several masters, which share a store on etcd: the address of each, this one's first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub etcd_members: Vec<IpAddr>,
    /// This master shares a store on etcd with others, and is told by the node API which those are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub await_masters: bool,
    /// This master's etcd joins the members that run, and never begins a store.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub join_etcd: bool,
    /// It has a disk of so many GB, a worker for the volumes of pods and a single master for its store, and waits until it is
    /// attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_volume: Option<NonZeroU32>,
    /// Which data source said so, e.g. `nocloud`.
    pub source: String,
}
