//! The status page of the master, by a link of `kimg status --link`.

use anyhow::{Context, ensure};
use kimg::client::{block_on, tls};
use kimg::pki::authority::Authority;
use kimg::pki::{Secrets, issue, successor};
use qemu_tests::{Cluster, Result};
use rustls::pki_types::ServerName;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) const TESTS: &[super::Test] = &[("the_status_page_opens_once_by_its_link", opens)];

fn opens(cluster: &Cluster) -> Result {
    let link = cluster.kimg(&["status", "--link"])?.success()?;
    let (target, token) =
        link.trim().strip_prefix("https://").and_then(|rest| rest.split_once("/#")).context("that is no link")?;
    let settings = kimg::config::load(&cluster.dir)?;
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let tls = tls::config(&successor::bundle(&secrets, Authority::Cluster)?, &issue::admin(&secrets)?, None)?;
    let page = Page { target, tls };
    let closed = ask(&page, "GET /", "", "")?;
    ensure!(!closed.contains("worker-1"), "whoever comes sees it:\n{closed}");
    let opened = ask(&page, "POST /login", "", &format!("token={token}"))?;
    let cookie = opened.lines().find_map(|line| line.strip_prefix("set-cookie: ")).context(opened.clone())?;
    let session = cookie.split(';').next().unwrap_or_default();
    let shown = ask(&page, "GET /", &format!("Cookie: {session}\r\n"), "")?;
    for word in ["<h2>Nodes</h2>", "master-1", "worker-1", "worker-2"] {
        ensure!(shown.contains(word), "there is no {word} in\n{shown}");
    }
    let again = ask(&page, "POST /login", "", &format!("token={token}"))?;
    ensure!(!again.contains("set-cookie"), "a link was good twice:\n{again}");
    // It is nobody on the node, and runs all the same.
    let services = cluster.kimg(&["node", "--node", "master-1", "services"])?.success()?;
    ensure!(services.lines().any(|l| l.starts_with("kimg-status") && l.contains("ready")), "{services}");
    Ok(())
}

struct Page<'a> {
    target: &'a str,
    tls: Arc<rustls::ClientConfig>,
}

/// The whole answer to a request, as it comes.
fn ask(page: &Page<'_>, what: &str, headers: &str, body: &str) -> Result<String> {
    block_on(async {
        let tcp = tokio::net::TcpStream::connect(page.target).await.context("connecting to the status page")?;
        let name = ServerName::try_from("127.0.0.1").context("reading its name")?;
        let mut stream = tokio_rustls::TlsConnector::from(page.tls.clone()).connect(name, tcp).await?;
        let form = "Content-Type: application/x-www-form-urlencoded";
        let length = body.len();
        let request = format!(
            "{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}{form}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.context("asking the status page")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.context("reading the status page")?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    })
}
