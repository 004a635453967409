//! `[logs]`: where nodes send their logs.

use super::fragment::LogsFragment;
use super::value::{Fault, fault, is_dns_name};
use crate::input;
use node_metadata::LogTarget;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use toml::Spanned;

const SCHEME: &str = "syslog+tls://";
/// Of syslog over TLS (RFC 5425).
const PORT: u16 = 6514;

/// The target, and its authorities in PEM form.
pub(super) fn resolve(f: &LogsFragment, dir: &Path) -> Result<Option<(LogTarget, Option<String>)>, Fault> {
    let Some(to) = &f.to else {
        return match &f.ca {
            Some(ca) => Err(fault(ca, "logs.ca", "nothing is sent without `to`; add it, or remove this line")),
            None => Ok(None),
        };
    };
    let ca = f.ca.as_ref().map(|ca| authorities(ca, dir)).transpose()?;
    let (host, port) = target(to)?;
    Ok(Some((LogTarget { host, port, ca: ca.is_some() }, ca)))
}

fn target(to: &Spanned<String>) -> Result<(String, u16), Fault> {
    let wrong = |what: &str| fault(to, "logs.to", format!("{what}; write it as {SCHEME}logs.example.org:{PORT}"));
    let Some(rest) = to.get_ref().strip_prefix(SCHEME) else {
        return Err(wrong("logs are sent as syslog over TLS only"));
    };
    // Not even in the message.
    if rest.contains('@') {
        return Err(wrong("no user and password stand here"));
    }
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').or(port.is_empty().then_some(""))),
        None => rest.split_once(':').map_or((rest, Some("")), |(host, port)| (host, Some(port))),
    };
    let is_host = match rest.starts_with('[') {
        true => host.parse::<Ipv6Addr>().is_ok(),
        false => is_dns_name(host),
    };
    if !is_host {
        return Err(wrong(&format!("`{host}` is no host")));
    }
    let port = match port {
        Some("") if !rest.ends_with(':') => Some(PORT),
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok().filter(|port| *port > 0),
        _ => None,
    };
    let Some(port) = port else {
        return Err(wrong(&format!("`{rest}` does not end with a port of 1 to 65535")));
    };
    Ok((host.to_owned(), port))
}

fn authorities(ca: &Spanned<PathBuf>, dir: &Path) -> Result<String, Fault> {
    let path = dir.join(ca.get_ref());
    let wrong = |why: String| fault(ca, "logs.ca", why);
    let text = input::text(&path, input::SMALL).map_err(|error| wrong(format!("{error:#}")))?;
    // It goes into every image.
    if text.contains("PRIVATE KEY") {
        return Err(wrong(format!("{} holds a private key; name a file with certificates only", path.display())));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        // As a node does it, which would send nothing.
        let added = certificate.map_err(|error| error.to_string());
        let added = added.and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
        added.map_err(|error| wrong(format!("{} holds a damaged certificate: {error}", path.display())))?;
    }
    if roots.is_empty() {
        return Err(wrong(format!("{} holds no certificate in PEM form", path.display())));
    }
    Ok(text)
}
