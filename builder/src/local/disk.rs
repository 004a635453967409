//! A VM's disk: a sparse copy of an image, grown to its size.

use crate::disk::gpt;
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

/// Puts another image under a disk and keeps its STATE partition: what a new image of a node is.
/// The disk is the old one until the new one is whole.
pub fn replace_image(image: &Path, disk: &Path) -> Result<()> {
    let mut from = File::open(image).with_context(|| format!("opening {}", image.display()))?;
    let mut old = File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
    let (new_start, _) = state_range(&mut from).with_context(|| format!("reading {}", image.display()))?;
    let (old_start, written) = state_range(&mut old).with_context(|| format!("reading {}", disk.display()))?;
    // A node that has not booted since its image was put there has not grown its table, and its data reaches beyond that.
    let length = written.max(old.metadata()?.len().saturating_sub(old_start + TAIL) / gpt::SECTOR * gpt::SECTOR);
    let dir = disk.parent().unwrap_or(Path::new("."));
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempfile_in(dir)
        .with_context(|| format!("making a file in {}", dir.display()))?;
    let to = temporary.as_file();
    let copied = (|| {
        // Only up to STATE: the image's own backup table lies behind it, where the old data goes.
        copy_range(&mut from, 0, to, 0, new_start, &mut |_| ())?;
        // The node moves the backup table to the new end when it boots.
        to.set_len(new_start + length + TAIL)?;
        copy_range(&mut old, old_start, to, new_start, length, &mut |_| ())?;
        // A master's acknowledged writes are in there, and the old disk is gone with the next line.
        to.sync_all()
    })();
    copied.with_context(|| format!("copying {} and the data of {}", image.display(), disk.display()))?;
    temporary.persist(disk).with_context(|| format!("writing {}", disk.display()))?;
    Ok(())
}

/// Room for the backup table behind the last partition.
const TAIL: u64 = 1 << 20;

/// Start and length of the STATE partition, in bytes.
fn state_range(disk: &mut File) -> Result<(u64, u64)> {
    let mut head = vec![0; 34 * gpt::SECTOR as usize];
    disk.seek(std::io::SeekFrom::Start(0))?;
    disk.read_exact(&mut head)?;
    let table = gpt::Table::parse(&head)?;
    let state = table.partition("state").context("it has no STATE partition")?;
    Ok((state.first * gpt::SECTOR, state.sectors * gpt::SECTOR))
}

/// Copies the parts of a file that hold something: holes, and blocks of zeros, stay holes.
fn copy_data(from: &mut File, to: &File, length: u64, progress: &mut impl FnMut(u64)) -> std::io::Result<()> {
    to.set_len(length)?;
    copy_range(from, 0, to, 0, length, progress)
}

fn copy_range(
    from: &mut File,
    from_start: u64,
    mut to: &File,
    to_start: u64,
    length: u64,
    progress: &mut impl FnMut(u64),
) -> std::io::Result<()> {
    let limit = from_start + length;
    let mut buffer = vec![0u8; BLOCK];
    let mut position = from_start;
    while position < limit {
        position = match seek(&*from, SeekFrom::Data(position)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that knows no holes: everything is data.
            Err(_) => from.seek(std::io::SeekFrom::Start(position))?,
        };
        let end = seek(&*from, SeekFrom::Hole(position)).unwrap_or(limit).min(limit);
        from.seek(std::io::SeekFrom::Start(position))?;
        while position < end {
            let want = BLOCK.min(usize::try_from(end - position).unwrap_or(BLOCK));
            let got = from.read(&mut buffer[..want])?;
            if got == 0 {
                return Ok(());
            }
            if buffer[..got].iter().any(|byte| *byte != 0) {
                to.seek(std::io::SeekFrom::Start(position - from_start + to_start))?;
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

    /// A disk with STATE at its end; `root` in front of it, `data` at its beginning.
    fn disk_of(path: &Path, root: &[u8], root_mib: u64, data: &[u8], state_mib: u64) {
        let kind = gpt::Guid::derived("kind");
        let id = gpt::Guid::derived("id");
        let parts = [("root", kind, id, root_mib << 20), ("state", kind, id, state_mib << 20)];
        let table = gpt::Table::lay_out(gpt::Guid::derived("disk"), &parts);
        let mut bytes = vec![0u8; (table.sectors * gpt::SECTOR) as usize];
        let (head, tail) = (table.head(&[]), table.tail());
        bytes[..head.len()].copy_from_slice(&head);
        let end = bytes.len();
        bytes[end - tail.len()..].copy_from_slice(&tail);
        for (name, content) in [("root", root), ("state", data)] {
            let start = (table.partition(name).expect("partition").first * gpt::SECTOR) as usize;
            bytes[start..start + content.len()].copy_from_slice(content);
        }
        std::fs::write(path, bytes).expect("disk");
    }

    #[test]
    fn a_new_image_keeps_the_state() {
        let dir = tempfile::tempdir().expect("dir");
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk"));
        disk_of(&disk, b"old root", 2, b"precious", 8);
        disk_of(&image, b"new root", 4, b"", 1);
        replace_image(&image, &disk).expect("replaced");
        let bytes = std::fs::read(&disk).expect("disk");
        let table = gpt::Table::parse(&bytes).expect("table");
        let at = |name: &str| (table.partition(name).expect("partition").first * gpt::SECTOR) as usize;
        assert!(bytes[at("root")..].starts_with(b"new root"));
        assert!(bytes[at("state")..].starts_with(b"precious"));
        assert_eq!(bytes.len(), at("state") + (8 << 20) + TAIL as usize);
        // Nothing of the image's backup table is left among the data.
        assert!(bytes[at("state") + 8..].iter().all(|b| *b == 0));
    }

    #[test]
    fn an_image_that_never_boots_costs_no_data() {
        let dir = tempfile::tempdir().expect("dir");
        let (image, disk) = (dir.path().join("image"), dir.path().join("disk"));
        let mut data = vec![0u8; 8 << 20];
        data[..8].copy_from_slice(b"precious");
        data[(8 << 20) - 4..].copy_from_slice(b"last");
        disk_of(&disk, b"good root", 2, &data, 8);
        for (root, root_mib) in [(&b"broken"[..], 3), (b"good again", 2), (b"better", 5)] {
            disk_of(&image, root, root_mib, b"", 1);
            replace_image(&image, &disk).expect("replaced");
            let bytes = std::fs::read(&disk).expect("disk");
            let table = gpt::Table::parse(&bytes).expect("table");
            let at = |name: &str| (table.partition(name).expect("partition").first * gpt::SECTOR) as usize;
            assert!(bytes[at("root")..].starts_with(root));
            assert!(bytes[at("state")..at("state") + data.len()] == data, "behind {}", String::from_utf8_lossy(root));
            assert_eq!(bytes.len(), at("state") + data.len() + TAIL as usize, "it does not grow each time");
        }
    }
}
