//! Keys, certificates and kubeconfigs on disk: written whole or not at all, and checked before use.

use super::Options;
use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The cluster's CA, for checking leaves.
pub struct Authorities {
    roots: Arc<rustls::RootCertStore>,
}

impl Authorities {
    /// Reads a PEM file of certificates.
    pub fn read(path: &Path) -> Result<Authorities> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).with_context(|| format!("reading {}", path.display()))? {
            let certificate = certificate.with_context(|| format!("reading {}", path.display()))?;
            roots.add(certificate).with_context(|| format!("{} holds no usable CA", path.display()))?;
        }
        anyhow::ensure!(!roots.is_empty(), "{} holds no certificate", path.display());
        Ok(Authorities { roots: Arc::new(roots) })
    }

    /// The roots, for TLS.
    pub fn roots(&self) -> Arc<rustls::RootCertStore> {
        self.roots.clone()
    }
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, PKCS#8.
    pub key: PathBuf,
    /// The key of a request that is under way: the same request can be asked about again.
    pub next_key: PathBuf,
}

/// From when to when a certificate holds, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Common name.
    pub subject: String,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// Addresses it names.
    pub addresses: Vec<IpAddr>,
}

impl Leaf {
    /// When it is to be renewed: after 70 % of its life.
    pub fn renew_at(&self) -> i64 {
        self.not_before + (self.not_after - self.not_before) / 10 * 7
    }
}

impl Pair {
    /// The pair of a component.
    pub fn new(directory: &Path, component: &str) -> Pair {
        Pair {
            certificate: directory.join(format!("{component}.crt")),
            key: directory.join(format!("{component}.key")),
            next_key: directory.join(format!("{component}.key.next")),
        }
    }

    /// What the certificate says.
    pub fn leaf(&self) -> Result<Leaf, String> {
        let path = self.certificate.display();
        if !self.certificate.exists() {
            return Err("there is none yet".into());
        }
        let der = CertificateDer::from_pem_file(&self.certificate).map_err(|e| format!("{path}: {e}"))?;
        read_leaf(&der).map_err(|e| format!("{path}: {e}"))
    }

    /// Whether the pair is whole, signed by the cluster, valid now, and of that user.
    pub fn check(&self, authorities: &Authorities, subject: &str) -> Result<(), String> {
        let leaf = self.leaf()?;
        let path = self.certificate.display();
        if leaf.subject != subject {
            return Err(format!("{path} is of {:?}, not of {subject:?}", leaf.subject));
        }
        let now = jiff::Timestamp::now().as_second();
        if leaf.not_after <= now {
            return Err(format!("{path} has expired"));
        }
        let der = CertificateDer::from_pem_file(&self.certificate).map_err(|e| e.to_string())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(authorities.roots.clone(), provider)
            .build()
            .map_err(|e| e.to_string())?;
        // A clock that runs behind the CA's makes a fresh certificate look premature; that is no reason to ask again.
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.max(leaf.not_before) as u64));
        verifier.verify_client_cert(&der, &[], at).map_err(|e| format!("{path} is not signed by this cluster: {e}"))?;
        let file = node_client::CertificateFile::new(&self.certificate, &self.key);
        file.current().map(|_| ()).ok_or_else(|| format!("{path} and its key do not belong together"))
    }

    /// Whether a serving certificate is signed by the cluster.
    pub fn is_of(&self, authorities: &Authorities) -> bool {
        use rustls::client::danger::ServerCertVerifier;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(authorities.roots.clone(), provider);
        let (Ok(der), Ok(verifier), Ok(leaf)) =
            (CertificateDer::from_pem_file(&self.certificate), verifier.build(), self.leaf())
        else {
            return false;
        };
        let Some(name) = leaf.addresses.first().map(|ip| rustls::pki_types::ServerName::from(*ip)) else {
            return false;
        };
        let now = jiff::Timestamp::now().as_second().max(leaf.not_before);
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now as u64));
        verifier.verify_server_cert(&der, &[], &name, &[], at).is_ok()
    }

    /// Puts a new certificate and the key of its request in place.
    pub fn install(&self, certificate: &[u8]) -> Result<()> {
        let key = std::fs::read(&self.next_key).with_context(|| format!("reading {}", self.next_key.display()))?;
        write_atomically(&self.key, &key, 0o600)?;
        write_atomically(&self.certificate, certificate, 0o644)?;
        std::fs::remove_file(&self.next_key).with_context(|| format!("removing {}", self.next_key.display()))
    }
}

fn read_leaf(der: &[u8]) -> Result<Leaf, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    let subject = certificate.subject().iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or_default();
    let names = certificate.subject_alternative_name().ok().flatten();
    let addresses = names.iter().flat_map(|n| &n.value.general_names).filter_map(|name| match name {
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d])),
            bytes => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        },
        _ => None,
    });
    Ok(Leaf {
        subject: subject.to_string(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        addresses: addresses.collect(),
    })
}

/// A directory that only root reads.
pub fn make_private(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("making {}", path.display()))
}

/// Writes a file so that it is there whole or not at all, also after a power cut.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let fresh = path.with_extension(format!("{}.tmp", path.extension().unwrap_or_default().to_string_lossy()));
    let context = || format!("writing {}", path.display());
    // A rest of an interrupted write may have another mode.
    if fresh.exists() {
        std::fs::remove_file(&fresh).with_context(context)?;
    }
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh).with_context(context)?;
    file.write_all(content).with_context(context)?;
    file.sync_all().with_context(context)?;
    std::fs::rename(&fresh, path).with_context(context)
}

/// The kubeconfig of a component, naming its certificate and key.
pub fn write_kubeconfig(options: &Options, component: &str, pair: &Pair) -> Result<()> {
    std::fs::create_dir_all(&options.kubeconfig_dir)
        .with_context(|| format!("making {}", options.kubeconfig_dir.display()))?;
    let text = kubeconfig(&options.server, &options.ca_file, component, pair);
    write_atomically(&options.kubeconfig_dir.join(format!("{component}.conf")), text.as_bytes(), 0o600)
}

/// The server that a kubeconfig names.
///
/// # Errors
/// It cannot be read, or names none.
pub fn server_of(kubeconfig: &Path) -> Result<String> {
    let shown = kubeconfig.display();
    let parsed = kube::config::Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {shown}"))?;
    let cluster = parsed.clusters.into_iter().next().and_then(|named| named.cluster);
    cluster.and_then(|cluster| cluster.server).with_context(|| format!("{shown} names no server"))
}

fn kubeconfig(server: &str, ca: &Path, component: &str, pair: &Pair) -> String {
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kimg", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": component, "user": {"client-certificate": pair.certificate, "client-key": pair.key}}],
        "contexts": [{"name": "kimg", "context": {"cluster": "kimg", "user": component}}],
        "current-context": "kimg",
    });
    // JSON is YAML.
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    fn ca() -> (String, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "ca");
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    #[test]
    fn a_later_component_reaches_the_server_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = crate::join::tests::options(directory.path());
        write_kubeconfig(&options, "kubelet", &options.pair("kubelet")).unwrap();
        let server = server_of(&options.kubeconfig_dir.join("kubelet.conf")).unwrap();
        assert!(!server.is_empty() && server == options.server);
        options.server = server;
        write_kubeconfig(&options, "backup", &options.pair("backup")).unwrap();
        assert_eq!(server_of(&options.kubeconfig_dir.join("backup.conf")).unwrap(), options.server);
        server_of(&directory.path().join("no")).unwrap_err();
    }

    #[test]
    fn certificates_are_checked() {
        let directory = tempfile::tempdir().unwrap();
        let (pem, issuer) = ca();
        let path = directory.path().join("ca.crt");
        std::fs::write(&path, pem).unwrap();
        let authorities = Authorities::read(&path).unwrap();
        let pair = Pair::new(directory.path(), "kubelet");
        assert!(pair.check(&authorities, "x").is_err(), "nothing there");
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["10.0.0.1".to_string()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "system:node:w1");
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(&pair.next_key, key.serialize_pem()).unwrap();
        pair.install(leaf.pem().as_bytes()).unwrap();
        assert_eq!(pair.check(&authorities, "system:node:w1"), Ok(()));
        assert!(pair.check(&authorities, "system:node:w2").is_err(), "another's");
        assert_eq!(pair.leaf().unwrap().addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let (other, _) = ca();
        std::fs::write(&path, other).unwrap();
        let strangers = Authorities::read(&path).unwrap();
        assert!(pair.check(&strangers, "system:node:w1").unwrap_err().contains("not signed by this cluster"));
    }

    #[test]
    fn renewal_is_due_after_seven_tenths() {
        let leaf = Leaf { subject: String::new(), not_before: 1000, not_after: 2000, addresses: vec![] };
        assert_eq!(leaf.renew_at(), 1700);
    }

    #[test]
    fn kubeconfigs_are_read_by_the_client() {
        let pair = Pair::new(Path::new("/p"), "dns");
        let text = kubeconfig("https://127.0.0.1:6443", Path::new("/ca"), "dns", &pair);
        let config = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        let auth = config.auth_infos[0].auth_info.clone().unwrap();
        assert_eq!(auth.client_certificate.as_deref(), Some("/p/dns.crt"));
    }
}
