//! Opening, checking and restoring a store's files.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use super::state::State;
use super::{LOG, LOG_NEW, Options};
use crate::frame::{FrameWriter, HEADER, Record, read_log};
use crate::io::{Disk, DiskFile};
use crate::{Cipher, DirDisk, Result, StoreError};

/// A restored store starts this far above the snapshot, beyond any revision ever given out,
/// so that clients see that time has jumped and list anew.
const RESTORE_RAISE: u64 = 1_000_000_000;

pub(crate) struct Opened {
    pub(crate) state: State,
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) log_bytes: u64,
}

fn io_error(disk: &dyn Disk, what: &str, name: &str) -> impl FnOnce(std::io::Error) -> StoreError {
    let what = format!("{what} {}", disk.describe(name));
    move |source| StoreError::Io { what, source }
}

pub(crate) fn open(disk: &dyn Disk, options: &Options) -> Result<Opened> {
    disk.remove(LOG_NEW).map_err(io_error(disk, "removing", LOG_NEW))?;
    let Some(mut reader) = disk.read(LOG).map_err(io_error(disk, "opening", LOG))? else {
        return create(disk);
    };
    let mut state = State::default();
    let whole = read_log(&disk.describe(LOG), reader.as_mut(), options.cipher.as_deref(), |record| {
        replay(&mut state, record, options.history)
    })?;
    drop(reader);
    let file = disk.append_to(LOG, whole).map_err(io_error(disk, "opening for writing", LOG))?;
    Ok(Opened { state, file, log_bytes: whole })
}

fn create(disk: &dyn Disk) -> Result<Opened> {
    let failed = |e| io_error(disk, "creating", LOG)(e);
    let mut file = disk.create(LOG_NEW).map_err(failed)?;
    let mut frame = FrameWriter::new();
    frame.revision(1);
    let mut data = HEADER.to_vec();
    data.extend_from_slice(&frame.finish());
    file.append(&data).map_err(failed)?;
    file.sync().map_err(failed)?;
    disk.rename(LOG_NEW, LOG).map_err(failed)?;
    disk.sync_dir().map_err(failed)?;
    let state = State { revision: 1, compacted: 1, ..State::default() };
    Ok(Opened { state, file, log_bytes: data.len() as u64 })
}

fn replay(state: &mut State, record: Record, keep: usize) {
    match record {
        Record::Put(entry) => {
            let (key, revision) = (entry.key.clone(), entry.revision);
            state.apply(&key, Some(entry), revision, keep);
        }
        Record::Delete { key, revision } => {
            state.apply(&key, None, revision, keep);
        }
        // What stands before it is a picture in key order, no history.
        Record::Revision(revision) => {
            state.history.clear();
            state.revision = state.revision.max(revision);
            state.compacted = state.revision;
        }
    }
}

/// What [`verify`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub keys: usize,
    pub revision: u64,
    pub live_bytes: u64,
    /// Bytes of the file that are whole; a torn tail after them is no damage.
    pub whole_bytes: u64,
}

/// Reads a log or snapshot file through and says what is in it; changes nothing.
pub fn verify(file: &Path, cipher: Option<&Cipher>) -> Result<Report> {
    let (state, whole_bytes) = load(file, cipher)?;
    Ok(Report { keys: state.live.len(), revision: state.revision, live_bytes: state.live_bytes, whole_bytes })
}

fn load(file: &Path, cipher: Option<&Cipher>) -> Result<(State, u64)> {
    let name = file.display().to_string();
    let opened =
        std::fs::File::open(file).map_err(|source| StoreError::Io { what: format!("opening {name}"), source })?;
    let mut state = State::default();
    let whole = read_log(&name, &mut std::io::BufReader::new(opened), cipher, |r| replay(&mut state, r, 1))?;
    Ok((state, whole))
}

/// Puts a snapshot in the place of the store in `dir` (which no process may have open), at a
/// revision beyond any that the snapshot's store can have given out.
pub fn restore(snapshot: &Path, dir: &Path, cipher: Option<&Cipher>) -> Result<u64> {
    let (state, _) = load(snapshot, cipher)?;
    let disk = DirDisk::open(dir)?;
    // A readable old log tells how far its revisions went.
    let newest = load(&dir.join(LOG), cipher).map_or(0, |(old, _)| old.revision);
    let revision = state.revision.max(newest) + RESTORE_RAISE;
    let failed = |e| io_error(&disk, "restoring into", LOG)(e);
    let mut file = disk.create(LOG_NEW).map_err(failed)?;
    write_picture(file.as_mut(), state.live.values(), revision, cipher)?;
    disk.rename(LOG_NEW, LOG).map_err(failed)?;
    disk.sync_dir().map_err(failed)?;
    Ok(revision)
}

/// Writes a whole picture as a new log, and syncs it; gives its size.
pub(crate) fn write_picture<'a>(
    file: &mut dyn DiskFile,
    entries: impl Iterator<Item = &'a crate::Entry>,
    revision: u64,
    cipher: Option<&Cipher>,
) -> Result<u64> {
    const FRAME_BYTES: usize = 1 << 20;
    let failed = |source| StoreError::Io { what: "writing a picture of the store".into(), source };
    let mut size = HEADER.len() as u64;
    file.append(HEADER).map_err(failed)?;
    let mut frame = FrameWriter::new();
    for entry in entries {
        frame.put(entry, cipher)?;
        if frame.len() > FRAME_BYTES {
            let data = std::mem::replace(&mut frame, FrameWriter::new()).finish();
            size += data.len() as u64;
            file.append(&data).map_err(failed)?;
        }
    }
    frame.revision(revision);
    let data = frame.finish();
    size += data.len() as u64;
    file.append(&data).map_err(failed)?;
    file.sync().map_err(failed)?;
    Ok(size)
}

/// A snapshot file outside the store's directory.
pub(crate) struct PlainFile(pub(crate) std::fs::File);

impl DiskFile for PlainFile {
    fn append(&mut self, data: &[u8]) -> std::io::Result<()> {
        self.0.write_all(data)
    }
    fn sync(&mut self) -> std::io::Result<()> {
        self.0.sync_all()
    }
}

/// Writes entries to a new file at `to`.
pub(crate) fn write_snapshot(
    to: &Path,
    entries: &[crate::Entry],
    revision: u64,
    cipher: Option<&Arc<Cipher>>,
) -> Result<u64> {
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(to)
        .map_err(|source| StoreError::Io { what: format!("creating {}", to.display()), source })?;
    write_picture(&mut PlainFile(file), entries.iter(), revision, cipher.map(Arc::as_ref))?;
    Ok(revision)
}
