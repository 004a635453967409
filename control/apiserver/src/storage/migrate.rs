//! Moving everything from one engine to the other.
//!
//! A directory's file [`ENGINE`] says which engine the store was moved to last, so that no server
//! goes on with what was left behind.  A file [`PENDING`] names the engine to move to at the next
//! start of the server; what came of it stands in [`DONE`] or [`REFUSED`].

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use store::{Entry, EtcdHolds, EtcdOptions, Store};

use super::{EtcdFlags, Place};

/// Which engine the store was moved to.
const ENGINE: &str = "engine";
/// Which engine the next start moves the store to.
const PENDING: &str = "migrate.pending";
/// The sentence about a migration that was done.
const DONE: &str = "migrate.done";
/// The sentence about one that was not done, and changed nothing.
const REFUSED: &str = "migrate.refused";

/// The two engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    Embedded,
    Etcd,
}

impl Engine {
    fn as_str(self) -> &'static str {
        match self {
            Engine::Embedded => "embedded",
            Engine::Etcd => "etcd",
        }
    }
}

/// What a file in `dir` says, if it is there.
fn said(dir: &Path, name: &str) -> anyhow::Result<Option<Engine>> {
    let path = dir.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => match Engine::from_str(text.trim(), false) {
            Ok(engine) => Ok(Some(engine)),
            Err(_) => bail!("{} says neither embedded nor etcd", path.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Writes a file that a lost power leaves whole, as it was or as it is to be.
fn write(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let (path, part) = (dir.join(name), dir.join(format!("{name}.part")));
    let written = || {
        std::fs::create_dir_all(dir)?;
        let mut file = std::fs::File::create(&part)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        std::fs::rename(&part, &path)?;
        std::fs::File::open(dir)?.sync_all()
    };
    written().with_context(|| format!("writing {}", path.display()))
}

fn remove(dir: &Path, name: &str) -> anyhow::Result<()> {
    match std::fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.join(name).display()))
        }
        _ => Ok(()),
    }
}

/// Where the store is: in etcd where its servers are given, unless it was moved away from there.
pub(super) fn place(dir: &Path, flags: &EtcdFlags) -> anyhow::Result<Place> {
    let etcd = flags.options();
    let etcd = match (said(dir, ENGINE)?, etcd) {
        (Some(Engine::Embedded), _) => None,
        (Some(Engine::Etcd), None) => bail!(
            "the store of {dir} was moved to etcd: say where etcd is (--etcd-servers); if what was left behind in {dir} \
             shall be the store again, write `embedded` into {dir}/{ENGINE}",
            dir = dir.display()
        ),
        (None, Some(_)) if Place { dir: dir.to_path_buf(), etcd: None }.log().exists() => bail!(
            "{dir} holds an embedded store that was never moved to etcd: move it (`kimg store migrate --to etcd`, or \
             `kube-apiserver store migrate --to etcd` while no server runs), or restore a snapshot; if the store is in etcd \
             already, write `etcd` into {dir}/{ENGINE}",
            dir = dir.display()
        ),
        (_, etcd) => etcd,
    };
    Ok(Place { dir: dir.to_path_buf(), etcd })
}

/// Where a snapshot goes, and what the directory is to say once it is there: where it cannot be told where the store
/// is, the snapshot is the store from then on, in the engine that the flags name.
pub(super) fn place_of_restore(dir: &Path, flags: &EtcdFlags) -> anyhow::Result<(Place, Option<Engine>)> {
    said(dir, ENGINE)?;
    Ok(match place(dir, flags) {
        Ok(place) => (place, None),
        Err(_) => {
            let etcd = flags.options();
            let engine = if etcd.is_some() { Engine::Etcd } else { Engine::Embedded };
            (Place { dir: dir.to_path_buf(), etcd }, Some(engine))
        }
    })
}

/// Notes where the store is from now on.
pub(super) fn is_in(dir: &Path, engine: Engine) -> anyhow::Result<()> {
    write(dir, ENGINE, engine.as_str())
}

/// Why [`place`] does not know where the store is, when etcd was asked as well.
pub(super) async fn undecided(dir: &Path, flags: &EtcdFlags, error: anyhow::Error) -> anyhow::Error {
    let Some(options) = flags.options() else { return error };
    if !matches!(said(dir, ENGINE), Ok(None)) {
        return error;
    }
    match would_be_lost(dir, &options).await {
        Ok(None) => error,
        Ok(Some(what)) => anyhow::anyhow!("{what}; or restore a snapshot, which then is the store"),
        Err(why) => error.context(format!("{why:#}")),
    }
}

/// What a migration of `dir` to etcd would destroy: a store that is not the one in `dir`.
async fn would_be_lost(dir: &Path, options: &EtcdOptions) -> anyhow::Result<Option<String>> {
    let [embedded, etcd] = both(dir, options);
    if store::etcd_holds(options).await? == EtcdHolds::Nothing {
        return Ok(None);
    }
    let (theirs, _) = etcd.read().await?;
    let (ours, revision) = embedded.read().await?;
    // The same: a migration ended before it was noted.
    if theirs.is_empty() || same_content(&ours, &theirs) {
        return Ok(None);
    }
    let which = format!("write into {}/{ENGINE} which one is to go on, `etcd` or `embedded`", dir.display());
    Ok(match said(dir, ENGINE)? {
        None => {
            Some(format!("{etcd} holds another store than {embedded}, and nothing says which one is older: {which}"))
        }
        // What was left behind in etcd, or half of a migration to it, is no newer than what it comes from.
        Some(_) if theirs.iter().any(|e| e.revision > revision) => Some(format!(
            "{etcd} holds another store, with newer objects than {embedded}: {which}, or remove it from etcd"
        )),
        Some(_) => None,
    })
}

/// The places of the embedded store and of etcd.
fn both(dir: &Path, options: &EtcdOptions) -> [Place; 2] {
    [None, Some(options.clone())].map(|etcd| Place { dir: dir.to_path_buf(), etcd })
}

/// Does the migration that waits for this start, if one does.
pub(super) async fn pending(dir: &Path, flags: &EtcdFlags) -> anyhow::Result<()> {
    let Some(to) = said(dir, PENDING)? else { return Ok(()) };
    remove(dir, DONE)?;
    remove(dir, REFUSED)?;
    let moved: anyhow::Result<String> = match (place(dir, flags), flags.options()) {
        (Ok(Place { etcd: None, .. }), _) if to == Engine::Embedded => Ok("the store is embedded already".into()),
        (Ok(Place { etcd: Some(_), .. }), _) if to == Engine::Etcd => Ok("the store is in etcd already".into()),
        (_, Some(options)) => migrate(dir, &options, to).await?,
        (_, None) => Err(anyhow::anyhow!("this server is not told where etcd is (--etcd-servers)")),
    };
    match moved {
        Ok(text) => {
            tracing::warn!("{text}");
            write(dir, DONE, &text)?;
        }
        Err(error) => {
            tracing::error!("the store is not moved, and nothing was changed: {error:#}");
            write(dir, REFUSED, &format!("{error:#}"))?;
        }
    }
    remove(dir, PENDING)
}

/// The engine of a store that exists.
pub(super) async fn existing(place: &Place) -> anyhow::Result<Arc<dyn Store>> {
    if place.etcd.is_none() {
        place.exists()?;
    }
    place.engine().await
}

/// Moves everything, reads it back, and compares it.  Gives what came of it; the outer error is
/// one after which no engine has the store until it is tried again.
pub(super) async fn migrate(dir: &Path, options: &EtcdOptions, to: Engine) -> anyhow::Result<anyhow::Result<String>> {
    let [embedded, etcd] = both(dir, options);
    match to {
        Engine::Etcd => {
            // Held until the end, so that no server writes what would be lost.
            let engine = match existing(&embedded).await {
                Ok(engine) => engine,
                Err(error) => return Ok(Err(error)),
            };
            let moved = match would_be_lost(dir, options).await {
                Ok(None) => copy(&embedded, &etcd, to).await,
                Ok(Some(what)) => Err(anyhow::anyhow!(what)),
                Err(error) => Err(error),
            };
            tokio::task::spawn_blocking(move || engine.close()).await?;
            Ok(moved)
        }
        Engine::Embedded => {
            match comes_from_etcd(dir, options).await {
                Ok(None) => {}
                Ok(Some(said)) => return Ok(Ok(said)),
                Err(error) => return Ok(Err(error)),
            }
            // Until all is compared, nobody takes a log that is there for the store.
            if let Err(error) = is_in(dir, Engine::Etcd) {
                return Ok(Err(error));
            }
            // From here on no server writes to etcd any more.
            if let Err(error) = store::retire_etcd(options, Some(&embedded.to_string())).await {
                return Ok(Err(error.into()));
            }
            let moved = copy(&etcd, &embedded, to).await;
            if moved.is_err() {
                store::retire_etcd(options, None).await.context("giving etcd's store back")?;
            }
            Ok(moved)
        }
    }
}

/// Before a migration of etcd's store to `dir`: a store that is there already stays, and is said to be the one; and what
/// was left behind in etcd is not taken for the store.
async fn comes_from_etcd(dir: &Path, options: &EtcdOptions) -> anyhow::Result<Option<String>> {
    let [embedded, etcd] = both(dir, options);
    if said(dir, ENGINE)? == Some(Engine::Etcd) {
        return Ok(None);
    }
    if embedded.log().exists() {
        is_in(dir, Engine::Embedded)?;
        return Ok(Some(format!(
            "the store is embedded already, in {embedded}; what {etcd} may hold stays as it is (if that is the store, write \
             `etcd` into {}/{ENGINE})",
            dir.display()
        )));
    }
    match store::etcd_holds(options).await? {
        EtcdHolds::Store => Ok(None),
        EtcdHolds::Nothing => bail!("there is no store in {etcd}; look at --etcd-prefix"),
        EtcdHolds::Moved(to) => bail!(
            "{etcd} holds what was left behind when its store was moved to {to}; if the directory {to} holds no store, \
             write `etcd` into {}/{ENGINE}, and migrate again",
            dir.display()
        ),
    }
}

/// Copies all objects, reads the copy, compares each with the original, and says where the store
/// is from now on.
async fn copy(from: &Place, to: &Place, engine: Engine) -> anyhow::Result<String> {
    let (entries, revision) = from.read().await?;
    let raised = to.write(store::oldest_format(), &entries, revision).await?;
    let (copied, _) = to.read().await?;
    if !same_content(&entries, &copied) {
        bail!("the copy in {to} is not what {from} holds; start no server on it, and migrate again");
    }
    is_in(&to.dir, engine)?;
    Ok(format!("{} keys moved from {from} to {to} and compared; the store goes on at revision {raised}", entries.len()))
}

/// Whether two stores hold the same objects at the same revisions; keys that expire may have gone in between.
fn same_content(a: &[Entry], b: &[Entry]) -> bool {
    let lasting = |entries: &'_ [Entry]| {
        let known = |e: &Entry| (e.key.clone(), e.value.clone(), e.revision, e.created);
        entries.iter().filter(|e| e.expires == 0).map(known).collect::<Vec<_>>()
    };
    lasting(a) == lasting(b)
}

/// What the next migration of a directory would move from, for the command: a store that is there
/// already is not overwritten by what was left behind.
pub(super) fn check(dir: &Path, to: Engine) -> anyhow::Result<()> {
    match said(dir, ENGINE)? {
        Some(engine) if engine == to => bail!(
            "the store of {dir} is in the {} engine already; if that is not so, write the other one's name into \
             {dir}/{ENGINE}",
            to.as_str(),
            dir = dir.display()
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(servers: &[&str]) -> EtcdFlags {
        EtcdFlags {
            etcd_servers: servers.iter().map(ToString::to_string).collect(),
            etcd_cafile: None,
            etcd_certfile: None,
            etcd_keyfile: None,
            etcd_prefix: "/registry".into(),
            etcd_compaction_interval: std::time::Duration::ZERO,
        }
    }

    #[test]
    fn a_directory_remembers_where_its_store_went() {
        let dir = tempfile::tempdir().unwrap();
        let in_etcd = |servers: &[&str]| place(dir.path(), &flags(servers)).map(|p| p.etcd.is_some());
        assert!(!in_etcd(&[]).unwrap() && in_etcd(&["https://a"]).unwrap(), "as the flags say");
        let log = Place { dir: dir.path().to_path_buf(), etcd: None }.log();
        std::fs::write(&log, "").unwrap();
        assert!(in_etcd(&["https://a"]).unwrap_err().to_string().contains("never moved"), "nothing is left unseen");
        assert!(!in_etcd(&[]).unwrap());
        write(dir.path(), ENGINE, "embedded").unwrap();
        assert!(!in_etcd(&[]).unwrap() && !in_etcd(&["https://a"]).unwrap());
        assert!(check(dir.path(), Engine::Embedded).is_err() && check(dir.path(), Engine::Etcd).is_ok());
        write(dir.path(), ENGINE, "etcd").unwrap();
        assert!(in_etcd(&["https://a"]).unwrap());
        assert!(in_etcd(&[]).unwrap_err().to_string().contains("--etcd-servers"));
        write(dir.path(), ENGINE, "other").unwrap();
        assert!(in_etcd(&[]).unwrap_err().to_string().contains("neither"));
    }

    #[tokio::test]
    async fn what_cannot_be_moved_is_said_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        for (to, wanted) in [("etcd", REFUSED), ("embedded", DONE)] {
            write(dir.path(), PENDING, to).unwrap();
            pending(dir.path(), &flags(&[])).await.unwrap();
            assert!(dir.path().join(wanted).exists() && !dir.path().join(PENDING).exists(), "{to}");
            assert!(!dir.path().join(ENGINE).exists());
        }
        assert!(!dir.path().join(REFUSED).exists(), "of the migration before");
    }
}
