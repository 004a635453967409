//! Which services a node runs, with their command lines. Pure.

use super::{Kind, Spec};
use crate::firewall::ETCD_PORTS;
use node_metadata::{
    COMPONENT_PROGRAMS, Cluster, LogTarget, Node, Overlay, OwnComponent, REGISTRY_PORT, Registry, Role, STATUS_PORT,
    StoreEngine,
};
use std::net::{IpAddr, SocketAddr};

const PKI: &str = "/run/kimg/config/pki";
const SECRETS: &str = "/run/kimg/secrets";
const MASTER_PKI: &str = "/run/kimg/pki";
/// Folder of all that the status page reads.
pub const STATUS_PAGE: &str = "/run/status-page";
/// Its service, and the name of its user.
pub const STATUS_SERVICE: &str = "kimg-status";
const KUBECONFIG: &str = "/run/kimg/kubeconfig";
const CONTROL: &str = "/usr/bin/kimg-control";
const NODE: &str = "/usr/bin/kimg-node";
const ETCD_PROGRAM: &str = "/usr/bin/etcd";
const CONTAINERD: &str = "/usr/bin/containerd";
const ETCD: &str = "https://127.0.0.1:2379";
const ETCD_PEER: &str = "https://127.0.0.1:2380";
const ETCD_DATA: &str = "/var/lib/kimg/etcd";
/// Which the masters are, where the operator says it.
pub const ETCD_MASTERS: &str = "/var/lib/kimg/etcd.masters";
/// Gone after each boot: says that etcd was started in it.
const ETCD_BEGUN: &str = "/run/kimg/etcd.begun";
const WEB_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const MANIFESTS: &str = "/run/kimg/config/manifests";

/// Folder of the own components' folders, each its user's alone.
pub(super) const COMPONENTS: &str = "/var/lib/components";

/// Facts of a node that command lines hold.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// This node.
    pub node: &'a Node,
}

/// All services of a node, and behind them its own components.
pub fn services(facts: Facts<'_>) -> Vec<Spec> {
    // It waits for nothing: what keeps the others from starting is what logs are read for.
    let mut specs: Vec<Spec> = facts.cluster.logs.iter().map(|to| log_shipper(facts, to)).collect();
    specs.extend(match facts.node.role {
        Role::Master => master(facts),
        Role::Worker => worker(facts),
    });
    // CONFIG is not verified as the root is: no name becomes a path elsewhere.
    let components = facts.cluster.components.iter().filter(|(name, _)| OwnComponent::is_name(name));
    specs.extend(components.map(|(name, component)| own(name, component)));
    specs
}

/// The operator's program: it is nobody on the node, and goes before anything of the node's own.
fn own(name: &str, component: &OwnComponent) -> Spec {
    let folder = format!("{COMPONENTS}/{name}");
    Spec {
        program: format!("{COMPONENT_PROGRAMS}/{name}"),
        environment: vec![("HOME".to_owned(), folder.clone()), ("STATE_DIRECTORY".to_owned(), folder)],
        kind: Kind::Component,
        oom_score: 0,
        memory_max: Some(component.memory),
        user: Some(OwnComponent::user(name)),
        // Asked for once a boot, and as long-lived as PID 1.
        ..service(name.to_owned().leak(), NODE, &[], component.args.clone())
    }
}

/// It gives up its rights by itself, once it has opened the logs to its user.
fn log_shipper(facts: Facts<'_>, to: &LogTarget) -> Spec {
    let authorities = if to.ca { format!("{PKI}/logs-ca.crt") } else { WEB_AUTHORITIES.to_owned() };
    let arguments = vec![
        format!("--host={}", to.host),
        format!("--port={}", to.port),
        format!("--ca-file={authorities}"),
        format!("--node-name={}", facts.node.name),
        format!("--cluster={}", facts.cluster.name),
    ];
    Spec { oom_score: 0, memory_max: Some(48 << 20), ..service("log-shipper", NODE, &[], arguments) }
}

fn master(facts: Facts<'_>) -> Vec<Spec> {
    let api: &[&'static str] = &["kube-apiserver"];
    let (store, store_needs): (Vec<Spec>, &[&'static str]) = match facts.cluster.store {
        StoreEngine::Embedded => (Vec::new(), &["master-pki"]),
        StoreEngine::Etcd => match members(facts.node) {
            None => (vec![etcd(facts)], &["master-pki", "etcd"]),
            Some((own, others)) => {
                (etcd_among_others(facts, own, others).into(), &["master-pki", "etcd", "etcd-member"])
            }
        },
    };
    let servers = vec![
        Spec { oom_score: -950, grace_s: 10, ..service("kube-apiserver", CONTROL, store_needs, apiserver(facts)) },
        service("kube-controller-manager", CONTROL, api, controller_manager(facts)),
        service("kube-scheduler", CONTROL, api, vec![kubeconfig("kube-scheduler")]),
        Spec { grace_s: 20, ..service("kubelet", NODE, api, kubelet(facts)) },
        service("overlay", NODE, api, overlay(facts)),
        service("kube-proxy", NODE, api, proxy(facts)),
    ];
    let registry = facts.cluster.registry.map(registry);
    let page = facts.cluster.status_page.then(|| status_page(facts.cluster));
    std::iter::once(master_pki(facts.cluster)).chain(store).chain(servers).chain(registry).chain(page).collect()
}

/// It makes all at boot, and looks again for what is to be renewed.
fn master_pki(cluster: &Cluster) -> Spec {
    // A look in vain costs a process, and three tenths of a life is time enough.
    let again = (u64::from(cluster.certificate_life_s) / 20).clamp(1, 3600);
    Spec { again_s: Some(again), ..task("master-pki", &[]) }
}

/// This master's own address as a member's, and those of the others that are known when it starts; none where it is alone.
fn members(node: &Node) -> Option<(&IpAddr, &[IpAddr])> {
    let told_later = || node.addresses.first().filter(|_| node.await_masters).map(|own| (own, &[][..]));
    node.etcd_members.split_first().or_else(told_later)
}

/// It waits for nothing but its certificate: once it has heard which nodes' were taken back, they pull also while the API
/// server is away.
fn registry(registry: Registry) -> Spec {
    let arguments = vec![
        format!("--listen=0.0.0.0:{REGISTRY_PORT}"),
        "--socket=/run/kimg/cluster-registry.sock".to_owned(),
        "--data-dir=/var/lib/kimg/registry".to_owned(),
        format!("--size-mib={}", registry.size),
        format!("--tls-cert-file={MASTER_PKI}/registry.crt"),
        format!("--tls-private-key-file={MASTER_PKI}/registry.key"),
        format!("--client-ca-file={PKI}/cluster-ca.crt"),
        kubeconfig("registry"),
    ];
    // Before it costs the API server its memory, it ends.
    Spec { oom_score: 0, ..service("cluster-registry", NODE, &["master-pki"], arguments) }
}

/// Also while the API server is away it says so.
fn status_page(cluster: &Cluster) -> Spec {
    let arguments = vec![
        format!("--kubeconfig={STATUS_PAGE}/status.conf"),
        format!("--cluster={}", cluster.name),
        format!("--listen=0.0.0.0:{STATUS_PORT}"),
        format!("--tls-cert-file={STATUS_PAGE}/status.crt"),
        format!("--tls-private-key-file={STATUS_PAGE}/status.key"),
    ];
    // Strangers talk to it: it is nobody on the node, and before it costs the API server its memory, it ends.
    Spec {
        oom_score: 0,
        memory_max: Some(64 << 20),
        user: Some(OwnComponent::user(STATUS_SERVICE)),
        ..service(STATUS_SERVICE, CONTROL, &["master-pki"], arguments)
    }
}

/// One member, that only this machine's API server talks to.
fn etcd(facts: Facts<'_>) -> Spec {
    let own = [
        format!("--name={}", facts.node.name),
        format!("--data-dir={ETCD_DATA}"),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={ETCD_PEER}"),
        format!("--initial-advertise-peer-urls={ETCD_PEER}"),
        format!("--initial-cluster={}={ETCD_PEER}", facts.node.name),
    ];
    etcd_spec(own.into_iter().chain(etcd_settings()).collect())
}

fn etcd_spec(arguments: Vec<String>) -> Spec {
    Spec {
        oom_score: -950,
        environment: vec![("GOGC".to_owned(), "50".to_owned())],
        ..service("etcd", ETCD_PROGRAM, &["master-pki"], arguments)
    }
}

/// What is the same for every member.
fn etcd_settings() -> impl Iterator<Item = String> {
    let tls = |prefix: &str| {
        [
            format!("--{prefix}cert-file={MASTER_PKI}/etcd.crt"),
            format!("--{prefix}key-file={MASTER_PKI}/etcd.key"),
            format!("--{prefix}trusted-ca-file={PKI}/etcd-ca.crt"),
            format!("--{prefix}client-cert-auth=true"),
        ]
    };
    let settings = [
        // The API server stores values of 3 MiB, and what stands around them takes a little more.
        format!("--max-request-bytes={}", 4 << 20),
        // What is below fits on a STATE of 2 GiB: the database, which is there twice while it is defragmented, and the
        // log that etcd keeps twice.
        format!("--quota-backend-bytes={}", 768 << 20),
        "--max-wals=2".to_owned(),
        "--max-snapshots=2".to_owned(),
        // etcd reads all changes since its last snapshot into memory when it starts, 100 000 unless told otherwise.
        "--snapshot-count=500".to_owned(),
        // Nobody asks by HTTP and JSON.
        "--enable-grpc-gateway=false".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    settings.into_iter().chain(tls("")).chain(tls("peer-"))
}

/// One member of several: the API server's program finds out how it begins or joins, and becomes etcd; a task behind it
/// ends once the member has its vote.
fn etcd_among_others(facts: Facts<'_>, own: &IpAddr, others: &[IpAddr]) -> [Spec; 2] {
    let Facts { cluster, node } = facts;
    let url = |address: &IpAddr, port: u16| format!("https://{}", SocketAddr::new(*address, port));
    let peer_url = format!("--peer-url={}", url(own, ETCD_PORTS[1]));
    let identity = || {
        [
            format!("--etcd-cafile={PKI}/etcd-ca.crt"),
            format!("--etcd-certfile={MASTER_PKI}/apiserver-etcd-client.crt"),
            format!("--etcd-keyfile={MASTER_PKI}/apiserver-etcd-client.key"),
        ]
    };
    let urls = |flag: &str, addresses: Vec<&IpAddr>| {
        let urls: Vec<String> = addresses.into_iter().map(|address| url(address, ETCD_PORTS[1])).collect();
        (!urls.is_empty()).then(|| format!("--{flag}={}", urls.join(",")))
    };
    // User-data stays what it was when the machine was made; later there may be more, which the image knows.
    let baked = cluster.masters.iter().filter_map(|entry| entry.addresses.first());
    let perhaps = urls("perhaps", baked.filter(|address| !node.etcd_members.contains(address)).collect());
    let others = urls("others", others.iter().collect());
    let etcd = [
        "--".to_owned(),
        ETCD_PROGRAM.to_owned(),
        format!("--listen-client-urls={ETCD},{}", url(own, ETCD_PORTS[0])),
        format!("--advertise-client-urls={}", url(own, ETCD_PORTS[0])),
        format!("--listen-peer-urls={}", url(own, ETCD_PORTS[1])),
    ];
    let store = |command: &str| ["kube-apiserver", "store", command].map(str::to_owned).into_iter();
    let member = store("member")
        .chain([peer_url.clone(), format!("--data-dir={ETCD_DATA}"), format!("--begun={ETCD_BEGUN}")])
        .chain(others)
        .chain(perhaps)
        .chain(node.await_masters.then(|| format!("--masters={ETCD_MASTERS}")))
        .chain(node.join_etcd.then(|| "--join".to_owned()))
        .chain(identity())
        .chain(etcd)
        .chain(etcd_settings());
    let promote = store("promote").chain([peer_url, format!("--etcd-server={ETCD}")]).chain(identity());
    let etcd = etcd_spec(Vec::new());
    [
        Spec { program: CONTROL.to_owned(), command: member.collect(), ..etcd },
        Spec { program: CONTROL.to_owned(), command: promote.collect(), ..task("etcd-member", &["etcd"]) },
    ]
}

fn worker(facts: Facts<'_>) -> Vec<Spec> {
    let servers = facts.node.api_endpoints.iter().map(|endpoint| format!("--server={endpoint}"));
    let registry = facts.cluster.registry.map(|_| format!("--also={REGISTRY_PORT}"));
    let balancer = servers.chain([kubeconfig("kube-proxy")]).chain(registry).collect();
    let containerd = Spec {
        oom_score: -999,
        environment: vec![("GOGC".to_owned(), "50".to_owned()), ("TMPDIR".to_owned(), "/var/tmp".to_owned())],
        ..service("containerd", CONTAINERD, &[], vec!["--config=/etc/containerd/config.toml".to_owned()])
    };
    let joined: &[&'static str] = &["join"];
    vec![
        service("api-balancer", NODE, &[], balancer),
        containerd,
        task("join", &["api-balancer"]),
        Spec { grace_s: 30, oom_score: -999, ..service("kubelet", NODE, &["join", "containerd"], kubelet(facts)) },
        service("overlay", NODE, joined, overlay(facts)),
        service("kube-proxy", NODE, joined, proxy(facts)),
        service("cluster-dns", NODE, &["join", "overlay"], dns(facts)),
        service("backup", NODE, joined, backup(facts)),
    ]
}

fn service(name: &'static str, program: &str, needs: &[&'static str], arguments: Vec<String>) -> Spec {
    Spec {
        name,
        command: std::iter::once(name.to_owned()).chain(arguments).collect(),
        program: program.to_owned(),
        // One arena: a second one costs memory and gives these programs nothing.
        environment: vec![("MALLOC_ARENA_MAX".to_owned(), "1".to_owned())],
        needs: needs.to_vec(),
        kind: Kind::Daemon,
        oom_score: -900,
        memory_max: None,
        grace_s: 8,
        again_s: None,
        user: None,
    }
}

fn task(name: &'static str, needs: &[&'static str]) -> Spec {
    Spec { kind: Kind::Task, ..service(name, NODE, needs, Vec::new()) }
}

fn kubeconfig(component: &str) -> String {
    format!("--kubeconfig={KUBECONFIG}/{component}.conf")
}

fn apiserver(facts: Facts<'_>) -> Vec<String> {
    let Facts { cluster, node } = facts;
    let mut arguments = vec![
        "--bind-address=0.0.0.0".to_owned(),
        "--secure-port=6443".to_owned(),
        format!("--service-cluster-ip-range={}", cluster.service_cidr),
        format!("--client-ca-file={PKI}/cluster-ca.crt"),
        format!("--tls-cert-file={MASTER_PKI}/apiserver.crt"),
        format!("--tls-private-key-file={MASTER_PKI}/apiserver.key"),
        format!("--kubelet-client-certificate={MASTER_PKI}/apiserver-kubelet-client.crt"),
        format!("--kubelet-client-key={MASTER_PKI}/apiserver-kubelet-client.key"),
        format!("--kubelet-certificate-authority={PKI}/cluster-ca.crt"),
        format!("--service-account-key-file={PKI}/sa.pub"),
        format!("--service-account-signing-key-file={SECRETS}/sa.key"),
        format!("--service-account-issuer=https://kubernetes.default.svc.{}", cluster.domain),
        format!("--requestheader-client-ca-file={PKI}/front-proxy-ca.crt"),
        "--requestheader-allowed-names=front-proxy-client".to_owned(),
        format!("--proxy-client-cert-file={MASTER_PKI}/front-proxy-client.crt"),
        format!("--proxy-client-key-file={MASTER_PKI}/front-proxy-client.key"),
        "--store-dir=/var/lib/kimg/store".to_owned(),
        "--store-socket=/run/kimg/kube-apiserver.sock".to_owned(),
        format!("--encryption-key-file={SECRETS}/encryption.key"),
        format!("--backup-recipient-file={PKI}/backup.pub"),
        format!("--audit-log-path={}", node_api::AUDIT_LOG),
        "--audit-log-maxsize=8".to_owned(),
    ];
    if cluster.store == StoreEngine::Etcd {
        arguments.extend([
            format!("--etcd-servers={ETCD}"),
            format!("--etcd-cafile={PKI}/etcd-ca.crt"),
            format!("--etcd-certfile={MASTER_PKI}/apiserver-etcd-client.crt"),
            format!("--etcd-keyfile={MASTER_PKI}/apiserver-etcd-client.key"),
        ]);
    }
    arguments.extend(node.addresses.first().map(|address| format!("--advertise-address={address}")));
    arguments.extend(node.await_backup.then(|| "--await-restore".to_owned()));
    arguments
}

fn controller_manager(facts: Facts<'_>) -> Vec<String> {
    let cluster = facts.cluster;
    vec![
        kubeconfig("kube-controller-manager"),
        format!("--cluster-cidr={}", cluster.pod_cidr),
        format!("--service-cluster-ip-range={}", cluster.service_cidr),
        format!("--cluster-signing-cert-file={PKI}/cluster-ca.crt"),
        format!("--cluster-signing-key-file={SECRETS}/cluster-ca.key"),
        format!("--cluster-signing-duration={}s", cluster.certificate_life_s),
        format!("--root-ca-file={PKI}/cluster-ca.crt"),
        format!("--service-account-private-key-file={SECRETS}/sa.key"),
        format!("--addon-dir={MANIFESTS}"),
    ]
}

/// Labels, taints, reserved resources and DNS are in `node.json` and `cluster.json`, which the kubelet reads itself.
fn kubelet(facts: Facts<'_>) -> Vec<String> {
    let mut arguments = vec![kubeconfig("kubelet"), format!("--hostname-override={}", facts.node.name)];
    if facts.node.role == Role::Master {
        arguments.push("--container-runtime-endpoint=".to_owned());
        arguments.push(format!("--tls-cert-file={MASTER_PKI}/kubelet-server.crt"));
        arguments.push(format!("--tls-private-key-file={MASTER_PKI}/kubelet-server.key"));
    }
    arguments
}

fn overlay(facts: Facts<'_>) -> Vec<String> {
    let Facts { cluster, node } = facts;
    let mode = match cluster.overlay {
        Overlay::Vxlan => "vxlan",
        Overlay::HostGw => "host-gw",
    };
    let mut arguments = vec![
        kubeconfig("overlay"),
        format!("--node-name={}", node.name),
        format!("--cluster-cidr={}", cluster.pod_cidr),
        format!("--service-cidr={}", cluster.service_cidr),
        format!("--mode={mode}"),
    ];
    arguments
        .extend(node.addresses.iter().find(|address| address.is_ipv4()).map(|address| format!("--node-ip={address}")));
    if node.role == Role::Worker {
        arguments.push(format!("--dns-address={}", cluster.dns_address));
        arguments.push("--cni-conf-dir=/run/cni/net.d".to_owned());
    }
    arguments
}

fn proxy(facts: Facts<'_>) -> Vec<String> {
    let mut arguments = vec![
        kubeconfig("kube-proxy"),
        format!("--hostname-override={}", facts.node.name),
        format!("--cluster-cidr={}", facts.cluster.pod_cidr),
    ];
    if facts.node.role == Role::Worker {
        // NodePorts answer at the addresses outside, too; where those are a provider's translation, nothing arrives there.
        let outside = facts.node.external_addresses.iter().filter(|address| !facts.node.addresses.contains(address));
        let own = facts.node.addresses.iter().chain(outside).filter(|address| address.is_ipv4());
        arguments.extend(own.map(|address| format!("--node-ips={address}")));
    }
    arguments
}

fn dns(facts: Facts<'_>) -> Vec<String> {
    vec![
        kubeconfig("dns"),
        format!("--cluster-domain={}", facts.cluster.domain),
        format!("--bind-address={}", facts.cluster.dns_address),
        "--resolv-conf=/run/etc/resolv.conf".to_owned(),
    ]
}

fn backup(facts: Facts<'_>) -> Vec<String> {
    vec![
        kubeconfig("backup"),
        format!("--node-name={}", facts.node.name),
        format!("--every={}", facts.cluster.backup_every_s),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_metadata::SERVICE_NAMES;
    use std::collections::BTreeSet;

    fn facts(role: Role) -> (Cluster, Node) {
        let cluster = Cluster {
            name: "demo".into(),
            role,
            domain: "cluster.local".into(),
            api_names: vec![],
            api_addresses: vec![],
            pod_cidr: "10.200.0.0/16".parse().unwrap(),
            service_cidr: "10.32.0.0/24".parse().unwrap(),
            dns_address: "10.32.0.10".parse().unwrap(),
            overlay: Overlay::Vxlan,
            store: StoreEngine::Embedded,
            ntp_servers: vec![],
            metadata_allow: vec![],
            backup_every_s: 600,
            certificate_life_s: node_metadata::CERTIFICATE_LIFE_S,
            registry: None,
            components: Default::default(),
            status_page: false,
            masters: vec![],
            logs: None,
            build: Default::default(),
        };
        let node = Node {
            name: "n".into(),
            role,
            addresses: vec!["10.77.0.11".parse().unwrap()],
            external_addresses: vec![],
            api_endpoints: vec!["10.77.0.10:6443".into()],
            labels: Default::default(),
            taints: vec![],
            reserved: Default::default(),
            provider_id: None,
            await_backup: false,
            etcd_members: vec![],
            await_masters: false,
            join_etcd: false,
            data_volume: None,
            source: "nocloud".into(),
        };
        (cluster, node)
    }

    #[test]
    fn every_need_is_a_service_before_it() {
        let engines = [StoreEngine::Embedded, StoreEngine::Etcd];
        for (role, store) in
            [Role::Master, Role::Worker].into_iter().flat_map(|role| engines.map(|store| (role, store)))
        {
            let (cluster, node) = facts(role);
            let cluster = Cluster { store, ..cluster };
            let node = Node { etcd_members: node.addresses.clone(), ..node };
            let mut seen = BTreeSet::new();
            for spec in services(Facts { cluster: &cluster, node: &node }) {
                for need in &spec.needs {
                    assert!(seen.contains(need), "{} needs {need}", spec.name);
                }
                assert!(seen.insert(spec.name));
                // A member's etcd is begun by the API server's program.
                let component =
                    if spec.name.starts_with("etcd") && spec.program == CONTROL { "kube-apiserver" } else { spec.name };
                assert_eq!(spec.command[0], component, "the first argument names the component");
            }
            assert_eq!(seen.contains("etcd"), role == Role::Master && store == StoreEngine::Etcd);
        }
    }

    fn of_members(addresses: &[&str], join_etcd: bool) -> Vec<Spec> {
        let (cluster, node) = facts(Role::Master);
        let etcd_members = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let json = r#"{"name":"m","role":"master","addresses":["10.77.0.10"]}"#;
        let masters = vec![serde_json::from_str(json).unwrap()];
        let cluster = Cluster { store: StoreEngine::Etcd, masters, ..cluster };
        services(Facts { cluster: &cluster, node: &Node { etcd_members, join_etcd, ..node } })
    }

    #[test]
    fn one_of_several_members_finds_out_how_it_begins() {
        let find = |specs: &[Spec], name: &str| specs.iter().find(|spec| spec.name == name).cloned().unwrap();
        let specs = of_members(&["10.77.0.11", "10.77.0.10", "fd00::1"], false);
        let line = find(&specs, "etcd").command.join(" ");
        let begins = "kube-apiserver store member --peer-url=https://10.77.0.11:2380 --data-dir=/var/lib/kimg/etcd \
                      --begun=/run/kimg/etcd.begun --others=https://10.77.0.10:2380,https://[fd00::1]:2380 --etcd-cafile=";
        assert!(line.starts_with(begins), "{line}");
        let etcd = " -- /usr/bin/etcd --listen-client-urls=https://127.0.0.1:2379,https://10.77.0.11:2379 \
                    --advertise-client-urls=https://10.77.0.11:2379 --listen-peer-urls=https://10.77.0.11:2380 ";
        assert!(line.contains(etcd) && line.contains("--quota-backend-bytes"), "{line}");
        assert!(!line.contains("--perhaps"), "{line}");
        for given_later in ["--name", "--initial-cluster", "--initial-advertise-peer-urls"] {
            assert!(!line.contains(given_later), "{line}");
        }
        let promote = find(&specs, "etcd-member");
        assert_eq!((promote.kind, promote.needs.as_slice()), (Kind::Task, &["etcd"][..]));
        assert!(promote.command.contains(&"--etcd-server=https://127.0.0.1:2379".to_owned()), "{promote:?}");
        assert!(find(&specs, "kube-apiserver").needs.contains(&"etcd-member"), "it needs a member that votes");
        assert!(find(&of_members(&["10.77.0.11", "10.77.0.10"], true), "etcd").command.contains(&"--join".to_owned()));
        // At a provider, where the others' addresses are told later.
        let (cluster, node) = facts(Role::Master);
        let cluster = Cluster { store: StoreEngine::Etcd, ..cluster };
        let specs = services(Facts { cluster: &cluster, node: &Node { await_masters: true, ..node } });
        let line = find(&specs, "etcd").command.join(" ");
        assert!(line.contains(" --peer-url=https://10.77.0.11:2380 ") && !line.contains("--others"), "{line}");
        assert!(line.contains(" --masters=/var/lib/kimg/etcd.masters --etcd-cafile="), "{line}");
        assert!(find(&specs, "kube-apiserver").needs.contains(&"etcd-member"));
        // The first of several, before the others are there.
        let first = find(&of_members(&["10.77.0.11"], false), "etcd").command.join(" ");
        assert!(!first.contains("--others") && first.contains("--perhaps=https://10.77.0.10:2380"), "{first}");
    }

    #[test]
    fn the_only_member_stays_on_loopback() {
        let specs = of_members(&[], false);
        let etcd = specs.iter().find(|spec| spec.name == "etcd").unwrap();
        assert_eq!(etcd.program, "/usr/bin/etcd");
        assert!(etcd.command.contains(&"--initial-cluster=n=https://127.0.0.1:2380".to_owned()), "{etcd:?}");
        assert!(!etcd.command.join(" ").contains("10.77."), "{etcd:?}");
        assert!(specs.iter().all(|spec| spec.name != "etcd-member"));
    }

    #[test]
    fn every_service_s_name_is_kept_from_own_components() {
        for role in [Role::Master, Role::Worker] {
            let (cluster, node) = facts(role);
            let logs = Some(LogTarget { host: "logs.example.org".into(), port: 6514, ca: false });
            let registry = Some(Registry { size: 64 });
            let cluster = Cluster { store: StoreEngine::Etcd, registry, logs, status_page: true, ..cluster };
            let node = Node { etcd_members: node.addresses.clone(), ..node };
            for spec in services(Facts { cluster: &cluster, node: &node }) {
                assert!(SERVICE_NAMES.contains(&spec.name), "{} is missing in SERVICE_NAMES", spec.name);
            }
        }
    }

    #[test]
    fn own_components_are_nobody_and_wait_for_nothing() {
        let (cluster, node) = facts(Role::Worker);
        let plain = services(Facts { cluster: &cluster, node: &node }).len();
        let component = OwnComponent { args: vec!["--flag".into()], memory: 64 << 20 };
        let names = ["agent", "kubelet", "../agent", "init"];
        let components = names.into_iter().map(|name| (name.to_owned(), component.clone())).collect();
        let specs = services(Facts { cluster: &Cluster { components, ..cluster }, node: &node });
        let own = &specs[plain..];
        assert_eq!(own.iter().map(|spec| spec.name).collect::<Vec<_>>(), ["agent"]);
        assert_eq!(own[0].command, ["agent", "--flag"]);
        assert_eq!(own[0].program, "/usr/lib/kimg/components/agent");
        assert_eq!((own[0].user, own[0].memory_max), (Some(OwnComponent::user("agent")), Some(64 << 20)));
        assert!(own[0].needs.is_empty() && own[0].kind == Kind::Component);
        assert!(specs[..plain].iter().all(|spec| spec.user.is_none()), "the node's own are root");
    }

    #[test]
    fn node_ports_answer_outside_too() {
        let (cluster, node) = facts(Role::Worker);
        let inside: IpAddr = "10.77.0.11".parse().unwrap();
        let external_addresses = vec!["203.0.113.9".parse().unwrap(), inside, "2001:db8::9".parse().unwrap()];
        let line = proxy(Facts { cluster: &cluster, node: &Node { external_addresses, ..node } });
        let told: Vec<&str> = line.iter().filter_map(|word| word.strip_prefix("--node-ips=")).collect();
        assert_eq!(told, ["10.77.0.11", "203.0.113.9"]);
    }

    #[test]
    fn a_status_page_runs_where_it_is_wanted_and_within_bounds() {
        let page = |role: Role, status_page: bool| {
            let (cluster, node) = facts(role);
            let cluster = Cluster { status_page, ..cluster };
            services(Facts { cluster: &cluster, node: &node }).into_iter().find(|spec| spec.name == STATUS_SERVICE)
        };
        let spec = page(Role::Master, true).unwrap();
        assert!(spec.memory_max.is_some() && spec.oom_score == 0 && spec.program == CONTROL, "{spec:?}");
        assert!(spec.user.is_some() && !spec.command.iter().any(|word| word.contains("/run/kimg/")), "{spec:?}");
        assert!(spec.command.contains(&"--listen=0.0.0.0:10272".to_owned()), "{spec:?}");
        assert!(page(Role::Master, false).is_none() && page(Role::Worker, true).is_none());
    }

    #[test]
    fn a_registry_runs_on_the_master_and_workers_know_the_way() {
        let lines = |role: Role, registry: Option<Registry>| -> Vec<Vec<String>> {
            let (cluster, node) = facts(role);
            let cluster = Cluster { registry, ..cluster };
            services(Facts { cluster: &cluster, node: &node }).into_iter().map(|spec| spec.command).collect()
        };
        let has = |lines: &[Vec<String>], name: &str, flag: &str| {
            lines.iter().any(|line| line[0] == name && line.iter().any(|word| word == flag))
        };
        let registry = Some(Registry { size: 64 });
        assert!(has(&lines(Role::Master, registry), "cluster-registry", "--size-mib=64"));
        assert!(has(&lines(Role::Worker, registry), "api-balancer", "--also=10271"));
        assert!(!has(&lines(Role::Worker, None), "api-balancer", "--also=10271"));
        for (role, registry) in [(Role::Master, None), (Role::Worker, registry)] {
            assert!(lines(role, registry).iter().all(|line| line[0] != "cluster-registry"));
        }
    }

    #[test]
    fn logs_are_sent_where_the_cluster_says_so() {
        for role in [Role::Master, Role::Worker] {
            let shipper = |logs: Option<LogTarget>| {
                let (cluster, node) = facts(role);
                let cluster = Cluster { logs, ..cluster };
                services(Facts { cluster: &cluster, node: &node }).into_iter().find(|spec| spec.name == "log-shipper")
            };
            assert_eq!(shipper(None), None);
            let told = |ca| {
                let to = LogTarget { host: "logs.example.org".into(), port: 6514, ca };
                shipper(Some(to)).unwrap().command.join(" ")
            };
            let web = "--ca-file=/etc/ssl/certs/ca-certificates.crt";
            let expected = "log-shipper --host=logs.example.org --port=6514 CA --node-name=n --cluster=demo";
            assert_eq!(told(false), expected.replace("CA", web));
            assert_eq!(told(true), expected.replace("CA", "--ca-file=/run/kimg/config/pki/logs-ca.crt"));
        }
    }
}
