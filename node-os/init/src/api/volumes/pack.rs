//! A volume's folder as a copy. Programs may write to it meanwhile, so what was looked at is what is read, and no link is
//! followed.

use super::DEEPEST;
use node_api::copy::{ROOT, Summed, XATTR, hex, is_carried};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Writes a copy of a folder, or of nothing where there is none. Gives how many sockets and devices it left out.
///
/// # Errors
/// A file cannot be read, or changes meanwhile.
pub fn pack<W: Write>(folder: &Path, to: W) -> io::Result<u64> {
    let mut packer = Packer { tar: Builder::new(Summed::new(to)), links: HashMap::new(), left_out: 0 };
    match rustix::fs::open(folder, FOLDER, Mode::empty()) {
        Ok(folder) => packer.folder(&folder, Path::new(ROOT), DEEPEST)?,
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    packer.tar.into_inner()?.finish()?;
    Ok(packer.left_out)
}

/// Bytes that a folder takes on the disk.
///
/// # Errors
/// It cannot be read.
pub fn bytes(folder: &Path) -> io::Result<u64> {
    bytes_in(&rustix::fs::open(folder, FOLDER, Mode::empty())?, DEEPEST)
}

fn bytes_in(folder: &OwnedFd, levels: usize) -> io::Result<u64> {
    let levels = levels.checked_sub(1).ok_or_else(too_deep)?;
    let mut sum = taken(&rustix::fs::fstat(folder)?);
    for name in names(folder)? {
        let Ok(stat) = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        sum += match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => bytes_in(&rustix::fs::openat(folder, &name, FOLDER, Mode::empty())?, levels)?,
            _ => taken(&stat),
        };
    }
    Ok(sum)
}

fn taken(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or_default() * 512
}

fn too_deep() -> io::Error {
    io::Error::other(format!("its folders are nested more than {DEEPEST} levels deep"))
}

/// In one order, so that the same folder gives the same copy.
fn names(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

struct Packer<W: Write> {
    tar: Builder<Summed<W>>,
    /// Where files are that have more names than one.
    links: HashMap<(u64, u64), PathBuf>,
    left_out: u64,
}

impl<W: Write> Packer<W> {
    fn folder(&mut self, folder: &OwnedFd, path: &Path, levels: usize) -> io::Result<()> {
        let levels = levels.checked_sub(1).ok_or_else(too_deep)?;
        let stat = rustix::fs::fstat(folder)?;
        self.records(&stat, Some(folder))?;
        self.tar.append_data(&mut header(&stat, EntryType::Directory), path, io::empty())?;
        for name in names(folder)? {
            self.entry(folder, &name, &path.join(OsStr::from_bytes(name.to_bytes())), levels)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &OwnedFd, name: &CStr, path: &Path, levels: usize) -> io::Result<()> {
        let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.folder(&rustix::fs::openat(folder, name, FOLDER, Mode::empty())?, path, levels),
            FileType::RegularFile => self.file(rustix::fs::openat(folder, name, FILE, Mode::empty())?.into(), path),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(folder, name, Vec::new())?;
                self.records(&stat, None::<&OwnedFd>)?;
                self.link(&mut header(&stat, EntryType::Symlink), path, target.to_bytes())
            }
            FileType::Fifo => {
                self.records(&stat, None::<&OwnedFd>)?;
                self.tar.append_data(&mut header(&stat, EntryType::Fifo), path, io::empty())
            }
            // Whoever listens makes a socket anew, and no pod needs a device here.
            _ => {
                self.left_out += 1;
                Ok(())
            }
        }
    }

    fn file(&mut self, mut file: File, path: &Path) -> io::Result<()> {
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(changes(path));
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
                return self.link(&mut header(&stat, EntryType::Link), path, first.as_os_str().as_bytes());
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        self.records(&stat, Some(&file))?;
        let mut head = header(&stat, EntryType::Regular);
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        head.set_size(size);
        // As many bytes as are promised, or the rest of the tar would be read as something else.
        let data = Exact { from: (&mut file).take(size), path };
        self.tar.append_data(&mut head, path, data)?;
        let after = rustix::fs::fstat(&file)?;
        let same =
            (after.st_size, after.st_mtime, after.st_mtime_nsec) == (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        if same { Ok(()) } else { Err(changes(path)) }
    }

    /// Times to the nanosecond, and extended attributes.
    fn records(&mut self, stat: &Stat, file: Option<impl AsFd>) -> io::Result<()> {
        let mut records = vec![("mtime", format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec))];
        if let Some(file) = file {
            records.extend(xattrs(file)?.into_iter().map(|xattr| (XATTR, xattr)));
        }
        self.tar.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes())))
    }

    /// The target as it is: [`Builder::append_link`] would tidy it.
    fn link(&mut self, header: &mut Header, path: &Path, target: &[u8]) -> io::Result<()> {
        if header.set_link_name_literal(target).is_err() {
            let mut long = Header::new_gnu();
            long.set_entry_type(EntryType::GNULongLink);
            long.set_path("././@LongLink")?;
            long.set_size(target.len() as u64 + 1);
            long.set_cksum();
            self.tar.append(&long, target.chain(&[0][..]))?;
        }
        self.tar.append_data(header, path, io::empty())
    }
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or_default());
    header.set_size(0);
    header
}

fn changes(path: &Path) -> io::Error {
    io::Error::other(format!("{} changes while it is copied", path.display()))
}

/// `NAME:VALUE` of each, both in hex.
fn xattrs(file: impl AsFd) -> io::Result<Vec<String>> {
    let mut list = vec![0; 64 << 10];
    let length = match rustix::fs::flistxattr(&file, list.as_mut_slice()) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    list.truncate(length);
    let names = list.split(|byte| *byte == 0).filter_map(|name| std::str::from_utf8(name).ok());
    let mut found = Vec::new();
    for name in names.filter(|name| is_carried(name)) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::fgetxattr(&file, name, value.as_mut_slice())?;
        value.truncate(length);
        found.push(format!("{}:{}", hex(name.as_bytes()), hex(&value)));
    }
    Ok(found)
}

/// A file that must not end early.
struct Exact<'a, R> {
    from: io::Take<R>,
    path: &'a Path,
}

impl<R: Read> Read for Exact<'_, R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match self.from.read(to)? {
            0 if self.from.limit() > 0 && !to.is_empty() => Err(changes(self.path)),
            read => Ok(read),
        }
    }
}
