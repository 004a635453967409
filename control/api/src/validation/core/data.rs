//! Config maps and secrets.

use crate::names;
use crate::validation::at::{At, Errors, IMMUTABLE, same};
use base64::Engine as _;

const MAX: usize = 1024 * 1024;
const HIDDEN: &str = "<secret contents redacted>";
const FROZEN: &str = "field is immutable when `immutable` is set";

fn decoded(at: &At) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(at.text()).ok()
}

/// How many bytes base64 text stands for.
fn size_of(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|c| *c == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

/// A config map.
pub(crate) fn config_map(e: &mut Errors, o: &At) {
    let (data, binary) = (o.get("data"), o.get("binaryData"));
    let mut size = 0;
    for (key, value) in data.entries() {
        names::config_key(key).into_iter().for_each(|t| e.invalid_as(&value, key, t));
        if binary.key(key).is_set() {
            e.invalid_as(&value, key, "duplicate of key present in binaryData");
        }
        size += value.text().len();
    }
    for (key, value) in binary.entries() {
        names::config_key(key).into_iter().for_each(|t| e.invalid_as(&value, key, t));
        size += size_of(value.text());
    }
    if size > MAX {
        e.too_long(&o.get("[]"), MAX);
    }
}

/// A changed config map.
pub(crate) fn config_map_update(e: &mut Errors, new: &At, old: &At) {
    frozen(e, new, old, &["data", "binaryData"]);
    config_map(e, new);
}

fn frozen(e: &mut Errors, new: &At, old: &At, maps: &[&str]) {
    if !old.get("immutable").is_true() {
        return;
    }
    if !new.get("immutable").is_true() {
        e.forbidden(&new.get("immutable"), FROZEN);
    }
    for map in maps {
        if !same(new.get(map).value, old.get(map).value) {
            e.forbidden(&new.get(map), FROZEN);
        }
    }
}

/// A secret.
pub(crate) fn secret(e: &mut Errors, o: &At) {
    let data = o.get("data");
    let mut size = 0;
    for (key, value) in data.entries() {
        names::config_key(key).into_iter().for_each(|t| e.invalid_as(&value, key, t));
        size += size_of(value.text());
    }
    if size > MAX {
        e.too_long(&data, MAX);
    }
    let mut need = |keys: &[&str]| {
        keys.iter().filter(|k| !data.key(k).is_set()).for_each(|k| e.required(&data.key(k), ""));
    };
    match o.get("type").text() {
        "kubernetes.io/service-account-token" => {
            let annotations = o.get("metadata.annotations");
            e.need(&annotations.key("kubernetes.io/service-account.name"));
        }
        "kubernetes.io/dockercfg" => docker(e, &data.key(".dockercfg")),
        "kubernetes.io/dockerconfigjson" => docker(e, &data.key(".dockerconfigjson")),
        "kubernetes.io/basic-auth" if !data.key("username").is_set() && !data.key("password").is_set() => {
            need(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" => {
            e.need(&data.key("ssh-privatekey"));
        }
        "kubernetes.io/tls" => need(&["tls.crt", "tls.key"]),
        _ => {}
    }
}

fn docker(e: &mut Errors, at: &At) {
    if !at.is_set() {
        return e.required(at, "");
    }
    let bytes = decoded(at).unwrap_or_default();
    let refusal = match serde_json::from_slice::<serde_json::Value>(&bytes) {
        _ if bytes.is_empty() => "unexpected end of JSON input".to_string(),
        Ok(v) if v.is_object() || v.is_null() => return,
        Ok(_) => "json: cannot unmarshal value into Go value of type map[string]interface {}".to_string(),
        Err(_) => match bytes.first() {
            Some(c) if !c.is_ascii_whitespace() && !b"{[\"tfn-0123456789".contains(c) => {
                format!("invalid character {:?} looking for beginning of value", *c as char)
            }
            _ => "unexpected end of JSON input".to_string(),
        },
    };
    e.invalid_as(at, HIDDEN, refusal);
}

/// A changed secret.
pub(crate) fn secret_update(e: &mut Errors, new: &At, old: &At) {
    if new.get("type").text() != old.get("type").text() {
        e.invalid(&new.get("type"), IMMUTABLE);
    }
    frozen(e, new, old, &["data"]);
    secret(e, new);
}
