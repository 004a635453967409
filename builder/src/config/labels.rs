//! Labels and taints that a node may give itself, and how much it may be told.

use super::fragment::NodeFragment;
use super::settings::NodeSettings;
use super::value::{Fault, fault};
use crate::seed;
use node_metadata::Role;
use node_metadata::merge::{is_label_value, is_qualified};
use toml::Spanned;

const KEY_FORM: &str = "a key is letters, digits, `-`, `_` and `.`, at most 63, beginning and ending with a letter or \
                        digit, and may have a DNS name and `/` in front, e.g. disk or example.org/disk";
const VALUE_FORM: &str = "a value is empty, or letters, digits, `-`, `_` and `.`, at most 63, beginning and ending with \
                          a letter or digit";

pub(super) fn check_label(key: &Spanned<String>, value: &Spanned<String>, role: Role) -> Result<(), Fault> {
    let field = "nodes.labels";
    if !is_qualified(key.get_ref()) {
        return Err(fault(key, field, format!("`{}` is no label; {KEY_FORM}", key.get_ref())));
    }
    if !is_label_value(value.get_ref()) {
        return Err(fault(value, field, format!("`{}` is no label's value; {VALUE_FORM}", value.get_ref())));
    }
    if !kubelet_may_set(key.get_ref(), role) {
        let message = format!(
            "a node may not give itself the label {} (the API server refuses it, and the node would never join); \
             set it with kubectl label, or use a name of your own",
            key.get_ref()
        );
        return Err(fault(key, field, message));
    }
    Ok(())
}

/// The rule of the API server's NodeRestriction: kubernetes.io and k8s.io are kept, but for a few.
fn kubelet_may_set(key: &str, role: Role) -> bool {
    const ALLOWED: [&str; 12] = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
        "node-role.kubernetes.io/worker",
        "node-role.kubernetes.io/control-plane",
    ];
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let under = |zone: &str| domain == zone || domain.ends_with(&format!(".{zone}"));
    if under("node-restriction.kubernetes.io")
        || (role == Role::Worker && key == "node-role.kubernetes.io/control-plane")
    {
        return false;
    }
    !(under("kubernetes.io") || under("k8s.io"))
        || ALLOWED.contains(&key)
        || under("kubelet.kubernetes.io")
        || under("node.kubernetes.io")
}

pub(super) fn check_taint(taint: &Spanned<String>) -> Result<(), Fault> {
    let text = taint.get_ref();
    let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
    let Some((pair, _)) = text.rsplit_once(':').filter(|(_, effect)| effects.contains(effect)) else {
        let message = format!("`{text}` is no taint; write key=value:Effect with the effect {}", effects.join(", "));
        return Err(fault(taint, "nodes.taints", message));
    };
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    if !is_qualified(key) {
        return Err(fault(taint, "nodes.taints", format!("`{text}`: `{key}` is no taint's key; {KEY_FORM}")));
    }
    if !is_label_value(value) {
        return Err(fault(taint, "nodes.taints", format!("`{text}`: `{value}` is no taint's value; {VALUE_FORM}")));
    }
    Ok(())
}

/// What of a worker's user-data may be its own: the rest is for the masters' addresses and the token.
const OWN_BYTES: usize = 600;

/// Said here, and not once a machine is to be made.
pub(super) fn check_user_data(fragments: &[Spanned<NodeFragment>], nodes: &[NodeSettings]) -> Result<(), Fault> {
    for (spanned, node) in fragments.iter().zip(nodes) {
        let size = seed::own_lines(&node.entry).len();
        if node.entry.role == Role::Worker && size > OWN_BYTES {
            let message = format!(
                "addresses, labels, taints and what is reserved of {} make {size} bytes, and its user-data has room for \
                 {OWN_BYTES} of them; shorten them, or set labels and taints with kubectl",
                node.entry.name
            );
            return Err(fault(spanned, "nodes", message));
        }
    }
    Ok(())
}
