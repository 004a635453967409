//! `kimg logs`: the logs of all nodes' services as one, by time.
//!
//! Nodes are asked over their API, all at once. A node that does not answer is named on standard error, and the others
//! go on; the exit code tells it.

pub mod kept;
pub mod line;
pub mod merge;
pub mod show;
#[cfg(test)]
mod tests;

use crate::client::node::{NodeClient, Refused};
use crate::input::{self, BadInput};
use anyhow::{Result, ensure};
use line::Reader;
use merge::{Entry, Place, Waiting};
use node_api::{NodeStatus, Service, path};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use show::Printer;

/// Lines shown where nobody says how many or since when.
pub const SOME: usize = 200;
/// Lines asked of a log where all are wanted; a node keeps fewer.
const ALL: usize = 1_000_000;
/// Bytes taken of a node: its own bounds let it keep less than half of that, and who has taken it over keeps to none.
const MOST: usize = 128 << 20;
/// What a node says of its clock and of its time since power-on is not of one moment: so far apart, in microseconds, two
/// answers speak of the same.
const CLOCK: u64 = 1_000_000;
/// Lines asked for again after a lost connection.
const AGAIN: usize = 2000;
/// Between two tries to reach a node, and between two looks whether it is still there.
const PAUSE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(10);
/// Longest wait for the first lines of all logs that are followed.
const BEGIN: Duration = Duration::from_secs(15);
/// Log of a node's kernel, which also holds that of PID 1.
const KERNEL: &str = "kernel";
const INIT: &str = "init";
const AUDIT: &str = "audit";

/// A node whose logs are wanted; the client, or why there is none.
#[derive(Debug)]
pub struct Source {
    /// Its name.
    pub node: Arc<str>,
    /// Its API.
    pub client: Result<NodeClient>,
}

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Services; all but the audit log where none is named.
    pub services: Vec<String>,
    /// Not older than this.
    pub since: Option<Duration>,
    /// The last so many lines.
    pub tail: Option<usize>,
    /// The audit log too, where no service is named.
    pub audit: bool,
}

impl Wanted {
    /// Lines to ask of each log.
    fn lines(&self) -> usize {
        if self.since.is_some() { ALL } else { self.tail.unwrap_or(ALL) }
    }

    /// Which of a node's logs are wanted.
    fn of(&self, known: &[String]) -> Vec<String> {
        let wanted = |name: &&String| {
            if self.services.is_empty() { self.audit || *name != AUDIT } else { self.services.contains(name) }
        };
        known.iter().filter(wanted).cloned().collect()
    }

    /// Looks for a service that was named and that no node has. Where all nodes have answered, that is a mistake; else a
    /// node that is away may have it, and what is known is said.
    fn check(&self, known: &BTreeSet<String>, whole: bool, printer: &Printer) -> Result<()> {
        let Some(name) = self.services.iter().find(|name| !known.contains(*name)) else { return Ok(()) };
        let list = known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        match known.is_empty() {
            // Nobody answers, so that nothing is known.
            true => {}
            false if whole => {
                return input::bad(format!("`{name}` is neither a node nor a service; services are {list}"));
            }
            false => printer.warn(&format!("no node that answers has a service `{name}`; those that do have {list}")),
        }
        Ok(())
    }
}

/// A node as it is now.
#[derive(Debug)]
struct Begun {
    /// When its kernel began to count, now, and the oldest wanted time: microseconds since 1970 by its own clock.
    booted: i64,
    now: i64,
    since: i64,
    /// Its logs.
    known: Vec<String>,
}

async fn begin(client: &NodeClient, wanted: &Wanted) -> Result<Begun> {
    let status: NodeStatus = client.get(path::STATUS).await?;
    let services: Vec<Service> = client.get(path::SERVICES).await?;
    let micros = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000);
    let now = micros(status.now_unix_ms);
    let since = wanted.since.map(|since| now.saturating_sub(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)));
    let mut known = vec![INIT.to_string(), KERNEL.to_string()];
    if status.role == node_metadata::Role::Master.to_string() {
        known.push(AUDIT.to_string());
    }
    known.extend(services.into_iter().map(|service| service.name));
    Ok(Begun { booted: now.saturating_sub(micros(status.uptime_ms)), now, since: since.unwrap_or(i64::MIN), known })
}

fn log_path(service: &str, lines: usize, follow: bool) -> Result<String> {
    let follow = u8::from(follow);
    if service == KERNEL {
        return Ok(format!("{}?follow={follow}&tail={lines}", path::DMESG));
    }
    if service.is_empty() || !service.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return input::bad(format!("`{service}` is no service"));
    }
    Ok(format!("{}/{service}?follow={follow}&tail={lines}", path::LOGS))
}

/// Whether a line of the kernel's log is not shown: PID 1 has a log of its own, which is a part of it.
fn stands_elsewhere(service: &str, text: &str, chosen: &[String]) -> bool {
    // After the time, which the reader has put there.
    let said = text.split_once(' ').map_or("", |(_, said)| said);
    service == KERNEL && said.starts_with("kimg: ") && chosen.iter().any(|name| name == INIT)
}

/// Shows what there is; says whether all nodes answered.
///
/// # Errors
/// A service that no node has.
pub async fn show(sources: Vec<Source>, wanted: &Wanted, printer: &mut Printer) -> Result<bool> {
    let each = sources.into_iter().map(|source| async move {
        let node = source.node.clone();
        (node, whole(source, wanted, MOST).await)
    });
    let (mut all, mut known, mut whole) = (Vec::new(), BTreeSet::new(), true);
    for (node, answer) in futures::future::join_all(each).await {
        let failed = match answer {
            Ok(held) => {
                all.extend(held.entries);
                known.extend(held.known);
                held.failed
            }
            Err(error) => vec![error],
        };
        whole &= failed.is_empty();
        failed.iter().for_each(|error| printer.complain(&node, error));
    }
    wanted.check(&known, whole, printer)?;
    merge::sort(&mut all);
    merge::last(&mut all, wanted.tail);
    printer.print(&all)?;
    Ok(whole)
}

/// What a node has.
struct Held {
    entries: Vec<Entry>,
    /// The names of its logs.
    known: Vec<String>,
    /// Why some of them are not among the entries.
    failed: Vec<anyhow::Error>,
}

/// All lines of a node, which are no more than `most` bytes.
async fn whole(source: Source, wanted: &Wanted, most: usize) -> Result<Held> {
    let client = source.client?;
    let begun = begin(&client, wanted).await?;
    let chosen = wanted.of(&begun.known);
    let (mut all, mut failed, mut taken) = (Vec::new(), Vec::new(), 0);
    for service in &chosen {
        let mut reader = Reader::new(begun.booted);
        let mut lines = Vec::new();
        let path = log_path(service, wanted.lines(), false)?;
        let asked = client.text(&path, |bytes| {
            taken += bytes.len();
            ensure!(taken <= most, "its logs are more than the {} MiB that a node may have; is it ours?", most >> 20);
            lines.extend(reader.feed(bytes));
            Ok(())
        });
        match asked.await {
            Ok(()) => lines.extend(reader.end()),
            // A service that never started has no log.
            Err(error) if error.is::<BadInput>() => continue,
            Err(error) if error.is::<Refused>() => {
                failed.push(error.context(format!("the log of {service}")));
                continue;
            }
            Err(error) => return Err(error),
        }
        let mut entries = merge::entries(&source.node, &service.as_str().into(), lines, begun.now);
        entries.retain(|e| e.at >= begun.since && !stands_elsewhere(service, &e.text, &chosen));
        all.extend(entries);
    }
    Ok(Held { entries: all, known: begun.known, failed })
}

/// What happens on the nodes that are followed.
enum News {
    /// It answers, and has these logs.
    Begun(Arc<str>, Vec<String>),
    /// It does not answer.
    Lost(Arc<str>, anyhow::Error),
    /// It answers, and does not give one of its logs.
    Failed(Arc<str>, anyhow::Error),
    /// A line.
    Line(Entry),
}

/// How the nodes were found at their last tries; None before the first.
#[derive(Debug, Default)]
struct Reached(BTreeMap<Arc<str>, Option<Reach>>);

#[derive(Debug, PartialEq, Eq)]
enum Reach {
    Answers,
    /// It does not answer, and why.
    Lost(String),
}

impl Reached {
    /// Whether it is news that a node answers.
    fn answers(&mut self, node: &Arc<str>) -> bool {
        matches!(self.0.insert(node.clone(), Some(Reach::Answers)), Some(Some(Reach::Lost(_))))
    }

    /// Whether it is news that a node does not answer, and why.
    fn lost(&mut self, node: &Arc<str>, why: String) -> bool {
        let lost = Some(Reach::Lost(why));
        self.0.get(node) != Some(&lost) && self.0.insert(node.clone(), lost).is_some()
    }

    /// Whether each node was tried.
    fn tried(&self) -> bool {
        self.0.values().all(Option::is_some)
    }

    /// Whether each node answers.
    fn whole(&self) -> bool {
        self.0.values().all(|reach| *reach == Some(Reach::Answers))
    }
}

/// Shows what there is and what comes, until somebody ends it.
///
/// # Errors
/// A service that no node has.
pub async fn follow(sources: Vec<Source>, wanted: &Wanted, printer: &mut Printer) -> Result<bool> {
    let (sender, mut news) = mpsc::unbounded_channel();
    let mut reached = Reached::default();
    let mut nodes = JoinSet::new();
    for source in sources {
        reached.0.insert(source.node.clone(), None);
        match source.client {
            Ok(client) => {
                nodes.spawn(follow_node(source.node, client, wanted.clone(), sender.clone()));
            }
            Err(error) => drop(sender.send(News::Lost(source.node, error))),
        }
    }
    drop(sender);
    let (mut waiting, mut known, start) = (Waiting::default(), BTreeSet::new(), Instant::now());
    let mut beginning = true;
    let mut tick = tokio::time::interval(Waiting::MOMENT / 2);
    loop {
        tokio::select! {
            next = news.recv() => match next {
                Some(News::Line(entry)) => waiting.add(entry, Instant::now()),
                Some(News::Begun(node, logs)) => {
                    known.extend(logs);
                    if reached.answers(&node) {
                        printer.note(&node, "answers again");
                    }
                }
                Some(News::Lost(node, error)) => {
                    if reached.lost(&node, format!("{error:#}")) {
                        printer.complain(&node, &error);
                    }
                }
                Some(News::Failed(node, error)) => printer.complain(&node, &error),
                // No node can be asked at all.
                None => return Ok(false),
            },
            _ = tick.tick() => {
                let now = Instant::now();
                if beginning {
                    let quiet = waiting.newest().is_none_or(|came| now.duration_since(came) >= Waiting::MOMENT);
                    let asked = reached.tried();
                    if !(asked && quiet && now.duration_since(start) > Waiting::MOMENT) && now.duration_since(start) < BEGIN {
                        continue;
                    }
                    wanted.check(&known, reached.whole(), printer)?;
                    beginning = false;
                    let mut first = waiting.due(now + Waiting::MOMENT);
                    merge::last(&mut first, wanted.tail);
                    printer.print(&first)?;
                } else {
                    printer.print(&waiting.due(now))?;
                }
            }
        }
    }
}

/// The places in a node's logs, by service.
type Places = Arc<Mutex<BTreeMap<String, Place>>>;

/// Follows a node's logs for ever.
async fn follow_node(node: Arc<str>, client: NodeClient, wanted: Wanted, sender: mpsc::UnboundedSender<News>) {
    let places = Places::default();
    let mut booted = None;
    loop {
        match begin(&client, &wanted).await {
            Ok(mut begun) => {
                // By another beginning the kernel's lines would be others, and be shown again.
                begun.booted = booted.filter(|known| begun.booted.abs_diff(*known) < CLOCK).unwrap_or(begun.booted);
                booted = Some(begun.booted);
                let begun = Arc::new(begun);
                drop(sender.send(News::Begun(node.clone(), begun.known.clone())));
                let chosen = Arc::new(wanted.of(&begun.known));
                let mut logs = JoinSet::new();
                for service in chosen.iter() {
                    let log = Log {
                        node: node.clone(),
                        service: service.clone(),
                        chosen: chosen.clone(),
                        places: places.clone(),
                    };
                    logs.spawn(log.follow(client.clone(), begun.clone(), wanted.lines(), sender.clone()));
                }
                // The other end may be gone without a word.
                let watched = async {
                    loop {
                        tokio::time::sleep(LOOK).await;
                        if let Err(error) = client.get::<NodeStatus>(path::STATUS).await {
                            return error;
                        }
                    }
                };
                tokio::select! {
                    _ = logs.join_next(), if !logs.is_empty() => {}
                    error = watched => drop(sender.send(News::Lost(node.clone(), error))),
                }
                logs.shutdown().await;
                for place in places.lock().unwrap_or_else(|e| e.into_inner()).values_mut() {
                    place.lost();
                }
            }
            Err(error) => drop(sender.send(News::Lost(node.clone(), error))),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One log that is followed.
struct Log {
    node: Arc<str>,
    service: String,
    chosen: Arc<Vec<String>>,
    places: Places,
}

impl Log {
    /// Until the connection is lost.
    async fn follow(self, client: NodeClient, begun: Arc<Begun>, lines: usize, sender: mpsc::UnboundedSender<News>) {
        let name: Arc<str> = self.service.as_str().into();
        let again = self.places.lock().unwrap_or_else(|e| e.into_inner()).contains_key(&self.service);
        let Ok(path) = log_path(&self.service, if again { AGAIN } else { lines }, true) else {
            return std::future::pending().await;
        };
        let mut said = None;
        loop {
            let mut reader = Reader::new(begun.booted);
            let asked = client.text(&path, |bytes| {
                said = None;
                let mut fresh = reader.feed(bytes);
                let mut places = self.places.lock().unwrap_or_else(|e| e.into_inner());
                let place = places.entry(self.service.clone()).or_default();
                fresh.retain(|line| place.is_new(line));
                // By the clock here, which may be behind the node's.
                let now = jiff::Timestamp::now().as_microsecond().max(begun.now);
                for entry in merge::entries(&self.node, &name, fresh, now) {
                    if entry.at >= begun.since && !stands_elsewhere(&name, &entry.text, &self.chosen) {
                        drop(sender.send(News::Line(entry)));
                    }
                }
                Ok(())
            });
            match asked.await {
                // It has not started yet.
                Err(error) if error.is::<BadInput>() => tokio::time::sleep(LOOK).await,
                // The other logs go on.
                Err(error) if error.is::<Refused>() => {
                    let why = error.to_string();
                    if said.as_ref() != Some(&why) {
                        drop(sender.send(News::Failed(self.node.clone(), error.context(format!("the log of {name}")))));
                    }
                    said = Some(why);
                    tokio::time::sleep(LOOK).await;
                }
                _ => return,
            }
        }
    }
}
