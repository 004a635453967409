//! GRUB for BIOS machines: the patched boot sector and the core image with its three-line configuration.

use crate::image::toolbox::Toolbox;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// What core.img needs to read kernel and initramfs from the EFI partition.
const MODULES: [&str; 5] = ["biosdisk", "part_gpt", "fat", "linux16", "boot"];
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
    let config = work.join("grub.cfg");
    let output = work.join("core.img");
    std::fs::write(&config, configuration(command_line)?).with_context(|| format!("writing {}", config.display()))?;
    let modules = tools.path("/usr/lib/grub/i386-pc");
    let mut command = tools.command("/usr/bin/grub-mkimage")?;
    command
        .args(["-O", "i386-pc", "-p", PREFIX, "-d"])
        .arg(&modules)
        .arg("-c")
        .arg(&config)
        .arg("-o")
        .arg(&output)
        .args(MODULES);
    crate::image::toolbox::run(&mut command)?;
    let mut core = std::fs::read(&output).with_context(|| format!("reading {}", output.display()))?;
    patch(&mut core, core_sector)?;
    Ok(core)
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

fn configuration(command_line: &str) -> Result<String> {
    if command_line.contains(['\n', '\'']) {
        bail!("a kernel argument holds a quote or a line break");
    }
    // GRUB's parser takes `;`, `$` and braces for its own outside of quotes.
    let words: Vec<String> = command_line.split_whitespace().map(|w| format!("'{w}'")).collect();
    Ok(format!("linux16 /boot/vmlinuz {}\ninitrd16 /boot/initrd\nboot\n", words.join(" ")))
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
            configuration("a=b;c  d").unwrap(),
            "linux16 /boot/vmlinuz 'a=b;c' 'd'\ninitrd16 /boot/initrd\nboot\n"
        );
        assert!(configuration("a'b").is_err());
    }
}
