//! The node's decoders.

mod disk;
mod guest_info;
mod http;
mod metadata;
mod names;
mod registry;
mod tape;
mod wire;

pub(crate) const TARGETS: &[(&str, crate::Target)] = &[
    ("metadata", metadata::sources),
    ("drive", disk::drive),
    ("user-data", metadata::user_data),
    ("network-config", metadata::network_config),
    ("node-documents", metadata::documents),
    ("partitions", disk::partitions),
    ("superblock", disk::superblock),
    ("dhcp4", wire::dhcp4),
    ("dhcp6", wire::dhcp6),
    ("time", wire::time),
    ("dns", names::dns),
    ("cni", names::cni),
    ("http", http::answer),
    ("guest-info", guest_info::exchange),
    ("registry", registry::requests),
];
