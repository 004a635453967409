//! Data volumes at Proxmox, where each disk is some VM's own, and goes with it.
//!
//! So a volume is the unused disk of a VM that holds it and never runs: `kimg-CA-NODE`, with the tag `kimg-holds.NODE`, and
//! protected against removal. The node's machine has that disk in its configuration, too, as long as it is attached. What a VM does
//! not own stays where it is when the VM goes, or has it no more.

use super::{MAKING, Proxmox, check_free, number};
use crate::cloud::tags::tagged;
use crate::cloud::{Busy, Inventory, Thing, Volume, text};
use crate::upload::proxmox::at;
use crate::web::{Request, escape};
use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Whose volume a VM holds.
pub(super) const HOLDS: &str = "kimg-holds";
/// The first place behind a machine's own disks, and the last one.
const PLACES: std::ops::RangeInclusive<u8> = 2..=30;

impl Proxmox {
    /// Where a VM's configuration is, as it is now, without what waits for its next start.
    fn config_of(&self, node: &str, id: &str) -> String {
        self.api.url(&at(node, &format!("/qemu/{id}/config?current=1")))
    }

    fn set(&self, node: &str, id: &str, body: &Value) -> Result<()> {
        let url = self.api.url(&at(node, &format!("/qemu/{id}/config")));
        self.send(Request::put(url).json(body)).map(drop)
    }

    /// The VMs that hold this cluster's volumes; not those that are not whole.
    fn holders<'a>(&self, machines: &'a [Value]) -> Vec<&'a Value> {
        let ours = |one: &Value| {
            let marks = self.tenant.marks(one, "");
            marks.cluster && marks.ca && !tagged(one, HOLDS).is_empty() && tagged(one, MAKING).is_empty()
        };
        machines.iter().filter(|one| ours(one)).collect()
    }

    /// The machines and volumes among these VMs.
    fn known(&self, machines: &[Value]) -> Result<Inventory> {
        let mut known = Inventory::default();
        self.sort(machines, &mut known)?;
        self.add_volumes(machines, &mut known)?;
        Ok(known)
    }

    pub(super) fn add_volumes(&self, machines: &[Value], into: &mut Inventory) -> Result<()> {
        let holders = self.holders(machines);
        if holders.is_empty() {
            return Ok(());
        }
        let mut attached = Vec::new();
        for server in &into.servers {
            let config = self.config(&self.config_of(&server.region, &server.id))?;
            attached.extend(disks(&config).map(|(_, disk)| (disk.to_string(), server.id.clone())));
        }
        for one in holders {
            let (id, region, node) = (number(one)?.to_string(), text(one, "node"), tagged(one, HOLDS));
            let Some(disk) = self.held(region, &id)? else {
                // Somebody removed its disk.
                into.rest.push(Thing { kind: "volume", id, name: node.into() });
                continue;
            };
            let server = attached.iter().find(|(its, _)| *its == disk).map(|(_, server)| server.clone());
            let gb = self.size(region, &id, &disk)? >> 30;
            into.add_volume(Volume { id, node: node.into(), gb, region: region.into(), server });
        }
        Ok(())
    }

    /// The disk that a VM holds; it may have been put to use by hand.
    fn held(&self, node: &str, id: &str) -> Result<Option<String>> {
        let config = self.config(&self.config_of(node, id))?;
        Ok(disks(&config).map(|(_, disk)| disk.to_string()).next())
    }

    /// In bytes.
    fn size(&self, node: &str, id: &str, disk: &str) -> Result<u64> {
        let (storage, _) =
            disk.split_once(':').with_context(|| format!("VM {id} holds {disk}, which is in no storage"))?;
        let storage = escape(storage, true);
        let all = self.list(&at(node, &format!("/storage/{storage}/content?content=images&vmid={id}")))?;
        let found = all.iter().find(|one| one["volid"] == disk).and_then(|one| one["size"].as_u64());
        found.with_context(|| format!("the storage does not list {disk}, which VM {id} holds"))
    }

    pub(super) fn new_volume(&self, node: &str, gb: u32) -> Result<()> {
        self.idle()?;
        let (all, name) = (self.machines()?, self.tenant.volume(node));
        if self.holders(&all).iter().any(|one| tagged(one, HOLDS) == node) {
            return Ok(());
        }
        let named: Vec<Value> = all.into_iter().filter(|one| one["name"] == name.as_str()).collect();
        let mut there = Inventory::default();
        self.sort(&named, &mut there)?;
        self.drop_broken(&there.rest)?;
        let tags = self.tenant.tags(&[(HOLDS, node)]).join(";");
        let mut body = json!({
            "name": name,
            "tags": format!("{tags};{MAKING}.1"),
            "description": format!("holds the data volume of {node}, and does not run"),
            "cores": 1,
            "memory": "16",
            "ostype": "l26",
            "scsihw": "virtio-scsi-single",
            "scsi0": format!("{}:{gb}", self.own.storage),
        });
        let id = self.create(&mut body, &format!("making the data volume of {node}"))?.to_string();
        // Then nothing uses it that somebody might start.
        self.set(&self.tenant.region, &id, &json!({"delete": "scsi0", "protection": true, "tags": tags}))
    }

    /// A new machine has its volume before it starts.
    pub(super) fn plug_first(&self, node: &str, id: &str) -> Result<()> {
        let known = self.known(&self.machines()?)?;
        match known.volume(node).filter(|volume| volume.server.is_none() && volume.region == self.tenant.region) {
            Some(volume) => self.plug(volume, &volume.region, id),
            None => Ok(()),
        }
    }

    pub(super) fn plug(&self, volume: &Volume, node: &str, id: &str) -> Result<()> {
        let disk = self.held(&volume.region, &volume.id)?;
        let disk = disk.with_context(|| format!("VM {} holds no disk any more", volume.id))?;
        let config = self.config(&self.config_of(node, id))?;
        let place = PLACES.map(|n| format!("scsi{n}")).find(|place| config[place].is_null());
        let place = place.with_context(|| format!("VM {id} has too many disks"))?;
        self.set(node, id, &json!({place: disk}))
    }

    pub(super) fn unplug(&self, volume: &Volume) -> Result<()> {
        let server = volume.server.as_deref().context("the data volume is at no machine")?;
        let (Some(one), Some(disk)) = (self.find(server)?, self.held(&volume.region, &volume.id)?) else {
            return Ok(());
        };
        check_free(&one)?;
        let node = text(&one, "node");
        let config = self.config(&self.config_of(node, server))?;
        let Some((place, _)) = disks(&config).find(|(_, its)| *its == disk) else { return Ok(()) };
        self.set(node, server, &json!({"delete": place}))
    }

    pub(super) fn delete_volume(&self, id: &str) -> Result<()> {
        let machines = self.machines()?;
        let is_it = |one: &&Value| number(one).is_ok_and(|its| id == its.to_string());
        let Some(one) = self.holders(&machines).into_iter().find(is_it) else { return Ok(()) };
        check_free(one)?;
        let known = self.known(&machines)?;
        if let Some(server) = known.volumes.iter().find(|volume| volume.id == id).and_then(|one| one.server.as_ref()) {
            return Err(Busy(format!("it is attached to VM {server}")).into());
        }
        self.set(text(one, "node"), id, &json!({"protection": false}))?;
        self.delete_server(id)
    }
}

/// The disks of a configuration with their places, also those that nothing uses.
fn disks(config: &Value) -> impl Iterator<Item = (&str, &str)> {
    let is_place = |key: &str| {
        let kind = key.trim_end_matches(|c: char| c.is_ascii_digit());
        kind != key && ["scsi", "virtio", "sata", "ide", "unused"].contains(&kind)
    };
    let all = config.as_object().into_iter().flatten().filter(move |(key, _)| is_place(key));
    all.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?.split(',').next()?)))
}
