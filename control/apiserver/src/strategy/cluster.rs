//! Volumes, claims, certificate requests, RBAC objects, and kinds whose status just starts empty.

use serde_json::{Value, json};

use super::fields::{self, items_at, str_at};
use super::{Context, Strategy};
use crate::error::{ApiError, Cause, Result};

/// Strategy of kinds whose only speciality is the status they begin with.
#[derive(Debug)]
pub struct Fresh(pub &'static str);

impl Strategy for Fresh {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = serde_json::from_str(self.0).unwrap_or_else(|_| json!({}));
        Ok(())
    }
}

/// Strategy of persistent volume claims.
#[derive(Debug)]
pub struct Claim;

impl Strategy for Claim {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = json!({"phase": "Pending"});
        Ok(())
    }

    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        if items_at(new, "/spec/accessModes").is_empty() {
            causes.push(Cause::required("spec.accessModes", "at least 1 access mode is required"));
        }
        let storage = &new["spec"]["resources"]["requests"]["storage"];
        match fields::quantity(storage) {
            None => causes.push(Cause::required("spec.resources[storage]", "")),
            Some(q) if q.sign() <= 0 => {
                causes.push(Cause::invalid("spec.resources[storage]", storage, "must be greater than zero"))
            }
            Some(_) => {}
        }
        causes
    }

    fn validate_update(&self, _ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        let frozen = |o: &Value| {
            let mut spec = o["spec"].as_object().cloned().unwrap_or_default();
            spec.remove("resources");
            spec.remove("volumeAttributesClassName");
            if str_at(old, "/spec/volumeName").is_empty() {
                spec.remove("volumeName");
            }
            // A default class may be filled in later.
            if old["spec"].get("storageClassName").is_none_or(Value::is_null) {
                spec.remove("storageClassName");
            }
            spec.retain(|_, v| !v.is_null());
            spec
        };
        let mut causes = Vec::new();
        if frozen(new) != frozen(old) {
            causes.push(Cause::forbidden("spec", "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"));
        }
        let size = |o: &Value| fields::quantity(&o["spec"]["resources"]["requests"]["storage"]);
        if let (Some(is), Some(was)) = (size(new), size(old))
            && is < was
        {
            causes.push(Cause::forbidden(
                "spec.resources.requests.storage",
                "field can not be less than status.capacity",
            ));
        }
        causes
    }
}

/// Strategy of persistent volumes.
#[derive(Debug)]
pub struct Volume;

/// Fields of a volume's spec that are not its source.
const NOT_SOURCE: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

impl Strategy for Volume {
    fn prepare_for_create(&self, _ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = json!({"phase": "Pending", "lastPhaseTransitionTime": fields::now()});
        Ok(())
    }

    fn prepare_for_status_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        let phase = str_at(new, "/status/phase");
        if !phase.is_empty()
            && phase != str_at(old, "/status/phase")
            && new["status"]["lastPhaseTransitionTime"] == old["status"]["lastPhaseTransitionTime"]
        {
            new["status"]["lastPhaseTransitionTime"] = json!(fields::now());
        }
        Ok(())
    }

    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        if items_at(new, "/spec/accessModes").is_empty() {
            causes.push(Cause::required("spec.accessModes", ""));
        }
        if new["spec"]["capacity"]["storage"].is_null() {
            causes.push(Cause::required("spec.capacity", ""));
        }
        let sources = new["spec"]
            .as_object()
            .map_or(0, |m| m.iter().filter(|(k, v)| !NOT_SOURCE.contains(&k.as_str()) && !v.is_null()).count());
        if sources == 0 {
            causes.push(Cause::required("spec", "must specify a volume type"));
        }
        if !new["spec"]["local"].is_null() && new["spec"]["nodeAffinity"].is_null() {
            causes.push(Cause::required("spec.nodeAffinity", "Local volume requires node affinity"));
        }
        causes
    }

    fn validate_update(&self, _ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        let source = |o: &Value| {
            let mut spec = o["spec"].as_object().cloned().unwrap_or_default();
            spec.retain(|k, v| !NOT_SOURCE.contains(&k.as_str()) && !v.is_null());
            spec
        };
        let mut causes = Vec::new();
        if source(new) != source(old) {
            causes.push(Cause::forbidden(
                "spec.persistentvolumesource",
                "spec.persistentvolumesource is immutable after creation",
            ));
        }
        if !old["spec"]["volumeMode"].is_null() && !fields::same(new, old, "/spec/volumeMode") {
            causes.push(Cause::invalid("spec.volumeMode", &new["spec"]["volumeMode"], "field is immutable"));
        }
        causes
    }
}

/// Strategy of certificate signing requests: who asks is written by the server.
#[derive(Debug)]
pub struct CertificateRequest;

impl Strategy for CertificateRequest {
    fn prepare_for_create(&self, ctx: Context<'_>, new: &mut Value) -> Result<()> {
        new["status"] = json!({});
        let Some(spec) = fields::map_mut(new, "spec") else {
            return Err(ApiError::bad_request("spec must be an object"));
        };
        for key in ["username", "uid", "groups", "extra"] {
            spec.remove(key);
        }
        spec.insert("username".into(), json!(ctx.user.name));
        spec.insert("groups".into(), json!(ctx.user.groups));
        if !ctx.user.uid.is_empty() {
            spec.insert("uid".into(), json!(ctx.user.uid));
        }
        if !ctx.user.extra.is_empty() {
            spec.insert("extra".into(), json!(ctx.user.extra));
        }
        Ok(())
    }

    fn prepare_for_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        fields::copy(new, old, &["spec"]);
        fields::copy(new, old, &["status"]);
        Ok(())
    }

    fn prepare_for_status_update(&self, _ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        // Approval has a subresource of its own; a certificate stays once it is there.
        let decided = |c: &Value| matches!(str_at(c, "/type"), "Approved" | "Denied");
        let mut conditions: Vec<Value> =
            items_at(old, "/status/conditions").iter().filter(|c| decided(c)).cloned().collect();
        conditions.extend(items_at(new, "/status/conditions").iter().filter(|c| !decided(c)).cloned());
        stamp(&mut conditions);
        if !new["status"].is_object() {
            new["status"] = json!({});
        }
        if !conditions.is_empty() {
            new["status"]["conditions"] = json!(conditions);
        }
        Ok(())
    }

    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        let signer = str_at(new, "/spec/signerName");
        if signer.is_empty() {
            causes.push(Cause::required("spec.signerName", ""));
        } else if !signer.contains('/') {
            causes.push(Cause::invalid(
                "spec.signerName",
                &json!(signer),
                "should be a fully qualified domain and path of the form \"example.com/signer-name\"",
            ));
        }
        if items_at(new, "/spec/usages").is_empty() {
            causes.push(Cause::required("spec.usages", "usages must be provided"));
        }
        if let Err(detail) = crate::admission::certificates::request_of(new) {
            causes.push(Cause::invalid("spec.request", &json!("<base64>"), &detail));
        }
        if new["spec"]["expirationSeconds"].as_i64().is_some_and(|s| s < 600) {
            causes.push(Cause::invalid(
                "spec.expirationSeconds",
                &new["spec"]["expirationSeconds"],
                "may not specify a duration less than 600 seconds (10 minutes)",
            ));
        }
        causes
    }

    fn validate_status_update(&self, _ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        let was = str_at(old, "/status/certificate");
        if !was.is_empty() && str_at(new, "/status/certificate") != was {
            return vec![Cause::forbidden("status.certificate", "updates may not set certificate content")];
        }
        Vec::new()
    }
}

fn stamp(conditions: &mut [Value]) {
    let now = fields::now();
    for condition in conditions {
        for key in ["lastUpdateTime", "lastTransitionTime"] {
            if condition[key].is_null() {
                condition[key] = json!(now);
            }
        }
        if condition["status"].is_null() {
            condition["status"] = json!("True");
        }
    }
}

/// `certificatesigningrequests/approval`: the old request with the new one's verdict.
pub fn with_approval(new: &Value, old: &Value) -> Result<Value> {
    let mut conditions = items_at(new, "/status/conditions").to_vec();
    let has = |list: &[Value], kind: &str| list.iter().any(|c| str_at(c, "/type") == kind);
    let name = fields::name(old);
    let refuse = |detail: &str| {
        ApiError::invalid(
            "certificates.k8s.io",
            "CertificateSigningRequest",
            name,
            vec![Cause::invalid("status.conditions", &json!(""), detail)],
        )
    };
    if has(&conditions, "Approved") && has(&conditions, "Denied") {
        return Err(refuse("Approved and Denied conditions are mutually exclusive"));
    }
    for kind in ["Approved", "Denied"] {
        if has(items_at(old, "/status/conditions"), kind) && !has(&conditions, kind) {
            return Err(refuse(&format!("updates may not remove a condition of type {kind:?}")));
        }
    }
    stamp(&mut conditions);
    let mut out = old.clone();
    if !out["status"].is_object() {
        out["status"] = json!({});
    }
    out["status"]["conditions"] = json!(conditions);
    Ok(out)
}

/// Strategy of roles and bindings: nobody grants what he does not have.
#[derive(Debug)]
pub struct Rbac;

impl Strategy for Rbac {
    fn prepare_for_create(&self, ctx: Context<'_>, new: &mut Value) -> Result<()> {
        crate::authz::escalation::check(ctx.state, ctx.user, ctx.info, new, None)
    }

    fn prepare_for_update(&self, ctx: Context<'_>, new: &mut Value, old: &Value) -> Result<()> {
        crate::authz::escalation::check(ctx.state, ctx.user, ctx.info, new, Some(old))
    }

    fn validate_update(&self, _ctx: Context<'_>, new: &Value, old: &Value) -> Vec<Cause> {
        if !fields::same(new, old, "/roleRef") {
            return vec![Cause::invalid("roleRef", &new["roleRef"], "cannot change roleRef")];
        }
        Vec::new()
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn approval_is_final_and_changes_nothing_else() {
        let old = json!({"metadata": {"name": "c"}, "spec": {"signerName": "a/b"}});
        let new = json!({"metadata": {"name": "c"}, "spec": {"signerName": "x/y"}, "status": {"certificate": "evil", "conditions": [{"type": "Approved", "reason": "r"}]}});
        let out = with_approval(&new, &old).expect("approved");
        assert_eq!(out["spec"]["signerName"], "a/b");
        assert!(out["status"].get("certificate").is_none());
        assert_eq!(out["status"]["conditions"][0]["status"], "True");
        assert!(with_approval(&old, &out).is_err(), "may not be taken back");
        let both = json!({"status": {"conditions": [{"type": "Approved"}, {"type": "Denied"}]}});
        assert!(with_approval(&both, &old).is_err());
    }
}
