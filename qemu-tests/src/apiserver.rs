//! The API server alone, in a process of its own on loopback, with throw-away certificates: no VM.

use crate::tools::workspace;
use anyhow::{Context, Result, bail};
use kimg::pki::ClientCertificate;
use kimg::pki::kubeconfig::kubeconfig;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to be ready, or to end, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server's process and its folder, which both end with this value.
#[derive(Debug)]
pub struct Apiserver {
    dir: tempfile::TempDir,
    port: u16,
    /// Flags besides the ones that every server needs.
    pub flags: Vec<String>,
    process: Option<Child>,
    /// From the start of the process to its word that it is ready.
    pub ready_after: Duration,
    /// Certificates of CA and administrator, in PEM.
    pub ca: String,
    /// The administrator's certificate and key.
    pub admin: ClientCertificate,
    issuer: Issuer<'static, KeyPair>,
}

/// How a process is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By SIGTERM.
    InOrder,
    /// By SIGKILL.
    Killed,
}

/// The control plane's executable that `make build` left.
///
/// # Errors
/// It is not there.
pub fn program() -> Result<PathBuf> {
    let program = workspace().join("target/x86_64-unknown-linux-gnu/release/kimg-control");
    if !program.exists() {
        bail!("{} is not there; run `make build`", program.display());
    }
    Ok(program)
}

impl Apiserver {
    /// Starts a server on an empty store, with these flags besides the ones it needs.
    ///
    /// # Errors
    /// It does not come to be ready; the error ends with its log.
    pub fn start(flags: &[&str]) -> Result<Apiserver> {
        let mut server = Apiserver::prepare()?;
        server.flags = flags.iter().map(|f| (*f).to_owned()).collect();
        server.begin()?;
        Ok(server)
    }

    /// Certificates and an empty store, for [`Apiserver::begin`].
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn prepare() -> Result<Apiserver> {
        let dir = tempfile::Builder::new().prefix("apiserver-").tempdir().context("making a folder")?;
        let (ca, admin, issuer) = certificates(dir.path())?;
        // Free now; nothing else here takes ports that it was not given.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).context("looking for a free port")?;
        let (flags, ready_after) = (Vec::new(), Duration::ZERO);
        let server = Apiserver { dir, port: free.port(), flags, process: None, ready_after, ca, admin, issuer };
        let text = kubeconfig("test", &server.url(), &server.ca, "admin", &server.admin);
        std::fs::write(server.kubeconfig(), text).context("writing the kubeconfig")?;
        for (name, text) in [("admin.crt", &server.admin.certificate), ("admin.key", &server.admin.key)] {
            std::fs::write(server.dir().join(name), text).with_context(|| format!("writing {name}"))?;
        }
        Ok(server)
    }

    /// Starts the process on the store as it is.
    ///
    /// # Errors
    /// It does not come to be ready; the error ends with its log.
    pub fn begin(&mut self) -> Result<()> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let told = self.dir.path().join("notify");
        let _may_be_there = std::fs::remove_file(&told);
        let socket = UnixDatagram::bind(&told).context("making a socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(200))).context("setting a time-out")?;
        let log = File::options().create(true).append(true).open(self.log()).context("opening the log")?;
        let start = Instant::now();
        let mut process = Command::new(program()?)
            .args(["kube-apiserver", "--bind-address=127.0.0.1"])
            .arg(format!("--secure-port={}", self.port))
            .arg(format!("--client-ca-file={}", path("ca.crt")))
            .arg(format!("--tls-cert-file={}", path("server.crt")))
            .arg(format!("--tls-private-key-file={}", path("server.key")))
            .arg(format!("--service-account-signing-key-file={}", path("sa.key")))
            .arg(format!("--service-account-key-file={}", path("sa.key")))
            .arg(format!("--store-dir={}", path("store")))
            .args(&self.flags)
            .env("NOTIFY_SOCKET", &told)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("opening the log")?)
            .stderr(log)
            .spawn()
            .context("starting the API server")?;
        let mut word = [0; 4096];
        loop {
            let read = socket.recv(&mut word).unwrap_or(0);
            if word[..read].starts_with(b"READY=1") {
                break;
            }
            let ended = process.try_wait().context("looking at the API server")?;
            if ended.is_some() || start.elapsed() > PATIENCE {
                let _may_have_ended = process.kill();
                process.wait().context("ending the API server")?;
                bail!("the API server is not ready ({ended:?}); its log:\n{}", self.said());
            }
        }
        self.ready_after = start.elapsed();
        self.process = Some(process);
        Ok(())
    }

    /// Ends the process.
    ///
    /// # Errors
    /// It does not end.
    pub fn end(&mut self, how: End) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        if how == End::InOrder {
            let pid = Pid::from_child(&process);
            kill_process(pid, Signal::TERM).context("sending SIGTERM")?;
            let start = Instant::now();
            while start.elapsed() < PATIENCE {
                if process.try_wait().context("waiting for the API server")?.is_some() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        process.kill().context("ending the API server")?;
        process.wait().context("ending the API server")?;
        if how == End::InOrder {
            bail!("the API server did not end within {} s of SIGTERM", PATIENCE.as_secs());
        }
        Ok(())
    }

    /// Ends the process and starts it on the same port.
    ///
    /// # Errors
    /// It does not end, or does not come back.
    pub fn restart(&mut self, how: End) -> Result<()> {
        self.end(how)?;
        self.begin()
    }

    /// Where it serves.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A client's certificate by the server's CA.
    ///
    /// # Errors
    /// No key can be made.
    pub fn issue(&self, name: &str, group: &str) -> Result<ClientCertificate> {
        leaf(&self.issuer, name, Some(group), &[])
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Its folder: certificates, store, log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// What it has logged.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Drop for Apiserver {
    fn drop(&mut self) {
        if let Err(error) = self.end(End::Killed) {
            eprintln!("{error:#}");
        }
    }
}

/// Writes CA, serving certificate and service-account key; gives the CA's and the administrator's certificates, and
/// the CA.
fn certificates(dir: &Path) -> Result<(String, ClientCertificate, Issuer<'static, KeyPair>)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "test");
    let key = KeyPair::generate().context("making a key")?;
    let ca = params.self_signed(&key).context("signing the CA")?.pem();
    let issuer = Issuer::new(params, key);
    let server = leaf(&issuer, "kube-apiserver", None, &["127.0.0.1", "localhost"])?;
    let admin = leaf(&issuer, "admin", Some("system:masters"), &[])?;
    let accounts = KeyPair::generate().context("making a key")?.serialize_pem();
    for (name, text) in
        [("ca.crt", &ca), ("server.crt", &server.certificate), ("server.key", &server.key), ("sa.key", &accounts)]
    {
        std::fs::write(dir.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok((ca, admin, issuer))
}

fn leaf(ca: &Issuer<'static, KeyPair>, name: &str, group: Option<&str>, hosts: &[&str]) -> Result<ClientCertificate> {
    let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
    let mut params = CertificateParams::new(hosts).context("naming hosts")?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    // Some clients check that a certificate names who signed it.
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().context("making a key")?;
    let certificate = params.signed_by(&key, ca).with_context(|| format!("signing {name}"))?.pem();
    Ok(ClientCertificate { certificate, key: key.serialize_pem() })
}
