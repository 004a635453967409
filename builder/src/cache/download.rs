//! Fetching files over HTTP into a content-addressed store: resumed after an interruption, checked, renamed into place.

use crate::cache::{self, hash};
use crate::web::{Hosts, Interrupted, Steady, Unresolved, without_password};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::unversioned::transport::DefaultConnector;

/// How often a broken transfer is taken up again.
const ATTEMPTS: u32 = 4;

/// How long is waited before the second try, and twice as long before each one after it. Tests only count the tries.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 5 } else { 2000 });

/// How long a server may think, and how long a connection may stand still.
const STALL: Duration = Duration::from_secs(60);

/// An HTTP client with bounded waits.
pub fn client() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(STALL))
        .timeout_per_read(Some(STALL))
        .timeout_per_write(Some(STALL))
        .http_status_as_error(false)
        .user_agent(concat!("kimg/", env!("CARGO_PKG_VERSION")))
        .build();
    ureq::Agent::with_parts(config, DefaultConnector::default(), Hosts::default())
}

/// Why a fetch failed, where the caller acts on it.
#[derive(Debug, thiserror::Error)]
#[error("{url} is not there (HTTP {status})")]
pub struct Missing {
    /// What was asked for.
    pub url: String,
    /// 404 or 410.
    pub status: u16,
}

/// A server's answer that is no file.
#[derive(Debug, thiserror::Error)]
#[error("{url} answered HTTP {status}")]
struct Answered {
    url: String,
    status: u16,
}

/// A file that is longer than it may be: another one, and no shorter when it is asked for again.
#[derive(Debug, thiserror::Error)]
#[error("{url} is longer than the {size} bytes that it may have; the server or a proxy on the way changes files")]
struct Longer {
    url: String,
    size: u64,
}

/// Whether another try would end like this one.
fn is_final(error: &anyhow::Error) -> bool {
    let said_no = |answered: &Answered| matches!(answered.status, 300..=407 | 409..=428 | 430..=499);
    let unknown = error.downcast_ref().and_then(Unresolved::in_error);
    error.is::<Missing>()
        || unknown.is_some_and(|unresolved| !unresolved.again)
        || error.is::<Interrupted>()
        || error.is::<Longer>()
        || error.downcast_ref::<Answered>().is_some_and(said_no)
}

/// Tries until it works, or another try would end in the same way.
fn with_patience<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    let mut number = 1;
    loop {
        match attempt() {
            Err(error) if number < ATTEMPTS && !is_final(&error) => {
                std::thread::sleep(PAUSE * (1 << (number - 1)));
                number += 1;
            }
            result => return result,
        }
    }
}

/// Fetches a small file into memory.
pub fn get(client: &ureq::Agent, url: &str, limit: u64) -> Result<Vec<u8>> {
    with_patience(|| get_once(client, url, limit))
}

fn get_once(client: &ureq::Agent, url: &str, limit: u64) -> Result<Vec<u8>> {
    let called = client.get(url).call();
    // From here on for messages: the host's apt sources may have a password in them.
    let url = without_password(url);
    let (head, body) = called.with_context(|| format!("fetching {url}"))?.into_parts();
    match head.status.as_u16() {
        200 => {
            // ureq's own limit counts what came, and that may be packed.
            let mut bytes = Vec::new();
            let reader = body.into_with_config().limit(u64::MAX).reader();
            Steady::new(reader).take(limit + 1).read_to_end(&mut bytes).with_context(|| format!("reading {url}"))?;
            if bytes.len() as u64 > limit {
                return Err(Longer { url, size: limit }.into());
            }
            Ok(bytes)
        }
        status @ (404 | 410) => Err(Missing { url, status }.into()),
        status => Err(Answered { url, status }.into()),
    }
}

/// Asks for a file's bytes from an offset on; gives the status and the body.
pub type Open<'a> = dyn Fn(u64) -> Result<(u16, Box<dyn Read>)> + 'a;

/// A content-addressed store of files.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    /// Where the sums of unchanged files are remembered.
    memory: PathBuf,
}

impl Store {
    /// The store in `dir`; `memory` is that of [`hash::hex_of_file_remembered`].
    pub fn new(dir: &Path, memory: &Path) -> Store {
        Store { dir: dir.to_path_buf(), memory: memory.to_path_buf() }
    }

    /// Where a file with this SHA-256 is kept.
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.dir.join(sha256)
    }

    /// Whether the file is there, and still what it was when it was stored; one that is not is fetched again.
    ///
    /// # Errors
    /// It cannot be read, or its sum not be remembered.
    pub fn has(&self, sha256: &str, size: u64) -> Result<bool> {
        let path = self.path(sha256);
        Ok(fs::metadata(&path).is_ok_and(|m| m.len() == size) && hash::is_file_of(&path, sha256, &self.memory)?)
    }

    /// Makes sure that the file is there.
    pub fn fetch(
        &self,
        client: &ureq::Agent,
        url: &str,
        sha256: &str,
        size: u64,
        bar: &ProgressBar,
    ) -> Result<PathBuf> {
        let shown = without_password(url);
        self.fetch_by(&shown, sha256, size, bar, &|from| {
            let mut request = client.get(url);
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call().with_context(|| format!("fetching {shown}"))?;
            let (head, body) = response.into_parts();
            let body = Steady::new(body.into_with_config().limit(u64::MAX).reader());
            Ok((head.status.as_u16(), Box::new(body) as Box<dyn Read>))
        })
    }

    /// Makes sure that the file is there; `open` gives status and body of a request for the bytes from an offset on.
    pub fn fetch_by(&self, url: &str, sha256: &str, size: u64, bar: &ProgressBar, open: &Open<'_>) -> Result<PathBuf> {
        let path = self.path(sha256);
        if self.has(sha256, size)? {
            return Ok(path);
        }
        fs::create_dir_all(&self.dir).with_context(|| format!("creating {}", self.dir.display()))?;
        let partial = self.dir.join(format!("{sha256}.part"));
        // Another kimg may be fetching the same file; then its work is waited for, and used.
        let lock = self.dir.join(format!("{sha256}.lock"));
        let turn = cache::open_private(&lock)?;
        turn.lock().with_context(|| format!("locking {}", partial.display()))?;
        let fetched = self.fetch_alone(url, &partial, sha256, size, bar, open);
        drop(turn);
        if fetched.is_ok() {
            // Whoever waited holds the file itself; an empty file that stays does no harm.
            let _ = fs::remove_file(&lock);
        }
        fetched
    }

    fn fetch_alone(
        &self,
        url: &str,
        partial: &Path,
        sha256: &str,
        size: u64,
        bar: &ProgressBar,
        open: &Open<'_>,
    ) -> Result<PathBuf> {
        let path = self.path(sha256);
        if self.has(sha256, size)? {
            return Ok(path);
        }
        with_patience(|| transfer(url, partial, size, bar, open))?;
        let found = hash::hex_of_file(partial)?;
        if found != sha256 {
            fs::remove_file(partial).with_context(|| format!("removing {}", partial.display()))?;
            bail!(
                "{url} has SHA-256 {found}, and {sha256} was asked for; the server or a proxy on the way changes files"
            );
        }
        cache::store(partial, &path)?;
        hash::remember(&path, sha256, &self.memory)?;
        Ok(path)
    }
}

/// Fetches into `partial`, going on where it ends.
fn transfer(url: &str, partial: &Path, size: u64, bar: &ProgressBar, open: &Open<'_>) -> Result<()> {
    let mut file = File::options()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(partial)
        .with_context(|| format!("opening {}", partial.display()))?;
    let mut have = file.metadata()?.len();
    if have > size {
        file.set_len(0)?;
        have = 0;
    }
    if have == size {
        return Ok(());
    }
    let (status, body) = open(have)?;
    match status {
        206 => {}
        200 => {
            file.set_len(0)?;
            have = 0;
        }
        status @ (404 | 410) => return Err(Missing { url: url.to_string(), status }.into()),
        // What is here is no beginning of what is there.
        416 => {
            file.set_len(0)?;
            bail!("{url} has no more than {have} of {size} bytes");
        }
        status => return Err(Answered { url: url.to_string(), status }.into()),
    }
    file.seek(SeekFrom::Start(have))?;
    bar.set_position(have);
    // One byte too many shows that the file is another.
    let mut body = body.take(size.saturating_add(1));
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = match body.read(&mut buffer) {
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Interrupted>()) => {
                return Err(Interrupted.into());
            }
            read => read.with_context(|| format!("reading {url}"))?,
        };
        if n == 0 {
            break;
        }
        file.write_all(&buffer[..n]).with_context(|| format!("writing {}", partial.display()))?;
        bar.inc(n as u64);
    }
    let now = file.metadata()?.len();
    if now > size {
        file.set_len(0)?;
        return Err(Longer { url: url.to_string(), size }.into());
    }
    if now != size {
        bail!("{url} ended after {now} of {size} bytes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;

    /// A server that cuts the first answer short and honours ranges, for `count` requests.
    fn server(content: &'static [u8], count: usize) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for turn in 0..count {
                let (mut stream, _) = listener.accept().unwrap();
                let mut start = 0;
                for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                    let line = line.unwrap().to_lowercase();
                    if let Some(range) = line.strip_prefix("range: bytes=") {
                        start = range.trim_end_matches('-').parse().unwrap();
                    }
                    if line.is_empty() {
                        break;
                    }
                }
                let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
                let body = &content[start..];
                write!(stream, "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())
                    .unwrap();
                let sent = if turn == 0 { body.len() / 2 } else { body.len() };
                stream.write_all(&body[..sent]).unwrap();
            }
        });
        format!("http://{address}/file")
    }

    #[test]
    fn a_broken_transfer_goes_on_where_it_ended() {
        let content: &[u8] = b"0123456789abcdef";
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), &dir.path().join("sums"));
        let url = server(content, 2);
        let path = store.fetch(&client(), &url, &hash::hex_of(content), 16, &ProgressBar::hidden()).unwrap();
        assert_eq!(fs::read(path).unwrap(), content);
    }

    #[test]
    fn a_no_is_not_asked_for_again() {
        use std::cell::Cell;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), &dir.path().join("sums"));
        let asked = Cell::new(0);
        let fetch = |open: &dyn Fn() -> Result<(u16, Box<dyn Read>)>| {
            asked.set(0);
            let bar = ProgressBar::hidden();
            store.fetch_by("u", &hash::hex_of(b"x"), 1, &bar, &|_| {
                asked.set(asked.get() + 1);
                open()
            })
        };
        for status in [307, 401, 403, 404] {
            fetch(&|| Ok((status, Box::new(std::io::empty())))).unwrap_err();
            assert_eq!(asked.get(), 1, "{status}");
        }
        struct Stopped;
        impl Read for Stopped {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::Error::other(Interrupted))
            }
        }
        assert!(fetch(&|| Ok((200, Box::new(Stopped)))).unwrap_err().is::<Interrupted>());
        assert_eq!(asked.get(), 1);
        let error = fetch(&|| Ok((200, Box::new(&b"xy"[..])))).unwrap_err().to_string();
        assert!(error.contains("longer than the 1 bytes"), "{error}");
        assert_eq!(asked.get(), 1);
        // Too many calls pass.
        fetch(&|| Ok((if asked.get() < 2 { 429 } else { 200 }, Box::new(&b"x"[..])))).unwrap();
    }

    #[test]
    fn a_small_file_is_asked_for_again_where_the_server_is_busy() {
        use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
        let asked = std::sync::Arc::new(AtomicUsize::new(0));
        let server = crate::web::fake::Server::start({
            let asked = asked.clone();
            move |request| match (request.path.as_str(), asked.fetch_add(1, Relaxed)) {
                ("/no", _) => crate::web::fake::Reply::new(404),
                (_, 0) => crate::web::fake::Reply::new(503),
                _ => crate::web::fake::Reply::new(200).body(b"x"),
            }
        });
        assert_eq!(get(&client(), &format!("{}/yes", server.url()), 1).unwrap(), b"x");
        get(&client(), &format!("{}/no", server.url()), 1).unwrap_err();
        assert_eq!(asked.load(Relaxed), 3);
    }

    #[test]
    fn a_small_file_is_counted_unpacked() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&[b' '; 5000]).unwrap();
        let packed = packed.finish().unwrap();
        let server = crate::web::fake::Server::start(move |_| {
            crate::web::fake::Reply::new(200).header("content-encoding", "gzip").body(&packed)
        });
        assert_eq!(get(&client(), &server.url(), 5000).unwrap().len(), 5000);
        assert!(get(&client(), &server.url(), 4999).unwrap_err().to_string().contains("longer than"));
    }

    #[test]
    fn wrong_content_is_refused_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), &dir.path().join("sums"));
        let url = server(b"0123456789abcdef", 2);
        let error = store.fetch(&client(), &url, &hash::hex_of(b"x"), 16, &ProgressBar::hidden()).unwrap_err();
        assert!(error.to_string().contains("was asked for"), "{error}");
        assert!(!store.has(&hash::hex_of(b"x"), 16).unwrap());
        assert!(!fs::exists(dir.path().join(format!("{}.part", hash::hex_of(b"x")))).unwrap());
    }

    #[test]
    fn a_file_that_was_altered_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path(), &dir.path().join("sums"));
        let (sha256, asked) = (hash::hex_of(b"whole"), std::cell::Cell::new(0));
        let fetch = || {
            store.fetch_by("u", &sha256, 5, &ProgressBar::hidden(), &|_| {
                asked.set(asked.get() + 1);
                Ok((200, Box::new(&b"whole"[..])))
            })
        };
        let path = fetch().unwrap();
        assert_eq!(fetch().unwrap(), path);
        assert_eq!(asked.get(), 1);
        // As long as before. Times are as fine as the kernel's clock.
        std::thread::sleep(Duration::from_millis(30));
        fs::write(&path, "whale").unwrap();
        assert_eq!(fs::read(fetch().unwrap()).unwrap(), b"whole");
        assert_eq!(asked.get(), 2);
    }
}
