//! A GET as probes and hooks make it: own connection, certificates not verified, redirects on
//! the same host followed.

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::sync::{Arc, LazyLock};

const REDIRECTS: usize = 10;

/// Status of a GET.
pub async fn get(
    host: &str,
    port: u16,
    tls: bool,
    path: &str,
    headers: &[(String, String)],
    agent: &str,
) -> Result<u16, String> {
    let mut path = path.to_string();
    for _ in 0..=REDIRECTS {
        let response = one(host, port, tls, &path, headers, agent).await?;
        let status = response.status().as_u16();
        let location = response.headers().get(http::header::LOCATION).and_then(|l| l.to_str().ok());
        match location.and_then(|l| same_host(l, host)) {
            Some(next) if (300..400).contains(&status) => path = next,
            _ => return Ok(status),
        }
    }
    Err(format!("stopped after {REDIRECTS} redirects"))
}

/// Path of a redirect that stays on the host.
fn same_host(location: &str, host: &str) -> Option<String> {
    let uri: http::Uri = location.parse().ok()?;
    if uri.host().is_some_and(|h| h.trim_matches(['[', ']']) != host) {
        return None;
    }
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    Some(if path.starts_with('/') { path.to_string() } else { format!("/{path}") })
}

async fn one(
    host: &str,
    port: u16,
    tls: bool,
    path: &str,
    headers: &[(String, String)],
    agent: &str,
) -> Result<http::Response<hyper::body::Incoming>, String> {
    let shown = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let scheme = if tls { "https" } else { "http" };
    let fail = |what: String| format!("Get \"{scheme}://{shown}{path}\": {what}");
    let stream = super::dial::connect(host, port).await.map_err(|e| fail(format!("dial tcp {shown}: {e}")))?;
    let request = request(path, &shown, headers, agent).map_err(|e| fail(e.to_string()))?;
    if tls {
        let name = ServerName::try_from(host.to_string()).map_err(|e| fail(e.to_string()))?;
        let connector = tokio_rustls::TlsConnector::from(TRUSTING.clone());
        let stream = connector.connect(name, stream).await.map_err(|e| fail(e.to_string()))?;
        send(stream, request).await.map_err(fail)
    } else {
        send(stream, request).await.map_err(fail)
    }
}

async fn send<S>(
    stream: S,
    request: http::Request<Empty<Bytes>>,
) -> Result<http::Response<hyper::body::Incoming>, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| crate::chain(&e))?;
    // The connection ends with the answer; whatever happens to it afterwards is of no interest.
    tokio::spawn(async move { connection.await.ok() });
    sender.send_request(request).await.map_err(|e| crate::chain(&e))
}

fn request(
    path: &str,
    host: &str,
    headers: &[(String, String)],
    agent: &str,
) -> Result<http::Request<Empty<Bytes>>, http::Error> {
    let given = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut builder = http::Request::get(path).header("connection", "close");
    for (name, default) in [("host", host), ("user-agent", agent), ("accept", "*/*")] {
        if !given(name) {
            builder = builder.header(name, default);
        }
    }
    for (name, value) in headers {
        if !value.is_empty() {
            builder = builder.header(name.as_str(), value.as_str());
        }
    }
    builder.body(Empty::new())
}

/// Probes ask whether something answers, not who it is.
static TRUSTING: LazyLock<Arc<rustls::ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.unwrap_or_else(|_| rustls::ClientConfig::builder());
    let verifier = Arc::new(AnyCertificate(provider));
    Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
});

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn answers_and_redirects() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = [0; 1024];
                let length = stream.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let answer = if text.starts_with("GET /to ") {
                    "HTTP/1.1 302 Found\r\nlocation: /end\r\ncontent-length: 0\r\n\r\n"
                } else if text.starts_with("GET /away ") {
                    "HTTP/1.1 302 Found\r\nlocation: http://other.example/\r\ncontent-length: 0\r\n\r\n"
                } else {
                    "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        for (path, expected) in [("/to", 503), ("/away", 302), ("/", 503)] {
            assert_eq!(get("127.0.0.1", port, false, path, &[], "kube-probe/1.36").await.unwrap(), expected, "{path}");
        }
        assert!(get("127.0.0.1", 1, false, "/", &[], "x").await.unwrap_err().contains("connect"));
    }
}
