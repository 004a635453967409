//! kimg, the tool people run: cluster descriptions, images, keys, local VMs, and a client of nodes.

pub mod backup;
pub mod cache;
pub mod cli;
pub mod client;
pub mod config;
pub mod disk;
pub mod doctor;
pub mod image;
pub mod input;
pub mod kubectl;
pub mod local;
pub mod lock;
pub mod machines;
pub mod manifests;
pub mod node;
pub mod oci;
pub mod packages;
pub mod pki;
pub mod progress;
pub mod roll;
pub mod sbom;
pub mod seed;
pub mod switch;
pub mod table;
pub mod upload;
pub mod web;
