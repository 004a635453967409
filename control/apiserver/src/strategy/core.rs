//! Namespaces and secrets.

use api::meta;
use base64::Engine as _;
use serde_json::{Value, json};

use super::fields::{self, items_at, str_at};
use super::{Context, Strategy};
use crate::error::Result;

const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

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
        meta::remove(object, "deletionGracePeriodSeconds");
        object["status"]["phase"] = json!("Terminating");
    }

    fn holds(&self, object: &Value) -> bool {
        !items_at(object, "/spec/finalizers").is_empty()
    }
}

/// CustomResourceDefinitions.
#[derive(Debug)]
pub struct Definition;

impl Strategy for Definition {
    /// Upstream's own deletion of this kind, like that of namespaces, sets the time alone.
    fn begin_delete(&self, object: &mut Value) {
        meta::remove(object, "deletionGracePeriodSeconds");
    }
}

/// `namespaces/finalize`: the old namespace with the new one's spec.finalizers.
pub fn with_finalizers(new: &Value, old: &Value) -> Value {
    let mut out = old.clone();
    fields::copy_metadata(&mut out, new);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_keep_only_data() {
        let mut secret = json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}});
        complete_secret(&mut secret);
        assert_eq!(secret, json!({"metadata": {"name": "s"}, "type": "Opaque", "data": {"a": "Yg=="}}));
    }
}
