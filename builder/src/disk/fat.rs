//! A FAT16 file system with fixed times and ids, written in one go: enough for an EFI system partition.

use anyhow::{Result, bail};
use std::collections::BTreeMap;

const SECTOR: usize = 512;
/// 4 KiB clusters: GRUB reads them much faster than single sectors.
const SECTORS_PER_CLUSTER: usize = 8;
const CLUSTER: usize = SECTOR * SECTORS_PER_CLUSTER;
const ROOT_ENTRIES: usize = 512;
const VOLUME_ID: u32 = 0x6b69_6d67;
const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
/// 1980-01-01, the first day that FAT knows.
const DATE: u16 = 0x0021;

enum Item<'a> {
    Dir(BTreeMap<[u8; 11], Item<'a>>),
    File(&'a [u8]),
}

/// Where the parts of a file system of a given size lie, in sectors.
struct Geometry {
    sectors: usize,
    fat_sectors: usize,
    data_start: usize,
    clusters: usize,
}

impl Geometry {
    fn of(size: u64) -> Result<Geometry> {
        let sectors = usize::try_from(size)? / SECTOR;
        let root_sectors = ROOT_ENTRIES * 32 / SECTOR;
        // One reserved sector; the FATs are sized for all clusters that could follow them.
        let fat_sectors = ((sectors / SECTORS_PER_CLUSTER + 2) * 2).div_ceil(SECTOR);
        let data_start = 1 + 2 * fat_sectors + root_sectors;
        let clusters = sectors.saturating_sub(data_start) / SECTORS_PER_CLUSTER;
        // The number of clusters alone decides what kind of FAT this is.
        if !(4085..65525).contains(&clusters) {
            bail!("a FAT16 file system cannot have {size} bytes with clusters of {CLUSTER}");
        }
        Ok(Geometry { sectors, fat_sectors, data_start, clusters })
    }
}

/// A file system of at least `size` bytes in which `files` (path with `/`, 8.3 names) lie.
/// The result ends after the last used cluster; the rest of the partition is zeros.
pub fn build(size: u64, label: &str, files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let geometry = Geometry::of(size)?;
    let mut root = BTreeMap::new();
    for (path, data) in files {
        insert(&mut root, path, data)?;
    }
    let mut writer = Writer { fat: vec![0xfff8, 0xffff], data: Vec::new() };
    let mut root_bytes = volume_label(label);
    root_bytes.extend(writer.directory(&root, 0)?);
    if root_bytes.len() > ROOT_ENTRIES * 32 {
        bail!("too many files in the root of the EFI partition");
    }
    if writer.fat.len() > geometry.clusters + 2 {
        bail!("kernel and initramfs do not fit into the EFI partition of {size} bytes");
    }
    let mut out = boot_sector(&geometry, label)?;
    let mut fat: Vec<u8> = writer.fat.iter().flat_map(|e| e.to_le_bytes()).collect();
    fat.resize(geometry.fat_sectors * SECTOR, 0);
    out.extend_from_slice(&fat);
    out.extend_from_slice(&fat);
    root_bytes.resize(ROOT_ENTRIES * 32, 0);
    out.extend(root_bytes);
    debug_assert_eq!(out.len(), geometry.data_start * SECTOR);
    out.extend(writer.data);
    Ok(out)
}

fn insert<'a>(dir: &mut BTreeMap<[u8; 11], Item<'a>>, path: &str, data: &'a [u8]) -> Result<()> {
    match path.trim_start_matches('/').split_once('/') {
        None => {
            dir.insert(short_name(path.trim_start_matches('/'))?, Item::File(data));
            Ok(())
        }
        Some((first, rest)) => match dir.entry(short_name(first)?).or_insert_with(|| Item::Dir(BTreeMap::new())) {
            Item::Dir(inner) => insert(inner, rest, data),
            Item::File(_) => bail!("{first} is both a file and a folder"),
        },
    }
}

fn short_name(name: &str) -> Result<[u8; 11]> {
    let (base, extension) = name.split_once('.').unwrap_or((name, ""));
    let fine = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if base.is_empty() || base.len() > 8 || extension.len() > 3 || !fine(base) || !fine(extension) {
        bail!("'{name}' is no 8.3 name");
    }
    let mut out = [b' '; 11];
    for (place, byte) in out[..8].iter_mut().zip(base.bytes()) {
        *place = byte.to_ascii_uppercase();
    }
    for (place, byte) in out[8..].iter_mut().zip(extension.bytes()) {
        *place = byte.to_ascii_uppercase();
    }
    Ok(out)
}

fn directory_entry(name: &[u8; 11], attributes: u8, cluster: u16, size: u32) -> [u8; 32] {
    let mut e = [0; 32];
    e[..11].copy_from_slice(name);
    e[11] = attributes;
    e[16..18].copy_from_slice(&DATE.to_le_bytes());
    e[18..20].copy_from_slice(&DATE.to_le_bytes());
    e[24..26].copy_from_slice(&DATE.to_le_bytes());
    e[26..28].copy_from_slice(&cluster.to_le_bytes());
    e[28..32].copy_from_slice(&size.to_le_bytes());
    e
}

fn label_bytes(label: &str) -> [u8; 11] {
    let mut out = [b' '; 11];
    for (place, byte) in out.iter_mut().zip(label.bytes()) {
        *place = byte.to_ascii_uppercase();
    }
    out
}

fn volume_label(label: &str) -> Vec<u8> {
    directory_entry(&label_bytes(label), 0x08, 0, 0).to_vec()
}

struct Writer {
    fat: Vec<u16>,
    data: Vec<u8>,
}

impl Writer {
    /// Reserves a chain of clusters for `length` bytes and gives its first; 0 for none.
    fn reserve(&mut self, length: usize) -> Result<u16> {
        let count = length.div_ceil(CLUSTER);
        if count == 0 {
            return Ok(0);
        }
        let first = u16::try_from(self.fat.len())?;
        for n in 1..count {
            self.fat.push(u16::try_from(usize::from(first) + n)?);
        }
        self.fat.push(0xffff);
        self.data.resize(self.data.len() + count * CLUSTER, 0);
        Ok(first)
    }

    fn store(&mut self, cluster: u16, bytes: &[u8]) {
        if cluster >= 2 {
            let at = (usize::from(cluster) - 2) * CLUSTER;
            self.data[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Entries of a directory whose own cluster is known (0: the root); writes all that lies below.
    fn directory(&mut self, items: &BTreeMap<[u8; 11], Item<'_>>, own: u16) -> Result<Vec<u8>> {
        let mut entries = Vec::new();
        for (name, item) in items {
            match item {
                Item::File(data) => {
                    let cluster = self.reserve(data.len())?;
                    self.store(cluster, data);
                    entries.extend(directory_entry(name, ARCHIVE, cluster, u32::try_from(data.len())?));
                }
                Item::Dir(inner) => {
                    let cluster = self.reserve((inner.len() + 2) * 32)?;
                    let mut bytes = Vec::new();
                    bytes.extend(directory_entry(b".          ", DIRECTORY, cluster, 0));
                    bytes.extend(directory_entry(b"..         ", DIRECTORY, own, 0));
                    bytes.extend(self.directory(inner, cluster)?);
                    self.store(cluster, &bytes);
                    entries.extend(directory_entry(name, DIRECTORY, cluster, 0));
                }
            }
        }
        Ok(entries)
    }
}

fn boot_sector(geometry: &Geometry, label: &str) -> Result<Vec<u8>> {
    let mut b = vec![0; SECTOR];
    b[0..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    b[3..11].copy_from_slice(b"KIMG    ");
    b[11..13].copy_from_slice(&(SECTOR as u16).to_le_bytes());
    b[13] = SECTORS_PER_CLUSTER as u8;
    b[14..16].copy_from_slice(&1u16.to_le_bytes());
    b[16] = 2;
    b[17..19].copy_from_slice(&(ROOT_ENTRIES as u16).to_le_bytes());
    match u16::try_from(geometry.sectors) {
        Ok(small) => b[19..21].copy_from_slice(&small.to_le_bytes()),
        Err(_) => b[32..36].copy_from_slice(&u32::try_from(geometry.sectors)?.to_le_bytes()),
    }
    b[21] = 0xf8;
    b[22..24].copy_from_slice(&u16::try_from(geometry.fat_sectors)?.to_le_bytes());
    b[24..26].copy_from_slice(&63u16.to_le_bytes());
    b[26..28].copy_from_slice(&255u16.to_le_bytes());
    b[36] = 0x80;
    b[38] = 0x29;
    b[39..43].copy_from_slice(&VOLUME_ID.to_le_bytes());
    b[43..54].copy_from_slice(&label_bytes(label));
    b[54..62].copy_from_slice(b"FAT16   ");
    b[510..512].copy_from_slice(&[0x55, 0xaa]);
    Ok(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_what_the_boot_sector_says() {
        let big = vec![7u8; 3 * CLUSTER + 1];
        let image = build(64 << 20, "kimg", &[("/EFI/BOOT/BOOTX64.EFI", &big), ("/boot/vmlinuz", b"k")]).unwrap();
        let fat_sectors = usize::from(u16::from_le_bytes([image[22], image[23]]));
        let data = (1 + 2 * fat_sectors + 32) * SECTOR;
        // BOOT sorts before EFI: /boot is cluster 2, vmlinuz 3, /EFI 4, /EFI/BOOT 5, the big file 6 to 9.
        assert_eq!(&image[data + CLUSTER..data + CLUSTER + 1], b"k");
        assert_eq!(&image[data + 4 * CLUSTER..data + 4 * CLUSTER + 4], &[7; 4]);
        let fat: Vec<u16> =
            image[SECTOR..].chunks_exact(2).take(10).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
        assert_eq!(fat, [0xfff8, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 7, 8, 9, 0xffff]);
        assert_eq!(
            image,
            build(64 << 20, "kimg", &[("/boot/vmlinuz", b"k"), ("/EFI/BOOT/BOOTX64.EFI", &big)]).unwrap()
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let big = vec![0u8; 70 << 20];
        assert!(build(64 << 20, "kimg", &[("/big", &big)]).unwrap_err().to_string().contains("do not fit"));
        assert!(build(64 << 20, "kimg", &[("/longer-than-eight", b"")]).is_err());
        assert!(build(1 << 20, "kimg", &[]).is_err());
    }
}
