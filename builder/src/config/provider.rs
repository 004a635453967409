//! `[provider]`: where a cluster's machines are, and which.

use super::fragment::{Fragment, NodeFragment, ProviderFragment};
use super::settings::{Provider, ProviderName, Proxmox, PublicAddress};
use super::value::{Fault, choice, cidr, fault, number, optional_fault, overlap};
use ipnet::{IpNet, Ipv4Net};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use toml::Spanned;

/// A machine is called `NODE.CLUSTER`, which is a host name at the providers.
const MACHINE_NAME: usize = 63;
/// A tag of Linode's has 50 characters, of which `kimg-cluster.` and `kimg-node.` take some.
const LINODE_CLUSTER: usize = 37;
const LINODE_NODE: usize = 40;
/// A name of Google's has 63 characters: `kimg-CLUSTER-CA-worker-inside` is the longest of those with a cluster's.
const GCP_CLUSTER: usize = 31;
/// The second disk of a master is called `NODE--CLUSTER--2`, which is longer than `NODE.CLUSTER`.
const GCP_MORE: usize = 4;

/// A volume is called `kimg-CA-NODE`, and such a name has 63 characters at Google.
const VOLUME_NODE: usize = 45;
/// Stands for a GB of a data volume among the prices of types of machine.
const VOLUME: &str = "data-gb";

/// Checks `[provider]`, and what the rest of the file must be where it stands.
pub(super) fn resolve(f: &Fragment, ranges: [IpNet; 2]) -> Result<Option<Provider>, Fault> {
    let Some(written) = &f.provider else {
        if let Some(typed) = f.nodes.iter().find_map(|node| node.get_ref().r#type.as_ref()) {
            return Err(fault(typed, "nodes.type", "is a machine's at a provider, and there is no [provider]"));
        }
        if let Some(gb) = f.nodes.iter().find_map(|node| node.get_ref().data_gb.as_ref()) {
            let message =
                "is of a volume at a provider, and there is no [provider]: a VM here keeps its data on its disk";
            return Err(fault(gb, "nodes.data-gb", message));
        }
        return Ok(None);
    };
    if let Some(form) = f.secrets.as_ref().filter(|form| form.get_ref() == "plain") {
        let message = "keys in clear are for local VMs only; remove this line, and the images of [provider] seal them";
        return Err(fault(form, "secrets", message));
    }
    let known = [
        ProviderName::Hetzner,
        ProviderName::DigitalOcean,
        ProviderName::Linode,
        ProviderName::Vultr,
        ProviderName::OpenStack,
        ProviderName::Gcp,
        ProviderName::Aws,
        ProviderName::Proxmox,
    ]
    .map(|one| (one.as_str(), one));
    let name = choice(&Some(written.name.clone()), "provider.name", &known, ProviderName::Hetzner)?;
    let network = cidr(&written.network, "provider.network", "10.80.0.0/20")?;
    let network = match network {
        IpNet::V4(net) if (16..=24).contains(&net.prefix_len()) && net.network().is_private() => net,
        // It is there already, whatever it is.
        IpNet::V4(net) if name == ProviderName::Proxmox && (8..=29).contains(&net.prefix_len()) => net,
        _ => {
            let message = format!("{network} is no private IPv4 network of /16 to /24; write e.g. 10.80.0.0/20");
            return Err(optional_fault(&written.network, "provider.network", &message));
        }
    };
    for (what, range) in [("pod-cidr", ranges[0]), ("service-cidr", ranges[1])] {
        if overlap(range, IpNet::V4(network)) {
            let message = format!("{network} overlaps {what} {range}; choose a range that shares no address with it");
            return Err(optional_fault(&written.network, "provider.network", &message));
        }
    }
    check_bucket(name, written)?;
    check_own(name, written)?;
    if name == ProviderName::Linode {
        check_linode(f, network, written)?;
    }
    let proxmox = proxmox(name, written, network)?;
    match (&written.disk_gb, name) {
        (_, ProviderName::Gcp) => check_gcp(f)?,
        (_, ProviderName::Aws | ProviderName::Proxmox) => {}
        (Some(disk), _) => {
            let message = format!("a type of {} has its disk; remove this line", name.as_str());
            return Err(fault(disk, "provider.disk-gb", message));
        }
        (None, _) => {}
    }
    check_volumes(name, f)?;
    Ok(Some(Provider {
        name,
        region: word(name, &written.region, "provider.region")?,
        types: types(name, f, written)?,
        budget: match &written.budget {
            Some(_) => Some(number(&written.budget, "provider.budget", 1..1_000_001, 0)?),
            None => None,
        },
        prices: prices(name, written)?,
        volume_price: volume_price(name, written)?,
        currency: plain(&written.currency),
        network,
        disk_gb: number(&written.disk_gb, "provider.disk-gb", 10..65_537, 25)?,
        external_network: plain(&written.external_network),
        public_address: choice(
            &written.public_address,
            "provider.public-address",
            &[("floating-ip", PublicAddress::FloatingIp), ("port", PublicAddress::Port)],
            PublicAddress::FloatingIp,
        )?,
        subnet: written.subnet.as_ref().map(|subnet| word(name, subnet, "provider.subnet")).transpose()?,
        bucket: plain(&written.bucket),
        endpoint: plain(&written.endpoint),
        bucket_region: plain(&written.bucket_region),
        proxmox,
    }))
}

fn plain(written: &Option<Spanned<String>>) -> Option<String> {
    written.as_ref().map(|text| text.get_ref().clone())
}

fn check_bucket(name: ProviderName, written: &ProviderFragment) -> Result<(), Fault> {
    match name {
        ProviderName::DigitalOcean | ProviderName::Vultr if written.bucket.is_none() => {
            let message = format!(
                "{} fetches images from a bucket; add bucket = \"NAME\" (and endpoint = \"https://…\")",
                name.as_str()
            );
            Err(fault(&written.name, "provider.bucket", message))
        }
        ProviderName::Hetzner
        | ProviderName::Linode
        | ProviderName::OpenStack
        | ProviderName::Aws
        | ProviderName::Proxmox => {
            let fields = [
                ("provider.bucket", &written.bucket),
                ("provider.endpoint", &written.endpoint),
                ("provider.bucket-region", &written.bucket_region),
            ];
            match fields.into_iter().find_map(|(field, text)| Some((field, text.as_ref()?))) {
                Some((field, text)) => {
                    let message = format!("{} takes images from no bucket; remove this line", name.as_str());
                    Err(fault(text, field, &message))
                }
                None => Ok(()),
            }
        }
        ProviderName::Gcp => {
            let fields = [("provider.endpoint", &written.endpoint), ("provider.bucket-region", &written.bucket_region)];
            match fields.into_iter().find_map(|(field, text)| Some((field, text.as_ref()?))) {
                Some((field, text)) => {
                    Err(fault(text, field, "gcp's bucket is one of Cloud Storage, found by its name; remove this line"))
                }
                None if written.bucket.is_none() => {
                    let message = "gcp makes images of an archive in a bucket of Cloud Storage; add bucket = \"NAME\"";
                    Err(fault(&written.name, "provider.bucket", message))
                }
                None => Ok(()),
            }
        }
        ProviderName::DigitalOcean | ProviderName::Vultr => Ok(()),
    }
}

/// Google's names begin with a letter, have no dot, and end early.
fn check_gcp(f: &Fragment) -> Result<(), Fault> {
    let cluster = f.name.get_ref().len();
    let names = f
        .nodes
        .iter()
        .map(|node| ("nodes.name", &node.get_ref().name, MACHINE_NAME.saturating_sub(1 + cluster + GCP_MORE)));
    for (field, name, most) in [("name", &f.name, GCP_CLUSTER)].into_iter().chain(names) {
        let text = name.get_ref();
        if text.len() > most || text.contains("--") || !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            let message = format!(
                "`{text}` becomes a part of names of gcp's: write at most {most} characters, a letter first, and no `-` \
                 behind another"
            );
            return Err(fault(name, field, &message));
        }
    }
    Ok(())
}

/// What only one provider has: OpenStack's clouds several kinds of public address, and AWS' accounts networks of others.
fn check_own(name: ProviderName, written: &ProviderFragment) -> Result<(), Fault> {
    let (openstack, aws) = ((ProviderName::OpenStack, "OpenStack's"), (ProviderName::Aws, "AWS'"));
    let fields = [
        (openstack, "provider.external-network", &written.external_network),
        (openstack, "provider.public-address", &written.public_address),
        (aws, "provider.subnet", &written.subnet),
    ];
    let others = fields.into_iter().filter(|((owner, _), ..)| *owner != name);
    match others.filter_map(|((_, whose), field, text)| Some((whose, field, text.as_ref()?))).next() {
        Some((whose, field, text)) => {
            Err(fault(text, field, format!("is {whose}, and {} has no choice of it; remove this line", name.as_str())))
        }
        None => Ok(()),
    }
}

/// What only Proxmox has, whose machines are on a network that is there.
fn proxmox(name: ProviderName, written: &ProviderFragment, network: Ipv4Net) -> Result<Option<Proxmox>, Fault> {
    let own = match (&written.proxmox, name) {
        (None, ProviderName::Proxmox) => {
            let message = "nothing says where machines are; add [provider.proxmox] with storage and addresses";
            return Err(fault(&written.name, "provider.proxmox", message));
        }
        (None, _) => return Ok(None),
        (Some(own), ProviderName::Proxmox) => own.get_ref(),
        (Some(own), _) => {
            let message = format!("is of no use at {}; remove it", name.as_str());
            return Err(fault(own, "provider.proxmox", message));
        }
    };
    if written.network.is_none() {
        let message = "nothing says which network the bridge is on; add e.g. network = \"192.168.1.0/24\"";
        return Err(fault(&written.name, "provider.network", message));
    }
    if let Some(budget) = &written.budget {
        let message = "a machine at proxmox costs nothing by the month; remove this line";
        return Err(fault(budget, "provider.budget", message));
    }
    let named = |text: &Spanned<String>, field: &str| match text.get_ref() {
        known if !known.is_empty() && known.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) => {
            Ok(known.clone())
        }
        other => Err(fault(text, field, format!("`{other}` is no name; it has letters, digits, -, _ and . alone"))),
    };
    let or = |text: &Option<Spanned<String>>, field: &str, default: &str| {
        text.as_ref().map_or(Ok(default.to_string()), |text| named(text, field))
    };
    let inside = |text: &str| {
        let usable = |at: &Ipv4Addr| network.contains(at) && *at != network.network() && *at != network.broadcast();
        text.trim().parse().ok().filter(usable)
    };
    let range = own.addresses.get_ref();
    let range = range.split_once('-').and_then(|(first, last)| Some((inside(first)?, inside(last)?)));
    let Some((first, last)) = range.filter(|(first, last)| first <= last) else {
        let message = format!(
            "`{}` is no range of addresses in {network}; write FIRST-LAST, of addresses that nobody else takes",
            own.addresses.get_ref()
        );
        return Err(fault(&own.addresses, "provider.proxmox.addresses", message));
    };
    let gateway = match &own.gateway {
        None => network.hosts().next().unwrap_or(first),
        Some(text) => inside(text.get_ref()).ok_or_else(|| {
            fault(text, "provider.proxmox.gateway", format!("`{}` is no address in {network}", text.get_ref()))
        })?,
    };
    let server = |text: &Spanned<String>| {
        text.get_ref()
            .parse()
            .map_err(|_| fault(text, "provider.proxmox.nameservers", format!("`{}` is no address", text.get_ref())))
    };
    let mut nameservers = own.nameservers.iter().map(server).collect::<Result<Vec<IpAddr>, Fault>>()?;
    if nameservers.is_empty() {
        nameservers.push(gateway.into());
    }
    Ok(Some(Proxmox {
        storage: named(&own.storage, "provider.proxmox.storage")?,
        image_storage: or(&own.image_storage, "provider.proxmox.image-storage", "local")?,
        bridge: or(&own.bridge, "provider.proxmox.bridge", "vmbr0")?,
        addresses: first..=last,
        gateway,
        nameservers,
    }))
}

/// Which nodes have a data volume, and whether they can.
fn check_volumes(name: ProviderName, f: &Fragment) -> Result<(), Fault> {
    let masters = f.nodes.iter().filter(|node| node.get_ref().role.get_ref() == "master").count();
    for node in f.nodes.iter().map(Spanned::get_ref) {
        let Some(gb) = &node.data_gb else { continue };
        if node.role.get_ref() == "master" && masters > 1 {
            let message =
                "is a worker's or a single master's: several have their data from each other; remove this line";
            return Err(fault(gb, "nodes.data-gb", message));
        }
        let range = name.volume_gb();
        number(&node.data_gb, "nodes.data-gb", i64::from(*range.start())..i64::from(*range.end()) + 1, 0)?;
        if node.name.get_ref().len() > VOLUME_NODE {
            let message = format!(
                "`{}` becomes a part of its volume's name; write at most {VOLUME_NODE} characters",
                node.name.get_ref()
            );
            return Err(fault(&node.name, "nodes.name", message));
        }
    }
    Ok(())
}

/// What a month of a GB of a data volume costs, where the provider does not say it.
fn volume_price(name: ProviderName, written: &ProviderFragment) -> Result<Option<f64>, Fault> {
    let Some(price) = written.prices.get(VOLUME) else { return Ok(None) };
    if name.tells_volume_price() {
        let message = match name {
            ProviderName::Proxmox => "a volume at proxmox costs nothing by the month; remove this line".to_string(),
            _ => format!("{} says itself what a volume costs; remove this line", name.as_str()),
        };
        return Err(fault(price, "provider.prices", message));
    }
    match *price.get_ref() {
        amount if (0.0001..1e6).contains(&amount) => Ok(Some(amount)),
        amount => {
            let message = format!("{amount} is no price of a GB; write what it costs a month, or nothing");
            Err(fault(price, "provider.prices", message))
        }
    }
}

/// Prices in hundredths, where the provider does not say them.
fn prices(name: ProviderName, written: &ProviderFragment) -> Result<BTreeMap<String, u64>, Fault> {
    let of_types = || written.prices.iter().filter(|(size, _)| size.as_str() != VOLUME);
    let first = of_types().map(|(_, price)| price).next();
    if name.tells_prices() {
        let message = match name {
            ProviderName::Proxmox => "a machine at proxmox costs nothing by the month; remove this line".to_string(),
            _ => format!("{} says itself what machines cost; remove this line", name.as_str()),
        };
        if let Some(currency) = &written.currency {
            return Err(fault(currency, "provider.currency", &message));
        }
        if let Some(price) = first {
            return Err(fault(price, "provider.prices", message));
        }
    }
    let any = if name.tells_prices() { None } else { written.prices.values().next() };
    if let Some(price) = any.filter(|_| written.currency.is_none()) {
        return Err(fault(price, "provider.prices", "nothing says in which currency; add e.g. currency = \"EUR\""));
    }
    let price = |(size, price): (&String, &Spanned<f64>)| match price.get_ref() {
        // `as` keeps within bounds.
        amount if (0.01..1e9).contains(amount) => Ok((size.clone(), (amount * 100.0).round() as u64)),
        amount => {
            let message = format!("{amount} is no price of {size}; write what a month costs, or nothing");
            Err(fault(price, "provider.prices", message))
        }
    };
    of_types().map(price).collect()
}

/// Linode's labels and tags are short, and its data centres have a private network of their own.
fn check_linode(f: &Fragment, network: ipnet::Ipv4Net, written: &ProviderFragment) -> Result<(), Fault> {
    let names = f.nodes.iter().map(|node| ("nodes.name", &node.get_ref().name, LINODE_NODE));
    for (field, name, most) in [("name", &f.name, LINODE_CLUSTER)].into_iter().chain(names) {
        let text = name.get_ref();
        if text.len() > most || text.contains("--") {
            let message = format!(
                "`{text}` becomes a label and a tag of linode's: write at most {most} characters, and no `-` behind another"
            );
            return Err(fault(name, field, &message));
        }
    }
    let taken = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(192, 168, 128, 0), 17);
    if overlap(IpNet::V4(taken), IpNet::V4(network)) {
        let message = format!("{network} overlaps {taken}, which linode has for itself; write e.g. 10.80.0.0/20");
        return Err(optional_fault(&written.network, "provider.network", &message));
    }
    Ok(())
}

/// Each node's type of machine, and whether it can be a machine there at all.
fn types(provider: ProviderName, f: &Fragment, written: &ProviderFragment) -> Result<BTreeMap<String, String>, Fault> {
    let mut types = BTreeMap::new();
    for spanned in &f.nodes {
        let node: &NodeFragment = spanned.get_ref();
        let name = node.name.get_ref();
        if name.len() + 1 + f.name.get_ref().len() > MACHINE_NAME {
            let message = format!(
                "its machine would be called {name}.{}, which has more than {MACHINE_NAME} characters; shorten one of the two",
                f.name.get_ref()
            );
            return Err(fault(&node.name, "nodes.name", message));
        }
        if let Some(address) = node.addresses.first() {
            let message = "the provider of [provider] gives its machines their addresses; remove `addresses`";
            return Err(fault(address, "nodes.addresses", message));
        }
        let of_role = if node.role.get_ref() == "master" {
            ("provider.master-type", &written.master_type)
        } else {
            ("provider.worker-type", &written.worker_type)
        };
        let given = [("nodes.type", &node.r#type), of_role, ("provider.type", &written.r#type)];
        let Some((field, found)) = given.into_iter().find_map(|(field, text)| Some((field, text.as_ref()?))) else {
            let message = format!("nothing says which type of machine {name} is; add e.g. type = \"cx23\"");
            return Err(fault(&written.name, "provider.type", message));
        };
        if provider == ProviderName::Proxmox && Proxmox::size(found.get_ref()).is_none() {
            let message = format!(
                "`{}` is no type of machine at proxmox; write cores and memory, e.g. \"2c-4g\" or \"1c-768m\"",
                found.get_ref()
            );
            return Err(fault(found, field, message));
        }
        types.insert(name.clone(), word(provider, found, field)?);
    }
    Ok(types)
}

/// A name of the provider's: it goes into addresses of its API, but for OpenStack's, whose names are each cloud's own, and
/// AWS', whose types have a dot.
fn word(provider: ProviderName, text: &Spanned<String>, field: &str) -> Result<String, Fault> {
    let value = text.get_ref();
    let own = |c: char| match provider {
        ProviderName::OpenStack => c.is_ascii_uppercase() || "._".contains(c),
        ProviderName::Aws => c == '.' && !["provider.region", "provider.subnet"].contains(&field),
        // A node is a host.
        ProviderName::Proxmox => c.is_ascii_uppercase(),
        _ => false,
    };
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || own(c);
    if value.is_empty() || value.len() > 63 || !value.chars().all(fine) {
        let more = match provider {
            ProviderName::OpenStack => ", capitals, `.`, `_`",
            ProviderName::Aws if own('.') => ", `.`",
            ProviderName::Proxmox => ", capitals",
            _ => "",
        };
        let message = format!("`{value}` is no name of a provider's; write lower-case letters, digits{more} and `-`");
        return Err(fault(text, field, message));
    }
    Ok(value.clone())
}
