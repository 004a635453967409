//! The kernel's log, which also holds PID 1's own messages.

use crate::logs::Logs;
use crate::machine::now_ms;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// Kernel messages have no descriptor to wait on that tokio knows; a look so often is cheap.
const LOOK: Duration = Duration::from_millis(500);
const RECORD: usize = 8192;
/// What begins so is PID 1's.
const OURS: &str = "kimg: ";

/// From its beginning.
pub(crate) fn open() -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")
}

/// A record: `LEVEL,SEQUENCE,MICROSECONDS,…;text`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    level: u8,
    micros: u64,
    text: &'a str,
}

impl<'a> Record<'a> {
    pub(crate) fn parse(record: &'a str) -> Option<Record<'a>> {
        let (head, body) = record.split_once(';')?;
        let mut fields = head.split(',');
        // Above the level's three bits is whose message it is.
        let level = u8::try_from(fields.next()?.parse::<u32>().ok()? & 7).ok()?;
        let micros = fields.nth(1)?.parse().ok()?;
        Some(Record { level, micros, text: body.lines().next().unwrap_or_default() })
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.text.starts_with(OURS)
    }

    /// `[seconds] text`, as dmesg has it.
    pub(crate) fn shown(&self) -> String {
        format!("[{:5}.{:06}] {}\n", self.micros / 1_000_000, self.micros % 1_000_000, self.text)
    }

    /// By the clock of the wall, as services write.
    fn dated(&self, booted_micros: i64) -> String {
        let level = match self.level {
            0..=3 => "ERROR",
            4 => "WARN",
            5 | 6 => "INFO",
            _ => "DEBUG",
        };
        let at = booted_micros.saturating_add(i64::try_from(self.micros).unwrap_or(i64::MAX));
        let at = jiff::Timestamp::from_microsecond(at).unwrap_or_default();
        format!("{at:.6} {level:>5} {}\n", self.text.strip_prefix(OURS).unwrap_or(self.text))
    }
}

/// Takes all records that are there; one read gives one.
pub(crate) fn each(file: &mut File, mut take: impl FnMut(&Record<'_>)) {
    let mut bytes = vec![0u8; RECORD];
    loop {
        match file.read(&mut bytes) {
            Ok(0) => return,
            Ok(length) => {
                let line = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
                Record::parse(&line).iter().for_each(&mut take);
            }
            // EPIPE: the kernel overwrote what would have come next; the read after it goes on behind the gap.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return,
        }
    }
}

/// Keeps it among the other logs, as `kernel` and `init`, from this boot's beginning on: what is sent away is taken from
/// files, which outlive the boot.
pub(crate) async fn keep(logs: Logs) {
    let mut file = match open() {
        Ok(file) => file,
        Err(error) => return tracing::error!("the kernel's log is not kept: /dev/kmsg: {error}"),
    };
    let (kernel, init) = (logs.open("kernel"), logs.open("init"));
    loop {
        let now = jiff::Timestamp::now().as_microsecond();
        let booted = now.saturating_sub(i64::try_from(now_ms().saturating_mul(1000)).unwrap_or(i64::MAX));
        each(&mut file, |record| {
            let log = if record.is_ours() { &init } else { &kernel };
            logs.write(log, record.dated(booted).as_bytes());
        });
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read() {
        let record = Record::parse("6,1,1500000,-;hello\n SUBSYSTEM=x\n").unwrap();
        assert_eq!((record.shown().as_str(), record.is_ours()), ("[    1.500000] hello\n", false));
        assert_eq!(record.dated(1_764_201_600_000_000), "2025-11-27T00:00:01.500000Z  INFO hello\n");
        let ours = Record::parse("28,2,0,-;kimg: slow\n").unwrap();
        assert_eq!((ours.is_ours(), ours.dated(0).as_str()), (true, "1970-01-01T00:00:00.000000Z  WARN slow\n"));
        for junk in ["junk", "6,1;x", "x,1,2;y", ""] {
            assert_eq!(Record::parse(junk), None, "{junk}");
        }
    }
}
