//! `join`: how a node comes to its certificates. It makes the keys, asks by certificate signing
//! requests (first with the bootstrap token, then with its own certificate), writes kubeconfigs,
//! and ends. The kubelet then asks for its serving certificate, once its Node exists, and renews
//! all of them (`renew`).
//!
//! Every failure is a sentence in the supervisor's status, and is tried again.

pub mod files;
pub mod renew;
pub mod request;

use anyhow::{Context, Result};
use clap::Parser;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Signers of the cluster.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Client certificates of kubelets.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Serving certificates of kubelets.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// Components other than the kubelet: file name and user.
pub const COMPONENTS: [(&str, &str); 4] =
    [("kube-proxy", "system:kube-proxy"), ("overlay", "kimg:overlay"), ("dns", "kimg:dns"), ("backup", "kimg:backup")];

/// A master from before there were backups refuses its certificate, and the node works without it: the join does not
/// ask for it, and the renewal does when it has all others.
const OPTIONAL: &str = "backup";

/// Fetches this node's certificates by TLS bootstrap.
#[derive(Debug, Clone, Parser)]
#[command(name = "join", version = crate::VERSION)]
pub struct Flags {
    /// Name of this node; default: the name that metadata gave.
    #[arg(long)]
    pub node_name: Option<String>,
    /// The API server.
    #[arg(long, default_value = "https://127.0.0.1:6443")]
    pub server: String,
    /// The cluster's CA.
    #[arg(long, default_value = "/run/kimg/config/pki/cluster-ca.crt")]
    pub ca_file: PathBuf,
    /// The bootstrap token; removed after use.
    #[arg(long, default_value = "/run/kimg/join-token")]
    pub token_file: PathBuf,
    /// Where certificates and keys are kept.
    #[arg(long, default_value = "/var/lib/kimg/pki")]
    pub pki_dir: PathBuf,
    /// Where kubeconfigs are written.
    #[arg(long, default_value = "/run/kimg/kubeconfig")]
    pub kubeconfig_dir: PathBuf,
    /// What metadata said about this node.
    #[arg(long, default_value = "/run/kimg/node.json")]
    pub node_file: PathBuf,
}

/// Flags and file, merged.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of this node.
    pub node_name: String,
    /// Its addresses, for the serving certificate.
    pub addresses: Vec<IpAddr>,
    /// The API server.
    pub server: String,
    /// The cluster's CA.
    pub ca_file: PathBuf,
    /// The bootstrap token.
    pub token_file: PathBuf,
    /// Certificates and keys.
    pub pki_dir: PathBuf,
    /// Kubeconfigs.
    pub kubeconfig_dir: PathBuf,
}

impl Options {
    /// Reads flags and the node's file.
    pub fn load(args: Vec<OsString>) -> Result<Result<Options, clap::Error>> {
        let flags = match Flags::try_parse_from(args) {
            Ok(flags) => flags,
            Err(error) => return Ok(Err(error)),
        };
        let node: Option<node_metadata::Node> = match std::fs::read(&flags.node_file) {
            Ok(bytes) => {
                Some(serde_json::from_slice(&bytes).with_context(|| format!("reading {}", flags.node_file.display()))?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("reading {}", flags.node_file.display())),
        };
        let node_name = flags
            .node_name
            .or_else(|| node.as_ref().map(|n| n.name.clone()))
            .with_context(|| format!("no node name: give --node-name or {}", flags.node_file.display()))?;
        Ok(Ok(Options {
            node_name,
            addresses: node.map(|n| n.addresses).unwrap_or_default(),
            server: flags.server,
            ca_file: flags.ca_file,
            token_file: flags.token_file,
            pki_dir: flags.pki_dir,
            kubeconfig_dir: flags.kubeconfig_dir,
        }))
    }

    /// The certificate of a component.
    pub fn pair(&self, component: &str) -> files::Pair {
        files::Pair::new(&self.pki_dir, component)
    }
}

/// Between two tries: soon at first, so that a token that comes late does not wait.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// For so long a cluster that comes up may keep a node waiting.
const USUAL: Duration = Duration::from_secs(30);

/// Fetches what is missing, until all is there.
pub async fn run(options: Options) -> Result<()> {
    files::make_private(&options.pki_dir)?;
    let begin = Instant::now();
    let mut delay = FIRST_RETRY;
    let (mut told, mut warned) = (String::new(), String::new());
    while let Err(error) = try_join(&options).await {
        let sentence = format!("{error:#}");
        if sentence != told {
            node_sys::notify::status(&sentence);
            told.clone_from(&sentence);
        }
        // Nodes and masters start together, and the token may be made last: only what lasts is a fault.
        if begin.elapsed() >= USUAL && sentence != warned {
            tracing::warn!("{sentence}");
            warned = sentence;
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(LAST_RETRY);
    }
    node_sys::notify::ready_with_status(&format!("node {} has its certificates", options.node_name));
    tracing::info!("node {} has its certificates", options.node_name);
    Ok(())
}

async fn try_join(options: &Options) -> Result<()> {
    let authorities = files::Authorities::read(&options.ca_file)?;
    let subject = format!("system:node:{}", options.node_name);
    let kubelet = options.pair("kubelet");
    if let Err(reason) = kubelet.check(&authorities, &subject) {
        tracing::info!("asking for this node's first certificate: {reason}");
        let token = read_token(options)?;
        let client = request::client_with_token(&options.server, &options.ca_file, &token).await?;
        let wish = request::Wish::node_client(&options.node_name);
        request::obtain(&client, &kubelet, &wish).await.map_err(|e| explain_join(e, options))?;
    }
    files::write_kubeconfig(options, "kubelet", &kubelet)?;
    // A token is good for one join: what is left of it is of no use to anybody.
    match std::fs::remove_file(&options.token_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("removing {}: {error}", options.token_file.display());
        }
        _ => {}
    }
    let lacks = |(component, user): &(&str, &str)| options.pair(component).check(&authorities, user).is_err();
    let missing: Vec<_> = needed().filter(lacks).collect();
    if !missing.is_empty() {
        let client = node_client::connect(&options.kubeconfig_dir.join("kubelet.conf")).await?;
        let asked = missing.into_iter().map(|(component, user)| ask(&client, options, component, user));
        futures::future::try_join_all(asked).await?;
    }
    for (component, _) in COMPONENTS.into_iter().filter(|wanted| !lacks(wanted)) {
        files::write_kubeconfig(options, component, &options.pair(component))?;
    }
    Ok(())
}

/// The components whose certificates a node waits for.
fn needed() -> impl Iterator<Item = (&'static str, &'static str)> {
    COMPONENTS.into_iter().filter(|(component, _)| *component != OPTIONAL)
}

/// Comes to the certificate of a component.
async fn ask(client: &kube::Client, options: &Options, component: &str, user: &str) -> Result<()> {
    let wish = request::Wish::component(component, user);
    let obtained = request::obtain(client, &options.pair(component), &wish).await;
    obtained.map_err(|error| explain_join(error, options)).with_context(|| format!("certificate of {component}"))
}

fn read_token(options: &Options) -> Result<String> {
    let path = options.token_file.display();
    let text = std::fs::read_to_string(&options.token_file).with_context(|| {
        format!(
            "node {} has no certificate and no join token ({path}); give it one in its user-data (`kimg seed {}`)",
            options.node_name, options.node_name
        )
    })?;
    let token = text.trim().to_string();
    let shape = token.split_once('.').is_some_and(|(id, secret)| {
        let fine = |part: &str, length| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        fine(id, 6) && fine(secret, 16)
    });
    anyhow::ensure!(
        shape,
        "the join token of node {} is not of the form abcdef.0123456789abcdef; take the user-data that `kimg seed {}` prints",
        options.node_name,
        options.node_name
    );
    Ok(token)
}

/// What a refused request means for whoever started this node.
fn explain_join(error: request::Error, options: &Options) -> anyhow::Error {
    let name = &options.node_name;
    match error {
        request::Error::Unauthorized => anyhow::anyhow!(
            "the API server does not accept the join token of node {name}: it is wrong, has expired or was used before; make a new one with `kimg seed {name}`"
        ),
        request::Error::Denied(message) => anyhow::anyhow!("node {name} may not join: {message}"),
        // As the TLS library says it; both are what the key of another authority leads to.
        request::Error::Unreachable(message)
            if ["UnknownIssuer", "BadSignature"].iter().any(|why| message.contains(why)) =>
        {
            anyhow::anyhow!(
                "the API server that the user-data of node {name} names is not of the cluster that this image was built for: seed and image belong to different clusters, or to a cluster whose keys were made anew; take image and `kimg seed {name}` from the same cluster folder ({message})"
            )
        }
        request::Error::Unreachable(message) => {
            anyhow::anyhow!("the API server cannot be reached through {}: {message}", options.server)
        }
        other => anyhow::Error::from(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn options(directory: &std::path::Path) -> Options {
        Options {
            node_name: "w1".into(),
            addresses: vec![],
            server: "https://127.0.0.1:6443".into(),
            ca_file: directory.join("ca.crt"),
            token_file: directory.join("token"),
            pki_dir: directory.join("pki"),
            kubeconfig_dir: directory.join("kubeconfig"),
        }
    }

    #[test]
    fn a_node_waits_for_no_certificate_that_it_works_without() {
        assert_eq!(needed().map(|(component, _)| component).collect::<Vec<_>>(), ["kube-proxy", "overlay", "dns"]);
    }

    #[test]
    fn tokens_that_cannot_be_right_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        assert!(read_token(&options).unwrap_err().to_string().contains("no join token"));
        for (text, fine) in [("abcdef.0123456789abcdef\n", true), ("abc", false), ("ABCDEF.0123456789abcdef", false)] {
            std::fs::write(&options.token_file, text).unwrap();
            assert_eq!(read_token(&options).is_ok(), fine, "{text}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let text = explain_join(request::Error::Unauthorized, &options).to_string();
        assert!(text.contains("kimg seed w1"), "{text}");
        let denied =
            explain_join(request::Error::Denied("bootstrap token x is for node w2, not for w1".into()), &options);
        assert!(denied.to_string().contains("for node w2"), "{denied}");
        let unreachable = |message: String| explain_join(request::Error::Unreachable(message), &options).to_string();
        for fault in [rustls::CertificateError::UnknownIssuer, rustls::CertificateError::BadSignature] {
            let text = unreachable(format!("client error: {}", rustls::Error::InvalidCertificate(fault)));
            assert!(text.contains("seed and image belong to different clusters"), "{text}");
        }
        let text = unreachable("connection refused".into());
        assert!(text.contains("cannot be reached") && !text.contains("different clusters"), "{text}");
    }
}
