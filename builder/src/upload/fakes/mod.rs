//! Providers as they behave: each answers calls by what it knows, and knows what it was told.

pub(super) mod aws;
pub(super) mod digitalocean;
pub(crate) mod gcp;
pub(super) mod hetzner;
pub(super) mod linode;
pub(super) mod openstack;
pub(super) mod proxmox;
pub(super) mod s3;
pub(super) mod vultr;

use crate::web::fake::Virtual;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// What the fakes know. One world is all of a provider's servers.
#[derive(Default)]
pub(super) struct World {
    pub(super) objects: BTreeMap<String, Object>,
    pub(super) uploads: BTreeMap<String, Upload>,
    pub(super) images: BTreeMap<String, Image>,
    /// Places for bytes that are forgotten by themselves.
    pub(super) sessions: BTreeMap<String, Upload>,
    /// What the provider is at work on.
    pub(super) tasks: BTreeMap<String, Task>,
    pub(super) snapshots: BTreeMap<String, Snapshot>,
    pub(super) servers: BTreeMap<String, Server>,
    /// Names of the keys that servers let in.
    pub(super) keys: BTreeMap<String, String>,
    /// EBS is asked too much, once.
    pub(super) busy: bool,
    pub(super) count: usize,
    /// How many calls have been answered.
    pub(super) answered: usize,
    /// How often an image is asked for before it is ready.
    pub(super) slow: usize,
    /// The importer does not take what it is given.
    pub(super) refuses: bool,
    /// The bucket lets nobody in.
    pub(super) private: bool,
    /// The store damages what it keeps.
    pub(super) damages: bool,
    /// It does so once it has said that all is well.
    pub(super) rots: bool,
    /// The token that counts.
    pub(super) token: usize,
    /// Another kimg ends the upload with these bytes before a call of this method.
    pub(super) rival: Option<(&'static str, Vec<u8>)>,
    /// The user interrupts kimg by this clock while so many calls before this one are done.
    pub(super) stops: Option<(Arc<Virtual>, usize)>,
    /// Lists have a next page always.
    pub(super) endless: bool,
    /// Lists hold all that is there, whatever was asked for.
    pub(super) lists_all: bool,
    /// The place for an image's bytes takes none any more.
    pub(super) expired: bool,
    /// The place for an image's bytes is one without TLS.
    pub(super) clear: bool,
    /// Where Keystone says that Glance is.
    pub(super) glance: Option<&'static str>,
}

#[derive(Default)]
pub(super) struct Object {
    pub(super) bytes: Vec<u8>,
    pub(super) sum: String,
    pub(super) public: bool,
}

#[derive(Default)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) sum: String,
    pub(super) public: bool,
    pub(super) parts: BTreeMap<u64, Vec<u8>>,
}

#[derive(Default)]
pub(super) struct Image {
    pub(super) name: String,
    pub(super) status: String,
    pub(super) bytes: Vec<u8>,
    pub(super) asked: usize,
    /// The snapshot that it is made of.
    pub(super) snapshot: String,
}

/// A snapshot in EBS.
#[derive(Default)]
pub(super) struct Snapshot {
    pub(super) token: String,
    pub(super) description: String,
    /// GiB
    pub(super) size: usize,
    pub(super) status: String,
    pub(super) blocks: BTreeMap<usize, Vec<u8>>,
    pub(super) completed: bool,
    /// How often it is asked for until what was completed is.
    pub(super) left: usize,
}

impl Snapshot {
    /// As far as there is something on it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, block) in &self.blocks {
            bytes.resize(index * block.len(), 0);
            bytes.extend(block);
        }
        bytes
    }
}

/// A server with a disk.
#[derive(Default)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) user_data: String,
    pub(super) disk: Vec<u8>,
    pub(super) runs: bool,
    /// The next start is one of the rescue system.
    pub(super) rescue: bool,
    pub(super) in_rescue: bool,
    /// How often it cannot be removed yet.
    pub(super) locked: usize,
}

/// Work that ends when it was asked for often enough.
pub(super) struct Task {
    pub(super) asked: usize,
    /// How it ends.
    pub(super) end: String,
    /// What comes of it.
    pub(super) image: Option<(String, Image)>,
    pub(super) ended: bool,
}

impl World {
    /// The id of a new thing.
    pub(super) fn number(&mut self) -> String {
        self.count += 1;
        self.count.to_string()
    }

    /// The name of a new task.
    pub(super) fn task(&mut self) -> String {
        self.count += 1;
        format!("UPID:{}:", self.count)
    }
}

pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn held(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
