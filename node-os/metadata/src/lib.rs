//! Where a node learns who it is: what the image bakes about the cluster,
//! what the platform's metadata says, and the merge of both.
//!
//! This crate parses and merges; it never touches the network, a device or the system.
//! Everything it parses comes from outside and is treated as hostile.

mod cluster;
mod node;
mod seal;

pub use cluster::{BuildInfo, Cluster, NodeEntry, Overlay, Reserved, Role, StoreEngine};
pub use node::{Node, Taint};
pub use seal::{SEAL_MAGIC, SealError, SealKey, seal, unseal};
