//! The CONFIG partition: a magic, a length, a checksum, and a tar of this cluster's files.

use crate::cache::hash::sha256;
use crate::image::tree::Tree;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

/// First bytes.
pub const MAGIC: &[u8; 8] = b"KIMGCFG1";
const HEADER: usize = 8 + 8 + 32;

/// Encodes files (mode and content by relative path).
pub fn encode(files: &BTreeMap<PathBuf, (u32, Vec<u8>)>) -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    for (path, (mode, content)) in files {
        let path = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        tree.file(&format!("/{path}"), *mode, content.clone())?;
    }
    if tree.has("/secrets") {
        tree.dir("/secrets", 0o700)?;
    }
    let tar = tree.to_tar()?;
    let mut out = MAGIC.to_vec();
    out.extend((tar.len() as u64).to_le_bytes());
    out.extend(sha256(&tar));
    out.extend(tar);
    Ok(out)
}

/// Reads what [`encode`] wrote, checksum included; `bytes` may go on behind it.
pub fn decode(bytes: &[u8]) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    let (Some(magic), Some(length), Some(sum)) = (bytes.get(..8), bytes.get(8..16), bytes.get(16..HEADER)) else {
        bail!("the CONFIG partition is cut short");
    };
    if magic != MAGIC {
        bail!("the CONFIG partition does not begin with {}", String::from_utf8_lossy(MAGIC));
    }
    let length = usize::try_from(u64::from_le_bytes(length.try_into()?))?;
    let tar = bytes.get(HEADER..HEADER.saturating_add(length)).context("the CONFIG partition is cut short")?;
    if sha256(tar) != sum {
        bail!("the CONFIG partition's checksum is wrong; the image is damaged");
    }
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(entry.path()?.into_owned(), (entry.header().mode()?, content));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_writes_and_notices_damage() {
        let mut files = BTreeMap::new();
        files.insert(PathBuf::from("cluster.json"), (0o644, b"{}".to_vec()));
        files.insert(PathBuf::from("secrets/sa.key"), (0o600, b"k".to_vec()));
        let mut bytes = encode(&files).unwrap();
        bytes.resize(1 << 16, 0);
        assert_eq!(decode(&bytes).unwrap(), files);
        bytes[600] ^= 1;
        assert!(decode(&bytes).unwrap_err().to_string().contains("checksum"));
        assert!(decode(b"KIMG").is_err());
    }
}
