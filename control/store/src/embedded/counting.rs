//! A disk that counts what the engine asks of the real one.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::io::{Disk, DiskFile};
use crate::{Counters, Point};

/// What is counted; see [`Counters`].
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) batches: AtomicU64,
    pub(crate) writes: AtomicU64,
    pub(crate) acknowledged_bytes: AtomicU64,
    pub(crate) rewrites: AtomicU64,
    pub(crate) log_bytes: AtomicU64,
    /// The log's format.
    pub(crate) format: AtomicU32,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
}

impl Counts {
    /// The numbers now; the history's are not known here.
    pub(crate) fn read(&self) -> Counters {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Counters {
            batches: get(&self.batches),
            writes: get(&self.writes),
            acknowledged_bytes: get(&self.acknowledged_bytes),
            written_bytes: get(&self.written_bytes),
            syncs: get(&self.syncs),
            rewrites: get(&self.rewrites),
            log_bytes: get(&self.log_bytes),
            history: 0,
            history_bytes: 0,
        }
    }

    fn synced(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }
}

/// The disk; snapshots, which go to another directory, are not counted.
pub(crate) struct Counting {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) counts: Arc<Counts>,
}

struct CountingFile {
    file: Box<dyn DiskFile>,
    counts: Arc<Counts>,
}

impl DiskFile for CountingFile {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.counts.written_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.file.append(data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.counts.synced();
        self.file.sync()
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.file.cut(len)
    }
}

impl Counting {
    fn count(&self, file: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(CountingFile { file, counts: self.counts.clone() })
    }
}

impl Disk for Counting {
    fn describe(&self, name: &str) -> String {
        self.disk.describe(name)
    }
    fn read(&self, name: &str) -> io::Result<Option<Box<dyn Read + Send>>> {
        self.disk.read(name)
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create(name).map(|f| self.count(f))
    }
    fn append_to(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        self.disk.append_to(name, len).map(|f| self.count(f))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.counts.synced();
        self.disk.sync_dir()
    }
    fn beside(&self, dir: &Path) -> io::Result<Arc<dyn Disk>> {
        self.disk.beside(dir)
    }
    fn reach(&self, point: Point) {
        self.disk.reach(point);
    }
}
