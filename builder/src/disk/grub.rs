//! GRUB for BIOS machines: the patched boot sector and the core image with its three-line configuration.

use crate::image::toolbox::Toolbox;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// What core.img needs to read kernel and initramfs from the EFI partition.
const MODULES: [&str; 5] = ["biosdisk", "part_gpt", "fat", "linux16", "boot"];
/// What it needs on a medium, where both are lists of sectors.
const MEDIUM_MODULES: [&str; 3] = ["biosdisk", "linux16", "boot"];
/// Prefix without a disk: GRUB puts the one it was started from, whatever its number.
const PREFIX: &str = "(,gpt2)/boot";

/// The first 440 bytes of the disk.
pub fn boot_sector(boot_img: &[u8], core_sector: u64) -> Result<Vec<u8>> {
    if boot_img.len() < 512 {
        bail!("GRUB's boot.img has {} bytes instead of 512", boot_img.len());
    }
    let mut sector = boot_img[..440].to_vec();
    sector[0x5c..0x64].copy_from_slice(&core_sector.to_le_bytes());
    // The boot drive is the one that the BIOS names.
    sector[0x64] = 0xff;
    // No jump around a check that floppy drives needed.
    sector[0x66..0x68].copy_from_slice(&[0x90, 0x90]);
    Ok(sector)
}

/// The core image for the BIOS boot partition at `core_sector`.
pub fn core_image(tools: &Toolbox, command_line: &str, core_sector: u64, work: &Path) -> Result<Vec<u8>> {
    let configuration = configuration("/boot/vmlinuz", "/boot/initrd", command_line)?;
    let mut core = make(tools, "i386-pc", PREFIX, &MODULES, &configuration, work)?;
    patch(&mut core, core_sector)?;
    Ok(core)
}

/// A stretch of the drive that GRUB was started from, in sectors of 512 bytes: a file of no file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// First sector.
    pub start: u64,
    /// Number of sectors.
    pub count: u64,
}

impl std::fmt::Display for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}+{}", self.start, self.count)
    }
}

/// Core images of a medium with kernel and initramfs in these places: for CDs (before [`with_boot_info`]), and for
/// disks, where it lies at `core_sector`.
pub fn medium_cores(
    tools: &Toolbox,
    command_line: &str,
    (kernel, initramfs): (Blocks, Blocks),
    core_sector: u64,
    work: &Path,
) -> Result<(Vec<u8>, Vec<u8>)> {
    let configuration = configuration(&kernel.to_string(), &initramfs.to_string(), command_line)?;
    let make = |format| make(tools, format, "/", &MEDIUM_MODULES, &configuration, work);
    let (cd, mut disk) = (make("i386-pc-eltorito")?, make("i386-pc")?);
    patch(&mut disk, core_sector)?;
    Ok((cd, disk))
}

/// A core image for CDs as its first sector wants it, which finds the others by this table: where the volume's
/// descriptor is, where this file is, its length, and the sum of what follows the table.
pub fn with_boot_info(mut core: Vec<u8>, descriptor: u64, sector: u64) -> Result<Vec<u8>> {
    if core.len() < 2048 {
        bail!("grub-mkimage wrote only {} bytes", core.len());
    }
    core.resize(core.len().next_multiple_of(4), 0);
    let words = core[64..].chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    let sum = words.fold(0u32, u32::wrapping_add);
    let table = [u32::try_from(descriptor)?, u32::try_from(sector)?, u32::try_from(core.len())?, sum];
    for (place, number) in core[8..24].chunks_exact_mut(4).zip(table) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    Ok(core)
}

fn make(
    tools: &Toolbox,
    format: &str,
    prefix: &str,
    modules: &[&str],
    configuration: &str,
    work: &Path,
) -> Result<Vec<u8>> {
    let config = work.join("grub.cfg");
    let output = work.join("core.img");
    std::fs::write(&config, configuration).with_context(|| format!("writing {}", config.display()))?;
    let mut command = tools.command("/usr/bin/grub-mkimage")?;
    command
        .args(["-O", format, "-p", prefix, "-d"])
        .arg(tools.path("/usr/lib/grub/i386-pc"))
        .arg("-c")
        .arg(&config)
        .arg("-o")
        .arg(&output)
        .args(modules);
    crate::image::toolbox::run(&mut command)?;
    std::fs::read(&output).with_context(|| format!("reading {}", output.display()))
}

fn patch(core: &mut Vec<u8>, core_sector: u64) -> Result<()> {
    if core.len() < 1024 {
        bail!("grub-mkimage wrote only {} bytes", core.len());
    }
    // The block list in the first sector: where the rest of the core image is.
    core[0x1f4..0x1fc].copy_from_slice(&(core_sector + 1).to_le_bytes());
    core.resize(core.len().next_multiple_of(512), 0);
    Ok(())
}

fn configuration(kernel: &str, initramfs: &str, command_line: &str) -> Result<String> {
    if command_line.contains(['\n', '\'']) {
        bail!("a kernel argument holds a quote or a line break");
    }
    // GRUB's parser takes `;`, `$` and braces for its own outside of quotes.
    let words: Vec<String> = command_line.split_whitespace().map(|w| format!("'{w}'")).collect();
    Ok(format!("linux16 {kernel} {}\ninitrd16 {initramfs}\nboot\n", words.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_sector_is_patched() {
        let sector = boot_sector(&[0x11; 512], 2048).unwrap();
        assert_eq!(sector.len(), 440);
        assert_eq!(sector[0x5c..0x64], 2048u64.to_le_bytes());
        assert_eq!((sector[0x64], sector[0x66], sector[0x67]), (0xff, 0x90, 0x90));
        assert!(boot_sector(&[0; 100], 1).is_err());
    }

    #[test]
    fn the_configuration_quotes_arguments() {
        assert_eq!(
            configuration("/boot/vmlinuz", "9+1", "a=b;c  d").unwrap(),
            "linux16 /boot/vmlinuz 'a=b;c' 'd'\ninitrd16 9+1\nboot\n"
        );
        assert!(configuration("k", "i", "a'b").is_err());
    }

    #[test]
    fn the_boot_information_sums_up_what_follows_it() {
        let mut core = vec![0; 2049];
        core[64..68].copy_from_slice(&7u32.to_le_bytes());
        core[2048] = 1;
        let out = with_boot_info(core, 16, 32).unwrap();
        assert_eq!(out.len(), 2052);
        let words = [16u32, 32, 2052, 8].map(u32::to_le_bytes).concat();
        assert_eq!(out[8..24], words);
        assert!(with_boot_info(vec![0; 100], 16, 32).is_err());
    }
}
