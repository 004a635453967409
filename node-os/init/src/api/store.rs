//! The store of a master: its API server makes snapshots and checks, on its local socket; a
//! snapshot to be restored, or the wish to move the store to the other engine, is laid where the API
//! server takes it in when it starts.

use super::server::{Body, Refusal, Serving, json, typed};
use crate::disk::store::{self, FENCED, PART, StoreVolume};
use crate::machine::Command;
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use node_api::{Done, Migrate, RemoveMember, StoreEngine, StoreFormat, Taken};
use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;

const SOCKET: &str = "/run/kimg/kube-apiserver.sock";
const DIR: &str = "/var/lib/kimg/store";
/// Names that the API server knows.
const PENDING: &str = "restore.pending";
const BEGIN: &str = "begin.pending";
const REFUSED: &str = "restore.refused";
const MIGRATE_PENDING: &str = "migrate.pending";
const MIGRATE_DONE: &str = "migrate.done";
const MIGRATE_REFUSED: &str = "migrate.refused";
/// Every snapshot begins so.
const MAGIC: &[u8] = b"KIMG-STORE-LOG-";
/// How long the API server may take to end, to start, and to restore.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(100);
/// What the API server says is no longer; only a snapshot is, and that passes through.
const MOST_WORDS: usize = 64 << 10;

/// A snapshot, or the text of a check: what the API server answers is passed on.
pub(super) async fn ask(path: &'static str) -> Result<Response<Body>, Refusal> {
    let unavailable = |error: anyhow::Error| {
        let why = format!("the API server of this node does not answer: {error:#}");
        Refusal(StatusCode::SERVICE_UNAVAILABLE, why)
    };
    let response = fetch(path).await.map_err(unavailable)?;
    let (parts, body) = response.into_parts();
    if !parts.status.is_success() {
        let why = words(body).await.map_err(unavailable)?;
        return Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, String::from_utf8_lossy(&why).into_owned()));
    }
    // A body that ends too early is less than the length says, and the client sees that.
    let pieces = body
        .into_data_stream()
        .scan((), |(), piece| std::future::ready(piece.ok().map(|p| Ok::<_, Infallible>(Frame::data(p)))));
    let mut response = typed("application/octet-stream", StreamBody::new(pieces.boxed()).boxed_unsync());
    if let Some(length) = parts.headers.get(http::header::CONTENT_LENGTH) {
        response.headers_mut().insert(http::header::CONTENT_LENGTH, length.clone());
    }
    Ok(response)
}

/// The store's members, or those after one of them was removed; a refusal of the API server's is passed on.
pub(super) async fn members(serving: &Serving, remove: Option<RemoveMember>) -> Result<Response<Body>, Refusal> {
    master(serving)?;
    let request = match &remove {
        None => Request::get("/members").body(Full::default()),
        Some(wanted) => {
            let body = serde_json::to_vec(wanted).context("writing the request")?;
            Request::post("/members/remove").body(Full::from(body))
        }
    };
    pass_on(request.context("writing the request")?).await
}

/// What the store is written in.
pub(super) async fn format(serving: &Serving) -> Result<Response<Body>, Refusal> {
    master(serving)?;
    pass_on(Request::get("/format").body(Full::default()).context("writing the request")?).await
}

/// Raises that. In etcd all API servers open the store anew then, this one perhaps before it has answered.
pub(super) async fn raise(serving: &Serving) -> Result<Response<Body>, Refusal> {
    master(serving)?;
    let request = Request::post("/raise").body(Full::default()).context("writing the request")?;
    match send(request).await {
        Ok(response) if !response.status().is_success() => {
            let why = words(response.into_body()).await?;
            return Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, String::from_utf8_lossy(&why).into_owned()));
        }
        Ok(_) => {}
        Err(error) => tracing::warn!("the API server has not said that it raised the store's format: {error:#}"),
    }
    // The one that is about to end still says the format of before.
    let is_raised = async || matches!(format_now().await, Ok(store) if store.format >= store.newest);
    until("the store has not been opened in its new format yet", is_raised).await?;
    format(serving).await
}

async fn format_now() -> Result<StoreFormat> {
    Ok(serde_json::from_slice(&words(fetch("/format").await?.into_body()).await?)?)
}

/// A refusal of the API server's is passed on, too.
async fn pass_on(request: Request<Full<Bytes>>) -> Result<Response<Body>, Refusal> {
    let unavailable = |error: anyhow::Error| {
        let why = format!("the API server of this node does not answer: {error:#}");
        Refusal(StatusCode::SERVICE_UNAVAILABLE, why)
    };
    let response = send(request).await.map_err(unavailable)?;
    let status = response.status();
    let body = words(response.into_body()).await.map_err(unavailable)?;
    if !status.is_success() {
        return Err(Refusal(status, String::from_utf8_lossy(&body).into_owned()));
    }
    Ok(typed("application/json", Full::from(body).boxed_unsync()))
}

/// PID 1 keeps them in its memory.
async fn words<B>(body: B) -> Result<Bytes>
where
    B: hyper::body::Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let read = Limited::new(body, MOST_WORDS).collect().await;
    Ok(read.map_err(|error| anyhow::anyhow!(error))?.to_bytes())
}

async fn fetch(path: &str) -> Result<Response<Incoming>> {
    send(Request::get(path).body(Full::default())?).await
}

async fn send(mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
    request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("store"));
    let stream = UnixStream::connect(SOCKET).await.with_context(|| format!("connecting to {SOCKET}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender.send_request(request).await?)
}

/// Takes a snapshot, and has the API server start anew with it.
pub(super) async fn restore(serving: &Serving, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    master(serving)?;
    let dir = Path::new(DIR);
    let part = dir.join("restore.part");
    if let Err(refusal) = receive(dir, &part, request.into_body(), false).await {
        // The sentence about the failure says more than one about what is left.
        drop(std::fs::remove_file(&part));
        return Err(refusal);
    }
    let done = "the snapshot was restored; clients list everything anew";
    let volume = StoreVolume::mounted()?;
    if let Some(volume) = &volume {
        if volume.is_others()? {
            return replace(serving, volume, &part, done).await;
        }
        with(volume, StoreVolume::own).await?;
    }
    let refused = dir.join(REFUSED);
    remove(&refused)?;
    // Whoever puts something in its place needs no closed store.
    remove(&dir.join(FENCED))?;
    lay(serving, &part, PENDING).await?;
    taken(&refused, done)
}

/// Puts a snapshot in the place of another disk's store, which stays closed until it is there: one that is damaged must not
/// open what it was to replace.
async fn replace(serving: &Serving, volume: &StoreVolume, part: &Path, done: &str) -> Result<Response<Body>, Refusal> {
    let refused = Path::new(DIR).join(REFUSED);
    remove(&refused)?;
    lay(serving, part, PENDING).await?;
    let answer = taken(&refused, done)?;
    open(serving, volume).await?;
    Ok(answer)
}

/// Has this disk go on with what is on its volume.
async fn open(serving: &Serving, volume: &StoreVolume) -> Result<(), Refusal> {
    with(volume, StoreVolume::take).await?;
    serving.machine.command(Command::Restart("kube-apiserver".to_owned()));
    until("the API server has not opened its store yet", async || !is_closed().await).await
}

/// Goes on with the store that is there. Twice is as good as once.
pub(super) async fn take(serving: &Serving) -> Result<Response<Body>, Refusal> {
    master(serving)?;
    let volume = StoreVolume::mounted()?;
    let has = match &volume {
        Some(volume) if volume.is_others()? => {
            let has = volume.has_store()?;
            if has {
                open(serving, volume).await?;
            }
            has
        }
        _ if Path::new(DIR).join(FENCED).exists() => return Err(closed()),
        Some(volume) => volume.has_store()?,
        None => store::on_disk().is_some(),
    };
    Ok(json(&Taken { store: has, on_volume: volume.is_some() }))
}

fn closed() -> Refusal {
    let why = "the store of this node is closed, so that another machine or image goes on with it";
    Refusal(StatusCode::CONFLICT, why.into())
}

/// Whether the API server has taken a snapshot in.
fn taken(refused: &Path, done: &str) -> Result<Response<Body>, Refusal> {
    if refused.exists() {
        remove(refused)?;
        let why = "the snapshot is damaged, and nothing was changed; `kimg logs kube-apiserver` says where";
        return Err(Refusal(StatusCode::BAD_REQUEST, why.into()));
    }
    Ok(json(&Done { message: done.into() }))
}

/// Has a master without a store begin with a snapshot, or with nothing; a snapshot takes the place of another disk's store
/// on its volume. Twice is as good as once.
pub(super) async fn begin(serving: &Serving, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    master(serving)?;
    let dir = Path::new(DIR);
    let volume = StoreVolume::mounted()?;
    let others = volume.as_ref().map_or(Ok(false), StoreVolume::is_others)?;
    if !others && dir.join(FENCED).exists() {
        return Err(closed());
    }
    if !others && dir.join("store.log").exists() {
        return Ok(json(&Done { message: "it has a store, and goes on with that".into() }));
    }
    let part = dir.join(PART);
    if let Err(refusal) = receive(dir, &part, request.into_body(), !others).await {
        drop(std::fs::remove_file(&part));
        return Err(refusal);
    }
    match &volume {
        Some(volume) if others => return replace(serving, volume, &part, "the store has begun").await,
        Some(volume) => with(volume, StoreVolume::own).await?,
        None => {}
    }
    let refused = dir.join(REFUSED);
    remove(&refused)?;
    lay(serving, &part, BEGIN).await?;
    // Where it begins with a snapshot, that is restored next.
    until("the API server has not restored the snapshot yet", async || !dir.join(PENDING).exists()).await?;
    taken(&refused, "the store has begun")
}

/// Closes the store. An API server that was not closed has ended before this is answered: what it acknowledged is in the
/// store, and nothing more will be.
pub(super) async fn fence(serving: &Serving) -> Result<Response<Body>, Refusal> {
    master(serving)?;
    // One that waits for a backup has no store, and would go on waiting behind the fence.
    let asked = fetch("/fenced").await.map_err(|error| {
        let why = format!("the API server of this node does not answer, so its store cannot be closed: {error:#}");
        Refusal(StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    if !asked.status().is_success() {
        let dir = Path::new(DIR);
        let fenced = dir.join(FENCED);
        File::create(&fenced).with_context(|| format!("cannot create {}", fenced.display()))?;
        sync(fenced).await?;
        sync(dir.to_owned()).await?;
        serving.machine.command(Command::Restart("kube-apiserver".to_owned()));
        until("the API server has not closed its store yet", is_closed).await?;
    }
    Ok(json(&Done { message: "the store takes no more writes".into() }))
}

/// Opens it again.
pub(super) async fn unfence(serving: &Serving) -> Result<Response<Body>, Refusal> {
    master(serving)?;
    let dir = Path::new(DIR);
    let fenced = dir.join(FENCED);
    if StoreVolume::mounted()?.map_or(Ok(false), |volume| volume.is_others())? {
        return Err(closed());
    }
    if fenced.exists() {
        remove(&fenced)?;
        sync(dir.to_owned()).await?;
        serving.machine.command(Command::Restart("kube-apiserver".to_owned()));
        until("the API server has not opened its store yet", async || !is_closed().await).await?;
    }
    Ok(json(&Done { message: "the store takes writes".into() }))
}

/// Whether the API server that runs is one that serves nobody.
async fn is_closed() -> bool {
    fetch("/fenced").await.is_ok_and(|response| response.status().is_success())
}

/// Waits for the API server; `not` says what it has not done when it takes too long.
async fn until(not: &str, done: impl AsyncFn() -> bool) -> Result<(), Refusal> {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !done().await {
            tokio::time::sleep(LOOK).await;
        }
    });
    waited
        .await
        .map_err(|_| Refusal(StatusCode::GATEWAY_TIMEOUT, format!("{not}; `kimg logs kube-apiserver` says why")))
}

/// Has the API server start anew, move everything to the other engine, and compare it.
pub(super) async fn migrate(serving: &Serving, wanted: Migrate) -> Result<Response<Body>, Refusal> {
    let services = master(serving)?;
    let to = match wanted.to {
        StoreEngine::Embedded => "embedded",
        StoreEngine::Etcd => "etcd",
    };
    if !services.iter().any(|service| service.name == "etcd") {
        let why = match wanted.to {
            StoreEngine::Embedded if is_in_etcd(Path::new(DIR)) => {
                "the store was moved to etcd, which this master's image has not; build it with store = \"etcd\", and \
                 move the store back from there"
            }
            StoreEngine::Embedded => "the store is embedded already: this master's image has no etcd",
            StoreEngine::Etcd => {
                "this master's image has no etcd; say store = \"etcd\" in cluster.toml, build the image, and restore a \
                 snapshot of this store there"
            }
        };
        return Err(Refusal(StatusCode::CONFLICT, why.into()));
    }
    let dir = Path::new(DIR);
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let (done, refused) = (dir.join(MIGRATE_DONE), dir.join(MIGRATE_REFUSED));
    remove(&done)?;
    remove(&refused)?;
    let part = dir.join("migrate.part");
    std::fs::write(&part, to).with_context(|| format!("cannot write {}", part.display()))?;
    sync(part.clone()).await?;
    lay(serving, &part, MIGRATE_PENDING).await?;
    match (std::fs::read_to_string(&done), std::fs::read_to_string(&refused)) {
        (Ok(said), _) => Ok(json(&Done { message: said.trim().to_owned() })),
        (_, Ok(why)) => Err(Refusal(StatusCode::CONFLICT, format!("nothing was changed: {}", why.trim()))),
        (Err(error), Err(_)) => {
            Err(anyhow::Error::new(error).context("the API server does not say what came of it").into())
        }
    }
}

/// Whether a migration left word that the store is in etcd.
fn is_in_etcd(dir: &Path) -> bool {
    std::fs::read_to_string(dir.join("engine")).is_ok_and(|engine| engine.trim() == "etcd")
}

/// The services of this node, if it is a master.
fn master(serving: &Serving) -> Result<Vec<node_api::Service>, Refusal> {
    let services = serving.machine.services();
    if !services.iter().any(|service| service.name == "kube-apiserver") {
        return Err(Refusal(StatusCode::NOT_FOUND, "this node is no master: it has no store".into()));
    }
    Ok(services)
}

/// Gives `part`, which is durable, the name that the API server looks for when it starts, starts it
/// anew, and waits until it has taken the file.
async fn lay(serving: &Serving, part: &Path, name: &str) -> Result<(), Refusal> {
    let dir = Path::new(DIR);
    let pending = dir.join(name);
    std::fs::rename(part, &pending).with_context(|| format!("cannot name {}", pending.display()))?;
    sync(dir.to_owned()).await?;
    serving.machine.command(Command::Restart("kube-apiserver".to_owned()));
    until(&format!("the API server has not taken {name} in yet"), async || !pending.exists()).await
}

/// Writes the body to a file, and makes it durable; `or_nothing`: it may be empty.
async fn receive(dir: &Path, part: &Path, mut body: Incoming, or_nothing: bool) -> Result<(), Refusal> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut file = File::create(part).with_context(|| format!("cannot create {}", part.display()))?;
    let mut head = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Refusal(StatusCode::BAD_REQUEST, format!("the snapshot was cut off: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if head.len() < MAGIC.len() {
            head.extend_from_slice(&data);
            if !head.starts_with(MAGIC) && head.len() >= MAGIC.len() {
                return Err(Refusal(StatusCode::BAD_REQUEST, "this is no snapshot of a store".into()));
            }
        }
        file.write_all(&data).with_context(|| format!("cannot write {}", part.display()))?;
    }
    let fits = head.starts_with(MAGIC) || or_nothing && head.is_empty();
    if !fits {
        return Err(Refusal(StatusCode::BAD_REQUEST, "this is no snapshot of a store".into()));
    }
    Ok(sync(part.to_owned()).await?)
}

/// PID 1 has one thread, which must not wait for a disk.
async fn sync(path: PathBuf) -> Result<()> {
    let synced = tokio::task::spawn_blocking(move || {
        File::open(&path).and_then(|f| f.sync_all()).with_context(|| format!("cannot make {} durable", path.display()))
    });
    synced.await.context("waiting for the disk")?
}

/// The same for what is noted on a data volume.
async fn with(volume: &StoreVolume, note: fn(&StoreVolume) -> Result<()>) -> Result<()> {
    let volume = volume.clone();
    tokio::task::spawn_blocking(move || note(&volume)).await.context("waiting for the data volume")?
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn of_endless_words_no_more_is_kept_than_fits() {
        let said = |length: usize| Full::<Bytes>::from(vec![b'x'; length]);
        assert_eq!(words(said(MOST_WORDS)).await.unwrap().len(), MOST_WORDS);
        assert!(words(said(MOST_WORDS + 1)).await.is_err());
    }
}
