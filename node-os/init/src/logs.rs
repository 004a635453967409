//! Bounded logs, one a service: the last lines in memory, and once STATE is mounted two files of bounded size.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;
use tokio::sync::Notify;

/// What stays in memory of each log.
const IN_MEMORY: usize = 32 * 1024;
/// A file that is larger is put aside as `NAME.log.1`, in place of the one before.
const FILE_LIMIT: u64 = 2 << 20;

/// All logs.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    inner: Rc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    logs: RefCell<BTreeMap<String, Rc<Log>>>,
    folder: RefCell<Option<PathBuf>>,
}

/// One log.
#[derive(Debug)]
pub struct Log {
    name: String,
    recent: RefCell<VecDeque<u8>>,
    /// Bytes ever written.
    total: Cell<u64>,
    file: RefCell<Option<(File, u64)>>,
    grown: Notify,
}

impl Logs {
    /// The log of `name`, made when it is new.
    pub fn open(&self, name: &str) -> Rc<Log> {
        let mut logs = self.inner.logs.borrow_mut();
        let log = logs.entry(name.to_owned()).or_insert_with(|| {
            Rc::new(Log {
                name: name.to_owned(),
                recent: RefCell::default(),
                total: Cell::new(0),
                file: RefCell::default(),
                grown: Notify::new(),
            })
        });
        log.clone()
    }

    /// The log of `name`, if there is one.
    pub fn find(&self, name: &str) -> Option<Rc<Log>> {
        self.inner.logs.borrow().get(name).cloned()
    }

    /// Appends to a log, in memory and where it can be on disk. Logging never fails a caller.
    pub fn write(&self, log: &Log, bytes: &[u8]) {
        log.remember(bytes);
        if let Some(folder) = self.inner.folder.borrow().as_ref()
            && let Err(error) = log.write_file(folder, bytes)
        {
            *log.file.borrow_mut() = None;
            log.remember(format!("(this log cannot be written to {}: {error})\n", folder.display()).as_bytes());
        }
    }

    /// From now on logs are kept in `folder` too; what is in memory goes there first.
    pub fn keep_in(&self, folder: PathBuf) -> std::io::Result<()> {
        std::fs::create_dir_all(&folder)?;
        for log in self.inner.logs.borrow().values() {
            let bytes: Vec<u8> = log.recent.borrow().iter().copied().collect();
            log.write_file(&folder, &bytes)?;
        }
        *self.inner.folder.borrow_mut() = Some(folder);
        Ok(())
    }

    /// Lets go of the files, so that STATE can be unmounted.
    pub fn close(&self) {
        *self.inner.folder.borrow_mut() = None;
        for log in self.inner.logs.borrow().values() {
            *log.file.borrow_mut() = None;
        }
    }

    /// The last `lines` lines, and the position to go on from with [`Log::since`].
    pub fn tail(&self, log: &Log, lines: usize) -> (Vec<u8>, u64) {
        let mut bytes = Vec::new();
        if let Some(folder) = self.inner.folder.borrow().as_ref() {
            for name in [format!("{}.log.1", log.name), format!("{}.log", log.name)] {
                bytes.extend(std::fs::read(folder.join(name)).unwrap_or_default());
            }
        }
        if bytes.is_empty() {
            bytes = log.recent.borrow().iter().copied().collect();
        }
        let start = last_lines(&bytes, lines);
        (bytes.split_off(start), log.total.get())
    }
}

impl Log {
    fn remember(&self, bytes: &[u8]) {
        let mut recent = self.recent.borrow_mut();
        recent.extend(bytes);
        let excess = recent.len().saturating_sub(IN_MEMORY);
        recent.drain(..excess);
        self.total.set(self.total.get() + bytes.len() as u64);
        self.grown.notify_waiters();
    }

    fn write_file(&self, folder: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
        let mut slot = self.file.borrow_mut();
        let path = folder.join(format!("{}.log", self.name));
        if slot.as_ref().is_some_and(|(_, size)| *size > FILE_LIMIT) {
            *slot = None;
            std::fs::rename(&path, path.with_extension("log.1"))?;
        }
        if slot.is_none() {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let size = file.metadata()?.len();
            *slot = Some((file, size));
        }
        if let Some((file, size)) = slot.as_mut() {
            file.write_all(bytes)?;
            *size += bytes.len() as u64;
        }
        Ok(())
    }

    /// What was written since `position` (as far as it is still in memory), and the new position.
    pub fn since(&self, position: u64) -> (Vec<u8>, u64) {
        let total = self.total.get();
        let recent = self.recent.borrow();
        let fresh = usize::try_from(total.saturating_sub(position)).unwrap_or(usize::MAX).min(recent.len());
        (recent.iter().skip(recent.len() - fresh).copied().collect(), total)
    }

    /// Waits for more than `position`.
    pub async fn more_than(&self, position: u64) {
        let grown = self.grown.notified();
        if self.total.get() <= position {
            grown.await;
        }
    }
}

pub(crate) fn last_lines(bytes: &[u8], lines: usize) -> usize {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    if lines == 0 {
        return bytes.len();
    }
    breaks.map(|(at, _)| at + 1).nth(lines - 1).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_count_lines() {
        for (text, lines, wanted) in
            [("a\nb\nc\n", 2, "b\nc\n"), ("a\nb", 1, "b"), ("a\n", 5, "a\n"), ("", 3, ""), ("a\n", 0, "")]
        {
            assert_eq!(&text[last_lines(text.as_bytes(), lines)..], wanted, "{text:?} {lines}");
        }
    }

    #[test]
    fn memory_is_bounded_and_followers_see_what_is_new() {
        let logs = Logs::default();
        let log = logs.open("x");
        logs.write(&log, b"one\n");
        let (tail, position) = logs.tail(&log, 10);
        assert_eq!(tail, b"one\n");
        logs.write(&log, b"two\n");
        assert_eq!(log.since(position).0, b"two\n");
        logs.write(&log, &vec![b'x'; IN_MEMORY * 2]);
        assert_eq!(log.since(0).0.len(), IN_MEMORY);
    }
}
