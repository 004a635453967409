//! The connection to where logs go.

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// For each step of the way there, and for it to take a batch.
const PATIENCE: Duration = Duration::from_secs(20);
const CLOSED: &str = "it has closed the connection";
/// Between two looks whether a batch has arrived.
const LOOK: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(200)];

/// Where logs go.
#[derive(Clone)]
pub struct Target {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Target {
    /// It shows a certificate of its host's name, by one of the authorities in a file.
    ///
    /// # Errors
    /// The file or the name is none.
    pub fn new(host: &str, port: u16, authorities: &[u8]) -> Result<Target> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(authorities) {
            // Of the web's some may be none that rustls knows.
            drop(roots.add(certificate.context("it is no PEM file")?));
        }
        anyhow::ensure!(!roots.is_empty(), "no authority in it can be used");
        let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host} is no host"))?;
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Target { host: host.to_owned(), port, name, tls: Arc::new(config).into() })
    }

    /// Connects.
    ///
    /// # Errors
    /// It is not found, does not answer, or is somebody else.
    pub async fn connect(&self) -> Result<Connection> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port));
        let addresses = in_time(found, "looking up its address").await?;
        let mut last = None;
        for address in addresses {
            match in_time(TcpStream::connect(address), "connecting").await {
                Ok(stream) => {
                    let socket = stream.as_fd().try_clone_to_owned().context("copying a socket")?;
                    let stream = in_time(self.tls.connect(self.name.clone(), stream), "TLS").await?;
                    return Ok(Connection { stream, socket });
                }
                Err(error) => last = Some(error.context(address.to_string())),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("{} has no address", self.host)))
    }
}

async fn in_time<T>(done: impl Future<Output = std::io::Result<T>>, what: &'static str) -> Result<T> {
    let done = tokio::time::timeout(PATIENCE, done).await;
    done.with_context(|| format!("{what}: no answer for {} s", PATIENCE.as_secs()))?.context(what)
}

/// A connection to it.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    socket: OwnedFd,
}

impl Connection {
    /// Sends a batch, and waits until the other machine has it. Syslog knows no answer: what the other side's kernel has
    /// acknowledged counts as taken.
    ///
    /// # Errors
    /// It may have got none, some or all of it.
    pub async fn send(&mut self, batch: &[u8]) -> Result<()> {
        let (mut read, mut write) = tokio::io::split(&mut self.stream);
        let sent = async {
            write.write_all(batch).await.context("sending")?;
            write.flush().await.context("sending")?;
            let [mut pause, most] = LOOK;
            while node_sys::tcp::unacknowledged(self.socket.as_fd()).context("asking what has arrived")? > 0 {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(most);
            }
            anyhow::Ok(())
        };
        // A connection that has ended acknowledges nothing, and says so here before the other branch is looked at.
        tokio::select! {
            biased;
            why = ended(&mut read) => Err(why),
            sent = tokio::time::timeout(PATIENCE, sent) => {
                sent.with_context(|| format!("it took nothing for {} s", PATIENCE.as_secs()))?
            }
        }
    }

    /// Waits until the other side ends it.
    pub async fn ended(&mut self) -> anyhow::Error {
        ended(&mut self.stream).await
    }
}

/// Whoever takes logs says nothing; what it says all the same is not heard.
async fn ended(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Error {
    let mut bytes = [0u8; 512];
    loop {
        match stream.read(&mut bytes).await {
            Ok(0) => return anyhow::anyhow!(CLOSED),
            Ok(_) => {}
            // Without TLS' own word for it, as one does that was killed.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return anyhow::anyhow!(CLOSED),
            Err(error) => return anyhow::Error::from(error).context("the connection is lost"),
        }
    }
}
