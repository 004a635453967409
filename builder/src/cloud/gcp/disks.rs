//! Disks at Google. Data volumes bear the labels `kimg-cluster`, `kimg-ca` and `kimg-node`, and are called `kimg-CA-NODE`;
//! the machines' own the first two alone. Those of the latter that no machine has are something to remove.

use super::{Gcp, busy, disk_type, entries, last, number};
use crate::cloud::marks::{CA, CLUSTER, NODE};
use crate::cloud::{Busy, Inventory, Server, Thing, Volume, checked, text};
use crate::input;
use crate::web::{Refused, Request, escape};
use anyhow::{Context, Result};
use serde_json::{Value, json};

impl Gcp {
    fn is_ours(&self, one: &Value) -> bool {
        let labels = &one["labels"];
        labels[CLUSTER] == self.tenant.cluster && labels[CA] == self.tenant.ca
    }

    /// Adds disks of all zones, whichever `cluster.toml` says now. They say by its name which machine has them.
    pub(super) fn add_disks(&self, instances: &[Value], into: &mut Inventory) -> Result<()> {
        let cluster = &self.tenant.cluster;
        let ends = [format!("{}{cluster}", self.tenant.joint), format!("{}{cluster}--2", self.tenant.joint)];
        for one in self.everywhere("disks")?.iter().filter(|one| self.is_ours(one)) {
            let (id, name, node) = (number(one, "a disk")?, text(one, "name"), text(&one["labels"], NODE));
            let user = entries(one, "users").find_map(Value::as_str).and_then(|user| user.rsplit('/').next());
            if user.is_none() && ends.iter().any(|end| name.ends_with(end)) {
                into.rest.push(Thing { kind: "disk", id: id.clone(), name: name.into() });
            }
            if node.is_empty() || name != self.tenant.volume(node) {
                continue;
            }
            let zone = checked(last(one, "zone"), "a zone")?;
            let of = |user: &str| {
                let found = instances.iter().find(|one| text(one, "name") == user && last(one, "zone") == zone);
                found.map(|one| number(one, "a machine")).transpose()
            };
            into.add_volume(Volume {
                id,
                node: node.into(),
                gb: text(one, "sizeGb").parse().context("the provider's answer names no size of a disk")?,
                server: user.map(of).transpose()?.flatten(),
                region: zone,
            });
        }
        Ok(())
    }

    /// A family of machines takes either kind of disk, not both.
    pub(super) fn new_volume(&self, node: &str, gb: u32) -> Result<()> {
        let (name, what) = (self.tenant.volume(node), format!("making the data volume of {node}"));
        let size = self.provider.types.get(node).with_context(|| format!("nothing says which type {node} is"))?;
        let body = json!({
            "name": name,
            "sizeGb": gb.to_string(),
            "type": disk_type(&self.tenant.region, size),
            "labels": self.tenant.labels(&[(NODE, node)]),
        });
        if self.make(&self.in_zone("disks"), &body, &what)? {
            return Ok(());
        }
        match self.find(&self.in_zone(&format!("disks/{name}")))? {
            Some(there) if self.is_ours(&there) => Ok(()),
            _ => input::bad(format!(
                "a disk is called {name}, as the data volume of {node} would be, and bears other labels; rename or remove it"
            )),
        }
    }

    pub(super) fn connect(&self, volume: &Volume, server: &Server) -> Result<()> {
        let disk = json!({
            "source": format!("zones/{}/disks/{}", volume.region, self.tenant.volume(&volume.node)),
            "boot": false,
            "autoDelete": false,
            "deviceName": "data",
            "mode": "READ_WRITE",
        });
        let path = format!("zones/{}/instances/{}/attachDisk", server.region, server.id);
        self.act(&path, &disk, &format!("attaching the data volume of {}", volume.node))
    }

    pub(super) fn disconnect(&self, volume: &Volume) -> Result<()> {
        let server = volume.server.as_deref().context("the data volume is at no machine")?;
        let (place, name) = (format!("zones/{}/instances/{server}", volume.region), self.tenant.volume(&volume.node));
        // One that is gone has no disks any more.
        let Some(one) = self.find(&place)? else { return Ok(()) };
        let Some(disk) = entries(&one, "disks").find(|disk| last(disk, "source") == name) else { return Ok(()) };
        let path = format!("{place}/detachDisk?deviceName={}", escape(text(disk, "deviceName"), true));
        self.act(&path, &Value::Null, &format!("detaching the data volume of {}", volume.node))
    }

    /// What is at work, or gone, is asked about again by who called.
    fn act(&self, path: &str, body: &Value, what: &str) -> Result<()> {
        let request = |url: String| if body.is_null() { Request::post(url) } else { Request::post(url).json(body) };
        let answer = self.send(self.once(request, path))?;
        let gone = |error: &anyhow::Error| error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 404);
        self.done(&answer, what).map_err(|error| match gone(&error) {
            true => Busy(error.to_string()).into(),
            false => busy(error),
        })
    }

    pub(super) fn delete_disk(&self, disk: &str, what: &str) -> Result<()> {
        let all = self.everywhere("disks")?;
        let Some(one) = all.iter().find(|one| one["id"] == disk) else { return Ok(()) };
        let (zone, name) = (checked(last(one, "zone"), "a zone")?, checked(text(one, "name"), "a disk")?);
        self.remove(&format!("zones/{zone}/disks/{name}"), what)
    }
}
