//! Texts that may go on: logs and kernel messages.

use super::server::{Body, Refusal, Serving, text, typed};
use crate::kernel_log;
use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use node_api::path;
use std::convert::Infallible;
use std::fs::Metadata;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

const DEFAULT_TAIL: usize = 10_000;
/// Kernel messages and files have no descriptor to wait on that tokio knows; a look so often is cheap.
const LOOK: Duration = Duration::from_millis(500);
/// What is read of a log file at most: PID 1 is to stay small.
const MOST_OF_FILE: usize = 2 << 20;
/// What is read at one time: by a byte more, which tells whether a line begins behind it.
const PIECE: usize = MOST_OF_FILE + 1;

/// `/v1/logs/SERVICE`.
pub(super) fn log(serving: &Rc<Serving>, target: &str, query: &str) -> Result<Response<Body>, Refusal> {
    let name = target.strip_prefix(path::LOGS).unwrap_or_default().trim_start_matches('/');
    let logs = serving.machine.logs.clone();
    if name == "init" {
        return kernel_log_of(query, true);
    }
    if name == "audit" && Path::new(node_api::AUDIT_LOG).exists() {
        return Ok(file_log(Path::new(node_api::AUDIT_LOG), query));
    }
    let Some(log) = logs.find(name) else {
        let names: Vec<String> = serving.machine.services().into_iter().map(|service| service.name).collect();
        return Err(Refusal(
            StatusCode::NOT_FOUND,
            format!("there is no log {name:?}; there are init, {}", names.join(", ")),
        ));
    };
    let (bytes, mut position) = logs.tail(&log, number(query, "tail").unwrap_or(DEFAULT_TAIL));
    if !flag(query, "follow") {
        return Ok(text(bytes));
    }
    let (sender, receiver) = mpsc::channel(8);
    tokio::task::spawn_local(async move {
        let mut chunk = bytes;
        loop {
            if sender.send(Bytes::from(chunk)).await.is_err() {
                return;
            }
            // Whoever has gone away must not be waited for until the next line.
            tokio::select! {
                () = log.more_than(position) => {}
                () = sender.closed() => return,
            }
            (chunk, position) = log.since(position);
        }
    });
    Ok(stream(receiver))
}

/// A log that a service keeps by itself, in a file that it puts aside as `PATH.1` when it is large.
fn file_log(path: &Path, query: &str) -> Response<Body> {
    let (mut bytes, mut file) = Followed::begin(path);
    let start = crate::logs::last_lines(&bytes, number(query, "tail").unwrap_or(DEFAULT_TAIL));
    let first = bytes.split_off(start);
    if !flag(query, "follow") {
        return text(first);
    }
    let path = path.to_owned();
    growing(first, move || file.more(&path))
}

/// What is there first, and then again and again what has come since, until nobody reads any more.
fn growing<T: Into<Bytes> + AsRef<[u8]> + 'static>(first: T, mut more: impl FnMut() -> T + 'static) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(8);
    tokio::task::spawn_local(async move {
        let mut chunk = first;
        loop {
            if !chunk.as_ref().is_empty() && sender.send(chunk.into()).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = sender.closed() => return,
            }
            chunk = more();
        }
    });
    stream(receiver)
}

/// A file that is read as it grows, and another one that takes its place. It is not kept open, as STATE could not be
/// unmounted then.
struct Followed {
    inode: u64,
    position: u64,
}

impl Followed {
    /// What is there, or the last lines of it where it is too much, and how to go on from there.
    fn begin(path: &Path) -> (Vec<u8>, Followed) {
        let mut followed = Followed { inode: 0, position: 0 };
        let mut bytes = Vec::new();
        if let Some((file, metadata)) = open(path) {
            followed = Followed { inode: metadata.ino(), position: last_piece(&metadata) };
            bytes = followed.rest(file);
        }
        // Put aside just now, the file is not shown twice.
        if let Some((old, metadata)) = open(&aside(path)).filter(|(_, old)| old.ino() != followed.inode) {
            let mut all = read_from(old, last_piece(&metadata));
            all.append(&mut bytes);
            bytes = all;
        }
        if let Some(excess @ 1..) = bytes.len().checked_sub(MOST_OF_FILE) {
            let line = bytes.iter().skip(excess - 1).position(|byte| *byte == b'\n');
            bytes.drain(..line.map_or(bytes.len(), |line| excess + line));
        }
        (bytes, followed)
    }

    /// What is new: the rest of the file that was read until now, then that in its place. Of very much only a piece,
    /// and the next piece when it is asked again.
    fn more(&mut self, path: &Path) -> Vec<u8> {
        let Some((file, metadata)) = open(path) else { return Vec::new() };
        if metadata.ino() == self.inode && metadata.len() >= self.position {
            return self.rest(file);
        }
        let old = open(&aside(path)).filter(|(_, old)| old.ino() == self.inode);
        let mut bytes = old.map(|(old, _)| self.rest(old)).unwrap_or_default();
        if bytes.len() < PIECE {
            *self = Followed { inode: metadata.ino(), position: 0 };
            bytes.append(&mut self.rest(file));
        }
        bytes
    }

    fn rest(&mut self, file: std::fs::File) -> Vec<u8> {
        let bytes = read_from(file, self.position);
        self.position += bytes.len() as u64;
        bytes
    }
}

/// Where a service puts a file that is large.
fn aside(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

fn open(path: &Path) -> Option<(std::fs::File, Metadata)> {
    let file = std::fs::File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    Some((file, metadata))
}

/// Where the last piece of a file begins.
fn last_piece(metadata: &Metadata) -> u64 {
    metadata.len().saturating_sub(PIECE as u64)
}

fn read_from(mut file: std::fs::File, start: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.take(PIECE as u64).read_to_end(&mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    bytes
}

/// `/v1/dmesg`.
pub(super) fn kernel_log(query: &str) -> Result<Response<Body>, Refusal> {
    kernel_log_of(query, false)
}

fn kernel_log_of(query: &str, only_ours: bool) -> Result<Response<Body>, Refusal> {
    let file = kernel_log::open();
    let mut file =
        file.map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read /dev/kmsg: {error}")))?;
    let mut more = move || {
        let mut all = String::new();
        kernel_log::each(&mut file, |record| {
            if !only_ours || record.is_ours() {
                all.push_str(&record.shown());
            }
        });
        all
    };
    let mut first = more();
    if let Some(lines) = number(query, "tail") {
        first.drain(..crate::logs::last_lines(first.as_bytes(), lines));
    }
    if !flag(query, "follow") {
        return Ok(text(first));
    }
    Ok(growing(first, more))
}

fn stream(receiver: mpsc::Receiver<Bytes>) -> Response<Body> {
    let chunks = futures::stream::unfold(receiver, |mut receiver| async move {
        let chunk = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(chunk)), receiver))
    });
    typed("text/plain; charset=utf-8", StreamBody::new(chunks.boxed()).boxed_unsync())
}

fn value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == key).map(|(_, value)| value))
}

fn number(query: &str, key: &str) -> Option<usize> {
    value(query, key)?.parse().ok()
}

fn flag(query: &str, key: &str) -> bool {
    matches!(value(query, key), Some("1" | "true")) || query.split('&').any(|word| word == key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn files_are_followed_into_the_one_that_takes_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let write = |text: &str| {
            let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        };
        let (first, mut file) = Followed::begin(&path);
        assert_eq!((first.as_slice(), file.more(&path).as_slice()), (&b""[..], &b""[..]), "there is none yet");
        write("one\n");
        assert_eq!(file.more(&path), b"one\n");
        assert_eq!(file.more(&path), b"");
        write("two\n");
        assert_eq!(file.more(&path), b"two\n");
        // What comes between two looks, before the file is put aside and after.
        write("three\n");
        std::fs::rename(&path, aside(&path)).unwrap();
        write("four, which is longer than all that was there before\n");
        assert_eq!(file.more(&path), b"three\nfour, which is longer than all that was there before\n");
        assert_eq!(file.more(&path), b"");
        // However much it is.
        let much = "a line of some length\n".repeat(PIECE / 10);
        write(&much);
        std::fs::rename(&path, aside(&path)).unwrap();
        write("last\n");
        let mut all = Vec::new();
        while !all.ends_with(b"last\n") {
            let bytes = file.more(&path);
            assert!(!bytes.is_empty() && bytes.len() <= 2 * PIECE);
            all.extend(bytes);
        }
        assert!(all == format!("{much}last\n").as_bytes());
    }

    #[test]
    fn of_long_files_whole_lines_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let line = "0123456789abcde\n";
        let lines = |bytes: usize| line.repeat(bytes / line.len());
        for (old, new) in [
            (String::new(), lines(MOST_OF_FILE)),
            (String::new(), lines(4 * MOST_OF_FILE)),
            (lines(4 * MOST_OF_FILE), String::new()),
            (lines(4 * MOST_OF_FILE), lines(1600)),
            (lines(1600), lines(4 * MOST_OF_FILE)),
            (format!("x{}", lines(MOST_OF_FILE)), String::new()),
            (format!("{}x\n", lines(MOST_OF_FILE)), lines(16)),
        ] {
            std::fs::write(aside(&path), &old).unwrap();
            std::fs::write(&path, &new).unwrap();
            let (bytes, mut file) = Followed::begin(&path);
            let text = String::from_utf8(bytes).unwrap();
            let all = format!("{old}{new}");
            assert!(text.len() <= MOST_OF_FILE && text.len() + line.len() >= all.len().min(MOST_OF_FILE));
            assert!(all.ends_with(&text) && (text.starts_with(line) || text.len() == all.len()));
            assert_eq!(file.more(&path), b"");
        }
    }

    #[test]
    fn queries_are_read() {
        assert_eq!(number("tail=5&follow=1", "tail"), Some(5));
        assert!(flag("tail=5&follow=1", "follow") && flag("follow", "follow") && !flag("follow=0", "follow"));
    }
}
