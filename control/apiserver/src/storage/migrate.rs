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
use store::{EtcdOptions, Store};

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
             shall be the store again, remove {dir}/{ENGINE}",
            dir = dir.display()
        ),
        (None, Some(_)) if Place { dir: dir.to_path_buf(), etcd: None }.log().exists() => bail!(
            "{dir} holds an embedded store that was never moved to etcd: move it (`kimg store migrate --to etcd`, or \
             `kube-apiserver store migrate --to etcd` while no server runs)",
            dir = dir.display()
        ),
        (_, etcd) => etcd,
    };
    Ok(Place { dir: dir.to_path_buf(), etcd })
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
    if place.etcd.is_none() && !place.log().exists() {
        bail!("there is no store in {}", place.dir.display());
    }
    place.engine().await
}

/// Moves everything, reads it back, and compares it.  Gives what came of it; the outer error is
/// one after which no engine has the store until it is tried again.
pub(super) async fn migrate(dir: &Path, options: &EtcdOptions, to: Engine) -> anyhow::Result<anyhow::Result<String>> {
    let embedded = Place { dir: dir.to_path_buf(), etcd: None };
    let etcd = Place { dir: dir.to_path_buf(), etcd: Some(options.clone()) };
    match to {
        Engine::Etcd => {
            // Held until the end, so that no server writes what would be lost.
            let engine = match existing(&embedded).await {
                Ok(engine) => engine,
                Err(error) => return Ok(Err(error)),
            };
            let moved = copy(&embedded, &etcd, to).await;
            tokio::task::spawn_blocking(move || engine.close()).await?;
            Ok(moved)
        }
        Engine::Embedded => {
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

/// Copies all objects, reads the copy, compares each with the original, and says where the store
/// is from now on.
async fn copy(from: &Place, to: &Place, engine: Engine) -> anyhow::Result<String> {
    let (entries, revision) = from.read().await?;
    let raised = to.write(&entries, revision).await?;
    let (copied, _) = to.read().await?;
    let known = |e: &store::Entry| (e.key.clone(), e.value.clone(), e.revision, e.created);
    // Keys that expire may have gone in between.
    let lasting = |entries: &[store::Entry]| entries.iter().filter(|e| e.expires == 0).map(known).collect::<Vec<_>>();
    if lasting(&entries) != lasting(&copied) {
        bail!("the copy in {to} is not what {from} holds; start no server on it, and migrate again");
    }
    write(&to.dir, ENGINE, engine.as_str())?;
    Ok(format!("{} keys moved from {from} to {to} and compared; the store goes on at revision {raised}", entries.len()))
}

/// What the next migration of a directory would move from, for the command: a store that is there
/// already is not overwritten by what was left behind.
pub(super) fn check(dir: &Path, to: Engine) -> anyhow::Result<()> {
    match said(dir, ENGINE)? {
        Some(engine) if engine == to => bail!(
            "the store of {dir} is in the {} engine already; if that is not so, remove {dir}/{ENGINE}",
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
