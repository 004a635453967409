//! What the controller-manager and the scheduler share as clients of the API server.
//!
//! One HTTP/2 connection a process, one watch a kind, caches that read their own writes,
//! a work queue, events, leader election, health, and the service manager's notifications.
//! Nothing here knows what a controller does.

pub mod call;
pub mod connect;
pub mod events;
pub mod health;
pub mod leader;
pub mod notify;
pub mod process;
pub mod queue;
pub mod store;
pub mod watch;

pub use call::{Client, Failure};
pub use events::Recorder;
pub use queue::Queue;
pub use store::{Change, Key, Object, Store};

pub mod owner;
pub mod pods;
pub mod quantity;
pub mod selector;
pub mod taints;
