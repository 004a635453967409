//! The few things that `kimg` asks an API server for: is it ready, its nodes, a bootstrap token.

use super::{Answer, Https};
use crate::seed::token::BootstrapToken;
use anyhow::{Context, Result, bail};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;

/// A node as `kimg status` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeState {
    /// Name.
    pub name: String,
    /// Condition Ready is True.
    pub ready: bool,
    /// Why it is not.
    pub reason: String,
    /// It takes no new pods.
    pub cordoned: bool,
    /// kubelet's version.
    pub version: String,
    /// OS image.
    pub image: String,
    /// InternalIP.
    pub address: String,
    /// Boot that the node last reported from.
    pub boot_id: String,
}

/// Whether the API server says that it is ready.
pub async fn ready(api: &Https) -> Result<()> {
    let answer = api.send(Method::GET, "/readyz", None).await?;
    if answer.status.is_success() {
        return Ok(());
    }
    bail!("the API server is not ready: {}", sentence(&answer))
}

/// All nodes.
pub async fn nodes(api: &Https) -> Result<Vec<NodeState>> {
    let answer = api.send(Method::GET, "/api/v1/nodes", None).await?;
    if !answer.status.is_success() {
        bail!("listing nodes: {}", sentence(&answer));
    }
    let list: Value = serde_json::from_slice(&answer.body).context("reading the list of nodes")?;
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(items.iter().map(node_state).collect())
}

/// Where a node is reached from elsewhere: its ExternalIP, else its InternalIP.
///
/// # Errors
/// The API server cannot be asked, or knows no address of such a node.
pub async fn node_address(api: &Https, node: &str) -> Result<IpAddr> {
    let answer = api.send(Method::GET, &format!("/api/v1/nodes/{node}"), None).await?;
    if !answer.status.is_success() {
        bail!("{}", sentence(&answer));
    }
    let known: Value = serde_json::from_slice(&answer.body).with_context(|| format!("reading the node {node}"))?;
    let addresses = known["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |kind: &str| addresses.iter().find(|one| one["type"] == kind)?["address"].as_str()?.parse().ok();
    of("ExternalIP").or_else(|| of("InternalIP")).with_context(|| format!("{node} has told it no address"))
}

pub(crate) fn node_state(node: &Value) -> NodeState {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let status = &node["status"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let condition = list(&status["conditions"]).into_iter().find(|c| c["type"] == "Ready");
    let address = list(&status["addresses"]).into_iter().find(|a| a["type"] == "InternalIP");
    NodeState {
        name: text(&node["metadata"]["name"]),
        ready: condition.as_ref().is_some_and(|c| c["status"] == "True"),
        reason: condition.map_or("has not reported yet".to_string(), |c| text(&c["message"])),
        cordoned: node["spec"]["unschedulable"] == true,
        version: text(&status["nodeInfo"]["kubeletVersion"]),
        image: text(&status["nodeInfo"]["osImage"]),
        boot_id: text(&status["nodeInfo"]["bootID"]),
        address: address.map_or(String::new(), |a| text(&a["address"])),
    }
}

/// Makes the Secret of a bootstrap token, good for one join of `node` within `life`.
pub async fn create_token(
    api: &Https,
    token: &BootstrapToken,
    node: &str,
    replace: bool,
    life: Duration,
) -> Result<()> {
    let secret = token_secret(token, node, replace, life)?;
    let answer = api.send(Method::POST, "/api/v1/namespaces/kube-system/secrets", Some(&secret)).await?;
    match answer.status {
        StatusCode::CONFLICT => replace_secret(api, token, &secret).await,
        status if status.is_success() => Ok(()),
        _ => bail!("making the bootstrap token of {node}: {}", sentence(&answer)),
    }
}

/// A token that opens the status page once within ten minutes, and nothing else.
pub async fn status_token(api: &Https) -> Result<String> {
    let path = "/api/v1/namespaces/kube-system/serviceaccounts/kimg-status/token";
    let spec = json!({"spec": {"audiences": ["kimg-status"], "expirationSeconds": 600}});
    let answer = api.send(Method::POST, path, Some(&spec)).await?;
    if !answer.status.is_success() {
        bail!("asking for a token of the status page: {}", sentence(&answer));
    }
    let answer: Value = serde_json::from_slice(&answer.body).context("reading a token")?;
    Ok(answer["status"]["token"].as_str().context("the API server's answer has no token")?.to_owned())
}

/// The Secret of a bootstrap token.
pub(crate) fn token_secret(token: &BootstrapToken, node: &str, replace: bool, life: Duration) -> Result<Value> {
    let expiry = jiff::Timestamp::now() + life;
    let expiry = jiff::Timestamp::from_second(expiry.as_second()).context("computing the token's end")?;
    let mut data = json!({
        "token-id": token.id,
        "token-secret": token.secret,
        "expiration": expiry.to_string(),
        "usage-bootstrap-authentication": "true",
        "description": format!("join of {node}, made by kimg"),
        "kimg-node-name": node,
    });
    if replace {
        data["kimg-replace"] = json!("true");
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{}", token.id), "namespace": "kube-system"},
        "stringData": data,
    }))
}

/// A token that stands in a seed already gets a new end of life.
async fn replace_secret(api: &Https, token: &BootstrapToken, secret: &Value) -> Result<()> {
    let path = format!("/api/v1/namespaces/kube-system/secrets/bootstrap-token-{}", token.id);
    let answer = api.send(Method::PUT, &path, Some(secret)).await?;
    if answer.status.is_success() {
        return Ok(());
    }
    bail!("renewing the bootstrap token {}: {}", token.id, sentence(&answer))
}

/// Takes a token back that is no longer needed; one that was used is gone already.
pub async fn delete_token(api: &Https, token: &BootstrapToken) -> Result<()> {
    let path = format!("/api/v1/namespaces/kube-system/secrets/bootstrap-token-{}", token.id);
    let answer = api.send(Method::DELETE, &path, None).await?;
    if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND {
        return Ok(());
    }
    bail!("removing the bootstrap token {}: {}", token.id, sentence(&answer))
}

/// The message of a Status, else the body, else the status line.
pub(crate) fn sentence(answer: &Answer) -> String {
    let message =
        serde_json::from_slice::<Value>(&answer.body).ok().and_then(|v| v["message"].as_str().map(str::to_string));
    match message {
        Some(message) => message,
        None if answer.body.is_empty() => answer.status.to_string(),
        None => String::from_utf8_lossy(&answer.body).trim().to_string(),
    }
}
