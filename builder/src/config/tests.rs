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
    assert!(cluster.api_addresses.is_empty() && cluster.masters.iter().all(|n| n.addresses.is_empty()), "{cluster:?}");
    assert_eq!(s.secrets, SecretsForm::Sealed);
    assert!(!s.secure_boot);
    assert!(settings(&format!("{MINIMAL}[image]\nsecure-boot = true\n")).expect("valid").secure_boot);
}

#[test]
fn the_operators_secrets_go_into_no_image() {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::create_dir(dir.path().join("secrets")).expect("folder");
    std::fs::write(dir.path().join("secrets/sa.key"), "key").expect("written");
    std::os::unix::fs::symlink("secrets/sa.key", dir.path().join("innocent")).expect("link");
    for source in ["secrets/sa.key", "./secrets/../secrets/sa.key", "innocent"] {
        let text = format!("{MINIMAL}[image.files]\n\"/etc/x\" = \"{source}\"\n");
        let error = parse(Path::new("cluster.toml"), &text, dir.path()).expect_err(source).to_string();
        assert!(error.contains("image.files: it lies in secrets/"), "{error}");
    }
}

#[test]
fn what_linux_cannot_take_is_refused() {
    let words: Vec<String> = (0..100).map(|n| format!("\"word-{n:010}\"")).collect();
    let error = settings(&format!("{MINIMAL}[image]\nkernel-args = [{}]\n", words.join(", "))).expect_err("too long");
    assert!(error.to_string().contains("image.kernel-args: with it there are more than"), "{error}");
    let name = "x".repeat(256);
    let error = settings(&format!("{MINIMAL}[image.files]\n\"/etc/{name}\" = \"x\"\n")).expect_err("too long");
    assert!(error.to_string().contains("image.files: a name in it has more than the 255 bytes"), "{error}");
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
        ("[packages]\nsnapshot = \"yesterday\"\n", ":4:12: packages.snapshot: `yesterday` is no moment"),
        ("[backup]\nto = \"./secrets/\"\n", ":4:6: backup.to: `./secrets/` is kimg's own folder; name another one"),
        ("[backup]\nto = \"ftp://x\"\n", ":4:6: backup.to: `ftp://x` is neither a folder nor s3://BUCKET/PREFIX"),
        ("[backup]\nto = \"s3://KEY:SECRET@b/x\"\n", "backup.to: this is no bucket with a prefix"),
        ("[backup]\nto = \"x\"\nregion = \"r\"\n", ":5:10: backup.region: it is a bucket's"),
        ("[backup]\nkeep = 3\n", ":4:8: backup.keep: nothing is kept without `to`"),
        ("[backup]\nto = \"x\"\nkeep = 0\n", "backup.keep: 0 is out of range"),
        ("overlay = \"vlan\"\n", "write \"vxlan\" or \"host-gw\""),
        ("[local.master]\nmemory = 12\n", ":4:10: local.master.memory: 12 is out of range"),
        ("[image.worker]\nkernel-args = [\"init=/bin/sh\"]\n", "image.worker.kernel-args: `init=/bin/sh` decides"),
        (
            "[image]\nkernel-args = [\"kimg.install=00\"]\n",
            "image.kernel-args: `kimg.install=00`: words that begin with kimg.",
        ),
        ("[image]\nkernel-args = [\"kimg.install-to=/dev/vda\"]\n", "image.kernel-args: `/dev/vda` is no kernel name"),
        ("[image]\nmodules = [\"dm crypt\"]\n", ":4:12: image.modules: `dm crypt` is no kernel module"),
        ("[image.files]\n\"etc/x\" = \"x\"\n", ":4:1: image.files: `etc/x` is no absolute path"),
        ("[image.files]\n\"/etc/../x\" = \"x\"\n", "image.files: `/etc/../x` is no absolute path"),
        ("[image.files]\n\"/var/x\" = \"x\"\n", "image.files: /var is not kept in the image"),
        ("[image.files]\n\"/etc/passwd\" = \"x\"\n", "/etc/passwd is a file of kimg itself"),
        ("[image.files]\n\"/etc\" = \"x\"\n", ":4:1: image.files: /etc is a folder, with /etc/"),
        ("[image.files]\n\"/bin/x\" = \"x\"\n", ":4:1: image.files: /bin/x would lie below /bin, which is no folder"),
        (
            "[image.files]\n\"/etc/x\" = \"/proc/version\"\n\"/etc/x/y\" = \"/proc/version\"\n",
            "image.files: /etc/x/y and /etc/x are",
        ),
        ("pod-cidr = \"127.0.0.0/16\"\n", ":3:12: pod-cidr: 127.0.0.0/16 has addresses of 127.0.0.0/8"),
        ("pod-cidr = \"224.0.0.0/16\"\n", "pod-cidr: 224.0.0.0/16 has addresses of 224.0.0.0/3"),
        ("service-cidr = \"169.254.0.0/16\"\n", "service-cidr: 169.254.0.0/16 has addresses of"),
        ("[provider]\nname = \"hetzner\"\nbudget = 1e400\n", ":5:10: provider.budget: "),
        ("[image.master.files]\n\"/etc/x\" = \"gone\"\n", ":4:12: image.master.files: there is no file"),
        ("[[image.packages]]\nname = \"strace\"\n", "say which files of strace are taken"),
        ("[[image.worker.packages]]\nname = \"St race\"\nfiles = [\"/x\"]\n", "is no name of a Debian package"),
        ("[image.worker]\nimages = [\"x.tar\"]\n", ":4:11: image.worker.images: there is no file"),
        (
            "[image]\nsecure-boot = \"yes\"\n",
            "cluster.toml:4:15: image.secure-boot: must be true or false, not a string",
        ),
        ("version = 2\n", "version: this kimg reads version 1 only"),
        ("x = = 1\n", "cluster.toml:3:5: not valid TOML: "),
        ("domain = \"a\"\ndomain = \"b\"\n", "cluster.toml:4:1: not valid TOML: duplicate key; remove one"),
        ("pod-cidr = \"fd00::/48\"\n", "pod-cidr: fd00::/48 is IPv6; pods and services have IPv4 addresses"),
        ("service-cidr = \"fd00::/112\"\n", "service-cidr: fd00::/112 is IPv6"),
        ("pod-cidr = \"10.200.0.0/25\"\n", "pod-cidr: 10.200.0.0/25 has room for 0 nodes"),
        ("ntp-servers = [\"a.example\", \"a.example:123\"]\n", ":3:29: ntp-servers: `a.example:123` is no time server"),
        (
            "[metadata]\nallow = [\"kube-system/csi\", \"csi\"]\n",
            ":4:29: metadata.allow: `csi` is no service account; write NAMESPACE/NAME",
        ),
        ("[registry]\nsize = 12\n", "cluster.toml:4:8: registry.size: 12 is out of range; write 64 to 1048576"),
        (
            "[registry]\nsize = \"1Gi\"\n",
            "registry.size: must be a whole number without quotes, e.g. 512, not a string",
        ),
        ("[registry]\nnode = \"m\"\n", "registry.node: unknown key"),
        ("[status]\npage = 1\n", "cluster.toml:4:8: status.page: must be true or false"),
        ("registry = true\n", "registry: must be a table: the line [registry], and its keys in the lines below it"),
        (
            "[logs]\nto = \"syslog://a\"\n",
            "cluster.toml:4:6: logs.to: logs are sent as syslog over TLS only; write it as",
        ),
        ("[logs]\nto = \"syslog+tls://a:s3cr3t@b\"\n", "logs.to: no user and password stand here"),
        ("[logs]\nto = \"syslog+tls://a_b:1\"\n", "logs.to: `a_b` is no host"),
        ("[logs]\nto = \"syslog+tls://[a]:1\"\n", "logs.to: `a` is no host"),
        ("[logs]\nto = \"syslog+tls://a/b\"\n", "logs.to: `a/b` is no host"),
        ("[logs]\nto = \"syslog+tls://a:0\"\n", "logs.to: `a:0` does not end with a port of 1 to 65535"),
        ("[logs]\nto = \"syslog+tls://a:\"\n", "logs.to: `a:` does not end with a port"),
        ("[logs]\nto = \"syslog+tls://[::1]x\"\n", "logs.to: `[::1]x` does not end with a port"),
        ("[logs]\nca = \"x\"\n", ":4:6: logs.ca: nothing is sent without `to`"),
        ("[logs]\nto = \"syslog+tls://a\"\nca = \"gone.pem\"\n", ":5:6: logs.ca: "),
        ("[packages]\nmirror = \"ftp://a\"\n", ":4:10: packages.mirror: `ftp://a` is no URL"),
        ("[packages]\nmirror = \"http://u:s3cr3t@a/debian\"\n", ":4:10: packages.mirror: a URL here has no user"),
        ("[packages]\nsecurity-mirror = \"u:s3cr3t@a\"\n", "packages.security-mirror: a URL here has no user"),
        ("ntp-servers = [\"\"]\n", "ntp-servers: `` is no time server"),
        ("manifests = [\"/dev/null\"]\n", "manifests: there is no file /dev/null"),
        ("[image.worker]\nmodules = [\"a b\"]\n", ":4:12: image.worker.modules: `a b` is no kernel module"),
        ("nmae = \"x\"\n", "nmae: unknown key; did you mean `name`?"),
        ("foo = 1\n", "foo: unknown key; known here: version, name"),
        ("[local]\nnetwrok = \"x\"\n", ":4:1: local.netwrok: unknown key; did you mean `network`?"),
        ("domain = 5\n", ":3:10: domain: must be a string in quotes, e.g. \"demo\", not a number"),
        ("manifests = \"a.yaml\"\n", "manifests: must be a list, e.g. [\"a\", \"b\"], not a string"),
        ("manifests = [1]\n", ":3:14: manifests: must be a string"),
        (
            "local = true\n",
            "local: must be a table: the line [local], and its keys in the lines below it, not true or false",
        ),
        ("[image]\npackages = [\"strace\"]\n", "image.packages: must be a table, e.g. { name = \"strace\", files"),
        ("[image]\nfiles = [\"/etc/motd\"]\n", "image.files: must be a table, e.g. { \"/etc/motd\" = \"motd\" }"),
        ("[local]\ncheck-source = \"no\"\n", "local.check-source: must be true or false, not a string"),
        ("[local.master]\nmemory = \"512\"\n", ":4:10: local.master.memory: must be a whole number without quotes"),
        ("version = 1.5\n", "version: must be a whole number without quotes, e.g. 512, not a number"),
        ("[api]\nnames = { a = 1 }\n", "api.names: must be a list"),
    ];
    for (line, expected) in cases {
        let text = format!("name = \"demo\"\n{nodes}{line}");
        let error = settings(&text).expect_err(line).to_string();
        assert!(error.contains(expected) && !error.contains("s3cr3t"), "{line}: {error}");
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
        (r#"{ name = "a", rule = "master" }"#, "nodes.rule: unknown key; did you mean `role`?"),
        (r#"{ nmae = "a", role = "master" }"#, "nodes.nmae: unknown key; did you mean `name`?"),
        (r#"{ name = "a" }"#, "nodes.role: missing; say role"),
        (r#"{ name = 7, role = "master" }"#, "cluster.toml:2:19: nodes.name: must be a string"),
        (r#""a""#, "nodes: must be a table, e.g. { name = \"worker-1\", role = \"worker\" }"),
        (r#"{ name = "a", role = "master", addresses = ["10.200.0.4"] }"#, "lies inside pod-cidr"),
        (r#"{ name = "a", role = "master", taints = ["x"] }"#, "nodes.taints: `x` is no taint"),
        (r#"{ name = "a", role = "master", taints = ["a b=c:NoSchedule"] }"#, "`a b` is no taint's key"),
        (r#"{ name = "a", role = "master", taints = ["a=-:NoSchedule"] }"#, "`-` is no taint's value"),
        (r#"{ name = "a", role = "master", labels = { "a/" = "x" } }"#, ":2:52: nodes.labels: `a/` is no label"),
        (r#"{ name = "a", role = "master", labels = { disk = "a b" } }"#, "nodes.labels: `a b` is no label's value"),
        (r#"{ name = "a", role = "master", labels = { disk = 1 } }"#, "nodes.labels.disk: must be a string"),
        (
            r#"{ name = "a", role = "master", labels = { "node-role.kubernetes.io/db" = "" } }"#,
            "a node may not give itself the label node-role.kubernetes.io/db",
        ),
        (r#"{ name = "a", role = "master", addresses = ["127.0.0.1"] }"#, "127.0.0.1 is no address at which others"),
        (r#"{ name = "a", role = "master", addresses = ["0.0.0.0"] }"#, "0.0.0.0 is no address at which others"),
        (r#"{ name = "a", role = "master", addresses = ["10.77.0.0"] }"#, "10.77.0.0 is the network's own"),
        (r#"{ name = "a", role = "master", addresses = ["10.77.0.255"] }"#, "or the broadcast address"),
        (r#"{ name = "a", role = "master", reserved = { memory = "lots" } }"#, "nodes.reserved.memory: `lots`"),
        (
            r#"{ name = "a", role = "master" }, { name = "b", role = "master" }"#,
            ":2:43: nodes: this would be another master, and the embedded store is one master's alone",
        ),
    ];
    for (nodes, expected) in cases {
        let text = format!("name = \"demo\"\nnodes = [{nodes}]\n");
        let error = settings(&text).expect_err(nodes).to_string();
        assert!(error.contains(expected), "{nodes}: {error}");
    }
}

#[test]
fn masters_are_one_three_or_five_with_etcd_and_their_addresses() {
    let etcd = |count: usize, addressed: bool, more: &str| {
        let node = |n: usize| {
            let address = if addressed { format!("addresses = [\"10.77.0.{}\"]\n", n + 10) } else { String::new() };
            format!("[[nodes]]\nname = \"m{n}\"\nrole = \"master\"\n{address}")
        };
        let nodes: String = (0..count).map(node).collect();
        settings(&format!("name = \"demo\"\nstore = \"etcd\"\n{nodes}{more}"))
    };
    let embedded =
        settings("name = \"demo\"\n[[nodes]]\nname = \"m0\"\nrole = \"master\"\naddresses = [\"10.77.0.10\"]\n");
    let of_worker = |settings: &Settings| settings.cluster(Role::Worker, BuildInfo::default());
    let before = of_worker(&embedded.expect("valid"));
    for count in [1, 3, 5] {
        let found = etcd(count, true, "").expect("valid");
        assert_eq!(found.members().len(), if count == 1 { 0 } else { count });
        assert_eq!(found.cluster(Role::Master, BuildInfo::default()).masters.len(), count);
        assert_eq!(of_worker(&found), before, "workers would be older");
        assert_eq!(found.api_hosts().len(), count);
    }
    etcd(1, false, "").expect("one needs no address");
    let provider = "[provider]\nname = \"hetzner\"\nregion = \"nbg1\"\ntype = \"cx23\"\n";
    let there = etcd(3, false, provider).expect("a provider gives them");
    assert_eq!(there.members()["m2"], "m2");
    let aws = provider.replace("hetzner", "aws").replace("nbg1", "eu-west-1a").replace("cx23", "t3.small");
    for (count, addressed, more, expected) in [
        (2, true, "", ":7:1: nodes: with this one there are 2 masters"),
        (4, true, "", ":15:1: nodes: with this one there are 4 masters; etcd goes on"),
        (6, true, "", ":23:1: nodes: with this one there are 6 masters"),
        (
            3,
            false,
            "",
            ":3:1: nodes: masters that share etcd know each other by their addresses; write this one's own, e.g. addresses = [\"10.77.0.10\"]",
        ),
        (3, true, "[registry]\n", ":7:1: nodes: this would be another master, and the cluster's own registry"),
        (3, true, provider, ":6:14: nodes.addresses: the provider of [provider] gives its machines their addresses"),
        (3, false, &aws, ":6:1: nodes: this would be another master, and at aws kimg keeps the address of one only"),
    ] {
        let error = etcd(count, addressed, more).expect_err("refused").to_string();
        assert!(error.contains(expected), "{count}: {error}");
    }
}

#[test]
fn a_worker_is_told_no_more_than_its_user_data_holds() {
    let labels = |count: usize, role: &str| {
        let labels: Vec<String> = (0..count).map(|n| format!("l{n} = \"{}\"", "x".repeat(63))).collect();
        let other = if role == "worker" { "{ name = \"m\", role = \"master\" }, " } else { "" };
        settings(&format!(
            "name = \"demo\"\nnodes = [{other}{{ name = \"a\", role = \"{role}\", labels = {{ {} }} }}]\n",
            labels.join(", ")
        ))
    };
    labels(7, "worker").expect("has room");
    let error = labels(8, "worker").expect_err("too many").to_string();
    assert!(
        error.contains("cluster.toml:2:") && error.contains(" of a make ") && error.contains("has room for 600"),
        "{error}"
    );
    labels(40, "master").expect("its image has them");
}

/// One bracket too few, as people write it.
#[test]
fn a_single_table_of_nodes_is_told_of_its_brackets() {
    for nodes in ["[nodes]\nname = \"m\"\nrole = \"master\"\n", "nodes = { name = \"m\", role = \"master\" }\n"] {
        let error = settings(&format!("name = \"demo\"\n{nodes}")).expect_err(nodes).to_string();
        assert!(error.starts_with("cluster.toml:2:"), "{error}");
        assert!(error.contains(": nodes: must be a list of nodes; begin each with [[nodes]]"), "{error}");
    }
    let twice = "name = \"demo\"\n[nodes]\nname = \"m\"\nrole = \"master\"\n[nodes]\nname = \"w\"\nrole = \"worker\"\n";
    let error = settings(twice).expect_err("twice").to_string();
    assert!(error.contains("[[nodes]]"), "{error}");
}

/// A cluster of `count` workers and a master.
fn cluster_of(count: usize, more: &str) -> Result<Settings, ConfigError> {
    let workers: String = (0..count).map(|n| format!(", {{ name = \"w{n}\", role = \"worker\" }}")).collect();
    settings(&format!("name = \"demo\"\n{more}\nnodes = [{{ name = \"m\", role = \"master\" }}{workers}]\n"))
}

#[test]
fn each_node_needs_a_part_of_the_pod_cidr() {
    cluster_of(2, "pod-cidr = \"10.200.0.0/22\"").expect("three of four");
    cluster_of(3, "pod-cidr = \"10.200.0.0/22\"").expect("four of four");
    let error = cluster_of(2, "pod-cidr = \"10.200.0.0/24\"").expect_err("one of three").to_string();
    let said = ":2:12: pod-cidr: 10.200.0.0/24 has room for 1 node, as each takes a /24, and there are 3; write a /22";
    assert!(error.contains(said), "{error}");
    let wide = "[local]\nnetwork = \"10.64.0.0/16\"\n";
    let nodes: String = (0..256).map(|n| format!("[[nodes]]\nname = \"w{n}\"\nrole = \"worker\"\n")).collect();
    let text = format!("name = \"demo\"\n[[nodes]]\nname = \"m\"\nrole = \"master\"\n{nodes}{wide}");
    let error = settings(&text).expect_err("too many for the default").to_string();
    assert!(error.contains("nodes: pod-cidr 10.200.0.0/16 has room for 256 nodes"), "{error}");
}

/// What only local VMs cannot do is an error at once where the images are for local VMs only, else for `kimg up`.
#[test]
fn what_local_vms_need() {
    let cases = [
        (
            r#"{ name = "a", role = "master", addresses = ["10.88.0.10"] }"#,
            "",
            "lies outside local.network 10.77.0.0/24",
        ),
        (
            r#"{ name = "a", role = "master", reserved = { memory = "1Gi" } }"#,
            "",
            "1Gi is all of the 512 MiB that a has",
        ),
        (
            r#"{ name = "a", role = "master" }"#,
            "service-cidr = \"10.0.2.0/24\"\n",
            "service-cidr: 10.0.2.0/24 overlaps 10.0.2.0/24",
        ),
        (
            r#"{ name = "a", role = "master" }"#,
            "registry.size = 1500\n",
            "registry.size: 1500 MiB do not fit on the master's disk of 2048 MiB",
        ),
    ];
    for (nodes, more, expected) in cases {
        let text = |form: &str| format!("name = \"demo\"\nsecrets = \"{form}\"\n{more}nodes = [{nodes}]\n");
        let fault =
            settings(&text("sealed")).expect("may run elsewhere").local.fault.expect("but not here").to_string();
        let error = settings(&text("plain")).expect_err("runs nowhere").to_string();
        assert!(fault.contains(expected) && error == fault, "{fault}");
        assert!(fault.starts_with("cluster.toml:"), "{fault}");
    }
    let larger =
        "nodes = [{ name = \"a\", role = \"master\", reserved = { memory = \"1Gi\" } }]\nlocal.master.memory = 2048\n";
    assert!(settings(&format!("name = \"demo\"\n{larger}")).expect("valid").local.fault.is_none());
}

#[test]
fn logs_go_where_it_is_said_with_authorities_that_can_be_read() {
    let dir = tempfile::tempdir().expect("dir");
    let with = |table: &str| parse(Path::new("cluster.toml"), &format!("{MINIMAL}[logs]\n{table}"), dir.path());
    assert_eq!(settings(MINIMAL).expect("valid").logs, None);
    for (to, host, port) in [
        ("logs.example.org", "logs.example.org", 6514),
        ("10.0.0.1:514", "10.0.0.1", 514),
        ("[2001:db8::1]:7000", "2001:db8::1", 7000),
        ("[2001:db8::1]", "2001:db8::1", 6514),
    ] {
        let settings = with(&format!("to = \"syslog+tls://{to}\"\n")).expect("valid");
        let expected = Some(node_metadata::LogTarget { host: host.into(), port, ca: false });
        assert_eq!(settings.cluster(Role::Worker, BuildInfo::default()).logs, expected, "{to}");
    }
    let written = |text: &str| {
        std::fs::write(dir.path().join("ca.pem"), text).expect("written");
        with("to = \"syslog+tls://a\"\nca = \"ca.pem\"\n")
    };
    let secrets = crate::pki::Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
    let (pem, key) = (secrets.read("cluster-ca.crt").expect("ca"), secrets.read("cluster-ca.key").expect("key"));
    let settings = written(&pem).expect("valid");
    assert!(settings.logs_ca.as_deref() == Some(&pem) && settings.logs.is_some_and(|logs| logs.ca));
    for (text, expected) in [
        ("nothing", "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds a damaged certificate"),
        ("-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----\n", "holds a damaged certificate"),
        (&format!("{pem}{key}"), "holds a private key"),
    ] {
        let error = written(text).expect_err(text).to_string();
        assert!(error.contains("logs.ca: ") && error.contains(expected), "{error}");
    }
}

#[test]
fn a_registry_is_there_where_its_table_stands() {
    assert_eq!(settings(MINIMAL).expect("valid").registry, None);
    let with = |table: &str| settings(&format!("{MINIMAL}[registry]\n{table}")).expect("valid");
    let size = |table: &str| with(table).cluster(Role::Master, BuildInfo::default()).registry.map(|r| r.size);
    assert_eq!(size(""), Some(1024));
    assert_eq!(size("size = 64\n"), Some(64));
    assert!(with("").local.fault.is_none(), "the default fits into the default");
}

#[test]
fn a_status_page_is_there_where_it_is_asked_for() {
    let page = |more: &str| {
        settings(&format!("{MINIMAL}{more}")).expect("valid").cluster(Role::Master, BuildInfo::default()).status_page
    };
    assert_eq!(
        ["", "[status]\n", "[status]\npage = false\n", "[status]\npage = true\n"].map(page),
        [false, false, false, true]
    );
}

/// A cluster at a provider.
fn at(provider: &str, nodes: &str) -> Result<Settings, ConfigError> {
    settings(&format!("name = \"demo\"\n[provider]\n{provider}\n{nodes}"))
}

const HETZNER: &str = "name = \"hetzner\"\nregion = \"nbg1\"\ntype = \"cx23\"\nworker-type = \"cx33\"";
const THREE: &str = "[[nodes]]\nname = \"m\"\nrole = \"master\"\n[[nodes]]\nname = \"w\"\nrole = \"worker\"\n\
                     [[nodes]]\nname = \"x\"\nrole = \"worker\"\ntype = \"cx43\"\n";

#[test]
fn certificates_live_as_long_as_is_said() {
    let of = |life: &str, rest: &str| settings(&format!("name = \"demo\"\n{life}\n{rest}"));
    let local = THREE.replace("type = \"cx43\"\n", "");
    assert_eq!(of("", &local).expect("valid").certificate_life_s, 31_536_000);
    assert_eq!(of("certificate-life = 90", &local).expect("for tests").certificate_life_s, 90);
    let there = format!("[provider]\n{HETZNER}\n{THREE}");
    assert_eq!(of("certificate-life = 3000", &there).expect("valid").certificate_life_s, 3000);
    for (life, rest, range) in [(59, &*local, "60 to 31536000"), (2999, &*there, "3000 to 31536000")] {
        let error = of(&format!("certificate-life = {life}"), rest).expect_err("too short").to_string();
        assert!(error.contains("certificate-life") && error.contains(range), "{error}");
    }
}

#[test]
fn a_provider_has_a_type_for_each_node() {
    let provider = at(&format!("{HETZNER}\nbudget = 30"), THREE).expect("valid").provider.expect("there");
    let types: Vec<(&str, &str)> = provider.types.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    assert_eq!(types, [("m", "cx23"), ("w", "cx33"), ("x", "cx43")]);
    assert_eq!((provider.budget, provider.network.to_string().as_str()), (Some(30), "10.80.0.0/20"));
    assert!(settings(MINIMAL).expect("valid").provider.is_none());
    let openstack = "name = \"openstack\"\nregion = \"RegionOne\"\ntype = \"m1.small\"\ncurrency = \"EUR\"";
    let prices = "\"m1.small\" = 7.5\ncx43 = 20";
    let provider = at(&format!("{openstack}\n[provider.prices]\n{prices}"), THREE).expect("valid").provider;
    let prices: Vec<(String, u64)> = provider.expect("there").prices.into_iter().collect();
    assert_eq!(prices, [("cx43".to_string(), 2000), ("m1.small".to_string(), 750)]);
    let aws = "name = \"aws\"\nregion = \"eu-central-1a\"\ntype = \"t3.small\"\ndisk-gb = 40";
    let provider = at(aws, THREE).expect("valid").provider.expect("there");
    assert_eq!((provider.types["w"].as_str(), provider.disk_gb), ("t3.small", 40));
}

#[test]
fn a_node_at_a_provider_may_have_a_data_volume() {
    let gb = |gb: i64| THREE.replace("name = \"w\"", &format!("name = \"w\"\ndata-gb = {gb}"));
    let valid = at(HETZNER, &gb(20)).expect("valid");
    assert_eq!(valid.nodes.iter().map(|node| node.data_gb).collect::<Vec<_>>(), [None, Some(20), None]);
    let digitalocean = format!("{}\nbucket = \"b\"", HETZNER.replace("hetzner", "digitalocean"));
    let priced = at(&format!("{digitalocean}\nprices = {{ data-gb = 0.1 }}"), &gb(1)).expect("valid");
    let provider = priced.provider.expect("there");
    assert!(provider.volume_price == Some(0.1) && provider.prices.is_empty());
    let long = format!("name = \"{}\"\ndata-gb = 20", "w".repeat(46));
    let master = THREE.replace("name = \"m\"", "name = \"m\"\ndata-gb = 20");
    assert_eq!(at(HETZNER, &master).expect("valid").nodes[0].data_gb, Some(20));
    let several = master.replace("role = \"worker\"", "role = \"master\"");
    let several = settings(&format!("name = \"demo\"\nstore = \"etcd\"\n[provider]\n{HETZNER}\n{several}"));
    let error = several.expect_err("three masters").to_string();
    assert!(error.contains("nodes.data-gb: is a worker's or a single master's"), "{error}");
    let cases = [
        (HETZNER.to_string(), gb(9), "nodes.data-gb: 9 is out of range; write 10 to 10240"),
        (digitalocean.clone(), gb(-1), "nodes.data-gb: -1 is out of range; write 1 to 16384"),
        (HETZNER.to_string(), THREE.replace("name = \"w\"", &long), "write at most 45 characters"),
        (HETZNER.replace("hetzner", "aws"), gb(0), "nodes.data-gb: 0 is out of range; write 1 to 16384"),
        (format!("{HETZNER}\nprices = {{ data-gb = 0.1 }}"), gb(20), "hetzner says itself what a volume costs"),
        (format!("{digitalocean}\nprices = {{ data-gb = -1 }}"), gb(20), "-1 is no price of a GB"),
        (
            format!("{PROXMOX}\nprices = {{ data-gb = 1 }}\n{RANGE}"),
            gb(20).replace("cx43", "1c-1g"),
            "a volume at proxmox costs nothing by the month",
        ),
        (format!("{digitalocean}\nprices = {{ cx23 = 1 }}"), gb(20), "digitalocean says itself what machines cost"),
    ];
    for (provider, nodes, says) in cases {
        let error = at(&provider, &nodes).expect_err(&provider).to_string();
        assert!(error.contains(says), "{error}\n{says}");
    }
    let alone = settings(&format!("name = \"demo\"\n{}", gb(20).replace("type = \"cx43\"", "")));
    assert!(alone.expect_err("here").to_string().contains("there is no [provider]"));
}

const PROXMOX: &str = "name = \"proxmox\"\nregion = \"pve\"\ntype = \"2c-4g\"\nnetwork = \"192.168.1.0/24\"";
const RANGE: &str = "[provider.proxmox]\nstorage = \"lvm\"\naddresses = \"192.168.1.200-192.168.1.219\"";

#[test]
fn machines_at_proxmox_are_where_cluster_toml_says() {
    let three = THREE.replace("cx43", "1c-768m");
    let valid = at(&format!("{PROXMOX}\n{RANGE}"), &three).expect("valid").provider.expect("there");
    let own = valid.proxmox.expect("there");
    assert_eq!((own.storage.as_str(), own.image_storage.as_str(), own.bridge.as_str()), ("lvm", "local", "vmbr0"));
    assert_eq!((own.gateway.to_string(), own.nameservers[0].to_string()), ("192.168.1.1".into(), "192.168.1.1".into()));
    assert_eq!((own.addresses.start().octets()[3], own.addresses.end().octets()[3]), (200, 219));
    assert_eq!([Proxmox::size("2c-4g"), Proxmox::size("1c-768m")], [Some((2, 4096)), Some((1, 768))]);
    assert_eq!(["2c-4", "c-4g", "0c-1g", "2c-04g", "-1c-1g"].map(Proxmox::size), [None; 5]);
    let with = |what: &str, with: &str| format!("{PROXMOX}\n{RANGE}").replace(what, with);
    let cases = [
        (PROXMOX.to_string(), "provider.proxmox: nothing says where machines are"),
        (with("network = \"192.168.1.0/24\"", ""), "provider.network: nothing says which network"),
        (with("-192.168.1.219", ""), "provider.proxmox.addresses: `192.168.1.200` is no range"),
        (with("1.219", "1.199"), "is no range of addresses in 192.168.1.0/24"),
        (with("1.219", "1.255"), "is no range of addresses in 192.168.1.0/24"),
        (with("2c-4g", "cx23"), "provider.type: `cx23` is no type of machine at proxmox"),
        (with("\"lvm\"", "\"a,b\""), "provider.proxmox.storage: `a,b` is no name"),
        (format!("{PROXMOX}\nbudget = 3\n{RANGE}"), "provider.budget: a machine at proxmox costs nothing"),
        (format!("{PROXMOX}\ncurrency = \"EUR\"\n{RANGE}"), "provider.currency: a machine at proxmox costs nothing"),
        (format!("{PROXMOX}\n{RANGE}\ngateway = \"10.0.0.1\""), "provider.proxmox.gateway: `10.0.0.1` is no address"),
        (format!("{HETZNER}\n{RANGE}"), "provider.proxmox: is of no use at hetzner"),
    ];
    for (provider, says) in cases {
        let error = at(&provider, &three).expect_err(&provider).to_string();
        assert!(error.contains(says), "{error}\n{says}");
    }
}

#[test]
fn the_example_in_the_documents_is_valid() {
    let text = include_str!("../../../docs/provider.md");
    let example = text.split("```").nth(1).and_then(|block| block.strip_prefix("toml\n")).expect("a block");
    let types = settings(example).expect("valid").provider.expect("there").types;
    assert_eq!(types["worker-1"], "cx33");
    assert!(settings(&example.replace("#network", "network")).is_ok(), "what is commented out is the default");
}

#[test]
fn what_no_provider_can_do_is_said() {
    let digitalocean = HETZNER.replace("hetzner", "digitalocean");
    let linode = HETZNER.replace("hetzner", "linode");
    let gcp = format!("{}\nbucket = \"b\"", HETZNER.replace("hetzner", "gcp"));
    let openstack = HETZNER.replace("hetzner", "openstack");
    let aws = HETZNER.replace("hetzner", "aws");
    let cases = [
        (HETZNER.replace("hetzner", "acme"), THREE, ":3:8: provider.name: `acme` is not known; write \"hetzner\" or"),
        (HETZNER.replace("nbg1", "nbg1&x"), THREE, ":4:10: provider.region: `nbg1&x` is no name"),
        (HETZNER.replace("\ntype = \"cx23\"", ""), THREE, "provider.type: nothing says which type of machine m is"),
        (format!("{HETZNER}\nbudget = 0"), THREE, "provider.budget: 0 is out of range"),
        (format!("{HETZNER}\nnetwork = \"10.200.0.0/20\""), THREE, "provider.network: 10.200.0.0/20 overlaps pod-cidr"),
        (format!("{HETZNER}\nnetwork = \"8.8.0.0/20\""), THREE, "8.8.0.0/20 is no private IPv4 network"),
        (format!("{HETZNER}\nnetwork = \"10.80.0.0/28\""), THREE, "of /16 to /24"),
        (format!("{HETZNER}\nbucket = \"b\""), THREE, ":7:10: provider.bucket: hetzner takes images from no bucket"),
        (format!("{HETZNER}\nsize = \"b\""), THREE, "provider.size: unknown key"),
        (format!("{HETZNER}\nexternal-network = \"x\""), THREE, ":7:20: provider.external-network: is OpenStack's"),
        (format!("{HETZNER}\nprices = {{ cx23 = 1 }}"), THREE, "provider.prices: hetzner says itself what machines"),
        (format!("{HETZNER}\ncurrency = \"EUR\""), THREE, "provider.currency: hetzner says itself what machines"),
        (format!("{openstack}\nprices = {{ cx23 = 1 }}"), THREE, "provider.prices: nothing says in which currency"),
        (format!("{gcp}\nprices = {{ cx23 = 1 }}"), THREE, "provider.prices: nothing says in which currency"),
        (
            format!("{openstack}\ncurrency = \"EUR\"\nprices = {{ cx23 = 0 }}"),
            THREE,
            "provider.prices: 0 is no price of cx23",
        ),
        (format!("{openstack}\npublic-address = \"x\""), THREE, "write \"floating-ip\" or \"port\""),
        (format!("{openstack}\nbucket = \"b\""), THREE, "provider.bucket: openstack takes images from no bucket"),
        (format!("{linode}\nbucket = \"b\""), THREE, "provider.bucket: linode takes images from no bucket"),
        (
            format!("{linode}\nnetwork = \"192.168.128.0/20\""),
            THREE,
            "provider.network: 192.168.128.0/20 overlaps 192.168.128.0/17, which linode has for itself",
        ),
        (
            linode.clone(),
            "[[nodes]]\nname = \"m--1\"\nrole = \"master\"\n",
            "nodes.name: `m--1` becomes a label and a tag of linode's: write at most 40 characters",
        ),
        (format!("{aws}\nbucket = \"b\""), THREE, "provider.bucket: aws takes images from no bucket"),
        (format!("{HETZNER}\nsubnet = \"x\""), THREE, "provider.subnet: is AWS', and hetzner has no choice of it"),
        (format!("{aws}\nsubnet = \"x.y\""), THREE, "provider.subnet: `x.y` is no name"),
        (aws.replace("nbg1", "x.y"), THREE, "provider.region: `x.y` is no name"),
        (format!("{HETZNER}\ndisk-gb = 30"), THREE, "provider.disk-gb: a type of hetzner has its disk"),
        (format!("{gcp}\ndisk-gb = 5"), THREE, "provider.disk-gb: 5 is out of range; write 10 to 65536"),
        (format!("{gcp}\nendpoint = \"https://s3.example\""), THREE, "provider.endpoint: gcp's bucket is one of Cloud"),
        (gcp.replace("\nbucket = \"b\"", ""), THREE, "provider.bucket: gcp makes images of an archive in a bucket"),
        (
            gcp.clone(),
            "[[nodes]]\nname = \"1m\"\nrole = \"master\"\n",
            "nodes.name: `1m` becomes a part of names of gcp's: write at most 54 characters, a letter first",
        ),
        (gcp, "[[nodes]]\nname = \"m--1\"\nrole = \"master\"\n", "and no `-` behind another"),
        (digitalocean.replace("digitalocean", "vultr"), THREE, "provider.bucket: vultr fetches images from a bucket"),
        (digitalocean, THREE, "provider.bucket: digitalocean fetches images from a bucket"),
        (
            HETZNER.into(),
            "[[nodes]]\nname = \"m\"\nrole = \"master\"\naddresses = [\"192.0.2.1\"]\n",
            "nodes.addresses: the provider of [provider] gives its machines their addresses",
        ),
        (
            HETZNER.into(),
            "[[nodes]]\nname = \"a123456789a123456789a123456789a123456789a123456789a123456789\"\nrole = \"master\"\n",
            "has more than 63 characters",
        ),
    ];
    for (provider, nodes, expected) in cases {
        let error = at(&provider, nodes).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = settings(&format!("secrets = \"plain\"\n{MINIMAL}[provider]\n{HETZNER}")).expect_err("keys in clear");
    assert!(error.to_string().starts_with("cluster.toml:1:11: secrets: keys in clear"), "{error}");
    let error = settings(&format!("name = \"demo\"\n{THREE}")).expect_err("no provider").to_string();
    assert!(error.contains("nodes.type: is a machine's at a provider"), "{error}");
}

#[test]
fn a_worker_may_be_a_spare() {
    let spare = THREE.replace("name = \"w\"", "name = \"w\"\nspare = true");
    let valid = at(HETZNER, &spare).expect("valid");
    let names = |nodes: Vec<&NodeSettings>| nodes.iter().map(|node| node.entry.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(valid.spares().collect()), ["w"]);
    assert!(!names(valid.lasting_workers().collect()).contains(&"w".to_owned()));
    assert!(valid.spares_left().is_some_and(|said| said.starts_with("w is a spare: it is there for the time")));
    let none = at(HETZNER, &spare.replace("spare = true", "spare = false")).expect("valid");
    assert!(none.spares().next().is_none() && none.spares_left().is_none());
    // The node itself is told nothing of it.
    assert_eq!(
        valid.nodes.iter().map(|node| &node.entry).collect::<Vec<_>>(),
        none.nodes.iter().map(|node| &node.entry).collect::<Vec<_>>()
    );
    let cases = [
        (THREE.replace("name = \"m\"", "name = \"m\"\nspare = true"), "nodes.spare: is a worker's"),
        (spare.replace("spare = true", "spare = true\ndata-gb = 20"), "nodes.data-gb: a spare has no data volume"),
        (spare.replace("spare = true", "spare = 1"), "nodes.spare: "),
    ];
    for (nodes, says) in cases {
        let error = at(HETZNER, &nodes).expect_err(says).to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_key_is_guessed_only_where_it_is_near() {
    let known = ["image", "name", "local"];
    assert_eq!(nearest("nmae", &known), Some("name"));
    assert_eq!(nearest("imgae", &known), Some("image"));
    assert_eq!(nearest("nope", &known), None);
}

#[test]
fn a_missing_file_says_what_to_do() {
    let error = load(Path::new("/nowhere")).expect_err("missing").to_string();
    assert!(error.contains("kimg init"), "{error}");
    assert_eq!(error.matches("/nowhere/cluster.toml").count(), 1, "{error}");
}

#[test]
fn packages_are_told_by_their_place() {
    let text = "name = \"demo\"\n[image]\npackages = [{ name = \"a\", files = [\"/a\"] }]\n[image.worker]\n\
                packages = [{ name = \"b\", files = [\"/b\"] }, { name = \"c\", files = [\"/c\"] }]\n\
                [[nodes]]\nname = \"m\"\nrole = \"master\"\n";
    let places = written_packages(text).expect("packages").into_iter().map(|(package, place)| (package.name, place));
    let expected =
        [("a", ":3:13: image.packages"), ("b", ":5:13: image.worker.packages"), ("c", ":5:45: image.worker.packages")];
    assert_eq!(places.collect::<Vec<_>>(), expected.map(|(name, place)| (name.to_string(), place.to_string())));
}
