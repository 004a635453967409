//! Writing the log anew, with what is live only, while writes go on.
//!
//! A thread of its own writes a picture beside the log.  Frames that the log gets in the
//! meantime are kept, added to the fresh log, and then it takes the log's place.
//!
//! Sizes, with the live set as 1: the log begins at 1; at 7/4 the rewriting starts; the room up
//! to 2 is for what comes in while it lasts, and who would need more waits for its end.  So each
//! byte is written at most 1 + 1 / (7/4 - 1) = 2.3 times, or 2.6 times when all of the room is used.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use super::open::{Stage, write_picture};
use super::writer::{Log, Op, Reply, Request, Writer};
use super::{LOG, LOG_NEW};
use crate::frame::FORMATS;
use crate::io::DiskFile;
use crate::{Point, Result, StoreError};

/// A log that is written anew for its age has at least so much in it that is not live.
const WORTH_BYTES: u64 = 64 << 10;

/// A rewriting that is going on.
pub(crate) struct Rewriting {
    done: Receiver<Result<(Box<dyn DiskFile>, u64)>>,
    format: u32,
    thread: JoinHandle<()>,
    /// Frames since the picture.
    pub(crate) tail: Vec<Vec<u8>>,
    answers: Vec<Reply>,
}

impl Writer {
    /// What the log may grow to.
    fn limit(&self) -> u64 {
        self.options.min_log_bytes.max(2 * self.shared.read().live_bytes)
    }

    pub(super) fn rewrite_if_due(&mut self) {
        if self.rewriting.is_some() || self.shared.failure().is_some() {
            return;
        }
        let limit = self.limit();
        let again = self.log.bytes >= self.retry_at;
        let grown = self.log.bytes > limit - limit / 8;
        let aged = self.log_since.elapsed() > self.options.log_age
            && self.log.bytes > self.shared.read().live_bytes + WORTH_BYTES;
        if (again && (grown || aged)) || !self.scrubs.is_empty() {
            self.start_rewriting(self.log.format);
        }
    }

    /// Before `more` bytes go into the log: if that would make it too large, a rewriting is
    /// brought to its end first.
    pub(super) fn make_room(&mut self, more: u64) {
        if self.log.bytes + more <= self.limit() || self.log.bytes < self.retry_at || self.shared.failure().is_some() {
            return;
        }
        if self.rewriting.is_none() {
            self.start_rewriting(self.log.format);
        }
        self.finish_rewriting();
    }

    /// Brings the log to the newest format, while writes wait: a frame of before must not follow its picture. Gives the
    /// format.
    pub(super) fn raise(&mut self) -> Result<u64> {
        let newest = *FORMATS.end();
        if self.log.format < newest && self.shared.failure().is_none() {
            self.finish_rewriting();
            self.start_rewriting(newest);
            self.finish_rewriting();
        }
        match self.shared.failure() {
            // Nobody may know which of the files has the name.
            Some(what) => Err(StoreError::Failed(what)),
            None if self.log.format == newest => Ok(newest.into()),
            None => Err(StoreError::Failed("the log could not be written anew, and keeps its format".into())),
        }
    }

    fn start_rewriting(&mut self, format: u32) {
        let answers = std::mem::take(&mut self.scrubs);
        let (entries, revision) = self.picture();
        if !answers.is_empty() {
            self.shared.compact(revision);
        }
        let (disk, inbox) = (self.disk.clone(), self.inbox.clone());
        let (send, done) = channel();
        let work = move || {
            let written = write_picture(disk.as_ref(), LOG_NEW, format, entries.iter(), revision, Stage::Checkpoint);
            drop(entries);
            disk.reach(Point::CheckpointDone);
            // The writer may have ended; then nobody needs the new log.
            drop(send.send(written));
            drop(inbox.send(Request { op: Op::Rewritten, reply: None }));
        };
        match std::thread::Builder::new().name("store-rewrite".into()).spawn(work) {
            Ok(thread) => self.rewriting = Some(Rewriting { done, format, thread, tail: Vec::new(), answers }),
            Err(error) => {
                let what = format!("the log was not rewritten: starting the thread: {error}");
                self.not_rewritten(what, answers);
            }
        }
    }

    /// Waits for the rewriting, if there is one, and puts the fresh log in place.
    pub(super) fn finish_rewriting(&mut self) {
        let Some(Rewriting { done, format, thread, tail, answers }) = self.rewriting.take() else { return };
        let ended = || StoreError::Failed("the rewriting thread ended in a panic".into());
        let written = done.recv().unwrap_or_else(|_| Err(ended()));
        if thread.join().is_err() {
            tracing::error!("{}", ended());
        }
        if let Some(what) = self.shared.failure() {
            return self.not_rewritten(what, answers);
        }
        match written.and_then(|(file, size)| self.swap(Log { file, bytes: size, format }, &tail)) {
            Ok(()) => {
                self.counts.rewrites.fetch_add(1, Ordering::Relaxed);
                self.retry_at = 0;
                self.log_since = Instant::now();
                let revision = self.shared.read().revision;
                for reply in answers {
                    drop(reply.send(Ok(revision)));
                }
            }
            Err(error) => self.not_rewritten(format!("the log was not rewritten: {error}"), answers),
        }
    }

    fn not_rewritten(&mut self, what: String, answers: Vec<Reply>) {
        tracing::error!("{what}");
        // Its room is needed more where the disk is full.
        if let Err(left) = self.disk.remove(LOG_NEW) {
            tracing::warn!("{} is left behind: {left}", self.disk.describe(LOG_NEW));
        }
        // Better a log that is too large than no writes: try again when it has grown some more.
        self.retry_at = self.log.bytes + self.log.bytes / 8;
        for reply in answers {
            drop(reply.send(Err(StoreError::Failed(what.clone()))));
        }
    }

    fn swap(&mut self, mut log: Log, tail: &[Vec<u8>]) -> Result<()> {
        let place = self.disk.describe(LOG);
        let failed = |why| StoreError::Io { what: format!("putting the rewritten {place} in place"), why };
        self.disk.reach(Point::CompactionTail);
        if !tail.is_empty() {
            for data in tail {
                log.file.append(data).map_err(failed)?;
                log.bytes += data.len() as u64;
            }
            self.disk.reach(Point::CompactionSync);
            log.file.sync().map_err(failed)?;
        }
        self.disk.reach(Point::CompactionRename);
        let (size, format) = (log.bytes, log.format);
        let renamed = self.disk.rename(LOG_NEW, LOG).and_then(|()| {
            // From here on the new file is the log.
            self.log = log;
            self.marked = tail.is_empty();
            self.disk.reach(Point::CompactionName);
            self.disk.sync_dir()
        });
        if let Err(source) = renamed {
            // Nobody knows which of the files has the name.
            let error = failed(source);
            self.shared.fail(&error.to_string());
            return Err(error);
        }
        self.counts.log_bytes.store(size, Ordering::Relaxed);
        self.counts.format.store(format, Ordering::Relaxed);
        self.disk.reach(Point::CompactionDone);
        Ok(())
    }
}
