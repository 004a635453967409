//! The health and metrics server: plain HTTP, loopback only.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What the endpoints answer with.
pub struct Health {
    ready: AtomicBool,
    metrics: Box<dyn Fn() -> String + Send + Sync>,
}

impl Health {
    pub fn new(metrics: impl Fn() -> String + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { ready: AtomicBool::new(false), metrics: Box::new(metrics) })
    }

    /// `/readyz` answers 200 from now on.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    fn answer(&self, path: &str) -> (StatusCode, String) {
        match path {
            "/healthz" | "/livez" => (StatusCode::OK, "ok".into()),
            "/readyz" if self.ready.load(Ordering::Relaxed) => (StatusCode::OK, "ok".into()),
            "/readyz" => {
                (StatusCode::SERVICE_UNAVAILABLE, "not ready: caches are still filling from the API server\n".into())
            }
            "/metrics" => (StatusCode::OK, process_metrics() + &(self.metrics)()),
            _ => (StatusCode::NOT_FOUND, "404 page not found\n".into()),
        }
    }
}

/// Binds the address and serves in the background.
pub async fn serve(address: SocketAddr, health: Arc<Health>) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("listening on {address} for health checks"))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    tokio::spawn(connection(TokioIo::new(stream), health.clone()));
                }
                Err(error) => {
                    tracing::warn!("accepting a health connection failed: {error}");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

async fn connection(stream: TokioIo<tokio::net::TcpStream>, health: Arc<Health>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (code, text) = health.answer(request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = code;
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
        async move { Ok::<_, Infallible>(response) }
    });
    if let Err(error) = hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await {
        tracing::debug!("health connection ended: {error}");
    }
}

/// Memory and processor time as the usual Prometheus process metrics.
fn process_metrics() -> String {
    const PAGE: u64 = 4096;
    const TICKS_PER_SECOND: f64 = 100.0;
    let mut text = String::new();
    if let Ok(statm) = std::fs::read_to_string("/proc/self/statm") {
        let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
        text +=
            &format!("# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {}\n", pages * PAGE);
    }
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat") {
        // Fields after the parenthesised name: state is the first, utime and stime the 12th and 13th.
        let after = stat.rsplit(") ").next().unwrap_or("");
        let fields: Vec<&str> = after.split(' ').collect();
        let tick = |i: usize| fields.get(i).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        text += &format!(
            "# TYPE process_cpu_seconds_total counter\nprocess_cpu_seconds_total {:.2}\n",
            (tick(11) + tick(12)) / TICKS_PER_SECOND
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_follows_the_switch() {
        let health = Health::new(String::new);
        assert_eq!(health.answer("/readyz").0, StatusCode::SERVICE_UNAVAILABLE);
        health.set_ready();
        assert_eq!(health.answer("/readyz").0, StatusCode::OK);
        assert_eq!(health.answer("/nothing").0, StatusCode::NOT_FOUND);
    }
}
