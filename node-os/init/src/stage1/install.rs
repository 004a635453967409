//! The installer: writes the disk that lies in the initramfs onto the machine's, and starts the machine again.
//!
//! A disk with this image is started and never written to. Otherwise the target is the disk that the command line
//! names, or the only empty one; who is not sure writes nothing.
//!
//! ```text
//! mark in the first sector → everything behind the first MiB → read back → the first MiB but its first sector
//!   → the first sector, in the mark's place
//! ```
//! Each arrow is a flush. A disk that begins with the mark boots nowhere, whatever else is on it, and counts as empty:
//! an installation that was cut off begins again.

use super::cmdline::{Install, RootHash};
use super::root::{self, Root};
use crate::disk::scan::{Disk, disks};
use anyhow::{Context, Result, bail, ensure};
use node_sys::machine;
use ring::digest;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const PAYLOAD: &str = "/install/disk.raw";
const MIB: u64 = 1 << 20;
const SECTOR: usize = 512;
/// Room of the boot code and the partition table: written last.
const HEAD: u64 = MIB;
const MARK: &[u8] = b"kimg: this disk is being installed, and not finished\n";
/// No disk has appeared for so long: there are no others.
const SETTLE: Duration = Duration::from_secs(5);
/// The installation says how far it is after so many bytes.
const STEP: u64 = 64 * MIB;

/// The root of a disk that carries this image already. Otherwise installs it, and does not return but by an error.
pub(super) fn find_or_install(
    hash: &RootHash,
    wanted: &Install,
    load_late: impl FnOnce(),
    say: impl Fn(&str),
) -> Result<Root> {
    // All of them: a disk that is not seen could be the one that is meant.
    load_late();
    if let Some(root) = settled(hash) {
        return Ok(root);
    }
    let payload = Payload::open(&wanted.sha256)?;
    let seen: Vec<Seen> = disks().iter().map(Seen::look).collect();
    let target = choose(&seen, wanted.to.as_deref(), payload.size)?;
    let disk = Device::open(target)?;
    say(&format!("installing this node's image ({} MiB) on /dev/{target}", payload.size.div_ceil(MIB)));
    install(&|at, out| payload.file.read_exact_at(out, at), payload.size, &disk, &say)
        .with_context(|| format!("the installation on /dev/{target} failed"))?;
    say(&format!("the image is on /dev/{target}, and was read back; the machine starts again"));
    say("the medium may be removed; if it stays, it starts this disk and writes nothing");
    machine::end(machine::Ending::Reboot).context("the kernel refuses to restart; reset the machine")?;
    bail!("the kernel did not restart; reset the machine")
}

/// Waits until all disks have appeared; at once, where one has been booted before.
fn settled(hash: &RootHash) -> Option<Root> {
    let start = Instant::now();
    let (mut names, mut since) = (Vec::new(), start);
    loop {
        if let Some(root) = root::present(hash, true) {
            return Some(root);
        }
        let now: Vec<String> = disks().into_iter().map(|disk| disk.name).collect();
        if now != names {
            (names, since) = (now, Instant::now());
        }
        if since.elapsed() > SETTLE && (!names.is_empty() || start.elapsed() > root::GIVE_UP_AFTER) {
            return root::present(hash, false);
        }
        std::thread::sleep(root::POLL);
    }
}

/// The disk in the initramfs.
struct Payload {
    file: File,
    size: u64,
}

impl Payload {
    /// Checks that it arrived as it was made.
    fn open(sha256: &str) -> Result<Payload> {
        let opened = File::open(PAYLOAD).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (size, file) = opened.with_context(|| {
            format!("the image did not arrive in memory ({PAYLOAD}): the machine has too little of it, or the medium is damaged; nothing was written")
        })?;
        let mut context = digest::Context::new(&digest::SHA256);
        pieces(0, size, |at, buffer| {
            file.read_exact_at(buffer, at)?;
            context.update(buffer);
            Ok(())
        })
        .context("reading the image in memory")?;
        let found: String = context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(
            found == sha256 && size > HEAD && size.is_multiple_of(SECTOR as u64),
            "the image did not arrive in memory as it was made: the machine has too little of it, or the medium is damaged; nothing was written"
        );
        Ok(Payload { file, size })
    }
}

/// What a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// Zeros where tables and file systems begin and end.
    Empty,
    /// An installation that was cut off.
    Unfinished,
    /// Something, by its name.
    Holds(&'static str),
    /// It cannot be read.
    Unreadable,
}

/// A disk as far as it matters whether it is the target.
#[derive(Debug, Clone)]
struct Seen {
    name: String,
    size: u64,
    sector: u64,
    read_only: bool,
    content: Content,
}

impl Seen {
    fn look(disk: &Disk) -> Seen {
        let size = disk.size();
        let read = || -> io::Result<Content> {
            let file = File::open(disk.device())?;
            let length = size.min(MIB) as usize;
            let (mut head, mut tail) = (vec![0; length], vec![0; length]);
            file.read_exact_at(&mut head, 0)?;
            file.read_exact_at(&mut tail, size - length as u64)?;
            Ok(content(&head, &tail))
        };
        Seen {
            name: disk.name.clone(),
            size,
            sector: disk.sector_size(),
            read_only: disk.is_read_only(),
            content: read().unwrap_or(Content::Unreadable),
        }
    }

    /// Why nothing can be installed on it, whatever it holds.
    fn unfit(&self, image: u64) -> Option<String> {
        if self.read_only {
            Some("cannot be written to".into())
        } else if self.content == Content::Unreadable {
            // It may be this node's own, on a bad day.
            Some("cannot be read".into())
        } else if self.size < image {
            Some(format!("is smaller than the image ({} of {} MiB)", self.size / MIB, image.div_ceil(MIB)))
        } else if self.sector != SECTOR as u64 {
            Some(format!("has sectors of {} bytes, and the image is for such of {SECTOR}", self.sector))
        } else {
            None
        }
    }

    /// For people.
    fn told(&self, image: u64) -> String {
        let why = match (self.unfit(image), self.content) {
            (Some(why), _) => why,
            (None, Content::Empty) => "is empty".into(),
            (None, Content::Unfinished) => "has an installation that was cut off".into(),
            (None, Content::Holds(what)) => format!("holds {what}"),
            (None, Content::Unreadable) => "cannot be read".into(),
        };
        format!("{} {why}", self.name)
    }
}

/// What begins where, in the order in which it is looked for. It only makes the sentence better: a disk is empty when
/// its first and last MiB, which hold every table's and file system's mark, are zeros.
const KNOWN: [(usize, &[u8], &str); 10] = [
    (512, b"EFI PART", "a partition table"),
    (0, b"LUKS", "an encrypted volume"),
    (512, b"LABELONE", "a volume of LVM"),
    (0, b"XFSB", "a file system (XFS)"),
    (1024 + 56, &[0x53, 0xef], "a file system (ext)"),
    ((64 << 10) + 64, b"_BHRfS_M", "a file system (btrfs)"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a part of a RAID"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0x8001, b"CD001", "a CD's file system"),
    (510, &[0x55, 0xaa], "a partition table, or a file system (FAT, NTFS)"),
];

fn content(head: &[u8], tail: &[u8]) -> Content {
    if head.starts_with(MARK) {
        return Content::Unfinished;
    }
    if head.iter().chain(tail).all(|byte| *byte == 0) {
        return Content::Empty;
    }
    let known = KNOWN.iter().find(|(at, mark, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(mark)));
    Content::Holds(known.map_or("data", |(_, _, name)| name))
}

/// The disk to write to, or a sentence that says what was found and what to do.
fn choose<'a>(seen: &'a [Seen], wanted: Option<&str>, image: u64) -> Result<&'a str> {
    let all: Vec<String> = seen.iter().map(|disk| disk.told(image)).collect();
    let all = if all.is_empty() { "no disk at all".to_owned() } else { all.join("; ") };
    if let Some(wanted) = wanted {
        let disk = seen.iter().find(|disk| disk.name == wanted);
        let disk = disk.with_context(|| {
            format!("there is no disk {wanted}, which the command line names for the image; found: {all}. Nothing was written")
        })?;
        if let Some(why) = disk.unfit(image) {
            bail!(
                "the disk {wanted}, which the command line names for the image, {why}; found: {all}. Nothing was written"
            );
        }
        return Ok(&disk.name);
    }
    let fit = |content| move |disk: &&Seen| disk.content == content && disk.unfit(image).is_none();
    // One that was begun is the one that was meant.
    let mut targets: Vec<&Seen> = seen.iter().filter(fit(Content::Unfinished)).collect();
    if targets.is_empty() {
        targets = seen.iter().filter(fit(Content::Empty)).collect();
    }
    match targets[..] {
        [disk] => Ok(&disk.name),
        [] => bail!(
            "there is no empty disk for the image; found: {all}. Clear the first and the last MiB of the disk that is meant, or build the image with kimg.install-to=NAME among its kernel-args. Nothing was written"
        ),
        _ => bail!(
            "there are several empty disks, and nothing says which is meant; found: {all}. Leave one attached, or build the image with kimg.install-to=NAME among its kernel-args. Nothing was written"
        ),
    }
}

/// Where an installation goes.
trait Target {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Afterwards everything that was written is on the disk, and reading asks the disk.
    fn flush(&self) -> io::Result<()>;
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()>;
}

struct Device(File);

impl Device {
    fn open(name: &str) -> Result<Device> {
        let file = File::options().read(true).write(true).open(format!("/dev/{name}"));
        Ok(Device(file.with_context(|| format!("cannot open /dev/{name}"))?))
    }
}

impl Target for Device {
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, at)
    }

    fn flush(&self) -> io::Result<()> {
        node_sys::block::forget(&self.0)
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, at)
    }
}

type Source<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// In the order of the module's picture.
fn install(source: Source<'_>, size: u64, target: &dyn Target, say: &impl Fn(&str)) -> Result<()> {
    let mut mark = MARK.to_vec();
    mark.resize(SECTOR, 0);
    let put = |at: u64, bytes: &[u8]| target.write(at, bytes).context("the disk cannot be written");
    let flush = || target.flush().context("the disk cannot be written");
    put(0, &mark)?;
    flush()?;
    pieces(HEAD, size, |at, buffer| {
        source(at, buffer).context("reading the image in memory")?;
        put(at, buffer)?;
        if at.is_multiple_of(STEP) {
            say(&format!("{} MiB are written", at / MIB));
        }
        Ok(())
    })?;
    flush()?;
    check(source, HEAD, size, target)?;
    let mut head = vec![0; HEAD as usize];
    source(0, &mut head).context("reading the image in memory")?;
    let (first, rest) = head.split_at(SECTOR);
    put(SECTOR as u64, rest)?;
    flush()?;
    check(source, SECTOR as u64, HEAD, target)?;
    put(0, first)?;
    flush()?;
    check(source, 0, HEAD, target)
}

/// Compares what stands on the disk with the image.
fn check(source: Source<'_>, start: u64, end: u64, target: &dyn Target) -> Result<()> {
    let mut found = vec![0; MIB as usize];
    pieces(start, end, |at, wanted| {
        source(at, wanted).context("reading the image in memory")?;
        let found = found.get_mut(..wanted.len()).context("a piece is too large")?;
        target.read(at, found).context("the disk cannot be read back")?;
        ensure!(found == wanted, "the disk does not keep what is written to it (behind byte {at}); replace it");
        Ok(())
    })
}

/// From `start` to `end` in pieces of at most a MiB.
fn pieces(start: u64, end: u64, mut work: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; MIB as usize];
    let mut at = start;
    while at < end {
        let length = (end - at).min(MIB);
        let piece = buffer.get_mut(..length as usize).context("a piece is too large")?;
        work(at, piece)?;
        at += length;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn disk(name: &str, content: Content) -> Seen {
        Seen { name: name.into(), size: 8 << 30, sector: 512, read_only: false, content }
    }

    #[test]
    fn the_target_is_the_named_or_the_only_empty_disk() {
        const IMAGE: u64 = 128 * MIB;
        let (empty, begun) = (|name| disk(name, Content::Empty), |name| disk(name, Content::Unfinished));
        let full = |name| disk(name, Content::Holds("a partition table"));
        let small = |name| Seen { size: MIB, ..empty(name) };
        let locked = |name| Seen { read_only: true, ..empty(name) };
        let large_sectors = |name| Seen { sector: 4096, ..empty(name) };
        let broken = |name| disk(name, Content::Unreadable);
        // What is there, what the command line names, and the target, or words of the sentence.
        type Case = (Vec<Seen>, Option<&'static str>, Result<&'static str, &'static [&'static str]>);
        let cases: Vec<Case> = vec![
            (vec![empty("vda")], None, Ok("vda")),
            (vec![full("vda"), empty("vdb"), small("vdc"), locked("vdd"), large_sectors("vde")], None, Ok("vdb")),
            (vec![], None, Err(&["no empty disk", "no disk at all", "Nothing was written"])),
            (vec![full("vda")], None, Err(&["vda holds a partition table", "kimg.install-to=NAME"])),
            (vec![small("vda")], None, Err(&["vda is smaller than the image (1 of 128 MiB)"])),
            (vec![locked("vda"), broken("vdb")], None, Err(&["vda cannot be written to; vdb cannot be read"])),
            (vec![large_sectors("vda")], None, Err(&["sectors of 4096 bytes"])),
            (vec![empty("vda"), empty("vdb")], None, Err(&["several empty disks", "vda is empty; vdb is empty"])),
            (vec![empty("vda"), begun("vdb")], None, Ok("vdb")),
            (vec![begun("vda"), begun("vdb")], None, Err(&["several", "cut off"])),
            (vec![empty("vda"), empty("vdb")], Some("vdb"), Ok("vdb")),
            (vec![full("vda"), empty("vdb")], Some("vda"), Ok("vda")),
            (vec![empty("vda")], Some("sda"), Err(&["there is no disk sda", "vda is empty", "Nothing was written"])),
            (
                vec![broken("vda"), empty("vdb")],
                Some("vda"),
                Err(&["vda, which the command line names", "cannot be read"]),
            ),
            (vec![small("vda"), empty("vdb")], Some("vda"), Err(&["vda, which the command line names", "smaller"])),
        ];
        for (seen, wanted, expected) in cases {
            match (choose(&seen, wanted, IMAGE), expected) {
                (Ok(name), Ok(target)) => assert_eq!(name, target),
                (Err(error), Err(words)) => {
                    let said = error.to_string();
                    assert!(words.iter().all(|word| said.contains(word)), "{said}");
                }
                (chosen, _) => panic!("{seen:?} with {wanted:?}: {chosen:?}"),
            }
        }
    }

    #[test]
    fn only_zeros_are_an_empty_disk() {
        let zeros = vec![0; MIB as usize];
        assert_eq!(content(&zeros, &zeros), Content::Empty);
        for (at, mark, name) in KNOWN {
            let mut head = zeros.clone();
            head[at..at + mark.len()].copy_from_slice(mark);
            assert_eq!(content(&head, &zeros), Content::Holds(name));
        }
        for at in [0, MIB as usize / 2, MIB as usize - 1] {
            let mut changed = zeros.clone();
            changed[at] = 1;
            assert_eq!(content(&changed, &zeros), Content::Holds("data"));
            assert_eq!(content(&zeros, &changed), Content::Holds("data"), "the end");
        }
        let mut begun = zeros.clone();
        begun[..MARK.len()].copy_from_slice(MARK);
        // The second partition table was written already.
        assert_eq!(content(&begun, &vec![7; MIB as usize]), Content::Unfinished);
    }

    /// A disk whose power goes after some calls: of what was not flushed every other sector is kept.
    struct Weak {
        disk: RefCell<Vec<u8>>,
        unsafe_writes: RefCell<Vec<(u64, Vec<u8>)>>,
        calls_left: RefCell<u32>,
        /// A byte that does not keep what is written to it.
        stuck: Option<u64>,
        keeps: usize,
    }

    impl Weak {
        fn new(length: u64, calls: u32, keeps: usize) -> Weak {
            Weak {
                disk: RefCell::new(vec![0; length as usize]),
                unsafe_writes: RefCell::default(),
                calls_left: RefCell::new(calls),
                stuck: None,
                keeps,
            }
        }

        fn call(&self) -> io::Result<()> {
            let mut left = self.calls_left.borrow_mut();
            if *left == 0 {
                return Err(io::Error::other("the power is gone"));
            }
            *left -= 1;
            Ok(())
        }

        fn store(&self, at: u64, bytes: &[u8]) {
            let mut disk = self.disk.borrow_mut();
            disk[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
            if let Some(stuck) = self.stuck {
                disk[stuck as usize] = 0xee;
            }
        }

        fn lose_power(&self) {
            for (at, bytes) in self.unsafe_writes.take() {
                for (n, sector) in bytes.chunks(SECTOR).enumerate().filter(|(n, _)| n % 2 == self.keeps) {
                    self.store(at + (n * SECTOR) as u64, sector);
                }
            }
        }
    }

    impl Target for Weak {
        fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
            self.call()?;
            self.unsafe_writes.borrow_mut().push((at, bytes.to_vec()));
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            self.call()?;
            let writes = self.unsafe_writes.take();
            writes.iter().for_each(|(at, bytes)| self.store(*at, bytes));
            Ok(())
        }

        fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
            self.call()?;
            out.copy_from_slice(&self.disk.borrow()[at as usize..at as usize + out.len()]);
            Ok(())
        }
    }

    /// An image of some MiB whose last sector is a second partition table.
    fn image() -> Vec<u8> {
        (0..3 * MIB as u32 / 4 + 128).flat_map(|n| (n.wrapping_mul(2_654_435_761) | 1).to_le_bytes()).collect()
    }

    #[test]
    fn a_disk_whose_power_goes_is_either_whole_or_begun_again() {
        let image = image();
        let read = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&image[at as usize..at as usize + out.len()]);
            Ok(())
        };
        let (mut whole, mut begun, mut untouched) = (0, 0, 0);
        for (calls, keeps) in (0..40).flat_map(|calls| [(calls, 0), (calls, 1)]) {
            // The disk is not larger than the image: both ends are written to.
            let weak = Weak::new(image.len() as u64, calls, keeps);
            let done = install(&read, image.len() as u64, &weak, &|_| ()).is_ok();
            weak.lose_power();
            let disk = weak.disk.borrow();
            match content(&disk[..MIB as usize], &disk[disk.len() - MIB as usize..]) {
                Content::Unfinished => begun += 1,
                Content::Empty => untouched += 1,
                _ => {
                    assert!(*disk == image, "after {calls} calls the disk is neither whole nor begun");
                    whole += 1;
                }
            }
            assert!(!done || *disk == image, "after {calls} calls it was called done");
        }
        assert!(whole > 10 && begun > 10 && untouched > 0, "{whole} whole, {begun} begun, {untouched} untouched");
    }

    #[test]
    fn a_disk_that_does_not_keep_its_bytes_is_found_out() {
        let image = image();
        let read = |at: u64, out: &mut [u8]| {
            out.copy_from_slice(&image[at as usize..at as usize + out.len()]);
            Ok(())
        };
        for stuck in [0, 700, 2 * MIB + 5, image.len() as u64 - 1] {
            let weak = Weak { stuck: Some(stuck), ..Weak::new(image.len() as u64, u32::MAX, 0) };
            let error = install(&read, image.len() as u64, &weak, &|_| ()).unwrap_err();
            assert!(format!("{error:#}").contains("does not keep"), "{error:#}");
        }
    }
}
