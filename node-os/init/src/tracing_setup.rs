//! PID 1's own messages: to the kernel log, which shows them on the consoles, and by it to the node API.

use crate::console::printable;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Writes each event as one record of the kernel log.
#[derive(Debug)]
struct KernelLog {
    file: Option<File>,
}

struct Record<'a> {
    level: u8,
    file: Option<&'a File>,
}

impl Write for Record<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let line = record(self.level, text.trim());
        match self.file {
            // The kernel cuts a record at about a kilobyte; one write is one record.
            Some(mut file) => file.write_all(line.get(..line.floor_char_boundary(950)).unwrap_or(&line).as_bytes())?,
            None => writeln!(io::stderr(), "{line}")?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line, whatever a sentence quotes: the kernel writes it to the consoles as it is.
fn record(level: u8, text: &str) -> String {
    let text: String = printable(text).collect();
    format!("<{level}>kimg: {text}")
}

impl<'a> MakeWriter<'a> for KernelLog {
    type Writer = Record<'a>;

    fn make_writer(&'a self) -> Record<'a> {
        Record { level: 6, file: self.file.as_ref() }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Record<'a> {
        // Facility 3 (daemons) in the upper bits, so that the lines can be told from the kernel's own.
        let level = match *meta.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            _ => 6,
        };
        Record { level: (3 << 3) | level, file: self.file.as_ref() }
    }
}

/// Sets up tracing for this process.
pub fn start() {
    // Without this the kernel drops lines when several come together; a failure only loses some.
    let _ = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
    let file = OpenOptions::new().write(true).open("/dev/kmsg").ok();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(KernelLog { file })
        .with_ansi(false)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_max_level(Level::INFO)
        .finish();
    // A second call would fail; there is one.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Sets up tracing for a program that a service runs: its standard error is its log.
pub fn to_standard_error() {
    let subscriber = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false)
        .with_max_level(Level::INFO)
        .finish();
    // A second call would fail; there is one.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_record_is_one_line_that_gives_no_orders() {
        let line = super::record(4, "it says \"\x1b[2J\r\u{9b}m\"\n<0>kernel: all is well");
        assert_eq!(line, "<4>kimg: it says \"[2Jm\" <0>kernel: all is well");
    }
}
