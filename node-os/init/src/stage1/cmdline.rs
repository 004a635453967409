//! What the kernel's command line says: the root hash, and whether this is an installer. Pure.

use crate::disk::gpt::Guid;
use anyhow::{Context, Result, bail};

/// The verity root hash, and the PARTUUIDs that its halves are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RootHash {
    pub(super) hex: String,
    pub(super) root: Guid,
    pub(super) verity: Guid,
}

const PARAMETER: &str = "kimg.roothash=";

pub(super) fn root_hash(line: &str) -> Result<RootHash> {
    let hex = line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(PARAMETER))
        .with_context(|| format!("the kernel's command line has no {PARAMETER}HASH; build the image again"))?
        .to_ascii_lowercase();
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        bail!("{PARAMETER}{hex} on the kernel's command line is not 64 hexadecimal digits; build the image again");
    }
    let (first, second) = hex.split_at(32);
    let halves = Guid::from_hex(first).zip(Guid::from_hex(second));
    let (root, verity) = halves.context("the root hash is no pair of partition ids")?;
    Ok(RootHash { hex, root, verity })
}

/// What an installer is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Install {
    /// SHA-256 of the disk that it carries, hex.
    pub(super) sha256: String,
    /// The disk that is overwritten whatever it holds, by its kernel name.
    pub(super) to: Option<String>,
}

const INSTALL: &str = "kimg.install=";
const INSTALL_TO: &str = "kimg.install-to=";

/// None where the kernel was started from a node's disk.
pub(super) fn install(line: &str) -> Option<Install> {
    let word = |name: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned);
    Some(Install { sha256: word(INSTALL)?, to: word(INSTALL_TO) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_found_or_the_fault_is_named() {
        let hash = "0123456789abcdef".repeat(4);
        let found = root_hash(&format!("quiet kimg.roothash={hash} console=ttyS0")).unwrap();
        assert_eq!(found.root.to_string(), "01234567-89ab-cdef-0123-456789abcdef");
        for line in ["quiet", "kimg.roothash=12", &format!("kimg.roothash={}", "g".repeat(64))] {
            assert!(root_hash(line).is_err(), "{line}");
        }
    }

    #[test]
    fn only_a_medium_installs() {
        assert_eq!(install("kimg.roothash=00 kimg.install-to=vda"), None);
        let found = install("kimg.install-to=vda console=ttyS0 kimg.install=ab").unwrap();
        assert_eq!(found, Install { sha256: "ab".into(), to: Some("vda".into()) });
        assert_eq!(install("kimg.install=ab").unwrap().to, None);
    }
}
