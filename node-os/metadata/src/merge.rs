//! What the image bakes, what the platform says and what user-data says become one [`Node`]. Pure.
//!
//! User-data stands above `cluster.toml`, that above what the platform says. A contradiction about who this
//! machine is ends in a [`MergeError`]: such a node joins nothing.

use crate::sources::Found;
use crate::userdata::UserData;
use crate::{Cluster, Node, NodeEntry, Reserved, Role, StoreEngine, Taint};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// A node, and the secrets that came with it.
#[derive(Debug, Clone)]
pub struct Merged {
    /// Who this machine is.
    pub node: Node,
    /// Bootstrap token.
    pub token: Option<crate::userdata::Secret>,
}

/// Why this machine cannot be a node.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum MergeError {
    /// Image and user-data disagree.
    #[error(
        "this is a {image} image, and {source_of} says that this machine is a {wanted}; boot the {wanted} image, or correct the role"
    )]
    WrongRole {
        /// The image's role.
        image: Role,
        /// The other role.
        wanted: Role,
        /// Who said so.
        source_of: &'static str,
    },
    /// A master image takes no name that `cluster.toml` does not give a master.
    #[error(
        "this is a master image, and cluster.toml has no master {name} (it has: {known}); correct the name, or boot the worker image"
    )]
    NoMaster {
        /// The name that was given.
        name: String,
        /// Those that would do.
        known: String,
    },
    /// Nothing gives a name.
    #[error("this machine has no name; set hostname in its user-data")]
    NoName,
    /// Not a DNS label.
    #[error("{0:?} cannot be a node's name; use small letters, digits and dashes, at most 63")]
    BadName(String),
    /// An address is unusable.
    #[error("node-ip {address:?} {why}")]
    BadAddress {
        /// As it was given.
        address: String,
        /// The fault and the way out.
        why: String,
    },
    /// No interface has an address.
    #[error("this machine has no address yet, and neither user-data (node-ip) nor cluster.toml gives one")]
    NoAddress,
    /// A worker needs to know its masters.
    #[error("nothing says where the API is; set api in the user-data, or give a master an address in cluster.toml")]
    NoApi,
    /// `host[:port]` is wrong.
    #[error("api {0:?} is no host or host:port")]
    BadApi(String),
    /// Several masters need to know each other.
    #[error("several masters share a store on etcd, and {0}")]
    BadMasters(String),
    /// Several masters have their data from each other.
    #[error("data-volume is for workers and a single master, and here are several: take it out of the user-data")]
    DataVolume,
    /// A taint is wrong.
    #[error("the taint {0:?} is not key[=value]:Effect with the effect NoSchedule, PreferNoSchedule or NoExecute")]
    BadTaint(String),
    /// A label is wrong.
    #[error("the label {0:?} has an invalid key or value")]
    BadLabel(String),
    /// What is reserved is no amount.
    #[error("reserved {0} is no quantity, such as 100m or 128Mi")]
    BadReserved(String),
    /// A token is wrong.
    #[error(
        "the token in user-data is not of the form abcdef.0123456789abcdef; take the line that `kimg seed` printed"
    )]
    BadToken,
}

const API_PORT: u16 = 6443;
const CONTROL_PLANE_TAINT: &str = "node-role.kubernetes.io/control-plane";

/// The name this machine will have; known before it has an address.
pub fn name_of(found: &Found, user: &UserData) -> Result<String, MergeError> {
    let given = user.hostname.as_ref().or(found.hostname.as_ref()).ok_or(MergeError::NoName)?;
    // A fully qualified name is cut: the node's name is its first label.
    let name = given.split('.').next().unwrap_or_default().to_ascii_lowercase();
    if is_label(&name) { Ok(name) } else { Err(MergeError::BadName(given.clone())) }
}

/// The merge. `own` are the addresses that this machine's interfaces have, the first interface's first.
pub fn merge(cluster: &Cluster, found: &Found, user: &UserData, own: &[IpAddr]) -> Result<Merged, MergeError> {
    check_role(cluster.role, user.kimg.role, "its user-data")?;
    let name = name_of(found, user)?;
    let entry = cluster.masters.iter().find(|entry| entry.name == name);
    check_role(cluster.role, entry.map(|_| Role::Master), "cluster.toml")?;
    if cluster.role == Role::Master && entry.is_none() {
        let known: Vec<&str> = cluster.masters.iter().map(|entry| entry.name.as_str()).collect();
        return Err(MergeError::NoMaster { name, known: known.join(", ") });
    }
    let token = user.kimg.token.clone();
    if token.as_ref().is_some_and(|token| !is_token(&token.0)) {
        return Err(MergeError::BadToken);
    }
    let addresses = addresses(cluster, entry, user, own)?;
    let await_masters = awaits_masters(cluster, user);
    let node = Node {
        role: cluster.role,
        etcd_members: if await_masters { Vec::new() } else { etcd_members(cluster, user, addresses.first())? },
        await_masters,
        join_etcd: user.kimg.join_etcd,
        addresses,
        external_addresses: found.external_addresses.clone(),
        api_endpoints: api_endpoints(cluster, user)?,
        labels: labels(found, entry, user)?,
        taints: taints(cluster.role, entry, user)?,
        reserved: reserved(entry, user)?,
        provider_id: found.provider_id.clone(),
        await_backup: user.kimg.await_backup,
        data_volume: data_volume(cluster, user)?,
        source: found.source.clone(),
        name,
    };
    Ok(Merged { node, token })
}

fn check_role(image: Role, said: Option<Role>, source_of: &'static str) -> Result<(), MergeError> {
    match said {
        Some(wanted) if wanted != image => Err(MergeError::WrongRole { image, wanted, source_of }),
        _ => Ok(()),
    }
}

fn addresses(
    cluster: &Cluster,
    entry: Option<&NodeEntry>,
    user: &UserData,
    own: &[IpAddr],
) -> Result<Vec<IpAddr>, MergeError> {
    let given = &user.kimg.node_ip;
    let wanted: Vec<String> = if given.is_empty() {
        entry.map(|entry| entry.addresses.iter().map(IpAddr::to_string).collect()).unwrap_or_default()
    } else {
        given.clone()
    };
    if wanted.is_empty() {
        return own.first().map(|first| vec![*first]).ok_or(MergeError::NoAddress);
    }
    wanted.iter().map(|address| check_address(cluster, address, own)).collect()
}

fn check_address(cluster: &Cluster, given: &str, own: &[IpAddr]) -> Result<IpAddr, MergeError> {
    let bad = |why: String| MergeError::BadAddress { address: given.to_owned(), why };
    let address = match given.trim().parse::<IpNet>() {
        // One address of the network may be meant, or any.
        Ok(range) if range.addr() != range.network() => {
            let (one, any) = (range.addr(), range.trunc());
            return Err(bad(format!(
                "is an address and a range; write {one} for that address, or {any} for any in it"
            )));
        }
        // A provider gives out the addresses of its private network when the machine is there already.
        Ok(range) => *own.iter().find(|own| range.contains(*own)).ok_or_else(|| {
            bad(format!("holds no address of this machine's interfaces (they have: {})", listed(own)))
        })?,
        Err(_) => given
            .trim()
            .parse()
            .map_err(|_| bad("is no IP address and no range of them; correct it in the user-data".to_owned()))?,
    };
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(bad("cannot be the address of a node; give the address of its network interface".to_owned()));
    }
    for (what, range) in [("pod", cluster.pod_cidr), ("service", cluster.service_cidr)] {
        if range.contains(&address) {
            return Err(bad(format!("lies in the cluster's {what} range {range}; give the machine's own address")));
        }
    }
    if !own.contains(&address) {
        return Err(bad(format!(
            "is on none of this machine's interfaces (they have: {}); correct node-ip or the network configuration",
            listed(own)
        )));
    }
    Ok(address)
}

fn listed(own: &[IpAddr]) -> String {
    let have: Vec<String> = own.iter().map(IpAddr::to_string).collect();
    if have.is_empty() { "none".to_owned() } else { have.join(", ") }
}

fn api_endpoints(cluster: &Cluster, user: &UserData) -> Result<Vec<String>, MergeError> {
    let endpoints: Vec<String> = if user.kimg.api.is_empty() {
        cluster.api_addresses.iter().map(|address| with_port(*address)).collect()
    } else {
        user.kimg.api.iter().map(|given| endpoint(given)).collect::<Result<_, _>>()?
    };
    if endpoints.is_empty() && cluster.role == Role::Worker {
        return Err(MergeError::NoApi);
    }
    Ok(endpoints)
}

fn data_volume(cluster: &Cluster, user: &UserData) -> Result<Option<NonZeroU32>, MergeError> {
    let several = cluster.role == Role::Master && (cluster.masters.len() > 1 || user.kimg.join_etcd);
    match user.kimg.data_volume {
        Some(_) if several => Err(MergeError::DataVolume),
        told => Ok(told),
    }
}

/// Whether the other masters' addresses are told later: a provider gives them when the machines are made, and this one waits
/// for its store anyway.
fn awaits_masters(cluster: &Cluster, user: &UserData) -> bool {
    let several = cluster.role == Role::Master && cluster.store == StoreEngine::Etcd && cluster.masters.len() > 1;
    let unknown = || user.kimg.api.is_empty() && cluster.masters.iter().any(|entry| entry.addresses.is_empty());
    several && user.kimg.await_backup && !user.kimg.join_etcd && unknown()
}

/// The addresses of all masters, `own` first; none where this one is the only one, and is not told to join others.
fn etcd_members(cluster: &Cluster, user: &UserData, own: Option<&IpAddr>) -> Result<Vec<IpAddr>, MergeError> {
    let bad = |why: String| MergeError::BadMasters(why);
    let join = user.kimg.join_etcd;
    let is_member = cluster.role == Role::Master && cluster.store == StoreEngine::Etcd;
    if !is_member && join {
        return Err(bad(format!(
            "join-etcd is for those; this is a {} image with the {} store: take it out of the user-data",
            cluster.role,
            if cluster.store == StoreEngine::Etcd { "etcd" } else { "embedded" }
        )));
    }
    let Some(own) = own.filter(|_| is_member && (join || cluster.masters.len() > 1)) else { return Ok(Vec::new()) };
    let mut members = if user.kimg.api.is_empty() {
        let of_entry = |entry: &NodeEntry| {
            entry.addresses.first().copied().ok_or_else(|| {
                bad(format!(
                    "nothing says the address of {}; set api to the addresses of all masters in the user-data, or give it an \
                     address in cluster.toml",
                    entry.name
                ))
            })
        };
        cluster.masters.iter().map(of_entry).collect::<Result<Vec<_>, _>>()?
    } else {
        let address = |given: &String| {
            let address: Option<IpAddr> = given.trim().parse().ok();
            address.filter(|it| !it.is_loopback() && !it.is_unspecified() && !it.is_multicast()).ok_or_else(|| {
                bad(format!("api {given:?} is no address of one; give the bare addresses of all masters"))
            })
        };
        user.kimg.api.iter().map(address).collect::<Result<Vec<_>, _>>()?
    };
    if !members.contains(own) {
        return Err(bad(format!(
            "this one's own address {own} is not among them ({}); correct api or node-ip in the user-data",
            listed(&members)
        )));
    }
    members.retain(|member| member != own);
    members.sort();
    members.dedup();
    if join && members.is_empty() {
        return Err(bad("join-etcd needs another one's address; set api to the addresses of all masters".to_owned()));
    }
    members.insert(0, *own);
    Ok(members)
}

fn with_port(address: IpAddr) -> String {
    std::net::SocketAddr::new(address, API_PORT).to_string()
}

fn endpoint(given: &str) -> Result<String, MergeError> {
    let given = given.trim();
    if let Ok(address) = given.parse::<IpAddr>() {
        return Ok(with_port(address));
    }
    if let Ok(socket) = given.parse::<std::net::SocketAddr>() {
        return Ok(socket.to_string());
    }
    let (host, port) = given.split_once(':').unwrap_or((given, "6443"));
    let bad = || MergeError::BadApi(given.to_owned());
    let port: u16 = port.parse().map_err(|_| bad())?;
    // Digits and dots alone are a mistyped address, and no name.
    let looks_like_address = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if looks_like_address || !host.to_ascii_lowercase().split('.').all(is_label) {
        return Err(bad());
    }
    Ok(format!("{host}:{port}"))
}

/// Labels of what the platform knows, below those that somebody wrote.
fn platform_labels(found: &Found) -> BTreeMap<String, String> {
    let known = [
        ("topology.kubernetes.io/region", &found.region),
        ("topology.kubernetes.io/zone", &found.zone),
        ("node.kubernetes.io/instance-type", &found.instance_type),
    ];
    let clean = known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), label_value(value.as_deref()?)?)));
    clean.collect()
}

/// What a provider calls a thing may hold characters that a label's value must not have.
fn label_value(text: &str) -> Option<String> {
    let inner = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    let text: String = text.chars().map(|character| if inner(character) { character } else { '-' }).take(63).collect();
    let text = text.trim_matches(|character: char| !character.is_ascii_alphanumeric());
    (!text.is_empty()).then(|| text.to_owned())
}

fn labels(found: &Found, entry: Option<&NodeEntry>, user: &UserData) -> Result<BTreeMap<String, String>, MergeError> {
    let mut labels = platform_labels(found);
    labels.extend(entry.map(|entry| entry.labels.clone()).unwrap_or_default());
    labels.extend(user.kimg.labels.iter().map(|(key, value)| (key.clone(), value.to_string())));
    for (key, value) in &labels {
        if !is_qualified(key) || !is_label_value(value) {
            return Err(MergeError::BadLabel(format!("{key}={value}")));
        }
    }
    Ok(labels)
}

fn taints(role: Role, entry: Option<&NodeEntry>, user: &UserData) -> Result<Vec<Taint>, MergeError> {
    let given = entry.map(|entry| entry.taints.as_slice()).unwrap_or_default().iter().chain(&user.kimg.taints);
    let mut taints: Vec<Taint> = Vec::new();
    if role == Role::Master {
        taints.push(Taint {
            key: CONTROL_PLANE_TAINT.to_owned(),
            value: String::new(),
            effect: "NoSchedule".to_owned(),
        });
    }
    for text in given {
        let taint = taint(text)?;
        taints.retain(|other| other.key != taint.key || other.effect != taint.effect);
        taints.push(taint);
    }
    Ok(taints)
}

fn taint(text: &str) -> Result<Taint, MergeError> {
    let bad = || MergeError::BadTaint(text.to_owned());
    let (pair, effect) = text.rsplit_once(':').ok_or_else(bad)?;
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect);
    if !known || !is_qualified(key) || !is_label_value(value) {
        return Err(bad());
    }
    Ok(Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.to_owned() })
}

fn reserved(entry: Option<&NodeEntry>, user: &UserData) -> Result<Reserved, MergeError> {
    let (above, below) = (&user.kimg.reserved, entry.map(|entry| entry.reserved.clone()).unwrap_or_default());
    let one = |above: &Option<String>, below: Option<String>| match above.clone().or(below) {
        Some(text) if quantity(&text).is_none() => Err(MergeError::BadReserved(format!("{text:?}"))),
        amount => Ok(amount),
    };
    Ok(Reserved {
        cpu: one(&above.cpu, below.cpu)?,
        memory: one(&above.memory, below.memory)?,
        ephemeral_storage: one(&above.ephemeral_storage, below.ephemeral_storage)?,
    })
}

/// The value of a Kubernetes quantity in its base unit (cores, bytes).
pub fn quantity(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1.0,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        _ => return None,
    };
    digits.parse::<f64>().ok().filter(|n| *n >= 0.0 && n.is_finite()).map(|n| n * factor)
}

/// A DNS-1123 label.
fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

fn is_token(token: &str) -> bool {
    let good = |part: &str, length| {
        part.len() == length && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    token.split_once('.').is_some_and(|(id, secret)| good(id, 6) && good(secret, 16))
}

/// Whether a text is a key of labels and taints: a name, or DNS name/name.
pub fn is_qualified(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let prefix_good = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_label));
    prefix_good && !name.is_empty() && is_label_value(name)
}

/// Whether a text may be the value of a label or taint; an empty one may.
pub fn is_label_value(value: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    value.len() <= 63 && value.bytes().all(inner) && ends(value.bytes().next()) && ends(value.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Overlay, userdata};

    fn cluster(role: Role) -> Cluster {
        let master = NodeEntry {
            name: "master-1".into(),
            role: Role::Master,
            addresses: vec!["10.77.0.10".parse().unwrap()],
            labels: BTreeMap::from([("zone".into(), "a".into())]),
            taints: vec![],
            reserved: Reserved { cpu: Some("50m".into()), ..Reserved::default() },
        };
        Cluster {
            name: "demo".into(),
            role,
            domain: "cluster.local".into(),
            api_names: vec![],
            api_addresses: vec!["10.77.0.10".parse().unwrap()],
            pod_cidr: "10.200.0.0/16".parse().unwrap(),
            service_cidr: "10.32.0.0/24".parse().unwrap(),
            dns_address: "10.32.0.10".parse().unwrap(),
            overlay: Overlay::Vxlan,
            store: StoreEngine::Embedded,
            ntp_servers: vec![],
            metadata_allow: vec![],
            backup_every_s: 600,
            certificate_life_s: crate::CERTIFICATE_LIFE_S,
            registry: None,
            components: Default::default(),
            status_page: false,
            masters: vec![master],
            logs: None,
            build: Default::default(),
        }
    }

    fn run(role: Role, kimg: &str) -> Result<Merged, MergeError> {
        let user = userdata::parse(format!("#cloud-config\nkimg: {{{kimg}}}\n").as_bytes()).unwrap();
        let found =
            Found { source: "nocloud".into(), hostname: Some("worker-1.example.org".into()), ..Found::default() };
        let own: Vec<IpAddr> =
            ["10.77.0.11", "10.0.2.15", "10.200.0.1"].iter().map(|text| text.parse().unwrap()).collect();
        merge(&cluster(role), &found, &user, &own)
    }

    #[test]
    fn baked_values_stand_where_user_data_is_silent() {
        let merged = run(Role::Worker, "token: abcdef.0123456789abcdef").unwrap();
        assert_eq!(merged.node.name, "worker-1");
        assert_eq!(merged.node.addresses, ["10.77.0.11".parse::<IpAddr>().unwrap()]);
        assert_eq!(merged.node.api_endpoints, ["10.77.0.10:6443"]);
        assert!(merged.node.labels.is_empty() && merged.node.taints.is_empty());
        assert_eq!(merged.token.unwrap().0, "abcdef.0123456789abcdef");
        let user = UserData { hostname: Some("master-1".into()), ..UserData::default() };
        let own: Vec<IpAddr> = ["10.0.2.15", "10.77.0.10"].iter().map(|text| text.parse().unwrap()).collect();
        let node = merge(&cluster(Role::Master), &Found::default(), &user, &own).unwrap().node;
        assert_eq!((node.addresses.as_slice(), node.labels["zone"].as_str()), (&own[1..], "a"));
        assert_eq!(node.reserved.cpu.as_deref(), Some("50m"));
    }

    #[test]
    fn a_worker_is_no_master_by_its_name_and_a_master_no_worker() {
        let named = |role, name: &str| {
            let found = Found { hostname: Some(name.into()), ..Found::default() };
            merge(&cluster(role), &found, &UserData::default(), &["10.77.0.10".parse().unwrap()])
        };
        let wrong = MergeError::WrongRole { image: Role::Worker, wanted: Role::Master, source_of: "cluster.toml" };
        assert_eq!(named(Role::Worker, "Master-1.example.org").unwrap_err(), wrong, "also by a name that is cut");
        let error = named(Role::Master, "worker-1").unwrap_err().to_string();
        assert!(error.contains("cluster.toml has no master worker-1 (it has: master-1)"), "{error}");
        assert_eq!(named(Role::Worker, "worker-9").unwrap().node.role, Role::Worker);
    }

    #[test]
    fn a_master_is_told_to_wait_for_a_backup() {
        assert!(run(Role::Worker, "await-backup: true").unwrap().node.await_backup);
        assert!(!run(Role::Worker, "role: worker").unwrap().node.await_backup);
        assert!(userdata::parse(b"#cloud-config\nkimg: {await-backup: soon}\n").is_err());
    }

    #[test]
    fn a_worker_and_a_single_master_have_a_data_volume() {
        assert_eq!(run(Role::Worker, "data-volume: 20").unwrap().node.data_volume, NonZeroU32::new(20));
        assert_eq!(run(Role::Worker, "role: worker").unwrap().node.data_volume, None);
        for wrong in ["/dev/vdb", "true", "0", "-1", "5000000000"] {
            assert!(userdata::parse(format!("#cloud-config\nkimg: {{data-volume: {wrong}}}\n").as_bytes()).is_err());
        }
        let user = userdata::parse(b"#cloud-config\nkimg: {data-volume: 20}\n").unwrap();
        let found = Found { hostname: Some("master-1".into()), ..Found::default() };
        let told = |cluster: &Cluster| merge(cluster, &found, &user, &["10.77.0.10".parse().unwrap()]);
        let mut cluster = cluster(Role::Master);
        assert_eq!(told(&cluster).unwrap().node.data_volume, NonZeroU32::new(20));
        cluster.masters.push(NodeEntry { name: "master-2".into(), ..cluster.masters[0].clone() });
        assert_eq!(told(&cluster).unwrap_err(), MergeError::DataVolume);
    }

    /// The master 10.77.0.10, of so many whose addresses cluster.toml gives, and its user-data.
    fn members(masters: u8, store: StoreEngine, kimg: &str) -> Result<Node, MergeError> {
        let user = format!("#cloud-config\nhostname: master-1\nkimg: {{{kimg}}}\n");
        let user = userdata::parse(user.as_bytes()).unwrap();
        let one = cluster(Role::Master).masters.remove(0);
        let masters = (0..masters).map(|number| NodeEntry {
            name: format!("master-{}", number + 1),
            addresses: vec![[10, 77, 0, 10 + number].into()],
            ..one.clone()
        });
        let cluster = Cluster { store, masters: masters.collect(), ..cluster(Role::Master) };
        merge(&cluster, &Found::default(), &user, &["10.77.0.10".parse().unwrap()]).map(|merged| merged.node)
    }

    #[test]
    fn several_masters_on_etcd_know_each_other() {
        let three = "10.77.0.10 10.77.0.11 10.77.0.12";
        for (masters, kimg, known) in [
            (1, "", ""),
            (1, "api: kube.example.org", ""),
            (1, "api: [10.77.0.11, 10.77.0.10], join-etcd: true", "10.77.0.10 10.77.0.11"),
            (3, "", three),
            (3, "api: [10.77.0.12, 10.77.0.10, 10.77.0.11, 10.77.0.11]", three),
            (3, "api: 10.77.0.10", "10.77.0.10"),
            (3, "api: [10.77.0.10, 'fd00::1'], join-etcd: true", "10.77.0.10 fd00::1"),
        ] {
            let node = members(masters, StoreEngine::Etcd, kimg).unwrap();
            let said: Vec<String> = node.etcd_members.iter().map(IpAddr::to_string).collect();
            assert_eq!((said.join(" "), node.join_etcd), (known.to_owned(), kimg.contains("join-etcd")), "{kimg}");
        }
        assert!(members(3, StoreEngine::Embedded, "api: kube.example.org").unwrap().etcd_members.is_empty());
        assert!(run(Role::Worker, "api: kube.example.org").unwrap().node.etcd_members.is_empty());
    }

    #[test]
    fn masters_that_cannot_know_each_other_wait() {
        for (store, kimg, why) in [
            (StoreEngine::Etcd, "api: [10.77.0.10, kube.example.org]", "\"kube.example.org\" is no address"),
            (StoreEngine::Etcd, "api: ['10.77.0.10:6443']", "is no address"),
            (StoreEngine::Etcd, "api: [10.77.0.10, 127.0.0.1]", "\"127.0.0.1\" is no address"),
            (StoreEngine::Etcd, "api: [10.77.0.11]", "own address 10.77.0.10 is not among them (10.77.0.11)"),
            (StoreEngine::Etcd, "api: 10.77.0.10, join-etcd: true", "join-etcd needs another"),
            (StoreEngine::Embedded, "join-etcd: true", "a master image with the embedded store"),
        ] {
            let error = members(3, store, kimg).unwrap_err().to_string();
            assert!(error.contains(why), "{kimg}: {error}");
        }
        let error = run(Role::Worker, "join-etcd: true").unwrap_err().to_string();
        assert!(error.contains("this is a worker image"), "{error}");
        let mut nameless = Cluster { store: StoreEngine::Etcd, ..cluster(Role::Master) };
        nameless.masters.push(NodeEntry { name: "master-2".into(), addresses: vec![], ..nameless.masters[0].clone() });
        let user = UserData { hostname: Some("master-1".into()), ..UserData::default() };
        let error =
            merge(&nameless, &Found::default(), &user, &["10.77.0.10".parse().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("nothing says the address of master-2"), "{error}");
        assert!(userdata::parse(b"#cloud-config\nkimg: {join-etcd: soon}\n").is_err());
        // At a provider the operator tells them, once all machines are there.
        let own = ["10.77.0.10".parse().unwrap()];
        let told_later = |cluster: &Cluster, kimg: &str| {
            let user = format!("#cloud-config\nhostname: master-1\nkimg: {{await-backup: true, {kimg}}}\n");
            merge(cluster, &Found::default(), &userdata::parse(user.as_bytes()).unwrap(), &own)
                .map(|merged| merged.node)
        };
        let node = told_later(&nameless, "node-ip: 10.77.0.0/24").unwrap();
        assert!(node.await_masters && node.await_backup && node.etcd_members.is_empty(), "{node:?}");
        let node = told_later(&nameless, "api: 10.77.0.10").unwrap();
        assert!(!node.await_masters && node.etcd_members == own, "{node:?}");
        let one = Cluster { store: StoreEngine::Etcd, ..cluster(Role::Master) };
        let embedded = Cluster { store: StoreEngine::Embedded, ..nameless };
        assert!([one, embedded].iter().all(|cluster| !told_later(cluster, "").unwrap().await_masters));
    }

    #[test]
    fn what_the_platform_knows_reaches_the_node() {
        let user = userdata::parse(b"#cloud-config\nkimg: {labels: {topology.kubernetes.io/region: mine}}\n").unwrap();
        let found = Found {
            source: "ec2".into(),
            hostname: Some("worker-1".into()),
            provider_id: Some("aws:///eu-central-1a/i-1".into()),
            region: Some("eu-central-1".into()),
            zone: Some("nova: zone 1".into()),
            instance_type: Some("///".into()),
            external_addresses: vec!["203.0.113.9".parse().unwrap()],
            ..Found::default()
        };
        let own = ["10.77.0.11".parse().unwrap()];
        let node = merge(&cluster(Role::Worker), &found, &user, &own).unwrap().node;
        assert_eq!(node.provider_id.as_deref(), Some("aws:///eu-central-1a/i-1"));
        assert_eq!(node.labels["topology.kubernetes.io/region"], "mine", "the operator stands above the platform");
        assert_eq!(node.labels["topology.kubernetes.io/zone"], "nova--zone-1");
        assert!(!node.labels.contains_key("node.kubernetes.io/instance-type"), "nothing is left of it");
        assert_eq!(node.external_addresses, ["203.0.113.9".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn user_data_wins() {
        let node = run(Role::Worker, "node-ip: [10.0.2.15], api: [kube.example.org, '1.2.3.4:443'], labels: {zone: b}, taints: ['a=b:NoExecute'], reserved: {memory: 96Mi}").unwrap().node;
        assert_eq!(node.addresses, ["10.0.2.15".parse::<IpAddr>().unwrap()]);
        let in_range = run(Role::Worker, "node-ip: 10.0.0.0/16").unwrap().node;
        assert_eq!(in_range.addresses, node.addresses, "what a private network gave");
        assert_eq!(node.api_endpoints, ["kube.example.org:6443", "1.2.3.4:443"]);
        assert_eq!(node.labels["zone"], "b");
        assert_eq!(node.reserved, Reserved { memory: Some("96Mi".into()), ..Reserved::default() });
        assert_eq!(node.taints, [Taint { key: "a".into(), value: "b".into(), effect: "NoExecute".into() }]);
    }

    #[test]
    fn every_contradiction_is_named() {
        let cases = [
            (
                Role::Worker,
                "role: master",
                "this is a worker image, and its user-data says that this machine is a master",
            ),
            (Role::Master, "", "this is a master image, and cluster.toml has no master worker-1"),
            (Role::Worker, "node-ip: 10.77.0", "is no IP address"),
            (
                Role::Worker,
                "node-ip: 10.77.0.11/24",
                "write 10.77.0.11 for that address, or 10.77.0.0/24 for any in it",
            ),
            (Role::Worker, "node-ip: 10.99.0.0/16", "holds no address of this machine's interfaces (they have: "),
            (Role::Worker, "node-ip: 127.0.0.1", "cannot be the address"),
            (Role::Worker, "node-ip: 10.200.0.1", "pod range"),
            (Role::Worker, "node-ip: 10.77.0.99", "on none of this machine's interfaces"),
            (Role::Worker, "api: ['10.0.0.300']", "is no host"),
            (Role::Worker, "api: ['host:x']", "is no host"),
            (Role::Worker, "taints: [a]", "taint"),
            (Role::Worker, "taints: ['a:Never']", "taint"),
            (Role::Worker, "labels: {'a b': c}", "label"),
            (Role::Worker, "reserved: {cpu: lots}", "reserved \"lots\" is no quantity"),
            (Role::Worker, "reserved: {cpu: '-1'}", "is no quantity"),
            (Role::Worker, "token: nonsense", "token"),
        ];
        for (role, kimg, wanted) in cases {
            let error = run(role, kimg).unwrap_err().to_string();
            assert!(error.contains(wanted), "{kimg}: {error:?} should contain {wanted:?}");
        }
    }

    #[test]
    fn masters_carry_the_control_plane_taint() {
        let user = UserData { hostname: Some("master-1".into()), ..UserData::default() };
        let own = ["10.77.0.10".parse().unwrap()];
        let node = merge(&cluster(Role::Master), &Found::default(), &user, &own).unwrap().node;
        assert_eq!(node.taints[0].key, CONTROL_PLANE_TAINT);
        let nameless = merge(&cluster(Role::Master), &Found::default(), &UserData::default(), &own);
        assert_eq!(nameless.unwrap_err(), MergeError::NoName);
    }
}
