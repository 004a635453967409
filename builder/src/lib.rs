//! kimg, the tool people run: cluster descriptions, images, keys, local VMs, and a client of nodes.

pub mod config;
pub mod manifests;
pub mod pki;
