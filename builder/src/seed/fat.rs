//! A FAT16 volume with a few files in its root: what a NoCloud drive is.
//!
//! ```text
//! boot sector | FAT | FAT | root directory (512 entries) | clusters of 512 bytes
//! ```
//! Names like `meta-data` do not fit 8.3, so each file gets a long name beside a short one.

use anyhow::{Result, bail};

const SECTOR: usize = 512;
const ROOT_ENTRIES: usize = 512;
/// FAT16 begins at 4085 clusters; a volume with fewer would be read as FAT12.
const CLUSTERS: usize = 4200;
const FAT_SECTORS: usize = (CLUSTERS + 2) * 2 / SECTOR + 1;
const RESERVED: usize = 1;
const ROOT_START: usize = RESERVED + 2 * FAT_SECTORS;
const DATA_START: usize = ROOT_START + ROOT_ENTRIES * 32 / SECTOR;
const TOTAL: usize = DATA_START + CLUSTERS;
const END_OF_CHAIN: u16 = 0xffff;
/// 1 January 2000, so that the bytes do not depend on the clock.
const DATE: u16 = (20 << 9) | (1 << 5) | 1;

/// Writes a volume holding `files`. The same files give the same bytes.
pub fn volume(label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut image = vec![0u8; TOTAL * SECTOR];
    image[..SECTOR].copy_from_slice(&boot_sector(label));
    let mut fat = vec![0u16; CLUSTERS + 2];
    fat[0] = 0xfff8;
    fat[1] = END_OF_CHAIN;
    let mut root: Vec<[u8; 32]> = vec![label_entry(label)];
    let mut next = 2usize;
    for (number, (name, content)) in files.iter().enumerate() {
        let clusters = content.len().div_ceil(SECTOR);
        if next + clusters > CLUSTERS + 2 {
            bail!("{name} does not fit on the drive of {} KiB", CLUSTERS * SECTOR / 1024);
        }
        let first = if clusters == 0 { 0 } else { next };
        for (link, cluster) in fat[next..next + clusters].iter_mut().zip(next..) {
            *link = if cluster + 1 == next + clusters { END_OF_CHAIN } else { (cluster + 1) as u16 };
        }
        let at = (DATA_START + next - 2) * SECTOR;
        image[at..at + content.len()].copy_from_slice(content);
        root.extend(entries(name, number, first as u16, content.len() as u32));
        next += clusters;
    }
    if root.len() > ROOT_ENTRIES {
        bail!("too many files for a drive: {}", files.len());
    }
    for copy in 0..2 {
        let at = (RESERVED + copy * FAT_SECTORS) * SECTOR;
        for (i, entry) in fat.iter().enumerate() {
            image[at + 2 * i..at + 2 * i + 2].copy_from_slice(&entry.to_le_bytes());
        }
    }
    for (i, entry) in root.iter().enumerate() {
        let at = ROOT_START * SECTOR + 32 * i;
        image[at..at + 32].copy_from_slice(entry);
    }
    Ok(image)
}

/// Whether a first sector is that of a volume of this label.
pub fn is_labelled(sector: &[u8], label: &str) -> bool {
    sector.get(43..54) == Some(&padded(label)[..]) && sector.get(510..512) == Some(&[0x55, 0xaa])
}

fn boot_sector(label: &str) -> [u8; SECTOR] {
    let mut sector = [0u8; SECTOR];
    sector[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    sector[3..11].copy_from_slice(b"KIMG    ");
    sector[11..13].copy_from_slice(&(SECTOR as u16).to_le_bytes());
    sector[13] = 1;
    sector[14..16].copy_from_slice(&(RESERVED as u16).to_le_bytes());
    sector[16] = 2;
    sector[17..19].copy_from_slice(&(ROOT_ENTRIES as u16).to_le_bytes());
    sector[19..21].copy_from_slice(&(TOTAL as u16).to_le_bytes());
    sector[21] = 0xf8;
    sector[22..24].copy_from_slice(&(FAT_SECTORS as u16).to_le_bytes());
    sector[24..26].copy_from_slice(&32u16.to_le_bytes());
    sector[26..28].copy_from_slice(&2u16.to_le_bytes());
    sector[36] = 0x80;
    sector[38] = 0x29;
    sector[39..43].copy_from_slice(b"KIMG");
    sector[43..54].copy_from_slice(&padded(label));
    sector[54..62].copy_from_slice(b"FAT16   ");
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn padded(label: &str) -> [u8; 11] {
    let mut bytes = [b' '; 11];
    for (to, from) in bytes.iter_mut().zip(label.bytes()) {
        *to = from.to_ascii_uppercase();
    }
    bytes
}

fn label_entry(label: &str) -> [u8; 32] {
    let mut entry = [0u8; 32];
    entry[..11].copy_from_slice(&padded(label));
    entry[11] = 0x08;
    entry[24..26].copy_from_slice(&DATE.to_le_bytes());
    entry
}

/// The long-name entries of a file, last part first, then its short entry.
fn entries(name: &str, number: usize, first_cluster: u16, size: u32) -> Vec<[u8; 32]> {
    let mut short = [b' '; 11];
    short[..8].copy_from_slice(format!("KIMG~{number:03}").as_bytes());
    let checksum = short.iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(13) {
        units.push(0);
        while !units.len().is_multiple_of(13) {
            units.push(0xffff);
        }
    }
    let parts = units.len() / 13;
    let mut out = Vec::with_capacity(parts + 1);
    for part in (0..parts).rev() {
        let mut entry = [0u8; 32];
        let last = if part + 1 == parts { 0x40 } else { 0 };
        entry[0] = (part as u8 + 1) | last;
        entry[11] = 0x0f;
        entry[13] = checksum;
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        for (place, unit) in places.zip(&units[part * 13..part * 13 + 13]) {
            entry[place..place + 2].copy_from_slice(&unit.to_le_bytes());
        }
        out.push(entry);
    }
    let mut entry = [0u8; 32];
    entry[..11].copy_from_slice(&short);
    entry[11] = 0x20;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE.to_le_bytes());
    }
    entry[26..28].copy_from_slice(&first_cluster.to_le_bytes());
    entry[28..32].copy_from_slice(&size.to_le_bytes());
    out.push(entry);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_reproducible_and_holds_its_files() {
        let long = vec![b'x'; 1300];
        let files: [(&str, &[u8]); 3] = [("meta-data", b"a"), ("network-config", b"bb"), ("big", &long)];
        let one = volume("CIDATA", &files).expect("volume");
        assert_eq!(one, volume("CIDATA", &files).expect("volume"));
        assert_eq!(&one[DATA_START * SECTOR..DATA_START * SECTOR + 1], b"a");
        assert_eq!(&one[(DATA_START + 2) * SECTOR..(DATA_START + 2) * SECTOR + 1300], long.as_slice());
        let fat = &one[RESERVED * SECTOR..];
        let entry = |n: usize| u16::from_le_bytes([fat[2 * n], fat[2 * n + 1]]);
        assert_eq!(
            [entry(2), entry(3), entry(4), entry(5), entry(6)],
            [END_OF_CHAIN, END_OF_CHAIN, 5, 6, END_OF_CHAIN]
        );
        const { assert!(CLUSTERS >= 4085 && TOTAL < 65536) };
    }

    #[test]
    fn a_file_too_big_is_refused() {
        assert!(volume("CIDATA", &[("big", &vec![0; 4 << 20])]).is_err());
    }
}
