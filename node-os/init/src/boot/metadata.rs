//! Who this machine is: sources are asked again and again until one gives an answer that holds.

use crate::machine::{Shared, Wait};
use crate::network::{Network, write_etc};
use crate::pki;
use crate::platform::Machine as Platform;
use anyhow::{Context, Result, anyhow};
use node_metadata::merge::{Merged, merge, name_of};
use node_metadata::network_config::{self, NetworkPlan};
use node_metadata::sources::{self, Found};
use node_metadata::userdata::{self, UserData};
use node_metadata::{Cluster, Node, SealKey};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

const NODE_FILE: &str = "/run/kimg/node.json";
const TOKEN_FILE: &str = "/run/kimg/join-token";
const MACHINE_ID_FILE: &str = "/var/lib/kimg/machine-id";
const FIRST_RETRY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);
const TOKEN_PERIOD: Duration = Duration::from_secs(5);
/// How warnings about the network begin: they are replaced when it is tried anew.
const NETWORK_FAULT: &str = "network: ";
const HINT: &str = "correct the machine's user-data or metadata drive; the node keeps looking, no reboot is needed";

/// The search for good metadata.
pub(super) struct Search {
    machine: Shared,
    network: Rc<Network>,
    cluster: Cluster,
    platform: Platform,
    /// What the network was brought to last.
    plan: RefCell<Option<NetworkPlan>>,
    /// The drivers of slow drives have been loaded.
    drives_loaded: Cell<bool>,
}

impl Search {
    pub(super) fn new(machine: Shared, network: Rc<Network>, cluster: Cluster, own_disk: String) -> Search {
        Search {
            machine,
            network,
            cluster,
            platform: Platform { own_disk },
            plan: RefCell::default(),
            drives_loaded: Cell::new(false),
        }
    }

    /// Does not return before this machine knows who it is.
    pub(super) async fn run(&self) -> (Node, Option<SealKey>) {
        self.machine.stage("metadata");
        self.machine.begin("metadata");
        let mut retry = FIRST_RETRY;
        loop {
            match self.attempt().await {
                Ok((node, key)) => {
                    self.machine.end("metadata", &node.source);
                    return (node, key);
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    self.machine.waits(
                        "metadata",
                        Wait { waits_for: "metadata that makes this machine a node", why: &why, hint: HINT },
                    );
                    self.stay_reachable().await;
                }
            }
            // The node API may ask for an earlier look.
            let _ = tokio::time::timeout(retry, self.machine.look_again.notified()).await;
            retry = RETRY;
        }
    }

    /// Until this node has joined, a better token in its user-data is taken without a reboot.
    pub(super) async fn follow_token(self) {
        loop {
            tokio::time::sleep(TOKEN_PERIOD).await;
            if self.machine.has_joined() {
                return;
            }
            let Ok(Some(found)) = self.ask_all().await else { continue };
            let Ok(user) = userdata::parse(found.user_data.as_deref().unwrap_or_default()) else { continue };
            let Some(token) = user.kimg.token.clone() else { continue };
            let known = std::fs::read_to_string(TOKEN_FILE).unwrap_or_default();
            if known.trim() != token.0
                && merge(&self.cluster, &found, &user, &self.network.addresses().await.unwrap_or_default()).is_ok()
            {
                match pki::write(Path::new(TOKEN_FILE), token.0.as_bytes(), 0o600) {
                    Ok(()) => tracing::info!("the user-data has another token; joining with it"),
                    Err(error) => self.machine.warn(format!("{error:#}")),
                }
            }
        }
    }

    async fn attempt(&self) -> Result<(Node, Option<SealKey>)> {
        let found = self.find().await?;
        let user = match &found.user_data {
            Some(raw) if !raw.is_empty() => userdata::parse(raw)?,
            _ => UserData::default(),
        };
        let plan = match &found.network_config {
            Some(text) if !text.trim().is_empty() => network_config::parse(text)?,
            _ => NetworkPlan::dhcp_everywhere(),
        };
        if let Ok(name) = name_of(&found, &user) {
            self.machine.update(|status| status.name = name);
        }
        self.bring_network_to(plan).await?;
        let own = self.show_addresses().await?;
        let merged = merge(&self.cluster, &found, &user, &own)?;
        let key = user.kimg.seal_key()?;
        self.keep(&merged)?;
        Ok((merged.node, key))
    }

    async fn find(&self) -> Result<Found> {
        if let Some(found) = self.ask_all().await? {
            return Ok(found);
        }
        if !self.drives_loaded.replace(true) {
            tokio::task::spawn_blocking(load_drives).await.context("loading drivers was interrupted")?;
            if let Some(found) = self.ask_all().await? {
                return Ok(found);
            }
        }
        self.cluster_file_entry().await
    }

    async fn ask_all(&self) -> Result<Option<Found>> {
        for source in sources::all() {
            if source.needs_network(&self.platform) {
                self.get_some_address().await?;
            }
            let platform = self.platform.clone();
            // Reading a drive or a server blocks; PID 1 goes on meanwhile.
            let read = tokio::task::spawn_blocking(move || source.read(&platform)).await;
            if let Some(found) =
                read.context("reading metadata was interrupted")?.map_err(|sentence| anyhow!(sentence))?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Without any source: the node of `cluster.toml` that has the address that DHCP gave.
    async fn cluster_file_entry(&self) -> Result<Found> {
        self.get_some_address().await?;
        let own = self.show_addresses().await?;
        let entry = self.cluster.nodes.iter().find(|entry| entry.addresses.iter().any(|address| own.contains(address)));
        let entry = entry.context(
            "no metadata was found: no drive with the label cidata, no ds=nocloud in the SMBIOS serial number or on the \
             kernel's command line, and no node of cluster.toml has one of this machine's addresses",
        )?;
        Ok(Found { source: "cluster.toml".to_owned(), hostname: Some(entry.name.clone()), ..Found::default() })
    }

    async fn bring_network_to(&self, plan: NetworkPlan) -> Result<()> {
        if self.plan.borrow().as_ref() == Some(&plan) {
            return Ok(());
        }
        self.machine.begin("network");
        if self.plan.borrow().is_some() {
            self.network.reset().await?;
        }
        self.machine.update(|status| status.warnings.retain(|warning| !warning.starts_with(NETWORK_FAULT)));
        let faults = self.network.apply(&plan).await?;
        self.machine.end("network", &faults.join("; "));
        let clean = faults.is_empty();
        for fault in faults {
            self.machine.warn(format!("{NETWORK_FAULT}{fault}"));
        }
        // A plan with faults is tried again at the next look.
        *self.plan.borrow_mut() = clean.then_some(plan);
        Ok(())
    }

    /// Whatever is wrong, the node API should be reachable so that the operator can read what.
    async fn stay_reachable(&self) {
        if let Err(error) = self.get_some_address().await {
            self.machine.warn(format!("{error:#}"));
        }
    }

    /// DHCP everywhere, unless there is an address already: a network that works is not taken apart.
    async fn get_some_address(&self) -> Result<()> {
        if self.show_addresses().await?.is_empty() {
            self.bring_network_to(NetworkPlan::dhcp_everywhere()).await?;
            self.show_addresses().await?;
        }
        Ok(())
    }

    async fn show_addresses(&self) -> Result<Vec<IpAddr>> {
        let own = self.network.addresses().await?;
        let shown: Vec<String> = own.iter().map(IpAddr::to_string).collect();
        self.machine.update(|status| status.addresses = shown);
        Ok(own)
    }

    /// Writes down who this machine is, for all components.
    fn keep(&self, merged: &Merged) -> Result<()> {
        let node = &merged.node;
        node_sys::machine::set_host_name(&node.name)
            .with_context(|| format!("cannot set the host name {}", node.name))?;
        write_etc(node, &machine_id()?)?;
        let json = serde_json::to_vec_pretty(node).context("cannot write down this node")?;
        pki::write(Path::new(NODE_FILE), &json, 0o644)?;
        if let Some(token) = &merged.token {
            pki::write(Path::new(TOKEN_FILE), token.0.as_bytes(), 0o600)?;
        }
        self.machine.update(|status| {
            status.name = node.name.clone();
            status.source = node.source.clone();
            status.addresses = node.addresses.iter().map(IpAddr::to_string).collect();
        });
        Ok(())
    }
}

/// Drives at controllers that are slow to probe.
fn load_drives() {
    if let Ok(mut index) = crate::kernel_modules::Index::read() {
        for fault in index.load(crate::kernel_modules::DRIVES) {
            tracing::warn!("{fault}");
        }
    }
    // Drives appear a moment after their controller.
    std::thread::sleep(Duration::from_millis(700));
}

/// The same over reboots, another on each disk.
fn machine_id() -> Result<String> {
    if let Ok(id) = std::fs::read_to_string(MACHINE_ID_FILE)
        && id.trim().len() == 32
    {
        return Ok(id.trim().to_owned());
    }
    let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("the kernel gives no random numbers")?;
    let id = id.trim().replace('-', "");
    // Where STATE is missing the id lives as long as this boot.
    if Path::new("/var/lib/kimg").is_dir() {
        pki::write(Path::new(MACHINE_ID_FILE), id.as_bytes(), 0o644)?;
    }
    Ok(id)
}
