//! Where objects are kept: the embedded store, or etcd where its servers are given.
//!
//! A file named [`PENDING`] in the store's directory is a snapshot that takes the store's place
//! at the next start: so a store that no server can open any more can be restored, too.
//! [`BEGIN`] is one that a place begins with which has no store yet, and is nothing elsewhere.  With
//! [`FENCED`] the store is closed: its last copy is taken, and nobody is served any more.

mod check;
pub(crate) mod commands;
pub(crate) mod member;
mod members;
mod migrate;
mod socket;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use store::{DirDisk, Embedded, Entry, Etcd, EtcdOptions, Members, Options, Store, StoreError};

pub(crate) use socket::serve;

/// A snapshot to be restored at the next start.
pub(crate) const PENDING: &str = "restore.pending";
/// What a place without a store begins with: a snapshot, or, where the file is empty, nothing.
const BEGIN: &str = "begin.pending";
/// Whatever this store acknowledged is in a copy that another server goes on with, so that it must take no more.
const FENCED: &str = "fenced";
/// How often a server that waits looks whether another one has filled the store.
const LOOK: Duration = Duration::from_secs(1);
/// A pending snapshot that could not be read.
const REFUSED: &str = "restore.refused";

/// Settings of etcd, under upstream's names.
#[derive(Args, Clone, Debug)]
pub struct EtcdFlags {
    /// etcd's members (https://host:2379), with commas; without them the embedded store is used.
    #[arg(long, value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// CA bundle that etcd's certificates are checked with.
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    /// Client certificate shown to etcd.
    #[arg(long)]
    pub etcd_certfile: Option<PathBuf>,
    /// Key of the client certificate shown to etcd.
    #[arg(long)]
    pub etcd_keyfile: Option<PathBuf>,
    /// What this cluster's keys in etcd begin with.
    #[arg(long, default_value = "/registry")]
    pub etcd_prefix: String,
    /// How often etcd's history is compacted (5m0s); 0: never by this server.
    #[arg(long, default_value = "5m0s", value_parser = duration)]
    pub etcd_compaction_interval: Duration,
}

impl EtcdFlags {
    /// None: no servers are given.
    fn options(&self) -> Option<EtcdOptions> {
        (!self.etcd_servers.is_empty()).then(|| EtcdOptions {
            members: Members {
                endpoints: self.etcd_servers.clone(),
                ca_file: self.etcd_cafile.clone(),
                cert_file: self.etcd_certfile.clone(),
                key_file: self.etcd_keyfile.clone(),
            },
            prefix: self.etcd_prefix.clone(),
            compaction_interval: self.etcd_compaction_interval,
            ..EtcdOptions::default()
        })
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let nanos = api::time::parse_duration(text).ok_or("not a duration; write it as 5m0s")?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| "it must not be negative".into())
}

/// 2 for settings that cannot be, 1 for every other failure.
pub(crate) fn exit_code(error: &anyhow::Error) -> ExitCode {
    let settings = |cause: &StoreError| matches!(cause, StoreError::Settings(_));
    ExitCode::from(if error.chain().filter_map(|c| c.downcast_ref()).any(settings) { 2 } else { 1 })
}

/// Where the store is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Directory of the embedded store, and of what waits to be restored.
    dir: PathBuf,
    etcd: Option<EtcdOptions>,
}

impl Place {
    /// Where the store in `dir` or in etcd is; see [`migrate`].
    pub(crate) fn new(dir: &Path, flags: &EtcdFlags) -> anyhow::Result<Place> {
        migrate::place(dir, flags)
    }

    /// The same, after a migration and a restore that wait were done; with `await_restore` an empty place is none.
    pub(crate) async fn of_server(dir: &Path, flags: &EtcdFlags, await_restore: bool) -> anyhow::Result<Place> {
        migrate::pending(dir, flags).await?;
        let begins = begin_pending(dir, flags).await?;
        restore_pending(dir, flags).await?;
        let place = match Place::new(dir, flags) {
            Ok(place) => place,
            Err(error) => return Err(migrate::undecided(dir, flags, error).await),
        };
        if (await_restore && !begins || place.is_fenced()) && place.is_empty().await? {
            tracing::warn!("there is no store in {place}, and none is made: a backup is waited for");
            crate::notify::send("STATUS=waits for a backup to be restored (`kimg backup restore`)");
            // Whoever lays the snapshot down starts the server anew; into etcd it may come by way of another one.
            while place.etcd.is_none() || place.is_empty().await? {
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(place)
    }

    /// Whether the store was closed, for a copy of it to go on elsewhere.
    pub(crate) fn is_fenced(&self) -> bool {
        self.dir.join(FENCED).exists()
    }

    /// Whether nothing was ever stored there.
    async fn is_empty(&self) -> anyhow::Result<bool> {
        Ok(match &self.etcd {
            Some(options) => store::etcd_holds(options).await? == store::EtcdHolds::Nothing,
            None => !self.log().try_exists().with_context(|| format!("looking at {}", self.log().display()))?,
        })
    }

    /// The embedded store's log.
    fn log(&self) -> PathBuf {
        self.dir.join("store.log")
    }

    /// Opens the engine.
    pub(crate) async fn engine(&self) -> anyhow::Result<Arc<dyn Store>> {
        if let Some(options) = &self.etcd {
            return Ok(Arc::new(Etcd::open(options.clone()).await?));
        }
        let disk = DirDisk::open(&self.dir)?;
        Ok(Arc::new(Embedded::open(Arc::new(disk), Options::default())?))
    }

    /// Puts entries in the store's place; see [`store::write_store`] and [`store::write_etcd`], which keeps its own format.
    async fn write(&self, format: u32, entries: &[Entry], revision: u64) -> store::Result<u64> {
        match &self.etcd {
            Some(options) => store::write_etcd(options, entries, revision).await,
            None => store::write_store(&self.dir, format, entries, revision),
        }
    }

    /// Everything, read from disk or from etcd, past any server that runs.
    pub(crate) async fn read(&self) -> store::Result<(Vec<Entry>, u64)> {
        match &self.etcd {
            Some(options) => store::read_etcd(options).await,
            None => {
                self.exists()?;
                store::read_picture(&self.log())
            }
        }
    }

    /// Refuses a directory that holds no embedded store.
    fn exists(&self) -> store::Result<()> {
        // Where it cannot be told, reading says why.
        if !matches!(self.log().try_exists(), Ok(false)) {
            return Ok(());
        }
        Err(StoreError::Settings(format!(
            "there is no store in {}; look at --store-dir, or say where etcd is (--etcd-servers)",
            self.dir.display()
        )))
    }
}

/// Has a place without a store begin with what waits for this start; whether it may begin with nothing.
async fn begin_pending(dir: &Path, flags: &EtcdFlags) -> anyhow::Result<bool> {
    let pending = dir.join(BEGIN);
    if !pending.exists() {
        return Ok(false);
    }
    // Where a store is nobody knows, nothing is done, as for one that is there.
    let empty = match Place::new(dir, flags) {
        Ok(place) => place.is_empty().await?,
        Err(_) => false,
    };
    let nothing = pending.metadata().with_context(|| format!("looking at {}", pending.display()))?.len() == 0;
    if empty && !nothing {
        let restored = dir.join(PENDING);
        std::fs::rename(&pending, &restored).with_context(|| format!("naming {}", restored.display()))?;
        return Ok(false);
    }
    std::fs::remove_file(&pending).with_context(|| format!("removing {}", pending.display()))?;
    Ok(empty)
}

/// Restores the snapshot that waits for this start, if one does.
async fn restore_pending(dir: &Path, flags: &EtcdFlags) -> anyhow::Result<()> {
    let pending = dir.join(PENDING);
    if !pending.exists() {
        return Ok(());
    }
    match store::read_picture(&pending) {
        Ok((entries, revision)) => {
            let (place, decided) = migrate::place_of_restore(dir, flags)?;
            let raised = restore(&place, decided, store::format_of(&pending)?, &entries, revision).await?;
            std::fs::remove_file(&pending).with_context(|| format!("removing {}", pending.display()))?;
            let needed = crate::encryption::needed_keys(&entries);
            tracing::warn!("a snapshot with {} keys was restored, at revision {raised}{needed}", entries.len());
        }
        Err(error) => {
            tracing::error!("the snapshot to be restored is not taken: {error}");
            let refused = dir.join(REFUSED);
            std::fs::rename(&pending, &refused).with_context(|| format!("naming {}", refused.display()))?;
        }
    }
    Ok(())
}

/// Puts a snapshot in the store's place, and then notes where that is, if it was not known before.
async fn restore(
    place: &Place,
    decided: Option<migrate::Engine>,
    format: u32,
    entries: &[Entry],
    revision: u64,
) -> anyhow::Result<u64> {
    let raised = place.write(format, entries, revision).await?;
    if let Some(engine) = decided {
        migrate::is_in(&place.dir, engine)?;
    }
    Ok(raised)
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.etcd {
            Some(options) => write!(f, "etcd at {}, below {}", options.members.endpoints.join(","), options.prefix),
            None => write!(f, "{}", self.dir.display()),
        }
    }
}
