//! What a VM says on its serial console.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

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

/// The last lines that say something.
pub fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = tail(path, 16 * 1024);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
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
    }
}
