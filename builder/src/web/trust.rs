//! Whose certificates are believed, and where plain HTTP is good enough.

use crate::input;
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

/// Where Debian and its kin keep the machine's authorities.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Systems' bundles have a quarter of a MiB.
const BUNDLE_LIMIT: u64 = 16 << 20;

/// The machine's authorities (`$SSL_CERT_FILE` or the system's bundle), and those in `ca`. A machine without
/// a bundle gets Mozilla's, which are compiled in.
pub fn roots(ca: Option<&Path>) -> Result<RootCerts> {
    let system = match std::env::var_os("SSL_CERT_FILE").filter(|f| !f.is_empty()) {
        Some(file) => Some(PathBuf::from(file)),
        None => Some(PathBuf::from(SYSTEM)).filter(|f| f.exists()),
    };
    if system.is_none() && ca.is_none() {
        return Ok(RootCerts::WebPki);
    }
    let mut all = Vec::new();
    for file in [system.as_deref(), ca].into_iter().flatten() {
        all.extend(certificates(file)?);
    }
    Ok(RootCerts::Specific(Arc::new(all)))
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>> {
    let text = input::bytes(file, BUNDLE_LIMIT)?;
    let mut found = Vec::new();
    for item in parse_pem(&text) {
        match item {
            Ok(PemItem::Certificate(certificate)) => found.push(certificate),
            Ok(_) => {}
            Err(error) => return input::bad(format!("{} holds damaged PEM: {error}", file.display())),
        }
    }
    if found.is_empty() {
        return input::bad(format!("{} holds no certificate in PEM form", file.display()));
    }
    Ok(found)
}

/// Whether `host[:port]` is this machine, with which plain HTTP is good enough.
pub fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => host,
        _ => authority,
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a secret may be sent to an address: with TLS, or to this machine.
pub fn is_safe(url: &str) -> bool {
    let host = url.strip_prefix("http://").and_then(|rest| rest.split(['/', '?', '#']).next());
    url.starts_with("https://") || host.is_some_and(is_loopback)
}

/// Refuses an address to which `secret` may not be sent, or that holds a password itself; `name` says where it stands.
///
/// # Errors
/// [`input::BadInput`].
pub fn check_address(name: &str, url: &str, secret: &str) -> Result<()> {
    // All messages about it would show what stands there.
    if url.contains('@') {
        return input::bad(format!("{name} has an @, as behind a user or password, and is not shown; leave that out"));
    }
    if !is_safe(url) {
        return input::bad(format!("{name} is {url}; {secret} goes over https:// only"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        for host in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["registry.example.com", "localhost.example.com:5000", "10.0.0.1:5000", "[2001:db8::1]:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn secrets_go_over_tls_or_nowhere() {
        for url in ["https://a.example/x", "http://127.0.0.1:5001/token", "http://localhost", "http://[::1]:1?x"] {
            assert!(is_safe(url), "{url}");
        }
        for url in [
            "http://a.example/token",
            "http://localhost.a.example/token",
            "http://localhost@a.example/token",
            "http://localhost:80@a.example/",
            "http://a.example#@localhost/",
            "ftp://localhost/",
            "httpx://localhost/",
            "a.example",
        ] {
            assert!(!is_safe(url), "{url}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for text in ["", "no certificate", "-----BEGIN CERTIFICATE-----\n%\n-----END CERTIFICATE-----\n"] {
            std::fs::write(file.path(), text).unwrap();
            let error = roots(Some(file.path())).unwrap_err();
            assert!(error.is::<input::BadInput>(), "{error:#}");
            assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
        }
    }
}
