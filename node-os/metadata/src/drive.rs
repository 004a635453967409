//! A device with metadata: a FAT or ISO 9660 file system with a label.

use crate::fat::Fat;
use crate::iso9660::Iso;
use crate::read_at::ReadAt;
use std::io;

/// More than any of the documents may have; the parsers have their own, smaller limits.
const MOST_BYTES: usize = 64 * 1024;

pub(crate) enum Drive<'a> {
    Iso(Iso<'a>),
    Fat(Fat<'a>),
}

impl<'a> Drive<'a> {
    /// `None` when the device holds neither file system.
    pub(crate) fn open(device: &'a dyn ReadAt) -> Option<Drive<'a>> {
        Iso::open(device).map(Drive::Iso).or_else(|| Fat::open(device).map(Drive::Fat))
    }

    pub(crate) fn has_label(&self, label: &str) -> bool {
        self.label().eq_ignore_ascii_case(label)
    }

    pub(crate) fn label(&self) -> &str {
        match self {
            Drive::Iso(iso) => iso.label(),
            Drive::Fat(fat) => fat.label(),
        }
    }

    /// The file at a path, names in any case.
    pub(crate) fn read(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        match self {
            Drive::Iso(iso) => iso.read(path, MOST_BYTES),
            Drive::Fat(fat) => fat.read(path, MOST_BYTES),
        }
    }
}
