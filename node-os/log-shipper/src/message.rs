//! Messages of syslog (RFC 5424), framed by their length (RFC 5425). Pure.

/// Of a message with all that stands before its text: what RFC 5425 wants every receiver to take, and some take no more.
/// A longer line goes in several.
const LONGEST: usize = 8192;
/// RFC 5612 keeps this number for whoever has none of their own.
const ENTERPRISE: &str = "kimg@32473";

const KERNEL: u8 = 0;
const DAEMON: u8 = 3;
const AUDIT: u8 = 13;
const INFORMATIONAL: u8 = 6;

/// Who sends.
#[derive(Debug, Clone)]
pub struct Sender {
    /// Name of this node.
    pub node: String,
    /// Name of the cluster.
    pub cluster: String,
}

/// Lines of one log as messages.
#[derive(Debug)]
pub struct Writer<'a> {
    sender: &'a Sender,
    service: &'a str,
    /// A line without a time of its own belongs to the one before.
    last: Option<i64>,
}

impl<'a> Writer<'a> {
    /// For a log of which the last line sent had this time.
    pub fn new(sender: &'a Sender, service: &'a str, last: Option<i64>) -> Writer<'a> {
        Writer { sender, service, last }
    }

    /// The time of the last line.
    pub fn last(&self) -> Option<i64> {
        self.last
    }

    /// Appends the messages of a line, which has no end.
    pub fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
        self.last = node_api::log_time(&text).or(self.last);
        let head = self.head(severity(&text));
        let room = LONGEST.saturating_sub(head.len()).max(1024);
        let mut rest = text.as_ref();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.floor_char_boundary(room));
            out.extend_from_slice(format!("{} {head}{part}", head.len() + part.len()).as_bytes());
            rest = after;
        }
    }

    fn head(&self, severity: u8) -> String {
        let facility = match self.service {
            "kernel" => KERNEL,
            "audit" => AUDIT,
            _ => DAEMON,
        };
        let time = self.last.and_then(|at| jiff::Timestamp::from_microsecond(at).ok());
        let time = time.map_or("-".to_owned(), |at| format!("{at:.6}"));
        let Sender { node, cluster } = self.sender;
        format!(
            "<{}>1 {time} {} {} - - [{ENTERPRISE} cluster=\"{cluster}\"] ",
            facility * 8 + severity,
            word(node, 255),
            word(self.service, 48)
        )
    }
}

/// A name as RFC 5424 wants it.
fn word(text: &str, most: usize) -> String {
    let shown: String = text.chars().filter(char::is_ascii_graphic).take(most).collect();
    if shown.is_empty() { "-".to_owned() } else { shown }
}

/// As the line's second word says it, which is where our own programs do.
fn severity(text: &str) -> u8 {
    match text.split_whitespace().nth(1) {
        Some("ERROR") => 3,
        Some("WARN") => 4,
        Some("DEBUG" | "TRACE") => 7,
        _ => INFORMATIONAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(service: &str, lines: &[&str]) -> String {
        let sender = Sender { node: "worker-1".into(), cluster: "demo".into() };
        let mut writer = Writer::new(&sender, service, None);
        let mut out = Vec::new();
        lines.iter().for_each(|line| writer.line(line.as_bytes(), &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_become_messages() {
        let data = "- - [kimg@32473 cluster=\"demo\"]";
        let framed = |text: String| format!("{} {text}", text.len());
        let table = [
            (
                "kubelet",
                "2025-11-27T00:00:00.5Z  WARN slow",
                format!("<28>1 2025-11-27T00:00:00.500000Z worker-1 kubelet {data} 2025-11-27T00:00:00.5Z  WARN slow"),
            ),
            (
                "kernel",
                "2025-11-27T00:00:00Z ERROR oops\r",
                format!("<3>1 2025-11-27T00:00:00.000000Z worker-1 kernel {data} 2025-11-27T00:00:00Z ERROR oops"),
            ),
            ("init", "ü", format!("<30>1 - worker-1 init {data} ü")),
            (
                "audit",
                r#"{"stageTimestamp":"2025-11-27T00:00:03Z"}"#,
                format!(
                    r#"<110>1 2025-11-27T00:00:03.000000Z worker-1 audit {data} {{"stageTimestamp":"2025-11-27T00:00:03Z"}}"#
                ),
            ),
        ];
        for (service, line, expected) in table {
            assert_eq!(written(service, &[line]), framed(expected));
        }
        assert_eq!(written("dns", &[""]), "", "an empty line says nothing");
        let second = written("dns", &["2025-11-27T00:00:00Z one", "  two"]);
        assert!(second.ends_with(&format!("<30>1 2025-11-27T00:00:00.000000Z worker-1 dns {data}   two")), "{second}");
    }

    #[test]
    fn long_lines_go_in_several_and_nothing_of_them_is_lost() {
        let line = "ü€x".repeat(5000);
        let all = written("dns", &[&line]);
        let (mut rest, mut text) = (all.as_str(), String::new());
        while !rest.is_empty() {
            let (length, after) = rest.split_once(' ').unwrap();
            let (message, after) = after.split_at(length.parse().unwrap());
            assert!(message.len() <= LONGEST);
            text.push_str(message.split_once("] ").unwrap().1);
            rest = after;
        }
        assert_eq!(text, line);
    }
}
