//! The etcd that several masters share, as far as it goes by what they are told and by what becomes of their machines.

use super::World;
use anyhow::{Result, bail};
use node_api::{Masters, StoreMember};
use std::collections::BTreeMap;

/// A machine, and which of its disks.
pub(in super::super) type Disk = (u64, usize);

/// What the masters know, and what their store is on.
#[derive(Default, Clone)]
pub(in super::super) struct Etcd {
    /// What each was told.
    told: BTreeMap<Disk, Masters>,
    /// The members, and their addresses; none before a store has begun.
    members: BTreeMap<Disk, String>,
    /// The store has objects.
    pub(in super::super) filled: bool,
}

impl World {
    fn disk(&self, id: u64) -> Option<Disk> {
        self.machines.get(&id).map(|machine| (id, machine.disks))
    }

    fn answers(&self, (id, disk): Disk) -> bool {
        self.machines.contains_key(&id) && self.runs(id) && self.disk(id) == Some((id, disk))
    }

    pub(in super::super) fn told_of(&self, id: u64) -> Masters {
        self.disk(id).and_then(|disk| self.etcd.told.get(&disk).cloned()).unwrap_or_default()
    }

    pub(in super::super) fn tell(&mut self, id: u64, masters: &Masters) {
        assert!(
            masters.masters.iter().any(|one| one.to_string() == self.private(id)),
            "it is none of these: {masters:?}"
        );
        if let Some(disk) = self.disk(id) {
            self.etcd.told.insert(disk, masters.clone());
        }
        self.settle();
    }

    fn has_majority(&self) -> bool {
        let healthy = self.etcd.members.keys().filter(|disk| self.answers(**disk)).count();
        healthy * 2 > self.etcd.members.len()
    }

    /// Members begin and join, as `kube-apiserver store member` has them.
    fn settle(&mut self) {
        let told: Vec<(Disk, Masters)> =
            self.etcd.told.iter().map(|(disk, masters)| (*disk, masters.clone())).collect();
        for (disk, masters) in &told {
            if !self.answers(*disk) {
                continue;
            }
            if self.etcd.members.is_empty() && !masters.join {
                let with = told
                    .iter()
                    .filter(|(other, its)| self.answers(*other) && !its.join && its.masters == masters.masters);
                let with: Vec<Disk> = with.map(|(disk, _)| *disk).collect();
                if with.len() * 2 > masters.masters.len() {
                    self.etcd.members = with.into_iter().map(|disk| (disk, self.private(disk.0))).collect();
                }
            } else if !self.etcd.members.contains_key(disk) && self.has_majority() {
                let own = self.private(disk.0);
                // The member that it was has lost its disk.
                self.etcd.members.retain(|_, address| *address != own);
                self.etcd.members.insert(*disk, own);
            }
        }
    }

    /// Whether the API server of a master has a store to serve.
    pub(in super::super) fn serves(&mut self, id: u64) -> Result<()> {
        self.settle();
        let Some(disk) = self.disk(id).filter(|disk| self.etcd.members.contains_key(disk)) else {
            bail!("it was not told yet which the other masters are")
        };
        if !self.answers(disk) || !self.has_majority() {
            bail!("its etcd has no majority");
        }
        if !self.etcd.filled {
            bail!("it waits for a backup");
        }
        Ok(())
    }

    pub(in super::super) fn begin_filled(&mut self) -> Result<()> {
        self.settle();
        if self.etcd.members.is_empty() {
            bail!("its etcd has not begun");
        }
        self.etcd.filled = true;
        Ok(())
    }

    pub(in super::super) fn members(&mut self) -> Vec<StoreMember> {
        self.settle();
        let member = |(disk, address): (&Disk, &String)| StoreMember {
            id: disk.0.to_string(),
            name: address.clone(),
            peer: format!("https://{address}:2380"),
            learner: false,
            started: true,
            healthy: self.answers(*disk),
            leader: false,
        };
        self.etcd.members.iter().map(member).collect()
    }

    pub(in super::super) fn remove_member(&mut self, address: &str) {
        assert!(self.members().iter().all(|one| one.name != address || !one.healthy), "{address} is healthy");
        self.etcd.members.retain(|_, known| known != address);
    }

    /// The machines that are members with the disks that they have.
    pub(in super::super) fn whole_members(&self) -> Vec<u64> {
        self.etcd.members.keys().filter(|disk| self.answers(**disk)).map(|(id, _)| *id).collect()
    }

    pub(in super::super) fn count_members(&self) -> usize {
        self.etcd.members.len()
    }
}
