//! Files of a FAT12, FAT16 or FAT32 file system. Read-only, and wary of bad images:
//! every chain and length is bounded.

use crate::read_at::{ReadAt, bytes, le16, le32};
use std::io;

/// A FAT file system.
pub(crate) struct Fat<'a> {
    device: &'a dyn ReadAt,
    sector: u64,
    cluster_sectors: u64,
    fat_start: u64,
    root_start: u64,
    root_entries: usize,
    root_cluster: u32,
    data_start: u64,
    kind: Kind,
    label: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Fat12,
    Fat16,
    Fat32,
}

const ENTRY: usize = 32;
const ATTRIBUTE_LABEL: u8 = 0x08;
const ATTRIBUTE_FOLDER: u8 = 0x10;
const ATTRIBUTE_LONG_NAME: u8 = 0x0f;
/// A folder with metadata has a handful of entries.
const MOST_FOLDER_BYTES: usize = 64 * 1024;

impl<'a> Fat<'a> {
    /// `None` when the device holds no FAT.
    pub(crate) fn open(device: &'a dyn ReadAt) -> Option<Fat<'a>> {
        let boot = bytes(device, 0, 512).ok()?;
        if boot.get(510..512) != Some(&[0x55, 0xaa]) {
            return None;
        }
        let sector = u64::from(le16(&boot, 11));
        let cluster_sectors = u64::from(*boot.get(13)?);
        let reserved = u64::from(le16(&boot, 14));
        let fats = u64::from(*boot.get(16)?);
        let root_entries = le16(&boot, 17) as usize;
        if ![512, 1024, 2048, 4096].contains(&sector)
            || !cluster_sectors.is_power_of_two()
            || reserved == 0
            || fats == 0
        {
            return None;
        }
        let total = u64::from(if le16(&boot, 19) != 0 { le16(&boot, 19) } else { le32(&boot, 32) });
        let fat_sectors = u64::from(if le16(&boot, 22) != 0 { le16(&boot, 22) } else { le32(&boot, 36) });
        let root_start = reserved + fats * fat_sectors;
        let data_start = root_start + (root_entries * ENTRY).div_ceil(sector as usize) as u64;
        let clusters = total.checked_sub(data_start)? / cluster_sectors;
        let kind = match clusters {
            0..4085 => Kind::Fat12,
            4085..65525 => Kind::Fat16,
            _ => Kind::Fat32,
        };
        let label_at = if le16(&boot, 22) == 0 { 71 } else { 43 };
        let label = text(boot.get(label_at..label_at + 11)?);
        let root_cluster = le32(&boot, 44);
        let mut fat = Fat {
            device,
            sector,
            cluster_sectors,
            fat_start: reserved,
            root_start,
            root_entries,
            root_cluster,
            data_start,
            kind,
            label,
        };
        // mkfs writes the label into the root directory too, and other tools only there.
        if let Some(label) = fat.root().ok()?.chunks_exact(ENTRY).find_map(volume_label) {
            fat.label = label;
        }
        Some(fat)
    }

    /// The volume label.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// The file at a path below the root, names in any case, as far as `limit` bytes.
    pub(crate) fn read(&self, path: &str, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let mut folder = self.root()?;
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            let Some(entry) = find(&folder, name) else { return Ok(None) };
            let is_folder = entry.get(11).is_some_and(|attributes| attributes & ATTRIBUTE_FOLDER != 0);
            match (names.peek().is_some(), is_folder) {
                (true, true) => folder = self.chain(self.first_cluster(&entry), MOST_FOLDER_BYTES)?,
                (false, false) => return self.content(&entry, limit).map(Some),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    fn root(&self) -> io::Result<Vec<u8>> {
        if self.kind == Kind::Fat32 {
            return self.chain(self.root_cluster, MOST_FOLDER_BYTES);
        }
        bytes(self.device, self.root_start * self.sector, (self.root_entries * ENTRY).min(MOST_FOLDER_BYTES))
    }

    fn first_cluster(&self, entry: &[u8]) -> u32 {
        let high = if self.kind == Kind::Fat32 { le16(entry, 20) << 16 } else { 0 };
        high | le16(entry, 26)
    }

    fn content(&self, entry: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        let length = (le32(entry, 28) as usize).min(limit);
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut content = self.chain(self.first_cluster(entry), length)?;
        content.truncate(length);
        Ok(content)
    }

    /// The clusters of a chain until `length` bytes are there; a chain that loops ends there too.
    fn chain(&self, first: u32, length: usize) -> io::Result<Vec<u8>> {
        let cluster_bytes = self.cluster_sectors * self.sector;
        let mut content = Vec::new();
        let mut cluster = first;
        while content.len() < length && cluster >= 2 && !self.is_end(cluster) {
            let offset = self.data_start * self.sector + u64::from(cluster - 2) * cluster_bytes;
            content.extend(bytes(self.device, offset, cluster_bytes as usize)?);
            cluster = self.next(cluster)?;
        }
        Ok(content)
    }

    fn next(&self, cluster: u32) -> io::Result<u32> {
        let start = self.fat_start * self.sector;
        let at = u64::from(cluster);
        Ok(match self.kind {
            Kind::Fat12 => {
                let pair = le16(&bytes(self.device, start + at + at / 2, 2)?, 0);
                if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }
            }
            Kind::Fat16 => le16(&bytes(self.device, start + at * 2, 2)?, 0),
            Kind::Fat32 => le32(&bytes(self.device, start + at * 4, 4)?, 0) & 0x0fff_ffff,
        })
    }

    fn is_end(&self, cluster: u32) -> bool {
        cluster
            >= match self.kind {
                Kind::Fat12 => 0xff7,
                Kind::Fat16 => 0xfff7,
                Kind::Fat32 => 0x0fff_fff7,
            }
    }
}

/// The entry of that name in a folder.
fn find(folder: &[u8], wanted: &str) -> Option<Vec<u8>> {
    let mut long_name = LongName::default();
    for entry in folder.chunks_exact(ENTRY) {
        let attributes = entry.get(11).copied().unwrap_or(0);
        match entry.first() {
            None | Some(0) => return None,
            Some(0xe5) => long_name = LongName::default(),
            Some(_) if attributes == ATTRIBUTE_LONG_NAME => long_name.add(entry),
            Some(_) => {
                let name = long_name.take().unwrap_or_else(|| short_name(entry));
                if attributes & ATTRIBUTE_LABEL == 0 && name.eq_ignore_ascii_case(wanted) {
                    return Some(entry.to_vec());
                }
            }
        }
    }
    None
}

/// The parts of a long name stand before the entry they belong to, the last part first.
#[derive(Default)]
struct LongName {
    units: Vec<u16>,
}

impl LongName {
    fn add(&mut self, entry: &[u8]) {
        if entry.first().is_some_and(|order| order & 0x40 != 0) {
            self.units.clear();
        }
        let ranges = [1..11, 14..26, 28..32];
        let part = ranges.into_iter().filter_map(|range| entry.get(range)).flat_map(|bytes| bytes.chunks_exact(2));
        let part: Vec<u16> = part.filter_map(|pair| Some(u16::from_le_bytes(pair.try_into().ok()?))).collect();
        // 255 characters is the format's own limit.
        if self.units.len() <= 255 {
            self.units.splice(0..0, part);
        }
    }

    fn take(&mut self) -> Option<String> {
        let units: Vec<u16> =
            std::mem::take(&mut self.units).into_iter().take_while(|unit| *unit != 0 && *unit != 0xffff).collect();
        if units.is_empty() { None } else { Some(String::from_utf16_lossy(&units)) }
    }
}

fn short_name(entry: &[u8]) -> String {
    let stem = text(entry.get(..8).unwrap_or_default());
    let end = text(entry.get(8..11).unwrap_or_default());
    if end.is_empty() { stem } else { format!("{stem}.{end}") }
}

fn volume_label(entry: &[u8]) -> Option<String> {
    let attributes = *entry.get(11)?;
    let used = !matches!(entry.first()?, 0 | 0xe5);
    let is_label = attributes & ATTRIBUTE_LABEL != 0 && attributes != ATTRIBUTE_LONG_NAME;
    (used && is_label).then(|| text(entry.get(..11).unwrap_or_default()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches(['\0', ' ']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A FAT12 with label CIDATA and the long-named file `user-data` of 700 bytes over two clusters.
    fn image() -> Vec<u8> {
        let mut disk = vec![0u8; 2880 * 512];
        let boot = [(11, 512u16), (14, 1), (17, 16), (19, 2880), (22, 9)];
        for (at, value) in boot {
            disk[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        disk[13] = 1;
        disk[16] = 1;
        disk[510] = 0x55;
        disk[511] = 0xaa;
        // FAT: cluster 2 -> 3 -> end.
        let fat = 512;
        disk[fat + 3] = 0x03;
        disk[fat + 4] = 0xf0;
        disk[fat + 5] = 0xff;
        let root = 512 * 10;
        disk[root..root + 11].copy_from_slice(b"CIDATA     ");
        disk[root + 11] = 0x08;
        let long = root + 32;
        disk[long] = 0x41;
        disk[long + 11] = 0x0f;
        let units: Vec<u8> = "user-data\0".encode_utf16().chain([0xffff; 3]).flat_map(u16::to_le_bytes).collect();
        disk[long + 1..long + 11].copy_from_slice(&units[..10]);
        disk[long + 14..long + 26].copy_from_slice(&units[10..22]);
        disk[long + 28..long + 32].copy_from_slice(&units[22..26]);
        let short = root + 64;
        disk[short..short + 11].copy_from_slice(b"USER-D~1   ");
        disk[short + 26] = 2;
        disk[short + 28..short + 32].copy_from_slice(&700u32.to_le_bytes());
        let data = 512 * 11;
        disk[data..data + 700].fill(b'x');
        disk
    }

    #[test]
    fn a_seed_is_read() {
        let disk = image();
        let fat = Fat::open(&disk).unwrap();
        assert_eq!(fat.label(), "CIDATA");
        assert_eq!(fat.read("user-data", 4096).unwrap().unwrap(), vec![b'x'; 700]);
        assert_eq!(fat.read("meta-data", 4096).unwrap(), None);
        assert_eq!(fat.read("user-data/x", 4096).unwrap(), None);
        assert_eq!(fat.read("USER-DATA", 10).unwrap().unwrap().len(), 10);
    }

    #[test]
    fn broken_images_end_without_harm() {
        assert!(Fat::open(&vec![0u8; 1024]).is_none());
        let mut looping = image();
        looping[512 + 3] = 0x02;
        looping[512 + 4] = 0x20;
        let fat = Fat::open(&looping).unwrap();
        assert!(fat.read("user-data", 1 << 20).is_ok());
        // Every byte of the boot sector set to every extreme: no panic, no endless loop.
        for at in 11..64 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = image();
                bad[at] = value;
                if let Some(fat) = Fat::open(&bad) {
                    let _ = fat.read("user-data", 4096);
                }
            }
        }
    }

    #[test]
    fn spoiled_images_end_without_harm() {
        let good = image();
        let mut dice = test_spoil::Dice::new(5);
        let mut read = 0;
        // Boot sector, allocation table, root directory.
        for (start, length) in [(0, 64), (512, 64), (512 * 10, 96)] {
            for _ in 0..1000 {
                let mut bad = good.clone();
                let spoiled = test_spoil::bytes(&bad[start..start + length], &mut dice);
                let end = (start + spoiled.len()).min(bad.len());
                bad[start..end].copy_from_slice(&spoiled[..end - start]);
                if let Some(fat) = Fat::open(&bad) {
                    read += usize::from(matches!(fat.read("user-data", 4096), Ok(Some(_))));
                }
            }
        }
        assert!((100..3000).contains(&read), "{read} were read");
    }
}
