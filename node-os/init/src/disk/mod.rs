//! Disks: finding them in sysfs, reading their partition tables, and what lies on the partitions.

pub mod gpt;
pub mod scan;
