//! The little that the engine asks of a disk, so that tests can put a faulty one there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Point;

/// One directory.
pub trait Disk: Send + Sync {
    /// How to name a file in messages.
    fn describe(&self, name: &str) -> String;
    /// The file from its beginning; None: there is none.
    fn read(&self, name: &str) -> io::Result<Option<Box<dyn Read + Send>>>;
    /// A new, empty file; one of that name is replaced.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// An existing file, cut to `len` and durable up to there, to write at its end.
    fn append_to(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>>;
    /// Puts `from` in the place of `to`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file if there is one.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Another directory of the same machine.
    fn beside(&self, dir: &Path) -> io::Result<Arc<dyn Disk>>;
    /// The engine is at a named moment; for tests.
    fn reach(&self, _point: Point) {}
}

/// A file being written at its end.
pub trait DiskFile: Send {
    /// Writes at the end.
    fn append(&mut self, data: &[u8]) -> io::Result<()>;
    /// Makes everything written durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Takes back what was written beyond `len`, all of it since the last sync.
    fn cut(&mut self, len: u64) -> io::Result<()>;
}

/// A real directory; that of a store is locked against other processes while this lives.
#[derive(Debug)]
pub struct DirDisk {
    dir: PathBuf,
    _lock: Option<File>,
}

impl DirDisk {
    /// A directory that holds no store, or one that is only read.
    pub(crate) fn unlocked(dir: PathBuf) -> DirDisk {
        DirDisk { dir, _lock: None }
    }

    /// Opens a directory, makes it if need be, and locks it.
    pub fn open(dir: &Path) -> crate::Result<DirDisk> {
        let io = |what: &str, why| crate::StoreError::Io { what: format!("{what} {}", dir.display()), why };
        if !dir.is_dir() {
            // Nobody else has to do with it, and whoever can open it could hold its lock.
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|e| io("making the store directory", e))?;
            // The directory's own name must survive, too.
            let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent).and_then(|p| sync_all(&p)).map_err(|e| io("making durable the name of", e))?;
        }
        // The directory itself, from under which no lock can be removed as a file in it could.
        let lock = File::open(dir).map_err(|e| io("opening", e))?;
        match lock.try_lock() {
            Ok(()) => {
                if cfg!(feature = "without-fsync") {
                    tracing::warn!("this build never calls fsync: a power cut loses what was acknowledged");
                }
                Ok(DirDisk { dir: dir.to_path_buf(), _lock: Some(lock) })
            }
            Err(std::fs::TryLockError::WouldBlock) => Err(crate::StoreError::Locked(dir.to_path_buf())),
            Err(std::fs::TryLockError::Error(e)) => Err(io("locking", e)),
        }
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        self.0.write_all(data)
    }
    fn sync(&mut self) -> io::Result<()> {
        if cfg!(feature = "without-fsync") { Ok(()) } else { self.0.sync_data() }
    }
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)?;
        self.0.seek(SeekFrom::Start(len)).map(drop)
    }
}

/// Data and metadata of a file or folder, or only a folder's names.
fn sync_all(file: &File) -> io::Result<()> {
    if cfg!(feature = "without-fsync") { Ok(()) } else { file.sync_all() }
}

impl Disk for DirDisk {
    fn describe(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> io::Result<Option<Box<dyn Read + Send>>> {
        let path = self.dir.join(name);
        // Looked at first: opening a pipe waits for somebody who writes to it.
        let opened = std::fs::metadata(&path).and_then(|found| match found.is_file() {
            true => File::open(&path),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
        });
        match opened {
            Ok(file) => Ok(Some(Box::new(io::BufReader::with_capacity(1 << 16, file)))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        // What is stored is nobody else's business.
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(self.dir.join(name))?;
        Ok(Box::new(RealFile(file)))
    }

    fn append_to(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = OpenOptions::new().append(true).open(self.dir.join(name))?;
        if file.metadata()?.len() != len {
            file.set_len(len)?;
        }
        // Who wrote it may have been killed before its sync.
        sync_all(&file)?;
        Ok(Box::new(RealFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        sync_all(&File::open(&self.dir)?)
    }

    fn beside(&self, dir: &Path) -> io::Result<Arc<dyn Disk>> {
        Ok(Arc::new(DirDisk::unlocked(dir.to_path_buf())))
    }
}
