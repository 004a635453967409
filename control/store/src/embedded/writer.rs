//! The writer thread: group commit, expiry, and the rewriting of a log that has grown.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use tokio::sync::oneshot;

use super::open::{write_picture, write_snapshot};
use super::state::Shared;
use super::{LOG, LOG_NEW, Options};
use crate::frame::FrameWriter;
use crate::io::{Disk, DiskFile};
use crate::{Entry, Expect, Result, Stamped, StoreError};

/// Most writes in one batch, and about the most bytes.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;
/// How often expiry is looked at.
const TICK: Duration = Duration::from_secs(1);

pub(crate) enum Op {
    Put {
        key: Arc<str>,
        value: Stamped,
        expect: Expect,
        expires: u64,
    },
    Delete {
        key: Arc<str>,
        expect: Expect,
    },
    Snapshot {
        to: PathBuf,
    },
    /// A fresh log is ready to take the old one's place.
    Rewritten(Result<(Box<dyn DiskFile>, u64)>),
    End,
}

pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) reply: Option<oneshot::Sender<Result<u64>>>,
}

pub(crate) struct Writer {
    disk: Arc<dyn Disk>,
    options: Options,
    shared: Arc<Shared>,
    file: Box<dyn DiskFile>,
    log_bytes: u64,
    /// Next revision is one more.
    revision: u64,
    /// (when, key) of what goes by itself.
    expiry: BTreeSet<(u64, Arc<str>)>,
    inbox: Sender<Request>,
    /// Frames since the picture that a rewriting thread is writing.
    tail: Option<Vec<Vec<u8>>>,
    ended: bool,
}

/// Writes of one batch that are not durable yet.
struct Batch {
    frame: FrameWriter,
    staged: HashMap<Arc<str>, Option<Entry>>,
    order: Vec<(Arc<str>, Option<Entry>, u64)>,
    answers: Vec<(oneshot::Sender<Result<u64>>, u64)>,
}

impl Batch {
    fn new() -> Batch {
        Batch { frame: FrameWriter::new(), staged: HashMap::new(), order: Vec::new(), answers: Vec::new() }
    }
}

impl Writer {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        options: Options,
        shared: Arc<Shared>,
        file: Box<dyn DiskFile>,
        log_bytes: u64,
        inbox: Sender<Request>,
    ) -> Writer {
        let (revision, expiry) = {
            let state = shared.read();
            let expiry = state.live.values().filter(|e| e.expires > 0).map(|e| (e.expires, e.key.clone())).collect();
            (state.revision, expiry)
        };
        Writer { disk, options, shared, file, log_bytes, revision, expiry, inbox, tail: None, ended: false }
    }

    pub(crate) fn run(mut self, inbox: &Receiver<Request>) {
        while !self.ended {
            let first = match inbox.recv_timeout(TICK) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut batch = Batch::new();
            let mut next = first;
            while let Some(request) = next {
                self.take(request, &mut batch);
                let more = batch.order.len() < BATCH && batch.frame.len() < BATCH_BYTES;
                next = if more { inbox.try_recv().ok() } else { None };
            }
            self.stage_expired(&mut batch);
            self.commit(batch);
            self.rewrite_if_grown();
        }
    }

    fn take(&mut self, request: Request, batch: &mut Batch) {
        let Request { op, reply } = request;
        let outcome = match op {
            Op::Put { key, value, expect, expires } => self.stage_put(batch, key, &value, expect, expires),
            Op::Delete { key, expect } => self.stage_delete(batch, key, expect),
            Op::Snapshot { to } => {
                self.snapshot(to, reply);
                return;
            }
            Op::Rewritten(done) => {
                // What is staged belongs to the old log; it must be in the tail.
                let staged = std::mem::replace(batch, Batch::new());
                self.commit(staged);
                self.swap_log(done);
                return;
            }
            Op::End => {
                self.ended = true;
                return;
            }
        };
        let Some(reply) = reply else { return };
        match outcome {
            Ok(revision) => batch.answers.push((reply, revision)),
            // A client that went away needs no answer, here and below.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn current(&self, batch: &Batch, key: &Arc<str>) -> Option<(u64, u64)> {
        let brief = |e: &Entry| (e.revision, e.created);
        match batch.staged.get(key) {
            Some(staged) => staged.as_ref().map(brief),
            None => self.shared.read().live.get(key).map(brief),
        }
    }

    fn check(&self, current: Option<(u64, u64)>, expect: Expect) -> Result<()> {
        if let Some(what) = self.shared.failure() {
            return Err(StoreError::Failed(what));
        }
        let fits = match expect {
            Expect::Any => true,
            Expect::Absent => current.is_none(),
            Expect::At(revision) => current.is_some_and(|(at, _)| at == revision),
        };
        if fits { Ok(()) } else { Err(StoreError::Mismatch) }
    }

    fn stage_put(
        &mut self,
        batch: &mut Batch,
        key: Arc<str>,
        value: &Stamped,
        expect: Expect,
        expires: u64,
    ) -> Result<u64> {
        let current = self.current(batch, &key);
        self.check(current, expect)?;
        let revision = self.revision + 1;
        let created = current.map_or(revision, |(_, created)| created);
        let entry = Entry { key: key.clone(), value: value.fill(revision), revision, created, expires };
        batch.frame.put(&entry, self.options.cipher.as_deref())?;
        self.revision = revision;
        batch.staged.insert(key.clone(), Some(entry.clone()));
        batch.order.push((key, Some(entry), revision));
        Ok(revision)
    }

    fn stage_delete(&mut self, batch: &mut Batch, key: Arc<str>, expect: Expect) -> Result<u64> {
        let current = self.current(batch, &key);
        self.check(current, expect)?;
        if current.is_none() {
            return Err(StoreError::Mismatch);
        }
        self.revision += 1;
        batch.frame.delete(&key, self.revision);
        batch.staged.insert(key.clone(), None);
        batch.order.push((key, None, self.revision));
        Ok(self.revision)
    }

    fn stage_expired(&mut self, batch: &mut Batch) {
        let now = (self.options.clock)();
        while let Some((when, key)) = self.expiry.first().cloned() {
            if when > now || batch.order.len() >= BATCH {
                return;
            }
            self.expiry.pop_first();
            // The key may have been written again, with another time or none.
            let due = match batch.staged.get(&key) {
                Some(_) => false,
                None => self.shared.read().live.get(&key).is_some_and(|e| e.expires == when),
            };
            if due && let Err(error) = self.stage_delete(batch, key, Expect::Any) {
                tracing::warn!("an expired key stays: {error}");
                return;
            }
        }
    }

    fn commit(&mut self, batch: Batch) {
        if batch.order.is_empty() {
            return;
        }
        let data = batch.frame.finish();
        if let Err(error) = self.file.append(&data).and_then(|()| self.file.sync()) {
            let what = format!("writing {}: {error}", self.disk.describe(LOG));
            tracing::error!("{what}; the store takes no more writes");
            self.shared.fail(&what);
            for (reply, _) in batch.answers {
                drop(reply.send(Err(StoreError::Failed(what.clone()))));
            }
            return;
        }
        self.log_bytes += data.len() as u64;
        if let Some(tail) = &mut self.tail {
            tail.push(data);
        }
        for (key, entry, _) in &batch.order {
            if let Some(expires) = entry.as_ref().map(|e| e.expires).filter(|e| *e > 0) {
                self.expiry.insert((expires, key.clone()));
            }
        }
        self.shared.commit(batch.order);
        for (reply, revision) in batch.answers {
            drop(reply.send(Ok(revision)));
        }
    }

    fn picture(&self) -> (Vec<Entry>, u64) {
        let state = self.shared.read();
        (state.live.values().cloned().collect(), state.revision)
    }

    fn snapshot(&self, to: PathBuf, reply: Option<oneshot::Sender<Result<u64>>>) {
        let (entries, revision) = self.picture();
        let cipher = self.options.cipher.clone();
        let work = move || {
            let done = write_snapshot(&to, &entries, revision, cipher.as_ref());
            if let Some(reply) = reply {
                drop(reply.send(done));
            }
        };
        if let Err(error) = std::thread::Builder::new().name("store-snapshot".into()).spawn(work) {
            tracing::error!("a snapshot was not made: starting its thread: {error}");
        }
    }

    fn rewrite_if_grown(&mut self) {
        let live = self.shared.read().live_bytes;
        let due = self.log_bytes > self.options.min_log_bytes.max(2 * live);
        if self.tail.is_some() || !due || self.ended || self.shared.failure().is_some() {
            return;
        }
        self.tail = Some(Vec::new());
        let (entries, revision) = self.picture();
        let (disk, cipher, inbox) = (self.disk.clone(), self.options.cipher.clone(), self.inbox.clone());
        let work = move || {
            let done = disk
                .create(LOG_NEW)
                .map_err(|source| StoreError::Io { what: format!("creating {}", disk.describe(LOG_NEW)), source })
                .and_then(|mut file| {
                    write_picture(file.as_mut(), entries.iter(), revision, cipher.as_deref()).map(|size| (file, size))
                });
            // The writer may have ended; then nobody needs the new log.
            drop(inbox.send(Request { op: Op::Rewritten(done), reply: None }));
        };
        if let Err(error) = std::thread::Builder::new().name("store-rewrite".into()).spawn(work) {
            tracing::error!("the log was not rewritten: starting the thread: {error}");
            self.tail = None;
        }
    }

    fn swap_log(&mut self, done: Result<(Box<dyn DiskFile>, u64)>) {
        let tail = self.tail.take().unwrap_or_default();
        let swapped = done.and_then(|(mut file, mut size)| {
            let failed = |source| StoreError::Io {
                what: format!("putting the rewritten {} in place", self.disk.describe(LOG)),
                source,
            };
            if !tail.is_empty() {
                for data in &tail {
                    file.append(data).map_err(failed)?;
                    size += data.len() as u64;
                }
                file.sync().map_err(failed)?;
            }
            self.disk.rename(LOG_NEW, LOG).map_err(failed)?;
            // From here on the new file is the log, whatever the directory's sync says.
            self.file = file;
            self.log_bytes = size;
            self.disk.sync_dir().map_err(|source| {
                let error = failed(source);
                self.shared.fail(&error.to_string());
                error
            })
        });
        if let Err(error) = swapped {
            tracing::error!("the log was not rewritten: {error}");
            // Try again only after it has grown as much once more.
            self.options.min_log_bytes = self.log_bytes * 2;
        }
    }
}
