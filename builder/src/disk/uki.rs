//! The unified kernel image: systemd's EFI stub with the kernel, initramfs and command line as PE sections behind it.

use anyhow::{Context, Result, bail};
use std::ops::Range;

const SECTION_HEADER: usize = 40;
/// Initialised data, readable.
const CHARACTERISTICS: u32 = 0x4000_0040;

/// Puts `sections` (name of at most 8 bytes, content) behind those of `stub`.
pub fn build(stub: &[u8], sections: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let layout = Layout::read(stub)?;
    let table_end = layout.table + (layout.count + sections.len()) * SECTION_HEADER;
    if table_end > layout.headers_size {
        bail!("the EFI stub has no room for {} more sections", sections.len());
    }
    let mut out = stub[..layout.file_end.min(stub.len())].to_vec();
    out.resize(out.len().next_multiple_of(layout.file_alignment), 0);
    let mut address = layout.image_end.next_multiple_of(layout.section_alignment);
    for (n, (name, data)) in sections.iter().enumerate() {
        let raw_size = data.len().next_multiple_of(layout.file_alignment);
        let mut header = [0; SECTION_HEADER];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[8..12].copy_from_slice(&u32::try_from(data.len())?.to_le_bytes());
        header[12..16].copy_from_slice(&u32::try_from(address)?.to_le_bytes());
        header[16..20].copy_from_slice(&u32::try_from(raw_size)?.to_le_bytes());
        header[20..24].copy_from_slice(&u32::try_from(out.len())?.to_le_bytes());
        header[36..40].copy_from_slice(&CHARACTERISTICS.to_le_bytes());
        let at = layout.table + (layout.count + n) * SECTION_HEADER;
        out[at..at + SECTION_HEADER].copy_from_slice(&header);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(layout.file_alignment), 0);
        address = (address + data.len().max(1)).next_multiple_of(layout.section_alignment);
    }
    let count = u16::try_from(layout.count + sections.len())?;
    out[layout.pe + 6..layout.pe + 8].copy_from_slice(&count.to_le_bytes());
    out[layout.optional + 56..layout.optional + 60].copy_from_slice(&u32::try_from(address)?.to_le_bytes());
    // Neither the time of the stub's build nor a checksum that no firmware looks at.
    out[layout.pe + 8..layout.pe + 12].fill(0);
    out[layout.optional + 64..layout.optional + 68].fill(0);
    Ok(out)
}

/// Where the bytes of a section lie in the file, of which its headers are enough.
pub fn section(pe: &[u8], name: &str) -> Result<Range<usize>> {
    let layout = Layout::read(pe)?;
    let mut wanted = [0; 8];
    wanted[..name.len()].copy_from_slice(name.as_bytes());
    for n in 0..layout.count {
        let header = layout.table + n * SECTION_HEADER;
        let header = pe.get(header..header + SECTION_HEADER).context("the kernel is cut short")?;
        if header[..8] == wanted {
            let start = layout.sections[n].start;
            return Ok(start..start + u32::from_le_bytes(header[8..12].try_into()?) as usize);
        }
    }
    bail!("the kernel has no section {name}")
}

/// Where the parts of a PE32+ file lie.
pub(super) struct Layout {
    pub(super) pe: usize,
    pub(super) optional: usize,
    table: usize,
    count: usize,
    pub(super) headers_size: usize,
    /// The sections' bytes in the file.
    pub(super) sections: Vec<Range<usize>>,
    section_alignment: usize,
    file_alignment: usize,
    image_end: usize,
    file_end: usize,
}

impl Layout {
    pub(super) fn read(bytes: &[u8]) -> Result<Layout> {
        let u16_at = |at: usize| -> Result<usize> {
            Ok(usize::from(u16::from_le_bytes(bytes.get(at..at + 2).context("the EFI stub is cut short")?.try_into()?)))
        };
        let u32_at = |at: usize| -> Result<usize> {
            Ok(u32::from_le_bytes(bytes.get(at..at + 4).context("the EFI stub is cut short")?.try_into()?) as usize)
        };
        let pe = u32_at(0x3c)?;
        if !bytes.starts_with(b"MZ") || bytes.get(pe..pe + 4) != Some(b"PE\0\0") {
            bail!("the EFI stub is no PE file");
        }
        let optional = pe + 24;
        if u16_at(optional)? != 0x20b {
            bail!("the EFI stub is no PE32+ file");
        }
        let count = u16_at(pe + 6)?;
        let table = optional + u16_at(pe + 20)?;
        let (section_alignment, file_alignment) = (u32_at(optional + 32)?, u32_at(optional + 36)?);
        if !section_alignment.is_power_of_two() || !file_alignment.is_power_of_two() {
            bail!("the EFI stub's alignments are no powers of two");
        }
        let (mut image_end, mut file_end) = (0, 0);
        let mut sections = Vec::new();
        for n in 0..count {
            let at = table + n * SECTION_HEADER;
            image_end = image_end.max(u32_at(at + 12)? + u32_at(at + 8)?);
            let start = u32_at(at + 20)?;
            let end = start + u32_at(at + 16)?;
            sections.push(start..end);
            file_end = file_end.max(end);
        }
        Ok(Layout {
            pe,
            optional,
            table,
            count,
            headers_size: u32_at(optional + 60)?,
            sections,
            section_alignment,
            file_alignment,
            image_end,
            file_end,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn stub() -> Vec<u8> {
        let mut b = vec![0u8; 0x600];
        b[..2].copy_from_slice(b"MZ");
        b[0x3c] = 0x80;
        b[0x80..0x84].copy_from_slice(b"PE\0\0");
        b[0x86] = 1; // sections
        b[0x88..0x8c].copy_from_slice(&[1, 2, 3, 4]); // time
        b[0x94] = 112 + 16 * 8; // optional header size
        let o = 0x98;
        b[o..o + 2].copy_from_slice(&0x20bu16.to_le_bytes());
        b[o + 32..o + 36].copy_from_slice(&4096u32.to_le_bytes());
        b[o + 36..o + 40].copy_from_slice(&512u32.to_le_bytes());
        b[o + 60..o + 64].copy_from_slice(&0x400u32.to_le_bytes());
        b[o + 108] = 16; // data directories
        let s = o + 112 + 16 * 8;
        b[s + 8..s + 12].copy_from_slice(&100u32.to_le_bytes());
        b[s + 12..s + 16].copy_from_slice(&4096u32.to_le_bytes());
        b[s + 16..s + 20].copy_from_slice(&512u32.to_le_bytes());
        b[s + 20..s + 24].copy_from_slice(&0x400u32.to_le_bytes());
        b
    }

    #[test]
    fn sections_follow_the_last_one() {
        let out = build(&stub(), &[(".cmdline", b"quiet"), (".linux", &[9; 600])]).unwrap();
        assert_eq!(out[0x86], 3);
        assert_eq!(out[0x88..0x8c], [0; 4], "no time stamp");
        let second = 0x98 + 112 + 16 * 8 + 2 * SECTION_HEADER;
        assert_eq!(&out[second..second + 7], b".linux\0");
        let at = u32::from_le_bytes(out[second + 20..second + 24].try_into().unwrap()) as usize;
        assert_eq!(&out[at..at + 600], &[9; 600]);
        assert_eq!(u32::from_le_bytes(out[second + 12..second + 16].try_into().unwrap()), 3 * 4096);
        assert_eq!(out.len() % 512, 0);
    }

    #[test]
    fn too_many_sections_are_refused() {
        let many: Vec<(&str, &[u8])> = (0..20).map(|_| (".x", &b"y"[..])).collect();
        assert!(build(&stub(), &many).is_err());
        assert!(build(b"MZ", &[]).is_err());
    }
}
