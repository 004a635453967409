//! Opening, checking and restoring a store's files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{LOG, LOG_NEW, Options};
use crate::frame::{Extent, FORMATS, FrameWriter, Record, header, read_header, read_log};
use crate::io::{Disk, DiskFile};
use crate::state::{Keep, State};
use crate::{DirDisk, Entry, Point, Result, StoreError};

/// A restored store starts at least this far above the snapshot, and above what the clock
/// says at [`REVISIONS_A_SECOND`], so that its revisions are beyond any ever given out, even
/// where one snapshot is restored twice, and clients list anew.
const RESTORE_RAISE: u64 = 1_000_000_000;
const REVISIONS_A_SECOND: u64 = 1000;

/// A revision above this was never given out: clients read them as signed numbers of 64 bits, and there is room for
/// all that are still to come.
const MOST_REVISIONS: u64 = 1 << 62;

/// A picture's frame ends after the entry that takes it beyond this: damage is named by its frame.
const FRAME_BYTES: usize = 4 << 10;
/// How much of a picture is written at a time.
const WRITE_BYTES: usize = 1 << 20;

pub(crate) struct Opened {
    pub(crate) state: State,
    pub(crate) file: Box<dyn DiskFile>,
    pub(crate) log_bytes: u64,
    pub(crate) format: u32,
}

fn io_error(disk: &dyn Disk, what: &str, name: &str) -> impl FnOnce(std::io::Error) -> StoreError {
    let what = format!("{what} {}", disk.describe(name));
    move |why| StoreError::Io { what, why }
}

pub(crate) fn open(disk: &dyn Disk, options: &Options) -> Result<Opened> {
    disk.remove(LOG_NEW).map_err(io_error(disk, "removing", LOG_NEW))?;
    let Some((state, extent)) = load(disk, LOG, options.keep())? else {
        return create(disk);
    };
    if extent.torn > 0 {
        let log = disk.describe(LOG);
        tracing::warn!("{log}: the last {} bytes, of a write that was never answered, are cut", extent.torn);
    }
    disk.reach(Point::OpenCut);
    let file = disk.append_to(LOG, extent.whole).map_err(io_error(disk, "opening for writing", LOG))?;
    // The process before may have been killed between naming the log and making the name durable.
    disk.sync_dir().map_err(io_error(disk, "making durable the name of", LOG))?;
    Ok(Opened { state, file, log_bytes: extent.whole, format: extent.format })
}

fn create(disk: &dyn Disk) -> Result<Opened> {
    let format = *FORMATS.end();
    let (file, log_bytes) = write_picture(disk, LOG_NEW, format, std::iter::empty(), 1, Stage::Checkpoint)?;
    disk.reach(Point::OpenCreate);
    put_in_place(disk, LOG_NEW, LOG)?;
    Ok(Opened { state: State { revision: 1, compacted: 1, ..State::default() }, file, log_bytes, format })
}

fn put_in_place(disk: &dyn Disk, from: &str, to: &str) -> Result<()> {
    disk.rename(from, to).and_then(|()| disk.sync_dir()).map_err(io_error(disk, "putting in place", to))
}

/// Puts a file's records together, and sees that none is missing.
struct Replay {
    state: State,
    keep: Keep,
    whole_picture: bool,
}

impl Replay {
    fn take(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Put(entry) if !self.whole_picture => {
                let last = self.state.live.last_key_value().map(|(key, _)| key);
                if last.is_some_and(|last| *last >= entry.key) {
                    return Err(format!("{} is out of order", entry.key));
                }
                self.state.set(entry);
                Ok(())
            }
            Record::Revision { revision, keys } if !self.whole_picture => {
                if keys != self.state.live.len() as u64 {
                    return Err(format!("{keys} keys should stand before it, not {}", self.state.live.len()));
                }
                if revision > MOST_REVISIONS {
                    return Err(format!("no store comes to revision {revision}"));
                }
                self.state.revision = revision;
                self.state.compacted = revision;
                self.whole_picture = true;
                Ok(())
            }
            Record::Put(entry) => {
                let (key, revision) = (entry.key.clone(), entry.revision);
                self.follows(revision)?;
                self.state.apply(&key, Some(entry), revision, self.keep);
                Ok(())
            }
            Record::Delete { key, revision } if self.whole_picture => {
                self.follows(revision)?;
                self.state.apply(&key, None, revision, self.keep);
                Ok(())
            }
            Record::Mark => Ok(()),
            Record::Delete { .. } | Record::Revision { .. } => Err("a record is out of place".into()),
        }
    }

    fn follows(&self, revision: u64) -> Result<(), String> {
        let last = self.state.revision;
        if last.checked_add(1) == Some(revision) { Ok(()) } else { Err(format!("revision {revision} follows {last}")) }
    }
}

/// Reads a file through; None: there is none.
fn load(disk: &dyn Disk, name: &str, keep: Keep) -> Result<Option<(State, Extent)>> {
    let Some(mut reader) = disk.read(name).map_err(io_error(disk, "opening", name))? else { return Ok(None) };
    let file = disk.describe(name);
    let mut replay = Replay { state: State::default(), keep, whole_picture: false };
    let extent = read_log(&file, reader.as_mut(), |record| replay.take(record))?;
    if !replay.whole_picture {
        let what = "the file ends before all of what it should begin with".into();
        return Err(StoreError::Damaged { file, offset: extent.whole, what });
    }
    Ok(Some((replay.state, extent)))
}

/// What [`verify`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub keys: usize,
    pub revision: u64,
    pub live_bytes: u64,
    /// Bytes of the file that are whole; a torn tail after them is no damage.
    pub whole_bytes: u64,
    /// Bytes of that tail.
    pub torn_bytes: u64,
}

impl Report {
    /// A sentence about the tail, if there is one.
    pub fn tail(&self) -> Option<String> {
        (self.torn_bytes > 0).then(|| {
            format!(
                "the last {} bytes are no whole record: of a write that was never answered, or, in a copy, of one that \
                 broke off",
                self.torn_bytes
            )
        })
    }
}

/// Reads a log or snapshot file through and says what is in it; changes nothing.
pub fn verify(file: &Path) -> Result<Report> {
    let (disk, name) = place(&DirDisk::unlocked, file)?;
    let (state, extent) = load_file(&disk, &name)?;
    Ok(Report {
        keys: state.live.len(),
        revision: state.revision,
        live_bytes: state.live_bytes,
        whole_bytes: extent.whole,
        torn_bytes: extent.torn,
    })
}

fn load_file(disk: &dyn Disk, name: &str) -> Result<(State, Extent)> {
    load(disk, name, Keep { changes: 1, bytes: 1 })?.ok_or_else(|| missing(disk, name))
}

fn missing(disk: &dyn Disk, name: &str) -> StoreError {
    let why = std::io::Error::new(std::io::ErrorKind::NotFound, "there is no such file");
    io_error(disk, "opening", name)(why)
}

/// Everything in a snapshot file, in key order, and its revision.  A log file will do, too, but
/// a snapshot must be whole to its last byte.
pub fn read_picture(file: &Path) -> Result<(Vec<Entry>, u64)> {
    let (disk, name) = place(&DirDisk::unlocked, file)?;
    load_picture(&disk, &name)
}

pub(crate) fn load_picture(disk: &dyn Disk, name: &str) -> Result<(Vec<Entry>, u64)> {
    let (state, extent) = load_file(disk, name)?;
    if extent.torn > 0 && name != LOG {
        let what = "the snapshot is cut short, or was written to".into();
        return Err(StoreError::Damaged { file: disk.describe(name), offset: extent.whole, what });
    }
    Ok((state.live.into_values().collect(), state.revision))
}

/// A revision beyond any ever given out, where `newest` is the newest that is known.
pub(crate) fn beyond(newest: u64) -> u64 {
    (newest + RESTORE_RAISE).max(crate::unix_now() * REVISIONS_A_SECOND)
}

/// Puts a snapshot in the place of the store in `dir` (which no process may have open), at a
/// revision beyond any that the snapshot's store can have given out.
pub fn restore(snapshot: &Path, dir: &Path) -> Result<u64> {
    let (entries, revision) = read_picture(snapshot)?;
    write_store(dir, format_of(snapshot)?, &entries, revision)
}

/// Puts entries, in key order, in the place of the store in `dir` (which no process may have
/// open), at a revision beyond `revision` and any that this store has given out; gives it.
/// `format`: of the snapshot that they are from, so that a way back is as open as it was; else
/// [`oldest_format`].
pub fn write_store(dir: &Path, format: u32, entries: &[Entry], revision: u64) -> Result<u64> {
    let disk = DirDisk::open(dir)?;
    // A readable old log tells how far its revisions went.
    let newest = load_file(&disk, LOG).map_or(0, |(old, _)| old.revision);
    let revision = beyond(revision.max(newest));
    write_picture(&disk, LOG_NEW, format, entries.iter(), revision, Stage::Checkpoint)?;
    put_in_place(&disk, LOG_NEW, LOG)?;
    Ok(revision)
}

/// What a picture is written for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Checkpoint,
    Snapshot,
}

impl Stage {
    fn reach(self, disk: &dyn Disk, checkpoint: Point, snapshot: Point) {
        disk.reach(if self == Stage::Checkpoint { checkpoint } else { snapshot });
    }
}

/// Writes a whole picture as a new file, and syncs it; gives it with its size.
pub(crate) fn write_picture<'a>(
    disk: &dyn Disk,
    name: &str,
    format: u32,
    entries: impl Iterator<Item = &'a Entry>,
    revision: u64,
    stage: Stage,
) -> Result<(Box<dyn DiskFile>, u64)> {
    let failed = |e| io_error(disk, "writing", name)(e);
    stage.reach(disk, Point::CheckpointCreate, Point::SnapshotCreate);
    let mut file = disk.create(name).map_err(failed)?;
    let mut data = header(format);
    let mut frame = FrameWriter::new();
    let (mut size, mut keys) = (0, 0);
    for entry in entries {
        keys += 1;
        frame.put(entry);
        if frame.len() > FRAME_BYTES {
            data.extend_from_slice(&std::mem::replace(&mut frame, FrameWriter::new()).finish());
        }
        if data.len() > WRITE_BYTES {
            size += data.len() as u64;
            file.append(&data).map_err(failed)?;
            data.clear();
        }
    }
    if frame.len() > FrameWriter::new().len() {
        data.extend_from_slice(&frame.finish());
    }
    size += data.len() as u64;
    file.append(&data).map_err(failed)?;
    stage.reach(disk, Point::CheckpointWrite, Point::SnapshotWrite);
    let mut end = FrameWriter::new();
    end.revision(revision, keys);
    let end = end.finish();
    size += end.len() as u64;
    file.append(&end).map_err(failed)?;
    stage.reach(disk, Point::CheckpointSync, Point::SnapshotSync);
    file.sync().map_err(failed)?;
    Ok((file, size))
}

/// The directory and the name of a path.
fn place<D>(open: &dyn Fn(PathBuf) -> D, path: &Path) -> Result<(D, String)> {
    let invalid = || StoreError::Io {
        what: format!("taking {}", path.display()),
        why: std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no name of a file"),
    };
    let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(invalid)?;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((open(dir.to_path_buf()), name.to_string()))
}

/// The format of a log or snapshot file.
pub fn format_of(file: &Path) -> Result<u32> {
    let (disk, name) = place(&DirDisk::unlocked, file)?;
    let mut reader =
        disk.read(&name).map_err(io_error(&disk, "opening", &name))?.ok_or_else(|| missing(&disk, &name))?;
    read_header(&disk.describe(&name), reader.as_mut())
}

/// What can be taken in by all releases that this one can be taken back to.
pub fn oldest_format() -> u32 {
    *FORMATS.start()
}

/// Writes entries, in key order, to a new snapshot file, in the oldest format.
pub fn write_picture_file(to: &Path, entries: &[Entry], revision: u64) -> Result<u64> {
    write_snapshot(&DirDisk::unlocked(PathBuf::new()), to, oldest_format(), entries, revision)
}

/// Writes entries to a new file at `to`, which has its name only once it is whole and durable.
pub(crate) fn write_snapshot(disk: &dyn Disk, to: &Path, format: u32, entries: &[Entry], revision: u64) -> Result<u64> {
    let (opened, name) = place(&|dir| disk.beside(&dir), to)?;
    let opened: Arc<dyn Disk> =
        opened.map_err(|why| StoreError::Io { what: format!("opening the place of {}", to.display()), why })?;
    let disk = opened.as_ref();
    if disk.read(&name).map_err(io_error(disk, "looking for", &name))?.is_some() {
        let exists = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it is there already; give another name");
        return Err(io_error(disk, "creating", &name)(exists));
    }
    let part = format!("{name}.part");
    let written = write_picture(disk, &part, format, entries.iter(), revision, Stage::Snapshot).and_then(|_| {
        disk.reach(Point::SnapshotRename);
        disk.rename(&part, &name).map_err(io_error(disk, "naming", &name))?;
        disk.reach(Point::SnapshotName);
        disk.sync_dir().map_err(io_error(disk, "making durable the name of", &name))
    });
    if let Err(error) = written {
        if let Err(left) = disk.remove(&part) {
            tracing::warn!("{} is left behind: {left}", disk.describe(&part));
        }
        return Err(error);
    }
    disk.reach(Point::SnapshotAnswer);
    Ok(revision)
}
