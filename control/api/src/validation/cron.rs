//! Schedules of cron jobs, and the names of time zones.

/// Why a schedule cannot be read, in the words of the library that reads it upstream.
pub(crate) fn schedule_error(schedule: &str) -> Option<String> {
    let mut rest = schedule;
    if rest.starts_with("TZ=") || rest.starts_with("CRON_TZ=") {
        rest = rest.split_once(' ').map_or("", |(_, r)| r).trim();
    }
    if let Some(descriptor) = rest.strip_prefix('@') {
        return match descriptor {
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly" => None,
            d if d.starts_with("every ") => match crate::time::parse_duration(&d[6..]) {
                Some(_) => None,
                None => Some(format!("failed to parse duration @{d}: time: invalid duration {:?}", &d[6..])),
            },
            d => Some(format!("unrecognized descriptor: @{d}")),
        };
    }
    if rest.is_empty() {
        return Some("empty spec string".into());
    }
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let bounds: [(u64, u64, &[&str], u64); 5] =
        [(0, 59, &[], 0), (0, 23, &[], 0), (1, 31, &[], 0), (1, 12, MONTHS, 1), (0, 6, DAYS, 0)];
    fields.iter().zip(bounds).find_map(|(f, b)| f.split(',').find_map(|part| range_error(part, b)))
}

type Bounds<'a> = (u64, u64, &'a [&'a str], u64);

fn range_error(expression: &str, (min, max, names, first): Bounds<'_>) -> Option<String> {
    let number = |s: &str| -> Result<u64, String> {
        if let Some(i) = names.iter().position(|n| n.eq_ignore_ascii_case(s)) {
            return Ok(i as u64 + first);
        }
        match s.parse::<i64>() {
            Ok(n) if n < 0 => Err(format!("negative number ({n}) not allowed: {s}")),
            Ok(n) => Ok(n as u64),
            Err(_) => Err(format!("failed to parse int from {s}: strconv.Atoi: parsing {s:?}: invalid syntax")),
        }
    };
    let by_step: Vec<&str> = expression.split('/').collect();
    let low_high: Vec<&str> = by_step[0].split('-').collect();
    let single = low_high.len() == 1;
    let parsed = || -> Result<(u64, u64, u64), String> {
        let (start, mut end) = if matches!(low_high[0], "*" | "?") {
            (min, max)
        } else {
            let start = number(low_high[0])?;
            match low_high.len() {
                1 => (start, start),
                2 => (start, number(low_high[1])?),
                _ => return Err(format!("too many hyphens: {expression}")),
            }
        };
        let step = match by_step.len() {
            1 => 1,
            2 => {
                let step = number(by_step[1])?;
                if single {
                    end = max;
                }
                step
            }
            _ => return Err(format!("too many slashes: {expression}")),
        };
        Ok((start, end, step))
    };
    let (start, end, step) = match parsed() {
        Ok(parts) => parts,
        Err(text) => return Some(text),
    };
    if start < min {
        Some(format!("beginning of range ({start}) below minimum ({min}): {expression}"))
    } else if end > max {
        Some(format!("end of range ({end}) above maximum ({max}): {expression}"))
    } else if start > end {
        Some(format!("beginning of range ({start}) beyond end of range ({end}): {expression}"))
    } else if step == 0 {
        Some(format!("step of range should be a positive number: {expression}"))
    } else {
        None
    }
}

/// Why a time zone's name is none.
pub(crate) fn time_zone_error(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("timeZone must be nil or non-empty string".into());
    }
    let part = |p: &str| {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b'+');
        !matches!(p, "." | "..") && !p.starts_with('-') && (1..=14).contains(&p.len()) && p.bytes().all(plain)
    };
    if !name.split('/').all(part) {
        return Some(format!("unknown time zone {name}"));
    }
    if name.eq_ignore_ascii_case("local") {
        return Some("timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".into());
    }
    name.parse::<chrono_tz::Tz>().is_err().then(|| format!("unknown time zone {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-6 1,15 jan-mar MON", "@daily", "@every 1h30m", "? ? ? ? ?", "0 0 31 12 6"] {
            assert_eq!(schedule_error(good), None, "{good}");
        }
        for (bad, text) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("@often", "unrecognized descriptor: @often"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
        ] {
            assert_eq!(schedule_error(bad).as_deref(), Some(text));
        }
    }

    #[test]
    fn zones() {
        for good in ["Etc/UTC", "Europe/Vienna", "UTC", "Etc/GMT+5"] {
            assert_eq!(time_zone_error(good), None, "{good}");
        }
        for bad in ["", "Local", "Europe/", "a b", "-x", "..", "Mars/Olympus"] {
            assert!(time_zone_error(bad).is_some(), "{bad}");
        }
    }
}
