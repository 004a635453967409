//! The cluster's registry on its master: what the operator asks of it is passed on to its socket, which nobody else may
//! open.

use super::server::{Body, Refusal, Serving};
use anyhow::{Context, Result};
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::rc::Rc;
use tokio::net::UnixStream;

const SERVICE: &str = "cluster-registry";
const SOCKET: &str = "/run/kimg/cluster-registry.sock";

/// Asks the registry, and hands on what it answers.
pub(super) async fn pass_on(serving: &Rc<Serving>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    if !serving.machine.services().iter().any(|service| service.name == SERVICE) {
        let why = "this node has no registry; write [registry] in cluster.toml, build both images, and start the nodes \
                   with them";
        return Err(Refusal(StatusCode::NOT_FOUND, why.into()));
    }
    let without_body = request.method() == Method::HEAD;
    let response = ask(request).await.map_err(|error| {
        let why = format!("the registry does not answer: {error:#}; `kimg logs {SERVICE}` says why");
        Refusal(StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    let (parts, body) = response.into_parts();
    if without_body {
        return Ok(Response::from_parts(parts, Empty::new().boxed_unsync()));
    }
    // A body that ends too early is less than the length says, and the client sees that.
    let pieces = body
        .into_data_stream()
        .scan((), |(), piece| std::future::ready(piece.ok().map(|p| Ok::<_, Infallible>(Frame::data(p)))));
    Ok(Response::from_parts(parts, StreamBody::new(pieces.boxed()).boxed_unsync()))
}

async fn ask(request: Request<Incoming>) -> Result<Response<Incoming>> {
    let stream = UnixStream::connect(SOCKET).await.with_context(|| format!("connecting to {SOCKET}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender.send_request(request).await?)
}
