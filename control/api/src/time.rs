//! Times and durations as the API and its printers write them. All arithmetic is
//! on seconds (and nanoseconds) since 1970; the clock is always an argument.

/// A moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    pub seconds: i64,
    pub nanos: u32,
}

fn days_from_civil(y: i64, m: i64, d: i64) -> i64 {
    let y = if m <= 2 { y - 1 } else { y };
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let doy = (153 * (m + if m > 2 { -3 } else { 9 }) + 2) / 5 + d - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

fn civil_from_days(z: i64) -> (i64, i64, i64) {
    let z = z + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z - era * 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let m = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(m <= 2), m, doy - (153 * mp + 2) / 5 + 1)
}

/// Parses RFC 3339.
pub fn parse(s: &str) -> Option<Time> {
    let b = s.as_bytes();
    if b.len() < 20 || b[4] != b'-' || b[7] != b'-' || !matches!(b[10], b'T' | b't') || b[13] != b':' || b[16] != b':' {
        return None;
    }
    let num = |r: std::ops::Range<usize>| -> Option<i64> {
        let t = s.get(r)?;
        if t.bytes().all(|c| c.is_ascii_digit()) { t.parse().ok() } else { None }
    };
    let (y, mo, d, h, mi, sec) = (num(0..4)?, num(5..7)?, num(8..10)?, num(11..13)?, num(14..16)?, num(17..19)?);
    if !(1..=12).contains(&mo) || !(1..=31).contains(&d) || h > 23 || mi > 59 || sec > 60 {
        return None;
    }
    let mut at = 19;
    let mut nanos = 0;
    if b[at] == b'.' {
        let start = at + 1;
        at = start;
        while at < b.len() && b[at].is_ascii_digit() {
            at += 1;
        }
        if at == start {
            return None;
        }
        let digits: String = s[start..at].chars().chain("000000000".chars()).take(9).collect();
        nanos = digits.parse().ok()?;
    }
    let offset = match b.get(at)? {
        b'Z' | b'z' if at + 1 == b.len() => 0,
        sign @ (b'+' | b'-') if b.len() == at + 6 && b[at + 3] == b':' => {
            let o = num(at + 1..at + 3)? * 3600 + num(at + 4..at + 6)? * 60;
            if *sign == b'+' { o } else { -o }
        }
        _ => return None,
    };
    Some(Time { seconds: days_from_civil(y, mo, d) * 86_400 + h * 3600 + mi * 60 + sec - offset, nanos })
}

/// `2026-01-02T03:04:05Z`.
pub fn format(seconds: i64) -> String {
    let (y, m, d) = civil_from_days(seconds.div_euclid(86_400));
    let s = seconds.rem_euclid(86_400);
    format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// `2026-01-02T03:04:05.000000Z`.
pub fn format_micro(seconds: i64, nanos: u32) -> String {
    let mut s = format(seconds);
    s.pop();
    format!("{s}.{:06}Z", nanos / 1000)
}

/// A duration as the AGE column shows it.
pub fn human(seconds: i64) -> String {
    const M: i64 = 60;
    const H: i64 = 3600;
    const D: i64 = 86_400;
    const Y: i64 = 365 * D;
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 2 * M => format!("{s}s"),
        s if s < 10 * M => pair(s / M, "m", s % M, "s"),
        s if s < 3 * H => format!("{}m", s / M),
        s if s < 8 * H => pair(s / H, "h", s / M % 60, "m"),
        s if s < 2 * D => format!("{}h", s / H),
        s if s < 8 * D => pair(s / D, "d", s / H % 24, "h"),
        s if s < 2 * Y => format!("{}d", s / D),
        s if s < 8 * Y => pair(s / Y, "y", s / D % 365, "d"),
        s => format!("{}y", s / Y),
    }
}

fn pair(a: i64, ua: &str, b: i64, ub: &str) -> String {
    if b == 0 { format!("{a}{ua}") } else { format!("{a}{ua}{b}{ub}") }
}

/// The age of an RFC 3339 time at `now` (seconds since 1970).
pub fn age(timestamp: &str, now: i64) -> String {
    match parse(timestamp) {
        Some(t) => human(now - t.seconds),
        None => "<unknown>".into(),
    }
}

/// Parses a Go duration (`1h2m3.5s`) into nanoseconds.
pub fn parse_duration(s: &str) -> Option<i64> {
    let (neg, mut rest) = match s.strip_prefix('-') {
        Some(r) => (true, r),
        None => (false, s.strip_prefix('+').unwrap_or(s)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0f64;
    while !rest.is_empty() {
        let n = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..n].parse().ok()?;
        rest = &rest[n..];
        let u = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..u] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += value * unit;
        rest = &rest[u..];
    }
    if total > i64::MAX as f64 {
        return None;
    }
    Some(if neg { -(total as i64) } else { total as i64 })
}

/// Formats nanoseconds as Go does.
pub fn format_duration(nanos: i64) -> String {
    if nanos == 0 {
        return "0s".into();
    }
    let sign = if nanos < 0 { "-" } else { "" };
    let n = nanos.unsigned_abs();
    let frac = |v: u64, unit: u64| -> String {
        let f = format!("{}", v as f64 / unit as f64);
        f
    };
    let text = match n {
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => format!("{}µs", frac(n, 1_000)),
        n if n < 1_000_000_000 => format!("{}ms", frac(n, 1_000_000)),
        n => {
            let total = n / 1_000_000_000;
            let (h, m) = (total / 3600, total / 60 % 60);
            let s = frac(n - (h * 3600 + m * 60) * 1_000_000_000, 1_000_000_000);
            match (h, m) {
                (0, 0) => format!("{s}s"),
                (0, m) => format!("{m}m{s}s"),
                (h, m) => format!("{h}h{m}m{s}s"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_formats() {
        for s in ["1970-01-01T00:00:00Z", "2026-11-20T19:07:00Z", "2000-02-29T23:59:59Z"] {
            assert_eq!(format(parse(s).unwrap().seconds), s);
        }
        let t = parse("2026-11-20T19:07:00.123456+02:00").unwrap();
        assert_eq!(format_micro(t.seconds, t.nanos), "2026-11-20T17:07:00.123456Z");
        assert!(parse("2026-11-20").is_none() && parse("x").is_none());
    }

    #[test]
    fn ages() {
        for (s, want) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (86_400, "24h"),
            (2 * 86_400, "2d"),
            (2 * 86_400 + 3600, "2d1h"),
            (30 * 86_400, "30d"),
            (-5, "<invalid>"),
        ] {
            assert_eq!(human(s), want);
        }
    }

    #[test]
    fn durations() {
        for (s, ns) in [
            ("1h2m3s", 3_723_000_000_000i64),
            ("15s", 15_000_000_000),
            ("1m0s", 60_000_000_000),
            ("100ms", 100_000_000),
        ] {
            assert_eq!(parse_duration(s), Some(ns));
            assert_eq!(format_duration(ns), s);
        }
        assert_eq!(parse_duration("x"), None);
        assert_eq!(parse_duration("5"), None);
    }
}
