//! The writer thread: group commit, expiry, and what is due from time to time.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::counting::Counts;
use super::open::write_snapshot;
use super::rewrite::Rewriting;
use super::{LOG, Options};
use crate::frame::FrameWriter;
use crate::io::{Disk, DiskFile};
use crate::state::Shared;
use crate::{Entry, Expect, Point, Result, Stamped, StoreError};

/// Most writes in one batch, and about the most bytes.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 1 << 20;
/// How often expiry and ages are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How finely the age of changes is known: in so many parts of the time that they are kept.
const AGE_PARTS: u32 = 10;

pub(super) type Reply = oneshot::Sender<Result<u64>>;

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
    /// Forget the history, and write the log anew.
    Scrub,
    /// Write the log anew in the newest format, and go on in that.
    Raise,
    /// A fresh log is ready to take the old one's place.
    Rewritten,
    End,
}

pub(crate) struct Request {
    pub(crate) op: Op,
    pub(crate) reply: Option<Reply>,
}

/// The log, open at its end.
pub(crate) struct Log {
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) bytes: u64,
    pub(crate) format: u32,
}

pub(crate) struct Writer {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) options: Options,
    pub(super) shared: Arc<Shared>,
    pub(super) counts: Arc<Counts>,
    pub(super) log: Log,
    /// Next revision is one more.
    revision: u64,
    /// (when, key) of what goes by itself.
    expiry: BTreeSet<(u64, Arc<str>)>,
    pub(super) inbox: Sender<Request>,
    pub(super) rewriting: Option<Rewriting>,
    /// Who waits for a rewriting that has not begun.
    pub(super) scrubs: Vec<Reply>,
    /// The log is not written anew before it has this size; after a failure.
    pub(super) retry_at: u64,
    pub(super) log_since: Instant,
    /// (when, revision) from time to time, for the age of changes.
    ages: VecDeque<(Instant, u64)>,
    /// Whether a mark follows the last batch.
    pub(super) marked: bool,
    /// Whether the last write found no room.
    full: bool,
    snapshots: Vec<JoinHandle<()>>,
    ended: bool,
}

/// Why a frame is not in the log.
enum Refused {
    Full(String),
    Failed(String),
}

impl Refused {
    fn error(&self) -> StoreError {
        match self {
            Refused::Full(what) => StoreError::Full(what.clone()),
            Refused::Failed(what) => StoreError::Failed(what.clone()),
        }
    }
}

/// Writes of one batch that are not durable yet.
struct Batch {
    frame: FrameWriter,
    staged: HashMap<Arc<str>, Option<Entry>>,
    order: Vec<(Arc<str>, Option<Entry>, u64)>,
    /// A refusal may rest on a write of the same batch, so it waits, too.
    answers: Vec<(Reply, Result<u64>)>,
    bytes: u64,
}

impl Batch {
    fn new() -> Batch {
        Batch { frame: FrameWriter::new(), staged: HashMap::new(), order: Vec::new(), answers: Vec::new(), bytes: 0 }
    }
}

impl Writer {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        options: Options,
        shared: Arc<Shared>,
        counts: Arc<Counts>,
        log: Log,
        inbox: Sender<Request>,
    ) -> Writer {
        let (revision, expiry) = {
            let state = shared.read();
            let expiry = state.live.values().filter(|e| e.expires > 0).map(|e| (e.expires, e.key.clone())).collect();
            (state.revision, expiry)
        };
        counts.log_bytes.store(log.bytes, Ordering::Relaxed);
        counts.format.store(log.format, Ordering::Relaxed);
        Writer {
            disk,
            options,
            shared,
            counts,
            log,
            revision,
            expiry,
            inbox,
            rewriting: None,
            scrubs: Vec::new(),
            retry_at: 0,
            log_since: Instant::now(),
            ages: VecDeque::new(),
            marked: true,
            full: false,
            snapshots: Vec::new(),
            ended: false,
        }
    }

    pub(crate) fn run(mut self, inbox: &Receiver<Request>) {
        while !self.ended {
            let mut next = match inbox.recv_timeout(TICK) {
                Ok(request) => Some(request),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if next.is_none() {
                self.mark();
            }
            let mut batch = Batch::new();
            while let Some(request) = next {
                self.take(request, &mut batch);
                let more = batch.order.len() < BATCH && batch.frame.len() < BATCH_BYTES;
                next = if more { inbox.try_recv().ok() } else { None };
            }
            self.stage_expired(&mut batch);
            self.commit(batch);
            self.forget_aged();
            self.rewrite_if_due();
        }
        self.end();
    }

    fn end(&mut self) {
        self.mark();
        self.finish_rewriting();
        for thread in self.snapshots.drain(..) {
            if thread.join().is_err() {
                tracing::error!("the thread of a snapshot ended in a panic");
            }
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
            Op::Scrub => {
                self.scrubs.extend(reply);
                return;
            }
            Op::Raise => {
                let staged = std::mem::replace(batch, Batch::new());
                self.commit(staged);
                let raised = self.raise();
                if let Some(reply) = reply {
                    drop(reply.send(raised));
                }
                return;
            }
            Op::Rewritten => {
                // What is staged belongs to the old log; it must be in the tail.
                let staged = std::mem::replace(batch, Batch::new());
                self.commit(staged);
                self.finish_rewriting();
                return;
            }
            Op::End => {
                self.ended = true;
                return;
            }
        };
        batch.answers.extend(reply.map(|reply| (reply, outcome)));
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
        batch.frame.put(&entry);
        batch.bytes += (key.len() + entry.value.len()) as u64;
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
        batch.bytes += key.len() as u64;
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
        let Batch { frame, order, answers, bytes, .. } = batch;
        if order.is_empty() {
            return answer(answers);
        }
        let data = frame.finish();
        self.make_room(data.len() as u64);
        let mut written = self.append(&data);
        if matches!(written, Err(Refused::Full(_))) && self.rewriting.is_some() {
            // The new log may hold the room; at the end of the rewriting one of the two is gone.
            self.finish_rewriting();
            written = self.append(&data);
        }
        if let Err(refused) = written {
            self.take_back(&order);
            for (reply, _) in answers {
                drop(reply.send(Err(refused.error())));
            }
            return;
        }
        self.disk.reach(Point::CommitShow);
        if let Some(rewriting) = &mut self.rewriting {
            rewriting.tail.push(data);
        }
        for (key, entry, _) in &order {
            if let Some(expires) = entry.as_ref().map(|e| e.expires).filter(|e| *e > 0) {
                self.expiry.insert((expires, key.clone()));
            }
        }
        let counts = &self.counts;
        counts.batches.fetch_add(1, Ordering::Relaxed);
        counts.writes.fetch_add(order.len() as u64, Ordering::Relaxed);
        counts.acknowledged_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.commit(order);
        self.disk.reach(Point::CommitAnswer);
        let mut first = answers;
        let rest = first.split_off(first.len() / 2);
        answer(first);
        self.disk.reach(Point::CommitAnswered);
        answer(rest);
    }

    /// Writes a frame to the log and makes it durable.
    fn append(&mut self, data: &[u8]) -> Result<(), Refused> {
        self.disk.reach(Point::CommitAppend);
        self.log.file.append(data).map_err(|error| self.refused(&error))?;
        self.disk.reach(Point::CommitSync);
        self.log.file.sync().map_err(|error| Refused::Failed(self.fail(&error)))?;
        self.marked = false;
        self.grown(data.len());
        Ok(())
    }

    /// What comes of a frame that was not written whole.  When there was no room for it, what was
    /// written of it is taken back, and the log is as it was; after any other error nobody knows.
    fn refused(&mut self, error: &std::io::Error) -> Refused {
        if !matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            return Refused::Failed(self.fail(error));
        }
        if let Err(error) = self.log.file.cut(self.log.bytes) {
            return Refused::Failed(self.fail(&error));
        }
        let what = format!("writing {}: {error}", self.disk.describe(LOG));
        if !std::mem::replace(&mut self.full, true) {
            tracing::error!("{what}; writes are refused until there is room");
        }
        Refused::Full(what)
    }

    /// Forgets what was staged, so that revisions stay without a gap and expiry comes again.
    fn take_back(&mut self, order: &[(Arc<str>, Option<Entry>, u64)]) {
        let state = self.shared.read();
        self.revision = state.revision;
        let live = order.iter().filter_map(|(key, ..)| state.live.get(key));
        self.expiry.extend(live.filter(|e| e.expires > 0).map(|e| (e.expires, e.key.clone())));
    }

    /// Says in the log that its last batch is durable, so that damage to it can be told from a
    /// write that a lost power tore.  Needs no sync: it is of use once it is there.
    fn mark(&mut self) {
        if self.marked || self.shared.failure().is_some() {
            return;
        }
        let mut frame = FrameWriter::new();
        frame.mark();
        let data = frame.finish();
        match self.log.file.append(&data) {
            Ok(()) => {
                self.marked = true;
                self.grown(data.len());
            }
            // Tried again at the next tick.
            Err(error) => drop(self.refused(&error)),
        }
    }

    fn grown(&mut self, by: usize) {
        if std::mem::take(&mut self.full) {
            tracing::info!("there is room again; writes go on");
        }
        self.log.bytes += by as u64;
        self.counts.log_bytes.store(self.log.bytes, Ordering::Relaxed);
    }

    fn fail(&self, error: &std::io::Error) -> String {
        let what = format!("writing {}: {error}", self.disk.describe(LOG));
        tracing::error!("{what}; the store takes no more writes");
        self.shared.fail(&what);
        what
    }

    fn forget_aged(&mut self) {
        let age = self.options.history_age;
        let now = Instant::now();
        if self.ages.back().is_none_or(|(at, _)| now.duration_since(*at) >= age / AGE_PARTS) {
            self.ages.push_back((now, self.shared.read().revision));
        }
        let mut aged = None;
        while let Some((at, revision)) = self.ages.front().copied()
            && now.duration_since(at) >= age
        {
            aged = Some(revision);
            self.ages.pop_front();
        }
        if let Some(revision) = aged {
            self.shared.compact(revision);
        }
    }

    pub(super) fn picture(&self) -> (Vec<Entry>, u64) {
        let state = self.shared.read();
        (state.live.values().cloned().collect(), state.revision)
    }

    fn snapshot(&mut self, to: PathBuf, reply: Option<Reply>) {
        let (entries, revision) = self.picture();
        let (disk, format) = (self.disk.clone(), self.log.format);
        let work = move || {
            let done = write_snapshot(disk.as_ref(), &to, format, &entries, revision);
            if let Some(reply) = reply {
                drop(reply.send(done));
            }
        };
        self.snapshots.retain(|thread| !thread.is_finished());
        match std::thread::Builder::new().name("store-snapshot".into()).spawn(work) {
            Ok(thread) => self.snapshots.push(thread),
            Err(error) => tracing::error!("a snapshot was not made: starting its thread: {error}"),
        }
    }
}

/// A client that went away needs no answer.
fn answer(answers: Vec<(Reply, Result<u64>)>) {
    for (reply, outcome) in answers {
        drop(reply.send(outcome));
    }
}
