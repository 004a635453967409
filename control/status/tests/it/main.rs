//! The page before a real API server, as the manifest of the images gives it its rights.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use kimg_status::{Page, Settings};
use kube_apiserver::{Config, Server};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

const MANIFEST: &str = include_str!("../../../../images/manifests/15-status.yaml");
const TOKEN: &str = "/api/v1/namespaces/kube-system/serviceaccounts/kimg-status/token";

/// A client: what it trusts, and its certificate.
type Tls = Arc<rustls::ClientConfig>;

struct World {
    dir: TempDir,
    api: Server,
    page: u16,
    admin: Tls,
    own: Tls,
    stranger: Tls,
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

fn leaf(ca: &Issuer<'_, KeyPair>, name: &str, group: Option<&str>) -> (String, String) {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, ca).unwrap().pem(), key.serialize_pem())
}

fn tls(ca: &str, own: Option<&(String, String)>) -> Tls {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match own {
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
        None => builder.with_no_client_auth(),
    })
}

async fn send(tls: &Tls, port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let stream = tokio_rustls::TlsConnector::from(tls.clone())
        .connect(ServerName::try_from("127.0.0.1").unwrap(), tcp)
        .await
        .unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, headers, text: String::from_utf8_lossy(&bytes).into_owned() }
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let server = leaf(&issuer, "kube-apiserver", None);
        let (admin, own) = (leaf(&issuer, "admin", Some("system:masters")), leaf(&issuer, "kimg:status", None));
        let account = KeyPair::generate().unwrap().serialize_pem();
        for (name, text) in [
            ("ca.crt", &ca),
            ("server.crt", &server.0),
            ("server.key", &server.1),
            ("status.crt", &own.0),
            ("status.key", &own.1),
            ("sa.key", &account),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let path = |name: &str| dir.path().join(name).display().to_string();
        let flags = [
            "kube-apiserver".to_owned(),
            "--bind-address=127.0.0.1".into(),
            "--secure-port=0".into(),
            format!("--client-ca-file={}", path("ca.crt")),
            format!("--tls-cert-file={}", path("server.crt")),
            format!("--tls-private-key-file={}", path("server.key")),
            format!("--service-account-key-file={}", path("sa.key")),
            format!("--service-account-signing-key-file={}", path("sa.key")),
            format!("--store-dir={}", path("store")),
        ];
        let api = Server::start(<Config as clap::Parser>::try_parse_from(flags).unwrap()).await.unwrap();
        let kubeconfig = json!({
            "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{}", api.address.port()),
                "certificate-authority": "ca.crt"}}],
            "users": [{"name": "u", "user": {"client-certificate": "status.crt", "client-key": "status.key"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        });
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let (admin, own, stranger) = (tls(&ca, Some(&admin)), tls(&ca, Some(&own)), tls(&ca, None));
        let mut world = World { dir, api, page: 0, admin, own, stranger };
        world.open_page().await;
        for document in serde_yaml_ng::Deserializer::from_str(MANIFEST) {
            let object: Value =
                serde_yaml_ng::from_value(serde_yaml_ng::Value::deserialize(document).unwrap()).unwrap();
            world.create(&object).await;
        }
        world
    }

    /// Another process of the page, as after a restart.
    async fn open_page(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let page = Page::open(Settings {
            kubeconfig: path("kubeconfig"),
            cluster: "demo".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            tls_cert_file: path("status.crt"),
            tls_private_key_file: path("status.key"),
        });
        let page = page.await.unwrap();
        self.page = page.address().unwrap().port();
        tokio::spawn(page.serve());
    }

    async fn create(&self, object: &Value) {
        let group = object["apiVersion"].as_str().unwrap();
        let group = if group == "v1" { "/api/v1".to_owned() } else { format!("/apis/{group}") };
        let place = object["metadata"]["namespace"].as_str().map(|n| format!("/namespaces/{n}")).unwrap_or_default();
        let plural = object["kind"].as_str().unwrap().to_lowercase() + "s";
        let answer = self.api(&self.admin, "POST", &format!("{group}{place}/{plural}"), object).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    }

    async fn api(&self, who: &Tls, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        send(who, self.api.address.port(), method, path, &[("content-type", "application/json")], body).await
    }

    async fn token(&self, audience: &str, seconds: i64) -> String {
        let spec = json!({"spec": {"audiences": [audience], "expirationSeconds": seconds}});
        let answer = self.api(&self.admin, "POST", TOKEN, &spec).await;
        answer.json()["status"]["token"].as_str().unwrap_or_else(|| panic!("{}", answer.text)).to_owned()
    }

    async fn page(&self, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        send(&self.stranger, self.page, method, path, headers, body).await
    }

    async fn log_in(&self, token: &str) -> Answer {
        self.page("POST", "/login", &[], format!("token={token}")).await
    }
}

fn cookie(answer: &Answer) -> String {
    let cookie = answer.header("set-cookie").to_owned();
    for word in ["__Host-kimg-status=", "; Path=/", "; Secure", "; HttpOnly", "; SameSite=Strict"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_opens_the_page_once_and_its_token_opens_nothing_else() {
    let mut world = World::new().await;
    let closed = world.page("GET", "/", &[], String::new()).await;
    assert!(closed.status == StatusCode::OK && closed.text.contains("kimg status --link"), "{}", closed.text);
    let token = world.token("kimg-status", 600).await;
    let opened = world.log_in(&token).await;
    assert_eq!((opened.status, opened.header("location")), (StatusCode::SEE_OTHER, "/"), "{}", opened.text);
    let session = cookie(&opened);
    let shown = world.page("GET", "/", &[("cookie", &format!("a=b; {session}"))], String::new()).await;
    assert!(shown.status == StatusCode::OK && shown.text.contains("<h2>Nodes</h2>"), "{}", shown.text);
    assert!(shown.header("content-security-policy").starts_with("default-src 'none'; style-src 'self'; form-action"));

    let again = world.log_in(&token).await;
    assert!(again.status == StatusCode::FORBIDDEN && again.text.contains("used already"), "{}", again.text);
    // At the API server it is nobody's, and neither is the session.
    let bearer = format!("Bearer {token}");
    let port = world.api.address.port();
    let answer =
        send(&world.stranger, port, "GET", "/api/v1/nodes", &[("authorization", &bearer)], String::new()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text);

    let out = world.page("POST", "/logout", &[("cookie", &session)], String::new()).await;
    assert_eq!(out.status, StatusCode::SEE_OTHER);
    let closed = world.page("GET", "/", &[("cookie", &session)], String::new()).await;
    assert!(closed.text.contains("kimg status --link") && !closed.text.contains("<h2>"), "{}", closed.text);

    // Another process does not know what was used, and takes no link of before its start.
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let made = second();
    let unused = world.token("kimg-status", 600).await;
    while second() <= made + 1 {
        tokio::task::yield_now().await;
    }
    world.open_page().await;
    let old = world.log_in(&unused).await;
    assert!(old.status == StatusCode::FORBIDDEN && old.text.contains("too old"), "{}", old.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_tokens_and_many_tries_are_refused() {
    let world = World::new().await;
    let api = "https://kubernetes.default.svc.cluster.local";
    let forged = {
        let token = world.token("kimg-status", 600).await;
        let (rest, signature) = token.rsplit_once('.').unwrap();
        let other = if signature.starts_with('A') { "B" } else { "A" };
        format!("{rest}.{other}{}", &signature[1..])
    };
    for token in [world.token(api, 600).await, world.token("kimg-status", 86_400).await, forged, "x".into()] {
        let answer = world.log_in(&token).await;
        assert!(answer.status == StatusCode::FORBIDDEN && answer.header("set-cookie").is_empty(), "{}", answer.text);
        assert!(!answer.text.contains(&token) || token == "x");
    }
    let good = world.token("kimg-status", 600).await;
    world.log_in("y").await;
    assert_eq!(world.log_in(&good).await.status, StatusCode::TOO_MANY_REQUESTS);
    let long = world.page("POST", "/login", &[], "x".repeat(9_000)).await;
    assert_eq!(long.status, StatusCode::BAD_REQUEST);
    for (method, path, status) in
        [("DELETE", "/", 405), ("GET", "/login", 405), ("GET", "/../etc/passwd", 404), ("GET", "/api/v1/nodes", 404)]
    {
        assert_eq!(world.page(method, path, &[], String::new()).await.status.as_u16(), status, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_what_the_cluster_does_and_may_see_no_more() {
    let world = World::new().await;
    let evil = "<script>alert(1)</script>";
    world
        .create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "m1",
            "labels": {"node-role.kubernetes.io/control-plane": ""}}}))
        .await;
    let status = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "message": evil}],
        "nodeInfo": {"osImage": "kimg 0.1.0", "kubeletVersion": "v1.36.0", "kernelVersion": "6.12", "bootID": "0123456789",
            "architecture": "", "containerRuntimeVersion": "", "kubeProxyVersion": "", "machineID": "",
            "operatingSystem": "", "systemUUID": ""}}});
    let patch = [("content-type", "application/merge-patch+json")];
    let port = world.api.address.port();
    let answer = send(&world.admin, port, "PATCH", "/api/v1/nodes/m1/status", &patch, status.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}});
    world.create(&account).await;
    for n in 0..260 {
        world
            .create(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("web-{n}"), "namespace": "default"},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}))
            .await;
    }
    world
        .create(&json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "web-0", "namespace": "default"}, "type": "Warning",
            "reason": "Failed", "message": evil, "lastTimestamp": "2026-01-01T00:00:00Z"}))
        .await;
    let journal = json!({"version": 3, "started": "2026-01-01T00:00:00Z", "back": false, "outcome": "running",
        "nodes": [{"node": "w7", "from": "aaaa", "to": "bbbb", "step": "draining", "since": "2026-01-01T00:00:00Z", "why": evil}]});
    world
        .create(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kimg-roll", "namespace": "kube-system"},
            "data": {"journal": journal.to_string()}}))
        .await;

    let session = cookie(&world.log_in(&world.token("kimg-status", 600).await).await);
    let page = world.page("GET", "/", &[("cookie", &session)], String::new()).await.text;
    for word in [
        "m1",
        "NotReady",
        "kimg 0.1.0",
        "01234567",
        "Roll under way",
        "w7",
        "draining",
        "bbbb",
        "default/web-259",
        "0 of 260 as they should be",
        "Failed",
        "Pod default/web-0",
        "&lt;script&gt;alert(1)",
    ] {
        assert!(page.contains(word), "{word}: {page}");
    }
    assert!(!page.contains("<script") && !page.contains("could not be read") && !page.contains("role=alert"), "{page}");

    // Its own certificate opens no more than that.
    for (method, path) in [
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/namespaces/kube-system/configmaps"),
        ("GET", "/api/v1/namespaces/kube-system/configmaps/kimg-revoked"),
        ("GET", "/api/v1/nodes/m1/proxy/metrics"),
        ("GET", "/api/v1/namespaces/default/pods/web-0/log"),
        ("DELETE", "/api/v1/namespaces/default/pods/web-0"),
        ("POST", TOKEN),
    ] {
        let body = if method == "POST" { json!({"spec": {}}) } else { Value::Null };
        assert_eq!(world.api(&world.own, method, path, &body).await.status, StatusCode::FORBIDDEN, "{method} {path}");
    }
}
