//! The cluster's keys and certificates: made once, kept in `secrets/` (0700, files 0600), never made anew.
//!
//! [`revoke`] takes the API's client certificates back, [`rotate_node`] gives a worker new ones, [`accounts`] gives service
//! accounts another key, [`encryption`] Secrets at rest, [`seal`] the sealed secrets of images, and [`successor`] front
//! proxies, node APIs, etcd and the cluster another authority.
//! [`secrets`] is the folder, [`authority`] the certificate authorities, [`issue`] the operator's own client
//! certificates, [`kubeconfig`] what kubectl reads, [`show`] what stands in a certificate, [`ls`]
//! all certificates of nodes and operator by what ends first, [`secure_boot`] the keys
//! that a machine's firmware trusts, and [`config_partition`] what of all this goes into an image.

pub mod accounts;
pub mod authority;
pub mod config_partition;
pub mod encryption;
pub mod issue;
pub mod kubeconfig;
pub mod ls;
pub mod revoke;
pub mod rotate_node;
pub mod seal;
pub mod secrets;
pub mod secure_boot;
pub mod show;
pub mod signed_data;
pub mod successor;

pub use authority::Authority;
pub use config_partition::config_partition;
pub use issue::{ClientCertificate, Subject};
pub use secrets::Secrets;
pub use secure_boot::SecureBoot;
