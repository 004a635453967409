//! Lines of logs: when each was written, and how it is shown.

/// Longer lines are shown in parts.
const LONGEST: usize = 64 << 10;

/// A line of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Microseconds since 1970; None while nothing in the log has said a time.
    pub at: Option<i64>,
    /// Without its end.
    pub text: String,
}

/// Makes lines of what comes of one log, piece by piece.
#[derive(Debug, Default)]
pub struct Reader {
    /// When the node's kernel began to count, in microseconds since 1970.
    pub booted: i64,
    last: Option<i64>,
    partial: Vec<u8>,
}

impl Reader {
    /// For a log of a node that booted then.
    pub fn new(booted: i64) -> Reader {
        Reader { booted, ..Reader::default() }
    }

    /// The lines that are complete with this.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Line> {
        self.partial.extend_from_slice(bytes);
        let mut lines = Vec::new();
        let mut rest = self.partial.as_slice();
        loop {
            let (line, after) = match rest.iter().take(LONGEST).position(|b| *b == b'\n') {
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None if rest.len() >= LONGEST => rest.split_at(LONGEST),
                None => break,
            };
            lines.push(line_of(line, self.booted, &mut self.last));
            rest = after;
        }
        self.partial = rest.to_vec();
        lines
    }

    /// What is left without an end.
    pub fn end(&mut self) -> Option<Line> {
        let rest = std::mem::take(&mut self.partial);
        (!rest.is_empty()).then(|| line_of(&rest, self.booted, &mut self.last))
    }
}

/// A line without a time of its own belongs to the one before.
fn line_of(bytes: &[u8], booted: i64, last: &mut Option<i64>) -> Line {
    let text = String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned();
    let (at, text) = match kernel(&text) {
        Some((since, said)) => {
            let at = booted.saturating_add(since);
            (Some(at), format!("{} {said}", shown(at)))
        }
        None => (node_api::log_time(&text), text),
    };
    *last = at.or(*last);
    Line { at: *last, text }
}

/// `[    1.500000] text` of the kernel: microseconds since it began, and the text.
fn kernel(text: &str) -> Option<(i64, &str)> {
    let (time, said) = text.strip_prefix('[')?.split_once("] ")?;
    let (seconds, micros) = time.trim_start().split_once('.')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if micros.len() != 6 || !digits(micros) || !digits(seconds) {
        return None;
    }
    Some((seconds.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)?, said))
}

fn shown(at: i64) -> String {
    jiff::Timestamp::from_microsecond(at).map_or_else(|_| "-".into(), |at| format!("{at:.6}"))
}

/// A text that does nothing to a terminal but stand on it: what moves the cursor, changes colours or turns the
/// direction of writing is spelled out.
pub fn harmless(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\t' && (c.is_control() || turns(c)) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A time span as people write it: `90s`, `10m`, `1h30m`, `2d`.
pub fn span(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("`{text}` is no time span; write it as 90s, 10m, 1h30m or 2d");
    let (mut seconds, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).filter(|end| *end > 0).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(end);
        let unit = match after.as_bytes().first() {
            Some(b's') => 1,
            Some(b'm') => 60,
            Some(b'h') => 3600,
            Some(b'd') => 86_400,
            _ => return Err(wrong()),
        };
        let part = number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
        seconds = part.and_then(|part| seconds.checked_add(part)).ok_or_else(wrong)?;
        rest = &after[1..];
    }
    // A thousand years: beyond what clocks count.
    if text.is_empty() || seconds > 31_557_600_000 { Err(wrong()) } else { Ok(std::time::Duration::from_secs(seconds)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_764_201_600_000_000;

    #[test]
    fn kernel_lines_get_the_time_of_the_wall() {
        let mut reader = Reader::new(T);
        let lines = reader.feed(b"[    1.500000] Linux version 6.12\n[ x] y\n");
        assert_eq!(
            lines[0],
            Line { at: Some(T + 1_500_000), text: "2025-11-27T00:00:01.500000Z Linux version 6.12".into() }
        );
        assert_eq!(lines[1], Line { at: Some(T + 1_500_000), text: "[ x] y".into() });
        assert_eq!(kernel("[99999999999999999999.000000] x"), None);
    }

    #[test]
    fn lines_come_in_pieces() {
        let mut reader = Reader::new(0);
        assert_eq!(
            reader.feed(b"no time yet\n2025-11-27T00:00:00Z on"),
            [Line { at: None, text: "no time yet".into() }]
        );
        let lines = reader.feed(b"e\r\n  two\nthr\xffe");
        let texts: Vec<&str> = lines.iter().map(|l| l.text.as_str()).collect();
        assert_eq!(texts, ["2025-11-27T00:00:00Z one", "  two"]);
        assert_eq!(lines[1].at, Some(T), "what follows belongs to it");
        assert_eq!(reader.end().unwrap().text, "thr\u{fffd}e");
        assert_eq!(reader.end(), None);
        let long = reader.feed(&vec![b'x'; LONGEST * 2 + 5]);
        assert_eq!((long.len(), long[0].text.len()), (2, LONGEST));
    }

    #[test]
    fn a_terminal_obeys_no_log() {
        for (text, expected) in [
            ("a\tb ü", "a\tb ü"),
            ("\u{1b}]0;title\u{7}\u{1b}[2J", "\\u{1b}]0;title\\u{7}\\u{1b}[2J"),
            ("\u{9b}31m\rover", "\\u{9b}31m\\rover"),
            ("\u{202e}gpj", "\\u{202e}gpj"),
        ] {
            assert_eq!(harmless(text), expected);
        }
    }

    #[test]
    fn spans() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("0s", 0)] {
            assert_eq!(span(text).map(|s| s.as_secs()), Ok(seconds), "{text}");
        }
        for bad in ["", "10", "m", "-5m", "5 m", "1.5h", "10m5", "99999999999999999999s", "999999999999d"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }
}
