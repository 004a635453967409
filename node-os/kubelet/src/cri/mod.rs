//! The container runtime, reached by CRI v1 over its unix socket, and by containerd's own
//! API for the one thing CRI cannot do: importing images that the node's image carries.

pub mod client;
mod container;
pub mod containerd;
mod image;
mod sandbox;

pub use client::{Cri, CriError};
pub use container::*;
pub use image::*;
pub use sandbox::*;
