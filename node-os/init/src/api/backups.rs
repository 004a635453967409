//! The copies of the store that this worker keeps; nobody but the operator can read what is in them.

use super::server::{Body, Refusal, json, typed};
use anyhow::Context;
use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use node_api::{BACKUP_DIR, Backup};
use std::convert::Infallible;
use std::path::Path;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

const PIECE: usize = 64 << 10;

/// All of them, oldest first; none where there is no folder, as on a master.
pub(super) async fn list() -> Result<Response<Body>, Refusal> {
    let mut found: Vec<Backup> = Vec::new();
    let mut entries = match tokio::fs::read_dir(BACKUP_DIR).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(json(&found)),
        Err(error) => return Err(anyhow::Error::new(error).context(format!("cannot read {BACKUP_DIR}")).into()),
    };
    while let Some(entry) = entries.next_entry().await.with_context(|| format!("cannot read {BACKUP_DIR}"))? {
        // One that was just removed is none.
        let Ok(metadata) = entry.metadata().await else { continue };
        found.extend(entry.file_name().to_str().and_then(|name| Backup::of_file(name, metadata.len())));
    }
    found.sort_unstable();
    Ok(json(&found))
}

/// The bytes of one.
pub(super) async fn send(name: &str) -> Result<Response<Body>, Refusal> {
    let missing = || Refusal(StatusCode::NOT_FOUND, format!("this node keeps no backup {name:?}"));
    if Backup::of_file(name, 0).is_none() {
        return Err(missing());
    }
    let path = Path::new(BACKUP_DIR).join(name);
    let file = File::open(&path).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => missing(),
        _ => anyhow::Error::new(error).context(format!("cannot open {}", path.display())).into(),
    })?;
    let length = file.metadata().await.with_context(|| format!("cannot read {}", path.display()))?.len();
    // A body that ends too early is less than the length says, and the client sees that.
    let pieces = stream::unfold(file, |mut file| async move {
        let mut piece = vec![0; PIECE];
        let read = file.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        piece.truncate(read);
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(piece))), file))
    });
    let mut response = typed("application/octet-stream", StreamBody::new(pieces).boxed_unsync());
    response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
    Ok(response)
}
