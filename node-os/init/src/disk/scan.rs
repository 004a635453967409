//! Whole disks as sysfs lists them, and their partition tables.

use super::gpt::{self, Table};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const CLASS: &str = "/sys/class/block";

/// A whole disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Disk {
    /// Kernel name, e.g. `vda`.
    pub name: String,
}

impl Disk {
    /// Its device file.
    pub fn device(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    /// Bytes of a logical sector.
    pub fn sector_size(&self) -> u64 {
        read_number(&format!("{CLASS}/{}/queue/logical_block_size", self.name)).unwrap_or(512)
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        read_number(&format!("{CLASS}/{}/size", self.name)).unwrap_or(0).saturating_mul(512)
    }

    /// Whether the kernel lets nobody write to it.
    pub fn is_read_only(&self) -> bool {
        read_number(&format!("{CLASS}/{}/ro", self.name)) == Some(1)
    }

    /// Kernel name of partition `number`, e.g. `vda6` or `nvme0n1p6`.
    pub fn partition_name(&self, number: u32) -> String {
        let separator = if self.name.ends_with(|last: char| last.is_ascii_digit()) { "p" } else { "" };
        format!("{}{separator}{number}", self.name)
    }

    /// Device file of partition `number`.
    pub fn partition(&self, number: u32) -> PathBuf {
        Path::new("/dev").join(self.partition_name(number))
    }

    /// `MAJOR:MINOR` of partition `number`.
    pub fn partition_device_number(&self, number: u32) -> Result<String> {
        let file = format!("{CLASS}/{}/dev", self.partition_name(number));
        Ok(fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?.trim().to_owned())
    }

    /// Its partition table: the primary, or the backup at the end when the primary is damaged.
    pub fn table(&self) -> Result<Table> {
        let device = self.device();
        let file = File::open(&device).with_context(|| format!("cannot open {}", device.display()))?;
        let sector = self.sector_size();
        let primary = read_table(&file, sector, sector);
        primary.or_else(|error| {
            let backup = self.size().checked_sub(sector).context("the disk is empty")?;
            read_table(&file, backup, sector).map_err(|_| error)
        })
    }
}

fn read_table(file: &File, header_at: u64, sector: u64) -> Result<Table> {
    let mut header = vec![0u8; usize::try_from(sector)?];
    file.read_exact_at(&mut header, header_at)?;
    let (offset, length) = gpt::entries_range(&header, sector)?;
    let mut entries = vec![0u8; length];
    file.read_exact_at(&mut entries, offset)?;
    Ok(Table::parse(&header, &entries, sector)?)
}

/// All whole disks, by name; RAM disks, loop and device-mapper devices are left out.
pub fn disks() -> Vec<Disk> {
    let mut disks: Vec<Disk> = block_devices()
        .into_iter()
        .filter(|name| !Path::new(CLASS).join(name).join("partition").exists())
        .filter(|name| !["ram", "loop", "dm-", "zram", "sr", "fd"].iter().any(|prefix| name.starts_with(prefix)))
        .map(|name| Disk { name })
        .collect();
    disks.sort_by(|a, b| (a.name.len(), &a.name).cmp(&(b.name.len(), &b.name)));
    disks
}

/// All block devices that could hold a file system of metadata: disks, partitions and CD drives.
pub fn block_devices() -> Vec<String> {
    let Ok(entries) = fs::read_dir(CLASS) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn read_number(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}
