//! The real server and a kubelet that runs commands on this machine, with clients of our own and,
//! where `KUBECTL` names some (separated by colons), real ones.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser as _;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::backend;
use super::websocket::{self, Role};
use crate::request::Query;
use crate::run::Server;

const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// An address of this machine that others may have too; none where it has no network. Nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}

/// Files of a throw-away cluster.
struct Pki {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Pki {
        let dir = tempfile::tempdir().expect("dir");
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let cert = params.self_signed(&key).expect("ca");
        std::fs::write(dir.path().join("ca.crt"), cert.pem()).expect("write");
        Pki { dir, issuer: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, name: &str, cn: &str, org: &str) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, cn);
        params.distinguished_name.push(DnType::OrganizationName, org);
        let all = [Some(LOOPBACK), own_address()].into_iter().flatten();
        params.subject_alt_names = all.map(SanType::IpAddress).collect();
        let cert = params.signed_by(&key, &self.issuer).expect("cert");
        std::fs::write(self.path(&format!("{name}.crt")), cert.pem()).expect("write");
        std::fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).expect("write");
    }
}

type Answer = Response<Full<Bytes>>;

/// Serves the kubelet's part of the contract; processes run here.
async fn kubelet(request: Request<Incoming>) -> Result<Answer, std::convert::Infallible> {
    let path: Vec<String> = request.uri().path().split('/').skip(1).map(str::to_string).collect();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let answer = |code: u16, text: &str| {
        Response::builder().status(code).body(Full::new(Bytes::from(text.to_string()))).expect("answer")
    };
    let protocols = request.headers().get("sec-websocket-protocol").map_or("", |v| v.to_str().expect("text"));
    Ok(match path[0].as_str() {
        "containerLogs" => {
            answer(200, &format!("log of {} tail {}\n", path[3], query.get("tailLines").unwrap_or("all")))
        }
        "healthz" => answer(200, "ok"),
        "metrics" => answer(200, &readings()),
        "apis" => {
            let header = |name: &str| {
                let all = request.headers().get_all(name).iter().map(|v| v.to_str().expect("text"));
                all.collect::<Vec<_>>().join(",")
            };
            if request.uri().query().is_some_and(|query| query.starts_with("silent")) {
                std::future::pending::<()>().await;
            }
            if request.uri().query() == Some("redirect") {
                let mut redirect = answer(302, "");
                redirect.headers_mut().insert("location", "/healthz".parse().expect("value"));
                return Ok(redirect);
            }
            let who = ["x-remote-user", "x-remote-group", "authorization", "via"].map(header);
            answer(200, &json!({"kind": "Another", "path": request.uri().to_string(), "who": who}).to_string())
        }
        "size" => {
            let mark = request.headers().get("x-forwarded-uri").map_or("", |v| v.to_str().expect("text")).to_string();
            let body = request.into_body().collect().await.expect("body").to_bytes();
            answer(200, &format!("{} bytes for {mark}", body.len()))
        }
        "exec" if query.get("command") == Some("refuse") => answer(404, "container not found (\"c\")"),
        "exec" | "attach" | "portForward" if protocols.contains("bearer") => answer(400, "a token has come along"),
        "exec" | "attach" | "portForward" => {
            let key = request.headers()["sec-websocket-key"].to_str().expect("key").to_string();
            let protocol = request.headers()["sec-websocket-protocol"].clone();
            let what = path[0].clone();
            tokio::spawn(async move {
                let io = TokioIo::new(hyper::upgrade::on(request).await.expect("upgrade"));
                if what == "portForward" { forward(io, &query).await } else { run(io, &query, what == "attach").await }
            });
            Response::builder()
                .status(101)
                .header("connection", "Upgrade")
                .header("upgrade", "websocket")
                .header("sec-websocket-accept", websocket::accept_key(&key))
                .header("sec-websocket-protocol", protocol)
                .body(Full::default())
                .expect("answer")
        }
        _ => answer(404, "no such path"),
    })
}

/// What a kubelet says whose node uses two cpus, and whose pod a quarter of one.
fn readings() -> String {
    let now = jiff::Timestamp::now().as_millisecond();
    let (node, pod) = (now as f64 / 500.0, now as f64 / 4000.0);
    let place = "container=\"c\",namespace=\"default\",pod=\"p\"";
    format!(
        "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {node} {now}\n\
         node_memory_working_set_bytes 1048576 {now}\ncontainer_cpu_usage_seconds_total{{{place}}} {pod} {now}\n\
         container_memory_working_set_bytes{{{place}}} 4096 {now}\ncontainer_start_time_seconds{{{place}}} 1600000000\n"
    )
}

async fn pump(sender: &websocket::Sender, channel: u8, mut read: impl tokio::io::AsyncRead + Unpin) {
    let mut buffer = vec![0; 16384];
    while let Ok(n @ 1..) = read.read(&mut buffer).await {
        if sender.channel(channel, &buffer[..n]).await.is_err() {
            break;
        }
    }
}

async fn run(io: TokioIo<hyper::upgrade::Upgraded>, query: &Query, attach: bool) {
    let (sender, mut receiver) = websocket::start(io, Role::Server);
    let command: Vec<&str> = if attach { vec!["cat"] } else { query.all("command").collect() };
    let mut child = tokio::process::Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("spawn");
    let mut stdin = child.stdin.take();
    if query.get("input").is_none() {
        stdin = None;
    }
    let (out, err) = (child.stdout.take().expect("stdout"), child.stderr.take().expect("stderr"));
    let input = async {
        while let Ok(Some(message)) = receiver.next().await {
            match message.data[0] {
                0 => {
                    if let Some(stdin) = &mut stdin {
                        let _ = stdin.write_all(&message.data[1..]).await;
                    }
                }
                255 => stdin = None,
                _ => {}
            }
        }
    };
    let output = async {
        tokio::join!(pump(&sender, 1, out), pump(&sender, 2, err));
        let code = child.wait().await.expect("wait").code().unwrap_or(137);
        let status = match code {
            0 => json!({"metadata": {}, "status": "Success"}),
            code => json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        };
        sender.channel(3, status.to_string().as_bytes()).await.expect("status");
        sender.close().await.expect("close");
    };
    tokio::select! {
        () = input => {}
        () = output => {}
    }
}

async fn forward(io: TokioIo<hyper::upgrade::Upgraded>, query: &Query) {
    let (sender, mut receiver) = websocket::start(io, Role::Server);
    let port: u16 = query.get("port").expect("port").parse().expect("number");
    for channel in [0, 1] {
        sender.channel(channel, &port.to_le_bytes()).await.expect("port");
    }
    let stream = match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(stream) => stream,
        Err(e) => {
            sender.channel(1, format!("connecting to port {port}: {e}").as_bytes()).await.expect("error");
            sender.close().await.expect("close");
            return;
        }
    };
    let (mut read, mut write) = stream.into_split();
    let up = async {
        while let Ok(Some(message)) = receiver.next().await {
            if message.data.len() == 1 {
                break;
            }
            write.write_all(&message.data[1..]).await.expect("write");
        }
        let _ = write.shutdown().await;
    };
    let down = async {
        let mut buffer = vec![0; 16384];
        while let Ok(n @ 1..) = read.read(&mut buffer).await {
            if sender.channel(0, &buffer[..n]).await.is_err() {
                return;
            }
        }
        let _ = sender.channel(0, &[]).await;
    };
    tokio::join!(up, down);
    let _ = sender.close().await;
}

async fn serve_kubelet(pki: &Pki) -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    let (chain, key) = (pki.path("kubelet.crt"), pki.path("kubelet.key"));
    use rustls_pki_types::pem::PemObject;
    let chain =
        rustls_pki_types::CertificateDer::pem_file_iter(chain).expect("pem").collect::<Result<_, _>>().expect("pem");
    let key = rustls_pki_types::PrivateKeyDer::from_pem_file(key).expect("pem");
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("tls");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(kubelet));
                let _ = serving.with_upgrades().await;
            });
        }
    });
    port
}

struct Cluster {
    pki: Pki,
    server: Server,
}

async fn cluster() -> Cluster {
    let pki = Pki::new();
    pki.issue("server", "kube-apiserver", "x");
    pki.issue("kubelet", "system:node:n1", "system:nodes");
    pki.issue("client", "kube-apiserver-kubelet-client", "kimg:kubelet-api-clients");
    pki.issue("admin", "kubernetes-admin", "kimg:cluster-admins");
    pki.issue("joe", "joe", "dev");
    std::fs::write(pki.path("sa.key"), KeyPair::generate().expect("key").serialize_pem()).expect("write");
    let file = |flag: &str, name: &str| format!("--{flag}={}", pki.path(name).display());
    let config = crate::Config::try_parse_from([
        "kube-apiserver".to_string(),
        "--bind-address=127.0.0.1".into(),
        "--secure-port=0".into(),
        file("client-ca-file", "ca.crt"),
        file("tls-cert-file", "server.crt"),
        file("tls-private-key-file", "server.key"),
        file("kubelet-client-certificate", "client.crt"),
        file("kubelet-client-key", "client.key"),
        file("kubelet-certificate-authority", "ca.crt"),
        file("proxy-client-cert-file", "client.crt"),
        file("proxy-client-key-file", "client.key"),
        file("service-account-signing-key-file", "sa.key"),
        file("store-dir", "store"),
    ]);
    let server = Server::start(config.expect("flags")).await.expect("server");
    let port = serve_kubelet(&pki).await;
    let put = async |resource: &str, object: serde_json::Value| {
        server.state.registry.create("", resource, &object, None).await.expect("create");
    };
    // The second of each is where the proxy goes to.
    for (node, pod, ip) in [("n1", "p", Some(LOOPBACK)), ("n2", "p2", own_address())] {
        let Some(ip) = ip else { continue };
        put("nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "uid": node, "labels": {"of": node}}, "status": {
            "conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": ip}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}}))
        .await;
        put("pods", json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "default", "uid": pod},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i", "stdin": true, "ports": [{"containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "c", "ready": true, "state": {"running": {}}}]}}))
        .await;
    }
    let cluster = Cluster { pki, server };
    cluster.kubeconfig("admin");
    cluster.kubeconfig("joe");
    cluster
}

impl Cluster {
    /// The server, for an admin.
    fn admin(&self) -> backend::Target {
        let mut config = self.server.state.config.clone();
        config.kubelet_client_certificate = Some(self.pki.path("admin.crt"));
        config.kubelet_client_key = Some(self.pki.path("admin.key"));
        let tls = super::tls::kubelet(&config).expect("tls");
        backend::Target { host: "127.0.0.1".into(), port: self.server.address.port(), tls, ips: Vec::new() }
    }

    fn kubeconfig(&self, user: &str) {
        let file = |name: String| self.pki.path(&name).display().to_string();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "x", "cluster": {"server": format!("https://{}", self.server.address), "certificate-authority": file("ca.crt".into())}}],
            "users": [{"name": "x", "user": {"client-certificate": file(format!("{user}.crt")), "client-key": file(format!("{user}.key"))}}],
            "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
        });
        std::fs::write(self.pki.path(&format!("{user}.conf")), config.to_string()).expect("write");
    }

    fn kubectl(&self, binary: &Path, user: &str, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(binary);
        command.arg("--kubeconfig").arg(self.pki.path(&format!("{user}.conf"))).args(args);
        command.env("HOME", self.pki.dir.path()).kill_on_drop(true);
        command
    }

    /// Output, error output and exit code.
    async fn run(&self, binary: &Path, user: &str, args: &[&str], input: &str) -> (String, String, i32) {
        let mut command = self.kubectl(binary, user, args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("kubectl");
        let mut stdin = child.stdin.take().expect("stdin");
        stdin.write_all(input.as_bytes()).await.expect("write");
        drop(stdin);
        let done = tokio::time::timeout(Duration::from_secs(40), child.wait_with_output()).await;
        let done = done.unwrap_or_else(|_| panic!("kubectl {args:?} hangs")).expect("kubectl");
        let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
        (text(done.stdout), text(done.stderr), done.status.code().unwrap_or(-1))
    }
}

async fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

/// The messages of a channel, joined, until the connection ends; by channel.
async fn collect(receiver: &mut backend::KubeletReceiver) -> [String; 4] {
    let mut out: [String; 4] = Default::default();
    while let Ok(Ok(Some(message))) = tokio::time::timeout(Duration::from_secs(10), receiver.next()).await {
        let channel = usize::from(message.data[0] & 0x0f);
        out[channel].push_str(&String::from_utf8_lossy(&message.data[1..]));
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_clients_of_all_kinds() {
    let cluster = cluster().await;
    let target = cluster.admin();
    let pod = "/api/v1/namespaces/default/pods/p";
    let open = async |path: String, protocol: &'static str| backend::open_websocket(&target, &path, protocol).await;
    // A plain command, with each protocol's way to tell its end.
    for (protocol, status) in [
        ("v5.channel.k8s.io", "\"status\":\"Success\""),
        ("v4.channel.k8s.io", "\"status\":\"Success\""),
        ("channel.k8s.io", ""),
    ] {
        let (_sender, mut receiver) =
            open(format!("{pod}/exec?command=echo&command=hi&stdout=1&stderr=1"), protocol).await.expect("open");
        let got = collect(&mut receiver).await;
        assert_eq!(got[1], "hi\n", "{protocol}");
        assert!(got[3].contains(status) && (got[3].is_empty() == status.is_empty()), "{protocol}: {}", got[3]);
    }
    let (_sender, mut receiver) =
        open(format!("{pod}/exec?command=echo&command=hi&stdout=1"), "base64.channel.k8s.io").await.expect("open");
    assert_eq!(collect(&mut receiver).await[1], "aGkK");
    // End of input, which only v5 can tell.
    let (sender, mut receiver) =
        open(format!("{pod}/exec?command=cat&stdin=1&stdout=1"), "v5.channel.k8s.io").await.expect("open");
    sender.channel(0, b"typed").await.expect("send");
    sender.channel(255, &[0]).await.expect("send");
    assert_eq!(collect(&mut receiver).await[1], "typed");
    // A forwarded port that answers, and one where nobody is.
    let port = echo_server().await;
    let (sender, mut receiver) =
        open(format!("{pod}/portforward?ports={port}"), "v4.channel.k8s.io").await.expect("open");
    sender.channel(0, b"there and back").await.expect("send");
    let mut data = Vec::new();
    while data.len() < 2 + 14 {
        let message = receiver.next().await.expect("read").expect("message");
        if message.data[0] == 0 {
            data.extend_from_slice(&message.data[1..]);
        }
    }
    assert_eq!((&data[..2], &data[2..]), (&port.to_le_bytes()[..], &b"there and back"[..]));
    let (_sender, mut receiver) = open(format!("{pod}/portforward?ports=1"), "v4.channel.k8s.io").await.expect("open");
    assert!(collect(&mut receiver).await[1].contains("connecting to port 1"));
    // Refusals come before the upgrade, as a Status.
    let error =
        open(format!("{pod}/exec?command=true&stdout=1&container=x"), "v4.channel.k8s.io").await.expect_err("refused");
    assert_eq!((error.code, error.message.as_str()), (400, "container x is not valid for pod p"));
    let error = open(format!("{pod}/exec?command=true&stdout=1"), "v9.channel.k8s.io").await.expect_err("refused");
    assert_eq!(error.code, 403);
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxied_requests_reach_nodes_and_pods() {
    let cluster = cluster().await;
    let target = cluster.admin();
    let send = async |path: &str, body: Vec<u8>| {
        let request = Request::post(path).body(Full::new(Bytes::from(body))).expect("request");
        let (parts, body) = backend::send(&target, request).await.expect(path).into_parts();
        let body = body.collect().await.expect("body").to_bytes();
        (parts.status.as_u16(), String::from_utf8_lossy(&body).into_owned())
    };
    for path in ["nodes/n1/proxy/healthz", "namespaces/default/pods/https:p:/proxy/healthz"] {
        let (code, text) = send(&format!("/api/v1/{path}"), Vec::new()).await;
        assert!(code == 400 && text.contains("address not allowed"), "{path}: {code} {text}");
    }
    if own_address().is_none() {
        eprintln!("this machine has no network, and no address to pass anything to");
        return cluster.server.stop().await;
    }
    // More than a body that is read here may have.
    for path in ["nodes/n2", "namespaces/default/pods/https:p2:"] {
        let (code, text) = send(&format!("/api/v1/{path}/proxy/size/x?y=z"), vec![b'x'; 5 << 20]).await;
        assert_eq!((code, text), (200, format!("{} bytes for /api/v1/{path}/proxy/size/x?y=z", 5 << 20)));
    }
    let exec = "/api/v1/nodes/n2/proxy/exec/default/p2/c?command=cat&input=1&output=1";
    // A browser's token goes no further than this server.
    let protocols = "base64url.bearer.authorization.k8s.io.YS5iLmM, v5.channel.k8s.io";
    let (sender, mut receiver) = backend::open_websocket(&target, exec, protocols).await.expect("upgraded");
    sender.channel(0, b"typed").await.expect("send");
    sender.channel(255, &[0]).await.expect("send");
    assert_eq!(collect(&mut receiver).await[1], "typed");
    cluster.server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_measured_when_asked_for() {
    let cluster = cluster().await;
    let target = cluster.admin();
    let get = async |path: &str, accept: &str| {
        let path = format!("/apis/metrics.k8s.io{path}");
        let request = Request::get(&path).header("accept", accept).body(http_body_util::Empty::<Bytes>::new());
        let (parts, body) = backend::send(&target, request.expect("request")).await.expect("answer").into_parts();
        let body = body.collect().await.expect("body").to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        (parts.status.as_u16(), value)
    };
    let json = "application/json";
    let (code, list) = get("/v1beta1/nodes?labelSelector=of%3Dn1", json).await;
    assert_eq!((code, &list["kind"]), (200, &json!("NodeMetricsList")), "{list}");
    let [node] = list["items"].as_array().expect("items").as_slice() else { panic!("{list}") };
    assert_eq!((&node["metadata"]["name"], &node["usage"]["memory"]), (&json!("n1"), &json!("1024Ki")));
    let nanocores = |usage: &serde_json::Value| -> f64 {
        usage["cpu"].as_str().and_then(|cpu| cpu.strip_suffix('n')).expect("cpu").parse().expect("number")
    };
    assert!((nanocores(&node["usage"]) / 2e9 - 1.0).abs() < 0.05, "{node}");
    assert_eq!(node["metadata"]["labels"], json!({"of": "n1"}));
    let (code, pod) = get("/v1beta1/namespaces/default/pods/p", json).await;
    assert_eq!((code, &pod["kind"], &pod["containers"][0]["name"]), (200, &json!("PodMetrics"), &json!("c")), "{pod}");
    assert!((nanocores(&pod["containers"][0]["usage"]) / 0.25e9 - 1.0).abs() < 0.05, "{pod}");
    let (_, list) = get("/v1beta1/pods?fieldSelector=metadata.name%3Dp,metadata.namespace%3Ddefault", json).await;
    assert_eq!(list["items"][0]["timestamp"], node["timestamp"], "the answer was not kept");
    let (_, list) = get("/v1beta1/namespaces/other/pods", json).await;
    assert_eq!(list["items"], json!([]));
    let (_, table) = get("/v1beta1/nodes/n1", "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][2]), (&json!("Table"), &json!("1Mi")), "{table}");
    let (_, resources) = get("/v1beta1", json).await;
    assert_eq!(resources["resources"][0]["verbs"], json!(["get", "list"]), "{resources}");
    for (path, expected) in [
        ("/v1beta1/nodes/none", 404),
        ("/v1beta1/namespaces/default/pods/none", 404),
        ("/v1beta1/pods?watch=1", 405),
        ("/v1beta1/pods?labelSelector=a%20in%201", 400),
        ("/v1beta1/pods?fieldSelector=spec.nodeName%3Dn1", 400),
        ("/v1/pods", 404),
    ] {
        assert_eq!(get(path, json).await.0, expected, "{path}");
    }
    // A node that is not ready is not waited for, and one whose kubelet does not answer is left out.
    let change = |mut node: serde_json::Value| {
        node["status"]["conditions"][0]["status"] = "Unknown".into();
        Ok(crate::registry::Change::Write(node))
    };
    cluster.server.state.registry.guaranteed_update("", "nodes", "", "n1", change).await.expect("update");
    assert_eq!(get("/v1beta1/nodes/n1", json).await.0, 404);
    another_server(&cluster, &get).await;
    cluster.server.stop().await;
}

/// An APIService gives the group to another server.
async fn another_server(cluster: &Cluster, get: &impl AsyncFn(&str, &str) -> (u16, serde_json::Value)) {
    let Some(ip) = own_address() else {
        return eprintln!("this machine has no network, and no address to pass anything to");
    };
    let registry = &cluster.server.state.registry;
    let port = registry.get("", "nodes", "", "n1").expect("node").value()["status"]["daemonEndpoints"].clone();
    let port = &port["kubeletEndpoint"]["Port"];
    let put = async |group: &str, resource: &str, object: serde_json::Value| {
        registry.create(group, resource, &object, None).await.expect("create");
    };
    let service = json!({"metadata": {"name": "metrics-server", "namespace": "kube-system", "uid": "s"},
        "spec": {"ports": [{"name": "https", "port": 443}]}});
    put("", "services", service).await;
    let registered = json!({"metadata": {"name": "v1beta1.metrics.k8s.io", "uid": "a"}, "spec": {
        "group": "metrics.k8s.io", "version": "v1beta1", "insecureSkipTLSVerify": true,
        "service": {"name": "metrics-server", "namespace": "kube-system"}}});
    put("apiregistration.k8s.io", "apiservices", registered).await;
    assert_eq!(get("/v1beta1/nodes", "application/json").await.0, 503, "no endpoint yet");
    let slice = json!({"metadata": {"name": "s-1", "namespace": "kube-system", "uid": "e",
        "labels": {"kubernetes.io/service-name": "metrics-server"}}, "addressType": "IPv4",
        "ports": [{"name": "https", "port": port}], "endpoints": [{"addresses": [ip]}]});
    put("discovery.k8s.io", "endpointslices", slice).await;
    let (code, answer) = get("/v1beta1/nodes?limit=5", "application/json").await;
    assert_eq!((code, &answer["kind"]), (200, &json!("Another")), "{answer}");
    assert_eq!(answer["path"], "/apis/metrics.k8s.io/v1beta1/nodes?limit=5");
    let who = ["kubernetes-admin", "kimg:cluster-admins,system:authenticated", "", "1.1 kube-apiserver"];
    assert_eq!(answer["who"], json!(who));
    assert_eq!(get("/v1beta1", "application/json").await.1["kind"], "Another");
    // What is passed on is what was authorised, and nobody is led on from there.
    assert_eq!(get("/v1beta1//pods", "application/json").await.0, 404);
    let (code, refused) = get("/v1beta1/nodes?redirect", "application/json").await;
    assert!(code == 502 && refused["message"].as_str().is_some_and(|m| m.contains("redirect")), "{code} {refused}");
    // One that does not answer is not waited for for ever, by discovery neither.
    for path in ["/v1beta1?silent&timeout=1s", "/v1beta1/nodes?silent&timeout=1s"] {
        assert_eq!(get(path, "application/json").await.0, 504, "{path}");
    }
    // One that leads back here would do so for ever.
    let request = Request::get("/apis/metrics.k8s.io/v1beta1/nodes").header("via", "1.1 kube-apiserver");
    let request = request.body(http_body_util::Empty::<Bytes>::new()).expect("request");
    let refused = backend::refusal(backend::send(&cluster.admin(), request).await.expect("answer")).await;
    assert!(refused.code == 503 && refused.message.contains("leads back to this API server"), "{refused:?}");
    // Its certificate is looked at, unless that was waived.
    let change = |mut service: serde_json::Value| {
        let pem = std::fs::read(cluster.pki.path("ca.crt")).expect("read");
        service["spec"]["insecureSkipTLSVerify"] = false.into();
        service["spec"]["caBundle"] = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, pem).into();
        Ok(crate::registry::Change::Write(service))
    };
    let name = "v1beta1.metrics.k8s.io";
    registry.guaranteed_update("apiregistration.k8s.io", "apiservices", "", name, change).await.expect("update");
    let (code, refused) = get("/v1beta1/nodes", "application/json").await;
    assert!(code == 503 && refused["message"].as_str().is_some_and(|m| m.contains("certificate")), "{code} {refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectls_of_all_ages_stream() {
    let Ok(list) = std::env::var("KUBECTL") else { return };
    let cluster = cluster().await;
    for binary in list.split(':').map(Path::new) {
        eprintln!("== {}", binary.display());
        exec_and_logs(&cluster, binary).await;
        copy(&cluster, binary).await;
        port_forward(&cluster, binary).await;
        refusals(&cluster, binary).await;
    }
    cluster.server.stop().await;
}

async fn exec_and_logs(cluster: &Cluster, kubectl: &Path) {
    let run = async |args: &[&str], input: &str| cluster.run(kubectl, "admin", args, input).await;
    let (out, err, code) = run(&["exec", "p", "--", "echo", "a b", "c"], "").await;
    assert_eq!((out.as_str(), code), ("a b c\n", 0), "{err}");
    let (out, err, code) = run(&["exec", "-i", "p", "--", "cat"], "hello\n").await;
    assert_eq!((out.as_str(), code), ("hello\n", 0), "{err}");
    let (out, err, code) = run(&["exec", "p", "--", "sh", "-c", "echo out; echo err >&2; exit 3"], "").await;
    assert_eq!((out.as_str(), code), ("out\n", 3), "{err}");
    assert!(err.contains("err\n") && err.contains("command terminated with exit code 3"), "{err}");
    let big = "x".repeat(300_000);
    let (out, err, _) = run(&["exec", "-i", "p", "--", "cat"], &big).await;
    assert_eq!(out.len(), big.len(), "{err}");
    let (_, err, code) = run(&["exec", "p", "--", "refuse"], "").await;
    assert!(code != 0 && err.contains("container not found"), "{err}");
    let (out, err, _) = run(&["attach", "-i", "p"], "typed\n").await;
    assert!(out.contains("typed"), "{out} {err}");
    let (out, err, _) = run(&["logs", "p", "--tail=5"], "").await;
    assert_eq!(out, "log of c tail 5\n", "{err}");
}

async fn copy(cluster: &Cluster, kubectl: &Path) {
    let (from, to, back) = (cluster.pki.path("from"), cluster.pki.path("to"), cluster.pki.path("back"));
    let content = "line\n".repeat(50_000);
    std::fs::write(&from, &content).expect("write");
    for file in [&to, &back] {
        let _ = std::fs::remove_file(file);
    }
    let (from, to, back) = (from.display().to_string(), to.display().to_string(), back.display().to_string());
    let (_, err, code) = cluster.run(kubectl, "admin", &["cp", &from, &format!("p:{to}")], "").await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(std::fs::read_to_string(&to).expect("copied"), content);
    let (_, err, code) = cluster.run(kubectl, "admin", &["cp", &format!("p:{to}"), &back], "").await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(std::fs::read_to_string(&back).expect("copied"), content);
}

async fn port_forward(cluster: &Cluster, kubectl: &Path) {
    let port = echo_server().await;
    let mut command = cluster.kubectl(kubectl, "admin", &["port-forward", "p", &format!(":{port}")]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("kubectl");
    let mut out = child.stdout.take().expect("stdout");
    let mut text = String::new();
    let local: u16 = loop {
        let mut buffer = [0; 256];
        let n =
            tokio::time::timeout(Duration::from_secs(20), out.read(&mut buffer)).await.expect("in time").expect("read");
        assert!(n > 0, "kubectl ended: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
        if let Some(line) = text.lines().find(|l| l.contains("127.0.0.1:") && l.contains("->")) {
            break line
                .split("127.0.0.1:")
                .nth(1)
                .and_then(|r| r.split(' ').next())
                .and_then(|p| p.parse().ok())
                .expect("port");
        }
    };
    for round in 0..5 {
        let mut stream = TcpStream::connect(("127.0.0.1", local)).await.expect("connect");
        let sent = format!("{round}{}", "y".repeat(100_000));
        let (mut read, mut write) = stream.split();
        let send = async {
            write.write_all(sent.as_bytes()).await.expect("write");
            write.shutdown().await.expect("shutdown");
        };
        let mut got = String::new();
        let all = async { tokio::join!(send, read.read_to_string(&mut got)) };
        let (_, n) = tokio::time::timeout(Duration::from_secs(20), all).await.expect("echo in time");
        n.expect("read");
        assert_eq!(got.len(), sent.len());
    }
    child.kill().await.expect("kill");
}

async fn refusals(cluster: &Cluster, kubectl: &Path) {
    let (_, err, code) = cluster.run(kubectl, "joe", &["exec", "p", "--", "true"], "").await;
    assert!(code != 0 && err.contains(r#"pods "p" is forbidden: User "joe" cannot"#), "{err}");
    let (_, err, _) = cluster.run(kubectl, "joe", &["get", "pods"], "").await;
    assert_eq!(
        err.trim(),
        r#"Error from server (Forbidden): pods is forbidden: User "joe" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    let (out, err, _) = cluster.run(kubectl, "admin", &["auth", "can-i", "list", "pods", "--as", "joe"], "").await;
    assert_eq!(out.trim(), "no", "{err}");
}
