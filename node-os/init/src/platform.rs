//! What this machine offers to metadata sources.

use crate::disk::scan::block_devices;
use node_metadata::ReadAt;
use node_metadata::sources::Platform;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// No document is larger.
const MOST_BYTES: u64 = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);

/// The real machine, without the disk it was booted from.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Kernel name of the disk with the root; its partitions are no metadata drives.
    pub own_disk: String,
}

impl Platform for Machine {
    fn dmi(&self, name: &str) -> Option<String> {
        // A name from a URL must not lead elsewhere.
        if !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            return None;
        }
        std::fs::read_to_string(format!("/sys/class/dmi/id/{name}")).ok().map(|text| text.trim().to_owned())
    }

    fn kernel_line(&self) -> String {
        std::fs::read_to_string("/proc/cmdline").unwrap_or_default()
    }

    fn devices(&self) -> Vec<(String, Box<dyn ReadAt>)> {
        block_devices()
            .into_iter()
            .filter(|name| {
                !name.starts_with(&self.own_disk)
                    && !["loop", "ram", "dm-", "zram"].iter().any(|kind| name.starts_with(kind))
            })
            .filter_map(|name| {
                let file = File::open(format!("/dev/{name}")).ok()?;
                Some((name, Box::new(Drive(file)) as Box<dyn ReadAt>))
            })
            .collect()
    }

    fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Option<Vec<u8>>, String> {
        let rest = url.strip_prefix("http://").ok_or("only http:// is known")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let answer = fetch(host, path, headers).map_err(|error| error.to_string())?;
        split_answer(&answer)
    }
}

/// A block device that may carry metadata.
struct Drive(File);

impl ReadAt for Drive {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.0, buffer, offset)
    }
}

fn fetch(host: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Vec<u8>> {
    let target = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let address = target.to_socket_addrs()?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: kimg\r\nAccept: */*\r\n{more}\r\n")?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The body of a 200, `None` for 404 and 204.
fn split_answer(answer: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or("the server's answer is no HTTP")?;
    let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default()).into_owned();
    let status = head.split_ascii_whitespace().nth(1).unwrap_or_default();
    match status {
        "200" => Ok(Some(answer.get(end + 4..).unwrap_or_default().to_vec())),
        "204" | "404" => Ok(None),
        other => Err(format!("the server answers {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        assert_eq!(split_answer(b"HTTP/1.0 200 OK\r\nA: b\r\n\r\nbody").unwrap(), Some(b"body".to_vec()));
        assert_eq!(split_answer(b"HTTP/1.0 404 No\r\n\r\n").unwrap(), None);
        assert!(split_answer(b"HTTP/1.0 500 No\r\n\r\n").is_err());
        assert!(split_answer(b"junk").is_err());
    }
}
