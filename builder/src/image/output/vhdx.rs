//! Dynamic VHDX (Microsoft's MS-VHDX): the form of Hyper-V, no larger than what the disk holds.
//!
//! ```text
//! identifier | two headers | two region tables | log, empty | metadata | block allocation table | blocks
//! ```
//! Each begins at a whole MiB, but the first three, which share one. Headers and region tables have checksums
//! (CRC-32C); metadata and the block allocation table have none in this format.

use crate::disk::gpt::Guid;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

/// Everything is aligned to it.
pub(in crate::image) const MIB: u64 = 1 << 20;
/// Where the headers are.
pub(in crate::image) const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Bytes of a header.
pub(in crate::image) const HEADER: usize = 4 << 10;
/// Where the region tables are.
pub(in crate::image) const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table, and of the table at the beginning of the metadata.
pub(in crate::image) const TABLE: usize = 64 << 10;
/// A block that is wholly in the file.
pub(in crate::image) const FULLY_PRESENT: u64 = 6;

/// Region: block allocation table.
pub(in crate::image) const BAT: Guid = guid(0x2dc2_7766_f623_4200_9d64_115e_9bfd_4a08);
/// Region: metadata.
pub(in crate::image) const METADATA: Guid = guid(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);
/// Metadata: size of a block, and whether there is a parent.
pub(in crate::image) const FILE_PARAMETERS: Guid = guid(0xcaa1_6737_fa36_4d43_b3b6_33f0_aa44_e76b);
/// Metadata: size of the disk.
pub(in crate::image) const DISK_SIZE: Guid = guid(0x2fa5_4224_cd1b_4876_b211_5dbe_d83b_f4b8);
/// Metadata: bytes of a sector, as the machine addresses them.
pub(in crate::image) const LOGICAL_SECTOR: Guid = guid(0x8141_bf1d_a96f_4709_ba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: Guid = guid(0xcda3_48c7_445d_4471_9cc9_e988_5251_c556);
const DISK_ID: Guid = guid(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);

const SECTOR: u64 = 512;
/// The smallest that the format has: holes of the disk stay holes.
const BLOCK: u64 = MIB;
const LOG_AT: u64 = MIB;
const METADATA_AT: u64 = 2 * MIB;
const BAT_AT: u64 = 3 * MIB;

const fn guid(number: u128) -> Guid {
    Guid::from_text_bytes(number.to_be_bytes())
}

/// Where in the allocation table the entry of a block stands. After each chunk of blocks comes an entry for a bitmap of
/// sectors: only disks with a parent have bitmaps, but their entries are always there.
pub(in crate::image) fn bat_index(number: u64, block: u64) -> u64 {
    let chunk = (1 << 23) * SECTOR / block;
    number + number / chunk
}

/// Writes the `size` bytes of `raw` as a dynamic VHDX.
pub(super) fn write(raw: &mut File, size: u64, out: &mut File) -> Result<()> {
    let blocks = size.div_ceil(BLOCK);
    let mut bat = vec![0u64; usize::try_from(bat_index(blocks, BLOCK))?];
    let bat_length = (bat.len() as u64 * 8).next_multiple_of(MIB);
    let mut end = BAT_AT + bat_length;

    let mut hash = Sha256::new();
    let mut block = vec![0; usize::try_from(BLOCK)?];
    for number in 0..blocks {
        let length = usize::try_from(BLOCK.min(size - number * BLOCK))?;
        block.fill(0);
        raw.read_exact(&mut block[..length]).context("reading the disk")?;
        hash.update(&block[..length]);
        if block.iter().any(|byte| *byte != 0) {
            put(out, end, &block)?;
            bat[usize::try_from(bat_index(number, BLOCK))?] = (end / MIB) << 20 | FULLY_PRESENT;
            end += BLOCK;
        }
    }
    out.set_len(end).context("writing VHDX")?;

    let digest = hex::encode(hash.finalize());
    let id = |what: &str| Guid::derived(&format!("vhdx {what} {digest}"));
    put(out, 0, &identifier())?;
    for (sequence, at) in (0..).zip(HEADERS) {
        put(out, at, &header(sequence, id("file"), id("data")))?;
    }
    for at in REGION_TABLES {
        put(out, at, &region_table(u32::try_from(bat_length)?))?;
    }
    put(out, METADATA_AT, &metadata(size.next_multiple_of(SECTOR), id("disk")))?;
    let bat: Vec<u8> = bat.into_iter().flat_map(u64::to_le_bytes).collect();
    put(out, BAT_AT, &bat)
}

fn put(out: &mut File, at: u64, bytes: &[u8]) -> Result<()> {
    out.seek(SeekFrom::Start(at)).context("writing VHDX")?;
    out.write_all(bytes).context("writing VHDX")
}

fn identifier() -> Vec<u8> {
    let creator = "kimg".encode_utf16().flat_map(u16::to_le_bytes);
    b"vhdxfile".iter().copied().chain(creator).collect()
}

/// Readers take the header with the greater sequence number.
fn header(sequence: u64, file: Guid, data: Guid) -> Vec<u8> {
    let mut header = b"head\0\0\0\0".to_vec();
    header.extend(sequence.to_le_bytes());
    header.extend(file.disk_bytes());
    header.extend(data.disk_bytes());
    // No log identifier: the log is empty. Version 0 of the log, 1 of the format.
    header.extend([0; 16]);
    header.extend(0u16.to_le_bytes());
    header.extend(1u16.to_le_bytes());
    header.extend((MIB as u32).to_le_bytes());
    header.extend(LOG_AT.to_le_bytes());
    sealed(header, HEADER)
}

fn region_table(bat_length: u32) -> Vec<u8> {
    let regions = [(BAT, BAT_AT, bat_length), (METADATA, METADATA_AT, MIB as u32)];
    let mut table = b"regi\0\0\0\0".to_vec();
    table.extend((regions.len() as u64).to_le_bytes());
    for (id, at, length) in regions {
        table.extend(id.disk_bytes());
        table.extend(at.to_le_bytes());
        table.extend(length.to_le_bytes());
        // Required: who does not know it must not open the file.
        table.extend(1u32.to_le_bytes());
    }
    sealed(table, TABLE)
}

/// Fills up with zeros and puts the checksum in its place.
fn sealed(mut bytes: Vec<u8>, length: usize) -> Vec<u8> {
    bytes.resize(length, 0);
    let sum = checksum(&bytes);
    bytes[4..8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// CRC-32C of a header or a table, its own four bytes (the second four) taken as zeros.
pub(in crate::image) fn checksum(bytes: &[u8]) -> u32 {
    let (signature, rest) = bytes.split_at(4);
    crc32c(signature.iter().chain(&[0; 4]).chain(&rest[4..]))
}

fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    /// Castagnoli's polynomial, lowest bit first.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32| crc >> 1 ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
    !bytes.fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

fn metadata(size: u64, id: Guid) -> Vec<u8> {
    // Flags of an entry: it is about the disk and not about the file; it is required.
    const OF_DISK: u32 = 1 << 1;
    const REQUIRED: u32 = 1 << 2;
    // No block is kept for holes, no parent.
    let parameters = [(BLOCK as u32).to_le_bytes(), [0; 4]].concat();
    let items = [
        (FILE_PARAMETERS, REQUIRED, parameters),
        (DISK_SIZE, REQUIRED | OF_DISK, size.to_le_bytes().to_vec()),
        (DISK_ID, REQUIRED | OF_DISK, id.disk_bytes().to_vec()),
        (LOGICAL_SECTOR, REQUIRED | OF_DISK, (SECTOR as u32).to_le_bytes().to_vec()),
        // As Hyper-V makes new disks; partitions are aligned to more.
        (PHYSICAL_SECTOR, REQUIRED | OF_DISK, 4096u32.to_le_bytes().to_vec()),
    ];
    let mut table = b"metadata\0\0".to_vec();
    table.extend((items.len() as u16).to_le_bytes());
    table.extend([0; 20]);
    let mut values = Vec::new();
    for (id, flags, value) in items {
        table.extend(id.disk_bytes());
        for number in [(TABLE + values.len()) as u32, value.len() as u32, flags, 0] {
            table.extend(number.to_le_bytes());
        }
        values.extend(value);
    }
    table.resize(TABLE, 0);
    table.extend(values);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(disk: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let (raw, out) = (dir.path().join("disk.raw"), dir.path().join("disk.vhdx"));
        std::fs::write(&raw, disk).unwrap();
        super::super::Format::Vhdx.write(&raw, &out).unwrap();
        std::fs::read(&out).unwrap()
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, B.4, and the value that lists of CRCs have for these digits.
        assert_eq!(crc32c([0; 32].iter()), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
        assert_eq!(checksum(b"abcdWXYZefgh"), crc32c(b"abcd\0\0\0\0efgh".iter()));
    }

    #[test]
    fn entries_of_bitmaps_are_left_out() {
        // 4 GiB are a chunk.
        let at = [0, 4095, 4096, 8191, 8192].map(|number| bat_index(number, MIB));
        assert_eq!(at, [0, 4095, 4097, 8192, 8194]);
        assert_eq!(bat_index(128, 32 * MIB), 129);
    }

    #[test]
    fn holes_take_no_room() {
        let mut disk = vec![0; 9 << 20];
        disk[0] = 1;
        disk[(5 << 20) + 1] = 2;
        let file = written(&disk);
        // Four MiB of tables and log, and two blocks.
        assert_eq!(file.len(), 6 << 20);
        let entry = |n: usize| u64::from_le_bytes(file[(3 << 20) + n * 8..][..8].try_into().unwrap());
        let entries: Vec<u64> = (0..9).map(entry).collect();
        assert_eq!(entries, [4 << 20 | 6, 0, 0, 0, 0, 5 << 20 | 6, 0, 0, 0]);
    }

    #[test]
    fn identifiers_follow_from_the_content() {
        let ids =
            |file: &[u8]| [file[(128 << 10) + 16..][..32].to_vec(), file[(2 << 20) + (64 << 10) + 16..][..16].to_vec()];
        let (one, same, other) = (written(&[1; 512]), written(&[1; 512]), written(&[2; 512]));
        assert!(one == same);
        assert_ne!(ids(&one)[0], ids(&other)[0]);
        assert_ne!(ids(&one)[1], ids(&other)[1]);
        assert_ne!(ids(&one)[0][..16], ids(&one)[0][16..]);
    }
}
