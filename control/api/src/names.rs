//! Rules for names, labels and qualified names, with the texts that clients know.

use serde_json::{Map, Value};
use std::net::{IpAddr, Ipv4Addr};

use crate::status::FieldError;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn lower_label(s: &str) -> bool {
    let ok = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let b = s.as_bytes();
    !b.is_empty() && ok(b[0]) && ok(b[b.len() - 1]) && b.iter().all(|c| ok(*c) || *c == b'-')
}

fn name_chars(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
        && b.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// RFC 1123 label.
pub fn dns1123_label(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 63 {
        out.push(too_long(63));
    }
    if !lower_label(s) {
        out.push(LABEL.into());
    }
    out
}

/// RFC 1123 subdomain.
pub fn dns1123_subdomain(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 253 {
        out.push(too_long(253));
    }
    if !s.split('.').all(lower_label) {
        out.push(SUBDOMAIN.into());
    }
    out
}

/// RFC 1123 subdomain, or one below `*.`.
pub fn wildcard_subdomain(s: &str) -> Vec<String> {
    let mut out = dns1123_subdomain(s.strip_prefix("*.").unwrap_or(s));
    out.retain(|e| e != SUBDOMAIN);
    if !s.strip_prefix("*.").is_some_and(|rest| rest.split('.').all(lower_label)) {
        out.push("a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')".into());
    }
    out
}

/// RFC 1123 subdomain whose labels may have underscores (DNS search paths).
pub fn dns1123_subdomain_with_underscore(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 253 {
        out.push(too_long(253));
    }
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_';
    let label = |l: &str| {
        let b = l.as_bytes();
        !b.is_empty() && edge(b[0]) && edge(b[b.len() - 1]) && b.iter().all(|c| edge(*c) || *c == b'-')
    };
    if !s.split('.').all(label) {
        out.push("a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?(\\.[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?)*')".into());
    }
    out
}

/// `domain/path`, as controllers name themselves.
pub fn domain_prefixed_path(s: &str) -> Vec<String> {
    let bad = || vec!["must be a domain-prefixed path (such as \"acme.io/foo\")".to_string()];
    let Some((host, path)) = s.split_once('/') else { return bad() };
    if host.is_empty() || path.is_empty() {
        return bad();
    }
    let mut out = dns1123_subdomain(host);
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&c);
    if !path.bytes().all(plain) {
        out.push("Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')".into());
    }
    out
}

/// Whether a text is a whole percentage.
pub fn is_percent(s: &str) -> bool {
    s.strip_suffix('%').is_some_and(|p| !p.is_empty() && p.bytes().all(|c| c.is_ascii_digit()))
}

/// RFC 1035 label.
pub fn dns1035_label(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 63 {
        out.push(too_long(63));
    }
    if !lower_label(s) || !s.as_bytes()[0].is_ascii_lowercase() {
        out.push(LABEL_1035.into());
    }
    out
}

/// A name that may stand in a path (roles and bindings).
pub fn path_segment(s: &str) -> Vec<String> {
    if s == "." || s == ".." {
        return vec![format!("may not be '{s}'")];
    }
    ["/", "%"].iter().filter(|c| s.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// `prefix/name` or `name`, as label and annotation keys are.
pub fn qualified_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut parts = s.splitn(3, '/');
    let (first, second, third) = (parts.next().unwrap_or(""), parts.next(), parts.next());
    let name = match (second, third) {
        (None, _) => first,
        (Some(name), None) => {
            if first.is_empty() {
                out.push("prefix part must be non-empty".into());
            } else {
                out.extend(dns1123_subdomain(first).into_iter().map(|e| format!("prefix part {e}")));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        out.push(format!("name part {}", too_long(63)));
    }
    if !name_chars(name) {
        out.push(QUALIFIED.into());
    }
    out
}

/// A label's value.
pub fn label_value(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 63 {
        out.push(too_long(63));
    }
    if !s.is_empty() && !name_chars(s) {
        out.push(LABEL_VALUE.into());
    }
    out
}

/// A key of a ConfigMap or Secret.
pub fn config_key(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 253 {
        out.push(too_long(253));
    }
    if s.is_empty() || !s.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.')) {
        out.push("a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')".into());
    } else if s == "." {
        out.push("must not be '.'".into());
    } else if s == ".." {
        out.push("must not be '..'".into());
    } else if s.starts_with("..") {
        out.push("must not start with '..'".into());
    }
    out
}

/// A port's name (`IANA_SVC_NAME`).
pub fn port_name(s: &str) -> Vec<String> {
    let mut out = Vec::new();
    if s.len() > 15 {
        out.push("must be no more than 15 characters".into());
    }
    if s.is_empty() || !s.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        out.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        out.push("must not begin or end with a hyphen".into());
    }
    out
}

/// The rule for `metadata.name` of a resource. For a prefix (generateName) ends are free.
pub fn object_name(group: &str, plural: &str, name: &str, prefix: bool) -> Vec<String> {
    let masked;
    let name = if prefix && name.ends_with('-') {
        masked = format!("{}a", &name[..name.len() - 1]);
        &masked
    } else {
        name
    };
    match (group, plural) {
        ("", "namespaces") => dns1123_label(name),
        ("", "services") | ("apps", "statefulsets") => dns1123_label(name),
        ("rbac.authorization.k8s.io", _) => path_segment(name),
        ("certificates.k8s.io" | "apiregistration.k8s.io", _) => path_segment(name),
        ("networking.k8s.io", "ipaddresses") => address(name),
        _ => dns1123_subdomain(name),
    }
}

const MAPPED: &str = "must not be an IPv4-mapped IPv6 address";

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(six) if six.to_ipv4_mapped().is_some())
}

/// An IPv4 address without the leading zeros that some programs take for octal numbers.
fn without_zeros(text: &str) -> String {
    let lean = |part: &str| match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0".to_string(),
        rest => rest.to_string(),
    };
    text.split('.').map(lean).collect::<Vec<_>>().join(".")
}

/// What is wrong with an address that is to be written in its one form.
pub fn address(text: &str) -> Vec<String> {
    let fault = match text.parse::<IpAddr>() {
        Ok(ip) if is_mapped(ip) => MAPPED.into(),
        Ok(ip) if ip.to_string() == text => return Vec::new(),
        Ok(ip) => format!("must be in canonical form ({:?})", ip.to_string()),
        Err(_) if without_zeros(text).parse::<Ipv4Addr>().is_ok() => "must not have leading 0s".into(),
        Err(_) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into(),
    };
    vec![fault]
}

/// What is wrong with a network; fields that are new take it in its one form only.
pub fn network(text: &str, canonical: bool) -> Vec<String> {
    let (address, length) = text.split_once('/').unwrap_or((text, ""));
    let bits = length.parse::<u32>().ok().filter(|_| length.bytes().all(|b| b.is_ascii_digit()));
    let lean = without_zeros(address);
    let ip = address.parse().or_else(|_| lean.parse::<Ipv4Addr>().map(IpAddr::V4)).ok();
    let width = if ip.is_some_and(|ip: IpAddr| ip.is_ipv4()) { 32 } else { 128 };
    let (Some(ip), Some(bits)) = (ip, bits.filter(|b| *b <= width)) else {
        return vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()];
    };
    let zeros = address.parse::<IpAddr>().is_err() || (length.len() > 1 && length.starts_with('0'));
    // The bits of IPv4 stand in front of 96 others.
    let all = match ip {
        IpAddr::V4(four) => u128::from(u32::from(four)) << 96,
        IpAddr::V6(six) => u128::from(six),
    };
    let fault = if zeros {
        "must not have leading 0s in IP or prefix length".into()
    } else if is_mapped(ip) {
        "must not have an IPv4-mapped IPv6 address".into()
    } else if all.checked_shl(bits).is_some_and(|rest| rest != 0) {
        "must not have bits set beyond the prefix length".into()
    } else if canonical && format!("{ip}/{bits}") != text {
        format!("must be in canonical form ({:?})", format!("{ip}/{bits}"))
    } else {
        return Vec::new();
    };
    vec![fault]
}

/// Errors of labels below `field`.
pub fn labels(labels: &Map<String, Value>, field: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    for (k, v) in labels {
        for e in qualified_name(k) {
            out.push(FieldError::invalid(field, k.as_str(), e));
        }
        for e in label_value(v.as_str().unwrap_or("")) {
            out.push(FieldError::invalid(field, v.clone(), e));
        }
    }
    out
}

/// Errors of annotations below `field`.
pub fn annotations(annotations: &Map<String, Value>, field: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    let mut size = 0;
    for (k, v) in annotations {
        for e in qualified_name(&k.to_lowercase()) {
            out.push(FieldError::invalid(field, k.as_str(), e));
        }
        size += k.len() + v.as_str().map_or(0, str::len);
    }
    if size > 256 * 1024 {
        out.push(FieldError::too_long(field, 256 * 1024));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules() {
        for (f, good, bad) in [
            (dns1123_label as fn(&str) -> Vec<String>, vec!["a", "1a", "a-b"], vec!["", "A", "-a", "a.b", "a-"]),
            (dns1123_subdomain, vec!["a.b", "a"], vec!["", "a..b", "A.b", "a_b"]),
            (dns1035_label, vec!["a1"], vec!["", "1a"]),
            (qualified_name, vec!["a/B_c", "x", "example.com/a"], vec!["/a", "a/", "a/b/c", "", "-a"]),
            (label_value, vec!["", "A.b"], vec!["-", "a b"]),
            (config_key, vec!["a.b", "A_-"], vec!["", "..", "a/b", "..a"]),
            (port_name, vec!["http", "h-1"], vec!["", "80", "a--b", "-a", "abcdefghijklmnopq", "Http"]),
        ] {
            for g in good {
                assert_eq!(f(g), Vec::<String>::new(), "{g}");
            }
            for b in bad {
                assert!(!f(b).is_empty(), "{b}");
            }
        }
        assert!(object_name("", "pods", "abc-", true).is_empty());
        assert!(object_name("rbac.authorization.k8s.io", "roles", "system:x", false).is_empty());
    }
}
