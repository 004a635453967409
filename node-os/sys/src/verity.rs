//! A dm-verity device by the device mapper's ioctls.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// What a verity device is made of.
#[derive(Debug, Clone)]
pub struct Verity<'a> {
    /// Name in the device mapper.
    pub name: &'a str,
    /// `MAJOR:MINOR` or path of the data.
    pub data_device: &'a str,
    /// `MAJOR:MINOR` or path of the hash tree.
    pub hash_device: &'a str,
    /// Bytes of a data block and of a hash block.
    pub block_size: u32,
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Block of the hash device at which the tree starts.
    pub hash_start: u64,
    /// Digest, e.g. `sha256`.
    pub algorithm: &'a str,
    /// Root digest in hex.
    pub root_digest: &'a str,
    /// Salt in hex, or `-`.
    pub salt: &'a str,
}

const CONTROL: &str = "/dev/mapper/control";
const HEADER: usize = 312;
const TARGET: usize = 40;
const DM_DEV_CREATE: u32 = 3;
const DM_DEV_SUSPEND: u32 = 6;
const DM_TABLE_LOAD: u32 = 9;
const READ_ONLY_FLAG: u32 = 1;
/// Flags that make the kernel halt rather than hand out a changed block.
const PANIC: &str = " 1 panic_on_corruption";

/// Sets up the device read-only and gives its number as (major, minor); it is `/dev/dm-MINOR`.
/// Reading a changed block fails.
pub fn open(verity: &Verity<'_>) -> io::Result<(u32, u32)> {
    let control = control()?;
    let mut buffer = message(verity.name, 0, None)?;
    call(&control, DM_DEV_CREATE, &mut buffer, "create the verity device")?;
    let device = read_device(&buffer);
    activate(&control, verity, "")?;
    Ok(device)
}

/// From now on the kernel halts when it reads a changed block of the open device: a program of which a part
/// cannot be read would go on in some way or other.
pub fn halt_on_corruption(verity: &Verity<'_>) -> io::Result<()> {
    activate(&control()?, verity, PANIC)
}

fn control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(CONTROL).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot open {CONTROL} (is the module dm-mod loaded?): {error}"))
    })
}

/// Puts a table in the place of the one that the device has, if any.
fn activate(control: &File, verity: &Verity<'_>, on_corruption: &str) -> io::Result<()> {
    let table = table(verity, on_corruption);
    let mut buffer = message(verity.name, READ_ONLY_FLAG, Some((verity_sectors(verity), &table)))?;
    call(control, DM_TABLE_LOAD, &mut buffer, "load the verity table")?;
    let mut buffer = message(verity.name, 0, None)?;
    call(control, DM_DEV_SUSPEND, &mut buffer, "activate the verity device")
}

fn verity_sectors(verity: &Verity<'_>) -> u64 {
    verity.data_blocks.saturating_mul(u64::from(verity.block_size) / 512)
}

fn table(verity: &Verity<'_>, on_corruption: &str) -> String {
    let Verity { data_device, hash_device, block_size, data_blocks, hash_start, algorithm, root_digest, salt, .. } =
        verity;
    format!(
        "1 {data_device} {hash_device} {block_size} {block_size} {data_blocks} {hash_start} \
         {algorithm} {root_digest} {salt}{on_corruption}"
    )
}

/// `struct dm_ioctl`, and behind it one `struct dm_target_spec` with its parameters.
fn message(name: &str, flags: u32, table: Option<(u64, &str)>) -> io::Result<Vec<u8>> {
    if name.len() >= 128 || name.is_empty() {
        return Err(io::Error::other("a device mapper name has 1 to 127 bytes"));
    }
    let payload = table.map_or(0, |(_, text)| TARGET + text.len() + 1).next_multiple_of(8);
    // The kernel writes its answer into the same memory, so some room is left in any case.
    let size = (HEADER + payload).max(4096);
    let mut bytes = vec![0u8; size];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    for (at, value) in [(0, 4u32), (4, 0), (8, 0), (12, size as u32), (16, HEADER as u32), (28, flags)] {
        put(at, &value.to_ne_bytes());
    }
    put(48, name.as_bytes());
    if let Some((sectors, text)) = table {
        put(20, &1u32.to_ne_bytes());
        put(HEADER + 8, &sectors.to_ne_bytes());
        put(HEADER + 20, &(payload as u32).to_ne_bytes());
        put(HEADER + 24, b"verity");
        put(HEADER + TARGET, text.as_bytes());
    }
    Ok(bytes)
}

fn read_device(answer: &[u8]) -> (u32, u32) {
    let raw = answer.get(40..48).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes);
    // The kernel's "huge" encoding of a device number.
    let major = (raw >> 8) & 0xfff;
    let minor = (raw & 0xff) | ((raw >> 12) & 0xfff00);
    (major as u32, minor as u32)
}

fn call(control: &File, number: u32, buffer: &mut [u8], what: &str) -> io::Result<()> {
    // _IOWR(0xfd, number, struct dm_ioctl)
    let request = (3u64 << 30) | ((HEADER as u64) << 16) | (0xfd << 8) | u64::from(number);
    // SAFETY: the buffer is a dm_ioctl whose data_size is the buffer's own length; the kernel stays within it.
    let rc = unsafe { libc::ioctl(control.as_raw_fd(), request, buffer.as_mut_ptr()) };
    if rc == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("cannot {what}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_kernels_order() {
        let verity = Verity {
            name: "root",
            data_device: "254:3",
            hash_device: "254:4",
            block_size: 4096,
            data_blocks: 10,
            hash_start: 1,
            algorithm: "sha256",
            root_digest: "ab",
            salt: "-",
        };
        assert_eq!(table(&verity, ""), "1 254:3 254:4 4096 4096 10 1 sha256 ab -");
        assert_eq!(table(&verity, PANIC), "1 254:3 254:4 4096 4096 10 1 sha256 ab - 1 panic_on_corruption");
        assert_eq!(verity_sectors(&verity), 80);
        let bytes = message("root", 1, Some((80, "x"))).unwrap();
        assert_eq!(&bytes[48..52], b"root");
        assert_eq!(&bytes[312 + 24..312 + 30], b"verity");
        assert_eq!(&bytes[352..354], b"x\0");
    }

    #[test]
    fn device_numbers_are_taken_apart() {
        let mut answer = vec![0u8; 312];
        answer[40..48].copy_from_slice(&(254u64 << 8 | 3).to_ne_bytes());
        assert_eq!(read_device(&answer), (254, 3));
    }
}
