//! A disk image in any form that kimg writes, read front to back as the disk that it stands for.

use super::installer;
use super::output::vhdx as format;
use crate::disk::gpt::Guid;
use crate::disk::iso;
use crate::input;
use anyhow::{Context, Result, bail, ensure};
use flate2::{Decompress, FlushDecompress};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

const SECTOR: u64 = 512;
/// Largest disk that is read: what a damaged header claims must not become an allocation.
const MOST_BYTES: u64 = 64 << 30;

/// A disk. Forms that are one stream cannot go back; all can go forward.
pub struct Disk {
    form: Form,
    at: u64,
}

enum Form {
    Plain(File),
    Blocks(Blocks),
    Stream(Box<dyn Read>),
}

impl Disk {
    /// Opens an image; its first bytes say which form it has.
    ///
    /// # Errors
    /// It cannot be read, or its tables are damaged.
    pub fn open(path: &Path) -> Result<Disk> {
        let mut file = input::open(path)?;
        let open = || -> Result<Form> {
            let mut magic = [0; 4];
            let length = read_up_to(&mut file, &mut magic)?;
            file.seek(SeekFrom::Start(0))?;
            Ok(match &magic[..length] {
                b"QFI\xfb" => Form::Blocks(qcow2(file)?),
                b"KDMV" => Form::Blocks(vmdk(file)?),
                b"vhdx" => Form::Blocks(vhdx(file)?),
                [0x28, 0xb5, 0x2f, 0xfd] => {
                    let mut decoder = zstd::stream::read::Decoder::new(file)?;
                    decoder.window_log_max(crate::image::output::ZSTD_WINDOW_LOG)?;
                    Form::Stream(Box::new(decoder))
                }
                [0x1f, 0x8b, ..] => Form::Stream(gzip(file)?),
                _ => match iso::initramfs_in(&mut file)? {
                    Some(range) => Form::Stream(medium(file, range)?),
                    None => {
                        file.seek(SeekFrom::Start(0))?;
                        Form::Plain(file)
                    }
                },
            })
        };
        match open() {
            Ok(form) => Ok(Disk { form, at: 0 }),
            Err(error) => input::bad(format!("{} is no readable disk image: {error:#}", path.display())),
        }
    }

    /// Checks that nothing is missing at the end of a disk of `size` bytes; a stream has then been read to its end.
    ///
    /// # Errors
    /// The file is cut short.
    pub fn check_end(&mut self, size: u64) -> Result<()> {
        let (length, disk) = match &mut self.form {
            Form::Plain(file) => {
                let length = file.metadata()?.len();
                (length, length)
            }
            Form::Blocks(blocks) => {
                let length = blocks.file.metadata()?.len();
                let missing = |place: &Place| match place {
                    Place::Zeros => false,
                    Place::Stored(offset) | Place::Deflated { offset, .. } => *offset >= length,
                };
                (length, if blocks.places.iter().any(missing) { 0 } else { blocks.size })
            }
            Form::Stream(reader) => {
                let most = MOST_BYTES.saturating_sub(self.at);
                self.at += io::copy(&mut reader.take(most), &mut io::sink()).context("it is cut short, or damaged")?;
                (0, self.at)
            }
        };
        // All forms but streams end with a whole sector.
        ensure!(length.is_multiple_of(SECTOR) && disk >= size, "it is cut short: its end is missing");
        Ok(())
    }

    /// `length` bytes from `offset`, which must not lie before what a compressed image has been read to.
    pub fn read_at(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        match &mut self.form {
            Form::Plain(file) => {
                file.seek(SeekFrom::Start(offset)).context("it is cut short")?;
            }
            Form::Blocks(_) => {}
            Form::Stream(reader) => {
                let skip = offset.checked_sub(self.at).context("a compressed image cannot be read backwards")?;
                io::copy(&mut reader.take(skip), &mut io::sink()).context("it is cut short, or damaged")?;
            }
        }
        self.at = offset;
        let mut bytes = vec![0; length];
        self.read_exact(&mut bytes).context("it is cut short, or damaged")?;
        Ok(bytes)
    }
}

impl Read for Disk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.form {
            Form::Plain(file) => file.read(buffer)?,
            Form::Stream(reader) => reader.read(buffer)?,
            Form::Blocks(blocks) => blocks.read_at(self.at, buffer)?,
        };
        self.at += read as u64;
        Ok(read)
    }
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// A gzipped disk, or Google's archive with the disk as its only file.
fn gzip(file: File) -> Result<Box<dyn Read>> {
    let mut reader = flate2::read::MultiGzDecoder::new(file);
    let mut first = [0; SECTOR as usize];
    let length = read_up_to(&mut reader, &mut first)?;
    if length == first.len() && &first[257..262] == b"ustar" {
        let header = tar::Header::from_byte_slice(&first);
        ensure!(header.path()?.to_str() == Some("disk.raw"), "the archive does not begin with disk.raw");
        let size = header.size().context("reading the archive's header")?;
        return Ok(Box::new(Archived { file: reader.take(size) }));
    }
    Ok(Box::new(io::Cursor::new(first[..length].to_vec()).chain(reader)))
}

/// The disk that a medium installs.
fn medium(mut file: File, range: Range<u64>) -> Result<Box<dyn Read>> {
    file.seek(SeekFrom::Start(range.start))?;
    let (size, archive) = installer::disk_in(file.take(range.end - range.start))?;
    Ok(Box::new(Archived { file: archive.take(size) }))
}

/// The only file of an archive; its end is that of the archive, which is read to show whether it is whole.
struct Archived<R> {
    file: io::Take<R>,
}

impl<R: Read> Read for Archived<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        if read == 0 && !buffer.is_empty() {
            io::copy(&mut self.file.get_mut().take(MOST_BYTES), &mut io::sink())?;
        }
        Ok(read)
    }
}

/// Where a block of the disk lies in the file.
#[derive(Clone, Copy)]
enum Place {
    Zeros,
    Stored(u64),
    Deflated { offset: u64, most: u64 },
}

/// A form that keeps the disk in blocks of one size.
struct Blocks {
    file: File,
    size: u64,
    block: u64,
    /// Whether deflated blocks have zlib's header.
    zlib: bool,
    places: Vec<Place>,
    /// The block that was read last.
    current: Option<(usize, Vec<u8>)>,
}

impl Blocks {
    fn read_at(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
        if at >= self.size {
            return Ok(0);
        }
        let number = usize::try_from(at / self.block).map_err(io::Error::other)?;
        if self.current.as_ref().is_none_or(|(n, _)| *n != number) {
            self.current = Some((number, self.load(number)?));
        }
        let Some((_, bytes)) = &self.current else { return Ok(0) };
        let inner = usize::try_from(at % self.block).map_err(io::Error::other)?;
        let left = usize::try_from((self.size - at).min((bytes.len() - inner) as u64)).map_err(io::Error::other)?;
        let length = left.min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[inner..inner + length]);
        Ok(length)
    }

    fn load(&mut self, number: usize) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.block).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        match self.places.get(number).copied().unwrap_or(Place::Zeros) {
            Place::Zeros => {}
            Place::Stored(offset) => {
                self.file.seek(SeekFrom::Start(offset))?;
                // The last block of a file may be shorter.
                read_up_to(&mut self.file, &mut bytes)?;
            }
            Place::Deflated { offset, most } => {
                self.file.seek(SeekFrom::Start(offset))?;
                let mut packed = vec![0; usize::try_from(most).map_err(io::Error::other)?];
                let have = read_up_to(&mut self.file, &mut packed)?;
                let mut inflate = Decompress::new(self.zlib);
                inflate
                    .decompress(&packed[..have], &mut bytes, FlushDecompress::Finish)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                if inflate.total_out() != self.block {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a block is cut short"));
                }
            }
        }
        Ok(bytes)
    }
}

fn bytes_at(file: &mut File, offset: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut bytes).context("the image is cut short")?;
    Ok(bytes)
}

/// QEMU `docs/interop/qcow2.txt`, without backing file, encryption or snapshots' differences.
fn qcow2(mut file: File) -> Result<Blocks> {
    let header = bytes_at(&mut file, 0, 48)?;
    let be32 = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let be64 = |at: usize| u64::from(be32(at)) << 32 | u64::from(be32(at + 4));
    let (bits, size) = (be32(20), be64(24));
    ensure!(be64(8) == 0 && be32(32) == 0, "the qcow2 has a backing file or is encrypted; give the whole disk");
    // Smaller blocks than kimg writes would make a great table of a small file.
    ensure!((16..=21).contains(&bits) && size <= MOST_BYTES, "the qcow2 header is damaged");
    let block = 1u64 << bits;
    let clusters = size.div_ceil(block);
    let tables = usize::try_from(clusters.div_ceil(block / 8))?;
    ensure!(tables <= be32(36) as usize, "the qcow2's first table is too short");
    let entries = |bytes: Vec<u8>| {
        bytes.chunks_exact(8).map(|e| e.iter().fold(0u64, |n, b| n << 8 | u64::from(*b))).collect::<Vec<u64>>()
    };
    const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let shift = 62 - (bits - 8);
    let mut places = Vec::new();
    for table in entries(bytes_at(&mut file, be64(40), tables * 8)?) {
        let second = match table & OFFSET {
            0 => vec![0; usize::try_from(block / 8)?],
            at => entries(bytes_at(&mut file, at, usize::try_from(block)?)?),
        };
        places.extend(second.into_iter().map(|entry| {
            if entry >> 62 & 1 == 1 {
                let offset = entry & ((1 << shift) - 1);
                let sectors = (entry & !(3 << 62)) >> shift;
                Place::Deflated { offset, most: (sectors + 1) * SECTOR - offset % SECTOR }
            } else if entry & OFFSET == 0 || entry & 1 == 1 {
                Place::Zeros
            } else {
                Place::Stored(entry & OFFSET)
            }
        }));
    }
    Ok(Blocks { file, size, block, zlib: false, places, current: None })
}

/// "Virtual Disk Format 5.0" (VMware), the stream-optimised kind: the directory stands in the footer.
fn vmdk(mut file: File) -> Result<Blocks> {
    let length = file.metadata()?.len();
    let footer = length.checked_sub(2 * SECTOR).context("the VMDK is cut short")?;
    let header = bytes_at(&mut file, footer, SECTOR as usize)?;
    if &header[..4] != b"KDMV" || le(&header, 8, 4) >> 16 & 1 == 0 {
        bail!("the VMDK is cut short, or not stream-optimised");
    }
    // Grains and tables as output/vmdk.rs writes them: others would make a great table of a small file.
    let (capacity, grain, per_table, directory) =
        (le(&header, 12, 8), le(&header, 20, 8), le(&header, 44, 4), le(&header, 56, 8));
    ensure!(capacity <= MOST_BYTES / SECTOR && grain == 128 && per_table == 512, "the VMDK header is damaged");
    let entries = |bytes: Vec<u8>| {
        bytes.chunks_exact(4).map(|e| u64::from(u32::from_le_bytes([e[0], e[1], e[2], e[3]]))).collect::<Vec<u64>>()
    };
    let grains = capacity.div_ceil(grain);
    let tables = usize::try_from(grains.div_ceil(per_table))?;
    let mut places = Vec::new();
    for table in entries(bytes_at(&mut file, directory.saturating_mul(SECTOR), tables * 4)?) {
        let count = usize::try_from(per_table)?;
        let second = match table {
            0 => vec![0; count],
            at => entries(bytes_at(&mut file, at * SECTOR, count * 4)?),
        };
        for sector in second {
            places.push(match sector {
                0 => Place::Zeros,
                at => {
                    let marker = bytes_at(&mut file, at * SECTOR + 8, 4)?;
                    let most = u64::from(u32::from_le_bytes([marker[0], marker[1], marker[2], marker[3]]));
                    ensure!(most <= 2 * grain * SECTOR + 1024, "a grain of the VMDK is damaged");
                    Place::Deflated { offset: at * SECTOR + 12, most }
                }
            });
        }
    }
    Ok(Blocks { file, size: capacity * SECTOR, block: grain * SECTOR, zlib: true, places, current: None })
}

/// MS-VHDX, fixed or dynamic, without a parent and closed in order.
fn vhdx(mut file: File) -> Result<Blocks> {
    let length = file.metadata()?.len();
    ensure!(length.is_multiple_of(format::MIB), "the VHDX is cut short");
    let headers = format::HEADERS.map(|at| vhdx_table(&mut file, at, format::HEADER, b"head"));
    let header = headers.into_iter().flatten().max_by_key(|header| le(header, 8, 8));
    let header = header.context("both headers of the VHDX are damaged")?;
    ensure!(header[48..64].iter().all(|byte| *byte == 0), "the VHDX has a log to replay; detach it in order first");
    let regions = format::REGION_TABLES.map(|at| vhdx_table(&mut file, at, format::TABLE, b"regi"));
    let regions = regions.into_iter().flatten().next().context("both region tables of the VHDX are damaged")?;
    let region = |id| find(&regions[16..], le(&regions, 8, 4), id).context("a region of the VHDX is missing");
    let (metadata_at, bat) = (le(region(format::METADATA)?, 16, 8), region(format::BAT)?);

    let items = bytes_at(&mut file, metadata_at, format::TABLE)?;
    let mut item = |id, length| -> Result<Vec<u8>> {
        let entry = find(&items[32..], le(&items, 10, 2), id).context("the metadata of the VHDX are not whole")?;
        bytes_at(&mut file, metadata_at.saturating_add(le(entry, 16, 4)), length)
    };
    let parameters = item(format::FILE_PARAMETERS, 8)?;
    let (block, size) = (le(&parameters, 0, 4), le(&item(format::DISK_SIZE, 8)?, 0, 8));
    let sector = le(&item(format::LOGICAL_SECTOR, 4)?, 0, 4);
    ensure!(parameters[4] & 2 == 0, "the VHDX has a parent; give the whole disk");
    // 32 MiB is what Hyper-V takes for new disks.
    let sane = block.is_power_of_two() && (format::MIB..=32 * format::MIB).contains(&block);
    ensure!(sane && sector == SECTOR && size <= MOST_BYTES, "the VHDX has blocks or sectors that kimg does not read");

    let blocks = size.div_ceil(block);
    let length = format::bat_index(blocks, block) * 8;
    ensure!(length <= le(bat, 24, 4), "the VHDX's table of blocks is too short");
    let table = bytes_at(&mut file, le(bat, 16, 8), usize::try_from(length)?)?;
    let place = |number: u64| -> Result<Place> {
        match le(&table, usize::try_from(format::bat_index(number, block) * 8)?, 8) {
            entry if entry & 7 == format::FULLY_PRESENT => Ok(Place::Stored(entry & !(format::MIB - 1))),
            entry if entry & 7 <= 3 => Ok(Place::Zeros),
            _ => bail!("the VHDX's table of blocks is damaged"),
        }
    };
    let places = (0..blocks).map(place).collect::<Result<_>>()?;
    Ok(Blocks { file, size, block, zlib: false, places, current: None })
}

/// A header or region table; none where its checksum is wrong.
fn vhdx_table(file: &mut File, at: u64, length: usize, signature: &[u8; 4]) -> Option<Vec<u8>> {
    let bytes = bytes_at(file, at, length).ok()?;
    (bytes.starts_with(signature) && le(&bytes, 4, 4) == u64::from(format::checksum(&bytes))).then_some(bytes)
}

/// The entry of an identifier among the first `count` of 32 bytes.
fn find(entries: &[u8], count: u64, id: Guid) -> Option<&[u8]> {
    let count = usize::try_from(count).ok()?;
    entries.chunks_exact(32).take(count).find(|entry| entry.starts_with(&id.disk_bytes()))
}

/// A little-endian number.
fn le(bytes: &[u8], at: usize, count: usize) -> u64 {
    bytes[at..at + count].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::output::Format;
    use std::path::PathBuf;

    #[test]
    fn every_form_reads_as_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        let mut content: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        content.resize(3 << 20, 0);
        content.extend((0..700_000u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]));
        content.resize(content.len().next_multiple_of(512), 7);
        std::fs::write(&raw, &content).unwrap();
        for format in
            [Format::Raw, Format::RawZst, Format::RawGz, Format::Qcow2, Format::Vhd, Format::Vhdx, Format::Vmdk]
        {
            let out = dir.path().join(format.file());
            if format != Format::Raw {
                format.write(&raw, &out).unwrap();
            }
            let mut disk = Disk::open(&out).unwrap();
            assert_eq!(disk.read_at(1000, 70_000).unwrap(), content[1000..71_000], "{format:?}");
            let at = content.len() - 100;
            assert_eq!(disk.read_at(at as u64, 100).unwrap(), content[at..], "{format:?}");
            let mut whole = Vec::new();
            Disk::open(&out).unwrap().take(content.len() as u64).read_to_end(&mut whole).unwrap();
            assert!(whole == content, "{format:?}");
        }
        let out = dir.path().join(Format::Iso.file());
        installer::tests::medium(&raw, &out);
        Format::Iso.check(&out).unwrap();
        Format::Iso.check(&raw).unwrap_err();
        let mut disk = Disk::open(&out).unwrap();
        assert_eq!(disk.read_at(1000, 70_000).unwrap(), content[1000..71_000]);
        disk.check_end(content.len() as u64).unwrap();
    }

    #[test]
    fn an_end_that_is_cut_off_is_missed() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        let mut content: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        // The last sectors, as those of a disk's second partition table, are no zeros.
        content.resize(1 << 20, 7);
        std::fs::write(&raw, &content).unwrap();
        let mut forms: Vec<PathBuf> = vec![raw.clone()];
        for format in [Format::RawZst, Format::RawGz, Format::Qcow2, Format::Vhd, Format::Vhdx, Format::Vmdk] {
            forms.push(dir.path().join(format.file()));
            format.write(&raw, &forms[forms.len() - 1]).unwrap();
        }
        let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, "disk.raw", &content[..]).unwrap();
        forms.push(dir.path().join(Format::Gce.file()));
        std::fs::write(&forms[forms.len() - 1], archive.into_inner().unwrap().finish().unwrap()).unwrap();
        forms.push(dir.path().join(Format::Iso.file()));
        installer::tests::medium(&raw, &forms[forms.len() - 1]);
        for path in forms {
            let whole = std::fs::read(&path).unwrap();
            let check = || Disk::open(&path).and_then(|mut disk| disk.check_end(content.len() as u64));
            check().unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
            for cut in [1, 2, 8, 511] {
                std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
                let error = format!("{:#}", check().expect_err(&format!("{} without {cut}", path.display())));
                assert!(error.contains("cut short"), "{}: {error}", path.display());
            }
        }
    }

    /// Google's form is a GiB at least, which takes a test build too long to write.
    #[test]
    fn googles_archive_reads_as_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(Format::Gce.file());
        for (name, fits) in [("disk.raw", true), ("other.raw", false)] {
            let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
            let mut header = tar::Header::new_gnu();
            header.set_size(2000);
            archive.append_data(&mut header, name, &[7u8; 2000][..]).unwrap();
            std::fs::write(&path, archive.into_inner().unwrap().finish().unwrap()).unwrap();
            let read = Disk::open(&path).and_then(|mut disk| disk.read_at(1000, 1000));
            assert_eq!(read.ok(), fits.then(|| vec![7; 1000]), "{name}");
        }
    }

    #[test]
    fn a_small_file_makes_no_great_table() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        for (bits, size, fits) in
            [(16u32, 1u64 << 30, true), (12, 1 << 30, false), (9, 1 << 30, false), (16, 1 << 40, false)]
        {
            let mut header = vec![0; 1 << 16];
            header[..4].copy_from_slice(b"QFI\xfb");
            header[20..24].copy_from_slice(&bits.to_be_bytes());
            header[24..32].copy_from_slice(&size.to_be_bytes());
            header[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
            header[40..48].copy_from_slice(&512u64.to_be_bytes());
            std::fs::write(&path, &header).unwrap();
            assert_eq!(Disk::open(&path).is_ok(), fits, "{bits} {size}");
        }
    }

    #[test]
    fn a_vhdx_is_read_by_what_of_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, out) = (dir.path().join("disk.raw"), dir.path().join(Format::Vhdx.file()));
        let mut disk = vec![0; (3 << 20) + 512];
        disk[3 << 20] = 7;
        std::fs::write(&raw, disk).unwrap();
        Format::Vhdx.write(&raw, &out).unwrap();
        let whole = std::fs::read(&out).unwrap();
        let (metadata, block_size) = (2usize << 20, (2usize << 20) + (64 << 10));
        let cases: [(&[usize], &str); 8] = [
            (&[], ""),
            // One header, one region table: the other is there.
            (&[(64 << 10) + 4095, (192 << 10) + 65_535], ""),
            (&[(128 << 10) + 4], ""),
            (&[(64 << 10) + 100, (128 << 10) + 100], "headers"),
            (&[(192 << 10) + 16, (256 << 10) + 16], "region tables"),
            (&[metadata + 32], "not whole"),
            (&[block_size + 2], "does not read"),
            // The state of the last block.
            (&[(3 << 20) + 3 * 8], "damaged"),
        ];
        for (flipped, said) in cases {
            let mut bytes = whole.clone();
            flipped.iter().for_each(|at| bytes[*at] ^= 1);
            std::fs::write(&out, bytes).unwrap();
            match Disk::open(&out).and_then(|mut disk| disk.read_at(3 << 20, 1)) {
                Ok(read) => assert!(said.is_empty() && read == [7], "{flipped:?}"),
                Err(error) => {
                    assert!(!said.is_empty() && format!("{error:#}").contains(said), "{flipped:?}: {error:#}")
                }
            }
        }
        // A log that was not replayed, under a right checksum.
        let mut bytes = whole;
        for at in format::HEADERS.map(|at| at as usize) {
            bytes[at + 48] = 1;
            let sum = format::checksum(&bytes[at..at + format::HEADER]);
            bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
        }
        std::fs::write(&out, bytes).unwrap();
        let error = Disk::open(&out).err().expect("a log");
        assert!(format!("{error:#}").contains("a log to replay"), "{error:#}");
    }

    #[test]
    fn damage_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        let content: Vec<u8> = (0..100_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        std::fs::write(&raw, &content).unwrap();
        for format in [Format::Qcow2, Format::Vhdx, Format::Vmdk, Format::RawZst, Format::RawGz] {
            let out = dir.path().join(format.file());
            format.write(&raw, &out).unwrap();
            let whole = std::fs::read(&out).unwrap();
            for keep in [3, 40, 600, whole.len() / 2, whole.len() * 3 / 4] {
                std::fs::write(&out, &whole[..keep]).unwrap();
                let read = Disk::open(&out).and_then(|mut disk| disk.read_at(0, content.len()));
                assert!(read.is_err(), "{format:?} cut to {keep}");
            }
        }
    }
}
