//! Nodes, namespaces, secrets, config maps, endpoints and the other small core kinds.

use base64::Engine as _;
use serde_json::{Value, json};

use super::fields::{self, items_at, str_at};
use super::{Context, Strategy};
use crate::error::{Cause, Result};

const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const MAX_DATA: usize = 1024 * 1024;

/// Strategy of nodes; a node registers with its status.
#[derive(Debug)]
pub struct Node;

impl Strategy for Node {
    fn validate_update(&self, _ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        let cidrs = items_at(old, "/spec/podCIDRs");
        if !cidrs.is_empty() && items_at(new, "/spec/podCIDRs") != cidrs {
            causes.push(Cause::forbidden(
                "spec.podCIDRs",
                "node updates may not change podCIDR except from \"\" to valid",
            ));
        }
        let provider = str_at(old, "/spec/providerID");
        if !provider.is_empty() && str_at(new, "/spec/providerID") != provider {
            causes.push(Cause::forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            ));
        }
        causes
    }
}

/// Strategy of namespaces.
#[derive(Debug)]
pub struct Namespace;

impl Strategy for Namespace {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = json!({"phase": "Active"});
        let name = fields::name(new).to_string();
        fields::set_meta(new, "labels", NAME_LABEL, &name);
        if !items_at(new, "/spec/finalizers").contains(&json!(FINALIZER)) {
            let mut list = items_at(new, "/spec/finalizers").to_vec();
            list.push(json!(FINALIZER));
            new["spec"] = json!({"finalizers": list});
        }
        Ok(())
    }

    fn prepare_for_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        // Finalizers change by the finalize subresource only.
        fields::copy(new, old, &["spec"]);
        fields::copy(new, old, &["status"]);
        let name = fields::name(old).to_string();
        fields::set_meta(new, "labels", NAME_LABEL, &name);
        Ok(())
    }

    fn begin_delete(&self, object: &mut Value) {
        object["status"]["phase"] = json!("Terminating");
    }

    fn holds(&self, object: &Value) -> bool {
        !items_at(object, "/spec/finalizers").is_empty()
    }
}

/// `namespaces/finalize`: the old namespace with the new one's spec.finalizers.
pub fn with_finalizers(new: &Value, old: &Value) -> Value {
    let mut out = old.clone();
    fields::copy(&mut out, new, &["spec", "finalizers"]);
    if out["spec"].is_null() {
        out["spec"] = json!({});
    }
    out
}

/// Strategy of secrets.
#[derive(Debug)]
pub struct Secret;

impl Strategy for Secret {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        complete_secret(new);
        Ok(())
    }

    fn prepare_for_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        if str_at(new, "/type").is_empty() {
            fields::copy(new, old, &["type"]);
        }
        complete_secret(new);
        Ok(())
    }

    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        let mut causes = data_causes(new, &["data"]);
        for key in required_keys(str_at(new, "/type")) {
            if new["data"].get(*key).is_none() {
                causes.push(Cause::required(&format!("data[{key}]"), ""));
            }
        }
        for (key, value) in new["data"].as_object().into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            if base64::engine::general_purpose::STANDARD.decode(text).is_err() {
                causes.push(Cause::invalid(
                    &format!("data[{key}]"),
                    &json!("<secret contents redacted>"),
                    "must be base64",
                ));
            }
        }
        causes
    }

    fn validate_update(&self, _ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        let mut causes = immutable(new, old, &["data"]);
        if !fields::same(new, old, "/type") {
            causes.push(Cause::invalid("type", &new["type"], "field is immutable"));
        }
        causes
    }
}

fn complete_secret(new: &mut Value) {
    if str_at(new, "/type").is_empty() {
        new["type"] = json!("Opaque");
    }
    let Some(plain) = new.as_object_mut().and_then(|m| m.remove("stringData")) else { return };
    let Some(plain) = plain.as_object().cloned() else { return };
    if let Some(data) = fields::map_mut(new, "data") {
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            data.insert(key, json!(base64::engine::general_purpose::STANDARD.encode(text)));
        }
    }
}

fn required_keys(kind: &str) -> &'static [&'static str] {
    match kind {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    }
}

/// Strategy of config maps.
#[derive(Debug)]
pub struct ConfigMap;

impl Strategy for ConfigMap {
    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        let mut causes = data_causes(new, &["data", "binaryData"]);
        for key in new["binaryData"].as_object().into_iter().flat_map(|m| m.keys()) {
            if new["data"].get(key).is_some() {
                causes.push(Cause::invalid(
                    &format!("data[{key}]"),
                    &json!(key),
                    "duplicate of key present in binaryData",
                ));
            }
        }
        causes
    }

    fn validate_update(&self, _ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        immutable(new, old, &["data", "binaryData"])
    }
}

fn data_causes(new: &Value, maps: &[&str]) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut size = 0;
    for map in maps {
        for (key, value) in new[*map].as_object().into_iter().flatten() {
            let field = format!("{map}[{key}]");
            causes.extend(api::names::config_key(key).into_iter().map(|e| Cause::invalid(&field, &json!(key), &e)));
            let len = value.as_str().map_or(0, str::len);
            size += if *map == "data" && maps.len() == 2 { len } else { len / 4 * 3 };
        }
    }
    if size > MAX_DATA {
        let mut cause = Cause::invalid("data", &json!(""), "");
        cause.reason = "FieldValueTooLong".into();
        cause.message = format!("Too long: may not be more than {MAX_DATA} bytes");
        causes.push(cause);
    }
    causes
}

fn immutable(new: &Value, old: &Value, maps: &[&str]) -> Vec<Cause> {
    if old["immutable"] != json!(true) {
        return Vec::new();
    }
    let mut causes = Vec::new();
    let detail = "field is immutable when `immutable` is set";
    if new["immutable"] != json!(true) {
        causes.push(Cause::forbidden("immutable", detail));
    }
    for map in maps {
        if !fields::same(new, old, &format!("/{map}")) {
            causes.push(Cause::forbidden(map, detail));
        }
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_keep_only_data() {
        let mut secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}});
        complete_secret(&mut secret);
        assert_eq!(secret, json!({"metadata": {"name": "s"}, "type": "Opaque", "data": {"a": "Yg=="}}));
    }

    #[test]
    fn immutability() {
        let old = json!({"immutable": true, "data": {"a": "b"}});
        assert!(immutable(&old, &old, &["data"]).is_empty());
        assert_eq!(immutable(&json!({"data": {"a": "b"}}), &old, &["data"]).len(), 1);
        assert_eq!(immutable(&json!({"immutable": true}), &old, &["data"]).len(), 1);
        assert!(immutable(&json!({}), &json!({"data": {"a": "b"}}), &["data"]).is_empty());
    }
}
