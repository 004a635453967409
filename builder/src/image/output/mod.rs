//! Forms of a disk for transport: the same bytes on every machine, whatever its number of cores.

mod gce;
mod qcow2;
mod vhd;
pub(super) mod vhdx;
mod vmdk;

use crate::cache;
use crate::disk::{gpt, iso};
use crate::input;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// A form in which a disk is written besides `disk.raw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The disk as it is, sparse; always written.
    #[value(name = "raw")]
    Raw,
    /// Compressed by zstd with long-distance matching.
    #[value(name = "raw.zst")]
    RawZst,
    /// Compressed by gzip.
    #[value(name = "raw.gz")]
    RawGz,
    /// QEMU's form, clusters compressed: OpenStack, Proxmox.
    #[value(name = "qcow2")]
    Qcow2,
    /// Fixed size: Azure.
    #[value(name = "vhd")]
    Vhd,
    /// As large as its content: Hyper-V.
    #[value(name = "vhdx")]
    Vhdx,
    /// Stream-optimised: VMware.
    #[value(name = "vmdk")]
    Vmdk,
    /// Archive for Google Compute Engine.
    #[value(name = "gce.tar.gz")]
    Gce,
    /// Medium for CD drive and USB stick that writes the disk onto the machine's own: bare metal.
    #[value(name = "iso")]
    Iso,
}

/// The root is compressed already: a higher level only takes longer.
const ZSTD_LEVEL: i32 = 6;
/// 128 MiB: the kernel's second copy is found, and `zstd -d` accepts it without options.
pub(super) const ZSTD_WINDOW_LOG: u32 = 27;

impl Format {
    /// All that there are.
    pub fn all() -> &'static [Format] {
        clap::ValueEnum::value_variants()
    }

    /// How it is called on the command line.
    pub fn name(self) -> &'static str {
        self.file().trim_start_matches("disk.")
    }

    /// Name of the file.
    pub fn file(self) -> &'static str {
        match self {
            Format::Raw => "disk.raw",
            Format::RawZst => "disk.raw.zst",
            Format::RawGz => "disk.raw.gz",
            Format::Qcow2 => "disk.qcow2",
            Format::Vhd => "disk.vhd",
            Format::Vhdx => "disk.vhdx",
            Format::Vmdk => "disk.vmdk",
            Format::Gce => "disk.gce.tar.gz",
            Format::Iso => "disk.iso",
        }
    }

    /// Checks that a file begins as this form does: who is told a form mostly takes any file for it, and a machine
    /// that was made of it does not boot.
    ///
    /// # Errors
    /// It begins otherwise, or cannot be read.
    pub fn check(self, path: &Path) -> Result<()> {
        let mark: &[u8] = match self {
            Format::Raw | Format::Vhd => b"EFI PART",
            Format::RawZst => &[0x28, 0xb5, 0x2f, 0xfd],
            Format::RawGz | Format::Gce => &[0x1f, 0x8b],
            Format::Qcow2 => b"QFI\xfb",
            Format::Vmdk => b"KDMV",
            Format::Vhdx => b"vhdxfile",
            Format::Iso => b"\x01CD001",
        };
        let offset = match self {
            // The partition table stands behind the first sector.
            Format::Raw | Format::Vhd => gpt::SECTOR,
            Format::Iso => 16 * iso::SECTOR,
            _ => 0,
        };
        let mut begins = Vec::new();
        let mut file = input::open(path)?;
        file.seek(SeekFrom::Start(offset)).with_context(|| format!("reading {}", path.display()))?;
        file.take(mark.len() as u64).read_to_end(&mut begins).with_context(|| format!("reading {}", path.display()))?;
        if begins != mark {
            return input::bad(format!(
                "{} does not begin as {} does; build the image again",
                path.display(),
                self.file()
            ));
        }
        Ok(())
    }

    /// Makes this form of `raw` at `out`, whole or not at all.
    pub fn write(self, raw: &Path, out: &Path) -> Result<()> {
        whole(out, |temporary| self.encode(raw, temporary))
    }

    fn encode(self, raw: &Path, out: &Path) -> Result<()> {
        let mut from = File::open(raw).with_context(|| format!("opening {}", raw.display()))?;
        let size = from.metadata().with_context(|| format!("reading {}", raw.display()))?.len();
        let mut to = File::create(out).with_context(|| format!("creating {}", out.display()))?;
        match self {
            Format::Raw => bail!("it is the disk itself"),
            Format::RawZst => zstd_to(&mut from, BufWriter::with_capacity(1 << 20, to)),
            Format::RawGz => gzip_to(&mut from, BufWriter::with_capacity(1 << 20, to)),
            Format::Qcow2 => qcow2::write(&mut from, size, &mut to),
            Format::Vhd => vhd::write(&mut from, size, &mut to),
            Format::Vhdx => vhdx::write(&mut from, size, &mut to),
            Format::Vmdk => vmdk::write(&mut from, size, self.file(), &mut to),
            Format::Gce => gce::write(&mut from, size, &mut to),
            Format::Iso => bail!("it needs a kernel besides the disk, which only `kimg build` has"),
        }
        .with_context(|| format!("making {} of {}", self.file(), raw.display()))
    }
}

/// What `make` writes to the path that it is given, at `out`, whole or not at all. It is its owner's alone: a disk may
/// hold the cluster's keys in clear.
pub(super) fn whole(out: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temporary = cache::temporary_beside(out)?;
    let made =
        cache::open_private(&temporary).and_then(|_| make(&temporary)).and_then(|()| cache::store(&temporary, out));
    if made.is_err() {
        // The first error is the one to report; where the disk is full, the room is wanted.
        let _ = std::fs::remove_file(&temporary);
    }
    made
}

fn gzip_to(from: &mut impl Read, to: impl Write) -> Result<()> {
    let mut encoder = flate2::GzBuilder::new().mtime(0).write(to, flate2::Compression::new(6));
    std::io::copy(from, &mut encoder)?;
    encoder.finish()?.flush().context("writing gzip")
}

/// Copies `size` bytes; blocks of zeros become holes.
fn copy_sparse(from: &mut File, size: u64, to: &mut File) -> Result<()> {
    let mut block = vec![0; 1 << 20];
    let mut done = 0;
    while done < size {
        let length = usize::try_from((size - done).min(block.len() as u64))?;
        from.read_exact(&mut block[..length]).context("reading the disk")?;
        if block[..length].iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(done)).context("copying the disk")?;
            to.write_all(&block[..length]).context("copying the disk")?;
        }
        done += length as u64;
    }
    Ok(())
}

/// Without a window beyond that of its level.
pub(super) fn zstd_encoder<W: Write>(to: W) -> Result<zstd::stream::write::Encoder<'static, W>> {
    let mut encoder = zstd::stream::write::Encoder::new(to, ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    // With one worker or more the output is always the same; without workers it is another.
    let workers = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, 8);
    encoder.multithread(u32::try_from(workers)?)?;
    Ok(encoder)
}

fn zstd_to(from: &mut impl Read, to: impl Write) -> Result<()> {
    let _alone = super::much_memory();
    let mut encoder = zstd_encoder(to)?;
    encoder.long_distance_matching(true)?;
    encoder.window_log(ZSTD_WINDOW_LOG)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        encoder.write_all(&buffer[..n])?;
    }
    encoder.finish()?.flush().context("writing zstd")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_disk_itself_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        std::fs::write(&raw, "disk").unwrap();
        Format::Raw.write(&raw, &raw).unwrap_err();
        assert_eq!(std::fs::read(&raw).unwrap(), b"disk");
    }

    #[test]
    fn a_form_is_called_as_its_file_ends() {
        for format in Format::all() {
            let word = clap::ValueEnum::to_possible_value(format).unwrap();
            assert_eq!(word.get_name(), format.name());
        }
    }

    #[test]
    fn each_form_unpacks_to_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        let content: Vec<u8> = (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        std::fs::write(&raw, &content).unwrap();
        for format in [Format::RawZst, Format::RawGz] {
            let out = dir.path().join(format.file());
            format.write(&raw, &out).unwrap();
            assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
            let packed = std::fs::read(&out).unwrap();
            let mut plain = Vec::new();
            match format {
                Format::RawGz => flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut plain).unwrap(),
                _ => zstd::stream::read::Decoder::new(&packed[..]).unwrap().read_to_end(&mut plain).unwrap(),
            };
            assert!(plain == content, "{format:?}");
            assert!(packed.len() < content.len());
        }
    }

    #[test]
    fn no_form_passes_for_another() {
        let dir = tempfile::tempdir().unwrap();
        let raw = dir.path().join("disk.raw");
        let mut content = vec![0; 1 << 20];
        content[512..520].copy_from_slice(b"EFI PART");
        std::fs::write(&raw, &content).unwrap();
        // A disk of fixed size begins as the plain one, and both archives as gzip does.
        let all = [Format::Raw, Format::RawZst, Format::RawGz, Format::Qcow2, Format::Vmdk];
        for made in all {
            let out = dir.path().join(made.file());
            if made != Format::Raw {
                made.write(&raw, &out).unwrap();
            }
            for said in all {
                assert_eq!(said.check(&out).is_ok(), said == made, "{made:?} as {said:?}");
            }
        }
        std::fs::write(&raw, b"short").unwrap();
        assert!(Format::Raw.check(&raw).unwrap_err().is::<input::BadInput>());
    }
}
