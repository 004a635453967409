//! Who this machine is: sources are asked again and again until one gives an answer that holds.

use crate::machine::{Shared, Wait};
use crate::network::{Network, write_etc};
use crate::pki;
use crate::platform::{Client, Machine as Platform};
use anyhow::{Context, Result, anyhow};
use node_metadata::merge::{Merged, merge, name_of};
use node_metadata::network_config::{NetworkPlan, kernel_line};
use node_metadata::sources::{self, Found, Platform as _, Reach, Source, SourceError};
use node_metadata::userdata::{self, UserData};
use node_metadata::{Cluster, Node, Role, SealKey};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) const NODE_FILE: &str = "/run/kimg/node.json";
const TOKEN_FILE: &str = "/run/kimg/join-token";
const MACHINE_ID_FILE: &str = "/var/lib/kimg/machine-id";
const SEALED_SECRETS: &str = "/run/kimg/config/secrets.sealed";
const FIRST_RETRY: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);
const TOKEN_PERIOD: Duration = Duration::from_secs(5);
/// How long a master whose secrets are sealed insists on the provider's server: the key comes from nowhere else.
const INSISTENCE: Duration = Duration::from_secs(30);
/// How often the platform is told that the machine has come up, until it hears it.
const READY_ATTEMPTS: u32 = 20;
/// How warnings about the network begin: they are replaced when it is tried anew.
const NETWORK_FAULT: &str = "network: ";
const HINT: &str = "correct the machine's user-data or metadata drive; the node keeps looking, no reboot is needed";

/// What a source says.
type Outcome = std::result::Result<Option<Found>, SourceError>;

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
    /// Servers that DMI promises and that are not there, of the last search.
    absent: RefCell<Vec<String>>,
    begin: Instant,
    /// The platform is being told that the machine has come up.
    reported: Cell<bool>,
}

impl Search {
    pub(super) fn new(machine: Shared, network: Rc<Network>, cluster: Cluster, own_disk: String) -> Search {
        Search {
            machine,
            network,
            cluster,
            platform: Platform { own_disk, client: Client::default() },
            plan: RefCell::default(),
            drives_loaded: Cell::new(false),
            absent: RefCell::default(),
            begin: Instant::now(),
            reported: Cell::new(false),
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
        // The kernel's line stands above what metadata says of the network.
        let by_line = kernel_line::parse(&self.platform.kernel_line()).context("the kernel's command line")?;
        let plan = by_line.or_else(|| found.network.clone()).unwrap_or_else(NetworkPlan::dhcp_everywhere);
        if let Ok(name) = name_of(&found, &user) {
            self.machine.update(|status| status.name = name);
        }
        self.bring_network_to(plan).await?;
        let own = self.show_addresses().await?;
        let merged = merge(&self.cluster, &found, &user, &own)?;
        let key = user.kimg.seal_key()?;
        self.keep(&merged)?;
        self.report_ready();
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
        let sealed = self.cluster.role == Role::Master && Path::new(SEALED_SECRETS).exists();
        if sealed && !self.absent.borrow().is_empty() && self.begin.elapsed() < INSISTENCE {
            anyhow::bail!("{}", self.absent.borrow().join("; "));
        }
        self.cluster_file_entry().await
    }

    /// The first source of this machine that says something. Those that DMI rules out are not asked.
    async fn ask_all(&self) -> Result<Option<Found>> {
        let mut absent = Vec::new();
        for source in sources::all().into_iter().map(Arc::<dyn Source>::from) {
            if !source.detect(&self.platform) {
                continue;
            }
            match self.ask(&source).await? {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(SourceError::Absent(why)) => absent.push(format!("{}: {why}", source.name())),
                Err(error) => return Err(anyhow!(error).context(source.name().to_owned())),
            }
        }
        *self.absent.borrow_mut() = absent;
        Ok(None)
    }

    /// Asks one source, over each way to its server until there is an answer.
    async fn ask(&self, source: &Arc<dyn Source>) -> Result<Outcome> {
        let mut ways = source.reach(&self.platform).to_vec();
        let mut outcome: Outcome = Ok(None);
        let has_address = !self.network.addresses().await?.is_empty();
        if ways.is_empty() || has_address {
            outcome = self.read(source).await?;
            if ways.is_empty() || !matches!(outcome, Err(SourceError::Absent(_))) {
                return Ok(outcome);
            }
            // That was the way over DHCP's address, or as good as that.
            ways.retain(|way| *way != Reach::Dhcp);
        }
        for way in ways {
            outcome = match way {
                Reach::Dhcp => {
                    self.get_some_address().await?;
                    self.read(source).await?
                }
                Reach::LinkLocal => self.ask_on_each_link(source).await?,
            };
            if !matches!(outcome, Err(SourceError::Absent(_))) {
                break;
            }
        }
        Ok(outcome)
    }

    async fn ask_on_each_link(&self, source: &Arc<dyn Source>) -> Result<Outcome> {
        let mut outcome: Outcome = Err(SourceError::Absent("the machine has no network interface".to_owned()));
        let mut number = 0;
        while let Some(lent) = self.network.lend_link_local(number).await? {
            let read = self.read(source).await;
            self.network.take_back(lent).await;
            outcome = read?;
            if !matches!(outcome, Err(SourceError::Absent(_))) {
                break;
            }
            number += 1;
        }
        Ok(outcome)
    }

    /// Reading a drive or a server blocks; PID 1 goes on meanwhile.
    async fn read(&self, source: &Arc<dyn Source>) -> Result<Outcome> {
        let (source, platform) = (source.clone(), self.platform.clone());
        tokio::task::spawn_blocking(move || source.read(&platform)).await.context("reading metadata was interrupted")
    }

    /// Tells the platform, where it must be told, that the machine has come up; once a boot, beside everything else.
    fn report_ready(&self) {
        if self.reported.replace(true) {
            return;
        }
        let (platform, machine) = (self.platform.clone(), self.machine.clone());
        tokio::task::spawn_local(async move {
            let mut fault = String::new();
            for _ in 0..READY_ATTEMPTS {
                let platform = platform.clone();
                match tokio::task::spawn_blocking(move || report(&platform)).await {
                    Ok(Ok(())) => return,
                    Ok(Err(why)) => fault = why,
                    Err(error) => fault = error.to_string(),
                }
                tokio::time::sleep(RETRY).await;
            }
            machine.warn(format!("the platform could not be told that this machine has come up: {fault}"));
        });
    }

    /// Without any source: the master that has the address that DHCP gave. A worker without user-data could not join.
    async fn cluster_file_entry(&self) -> Result<Found> {
        self.get_some_address().await?;
        let own = self.show_addresses().await?;
        let entry =
            self.cluster.masters.iter().find(|entry| entry.addresses.iter().any(|address| own.contains(address)));
        let entry = entry.with_context(|| no_metadata(&self.absent.borrow()))?;
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
        for fault in plan.ignored.iter().chain(&faults) {
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

fn no_metadata(absent: &[String]) -> String {
    let servers = if absent.is_empty() {
        "no metadata server that this machine's DMI names".to_owned()
    } else {
        format!("no answer of a metadata server ({})", absent.join("; "))
    };
    format!(
        "no metadata was found: no drive with the label cidata or config-2, no ds=nocloud in the SMBIOS serial number or \
         on the kernel's command line, {servers}, and no master of cluster.toml has one of this machine's addresses; \
         a worker is told what it is by the user-data of `kimg seed`"
    )
}

fn report(platform: &Platform) -> std::result::Result<(), String> {
    let mut here = sources::all().into_iter().filter(|source| source.detect(platform));
    here.try_for_each(|source| source.report_ready(platform)).map_err(|error| error.to_string())
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
