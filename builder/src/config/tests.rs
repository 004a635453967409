use super::*;
use node_metadata::{BuildInfo, Role};

const MINIMAL: &str = r#"name = "demo"
nodes = [{ name = "master-1", role = "master" }, { name = "worker-1", role = "worker" }]
"#;

fn settings(text: &str) -> Result<Settings, ConfigError> {
    parse(Path::new("cluster.toml"), text, Path::new("/nowhere"))
}

#[test]
fn two_lines_are_enough() {
    let s = settings(MINIMAL).expect("valid");
    assert_eq!(s.domain, "cluster.local");
    assert_eq!(s.dns_address.to_string(), "10.32.0.10");
    assert_eq!(s.local.master, VmSize { memory_mib: 512, cpus: 1, disk_mib: 2048 });
    assert_eq!(s.local.worker.memory_mib, 768);
    let addresses: Vec<String> = s.nodes.iter().map(|n| n.local_address.to_string()).collect();
    assert_eq!(addresses, ["10.77.0.10", "10.77.0.11"]);
    let cluster = s.cluster(Role::Worker, BuildInfo::default());
    assert_eq!(cluster.api_addresses, ["10.77.0.10".parse::<std::net::IpAddr>().expect("address")]);
    assert_eq!(s.secrets, SecretsForm::Sealed);
}

/// `(lines put before or instead of the minimal text, what the error says)`
#[test]
fn errors_name_line_field_and_way_out() {
    let nodes = "nodes = [{ name = \"m\", role = \"master\" }]\n";
    let cases = [
        ("pod-cdir = \"10.1.0.0/16\"\n", "cluster.toml:3:1: pod-cdir: unknown key; did you mean `pod-cidr`?"),
        ("pod-cidr = \"10.1.0.0\"\n", ":3:12: pod-cidr: `10.1.0.0` is no address range"),
        ("pod-cidr = \"10.1.2.3/16\"\n", "write 10.1.0.0/16"),
        ("pod-cidr = \"10.32.0.0/16\"\n", ":3:12: pod-cidr: overlaps service-cidr 10.32.0.0/24"),
        ("service-cidr = \"10.200.1.0/24\"\n", "service-cidr: overlaps pod-cidr"),
        ("dns-address = \"10.33.0.10\"\n", ":3:15: dns-address: 10.33.0.10 lies outside the service range"),
        ("dns-address = \"10.32.0.1\"\n", "dns-address: 10.32.0.1 is taken"),
        ("overlay = \"vlan\"\n", "write \"vxlan\" or \"host-gw\""),
        ("[local.master]\nmemory = 12\n", ":4:10: local.master.memory: 12 is out of range"),
        ("[image.worker]\nimages = [\"x.tar\"]\n", ":4:11: image.worker.images: there is no file"),
        ("version = 2\n", "version: this kimg reads version 1 only"),
        ("x = = 1\n", "cluster.toml:3:"),
    ];
    for (line, expected) in cases {
        let text = format!("name = \"demo\"\n{nodes}{line}");
        let error = settings(&text).expect_err(line).to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn node_errors() {
    let cases = [
        (r#"{ name = "a", role = "worker" }"#, "nodes: no node is a master"),
        (r#"{ name = "a", role = "master" }, { name = "a", role = "worker" }"#, "two nodes are called `a`"),
        (
            r#"{ name = "a", role = "master", addresses = ["10.0.0.1"] }, { name = "b", role = "worker", addresses = ["10.0.0.1"] }"#,
            "nodes.addresses: 10.0.0.1 is already a's",
        ),
        (r#"{ name = "A_b", role = "master" }"#, "nodes.name: `A_b` is no name"),
        (r#"{ name = "a", role = "boss" }"#, "write \"master\" or \"worker\""),
        (r#"{ name = "a", rule = "master" }"#, "rule: unknown key; did you mean `role`?"),
        (r#"{ name = "a" }"#, "missing field `role`; say role"),
        (r#"{ name = "a", role = "master", addresses = ["10.200.0.4"] }"#, "lies inside pod-cidr"),
        (r#"{ name = "a", role = "master", taints = ["x"] }"#, "nodes.taints: `x` is no taint"),
        (r#"{ name = "a", role = "master", reserved = { memory = "lots" } }"#, "nodes.reserved.memory: `lots`"),
        (r#"{ name = "a", role = "master" }, { name = "b", role = "master" }"#, "a cluster has one master"),
    ];
    for (nodes, expected) in cases {
        let text = format!("name = \"demo\"\nnodes = [{nodes}]\n");
        let error = settings(&text).expect_err(nodes).to_string();
        assert!(error.contains(expected), "{nodes}: {error}");
    }
}

#[test]
fn a_missing_file_says_what_to_do() {
    let error = load(Path::new("/nowhere")).expect_err("missing").to_string();
    assert!(error.contains("kimg init"), "{error}");
}
