//! Which releases work together: kubelets and API servers by their level of the API, and a master's image with the store
//! that it finds. Pure.
//!
//! It is upstream's version skew policy, narrowed: no kubelet is newer than any API server, as there, and nobody is more
//! than one minor level from a master, where upstream lets kubelets be three levels older.

use node_api::release::{KUBERNETES, UNSTATED_ETCD, UNSTATED_KUBERNETES, UNSTATED_LOG};
use node_api::{Release, StoreEngine, StoreFormat};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A minor level of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Level {
    major: u32,
    minor: u32,
}

impl Level {
    /// Of a version (`v1.36.0+kimg`) or a level (`1.36`).
    pub fn of(text: &str) -> Option<Level> {
        let mut parts = text.strip_prefix('v').unwrap_or(text).split('.');
        let mut number = || parts.next()?.parse().ok();
        Some(Level { major: number()?, minor: number()? })
    }

    /// Of the images that this kimg builds.
    pub fn this() -> Option<Level> {
        Level::of(KUBERNETES)
    }

    /// By how many minor levels two are apart. Nobody has been beyond a major one yet.
    fn apart(self, other: Level) -> u32 {
        if self.major == other.major { self.minor.abs_diff(other.minor) } else { u32::MAX }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<Level> for String {
    fn from(level: Level) -> String {
        level.to_string()
    }
}

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Level, String> {
        Level::of(&text).ok_or(format!("{text} is no level of the API"))
    }
}

/// What is known of an image that a node has or had.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Its level of the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Whether a master said what it states. One that was not asked, or did not answer, is not one that states nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asked: bool,
    /// Of a master's: what it states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<Release>,
    /// It copies local volumes. None was asked where nothing was to be copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copies: bool,
}

impl Known {
    /// Nothing.
    pub fn is_empty(&self) -> bool {
        *self == Known::default()
    }

    /// Whether the image can go on with the store of `master`, as far as is known. What is not known its API server finds,
    /// and then it changes nothing.
    ///
    /// # Errors
    /// A sentence that names both.
    pub fn check_store(&self, master: &str, store: &StoreFormat) -> Result<(), String> {
        if self.asked { check_store(master, self.states.as_ref(), store) } else { Ok(()) }
    }
}

/// A node, and the level that it has or gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stand {
    /// Its name.
    pub node: String,
    /// It serves the API.
    pub master: bool,
    /// Its level.
    pub level: Level,
}

/// Whether nodes may get these levels, one after the other. What is wrong already, and becomes no worse, is no refusal.
///
/// # Errors
/// A sentence that names both nodes.
pub fn check(now: &[Stand], gets: &[Stand]) -> Result<(), String> {
    let mut nodes = now.to_vec();
    for one in gets {
        let before = nodes.iter().position(|node| node.node == one.node).map(|at| nodes.remove(at));
        for other in &nodes {
            let was = before.as_ref().map_or(0, |before| wrong_by(before, other));
            if wrong_by(one, other) > was {
                return Err(sentence(one, other));
            }
        }
        nodes.push(one.clone());
    }
    Ok(())
}

/// By how many levels more than they may be two nodes are apart.
fn wrong_by(one: &Stand, other: &Stand) -> u32 {
    let (master, worker) = match (one.master, other.master) {
        (false, false) => return 0,
        (false, true) => (other, one),
        _ => (one, other),
    };
    let apart = master.level.apart(worker.level);
    if !worker.master && worker.level > master.level { apart } else { apart.saturating_sub(1) }
}

fn sentence(one: &Stand, other: &Stand) -> String {
    let both = format!("{} would have API level {}, and {} has {}", one.node, one.level, other.node, other.level);
    let (master, worker) = if one.master { (one, other) } else { (other, one) };
    if !worker.master && worker.level > master.level {
        return format!(
            "{both}: no worker may be newer than its master; {}",
            if one.master { "take the workers back first" } else { "`kimg roll master` comes first" }
        );
    }
    format!("{both}: they may be one minor level apart; roll all nodes to a release in between first")
}

/// The oldest and the newest format of the store that an image reads.
pub fn reads(engine: StoreEngine, states: Option<&Release>) -> (u32, u32) {
    match (engine, states) {
        (StoreEngine::Embedded, Some(states)) => states.store.reads,
        (StoreEngine::Embedded, None) => (UNSTATED_LOG, UNSTATED_LOG),
        (StoreEngine::Etcd, Some(states)) => states.store_etcd.reads,
        (StoreEngine::Etcd, None) => (UNSTATED_ETCD, UNSTATED_ETCD),
    }
}

/// The level of an image.
pub fn level_of(states: Option<&Release>) -> Option<Level> {
    Level::of(states.map_or(UNSTATED_KUBERNETES, |states| &states.kubernetes))
}

/// Whether an image can go on with the store of `master`; `states`: none where the image says nothing.
///
/// # Errors
/// A sentence that names both.
pub fn check_store(master: &str, states: Option<&Release>, store: &StoreFormat) -> Result<(), String> {
    let (from, to) = reads(store.engine, states);
    if (from..=to).contains(&store.format) {
        return Ok(());
    }
    let reads = if from == to { from.to_string() } else { format!("{from} to {to}") };
    let what = if store.engine == StoreEngine::Etcd { "store in etcd" } else { "store" };
    let release = states.map_or(String::new(), |states| format!(" of kimg {}", states.release));
    Err(format!(
        "the {what} of {master} is in format {}, and the image{release} that it would get reads {reads}: {}",
        store.format,
        if store.format > to {
            "`kimg roll --finish` has raised it, and there is no way back from that but a backup of before"
        } else {
            "roll to a release in between first"
        }
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_api::Versions;

    /// `m=1.36 w1=1.36`
    fn stands(text: &str) -> Vec<Stand> {
        let one = |word: &str| {
            let (node, level) = word.split_once('=').expect("a level");
            Stand { node: node.into(), master: node.starts_with('m'), level: Level::of(level).expect("a level") }
        };
        text.split_whitespace().map(one).collect()
    }

    #[test]
    fn one_minor_level_and_no_worker_before_its_master() {
        for (now, gets, refused) in [
            ("m=1.36 w1=1.36 w2=1.36", "m=1.37 w1=1.37 w2=1.37", ""),
            ("m=1.36 w1=1.36", "m=1.37", ""),
            ("m=1.37 w1=1.37 w2=1.37", "w1=1.36 w2=1.36 m=1.36", ""),
            ("m=1.36", "w1=1.36", ""),
            ("m=1.37", "w1=1.36", ""),
            // A worker that is newer, whoever makes it so.
            ("m=1.36 w1=1.36", "w1=1.37", "w1 would have API level 1.37, and m has 1.36: no worker may be newer"),
            ("m=1.36 w1=1.36", "w2=1.37", "w2 would have API level 1.37, and m has 1.36"),
            ("m=1.37 w1=1.37", "m=1.36 w1=1.36", "m would have API level 1.36, and w1 has 1.37: no worker"),
            ("m1=1.37 m2=1.36 w1=1.36", "w1=1.37", "and m2 has 1.36"),
            // Too far at once, also where all would be right in the end.
            ("m=1.36 w1=1.36", "m=1.38 w1=1.38", "m would have API level 1.38, and w1 has 1.36: they may be one"),
            ("m=1.38 w1=1.37", "w1=1.36", "w1 would have API level 1.36, and m has 1.38: they may be one"),
            ("m=1.36 w1=1.36", "m=2.0", "they may be one minor level apart"),
            ("m1=1.36 m2=1.36", "m1=1.38 m2=1.38", "m1 would have API level 1.38, and m2 has 1.36"),
            ("m1=1.36 m2=1.36", "m1=1.37 m2=1.37", ""),
            // Wrong before, and better or the same now.
            ("m=1.36 w1=1.39", "m=1.37", ""),
            ("m=1.39 w1=1.36 w2=1.36", "w1=1.37", ""),
            ("m=1.36 w1=1.38", "w1=1.38", ""),
            ("m=1.36 w1=1.38", "w1=1.39", "w1 would have API level 1.39"),
        ] {
            match check(&stands(now), &stands(gets)) {
                Ok(()) => assert_eq!(refused, "", "{now} to {gets}"),
                Err(why) => assert!(!refused.is_empty() && why.contains(refused), "{now} to {gets}: {why}"),
            }
        }
    }

    #[test]
    fn an_image_reads_the_store_that_it_finds() {
        let image = |from, to| {
            let versions = Versions { reads: (from, to), writes: to };
            Release { store: versions.clone(), store_etcd: versions, ..Release::this() }
        };
        let log = |format| StoreFormat { engine: StoreEngine::Embedded, format, newest: format };
        let etcd = |format| StoreFormat { engine: StoreEngine::Etcd, format, newest: format };
        for (image, store, refused) in [
            (Some(image(2, 2)), log(2), ""),
            (Some(image(2, 3)), log(2), ""),
            (None, log(2), ""),
            (None, etcd(1), ""),
            (Some(image(2, 2)), log(3), "the store of m is in format 3, and the image of kimg"),
            (Some(image(2, 2)), log(3), "reads 2: `kimg roll --finish` has raised it"),
            (Some(image(3, 4)), log(2), "reads 3 to 4: roll to a release in between"),
            (None, log(3), "and the image that it would get reads 2:"),
            (None, etcd(2), "the store in etcd of m is in format 2, and the image that it would get reads 1:"),
        ] {
            match check_store("m", image.as_ref(), &store) {
                Ok(()) => assert_eq!(refused, "", "{image:?}, {store:?}"),
                Err(why) => assert!(!refused.is_empty() && why.contains(refused), "{image:?}, {store:?}: {why}"),
            }
        }
    }

    #[test]
    fn who_was_not_asked_is_none_who_states_nothing() {
        let store = StoreFormat { engine: StoreEngine::Embedded, format: 3, newest: 3 };
        assert_eq!(Known::default().check_store("m", &store), Ok(()));
        let asked = Known { asked: true, ..Known::default() };
        assert!(asked.check_store("m", &store).unwrap_err().contains("reads 2:"));
    }

    #[test]
    fn levels_are_read_as_nodes_and_releases_say_them() {
        for (text, level) in
            [("v1.36.0+kimg", "1.36"), ("1.36", "1.36"), ("v1.9.3", "1.9"), ("1", ""), ("", ""), ("unknown", "")]
        {
            assert_eq!(Level::of(text).map(String::from).unwrap_or_default(), level, "{text}");
        }
        assert!(Level::this().is_some() && Level::of("1.9") < Level::of("1.10"));
    }
}
