//! From the fragment to settings that hold: checks and defaults.

use super::baked::{MOST_KERNEL_ARGS, check_package, image_path, is_below, kernel_word};
use super::components;
use super::fragment::{
    BackupFragment, Fragment, ImageFragment, LocalFragment, NodeFragment, RegistryFragment, VmFragment,
};
use super::labels::{check_label, check_taint, check_user_data};
use super::settings::{
    Api, Arch, BackupTo, ImageOptions, Local, NodeSettings, Packages, SecretsForm, Settings, VmSize,
};
use super::value::{
    Fault, address, choice, cidr, dns_label, dns_name, fault, files, is_dns_label, is_dns_name, moment, number,
    optional_fault, overlap, url,
};
use ipnet::IpNet;
use node_api::release::CLUSTER_TOML;
use node_metadata::merge::quantity;
use node_metadata::{CERTIFICATE_LIFE_S, NodeEntry, Overlay, Registry, Reserved, Role, StoreEngine};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Validates a fragment and fills in the defaults. The second part is what keeps the cluster from running as VMs on
/// this machine, where it may still run elsewhere.
pub(super) fn resolve(f: Fragment, dir: &Path) -> Result<(Settings, Option<Fault>), Fault> {
    if let Some(version) = &f.version
        && *version.get_ref() != i64::from(CLUSTER_TOML)
    {
        return Err(fault(
            version,
            "version",
            format!("this kimg reads version {CLUSTER_TOML} only; write version = {CLUSTER_TOML}"),
        ));
    }
    dns_label(&f.name, "name")?;
    let domain = match &f.domain {
        Some(domain) => {
            dns_name(domain, "domain")?;
            domain.get_ref().clone()
        }
        None => "cluster.local".to_string(),
    };
    choice(&f.arch, "arch", &[("amd64", Arch::Amd64)], Arch::Amd64)?;
    let network = cidr(&f.local.network, "local.network", "10.77.0.0/24")?;
    let pod_cidr = cidr(&f.pod_cidr, "pod-cidr", "10.200.0.0/16")?;
    let service_cidr = cidr(&f.service_cidr, "service-cidr", "10.32.0.0/24")?;
    check_cidrs(&f, pod_cidr, service_cidr, network)?;
    let dns_address = dns_address(&f, service_cidr)?;
    let IpNet::V4(network) = network else {
        return Err(optional_fault(&f.local.network, "local.network", "must be an IPv4 network"));
    };
    let nodes = resolve_nodes(&f.nodes, network)?;
    check_user_data(&f.nodes, &nodes)?;
    check_nodes_outside(&f, &nodes, pod_cidr, service_cidr)?;
    let store = choice(
        &f.store,
        "store",
        &[("embedded", StoreEngine::Embedded), ("etcd", StoreEngine::Etcd)],
        StoreEngine::Embedded,
    )?;
    check_masters(&f, &nodes, store)?;
    let (local, provider) =
        (resolve_local(&f.local, network)?, super::provider::resolve(&f, [pod_cidr, service_cidr])?);
    let registry = registry(&f.registry)?;
    let (logs, logs_ca) = super::logs::resolve(&f.logs, dir)?.unzip();
    let local_fault = check_local(&f, &nodes, [pod_cidr, service_cidr], registry, &local).err();
    let settings = Settings {
        dir: dir.to_path_buf(),
        text: String::new(),
        name: f.name.get_ref().clone(),
        domain,
        arch: Arch::Amd64,
        pod_cidr,
        service_cidr,
        dns_address,
        overlay: choice(
            &f.overlay,
            "overlay",
            &[("vxlan", Overlay::Vxlan), ("host-gw", Overlay::HostGw)],
            Overlay::Vxlan,
        )?,
        store,
        ntp_servers: ntp_servers(f.ntp_servers)?,
        secrets: choice(
            &f.secrets,
            "secrets",
            &[("plain", SecretsForm::Plain), ("sealed", SecretsForm::Sealed)],
            SecretsForm::Sealed,
        )?,
        manifests: manifests(dir, &f.manifests)?,
        metadata_allow: service_accounts(f.metadata.allow)?,
        certificate_life_s: number(
            &f.certificate_life,
            "certificate-life",
            if provider.is_some() { CERTIFICATE_SECONDS } else { 60..CERTIFICATE_SECONDS.end },
            CERTIFICATE_LIFE_S,
        )?,
        backup_every_s: number(&f.backup.every, "backup.every", BACKUP_SECONDS, 600)?.into(),
        backup_to: backup_to(dir, &f.backup)?,
        backup_keep_days: number(&f.backup.keep, "backup.keep", BACKUP_DAYS, 30)?.into(),
        registry,
        logs,
        logs_ca: logs_ca.flatten(),
        status_page: f.status.page.unwrap_or(false),
        api: resolve_api(&f.api)?,
        packages: Packages {
            mirror: url(f.packages.mirror, "packages.mirror")?,
            security_mirror: url(f.packages.security_mirror, "packages.security-mirror")?,
            snapshot: moment(f.packages.snapshot, "packages.snapshot")?,
        },
        secure_boot: f.image.secure_boot.unwrap_or(false),
        master_image: image_options(dir, (Role::Master, store), &f.image, &f.image.master)?,
        worker_image: image_options(dir, (Role::Worker, store), &f.image, &f.image.worker)?,
        provider,
        nodes,
        local,
    };
    Ok((settings, local_fault))
}

fn check_cidrs(f: &Fragment, pods: IpNet, services: IpNet, local: IpNet) -> Result<(), Fault> {
    for (field, range, at, example) in
        [("pod-cidr", pods, &f.pod_cidr, "10.200.0.0/16"), ("service-cidr", services, &f.service_cidr, "10.32.0.0/24")]
    {
        if range.addr().is_ipv6() {
            let message = format!(
                "{range} is IPv6; pods and services have IPv4 addresses, so write an IPv4 range, e.g. {example}"
            );
            return Err(optional_fault(at, field, &message));
        }
    }
    // This machine's own, one link's, and several machines' at once (RFC 6890): no packet to them is routed.
    let unfit = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"].map(str::parse::<IpNet>);
    for (field, range, at) in [("pod-cidr", pods, &f.pod_cidr), ("service-cidr", services, &f.service_cidr)] {
        if let Some(unfit) = unfit.iter().flatten().find(|unfit| overlap(**unfit, range)) {
            let message = format!("{range} has addresses of {unfit}, which are not routed; write a private range");
            return Err(optional_fault(at, field, &message));
        }
    }
    check_room(f, pods)?;
    if services.max_prefix_len() - services.prefix_len() < 4 {
        let message = format!("{services} is too small for services; write /28 or wider");
        return Err(optional_fault(&f.service_cidr, "service-cidr", &message));
    }
    // The field that was written is the one to blame, a default never is.
    let pairs = [
        ("pod-cidr", pods, &f.pod_cidr, "service-cidr", services, &f.service_cidr),
        ("pod-cidr", pods, &f.pod_cidr, "local.network", local, &f.local.network),
        ("service-cidr", services, &f.service_cidr, "local.network", local, &f.local.network),
    ];
    for (name_a, a, at_a, name_b, b, at_b) in pairs {
        if overlap(a, b) {
            let (field, at, other, range) =
                if at_b.is_some() { (name_b, at_b, name_a, a) } else { (name_a, at_a, name_b, b) };
            let message = format!("overlaps {other} {range}; choose a range that shares no address with it");
            return Err(optional_fault(at, field, &message));
        }
    }
    Ok(())
}

/// Prefix of the part of the pod CIDR that each node takes: the controller-manager's --node-cidr-mask-size.
const NODE_PREFIX: u8 = 24;

fn check_room(f: &Fragment, pods: IpNet) -> Result<(), Fault> {
    let nodes = f.nodes.len();
    let room = NODE_PREFIX.checked_sub(pods.prefix_len()).map_or(0, |bits| 1usize << bits);
    if nodes <= room {
        return Ok(());
    }
    let bits = u8::try_from(nodes.next_power_of_two().trailing_zeros()).unwrap_or(NODE_PREFIX);
    let message = format!(
        "{pods} has room for {room} node{}, as each takes a /{NODE_PREFIX}, and there are {nodes}; write a /{} or wider",
        if room == 1 { "" } else { "s" },
        NODE_PREFIX.saturating_sub(bits)
    );
    match &f.pod_cidr {
        Some(written) => Err(fault(written, "pod-cidr", message)),
        // A default is not to blame: the nodes are too many for it.
        None => Err(Fault {
            span: f.nodes.get(room).map(Spanned::span),
            field: "nodes".into(),
            message: format!("pod-cidr {message}"),
        }),
    }
}

fn dns_address(f: &Fragment, services: IpNet) -> Result<IpAddr, Fault> {
    let default = nth_address(services, 10);
    let Some(written) = &f.dns_address else {
        return Ok(default);
    };
    let address = address(written, "dns-address")?;
    if !services.contains(&address) {
        let message =
            format!("{address} lies outside the service range {services}; write an address inside it, e.g. {default}");
        return Err(fault(written, "dns-address", message));
    }
    let taken = [services.network(), nth_address(services, 1), services.broadcast()];
    if taken.contains(&address) {
        let message =
            format!("{address} is taken (first, last and the API's own service address are); write e.g. {default}");
        return Err(fault(written, "dns-address", message));
    }
    Ok(address)
}

/// One master, or as many as etcd can lose some of.
fn check_masters(f: &Fragment, nodes: &[NodeSettings], store: StoreEngine) -> Result<(), Fault> {
    let masters: Vec<_> = f.nodes.iter().zip(nodes).filter(|(_, node)| node.entry.role == Role::Master).collect();
    let [_, (second, _), ..] = masters.as_slice() else { return Ok(()) };
    let at = f.provider.as_ref().map(|provider| provider.name.get_ref().as_str());
    if let Some(at) = at.filter(|at| ["aws", "gcp"].contains(at)) {
        let message = format!(
            "this would be another master, and at {at} kimg keeps the address of one only; keep one, or choose another provider"
        );
        return Err(fault(second, "nodes", message));
    }
    if store == StoreEngine::Embedded {
        let message = "this would be another master, and the embedded store is one master's alone; keep one, or write \
                       store = \"etcd\" for three (`kimg scale masters 3` moves a cluster there)";
        return Err(fault(second, "nodes", message));
    }
    if ![3, 5].contains(&masters.len()) {
        let (at, _) = masters.get(5).or(masters.last()).unwrap_or(&masters[0]);
        let message = format!(
            "with this one there are {} masters; etcd goes on while more than half of them are there, so write 1, 3 or 5",
            masters.len()
        );
        return Err(fault(at, "nodes", message));
    }
    if f.registry.is_some() {
        let message = "this would be another master, and the cluster's own registry is on the disk of one; keep one, or \
                       remove [registry]";
        return Err(fault(second, "nodes", message));
    }
    // A provider gives them.
    if let Some((at, node)) = masters.iter().find(|(_, node)| node.unaddressed && f.provider.is_none()) {
        let message = format!(
            "masters that share etcd know each other by their addresses; write this one's own, e.g. addresses = [\"{}\"]",
            node.local_address
        );
        return Err(fault(at, "nodes", message));
    }
    Ok(())
}

/// The `n`-th address of a range, `n` small.
pub fn nth_address(net: IpNet, n: u8) -> IpAddr {
    match net {
        IpNet::V4(net) => IpAddr::V4((u32::from(net.network()) + u32::from(n)).into()),
        IpNet::V6(net) => IpAddr::V6((u128::from(net.network()) + u128::from(n)).into()),
    }
}

fn manifests(dir: &Path, paths: &[Spanned<PathBuf>]) -> Result<Vec<PathBuf>, Fault> {
    files(dir, paths, "manifests", false)
}

fn ntp_servers(written: Option<Vec<Spanned<String>>>) -> Result<Vec<String>, Fault> {
    let Some(written) = written else {
        return Ok((0..2).map(|i| format!("{i}.debian.pool.ntp.org")).collect());
    };
    for server in &written {
        let text = server.get_ref();
        if text.parse::<IpAddr>().is_err() && !is_dns_name(&text.to_lowercase()) {
            let message = format!(
                "`{text}` is no time server; write a host name or an address, without a port, e.g. 0.debian.pool.ntp.org"
            );
            return Err(fault(server, "ntp-servers", message));
        }
    }
    Ok(written.into_iter().map(Spanned::into_inner).collect())
}

fn service_accounts(written: Vec<Spanned<String>>) -> Result<Vec<String>, Fault> {
    for account in &written {
        let text = account.get_ref();
        if !text.split_once('/').is_some_and(|(namespace, name)| is_dns_label(namespace) && is_dns_name(name)) {
            let message = format!("`{text}` is no service account; write NAMESPACE/NAME, e.g. kube-system/csi-node");
            return Err(fault(account, "metadata.allow", message));
        }
    }
    Ok(written.into_iter().map(Spanned::into_inner).collect())
}

/// Seconds that certificates of nodes live. Shorter-lived ones, for tests, begin less than five minutes before they are
/// issued, and `kimg pki revoke` has to know that.
const CERTIFICATE_SECONDS: Range<i64> = 3000..CERTIFICATE_LIFE_S as i64 + 1;
/// Seconds between two backups.
const BACKUP_SECONDS: Range<i64> = 10..86_400 + 1;
/// Days of which copies stay outside the cluster.
const BACKUP_DAYS: Range<i64> = 1..3650 + 1;

fn backup_to(dir: &Path, f: &BackupFragment) -> Result<Option<BackupTo>, Fault> {
    let bucket = f.to.as_ref().and_then(|to| to.get_ref().strip_prefix("s3://"));
    let of_bucket = [("backup.endpoint", &f.endpoint), ("backup.region", &f.region)];
    let stray = of_bucket.into_iter().find_map(|(field, text)| Some((field, text.as_ref()?)));
    if let (None, Some((field, text))) = (bucket, stray) {
        let message = "it is a bucket's; write to = \"s3://BUCKET/PREFIX\", or remove this line";
        return Err(fault(text, field, message));
    }
    let Some(to) = &f.to else {
        return match &f.keep {
            Some(keep) => Err(fault(keep, "backup.keep", "nothing is kept without `to`; add it, or remove this line")),
            None => Ok(None),
        };
    };
    let Some(bucket) = bucket else {
        let text = to.get_ref();
        if text.is_empty() || text.contains("://") {
            let message = format!("`{text}` is neither a folder nor s3://BUCKET/PREFIX");
            return Err(fault(to, "backup.to", message));
        }
        let path = dir.join(text);
        let own = |name: &&str| path.components().eq(dir.join(name).components());
        if ["", "backups", "build", "logs", "run", "secrets"].iter().any(own) {
            let message = format!("`{text}` is kimg's own folder; name another one");
            return Err(fault(to, "backup.to", message));
        }
        return Ok(Some(BackupTo::Folder(path)));
    };
    let (name, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
    let fine = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if name.is_empty() || !name.chars().all(fine) || !prefix.chars().all(|c| fine(c) || c == '/') {
        // What was written there may be a key.
        let message =
            "this is no bucket with a prefix; write e.g. s3://my-bucket/my-cluster, and leave keys to the environment";
        return Err(fault(to, "backup.to", message));
    }
    let prefix = match prefix.trim_matches('/') {
        "" => String::new(),
        prefix => format!("{prefix}/"),
    };
    let plain = |text: &Option<Spanned<String>>| text.as_ref().map(|text| text.get_ref().clone());
    let (endpoint, region) = (url(f.endpoint.clone(), "backup.endpoint")?, plain(&f.region));
    Ok(Some(BackupTo::Bucket { name: name.to_owned(), prefix, endpoint, region }))
}

/// Sizes of a registry, MiB.
const REGISTRY_SIZES: Range<i64> = 64..(1 << 20) + 1;
/// What a registry leaves of its master's disk, MiB.
const BESIDE_REGISTRY: u32 = 1024;

fn registry(written: &Option<RegistryFragment>) -> Result<Option<Registry>, Fault> {
    let Some(written) = written else { return Ok(None) };
    Ok(Some(Registry { size: number(&written.size, "registry.size", REGISTRY_SIZES, 1024)? }))
}

fn resolve_api(f: &super::fragment::ApiFragment) -> Result<Api, Fault> {
    for name in &f.names {
        dns_name(name, "api.names")?;
    }
    Ok(Api {
        names: f.names.iter().map(|n| n.get_ref().clone()).collect(),
        addresses: f.addresses.iter().map(|a| address(a, "api.addresses")).collect::<Result<_, _>>()?,
    })
}

/// What both images have, then what the role's has besides.
fn image_options(
    dir: &Path,
    (role, store): (Role, StoreEngine),
    common: &super::fragment::ImagesFragment,
    own: &ImageFragment,
) -> Result<ImageOptions, Fault> {
    let own_field = format!("image.{role}");
    let mut options = ImageOptions::default();
    for (field, words) in [("image", &common.kernel_args), (own_field.as_str(), &own.kernel_args)] {
        for word in words {
            kernel_word(word, &format!("{field}.kernel-args"))?;
            options.kernel_args.push(word.get_ref().clone());
            if options.kernel_args.join(" ").len() > MOST_KERNEL_ARGS {
                let message = format!(
                    "with it there are more than {MOST_KERNEL_ARGS} characters, and the kernel would not read all"
                );
                return Err(fault(word, &format!("{field}.kernel-args"), message));
            }
        }
    }
    for (field, names) in [("image", &common.modules), (own_field.as_str(), &own.modules)] {
        for name in names {
            let text = name.get_ref();
            if text.is_empty() || !text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
                let message = format!("`{text}` is no kernel module; write its name alone, e.g. \"dm-crypt\"");
                return Err(fault(name, &format!("{field}.modules"), message));
            }
            options.modules.push(text.clone());
        }
    }
    for (field, images) in [("image", &common.images), (own_field.as_str(), &own.images)] {
        options.images.extend(files(dir, images, &format!("{field}.images"), true)?);
    }
    for (field, packages) in [("image", &common.packages), (own_field.as_str(), &own.packages)] {
        for package in packages {
            check_package(package, &format!("{field}.packages"))?;
            options.packages.push(package.get_ref().clone());
        }
    }
    for (field, written) in [("image", &common.files), (own_field.as_str(), &own.files)] {
        let field = format!("{field}.files");
        for (path, source) in written {
            image_path(path, (role, store), &field)?;
            if options.files.iter().any(|(known, _)| known == path.get_ref()) {
                let message = format!("{} stands under [image.files] too; remove one of the two", path.get_ref());
                return Err(fault(path, &field, message));
            }
            let crosses = |known: &str| is_below(known, path.get_ref()) || is_below(path.get_ref(), known);
            if let Some((known, _)) = options.files.iter().find(|(known, _)| crosses(known)) {
                let message = format!("{} and {known} are both files; one cannot lie below the other", path.get_ref());
                return Err(fault(path, &field, message));
            }
            let full = dir.join(source.get_ref());
            if !full.is_file() {
                let message =
                    format!("there is no file {}; paths are relative to the cluster's folder", full.display());
                return Err(fault(source, &field, message));
            }
            let beneath = |folder: &Path| Some(full.canonicalize().ok()?.starts_with(folder.canonicalize().ok()?));
            if beneath(&dir.join("secrets")) == Some(true) {
                let message = "it lies in secrets/, and whoever has the image would have it too; name another file";
                return Err(fault(source, &field, message));
            }
            options.files.push((path.get_ref().clone(), full));
        }
    }
    for (field, written) in [("image", &common.components), (own_field.as_str(), &own.components)] {
        components::add(dir, &format!("{field}.components"), written, &mut options)?;
    }
    Ok(options)
}

/// A node's VM has its folder beside this one's (`local::stock`).
pub(crate) const RESERVED_NAME: &str = "images";

fn resolve_nodes(fragments: &[Spanned<NodeFragment>], network: ipnet::Ipv4Net) -> Result<Vec<NodeSettings>, Fault> {
    let mut names: BTreeMap<&str, ()> = BTreeMap::new();
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut nodes = Vec::new();
    for spanned in fragments {
        let node = spanned.get_ref();
        dns_label(&node.name, "nodes.name")?;
        if node.name.get_ref() == RESERVED_NAME {
            let message =
                format!("`{RESERVED_NAME}` is the folder where kimg keeps the images of VMs; take another name");
            return Err(fault(&node.name, "nodes.name", message));
        }
        if names.insert(node.name.get_ref(), ()).is_some() {
            let message = format!("two nodes are called `{}`; rename one of them", node.name.get_ref());
            return Err(fault(&node.name, "nodes.name", message));
        }
        for written in &node.addresses {
            let address = address(written, "nodes.addresses")?;
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                let message = format!("{address} is no address at which others reach a machine; write the node's own");
                return Err(fault(written, "nodes.addresses", message));
            }
            if address == network.network() || address == network.broadcast() {
                let message = format!(
                    "{address} is the network's own or the broadcast address of local.network {network}; give {} another",
                    node.name.get_ref()
                );
                return Err(fault(written, "nodes.addresses", message));
            }
            if let Some(owner) = owners.insert(address, node.name.get_ref().clone()) {
                let message = format!("{address} is already {owner}'s; give each node its own");
                return Err(fault(written, "nodes.addresses", message));
            }
        }
        nodes.push((spanned, resolve_node(node)?));
    }
    if !nodes.iter().any(|(_, n)| n.role == Role::Master) {
        return Err(Fault {
            span: fragments.first().map(Spanned::span),
            field: "nodes".to_string(),
            message: "no node is a master; add one, e.g. { name = \"master-1\", role = \"master\" }".to_string(),
        });
    }
    let taken: Vec<IpAddr> = owners.keys().copied().collect();
    let mut free = network.hosts().skip(9).filter(|host| !taken.contains(&IpAddr::V4(*host)));
    nodes.into_iter().map(|(spanned, entry)| local_node(spanned, entry, network, &mut free)).collect()
}

/// Gives a node without an address the next free one of the local network.
fn local_node(
    at: &Spanned<NodeFragment>,
    mut entry: NodeEntry,
    network: ipnet::Ipv4Net,
    free: &mut impl Iterator<Item = Ipv4Addr>,
) -> Result<NodeSettings, Fault> {
    let written = entry.addresses.iter().find_map(|a| match a {
        IpAddr::V4(v4) if network.contains(v4) => Some(*v4),
        _ => None,
    });
    let local_address = match written.or_else(|| free.next()) {
        Some(address) => address,
        None => {
            let message = format!("{network} has no address left for this node; write a wider local.network");
            return Err(fault(at, "nodes", message));
        }
    };
    let unaddressed = entry.addresses.is_empty();
    if unaddressed {
        entry.addresses.push(IpAddr::V4(local_address));
    }
    // `[provider]` says whether it can have one, and how large.
    let data_gb = at.get_ref().data_gb.as_ref().and_then(|gb| u32::try_from(*gb.get_ref()).ok());
    let spare = is_spare(at.get_ref(), entry.role)?;
    Ok(NodeSettings { entry, local_address, unaddressed, data_gb, spare })
}

/// Whether a roll removes it at its end, and with it nothing that was to stay.
fn is_spare(node: &NodeFragment, role: Role) -> Result<bool, Fault> {
    let Some(spare) = node.spare.as_ref().filter(|spare| *spare.get_ref()) else { return Ok(false) };
    if role == Role::Master {
        return Err(fault(spare, "nodes.spare", "is a worker's: a roll removes it at its end; remove this line"));
    }
    match &node.data_gb {
        Some(gb) => {
            let message = "a spare has no data volume, which would stay when a roll removes it; remove this line";
            Err(fault(gb, "nodes.data-gb", message))
        }
        None => Ok(true),
    }
}

fn resolve_node(node: &NodeFragment) -> Result<NodeEntry, Fault> {
    let role = choice(
        &Some(node.role.clone()),
        "nodes.role",
        &[("master", Role::Master), ("worker", Role::Worker)],
        Role::Worker,
    )?;
    for (key, value) in &node.labels {
        check_label(key, value, role)?;
    }
    for taint in &node.taints {
        check_taint(taint)?;
    }
    let amount = |q: &Option<Spanned<String>>, field: &str| -> Result<Option<String>, Fault> {
        let Some(q) = q else { return Ok(None) };
        let text = q.get_ref();
        match quantity(text) {
            Some(_) => Ok(Some(text.clone())),
            None => Err(fault(q, field, format!("`{text}` is no quantity; write e.g. \"100m\" or \"128Mi\""))),
        }
    };
    Ok(NodeEntry {
        name: node.name.get_ref().clone(),
        role,
        addresses: node.addresses.iter().map(|a| address(a, "nodes.addresses")).collect::<Result<_, _>>()?,
        labels: node.labels.iter().map(|(k, v)| (k.get_ref().clone(), v.get_ref().clone())).collect(),
        taints: node.taints.iter().map(|t| t.get_ref().clone()).collect(),
        reserved: Reserved {
            cpu: amount(&node.reserved.cpu, "nodes.reserved.cpu")?,
            memory: amount(&node.reserved.memory, "nodes.reserved.memory")?,
            ephemeral_storage: amount(&node.reserved.ephemeral_storage, "nodes.reserved.ephemeral-storage")?,
        },
    })
}

/// The network behind QEMU's NAT, which every local VM's second interface is in.
const NAT: ipnet::Ipv4Net = ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);

/// What VMs on this machine need besides: each node's first address is its VM's, and its memory suffices.
fn check_local(
    f: &Fragment,
    nodes: &[NodeSettings],
    ranges: [IpNet; 2],
    registry: Option<Registry>,
    local: &Local,
) -> Result<(), Fault> {
    if let Some(Registry { size }) = registry
        && local.master.disk_mib < size.saturating_add(BESIDE_REGISTRY)
    {
        let message = format!(
            "{size} MiB do not fit on the master's disk of {} MiB, of which {BESIDE_REGISTRY} are left to the store, \
             the logs and the image; write less, or raise local.master.disk",
            local.master.disk_mib
        );
        return Err(optional_fault(&f.registry.as_ref().and_then(|r| r.size.clone()), "registry.size", &message));
    }
    for (spanned, node) in f.nodes.iter().zip(nodes) {
        let written = spanned.get_ref();
        let name = &node.entry.name;
        if let Some(first) = written.addresses.first()
            && node.entry.addresses.first() != Some(&IpAddr::V4(node.local_address))
        {
            let message = format!(
                "{name}'s first address {} lies outside local.network {}, and its VM would not have it; \
                 write one of that network, or leave it out",
                first.get_ref(),
                local.network
            );
            return Err(fault(first, "nodes.addresses", message));
        }
        let size = if node.entry.role == Role::Master { local.master } else { local.worker };
        let memory = f64::from(size.memory_mib) * 1024.0 * 1024.0;
        if let Some(reserved) = &written.reserved.memory
            && quantity(reserved.get_ref()).is_some_and(|bytes| bytes >= memory)
        {
            let message = format!(
                "{} is all of the {} MiB that {name} has, and no pod would run there; reserve less, or raise \
                 local.{}.memory",
                reserved.get_ref(),
                size.memory_mib,
                node.entry.role
            );
            return Err(fault(reserved, "nodes.reserved.memory", message));
        }
    }
    let written = [("pod-cidr", &f.pod_cidr, ranges[0]), ("service-cidr", &f.service_cidr, ranges[1])];
    for (field, at, range) in written.into_iter().chain([("local.network", &f.local.network, IpNet::V4(local.network))])
    {
        if overlap(range, IpNet::V4(NAT)) {
            let message = format!("{range} overlaps {NAT}, which QEMU gives its VMs; choose another range");
            return Err(optional_fault(at, field, &message));
        }
    }
    Ok(())
}

fn check_nodes_outside(f: &Fragment, nodes: &[NodeSettings], pods: IpNet, services: IpNet) -> Result<(), Fault> {
    for (spanned, node) in f.nodes.iter().zip(nodes) {
        for address in &node.entry.addresses {
            for (name, range) in [("pod-cidr", pods), ("service-cidr", services)] {
                if range.contains(address) {
                    let message = format!(
                        "{}'s address {address} lies inside {name} {range}; give it another or change {name}",
                        node.entry.name
                    );
                    return Err(fault(spanned, "nodes.addresses", message));
                }
            }
        }
    }
    Ok(())
}

fn resolve_local(f: &LocalFragment, network: ipnet::Ipv4Net) -> Result<Local, Fault> {
    let accel = choice(&f.accel, "local.accel", &[("auto", None), ("kvm", Some("kvm")), ("tcg", Some("tcg"))], None)?;
    let node_ports = f
        .node_ports
        .iter()
        .map(|port| {
            u16::try_from(*port.get_ref())
                .ok()
                .filter(|p| (30000..=32767).contains(p))
                .ok_or_else(|| fault(port, "local.node-ports", "a NodePort lies between 30000 and 32767"))
        })
        .collect::<Result<_, _>>()?;
    let spare_ports = match &f.spare_ports {
        None => 0,
        Some(written) => u8::try_from(*written.get_ref())
            .ok()
            .filter(|count| *count <= 16)
            .ok_or_else(|| fault(written, "local.spare-ports", "write 0 to 16"))?,
    };
    Ok(Local {
        network,
        accel: accel.map(str::to_string),
        uefi: choice(&f.firmware, "local.firmware", &[("bios", false), ("uefi", true)], false)?,
        check_source: f.check_source.unwrap_or(false),
        spare_ports,
        node_ports,
        master: vm_size(&f.master, "local.master", VmSize { memory_mib: 512, cpus: 1, disk_mib: 2048 })?,
        worker: vm_size(&f.worker, "local.worker", VmSize { memory_mib: 768, cpus: 1, disk_mib: 8192 })?,
        fault: None,
    })
}

fn vm_size(f: &VmFragment, field: &str, default: VmSize) -> Result<VmSize, Fault> {
    let number = |written, key: &str, range, default| number(written, &format!("{field}.{key}"), range, default);
    Ok(VmSize {
        memory_mib: number(&f.memory, "memory", 128..1_048_577, default.memory_mib)?,
        cpus: number(&f.cpus, "cpus", 1..257, default.cpus)?,
        disk_mib: number(&f.disk, "disk", 512..16_777_217, default.disk_mib)?,
    })
}
