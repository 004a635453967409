//! A disk in memory that can lose its power: what was not synced may be gone, in part.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::Point;
use crate::io::{Disk, DiskFile};

/// Smallest piece that is lost or kept as a whole.
const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct Content {
    data: Vec<u8>,
    /// Bytes that survive for certain.
    synced: usize,
}

/// When the plug goes out by itself.
#[derive(Clone, Copy, Debug)]
pub enum Pull {
    /// After so many more calls of the disk.
    Calls(u64),
    /// When a point is reached for the so-manieth time, beginning with 1.
    At(Point, u64),
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    /// The names as they were at the last sync of the directory, and after each change since.
    past_names: Vec<BTreeMap<String, u64>>,
    next: u64,
    syncs: u64,
    /// Whether `sync` lies, as a build without fsync would.
    ignore_sync: bool,
    /// A sync takes up to this long.
    latency: Duration,
    pull: Option<Pull>,
    /// Whether the plug is out: every call fails.
    dead: bool,
    /// Bytes that still fit; None: as many as one likes.
    room: Option<usize>,
}

/// The disk; clones share it.  Directories are prefixes of names, and durable together.
#[derive(Clone, Default)]
pub struct FaultDisk {
    state: Arc<Mutex<State>>,
    dir: String,
}

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
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn call(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock();
        if let Some(Pull::Calls(left)) = &mut state.pull {
            if *left == 0 {
                state.dead = true;
            } else {
                *left -= 1;
            }
        }
        if state.dead { Err(io::Error::other("the plug is out")) } else { Ok(state) }
    }

    /// Says when the plug goes out.
    pub fn pull_at(&self, when: Pull) {
        self.lock().pull = Some(when);
    }

    /// Pulls the plug.
    pub fn pull(&self) {
        self.lock().dead = true;
    }

    /// Whether the plug is out.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Makes each sync take a random time up to this.
    pub fn set_latency(&self, latency: Duration) {
        self.lock().latency = latency;
    }

    /// Makes syncs do nothing.
    pub fn ignore_sync(&self) {
        self.lock().ignore_sync = true;
    }

    /// Leaves room for so many bytes.
    pub fn set_room(&self, room: Option<usize>) {
        self.lock().room = room;
    }

    /// How many syncs of files were asked for.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// The bytes of a file, to look at or to damage.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        if let Some(id) = state.names.get(&self.full(name)).copied()
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
        // A file system's journal keeps the order of changes of names.
        let kept = rng.random_range(0..=state.past_names.len());
        let names = state.past_names.get(kept).unwrap_or(&state.names).clone();
        let files = names.values().filter_map(|id| Some((*id, tear(state.files.get(id)?, &mut rng)))).collect();
        let after =
            State { files, names: names.clone(), next: state.next, ignore_sync: state.ignore_sync, ..State::default() };
        FaultDisk { state: Arc::new(Mutex::new(after)), dir: String::new() }
    }

    /// The disk as the next process finds it after this one was killed: all that was written is
    /// there, and what was not synced can still be lost.
    pub fn kill(&self) -> FaultDisk {
        let mut state = self.lock();
        let after = State {
            files: state.files.clone(),
            names: state.names.clone(),
            past_names: state.past_names.clone(),
            next: state.next,
            ignore_sync: state.ignore_sync,
            latency: state.latency,
            ..State::default()
        };
        state.dead = true;
        FaultDisk { state: Arc::new(Mutex::new(after)), dir: String::new() }
    }

    /// Names of all files.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.lock().names.keys().cloned().collect();
        names.sort();
        names
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.dir)
    }
}

impl State {
    /// A file that has lost its name leaves its room.
    fn give_room_of(&mut self, gone: Option<u64>) {
        let freed = gone.and_then(|id| self.files.get(&id)).map_or(0, |content| content.data.len());
        self.room = self.room.map(|room| room + freed);
    }

    /// To be called before each change of names.
    fn keep_names(&mut self) {
        let names = self.names.clone();
        self.past_names.push(names);
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
        // As a file system does it: what fits is written before the rest is refused.
        let fits = state.room.map_or(data.len(), |room| room.min(data.len()));
        state.room = state.room.map(|room| room - fits);
        if let Some(content) = state.files.get_mut(&self.id) {
            content.data.extend_from_slice(&data[..fits]);
        }
        if fits < data.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let latency = self.disk.lock().latency;
        if !latency.is_zero() {
            std::thread::sleep(latency.mul_f64(rand::random()));
        }
        let mut state = self.disk.call()?;
        state.syncs += 1;
        let lie = state.ignore_sync;
        if let Some(content) = state.files.get_mut(&self.id).filter(|_| !lie) {
            content.synced = content.data.len();
        }
        Ok(())
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        let mut state = self.disk.call()?;
        let mut freed = 0;
        if let Some(content) = state.files.get_mut(&self.id) {
            freed = content.data.len().saturating_sub(len as usize);
            content.data.truncate(len as usize);
            content.synced = content.synced.min(len as usize);
        }
        state.room = state.room.map(|room| room + freed);
        Ok(())
    }
}

impl Disk for FaultDisk {
    fn describe(&self, name: &str) -> String {
        self.full(name)
    }

    fn read(&self, name: &str) -> io::Result<Option<Box<dyn Read + Send>>> {
        let state = self.call()?;
        let content = state.names.get(&self.full(name)).and_then(|id| state.files.get(id));
        Ok(content.map(|c| Box::new(Cursor::new(c.data.clone())) as Box<dyn Read + Send>))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.call()?;
        state.keep_names();
        state.next += 1;
        let id = state.next;
        state.files.insert(id, Content::default());
        state.names.insert(self.full(name), id);
        Ok(Box::new(FaultFile { disk: self.clone(), id }))
    }

    fn append_to(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.call()?;
        let id = state.names.get(&self.full(name)).copied();
        let id = id.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        state.syncs += 1;
        let lie = state.ignore_sync;
        if let Some(content) = state.files.get_mut(&id) {
            content.data.truncate(len as usize);
            content.synced = if lie { content.synced.min(content.data.len()) } else { content.data.len() };
        }
        Ok(Box::new(FaultFile { disk: self.clone(), id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.call()?;
        let id = state.names.get(&self.full(from)).copied();
        let id = id.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        state.keep_names();
        state.names.remove(&self.full(from));
        let gone = state.names.insert(self.full(to), id);
        state.give_room_of(gone);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.call()?;
        if state.names.contains_key(&self.full(name)) {
            state.keep_names();
            let gone = state.names.remove(&self.full(name));
            state.give_room_of(gone);
        }
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.call()?;
        if !state.ignore_sync {
            state.past_names.clear();
        }
        Ok(())
    }

    fn beside(&self, dir: &Path) -> io::Result<Arc<dyn Disk>> {
        let dir = format!("{}/", dir.display());
        Ok(Arc::new(FaultDisk { state: self.state.clone(), dir }))
    }

    fn reach(&self, point: Point) {
        let mut state = self.lock();
        let State { pull, dead, .. } = &mut *state;
        if let Some(Pull::At(at, left)) = pull
            && *at == point
        {
            *left = left.saturating_sub(1);
            *dead |= *left == 0;
        }
    }
}
