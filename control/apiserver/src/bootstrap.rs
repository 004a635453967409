//! What every cluster has from its first start: namespaces, default roles, priority classes,
//! the `kubernetes` Service, the service address range.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::error::Result;
use crate::registry::Change;
use crate::state::AppState;

/// Makes what is missing; does nothing to what is there.
pub async fn run(state: &Arc<AppState>) -> anyhow::Result<()> {
    let names = ["default", "kube-system", "kube-public", "kube-node-lease"];
    try_join_all(names.map(|name| namespace(state, name))).await?;
    // What does not wait for each other is made durable together.
    tokio::try_join!(
        async { crate::authz::bootstrap::reconcile(&state.registry).await.context("making the default roles") },
        priority_class(state, "system-node-critical", 2_000_001_000),
        priority_class(state, "system-cluster-critical", 2_000_000_000),
        service_range(state),
        async { own_service(state).await.context("making the Service kubernetes") },
    )
    .map(drop)
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
async fn ensure(state: &AppState, group: &str, resource: &str, mut object: Value) -> Result<()> {
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

/// The address that other nodes reach this server at.
fn own_address(state: &AppState) -> IpAddr {
    let config = &state.config;
    config.advertise_address.unwrap_or(config.bind_address)
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
    ensure(state, "", "services", service).await?;
    let own = own_address(state);
    if own.is_unspecified() {
        tracing::warn!("no --advertise-address: the Service kubernetes has no endpoint");
        return Ok(());
    }
    let (port, own_family) = (state.config.secure_port, if own.is_ipv4() { "IPv4" } else { "IPv6" });
    let endpoints = json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": own}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    });
    replace(state, "", "endpoints", endpoints, "subsets").await?;
    let slice = json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": own_family,
        "endpoints": [{"addresses": [own], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    replace(state, "discovery.k8s.io", "endpointslices", slice, "endpoints").await?;
    Ok(())
}

/// Creates an object, or puts one field of it right: this server's address may have changed.
async fn replace(state: &AppState, group: &str, resource: &str, wanted: Value, field: &str) -> Result<()> {
    let text = |name: &str| wanted["metadata"][name].as_str().unwrap_or("").to_string();
    let (namespace, name, value) = (text("namespace"), text("name"), wanted[field].clone());
    ensure(state, group, resource, wanted).await?;
    let change = |mut object: Value| {
        if object[field] == value {
            return Ok(Change::Keep);
        }
        object[field] = value.clone();
        Ok(Change::Write(object))
    };
    state.registry.guaranteed_update(group, resource, &namespace, &name, change).await.map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_address() {
        for (range, first) in [("10.32.0.0/24", "10.32.0.1"), ("fd00::/108", "fd00::1")] {
            assert_eq!(super::first_address(range).unwrap().to_string(), first);
        }
        assert!(super::first_address("nonsense").is_none());
    }
}
