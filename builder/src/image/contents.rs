//! What the root of an image holds, read from its squashfs: every file with its owner, size and sum.

use super::inspect;
use super::reader::Disk;
use super::root::{FILE_LIST, PACKAGE_LIST};
use super::verity;
use crate::disk::gpt;
use anyhow::{Context, Result, ensure};
use backhand::{FilesystemReader, InnerNode, SquashfsFileReader};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// The most that a root may have, bytes, packed; unpacked it may be four times that.
const MOST_ROOT: u64 = 16 << 30;
/// The most that one of its two lists may have, bytes.
const MOST_LIST: u64 = 64 << 20;

/// The files of a root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// By absolute path; directories are left out.
    pub files: BTreeMap<String, Item>,
    /// Debian packages that gave files, and their versions.
    pub packages: BTreeMap<String, String>,
}

/// A file, a link or a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Permission bits.
    pub mode: u32,
    /// Bytes, unpacked.
    pub size: u64,
    /// Bytes that it takes in the squashfs.
    pub packed: u64,
    /// SHA-256 of a file in hex, target of a link.
    pub content: String,
    /// Package, program, container image, or `kimg`.
    pub owner: String,
}

impl Contents {
    /// Of the root of a disk image, which must be the root that its verity hash names.
    ///
    /// # Errors
    /// The image cannot be read, or its root is damaged.
    pub fn of_image(path: &Path) -> Result<Contents> {
        let read = || -> Result<Contents> {
            let root = root_of(&mut Disk::open(path)?)?;
            Contents::of_squashfs(BufReader::new(root))
        };
        read().with_context(|| format!("reading the root of {}", path.display()))
    }

    /// Of a squashfs.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_squashfs(squashfs: impl std::io::BufRead + Seek + Send) -> Result<Contents> {
        let mut contents = Contents::default();
        let mut owners = String::new();
        walk(squashfs, |path, item, reader| {
            let mut item = item;
            if let Some(reader) = reader {
                let mut hash = Sha256::new();
                match path {
                    PACKAGE_LIST | FILE_LIST => {
                        ensure!(item.size <= MOST_LIST, "it is longer than kimg writes it");
                        let mut text = String::new();
                        reader.read_to_string(&mut text)?;
                        hash.update(&text);
                        if path == FILE_LIST {
                            owners = text;
                        } else {
                            let pairs = text.lines().filter_map(|line| line.split_once(' '));
                            contents.packages = pairs.map(|(n, v)| (n.to_string(), v.to_string())).collect();
                        }
                    }
                    _ => {
                        std::io::copy(reader, &mut hash)?;
                    }
                }
                item.content = hex::encode(hash.finalize());
            }
            contents.files.insert(path.to_string(), item);
            Ok(())
        })?;
        for (path, owner) in owners.lines().filter_map(|line| line.split_once('\t')) {
            if let Some(item) = contents.files.get_mut(path) {
                item.owner = owner.to_string();
            }
        }
        Ok(contents)
    }
}

/// The Debian packages that gave files to a root, and their versions, by the list that it carries.
///
/// # Errors
/// The squashfs cannot be read, or has no list.
pub fn packages_of(squashfs: impl std::io::BufRead + Seek + Send) -> Result<BTreeMap<String, String>> {
    let mut text = String::new();
    walk(squashfs, |path, item, reader| {
        if let (PACKAGE_LIST, Some(reader)) = (path, reader) {
            ensure!(item.size <= MOST_LIST, "it is longer than kimg writes it");
            reader.read_to_string(&mut text)?;
        }
        Ok(())
    })?;
    ensure!(!text.is_empty(), "the root has no {PACKAGE_LIST}");
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.map(|(name, version)| (name.to_string(), version.to_string())).collect())
}

/// The root of a disk in a file of its own, checked against the verity hash that the partition table names.
///
/// # Errors
/// The disk cannot be read, or the root is not the one of the hash.
pub fn root_of(disk: &mut Disk) -> Result<File> {
    let table = inspect::table_of(disk)?;
    let (root, tree) = (inspect::partition(&table, "root")?, inspect::partition(&table, "verity")?);
    let mut file = tempfile::tempfile().context("making a temporary file")?;
    let mut left = root.sectors.saturating_mul(gpt::SECTOR);
    ensure!(left <= MOST_ROOT, "its partition 'root' is larger than kimg makes it");
    let mut at = inspect::offset_of(root)?;
    while left > 0 {
        let length = left.min(1 << 20);
        file.write_all(&disk.read_at(at, usize::try_from(length)?)?).context("writing a temporary file")?;
        (at, left) = (at + length, left - length);
    }
    let superblock = disk.read_at(inspect::offset_of(tree)?, verity::BLOCK)?;
    let length = verity::data_size(&superblock)?;
    ensure!(
        length <= root.sectors.saturating_mul(gpt::SECTOR),
        "the hash tree is of a larger root; the image is damaged"
    );
    file.set_len(length)?;
    file.seek(SeekFrom::Start(0))?;
    let hash = verity::hash_of(&mut file, length)?.root;
    ensure!(hex::encode(hash) == inspect::root_hash_of(&table)?, "the root is not the one of its verity hash");
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

/// Calls `see` for every file, link and device, with a reader for files.
///
/// # Errors
/// The squashfs cannot be read, or `see` fails.
pub fn walk(
    squashfs: impl std::io::BufRead + Seek + Send,
    mut see: impl FnMut(&str, Item, Option<&mut dyn Read>) -> Result<()>,
) -> Result<()> {
    let filesystem = FilesystemReader::from_reader(squashfs).context("reading the squashfs")?;
    let mut tails: BTreeMap<usize, u64> = BTreeMap::new();
    for node in filesystem.files() {
        if let InnerNode::File(file) = &node.inner {
            *tails.entry(file.frag_index()).or_default() += tail(&filesystem, file);
        }
    }
    let mut unpacked = 0u64;
    for node in filesystem.files() {
        let path = node.fullpath.to_str().context("a path is not UTF-8")?;
        let mut item = Item {
            mode: u32::from(node.header.permissions) & 0o7777,
            size: 0,
            packed: 0,
            content: String::new(),
            owner: "kimg".into(),
        };
        match &node.inner {
            InnerNode::Dir(_) => {}
            InnerNode::File(file) => {
                item.size = file.file_len() as u64;
                unpacked = unpacked.saturating_add(item.size);
                ensure!(unpacked <= 4 * MOST_ROOT, "its files are larger than kimg makes them");
                item.packed = packed(&filesystem, file, &tails);
                let handle = filesystem.file(file);
                let mut reader = handle.reader_checked()?;
                see(path, item, Some(&mut reader)).with_context(|| format!("reading {path}"))?;
            }
            InnerNode::Symlink(link) => {
                item.content = link.link.to_string_lossy().into_owned();
                see(path, item, None)?;
            }
            _ => see(path, item, None)?,
        }
    }
    Ok(())
}

/// Bytes behind a file's last whole block.
fn tail(filesystem: &FilesystemReader<'_>, file: &SquashfsFileReader) -> u64 {
    file.file_len() as u64 % u64::from(filesystem.block_size.max(1))
}

/// What a file takes: its own blocks, and its part of the block of tails that it shares with others; `tails` has the
/// bytes in each of those.
fn packed(filesystem: &FilesystemReader<'_>, file: &SquashfsFileReader, tails: &BTreeMap<usize, u64>) -> u64 {
    let own: u64 = file.block_sizes().iter().map(|block| u64::from(block.size())).sum();
    let fragment = filesystem.fragments.as_ref().and_then(|all| all.get(file.frag_index()));
    let all = tails.get(&file.frag_index()).copied().unwrap_or(0).max(1);
    own + fragment.map_or(0, |f| (u64::from(f.size.size()) * tail(filesystem, file)).div_ceil(all))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use backhand::compression::Compressor;
    use backhand::{FilesystemCompressor, FilesystemWriter, NodeHeader};
    use std::io::Cursor;

    /// A squashfs with these files, and the lists that kimg puts into every root.
    pub fn squashfs(files: &[(&str, &str, Vec<u8>)], packages: &str) -> Vec<u8> {
        let header = NodeHeader { permissions: 0o644, ..NodeHeader::default() };
        let owners: String = files.iter().map(|(path, owner, _)| format!("{path}\t{owner}\n")).collect();
        let mut writer = FilesystemWriter::default();
        writer.set_compressor(FilesystemCompressor::new(Compressor::Zstd, None).unwrap());
        let lists = [(PACKAGE_LIST, packages.as_bytes().to_vec()), (FILE_LIST, owners.into_bytes())];
        let own = files.iter().map(|(path, _, bytes)| (*path, bytes.clone()));
        for (path, bytes) in own.chain(lists) {
            writer.push_dir_all(Path::new(path).parent().unwrap(), header).unwrap();
            writer.push_file(Cursor::new(bytes), path, header).unwrap();
        }
        let mut out = Cursor::new(Vec::new());
        writer.write(&mut out).unwrap();
        let mut bytes = out.into_inner();
        bytes.resize(bytes.len().next_multiple_of(verity::BLOCK), 0);
        bytes
    }

    #[test]
    fn files_have_owners_sizes_and_sums() {
        let big: Vec<u8> = (0..300_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        let files = [("/usr/bin/crun", "crun", big.clone()), ("/etc/hosts", "kimg", b"x".to_vec())];
        let bytes = squashfs(&files, "crun 1.21-1\n");
        let contents = Contents::of_squashfs(Cursor::new(&bytes)).unwrap();
        assert_eq!(contents.packages["crun"], "1.21-1");
        let crun = &contents.files["/usr/bin/crun"];
        assert_eq!((crun.size, crun.owner.as_str(), crun.mode), (1_200_000, "crun", 0o644));
        assert!(crun.packed > 1_000_000, "random bytes do not shrink: {}", crun.packed);
        assert_eq!(packages_of(Cursor::new(&bytes)).unwrap(), contents.packages);
        assert_eq!(crun.content, crate::cache::hash::hex_of(&big));
        assert_eq!(contents.files["/etc/hosts"].owner, "kimg");
    }
}
