//! What every cluster has from its first start: namespaces, default roles, priority classes,
//! the `kubernetes` Service, the service address range, and what aggregated API servers are to trust.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::config::Config;
use crate::error::Result;
use crate::masters;
use crate::registry::Change;
use crate::state::AppState;

/// How often what must never be gone is looked at.
pub(crate) const KEEP: Duration = Duration::from_secs(10);

/// Makes what is missing; does nothing to what is there.
pub async fn run(state: &Arc<AppState>) -> anyhow::Result<()> {
    if masters::own_address(state).is_none() {
        tracing::warn!("no --advertise-address: the Service kubernetes has no endpoint");
    }
    let names = ["default", "kube-system", "kube-public", "kube-node-lease"];
    try_join_all(names.map(|name| namespace(state, name))).await?;
    // What does not wait for each other is made durable together.
    tokio::try_join!(
        async { crate::authz::bootstrap::reconcile(&state.registry).await.context("making the default roles") },
        priority_class(state, "system-node-critical", 2_000_001_000),
        priority_class(state, "system-cluster-critical", 2_000_000_000),
        service_range(state),
        async { own_service(state).await.context("making the Service kubernetes") },
        masters::begin(state),
    )
    .map(drop)
}

/// Puts the Service `kubernetes` and what aggregated API servers are to trust back when somebody removes or changes them.
pub async fn keep(state: Arc<AppState>) {
    // What is checked by this server, not what the files may say by now.
    let trust = match authentication(&state.config) {
        Ok(trust) => trust,
        Err(error) => return tracing::error!("aggregated API servers are not told whom to trust: {error:#}"),
    };
    let mut stopping = state.stopping();
    loop {
        let kept =
            tokio::try_join!(async { own_service(&state).await.context("keeping the Service kubernetes") }, async {
                publish(&state, &trust).await.context("keeping the ConfigMap of aggregated API servers")
            },);
        if let Err(error) = kept {
            tracing::warn!("{error:#}");
        }
        tokio::select! {
            () = tokio::time::sleep(KEEP) => {}
            _ = stopping.wait_for(|s| *s) => return,
        }
    }
}

/// The data of ConfigMap `extension-apiserver-authentication`, from which aggregated API servers
/// learn whom to trust.
fn authentication(config: &Config) -> anyhow::Result<Value> {
    let mut data = json!({});
    if let Some(path) = &config.client_ca_file {
        data["client-ca-file"] = certificates(path)?.into();
    }
    if let Some(path) = &config.requestheader_client_ca_file {
        data["requestheader-client-ca-file"] = certificates(path)?.into();
        let lists = [
            ("allowed-names", json!(config.requestheader_allowed_names)),
            ("username-headers", json!(["X-Remote-User"])),
            ("uid-headers", json!(["X-Remote-Uid"])),
            ("group-headers", json!(["X-Remote-Group"])),
            ("extra-headers-prefix", json!(["X-Remote-Extra-"])),
        ];
        for (name, list) in lists {
            data[format!("requestheader-{name}")] = list.to_string().into();
        }
    }
    Ok(data)
}

/// The certificates of a PEM file, without what else is in it: a key would be shown to others.
fn certificates(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let (mut out, mut inside) = (String::new(), false);
    for line in text.lines().map(str::trim) {
        inside |= line == "-----BEGIN CERTIFICATE-----";
        if inside {
            out.push_str(line);
            out.push('\n');
        }
        inside &= line != "-----END CERTIFICATE-----";
    }
    Ok(out)
}

async fn publish(state: &AppState, data: &Value) -> Result<()> {
    let map = json!({
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": data,
    });
    ensure(state, "", "configmaps", map.clone()).await?;
    let change = |mut object: Value| {
        if object["data"] == *data {
            return Ok(Change::Keep);
        }
        object["data"] = data.clone();
        Ok(Change::Write(object))
    };
    let (namespace, name) = ("kube-system", "extension-apiserver-authentication");
    state.registry.guaranteed_update("", "configmaps", namespace, name, change).await.map(drop)
}

async fn namespace(state: &AppState, name: &str) -> anyhow::Result<()> {
    let namespace = json!({
        "kind": "Namespace", "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    });
    ensure(state, "", "namespaces", namespace).await.with_context(|| format!("making the namespace {name}"))
}

async fn priority_class(state: &AppState, name: &str, value: i64) -> anyhow::Result<()> {
    let class = json!({
        "kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": name},
        "value": value, "preemptionPolicy": "PreemptLowerPriority",
        "description": "Used for system critical pods that must not be moved from their current node.",
    });
    ensure(state, "scheduling.k8s.io", "priorityclasses", class).await.context("making the system priority classes")
}

async fn service_range(state: &AppState) -> anyhow::Result<()> {
    let range = json!({
        "kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [state.config.service_cluster_ip_range]},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready", "lastTransitionTime": now()}]},
    });
    ensure(state, "networking.k8s.io", "servicecidrs", range).await.context("making the ServiceCIDR kubernetes")
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Creates an object unless one of its name is there.
pub(crate) async fn ensure(state: &AppState, group: &str, resource: &str, mut object: Value) -> Result<()> {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or("").to_string();
    let (namespace, name) = (text("namespace"), text("name"));
    if state.registry.get(group, resource, &namespace, &name).is_some() {
        return Ok(());
    }
    object["metadata"]["uid"] = uuid::Uuid::new_v4().to_string().into();
    object["metadata"]["creationTimestamp"] = now().into();
    if group == "scheduling.k8s.io" {
        object["metadata"]["generation"] = 1.into();
    }
    match state.registry.create(group, resource, &object, None).await {
        Err(error) if error.reason != "AlreadyExists" => Err(error),
        _ => Ok(()),
    }
}

/// The first address of the service range.
fn first_address(range: &str) -> Option<IpAddr> {
    let (base, _) = range.split(',').next()?.trim().split_once('/')?;
    match base.parse().ok()? {
        IpAddr::V4(ip) => Some(IpAddr::V4((u32::from(ip) + 1).into())),
        IpAddr::V6(ip) => Some(IpAddr::V6((u128::from(ip) + 1).into())),
    }
}

async fn own_service(state: &Arc<AppState>) -> anyhow::Result<()> {
    let range = &state.config.service_cluster_ip_range;
    let address =
        first_address(range).with_context(|| format!("--service-cluster-ip-range {range} is not an address range"))?;
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "type": "ClusterIP", "sessionAffinity": "None",
            "internalTrafficPolicy": "Cluster", "ipFamilies": [family], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": state.config.secure_port}],
        },
        "status": {"loadBalancer": {}},
    });
    Ok(ensure(state, "", "services", service).await?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_certificates_are_shown_to_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let block = |kind: &str| format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
        let text = ["CERTIFICATE", "EC PRIVATE KEY", "CERTIFICATE"].map(block).join("# a bundle\n");
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(super::certificates(file.path()).unwrap(), block("CERTIFICATE").repeat(2));
    }

    #[test]
    fn the_first_address() {
        for (range, first) in [("10.32.0.0/24", "10.32.0.1"), ("fd00::/108", "fd00::1")] {
            assert_eq!(super::first_address(range).unwrap().to_string(), first);
        }
        assert!(super::first_address("nonsense").is_none());
    }
}
