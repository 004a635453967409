//! What Google Compute Engine imports: a gzipped tar (old GNU format) with one file `disk.raw`, in whole GiB.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

const GIB: u64 = 1 << 30;

/// Writes the `size` bytes of `raw` as GCE's archive.
pub(super) fn write(raw: &mut File, size: u64, out: &mut File) -> Result<()> {
    let padded = size.next_multiple_of(GIB);
    let gzip =
        flate2::GzBuilder::new().mtime(0).write(BufWriter::with_capacity(1 << 20, out), flate2::Compression::new(6));
    let mut header = tar::Header::new_gnu();
    header.set_path("disk.raw").context("writing the archive")?;
    header.set_size(padded);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    let mut archive = tar::Builder::new(gzip);
    archive.append(&header, raw.take(size).chain(io::repeat(0).take(padded - size))).context("writing the archive")?;
    let gzip = archive.into_inner().context("writing the archive")?;
    gzip.finish().context("writing the archive")?.flush().context("writing the archive")
}
