//! `kube-apiserver store check|snapshot|restore|migrate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use store::Store;

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
    fn place(&self) -> Place {
        Place::new(&self.store_dir, &self.etcd)
    }

    /// Opens the engine of a store that exists.
    pub(crate) async fn engine(&self) -> anyhow::Result<Arc<dyn Store>> {
        existing(&self.place()).await
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

/// The two engines.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Engine {
    Embedded,
    Etcd,
}

#[derive(Args, Debug)]
pub(crate) struct MigrateArgs {
    /// Where to.
    #[arg(long)]
    to: Engine,
    #[command(flatten)]
    place: PlaceFlags,
}

async fn existing(place: &Place) -> anyhow::Result<Arc<dyn Store>> {
    if place.etcd.is_none() && !place.log().exists() {
        bail!("there is no store in {}", place.dir.display());
    }
    place.engine().await
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(work)
}

pub(crate) fn check(args: &CheckArgs) -> anyhow::Result<String> {
    block_on(async {
        match &args.store_socket {
            Some(socket) => socket::ask_check(socket).await,
            None => check::offline(&args.place.place()).await,
        }
    })
}

pub(crate) fn snapshot(args: &SnapshotArgs) -> anyhow::Result<String> {
    let revision = block_on(async {
        match &args.store_socket {
            Some(socket) => from_server(socket, &args.file).await,
            None => {
                let (entries, revision) = args.place.place().read().await?;
                Ok(store::write_picture_file(&args.file, &entries, revision)?)
            }
        }
    })?;
    Ok(format!("{}: the store at revision {revision}", args.file.display()))
}

/// Takes a snapshot over; the file has its name only when it is whole.
async fn from_server(socket: &Path, file: &Path) -> anyhow::Result<u64> {
    if file.exists() {
        bail!("{} exists; give another name", file.display());
    }
    let part = file.with_added_extension("part");
    let taken = async {
        let mut out = tokio::fs::File::create(&part).await.with_context(|| format!("creating {}", part.display()))?;
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
    let place = args.place.place();
    let (entries, revision) = store::read_picture(&args.snapshot)?;
    let raised = block_on(async { Ok(place.write(&entries, revision).await?) })?;
    Ok(format!("{}: {} keys restored into {place}, at revision {raised}", args.snapshot.display(), entries.len()))
}

pub(crate) fn migrate(args: &MigrateArgs) -> anyhow::Result<String> {
    let Some(options) = args.place.place().etcd else { bail!("say where etcd is (--etcd-servers)") };
    let embedded = Place { dir: args.place.store_dir.clone(), etcd: None };
    let etcd = Place { dir: args.place.store_dir.clone(), etcd: Some(options.clone()) };
    block_on(async {
        match args.to {
            Engine::Etcd => {
                // Held until the end, so that no server writes what would be lost.
                let engine = existing(&embedded).await?;
                let moved = copy(&embedded, &etcd).await;
                tokio::task::spawn_blocking(move || engine.close()).await?;
                moved
            }
            Engine::Embedded => {
                // From here on no server writes to etcd any more.
                store::retire_etcd(&options, Some(&embedded.to_string())).await?;
                let moved = copy(&etcd, &embedded).await;
                if moved.is_err() {
                    store::retire_etcd(&options, None).await.context("giving etcd's store back")?;
                }
                moved
            }
        }
    })
}

/// Copies all objects, reads the copy, and compares each with the original.
async fn copy(from: &Place, to: &Place) -> anyhow::Result<String> {
    let (entries, revision) = from.read().await?;
    let raised = to.write(&entries, revision).await?;
    let (copied, _) = to.read().await?;
    let known = |e: &store::Entry| (e.key.clone(), e.value.clone(), e.revision, e.created);
    // Keys that expire may have gone in between.
    let lasting = |entries: &[store::Entry]| entries.iter().filter(|e| e.expires == 0).map(known).collect::<Vec<_>>();
    if lasting(&entries) != lasting(&copied) {
        bail!("the copy in {to} is not what {from} holds; start no server on it, and migrate again");
    }
    Ok(format!("{} keys moved from {from} to {to} and compared; the store goes on at revision {raised}", entries.len()))
}
