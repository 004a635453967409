//! The medium that installs a node: its disk rides in the initramfs behind stage 1, because Debian's cloud kernel has
//! no drivers for CD drives and USB sticks; everything arrives by the loader.

use super::cpio;
use super::output::zstd_encoder;
use super::toolbox::Toolbox;
use crate::disk::{grub, iso};
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

/// The word on the command line that makes stage 1 an installer: the SHA-256 of the disk. Stage 1 knows it too.
const PARAMETER: &str = "kimg.install=";
/// The disk's place in the initramfs. Stage 1 knows it too.
const FOLDER: &str = "install";
const FILE: &str = "install/disk.raw";

/// Makes a kernel image, signed where the disk's is, of a command line and an initramfs.
type KernelMaker<'a> = &'a dyn Fn(&str, &[u8]) -> Result<Vec<u8>>;

/// What a medium is made of.
pub struct Source<'a> {
    /// Name of the volume.
    pub label: String,
    /// The disk.
    pub raw: &'a Path,
    /// Its SHA-256, hex.
    pub raw_sha256: &'a str,
    /// The disk's own command line.
    pub command_line: &'a str,
    /// The disk's own initramfs.
    pub initrd: Vec<u8>,
    /// GRUB's boot.img.
    pub boot_img: &'a [u8],
    /// Makes the kernel image.
    pub kernel: KernelMaker<'a>,
    /// Other files of the EFI partition.
    pub esp_files: &'a [(&'a str, &'a [u8])],
}

/// Writes the medium to `out`; GRUB's core images are made in the folder `work`.
pub fn write(source: Source<'_>, tools: &Toolbox, work: &Path, out: &Path) -> Result<()> {
    let command_line = format!("{} {PARAMETER}{}", source.command_line, source.raw_sha256);
    let initramfs = with_disk(source.initrd, source.raw)?;
    let kernel = (source.kernel)(&command_line, &initramfs)?;
    // Each holds the whole disk.
    drop(initramfs);
    let esp = iso::esp(&kernel, source.esp_files)?;
    drop(kernel);
    let places = (iso::place_of(&esp, ".linux")?, iso::place_of(&esp, ".initrd")?);
    let cores = grub::medium_cores(tools, &command_line, places, iso::DISK_CORE_SECTOR, work)?;
    iso::write(out, iso::Parts { label: &source.label, boot_img: source.boot_img, cores, esp: &esp })
}

/// An initramfs with a second archive behind it, in which the disk lies.
fn with_disk(initrd: Vec<u8>, raw: &Path) -> Result<Vec<u8>> {
    let disk = File::open(raw).with_context(|| format!("opening {}", raw.display()))?;
    let size = disk.metadata().with_context(|| format!("reading {}", raw.display()))?.len();
    // Without long-distance matching: the kernel would need its window besides everything else in memory.
    let mut encoder = BufWriter::with_capacity(1 << 20, zstd_encoder(initrd)?);
    let packed = || -> Result<Vec<u8>> {
        encoder.write_all(&cpio::folder(FOLDER))?;
        encoder.write_all(&cpio::file_head(FILE, size)?)?;
        let copied = io::copy(&mut BufReader::with_capacity(1 << 20, disk.take(size)), &mut encoder)?;
        ensure!(copied == size && size.is_multiple_of(512), "the disk is cut short");
        encoder.write_all(&cpio::trailer())?;
        let encoder = encoder.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(encoder.finish()?)
    };
    packed().with_context(|| format!("packing {}", raw.display()))
}

/// The disk in a medium's initramfs: its size, and the archive from its first byte on.
pub fn disk_in(initramfs: impl Read + 'static) -> Result<(u64, Box<dyn Read>)> {
    // All archives are one stream.
    let mut archives = BufReader::with_capacity(1 << 20, zstd::stream::read::Decoder::new(initramfs)?);
    let size = cpio::find(&mut archives, FILE)?.context("its initramfs holds no disk")?;
    Ok((size, Box::new(archives)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::tree::Tree;

    /// A medium with this disk, whose GRUB is of no meaning.
    pub(crate) fn medium(raw: &Path, out: &Path) {
        let mut tree = Tree::default();
        tree.file("/init", 0o755, *b"stage 1").unwrap();
        tree.file("/install", 0o644, *b"not this one").unwrap();
        let initrd = zstd::encode_all(&cpio::archive(&tree).unwrap()[..], 3).unwrap();
        iso::tests::medium(&with_disk(initrd, raw).unwrap(), out);
    }

    #[test]
    fn the_disk_comes_out_as_it_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let (raw, out) = (dir.path().join("disk.raw"), dir.path().join("disk.iso"));
        let content: Vec<u8> = (0..700_032u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        std::fs::write(&raw, &content).unwrap();
        medium(&raw, &out);
        let mut file = File::open(&out).unwrap();
        let range = iso::initramfs_in(&mut file).unwrap().unwrap();
        io::Seek::seek(&mut file, io::SeekFrom::Start(range.start)).unwrap();
        let (size, mut archive) = disk_in(file.take(range.end - range.start)).unwrap();
        assert_eq!(size, content.len() as u64);
        let mut back = vec![0; content.len()];
        archive.read_exact(&mut back).unwrap();
        assert!(back == content);
        assert!(disk_in(&zstd::encode_all(&cpio::trailer()[..], 3).unwrap().leak()[..]).is_err());
    }
}
