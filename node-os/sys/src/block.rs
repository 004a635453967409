//! Block devices: size, telling the kernel that a partition became larger, and reading what is really there.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;

const BLKFLSBUF: u64 = 0x1261;
const BLKPG: u64 = 0x1269;
const BLKPG_RESIZE_PARTITION: i32 = 3;

#[repr(C)]
struct Argument {
    op: i32,
    flags: i32,
    length: i32,
    data: *mut Partition,
}

#[repr(C)]
struct Partition {
    start: i64,
    length: i64,
    number: i32,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// Bytes of a device or file.
pub fn size(device: &mut File) -> io::Result<u64> {
    device.seek(SeekFrom::End(0))
}

/// Writes out what the kernel holds of a disk in memory, and forgets it: the next read asks the disk itself.
pub fn forget(disk: &File) -> io::Result<()> {
    disk.sync_all()?;
    // SAFETY: the request takes no argument.
    if unsafe { libc::ioctl(disk.as_raw_fd(), BLKFLSBUF, 0) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Tells the kernel the new bounds (in bytes) of a partition of `disk`; works while other partitions are in use.
pub fn resize_partition(disk: &File, number: u32, start: u64, length: u64) -> io::Result<()> {
    let out_of_range = || io::Error::other("a partition's bounds are beyond what the kernel takes");
    let mut partition = Partition {
        start: i64::try_from(start).map_err(|_| out_of_range())?,
        length: i64::try_from(length).map_err(|_| out_of_range())?,
        number: i32::try_from(number).map_err(|_| out_of_range())?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let mut argument = Argument {
        op: BLKPG_RESIZE_PARTITION,
        flags: 0,
        length: size_of::<Partition>() as i32,
        data: &raw mut partition,
    };
    // SAFETY: both structures have the kernel's layout and live until the call returns.
    let rc = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw mut argument) };
    if rc == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(io::Error::new(error.kind(), format!("the kernel did not take the new size of partition {number}: {error}")))
}
