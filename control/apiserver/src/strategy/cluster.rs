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
}

/// Strategy of persistent volumes.
#[derive(Debug)]
pub struct Volume;

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

    fn validate(&self, _ctx: Context<'_>, new: &Value) -> Vec<Cause> {
        let fault = crate::admission::certificates::request_of(new).err();
        fault.into_iter().map(|text| Cause::invalid("spec.request", &new["spec"]["request"], &text)).collect()
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
}

fn stamp(conditions: &mut [Value]) {
    let now = fields::now();
    for condition in conditions {
        for key in ["lastUpdateTime", "lastTransitionTime"] {
            if condition[key].is_null() {
                condition[key] = json!(now);
            }
        }
    }
}

/// `certificatesigningrequests/approval`: the old request with the new one's conditions.
pub fn with_approval(new: &Value, old: &Value) -> Result<Value> {
    let mut conditions = items_at(new, "/status/conditions").to_vec();
    stamp(&mut conditions);
    let mut out = old.clone();
    fields::copy_metadata(&mut out, new);
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
    }
}
