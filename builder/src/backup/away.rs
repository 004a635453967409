//! `[backup] to`: copies in a folder or a bucket outside the cluster, as this machine sends them; encrypted as all are.

use super::{age, age_of, here, identity, is_ahead, now_ms};
use crate::cache::hash;
use crate::config::{BackupTo, Settings};
use crate::input;
use crate::upload::s3::Bucket;
use crate::upload::settings::Environment;
use crate::web::Client;
use anyhow::{Context, Result};
use node_api::Backup;
use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

const DAY_S: u64 = 86_400;
/// The newest stay in any case.
const NEWEST: usize = 6;
/// More than any store that its master can hold in memory.
const MOST_BYTES: u64 = 8 << 30;

/// Where copies are kept.
#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    Bucket { bucket: Box<Bucket>, prefix: String },
}

/// The copies of a cluster there.
#[derive(Debug)]
pub struct Away {
    place: Place,
    shown: String,
    keep_days: u64,
}

impl Away {
    /// What `[backup] to` names; none where there is no such line.
    ///
    /// # Errors
    /// Bad input: there are no credentials for the bucket.
    pub fn open(settings: &Settings, client: &Client, env: Environment<'_>) -> Result<Option<Away>> {
        let Some(to) = &settings.backup_to else { return Ok(None) };
        let place = match to {
            BackupTo::Folder(path) => Place::Folder(path.clone()),
            BackupTo::Bucket { name, prefix, endpoint, region } => Place::Bucket {
                bucket: Bucket::open(client, env, name, prefix, endpoint.as_deref(), region.as_deref())
                    .map(Box::new)
                    .context("opening the bucket of [backup] to")?,
                prefix: prefix.clone(),
            },
        };
        Ok(Some(Away { place, shown: to.to_string(), keep_days: settings.backup_keep_days }))
    }

    /// The place with the copies that are there now, if there is such a line.
    ///
    /// # Errors
    /// As [`Away::open`] and [`Away::list`] have them.
    pub fn look(settings: &Settings, client: &Client, env: Environment<'_>) -> Result<Option<(Vec<Backup>, Away)>> {
        Away::open(settings, client, env)?.map(|away| Ok((away.list()?, away))).transpose()
    }

    /// For people.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The copies that are there, newest first; what a wrong clock has dated ahead is nobody's newest.
    ///
    /// # Errors
    /// The place cannot be read.
    pub fn list(&self) -> Result<Vec<Backup>> {
        let mut found = match &self.place {
            Place::Folder(dir) => here::list_in(dir)?,
            Place::Bucket { bucket, prefix } => {
                let one = |(key, bytes): (String, u64)| Backup::of_file(key.strip_prefix(prefix.as_str())?, bytes);
                bucket.sizes(prefix)?.into_iter().filter_map(one).collect()
            }
        };
        let now = now_ms();
        found.sort_unstable_by(|a, b| is_ahead(a, now).cmp(&is_ahead(b, now)).then_with(|| b.cmp(a)));
        Ok(found)
    }

    /// Puts a copy there, whole or not at all, and removes those whose time is over.
    ///
    /// # Errors
    /// It cannot be written, or the old ones not be removed.
    pub fn send(&self, file: &Path, backup: &Backup) -> Result<()> {
        let what = || format!("sending {} to {}", file.display(), self.shown);
        match &self.place {
            Place::Folder(dir) => {
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(what)?;
                let mut part = tempfile::NamedTempFile::new_in(dir).with_context(what)?;
                std::io::copy(&mut input::open(file)?, &mut part).with_context(what)?;
                part.as_file().sync_all().with_context(what)?;
                part.persist(dir.join(backup.name())).with_context(what)?;
                std::fs::File::open(dir).and_then(|dir| dir.sync_all()).with_context(what)?;
            }
            Place::Bucket { bucket, prefix } => {
                let key = format!("{prefix}{}", backup.name());
                bucket.keep(&key, file, &hash::hex_of_file(file)?).with_context(what)?;
            }
        }
        // By the copy's own time too: a clock here that is years ahead must not make all others old.
        for old in outdated(&self.list()?, now_ms().min(backup.taken_unix_ms), self.keep_days) {
            self.remove(&old).with_context(|| format!("removing {} from {}", old.name(), self.shown))?;
        }
        Ok(())
    }

    fn remove(&self, backup: &Backup) -> Result<()> {
        match &self.place {
            Place::Folder(dir) => Ok(std::fs::remove_file(dir.join(backup.name()))?),
            Place::Bucket { bucket, prefix } => bucket.remove(&format!("{prefix}{}", backup.name())),
        }
    }

    /// Fetches a copy and decrypts it: a snapshot of the store.
    ///
    /// # Errors
    /// It is gone, damaged, or of another cluster.
    pub fn read(&self, settings: &Settings, backup: &Backup) -> Result<Vec<u8>> {
        let what = || format!("reading {} of {}", backup.name(), self.shown);
        let sealed = match &self.place {
            Place::Folder(dir) => input::bytes(&dir.join(backup.name()), MOST_BYTES)?,
            Place::Bucket { bucket, prefix } => {
                bucket.get(&format!("{prefix}{}", backup.name()), backup.bytes).with_context(what)?
            }
        };
        let mut plain = Vec::with_capacity(sealed.len());
        age::decrypt(&identity(settings)?, sealed.as_slice(), &mut plain).with_context(what)?;
        Ok(plain)
    }
}

/// One sentence where the newest copy there is missing, older than a day, or cannot be looked for.
pub fn warning(looked: &Result<Option<(Vec<Backup>, Away)>>, now_ms: u64) -> Option<String> {
    match looked {
        Ok(None) => None,
        Err(error) => Some(format!("[backup] to could not be looked at: {error:#}")),
        Ok(Some((copies, away))) => match copies.iter().find(|copy| !is_ahead(copy, now_ms)) {
            None => Some(format!("{} has no copy of the store; `kimg backup send` sends one", away.shown)),
            Some(newest) if now_ms.saturating_sub(newest.taken_unix_ms) / 1000 <= DAY_S => None,
            Some(newest) => Some(format!(
                "the newest copy of the store in {} is {} old; `kimg backup send` sends one",
                away.shown,
                age_of(newest)
            )),
        },
    }
}

/// Those that are neither among the newest nor the last of one of the days that are kept.
fn outdated(newest_first: &[Backup], now_ms: u64, keep_days: u64) -> Vec<Backup> {
    let mut days = BTreeSet::new();
    let mut kept = 0;
    let mut gone = Vec::new();
    for backup in newest_first {
        let taken_s = backup.taken_unix_ms / 1000;
        // What bears a time that is still to come is not judged by it.
        if is_ahead(backup, now_ms) {
            continue;
        }
        let young = (now_ms / 1000).saturating_sub(taken_s) < keep_days * DAY_S;
        let last_of_day = days.insert(taken_s / DAY_S);
        if kept >= NEWEST && !(young && last_of_day) {
            gone.push(backup.clone());
        }
        kept += 1;
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_copy_is_warned_of() {
        let now = now_ms();
        let away = || Away { place: Place::Folder("/copies".into()), shown: "/copies".into(), keep_days: 1 };
        let of = |hours: &[u64]| {
            let at = |hours: &u64| Backup { taken_unix_ms: now - hours * 3_600_000, revision: 1, bytes: 1 };
            warning(&Ok(Some((hours.iter().map(at).collect(), away()))), now)
        };
        assert_eq!(warning(&Ok(None), now), None, "nobody asked for copies elsewhere");
        assert_eq!(of(&[23, 60]), None);
        assert!(of(&[]).is_some_and(|w| w.starts_with("/copies has no copy of the store")));
        assert!(of(&[50]).is_some_and(|w| w.contains("is 2d old; `kimg backup send`")));
        let ahead = Backup { taken_unix_ms: now + 3_600_000, revision: 1, bytes: 1 };
        assert!(warning(&Ok(Some((vec![ahead], away()))), now).is_some(), "of a time that is still to come");
        assert!(warning(&Err(anyhow::anyhow!("no credentials")), now).is_some_and(|w| w.contains("no credentials")));
    }

    #[test]
    fn the_newest_and_one_a_day_stay() {
        let at = |hours: u64| Backup { taken_unix_ms: hours * 3_600_000, revision: hours, bytes: 1 };
        // One an hour for ten days.
        let all: Vec<Backup> = (0..240).rev().map(at).collect();
        let gone = outdated(&all, 239 * 3_600_000, 3);
        let kept: Vec<u64> = all.iter().filter(|b| !gone.contains(b)).map(|b| b.revision).collect();
        assert_eq!(kept, [239, 238, 237, 236, 235, 234, 215, 191]);
        // However old they are, the newest stay, and what is dated ahead counts for none of them.
        let ahead = at(1_000_000);
        let list: Vec<Backup> = all[..7].iter().cloned().chain([ahead.clone()]).collect();
        assert_eq!(outdated(&list, 900_000 * 3_600_000, 3), [at(233)]);
    }

    #[test]
    fn a_copy_goes_to_a_folder_and_comes_back() {
        let dir = tempfile::tempdir().expect("dir");
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n[backup]\nto = \"usb\"\nkeep = 2\n";
        let settings = crate::config::parse(Path::new("cluster.toml"), text, dir.path()).expect("valid");
        let secrets = crate::pki::Secrets::ensure(&settings.secrets_dir(), "demo").expect("secrets");
        let away = Away::open(&settings, &Client::new(None).expect("client"), &|_| None).expect("open").expect("named");
        assert!(away.list().expect("none yet").is_empty());
        let file = dir.path().join("copy");
        let sealed = age::encrypt(&secrets.backup_key().expect("key"), b"KIMG-STORE-LOG-");
        std::fs::write(&file, &sealed).expect("written");
        let now_s = now_ms() / 1000;
        for age in [200 * DAY_S, 3, 2, 1, 0, 5, 4] {
            let backup = Backup { taken_unix_ms: (now_s - age) * 1000, revision: 7, bytes: sealed.len() as u64 };
            away.send(&file, &backup).expect("sent");
        }
        let list = away.list().expect("list");
        assert_eq!(list.len(), 6, "{list:?}");
        assert_eq!(list[0].taken_unix_ms, now_s * 1000);
        assert_eq!(away.read(&settings, &list[0]).expect("read"), b"KIMG-STORE-LOG-");
        std::fs::write(dir.path().join("usb").join(list[0].name()), "rubbish").expect("damaged");
        assert!(away.read(&settings, &list[0]).is_err());
    }
}
