//! The dm-verity hash tree, in veritysetup's format 1: a superblock, then the levels from the root downwards.

use crate::cache::hash::sha256;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Bytes of a data block and of a hash block.
pub const BLOCK: usize = 4096;
const DIGEST: usize = 32;
const PER_BLOCK: usize = BLOCK / DIGEST;
/// One salt for all images: the hash of a root can then be computed from the root alone and published.
const SALT: [u8; 32] = *b"kimg verity root, salt version 1";

/// A hash tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashTree {
    /// Root hash.
    pub root: [u8; 32],
    /// Content of the VERITY partition.
    pub bytes: Vec<u8>,
}

fn digest(block: &[u8]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(&SALT);
    context.update(block);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Hashes a file whose size is a multiple of [`BLOCK`].
pub fn hash_file(path: &Path) -> Result<HashTree> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let size = file.metadata()?.len();
    hash_of(&mut file, size).with_context(|| format!("hashing {}", path.display()))
}

/// Hashes the next `size` bytes, a multiple of [`BLOCK`].
pub fn hash_of(file: &mut impl Read, size: u64) -> Result<HashTree> {
    if size == 0 || !size.is_multiple_of(BLOCK as u64) {
        bail!("a root of {size} bytes is no multiple of {BLOCK}");
    }
    let mut leaves = Vec::with_capacity(usize::try_from(size)? / PER_BLOCK);
    let mut buffer = vec![0; 256 * BLOCK];
    let mut left = size;
    while left > 0 {
        let take = usize::try_from(left.min(buffer.len() as u64))?;
        file.read_exact(&mut buffer[..take]).context("reading the root")?;
        for block in buffer[..take].chunks_exact(BLOCK) {
            leaves.extend_from_slice(&digest(block));
        }
        left -= take as u64;
    }
    Ok(build(leaves, size / BLOCK as u64))
}

/// Builds the tree above the digests of the data blocks.
fn build(leaves: Vec<u8>, data_blocks: u64) -> HashTree {
    let mut levels = Vec::new();
    let mut current = leaves;
    // (The kernel reads a single data block without any level; a root always has more.)
    loop {
        current.resize(current.len().next_multiple_of(BLOCK), 0);
        let above: Vec<u8> = current.chunks_exact(BLOCK).flat_map(digest).collect();
        levels.push(std::mem::replace(&mut current, above));
        if current.len() == DIGEST {
            break;
        }
    }
    let mut root = [0; 32];
    root.copy_from_slice(&current);
    let mut bytes = superblock(&root, data_blocks);
    for level in levels.iter().rev() {
        bytes.extend_from_slice(level);
    }
    HashTree { root, bytes }
}

fn superblock(root: &[u8; 32], data_blocks: u64) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK);
    block.extend_from_slice(b"verity\0\0");
    block.extend_from_slice(&1u32.to_le_bytes()); // version
    block.extend_from_slice(&1u32.to_le_bytes()); // hash type: salt first
    block.extend_from_slice(&sha256(root)[..16]); // UUID, derived
    let mut algorithm = [0; 32];
    algorithm[..6].copy_from_slice(b"sha256");
    block.extend_from_slice(&algorithm);
    block.extend_from_slice(&(BLOCK as u32).to_le_bytes());
    block.extend_from_slice(&(BLOCK as u32).to_le_bytes());
    block.extend_from_slice(&data_blocks.to_le_bytes());
    block.extend_from_slice(&(SALT.len() as u16).to_le_bytes());
    block.extend_from_slice(&[0; 6]);
    block.extend_from_slice(&SALT);
    block.resize(BLOCK, 0);
    block
}

/// Hashes `root` and writes the tree to `out`.
pub fn write(root: &Path, out: &Path) -> Result<[u8; 32]> {
    let tree = hash_file(root)?;
    let mut file = File::create(out).with_context(|| format!("creating {}", out.display()))?;
    file.write_all(&tree.bytes).with_context(|| format!("writing {}", out.display()))?;
    Ok(tree.root)
}

/// The root hash that a written tree stands for.
pub fn root_of(tree: &Path) -> Result<[u8; 32]> {
    let bytes = std::fs::read(tree).with_context(|| format!("reading {}", tree.display()))?;
    top_hash(&bytes)
}

/// Bytes of the root that a tree's superblock speaks of.
pub fn data_size(superblock: &[u8]) -> Result<u64> {
    let field = superblock.strip_prefix(b"verity\0\0").and_then(|rest| rest.get(64..72));
    let blocks = u64::from_le_bytes(field.context("there is no hash tree; the image is damaged")?.try_into()?);
    blocks.checked_mul(BLOCK as u64).context("the hash tree is damaged")
}

/// The root hash that the first two blocks of a tree stand for.
pub fn top_hash(tree: &[u8]) -> Result<[u8; 32]> {
    let top = tree.get(BLOCK..2 * BLOCK).context("the hash tree is cut short")?;
    Ok(digest(top))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_of(blocks: usize) -> HashTree {
        let file = tempfile::NamedTempFile::new().unwrap();
        let data: Vec<u8> = (0..blocks * BLOCK).map(|n| (n / BLOCK) as u8).collect();
        std::fs::write(file.path(), data).unwrap();
        hash_file(file.path()).unwrap()
    }

    #[test]
    fn levels_have_the_sizes_that_the_kernel_computes() {
        for (blocks, hash_blocks) in [(1, 1), (128, 1), (129, 3), (128 * 128, 129), (128 * 128 + 1, 1 + 2 + 129)] {
            assert_eq!(tree_of(blocks).bytes.len(), (1 + hash_blocks) * BLOCK, "{blocks} blocks");
        }
    }

    #[test]
    fn the_root_follows_from_the_stored_tree() {
        let tree = tree_of(300);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &tree.bytes).unwrap();
        assert_eq!(root_of(file.path()).unwrap(), tree.root);
        assert_eq!(data_size(&tree.bytes).unwrap(), 300 * BLOCK as u64);
    }
}
