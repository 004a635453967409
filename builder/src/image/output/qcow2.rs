//! qcow2 version 2 with compressed clusters (QEMU `docs/interop/qcow2.txt`): what OpenStack, Proxmox and others import.
//!
//! ```text
//! header | L1 table | L2 tables | refcount table | refcount blocks | deflated clusters, back to back
//! ```
//! Every table is laid out before the data; only what was deflated decides their content.

use anyhow::{Context, Result, ensure};
use flate2::{Compress, Compression, FlushCompress, Status};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
const SECTOR: u64 = 512;
/// Entries of 8 bytes in one L2 table, which is one cluster.
const L2_ENTRIES: u64 = CLUSTER / 8;
/// Entries of 2 bytes in one refcount block.
const REFCOUNTS: u64 = CLUSTER / 2;
/// The cluster belongs to this image alone; set in every table entry of an image without snapshots.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// In a compressed entry the bits from here on count the further sectors that the data reaches into.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);
/// QEMU inflates with a window of 4 KiB; a larger one would not be read.
const WINDOW_BITS: u8 = 12;

/// Writes the `size` bytes of `raw` as qcow2.
pub(super) fn write(raw: &mut File, size: u64, out: &mut File) -> Result<()> {
    let clusters = size.div_ceil(CLUSTER);
    let l2_tables = clusters.div_ceil(L2_ENTRIES);
    let l1_clusters = (l2_tables * 8).div_ceil(CLUSTER).max(1);
    // The worst case of the data is a little more than the disk itself; blocks that stay empty cost a cluster each.
    let most = clusters + clusters / 8 + 64;
    let refcount_blocks = most.div_ceil(REFCOUNTS);
    let l1 = CLUSTER;
    let l2 = l1 + l1_clusters * CLUSTER;
    let refcount_table = l2 + l2_tables * CLUSTER;
    let blocks = refcount_table + CLUSTER;
    let data = blocks + refcount_blocks * CLUSTER;

    let mut layout = Layout { entries: vec![0; usize::try_from(clusters)?], end: data };
    out.seek(SeekFrom::Start(data)).context("writing qcow2")?;
    let mut writer = BufWriter::with_capacity(1 << 20, &mut *out);
    deflate_all(raw, size, &mut writer, &mut layout)?;
    writer.flush().context("writing qcow2")?;
    drop(writer);
    out.set_len(layout.end.next_multiple_of(CLUSTER)).context("writing qcow2")?;

    let refcounts = layout.refcounts(data);
    ensure!(refcounts.len() as u64 <= refcount_blocks * REFCOUNTS, "the disk does not deflate into qcow2's tables");
    out.seek(SeekFrom::Start(0)).context("writing qcow2")?;
    let mut writer = BufWriter::with_capacity(1 << 20, out);
    writer.write_all(&header(size, l2_tables, l1, refcount_table))?;
    table(&mut writer, (0..l2_tables).map(|n| (l2 + n * CLUSTER) | COPIED), l1_clusters * CLUSTER)?;
    table(&mut writer, layout.entries.iter().copied(), l2_tables * CLUSTER)?;
    table(&mut writer, (0..refcount_blocks).map(|n| blocks + n * CLUSTER), CLUSTER)?;
    let mut bytes: Vec<u8> = refcounts.iter().flat_map(|count| count.to_be_bytes()).collect();
    bytes.resize(usize::try_from(refcount_blocks * CLUSTER)?, 0);
    writer.write_all(&bytes)?;
    writer.flush().context("writing qcow2")
}

/// Where the deflated clusters lie.
struct Layout {
    /// One entry of the L2 tables for each cluster of the disk; 0: all zeros.
    entries: Vec<u64>,
    /// First byte after the data so far.
    end: u64,
}

impl Layout {
    fn add(&mut self, index: usize, length: u64) {
        let sectors = (self.end % SECTOR + length - 1) / SECTOR;
        self.entries[index] = COMPRESSED | (sectors << SECTORS_SHIFT) | self.end;
        self.end += length;
    }

    /// How many entries use each host cluster: tables once, data as often as deflated clusters reach into it.
    fn refcounts(&self, data: u64) -> Vec<u16> {
        let mut counts = vec![1u16; usize::try_from(data / CLUSTER).unwrap_or(0)];
        counts.resize(usize::try_from(self.end.div_ceil(CLUSTER)).unwrap_or(0), 0);
        for entry in self.entries.iter().filter(|entry| **entry != 0) {
            let start = entry & ((1 << SECTORS_SHIFT) - 1);
            let sectors = (entry & !COMPRESSED) >> SECTORS_SHIFT;
            let last = (start / SECTOR + sectors) * SECTOR / CLUSTER;
            for cluster in start / CLUSTER..=last {
                if let Some(count) = usize::try_from(cluster).ok().and_then(|n| counts.get_mut(n)) {
                    *count += 1;
                }
            }
        }
        counts
    }
}

fn deflate_all(raw: &mut File, size: u64, out: &mut impl Write, layout: &mut Layout) -> Result<()> {
    let mut compress = Compress::new_with_window_bits(Compression::new(6), false, WINDOW_BITS);
    let mut cluster = vec![0; usize::try_from(CLUSTER)?];
    let mut packed = Vec::with_capacity(cluster.len() * 2);
    for index in 0..layout.entries.len() {
        let start = index as u64 * CLUSTER;
        let length = usize::try_from(CLUSTER.min(size - start))?;
        cluster.fill(0);
        raw.read_exact(&mut cluster[..length]).context("reading the disk")?;
        if cluster.iter().all(|byte| *byte == 0) {
            continue;
        }
        compress.reset();
        packed.clear();
        let status = compress.compress_vec(&cluster, &mut packed, FlushCompress::Finish).context("deflating")?;
        ensure!(status == Status::StreamEnd, "a cluster does not deflate at once");
        out.write_all(&packed).context("writing qcow2")?;
        layout.add(index, packed.len() as u64);
    }
    Ok(())
}

fn header(size: u64, l2_tables: u64, l1: u64, refcount_table: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(usize::try_from(CLUSTER).unwrap_or(0));
    header.extend(b"QFI\xfb");
    header.extend(2u32.to_be_bytes());
    // No backing file.
    header.extend([0; 12]);
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(size.to_be_bytes());
    // Not encrypted.
    header.extend([0; 4]);
    header.extend(u32::try_from(l2_tables).unwrap_or(u32::MAX).to_be_bytes());
    header.extend(l1.to_be_bytes());
    header.extend(refcount_table.to_be_bytes());
    header.extend(1u32.to_be_bytes());
    // No snapshots.
    header.extend([0; 12]);
    header.resize(usize::try_from(CLUSTER).unwrap_or(0), 0);
    header
}

/// Entries of 8 bytes, filled with zeros to `length` bytes.
fn table(out: &mut impl Write, entries: impl Iterator<Item = u64>, length: u64) -> Result<()> {
    let mut bytes: Vec<u8> = entries.flat_map(u64::to_be_bytes).collect();
    bytes.resize(usize::try_from(length)?, 0);
    out.write_all(&bytes).context("writing qcow2")
}
