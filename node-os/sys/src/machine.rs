//! The machine as a whole: power, clocks, host name, console.

use rustix::system::RebootCommand;
use rustix::time::{ClockId, Timespec};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// What the machine does after the last service has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Start again.
    Reboot,
    /// Switch off.
    PowerOff,
}

/// Flushes the disks and leaves. Returns only when the kernel refuses.
pub fn end(ending: Ending) -> io::Result<()> {
    rustix::fs::sync();
    let command = match ending {
        Ending::Reboot => RebootCommand::Restart,
        Ending::PowerOff => RebootCommand::PowerOff,
    };
    Ok(rustix::system::reboot(command)?)
}

/// Ctrl-Alt-Del becomes SIGINT to PID 1 instead of an instant restart.
pub fn ctrl_alt_del_is_a_signal() -> io::Result<()> {
    Ok(rustix::system::reboot(RebootCommand::CadOff)?)
}

/// Time since power-on, sleep included.
pub fn uptime() -> Duration {
    from_timespec(rustix::time::clock_gettime(ClockId::Boottime))
}

/// Sets the wall clock to `since_1970`.
pub fn set_clock(since_1970: Duration) -> io::Result<()> {
    let seconds = i64::try_from(since_1970.as_secs()).map_err(|_| io::Error::other("a time beyond all clocks"))?;
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(since_1970.subsec_nanos()) };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

fn from_timespec(time: Timespec) -> Duration {
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Sets the host name.
pub fn set_host_name(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

#[repr(C)]
#[derive(Default)]
struct RtcTime {
    second: i32,
    minute: i32,
    hour: i32,
    day: i32,
    month: i32,
    year: i32,
    week_day: i32,
    year_day: i32,
    daylight_saving: i32,
}

/// Writes UTC to the hardware clock: year, month (1-12), day, hour, minute, second.
pub fn set_rtc(rtc: &File, date: (i32, i32, i32), time: (i32, i32, i32)) -> io::Result<()> {
    let value = RtcTime {
        second: time.2,
        minute: time.1,
        hour: time.0,
        day: date.2,
        month: date.1 - 1,
        year: date.0 - 1900,
        ..RtcTime::default()
    };
    // _IOW('p', 0x0a, struct rtc_time)
    let request = (1u64 << 30) | ((size_of::<RtcTime>() as u64) << 16) | (u64::from(b'p') << 8) | 0x0a;
    // SAFETY: the structure has the kernel's layout and outlives the call.
    if unsafe { libc::ioctl(rtc.as_raw_fd(), request, &raw const value) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
