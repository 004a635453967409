//! What a VM says on its serial console.

use crate::cache;
use anyhow::{Context, Result};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Stands before what a machine says since it was started: the file goes on over its restarts.
const BEGIN: &str = "--- started by kimg ";
/// The kernel's last words (`kernel/panic.c`).
const PANIC: &str = "Kernel panic - not syncing";

/// Notes that the machine is started now.
pub fn begin(path: &Path) -> Result<()> {
    let mut file = cache::open_private(path)?;
    let note = format!("\n{BEGIN}{} ---\n", jiff::Timestamp::now().strftime("%F %T UTC"));
    file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(note.as_bytes())).context("writing a console's file")
}

/// Why the kernel panicked, where it did so at least twice since the machine was started: an image does not change, so
/// a third time would be no better.
pub fn panics(path: &Path) -> Option<String> {
    let text = tail(path, 1 << 20);
    let mut panics = since_start(&text).lines().filter_map(|line| Some(line.get(line.find(PANIC)?..)?.trim_end()));
    panics.next()?;
    panics.next_back().map(str::to_owned)
}

fn since_start(text: &str) -> &str {
    text.rfind(BEGIN).and_then(|at| text.get(at..)?.split_once('\n')).map_or(text, |(_, since)| since)
}

/// The end of a console, without control sequences.
pub fn tail(path: &Path, bytes: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(text)
    };
    // A VM that has not said anything yet has no console file.
    plain(&String::from_utf8_lossy(&read().unwrap_or_default()))
}

/// The last lines that say something, of those since the machine was started.
pub fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = tail(path, 16 * 1024);
    let lines: Vec<&str> =
        since_start(&text).lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|l| (*l).to_string()).collect()
}

/// The last fingerprint of the node API's certificate that the console shows as `SHA256:…`.
pub fn fingerprint(path: &Path) -> Option<String> {
    let text = tail(path, 1 << 20);
    text.lines().rev().find_map(|line| {
        line.split_whitespace()
            .filter_map(|word| word.strip_prefix("SHA256:"))
            .map(|digits| digits.replace(':', "").to_lowercase())
            .find(|digits| digits.len() == 64 && digits.chars().all(|c| c.is_ascii_hexdigit()))
    })
}

/// Drops escape sequences and carriage returns.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.peek() == Some(&'[') {
                    chars.next();
                    while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
                } else {
                    chars.next();
                }
            }
            '\r' => {}
            c if c.is_control() && c != '\n' && c != '\t' => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_stands_on_the_screen() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("console.log");
        assert!(last_lines(&path, 3).is_empty());
        let digits = "ab".repeat(32);
        let text = format!("\u{1b}[2J\u{1b}[1;1Hhello\r\n\r\nnode API fingerprint: SHA256:{digits}\r\nlast\r\n");
        std::fs::write(&path, text).expect("console");
        assert_eq!(last_lines(&path, 1), ["last"]);
        assert_eq!(tail(&path, 4096).lines().next(), Some("hello"));
        assert_eq!(fingerprint(&path), Some(digits));
        begin(&path).expect("begin");
        assert!(last_lines(&path, 3).is_empty(), "{:?}", last_lines(&path, 3));
    }

    #[test]
    fn a_kernel_that_panics_twice_since_its_start_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("console.log");
        let panic = "[    1.5] Kernel panic - not syncing: System is deadlocked on memory\r\n[    1.6] CPU: 0\r\n";
        let said = |text: &str| {
            let mut file = std::fs::File::options().create(true).append(true).open(&path).expect("console");
            file.write_all(text.as_bytes()).expect("console");
        };
        said(&panic.repeat(2));
        begin(&path).expect("begin");
        said(panic);
        assert_eq!(panics(&path), None);
        said(panic);
        assert_eq!(panics(&path).as_deref(), Some("Kernel panic - not syncing: System is deadlocked on memory"));
    }
}
