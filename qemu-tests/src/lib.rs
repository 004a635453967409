//! The harness of the tests that boot real images: a cluster of VMs as a user has it,
//! driven by `kimg` and real kubectl, with failure bundles. [`apiserver`] is the API server alone.
//!
//! What a test needs is asked of [`Cluster`], or of a [`Machine`] where one VM is enough; waiting is done with [`wait::until`], never by sleeping a fixed time.

pub mod apiserver;
pub mod bundle;
pub mod cables;
pub mod cluster;
pub mod debian;
pub mod guest;
pub mod load;
pub mod machine;
pub mod nbd;
pub mod pods;
pub mod stranger;
pub mod suite;
pub mod tools;
pub mod tpm;
pub mod wait;
pub mod writes;

pub use cluster::{Cluster, Output};
pub use machine::{Bench, Machine};
pub use tools::Kubectl;

/// What a test returns: `Err` with a sentence is a failure.
pub type Result<T = ()> = anyhow::Result<T>;
