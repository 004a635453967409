//! The initramfs format: cpio "newc".

use super::tree::{Node, Tree};
use anyhow::{Context, Result, ensure};
use std::io::{self, Read};

const MAGIC: &[u8] = b"070701";
/// Magic and thirteen numbers of eight digits.
const HEADER: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// Names are paths, and those of the kernel end here.
const MOST_NAME: u64 = 4096;

/// A cpio archive whose bytes depend on the tree alone.
///
/// # Errors
/// A file of the tree that lies on the disk cannot be read.
pub fn archive(tree: &Tree) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (inode, (path, node)) in (1..).zip(tree.iter()) {
        let name = &path[1..];
        match node {
            Node::Dir(mode) => entry(&mut out, inode, name, 0o040_000 | mode, 2, (0, 0), &[]),
            Node::File(mode, data) => entry(&mut out, inode, name, 0o100_000 | mode, 1, (0, 0), &data.bytes()?),
            Node::Link(target) => entry(&mut out, inode, name, 0o120_777, 1, (0, 0), target.as_bytes()),
            Node::Device(mode, major, minor) => {
                entry(&mut out, inode, name, 0o020_000 | mode, 1, (*major, *minor), &[])
            }
        }
    }
    out.extend(trailer());
    out.resize(out.len().next_multiple_of(512), 0);
    Ok(out)
}

/// A folder, as an entry of an archive that is written piece by piece.
pub fn folder(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    entry(&mut out, 1, name, 0o040_755, 2, (0, 0), &[]);
    out
}

/// The head of a file of `size` bytes, a multiple of four, which follow it.
pub fn file_head(name: &str, size: u64) -> Result<Vec<u8>> {
    ensure!(size.is_multiple_of(4), "a file of {size} bytes would have to be filled up");
    let size = u32::try_from(size).context("a file of 4 GiB or more does not fit into an initramfs")?;
    let mut out = Vec::new();
    head(&mut out, 2, name, 0o100_400, 1, (0, 0), size);
    Ok(out)
}

/// The end of an archive.
pub fn trailer() -> Vec<u8> {
    let mut out = Vec::new();
    entry(&mut out, 0, TRAILER, 0, 1, (0, 0), &[]);
    out
}

/// Reads on to the first byte of the file `name`, over the ends of archives: its size; none where there is none.
pub fn find(archives: &mut impl Read, name: &str) -> Result<Option<u64>> {
    loop {
        // Between archives there may be zeros.
        let mut start = read(archives, 4)?;
        while start == [0; 4] {
            start = read(archives, 4)?;
        }
        if start.is_empty() {
            return Ok(None);
        }
        let header = [start, read(archives, HEADER as u64 - 4)?].concat();
        ensure!(header.len() == HEADER && header.starts_with(MAGIC), "its initramfs is damaged");
        let number = |field: usize| -> Result<u64> {
            let digits = std::str::from_utf8(&header[6 + field * 8..14 + field * 8])?;
            Ok(u64::from_str_radix(digits, 16)?)
        };
        let (size, name_size) = (number(6)?, number(11)?);
        ensure!((1..=MOST_NAME).contains(&name_size), "its initramfs is damaged");
        // Name and data are filled up to multiples of four, counted from the header's begin.
        let length = (HEADER as u64 + name_size).next_multiple_of(4) - HEADER as u64;
        let found = read(archives, length)?;
        ensure!(found.len() as u64 == length, "its initramfs is cut short");
        if found.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(&[0])) {
            return Ok(Some(size));
        }
        let rest = size.next_multiple_of(4);
        let skipped = io::copy(&mut archives.by_ref().take(rest), &mut io::sink())?;
        ensure!(skipped == rest, "its initramfs is cut short");
    }
}

/// As many bytes, or fewer at the end.
fn read(from: &mut impl Read, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn entry(out: &mut Vec<u8>, inode: u32, name: &str, mode: u32, links: u32, device: (u32, u32), data: &[u8]) {
    head(out, inode, name, mode, links, device, u32::try_from(data.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn head(out: &mut Vec<u8>, inode: u32, name: &str, mode: u32, links: u32, device: (u32, u32), size: u32) {
    let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    out.extend_from_slice(MAGIC);
    // inode mode uid gid links mtime size devmajor devminor rdevmajor rdevminor namesize check
    for field in [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_end_with_the_trailer() {
        let mut tree = Tree::default();
        tree.file("/init", 0o755, *b"abc").unwrap();
        tree.put("/dev/console", Node::Device(0o600, 5, 1)).unwrap();
        let bytes = archive(&tree).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.starts_with(b"070701"));
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("TRAILER!!!"));
        assert!(text.contains("000021800000000000000000"), "console is a character device with mode 0600");
    }

    #[test]
    fn a_file_is_found_behind_the_end_of_another_archive() {
        let mut tree = Tree::default();
        tree.file("/a", 0o644, *b"12345").unwrap();
        let big = [folder("b"), file_head("b/c", 8).unwrap(), b"contents".to_vec(), trailer()].concat();
        let both = [archive(&tree).unwrap(), big].concat();
        let sought = |bytes: &[u8], name: &str| {
            let mut reader = bytes;
            find(&mut reader, name).map(|size| (size, reader.to_vec()))
        };
        let (size, rest) = sought(&both, "b/c").unwrap();
        assert!(size == Some(8) && rest.starts_with(b"contents070701"), "{size:?}");
        assert_eq!(sought(&both, "a").unwrap().0, Some(5));
        assert_eq!(sought(&both, "b/").unwrap().0, None);
        assert!(sought(&both[..both.len() - 5], "d").is_err());
        assert!(sought(b"0707020000", "d").is_err());
        assert!(file_head("b/c", 7).is_err() && file_head("b/c", 1 << 32).is_err());
    }
}
