//! What happened, in the order in which it was seen to happen.
//!
//! A write's call is recorded before it is made, and its answer after it came; so the places of
//! two events tell which of two operations was over before the other began.  Events are lines
//! of text, so that a process that will be killed can hand them out.

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;

use crate::{Expect, Stamped};

/// A live key as it was read: its name, which value, and since which revision.
pub type Listed = (String, String, u64);

/// What a client asks for.  Values are named by who wrote them, each once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    Put { key: String, value: String, expect: Expect },
    Delete { key: String, expect: Expect },
    Get { key: String },
    List { prefix: String },
    Snapshot,
}

/// What it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Written(u64),
    Mismatch,
    Found(Option<(String, u64)>),
    Listed {
        entries: Vec<Listed>,
        revision: u64,
    },
    /// An error that leaves open what happened.
    Unknown,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Call {
        op: u64,
        call: Call,
    },
    Return {
        op: u64,
        answer: Answer,
    },
    /// The store was opened.
    Opened {
        revision: u64,
    },
    /// Process or machine are gone; what was not answered may have happened, and if not, never will.
    Crash,
    /// A watcher begins, or goes on, after a revision.
    Watching {
        watcher: u64,
        prefix: String,
        after: u64,
    },
    /// A watcher was told that the changes after a revision are no longer kept.
    Compacted {
        watcher: u64,
        asked: u64,
        kept: u64,
    },
    Seen {
        watcher: u64,
        key: String,
        revision: u64,
        value: Option<String>,
    },
    /// A watcher has seen everything up to a revision.
    Bookmark {
        watcher: u64,
        revision: u64,
    },
    /// What a snapshot was found to hold, or an observer was given.
    Snapshot {
        op: u64,
        entries: Vec<Listed>,
        revision: u64,
    },
}

/// Where events go.
pub trait Recorder: Send + Sync {
    fn record(&self, event: Event);
    /// Whether nothing more is taken: what happens now has not happened.
    fn is_over(&self) -> bool;
}

/// Keeps events until a disk's plug is out.
pub struct Memory<F> {
    events: Mutex<Vec<Event>>,
    over: F,
}

impl<F: Fn() -> bool + Send + Sync> Memory<F> {
    pub fn new(over: F) -> Memory<F> {
        Memory { events: Mutex::new(Vec::new()), over }
    }

    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap_or_else(|e| e.into_inner()))
    }
}

impl<F: Fn() -> bool + Send + Sync> Recorder for Memory<F> {
    fn record(&self, event: Event) {
        let mut events = self.events.lock().unwrap_or_else(|e| e.into_inner());
        // Looked at here: an answer that was seen while the plug was in was durable before.
        if !(self.over)() {
            events.push(event);
        }
    }

    fn is_over(&self) -> bool {
        (self.over)()
    }
}

/// The bytes of a named value: they repeat the revision, so that a wrong one is noticed.
pub fn payload(value: &str, filler: usize) -> Stamped {
    let mut bytes = format!("{value} ").into_bytes();
    let stamp_at = bytes.len();
    bytes.push(b' ');
    bytes.resize(bytes.len() + filler, b'.');
    Stamped { bytes, stamp_at }
}

/// The name of a value that was read at `revision`.
pub fn name_of(bytes: &[u8], revision: u64) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut words = text.split(' ');
    let (name, stamp) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if stamp == revision.to_string() { name.to_string() } else { format!("{name}-stamped-{stamp}-at-{revision}") }
}

struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn word(&mut self) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| "a word is missing".to_string())
    }
    fn number(&mut self) -> Result<u64, String> {
        let word = self.word()?;
        word.parse().map_err(|_| format!("{word:?} is no number"))
    }
    fn text(&mut self) -> Result<String, String> {
        self.word().map(str::to_string)
    }
    fn expect(&mut self) -> Result<Expect, String> {
        match self.word()? {
            "any" => Ok(Expect::Any),
            "absent" => Ok(Expect::Absent),
            at => at.parse().map(Expect::At).map_err(|_| format!("{at:?} is no expectation")),
        }
    }
    fn optional(&mut self) -> Result<Option<String>, String> {
        self.text().map(|t| Some(t).filter(|t| t != "-"))
    }
    fn entries(&mut self) -> Result<Vec<Listed>, String> {
        (0..self.number()?).map(|_| Ok((self.text()?, self.text()?, self.number()?))).collect()
    }
}

impl FromStr for Event {
    type Err = String;

    fn from_str(line: &str) -> Result<Event, String> {
        let mut words = Words(line.split_whitespace());
        let kind = words.word()?;
        Ok(match kind {
            "put" => {
                let op = words.number()?;
                let (key, value, expect) = (words.text()?, words.text()?, words.expect()?);
                Event::Call { op, call: Call::Put { key, value, expect } }
            }
            "delete" => {
                let op = words.number()?;
                Event::Call { op, call: Call::Delete { key: words.text()?, expect: words.expect()? } }
            }
            "get" => Event::Call { op: words.number()?, call: Call::Get { key: words.text()? } },
            "list" => Event::Call { op: words.number()?, call: Call::List { prefix: words.text()? } },
            "snapshot" => Event::Call { op: words.number()?, call: Call::Snapshot },
            "written" => Event::Return { op: words.number()?, answer: Answer::Written(words.number()?) },
            "mismatch" => Event::Return { op: words.number()?, answer: Answer::Mismatch },
            "unknown" => Event::Return { op: words.number()?, answer: Answer::Unknown },
            "found" => {
                let op = words.number()?;
                let found = match words.optional()? {
                    Some(value) => Some((value, words.number()?)),
                    None => None,
                };
                Event::Return { op, answer: Answer::Found(found) }
            }
            "listed" => {
                let op = words.number()?;
                let revision = words.number()?;
                Event::Return { op, answer: Answer::Listed { entries: words.entries()?, revision } }
            }
            "held" => {
                let op = words.number()?;
                let revision = words.number()?;
                Event::Snapshot { op, entries: words.entries()?, revision }
            }
            "opened" => Event::Opened { revision: words.number()? },
            "crash" => Event::Crash,
            "watching" => Event::Watching { watcher: words.number()?, prefix: words.text()?, after: words.number()? },
            "compacted" => Event::Compacted { watcher: words.number()?, asked: words.number()?, kept: words.number()? },
            "seen" => {
                let (watcher, key, revision) = (words.number()?, words.text()?, words.number()?);
                Event::Seen { watcher, key, revision, value: words.optional()? }
            }
            "bookmark" => Event::Bookmark { watcher: words.number()?, revision: words.number()? },
            other => return Err(format!("there is no event {other:?}")),
        })
    }
}

fn expect_word(expect: Expect) -> String {
    match expect {
        Expect::Any => "any".into(),
        Expect::Absent => "absent".into(),
        Expect::At(revision) => revision.to_string(),
    }
}

fn entries_words(entries: &[Listed]) -> String {
    let words = entries.iter().map(|(key, value, revision)| format!(" {key} {value} {revision}"));
    format!("{}{}", entries.len(), words.collect::<String>())
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Call { op, call } => match call {
                Call::Put { key, value, expect } => write!(f, "put {op} {key} {value} {}", expect_word(*expect)),
                Call::Delete { key, expect } => write!(f, "delete {op} {key} {}", expect_word(*expect)),
                Call::Get { key } => write!(f, "get {op} {key}"),
                Call::List { prefix } => write!(f, "list {op} {prefix}"),
                Call::Snapshot => write!(f, "snapshot {op}"),
            },
            Event::Return { op, answer } => match answer {
                Answer::Written(revision) => write!(f, "written {op} {revision}"),
                Answer::Mismatch => write!(f, "mismatch {op}"),
                Answer::Unknown => write!(f, "unknown {op}"),
                Answer::Found(Some((value, revision))) => write!(f, "found {op} {value} {revision}"),
                Answer::Found(None) => write!(f, "found {op} -"),
                Answer::Listed { entries, revision } => write!(f, "listed {op} {revision} {}", entries_words(entries)),
            },
            Event::Opened { revision } => write!(f, "opened {revision}"),
            Event::Crash => write!(f, "crash"),
            Event::Watching { watcher, prefix, after } => write!(f, "watching {watcher} {prefix} {after}"),
            Event::Compacted { watcher, asked, kept } => write!(f, "compacted {watcher} {asked} {kept}"),
            Event::Seen { watcher, key, revision, value } => {
                write!(f, "seen {watcher} {key} {revision} {}", value.as_deref().unwrap_or("-"))
            }
            Event::Bookmark { watcher, revision } => write!(f, "bookmark {watcher} {revision}"),
            Event::Snapshot { op, entries, revision } => {
                write!(f, "held {op} {revision} {}", entries_words(entries))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines() {
        for line in [
            "put 1 /t/a v1 any",
            "put 1 /t/a v1 17",
            "delete 2 /t/a absent",
            "get 3 /t/a",
            "list 4 /t/",
            "snapshot 5",
            "written 1 18",
            "mismatch 2",
            "unknown 2",
            "found 3 v1 18",
            "found 3 -",
            "listed 4 18 2 /t/a v1 18 /t/b v0 3",
            "held 5 18 1 /t/a v1 18",
            "opened 18",
            "crash",
            "watching 1 /t/ 18",
            "compacted 1 3 18",
            "seen 1 /t/a 19 v2",
            "seen 1 /t/a 20 -",
            "bookmark 1 20",
        ] {
            assert_eq!(line.parse::<Event>().unwrap().to_string(), line);
        }
        assert!("seen 1".parse::<Event>().is_err() && "sung 1".parse::<Event>().is_err());
    }

    #[test]
    fn payloads_repeat_their_revision() {
        let bytes = payload("v7", 5).fill(41);
        assert_eq!(name_of(&bytes, 41), "v7");
        assert_ne!(name_of(&bytes, 42), "v7");
    }
}
