//! A copy of a local volume's folder: a tar, and behind it the SHA-256 of that, by which one that was cut off is known.
//!
//! All names in the tar begin with [`ROOT`], the folder itself; a volume that nobody has used yet is a tar of nothing. Times
//! to the nanosecond stand in the pax record `mtime`, an extended attribute in `KIMG.xattr=NAME:VALUE`, both in hex.

use sha2::{Digest, Sha256};
use std::io::{self, Read, Write};

/// Where the folders of local volumes lie on a node.
pub const LOCAL_PATH: &str = "/var/lib/kimg/local-path";
/// The folder in the tar.
pub const ROOT: &str = "volume";
/// An extended attribute, more than once where there are several.
pub const XATTR: &str = "KIMG.xattr";
/// Bytes behind the tar.
const SUM: usize = 32;
const PIECE: usize = 64 << 10;

/// Whether a volume may be called so: as a PersistentVolume may, which no file of the node's own is.
pub fn is_volume_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    (1..=253).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with('.')
}

/// Whether an extended attribute is copied: what programs set, access lists and capabilities. Others are the node's own.
pub fn is_carried(xattr: &str) -> bool {
    xattr.starts_with("user.") || xattr.starts_with("system.posix_acl_") || xattr == "security.capability"
}

/// Hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a copy's tar, and its sum behind it.
#[derive(Debug)]
pub struct Summed<W> {
    to: W,
    hash: Sha256,
}

impl<W: Write> Summed<W> {
    /// Into this.
    pub fn new(to: W) -> Summed<W> {
        Summed { to, hash: Sha256::new() }
    }

    /// Writes the sum; without it nobody takes the copy for whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.to.write_all(&self.hash.finalize())?;
        self.to.flush()?;
        Ok(self.to)
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Reads a copy's tar; then [`Checked::finish`] says whether the sum behind it is right.
#[derive(Debug)]
pub struct Checked<R> {
    from: R,
    /// What was read and not given yet; the last [`SUM`] bytes of it may be the sum.
    held: Vec<u8>,
    given: usize,
    ended: bool,
    hash: Sha256,
}

impl<R: Read> Checked<R> {
    /// From this.
    pub fn new(from: R) -> Checked<R> {
        Checked { from, held: Vec::new(), given: 0, ended: false, hash: Sha256::new() }
    }

    /// The sum, hex, once all was read.
    ///
    /// # Errors
    /// The copy is cut off or damaged.
    pub fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        let sum = self.hash.finalize();
        match self.held.get(self.given..) == Some(sum.as_slice()) {
            true => Ok(hex(&sum)),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "the copy is cut off or damaged")),
        }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let free = self.held.len().saturating_sub(self.given + SUM);
            if free > 0 || to.is_empty() {
                let mut piece = self.held.get(self.given..self.given + free).unwrap_or_default();
                let length = piece.read(to)?;
                self.hash.update(to.get(..length).unwrap_or_default());
                self.given += length;
                return Ok(length);
            }
            if self.ended {
                return Ok(0);
            }
            self.held.drain(..self.given);
            self.given = 0;
            let read = (&mut self.from).take(PIECE as u64).read_to_end(&mut self.held)?;
            self.ended = read == 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_or_changed_is_no_copy() {
        for length in [0, 1, SUM, PIECE - SUM, PIECE, 3 * PIECE + 5] {
            let bytes = vec![7; length];
            let mut summed = Summed::new(Vec::new());
            summed.write_all(&bytes).expect("written");
            let mut copy = summed.finish().expect("written");
            let (mut checked, mut read) = (Checked::new(copy.as_slice()), Vec::new());
            checked.read_to_end(&mut read).expect("read");
            assert!(read == bytes, "{length}");
            assert_eq!(checked.finish().expect("whole"), hex(&Sha256::digest(&bytes)));
            assert!(Checked::new(&copy[..copy.len() - 1]).finish().is_err(), "{length}");
            assert!(Checked::new(&copy[1..]).finish().is_err(), "{length}");
            copy[0] ^= 1;
            assert!(Checked::new(copy.as_slice()).finish().is_err(), "{length}");
        }
    }

    #[test]
    fn names_are_those_of_persistent_volumes() {
        for good in ["pvc-1", "a.b"] {
            assert!(is_volume_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".a.part", "a/b", "A", "a b", &"a".repeat(254)] {
            assert!(!is_volume_name(bad), "{bad}");
        }
    }
}
