//! The medium that installs: an ISO 9660 image that BIOS and UEFI start from a CD drive and from a USB stick.
//!
//! ```text
//! sector   what                                        who reads it
//! 0        boot.img of GRUB, and an MBR that names     BIOS from a stick; UEFI from a stick
//!          the EFI partition
//! 16..18   volume descriptors: primary, El Torito, end
//! 19, 20   path tables
//! 21       root directory: ESP.IMG
//! 22       El Torito's catalogue                       BIOS (CD core) and UEFI (EFI partition) from a CD
//! 32       GRUB's core image for CDs
//! 128      GRUB's core image for disks
//! 256      the EFI partition, to the end
//! ```
//! Kernel and initramfs are there once, in the unified kernel image on the EFI partition: GRUB reads them as lists of
//! sectors. Sectors have 2048 bytes (ECMA-119); what counts in 512 says so.

use super::{fat, grub, uki};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

/// Bytes of a sector.
pub const SECTOR: u64 = 2048;
/// Sectors of a disk in one of a CD.
const DISK_SECTORS: u64 = SECTOR / 512;
const PRIMARY: u64 = 16;
const BOOT_RECORD: u64 = 17;
const END: u64 = 18;
const PATH_TABLES: [u64; 2] = [19, 20];
const ROOT: u64 = 21;
const CATALOGUE: u64 = 22;
const CD_CORE: u64 = 32;
const DISK_CORE: u64 = 128;
const ESP: u64 = 256;
const ESP_NAME: &[u8] = b"ESP.IMG;1";
/// The file on the EFI partition that firmware starts.
const KERNEL: &str = "/EFI/BOOT/BOOTX64.EFI";
/// Room for directories and the allocation table's last entries.
const ESP_SPARE: u64 = 1 << 20;
/// FAT16 has at least 4085 clusters.
const ESP_LEAST: u64 = 17 << 20;
/// Where the kernel lies on an EFI partition at most: behind two allocation tables and some directories.
const MOST_BEFORE_KERNEL: usize = 1 << 20;
/// The headers of an EFI program.
const MOST_HEADERS: usize = 4096;

/// Where GRUB finds its core image for disks, in sectors of 512 bytes.
pub const DISK_CORE_SECTOR: u64 = DISK_CORE * DISK_SECTORS;

/// What goes onto the medium.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Name of the volume: capitals, digits and underscores.
    pub label: &'a str,
    /// GRUB's boot.img as packaged.
    pub boot_img: &'a [u8],
    /// GRUB's core images, for CDs and for disks.
    pub cores: (Vec<u8>, Vec<u8>),
    /// The EFI partition of [`esp`].
    pub esp: &'a [u8],
}

/// An EFI partition that holds the signed or unsigned kernel image `kernel` and `files`.
pub fn esp(kernel: &[u8], files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let length: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>() + kernel.len() as u64;
    // The allocation table takes two bytes for each cluster, twice.
    let size = (length + length / 1024 + ESP_SPARE).max(ESP_LEAST).next_multiple_of(SECTOR);
    let mut all = vec![(KERNEL, kernel)];
    all.extend(files);
    let mut esp = fat::build(size, "KIMG", &all).context("this image is too large for a medium that installs it")?;
    esp.resize(usize::try_from(size)?, 0);
    Ok(esp)
}

/// Where a section of the kernel image on an EFI partition lies on the medium.
pub fn place_of(esp: &[u8], section: &str) -> Result<grub::Blocks> {
    let kernel = kernel_in(esp)?;
    let range = uki::section(&esp[kernel..], section)?;
    let start = kernel + range.start;
    ensure!(start.is_multiple_of(512), "the kernel's parts do not begin with sectors");
    Ok(grub::Blocks { start: ESP * DISK_SECTORS + start as u64 / 512, count: range.len().div_ceil(512) as u64 })
}

/// Where the kernel image begins on an EFI partition, of which the begin is enough: it is the only EFI program there,
/// and lies in one piece.
fn kernel_in(esp: &[u8]) -> Result<usize> {
    let mut places = (0..esp.len().min(MOST_BEFORE_KERNEL)).step_by(512);
    places.find(|at| esp[*at..].starts_with(b"MZ")).context("there is no kernel on the EFI partition")
}

/// Writes the medium.
pub fn write(out: &Path, parts: Parts<'_>) -> Result<()> {
    let (cd_core, disk_core) = parts.cores;
    let esp_sectors = u32::try_from(parts.esp.len() as u64 / SECTOR)?;
    let sectors = u32::try_from(ESP)? + esp_sectors;
    let mut head = vec![0; usize::try_from(ESP * SECTOR)?];
    let mut put = |sector: u64, room: u64, bytes: &[u8]| -> Result<()> {
        if bytes.len() as u64 > room * SECTOR {
            bail!("{} bytes do not fit into {room} sectors of the medium", bytes.len());
        }
        let at = usize::try_from(sector * SECTOR)?;
        head[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    };
    put(0, 1, &mbr(&grub::boot_sector(parts.boot_img, DISK_CORE_SECTOR)?, esp_sectors)?)?;
    put(PRIMARY, 1, &primary(parts.label, sectors)?)?;
    put(BOOT_RECORD, 1, &boot_record())?;
    put(END, 1, b"\xffCD001\x01")?;
    for (sector, table) in PATH_TABLES.into_iter().zip(path_tables()) {
        put(sector, 1, &table)?;
    }
    let root = [record(&[0], ROOT, 1 << 11, true)?, record(&[1], ROOT, 1 << 11, true)?].concat();
    put(ROOT, 1, &[root, record(ESP_NAME, ESP, parts.esp.len() as u64, false)?].concat())?;
    put(CATALOGUE, 1, &catalogue())?;
    put(CD_CORE, DISK_CORE - CD_CORE, &grub::with_boot_info(cd_core, PRIMARY, CD_CORE)?)?;
    put(DISK_CORE, ESP - DISK_CORE, &disk_core)?;
    let write = || -> Result<()> {
        let mut file = File::create(out)?;
        file.write_all(&head)?;
        Ok(file.write_all(parts.esp)?)
    };
    write().with_context(|| format!("writing {}", out.display()))
}

/// Boot code, and one partition: active for BIOSes that want one, an EFI partition for UEFI.
fn mbr(boot: &[u8], esp_sectors: u32) -> Result<Vec<u8>> {
    let mut sector = boot.to_vec();
    sector.resize(446, 0);
    // Addresses by cylinder, which end long before.
    sector.extend([0x80, 0xfe, 0xff, 0xff, 0xef, 0xfe, 0xff, 0xff]);
    sector.extend(u32::try_from(ESP * DISK_SECTORS)?.to_le_bytes());
    sector.extend((esp_sectors * DISK_SECTORS as u32).to_le_bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    Ok(sector)
}

/// A number in both orders of bytes.
fn both(number: u32) -> [u8; 8] {
    let (mut out, [a, b, c, d]) = ([0; 8], number.to_be_bytes());
    out[..4].copy_from_slice(&number.to_le_bytes());
    out[4..].copy_from_slice(&[a, b, c, d]);
    out
}

fn both16(number: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (number.to_le_bytes(), number.to_be_bytes());
    [a, b, c, d]
}

/// ECMA-119, 8.4. No moment is written down: the same content gives the same bytes.
fn primary(label: &str, sectors: u32) -> Result<Vec<u8>> {
    let fits = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    ensure!(label.len() <= 32 && label.chars().all(fits), "{label} is no name for a volume");
    let mut out = b"\x01CD001\x01\x00".to_vec();
    out.extend([b' '; 32]);
    out.extend(format!("{label:32}").bytes());
    out.extend([0; 8]);
    out.extend(both(sectors));
    out.extend([0; 32]);
    // One volume in a set of one.
    out.extend([both16(1), both16(1), both16(SECTOR as u16)].concat());
    out.extend(both(10));
    out.extend(u32::try_from(PATH_TABLES[0])?.to_le_bytes());
    out.extend([0; 4]);
    out.extend(u32::try_from(PATH_TABLES[1])?.to_be_bytes());
    out.extend([0; 4]);
    out.extend(record(&[0], ROOT, SECTOR, true)?);
    // Set, publisher, preparer, application and three files: none.
    out.extend([b' '; 4 * 128 + 3 * 37]);
    for _ in 0..4 {
        out.extend([b'0'; 16]);
        out.push(0);
    }
    out.push(1);
    Ok(out)
}

/// El Torito 1.0, figure 7.
fn boot_record() -> Vec<u8> {
    let mut out = b"\x00CD001\x01EL TORITO SPECIFICATION".to_vec();
    out.resize(71, 0);
    out.extend((CATALOGUE as u32).to_le_bytes());
    out
}

/// The same table in both orders of bytes: the root alone.
fn path_tables() -> [Vec<u8>; 2] {
    let root = ROOT as u32;
    [(root.to_le_bytes(), 1u16.to_le_bytes()), (root.to_be_bytes(), 1u16.to_be_bytes())]
        .map(|(place, parent)| [&[1, 0][..], &place, &parent, &[0, 0]].concat())
}

/// A record of a directory (ECMA-119, 9.1).
fn record(name: &[u8], sector: u64, length: u64, directory: bool) -> Result<Vec<u8>> {
    let mut out = vec![0, 0];
    out.extend(both(u32::try_from(sector)?));
    out.extend(both(u32::try_from(length).context("the EFI partition is too large for ISO 9660")?));
    out.extend([0; 7]);
    out.extend([u8::from(directory) << 1, 0, 0]);
    out.extend(both16(1));
    out.push(u8::try_from(name.len())?);
    out.extend(name);
    out.resize(out.len().next_multiple_of(2), 0);
    out[0] = u8::try_from(out.len())?;
    Ok(out)
}

/// El Torito 1.0, figures 2 to 5: what BIOS starts, and (platform 0xef, as UEFI 2.10 §13.3.2.1 has it) what UEFI does.
fn catalogue() -> Vec<u8> {
    let entry = |sectors: u16, place: u64| {
        // Bootable, no emulation, wherever the BIOS puts it.
        let mut out = vec![0x88, 0, 0, 0, 0, 0];
        out.extend(sectors.to_le_bytes());
        out.extend((place as u32).to_le_bytes());
        out.resize(32, 0);
        out
    };
    let mut check = vec![0; 32];
    check[0] = 1;
    check[4..8].copy_from_slice(b"kimg");
    check[30..].copy_from_slice(&[0x55, 0xaa]);
    let sum = check.chunks(2).fold(0u16, |sum, pair| sum.wrapping_add(u16::from_le_bytes([pair[0], pair[1]])));
    check[28..30].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    let mut efi = vec![0x91, 0xef, 1, 0];
    efi.resize(32, 0);
    // GRUB's first sector of a CD loads the others. The EFI partition's length does not fit here: 0 is "to the end".
    [check, entry(DISK_SECTORS as u16, CD_CORE), efi, entry(0, ESP)].concat()
}

/// Where the initramfs of a medium lies in its file, in bytes; none where the file is no ISO 9660 image.
///
/// # Errors
/// It is one, but not as [`write`] writes them, or cut short.
pub fn initramfs_in(file: &mut File) -> Result<Option<Range<u64>>> {
    let mut volume = [0; SECTOR as usize];
    if read_at(file, PRIMARY * SECTOR, &mut volume).is_err() || &volume[..6] != b"\x01CD001" {
        return Ok(None);
    }
    let number = |bytes: &[u8], at: usize| -> Result<u64> {
        Ok(u64::from(u32::from_le_bytes(bytes.get(at..at + 4).context("a number is cut off")?.try_into()?)))
    };
    let length = file.metadata()?.len();
    ensure!(length >= number(&volume, 80)? * SECTOR, "it is cut short: its end is missing");
    let mut root = [0; SECTOR as usize];
    read_at(file, number(&volume, 158)? * SECTOR, &mut root)?;
    let mut at = 0;
    let esp = loop {
        let size = usize::from(root[at]);
        let found = root.get(at..at + size).filter(|found| found.len() > 33);
        let found = found.context("it is an ISO 9660 image that kimg did not write")?;
        if found[33..].starts_with(ESP_NAME) {
            break number(found, 2)? * SECTOR;
        }
        at += size;
    };
    let mut begin = vec![0; MOST_BEFORE_KERNEL + MOST_HEADERS];
    read_at(file, esp, &mut begin)?;
    let kernel = kernel_in(&begin)?;
    let section = uki::section(&begin[kernel..], ".initrd")?;
    let start = esp + (kernel + section.start) as u64;
    let range = start..start + section.len() as u64;
    ensure!(range.end <= length, "it is cut short: its end is missing");
    Ok(Some(range))
}

fn read_at(file: &mut File, at: u64, out: &mut [u8]) -> Result<()> {
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(out).context("it is cut short")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A medium with this initramfs and a kernel of no meaning.
    pub(crate) fn medium(initramfs: &[u8], out: &Path) {
        let kernel = uki::build(&uki::tests::stub(), &[(".initrd", initramfs), (".linux", &[7; 700])]).unwrap();
        let esp = esp(&kernel, &[("/loader/keys/db.cer", b"key")]).unwrap();
        let cores = (vec![1; 5000], vec![2; 1024]);
        write(out, Parts { label: "KIMG_WORKER", boot_img: &[9; 512], cores, esp: &esp }).unwrap();
    }

    #[test]
    fn the_initramfs_is_found_again_and_lies_where_grub_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let (out, again) = (dir.path().join("a.iso"), dir.path().join("b.iso"));
        let initramfs: Vec<u8> = (0..70_000u32).flat_map(u32::to_le_bytes).collect();
        medium(&initramfs, &out);
        medium(&initramfs, &again);
        let bytes = std::fs::read(&out).unwrap();
        assert!(bytes == std::fs::read(&again).unwrap(), "not the same bytes twice");
        let range = initramfs_in(&mut File::open(&out).unwrap()).unwrap().unwrap();
        assert!(bytes[range.start as usize..range.end as usize] == initramfs);
        let esp = &bytes[(ESP * SECTOR) as usize..];
        let blocks = place_of(esp, ".initrd").unwrap();
        assert_eq!((blocks.start * 512, blocks.count), (range.start, (initramfs.len() as u64).div_ceil(512)));
        let kernel = place_of(esp, ".linux").unwrap();
        assert_eq!(bytes[(kernel.start * 512) as usize..][..701], [&[7; 700][..], &[0]].concat());
        assert!(place_of(esp, ".uname").is_err());
    }

    #[test]
    fn an_end_that_is_cut_off_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.iso");
        medium(&[5; 3000], &out);
        let bytes = std::fs::read(&out).unwrap();
        for keep in [bytes.len() - 1, bytes.len() / 2, 40_000] {
            std::fs::write(&out, &bytes[..keep]).unwrap();
            assert!(initramfs_in(&mut File::open(&out).unwrap()).is_err(), "{keep}");
        }
        std::fs::write(&out, &bytes[..20_000]).unwrap();
        assert_eq!(initramfs_in(&mut File::open(&out).unwrap()).unwrap(), None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let write = |label, core| {
            let cores = (vec![1; core], vec![2; 1024]);
            write(&dir.path().join("a"), Parts { label, boot_img: &[9; 512], cores, esp: &[0; 4096] })
        };
        assert!(write("KIMG", 5000).is_ok());
        assert!(write("KIMG", 200 << 10).is_err());
        assert!(write("kimg", 5000).is_err());
    }
}
