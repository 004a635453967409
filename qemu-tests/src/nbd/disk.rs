//! The disk behind the block server: a sparse file that holds what is safe, and in memory what was written
//! since the last flush. When the plug is pulled, each sector in memory keeps one of the contents it has had.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// The smallest piece that a power cut keeps or loses as a whole.
pub const SECTOR: usize = 512;

/// What a sector was overwritten with.
type Content = Box<[u8; SECTOR]>;

/// What a flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushes {
    /// Everything written is safe before the answer, as a disk has to.
    Kept,
    /// It answers and does nothing: to the guest as if nothing had ever called fsync.
    Ignored,
}

/// A disk that can lose its power.
#[derive(Debug)]
pub struct Disk {
    file: File,
    size: u64,
    flushes: Flushes,
    /// Every content that a sector was given since the last flush, the newest last.
    unsafe_sectors: BTreeMap<u64, Vec<Content>>,
}

/// What a pulled plug did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// Sectors that had been written and not flushed.
    pub unsafe_sectors: usize,
    /// Of them, those that did not keep their newest content.
    pub lost_sectors: usize,
}

impl Disk {
    /// The disk whose safe content is in `file`.
    ///
    /// # Errors
    /// The file's size cannot be had.
    pub fn new(file: File, flushes: Flushes) -> io::Result<Disk> {
        let size = file.metadata()?.len();
        Ok(Disk { file, size, flushes, unsafe_sectors: BTreeMap::new() })
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What flushes do from now on.
    pub fn set_flushes(&mut self, flushes: Flushes) {
        self.flushes = flushes;
    }

    /// The newest content.
    ///
    /// # Errors
    /// The range is not on the disk, or the file cannot be read.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let sectors = self.sectors(offset, out.len() as u64)?;
        self.file.read_exact_at(out, offset)?;
        for (sector, contents) in self.unsafe_sectors.range(sectors.clone()) {
            let at = (sector - sectors.start) as usize * SECTOR;
            if let Some(newest) = contents.last() {
                out[at..at + SECTOR].copy_from_slice(&newest[..]);
            }
        }
        Ok(())
    }

    /// Takes a write into memory; with `safe` (FUA) into the file.
    ///
    /// # Errors
    /// The range is not on the disk, or the file cannot be written.
    pub fn write(&mut self, offset: u64, data: &[u8], safe: bool) -> io::Result<()> {
        let sectors = self.sectors(offset, data.len() as u64)?;
        if safe && self.flushes == Flushes::Kept {
            self.file.write_all_at(data, offset)?;
            for sector in sectors {
                self.unsafe_sectors.remove(&sector);
            }
            return Ok(());
        }
        for (sector, piece) in sectors.zip(data.chunks_exact(SECTOR)) {
            let mut content = Box::new([0; SECTOR]);
            content.copy_from_slice(piece);
            self.unsafe_sectors.entry(sector).or_default().push(content);
        }
        Ok(())
    }

    /// A trimmed range reads as zeros, and a power cut may bring its old content back.
    ///
    /// # Errors
    /// The range is not on the disk.
    pub fn trim(&mut self, offset: u64, length: u64) -> io::Result<()> {
        for sector in self.sectors(offset, length)? {
            self.unsafe_sectors.entry(sector).or_default().push(Box::new([0; SECTOR]));
        }
        Ok(())
    }

    /// Makes everything written so far safe.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.flushes == Flushes::Ignored {
            return Ok(());
        }
        let sectors = std::mem::take(&mut self.unsafe_sectors);
        sectors.iter().filter_map(|(sector, contents)| Some((sector, contents.last()?))).try_for_each(
            // The host does not lose its power in these tests: its page cache is safe enough.
            |(sector, newest)| self.file.write_all_at(&newest[..], sector * SECTOR as u64),
        )
    }

    /// The power goes: each unsafe sector has its safe content again or one of those it was given since.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn lose_power(&mut self, seed: u64) -> io::Result<Loss> {
        let mut dice = StdRng::seed_from_u64(seed);
        // Some disks write at once, some hardly before they are told to.
        let survives = dice.random_range(0.0..1.0);
        let sectors = std::mem::take(&mut self.unsafe_sectors);
        let mut loss = Loss { unsafe_sectors: sectors.len(), lost_sectors: 0 };
        for (sector, contents) in sectors {
            let written = if dice.random_bool(survives) { dice.random_range(1..=contents.len()) } else { 0 };
            loss.lost_sectors += usize::from(written != contents.len());
            if let Some(last) = written.checked_sub(1) {
                self.file.write_all_at(&contents[last][..], sector * SECTOR as u64)?;
            }
        }
        Ok(loss)
    }

    /// The power goes, and the cache had written nothing at all: the disk is what it was at the last flush.
    pub fn lose_cache(&mut self) -> Loss {
        let lost = std::mem::take(&mut self.unsafe_sectors).len();
        Loss { unsafe_sectors: lost, lost_sectors: lost }
    }

    /// The sectors of a range that begins and ends at a sector's edge and lies on the disk.
    fn sectors(&self, offset: u64, length: u64) -> io::Result<Range<u64>> {
        let sector = SECTOR as u64;
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        match end {
            Some(end) if offset.is_multiple_of(sector) && length.is_multiple_of(sector) => {
                Ok(offset / sector..end / sector)
            }
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{length} bytes at {offset} are not whole sectors of a disk of {} bytes", self.size),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(flushes: Flushes) -> Disk {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(64 * SECTOR as u64).expect("grown");
        Disk::new(file, flushes).expect("a disk")
    }

    fn sector(disk: &Disk, number: u64) -> u8 {
        let mut bytes = [9; SECTOR];
        disk.read(number * SECTOR as u64, &mut bytes).expect("read");
        assert!(bytes.iter().all(|b| *b == bytes[0]), "a sector is torn");
        bytes[0]
    }

    fn write(disk: &mut Disk, number: u64, value: u8) {
        disk.write(number * SECTOR as u64, &[value; SECTOR], false).expect("written");
    }

    #[test]
    fn what_was_flushed_or_forced_survives_and_the_rest_may_not() {
        let (mut lost, mut kept, mut middle) = (0, 0, 0);
        for seed in 0..200 {
            let mut disk = disk(Flushes::Kept);
            write(&mut disk, 1, 1);
            disk.flush().expect("flushed");
            disk.write(2 * SECTOR as u64, &[2; SECTOR], true).expect("forced");
            write(&mut disk, 3, 3);
            write(&mut disk, 3, 4);
            assert_eq!((sector(&disk, 1), sector(&disk, 2), sector(&disk, 3)), (1, 2, 4), "the newest is read");
            disk.lose_power(seed).expect("power lost");
            assert_eq!((sector(&disk, 1), sector(&disk, 2)), (1, 2), "seed {seed}");
            match sector(&disk, 3) {
                0 => lost += 1,
                3 => middle += 1,
                4 => kept += 1,
                other => panic!("{other} was never written"),
            }
        }
        assert!(lost > 20 && kept > 20 && middle > 20, "{lost} {kept} {middle}");
    }

    #[test]
    fn one_seed_gives_one_loss() {
        let outcome = |seed| {
            let mut disk = disk(Flushes::Kept);
            (0..64).for_each(|n| write(&mut disk, n, 7));
            let loss = disk.lose_power(seed).expect("power lost");
            (loss, (0..64).map(|n| sector(&disk, n)).collect::<Vec<_>>())
        };
        assert_eq!(outcome(5), outcome(5));
        assert_ne!(outcome(5), outcome(6));
    }

    #[test]
    fn a_disk_that_lies_loses_what_it_called_safe() {
        let mut disk = disk(Flushes::Ignored);
        write(&mut disk, 1, 1);
        disk.flush().expect("answered");
        disk.write(2 * SECTOR as u64, &[2; SECTOR], true).expect("answered");
        assert_eq!((sector(&disk, 1), sector(&disk, 2)), (1, 2));
        assert_eq!(disk.lose_cache(), Loss { unsafe_sectors: 2, lost_sectors: 2 });
        assert_eq!((sector(&disk, 1), sector(&disk, 2)), (0, 0));
    }

    #[test]
    fn trims_are_zeros_and_ranges_are_checked() {
        let mut disk = disk(Flushes::Kept);
        write(&mut disk, 5, 5);
        disk.flush().expect("flushed");
        disk.trim(5 * SECTOR as u64, SECTOR as u64).expect("trimmed");
        assert_eq!(sector(&disk, 5), 0);
        for (offset, length) in [(1, SECTOR), (0, 3), (64 * SECTOR as u64, SECTOR), (u64::MAX - 511, SECTOR)] {
            assert!(disk.read(offset, &mut vec![0; length]).is_err(), "{length} at {offset}");
        }
    }
}
