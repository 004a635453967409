//! Data volumes at OpenStack: those of Cinder with the metadata `kimg-cluster`, `kimg-ca` and `kimg-node`, which Nova attaches.
//! <https://docs.openstack.org/api-ref/block-storage/v3/>
//!
//! Their names are not unique, so one is looked for before it is made. What becomes of a call is seen in the list.

use super::{BUILT, EVERY, OpenStack, SERVERS, explain, id, id_of};
use crate::cloud::marks::NODE;
use crate::cloud::{Busy, Inventory, Server, Volume, text};
use crate::input;
use crate::upload::keystone::Service;
use crate::upload::may_be_done;
use crate::web::{Answer, Client, Request};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

const VOLUMES: &str = "/volumes";

impl OpenStack {
    fn cinder(&self, make: &dyn Fn(&str) -> Request) -> Result<Answer> {
        self.send_by(&self.client, Service::Volume, make)
    }

    /// Those of the cluster.
    fn volumes_by(&self, client: &Client) -> Result<Vec<Value>> {
        let mut all = self.list_by(client, Service::Volume, "/volumes/detail", "volumes")?;
        all.retain(|one| {
            let marks = self.marks(one);
            marks.cluster && marks.ca
        });
        Ok(all)
    }

    pub(super) fn add_volumes(&self, into: &mut Inventory) -> Result<()> {
        if !self.keystone.has(&self.client, Service::Volume).map_err(explain)? {
            return match self.tenant.has_volumes {
                false => Ok(()),
                true => input::bad(
                    "nodes.data-gb: the catalogue of this OpenStack has no block storage (Cinder) for this project; remove the \
                     line, or ask who runs the cloud",
                ),
            };
        }
        for one in self.tenant.seen(self.volumes_by(&self.client), into)? {
            let at = &one["attachments"][0];
            let server = at["server_id"].is_string().then(|| id_of(at, "server_id", "a machine")).transpose()?;
            into.add_volume(Volume {
                id: id(&one, "a volume")?,
                node: text(&one["metadata"], NODE).into(),
                gb: one["size"].as_u64().context("the provider's answer names no size of a volume")?,
                // Each region has volumes of its own.
                region: self.tenant.region.clone(),
                server,
            });
        }
        Ok(())
    }

    pub(super) fn new_volume(&self, node: &str, gb: u32) -> Result<()> {
        let look = |client: &Client| -> Result<Option<Value>> {
            Ok(self.volumes_by(client)?.into_iter().find(|one| one["metadata"][NODE] == node))
        };
        let metadata = self.tenant.labels(&[(NODE, node)]);
        let body = json!({"volume": {"name": self.tenant.volume(node), "size": gb, "metadata": metadata}});
        let ask = || {
            let made = self.cinder(&|url| Request::post(format!("{url}{VOLUMES}")).json(&body))?;
            Ok(made.expect(&[202]).map_err(explain)?.json()?["volume"].clone())
        };
        let made = match look(&self.client)? {
            Some(there) => there,
            None => ask().or_else(|error: anyhow::Error| match may_be_done(&error) {
                true => look(&self.client.for_cleanup()).ok().flatten().ok_or(error),
                false => Err(error),
            })?,
        };
        let place = format!("{VOLUMES}/{}", id(&made, "the volume")?);
        let what = format!("making the data volume of {node}");
        // There may be no room for it after all.
        self.client.poll(&what, EVERY, BUILT, || {
            let one = self.cinder(&|url| Request::get(format!("{url}{place}")))?.expect(&[200]).map_err(explain)?;
            match text(&one.json()?["volume"], "status") {
                "creating" => Ok(None),
                "error" => bail!(
                    "{what}: OpenStack says only that it failed; `kimg destroy --node {node} --data` removes it, or you do there"
                ),
                _ => Ok(Some(())),
            }
        })
    }

    pub(super) fn connect(&self, volume: &Volume, server: &Server) -> Result<()> {
        let place = format!("{SERVERS}/{}/os-volume_attachments", server.id);
        let body = json!({"volumeAttachment": {"volumeId": volume.id}});
        let asked = self.nova(&|url| Request::post(format!("{url}{place}")).json(&body).repeatable(true))?;
        match asked.status {
            200 | 202 => Ok(()),
            // Nova may be told to look at zones, which kimg leaves to the cloud.
            400 if asked.refused().said.contains("availability_zone") => Err(explain(asked.refused().into())),
            400 | 404 | 409 => Err(Busy(asked.refused().to_string()).into()),
            _ => Err(explain(asked.refused().into())),
        }
    }

    pub(super) fn disconnect(&self, volume: &Volume) -> Result<()> {
        let server = volume.server.as_deref().context("the data volume is at no machine")?;
        let place = format!("{SERVERS}/{server}/os-volume_attachments/{}", volume.id);
        gone(&self.nova(&|url| Request::delete(format!("{url}{place}")))?)
    }

    pub(super) fn delete_volume(&self, volume: &str) -> Result<()> {
        gone(&self.cinder(&|url| Request::delete(format!("{url}{VOLUMES}/{volume}")))?)
    }
}

/// Whether an end was asked for; what is in use, or at work, has it later.
fn gone(answer: &Answer) -> Result<()> {
    match answer.status {
        200 | 202 | 204 | 404 => Ok(()),
        400 | 409 => Err(Busy(answer.refused().to_string()).into()),
        _ => Err(explain(answer.refused().into())),
    }
}
