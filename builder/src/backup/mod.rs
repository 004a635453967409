//! `kimg backup …`: the copies of the store that workers keep, encrypted to `secrets/backup.key`.

pub mod age;
pub mod away;
pub mod here;
pub mod snapshot;

use crate::client::block_on;
use crate::client::node::NodeClient;
use crate::config::Settings;
use crate::input;
use crate::node::Target;
use crate::pki::Secrets;
use age::{AgeError, Identity};
use anyhow::{Context, Result, bail};
use node_api::{Backup, path};
use node_metadata::Role;
use serde::Serialize;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// A backup, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The worker.
    pub node: String,
    /// What it keeps.
    #[serde(flatten)]
    pub backup: Backup,
}

/// What is known of a cluster's backups.
#[derive(Debug, Default, Serialize)]
pub struct Inventory {
    /// Newest first.
    pub backups: Vec<Found>,
    /// Workers that do not answer, and why.
    pub silent: Vec<(String, String)>,
}

/// Asks all workers of cluster.toml.
///
/// # Errors
/// The cluster's secrets are not there.
pub fn look(settings: &Settings) -> Result<Inventory> {
    let mut inventory = Inventory::default();
    Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    for worker in settings.nodes_of(Role::Worker) {
        let node = worker.entry.name.clone();
        let listed = client(settings, &node).and_then(|c| block_on(c.get::<Vec<Backup>>(path::BACKUPS)));
        match listed {
            Ok(list) => inventory.backups.extend(list.into_iter().map(|backup| Found { node: node.clone(), backup })),
            Err(error) => inventory.silent.push((node, format!("{error:#}"))),
        }
    }
    let now = now_ms();
    inventory.backups.sort_by(|a, b| {
        // What a wrong clock has dated ahead is nobody's newest.
        let ahead = |found: &Found| is_ahead(&found.backup, now);
        ahead(a).cmp(&ahead(b)).then_with(|| b.backup.cmp(&a.backup)).then_with(|| a.node.cmp(&b.node))
    });
    Ok(inventory)
}

/// Which backup is meant.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Choice {
    /// Name as `kimg backup ls` shows it [default: the newest one]
    #[arg(long)]
    pub name: Option<String>,
    /// Worker that has it [default: any]
    #[arg(long)]
    pub node: Option<String>,
}

impl Choice {
    /// Finds it.
    ///
    /// # Errors
    /// There is none, and why.
    pub fn find(&self, settings: &Settings) -> Result<Found> {
        if let Some(node) = &self.node {
            settings.node(node)?;
        }
        let Inventory { backups, silent } = look(settings)?;
        let fits = |found: &&Found| {
            self.name.as_ref().is_none_or(|name| *name == found.backup.name())
                && self.node.as_ref().is_none_or(|node| *node == found.node)
        };
        if let Some(found) = backups.iter().find(fits) {
            if self.name.is_none() && self.node.is_none() {
                for (node, why) in &silent {
                    eprintln!("{node} may keep a newer backup, and does not answer: {why}");
                }
            }
            return Ok(found.clone());
        }
        let silent: Vec<String> = silent.into_iter().map(|(_, why)| why).collect();
        match (&self.name, silent.as_slice()) {
            (Some(name), []) => input::bad(format!("no worker keeps a backup {name}; `kimg backup ls` shows them")),
            (None, []) => bail!(
                "no worker keeps a backup yet; the first one is taken when a worker is ready, and `kimg logs backup` \
                 says what keeps it"
            ),
            (_, why) => bail!("no worker that answers keeps such a backup: {}", why.join("; ")),
        }
    }
}

/// Fetches a backup and decrypts it: a snapshot of the store.
///
/// # Errors
/// The worker does not answer, or what it sent is damaged or of another cluster.
pub fn fetch(settings: &Settings, found: &Found) -> Result<Vec<u8>> {
    let identity = identity(settings)?;
    let what = || format!("backup {} of {}", found.backup.name(), found.node);
    let mut sealed = Vec::new();
    let path = format!("{}/{}", path::BACKUPS, found.backup.name());
    block_on(client(settings, &found.node)?.text(&path, |piece| {
        sealed.extend_from_slice(piece);
        anyhow::ensure!(sealed.len() as u64 <= found.backup.bytes, "it is longer than node {} said", found.node);
        Ok(())
    }))?;
    let mut plain = Vec::with_capacity(sealed.len());
    age::decrypt(&identity, sealed.as_slice(), &mut plain).with_context(what)?;
    Ok(plain)
}

/// Decrypts a file that somebody kept.
///
/// # Errors
/// Bad input: it is damaged or of another cluster.
pub fn open(settings: &Settings, file: &Path, sealed: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(sealed.len());
    match age::decrypt(&identity(settings)?, sealed, &mut plain) {
        Ok(_) => Ok(plain),
        Err(AgeError::Io(error)) => Err(error).with_context(|| format!("reading {}", file.display())),
        Err(error) => input::bad(format!("{} cannot be read: {error}", file.display())),
    }
}

fn identity(settings: &Settings) -> Result<Identity> {
    Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?.backup_key()
}

fn client(settings: &Settings, node: &str) -> Result<NodeClient> {
    Target { node: Some(node.to_owned()), address: None, fingerprint: None }.client(settings)
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// How old a backup is, in words.
pub fn age_of(backup: &Backup) -> String {
    words(now_ms().saturating_sub(backup.taken_unix_ms) / 1000)
}

fn words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A worker's clock may be a little ahead of this machine's.
pub fn is_ahead(backup: &Backup, now_ms: u64) -> bool {
    backup.taken_unix_ms > now_ms.saturating_add(5 * 60_000)
}

/// One sentence where the newest backup is missing or older than it should be: three times its period.
pub fn warning(settings: &Settings, inventory: &Inventory, now_ms: u64) -> Option<String> {
    let Some(newest) = inventory.backups.first() else {
        return Some("no worker keeps a backup of the store; `kimg logs backup` says why".into());
    };
    if is_ahead(&newest.backup, now_ms) {
        return Some(format!(
            "the only backups of the store bear times that are still to come ({} on {}): that worker's clock was wrong, \
             or this machine's is",
            newest.backup.name(),
            newest.node
        ));
    }
    let age = now_ms.saturating_sub(newest.backup.taken_unix_ms) / 1000;
    (age > 3 * settings.backup_every_s).then(|| {
        format!(
            "the newest backup of the store ({} on {}) is {} old, and one is due every {} s; `kimg logs {} \
             backup` says why",
            newest.backup.name(),
            newest.node,
            words(age),
            settings.backup_every_s,
            newest.node
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_or_missing_backup_is_told() {
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        let settings = crate::config::parse(Path::new("cluster.toml"), text, Path::new("/x")).expect("valid");
        let at = |taken_unix_ms| Inventory {
            backups: vec![Found { node: "w".into(), backup: Backup { taken_unix_ms, revision: 7, bytes: 1 } }],
            silent: Vec::new(),
        };
        assert!(warning(&settings, &Inventory::default(), 0).expect("warning").contains("no worker keeps"));
        assert_eq!(warning(&settings, &at(0), 1_800_000), None);
        assert!(warning(&settings, &at(9_000_000), 0).expect("warning").contains("still to come"));
        assert!(warning(&settings, &at(0), 1_801_000).expect("warning").contains("0-7.age on w) is 30m old"));
    }
}
