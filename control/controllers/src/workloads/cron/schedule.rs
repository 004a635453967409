//! Cron schedules: five fields, names, ranges, steps, and `@daily` and its like. Pure.

use anyhow::{Context, bail};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

/// A schedule that matches nothing for this long matches nothing at all.
const HORIZON_YEARS: i16 = 5;

/// Bits of the values that match, field by field.
#[derive(Debug, PartialEq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// A day that either field names matches, where both are restricted.
    any_day: bool,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

impl Schedule {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let text = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            bail!("schedule {text:?} needs five fields: minute, hour, day of month, month, day of week");
        };
        let star = |field: &str| field.starts_with('*') || field == "?";
        let mut week = parse_field(weekdays, 0, 7, &WEEKDAYS, 0).context("day of week")?;
        // Seven is Sunday too.
        week |= week >> 7 & 1;
        Ok(Self {
            minutes: parse_field(minutes, 0, 59, &[], 0).context("minute")?,
            hours: parse_field(hours, 0, 23, &[], 0).context("hour")?,
            days: parse_field(days, 1, 31, &[], 0).context("day of month")?,
            months: parse_field(months, 1, 12, &MONTHS, 1).context("month")?,
            weekdays: week & 0x7f,
            any_day: !star(days) && !star(weekdays),
        })
    }

    fn matches_day(&self, at: &Zoned) -> bool {
        let day = self.days >> at.day() & 1 == 1;
        let weekday = self.weekdays >> at.weekday().to_sunday_zero_offset() & 1 == 1;
        if self.any_day { day || weekday } else { day && weekday }
    }

    /// The first matching minute after that time; none where nothing ever matches.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let start = after.to_zoned(zone.clone());
        let mut at = start.with().second(0).subsec_nanosecond(0).build().ok()?.checked_add(1.minute()).ok()?;
        let last = start.year() + HORIZON_YEARS;
        while at.year() <= last {
            let midnight = |z: &Zoned| z.with().hour(0).minute(0).build().ok();
            if self.months >> at.month() & 1 == 0 {
                at = midnight(&at)?.with().day(1).build().ok()?.checked_add(1.month()).ok()?;
            } else if !self.matches_day(&at) {
                at = midnight(&at)?.checked_add(1.day()).ok()?;
            } else if self.hours >> at.hour() & 1 == 0 {
                at = at.with().minute(0).build().ok()?.checked_add(1.hour()).ok()?;
            } else if self.minutes >> at.minute() & 1 == 0 {
                at = at.checked_add(1.minute()).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }
}

fn parse_field(text: &str, least: u32, most: u32, names: &[&str], base: u32) -> anyhow::Result<u64> {
    let number = |part: &str| -> anyhow::Result<u32> {
        let lower = part.to_ascii_lowercase();
        if let Some(at) = names.iter().position(|n| *n == lower) {
            return Ok(at as u32 + base);
        }
        part.parse().with_context(|| format!("{part:?} is no number"))
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (part, None),
        };
        let (first, last) = match range.split_once('-') {
            _ if range == "*" || range == "?" => (least, most),
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(range)?, if step.is_some() { most } else { number(range)? }),
        };
        let step = step.unwrap_or(1);
        if first < least || last > most || first > last || step == 0 {
            bail!("{part:?} is not between {least} and {most}");
        }
        for value in (first..=last).step_by(step as usize) {
            bits |= 1_u64 << value;
        }
    }
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_times() {
        let cases = [
            ("*/5 * * * *", "2026-01-01T00:02:30Z", Some("2026-01-01T00:05:00Z")),
            ("0 3 * * *", "2026-01-01T03:00:00Z", Some("2026-01-02T03:00:00Z")),
            ("0 0 29 feb *", "2026-01-01T00:00:00Z", Some("2028-02-29T00:00:00Z")),
            ("30 8 * * mon-fri", "2026-01-02T09:00:00Z", Some("2026-01-05T08:30:00Z")),
            ("0 0 13 * 5", "2026-01-01T00:00:00Z", Some("2026-01-02T00:00:00Z")),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", None),
            ("@hourly", "2026-01-01T00:59:59Z", Some("2026-01-01T01:00:00Z")),
        ];
        for (text, after, wanted) in cases {
            let next = Schedule::parse(text).unwrap().next(after.parse().unwrap(), &TimeZone::UTC);
            assert_eq!(next, wanted.map(|w| w.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn mistakes_are_told() {
        for text in ["", "* * * *", "60 * * * *", "* * 0 * *", "*/0 * * * *", "a * * * *", "5-1 * * * *"] {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
    }
}
