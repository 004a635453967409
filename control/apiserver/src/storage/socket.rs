//! The way to a running server's store: HTTP on a Unix socket, for processes of the same user
//! or of root.
//!
//! `GET /snapshot` answers with a snapshot (its revision stands in the header [`REVISION`]),
//! `GET /check` with a text, `GET /fenced` where the server serves nobody else, `GET /members` with
//! etcd's members, `GET /format` with the store's format; `POST /members/remove` takes a member out,
//! `POST /raise` raises the format, for good.  A failure is answered with its
//! sentence.  No object can be written this way, and what is encrypted at rest is so in a snapshot, too.

use std::convert::Infallible;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use store::Store;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Mutex;
use tokio_util::io::ReaderStream;

use super::members::{self, Refused};
use super::{Place, check};

/// Header with a snapshot's revision.
const REVISION: &str = "kimg-revision";
/// The snapshot that is on its way to a client.
const OUTGOING: &str = "outgoing.snapshot";
/// A request that has a body says one thing.
const LONGEST_REQUEST: usize = 4096;

type Body = BoxBody<Bytes, std::io::Error>;

struct Serving {
    place: Place,
    store: Arc<dyn Store>,
    /// This process has served nobody else.
    fenced: bool,
    /// One request at a time: each takes memory and disk.
    turn: Mutex<()>,
}

/// Opens the socket; gives what serves it, for ever.
pub(crate) fn serve(
    path: &Path,
    place: Place,
    store: Arc<dyn Store>,
    fenced: bool,
) -> anyhow::Result<impl Future<Output = ()> + Send + use<>> {
    let listener = listen(path)?;
    let serving = Arc::new(Serving { place, store, fenced, turn: Mutex::new(()) });
    let path = path.to_path_buf();
    Ok(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(connection(stream, serving.clone(), path.clone()))),
                Err(error) => {
                    tracing::warn!("{} takes no connection: {error}", path.display());
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
            }
        }
    })
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // What a server before left; the store's own lock keeps two servers apart.
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("removing the old {}", path.display()));
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("closing {} to others", path.display()))?;
    Ok(listener)
}

async fn connection(stream: UnixStream, serving: Arc<Serving>, path: PathBuf) {
    let peer = stream.peer_cred().map(|c| c.uid());
    // The file's owner is the user that this process runs as.
    let own = std::fs::metadata(&path).map(|m| m.uid());
    match (&peer, &own) {
        (Ok(0), _) => {}
        (Ok(peer), Ok(own)) if peer == own => {}
        _ => return tracing::warn!("{}: a client of another user was sent away", path.display()),
    }
    let service = service_fn(move |request| {
        let serving = serving.clone();
        async move { Ok::<_, Infallible>(answer(&serving, request).await) }
    });
    if let Err(error) = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
    {
        tracing::debug!("a client of {} went away: {error}", path.display());
    }
}

async fn answer(serving: &Serving, request: Request<Incoming>) -> Response<Body> {
    let _turn = serving.turn.lock().await;
    let answered = match (request.method(), request.uri().path()) {
        (&Method::GET, "/snapshot") => snapshot(serving).await,
        (&Method::GET, "/check") => check::online(&serving.place, &serving.store).await.map(text),
        (&Method::GET, "/fenced") if serving.fenced => Ok(text("the store takes no more writes".into())),
        (&Method::GET, "/format") => Ok(format(serving)),
        (&Method::POST, "/raise") => raise(serving).await,
        (&Method::GET, "/members") => Ok(listed(members::list(&serving.place).await)),
        (&Method::POST, "/members/remove") => Ok(listed(remove(serving, request).await)),
        (_, path) => {
            let mut response = text(format!("there is no {path}; there are /snapshot, /check, /format and /members"));
            *response.status_mut() = StatusCode::NOT_FOUND;
            Ok(response)
        }
    };
    answered.unwrap_or_else(|error| {
        let mut response = text(format!("{error:#}"));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// As the node API's clients read it.
fn format(serving: &Serving) -> Response<Body> {
    let engine = if serving.place.etcd.is_some() { "etcd" } else { "embedded" };
    let store::Format { has, newest } = serving.store.format();
    text(serde_json::json!({"engine": engine, "format": has, "newest": newest}).to_string())
}

async fn raise(serving: &Serving) -> anyhow::Result<Response<Body>> {
    let before = serving.store.format();
    serving.store.raise().await.context("raising the store's format")?;
    if before.has < before.newest {
        tracing::warn!("the store's format was raised from {} to {}", before.has, before.newest);
    }
    Ok(format(serving))
}

/// The members, or why they are not told or not changed.
fn listed(members: Result<Vec<members::Shown>, Refused>) -> Response<Body> {
    let (status, said) = match members {
        Ok(members) => (StatusCode::OK, serde_json::json!(members).to_string()),
        Err(Refused(status, why)) => (status, why),
    };
    let mut response = text(said);
    *response.status_mut() = status;
    response
}

async fn remove(serving: &Serving, request: Request<Incoming>) -> Result<Vec<members::Shown>, Refused> {
    let bad = |why: &dyn std::fmt::Display| Refused(StatusCode::BAD_REQUEST, format!("the request is wrong: {why}"));
    let body = Limited::new(request.into_body(), LONGEST_REQUEST).collect().await.map_err(|error| bad(&error))?;
    let wanted = serde_json::from_slice(&body.to_bytes()).map_err(|error| bad(&error))?;
    members::remove(&serving.place, &wanted).await
}

fn text(text: String) -> Response<Body> {
    Response::new(Full::from(text).map_err(|never| match never {}).boxed())
}

/// Makes a snapshot, and sends it from a file that has no name any more.
async fn snapshot(serving: &Serving) -> anyhow::Result<Response<Body>> {
    let dir = &serving.place.dir;
    let path = dir.join(OUTGOING);
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    // Of a server that was killed.
    drop(std::fs::remove_file(&path));
    let revision = serving.store.snapshot(path.clone()).await?;
    let file = tokio::fs::File::open(&path).await.with_context(|| format!("opening {}", path.display()))?;
    std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    let size = file.metadata().await.context("asking for the snapshot's size")?.len();
    let body = StreamBody::new(ReaderStream::with_capacity(file, 64 << 10).map_ok(Frame::data));
    let mut response = Response::new(BodyExt::boxed(body));
    response.headers_mut().insert(http::header::CONTENT_LENGTH, size.into());
    response.headers_mut().insert(REVISION, revision.into());
    Ok(response)
}

/// Asks a server at `socket`.
async fn ask(socket: &Path, path: &str) -> anyhow::Result<Response<Incoming>> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.with_context(|| format!("asking the server at {}", socket.display()))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("asking the server")?;
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "store").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("asking the server")?;
    if response.status().is_success() {
        return Ok(response);
    }
    let why = response.into_body().collect().await.context("reading the server's answer")?.to_bytes();
    bail!("the server says: {}", String::from_utf8_lossy(&why))
}

/// Takes a snapshot from a running server; gives its revision.
pub(super) async fn take_snapshot(socket: &Path, to: &mut (impl AsyncWrite + Unpin)) -> anyhow::Result<u64> {
    let mut response = ask(socket, "/snapshot").await?;
    let revision = response.headers().get(REVISION).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    while let Some(frame) = response.body_mut().frame().await {
        if let Ok(data) = frame.context("taking the snapshot over")?.into_data() {
            to.write_all(&data).await.context("writing the snapshot")?;
        }
    }
    revision.context("the server does not say the snapshot's revision; it may be of another version")
}

/// Has a running server check its store.
pub(super) async fn ask_check(socket: &Path) -> anyhow::Result<String> {
    let body = ask(socket, "/check").await?.into_body().collect().await.context("reading the server's answer")?;
    Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
}
