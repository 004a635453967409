//! ServiceAccount: gives a pod its account, the account's token, and its pull secrets.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use serde_json::{Value, json};

use super::Attributes;
use crate::authn::view::{SERVICE_ACCOUNTS, items_at, str_at};
use crate::error::Result;
use crate::strategy::fields;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long, and how often, a pod waits for its namespace's default account.
const WAIT: Duration = Duration::from_millis(100);
const WAITS: usize = 20;
/// Letters that make no words.
const SUFFIX: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Completes a new pod.
pub async fn admit(at: &Attributes<'_>, pod: &mut Value) -> Result<()> {
    if pod.pointer("/metadata/annotations/kubernetes.io~1config.mirror").is_some() {
        return mirror(at, pod);
    }
    let name = match str_at(pod, "/spec/serviceAccountName") {
        "" => match str_at(pod, "/spec/serviceAccount") {
            "" => "default".to_string(),
            old => old.to_string(),
        },
        name => name.to_string(),
    };
    pod["spec"]["serviceAccountName"] = json!(name);
    pod["spec"]["serviceAccount"] = json!(name);
    let account = account(at, &name).await.ok_or_else(|| {
        at.forbidden(&format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            at.namespace
        ))
    })?;
    let wish = |o: &Value, pointer: &str| o.pointer(pointer).and_then(Value::as_bool);
    let automount = wish(pod, "/spec/automountServiceAccountToken").or(wish(&account, "/automountServiceAccountToken"));
    if automount.unwrap_or(true) {
        mount_token(pod);
    }
    if items_at(pod, "/spec/imagePullSecrets").is_empty() && !items_at(&account, "/imagePullSecrets").is_empty() {
        pod["spec"]["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    Ok(())
}

/// The account; a new namespace's default one is on its way and is waited for a little.
async fn account(at: &Attributes<'_>, name: &str) -> Option<Arc<Value>> {
    for _ in 0..WAITS {
        let found = at.view().get(SERVICE_ACCOUNTS, at.namespace, name);
        if found.is_some() || name != "default" {
            return found;
        }
        tokio::time::sleep(WAIT).await;
    }
    at.view().get(SERVICE_ACCOUNTS, at.namespace, name)
}

/// A mirror pod shows what the kubelet runs from a file; it may use nothing of the API.
fn mirror(at: &Attributes<'_>, pod: &Value) -> Result<()> {
    if !str_at(pod, "/spec/serviceAccountName").is_empty() {
        return Err(at.forbidden("a mirror pod may not reference service accounts"));
    }
    let uses_secrets =
        items_at(pod, "/spec/volumes").iter().any(|v| v["secret"].is_object() || v["projected"].is_object());
    if uses_secrets {
        return Err(at.forbidden("a mirror pod may not reference secrets"));
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let mounted = |c: &Value| items_at(c, "/volumeMounts").iter().any(|m| str_at(m, "/mountPath") == MOUNT_PATH);
    let all = ["containers", "initContainers"];
    if all.iter().all(|list| items_at(pod, &format!("/spec/{list}")).iter().all(mounted)) {
        return;
    }
    let volume = existing(pod).unwrap_or_else(|| add_volume(pod));
    for list in all {
        for container in fields::items_mut(pod, &["spec", list]) {
            if mounted(container) {
                continue;
            }
            let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
            match container["volumeMounts"].as_array_mut() {
                Some(mounts) => mounts.push(mount),
                None => container["volumeMounts"] = json!([mount]),
            }
        }
    }
}

fn existing(pod: &Value) -> Option<String> {
    let names = items_at(pod, "/spec/volumes").iter().map(|v| str_at(v, "/name"));
    names.filter(|n| n.starts_with("kube-api-access-")).map(str::to_string).next()
}

fn add_volume(pod: &mut Value) -> String {
    let mut rng = rand::rng();
    let suffix: String = (0..5).map(|_| SUFFIX[rng.random_range(0..SUFFIX.len())] as char).collect();
    let name = format!("kube-api-access-{suffix}");
    let volume = json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}});
    match pod["spec"]["volumes"].as_array_mut() {
        Some(volumes) => volumes.push(volume),
        None => pod["spec"]["volumes"] = json!([volume]),
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_gets_the_token_once() {
        let mut pod = json!({"spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]}});
        mount_token(&mut pod);
        assert_eq!(items_at(&pod, "/spec/volumes").len(), 1);
        assert_eq!(items_at(&pod, "/spec/containers/0/volumeMounts").len(), 1);
        assert_eq!(str_at(&pod, "/spec/containers/1/volumeMounts/0/name"), "x");
        assert_eq!(items_at(&pod, "/spec/initContainers/0/volumeMounts").len(), 1);
        let once = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, once);
    }
}
