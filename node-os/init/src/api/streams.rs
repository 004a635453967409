//! Texts that may go on: logs and kernel messages.

use super::server::{Body, Refusal, Serving, text, typed};
use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use node_api::path;
use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;

const DEFAULT_TAIL: usize = 10_000;
/// Kernel messages and files have no descriptor to wait on that tokio knows; a look so often is cheap.
const LOOK: Duration = Duration::from_millis(500);
/// What is read of a log file at most: PID 1 is to stay small.
const MOST_OF_FILE: usize = 2 << 20;
const RECORD: usize = 8192;

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
    let mut file = Followed::default();
    let mut bytes = read_end(&path.with_extension("log.1"));
    bytes.extend(file.more(path));
    let excess = bytes.len().saturating_sub(MOST_OF_FILE);
    bytes.drain(..excess);
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

/// A file that is read as it grows, and another one that takes its place.
#[derive(Default)]
struct Followed {
    inode: u64,
    position: u64,
}

impl Followed {
    /// What is new in the file.
    fn more(&mut self, path: &Path) -> Vec<u8> {
        let Ok(file) = std::fs::File::open(path) else { return Vec::new() };
        let Ok(metadata) = file.metadata() else { return Vec::new() };
        if metadata.ino() != self.inode || metadata.len() < self.position {
            (self.inode, self.position) = (metadata.ino(), 0);
        }
        let start = self.position.max(metadata.len().saturating_sub(MOST_OF_FILE as u64));
        let bytes = read_from(file, start);
        self.position = start + bytes.len() as u64;
        bytes
    }
}

/// The end of a file; nothing where there is none.
fn read_end(path: &Path) -> Vec<u8> {
    let Ok(file) = std::fs::File::open(path) else { return Vec::new() };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    read_from(file, length.saturating_sub(MOST_OF_FILE as u64))
}

fn read_from(mut file: std::fs::File, start: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(start)).and_then(|_| file.take(MOST_OF_FILE as u64).read_to_end(&mut bytes));
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
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    let mut file =
        file.map_err(|error| Refusal(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot read /dev/kmsg: {error}")))?;
    let mut first = read_records(&mut file, only_ours);
    if let Some(lines) = number(query, "tail") {
        first.drain(..crate::logs::last_lines(first.as_bytes(), lines));
    }
    if !flag(query, "follow") {
        return Ok(text(first));
    }
    Ok(growing(first, move || read_records(&mut file, only_ours)))
}

/// All records that are there; one read gives one.
fn read_records(file: &mut std::fs::File, only_ours: bool) -> String {
    let mut all = String::new();
    let mut record = vec![0u8; RECORD];
    loop {
        match file.read(&mut record) {
            Ok(0) => return all,
            Ok(length) => {
                let line = String::from_utf8_lossy(record.get(..length).unwrap_or_default()).into_owned();
                if let Some(shown) = show_record(&line).filter(|shown| !only_ours || shown.contains("] kimg: ")) {
                    all.push_str(&shown);
                }
            }
            // EPIPE: the kernel overwrote what would have come next; the read after it goes on behind the gap.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return all,
        }
    }
}

/// `LEVEL,SEQUENCE,MICROSECONDS,…;text` as `[seconds] text`.
fn show_record(record: &str) -> Option<String> {
    let (head, body) = record.split_once(';')?;
    let micros: u64 = head.split(',').nth(2)?.parse().ok()?;
    let line = body.lines().next().unwrap_or_default();
    Some(format!("[{:5}.{:06}] {line}\n", micros / 1_000_000, micros % 1_000_000))
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

    #[test]
    fn files_are_followed_into_the_one_that_takes_their_place() {
        let folder = std::env::temp_dir().join(format!("kimg-followed-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("audit.log");
        let mut file = Followed::default();
        assert_eq!(file.more(&path), b"", "there is none yet");
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(file.more(&path), b"one\n");
        assert_eq!(file.more(&path), b"");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(file.more(&path), b"two\n");
        std::fs::rename(&path, path.with_extension("log.1")).unwrap();
        std::fs::write(&path, "three, which is longer\n").unwrap();
        assert_eq!(file.more(&path), b"three, which is longer\n");
        std::fs::write(&path, "x".repeat(2 * MOST_OF_FILE)).unwrap();
        assert_eq!(file.more(&path).len(), MOST_OF_FILE, "only the end of what is too much");
        assert_eq!(read_end(&path.with_extension("log.1")), b"one\ntwo\n");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn records_and_queries_are_read() {
        assert_eq!(show_record("6,1,1500000,-;hello\n SUBSYSTEM=x\n").unwrap(), "[    1.500000] hello\n");
        assert_eq!(show_record("junk"), None);
        assert_eq!(number("tail=5&follow=1", "tail"), Some(5));
        assert!(flag("tail=5&follow=1", "follow") && flag("follow", "follow") && !flag("follow=0", "follow"));
    }
}
