//! When the certificates of each node end, which its kubelet says under `/metrics` to who may see metrics.

use crate::collect::{Certificate, Node};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::StreamExt;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls_pki_types::ServerName;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

const PORT: u16 = 10250;
const PATIENCE: Duration = Duration::from_secs(3);
/// Certificates change within weeks.
const FRESH: Duration = Duration::from_secs(60);
/// So many nodes are asked, and so many at a time.
const MOST_NODES: usize = 100;
const AT_A_TIME: usize = 8;
const LARGEST: usize = 1 << 20;
const MOST_OF_A_NODE: usize = 32;
const FAMILY: &str = "kimg_certificate_expiration_timestamp_seconds{certificate=\"";

/// The kubelets, and what they said last.
#[derive(Debug)]
pub struct Kubelets {
    kubeconfig: PathBuf,
    known: Mutex<Option<(Instant, Answer)>>,
}

/// The certificates, and a sentence about each node that did not say.
type Answer = (Vec<Certificate>, Vec<String>);

impl Kubelets {
    /// They are asked with the certificate that the kubeconfig names.
    pub fn new(kubeconfig: PathBuf) -> Kubelets {
        Kubelets { kubeconfig, known: Mutex::default() }
    }

    /// What ends first is at the top.
    pub async fn certificates(&self, nodes: &[Node]) -> Answer {
        let mut known = self.known.lock().await;
        if let Some((_, answer)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return answer.clone();
        }
        let answer = self.ask(nodes).await;
        *known = Some((Instant::now(), answer.clone()));
        answer
    }

    async fn ask(&self, nodes: &[Node]) -> Answer {
        let tls = match control_client::connect::identity(&self.kubeconfig) {
            Ok(tls) => Arc::new(tls),
            Err(error) => {
                return (Vec::new(), vec![format!("Nodes cannot be asked for their certificates: {error:#}")]);
            }
        };
        // Of a node that is away it is known already.
        let asked: Vec<Node> = nodes.iter().filter(|node| node.ready).take(MOST_NODES).cloned().collect();
        let answers = futures::stream::iter(asked).map(|node| {
            let tls = tls.clone();
            async move {
                let said = tokio::time::timeout(PATIENCE, metrics(tls, &node.address)).await;
                (node.name, said.unwrap_or_else(|_| bail_late()))
            }
        });
        let answers: Vec<(String, Result<String>)> = answers.buffer_unordered(AT_A_TIME).collect().await;
        let (mut certificates, mut silent) = (Vec::new(), Vec::new());
        for (node, said) in answers {
            match said {
                Ok(text) => certificates.extend(ends(&node, &text)),
                Err(error) => silent.push(format!("{node} does not say when its certificates end: {error:#}")),
            }
        }
        certificates.sort_by(|a, b| (a.until, &a.node, &a.name).cmp(&(b.until, &b.node, &b.name)));
        silent.sort();
        (certificates, silent)
    }
}

fn bail_late() -> Result<String> {
    bail!("no answer within {} s", PATIENCE.as_secs())
}

async fn metrics(tls: Arc<rustls::ClientConfig>, address: &str) -> Result<String> {
    let address: IpAddr = address.parse().context("it has no address")?;
    let tcp = TcpStream::connect((address, PORT)).await.with_context(|| format!("connecting to {address}:{PORT}"))?;
    let stream = TlsConnector::from(tls).connect(ServerName::from(address), tcp).await.context("TLS")?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("beginning HTTP")?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/metrics").header("host", "kubelet").body(Empty::<Bytes>::new()).context("asking")?;
    let response = sender.send_request(request).await.context("asking")?;
    ensure!(response.status().is_success(), "its kubelet answers {}", response.status());
    let body = Limited::new(response.into_body(), LARGEST).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("reading its answer: {error}"))?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

/// Nodes say what they like: it is a text and a number.
fn ends(node: &str, text: &str) -> Vec<Certificate> {
    let one = |line: &str| {
        let (name, value) = line.strip_prefix(FAMILY)?.split_once("\"} ")?;
        let seconds: f64 = value.trim().parse().ok()?;
        let until = Timestamp::from_second(seconds as i64).ok()?;
        Some(Certificate { node: node.to_owned(), name: name.chars().take(60).collect(), until })
    };
    text.lines().filter_map(one).take(MOST_OF_A_NODE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read_from_what_a_kubelet_says() {
        let text = "# TYPE kimg_certificate_expiration_timestamp_seconds gauge\n\
                    kimg_certificate_expiration_timestamp_seconds{certificate=\"kubelet\"} 1800000000\n\
                    kimg_certificate_expiration_timestamp_seconds{certificate=\"<b>\"} 1.9e9\n\
                    kimg_certificate_expiration_timestamp_seconds{certificate=\"x\"} NaN\n\
                    kimg_certificate_expiration_timestamp_seconds{certificate=\"y\"} 1e300\n\
                    kimg_certificate_expiration_timestamp_seconds{certificate=\"z\nkubelet_running_pods 3\n";
        let found = ends("n", text);
        assert_eq!(found[0].until.as_second(), 1_800_000_000);
        let names: Vec<&str> = found.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["kubelet", "<b>", "x"], "no number is the year 1970, and ends first");
        assert_eq!(ends("n", &text.repeat(100)).len(), MOST_OF_A_NODE);
    }
}
