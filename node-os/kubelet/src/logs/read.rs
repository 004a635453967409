//! Reading container logs. The runtime writes lines `TIME STREAM TAG TEXT`, where tag P means
//! that the line goes on in the next record.

use jiff::Timestamp;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What a client asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// Go on as the container writes.
    pub follow: bool,
    /// Only so many lines from the end.
    pub tail: Option<u64>,
    /// Only lines from then on.
    pub since: Option<Timestamp>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// At most so many bytes.
    pub limit: Option<u64>,
    /// Only `stdout` or `stderr`.
    pub stream: Option<String>,
}

/// One record of a log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// When it was written, as the runtime wrote it.
    pub time: &'a str,
    /// stdout or stderr.
    pub stream: &'a str,
    /// The line goes on in the next record.
    pub partial: bool,
    /// Text without the line's end.
    pub text: &'a [u8],
}

/// Reads one record.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tag = parts.next()?;
    let text = parts.next().unwrap_or_default();
    matches!(stream, "stdout" | "stderr").then_some(Record { time, stream, partial: tag.first() == Some(&b'P'), text })
}

/// Turns records into what the client sees.
#[derive(Debug)]
pub struct Formatter {
    wish: Wish,
    written: u64,
    at_line_start: bool,
}

impl Formatter {
    /// A formatter for one answer.
    pub fn new(wish: Wish) -> Formatter {
        Formatter { wish, written: 0, at_line_start: true }
    }

    /// The limit is reached.
    pub fn full(&self) -> bool {
        self.wish.limit.is_some_and(|limit| self.written >= limit)
    }

    /// Adds a record to `out`.
    pub fn add(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = parse(line) else { return };
        if self.wish.stream.as_deref().is_some_and(|s| s != record.stream) {
            return;
        }
        if let Some(since) = self.wish.since
            && record.time.parse::<Timestamp>().is_ok_and(|t| t < since)
        {
            return;
        }
        let before = out.len();
        if self.wish.timestamps && self.at_line_start {
            out.extend_from_slice(record.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(record.text);
        if !record.partial {
            out.push(b'\n');
        }
        self.at_line_start = !record.partial;
        if let Some(limit) = self.wish.limit {
            let room = limit.saturating_sub(self.written) as usize;
            out.truncate(before + room.min(out.len() - before));
        }
        self.written += (out.len() - before) as u64;
    }
}

/// Where the last `lines` complete lines of a file begin.
pub fn tail_offset(file: &mut File, lines: u64) -> std::io::Result<u64> {
    const BLOCK: u64 = 16 << 10;
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut position = end;
    let mut found = 0;
    let mut buffer = vec![0; BLOCK as usize];
    while position > 0 {
        let size = BLOCK.min(position);
        position -= size;
        file.seek(SeekFrom::Start(position))?;
        let block = &mut buffer[..size as usize];
        file.read_exact(block)?;
        for (at, byte) in block.iter().enumerate().rev() {
            // The newline that ends the file ends the last line; it does not begin one.
            if *byte == b'\n' && position + at as u64 + 1 != end {
                found += 1;
                if found == lines {
                    return Ok(position + at as u64 + 1);
                }
            }
        }
    }
    Ok(0)
}

/// The rotated files before `current`, oldest first, then `current`: those that are plain text.
pub fn history(current: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (current.parent(), current.file_name().and_then(|n| n.to_str())) else {
        return vec![current.to_path_buf()];
    };
    let prefix = format!("{name}.");
    let mut old: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)))
        .map(|e| e.path())
        .collect();
    old.sort();
    old.push(current.to_path_buf());
    old
}

/// The last lines of a log as plain text, at most so many bytes: for a failed container's last words.
pub fn last_lines(path: &str, lines: u64, bytes: usize) -> String {
    let Ok(mut file) = File::open(path) else { return String::new() };
    let Ok(offset) = tail_offset(&mut file, lines) else { return String::new() };
    if file.seek(SeekFrom::Start(offset)).is_err() {
        return String::new();
    }
    let mut formatter = Formatter::new(Wish::default());
    let mut out = Vec::new();
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        formatter.add(&line, &mut out);
        line.clear();
        if out.len() > 4 * bytes {
            out.drain(..out.len() - 2 * bytes);
        }
    }
    let start = out.len().saturating_sub(bytes);
    String::from_utf8_lossy(&out[start..]).into_owned()
}

/// The lines to begin with when only the last `tail` are wanted, over several files.
pub fn tail_records(files: &[PathBuf], tail: u64) -> std::io::Result<VecDeque<(PathBuf, u64)>> {
    let mut list = VecDeque::new();
    let mut left = tail;
    for path in files.iter().rev() {
        let Ok(mut file) = File::open(path) else { continue };
        let offset = tail_offset(&mut file, left)?;
        list.push_front((path.clone(), offset));
        if offset > 0 || left == 0 {
            break;
        }
        file.seek(SeekFrom::Start(0))?;
        let count = BufReader::new(file).split(b'\n').count() as u64;
        left = left.saturating_sub(count);
        if left == 0 {
            break;
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LOG: &[&str] = &[
        "2026-01-01T00:00:00.000000000Z stdout F one\n",
        "2026-01-01T00:00:01.000000000Z stderr P tw\n",
        "2026-01-01T00:00:02.000000000Z stderr F o\n",
        "2026-01-01T00:00:03.000000000Z stdout F three\n",
    ];

    fn shown(wish: Wish) -> String {
        let mut formatter = Formatter::new(wish);
        let mut out = Vec::new();
        for line in LOG {
            formatter.add(line.as_bytes(), &mut out);
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn wishes_are_honoured() {
        assert_eq!(shown(Wish::default()), "one\ntwo\nthree\n");
        assert_eq!(shown(Wish { stream: Some("stderr".into()), ..Default::default() }), "two\n");
        assert_eq!(shown(Wish { limit: Some(6), ..Default::default() }), "one\ntw");
        let since = Some("2026-01-01T00:00:03Z".parse().unwrap());
        assert_eq!(
            shown(Wish { since, timestamps: true, ..Default::default() }),
            "2026-01-01T00:00:03.000000000Z three\n"
        );
    }

    #[test]
    fn tails_reach_over_rotated_files() {
        let directory = tempfile::tempdir().unwrap();
        let current = directory.path().join("0.log");
        let old = directory.path().join("0.log.20260101-000000");
        File::create(&old).unwrap().write_all(LOG[..3].concat().as_bytes()).unwrap();
        File::create(&current).unwrap().write_all(LOG[3].as_bytes()).unwrap();
        let files = history(&current);
        assert_eq!(files, [old.clone(), current.clone()]);
        for (tail, expected) in [
            (1, vec![(current.clone(), 0)]),
            (2, vec![(old.clone(), (LOG[0].len() + LOG[1].len()) as u64), (current.clone(), 0)]),
            (9, vec![(old.clone(), 0), (current.clone(), 0)]),
        ] {
            assert_eq!(Vec::from(tail_records(&files, tail).unwrap()), expected, "{tail}");
        }
        assert_eq!(last_lines(old.to_str().unwrap(), 80, 2), "o\n");
    }
}
