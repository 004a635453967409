//! From a pod's spec to what the runtime is asked for: environment, resources, security,
//! name resolution. Pure, but for fetching what the environment refers to.

pub mod config;
pub mod dns;
pub mod downward;
pub mod env;
pub mod expand;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod service_env;
