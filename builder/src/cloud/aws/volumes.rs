//! Data volumes at AWS: those of EBS with the tags `kimg-cluster`, `kimg-ca` and `kimg-node`.
//!
//! A machine's own volume bears `kimg-role` in the place of `kimg-node`, and goes with it. One that is left over is something
//! to remove.

use super::{Aws, Kind, entries, fields, filters, id, tag, token};
use crate::cloud::marks::{NODE, ROLE};
use crate::cloud::{Inventory, Server, Thing, Volume, text};
use anyhow::{Context, Result};

const VOLUME: Kind = Kind { name: "volume", list: "DescribeVolumes", set: "volumeSet" };

impl Aws {
    pub(super) fn add_volumes(&self, into: &mut Inventory) -> Result<()> {
        for one in self.tenant.seen(self.ours(&VOLUME), into)? {
            let (state, node, volume) = (text(&one, "status"), tag(&one, NODE), id(&one, "volumeId", "a volume")?);
            if state == "available" && !tag(&one, ROLE).is_empty() {
                into.rest.push(Thing { kind: "disk", id: volume.clone(), name: tag(&one, "Name").into() });
            }
            // One that goes is listed for a while.
            if node.is_empty() || ["deleting", "deleted"].contains(&state) {
                continue;
            }
            let at = entries(&one, "attachmentSet").find(|at| text(at, "status") != "detached");
            into.add_volume(Volume {
                id: volume,
                node: node.into(),
                gb: text(&one, "size").parse().context("the provider's answer names no size of a volume")?,
                region: text(&one, "availabilityZone").into(),
                server: at.map(|at| id(at, "instanceId", "a machine")).transpose()?,
            });
        }
        Ok(())
    }

    pub(super) fn new_volume(&self, node: &str, gb: u32) -> Result<()> {
        let mut pairs = fields(&[
            ("AvailabilityZone", &self.tenant.region),
            ("Size", &gb.to_string()),
            ("VolumeType", "gp3"),
            ("ClientToken", &token()),
        ]);
        pairs.extend(self.tags(1, VOLUME.name, &self.tenant.volume(node), &[(NODE, node)]));
        self.call("CreateVolume", &pairs, true, &[]).map(drop)
    }

    /// With a name of a device that the machine has no other by. What is attached to a machine that is there stays when
    /// that goes, unless somebody says otherwise.
    pub(super) fn connect(&self, volume: &Volume, server: &Server) -> Result<()> {
        let found = self.instances_by(&filters(&[("instance-id", &[&server.id])]))?;
        let taken: Vec<&str> = found
            .iter()
            .flat_map(|one| entries(one, "blockDeviceMapping"))
            .map(|one| text(one, "deviceName"))
            .collect();
        let device = ('f'..='p').map(|c| format!("/dev/sd{c}")).find(|name| !taken.contains(&name.as_str()));
        let device = device.with_context(|| format!("the machine of {} has too many volumes", server.node))?;
        let pairs = fields(&[("VolumeId", &volume.id), ("InstanceId", &server.id), ("Device", &device)]);
        self.call("AttachVolume", &pairs, true, &[]).map(drop).map_err(super::busy)
    }

    pub(super) fn disconnect(&self, volume: &Volume) -> Result<()> {
        let server = volume.server.as_deref().context("the data volume is at no machine")?;
        self.remove("DetachVolume", &[("VolumeId", &volume.id), ("InstanceId", server)])
    }
}
