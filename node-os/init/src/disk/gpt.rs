//! GUID partition tables: reading one, and growing the last partition to the end of a larger disk. Pure.

use std::fmt;

/// A GUID as it stands on the disk (its first three groups are little-endian).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// From 32 hexadecimal digits in the order of the text form.
    pub fn from_hex(digits: &str) -> Option<Guid> {
        let clean: Vec<u8> = digits.bytes().filter(|byte| *byte != b'-').collect();
        let mut bytes = [0u8; 16];
        if clean.len() != 32 {
            return None;
        }
        for (place, pair) in bytes.iter_mut().zip(clean.chunks(2)) {
            *place = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
        let mut swapped = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
        for (place, byte) in swapped.iter_mut().skip(8).zip(rest) {
            *place = byte;
        }
        Some(Guid(swapped))
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, rest @ ..] = self.0;
        write!(f, "{:08x}-", u32::from_le_bytes([a, b, c, d]))?;
        write!(f, "{:04x}-{:04x}-", u16::from_le_bytes([e, g]), u16::from_le_bytes([h, i]))?;
        for (index, byte) in rest.iter().enumerate() {
            if index == 2 {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// PARTUUID.
    pub id: Guid,
    /// First sector.
    pub first: u64,
    /// Last sector, inclusive.
    pub last: u64,
    /// Name.
    pub name: String,
}

/// A table as read from a disk.
#[derive(Debug, Clone)]
pub struct Table {
    header: Vec<u8>,
    entries: Vec<u8>,
    entry_size: usize,
    sector: u64,
}

/// Why a table could not be used.
#[derive(Debug, PartialEq, Eq)]
pub struct BadTable(pub &'static str);

impl fmt::Display for BadTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the disk's partition table is unusable: {}", self.0)
    }
}

impl std::error::Error for BadTable {}

/// Bytes to write, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Byte offset on the disk.
    pub offset: u64,
    /// Content.
    pub bytes: Vec<u8>,
}

const HEADER_CRC: usize = 16;
const MY_LBA: usize = 24;
const OTHER_LBA: usize = 32;
const LAST_USABLE: usize = 48;
const ENTRIES_LBA: usize = 72;
const ENTRY_COUNT: usize = 80;
const ENTRY_SIZE: usize = 84;
const ENTRIES_CRC: usize = 88;
/// No table of ours is larger; a larger one is somebody's trick.
const MOST_ENTRY_BYTES: usize = 256 * 1024;

/// Where the entries lie, from a header sector: byte offset and length.
pub fn entries_range(header: &[u8], sector: u64) -> Result<(u64, usize), BadTable> {
    if header.get(..8) != Some(b"EFI PART") {
        return Err(BadTable("no GPT signature"));
    }
    let count = u32_at(header, ENTRY_COUNT) as usize;
    let size = u32_at(header, ENTRY_SIZE) as usize;
    let length = count.saturating_mul(size);
    if size < 128 || length == 0 || length > MOST_ENTRY_BYTES {
        return Err(BadTable("its entries have an impossible size"));
    }
    let offset = u64_at(header, ENTRIES_LBA).checked_mul(sector).ok_or(BadTable("its entries lie beyond the disk"))?;
    Ok((offset, length))
}

impl Table {
    /// From the header's sector and the entries that [`entries_range`] names; both checksums are verified.
    pub fn parse(header: &[u8], entries: &[u8], sector: u64) -> Result<Table, BadTable> {
        let (_, length) = entries_range(header, sector)?;
        let size = u32_at(header, 12) as usize;
        let mut plain =
            header.get(..size).filter(|part| part.len() >= 92).ok_or(BadTable("its header is cut off"))?.to_vec();
        put(&mut plain, HEADER_CRC, &[0; 4]);
        if crc32(&plain) != u32_at(header, HEADER_CRC) {
            return Err(BadTable("its header has a wrong checksum"));
        }
        let entries = entries.get(..length).ok_or(BadTable("its entries are cut off"))?;
        if crc32(entries) != u32_at(header, ENTRIES_CRC) {
            return Err(BadTable("its entries have a wrong checksum"));
        }
        let entry_size = u32_at(header, ENTRY_SIZE) as usize;
        Ok(Table {
            header: header.get(..size).unwrap_or_default().to_vec(),
            entries: entries.to_vec(),
            entry_size,
            sector,
        })
    }

    /// All partitions.
    pub fn partitions(&self) -> Vec<Partition> {
        self.entries
            .chunks_exact(self.entry_size)
            .zip(1u32..)
            .filter_map(|(entry, number)| partition(entry, number))
            .collect()
    }

    /// The partition with this PARTUUID.
    pub fn by_id(&self, id: Guid) -> Option<Partition> {
        self.partitions().into_iter().find(|partition| partition.id == id)
    }

    /// The partition with this number.
    pub fn by_number(&self, number: u32) -> Option<Partition> {
        self.partitions().into_iter().find(|partition| partition.number == number)
    }

    /// What to write so that partition `number` reaches to the end of a disk of `sectors` sectors and the backup
    /// table stands there; `None` when it does already. The backup comes first: a cut in between leaves a valid
    /// primary table.
    pub fn grow(&self, number: u32, sectors: u64) -> Result<Option<(Vec<Write>, Partition)>, BadTable> {
        let mut partition = self.by_number(number).ok_or(BadTable("the partition to grow is missing"))?;
        let entry_sectors = (self.entries.len() as u64).div_ceil(self.sector);
        let backup = sectors.checked_sub(1).ok_or(BadTable("the disk is empty"))?;
        let last_usable = backup.checked_sub(entry_sectors + 1).ok_or(BadTable("the disk is too small"))?;
        if self.partitions().iter().any(|other| other.number != number && other.first > partition.first) {
            return Err(BadTable("the partition to grow is not the last one"));
        }
        // Whole MiB, so that file systems and flash stay aligned.
        let alignment = (1 << 20) / self.sector;
        let last = ((last_usable + 1) / alignment * alignment).saturating_sub(1);
        if last < partition.last || (last == partition.last && u64_at(&self.header, OTHER_LBA) == backup) {
            return Ok(None);
        }
        partition.last = last;
        let mut entries = self.entries.clone();
        let entry = (number as usize - 1) * self.entry_size;
        put(&mut entries, entry + 40, &last.to_le_bytes());
        let place = |lba: u64| lba * self.sector;
        let writes = vec![
            Write { offset: place(last_usable + 1), bytes: entries.clone() },
            Write { offset: place(backup), bytes: self.header_for(backup, 1, last_usable + 1, last_usable, &entries) },
            Write { offset: place(u64_at(&self.header, ENTRIES_LBA)), bytes: entries.clone() },
            Write {
                offset: place(1),
                bytes: self.header_for(1, backup, u64_at(&self.header, ENTRIES_LBA), last_usable, &entries),
            },
        ];
        Ok(Some((writes, partition)))
    }

    fn header_for(&self, own: u64, other: u64, entries_at: u64, last_usable: u64, entries: &[u8]) -> Vec<u8> {
        let mut header = self.header.clone();
        put(&mut header, MY_LBA, &own.to_le_bytes());
        put(&mut header, OTHER_LBA, &other.to_le_bytes());
        put(&mut header, LAST_USABLE, &last_usable.to_le_bytes());
        put(&mut header, ENTRIES_LBA, &entries_at.to_le_bytes());
        put(&mut header, ENTRIES_CRC, &crc32(entries).to_le_bytes());
        put(&mut header, HEADER_CRC, &[0; 4]);
        let sum = crc32(&header);
        put(&mut header, HEADER_CRC, &sum.to_le_bytes());
        header.resize(self.sector as usize, 0);
        header
    }
}

fn partition(entry: &[u8], number: u32) -> Option<Partition> {
    let kind: [u8; 16] = entry.get(..16)?.try_into().ok()?;
    let id = Guid(entry.get(16..32)?.try_into().ok()?);
    if kind == [0; 16] {
        return None;
    }
    let name: Vec<u16> = entry
        .get(56..128)?
        .chunks_exact(2)
        .filter_map(|pair| Some(u16::from_le_bytes(pair.try_into().ok()?)))
        .take_while(|unit| *unit != 0)
        .collect();
    Some(Partition {
        number,
        id,
        first: u64_at(entry, 32),
        last: u64_at(entry, 40),
        name: String::from_utf16_lossy(&name),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// CRC-32 as in IEEE 802.3, bit by bit: a table of 16 KiB is all it ever sees.
fn crc32(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 };
        }
    }
    !sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk of `sectors` with partition 1 at 2048..=4095 and partition 2 at 4096..=6143.
    fn disk(sectors: u64) -> Vec<u8> {
        let mut entries = vec![0u8; 128 * 128];
        for (index, (first, last)) in [(2048u64, 4095u64), (4096, 6143)].into_iter().enumerate() {
            let at = index * 128;
            put(&mut entries, at, &[1; 16]);
            put(&mut entries, at + 16, &[index as u8 + 1; 16]);
            put(&mut entries, at + 32, &first.to_le_bytes());
            put(&mut entries, at + 40, &last.to_le_bytes());
            put(&mut entries, at + 56, &[b'a', 0]);
        }
        let mut header = vec![0u8; 92];
        put(&mut header, 0, b"EFI PART");
        put(&mut header, 12, &92u32.to_le_bytes());
        put(&mut header, ENTRIES_LBA, &2u64.to_le_bytes());
        put(&mut header, ENTRY_COUNT, &128u32.to_le_bytes());
        put(&mut header, ENTRY_SIZE, &128u32.to_le_bytes());
        let table = Table { header, entries: entries.clone(), entry_size: 128, sector: 512 };
        let mut disk = vec![0u8; (sectors * 512) as usize];
        put(&mut disk, 512, &table.header_for(1, sectors - 1, 2, sectors - 34, &entries));
        put(&mut disk, 1024, &entries);
        disk
    }

    fn read(disk: &[u8]) -> Result<Table, BadTable> {
        let header = &disk[512..1024];
        let (offset, length) = entries_range(header, 512)?;
        Table::parse(header, &disk[offset as usize..offset as usize + length], 512)
    }

    #[test]
    fn a_guid_has_the_text_form_of_its_digits() {
        let guid = Guid::from_hex("00112233445566778899aabbccddeeff").unwrap();
        assert_eq!(guid.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(guid.0[..4], [0x33, 0x22, 0x11, 0x00]);
        assert_eq!(Guid::from_hex("0011"), None);
        assert_eq!(Guid::from_hex("é0112233445566778899aabbccddeef"), None);
    }

    #[test]
    fn partitions_are_read_and_damage_is_refused() {
        let mut bytes = disk(8192);
        let table = read(&bytes).unwrap();
        assert_eq!(table.partitions().len(), 2);
        assert_eq!(table.by_id(Guid([2; 16])).unwrap().first, 4096);
        bytes[1030] ^= 1;
        assert_eq!(read(&bytes).unwrap_err(), BadTable("its entries have a wrong checksum"));
        bytes[600] ^= 1;
        bytes[530] ^= 1;
        assert!(read(&bytes).is_err());
        assert!(read(&vec![0; 4096]).is_err());
    }

    #[test]
    fn the_last_partition_grows_once() {
        let mut bytes = disk(8192);
        bytes.resize(65536 * 512, 0);
        let (writes, grown) = read(&bytes).unwrap().grow(2, 65536).unwrap().unwrap();
        assert_eq!((grown.last + 1) % 2048, 0);
        assert!(grown.last < 65536 - 33);
        for write in writes {
            put(&mut bytes, write.offset as usize, &write.bytes);
        }
        let table = read(&bytes).unwrap();
        assert_eq!(table.by_number(2).unwrap().last, grown.last);
        assert!(table.grow(2, 65536).unwrap().is_none(), "a second time there is nothing to do");
        assert!(table.grow(1, 65536).is_err());
        // The backup reads as well.
        let header = &bytes[65535 * 512..];
        let (offset, length) = entries_range(header, 512).unwrap();
        assert!(Table::parse(header, &bytes[offset as usize..offset as usize + length], 512).is_ok());
    }

    /// Tables with right checksums and wrong content, as somebody makes them who wants to do harm.
    #[test]
    fn hostile_tables_do_no_harm() {
        let mut good = read(&disk(8192)).unwrap();
        // Few entries: every table is summed up often.
        good.entries.truncate(4 * 128);
        put(&mut good.header, ENTRY_COUNT, &4u32.to_le_bytes());
        let mut dice = test_spoil::Dice::new(6);
        let mut read = 0;
        for _ in 0..3000 {
            let mut entries = test_spoil::bytes(&good.entries[..256], &mut dice);
            entries.resize(good.entries.len(), 0);
            let mut header = test_spoil::bytes(&good.header, &mut dice);
            header.resize(512, 0);
            let size = (u32_at(&header, 12) as usize).min(512);
            put(&mut header, ENTRIES_CRC, &crc32(&entries).to_le_bytes());
            put(&mut header, HEADER_CRC, &[0; 4]);
            let sum = crc32(&header[..size]);
            put(&mut header, HEADER_CRC, &sum.to_le_bytes());
            let Ok(table) = Table::parse(&header, &entries, 512) else { continue };
            for sectors in [0, 1, 33, 8192, u64::MAX / 512] {
                let _ = table.grow(2, sectors);
            }
            read += table.partitions().len().min(1);
        }
        assert!((100..3000).contains(&read), "{read} were read");
    }
}
