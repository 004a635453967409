//! `kimg node …`: where a node's API is, and how its answers are shown.

pub mod chart;
pub mod members;
pub mod print;
pub mod target;

pub use target::Target;
