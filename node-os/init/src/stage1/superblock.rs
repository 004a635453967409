//! The superblock at the start of a verity partition. Pure.

use anyhow::{Context, Result, bail, ensure};
use std::fmt::Write;

/// Bytes to read.
pub const LENGTH: usize = 512;

/// What is needed to open the device.
#[derive(Debug, PartialEq, Eq)]
pub struct Superblock {
    pub algorithm: String,
    pub block_size: u32,
    pub data_blocks: u64,
    pub salt: String,
}

/// What a superblock says, or why it is none.
pub fn parse(bytes: &[u8]) -> Result<Superblock> {
    ensure!(bytes.get(..8) == Some(b"verity\0\0"), "the verity partition has no superblock; the image is damaged");
    let version = number(bytes, 8, 4)?;
    let kind = number(bytes, 12, 4)?;
    ensure!(version == 1 && kind == 1, "the verity partition has format {version}.{kind}, and only 1.1 is known");
    let (data, hash) = (number(bytes, 64, 4)?, number(bytes, 68, 4)?);
    ensure!(
        data == hash && [512, 1024, 2048, 4096].contains(&data),
        "the verity partition has blocks of {data} and {hash} bytes"
    );
    let name = bytes.get(32..64).context("the verity superblock is cut off")?;
    let name: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
    if !name.iter().all(u8::is_ascii_alphanumeric) || name.is_empty() {
        bail!("the verity partition names no digest");
    }
    let salt_length = usize::try_from(number(bytes, 80, 2)?)?;
    let salt = bytes.get(88..88 + salt_length.min(256)).context("the verity superblock is cut off")?;
    Ok(Superblock {
        algorithm: String::from_utf8(name)?,
        block_size: u32::try_from(data)?,
        data_blocks: number(bytes, 72, 8)?,
        salt: hex(salt),
    })
}

/// The kernel writes an empty salt as a dash.
fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn number(bytes: &[u8], at: usize, length: usize) -> Result<u64> {
    let part = bytes.get(at..at + length).context("the verity superblock is cut off")?;
    Ok(part.iter().rev().fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_superblock_is_read_or_refused() {
        let mut bytes = vec![0u8; LENGTH];
        bytes[..6].copy_from_slice(b"verity");
        bytes[8] = 1;
        bytes[12] = 1;
        bytes[32..38].copy_from_slice(b"sha256");
        bytes[65] = 16;
        bytes[69] = 16;
        bytes[72] = 5;
        bytes[80] = 2;
        bytes[88] = 0xab;
        let parsed = parse(&bytes).unwrap();
        let wanted = Superblock { algorithm: "sha256".into(), block_size: 4096, data_blocks: 5, salt: "ab00".into() };
        assert_eq!(parsed, wanted);
        for (at, value) in [(0, 0), (8, 2), (65, 0), (32, b' ')] {
            let mut bad = bytes.clone();
            bad[at] = value;
            assert!(parse(&bad).is_err(), "byte {at}");
        }
        assert!(parse(&bytes[..40]).is_err());
    }
}
