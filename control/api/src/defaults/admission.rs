//! Defaults of webhooks, admission policies, CRDs and flow control.

use super::{each_at, set, set_nonzero, set_text, with, with_existing};
use crate::kinds::Kind;
use serde_json::{Value, json};

pub(super) fn apply(kind: &Kind, o: &mut Value) {
    match kind.kind.as_ref() {
        "MutatingWebhookConfiguration" => each_at(o, &["webhooks"], |w| {
            webhook(w);
            set(w, "reinvocationPolicy", "Never".into());
        }),
        "ValidatingWebhookConfiguration" => each_at(o, &["webhooks"], webhook),
        "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy" => with(o, "spec", |s| {
            set(s, "failurePolicy", "Fail".into());
            with_existing(s, &["matchConstraints"], match_resources);
        }),
        "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding" => with_existing(o, &["spec"], |s| {
            with_existing(s, &["matchResources"], match_resources);
        }),
        _ => {}
    }
}

fn scope_of_rules(o: &mut Value, list: &str) {
    each_at(o, &[list], |r| set(r, "scope", "*".into()));
}

fn match_resources(m: &mut Value) {
    set(m, "matchPolicy", "Equivalent".into());
    set(m, "namespaceSelector", json!({}));
    set(m, "objectSelector", json!({}));
    scope_of_rules(m, "resourceRules");
    scope_of_rules(m, "excludeResourceRules");
}

fn webhook(w: &mut Value) {
    set(w, "failurePolicy", "Fail".into());
    set(w, "matchPolicy", "Equivalent".into());
    set(w, "namespaceSelector", json!({}));
    set(w, "objectSelector", json!({}));
    set(w, "timeoutSeconds", 10.into());
    scope_of_rules(w, "rules");
    with_existing(w, &["clientConfig", "service"], |s| set(s, "port", 443.into()));
}

pub(super) fn crd(o: &mut Value) {
    with(o, "spec", |s| {
        with(s, "names", |n| {
            let kind = n["kind"].as_str().unwrap_or("").to_string();
            set_text(n, "singular", &kind.to_lowercase());
            set_text(n, "listKind", &format!("{kind}List"));
        });
        with(s, "conversion", |c| {
            set_text(c, "strategy", "None");
            with_existing(c, &["webhook", "clientConfig", "service"], |s| set(s, "port", 443.into()));
        });
    });
}

pub(super) fn flow_control(kind: &Kind, o: &mut Value) {
    if kind.kind == "FlowSchema" {
        with(o, "spec", |s| set_nonzero(s, "matchingPrecedence", 1000));
        return;
    }
    with_existing(o, &["spec", "exempt"], |e| {
        set(e, "nominalConcurrencyShares", 0.into());
        set(e, "lendablePercent", 0.into());
    });
    with_existing(o, &["spec", "limited"], |l| {
        set(l, "nominalConcurrencyShares", 30.into());
        set(l, "lendablePercent", 0.into());
        with_existing(l, &["limitResponse", "queuing"], |q| {
            set_nonzero(q, "queues", 64);
            set_nonzero(q, "handSize", 8);
            set_nonzero(q, "queueLengthLimit", 50);
        });
    });
}
