//! The disk: partition table, boot loaders, and the partitions' content, written as one sparse file.

pub mod authenticode;
pub mod config_part;
pub mod fat;
pub mod gpt;
pub mod grub;
pub mod iso;
pub mod uki;

use anyhow::{Context, Result, bail};
use gpt::{Guid, Table, types};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

const MIB: u64 = 1 << 20;
/// Room for GRUB's core image.
const BIOS_BYTES: u64 = MIB;
/// Room for two copies of kernel and initramfs, now and after updates; FAT16 wants at least 16 MiB anyway.
const ESP_BYTES: u64 = 64 * MIB;
/// Smallest CONFIG: settings and certificates may grow without moving STATE.
const CONFIG_BYTES: u64 = 4 * MIB;
/// STATE in the image; the first boot grows it to the end of the disk.
const STATE_BYTES: u64 = 16 * MIB;

/// What goes onto a disk.
#[derive(Debug)]
pub struct Parts<'a> {
    /// GRUB's boot.img as packaged.
    pub boot_img: &'a [u8],
    /// Files of the EFI partition.
    pub esp_files: &'a [(&'a str, &'a [u8])],
    /// The squashfs.
    pub root: &'a Path,
    /// The hash tree.
    pub verity: &'a Path,
    /// The verity root hash.
    pub root_hash: [u8; 32],
    /// CONFIG's content.
    pub config: &'a [u8],
}

/// The partition table for parts of these sizes.
pub fn layout(root_hash: &[u8; 32], root: u64, verity: u64, config: u64) -> Table {
    let half = |part: &[u8]| {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(part);
        Guid::from_text_bytes(bytes)
    };
    Table::lay_out(
        Guid::derived("disk"),
        &[
            ("bios", types::BIOS_BOOT, Guid::derived("bios"), BIOS_BYTES),
            ("esp", types::ESP, Guid::derived("esp"), ESP_BYTES),
            ("root", types::ROOT, half(&root_hash[..16]), root),
            ("verity", types::ROOT_VERITY, half(&root_hash[16..]), verity),
            ("config", types::LINUX, Guid::derived("config"), config.max(CONFIG_BYTES)),
            ("state", types::LINUX, Guid::derived("state"), STATE_BYTES),
        ],
    )
}

/// The sector at which core.img lies: the BIOS boot partition is always the first.
pub const CORE_SECTOR: u64 = gpt::ALIGN;

/// Writes the disk to `out`; what is zero stays a hole.
pub fn write(out: &Path, parts: &Parts<'_>, core_img: &[u8]) -> Result<Table> {
    let size = |path: &Path| -> Result<u64> {
        Ok(std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len())
    };
    if core_img.len() as u64 > BIOS_BYTES {
        bail!("GRUB's core image has {} bytes and does not fit into its partition", core_img.len());
    }
    let table = layout(&parts.root_hash, size(parts.root)?, size(parts.verity)?, parts.config.len() as u64);
    let esp = fat::build(ESP_BYTES, "KIMG", parts.esp_files)?;
    let boot = grub::boot_sector(parts.boot_img, CORE_SECTOR)?;

    let mut file = File::create(out).with_context(|| format!("creating {}", out.display()))?;
    let mut write = || -> Result<()> {
        file.set_len(table.sectors * gpt::SECTOR)?;
        file.write_all(&table.head(&boot))?;
        for p in &table.partitions {
            file.seek(SeekFrom::Start(p.first * gpt::SECTOR))?;
            match p.name.as_str() {
                "bios" => file.write_all(core_img)?,
                "esp" => write_sparse(&mut file, &esp[..])?,
                "root" => write_sparse(&mut file, File::open(parts.root)?)?,
                "verity" => write_sparse(&mut file, File::open(parts.verity)?)?,
                "config" => file.write_all(parts.config)?,
                _ => {}
            }
        }
        file.seek(SeekFrom::Start((table.sectors - gpt::BACKUP_SECTORS) * gpt::SECTOR))?;
        file.write_all(&table.tail())?;
        Ok(())
    };
    write().with_context(|| format!("writing {}", out.display()))?;
    Ok(table)
}

/// Copies, leaving holes for blocks of zeros.
fn write_sparse(file: &mut File, mut from: impl Read) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            return Ok(());
        }
        for block in buffer[..filled].chunks(64 << 10) {
            if block.iter().all(|b| *b == 0) {
                file.seek(SeekFrom::Current(block.len() as i64))?;
            } else {
                file.write_all(block)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_where_the_loaders_look() {
        let table = layout(&[0xab; 32], 10 * MIB, MIB, 100);
        assert_eq!(table.partitions[0].first, CORE_SECTOR);
        assert_eq!(table.partitions[1].first, 4096);
        assert_eq!(
            table.partition("root").map(|p| p.id.to_string()).as_deref(),
            Some("abababab-abab-abab-abab-abababababab")
        );
        assert_eq!(table.sectors % gpt::ALIGN, 0);
    }

    #[test]
    fn a_disk_is_written_the_same_twice() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::write(&root, vec![1; 8192]).unwrap();
        let parts = Parts {
            boot_img: &[0; 512],
            esp_files: &[("/boot/vmlinuz", b"k")],
            root: &root,
            verity: &root,
            root_hash: [1; 32],
            config: b"c",
        };
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let table = write(&a, &parts, b"core").unwrap();
        write(&b, &parts, b"core").unwrap();
        let (a, b) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
        assert!(a == b);
        assert_eq!(Table::parse(&a).unwrap(), table);
        let config = table.partition("config").unwrap();
        assert_eq!(a[(config.first * 512) as usize], b'c');
    }
}
