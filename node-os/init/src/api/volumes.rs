//! The folders of local volumes: copied from a node that is to go, and taken by the one that comes after it
//! ([`node_api::copy`]).

mod pack;
#[cfg(test)]
mod tests;
mod unpack;

use super::server::{Body, Refusal, json, typed};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use node_api::copy::{Checked, LOCAL_PATH as DIR, is_volume_name};
use node_api::{Done, Volume};
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::mpsc;

/// Folders below each other: each takes stack and a descriptor.
const DEEPEST: usize = 500;
/// What is sent at one time, and how much of it waits.
const PIECE: usize = 64 << 10;
const WAITING: usize = 8;
/// How long whoever sends a copy may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// One part of so many of the disk stays free: the kubelet evicts pods where it does not.
const SPARE: u64 = 10;
/// One copy is taken at a time.
static TAKING: Mutex<()> = Mutex::new(());

/// All of them.
pub(super) async fn list() -> Result<Response<Body>, Refusal> {
    let listed = blocking(|| volumes(Path::new(DIR))).await?;
    Ok(json(&listed.context("looking at the local volumes")?))
}

/// A copy of one.
pub(super) fn send(name: &str) -> Result<Response<Body>, Refusal> {
    let folder = folder(name)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let name = name.to_owned();
    tokio::task::spawn_blocking(move || match pack::pack(&folder, Sender { sender, piece: Vec::new() }) {
        Ok(0) => {}
        Ok(left_out) => tracing::info!("volume {name}: {left_out} sockets or devices are not copied"),
        // Without its sum nobody takes it for whole.
        Err(error) => tracing::warn!("volume {name} cannot be copied: {error}"),
    });
    let pieces = futures::stream::unfold(receiver, |mut receiver| async move {
        let piece: Bytes = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(piece)), receiver))
    });
    Ok(typed("application/octet-stream", StreamBody::new(pieces.boxed()).boxed_unsync()))
}

/// A copy becomes a volume's folder. Twice is as good as once.
pub(super) async fn take(name: &str, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    folder(name)?;
    let (sender, receiver) = mpsc::channel(WAITING);
    let name = name.to_owned();
    let taking = tokio::task::spawn_blocking(move || {
        let Ok(_alone) = TAKING.try_lock() else { return Err(Fault::Other("another copy is being taken".into())) };
        put(Path::new(DIR), &name, Receiver { receiver, piece: Bytes::new() })
    });
    let mut body = request.into_body();
    // To its end also where it is not taken: whoever sends it hears the answer then.
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await {
        if let Ok(data) = frame.into_data() {
            let _ = sender.send(data).await;
        }
    }
    drop(sender);
    let said = taking.await.context("taking the copy")?;
    said.map(|message| json(&Done { message })).map_err(|fault| match fault {
        Fault::Wrong(why) => Refusal(StatusCode::BAD_REQUEST, why),
        Fault::Other(why) => Refusal(StatusCode::CONFLICT, why),
        Fault::Disk(error) => error.into(),
    })
}

fn folder(name: &str) -> Result<PathBuf, Refusal> {
    match is_volume_name(name) {
        true => Ok(Path::new(DIR).join(name)),
        false => Err(Refusal(StatusCode::BAD_REQUEST, format!("{name:?} is no name of a volume"))),
    }
}

/// PID 1 has one thread, which must not wait for a disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("waiting for the disk")
}

/// The folders that are there.
fn volumes(dir: &Path) -> Result<Vec<Volume>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
        let Some(name) = entry.file_name().to_str().filter(|name| is_volume_name(name)).map(str::to_owned) else {
            continue;
        };
        let path = entry.path();
        // What was just removed is none, nor is a link.
        let Ok(bytes) = pack::bytes(&path) else { continue };
        let copy_of = marked(dir, &name).filter(|(_, inode)| inode_of(&path) == Some(*inode)).map(|(sum, _)| sum);
        found.push(Volume { bytes, empty: is_empty(&path), copy_of, name });
    }
    found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Why a copy is not taken.
#[derive(Debug)]
enum Fault {
    /// It is none.
    Wrong(String),
    /// Something else is there.
    Other(String),
    /// The disk.
    Disk(anyhow::Error),
}

/// Makes a volume's folder from a copy, whole or not at all.
fn put(dir: &Path, name: &str, from: impl Read) -> Result<String, Fault> {
    let (folder, part) = (dir.join(name), dir.join(format!(".{name}.part")));
    let taken = || -> Result<String, Fault> {
        clear(&part).map_err(Fault::Disk)?;
        let mut from = Checked::new(from);
        let cannot = |error: io::Error| match error.kind() {
            // The tar crate calls all that it cannot read by the last one.
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::Other => Fault::Wrong(error.to_string()),
            _ => Fault::Disk(anyhow::Error::new(error).context(format!("cannot write volume {name}"))),
        };
        let unpacked = unpack::unpack(&mut from, &part, room(dir).map_err(Fault::Disk)?);
        // What was cut off says so by its sum, and anything else by what it holds.
        let there = unpacked.map_err(cannot)?;
        let sum = from.finish().map_err(cannot)?;
        if marked(dir, name).is_some_and(|(of, inode)| of == sum && inode_of(&folder) == Some(inode)) {
            return Ok(format!("volume {name} has this copy already"));
        }
        if folder.exists() && !is_empty(&folder) {
            return Err(Fault::Other(format!("volume {name} holds something else already, and keeps it")));
        }
        if there {
            lay(dir, name, &part, &sum).map_err(Fault::Disk)?;
        }
        Ok(format!("volume {name} is there"))
    };
    let said = taken();
    // The sentence about the failure says more than one about what is left.
    drop(clear(&part));
    said
}

/// Gives a folder its name; the mark says which one it is from then on.
fn lay(dir: &Path, name: &str, part: &Path, sum: &str) -> Result<()> {
    let folder = dir.join(name);
    let inode = inode_of(part).context("the copy is gone")?;
    let mark = mark(dir, name);
    let mut file = File::create(&mark).with_context(|| format!("cannot write {}", mark.display()))?;
    writeln!(file, "{sum} {inode}")
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", mark.display()))?;
    match std::fs::remove_dir(&folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
        }
        _ => {}
    }
    std::fs::rename(part, &folder).with_context(|| format!("cannot name {}", folder.display()))?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("cannot make {} durable", dir.display()))
}

fn mark(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.copy"))
}

/// The sum of the copy that was taken, and the folder that was made from it.
fn marked(dir: &Path, name: &str) -> Option<(String, u64)> {
    let text = std::fs::read_to_string(mark(dir, name)).ok()?;
    let (sum, inode) = text.trim().split_once(' ')?;
    Some((sum.to_owned(), inode.parse().ok()?))
}

fn inode_of(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_dir).map(|metadata| metadata.ino())
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

fn clear(part: &Path) -> Result<()> {
    match std::fs::remove_dir_all(part) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", part.display()))
        }
        _ => Ok(()),
    }
}

/// Bytes that may be written to the disk.
fn room(dir: &Path) -> Result<u64> {
    let disk = rustix::fs::statvfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    Ok(disk.f_bavail.saturating_sub(disk.f_blocks / SPARE).saturating_mul(disk.f_frsize))
}

/// What is written goes out in pieces.
struct Sender {
    sender: mpsc::Sender<Bytes>,
    piece: Vec<u8>,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        let gone = |_| io::Error::new(ErrorKind::BrokenPipe, "whoever asked has gone away");
        if piece.is_empty() { Ok(()) } else { self.sender.blocking_send(piece).map_err(gone) }
    }
}

/// What comes in is read; one that was cut off ends.
struct Receiver {
    receiver: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Receiver {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = self.piece.len().min(to.len());
        let taken = self.piece.split_to(length);
        taken.as_ref().read(to)
    }
}
