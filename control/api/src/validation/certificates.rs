//! Certificate signing requests and trust bundles. The request itself is read by
//! the API server, which has the means.

use super::at::{At, Errors, same};
use crate::names;
use std::collections::HashSet;

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// What a request is decided by.
const VERDICTS: [&str; 3] = ["Approved", "Denied", "Failed"];

/// A signer's name.
pub(crate) fn signer(e: &mut Errors, at: &At) {
    if at.is_empty() {
        return e.required(at, "");
    }
    let Some((domain, path)) = at.text().split_once('/').filter(|(_, path)| !path.contains('/')) else {
        return e.invalid(at, "must be a fully qualified domain and path of the form 'example.com/signer-name'");
    };
    if domain.len() > 253 {
        e.too_long(at, 253);
    }
    labels(e, at, domain, names::dns1123_label);
    if domain.split('.').count() < 2 {
        e.invalid_as(at, domain, "should be a domain with at least two segments separated by dots");
    }
    labels(e, at, path, names::dns1123_subdomain);
    if at.text().len() > 571 {
        e.too_long(at, 571);
    }
}

/// The first part between dots of half a signer's name that is none.
fn labels(e: &mut Errors, at: &At, half: &str, faults: fn(&str) -> Vec<String>) {
    if let Some(label) = half.split('.').find(|l| !faults(l).is_empty()) {
        for text in faults(label) {
            e.invalid_as(at, half, format!("validating label {label:?}: {text}"));
        }
    }
}

/// A signing request; `old` is what is there.
pub(crate) fn request(e: &mut Errors, o: &At, old: Option<&At>) {
    let spec = o.get("spec");
    let usages = spec.get("usages");
    e.need(&usages);
    let was = old.map(|o| o.get("spec.usages").value.clone());
    if was.as_ref() != Some(usages.value) {
        let mut seen = HashSet::new();
        for u in usages.items() {
            if !USAGES.contains(&u.text()) {
                e.not_supported(&u, USAGES);
            }
            if !seen.insert(u.text()) {
                e.duplicate(&u);
            }
        }
    }
    let name = spec.get("signerName");
    if name.text() == "kubernetes.io/legacy-unknown" && old.is_none() {
        e.invalid(&name, "the legacy signerName is not allowed via this API version");
    } else {
        signer(e, &name);
    }
    let seconds = spec.get("expirationSeconds");
    if seconds.int().is_some_and(|n| n < 600) {
        e.invalid(&seconds, "may not specify a duration less than 600 seconds (10 minutes)");
    }
    conditions(e, &o.get("status.conditions"));
}

fn conditions(e: &mut Errors, list: &At) {
    let mut seen = HashSet::new();
    for c in list.items() {
        let (kind, status) = (c.get("type"), c.get("status"));
        e.need(&kind);
        let allowed: &[&str] = if VERDICTS.contains(&kind.text()) { &["True"] } else { &["False", "True", "Unknown"] };
        if status.is_empty() {
            e.required(&status, "");
        } else {
            e.one_of(&status, allowed);
        }
        let other = match kind.text() {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        };
        if !other.is_empty() && seen.contains(other) {
            e.invalid(&kind, "Approved and Denied conditions are mutually exclusive");
        }
        if !seen.insert(kind.text()) {
            e.duplicate(&kind);
        }
    }
}

/// A changed request; the sub-resource says what may change.
pub(crate) fn request_update(e: &mut Errors, new: &At, old: &At, sub: &str) {
    request(e, new, Some(old));
    let list = new.get("status.conditions");
    let of = |o: &At, kind: &str| -> Vec<serde_json::Value> {
        let list = o.get("status.conditions");
        list.items().filter(|c| c.get("type").text() == kind).map(|c| c.value.clone()).collect()
    };
    for kind in VERDICTS {
        if of(new, kind).len() < of(old, kind).len() {
            e.forbidden(&list, format!("updates may not remove a condition of type {kind:?}"));
        }
    }
    if sub != "approval" {
        for kind in ["Approved", "Denied"] {
            let (is, was) = (of(new, kind), of(old, kind));
            if is.len() > was.len() {
                e.forbidden(&list, format!("updates may not add a condition of type {kind:?}"));
            } else if is.len() == was.len() && !is.iter().zip(&was).all(|(a, b)| same(a, b)) {
                e.forbidden(&list, format!("updates may not modify a condition of type {kind:?}"));
            }
        }
    }
    let (is, was) = (new.get("status.certificate"), old.get("status.certificate"));
    if is.text() != was.text() {
        if sub != "status" {
            e.forbidden(&is, "updates may not set certificate content");
        } else if !was.is_empty() {
            e.forbidden(&is, "updates may not modify existing certificate content");
        }
    }
}
