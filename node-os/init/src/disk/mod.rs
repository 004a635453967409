//! Disks: finding them in sysfs, reading their partition tables, and what lies on the partitions.

pub mod config;
pub mod data;
pub mod gpt;
pub mod scan;
pub mod state;
pub mod store;

/// Number of the CONFIG partition.
pub const CONFIG_PARTITION: u32 = 5;
