//! The node API: HTTPS on port 10270, for holders of a client certificate of the node-API CA.

mod backups;
pub mod certificates;
mod doors;
mod kubelet;
pub mod masters;
pub mod proc;
mod registry;
mod server;
mod store;
mod streams;
mod tls;
mod volumes;

pub use server::start;
