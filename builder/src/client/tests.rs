//! The client against a real TLS server that asks for a client certificate.

use super::*;
use crate::client::node::NodeClient;
use crate::pki::authority::random_serial;
use crate::pki::{Authority, Secrets, issue};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub(crate) struct Server {
    pub(crate) target: String,
    fingerprint: String,
}

/// Answers every request with `response`; its certificate is for `name`, by the cluster's CA or by itself.
async fn serve(secrets: &Secrets, name: &str, by_itself: bool, response: &'static str) -> Server {
    answer(secrets, name, by_itself, |_| response.to_string()).await
}

/// Answers every request by its first line, and closes the connection.
pub(crate) async fn answer(
    secrets: &Secrets,
    name: &str,
    by_itself: bool,
    respond: impl Fn(&str) -> String + Send + 'static,
) -> Server {
    let (acceptor, fingerprint) = acceptor(secrets, name, by_itself);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let target = listener.local_addr().expect("address").to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut buffer = [0u8; 4096];
            if let Ok(length) = stream.read(&mut buffer).await {
                let request = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let response = respond(request.lines().next().unwrap_or_default());
                let _ = stream.write_all(response.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    Server { target, fingerprint }
}

/// TLS with a certificate for `name`, and its fingerprint.
fn acceptor(secrets: &Secrets, name: &str, by_itself: bool) -> (TlsAcceptor, String) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(vec![name.to_string()]).expect("params");
    params.serial_number = Some(random_serial());
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = if by_itself {
        params.self_signed(&key).expect("certificate")
    } else {
        params.signed_by(&key, &Authority::Cluster.issuer(secrets).expect("issuer")).expect("certificate")
    };
    let mut roots = RootCertStore::empty();
    let ca = secrets.read("node-api-ca.crt").expect("ca");
    for ca in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(ca.expect("pem")).expect("root");
    }
    let provider = Arc::new(ring::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().expect("verifier");
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("key");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("config");
    (TlsAcceptor::from(Arc::new(config)), hex::encode(Sha256::digest(certificate.der())))
}

const LIST: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]";
const REFUSAL: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 36\r\nConnection: close\r\n\r\n{\"error\":\"there is no service `x`.\"} ";

pub(crate) fn secrets() -> (tempfile::TempDir, Secrets) {
    let dir = tempfile::tempdir().expect("dir");
    let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
    (dir, secrets)
}

#[test]
fn a_joined_node_is_known_by_its_authority_and_its_name() {
    let (_dir, secrets) = secrets();
    block_on(async {
        let server = serve(&secrets, "worker-1", false, LIST).await;
        let right = NodeClient::new(&secrets, "worker-1", server.target.clone(), None)?;
        assert!(right.get::<Vec<node_api::Service>>("/v1/services").await?.is_empty());
        let wrong = NodeClient::new(&secrets, "worker-2", server.target, None)?;
        assert!(wrong.get::<Vec<node_api::Service>>("/v1/services").await.is_err(), "another node's name");
        Ok(())
    })
    .expect("runs");
}

#[test]
fn a_node_that_has_not_joined_is_known_by_its_fingerprint_only() {
    let (_dir, secrets) = secrets();
    block_on(async {
        let server = serve(&secrets, "localhost", true, LIST).await;
        let pinned = NodeClient::new(&secrets, "worker-1", server.target.clone(), Some(&server.fingerprint))?;
        assert!(pinned.get::<Vec<node_api::Service>>("/v1/services").await?.is_empty());
        let other = NodeClient::new(&secrets, "worker-1", server.target.clone(), Some(&"ab".repeat(32)))?;
        assert!(other.get::<Vec<node_api::Service>>("/v1/services").await.is_err());
        let none = NodeClient::new(&secrets, "worker-1", server.target, None)?;
        let error = format!("{:#}", none.get::<Vec<node_api::Service>>("/v1/services").await.expect_err("unknown"));
        assert!(error.contains("--fingerprint"), "{error}");
        assert!(NodeClient::new(&secrets, "n", "127.0.0.1:1".into(), Some("xyz")).is_err());
        Ok(())
    })
    .expect("runs");
}

#[test]
fn what_is_sent_need_not_fit_into_memory_and_ends_where_it_cannot_be_read() {
    let (_dir, secrets) = secrets();
    let (acceptor, _) = acceptor(&secrets, "worker-1", false);
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let target = listener.local_addr().expect("address").to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let count = hyper::service::service_fn(async |request: Request<Incoming>| {
                    let bytes = request.into_body().collect().await?.to_bytes();
                    let message = hex::encode(Sha256::digest(&bytes));
                    let body = serde_json::to_vec(&node_api::Done { message }).expect("JSON");
                    Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::from(body))))
                });
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), count));
            }
        });
        let client = NodeClient::new(&secrets, "worker-1", target, None)?;
        for length in [0, 1, PIECE, 10 * PIECE + 7] {
            let bytes: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[0]).collect();
            let sum = hex::encode(Sha256::digest(&bytes));
            let done: node_api::Done = client.post_all("/v1/x", std::io::Cursor::new(bytes)).await?;
            assert_eq!(done.message, sum, "{length}");
        }
        let cut = std::io::repeat(1).take(100_000).chain(Unreadable);
        let error = client.post_all::<node_api::Done>("/v1/x", cut).await.expect_err("it cannot be read");
        assert!(!error.is::<crate::input::BadInput>(), "{error:#}");
        Ok(())
    })
    .expect("runs");
}

struct Unreadable;

impl Read for Unreadable {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Err(std::io::Error::other("a damaged disk"))
    }
}

#[test]
fn a_refusal_is_the_nodes_own_sentence() {
    let (_dir, secrets) = secrets();
    block_on(async {
        let server = serve(&secrets, "worker-1", false, REFUSAL).await;
        let client = NodeClient::new(&secrets, "worker-1", server.target, None)?;
        let error = client.get::<Vec<node_api::Service>>("/v1/logs/x").await.expect_err("404").to_string();
        assert_eq!(error, "node worker-1: there is no service `x`.");
        Ok(())
    })
    .expect("runs");
}

#[test]
fn the_api_server_says_where_a_node_is() {
    let (_dir, secrets) = secrets();
    block_on(async {
        let server = answer(&secrets, "localhost", false, |line| {
            let addresses = match line {
                "GET /api/v1/nodes/inside HTTP/1.1" => r#"[{"type":"InternalIP","address":"10.0.0.2"}]"#,
                "GET /api/v1/nodes/both HTTP/1.1" => {
                    r#"[{"type":"InternalIP","address":"10.0.0.2"},{"type":"ExternalIP","address":"192.0.2.2"}]"#
                }
                _ => r#"[{"type":"Hostname","address":"none"}]"#,
            };
            let body = format!(r#"{{"status":{{"addresses":{addresses}}}}}"#);
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
        })
        .await;
        let tls = tls::config(&secrets.read("cluster-ca.crt")?, &issue::node_operator(&secrets)?, None)?;
        let api = Https::new(server.target, "localhost".to_owned(), tls);
        assert_eq!(kube::node_address(&api, "inside").await?.to_string(), "10.0.0.2");
        assert_eq!(kube::node_address(&api, "both").await?.to_string(), "192.0.2.2");
        assert!(kube::node_address(&api, "other").await.is_err());
        Ok(())
    })
    .expect("runs");
}

#[test]
fn kept_certificates_are_kept_and_renewed_when_they_do_not_fit() {
    let (_dir, secrets) = secrets();
    let first = issue::admin(&secrets).expect("admin").certificate;
    assert_eq!(first, issue::admin(&secrets).expect("admin").certificate);
    // A key that does not belong to the certificate.
    secrets.write("admin.key", KeyPair::generate().expect("key").serialize_pem().as_bytes()).expect("write");
    assert_ne!(first, issue::admin(&secrets).expect("admin").certificate);
}

#[test]
fn of_several_servers_one_that_answers_is_asked() {
    let (_dir, secrets) = secrets();
    block_on(async {
        let (one, two) = (serve(&secrets, "api", false, LIST).await, serve(&secrets, "api", false, LIST).await);
        let tls = tls::config(&secrets.read("cluster-ca.crt")?, &issue::node_operator(&secrets)?, None)?;
        let gone = "127.0.0.1:1".to_string();
        let https = Https::new(gone.clone(), "api".into(), tls).or(one.target.clone(), "api".into());
        let ask = async || https.send(Method::GET, "/", None).await.map(|answer| answer.status);
        assert_eq!(ask().await?, StatusCode::OK);
        // It is known from then on, to clones too.
        assert_eq!((https.target(), https.clone().target()), (one.target.clone(), one.target.clone()));
        https.look_at(vec![gone.clone(), two.target.clone(), one.target.clone()]);
        assert_eq!(https.target(), one.target);
        https.look_at(vec![gone.clone(), two.target.clone()]);
        assert_eq!((ask().await?, https.target()), (StatusCode::OK, two.target));
        https.look_at(vec![gone.clone(), "127.0.0.1:2".into()]);
        let error = format!("{:#}", ask().await.expect_err("nobody answers"));
        assert!(error.contains("127.0.0.1:1") && error.contains("127.0.0.1:2"), "{error}");
        Ok(())
    })
    .expect("runs");
}

#[test]
fn a_link_to_the_status_page_holds_a_token_for_it_alone() {
    const TOKEN: &str =
        "HTTP/1.1 201 Created\r\nContent-Length: 30\r\nConnection: close\r\n\r\n{\"status\":{\"token\":\"a.b.c-_\"}}";
    let (_dir, secrets) = secrets();
    block_on(async {
        let server = answer(&secrets, "localhost", false, |line| {
            assert_eq!(line, "POST /api/v1/namespaces/kube-system/serviceaccounts/kimg-status/token HTTP/1.1");
            TOKEN.to_owned()
        })
        .await;
        let ca = secrets.read("cluster-ca.crt")?;
        let https = |name: &str| -> Result<Https> {
            let tls = tls::config(&ca, &issue::node_operator(&secrets)?, None)?;
            Ok(Https::new(server.target.clone(), name.to_owned(), tls))
        };
        assert_eq!(kube::status_token(&https("localhost")?).await?, "a.b.c-_");
        let shown = tls::fingerprint(&https("localhost")?.certificate().await?);
        assert_eq!(shown.replace(':', "").to_lowercase(), server.fingerprint);
        assert!(https("other.example")?.certificate().await.is_err(), "another's page");
        Ok(())
    })
    .expect("runs");
}
