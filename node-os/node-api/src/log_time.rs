//! When a line of a log was written.

/// The time that a line of a log says, in microseconds since 1970: at its beginning, as containerd has it, or in JSON.
pub fn log_time(text: &str) -> Option<i64> {
    let after = |mark: &str| text.find(mark).map(|at| &text[at + mark.len()..]);
    let time = match text.as_bytes().first()? {
        b'0'..=b'9' => text.split(' ').next(),
        b't' => text.strip_prefix("time=\"")?.split('"').next(),
        // Of a request the time at which it was answered.
        b'{' => ["\"stageTimestamp\":\"", "\"ts\":\"", "\"time\":\""].iter().find_map(|m| after(m))?.split('"').next(),
        _ => None,
    }?;
    // Longer than any time is.
    let time = Some(time).filter(|time| time.len() <= 40)?;
    time.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_microsecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_764_201_600_000_000;

    #[test]
    fn times_are_read_where_programs_write_them() {
        let table = [
            ("2025-11-27T00:00:00.5Z  INFO kubelet: ready", Some(T + 500_000)),
            ("2025-11-27T01:00:00+01:00 x", Some(T)),
            ("time=\"2025-11-27T00:00:01Z\" level=info msg=x", Some(T + 1_000_000)),
            (r#"{"level":"info","ts":"2025-11-27T00:00:02.000001Z","msg":"etcd"}"#, Some(T + 2_000_001)),
            (
                r#"{"requestReceivedTimestamp":"2025-11-27T00:00:00Z","stageTimestamp":"2025-11-27T00:00:03Z"}"#,
                Some(T + 3_000_000),
            ),
            ("thread 'main' panicked", None),
            ("20 things", None),
            ("time=\"yesterday\"", None),
            ("{}", None),
            ("", None),
        ];
        for (text, at) in table {
            assert_eq!(log_time(text), at, "{text}");
        }
    }
}
