//! A disk in memory that can lose its power: what was not synced may be gone, in part.

use std::collections::HashMap;
use std::io::{self, Cursor, Read};
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::io::{Disk, DiskFile};

/// Smallest piece that is lost or kept as a whole.
const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct Content {
    data: Vec<u8>,
    /// Bytes that survive for certain.
    synced: usize,
}

#[derive(Default)]
struct State {
    files: HashMap<u64, Content>,
    names: HashMap<String, u64>,
    durable_names: HashMap<String, u64>,
    next: u64,
    syncs: u64,
    /// Whether `sync` lies, as a build without fsync would.
    ignore_sync: bool,
    /// Fails every call once it reaches zero.
    calls_left: Option<u64>,
}

/// The disk; clones share it.
#[derive(Clone, Default)]
pub struct FaultDisk(Arc<Mutex<State>>);

impl std::fmt::Debug for FaultDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultDisk")
    }
}

impl FaultDisk {
    /// An empty disk.
    pub fn new() -> FaultDisk {
        FaultDisk::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn call(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if let Some(left) = &mut state.calls_left {
            if *left == 0 {
                return Err(io::Error::other("the plug is out"));
            }
            *left -= 1;
        }
        Ok(state)
    }

    /// Lets `calls` more calls succeed; all later ones fail.
    pub fn fail_after(&self, calls: u64) {
        self.lock().calls_left = Some(calls);
    }

    /// Makes syncs do nothing.
    pub fn ignore_sync(&self) {
        self.lock().ignore_sync = true;
    }

    /// How many syncs of files were asked for.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The bytes of a file, to look at or to damage.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        if let Some(id) = state.names.get(name).copied()
            && let Some(content) = state.files.get_mut(&id)
        {
            change(&mut content.data);
            content.synced = content.data.len();
        }
    }

    /// The disk as it is found after the plug was pulled: of what was not synced a random
    /// subset survives.
    pub fn plug(&self, seed: u64) -> FaultDisk {
        let mut rng = StdRng::seed_from_u64(seed);
        let state = self.lock();
        let names = if rng.random_bool(0.5) { state.names.clone() } else { state.durable_names.clone() };
        let files = state.files.iter().map(|(id, content)| (*id, tear(content, &mut rng))).collect();
        FaultDisk(Arc::new(Mutex::new(State {
            files,
            names: names.clone(),
            durable_names: names,
            next: state.next,
            ..State::default()
        })))
    }
}

fn tear(content: &Content, rng: &mut StdRng) -> Content {
    let mut data = content.data.clone();
    let cut = rng.random_range(content.synced..=data.len());
    data.truncate(cut);
    let mut at = content.synced;
    while at < data.len() {
        let end = ((at / SECTOR + 1) * SECTOR).min(data.len());
        if rng.random_bool(0.5) {
            data[at..end].fill(0);
        }
        at = end;
    }
    Content { synced: data.len(), data }
}

struct FaultFile {
    disk: FaultDisk,
    id: u64,
}

impl DiskFile for FaultFile {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        let mut state = self.disk.call()?;
        if let Some(content) = state.files.get_mut(&self.id) {
            content.data.extend_from_slice(data);
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.call()?;
        state.syncs += 1;
        let lie = state.ignore_sync;
        if let Some(content) = state.files.get_mut(&self.id).filter(|_| !lie) {
            content.synced = content.data.len();
        }
        Ok(())
    }
}

impl Disk for FaultDisk {
    fn describe(&self, name: &str) -> String {
        name.to_string()
    }

    fn read(&self, name: &str) -> io::Result<Option<Box<dyn Read + Send>>> {
        let state = self.call()?;
        let content = state.names.get(name).and_then(|id| state.files.get(id));
        Ok(content.map(|c| Box::new(Cursor::new(c.data.clone())) as Box<dyn Read + Send>))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.call()?;
        state.next += 1;
        let id = state.next;
        state.files.insert(id, Content::default());
        state.names.insert(name.to_string(), id);
        Ok(Box::new(FaultFile { disk: self.clone(), id }))
    }

    fn append_to(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.call()?;
        let id = state.names.get(name).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if let Some(content) = state.files.get_mut(&id) {
            content.data.truncate(len as usize);
            content.synced = content.data.len();
        }
        Ok(Box::new(FaultFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.call()?;
        let id = state.names.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        state.names.insert(to.to_string(), id);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call()?.names.remove(name);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.call()?;
        if !state.ignore_sync {
            state.durable_names = state.names.clone();
        }
        Ok(())
    }
}
