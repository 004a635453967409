//! What every component on a node that talks to the API server does in the same way:
//! start (logging, runtime, signals), connect with its kubeconfig, follow objects, answer health checks.

mod component;
mod connect;
mod health;
mod news;
mod places;
pub mod revoked;
mod watch;

pub use component::{flags, run};
pub use connect::{CertificateFile, connect};
pub use health::{Health, serve};
pub use news::News;
pub use places::{Place, Places};
pub use watch::{Change, apply, follow};
