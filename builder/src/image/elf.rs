//! Just enough of ELF64: which libraries a program needs, and the `.modinfo` of a kernel module.

use anyhow::{Context, Result, bail};

const ET_EXEC: u16 = 2;
/// A program that may lie anywhere, too.
const ET_DYN: u16 = 3;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const PT_LOAD: u32 = 1;

/// Whether these bytes are an ELF file.
pub fn is_elf(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF")
}

/// The architecture of a program, as Go and container images name it.
pub fn architecture(bytes: &[u8]) -> Result<&'static str> {
    if !is_elf(bytes) || bytes.get(5) != Some(&1) {
        bail!("not a little-endian ELF file");
    }
    // e_machine, from the ELF specification's registry.
    Ok(match u16_at(bytes, 0x12)? {
        21 => "ppc64le",
        62 => "amd64",
        183 => "arm64",
        243 => "riscv64",
        other => bail!("it is for a machine with the ELF number {other}, which kimg does not know"),
    })
}

/// What a program or library needs to be loaded.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The loader's path; none for static programs and libraries.
    pub interpreter: Option<String>,
    /// Sonames.
    pub libraries: Vec<String>,
}

/// The architecture of a program that needs nothing beside itself, or what it is instead.
pub fn alone(bytes: &[u8]) -> Result<&'static str, &'static str> {
    if !is_elf(bytes) {
        return Err("is no ELF program");
    }
    let damaged = |_| "is a damaged program, or none for 64-bit Linux";
    let architecture = architecture(bytes).map_err(damaged)?;
    if ![ET_EXEC, ET_DYN].contains(&u16_at(bytes, 0x10).map_err(damaged)?)
        || u64_at(bytes, 0x18).is_ok_and(|entry| entry == 0)
    {
        return Err("is no program, but a library or a part of one");
    }
    let needs = needs(bytes).map_err(damaged)?;
    match needs.interpreter.is_some() || !needs.libraries.is_empty() {
        true => Err("is linked dynamically, and a node has no libraries for it"),
        false => Ok(architecture),
    }
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// Reads `PT_INTERP` and `DT_NEEDED`.
pub fn needs(bytes: &[u8]) -> Result<Needs> {
    let segments = segments(bytes)?;
    let mut needs = Needs::default();
    let mut names = Vec::new();
    let mut strings = None;
    for segment in &segments {
        let body = slice(bytes, segment.offset, segment.size)?;
        if segment.kind == PT_INTERP {
            needs.interpreter = Some(c_string(body)?.to_string());
        } else if segment.kind == PT_DYNAMIC {
            for entry in body.chunks_exact(16) {
                let (tag, value) = (u64_at(entry, 0)?, u64_at(entry, 8)?);
                match tag {
                    0 => break,
                    DT_NEEDED => names.push(value),
                    DT_STRTAB => strings = Some(value),
                    _ => {}
                }
            }
        }
    }
    if names.is_empty() {
        return Ok(needs);
    }
    let address = strings.context("a dynamic section without strings")?;
    let table = segments
        .iter()
        .find(|s| s.kind == PT_LOAD && (s.address..s.address.saturating_add(s.size)).contains(&address))
        .map(|s| s.offset + (address - s.address))
        .context("the dynamic strings are in no segment")?;
    for name in names {
        let rest = bytes.get(usize::try_from(table + name)?..).context("a library name lies outside the file")?;
        needs.libraries.push(c_string(rest)?.to_string());
    }
    Ok(needs)
}

fn segments(bytes: &[u8]) -> Result<Vec<Segment>> {
    if !is_elf(bytes) || bytes.get(4) != Some(&2) || bytes.get(5) != Some(&1) {
        bail!("not a 64-bit little-endian ELF file");
    }
    let (offset, size, count) = (u64_at(bytes, 0x20)?, u16_at(bytes, 0x36)?, u16_at(bytes, 0x38)?);
    (0..u64::from(count))
        .map(|n| {
            let header = slice(bytes, offset + n * u64::from(size), u64::from(size))?;
            Ok(Segment {
                kind: u32_at(header, 0)?,
                offset: u64_at(header, 8)?,
                address: u64_at(header, 16)?,
                size: u64_at(header, 32)?,
            })
        })
        .collect()
}

/// The `key=value` pairs of a kernel module's `.modinfo` section.
pub fn modinfo(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    if !is_elf(bytes) {
        bail!("not an ELF file");
    }
    let (offset, size, count, names) =
        (u64_at(bytes, 0x28)?, u64::from(u16_at(bytes, 0x3a)?), u16_at(bytes, 0x3c)?, u16_at(bytes, 0x3e)?);
    let header = |n: u16| slice(bytes, offset + u64::from(n) * size, size);
    let body = |header: &[u8]| slice(bytes, u64_at(header, 24)?, u64_at(header, 32)?);
    let name_table = body(header(names)?)?;
    for n in 0..count {
        let section = header(n)?;
        let name = name_table.get(u32_at(section, 0)? as usize..).context("a section name lies outside the file")?;
        if name.starts_with(b".modinfo\0") {
            let pairs = body(section)?
                .split(|b| *b == 0)
                .filter_map(|pair| {
                    String::from_utf8_lossy(pair).split_once('=').map(|(k, v)| (k.to_string(), v.to_string()))
                })
                .collect();
            return Ok(pairs);
        }
    }
    bail!("the module has no .modinfo section")
}

fn slice(bytes: &[u8], offset: u64, size: u64) -> Result<&[u8]> {
    let start = usize::try_from(offset)?;
    let end = start.checked_add(usize::try_from(size)?).context("a size overflows")?;
    bytes.get(start..end).context("the file is cut short")
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(bytes.get(at..at + 2).context("the file is cut short")?.try_into()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes.get(at..at + 4).context("the file is cut short")?.try_into()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(bytes.get(at..at + 8).context("the file is cut short")?.try_into()?))
}

fn c_string(bytes: &[u8]) -> Result<&str> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).context("a name is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_an_error() {
        assert!(needs(b"#!/bin/sh").is_err());
        assert!(needs(b"\x7fELF\x02\x01").is_err());
        assert!(modinfo(b"\x7fELF\x02\x01").is_err());
    }
}
