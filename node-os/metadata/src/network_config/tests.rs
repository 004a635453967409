use super::*;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn plan(text: &str) -> NetworkPlan {
    parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The plan without what is default, as YAML, so that tables stay readable.
fn shown(plan: &NetworkPlan) -> Value {
    serde_yaml_ng::to_value(plan).unwrap()
}

fn check(input: &str, wanted: &str) {
    let wanted: Value = serde_yaml_ng::from_str(wanted).unwrap();
    assert_eq!(shown(&plan(input)), wanted, "{}\n of\n{input}", serde_yaml_ng::to_string(&plan(input)).unwrap());
}

#[test]
fn both_versions_give_the_same_plan() {
    let one = "
version: 1
config:
- type: physical
  name: eth0
  mac_address: '52:54:00:AA:00:01'
  mtu: 1400
  subnets:
  - type: static
    address: 10.77.0.11
    netmask: 255.255.255.0
    gateway: 10.77.0.1
    routes:
    - {network: 10.9.0.0, netmask: 255.255.0.0, gateway: 10.77.0.2, metric: 5}
- {type: nameserver, address: 9.9.9.9, search: [a.example]}
";
    let two = "
network:
  version: 2
  ethernets:
    eth0:
      match: {macaddress: '52:54:00:aa:00:01'}
      mtu: 1400
      addresses: [10.77.0.11/24]
      gateway4: 10.77.0.1
      routes: [{to: 10.9.0.0/16, via: 10.77.0.2, metric: 5}]
      nameservers: {addresses: [9.9.9.9], search: [a.example]}
";
    assert_eq!(plan(one), plan(two));
    check(
        one,
        "
nics:
- id: eth0
  mac: 52:54:00:aa:00:01
  addresses: [10.77.0.11/24]
  routes:
  - {to: 0.0.0.0/0, via: 10.77.0.1}
  - {to: 10.9.0.0/16, via: 10.77.0.2, metric: 5}
  mtu: 1400
dns: [9.9.9.9]
search: [a.example]
",
    );
}

#[test]
fn bonds_bridges_and_vlans_read_the_same_in_both_versions() {
    let one = "
version: 1
config:
- {type: vlan, name: bond0.7, vlan_link: bond0, vlan_id: 7, subnets: [{type: static, address: 10.7.0.5/24}]}
- type: bond
  name: bond0
  bond_interfaces: [a, b]
  params: {bond-mode: 802.3ad, bond-miimon: 100, bond_xmit_hash_policy: layer3+4, bond-lacp-rate: fast}
- {type: bridge, name: br0, bridge_interfaces: [bond0.7], params: {bridge_stp: 'off', bridge_fd: 0}}
- {type: physical, name: a, mac_address: '52:54:00:00:00:0a'}
- {type: physical, name: b, mac_address: '52:54:00:00:00:0b'}
";
    let two = "
version: 2
ethernets:
  a: {match: {macaddress: '52:54:00:00:00:0a'}}
  b: {match: {macaddress: '52:54:00:00:00:0b'}}
bonds:
  bond0:
    interfaces: [a, b]
    parameters: {mode: 802.3ad, mii-monitor-interval: 100, transmit-hash-policy: layer3+4, lacp-rate: fast}
bridges:
  br0: {interfaces: [bond0.7], parameters: {stp: false, forward-delay: 0}}
vlans:
  bond0.7: {id: 7, link: bond0, addresses: [10.7.0.5/24]}
";
    let wanted = "
nics:
- {id: a, mac: '52:54:00:00:00:0a'}
- {id: b, mac: '52:54:00:00:00:0b'}
- id: bond0
  name: bond0
  kind: !bond {members: [a, b], mode: 4, miimon: 100, lacp_fast: true, hash_policy: 1}
- id: bond0.7
  name: bond0.7
  kind: !vlan {link: bond0, tag: 7}
  addresses: [10.7.0.5/24]
- id: br0
  name: br0
  kind: !bridge {members: [bond0.7], stp: false, forward_delay: 0}
";
    check(one, wanted);
    check(two, wanted);
}

#[test]
fn every_way_to_an_ipv6_address_is_known() {
    check(
        "
version: 1
config:
- type: physical
  name: eth0
  accept-ra: false
  subnets:
  - {type: static6, address: '2001:db8::5/64', gateway: 'fe80::1'}
  - {type: ipv6_dhcpv6-stateful}
- {type: physical, name: eth1, subnets: [{type: ipv6_slaac}]}
- {type: physical, name: eth2, subnets: [{type: ipv6_dhcpv6-stateless}]}
",
        "
nics:
- id: eth0
  name: eth0
  accept_ra: false
  addresses: ['2001:db8::5/64']
  routes: [{to: '::/0', via: 'fe80::1', on_link: true}]
  dhcp6: stateful
- {id: eth1, name: eth1, accept_ra: true}
- {id: eth2, name: eth2, accept_ra: true, dhcp6: stateless}
",
    );
    check(
        "version: 2\nethernets: {e: {dhcp6: true, accept-ra: yes, gateway6: 'fe80::1', addresses: ['2001:db8::5/64': {lifetime: 0}]}}",
        "nics: [{id: e, name: e, dhcp6: stateful, accept_ra: true, addresses: ['2001:db8::5/64'], routes: [{to: '::/0', via: 'fe80::1', on_link: true}]}]",
    );
}

#[test]
fn dhcp_and_its_overrides() {
    check(
        "
version: 2
ethernets:
  a:
    match: {name: 'en*', driver: virtio_net}
    set-name: wan0
    dhcp4: true
    optional: true
    dhcp4-overrides: {use-dns: false, use-mtu: false, route-metric: 200}
",
        "nics: [{id: a, name: 'en*', driver: virtio_net, set_name: wan0, dhcp4: true, optional: true, dhcp_dns: false, dhcp_mtu: false, dhcp_metric: 200}]",
    );
    // Each protocol has its own, whether or not the other has some too.
    check(
        "
version: 2
ethernets:
  both: {dhcp4: true, dhcp6: true, dhcp4-overrides: {route-metric: 5}, dhcp6-overrides: {use-dns: false}}
  four: {dhcp4: true, dhcp6: true, dhcp4-overrides: {use-dns: false}}
  six: {dhcp4: true, dhcp6: true, dhcp6-overrides: {use-dns: false, route-metric: 5}}
",
        "
nics:
- {id: both, name: both, dhcp4: true, dhcp6: stateful, dhcp6_dns: false, dhcp_metric: 5}
- {id: four, name: four, dhcp4: true, dhcp6: stateful, dhcp_dns: false}
- {id: six, name: six, dhcp4: true, dhcp6: stateful, dhcp6_dns: false}
ignored: ['network-config: six.dhcp6-overrides.route-metric: this is not brought about']
",
    );
    check(
        "version: 1\nconfig: [{type: physical, name: eth1, subnets: [{type: dhcp4, metric: 9}]}]",
        "nics: [{id: eth1, name: eth1, dhcp4: true, dhcp_metric: 9}]",
    );
}

#[test]
fn what_is_not_brought_about_is_said() {
    let given = plan(
        "
version: 2
ethernets:
  a:
    dhcp4: true
    dhcp6: true
    wakeonlan: true
    link-local: [ipv4]
    dhcp4-overrides: {use-ntp: false, use-dns: true}
    dhcp6-overrides: {route-metric: 9}
",
    );
    let sentences = ["wakeonlan", "link-local", "dhcp4-overrides.use-ntp", "dhcp6-overrides.route-metric"]
        .map(|key| format!("network-config: a.{key}: this is not brought about"));
    assert_eq!(given.ignored, sentences);
}

#[test]
fn routes_with_tables_sources_and_gateways_outside_the_network() {
    check(
        "
version: 2
ethernets:
  e:
    addresses: [192.0.2.7/32]
    routes:
    - {to: default, via: 172.31.1.1, on-link: true, metric: 3}
    - {to: 10.0.0.0/8, via: 10.0.0.1, table: 7, from: 192.0.2.7}
    - {to: 10.9.9.9, table: 254}
",
        "
nics:
- id: e
  name: e
  addresses: [192.0.2.7/32]
  routes:
  - {to: 0.0.0.0/0, via: 172.31.1.1, on_link: true, metric: 3}
  - {to: 10.0.0.0/8, via: 10.0.0.1, table: 7, source: 192.0.2.7}
  - {to: 10.9.9.9/32}
",
    );
    // Version 1 has no on-link: a gateway outside the own network can mean nothing else.
    let hetzner = plan(
        "version: 1\nconfig: [{type: physical, name: e, subnets: [{type: static, address: 192.0.2.7/32, gateway: 172.31.1.1}]}]",
    );
    assert!(hetzner.nics[0].routes[0].on_link);
    // A route of its own goes to the interface that reaches its gateway.
    let free = plan(
        "version: 1\nconfig: [{type: route, destination: 10.9.0.0/16, gateway: 10.1.0.1}, {type: physical, name: a, subnets: [{type: static, address: 10.1.0.5/24}]}, {type: physical, name: b}]",
    );
    assert_eq!(free.nics[0].routes[0].to, net("10.9.0.0/16"));
}

#[test]
fn a_static_subnet_may_lack_its_type() {
    let plan = plan(
        "version: 1\nconfig: [{type: physical, name: e, subnets: [{ipv6: true, address: '2001:db8::1/64', gateway: 'fe80::1', dns_nameservers: ['2001:db8::53']}]}]",
    );
    assert_eq!(plan.nics[0].addresses, [net("2001:db8::1/64")]);
    assert_eq!(plan.dns, [ip("2001:db8::53")]);
}

#[test]
fn every_encoding_reads_the_same() {
    use base64::Engine;
    use std::io::Write;
    let text = "version: 2\nethernets: {e: {dhcp4: true}}\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(text.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes();
    for raw in [text.as_bytes().to_vec(), base64(text.as_bytes()), gzip.clone(), base64(&gzip)] {
        assert!(parse(&raw).unwrap().nics[0].dhcp4);
    }
}

#[test]
fn every_fault_is_named() {
    let cases = [
        ("version: 3", "version 3"),
        ("a: b", "no version"),
        ("version: 2\ntunnels: {t: {}}", "tunnels are not supported"),
        ("version: 2\nvlans: {v: {id: 5}}", "the vlan v has no link"),
        ("version: 2\nvlans: {v: {id: 5, link: x}}", "\"x\", which is not defined"),
        ("version: 2\nvlans: {v: {id: 5000, link: v}}", "between 1 and 4094"),
        ("version: 2\nvlans: {v: {id: 5, link: w}, w: {id: 6, link: v}}", "made of each other"),
        ("version: 2\nbonds: {b: {interfaces: []}}", "no interfaces"),
        ("version: 2\nethernets: {a: {}}\nbonds: {b: {interfaces: [a], parameters: {mode: fast}}}", "mode of a bond"),
        ("version: 2\nethernets: {a: {}}\nbonds: {'a/../b': {interfaces: [a]}}", "cannot be the name"),
        ("version: 2\nethernets: {a: {set-name: toolongforaninterface}}", "cannot be the name"),
        ("version: 2\nethernets: {a: {}}\nvlans: {a: {id: 1, link: a}}", "defined twice"),
        ("version: 1\nconfig: [{type: infiniband}]", "infiniband"),
        ("version: 1\nconfig: [{type: route, destination: 1.2.3.0/24, gateway: 1.2.3.4}]", "no interface"),
        ("version: 2\nethernets: {a: {addresses: [10.0.0.300/24]}}", "10.0.0.300/24"),
        ("version: 2\nethernets: {a: {mtu: 5}}", "mtu"),
        ("version: 2\nethernets: {a: {match: {macaddress: zz}}}", "hardware address"),
        ("version: 2\nethernets: {a: {routes: [{to: default}]}}", "no gateway"),
        ("version: 2\nethernets: {a: {routes: [{to: 10.0.0.0/8, via: 'fe80::1'}]}}", "other family"),
        (
            "version: 1\nconfig: [{type: physical, name: a, subnets: [{type: static, address: 1.2.3.4, netmask: 7.7.7.7}]}]",
            "netmask",
        ),
        ("[", "network-config is wrong"),
    ];
    for (text, wanted) in cases {
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error:?} should contain {wanted:?}");
    }
}

#[test]
fn openstack_data_becomes_a_plan() {
    let text = r#"{
      "links": [
        {"id": "tap1", "type": "vif", "ethernet_mac_address": "FA:16:3E:00:00:01", "mtu": 1450, "vif_id": "x"},
        {"id": "tap2", "type": null, "ethernet_mac_address": "fa:16:3e:00:00:02", "mtu": null},
        {"id": "bond0", "type": "bond", "bond_mode": "802.3ad", "bond_links": ["tap1", "tap2"], "bond_miimon": "100",
         "ethernet_mac_address": "fa:16:3e:00:00:01"},
        {"id": "vlan-5", "type": "vlan", "vlan_id": 5, "vlan_link": "bond0", "vlan_mac_address": null}
      ],
      "networks": [
        {"id": "n0", "link": "vlan-5", "type": "ipv4", "ip_address": "10.5.0.9", "netmask": "255.255.255.0",
         "gateway": "10.5.0.1", "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.5.0.1"}]},
        {"id": "n1", "link": "bond0", "type": "ipv6", "ip_address": "2001:db8::9/64", "netmask": "ffff:ffff:ffff:ffff::",
         "routes": [{"network": "::", "netmask": "::", "gateway": "fe80::1"}]},
        {"id": "n2", "link": "bond0", "type": "ipv4_dhcp"},
        {"id": "n3", "link": "bond0", "type": "ipv6_slaac"}
      ],
      "services": [{"type": "dns", "address": "10.5.0.2"}, {"type": "ntp", "address": "10.5.0.3"}]
    }"#;
    let wanted = "
nics:
- {id: tap1, mac: 'fa:16:3e:00:00:01', mtu: 1450}
- {id: tap2, mac: 'fa:16:3e:00:00:02'}
- id: bond0
  name: bond0
  mac: fa:16:3e:00:00:01
  kind: !bond {members: [tap1, tap2], mode: 4, miimon: 100}
  addresses: ['2001:db8::9/64']
  routes: [{to: '::/0', via: 'fe80::1', on_link: true}]
  dhcp4: true
  accept_ra: true
- id: vlan-5
  name: vlan5
  kind: !vlan {link: bond0, tag: 5}
  addresses: [10.5.0.9/24]
  routes: [{to: 0.0.0.0/0, via: 10.5.0.1}]
dns: [10.5.0.2]
";
    let wanted: Value = serde_yaml_ng::from_str(wanted).unwrap();
    assert_eq!(shown(&openstack::parse(text.as_bytes()).unwrap()), wanted);
    for (text, wanted) in [
        ("{", "network_data.json"),
        (r#"{"links": [{"id": "a", "type": "wormhole"}]}"#, "wormhole"),
        (r#"{"links": [{"id": "a", "type": "phy"}]}"#, "no ethernet_mac_address"),
        (r#"{"networks": [{"link": "a", "type": "ipv4_dhcp"}]}"#, "not defined"),
    ] {
        let error = openstack::parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error:?} should contain {wanted:?}");
    }
}

#[test]
fn the_kernel_line_is_read_as_dracut_reads_it() {
    let cases = [
        ("quiet", None),
        ("ip=dhcp", Some("nics: [{name: '*', dhcp4: true}]")),
        ("ip=eth0:dhcp:1400", Some("nics: [{id: eth0, name: eth0, dhcp4: true, mtu: 1400}]")),
        (
            "ip=10.0.0.5::10.0.0.1:255.255.255.0:w1:eth0:none:9.9.9.9 nameserver=8.8.4.4",
            Some(
                "{nics: [{id: eth0, name: eth0, addresses: [10.0.0.5/24], routes: [{to: 0.0.0.0/0, via: 10.0.0.1}]}], dns: [9.9.9.9, 8.8.4.4]}",
            ),
        ),
        (
            "ip=[2001:db8::5]::[fe80::1]:64::eth0:off",
            Some(
                "nics: [{id: eth0, name: eth0, addresses: ['2001:db8::5/64'], routes: [{to: '::/0', via: 'fe80::1', on_link: true}]}]",
            ),
        ),
        (
            "ip=10.0.0.5::10.0.0.1:24::eth0:none:1450:52:54:00:00:00:01",
            Some(
                "nics: [{id: eth0, mac: '52:54:00:00:00:01', addresses: [10.0.0.5/24], routes: [{to: 0.0.0.0/0, via: 10.0.0.1}], mtu: 1450}]",
            ),
        ),
        ("network-config=disabled", Some("nics: [{name: '*', dhcp4: true}]")),
        (
            "network-config=dmVyc2lvbjogMgpldGhlcm5ldHM6IHthOiB7ZGhjcDY6IHRydWV9fQo=",
            Some("nics: [{id: a, name: a, dhcp6: stateful}]"),
        ),
    ];
    for (line, wanted) in cases {
        let found = kernel_line::parse(line).unwrap().map(|plan| shown(&plan));
        assert_eq!(found, wanted.map(|text| serde_yaml_ng::from_str(text).unwrap()), "{line}");
    }
    assert!(kernel_line::parse("ip=eth0:magic").unwrap_err().to_string().contains("magic"));
    assert!(kernel_line::parse("ip=10.0.0.300::::::none").unwrap_err().to_string().contains("10.0.0.300"));
}
