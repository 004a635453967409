//! The GUID partition table: pure layout and encoding.

use crate::cache::hash::sha256;
use anyhow::{Result, bail};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;
/// Where the first partition starts, and the alignment of all.
pub const ALIGN: u64 = 2048;
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
/// Sectors that a table takes at the end of the disk: the entries and the header.
pub const BACKUP_SECTORS: u64 = 33;

/// A GUID as text, lower case, e.g. `4f68bce3-e8cd-4db1-96e7-fbcaf984b709`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guid([u8; 16]);

impl Guid {
    /// From the sixteen bytes in the order in which the text shows them.
    pub const fn from_text_bytes(bytes: [u8; 16]) -> Guid {
        Guid(bytes)
    }

    /// A fixed GUID derived from a name.
    pub fn derived(name: &str) -> Guid {
        let hash = sha256(format!("kimg disk: {name}").as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Guid(bytes)
    }

    /// As it stands on the disk: the first three fields are little-endian.
    pub fn disk_bytes(self) -> [u8; 16] {
        let mut b = self.0;
        b[0..4].reverse();
        b[4..6].reverse();
        b[6..8].reverse();
        b
    }

    fn from_disk_bytes(mut b: [u8; 16]) -> Guid {
        b[0..4].reverse();
        b[4..6].reverse();
        b[6..8].reverse();
        Guid(b)
    }
}

impl std::fmt::Display for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let h = hex::encode(self.0);
        write!(f, "{}-{}-{}-{}-{}", &h[0..8], &h[8..12], &h[12..16], &h[16..20], &h[20..32])
    }
}

/// Partition types.
pub mod types {
    use super::Guid;
    /// GRUB's core image.
    pub const BIOS_BOOT: Guid = Guid::from_text_bytes([
        0x21, 0x68, 0x61, 0x48, 0x64, 0x49, 0x6e, 0x6f, 0x74, 0x4e, 0x65, 0x65, 0x64, 0x45, 0x46, 0x49,
    ]);
    /// EFI system partition.
    pub const ESP: Guid = Guid::from_text_bytes([
        0xc1, 0x2a, 0x73, 0x28, 0xf8, 0x1f, 0x11, 0xd2, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
    ]);
    /// Root of x86-64.
    pub const ROOT: Guid = Guid::from_text_bytes([
        0x4f, 0x68, 0xbc, 0xe3, 0xe8, 0xcd, 0x4d, 0xb1, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
    ]);
    /// Verity hashes of a root of x86-64.
    pub const ROOT_VERITY: Guid = Guid::from_text_bytes([
        0x2c, 0x73, 0x57, 0xed, 0xeb, 0xd2, 0x46, 0xd9, 0xae, 0xc1, 0x23, 0xd4, 0x37, 0xec, 0x2b, 0xf5,
    ]);
    /// Linux data.
    pub const LINUX: Guid = Guid::from_text_bytes([
        0x0f, 0xc6, 0x3d, 0xaf, 0x84, 0x83, 0x47, 0x72, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
    ]);
}

/// One partition; sectors count from the start of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Name in the table.
    pub name: String,
    /// Type.
    pub kind: Guid,
    /// PARTUUID.
    pub id: Guid,
    /// First sector.
    pub first: u64,
    /// Number of sectors.
    pub sectors: u64,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Disk GUID.
    pub disk: Guid,
    /// Partitions in order of their numbers.
    pub partitions: Vec<Partition>,
    /// Sectors of the disk.
    pub sectors: u64,
}

impl Table {
    /// Lays partitions of these sizes (in bytes) one after the other.
    pub fn lay_out(disk: Guid, wanted: &[(&str, Guid, Guid, u64)]) -> Table {
        let mut next = ALIGN;
        let mut partitions = Vec::new();
        for (name, kind, id, bytes) in wanted {
            let sectors = bytes.div_ceil(SECTOR).next_multiple_of(ALIGN);
            partitions.push(Partition { name: name.to_string(), kind: *kind, id: *id, first: next, sectors });
            next += sectors;
        }
        // The backup table takes a whole alignment unit, so that the disk's size is round.
        Table { disk, partitions, sectors: next + ALIGN }
    }

    /// The partition of this name.
    pub fn partition(&self, name: &str) -> Option<&Partition> {
        self.partitions.iter().find(|p| p.name == name)
    }

    fn entries(&self) -> Vec<u8> {
        let mut bytes = vec![0; ENTRIES * ENTRY];
        for (slot, p) in bytes.chunks_exact_mut(ENTRY).zip(&self.partitions) {
            slot[0..16].copy_from_slice(&p.kind.disk_bytes());
            slot[16..32].copy_from_slice(&p.id.disk_bytes());
            slot[32..40].copy_from_slice(&p.first.to_le_bytes());
            slot[40..48].copy_from_slice(&(p.first + p.sectors - 1).to_le_bytes());
            for (place, unit) in slot[56..128].chunks_exact_mut(2).zip(p.name.encode_utf16()) {
                place.copy_from_slice(&unit.to_le_bytes());
            }
        }
        bytes
    }

    fn header(&self, own: u64, other: u64, entries_at: u64, entries: &[u8]) -> Vec<u8> {
        let mut h = vec![0; SECTOR as usize];
        h[0..8].copy_from_slice(b"EFI PART");
        h[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
        h[12..16].copy_from_slice(&92u32.to_le_bytes());
        h[24..32].copy_from_slice(&own.to_le_bytes());
        h[32..40].copy_from_slice(&other.to_le_bytes());
        h[40..48].copy_from_slice(&34u64.to_le_bytes());
        h[48..56].copy_from_slice(&(self.sectors - BACKUP_SECTORS - 1).to_le_bytes());
        h[56..72].copy_from_slice(&self.disk.disk_bytes());
        h[72..80].copy_from_slice(&entries_at.to_le_bytes());
        h[80..84].copy_from_slice(&(ENTRIES as u32).to_le_bytes());
        h[84..88].copy_from_slice(&(ENTRY as u32).to_le_bytes());
        h[88..92].copy_from_slice(&crc32(entries).to_le_bytes());
        let crc = crc32(&h[..92]);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        h
    }

    /// Sectors 0 to 33: protective MBR with `boot_code` in front, header, entries.
    pub fn head(&self, boot_code: &[u8]) -> Vec<u8> {
        let entries = self.entries();
        let mut bytes = vec![0; SECTOR as usize];
        let code = &boot_code[..boot_code.len().min(440)];
        bytes[..code.len()].copy_from_slice(code);
        let size = u32::try_from(self.sectors - 1).unwrap_or(u32::MAX);
        bytes[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
        bytes[458..462].copy_from_slice(&size.to_le_bytes());
        bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
        bytes.extend(self.header(1, self.sectors - 1, 2, &entries));
        bytes.extend(entries);
        bytes
    }

    /// The last 33 sectors.
    pub fn tail(&self) -> Vec<u8> {
        let mut bytes = self.entries();
        let header = self.header(self.sectors - 1, 1, self.sectors - BACKUP_SECTORS, &bytes);
        bytes.extend(header);
        bytes
    }

    /// Reads the table at the start of a disk (its first 34 sectors at least).
    pub fn parse(bytes: &[u8]) -> Result<Table> {
        let Some(h) = bytes.get(512..1024).filter(|h| h.starts_with(b"EFI PART")) else {
            bail!("there is no GUID partition table; this is no disk image of kimg");
        };
        let u64_at = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().unwrap_or_default());
        let mut zeroed = h[..92].to_vec();
        zeroed[16..20].fill(0);
        if crc32(&zeroed).to_le_bytes() != h[16..20] {
            bail!("the partition table's checksum is wrong; the image is damaged");
        }
        let guid = |b: &[u8]| Guid::from_disk_bytes(b[..16].try_into().unwrap_or_default());
        let Some(entries) = bytes.get(1024..1024 + ENTRIES * ENTRY) else { bail!("the partition table is cut short") };
        if crc32(entries).to_le_bytes() != h[88..92] {
            bail!("the checksum of the partitions' entries is wrong; the image is damaged");
        }
        let mut partitions = Vec::new();
        for e in entries.chunks_exact(ENTRY).filter(|e| e[..16] != [0; 16]) {
            let (first, last) = (u64_at(e, 32), u64_at(e, 40));
            if last < first {
                bail!("a partition ends before it starts; the image is damaged");
            }
            let name: Vec<u16> =
                e[56..128].chunks_exact(2).map(|c| u16::from_le_bytes([c[0], c[1]])).take_while(|c| *c != 0).collect();
            partitions.push(Partition {
                name: String::from_utf16_lossy(&name),
                kind: guid(&e[..16]),
                id: guid(&e[16..32]),
                first,
                sectors: (last - first).saturating_add(1),
            });
        }
        Ok(Table { disk: guid(&h[56..72]), partitions, sectors: u64_at(h, 32).saturating_add(1) })
    }
}

/// CRC-32 (IEEE), as GPT uses it.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_table_reads_back() {
        let root = Guid::from_text_bytes([0x11; 16]);
        let table = Table::lay_out(
            Guid::derived("disk"),
            &[("bios", types::BIOS_BOOT, Guid::derived("bios"), 1 << 20), ("root", types::ROOT, root, 5_000_000)],
        );
        assert_eq!(table.partitions[1].first, 4096);
        assert_eq!(table.partitions[1].sectors % ALIGN, 0);
        let head = table.head(&[0x90; 600]);
        assert_eq!(head.len(), 34 * 512);
        assert_eq!(head[440..446], [0; 6], "boot code must not reach the disk signature");
        assert_eq!(Table::parse(&head).unwrap(), table);
        assert_eq!(table.tail().len(), 33 * 512);
        // The header; an entry that is used; one that is not.
        for place in [600, 1024 + 32, 34 * 512 - 1] {
            let mut damaged = head.clone();
            damaged[place] ^= 1;
            assert!(Table::parse(&damaged).unwrap_err().to_string().contains("checksum"), "{place}");
        }
    }

    #[test]
    fn guids_are_mixed_endian_on_disk() {
        assert_eq!(types::ESP.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(types::ESP.disk_bytes()[..4], [0x28, 0x73, 0x2a, 0xc1]);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
