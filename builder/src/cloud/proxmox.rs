//! Proxmox VE: VMs of a node, known by tags that are a key, a dot and a value (`kimg-cluster`, `kimg-ca`, `kimg-node`, …).
//! <https://pve.proxmox.com/pve-docs/api-viewer/>
//!
//! There are no networks to make and no metadata service: machines are on a bridge, at addresses of a range of
//! `cluster.toml`; which one is a tag, and the lowest that no VM's tag has is free. What a machine is told comes with its
//! second disk, a NoCloud drive. Proxmox takes user-data of others for its own drive as a file of the server only
//! (`cicustom`), so kimg writes the drive and uploads it as something to import, as it does images: it is the machine's own
//! from then on, and goes with it; the file, which holds secrets, goes at once.
//! A machine that is being made bears `kimg-making`, and is none until it does no more. While its disks are imported it has
//! neither name nor tags: whoever makes the next one waits for that.
//! Disks are not plugged into a running master (`hotplug: 0`): its new one is imported while it runs, and takes the old one's
//! place once it is stopped.
//! There is one firewall, the node's own: one of Proxmox counts only where the data centre's is on.
//! None of this was tried at a server.

mod volumes;

use super::tags::{of_image, retagged, tagged};
use super::{
    Busy, Cents, Cloud, Firewall, Inventory, Network, Offer, Order, ROLES, Rule, Server, Size, State, Tenant, Thing,
    Volume, explained, image_of, marks, text,
};
use crate::config::{self, Provider};
use crate::input;
use crate::seed;
use crate::upload::api::Api;
use crate::upload::proxmox::{account, at, done, task, was_lost};
use crate::upload::settings::Environment;
use crate::web::{Answer, Client, Interrupted, Request, escape};
use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use jiff::Timestamp;
use marks::{DATA, NODE, ON_VOLUME, ROLE};
use node_metadata::Role;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

const NODES: &str = "/api2/json/nodes";
/// Its address.
const AT: &str = "kimg-at";
/// Its type.
const TYPE: &str = "kimg-type";
/// When it was made, in seconds.
const MADE: &str = "kimg-made";
/// It is not whole yet.
const MAKING: &str = "kimg-making";
const EVERY: Duration = Duration::from_secs(3);
/// How long others may be at work on a VM, and a file may be too short.
const FREE: Duration = Duration::from_secs(900);
/// How often another may take the number of a VM first.
const TRIES: usize = 20;

/// A cluster's part of a server.
#[derive(Debug)]
pub struct Proxmox {
    api: Api,
    tenant: Tenant,
    own: config::Proxmox,
    types: BTreeSet<String>,
    disk_gb: u32,
}

impl Proxmox {
    /// The server of `PROXMOX_URL`.
    ///
    /// # Errors
    /// A variable is missing.
    pub fn new(client: &Client, env: Environment<'_>, tenant: Tenant, provider: &Provider) -> Result<Proxmox> {
        Ok(Proxmox {
            api: account(client, env)?,
            tenant,
            own: provider.proxmox.clone().context("nothing says where machines are at Proxmox")?,
            types: provider.types.values().cloned().collect(),
            disk_gb: provider.disk_gb,
        })
    }

    fn list(&self, path: &str) -> Result<Vec<Value>> {
        self.api.list(path, "data", |request| request, |_| None).map_err(explain)
    }

    /// What changes something: it is sent once, as a second one may be refused for the first.
    fn send(&self, request: Request) -> Result<Answer> {
        self.api.send(request.repeatable(false)).and_then(|answer| answer.expect(&[200])).map_err(explain)
    }

    /// The same, where a task does the work.
    fn work(&self, node: &str, request: Request, what: &str) -> Result<()> {
        let answer = self.send(request)?;
        match answer.json()?["data"].is_string() {
            true => done(&self.api, node, &task(&answer)?, what),
            false => Ok(()),
        }
    }

    /// A place in the node where machines are made.
    fn here(&self, path: &str) -> String {
        at(&self.tenant.region, path)
    }

    fn content(&self) -> String {
        self.here(&format!("/storage/{}", escape(&self.own.image_storage, true)))
    }

    /// All VMs of all nodes that are there, with their node, and their tags one by one.
    fn machines(&self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        for node in self.list(NODES)?.iter().filter(|node| node["status"] == "online") {
            let node = text(node, "node");
            for mut one in self.list(&at(node, "/qemu"))? {
                let tags: Vec<&str> = text(&one, "tags").split([';', ',', ' ']).filter(|tag| !tag.is_empty()).collect();
                (one["tags"], one["node"]) = (json!(tags), json!(node));
                all.push(one);
            }
        }
        Ok(all)
    }

    fn find(&self, id: &str) -> Result<Option<Value>> {
        Ok(self.machines()?.into_iter().find(|one| number(one).is_ok_and(|number| id.parse() == Ok(number))))
    }

    fn machine(&self, server: &Server) -> Result<Value> {
        self.find(&server.id)?.with_context(|| format!("the machine of {} is gone", server.node))
    }

    fn server(&self, one: &Value) -> Result<Server> {
        let address: Option<IpAddr> = tagged(one, AT).parse().ok();
        Ok(Server {
            id: number(one)?.to_string(),
            node: tagged(one, NODE).into(),
            image: image_of(tagged(one, marks::IMAGE)),
            size: tagged(one, TYPE).into(),
            region: text(one, "node").into(),
            state: match text(one, "status") {
                _ if !text(one, "lock").is_empty() => State::Pending,
                "running" => State::Running,
                _ => State::Off,
            },
            public: address,
            private: address,
            created: tagged(one, MADE).parse().ok().and_then(|second| Timestamp::from_second(second).ok()),
            on_volume: tagged(one, DATA) == ON_VOLUME,
        })
    }

    /// Puts the machines where they belong; one that is not whole is something to remove, and no machine.
    fn sort(&self, machines: &[Value], into: &mut Inventory) -> Result<()> {
        for one in machines {
            let (server, marks) = (self.server(one)?, self.tenant.marks(one, text(one, "name")));
            let holds = tagged(one, volumes::HOLDS);
            if marks.cluster && marks.ca && !tagged(one, MAKING).is_empty() {
                let name = if holds.is_empty() { server.node.clone() } else { holds.into() };
                into.rest.push(Thing { name, ..server.thing() });
            } else if holds.is_empty() {
                self.tenant.sort(server, &marks, into);
            }
        }
        Ok(())
    }

    /// The lowest address that no machine has, whosever it is.
    fn address(&self, machines: &[Value]) -> Result<Ipv4Addr> {
        let taken: BTreeSet<Ipv4Addr> = machines.iter().filter_map(|one| tagged(one, AT).parse().ok()).collect();
        let (first, last) = (u32::from(*self.own.addresses.start()), u32::from(*self.own.addresses.end()));
        let free = |at: &Ipv4Addr| *at != self.own.gateway && !taken.contains(at);
        match (first..=last).map(Ipv4Addr::from).find(free) {
            Some(free) => Ok(free),
            None => input::bad(format!(
                "provider.proxmox.addresses: all of {}-{} are taken; write a longer range",
                self.own.addresses.start(),
                self.own.addresses.end()
            )),
        }
    }

    /// The hardware address of a node's machine, by which its drive finds the interface.
    fn mac(&self, node: &str) -> String {
        seed::mac(&self.tenant.name(), node, 0)
    }

    /// How the names of this cluster's drives begin.
    fn seeds(&self) -> String {
        format!("{}:import/kimg-seed-{}-{}-", self.own.image_storage, self.tenant.cluster, self.tenant.ca)
    }

    /// Uploads what a machine is told, as something to import. The same name is written over.
    fn put_seed(&self, order: &Order<'_>, address: IpAddr) -> Result<String> {
        let own = &self.own;
        let nameservers: Vec<String> = own.nameservers.iter().map(|server| format!("\"{server}\"")).collect();
        let network = format!(
            "version: 2\nethernets:\n  lan:\n    match: {{macaddress: \"{}\"}}\n    dhcp4: false\n    \
             addresses: [\"{address}/{}\"]\n    routes: [{{to: \"0.0.0.0/0\", via: \"{}\"}}]\n    \
             nameservers: {{addresses: [{}]}}\n",
            self.mac(order.node),
            self.tenant.network.prefix_len(),
            own.gateway,
            nameservers.join(", ")
        );
        let drive = seed::volume(&self.tenant.cluster, order.node, order.user_data, &network)?;
        let id = format!("{}{}.raw", self.seeds(), order.node);
        let name = id.rsplit('/').next().unwrap_or_default();
        // Only its owner may read it.
        let mut file = tempfile::NamedTempFile::new().context("making a file for the drive")?;
        file.write_all(&drive).and_then(|()| file.flush()).context("writing the drive")?;
        let request = Request::post(self.api.url(&format!("{}/upload", self.content())));
        let length = drive.len() as u64;
        let fields = [("content", "import")];
        let request = request.form(&fields, ("filename", name), file.path(), length, &ProgressBar::hidden());
        let what = format!("the upload of {name}");
        self.work(&self.tenant.region, request, &what)?;
        // The last step is a copy.
        self.api.client().poll(&what, EVERY, FREE, || {
            let found = self.imports()?.into_iter().find(|one| one["volid"] == id.as_str());
            Ok(found.filter(|one| one["size"].as_u64() == Some(length)))
        })?;
        Ok(id)
    }

    fn imports(&self) -> Result<Vec<Value>> {
        self.list(&format!("{}/content?content=import", self.content()))
    }

    fn delete_seed(&self, id: &str) -> Result<()> {
        let request = Request::delete(self.api.url(&format!("{}/content/{}", self.content(), escape(id, true))));
        match self.work(&self.tenant.region, request, &format!("the removal of {id}")) {
            // It may be gone, which Proxmox calls a failure of its own.
            Err(error) if self.imports()?.iter().any(|one| one["volid"] == id) => Err(error),
            _ => Ok(()),
        }
    }

    /// An error, without a drive that nobody imports any more; or with the word that one is left, as it holds secrets.
    fn without(&self, id: &str, error: anyhow::Error) -> anyhow::Error {
        if was_lost(&error) || error.is::<Interrupted>() {
            return error;
        }
        match self.delete_seed(id) {
            Ok(()) => error,
            Err(stays) => error.context(format!("the drive {id} is left over ({stays:#})")),
        }
    }

    /// Both disks, to be imported.
    fn disks(&self, image: &str, drive: &str) -> [String; 2] {
        [image, drive].map(|from| format!("{}:0,import-from={from}", self.own.storage))
    }

    /// As large as all are; images are smaller.
    fn grow(&self, place: &str, node: &str) -> Result<()> {
        let request = Request::put(self.api.url(&format!("{place}/resize")));
        let body = json!({"disk": "scsi0", "size": format!("{}G", self.disk_gb)});
        self.work(node, request.json(&body), "resizing the disk")
    }

    fn config(&self, url: &str) -> Result<Value> {
        let there = self.api.send(Request::get(url)).and_then(|answer| answer.expect(&[200]));
        Ok(there.map_err(explain)?.json()?["data"].take())
    }

    /// Removes the disks that had the place of others.
    fn drop_unused(&self, config: &str, node: &str) -> Result<()> {
        let there = self.config(config)?;
        let keys = there.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        let unused: Vec<&str> = keys.filter(|key| key.starts_with("unused")).collect();
        if unused.is_empty() {
            return Ok(());
        }
        self.work(node, Request::post(config).json(&json!({"delete": unused.join(",")})), "removing the old disks")
    }

    /// Waits until no VM of this token is being made: one that is has no name yet.
    fn idle(&self) -> Result<()> {
        let path = self.here("/tasks?source=active&typefilter=qmcreate");
        self.api
            .client()
            .poll("machines that are being made", EVERY, FREE, || Ok(self.list(&path)?.is_empty().then_some(())))
    }

    /// Makes a VM with the first number that is free.
    fn create(&self, body: &mut Value, what: &str) -> Result<u64> {
        for _ in 0..TRIES {
            let next = self.api.send(Request::get(self.api.url("/api2/json/cluster/nextid"))).map_err(explain)?;
            let next = next.expect(&[200]).map_err(explain)?.json()?["data"].clone();
            let id =
                next.as_u64().or_else(|| next.as_str()?.parse().ok()).context("the answer is no number of a VM")?;
            body["vmid"] = json!(id);
            let request = Request::post(self.api.url(&self.here("/qemu"))).json(body);
            match self.work(&self.tenant.region, request, what) {
                // Somebody else was faster.
                Err(error) if !was_lost(&error) && format!("{error:#}").contains("already exists") => {}
                made => return made.map(|()| id),
            }
        }
        bail!("{what}: others have taken {TRIES} numbers of VMs first")
    }

    fn status(&self, one: &Value, to: &str) -> Result<()> {
        let (id, node) = (number(one)?, text(one, "node"));
        let request = Request::post(self.api.url(&at(node, &format!("/qemu/{id}/status/{to}")))).json(&json!({}));
        self.work(node, request, &format!("the {to} of VM {id}"))
    }

    /// Removes VMs that are not whole.
    fn drop_broken(&self, broken: &[Thing]) -> Result<()> {
        for Thing { id, .. } in broken {
            self.api.client().poll(&format!("removing VM {id}, which is not whole"), EVERY, FREE, || {
                match self.delete_server(id) {
                    Err(error) if error.is::<Busy>() => Ok(None),
                    other => other.and_then(|()| Ok(self.find(id)?.is_none().then_some(()))),
                }
            })?;
        }
        Ok(())
    }

    fn delete_server(&self, id: &str) -> Result<()> {
        let Some(one) = self.find(id)? else { return Ok(()) };
        check_free(&one)?;
        if one["status"] == "running" {
            self.status(&one, "stop")?;
        }
        let place = at(text(&one, "node"), &format!("/qemu/{}?purge=1&destroy-unreferenced-disks=1", number(&one)?));
        match self.work(text(&one, "node"), Request::delete(self.api.url(&place)), &format!("the removal of VM {id}")) {
            // Its answer may have been lost.
            Err(error) if error.is::<Interrupted>() || self.find(id)?.is_some() => Err(error),
            _ => Ok(()),
        }
    }
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    explained(error, "Proxmox", "PROXMOX_TOKEN_SECRET")
}

fn number(one: &Value) -> Result<u64> {
    one["vmid"].as_u64().filter(|id| *id > 0).context("the provider's answer names no id of a VM")
}

/// Whether nobody is at work on a VM.
fn check_free(one: &Value) -> Result<()> {
    match text(one, "lock") {
        "" => Ok(()),
        lock => Err(Busy(format!("VM {} is locked ({lock})", one["vmid"])).into()),
    }
}

impl Cloud for Proxmox {
    fn offer(&self) -> Result<Offer> {
        let (nodes, wanted) = (self.list(NODES)?, self.tenant.region.as_str());
        if !nodes.iter().any(|node| node["node"] == wanted && node["status"] == "online") {
            let known: Vec<&str> = nodes.iter().map(|node| text(node, "node")).collect();
            return input::bad(format!(
                "provider.region: Proxmox has no node {wanted} that is online; there are {}",
                known.join(", ")
            ));
        }
        let size = Size { monthly: Some(Cents(0)), disk_gb: self.disk_gb.into(), available: true };
        let sizes: BTreeMap<String, Size> = self.types.iter().map(|name| (name.clone(), size)).collect();
        Ok(Offer { currency: String::new(), sizes, room: None, gb: Some(0.0) })
    }

    fn inventory(&self) -> Result<Inventory> {
        let mut inventory = Inventory { networks: vec![self.make_network()?], ..Inventory::default() };
        for role in ROLES {
            inventory.firewalls.push(self.make_firewall(role)?);
        }
        let machines = self.machines()?;
        self.sort(&machines, &mut inventory)?;
        self.add_volumes(&machines, &mut inventory)?;
        // What an interrupted run left.
        for one in self.imports()? {
            let (id, start) = (text(&one, "volid"), self.seeds());
            if let Some(node) = id.strip_prefix(&start).and_then(|name| name.strip_suffix(".raw")) {
                inventory.rest.push(Thing { kind: "seed", id: id.into(), name: node.into() });
            }
        }
        Ok(inventory)
    }

    /// The bridge is there.
    fn make_network(&self) -> Result<Network> {
        let range = self.tenant.network.to_string();
        Ok(Network { id: self.own.bridge.clone(), range, region: None, kept: true })
    }

    /// The node's own.
    fn make_firewall(&self, role: Role) -> Result<Firewall> {
        Ok(Firewall { id: String::new(), role, rules: self.rules(role) })
    }

    fn set_rules(&self, _firewall: &Firewall) -> Result<()> {
        Ok(())
    }

    fn rules(&self, _role: Role) -> BTreeSet<Rule> {
        BTreeSet::new()
    }

    fn make_server(&self, order: &Order<'_>) -> Result<()> {
        let (name, region) = (self.tenant.machine(order.node), self.tenant.region.as_str());
        self.idle()?;
        let mut all = self.machines()?;
        let same: Vec<Value> = all.iter().filter(|one| one["name"] == name.as_str()).cloned().collect();
        let mut there = Inventory::default();
        self.sort(&same, &mut there)?;
        if let Some(foreign) = there.foreign.first() {
            return input::bad(&foreign.why);
        }
        if !there.servers.is_empty() {
            return Ok(());
        }
        self.drop_broken(&there.rest)?;
        let is_broken = |id: u64| there.rest.iter().any(|broken| broken.id == id.to_string());
        all.retain(|one| number(one).is_ok_and(|id| !is_broken(id)));
        let (cores, memory) = config::Proxmox::size(order.size).context("the type of machine is none")?;
        let address = self.address(&all)?.to_string();
        let drive = self.put_seed(order, address.parse()?)?;
        let made = self.api.client().clock().now().as_second().to_string();
        let said = [
            (NODE, order.node),
            (ROLE, order.role.as_str()),
            (AT, address.as_str()),
            (TYPE, order.size),
            (MADE, made.as_str()),
            of_image(order.image),
            (DATA, if order.on_volume { ON_VOLUME } else { "" }),
        ];
        let tags = self.tenant.tags(&said);
        let [image, drive_of_own] = self.disks(order.image_id, &drive);
        let mut body = json!({
            "name": name,
            "tags": format!("{};{MAKING}.1", tags.join(";")),
            "cores": cores,
            "memory": memory.to_string(),
            "cpu": "host",
            "ostype": "l26",
            "scsihw": "virtio-scsi-single",
            "scsi0": image,
            "scsi1": drive_of_own,
            "boot": "order=scsi0",
            "net0": format!("virtio={},bridge={}", self.mac(order.node), self.own.bridge),
            "serial0": "socket",
            "onboot": true,
            // What is changed of a master waits for the next start.
            "hotplug": if order.role == Role::Master { "0" } else { "disk" },
        });
        let id = self.create(&mut body, &format!("making {name}")).map_err(|error| self.without(&drive, error))?;
        let place = self.here(&format!("/qemu/{id}"));
        self.grow(&place, region)?;
        self.delete_seed(&drive)?;
        if order.on_volume {
            self.plug_first(order.node, &id.to_string())?;
        }
        self.send(Request::put(self.api.url(&format!("{place}/config"))).json(&json!({"tags": tags.join(";")})))?;
        self.status(&json!({"vmid": id, "node": region}), "start")
    }

    fn rebuild_server(&self, server: &Server, order: &Order<'_>) -> Result<()> {
        let address = server.private.with_context(|| format!("the machine of {} has no address", server.node))?;
        let one = self.machine(server)?;
        check_free(&one)?;
        let (node, place) = (text(&one, "node"), at(text(&one, "node"), &format!("/qemu/{}", number(&one)?)));
        let drive = self.put_seed(order, address)?;
        let [image, drive_of_own] = self.disks(order.image_id, &drive);
        let config = self.api.url(&format!("{place}/config"));
        let what = format!("importing the new disk of {}", server.node);
        let request = Request::post(config.as_str()).json(&json!({"scsi0": image, "scsi1": drive_of_own}));
        match self.work(node, request, &what) {
            Err(error) if !was_lost(&error) && !error.is::<Interrupted>() => {
                // One of the two may be there already, and would take its place by the next start.
                let revert = Request::put(config.as_str()).json(&json!({"revert": "scsi0,scsi1"}));
                let reverted = self.send(revert).and_then(|_| self.drop_unused(&config, node));
                // Then nobody knows which disk it starts from: no refusal after which the old one is as it was.
                reverted.map_err(|also| match also.is::<Interrupted>() {
                    true => also,
                    false => anyhow!("{error:#}, and that could not be taken back: {also:#}"),
                })?;
                return input::bad(format!("{:#}", self.without(&drive, error)));
            }
            other => other?,
        }
        self.delete_seed(&drive)?;
        if self.machine(server)?["status"] == "running" {
            self.status(&one, "stop")?;
        }
        // By any change of a VM that is stopped what waits takes its place.
        self.send(Request::put(config.as_str()).json(&json!({"boot": "order=scsi0"})))?;
        self.grow(&place, node)?;
        self.drop_unused(&config, node)?;
        self.status(&one, "start")
    }

    fn mark(&self, server: &Server, image: &str) -> Result<()> {
        let one = self.machine(server)?;
        let tags = retagged(&one, &[of_image(image)]).join(";");
        let place = at(text(&one, "node"), &format!("/qemu/{}/config", server.id));
        self.send(Request::put(self.api.url(&place)).json(&json!({"tags": tags}))).map(drop)
    }

    fn start(&self, server: &Server) -> Result<()> {
        match self.machine(server)? {
            one if one["status"] == "running" => Ok(()),
            one => self.status(&one, "start"),
        }
    }

    fn make_volume(&self, node: &str, gb: u32) -> Result<()> {
        self.new_volume(node, gb)
    }

    fn attach(&self, volume: &Volume, server: &Server) -> Result<()> {
        check_free(&self.machine(server)?)?;
        self.plug(volume, &server.region, &server.id)
    }

    fn detach(&self, volume: &Volume) -> Result<()> {
        self.unplug(volume)
    }

    fn delete(&self, thing: &Thing) -> Result<()> {
        match thing.kind {
            "volume" => self.delete_volume(&thing.id),
            "seed" => self.delete_seed(&thing.id),
            _ => self.delete_server(&thing.id),
        }
    }
}
