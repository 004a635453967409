//! `GET /kimg/backup`: a snapshot of the whole store, encrypted to the operator's public key.
//!
//! Who may fetch it (RBAC on the path) learns nothing: the private half is not in the cluster. So every node can
//! keep copies, and nothing but the operator's folder brings them back.

mod age;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use age::{PIECE, Recipient, Sealer};
use anyhow::Context as _;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use store::Store;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::error::{ApiError, Result};
use crate::pipeline::Body;

/// The path that is asked.
pub(crate) const PATH: &str = "/kimg/backup";
/// Header with the snapshot's revision.
const REVISION: &str = "kimg-revision";
/// The snapshot that is on its way to a client.
const OUTGOING: &str = "outgoing.backup";

const PLACES: usize = 4;
/// What a backup leaves for the store to grow into.
const KEPT_FREE: u64 = 64 << 20;

/// Makes backups.
#[derive(Debug)]
pub(crate) struct Backup {
    recipient: Recipient,
    dir: PathBuf,
    /// One snapshot is made at a time.
    turn: Arc<Mutex<()>>,
    /// How many may be on their way: each takes disk until its last byte.
    places: Arc<Semaphore>,
}

impl Backup {
    /// None: no public key was given.
    pub(crate) fn new(config: &Config) -> anyhow::Result<Option<Backup>> {
        let Some(file) = &config.backup_recipient_file else { return Ok(None) };
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let recipient = Recipient::parse(&text).with_context(|| format!("reading {}", file.display()))?;
        Ok(Some(Backup {
            recipient,
            dir: config.store_dir.clone(),
            turn: Arc::default(),
            places: Arc::new(Semaphore::new(PLACES)),
        }))
    }

    /// Answers with a backup of what is in the store now.
    pub(crate) async fn answer(&self, store: Arc<dyn Store>) -> Result<Response<Body>> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return Err(ApiError::too_many_requests("backups are on their way to others; ask again later", 10));
        };
        let (turn, dir) = (self.turn.clone(), self.dir.clone());
        // It goes on to its end, and keeps its place, when the client goes away: two must never write the same file.
        let made = tokio::spawn(async move {
            let _turn = turn.lock_owned().await;
            snapshot(store.as_ref(), &dir).await.map(|made| (place, made))
        });
        let (place, (file, revision)) = made.await.map_err(ApiError::internal)?.map_err(ApiError::internal)?;
        let size = file.metadata().await.map_err(ApiError::internal)?.len();
        let (head, sealer) = Sealer::start(&self.recipient).map_err(ApiError::internal)?;
        let length = head.len() as u64 + Sealer::sealed_size(size);
        let rest = Rest { file, left: size, sealer: Some(sealer), head: Some(head), _place: place };
        let body = StreamBody::new(stream::unfold(rest, |mut rest| async move {
            let piece = rest.piece().await.transpose()?;
            if piece.is_err() {
                rest.sealer = None;
            }
            Some((piece.map(|bytes| Frame::data(Bytes::from(bytes))), rest))
        }));
        let mut response = Response::new(body.boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(http::header::CONTENT_LENGTH, length.into());
        headers.insert(REVISION, revision.into());
        Ok(response)
    }
}

/// A snapshot in a file that has no name any more, and its revision.
async fn snapshot(store: &dyn Store, dir: &Path) -> anyhow::Result<(File, u64)> {
    let path = dir.join(OUTGOING);
    tokio::fs::create_dir_all(dir).await.with_context(|| format!("making {}", dir.display()))?;
    check_room(dir)?;
    // Of a server that was killed.
    drop(tokio::fs::remove_file(&path).await);
    let revision = store.snapshot(path.clone()).await?;
    let file = File::open(&path).await.with_context(|| format!("opening {}", path.display()))?;
    tokio::fs::remove_file(&path).await.with_context(|| format!("removing {}", path.display()))?;
    Ok((file, revision))
}

/// The snapshot lies beside the store for a while, which must not be refused a write for it.
fn check_room(dir: &Path) -> anyhow::Result<()> {
    let disk = rustix::fs::statvfs(dir).with_context(|| format!("looking at {}", dir.display()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    // A snapshot is no larger than the log; of etcd it is not known before.
    let log = std::fs::metadata(dir.join("store.log")).map_or(0, |meta| meta.len());
    let needed = log.saturating_add(KEPT_FREE);
    anyhow::ensure!(
        free >= needed,
        "no backup is made: {} MiB are free beside the store, and it needs {}",
        free >> 20,
        needed >> 20
    );
    Ok(())
}

/// What is still to be sent.
struct Rest {
    file: File,
    left: u64,
    /// None: all has been sent, or it failed.
    sealer: Option<Sealer>,
    head: Option<Vec<u8>>,
    _place: OwnedSemaphorePermit,
}

impl Rest {
    async fn piece(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        if let Some(head) = self.head.take() {
            return Ok(Some(head));
        }
        let Some(sealer) = &mut self.sealer else { return Ok(None) };
        let size = usize::try_from(self.left).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; size];
        self.file.read_exact(&mut piece).await?;
        self.left -= size as u64;
        sealer.seal(&mut piece, self.left == 0).map_err(std::io::Error::other)?;
        if self.left == 0 {
            self.sealer = None;
        }
        Ok(Some(piece))
    }
}
