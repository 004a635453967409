//! The kernel's boot image, and the uncompressed kernel inside it, which QEMU boots faster (PVH).

use anyhow::{Context, Result, bail};
use std::io::Read;

/// Takes the ELF kernel out of a bzImage.
pub fn uncompressed(bz_image: &[u8]) -> Result<Vec<u8>> {
    if bz_image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("the kernel is no bzImage");
    }
    let u32_at = |at: usize| -> Result<usize> {
        let bytes = bz_image.get(at..at + 4).context("the kernel is cut short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    // The real-mode part: boot sector and setup sectors, 4 where the field is 0.
    let setup = match bz_image.get(0x1f1).copied().unwrap_or(0) {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup + 1) * 512 + u32_at(0x248)?;
    let payload =
        bz_image.get(start..start.saturating_add(u32_at(0x24c)?)).context("the kernel's payload is cut short")?;
    let mut kernel = Vec::new();
    match payload {
        // The uncompressed size follows the compressed data.
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => liblzma::read::XzDecoder::new(payload).read_to_end(&mut kernel)?,
        [0x1f, 0x8b, ..] => flate2::read::GzDecoder::new(payload).read_to_end(&mut kernel)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::stream::read::Decoder::new(payload)?.single_frame().read_to_end(&mut kernel)?
        }
        _ => bail!("the kernel is compressed in a way that is not known"),
    };
    if !super::elf::is_elf(&kernel) {
        bail!("what the kernel unpacks to is no ELF file");
    }
    Ok(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_found() {
        let elf = b"\x7fELF the kernel".to_vec();
        let mut payload = zstd::encode_all(&elf[..], 1).unwrap();
        payload.extend((elf.len() as u32).to_le_bytes());
        let mut image = vec![0; 512 * 2 + 16];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        assert_eq!(uncompressed(&image).unwrap(), elf);
        assert!(uncompressed(b"no kernel").is_err());
    }
}
