//! Files of an ISO 9660 file system, with Rock Ridge or Joliet names where there are any.

use crate::read_at::{ReadAt, bytes, le32};
use std::io;

const SECTOR: u64 = 2048;
const FIRST_DESCRIPTOR: u64 = 16;
const MOST_DESCRIPTORS: u64 = 16;
/// A folder with metadata has a handful of entries.
const MOST_FOLDER_BYTES: u32 = 64 * 1024;

/// An ISO 9660 file system.
pub(crate) struct Iso<'a> {
    device: &'a dyn ReadAt,
    label: String,
    /// Root directories with the place of their names' form: plain, and Joliet.
    roots: Vec<Root>,
}

struct Root {
    sector: u32,
    length: u32,
    joliet: bool,
}

impl<'a> Iso<'a> {
    /// `None` when the device holds no ISO 9660.
    pub(crate) fn open(device: &'a dyn ReadAt) -> Option<Iso<'a>> {
        let mut iso = Iso { device, label: String::new(), roots: Vec::new() };
        for number in 0..MOST_DESCRIPTORS {
            let descriptor = bytes(device, (FIRST_DESCRIPTOR + number) * SECTOR, SECTOR as usize).ok()?;
            if descriptor.get(1..6) != Some(b"CD001") {
                break;
            }
            let joliet = match descriptor.first() {
                Some(1) => false,
                Some(2) if is_joliet(&descriptor) => true,
                Some(255) => break,
                _ => continue,
            };
            if !joliet {
                iso.label = String::from_utf8_lossy(descriptor.get(40..72)?).trim_end_matches([' ', '\0']).to_owned();
            }
            iso.roots.push(Root { sector: le32(&descriptor, 158), length: le32(&descriptor, 166), joliet });
        }
        (!iso.roots.is_empty()).then_some(iso)
    }

    /// The volume label.
    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    /// The file at a path below the root, names in any case, as far as `limit` bytes.
    pub(crate) fn read(&self, path: &str, limit: usize) -> io::Result<Option<Vec<u8>>> {
        for root in &self.roots {
            if let Some(content) = self.read_below(root, path, limit)? {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }

    fn read_below(&self, root: &Root, path: &str, limit: usize) -> io::Result<Option<Vec<u8>>> {
        let (mut sector, mut length) = (root.sector, root.length);
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            let folder = self.extent(sector, length.min(MOST_FOLDER_BYTES) as usize)?;
            let is_it =
                |record: &&[u8]| record_names(record, root.joliet).iter().any(|own| own.eq_ignore_ascii_case(name));
            let Some(record) = records(&folder).into_iter().find(is_it) else { return Ok(None) };
            (sector, length) = (le32(record, 2), le32(record, 10));
            let is_folder = record.get(25).is_some_and(|flags| flags & 2 != 0);
            match (names.peek().is_some(), is_folder) {
                (true, true) => {}
                (false, false) => return self.extent(sector, (length as usize).min(limit)).map(Some),
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    fn extent(&self, sector: u32, length: usize) -> io::Result<Vec<u8>> {
        bytes(self.device, u64::from(sector) * SECTOR, length)
    }
}

fn is_joliet(descriptor: &[u8]) -> bool {
    matches!(descriptor.get(88..91), Some(b"%/@" | b"%/C" | b"%/E"))
}

/// Directory records; one never crosses a sector, the rest of a sector is zero.
fn records(directory: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    for sector in directory.chunks(SECTOR as usize) {
        let mut rest = sector;
        while let Some(length) = rest.first().map(|length| usize::from(*length)).filter(|length| *length >= 34) {
            let Some((record, tail)) = rest.split_at_checked(length) else { break };
            records.push(record);
            rest = tail;
        }
    }
    records
}

fn record_names(record: &[u8], joliet: bool) -> Vec<String> {
    let length = record.get(32).map_or(0, |length| usize::from(*length));
    let Some(raw) = record.get(33..33 + length) else { return Vec::new() };
    if joliet {
        let units: Vec<u16> =
            raw.chunks_exact(2).filter_map(|pair| Some(u16::from_be_bytes(pair.try_into().ok()?))).collect();
        return vec![without_version(&String::from_utf16_lossy(&units))];
    }
    let plain = without_version(&String::from_utf8_lossy(raw));
    // The names are padded to an even length; what follows is the System Use area.
    let after = 33 + length + (length + 1) % 2;
    let rock_ridge = rock_ridge_name(record.get(after..).unwrap_or_default());
    // Plain ISO names have no dash; mkisofs writes an underscore in its place.
    [Some(plain.replace('_', "-")), Some(plain), rock_ridge].into_iter().flatten().collect()
}

fn without_version(name: &str) -> String {
    name.split(';').next().unwrap_or_default().trim_end_matches('.').to_owned()
}

fn rock_ridge_name(area: &[u8]) -> Option<String> {
    let mut name = Vec::new();
    let mut rest = area;
    while let Some(length) = rest.get(2).map(|length| usize::from(*length)).filter(|length| *length >= 4) {
        let (entry, tail) = rest.split_at_checked(length)?;
        if entry.starts_with(b"NM") {
            name.extend_from_slice(entry.get(5..)?);
        }
        rest = tail;
    }
    (!name.is_empty()).then(|| String::from_utf8_lossy(&name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &[u8], system_use: &[u8], sector: u32, length: u32) -> Vec<u8> {
        let mut record = vec![0u8; 33];
        record[2..6].copy_from_slice(&sector.to_le_bytes());
        record[10..14].copy_from_slice(&length.to_le_bytes());
        record[32] = name.len() as u8;
        record.extend_from_slice(name);
        if name.len().is_multiple_of(2) {
            record.push(0);
        }
        record.extend_from_slice(system_use);
        record[0] = record.len() as u8;
        record
    }

    fn image() -> Vec<u8> {
        let mut disk = vec![0u8; 24 * 2048];
        let primary = 16 * 2048;
        disk[primary] = 1;
        disk[primary + 1..primary + 6].copy_from_slice(b"CD001");
        disk[primary + 40..primary + 72].fill(b' ');
        disk[primary + 40..primary + 46].copy_from_slice(b"cidata");
        disk[primary + 158..primary + 162].copy_from_slice(&20u32.to_le_bytes());
        disk[primary + 166..primary + 170].copy_from_slice(&2048u32.to_le_bytes());
        disk[17 * 2048] = 255;
        disk[17 * 2048 + 1..17 * 2048 + 6].copy_from_slice(b"CD001");
        let mut directory = record(b"USER_DAT.;1", b"NM\x0e\x01\0user-data", 21, 5);
        directory.extend(record(b"META_DATA.;1", b"", 22, 4));
        disk[20 * 2048..20 * 2048 + directory.len()].copy_from_slice(&directory);
        disk[21 * 2048..21 * 2048 + 5].copy_from_slice(b"hello");
        disk[22 * 2048..22 * 2048 + 4].copy_from_slice(b"meta");
        disk
    }

    #[test]
    fn a_seed_is_read() {
        let disk = image();
        let iso = Iso::open(&disk).unwrap();
        assert_eq!(iso.label(), "cidata");
        assert_eq!(iso.read("user-data", 100).unwrap().unwrap(), b"hello");
        assert_eq!(iso.read("meta-data", 100).unwrap().unwrap(), b"meta");
        assert_eq!(iso.read("vendor-data", 100).unwrap(), None);
        assert_eq!(iso.read("user-data/x", 100).unwrap(), None);
    }

    #[test]
    fn broken_images_end_without_harm() {
        assert!(Iso::open(&vec![0u8; 100]).is_none());
        assert!(Iso::open(&vec![0u8; 24 * 2048]).is_none());
        for at in (16 * 2048 + 150..16 * 2048 + 175).chain(20 * 2048..20 * 2048 + 90) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = image();
                bad[at] = value;
                if let Some(iso) = Iso::open(&bad) {
                    let _ = iso.read("user-data", 4096);
                }
            }
        }
    }
}
