//! The node's own network: interfaces by the plan of the network configuration, DHCP, DNS servers, host name.

pub mod dhcp;
mod files;
mod links;
pub mod wire;

pub use files::write_etc;
pub use links::{Links, Nic};

use anyhow::{Context, Result};
use node_metadata::network_config::{NetworkPlan, NicPlan};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// How long the first answer of a DHCP server is waited for before the boot goes on without.
const FIRST_LEASE: Duration = Duration::from_secs(15);

/// How long the other interfaces' answers are waited for after the first.
const OTHER_LEASES: Duration = Duration::from_secs(3);

/// What the network knows of itself.
#[derive(Debug)]
pub struct Network {
    links: Links,
    /// DNS servers that the configuration names.
    configured_dns: RefCell<Vec<IpAddr>>,
    search: RefCell<Vec<String>>,
    /// DNS servers that DHCP named, by interface.
    dhcp_dns: RefCell<BTreeMap<String, Vec<IpAddr>>>,
    clients: RefCell<BTreeMap<String, tokio::task::JoinHandle<()>>>,
}

impl Network {
    /// Opens netlink and sets the loopback up.
    pub async fn open() -> Result<Rc<Network>> {
        let links = Links::open()?;
        links.up("lo").await?;
        Ok(Rc::new(Network {
            links,
            configured_dns: RefCell::default(),
            search: RefCell::default(),
            dhcp_dns: RefCell::default(),
            clients: RefCell::default(),
        }))
    }

    /// Brings the interfaces to the plan; waits a bounded time for the first leases.
    /// Faults of single interfaces do not stop the others and come back as sentences.
    pub async fn apply(self: &Rc<Self>, plan: &NetworkPlan) -> Result<Vec<String>> {
        *self.configured_dns.borrow_mut() = plan.dns.clone();
        *self.search.borrow_mut() = plan.search.clone();
        let nics = self.links.hardware().await?;
        let mut faults = Vec::new();
        let mut waiting = Vec::new();
        let mut taken = Vec::new();
        for wanted in &plan.nics {
            let matching: Vec<&Nic> =
                nics.iter().filter(|nic| !taken.contains(&nic.index) && matches(wanted, nic)).collect();
            if matching.is_empty() {
                faults.push(format!("no interface is {}; it has: {}", describe(wanted), list(&nics)));
            }
            for nic in matching {
                taken.push(nic.index);
                match self.configure(nic, wanted).await {
                    Ok(Some(first)) => waiting.push((nic.name.clone(), first)),
                    Ok(None) => {}
                    Err(error) => faults.push(format!("interface {}: {error:#}", nic.name)),
                }
            }
        }
        faults.extend(first_leases(waiting).await);
        self.write_resolv_conf()?;
        Ok(faults)
    }

    async fn configure(
        self: &Rc<Self>,
        nic: &Nic,
        wanted: &NicPlan,
    ) -> Result<Option<tokio::sync::oneshot::Receiver<()>>> {
        let name = match &wanted.set_name {
            Some(name) if *name != nic.name => self.links.rename(nic, name).await.map(|()| name.clone())?,
            _ => nic.name.clone(),
        };
        if let Some(mtu) = wanted.mtu {
            self.links.set_mtu(nic.index, mtu).await?;
        }
        self.links.up_index(nic.index).await.with_context(|| format!("cannot set {name} up"))?;
        for address in &wanted.addresses {
            self.links.add_address(nic.index, *address).await?;
        }
        for route in &wanted.routes {
            self.links.add_route(nic.index, route).await?;
        }
        if !wanted.dhcp4 || self.clients.borrow().contains_key(&name) {
            return Ok(None);
        }
        let (tell, first) = tokio::sync::oneshot::channel();
        let client = dhcp::Client { interface: name.clone(), index: nic.index, mac: nic.mac, plan: wanted.clone() };
        let handle = tokio::task::spawn_local(client.run(self.clone(), tell));
        self.clients.borrow_mut().insert(name, handle);
        Ok(Some(first))
    }

    /// Ends all DHCP clients, so that better metadata can start from a clean network.
    pub async fn reset(&self) -> Result<()> {
        for (_, client) in std::mem::take(&mut *self.clients.borrow_mut()) {
            client.abort();
        }
        self.dhcp_dns.borrow_mut().clear();
        for nic in self.links.hardware().await? {
            self.links.flush(nic.index).await?;
        }
        Ok(())
    }

    /// Addresses of this machine beside loopback and link-local ones, in the order of the interfaces.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>> {
        self.links.addresses().await
    }

    /// Netlink for others.
    pub fn links(&self) -> &Links {
        &self.links
    }

    fn set_dhcp_dns(&self, interface: &str, servers: Vec<IpAddr>) -> Result<()> {
        let old = self.dhcp_dns.borrow_mut().insert(interface.to_owned(), servers.clone());
        if old.as_ref() == Some(&servers) { Ok(()) } else { self.write_resolv_conf() }
    }

    fn write_resolv_conf(&self) -> Result<()> {
        let mut servers = self.configured_dns.borrow().clone();
        for server in self.dhcp_dns.borrow().values().flatten() {
            if !servers.contains(server) {
                servers.push(*server);
            }
        }
        files::write_resolv_conf(&servers, &self.search.borrow())
    }
}

/// Waits for the first answer of a DHCP server, and a little for those of the other interfaces.
async fn first_leases(waiting: Vec<(String, tokio::sync::oneshot::Receiver<()>)>) -> Vec<String> {
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
    match (&wanted.mac, &wanted.name) {
        (Some(mac), _) => *mac == nic.mac_text(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_by_pattern() {
        for (pattern, name, wanted) in [
            ("eth0", "eth0", true),
            ("eth*", "eth7", true),
            ("en*s0", "enp1s0", true),
            ("en*s0", "enp1s1", false),
            ("*", "x", true),
            ("a", "ab", false),
        ] {
            assert_eq!(glob(pattern, name), wanted, "{pattern} {name}");
        }
    }
}
