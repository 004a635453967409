//! `kube-apiserver store check|snapshot|restore|migrate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use store::{Store, StoreError};

use super::migrate::{self, Engine};
use super::{EtcdFlags, Place, check, socket};

/// Where the store is.
#[derive(Args, Debug)]
pub(crate) struct PlaceFlags {
    /// Directory of the embedded store.
    #[arg(long, default_value = "/var/lib/kimg/store")]
    store_dir: PathBuf,
    #[command(flatten)]
    etcd: EtcdFlags,
}

impl PlaceFlags {
    pub(crate) fn place(&self) -> anyhow::Result<Place> {
        Place::new(&self.store_dir, &self.etcd)
    }

    /// Opens the engine of a store that exists.
    pub(crate) async fn engine(&self) -> anyhow::Result<Arc<dyn Store>> {
        migrate::existing(&self.place()?).await
    }
}

#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    place: PlaceFlags,
    /// Socket of a running server, which then compares with its memory.
    #[arg(long)]
    store_socket: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct SnapshotArgs {
    /// File to write; it must not exist.
    file: PathBuf,
    #[command(flatten)]
    place: PlaceFlags,
    /// Socket of a running server, which then makes the snapshot.
    #[arg(long)]
    store_socket: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// The snapshot.
    snapshot: PathBuf,
    #[command(flatten)]
    place: PlaceFlags,
}

#[derive(Args, Debug)]
pub(crate) struct MigrateArgs {
    /// Where to.
    #[arg(long)]
    to: Engine,
    #[command(flatten)]
    place: PlaceFlags,
}

pub(super) fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(work)
}

pub(crate) fn check(args: &CheckArgs) -> anyhow::Result<String> {
    block_on(async {
        match &args.store_socket {
            Some(socket) => socket::ask_check(socket).await,
            None => check::offline(&args.place.place()?).await,
        }
    })
}

pub(crate) fn snapshot(args: &SnapshotArgs) -> anyhow::Result<String> {
    let revision = block_on(async {
        match &args.store_socket {
            Some(socket) => from_server(socket, &args.file).await,
            None => {
                let (entries, revision) = args.place.place()?.read().await?;
                Ok(store::write_picture_file(&args.file, &entries, revision)?)
            }
        }
    })?;
    Ok(format!("{}: the store at revision {revision}", args.file.display()))
}

/// Takes a snapshot over; the file has its name only when it is whole.
async fn from_server(socket: &Path, file: &Path) -> anyhow::Result<u64> {
    if file.exists() {
        return Err(StoreError::Settings(format!("{} exists; give another name", file.display())).into());
    }
    let part = file.with_added_extension("part");
    // All of the cluster is in it.
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let taken = async {
        let mut out = options.open(&part).await.with_context(|| format!("creating {}", part.display()))?;
        let revision = socket::take_snapshot(socket, &mut out).await?;
        out.sync_all().await.with_context(|| format!("writing {}", part.display()))?;
        store::read_picture(&part)?;
        std::fs::rename(&part, file).with_context(|| format!("naming {}", file.display()))?;
        Ok(revision)
    };
    let taken = taken.await;
    if taken.is_err() {
        // The sentence about the failure says more than one about what is left.
        drop(std::fs::remove_file(&part));
    }
    taken
}

pub(crate) fn restore(args: &RestoreArgs) -> anyhow::Result<String> {
    let PlaceFlags { store_dir, etcd } = &args.place;
    // Where the store was moved to etcd, etcd's address may just have been forgotten.
    let (place, decided) = match etcd.options() {
        Some(_) => migrate::place_of_restore(store_dir, etcd)?,
        None => (args.place.place()?, None),
    };
    let (entries, revision) = store::read_picture(&args.snapshot)?;
    let raised = block_on(super::restore(&place, decided, store::format_of(&args.snapshot)?, &entries, revision))?;
    Ok(format!(
        "{}: {} keys restored into {place}, at revision {raised}{}",
        args.snapshot.display(),
        entries.len(),
        crate::encryption::needed_keys(&entries)
    ))
}

pub(crate) fn migrate(args: &MigrateArgs) -> anyhow::Result<String> {
    let PlaceFlags { store_dir, etcd } = &args.place;
    let Some(options) = etcd.options() else {
        return Err(StoreError::Settings("say where etcd is (--etcd-servers)".into()).into());
    };
    migrate::check(store_dir, args.to)?;
    block_on(async { migrate::migrate(store_dir, &options, args.to).await? })
}
