//! Where providers' metadata servers are: what nothing but init may ask on a node. A server of one's own (the URL of
//! `nocloud-line`) is not among them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The usual address, and Scaleway's.
pub const SERVERS_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(169, 254, 42, 42)];
/// EC2, Linode, Oracle, Scaleway, Google, and those on the link (Hetzner, OpenStack).
pub const SERVERS_V6: [Ipv6Addr; 6] = [
    Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
];
/// Azure's server for its agents; it answers DNS too, which pods may ask for (UDP).
pub const WIRE_SERVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Whether a metadata server has this address, in whatever way it is written.
pub fn is_server(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4 == WIRE_SERVER || SERVERS_V4.contains(&v4),
        IpAddr::V6(v6) => SERVERS_V6.contains(&v6),
    }
}
