//! The Kubernetes API server: handlers by verb, generic over kind.
//!
//! The way of a request: [`server`] (TLS, HTTP) → [`pipeline`] (authn → audit →
//! authz → handler, one place each) → [`handlers`] (by verb; mutating and
//! validating admission stand in [`handlers::write`] alone) → [`registry`]
//! (store and watch cache).  What differs from kind to kind is a
//! [`strategy::Strategy`]; what is data about a kind comes from the `api` crate.

pub mod admission;
pub mod audit;
pub mod authn;
pub mod authz;
mod backup;
mod bootstrap;
mod compress;
pub mod config;
mod customs;
mod deprecated;
mod encryption;
pub mod error;
pub mod handlers;
mod masters;
pub mod metrics;
mod notify;
pub mod object;
mod offline;
mod offload;
mod openapi;
mod pick;
pub mod pipeline;
pub mod registry;
pub mod request;
mod rewrite;
pub mod run;
pub mod selector;
pub mod server;
mod shape;
pub mod state;
pub mod storage;
pub mod strategy;
pub mod streaming;
mod table;
mod torture;
pub mod usage;
pub mod versions;

pub use config::Config;
pub use error::ApiError;
pub use request::{RequestInfo, UserInfo, Verb};
pub use run::{Server, main};
pub use state::AppState;

/// What the server calls itself; clients compare it with their own version.
pub const GIT_VERSION: &str = "v1.36.0+kimg0.1.0";
