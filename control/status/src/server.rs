//! TLS, HTTP/1.1 and the few paths that there are.

use crate::kubelet::Kubelets;
use crate::login::{self, Logins, Refusal};
use crate::{Settings, client, collect, page};
use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Connections at a time; each takes some 30 KiB.
const MOST_CONNECTIONS: usize = 64;
/// A client must have shaken hands, and asked, within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection may be kept for as long.
const LONGEST: Duration = Duration::from_secs(300);
/// The certificate's files are read again.
const RENEWED: Duration = Duration::from_secs(10);
/// Several who look at the same time look at the same picture.
const FRESH: Duration = Duration::from_secs(5);
/// A token has about 1 KiB.
const LARGEST_FORM: usize = 8 << 10;
/// With this prefix a browser takes it from this host only, over TLS only, and for all paths.
const COOKIE: &str = "__Host-kimg-status";

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("login.js");
/// Nothing is loaded from elsewhere, nothing is shown in a frame, and only the login page has a script.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const LOGIN_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; base-uri 'none'; \
                            frame-ancestors 'none'";

type Answer = Response<Full<Bytes>>;

/// The page, listening.
pub struct Page {
    listener: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    client: kube::Client,
    kubelets: Kubelets,
    logins: Mutex<Logins>,
    /// The page of the last look, and when that was.
    last: tokio::sync::Mutex<Option<(Instant, Bytes)>>,
}

impl Page {
    /// Reads what the settings name, and listens.
    ///
    /// # Errors
    /// A file cannot be used, or the port is taken.
    pub async fn open(settings: Settings) -> Result<Page> {
        acceptor(&settings)?;
        let listener =
            TcpListener::bind(settings.listen).await.with_context(|| format!("listening on {}", settings.listen))?;
        let client = client(&settings)?;
        let logins = Mutex::new(Logins::new(Timestamp::now().as_second()));
        let (kubelets, last) = (Kubelets::new(settings.kubeconfig.clone()), tokio::sync::Mutex::default());
        Ok(Page { listener, shared: Arc::new(Shared { settings, client, kubelets, logins, last }) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.listener.local_addr().context("asking where it listens")
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// None; it is what services give back.
    pub async fn serve(self) -> Result<()> {
        let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let mut tls = (Instant::now(), acceptor(&self.shared.settings)?);
        loop {
            let place = places.clone().acquire_owned().await.context("counting connections")?;
            let (stream, from) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("a connection was not accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            if tls.0.elapsed() > RENEWED {
                match acceptor(&self.shared.settings) {
                    Ok(now) => tls = (Instant::now(), now),
                    Err(error) => tracing::warn!("going on with the certificate of before: {error:#}"),
                }
            }
            let (shared, acceptor) = (self.shared.clone(), tls.1.clone());
            tokio::spawn(async move {
                // Who keeps a place without asking for anything gives it back.
                if tokio::time::timeout(LONGEST, connection(shared, acceptor, stream, from.ip())).await.is_err() {
                    tracing::debug!("a connection of {from} was ended");
                }
                drop(place);
            });
        }
    }
}

fn acceptor(settings: &Settings) -> Result<TlsAcceptor> {
    let (certificate, key) = (&settings.tls_cert_file, &settings.tls_private_key_file);
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .with_context(|| format!("reading --tls-cert-file {}", certificate.display()))?;
    let private = PrivateKeyDer::from_pem_file(key)
        .with_context(|| format!("reading --tls-private-key-file {}", key.display()))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| format!("{} and {} do not fit each other", certificate.display(), key.display()))?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

async fn connection(shared: Arc<Shared>, acceptor: TlsAcceptor, stream: TcpStream, from: IpAddr) {
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else { return };
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(finished(answer(&shared, request, from).await)) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("a connection of {from} ended: {error}");
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>, from: IpAddr) -> Answer {
    let cookie = cookie(&request);
    match (request.method().clone(), request.uri().path()) {
        (Method::GET, "/") => {
            let known = cookie.is_some_and(|cookie| shared.logins().knows(&cookie, now()));
            if known { html(StatusCode::OK, POLICY, shared.look().await) } else { login_page(StatusCode::OK, "") }
        }
        (Method::GET, "/style.css") => typed(StatusCode::OK, "text/css; charset=utf-8", STYLE.into()),
        (Method::GET, "/login.js") => typed(StatusCode::OK, "text/javascript; charset=utf-8", SCRIPT.into()),
        (Method::POST, "/login") => login(shared, request, from).await,
        (Method::POST, "/logout") => {
            if let Some(cookie) = cookie {
                shared.logins().close(&cookie);
            }
            to_the_page(&format!("{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0"))
        }
        (_, "/" | "/style.css" | "/login.js" | "/login" | "/logout") => {
            typed(StatusCode::METHOD_NOT_ALLOWED, "text/plain; charset=utf-8", "not this way\n".into())
        }
        _ => typed(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "there is nothing here\n".into()),
    }
}

/// A token for a session. What was wrong with it is told in a sentence, and the token never.
async fn login(shared: &Shared, request: Request<Incoming>, from: IpAddr) -> Answer {
    let body = tokio::time::timeout(PATIENCE, Limited::new(request.into_body(), LARGEST_FORM).collect()).await;
    let Ok(Ok(body)) = body else {
        return login_page(StatusCode::BAD_REQUEST, "That is no link of this cluster.");
    };
    let body = body.to_bytes();
    // The characters of a token stand for themselves in a form.
    let token = std::str::from_utf8(&body).ok().and_then(|text| text.strip_prefix("token=")).unwrap_or_default();
    // The guard must not be held while the API server is asked.
    let begun = shared.logins().begin(token, from, now());
    let outcome = match begun {
        Err(refusal) => Err(refusal),
        Ok(()) => match review(&shared.client, token).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Refusal::Wrong),
            Err(error) => {
                shared.logins().forget(token);
                tracing::warn!("a login could not be looked at: {error:#}");
                return login_page(StatusCode::SERVICE_UNAVAILABLE, "The API server does not answer; try again.");
            }
        },
    };
    match outcome {
        Ok(()) => {
            tracing::info!("{from} has logged in");
            let cookie = shared.logins().open(now());
            let seconds = login::SESSION_SECS;
            to_the_page(&format!("{COOKIE}={cookie}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={seconds}"))
        }
        Err(refusal) => {
            let (status, said) = match refusal {
                Refusal::Often => (StatusCode::TOO_MANY_REQUESTS, "There were too many tries; wait a minute."),
                Refusal::Wrong => (StatusCode::FORBIDDEN, "That is no link of this cluster."),
                Refusal::Old => (StatusCode::FORBIDDEN, "That link is too old; print another."),
                Refusal::Used => (StatusCode::FORBIDDEN, "That link was used already; print another."),
            };
            tracing::warn!("a login of {from} was refused: {refusal:?}");
            login_page(status, said)
        }
    }
}

/// Whether the API server knows the token, for this page and no other audience.
async fn review(client: &kube::Client, token: &str) -> Result<bool> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": [login::AUDIENCE]}});
    let request = Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
        .header(header::CONTENT_TYPE, "application/json")
        .body(review.to_string().into_bytes())
        .context("asking about a token")?;
    let answer: Value = client.request(request).await.context("asking about a token")?;
    let status = &answer["status"];
    Ok(status["authenticated"] == true
        && status["user"]["username"] == login::ACCOUNT
        && status["audiences"] == json!([login::AUDIENCE]))
}

impl Shared {
    fn logins(&self) -> MutexGuard<'_, Logins> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever comes while somebody looks waits for that look.
    async fn look(&self) -> Bytes {
        let mut last = self.last.lock().await;
        if let Some((_, page)) = last.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return page.clone();
        }
        let picture = collect::picture(&self.client, &self.kubelets).await;
        let page = Bytes::from(page::status(&self.settings.cluster, &picture));
        *last = Some((Instant::now(), page.clone()));
        page
    }
}

fn now() -> i64 {
    Timestamp::now().as_second()
}

fn cookie<B>(request: &Request<B>) -> Option<String> {
    let headers = request.headers().get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = headers.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value.to_owned())
}

fn typed(status: StatusCode, kind: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn html(status: StatusCode, policy: &'static str, body: Bytes) -> Answer {
    let mut answer = typed(status, "text/html; charset=utf-8", body);
    answer.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    answer
}

fn login_page(status: StatusCode, said: &str) -> Answer {
    html(status, LOGIN_POLICY, page::login(said).into())
}

fn to_the_page(cookie: &str) -> Answer {
    let mut answer = typed(StatusCode::SEE_OTHER, "text/plain; charset=utf-8", Bytes::new());
    answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/"));
    // Hexadecimal digits and fixed words are a header's value.
    if let Ok(mut value) = HeaderValue::from_str(cookie) {
        value.set_sensitive(true);
        answer.headers_mut().insert(header::SET_COOKIE, value);
    }
    answer
}

/// What every answer says to the browser.
fn finished(mut answer: Answer) -> Answer {
    const FIXED: [(HeaderName, &str); 6] = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let headers = answer.headers_mut();
    for (name, value) in FIXED {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static("default-src 'none'"));
    answer
}
