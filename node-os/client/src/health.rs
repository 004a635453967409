//! A small HTTP server for health checks and metrics.

use crate::Places;
use anyhow::Context;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Where pods may ask, one that asks much leaves the others their places.
const MOST_CONNECTIONS: usize = 64;
const MOST_OF_ONE: usize = 8;
/// So long a connection lives: who asks again after it makes a new one.
const LIFE: Duration = Duration::from_secs(120);

/// What a component says about itself.
pub trait Health {
    /// `Err` with a sentence while it does not do its work.
    fn healthy(&self) -> Result<(), String>;
    /// Metrics in Prometheus' text format.
    fn metrics(&self) -> String {
        String::new()
    }
}

/// Serves `/healthz`, `/livez`, `/readyz` and `/metrics` for ever.
/// Runs on the component's own thread (a `LocalSet`).
///
/// # Errors
/// The address cannot be bound.
pub async fn serve<H: Health + 'static>(address: SocketAddr, health: Rc<H>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("binding the health port {address}"))?;
    serve_on(listener, health).await
}

async fn serve_on<H: Health + 'static>(listener: TcpListener, health: Rc<H>) -> ! {
    let places = Places::new(MOST_CONNECTIONS, MOST_OF_ONE);
    loop {
        let (stream, place) = places.accept(&listener).await;
        let health = health.clone();
        tokio::task::spawn_local(async move {
            let _place = place;
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                let response = answer(request.uri().path(), &*health);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that goes away in the middle, or stays and says nothing, is no event.
            drop(tokio::time::timeout(LIFE, connection).await);
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

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpSocket, TcpStream};

    struct Well;

    impl Health for Well {
        fn healthy(&self) -> Result<(), String> {
            Ok(())
        }
    }

    /// What is answered to a health check from this address of the loopback.
    async fn ask(from: [u8; 4], server: SocketAddr) -> String {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind((from, 0).into()).expect("an address");
        let mut stream = socket.connect(server).await.expect("connected");
        let mut answer = String::new();
        // Whoever has no place is hung up on, maybe before this is sent.
        drop(stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await);
        drop(stream.read_to_string(&mut answer).await);
        answer
    }

    #[tokio::test]
    async fn who_connects_and_says_nothing_leaves_the_others_their_places() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listening");
        let server = listener.local_addr().expect("address");
        let test = async {
            let mut silent = Vec::new();
            for _ in 0..MOST_OF_ONE {
                silent.push(TcpStream::connect(server).await.expect("connected"));
            }
            assert_eq!(ask([127, 0, 0, 1], server).await, "");
            assert!(ask([127, 0, 0, 2], server).await.starts_with("HTTP/1.1 200"));
            drop(silent);
            while ask([127, 0, 0, 1], server).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let both = async {
            tokio::select! {
                never = serve_on(listener, Rc::new(Well)) => never,
                () = test => {}
            }
        };
        tokio::task::LocalSet::new().run_until(both).await;
    }
}
