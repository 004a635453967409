//! Discovery documents, legacy and aggregated, from the kinds that are served.

use crate::kinds::{Kind, Subresource, api_version};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Upstream's order of groups, which decides between ambiguous names.
const GROUP_ORDER: &[&str] = &[
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "resource.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "storagemigration.k8s.io",
];

/// Groups with their versions, in order: built-in first, then by name; versions by priority.
pub fn groups(kinds: &[Arc<Kind>]) -> Vec<(String, Vec<String>)> {
    let mut out: Vec<(String, Vec<String>)> = Vec::new();
    for k in kinds {
        let at = match out.iter().position(|(g, _)| *g == k.group) {
            Some(i) => i,
            None => {
                out.push((k.group.to_string(), Vec::new()));
                out.len() - 1
            }
        };
        let versions = &mut out[at].1;
        if !versions.iter().any(|v| *v == k.version) {
            versions.push(k.version.to_string());
        }
    }
    let rank = |g: &str| GROUP_ORDER.iter().position(|o| *o == g).unwrap_or(GROUP_ORDER.len());
    out.sort_by(|(a, _), (b, _)| (rank(a), a).cmp(&(rank(b), b)));
    for (_, versions) in &mut out {
        versions.sort_by_key(|v| std::cmp::Reverse(version_priority(v)));
    }
    out
}

/// Stable before beta before alpha, higher before lower.
pub fn version_priority(v: &str) -> (u8, u32, u32) {
    let Some(rest) = v.strip_prefix('v') else {
        return (0, 0, 0);
    };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let Ok(major) = rest[..end].parse::<u32>() else {
        return (0, 0, 0);
    };
    let tail = &rest[end..];
    if tail.is_empty() {
        return (3, major, 0);
    }
    for (name, class) in [("beta", 2), ("alpha", 1)] {
        if let Some(minor) = tail.strip_prefix(name).and_then(|m| m.parse().ok()) {
            return (class, major, minor);
        }
    }
    (0, 0, 0)
}

/// `GET /api`.
pub fn api_versions(server_address: &str) -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]})
}

fn group_value(group: &str, versions: &[String]) -> Value {
    let of = |v: &String| json!({"groupVersion": api_version(group, v), "version": v});
    json!({"name": group, "versions": versions.iter().map(of).collect::<Vec<_>>(), "preferredVersion": versions.first().map(of)})
}

/// `GET /apis`.
pub fn group_list(kinds: &[Arc<Kind>]) -> Value {
    let list: Vec<Value> =
        groups(kinds).iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group_value(g, v)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list})
}

/// `GET /apis/GROUP`.
pub fn group(kinds: &[Arc<Kind>], name: &str) -> Option<Value> {
    let (g, versions) = groups(kinds).into_iter().find(|(g, _)| g == name)?;
    let mut v = group_value(&g, &versions);
    v["kind"] = "APIGroup".into();
    v["apiVersion"] = "v1".into();
    Some(v)
}

/// `GET /api/v1` and `GET /apis/GROUP/VERSION`.
pub fn resource_list(kinds: &[Arc<Kind>], group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    let mut any = false;
    for k in kinds.iter().filter(|k| k.group == group && k.version == version) {
        any = true;
        list.push(resource(k));
        list.extend(k.subresources.iter().map(|s| subresource(k, s)));
    }
    list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    any.then(|| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": list}))
}

fn resource(k: &Kind) -> Value {
    let mut v = json!({"name": k.plural, "singularName": k.singular, "namespaced": k.namespaced, "kind": k.kind, "verbs": k.verbs});
    if !k.short_names.is_empty() {
        v["shortNames"] = json!(k.short_names);
    }
    if !k.categories.is_empty() {
        v["categories"] = json!(k.categories);
    }
    if k.has_verb("get") || k.has_verb("list") {
        v["storageVersionHash"] = storage_hash(k).into();
    }
    v
}

fn subresource(k: &Kind, s: &Subresource) -> Value {
    let mut v = json!({"name": format!("{}/{}", k.plural, s.name), "singularName": "", "namespaced": k.namespaced, "kind": s.kind, "verbs": s.verbs});
    if !s.version.is_empty() {
        v["group"] = s.group.as_ref().into();
        v["version"] = s.version.as_ref().into();
    }
    v
}

fn storage_hash(k: &Kind) -> String {
    use base64::Engine;
    let id = k.storage();
    let digest = Sha256::digest(format!("{}/{}/{}", id.group, id.version, k.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// The aggregated document: `core` is `/api`, otherwise `/apis`. `version` is v2 or v2beta1.
pub fn aggregated(kinds: &[Arc<Kind>], core: bool, version: &str) -> Value {
    let mut items = Vec::new();
    for (group, versions) in groups(kinds).into_iter().filter(|(g, _)| g.is_empty() == core) {
        let list: Vec<Value> = versions
            .iter()
            .map(|v| {
                let mut of: Vec<&Arc<Kind>> = kinds.iter().filter(|k| k.group == group && k.version == *v).collect();
                of.sort_by(|a, b| a.plural.cmp(&b.plural));
                json!({"version": v, "freshness": "Current", "resources": of.into_iter().map(|k| aggregated_resource(k)).collect::<Vec<_>>()})
            })
            .collect();
        let mut item = json!({"metadata": {"creationTimestamp": null}, "versions": list});
        if !group.is_empty() {
            item["metadata"]["name"] = group.into();
        }
        items.push(item);
    }
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items})
}

fn aggregated_resource(k: &Kind) -> Value {
    let gvk = |g: &str, v: &str, kind: &str| json!({"group": g, "version": v, "kind": kind});
    let mut v = json!({
        "resource": k.plural, "responseKind": gvk(&k.group, &k.version, &k.kind),
        "scope": if k.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": k.singular, "verbs": k.verbs,
    });
    if !k.short_names.is_empty() {
        v["shortNames"] = json!(k.short_names);
    }
    if !k.categories.is_empty() {
        v["categories"] = json!(k.categories);
    }
    if !k.subresources.is_empty() {
        let of = |s: &Subresource| {
            let (g, ver) = if s.version.is_empty() { (&k.group, &k.version) } else { (&s.group, &s.version) };
            json!({"subresource": s.name, "responseKind": gvk(g, ver, &s.kind), "verbs": s.verbs})
        };
        v["subresources"] = k.subresources.iter().map(of).collect();
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::builtin;

    #[test]
    fn documents() {
        let g = group_list(builtin());
        let names: Vec<&str> = g["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap()).collect();
        assert_eq!(names[..3], ["apiregistration.k8s.io", "apps", "events.k8s.io"]);
        let autoscaling = group(builtin(), "autoscaling").unwrap();
        assert_eq!(autoscaling["preferredVersion"]["version"], "v2");
        let core = resource_list(builtin(), "", "v1").unwrap();
        let find = |n: &str| core["resources"].as_array().unwrap().iter().find(|r| r["name"] == n).cloned().unwrap();
        assert_eq!(
            (&find("pods/eviction")["group"], &find("pods/eviction")["version"]),
            (&json!("policy"), &json!("v1"))
        );
        assert_eq!(find("pods")["categories"], json!(["all"]));
        assert!(resource_list(builtin(), "apps", "v9").is_none());
        let a = aggregated(builtin(), false, "v2");
        assert!(a["items"].as_array().unwrap().len() > 15);
        assert_eq!(aggregated(builtin(), true, "v2")["items"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn version_order() {
        let mut v = ["v1", "v2", "v1beta1", "v1alpha1", "v2beta1", "foo"];
        v.sort_by_key(|v| std::cmp::Reverse(version_priority(v)));
        assert_eq!(v, ["v2", "v1", "v2beta1", "v1beta1", "v1alpha1", "foo"]);
    }
}
