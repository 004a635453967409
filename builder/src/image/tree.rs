//! A file tree. All owners are root and all times zero; what differs is path, kind, mode and content.
//! Written out as tar (for mksquashfs), as cpio (initramfs), or into a folder (tools).

use crate::input;
use anyhow::{Context as _, Result, bail};
use ring::digest::{Context, SHA256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Take, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest name of a file, in bytes (NAME_MAX).
pub const LONGEST_NAME: usize = 255;

/// What a file holds.
#[derive(Debug, Clone)]
pub enum Data {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// In a file of this machine, which is read when the tree is written: it need not fit into memory.
    OnDisk(Arc<OnDisk>),
}

/// A file of this machine as it was when it was looked at.
#[derive(Debug)]
pub struct OnDisk {
    path: PathBuf,
    size: u64,
    sha256: Option<String>,
}

impl Data {
    /// Of a file of this size, and with this sum where it is known: what changes until it is read is an error then.
    pub fn on_disk(path: &Path, size: u64, sha256: Option<&str>) -> Data {
        Data::OnDisk(Arc::new(OnDisk { path: path.into(), size, sha256: sha256.map(str::to_string) }))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::OnDisk(file) => file.size,
        }
    }

    /// Reads it from its beginning.
    ///
    /// # Errors
    /// The file is no more what it was, which shows at its end at the latest.
    pub fn open(&self) -> Result<Box<dyn Read + '_>> {
        Ok(match self {
            Data::Bytes(bytes) => Box::new(&bytes[..]),
            Data::OnDisk(file) => Box::new(Unchanged {
                from: input::open(&file.path)?.take(file.size),
                file,
                sum: Some(Context::new(&SHA256)),
            }),
        })
    }

    /// All of it.
    ///
    /// # Errors
    /// As [`Data::open`].
    pub fn bytes(&self) -> Result<Arc<[u8]>> {
        match self {
            Data::Bytes(bytes) => Ok(bytes.clone()),
            Data::OnDisk(file) => {
                let mut bytes = Vec::new();
                self.open()?.read_to_end(&mut bytes).with_context(|| format!("reading {}", file.path.display()))?;
                Ok(bytes.into())
            }
        }
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Data) -> bool {
        match (self, other) {
            (Data::Bytes(one), Data::Bytes(two)) => one == two,
            _ => {
                self.size() == other.size()
                    && self.bytes().ok().is_some_and(|one| other.bytes().is_ok_and(|two| one == two))
            }
        }
    }
}

impl Eq for Data {}

impl<B: Into<Arc<[u8]>>> From<B> for Data {
    fn from(bytes: B) -> Data {
        Data::Bytes(bytes.into())
    }
}

/// Reads a file, and compares at its end.
struct Unchanged<'a> {
    from: Take<File>,
    file: &'a OnDisk,
    sum: Option<Context>,
}

impl Read for Unchanged<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        if let Some(sum) = &mut self.sum {
            sum.update(&buffer[..n]);
        }
        if n == 0
            && !buffer.is_empty()
            && let Some(sum) = self.sum.take()
        {
            let found = hex::encode(sum.finish());
            if self.from.limit() > 0 || self.file.sha256.as_ref().is_some_and(|known| *known != found) {
                let shown = self.file.path.display();
                return Err(io::Error::other(format!(
                    "{shown} changed while the image was being built; run the build again"
                )));
            }
        }
        Ok(n)
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Directory with permission bits.
    Dir(u32),
    /// Regular file with permission bits.
    File(u32, Data),
    /// Symbolic link.
    Link(String),
    /// Character device: permission bits, major, minor.
    Device(u32, u32, u32),
}

/// Entries by absolute path without `/` at the end. A parent always sorts before its children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
    owners: BTreeMap<String, String>,
    owner: String,
}

impl Tree {
    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.nodes.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// The entry at `path`.
    pub fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// Whether there is an entry at `path`.
    pub fn has(&self, path: &str) -> bool {
        self.nodes.contains_key(path)
    }

    /// Says whose the entries are that are put from now on.
    pub fn owned_by(&mut self, owner: &str) {
        self.owner = owner.to_string();
    }

    /// Who put each entry that is no directory: path and owner, in order of paths.
    pub fn owners(&self) -> impl Iterator<Item = (&str, &str)> {
        self.owners.iter().map(|(path, owner)| (path.as_str(), owner.as_str()))
    }

    /// Puts an entry, making its parents. A second entry at the same path must be the same.
    pub fn put(&mut self, path: &str, node: Node) -> Result<()> {
        if !path.starts_with('/') || path.len() < 2 || path.ends_with('/') || path.split('/').any(|p| p == "..") {
            return input::bad(format!("'{path}' is no absolute path of a file"));
        }
        if path.split('/').any(|part| part.len() > LONGEST_NAME) {
            return input::bad(format!("a name in '{path}' has more than the {LONGEST_NAME} bytes that Linux takes"));
        }
        self.parents(path)?;
        match self.nodes.get(path) {
            Some(Node::Dir(_)) if matches!(node, Node::Dir(_)) => {}
            Some(known) if *known != node => {
                return input::bad(format!("two different things want to be {path} in the image; take one out"));
            }
            _ => {}
        }
        if !matches!(node, Node::Dir(_)) {
            self.owners.entry(path.to_string()).or_insert_with(|| self.owner.clone());
        }
        self.nodes.insert(path.to_string(), node);
        Ok(())
    }

    /// Puts a regular file.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Data>) -> Result<()> {
        self.put(path, Node::File(mode, content.into()))
    }

    /// Puts a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.put(path, Node::Link(target.to_string()))
    }

    /// Puts a directory.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        self.put(path, Node::Dir(mode))
    }

    fn parents(&mut self, path: &str) -> Result<()> {
        let cuts: Vec<usize> = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).collect();
        for at in cuts {
            let parent = &path[..at];
            match self.nodes.get(parent) {
                Some(Node::Dir(_)) => {}
                Some(_) => return input::bad(format!("{path} lies below {parent}, which is no directory")),
                None => {
                    self.nodes.insert(parent.to_string(), Node::Dir(0o755));
                }
            }
        }
        Ok(())
    }

    /// Bytes of all regular files.
    pub fn content_size(&self) -> u64 {
        self.nodes.values().map(|n| if let Node::File(_, data) = n { data.size() } else { 0 }).sum()
    }

    /// Writes a tar whose bytes depend on the tree alone.
    pub fn write_tar(&self, out: impl Write) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        for (path, node) in self.iter() {
            append(&mut tar, &path[1..], node).with_context(|| format!("packing {path}"))?;
        }
        tar.into_inner()?.flush()?;
        Ok(())
    }

    /// The tar as bytes.
    pub fn to_tar(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write_tar(&mut bytes)?;
        Ok(bytes)
    }

    /// Writes the tree below `folder`.
    pub fn write_to(&self, folder: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        for (path, node) in self.iter() {
            let target = folder.join(&path[1..]);
            let written = match node {
                Node::Dir(_) => std::fs::create_dir_all(&target),
                Node::File(mode, data) => File::create(&target)
                    .and_then(|mut file| io::copy(&mut *data.open().map_err(io::Error::other)?, &mut file))
                    .and_then(|_| std::fs::set_permissions(&target, std::fs::Permissions::from_mode(*mode))),
                Node::Link(to) => std::os::unix::fs::symlink(to, &target),
                Node::Device(..) => bail!("{path} is a device, which a folder cannot hold"),
            };
            written.with_context(|| format!("writing {}", target.display()))?;
        }
        Ok(())
    }
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, node: &Node) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    match node {
        Node::Dir(mode) => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(*mode);
            tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
        }
        Node::File(mode, data) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(*mode);
            header.set_size(data.size());
            tar.append_data(&mut header, path, &mut *data.open()?)?;
        }
        Node::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            tar.append_link(&mut header, path, target)?;
        }
        Node::Device(mode, major, minor) => {
            header.set_entry_type(tar::EntryType::Char);
            header.set_mode(*mode);
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
            tar.append_data(&mut header, path, std::io::empty())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_the_tar_is_stable() {
        let mut a = Tree::default();
        a.file("/usr/bin/x", 0o755, *b"x").unwrap();
        a.link("/bin", "usr/bin").unwrap();
        let mut b = Tree::default();
        b.link("/bin", "usr/bin").unwrap();
        b.file("/usr/bin/x", 0o755, *b"x").unwrap();
        assert_eq!(a.to_tar().unwrap(), b.to_tar().unwrap());
        let paths: Vec<&str> = a.iter().map(|(p, _)| p).collect();
        assert_eq!(paths, ["/bin", "/usr", "/usr/bin", "/usr/bin/x"]);
    }

    #[test]
    fn contradictions_are_refused() {
        let mut tree = Tree::default();
        tree.file("/a", 0o644, *b"1").unwrap();
        assert!(tree.file("/a", 0o644, *b"2").is_err());
        assert!(tree.file("/a/b", 0o644, *b"2").is_err());
        assert!(tree.file("a", 0o644, *b"2").is_err());
        assert!(tree.file("/x/../y", 0o644, *b"2").is_err());
    }

    #[test]
    fn a_file_on_the_disk_is_read_when_it_is_wanted_and_not_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "whole").unwrap();
        let sum = crate::cache::hash::hex_of(b"whole");
        let tree_of = |data: Data| {
            let mut tree = Tree::default();
            tree.file("/f", 0o644, data).unwrap();
            tree
        };
        let (in_memory, on_disk) = (tree_of((*b"whole").into()), tree_of(Data::on_disk(&path, 5, Some(&sum))));
        assert_eq!(in_memory, on_disk);
        assert_eq!(in_memory.to_tar().unwrap(), on_disk.to_tar().unwrap());
        assert_eq!(on_disk.content_size(), 5);
        let unsummed = tree_of(Data::on_disk(&path, 5, None));
        for (now, fine_without_sum) in [("whale", true), ("who", false)] {
            std::fs::write(&path, now).unwrap();
            let error = format!("{:#}", on_disk.to_tar().unwrap_err());
            assert!(error.contains("changed while") && error.contains(&path.display().to_string()), "{error}");
            assert_eq!(unsummed.to_tar().is_ok(), fine_without_sum, "{now}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(format!("{:#}", on_disk.to_tar().unwrap_err()).contains("there is no"));
    }
}
