//! Stream-optimised VMDK ("Virtual Disk Format 5.0", VMware): the form that OVF and vSphere import.
//!
//! ```text
//! header | descriptor | (marker, deflated grain)… , grain table after each 512 grains | directory | footer | end
//! ```

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

const SECTOR: u64 = 512;
/// Sectors of one grain.
const GRAIN: u64 = 128;
/// Grains of one grain table.
const TABLE: u64 = 512;
const DESCRIPTOR_SECTORS: u64 = 20;
/// Header, descriptor, and room up to the first grain, in sectors.
const OVERHEAD: u64 = 128;
/// New-line test is valid, grains are compressed, markers are there.
const FLAGS: u32 = 1 | 1 << 16 | 1 << 17;
const DIRECTORY_AT_END: u64 = u64::MAX;
const MARK_END: u32 = 0;
const MARK_TABLE: u32 = 1;
const MARK_DIRECTORY: u32 = 2;
const MARK_FOOTER: u32 = 3;

/// Writes the `size` bytes of `raw` as a stream-optimised VMDK called `name`.
pub(super) fn write(raw: &mut File, size: u64, name: &str, out: &mut File) -> Result<()> {
    let capacity = size.div_ceil(SECTOR).next_multiple_of(GRAIN);
    let mut hash = Sha256::new();
    std::io::copy(raw, &mut hash).context("reading the disk")?;
    let digest = hash.finalize();
    raw.seek(SeekFrom::Start(0)).context("reading the disk")?;

    let mut stream = Stream { out: BufWriter::with_capacity(1 << 20, out), sector: 0 };
    stream.put(&header(capacity, DIRECTORY_AT_END))?;
    let mut text = descriptor(capacity, &digest, name).into_bytes();
    text.resize(usize::try_from(DESCRIPTOR_SECTORS * SECTOR)?, 0);
    stream.put(&text)?;
    stream.put(&vec![0; usize::try_from((OVERHEAD - 1 - DESCRIPTOR_SECTORS) * SECTOR)?])?;
    let directory = grains(raw, size, capacity, &mut stream)?;
    stream.marker(directory.len() as u64 * 4, MARK_DIRECTORY)?;
    let directory_at = stream.sector;
    stream.table(&directory)?;
    stream.marker(SECTOR, MARK_FOOTER)?;
    stream.put(&header(capacity, directory_at))?;
    stream.marker(0, MARK_END)?;
    stream.out.flush().context("writing VMDK")
}

/// All grains with their tables; the first sector of each table, 0 where all its grains are zeros.
fn grains(raw: &mut File, size: u64, capacity: u64, stream: &mut Stream<'_>) -> Result<Vec<u32>> {
    let count = capacity / GRAIN;
    let mut directory = Vec::new();
    let mut grain = vec![0; usize::try_from(GRAIN * SECTOR)?];
    for first in (0..count).step_by(usize::try_from(TABLE)?) {
        let mut table = vec![0u32; usize::try_from(TABLE)?];
        for (slot, number) in table.iter_mut().zip(first..count) {
            let start = number * GRAIN * SECTOR;
            let length = usize::try_from((GRAIN * SECTOR).min(size.saturating_sub(start)))?;
            grain.fill(0);
            raw.read_exact(&mut grain[..length]).context("reading the disk")?;
            if grain.iter().any(|byte| *byte != 0) {
                *slot = u32::try_from(stream.sector)?;
                stream.grain(number * GRAIN, &grain)?;
            }
        }
        if table.iter().all(|sector| *sector == 0) {
            directory.push(0);
            continue;
        }
        stream.marker(TABLE * 4, MARK_TABLE)?;
        directory.push(u32::try_from(stream.sector)?);
        stream.table(&table)?;
    }
    Ok(directory)
}

struct Stream<'a> {
    out: BufWriter<&'a mut File>,
    sector: u64,
}

impl Stream<'_> {
    /// Writes bytes and fills their last sector with zeros.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let length = bytes.len() as u64;
        let padded = length.next_multiple_of(SECTOR);
        self.out.write_all(bytes).context("writing VMDK")?;
        self.out.write_all(&vec![0; usize::try_from(padded - length)?]).context("writing VMDK")?;
        self.sector += padded / SECTOR;
        Ok(())
    }

    fn grain(&mut self, first_sector: u64, bytes: &[u8]) -> Result<()> {
        let mut encoder = ZlibEncoder::new(Vec::with_capacity(bytes.len()), Compression::new(6));
        encoder.write_all(bytes).context("deflating")?;
        let packed = encoder.finish().context("deflating")?;
        let mut marked = Vec::with_capacity(packed.len() + 12);
        marked.extend(first_sector.to_le_bytes());
        marked.extend(u32::try_from(packed.len())?.to_le_bytes());
        marked.extend(packed);
        self.put(&marked)
    }

    /// Says what the next `bytes` bytes are.
    fn marker(&mut self, bytes: u64, kind: u32) -> Result<()> {
        let mut marker = bytes.div_ceil(SECTOR).to_le_bytes().to_vec();
        marker.extend(0u32.to_le_bytes());
        marker.extend(kind.to_le_bytes());
        self.put(&marker)
    }

    fn table(&mut self, entries: &[u32]) -> Result<()> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        self.put(&bytes)
    }
}

fn header(capacity: u64, directory: u64) -> Vec<u8> {
    let mut header = b"KDMV".to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend(FLAGS.to_le_bytes());
    for number in [capacity, GRAIN, 1, DESCRIPTOR_SECTORS] {
        header.extend(number.to_le_bytes());
    }
    header.extend(u32::try_from(TABLE).unwrap_or(0).to_le_bytes());
    // No redundant directory.
    for number in [0, directory, OVERHEAD] {
        header.extend(number.to_le_bytes());
    }
    // Shut down cleanly; then what a transfer as text would have broken; then: deflate.
    header.extend([0, b'\n', b' ', b'\r', b'\n']);
    header.extend(1u16.to_le_bytes());
    header
}

fn descriptor(capacity: u64, digest: &[u8], name: &str) -> String {
    // Two values are taken: all ones means "no parent", and ones less one is what tools give new disks.
    let id = digest.iter().take(4).fold(0u32, |id, byte| id << 8 | u32::from(*byte)) & 0x7fff_ffff;
    let cylinders = (capacity / (255 * 63)).min(65_535);
    format!(
        "# Disk DescriptorFile\nversion=1\nCID={id:08x}\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\n\
         # Extent description\nRW {capacity} SPARSE \"{name}\"\n\n\
         # The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"14\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"lsilogic\"\n"
    )
}
