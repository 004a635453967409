//! From a kubeconfig to a client that keeps all its requests and watches on one HTTP/2 connection.
//!
//! The certificate files are read at every connect, and a renewed certificate gets a connection of its own: the server
//! refuses whoever goes on with one that has ended. What is under way ends on the connection of before.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use base64::Engine;
use http::{Request, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::Service;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection that answers no ping for this long is given up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    context: ContextNames,
}

#[derive(Debug, Deserialize)]
struct ContextNames {
    cluster: String,
    user: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
}

impl std::fmt::Debug for User {
    /// Never shows keys or tokens.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("client_certificate", &self.client_certificate).finish_non_exhaustive()
    }
}

/// Where the API server is and who we are.
#[derive(Debug)]
struct Target {
    host: String,
    port: u16,
    cluster: Cluster,
    user: User,
    folder: PathBuf,
}

impl Target {
    /// When the certificate was written, where it is a file.
    fn changed(&self) -> Option<SystemTime> {
        let file = self.user.client_certificate.as_ref().filter(|_| self.user.client_certificate_data.is_none())?;
        std::fs::metadata(self.folder.join(file)).and_then(|meta| meta.modified()).ok()
    }
}

/// A client as the kubeconfig says; connects at the first request.
pub fn client(kubeconfig: &Path, user_agent: &str) -> anyhow::Result<kube::Client> {
    let target = Arc::new(read(kubeconfig)?);
    // A broken file shows at start, not as a connection that fails again and again.
    tls_config(&target).with_context(|| format!("reading what {} names", kubeconfig.display()))?;
    let agent = http::HeaderValue::from_str(user_agent).context("user agent")?;
    let pool = Arc::new(Mutex::new((target.changed(), pool(&target))));
    let service = Requests { pool, target, agent };
    Ok(kube::client::ClientBuilder::new(service, "default").build())
}

type Pool = hyper_util::client::legacy::Client<Connector, Body>;

fn pool(target: &Arc<Target>) -> Pool {
    hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .http2_only(true)
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(KEEP_ALIVE)
        .http2_keep_alive_while_idle(true)
        .build(Connector { target: target.clone() })
}

/// TLS as the kubeconfig's user, for servers that the cluster's CA has signed and that speak HTTP/1.1: kubelets.
pub fn identity(kubeconfig: &Path) -> anyhow::Result<rustls::ClientConfig> {
    let mut config = tls_config(&read(kubeconfig)?)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn read(path: &Path) -> anyhow::Result<Target> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading kubeconfig {}", path.display()))?;
    let config: Kubeconfig =
        serde_yaml_ng::from_str(&text).with_context(|| format!("parsing kubeconfig {}", path.display()))?;
    let names = config
        .contexts
        .iter()
        .find(|c| c.name == config.current_context)
        .or(config.contexts.first())
        .with_context(|| format!("kubeconfig {} has no context", path.display()))?;
    let cluster = config
        .clusters
        .iter()
        .find(|c| c.name == names.context.cluster)
        .with_context(|| format!("kubeconfig {} has no cluster {:?}", path.display(), names.context.cluster))?;
    let user = config
        .users
        .iter()
        .find(|u| u.name == names.context.user)
        .with_context(|| format!("kubeconfig {} has no user {:?}", path.display(), names.context.user))?;
    let uri: Uri = cluster
        .cluster
        .server
        .parse()
        .with_context(|| format!("kubeconfig {}: server {:?}", path.display(), cluster.cluster.server))?;
    if uri.scheme_str() != Some("https") {
        bail!("kubeconfig {}: server {:?} must begin with https://", path.display(), cluster.cluster.server);
    }
    Ok(Target {
        host: uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
        port: uri.port_u16().unwrap_or(443),
        cluster: cluster.cluster.clone(),
        user: user.user.clone(),
        folder: path.parent().unwrap_or(Path::new(".")).to_owned(),
    })
}

fn pem(folder: &Path, file: Option<&PathBuf>, data: Option<&String>, what: &str) -> anyhow::Result<Option<Vec<u8>>> {
    if let Some(data) = data {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(data.trim())
            .with_context(|| format!("decoding {what}-data"))?;
        return Ok(Some(bytes));
    }
    let Some(file) = file else { return Ok(None) };
    let path = folder.join(file);
    let bytes = std::fs::read(&path).with_context(|| format!("reading {what} {}", path.display()))?;
    Ok(Some(bytes))
}

fn tls_config(target: &Target) -> anyhow::Result<rustls::ClientConfig> {
    let (cluster, user, folder) = (&target.cluster, &target.user, &target.folder);
    let ca = pem(
        folder,
        cluster.certificate_authority.as_ref(),
        cluster.certificate_authority_data.as_ref(),
        "certificate-authority",
    )?
    .context("the cluster has no certificate-authority")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&ca) {
        roots.add(certificate.context("parsing certificate-authority")?).context("using certificate-authority")?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("choosing TLS versions")?
        .with_root_certificates(roots);
    let certificate =
        pem(folder, user.client_certificate.as_ref(), user.client_certificate_data.as_ref(), "client-certificate")?;
    let key = pem(folder, user.client_key.as_ref(), user.client_key_data.as_ref(), "client-key")?;
    let mut config = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
            let key = PrivateKeyDer::from_pem_slice(&key).context("parsing client-key")?;
            builder
                .with_client_auth_cert(chain.context("parsing client-certificate")?, key)
                .context("using the client certificate")?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[derive(Clone)]
struct Connector {
    target: Arc<Target>,
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = tower::BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, tower::BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let target = self.target.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connect(&target)).await {
                Ok(stream) => stream.map_err(|error| format!("{error:#}").into()),
                Err(_) => Err(format!(
                    "connecting to {}:{} took more than {} s",
                    target.host,
                    target.port,
                    CONNECT_TIMEOUT.as_secs()
                )
                .into()),
            }
        })
    }
}

async fn connect(target: &Target) -> anyhow::Result<Stream> {
    let config = tls_config(target)?;
    let tcp = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .with_context(|| format!("connecting to {}:{}", target.host, target.port))?;
    tcp.set_nodelay(true).context("setting TCP_NODELAY")?;
    let name = target.cluster.tls_server_name.as_deref().unwrap_or(&target.host).to_owned();
    let name = ServerName::try_from(name).context("server name")?;
    let tls = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .with_context(|| format!("TLS with {}:{}", target.host, target.port))?;
    Ok(Stream(TokioIo::new(tls)))
}

/// A TLS connection that hyper can use.
struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().negotiated_h2()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Puts the server's address and our identity on each request.
#[derive(Clone)]
struct Requests {
    /// Of the certificate that was written then.
    pool: Arc<Mutex<(Option<SystemTime>, Pool)>>,
    target: Arc<Target>,
    agent: http::HeaderValue,
}

impl Service<Request<Body>> for Requests {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = tower::BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let result = self.prepare(&mut request);
        let inner = self.inner();
        Box::pin(async move {
            result?;
            inner.request(request).await.map_err(|error| -> tower::BoxError {
                // The pool's own error says only "client error (Connect)".
                let mut text = error.to_string();
                let mut source = std::error::Error::source(&error);
                while let Some(cause) = source {
                    text = format!("{text}: {cause}");
                    source = cause.source();
                }
                text.into()
            })
        })
    }
}

impl Requests {
    fn inner(&self) -> Pool {
        let mut known = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.target.changed();
        // One that does not fit its key yet would only take the connection that there is.
        if now.is_some() && now != known.0 && tls_config(&self.target).is_ok() {
            *known = (now, pool(&self.target));
        }
        known.1.clone()
    }

    fn prepare(&self, request: &mut Request<Body>) -> Result<(), tower::BoxError> {
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let host =
            if self.target.host.contains(':') { format!("[{}]", self.target.host) } else { self.target.host.clone() };
        *request.uri_mut() = format!("https://{host}:{}{path}", self.target.port).parse()?;
        *request.version_mut() = http::Version::HTTP_2;
        let headers = request.headers_mut();
        headers.insert(http::header::USER_AGENT, self.agent.clone());
        let token = match (&self.target.user.token, &self.target.user.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => Some(std::fs::read_to_string(self.target.folder.join(file))?),
            (None, None) => None,
        };
        if let Some(token) = token {
            let mut value = http::HeaderValue::from_str(&format!("Bearer {}", token.trim()))?;
            value.set_sensitive(true);
            headers.insert(http::header::AUTHORIZATION, value);
        }
        Ok(())
    }
}
