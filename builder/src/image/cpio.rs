//! The initramfs format: cpio "newc".

use super::tree::{Node, Tree};

/// A cpio archive whose bytes depend on the tree alone.
pub fn archive(tree: &Tree) -> Vec<u8> {
    let mut out = Vec::new();
    for (inode, (path, node)) in (1..).zip(tree.iter()) {
        let name = &path[1..];
        match node {
            Node::Dir(mode) => entry(&mut out, inode, name, 0o040_000 | mode, 2, (0, 0), &[]),
            Node::File(mode, data) => entry(&mut out, inode, name, 0o100_000 | mode, 1, (0, 0), data),
            Node::Link(target) => entry(&mut out, inode, name, 0o120_777, 1, (0, 0), target.as_bytes()),
            Node::Device(mode, major, minor) => {
                entry(&mut out, inode, name, 0o020_000 | mode, 1, (*major, *minor), &[])
            }
        }
    }
    entry(&mut out, 0, "TRAILER!!!", 0, 1, (0, 0), &[]);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn entry(out: &mut Vec<u8>, inode: u32, name: &str, mode: u32, links: u32, device: (u32, u32), data: &[u8]) {
    let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
    out.extend_from_slice(b"070701");
    // inode mode uid gid links mtime size devmajor devminor rdevmajor rdevminor namesize check
    for field in [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0] {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
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
        let bytes = archive(&tree);
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.starts_with(b"070701"));
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("TRAILER!!!"));
        assert!(text.contains("000021800000000000000000"), "console is a character device with mode 0600");
    }
}
