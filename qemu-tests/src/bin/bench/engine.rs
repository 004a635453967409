//! A server on one of the store's engines.

use crate::process::Process;
use anyhow::{Context, Result};
use qemu_tests::apiserver::Apiserver;
use qemu_tests::tools;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// A running server with its engine.
#[derive(Debug)]
pub struct Engine {
    pub name: &'static str,
    pub server: Apiserver,
    etcd: Option<Etcd>,
}

impl Engine {
    /// The store in the server's own process.
    pub fn embedded() -> Result<Engine> {
        Ok(Engine { name: "embedded", server: Apiserver::start(&["--log-level=warn"])?, etcd: None })
    }

    /// One member of Debian's etcd, by mutual TLS, making everything durable as it does by default.
    pub fn etcd() -> Result<Engine> {
        let mut server = Apiserver::prepare()?;
        let etcd = Etcd::start(&server)?;
        let path = |name: &str| server.dir().join(name).display().to_string();
        server.flags = vec![
            "--log-level=warn".into(),
            format!("--etcd-servers=https://127.0.0.1:{}", etcd.port),
            format!("--etcd-cafile={}", path("ca.crt")),
            format!("--etcd-certfile={}", path("admin.crt")),
            format!("--etcd-keyfile={}", path("admin.key")),
        ];
        server.begin()?;
        Ok(Engine { name: "etcd", server, etcd: Some(etcd) })
    }

    /// All processes that a request costs.
    pub fn processes(&self) -> Result<Vec<Process>> {
        let etcd = self.etcd.iter().map(|e| Process(e.process.id()));
        Ok(std::iter::once(self.process()?).chain(etcd).collect())
    }

    /// The API server's.
    pub fn process(&self) -> Result<Process> {
        self.server.pid().map(Process).context("the API server does not run")
    }
}

/// An etcd with its data beside the server's; it ends with this value.
#[derive(Debug)]
struct Etcd {
    process: Child,
    port: u16,
}

impl Etcd {
    fn start(server: &Apiserver) -> Result<Etcd> {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("looking for a free port");
        let (port, peer) = (free()?.port(), free()?.port());
        let path = |name: &str| server.dir().join(name).display().to_string();
        let (clients, peers) = (format!("https://127.0.0.1:{port}"), format!("https://127.0.0.1:{peer}"));
        let process = Command::new(tools::etcd()?)
            .args(["--name", "m0", "--log-level", "error", "--data-dir", &path("etcd")])
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("m0={peers}")])
            .args(["--trusted-ca-file", &path("ca.crt"), "--client-cert-auth"])
            .args(["--cert-file", &path("server.crt"), "--key-file", &path("server.key")])
            .args(["--peer-trusted-ca-file", &path("ca.crt"), "--peer-client-cert-auth"])
            .args(["--peer-cert-file", &path("server.crt"), "--peer-key-file", &path("server.key")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting etcd")?;
        Ok(Etcd { process, port })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("ending etcd: {error}");
        }
    }
}
