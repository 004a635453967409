//! A file tree in memory. All owners are root and all times zero; what differs is path, kind, mode and content.
//! Written out as tar (for mksquashfs), as cpio (initramfs), or into a folder (tools).

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Directory with permission bits.
    Dir(u32),
    /// Regular file with permission bits.
    File(u32, Arc<[u8]>),
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
            bail!("'{path}' is no absolute path of a file");
        }
        self.parents(path)?;
        match self.nodes.get(path) {
            Some(Node::Dir(_)) if matches!(node, Node::Dir(_)) => {}
            Some(known) if *known != node => bail!("two different things want to be {path} in the image"),
            _ => {}
        }
        if !matches!(node, Node::Dir(_)) {
            self.owners.entry(path.to_string()).or_insert_with(|| self.owner.clone());
        }
        self.nodes.insert(path.to_string(), node);
        Ok(())
    }

    /// Puts a regular file.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Arc<[u8]>>) -> Result<()> {
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
                Some(_) => bail!("{path} lies below {parent}, which is no directory"),
                None => {
                    self.nodes.insert(parent.to_string(), Node::Dir(0o755));
                }
            }
        }
        Ok(())
    }

    /// Bytes of all regular files.
    pub fn content_size(&self) -> u64 {
        self.nodes.values().map(|n| if let Node::File(_, data) = n { data.len() as u64 } else { 0 }).sum()
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
                Node::File(mode, data) => std::fs::write(&target, data)
                    .and_then(|()| std::fs::set_permissions(&target, std::fs::Permissions::from_mode(*mode))),
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
            header.set_size(data.len() as u64);
            tar.append_data(&mut header, path, &data[..])?;
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
}
