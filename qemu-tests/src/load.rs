//! Writes under load, and which of them the API server has acknowledged. After a power cut nothing that was
//! acknowledged may be missing, and nothing may be there that was never asked for.

use anyhow::{Context, Result, bail};
use http::Method;
use kimg::client::{Answer, Https, block_on};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// Writers at a time.
const WRITERS: usize = 4;
/// Every so many operations one is an update, and one a deletion, of an object written before.
const CYCLE: usize = 4;
/// Bytes of an object's value: several sectors.
const VALUE_BYTES: usize = 2000;

/// The contents that an object may have: what was acknowledged last, and what was asked for since.
type Allowed = Vec<Option<String>>;

/// What was written, and what was said of it.
#[derive(Debug, Default)]
pub struct History {
    objects: BTreeMap<String, Allowed>,
    /// Writes that the API server has acknowledged.
    pub acknowledged: usize,
    /// The highest revision in an acknowledgement.
    pub revision: u64,
}

impl History {
    fn take(&mut self, other: History) {
        self.objects.extend(other.objects);
        self.acknowledged += other.acknowledged;
        self.revision = self.revision.max(other.revision);
    }

    fn asked(&mut self, name: &str, content: Option<String>) {
        self.objects.entry(name.to_owned()).or_insert_with(|| vec![None]).push(content);
    }

    /// What was asked last is now what has to be there.
    fn acknowledge(&mut self, name: &str, revision: Option<u64>) {
        if let Some(allowed) = self.objects.get_mut(name) {
            allowed.drain(..allowed.len() - 1);
        }
        self.acknowledged += 1;
        self.revision = self.revision.max(revision.unwrap_or(0));
    }

    /// Sentences about what differs from what was acknowledged.
    fn losses(&self, found: &BTreeMap<String, String>, revision: u64) -> Vec<String> {
        let mut losses = Vec::new();
        for (name, allowed) in &self.objects {
            let there = found.get(name);
            if !allowed.iter().any(|content| content.as_ref() == there) {
                let text = |content: Option<&String>| content.map_or("gone".to_owned(), |c| short(c));
                let expected: Vec<String> = allowed.iter().map(|a| text(a.as_ref())).collect();
                losses.push(format!("{name} is {} and was acknowledged as {}", text(there), expected.join(" or ")));
            }
        }
        losses.extend(found.keys().filter(|n| !self.objects.contains_key(*n)).map(|n| format!("nobody wrote {n}")));
        if revision < self.revision {
            losses.push(format!("the store is at revision {revision} and gave out {} before", self.revision));
        }
        losses
    }
}

fn short(content: &str) -> String {
    content.chars().take(12).collect()
}

/// Writers at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    writers: Vec<JoinHandle<(History, String)>>,
}

impl Load {
    /// Starts writing ConfigMaps whose names begin with `round` in `namespace`.
    pub fn start(api: &Https, namespace: &str, round: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let writers = (0..WRITERS)
            .map(|number| {
                let writer = Writer {
                    api: api.clone(),
                    path: format!("/api/v1/namespaces/{namespace}/configmaps"),
                    prefix: format!("r{round}-w{number}"),
                    stop: stop.clone(),
                    acknowledged: acknowledged.clone(),
                };
                std::thread::spawn(move || writer.run())
            })
            .collect();
        Load { stop, acknowledged, writers }
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends the writers and adds what they have seen to `history`; the last error that a writer met.
    ///
    /// # Errors
    /// A writer has panicked.
    pub fn end(self, history: &mut History) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        let mut last = String::new();
        for writer in self.writers {
            let Ok((seen, error)) = writer.join() else { bail!("a writer has panicked") };
            history.take(seen);
            last = if error.is_empty() { last } else { error };
        }
        Ok(last)
    }
}

struct Writer {
    api: Https,
    path: String,
    prefix: String,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
}

impl Writer {
    /// Writes until told to stop or until the API server is gone.
    fn run(self) -> (History, String) {
        let mut history = History::default();
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.operation(number, &mut history) {
                return (history, format!("{error:#}"));
            }
            number += 1;
        }
        (history, String::new())
    }

    fn operation(&self, number: usize, history: &mut History) -> Result<()> {
        let earlier = |back: usize| format!("{}-{}", self.prefix, number.saturating_sub(back));
        let filler = format!("{number:06}-{}", self.prefix).repeat(VALUE_BYTES / 12);
        let value: String = filler.chars().take(VALUE_BYTES).collect();
        // Each name is created at most once, updated at most once, and deleted at most once.
        let (method, name, content) = match number % CYCLE {
            2 if number > CYCLE => (Method::PUT, earlier(1), Some(value)),
            3 if number > CYCLE => (Method::DELETE, earlier(3), None),
            _ => (Method::POST, earlier(0), Some(value)),
        };
        let one = format!("{}/{name}", self.path);
        let path = if method == Method::POST { &self.path } else { &one };
        let body = content.as_ref().map(|value| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}})
        });
        history.asked(&name, content);
        let answer = block_on(self.api.send(method.clone(), path, body.as_ref()))?;
        if !answer.status.is_success() {
            bail!("{method} {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
        history.acknowledge(&name, revision(&answer));
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn revision(answer: &Answer) -> Option<u64> {
    let object: Value = serde_json::from_slice(&answer.body).ok()?;
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

/// What of the acknowledged writes is missing or wrong now, a sentence each.
///
/// # Errors
/// The API server does not answer.
pub fn losses(api: &Https, namespace: &str, history: &History) -> Result<Vec<String>> {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let answer = block_on(api.send(Method::GET, &path, None))?;
    if !answer.status.is_success() {
        bail!("GET {path}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
    let list: Value = serde_json::from_slice(&answer.body).context("reading the list of ConfigMaps")?;
    let items = list["items"].as_array().context("the list of ConfigMaps has no items")?;
    let found = items
        .iter()
        .filter_map(|item| {
            let value = item["data"]["value"].as_str()?;
            Some((item["metadata"]["name"].as_str()?.to_owned(), value.to_owned()))
        })
        .collect();
    Ok(history.losses(&found, revision(&answer).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn only_what_was_acknowledged_must_be_there() {
        let mut history = History::default();
        history.asked("a", Some("1".into()));
        history.acknowledge("a", Some(7));
        history.asked("a", Some("2".into()));
        history.asked("b", Some("1".into()));
        for good in [&[("a", "1")][..], &[("a", "2")], &[("a", "1"), ("b", "1")]] {
            assert_eq!(history.losses(&found(good), 7), [""; 0], "{good:?}");
        }
        history.acknowledge("a", Some(8));
        for (bad, revision, word) in [
            (&[("a", "1")][..], 8, "a is 1 and was acknowledged as 2"),
            (&[][..], 8, "a is gone and was acknowledged as 2"),
            (&[("a", "2"), ("c", "1")][..], 8, "nobody wrote c"),
            (&[("a", "2")][..], 7, "at revision 7 and gave out 8"),
        ] {
            let losses = history.losses(&found(bad), revision);
            assert!(losses.len() == 1 && losses[0].contains(word), "{losses:?}");
        }
        history.asked("a", None);
        history.acknowledge("a", None);
        assert_eq!(history.losses(&found(&[("a", "2")]), 8).len(), 1, "a deletion is a write too");
    }
}
