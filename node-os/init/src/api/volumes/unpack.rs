//! A copy as a folder. It is taken for hostile: nothing outside the folder is made or followed, no devices, and no more
//! than there is room for.

use super::DEEPEST;
use node_api::copy::{ROOT, XATTR, is_carried};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType, PaxExtensions};

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const LINK: AtFlags = AtFlags::SYMLINK_NOFOLLOW;
/// Long names and extended attributes of one file; they are kept in memory.
const MOST_SAID: u64 = 1 << 20;
/// What each file costs besides its bytes, about.
const EACH: u64 = 4096;
const PIECE: usize = 64 << 10;

/// What becomes of a file besides its bytes.
#[derive(Debug)]
struct About {
    mode: u32,
    uid: u32,
    gid: u32,
    changed: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// What stands before an entry.
#[derive(Debug, Default)]
struct Said {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<u8>,
}

/// Makes the folder `into`, which is not there, from a tar; whether there was one in it.
///
/// # Errors
/// [`ErrorKind::InvalidData`] where the tar is not as kimg makes it.
pub fn unpack(from: impl Read, into: &Path, most: u64) -> io::Result<bool> {
    let mut unpacker = Unpacker { into, root: None, folders: Vec::new(), left: most };
    let mut archive = Archive::new(from);
    let mut said = Said::default();
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let to = match entry.header().entry_type() {
            EntryType::GNULongName => said.path.get_or_insert_default(),
            EntryType::GNULongLink => said.link.get_or_insert_default(),
            EntryType::XHeader => &mut said.records,
            _ => {
                unpacker.entry(&mut entry, &std::mem::take(&mut said))?;
                continue;
            }
        };
        if entry.size() > MOST_SAID || !to.is_empty() {
            return Err(wrong("an entry says too much of itself"));
        }
        entry.read_to_end(to)?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    into: &'a Path,
    root: Option<OwnedFd>,
    /// What is said of folders, which is done once all is in them.
    folders: Vec<(PathBuf, About)>,
    left: u64,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>, said: &Said) -> io::Result<()> {
        let about = about(entry, &said.records)?;
        let path = match &said.path {
            Some(path) => inside(without_end(path))?,
            None => inside(&entry.path_bytes())?,
        };
        let kind = entry.header().entry_type();
        self.spend(EACH)?;
        let Some(name) = path.file_name() else {
            if kind != EntryType::Directory || self.root.is_some() {
                return Err(wrong("it does not begin with a folder"));
            }
            rustix::fs::mkdirat(CWD, self.into, Mode::RWXU)?;
            self.root = Some(rustix::fs::open(self.into, FOLDER, Mode::empty())?);
            self.folders.push((path, about));
            return Ok(());
        };
        let parent = self.folder(path.parent().unwrap_or(Path::new("")))?;
        let target = said
            .link
            .as_deref()
            .map(without_end)
            .map_or_else(|| entry.link_name_bytes().unwrap_or_default().into_owned(), <[u8]>::to_vec);
        let made = match kind {
            EntryType::Directory => {
                let made = rustix::fs::mkdirat(&parent, name, Mode::RWXU);
                self.folders.push((path.clone(), about));
                made
            }
            EntryType::Regular => match rustix::fs::openat(&parent, name, NEW, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return self.fill(file.into(), entry, &about),
                Err(error) => Err(error),
            },
            EntryType::Link => {
                let target = inside(&target)?;
                let folder = self.folder(target.parent().unwrap_or(Path::new("")))?;
                let target = target.file_name().ok_or_else(|| wrong("a link to a folder"))?;
                let found = rustix::fs::statat(&folder, target, LINK)?;
                if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
                    return Err(wrong("a link to what is no file"));
                }
                rustix::fs::linkat(&folder, target, &parent, name, AtFlags::empty())
            }
            EntryType::Symlink => rustix::fs::symlinkat(OsStr::from_bytes(&target), &parent, name)
                .and_then(|()| own(&parent, name, &about)),
            EntryType::Fifo => {
                let mode = Mode::from_raw_mode(about.mode & 0o777);
                rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::empty(), 0)
                    .and_then(|()| own(&parent, name, &about))
                    .and_then(|()| rustix::fs::chmodat(&parent, name, mode, AtFlags::empty()))
            }
            _ => return Err(wrong("it holds a device or something else that is no file")),
        };
        made.map_err(|error| match error {
            rustix::io::Errno::EXIST => wrong("it holds the same name twice"),
            error => error.into(),
        })
    }

    /// A folder that is there already; no link leads to it.
    fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        let root = self.root.as_ref().ok_or_else(|| wrong("it does not begin with a folder"))?;
        let mut found = root.try_clone()?;
        for name in path {
            found = rustix::fs::openat(&found, name, FOLDER, Mode::empty()).map_err(|error| match error {
                rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => {
                    wrong("it holds a file whose folder it does not hold")
                }
                error => error.into(),
            })?;
        }
        Ok(found)
    }

    /// Holes are holes again.
    fn fill<R: Read>(&mut self, mut file: File, from: &mut Entry<'_, R>, about: &About) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        let mut length = 0;
        loop {
            let read = read_full(from, &mut piece)?;
            let bytes = piece.get(..read).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            length += read as u64;
            if bytes.iter().all(|byte| *byte == 0) {
                file.seek(SeekFrom::Start(length))?;
            } else {
                self.spend(read as u64)?;
                file.write_all(bytes)?;
            }
        }
        if length != from.size() {
            return Err(wrong("it is cut off"));
        }
        file.set_len(length)?;
        finish(file, about)
    }

    fn spend(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.left.checked_sub(bytes);
        self.left =
            left.ok_or_else(|| io::Error::new(ErrorKind::StorageFull, "there is no room for it on the disk"))?;
        Ok(())
    }

    fn finish(mut self) -> io::Result<bool> {
        let folders = std::mem::take(&mut self.folders);
        // From the inside, since a folder's time changes with what is made in it.
        for (path, about) in folders.iter().rev() {
            finish(self.folder(path)?.into(), about)?;
        }
        match self.root {
            Some(root) => rustix::fs::syncfs(root).map(|()| true).map_err(Into::into),
            None => Ok(false),
        }
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("this is no copy of a volume: {what}"))
}

/// Owner, mode (which a new owner takes bits from), attributes and time, in this order.
fn finish(file: File, about: &About) -> io::Result<()> {
    rustix::fs::fchown(&file, Some(Uid::from_raw(about.uid)), Some(Gid::from_raw(about.gid)))?;
    file.set_permissions(Permissions::from_mode(about.mode & 0o7777))?;
    for (name, value) in &about.xattrs {
        rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty())?;
    }
    Ok(rustix::fs::futimens(&file, &times(about))?)
}

/// What has no descriptor that could be written to.
fn own(parent: impl AsFd, name: &OsStr, about: &About) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(about.uid), Gid::from_raw(about.gid));
    rustix::fs::chownat(&parent, name, Some(uid), Some(gid), LINK)?;
    rustix::fs::utimensat(&parent, name, &times(about), LINK)
}

fn times(about: &About) -> Timestamps {
    Timestamps { last_access: about.changed, last_modification: about.changed }
}

/// A path in the folder, without the folder's own name.
fn inside(path: &[u8]) -> io::Result<PathBuf> {
    let path = Path::new(OsStr::from_bytes(path));
    let mut parts = path.components();
    if parts.next() != Some(Component::Normal(OsStr::new(ROOT))) {
        return Err(wrong("a name that is not in its folder"));
    }
    let rest = parts.as_path();
    let mut levels = 0;
    for part in rest.components() {
        levels += 1;
        if !matches!(part, Component::Normal(_)) || levels > DEEPEST {
            return Err(wrong("a name that leads out of its folder, or too deep"));
        }
    }
    Ok(rest.to_owned())
}

/// Long names end in a zero.
fn without_end(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(&[0]).unwrap_or(bytes)
}

fn about<R: Read>(entry: &Entry<'_, R>, records: &[u8]) -> io::Result<About> {
    let header = entry.header();
    // The last number stands for nobody.
    let number = |number: u64| {
        u32::try_from(number).ok().filter(|id| *id != u32::MAX).ok_or_else(|| wrong("an owner that nobody can be"))
    };
    let seconds = i64::try_from(header.mtime()?).map_err(|_| wrong("a time that never comes"))?;
    let mut about = About {
        mode: header.mode()?,
        uid: number(header.uid()?)?,
        gid: number(header.gid()?)?,
        changed: Timespec { tv_sec: seconds, tv_nsec: 0 },
        xattrs: Vec::new(),
    };
    for record in PaxExtensions::new(records) {
        let record = record?;
        let (Ok(key), Ok(value)) = (record.key(), record.value()) else { continue };
        match key {
            "mtime" => about.changed = time(value).ok_or_else(|| wrong("a time that is none"))?,
            XATTR => about.xattrs.push(xattr(value).ok_or_else(|| wrong("an attribute that nobody may set"))?),
            _ => return Err(wrong("a record that kimg does not write")),
        }
    }
    Ok(about)
}

fn time(text: &str) -> Option<Timespec> {
    let (seconds, nanos) = text.split_once('.')?;
    let nanos: u32 = nanos.parse().ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanos.into() })
}

fn xattr(text: &str) -> Option<(String, Vec<u8>)> {
    let (name, value) = text.split_once(':')?;
    let name = String::from_utf8(bytes(name)?).ok().filter(|name| is_carried(name) && !name.contains('\0'))?;
    Some((name, bytes(value)?))
}

/// Of hexadecimal digits.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    Some(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}

fn read_full(from: &mut impl Read, to: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = to.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
