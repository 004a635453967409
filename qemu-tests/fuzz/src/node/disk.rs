//! What lies on disks: drives with metadata, partition tables, the verity superblock.

use crate::crc32;
use node_init::disk::gpt::{self, Table};
use node_metadata::ReadAt;
use node_metadata::sources::{self, Answer, Platform, Request, SourceError};
use std::cell::Cell;
use std::rc::Rc;

/// Reading documents of a drive costs no more.
const MOST_READS: usize = 20_000;
const MOST_BYTES: usize = 64 << 20;
/// In so many the places of a sparse image are said.
const PLACE: u64 = 512;

/// A large image of which only some places are not zero: a sector's number, a length and the bytes, again and again.
#[derive(Clone)]
struct Sparse {
    pieces: Vec<(u64, Vec<u8>)>,
    reads: Rc<Cell<usize>>,
    bytes: Rc<Cell<usize>>,
}

impl Sparse {
    fn new(mut data: &[u8]) -> Sparse {
        let mut pieces = Vec::new();
        while let Some(([low, high, short, long], rest)) = data.split_first_chunk() {
            let length = usize::from(u16::from_le_bytes([*short, *long])).min(rest.len());
            let (piece, rest) = rest.split_at(length);
            pieces.push((u64::from(u16::from_le_bytes([*low, *high])) * PLACE, piece.to_vec()));
            data = rest;
        }
        Sparse { pieces, reads: Rc::default(), bytes: Rc::default() }
    }
}

impl ReadAt for Sparse {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        self.bytes.set(self.bytes.get() + buffer.len());
        let (reads, bytes) = (self.reads.get(), self.bytes.get());
        assert!(reads <= MOST_READS && bytes <= MOST_BYTES, "{reads} reads of {bytes} bytes");
        buffer.fill(0);
        for (start, piece) in &self.pieces {
            // Where the piece lies in the buffer, or the buffer in the piece.
            let (into, from) = (start.saturating_sub(offset), offset.saturating_sub(*start));
            let (Ok(into), Ok(from)) = (usize::try_from(into), usize::try_from(from)) else { continue };
            let (Some(to), Some(of)) = (buffer.get_mut(into..), piece.get(from..)) else { continue };
            to.iter_mut().zip(of).for_each(|(to, of)| *to = *of);
        }
        Ok(())
    }
}

/// A machine with one drive and nothing else.
struct Machine(Sparse);

impl Platform for Machine {
    fn dmi(&self, _name: &str) -> Option<String> {
        None
    }

    fn kernel_line(&self) -> String {
        String::new()
    }

    fn devices(&self) -> Vec<(String, Box<dyn ReadAt>)> {
        vec![("sr0".to_owned(), Box::new(self.0.clone()))]
    }

    fn firmware_file(&self, _name: &str) -> Option<Vec<u8>> {
        None
    }

    fn guest_info(&self, _key: &str) -> Option<Vec<u8>> {
        None
    }

    fn send(&self, request: &Request) -> Result<Answer, SourceError> {
        Err(SourceError::Absent(request.url.clone()))
    }
}

/// A FAT or ISO 9660 file system, of whatever label.
pub(crate) fn drive(data: &[u8]) {
    for name in ["nocloud", "config-drive", "azure"] {
        let source = sources::by_name(name).unwrap_or_else(|| panic!("there is no source {name}"));
        if let Ok(Some(found)) = source.read(&Machine(Sparse::new(data))) {
            super::metadata::becomes_a_node(&found);
        }
    }
}

/// A table with right checksums: a byte for the partition that grows, one for the disk's size, the header, the entries.
pub(crate) fn partitions(data: &[u8]) {
    const HEADER: usize = 92;
    let Some(([number, size], rest)) = data.split_first_chunk() else { return };
    let sector: u64 = if size & 1 == 0 { 512 } else { 4096 };
    let sectors = [0, 1, 40, 1 << 13, 1 << 20, u64::MAX / sector][usize::from(size >> 1) % 6];
    let Some((header, entries)) = rest.split_at_checked(HEADER) else { return };
    let mut header = header.to_vec();
    header.resize(usize::try_from(sector).unwrap_or(HEADER), 0);
    let _foreign = Table::parse(&header, entries, sector);
    header[..8].copy_from_slice(b"EFI PART");
    header[12..16].copy_from_slice(&(HEADER as u32).to_le_bytes());
    let Ok((_, length)) = gpt::entries_range(&header, sector) else { return };
    let mut entries = entries.to_vec();
    entries.resize(length, 0);
    header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
    header[16..20].fill(0);
    let sum = crc32(&header[..HEADER]);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    let table = Table::parse(&header, &entries, sector).expect("both sums are right");
    assert!(table.partitions().len() <= length / 128);
    let Ok(Some((writes, grown))) = table.grow(u32::from(*number), sectors) else { return };
    // The backup is written first, its entries before its header, and is whole by itself.
    let [entries, header, ..] = writes.as_slice() else { panic!("{} writes", writes.len()) };
    let backup = Table::parse(&header.bytes, &entries.bytes, sector).expect("the backup is a table");
    assert_eq!(backup.by_number(u32::from(*number)).as_ref(), Some(&grown));
    let end = |write: &gpt::Write| write.offset.checked_add(write.bytes.len() as u64).expect("an end");
    assert!(end(header) <= sectors.saturating_mul(sector), "the backup lies beyond the disk");
    assert!(end(entries) <= header.offset && grown.last < entries.offset / sector, "the backup lies in a partition");
}

pub(crate) fn superblock(data: &[u8]) {
    let _read = node_init::stage1::superblock::parse(data);
}
