//! Where a node learns who it is: what the image bakes about the cluster,
//! what the platform's metadata says, and the merge of both.
//!
//! This crate parses and merges; it never touches the network, a device or the system.
//! Everything it parses comes from outside and is treated as hostile.

mod cluster;
mod component;
mod drive;
mod encoding;
mod fat;
mod iso9660;
pub mod merge;
pub mod network_config;
mod node;
mod read_at;
mod seal;
pub mod sources;
pub mod userdata;

/// Stack that the parsers may need: documents may be nested as deep as the parsers allow.
pub const STACK_BYTES: usize = 2 << 20;

pub use cluster::{
    BuildInfo, CERTIFICATE_LIFE_S, Cluster, LogTarget, METADATA_GROUPS, METADATA_PODS, NodeEntry, Overlay, REGISTRY,
    REGISTRY_PORT, Registry, Reserved, Role, STATUS_PORT, StoreEngine,
};
pub use component::{COMPONENT_PROGRAMS, OwnComponent, SERVICE_NAMES};
pub use node::{Node, Taint};
pub use read_at::ReadAt;
pub use seal::{SEAL_MAGIC, SealError, SealKey, is_sealed_file, seal, seal_of, sealed_file, unseal};
