use super::*;
use crate::names::Digest;
use crate::tls::Tls;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

const KIND: &str = "application/vnd.oci.image.manifest.v1+json";
const NO_HEADERS: &[(&str, &str)] = &[];

/// A registry with its socket and its port, and the authority of its nodes.
struct Bench {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    revoked: Arc<Revoked>,
    port: u16,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Runs a test beside a registry of so many MiB.
fn with_registry<F: AsyncFnOnce(&Bench)>(size_mib: u64, test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        let bench = Bench::start(size_mib).await;
        test(&bench).await;
    }));
}

impl Bench {
    async fn start(size_mib: u64) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let revoked = Arc::new(Revoked::default());
        revoked.set(Default::default());
        let bench = Bench { port: 0, issuer: Issuer::new(params, key), revoked, dir };
        let (certificate, key) = bench.issue("kimg:registry", "", ExtendedKeyUsagePurpose::ServerAuth);
        for (name, text) in [("ca.crt", authority.pem()), ("tls.crt", certificate), ("tls.key", key)] {
            std::fs::write(bench.dir.path().join(name), text).unwrap();
        }
        let at = |name: &str| bench.dir.path().join(name);
        let tls = Tls::read(&at("tls.crt"), &at("tls.key"), &at("ca.crt"), bench.revoked.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = Serving::new(Store::open(&at("data"), size_mib << 20).unwrap());
        tokio::task::spawn_local(serve_operator(listen_on(&at("socket")).unwrap(), serving.clone()));
        tokio::task::spawn_local(serve_nodes(listener, tls, serving));
        Bench { port, ..bench }
    }

    fn issue(&self, name: &str, group: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Asks as the node API does.
    async fn operator(&self, method: Method, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let stream = UnixStream::connect(self.dir.path().join("socket")).await.unwrap();
        exchange(stream, method, path, headers, body).await.unwrap()
    }

    /// Asks over the network with a certificate of this group, or with none.
    async fn network(&self, group: Option<&str>, method: Method, path: &str) -> anyhow::Result<Answer> {
        self.network_with(group, method, path, NO_HEADERS).await
    }

    async fn network_with(
        &self,
        group: Option<&str>,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.path().join("ca.crt"))?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match group {
            Some(group) => {
                let (certificate, key) = self.issue("system:node:w", group, ExtendedKeyUsagePurpose::ClientAuth);
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
            }
            None => config.with_no_client_auth(),
        };
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let stream = TlsConnector::from(Arc::new(config)).connect("127.0.0.1".try_into()?, stream).await?;
        exchange(stream, method, path, headers, b"").await
    }

    /// Sends a blob in one piece.
    async fn blob(&self, content: &[u8]) -> Answer {
        let begun = self.operator(Method::POST, "/v2/web/blobs/uploads/", NO_HEADERS, b"").await;
        assert_eq!(begun.status, StatusCode::ACCEPTED);
        let place = format!("{}?digest={}", begun.header("location"), Digest::of(content)).replace("256:", "256%3A");
        self.operator(Method::PUT, &place, NO_HEADERS, content).await
    }

    async fn manifest(&self, tag: &str, layers: &[&[u8]]) -> Answer {
        let manifest = manifest(layers);
        self.operator(Method::PUT, &format!("/v2/web/manifests/{tag}"), &[("content-type", KIND)], &manifest).await
    }

    /// Sends an image of one layer.
    async fn image(&self, tag: &str, layer: &[u8]) {
        for content in [&b"{}"[..], layer] {
            assert_eq!(self.blob(content).await.status, StatusCode::CREATED);
        }
        assert_eq!(self.manifest(tag, &[layer]).await.status, StatusCode::CREATED);
    }

    async fn has(&self, path: &str) -> bool {
        self.network(Some("system:nodes"), Method::HEAD, path).await.unwrap().status == StatusCode::OK
    }
}

fn manifest(layers: &[&[u8]]) -> Vec<u8> {
    let part = |content: &[u8]| serde_json::json!({"digest": Digest::of(content).to_string(), "size": content.len()});
    let layers: Vec<_> = layers.iter().map(|layer| part(layer)).collect();
    let document = serde_json::json!({"schemaVersion": 2, "mediaType": KIND, "config": part(b"{}"), "layers": layers});
    document.to_string().into_bytes()
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    stream: S,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> anyhow::Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "registry");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(Bytes::copy_from_slice(body)))?).await?;
    let (parts, body) = response.into_parts();
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.collect().await?.to_bytes().to_vec() })
}

/// Sends a chunk as a client does that listens only when it has sent all.
fn all_before_an_answer(socket: &Path, place: &str, length: usize) -> std::io::Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    write!(stream, "PATCH {place} HTTP/1.1\r\nhost: r\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n")?;
    stream.write_all(&vec![7; length])?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

#[test]
fn what_is_pushed_in_chunks_is_read_by_nodes() {
    with_registry(64, async |bench| {
        let layer: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let begun = bench.operator(Method::POST, "/v2/team/web/blobs/uploads/", NO_HEADERS, b"").await;
        let place = begun.header("location").to_owned();
        let patch = async |from: usize, to: usize| {
            let range = format!("{from}-{}", to - 1);
            bench.operator(Method::PATCH, &place, &[("content-range", &range)], &layer[from..to]).await
        };
        assert_eq!(patch(0, 100_000).await.header("range"), "0-99999");
        // What came twice, or too early, is not taken.
        for from in [0, 200_000] {
            let refused = patch(from, 250_000).await;
            assert_eq!((refused.status.as_u16(), refused.header("range")), (416, "0-99999"));
        }
        assert_eq!(bench.operator(Method::GET, &place, NO_HEADERS, b"").await.header("range"), "0-99999");
        assert_eq!(patch(100_000, 300_000).await.status, StatusCode::ACCEPTED);
        let digest = Digest::of(&layer).to_string();
        let done = bench.operator(Method::PUT, &format!("{place}?digest={digest}"), NO_HEADERS, b"").await;
        assert_eq!((done.status, done.header("docker-content-digest")), (StatusCode::CREATED, digest.as_str()));
        assert_eq!(bench.blob(b"{}").await.status, StatusCode::CREATED);
        assert_eq!(bench.manifest("1", &[&layer]).await.status, StatusCode::CREATED);

        let node = Some("system:nodes");
        let got = bench.network(node, Method::GET, "/v2/web/manifests/1?ns=registry.kimg.local").await.unwrap();
        assert_eq!((got.body.as_slice(), got.header("content-type")), (manifest(&[&layer]).as_slice(), KIND));
        let by_digest = format!("/v2/web/manifests/{}", got.header("docker-content-digest"));
        assert_eq!(bench.network(node, Method::GET, &by_digest).await.unwrap().body, got.body);
        let blob = format!("/v2/web/blobs/{digest}");
        let head = bench.network(node, Method::HEAD, &blob).await.unwrap();
        assert_eq!((head.header("content-length"), head.body.len()), ("300000", 0));
        assert_eq!(bench.network(node, Method::GET, &blob).await.unwrap().body, layer);
        let rest = bench.network_with(node, Method::GET, &blob, &[("range", "bytes=299990-")]).await.unwrap();
        assert_eq!((rest.status.as_u16(), rest.body.as_slice()), (206, &layer[299_990..]));
        assert_eq!(rest.header("content-range"), "bytes 299990-299999/300000");
        let tags = bench.network(node, Method::GET, "/v2/web/tags/list").await.unwrap();
        assert_eq!(tags.text(), r#"{"name":"web","tags":["1"]}"#);
    });
}

#[test]
fn nodes_only_read_and_others_get_no_answer() {
    with_registry(64, async |bench| {
        bench.image("1", b"layer").await;
        let path = "/v2/web/manifests/1";
        for stranger in [None, Some("kimg:cluster-admins"), Some("system:nodes-not")] {
            assert!(bench.network(stranger, Method::GET, path).await.is_err(), "{stranger:?} was answered");
        }
        assert!(bench.has(path).await);
        for (method, path) in [
            (Method::POST, "/v2/web/blobs/uploads/"),
            (Method::PUT, path),
            (Method::DELETE, path),
            (Method::PATCH, "/v2/web/blobs/uploads/00000000000000000000000000000000"),
        ] {
            let refused = bench.network(Some("system:nodes"), method.clone(), path).await.unwrap();
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{method} {path}");
            assert!(refused.text().contains("nodes only read"), "{}", refused.text());
        }
        assert!(bench.has(path).await);
    });
}

#[test]
fn what_is_not_what_it_says_is_refused() {
    with_registry(64, async |bench| {
        let begun = bench.operator(Method::POST, "/v2/web/blobs/uploads/", NO_HEADERS, b"").await;
        let place = format!("{}?digest={}", begun.header("location"), Digest::of(b"other"));
        let refused = bench.operator(Method::PUT, &place, NO_HEADERS, b"layer").await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        assert!(refused.text().contains("DIGEST_INVALID"), "{}", refused.text());
        assert!(!bench.has(&format!("/v2/web/blobs/{}", Digest::of(b"layer"))).await);
        // A manifest does not come before its parts, and is none by its name alone.
        let refused = bench.manifest("1", &[b"layer"]).await;
        assert!(refused.text().contains("MANIFEST_BLOB_UNKNOWN"), "{}", refused.text());
        for (kind, body) in [(KIND, &b"{"[..]), ("text/plain", b"{}"), (KIND, br#"{"config":{"digest":"sha256:1"}}"#)] {
            let refused = bench.operator(Method::PUT, "/v2/web/manifests/1", &[("content-type", kind)], body).await;
            assert!(refused.text().contains("MANIFEST_INVALID"), "{}", refused.text());
        }
        assert!(!bench.has("/v2/web/manifests/1").await);
        let missing = bench.network(Some("system:nodes"), Method::GET, "/v2/web/manifests/1").await.unwrap();
        assert_eq!(missing.status, StatusCode::NOT_FOUND);
        assert!(missing.text().contains("has no web:1; `kimg push`"), "{}", missing.text());
    });
}

#[test]
fn a_full_registry_makes_room_or_says_so() {
    with_registry(3, async |bench| {
        let of = |byte: u8| vec![byte; 1 << 20];
        let blob = |byte: u8| format!("/v2/web/blobs/{}", Digest::of(&of(byte)));
        bench.image("1", &of(1)).await;
        bench.image("2", &of(2)).await;
        // The third MiB has no room beside what is small.
        let refused = bench.blob(&of(3)).await;
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(refused.text().contains("the registry is full: it holds 3 of its 3 MiB"), "{}", refused.text());
        let begun = bench.operator(Method::POST, "/v2/web/blobs/uploads/", NO_HEADERS, b"").await;
        let (socket, place) = (bench.dir.path().join("socket"), begun.header("location").to_owned());
        let said = tokio::task::spawn_blocking(move || all_before_an_answer(&socket, &place, 4 << 20)).await.unwrap();
        assert!(said.unwrap().starts_with("HTTP/1.1 413"), "who sends first is told, too");
        assert!(bench.has(&blob(1)).await && bench.has(&blob(2)).await, "what has a name stays");
        // What has lost its name goes when room is needed, and not before.
        assert_eq!(bench.manifest("1", &[]).await.status, StatusCode::CREATED);
        assert!(bench.has(&blob(1)).await);
        bench.image("3", &of(3)).await;
        assert!(!bench.has(&blob(1)).await && bench.has(&blob(2)).await && bench.has(&blob(3)).await);
        // What is removed is gone at once.
        let gone = bench.operator(Method::DELETE, "/v2/web/manifests/2", NO_HEADERS, b"").await;
        assert_eq!(gone.status, StatusCode::ACCEPTED);
        assert!(!bench.has("/v2/web/manifests/2").await && !bench.has(&blob(2)).await);
        let again = bench.operator(Method::DELETE, "/v2/web/manifests/2", NO_HEADERS, b"").await;
        assert_eq!(again.status, StatusCode::NOT_FOUND);
    });
}

#[test]
fn what_a_push_has_sent_stays_until_its_manifest_comes() {
    with_registry(64, async |bench| {
        bench.image("1", b"old").await;
        assert_eq!(bench.blob(b"new").await.status, StatusCode::CREATED);
        // Of another image, and this push has only looked at it.
        let known = format!("/v2/web/blobs/{}", Digest::of(b"old"));
        assert_eq!(bench.operator(Method::HEAD, &known, NO_HEADERS, b"").await.status, StatusCode::OK);
        bench.operator(Method::DELETE, "/v2/web/manifests/1", NO_HEADERS, b"").await;
        // The configuration is of the old image alone, and nothing waits for it.
        assert!(!bench.has(&format!("/v2/web/blobs/{}", Digest::of(b"{}"))).await);
        assert_eq!(bench.blob(b"{}").await.status, StatusCode::CREATED);
        assert_eq!(bench.manifest("2", &[b"old", b"new"]).await.status, StatusCode::CREATED);
    });
}

#[test]
fn a_registry_goes_on_after_a_restart() {
    with_registry(64, async |bench| {
        bench.image("1", b"layer").await;
        let begun = bench.operator(Method::POST, "/v2/web/blobs/uploads/", NO_HEADERS, b"").await;
        bench.operator(Method::PATCH, begun.header("location"), NO_HEADERS, b"some").await;
        let id = begun.header("docker-upload-uuid");
        let store = Store::open(&bench.dir.path().join("data"), 64 << 20).unwrap();
        assert_eq!(store.names().unwrap(), [("web".to_owned(), "1".to_owned())]);
        assert_eq!(store.upload(id).unwrap().1, 4);
        assert_eq!(store.summary().unwrap(), "1 images, 1 of 64 MiB");
    });
}

#[test]
fn a_node_whose_certificates_were_taken_back_is_not_let_in() {
    with_registry(64, async |bench| {
        let node = Some("system:nodes");
        assert_eq!(bench.network(node, Method::GET, "/v2/").await.unwrap().status, StatusCode::OK);
        let user = |name: &str| {
            let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
            let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            [(format!("user.{hex}"), format!("9999-01-01T00:00:00Z {name}"))].into()
        };
        bench.revoked.set(user("system:node:w"));
        assert!(bench.network(node, Method::GET, "/v2/").await.is_err(), "it was answered");
        bench.revoked.set(user("system:node:other"));
        assert_eq!(bench.network(node, Method::GET, "/v2/").await.unwrap().status, StatusCode::OK);
    });
}
