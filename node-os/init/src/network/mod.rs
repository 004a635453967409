//! The node's own network: interfaces by the plan of the network configuration, DHCP, DNS servers, host name.

mod advertised;
pub mod dhcp;
pub mod dhcp6;
mod files;
mod links;
mod made;
#[cfg(test)]
mod tests;
pub mod wire;
pub mod wire6;

pub use files::write_etc;
pub use links::{Links, Nic};

use advertised::Advertised;
use anyhow::{Context, Result};
use ipnet::IpNet;
use node_metadata::network_config::{Dhcp6, LinkKind, NetworkPlan, NicPlan};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// How long the first answer of a DHCP server is waited for before the boot goes on without.
const FIRST_LEASE: Duration = Duration::from_secs(15);

/// How long the other interfaces' answers are waited for after the first.
const OTHER_LEASES: Duration = Duration::from_secs(3);

/// Metadata servers are on the link of one of the first cards.
const MOST_CARDS: usize = 4;

/// An interface whose first lease is waited for, and the end at which it is heard of.
type FirstLease = (String, tokio::sync::oneshot::Receiver<()>);

/// What the network knows of itself.
#[derive(Debug)]
pub struct Network {
    links: Links,
    /// DNS servers that the configuration names.
    configured_dns: RefCell<Vec<IpAddr>>,
    search: RefCell<Vec<String>>,
    /// DNS servers that DHCP named, by interface.
    dhcp_dns: RefCell<BTreeMap<String, Vec<IpAddr>>>,
    /// DNS servers that routers advertise.
    advertised: RefCell<Advertised>,
    clients: RefCell<BTreeMap<String, tokio::task::JoinHandle<()>>>,
    /// Bonds, bridges and VLANs that were made by the plan, the first made first.
    made: RefCell<Vec<Nic>>,
}

impl Network {
    /// Opens netlink and sets the loopback up.
    pub async fn open() -> Result<Rc<Network>> {
        let links = Links::open()?;
        links.up("lo").await?;
        Network::over(links)
    }

    fn over(links: Links) -> Result<Rc<Network>> {
        let network = Rc::new(Network {
            links,
            configured_dns: RefCell::default(),
            search: RefCell::default(),
            dhcp_dns: RefCell::default(),
            advertised: RefCell::default(),
            clients: RefCell::default(),
            made: RefCell::default(),
        });
        tokio::task::spawn_local(advertised::listen(advertised::open()?, Rc::downgrade(&network)));
        Ok(network)
    }

    /// Brings the interfaces to the plan; waits a bounded time for the first leases.
    /// Faults of single interfaces do not stop the others and come back as sentences.
    pub async fn apply(self: &Rc<Self>, plan: &NetworkPlan) -> Result<Vec<String>> {
        *self.configured_dns.borrow_mut() = plan.dns.clone();
        *self.search.borrow_mut() = plan.search.clone();
        let faults = self.apply_links(plan).await?;
        self.write_resolv_conf()?;
        Ok(faults)
    }

    async fn apply_links(self: &Rc<Self>, plan: &NetworkPlan) -> Result<Vec<String>> {
        let nics = self.links.hardware().await?;
        let mut faults = Vec::new();
        let mut waiting = Vec::new();
        let mut taken = Vec::new();
        // What lies below another interface stands before it in the plan, and is known here by its id.
        let mut known: BTreeMap<String, Nic> = BTreeMap::new();
        for wanted in &plan.nics {
            let found = match self.find_or_make(wanted, &nics, &taken, &known).await {
                Ok(found) => found,
                Err(error) => {
                    faults.push(format!("interface {}: {error:#}", wanted.id));
                    continue;
                }
            };
            if found.is_empty() && !wanted.optional {
                faults.push(format!("no interface is {}; it has: {}", describe(wanted), list(&nics)));
            }
            for nic in found {
                taken.push(nic.index);
                known.entry(wanted.id.clone()).or_insert_with(|| nic.clone());
                match self.configure(&nic, wanted).await {
                    Ok(firsts) => waiting.extend(firsts),
                    Err(error) => faults.push(format!("interface {}: {error:#}", nic.name)),
                }
            }
        }
        faults.extend(first_leases(waiting).await);
        Ok(faults)
    }

    async fn find_or_make(
        &self,
        wanted: &NicPlan,
        nics: &[Nic],
        taken: &[u32],
        known: &BTreeMap<String, Nic>,
    ) -> Result<Vec<Nic>> {
        if wanted.kind == LinkKind::Hardware {
            let free = nics.iter().filter(|nic| !taken.contains(&nic.index) && matches(wanted, nic));
            return Ok(free.cloned().collect());
        }
        let nic = made::make(&self.links, wanted, known).await?;
        self.made.borrow_mut().retain(|other| other.name != nic.name);
        self.made.borrow_mut().push(nic.clone());
        Ok(vec![nic])
    }

    /// The ends at which the first leases are heard of come back.
    async fn configure(self: &Rc<Self>, nic: &Nic, wanted: &NicPlan) -> Result<Vec<FirstLease>> {
        let name = match &wanted.set_name {
            Some(name) if *name != nic.name => self.links.rename(nic, name).await.map(|()| name.clone())?,
            _ => nic.name.clone(),
        };
        if let Some(mtu) = wanted.mtu {
            self.links.set_mtu(nic.index, mtu).await?;
        }
        links::accept_advertisements(&name, wanted.accept_ra)?;
        self.advertised.borrow_mut().heed(nic.index, wanted.accept_ra != Some(false));
        self.links.up_index(nic.index).await.with_context(|| format!("cannot set {name} up"))?;
        for address in &wanted.addresses {
            self.links.add_address(nic.index, *address).await?;
        }
        for route in &wanted.routes {
            self.links.add_route(nic.index, route).await?;
        }
        let nic = Nic { name, ..nic.clone() };
        let mut waiting = Vec::new();
        if wanted.dhcp4 {
            waiting.extend(self.start_dhcp4(&nic, wanted));
        }
        if let Some(kind) = wanted.dhcp6 {
            self.start_dhcp6(&nic, kind, wanted);
        }
        if wanted.optional {
            waiting.clear();
        }
        Ok(waiting)
    }

    fn start_dhcp4(self: &Rc<Self>, nic: &Nic, wanted: &NicPlan) -> Option<FirstLease> {
        if self.clients.borrow().contains_key(&nic.name) {
            return None;
        }
        let (tell, first) = tokio::sync::oneshot::channel();
        let client = dhcp::Client { interface: nic.name.clone(), index: nic.index, mac: nic.mac, plan: wanted.clone() };
        let handle = tokio::task::spawn_local(client.run(self.clone(), tell));
        self.clients.borrow_mut().insert(nic.name.clone(), handle);
        Some((nic.name.clone(), first))
    }

    /// The boot does not wait for it: it can begin only once the interface has its own link-local address.
    fn start_dhcp6(self: &Rc<Self>, nic: &Nic, kind: Dhcp6, wanted: &NicPlan) {
        let key = format!("{}/6", nic.name);
        if self.clients.borrow().contains_key(&key) {
            return;
        }
        let client = dhcp6::Client { nic: nic.clone(), kind, use_dns: wanted.dhcp6_dns };
        let handle = tokio::task::spawn_local(client.run(self.clone()));
        self.clients.borrow_mut().insert(key, handle);
    }

    /// A link-local address on the card of that number, so that a server on its link can be asked; `None` when there
    /// are not so many. One card at a time: with this network on several of them the kernel would choose one of its own.
    /// What comes back is for [`Network::take_back`].
    pub async fn lend_link_local(&self, number: usize) -> Result<Option<(u32, IpNet)>> {
        let nics = self.links.hardware().await?;
        if number == 0 {
            for nic in &nics {
                self.links.up_index(nic.index).await.with_context(|| format!("cannot set {} up", nic.name))?;
            }
            links::wait_for_carrier(&nics).await;
        }
        let Some(nic) = nics.get(number).filter(|_| number < MOST_CARDS) else { return Ok(None) };
        let address = links::link_local_of(nic.mac);
        self.links.add_address(nic.index, address).await?;
        Ok(Some((nic.index, address)))
    }

    /// Removes an address that was lent.
    pub async fn take_back(&self, (index, address): (u32, IpNet)) {
        if let Err(error) = self.links.remove_address(index, address).await {
            tracing::warn!("the address {address} stays: {error:#}");
        }
    }

    /// Ends all DHCP clients, so that better metadata can start from a clean network. What routers have said stays: they
    /// are not asked again.
    pub async fn reset(&self) -> Result<()> {
        for (_, client) in std::mem::take(&mut *self.clients.borrow_mut()) {
            client.abort();
        }
        self.dhcp_dns.borrow_mut().clear();
        for nic in self.links.hardware().await? {
            self.links.flush(nic.index).await?;
        }
        let made = std::mem::take(&mut *self.made.borrow_mut());
        for nic in made.iter().rev() {
            self.links.remove_link(&nic.name).await?;
            self.advertised.borrow_mut().heed(nic.index, false);
        }
        Ok(())
    }

    /// Addresses of this machine beside loopback and link-local ones, in the order of the interfaces.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>> {
        let made: Vec<u32> = self.made.borrow().iter().map(|nic| nic.index).collect();
        self.links.addresses(&made).await
    }

    /// Netlink for others.
    pub fn links(&self) -> &Links {
        &self.links
    }

    fn set_dhcp_dns(&self, interface: &str, servers: Vec<IpAddr>) -> Result<()> {
        self.change_dns(|network| drop(network.dhcp_dns.borrow_mut().insert(interface.to_owned(), servers)))
    }

    /// Writes down the servers if `change` has made them others.
    fn change_dns(&self, change: impl FnOnce(&Network)) -> Result<()> {
        let old = self.dns_servers();
        change(self);
        if old == self.dns_servers() { Ok(()) } else { self.write_resolv_conf() }
    }

    /// Those of the configuration first, then DHCP's, then the routers' (RFC 8106, 5.3.1).
    fn dns_servers(&self) -> Vec<IpAddr> {
        let mut servers = self.configured_dns.borrow().clone();
        let (dhcp, advertised) = (self.dhcp_dns.borrow(), self.advertised.borrow());
        for server in dhcp.values().flatten().copied().chain(advertised.servers().map(IpAddr::V6)) {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
        servers
    }

    fn write_resolv_conf(&self) -> Result<()> {
        files::write_resolv_conf(&self.dns_servers(), &self.search.borrow())
    }
}

/// Waits for the first answer of a DHCP server, and a little for those of the other interfaces.
async fn first_leases(waiting: Vec<FirstLease>) -> Vec<String> {
    let mut deadline = tokio::time::Instant::now() + FIRST_LEASE;
    let mut silent: Vec<String> = waiting.iter().map(|(name, _)| name.clone()).collect();
    let mut leases: futures::stream::FuturesUnordered<_> =
        waiting.into_iter().map(|(name, first)| async move { first.await.ok().map(|()| name) }).collect();
    while let Ok(Some(lease)) = tokio::time::timeout_at(deadline, futures::StreamExt::next(&mut leases)).await {
        if let Some(name) = lease {
            silent.retain(|other| *other != name);
            deadline = deadline.min(tokio::time::Instant::now() + OTHER_LEASES);
        }
    }
    silent.iter().map(|name| format!("no DHCP server has answered on interface {name} yet")).collect()
}

fn matches(wanted: &NicPlan, nic: &Nic) -> bool {
    let by_driver = wanted.driver.as_ref().is_none_or(|driver| glob(driver, &links::driver_of(&nic.name)));
    by_driver
        && match (&wanted.mac, &wanted.name) {
            (Some(mac), _) => glob(mac, &nic.mac_text()),
            (None, Some(pattern)) => glob(pattern, &nic.name),
            (None, None) => false,
        }
}

/// A pattern in which `*` stands for anything.
fn glob(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    if rest.is_empty() {
        return true;
    }
    (0..=name.len()).filter_map(|at| name.get(at..)).any(|tail| glob(rest, tail))
}

fn describe(wanted: &NicPlan) -> String {
    match (&wanted.mac, &wanted.name) {
        (Some(mac), _) => format!("the one with hardware address {mac}"),
        (None, name) => format!("named {}", name.as_deref().unwrap_or("?")),
    }
}

fn list(nics: &[Nic]) -> String {
    if nics.is_empty() {
        return "none; give the machine a network interface".to_owned();
    }
    nics.iter().map(|nic| format!("{} ({})", nic.name, nic.mac_text())).collect::<Vec<_>>().join(", ")
}
