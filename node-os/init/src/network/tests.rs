//! Plans brought about in a network namespace of the test's own, and a DHCPv6 server on the other end of a cable.
//! They need an administrator; for others each is counted as skipped.

use super::links::{Links, Nic};
use super::*;
use node_metadata::network_config;
use rtnetlink::{LinkUnspec, LinkVeth};
use std::future::Future;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs in a fresh namespace; `false` when that is not allowed.
fn isolated<F: Future<Output = ()>>(run: impl FnOnce() -> F + Send + 'static) -> bool {
    let thread = std::thread::spawn(move || {
        if let Err(error) = node_sys::netns::isolate_thread() {
            test_spoil::skipped(&format!("a network namespace cannot be made: {error}"));
            return false;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, run());
        true
    });
    thread.join().unwrap()
}

async fn network() -> Rc<Network> {
    let links = Links { any_ethernet: true, ..Links::open().unwrap() };
    links.up("lo").await.unwrap();
    Network::over(links).unwrap()
}

/// A cable whose ends are both here; the near end's address is returned.
async fn cable(links: &Links, near: &str, far: &str) -> Nic {
    links.handle.link().add(LinkVeth::new(near, far).build()).execute().await.unwrap();
    links.up(far).await.unwrap();
    links.by_name(near).await.unwrap().unwrap()
}

async fn shown(network: &Network, name: &str) -> node_api::Link {
    let all = network.links.describe_links().await.unwrap();
    all.into_iter().find(|link| link.name == name).unwrap_or_else(|| panic!("{name} is not there"))
}

#[test]
fn names_are_matched_by_pattern() {
    for (pattern, name, wanted) in [
        ("eth0", "eth0", true),
        ("eth*", "eth7", true),
        ("en*s0", "enp1s0", true),
        ("en*s0", "enp1s1", false),
        ("f2:3*", "f2:3c:94:00:00:01", true),
        ("*", "x", true),
        ("a", "ab", false),
    ] {
        assert_eq!(glob(pattern, name), wanted, "{pattern} {name}");
    }
}

#[test]
fn a_plan_is_brought_about_and_taken_back() {
    isolated(|| async {
        let network = network().await;
        let lan = cable(&network.links, "c0", "p0").await;
        let member = cable(&network.links, "c1", "p1").await;
        let text = format!(
            "
version: 2
ethernets:
  lan:
    match: {{macaddress: '{}'}}
    mtu: 1400
    accept-ra: false
    addresses: [192.0.2.7/32, '2001:db8::7/64']
    gateway6: fe80::1
    routes:
    - {{to: default, via: 172.31.1.1, on-link: true, metric: 50}}
    - {{to: 198.51.100.0/24, via: 172.31.1.1, on-link: true, table: 77, from: 192.0.2.7}}
  member: {{match: {{macaddress: '{}'}}}}
bridges:
  br9: {{interfaces: [member], macaddress: '52:54:00:00:00:99', addresses: [10.9.0.1/24], parameters: {{stp: false, forward-delay: 4}}}}
",
            lan.mac_text(),
            member.mac_text()
        );
        let plan = network_config::parse(text.as_bytes()).unwrap();
        // Twice: what is there already is no error.
        for _ in 0..2 {
            assert_eq!(network.apply_links(&plan).await.unwrap(), Vec::<String>::new());
            let c0 = shown(&network, "c0").await;
            assert_eq!(c0.mtu, 1400);
            for address in ["192.0.2.7/32", "2001:db8::7/64"] {
                assert!(c0.addresses.iter().any(|own| own == address), "{:?}", c0.addresses);
            }
            let br9 = shown(&network, "br9").await;
            assert_eq!(
                (br9.mac.as_str(), br9.addresses.first().map(String::as_str)),
                ("52:54:00:00:00:99", Some("10.9.0.1/24"))
            );
            assert_eq!(shown(&network, "c1").await.master, "br9");
            let routes = network.links.describe_routes().await.unwrap();
            let has = |to: &str, via: &str, table: u32| {
                routes.iter().any(|route| route.destination == to && route.gateway == via && route.table == table)
            };
            assert!(has("default", "172.31.1.1", 254), "{routes:?}");
            assert!(has("default", "fe80::1", 254), "{routes:?}");
            assert!(has("198.51.100.0/24", "172.31.1.1", 77), "{routes:?}");
            assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv6/conf/c0/accept_ra").unwrap().trim(), "0");
            let own = network.addresses().await.unwrap();
            assert!(own.contains(&"10.9.0.1".parse().unwrap()), "{own:?}");
        }
        network.reset().await.unwrap();
        assert!(network.links.by_name("br9").await.unwrap().is_none());
        assert!(network.addresses().await.unwrap().is_empty());
    });
}

/// Kernels without the module cannot say more than that.
#[test]
fn bonds_and_vlans_are_made_where_the_kernel_has_them() {
    let cases = [
        (
            "bond",
            "bonds: {m0: {interfaces: [a], parameters: {mode: active-backup, mii-monitor-interval: 50}, addresses: [10.8.0.1/24]}}",
        ),
        ("vlan", "vlans: {m0: {id: 7, link: a, addresses: [10.8.0.1/24]}}"),
    ];
    for (kind, section) in cases {
        isolated(move || async move {
            let network = network().await;
            let card = cable(&network.links, "c0", "p0").await;
            let text =
                format!("version: 2\nethernets: {{a: {{match: {{macaddress: '{}'}}}}}}\n{section}\n", card.mac_text());
            let plan = network_config::parse(text.as_bytes()).unwrap();
            let faults = network.apply_links(&plan).await.unwrap();
            if faults.iter().any(|fault| fault.contains("Operation not supported")) {
                return test_spoil::skipped(&format!("this kernel makes no {kind}: {faults:?}"));
            }
            assert_eq!(faults, Vec::<String>::new());
            let made = shown(&network, "m0").await;
            assert_eq!((made.kind.as_str(), made.addresses.first().map(String::as_str)), (kind, Some("10.8.0.1/24")));
            if kind == "bond" {
                assert_eq!(shown(&network, "c0").await.master, "m0");
            }
        });
    }
}

#[test]
fn what_cannot_be_made_is_a_fault_of_one_interface() {
    isolated(|| async {
        let network = network().await;
        cable(&network.links, "c0", "p0").await;
        let text = "
version: 2
ethernets:
  gone: {match: {macaddress: '52:54:00:ff:ff:ff'}}
  here: {match: {name: c0}, addresses: [10.7.0.1/24]}
bridges: {br0: {interfaces: [gone]}}
";
        let plan = network_config::parse(text.as_bytes()).unwrap();
        let faults = network.apply_links(&plan).await.unwrap();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("52:54:00:ff:ff:ff"), "{faults:?}");
        assert!(faults[1].contains("gone, of which it is made, is not there"), "{faults:?}");
        assert_eq!(shown(&network, "c0").await.addresses.first().map(String::as_str), Some("10.7.0.1/24"));
    });
}

#[test]
fn link_local_addresses_are_lent_to_one_card_at_a_time() {
    isolated(|| async {
        let network = network().await;
        cable(&network.links, "c0", "p0").await;
        let mut seen = Vec::new();
        while let Some(lent) = network.lend_link_local(seen.len()).await.unwrap() {
            let own = network.addresses().await.unwrap();
            assert_eq!(own, [lent.1.addr()]);
            assert!(lent.1.to_string().starts_with("169.254.") && lent.1.prefix_len() == 16, "{lent:?}");
            network.take_back(lent).await;
            assert!(network.addresses().await.unwrap().is_empty());
            seen.push(lent.0);
        }
        seen.dedup();
        assert_eq!(seen.len(), 2, "both ends of the cable are cards here");
    });
}

/// Both come from one advertisement: an address by the kernel, and DNS servers.
#[test]
fn an_address_and_dns_servers_come_from_a_router() {
    isolated(|| async {
        let network = network().await;
        let near = cable(&network.links, "c0", "p0").await;
        let router = network.links.by_name("p0").await.unwrap().unwrap();
        let plan = |accept: bool| {
            let mac = near.mac_text();
            let text =
                format!("version: 2\nethernets: {{a: {{match: {{macaddress: '{mac}'}}, accept-ra: {accept}}}}}\n");
            network_config::parse(text.as_bytes()).unwrap()
        };
        network.apply_links(&plan(true)).await.unwrap();
        let socket = icmpv6_socket();
        let everybody = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, router.index);
        let prefix: Ipv6Addr = "2001:db8:6::".parse().unwrap();
        let server: Ipv6Addr = "2001:db8:6::53".parse().unwrap();
        let mut advertisement = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        advertisement
            .extend([&[3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0][..], &prefix.octets()].concat());
        advertisement.extend([&[25, 3, 0, 0, 0, 0, 14, 16][..], &server.octets()].concat());
        let begin = Instant::now();
        let has_address =
            |own: &IpAddr| matches!(own, IpAddr::V6(own) if own.segments()[..4] == prefix.segments()[..4]);
        while network.dns_servers() != [IpAddr::V6(server)]
            || !network.addresses().await.unwrap().iter().any(has_address)
        {
            assert!(begin.elapsed() < PATIENCE, "{:?}: {:?}", network.dns_servers(), shown(&network, "c0").await);
            // The router's own address may still be on probation.
            let _ = rustix::net::sendto(&socket, &advertisement, rustix::net::SendFlags::empty(), &everybody);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        network.reset().await.unwrap();
        assert_eq!(network.dns_servers(), [IpAddr::V6(server)], "routers are not asked again");
        network.apply_links(&plan(false)).await.unwrap();
        assert_eq!(network.dns_servers(), Vec::<IpAddr>::new());
    });
}

fn icmpv6_socket() -> std::os::fd::OwnedFd {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with, sockopt};
    let socket =
        socket_with(AddressFamily::INET6, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6)).unwrap();
    // What came over a router is not taken.
    sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
    // This end of the cable does not hear itself.
    sockopt::set_ipv6_multicast_loop(&socket, false).unwrap();
    socket
}

#[test]
fn an_address_comes_by_dhcpv6() {
    let (tell, told) = std::sync::mpsc::channel::<std::path::PathBuf>();
    let (started, server_started) = std::sync::mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        if node_sys::netns::isolate_thread().is_err() {
            return;
        }
        // The thread's own id, for the other end of the cable.
        let task = std::fs::read_link("/proc/thread-self").unwrap();
        tell.send(std::path::Path::new("/proc").join(task).join("ns/net")).unwrap();
        let _ = server_started.recv();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve_dhcp6());
    });
    let Ok(other) = told.recv_timeout(PATIENCE) else {
        return test_spoil::skipped("a network namespace cannot be made");
    };
    isolated(move || async move {
        let network = network().await;
        let near = cable(&network.links, "c0", "p0").await;
        let far = network.links.by_name("p0").await.unwrap().unwrap();
        let file = std::fs::File::open(other).unwrap();
        let message = LinkUnspec::new_with_index(far.index).setns_by_fd(file.as_raw_fd()).build();
        network.links.handle.link().set(message).execute().await.unwrap();
        started.send(()).unwrap();
        let text =
            format!("version: 2\nethernets: {{a: {{match: {{macaddress: '{}'}}, dhcp6: true}}}}\n", near.mac_text());
        let plan = network_config::parse(text.as_bytes()).unwrap();
        assert_eq!(network.apply_links(&plan).await.unwrap(), Vec::<String>::new());
        let begin = Instant::now();
        let wanted: IpAddr = "2001:db8:5::77".parse().unwrap();
        while !network.addresses().await.unwrap().contains(&wanted) {
            assert!(begin.elapsed() < PATIENCE, "no address came: {:?}", shown(&network, "c0").await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    drop(server);
}

/// Answers every question with the same address: an offer first, then the address.
async fn serve_dhcp6() {
    let links = Links::open().unwrap();
    let begin = Instant::now();
    let nic = loop {
        assert!(begin.elapsed() < PATIENCE, "the cable did not come");
        match links.by_name("p0").await.unwrap() {
            Some(nic) => break nic,
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    links.up_index(nic.index).await.unwrap();
    let socket = tokio::net::UdpSocket::bind("[::]:547").await.unwrap();
    socket.join_multicast_v6(&"ff02::1:2".parse::<Ipv6Addr>().unwrap(), nic.index).unwrap();
    let mut bytes = [0u8; 1500];
    loop {
        let Ok(Ok((length, from))) = tokio::time::timeout(PATIENCE, socket.recv_from(&mut bytes)).await else { return };
        let question = &bytes[..length];
        // Solicit is offered (2), whatever else is asked is given (7).
        let mut answer = vec![if question[0] == 1 { 2 } else { 7 }];
        answer.extend(&question[1..4]);
        // The client's identifier is its first option.
        answer.extend(&question[4..4 + 4 + 10]);
        answer.extend([0, 2, 0, 4, 0, 3, 0, 9]);
        let address: Ipv6Addr = "2001:db8:5::77".parse().unwrap();
        answer.extend([0, 3, 0, 40, 0, 0, 0, 1, 0, 0, 7, 8, 0, 0, 11, 64, 0, 5, 0, 24]);
        answer.extend(address.octets());
        answer.extend([0, 0, 14, 16, 0, 0, 28, 32]);
        // The client's own link-local address may still be on probation.
        let _ = socket.send_to(&answer, from).await;
    }
}
