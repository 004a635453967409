//! A small HTTP server for health checks and metrics.

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::rc::Rc;

/// What a component says about itself.
pub trait Health {
    /// `Err` with a sentence while it does not do its work.
    fn healthy(&self) -> Result<(), String>;
    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String {
        String::new()
    }
}

/// Serves `/healthz`, `/livez`, `/readyz` and `/metrics` until the listener fails.
/// Runs on the component's own thread (a `LocalSet`).
///
/// # Errors
/// The address cannot be bound.
pub async fn serve<H: Health + 'static>(address: SocketAddr, health: Rc<H>) -> anyhow::Result<()> {
    let listener =
        tokio::net::TcpListener::bind(address).await.with_context(|| format!("binding the health port {address}"))?;
    loop {
        let (stream, _) = listener.accept().await.context("accepting a health check")?;
        let health = health.clone();
        tokio::task::spawn_local(async move {
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let response = answer(request.uri().path(), &*health);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            // A client that goes away in the middle is no event.
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

fn answer(path: &str, health: &impl Health) -> Response<Full<Bytes>> {
    let (status, text) = match path {
        "/healthz" | "/livez" | "/readyz" => match health.healthy() {
            Ok(()) => (StatusCode::OK, "ok".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
        },
        "/metrics" => (StatusCode::OK, health.metrics()),
        _ => (StatusCode::NOT_FOUND, "not found".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
