//! Fixed VHD ("Virtual Hard Disk Image Format Specification", Microsoft 2006): the disk, and a footer of one sector.
//! Azure takes nothing else, and only in whole MiB.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

const FOOTER: usize = 512;
const SECTOR: u64 = 512;
const ALIGNMENT: u64 = 1 << 20;
/// Largest geometry that the format knows.
const MOST_SECTORS: u64 = 65_535 * 16 * 255;
const FIXED: u32 = 2;

/// Writes the `size` bytes of `raw` as a fixed VHD, sparse where the disk has zeros.
pub(super) fn write(raw: &mut File, size: u64, out: &mut File) -> Result<()> {
    let padded = size.next_multiple_of(ALIGNMENT);
    super::copy_sparse(raw, size, out)?;
    out.set_len(padded).context("writing VHD")?;
    out.seek(SeekFrom::Start(padded)).context("writing VHD")?;
    raw.seek(SeekFrom::Start(0)).context("reading the disk")?;
    let mut hash = Sha256::new();
    io::copy(raw, &mut hash).context("reading the disk")?;
    out.write_all(&footer(padded, &hash.finalize()[..16])).context("writing VHD")
}

fn footer(size: u64, id: &[u8]) -> [u8; FOOTER] {
    let mut fields = Vec::with_capacity(FOOTER);
    fields.extend(b"conectix");
    // Features: the reserved bit that must be set. Version 1.0. No further header follows.
    fields.extend(2u32.to_be_bytes());
    fields.extend(0x0001_0000u32.to_be_bytes());
    fields.extend(u64::MAX.to_be_bytes());
    // Made at the format's epoch, so that the same disk gives the same bytes.
    fields.extend(0u32.to_be_bytes());
    // Readers take the size below at its word only from creators that they know (QEMU `block/vpc.c`);
    // from others they compute a smaller one of the geometry.
    fields.extend(b"win ");
    fields.extend(0x0006_0001u32.to_be_bytes());
    fields.extend(b"Wi2k");
    fields.extend(size.to_be_bytes());
    fields.extend(size.to_be_bytes());
    fields.extend(geometry(size / SECTOR));
    fields.extend(FIXED.to_be_bytes());
    let checksum_at = fields.len();
    fields.extend([0; 4]);
    fields.extend(id);
    let mut footer = [0; FOOTER];
    footer[..fields.len()].copy_from_slice(&fields);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[checksum_at..checksum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
    footer
}

/// Cylinders, heads and sectors per track, after the specification's appendix.
fn geometry(sectors: u64) -> [u8; 4] {
    let total = sectors.min(MOST_SECTORS);
    let (heads, per_track, cylinders_times_heads);
    if total >= 65_535 * 16 * 63 {
        (heads, per_track) = (16, 255);
        cylinders_times_heads = total / per_track;
    } else {
        let mut track = 17;
        let mut product = total / track;
        let mut count = product.div_ceil(1024).max(4);
        if product >= count * 1024 || count > 16 {
            (track, count) = (31, 16);
            product = total / track;
        }
        if product >= count * 1024 {
            (track, count) = (63, 16);
            product = total / track;
        }
        (heads, per_track, cylinders_times_heads) = (count, track, product);
    }
    let cylinders = u16::try_from(cylinders_times_heads / heads).unwrap_or(u16::MAX).to_be_bytes();
    let byte = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    [cylinders[0], cylinders[1], byte(heads), byte(per_track)]
}
