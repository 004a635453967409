//! Containers' logs on disk: reading them for clients, and rotating them.

pub mod read;
pub mod rotate;
