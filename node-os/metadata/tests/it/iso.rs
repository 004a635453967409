//! A small ISO 9660 image with Rock Ridge names, as the tools of providers write them.

use std::collections::BTreeMap;

const SECTOR: usize = 2048;
const ROOT: u32 = 20;

/// The image with these files; folders are made as their paths need them.
pub(crate) fn image(label: &str, files: &BTreeMap<String, String>) -> Vec<u8> {
    let mut disk = vec![0u8; ROOT as usize * SECTOR];
    let length = folder(&mut disk, ROOT, "", files);
    let primary = 16 * SECTOR;
    disk[primary] = 1;
    disk[primary + 1..primary + 6].copy_from_slice(b"CD001");
    disk[primary + 40..primary + 72].fill(b' ');
    disk[primary + 40..primary + 40 + label.len()].copy_from_slice(label.as_bytes());
    disk[primary + 158..primary + 162].copy_from_slice(&ROOT.to_le_bytes());
    disk[primary + 166..primary + 170].copy_from_slice(&length.to_le_bytes());
    disk[17 * SECTOR] = 255;
    disk[17 * SECTOR + 1..17 * SECTOR + 6].copy_from_slice(b"CD001");
    disk
}

/// Writes the folder at `sector` and all below it; its length in bytes.
fn folder(disk: &mut Vec<u8>, sector: u32, path: &str, files: &BTreeMap<String, String>) -> u32 {
    reserve(disk, sector);
    let below: Vec<&str> = files.keys().filter_map(|name| name.strip_prefix(path)).collect();
    let mut names: Vec<&str> = below.iter().map(|rest| rest.split('/').next().unwrap()).collect();
    names.dedup();
    let mut records = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let at = u32::try_from(disk.len() / SECTOR).unwrap();
        let (length, is_folder) = match files.get(&format!("{path}{name}")) {
            Some(content) => {
                disk.extend_from_slice(content.as_bytes());
                disk.resize(disk.len().next_multiple_of(SECTOR).max((at as usize + 1) * SECTOR), 0);
                (u32::try_from(content.len()).unwrap(), false)
            }
            None => (folder(disk, at, &format!("{path}{name}/"), files), true),
        };
        records.extend(record(number, name, at, length, is_folder));
    }
    let start = sector as usize * SECTOR;
    disk[start..start + records.len()].copy_from_slice(&records);
    SECTOR as u32
}

fn reserve(disk: &mut Vec<u8>, sector: u32) {
    let end = (sector as usize + 1) * SECTOR;
    if disk.len() < end {
        disk.resize(end, 0);
    }
}

fn record(number: usize, name: &str, sector: u32, length: u32, is_folder: bool) -> Vec<u8> {
    let short = format!("F{number}");
    let mut record = vec![0u8; 33];
    record[2..6].copy_from_slice(&sector.to_le_bytes());
    record[10..14].copy_from_slice(&length.to_le_bytes());
    record[25] = u8::from(is_folder) * 2;
    record[32] = u8::try_from(short.len()).unwrap();
    record.extend_from_slice(short.as_bytes());
    if short.len().is_multiple_of(2) {
        record.push(0);
    }
    record.extend_from_slice(&[b'N', b'M', u8::try_from(name.len() + 5).unwrap(), 1, 0]);
    record.extend_from_slice(name.as_bytes());
    record[0] = u8::try_from(record.len()).unwrap();
    record
}
