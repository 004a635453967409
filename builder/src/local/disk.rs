//! A VM's disk: a sparse copy of an image, grown to its size.

use anyhow::{Context, Result, bail};
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

const BLOCK: usize = 1 << 20;
const TEMPORARY: &str = ".disk-";

/// Copies `image` to `disk` (made whole or not at all) and grows it to `size_mib`.
pub fn copy(image: &Path, disk: &Path, size_mib: u32, mut progress: impl FnMut(u64)) -> Result<()> {
    let mut from = File::open(image).with_context(|| format!("opening {}", image.display()))?;
    let length = from.metadata()?.len();
    let size = u64::from(size_mib) << 20;
    if length > size {
        bail!(
            "{} is {} MiB and the VM's disk only {size_mib}; write a larger disk under [local] in cluster.toml",
            image.display(),
            length >> 20
        );
    }
    let dir = disk.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(dir)
        .with_context(|| format!("making a file in {}", dir.display()))?;
    let to = temporary.as_file();
    // A file system that can share blocks copies nothing at all.
    if ioctl_ficlone(to, &from).is_err() {
        copy_data(&mut from, to, length, &mut progress).with_context(|| format!("copying {}", image.display()))?;
    }
    to.set_len(size).with_context(|| format!("growing {}", disk.display()))?;
    temporary.persist(disk).with_context(|| format!("writing {}", disk.display()))?;
    Ok(())
}

/// Copies the parts that hold something: holes, and blocks of zeros, stay holes.
fn copy_data(from: &mut File, mut to: &File, length: u64, progress: &mut impl FnMut(u64)) -> std::io::Result<()> {
    to.set_len(length)?;
    let mut buffer = vec![0u8; BLOCK];
    let mut position = 0;
    while position < length {
        position = match seek(&*from, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that knows no holes: everything is data.
            Err(_) => from.seek(std::io::SeekFrom::Start(position))?,
        };
        let end = seek(&*from, SeekFrom::Hole(position)).unwrap_or(length);
        from.seek(std::io::SeekFrom::Start(position))?;
        to.seek(std::io::SeekFrom::Start(position))?;
        while position < end {
            let want = BLOCK.min(usize::try_from(end - position).unwrap_or(BLOCK));
            let got = from.read(&mut buffer[..want])?;
            if got == 0 {
                return Ok(());
            }
            if buffer[..got].iter().all(|byte| *byte == 0) {
                to.seek(std::io::SeekFrom::Current(got as i64))?;
            } else {
                to.write_all(&buffer[..got])?;
            }
            position += got as u64;
            progress(position);
        }
    }
    Ok(())
}

/// Removes what an interrupted copy has left.
pub fn remove_leftovers(dir: &Path) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            std::fs::remove_file(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Says when the folder's file system has less room than the VMs are likely to fill.
pub fn check_space(dir: &Path, needed_mib: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(dir).with_context(|| format!("asking for the space in {}", dir.display()))?;
    let free_mib = stat.f_bavail.saturating_mul(stat.f_frsize) >> 20;
    if free_mib < needed_mib {
        bail!("{} has {free_mib} MiB left and the VMs need about {needed_mib}; make room", dir.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_is_the_same_grown_and_sparse() {
        let dir = tempfile::tempdir().expect("dir");
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk"));
        let file = File::create(&image).expect("image");
        file.set_len(6 << 20).expect("length");
        (&file).write_all(b"first").expect("write");
        (&file).seek(std::io::SeekFrom::Start(5 << 20)).expect("seek");
        (&file).write_all(b"last").expect("write");
        copy(&image, &disk, 64, |_| ()).expect("copy");
        let bytes = std::fs::read(&disk).expect("disk");
        assert_eq!(bytes.len(), 64 << 20);
        assert_eq!(&bytes[..5], b"first");
        assert_eq!(&bytes[5 << 20..(5 << 20) + 4], b"last");
        assert!(bytes[(5 << 20) + 4..].iter().all(|b| *b == 0));
        assert!(std::fs::metadata(&disk).expect("disk").blocks() * 512 < 8 << 20);
        assert!(copy(&image, &disk, 5, |_| ()).is_err());
    }
}
