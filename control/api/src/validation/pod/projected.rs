//! Projected volumes: several sources in one directory.

use super::volumes::{downward_file, key_to_path, local_path, mode};
use crate::names;
use crate::validation::at::{At, Errors};
use crate::validation::{certificates, selectors};
use std::collections::HashSet;

/// The places of the tokens in projected volumes.
pub(super) fn tokens(s: &At) -> Vec<String> {
    let mut out = Vec::new();
    for v in s.get("volumes").items() {
        let projected = v.get("projected");
        for source in projected.get("sources").items().filter(|s| s.get("serviceAccountToken").is_set()) {
            out.push(source.get("serviceAccountToken").path());
        }
    }
    out
}

pub(super) fn projected(e: &mut Errors, at: &At) {
    mode(e, &at.get("defaultMode"));
    let mut paths = HashSet::new();
    let sources = at.get("sources");
    for s in sources.items() {
        let mut found = 0;
        for kind in ["secret", "configMap"] {
            let source = s.get(kind);
            if !source.is_set() {
                continue;
            }
            found += 1;
            e.need(&source.get("name"));
            for k in source.get("items").items() {
                key_to_path(e, &k);
                if !k.get("path").is_empty() {
                    take_path(e, at, &mut paths, k.get("path").text(), source.get("name").text());
                }
            }
        }
        let downward = s.get("downwardAPI");
        if downward.is_set() {
            found += 1;
            for f in downward.get("items").items() {
                downward_file(e, &f, &downward);
                if !f.get("path").is_empty() {
                    take_path(e, at, &mut paths, f.get("path").text(), f.get("path").text());
                }
            }
        }
        if s.get("serviceAccountToken").is_set() {
            found += 1;
            token(e, &s.get("serviceAccountToken"), at);
        }
        let bundle = s.get("clusterTrustBundle");
        if bundle.is_set() {
            found += 1;
            trust_bundle(e, &bundle);
            take_path(e, at, &mut paths, bundle.get("path").text(), bundle.get("path").text());
        }
        let certificate = s.get("podCertificate");
        if certificate.is_set() {
            found += 1;
            pod_certificate(e, &certificate);
            for name in CERTIFICATE_PATHS {
                let path = certificate.get(name);
                if !path.is_empty() {
                    local_path(e, &path);
                    take_path(e, at, &mut paths, path.text(), path.text());
                }
            }
            if CERTIFICATE_PATHS.iter().all(|p| certificate.get(p).is_empty()) {
                let detail = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
                e.required(&certificate, detail);
            }
        }
        if found > 1 {
            e.forbidden(&s, "may not specify more than 1 volume type per source");
        }
    }
}

const CERTIFICATE_PATHS: [&str; 3] = ["credentialBundlePath", "keyPath", "certificateChainPath"];

fn pod_certificate(e: &mut Errors, c: &At) {
    const KEYS: &[&str] = &["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    let (signer, seconds) = (c.get("signerName"), c.get("maxExpirationSeconds"));
    certificates::signer(e, &signer);
    if !KEYS.contains(&c.get("keyType").text()) {
        e.not_supported(&c.get("keyType"), KEYS);
    }
    // Kubernetes' own signers give a day, others a quarter of a year.
    let most = if signer.text().starts_with("kubernetes.io/") { 86_400 } else { 91 * 86_400 };
    if seconds.int().is_some_and(|s| s < 3600) {
        e.invalid(&seconds, "if provided, maxExpirationSeconds must be >= 3600");
    } else if seconds.int().is_some_and(|s| s > most) {
        e.invalid(&seconds, format!("if provided, maxExpirationSeconds must be <= {most}"));
    }
}

fn take_path<'v>(e: &mut Errors, at: &At, paths: &mut HashSet<&'v str>, path: &'v str, shown: &str) {
    if !paths.insert(path) {
        e.invalid_as(at, shown, "conflicting duplicate paths");
    }
}

fn token(e: &mut Errors, t: &At, at: &At) {
    let seconds = t.get("expirationSeconds");
    if seconds.int().unwrap_or(0) < 600 {
        e.invalid_as(&seconds, seconds.int().unwrap_or(0), "may not specify a duration less than 10 minutes");
    }
    if seconds.int().is_some_and(|s| s > 1 << 32) {
        e.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
    }
    let path = at.named("path", t.get("path").value);
    if e.need(&path) {
        local_path(e, &path);
    }
}

fn trust_bundle(e: &mut Errors, b: &At) {
    let (name, signer) = (b.get("name"), b.get("signerName"));
    match (name.is_set(), signer.is_set()) {
        (true, true) => e.invalid(b, "only one of name and signerName may be used"),
        (true, false) => {
            if name.is_empty() {
                e.required(&name, "must be a valid object name");
            }
            // A bundle of a signer is called after it.
            let own = name.text().rsplit_once(':').map_or(name.text(), |(_, own)| own);
            for text in names::dns1123_subdomain(own) {
                e.invalid(&name, format!("not a valid clustertrustbundlename: {text}"));
            }
            if b.get("labelSelector").is_set() {
                e.invalid(&b.get("labelSelector"), "labelSelector must be unset if name is specified");
            }
        }
        (false, true) => {
            if signer.is_empty() {
                e.required(&signer, "must be a valid signer name");
            }
            certificates::signer(e, &signer);
            selectors::label_selector(e, &b.get("labelSelector"));
        }
        (false, false) => e.required(b, "either name or signerName must be specified"),
    }
    e.need(&b.get("path"));
    local_path(e, &b.get("path"));
}
