//! `kimg pki ls`: every certificate of the cluster, what ends first at the top.

use super::show;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// Of its life: with less than that left a certificate ends soon. Nodes renew theirs while three tenths are left, so
/// that one below it was not renewed.
const SOON: f64 = 0.25;

/// How long a certificate is still good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// For long.
    Ok,
    /// Not for long.
    Soon,
    /// No more.
    Expired,
    /// Its dates cannot be read.
    Unknown,
}

/// One certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The node that has it; nothing for the operator's own.
    pub node: Option<String>,
    /// What it is called: its file's name.
    pub name: String,
    /// File on the node, or here.
    pub file: String,
    /// Whom it speaks for.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Start, RFC 3339.
    pub not_before: String,
    /// End, RFC 3339.
    pub not_after: String,
    /// Until its end; below zero after it.
    pub seconds_left: Option<i64>,
    /// How long it is still good.
    pub state: State,
}

/// The clock, and what is called soon.
#[derive(Debug, Clone, Copy)]
pub struct Judge {
    /// Seconds since 1970.
    pub now: i64,
    /// With less than that left a certificate ends soon; else with a quarter of its life.
    pub below: Option<Duration>,
}

impl Judge {
    fn state(&self, not_before: &str, not_after: &str) -> (Option<i64>, State) {
        let second = |text: &str| text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second);
        let (Some(start), Some(end)) = (second(not_before), second(not_after)) else { return (None, State::Unknown) };
        let left = end.saturating_sub(self.now);
        let soon = match self.below {
            Some(below) => left < i64::try_from(below.as_secs()).unwrap_or(i64::MAX),
            None => (left as f64) < end.saturating_sub(start) as f64 * SOON,
        };
        (
            Some(left),
            if left <= 0 {
                State::Expired
            } else if soon {
                State::Soon
            } else {
                State::Ok
            },
        )
    }

    /// A node's certificate.
    pub fn of_node(&self, node: &str, certificate: &node_api::Certificate) -> Held {
        let (seconds_left, state) = self.state(&certificate.not_before, &certificate.not_after);
        Held {
            node: Some(node.to_string()),
            name: name_of(&certificate.file),
            file: certificate.file.clone(),
            subject: certificate.subject.clone(),
            issuer: certificate.issuer.clone(),
            not_before: certificate.not_before.clone(),
            not_after: certificate.not_after.clone(),
            seconds_left,
            state,
        }
    }

    /// One of the operator's.
    pub fn of_file(&self, file: &Path, info: &show::Info) -> Held {
        let (seconds_left, state) = self.state(&info.not_before, &info.not_after);
        let file = file.display().to_string();
        Held {
            node: None,
            name: name_of(&file),
            file,
            subject: info.subject.text().to_string(),
            issuer: info.issuer.text().to_string(),
            not_before: info.not_before.clone(),
            not_after: info.not_after.clone(),
            seconds_left,
            state,
        }
    }
}

/// `/var/lib/kimg/pki/kubelet.crt` is `kubelet`.
fn name_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".crt").unwrap_or(name).to_string()
}

/// What ends first comes first, and before it what cannot be read.
pub fn sort(all: &mut [Held]) {
    all.sort_by(|a, b| (a.seconds_left, &a.node, &a.file).cmp(&(b.seconds_left, &b.node, &b.file)));
}

/// A table for people.
pub fn table(all: &[Held]) -> String {
    let row = |held: &Held| {
        let state = match held.state {
            State::Ok => "ok",
            State::Soon => "soon",
            State::Expired => "EXPIRED",
            State::Unknown => "unreadable",
        };
        let node = held.node.as_deref().unwrap_or("-");
        let left = held.seconds_left.map_or("-".into(), left);
        [node, &held.name, &held.subject, &held.issuer, &held.not_after, &left, state].map(str::to_string).to_vec()
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    crate::table::render(&["NODE", "NAME", "SUBJECT", "ISSUER", "EXPIRES", "LEFT", "STATE"], &rows)
}

/// A time span in its largest unit.
fn left(seconds: i64) -> String {
    let (sign, seconds) = (if seconds < 0 { "-" } else { "" }, seconds.unsigned_abs());
    match seconds {
        0..120 => format!("{sign}{seconds}s"),
        120..7_200 => format!("{sign}{}m", seconds / 60),
        7_200..172_800 => format!("{sign}{}h", seconds / 3600),
        _ => format!("{sign}{}d", seconds / 86_400),
    }
}

/// One sentence where something is to be done.
pub fn warning(all: &[Held]) -> Option<String> {
    let count = |state| all.iter().filter(|held| held.state == state).count();
    let some = |count: usize, one: &str, more: &str| match count {
        0 => None,
        1 => Some(format!("1 certificate {one}")),
        n => Some(format!("{n} certificates {more}")),
    };
    let parts: Vec<String> = [
        some(count(State::Expired), "has expired", "have expired"),
        some(count(State::Unknown), "cannot be read", "cannot be read"),
        some(count(State::Soon), "expires soon", "expire soon"),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(file: &str, not_before: &str, not_after: &str) -> node_api::Certificate {
        node_api::Certificate {
            file: file.into(),
            subject: "CN=\u{1b}[31mx".into(),
            issuer: "CN=ca".into(),
            sans: vec![],
            not_before: not_before.into(),
            not_after: not_after.into(),
            sha256: String::new(),
            authority_key_id: String::new(),
        }
    }

    fn judge(now: &str, below: Option<u64>) -> Judge {
        let now = now.parse::<jiff::Timestamp>().unwrap().as_second();
        Judge { now, below: below.map(Duration::from_secs) }
    }

    #[test]
    fn what_is_left_is_judged() {
        let (start, end) = ("2026-01-01T00:00:00Z", "2026-01-09T00:00:00Z");
        for (now, below, state) in [
            ("2026-01-02T00:00:00Z", None, State::Ok),
            ("2026-01-07T00:00:00Z", None, State::Ok),
            ("2026-01-07T00:00:01Z", None, State::Soon),
            ("2026-01-07T00:00:01Z", Some(3600), State::Ok),
            ("2026-01-02T00:00:00Z", Some(30 * 86_400), State::Soon),
            ("2026-01-09T00:00:00Z", None, State::Expired),
            ("2027-01-09T00:00:00Z", Some(0), State::Expired),
        ] {
            let held = judge(now, below).of_node("n", &certificate("/x/kubelet.crt", start, end));
            assert_eq!((held.state, held.name.as_str()), (state, "kubelet"), "{now} {below:?}");
        }
        let held = judge(start, None).of_node("n", &certificate("x", start, "whenever"));
        assert_eq!((held.state, held.seconds_left), (State::Unknown, None));
    }

    #[test]
    fn what_ends_first_is_first() {
        let judge = judge("2026-01-08T00:00:00Z", None);
        let start = "2026-01-01T00:00:00Z";
        let mut all = vec![
            judge.of_node("b", &certificate("/pki/late.crt", start, "2027-01-01T00:00:00Z")),
            judge.of_node("b", &certificate("/pki/gone.crt", start, "2026-01-07T22:00:00Z")),
            judge.of_node("a", &certificate("/pki/odd.crt", start, "")),
            judge.of_node("a", &certificate("/pki/soon.crt", start, "2026-01-08T01:00:00Z")),
        ];
        sort(&mut all);
        let names: Vec<&str> = all.iter().map(|h| h.name.as_str()).collect();
        assert_eq!(names, ["odd", "gone", "soon", "late"]);
        let text = table(&all);
        assert!(text.contains("CN=\\u{1b}[31mx") && !text.contains('\u{1b}'), "{text}");
        for word in ["-2h    EXPIRED", "60m    soon", "358d   ok", "-      unreadable"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let said = "1 certificate has expired, 1 certificate cannot be read, 1 certificate expires soon";
        assert_eq!(warning(&all).as_deref(), Some(said));
        assert_eq!(warning(&all[3..]), None);
        let json = serde_json::to_value(&all[1]).unwrap();
        assert_eq!(
            (&json["state"], &json["secondsLeft"], &json["node"]),
            (&"expired".into(), &(-7200).into(), &"b".into())
        );
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [(5, "5s"), (600, "10m"), (7200, "2h"), (172_800, "2d"), (-90_000, "-25h")] {
            assert_eq!(left(seconds), text);
        }
    }
}
