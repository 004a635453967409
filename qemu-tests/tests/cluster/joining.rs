//! Machines that must not join say why, and do not.

use anyhow::{Context, ensure};
use qemu_tests::{Cluster, Result};

pub(crate) const TESTS: &[super::Test] =
    &[("a_used_token_is_gone", used_token), ("a_seed_is_small_and_its_token_bound", seed)];

fn used_token(cluster: &Cluster) -> Result {
    let tokens = cluster.k(&[
        "-n",
        "kube-system",
        "get",
        "secrets",
        "--field-selector",
        "type=bootstrap.kubernetes.io/token",
        "-o",
        "name",
    ])?;
    ensure!(tokens.trim().is_empty(), "tokens of joined nodes are left: {tokens}");
    Ok(())
}

fn seed(cluster: &Cluster) -> Result {
    let text = cluster.kimg(&["seed", "worker-2"])?.success()?;
    ensure!(text.starts_with("#cloud-config") && text.len() <= 1024, "{} bytes: {text}", text.len());
    let id = text
        .lines()
        .find_map(|l| l.trim().strip_prefix("token:"))
        .context("no token")?
        .trim()
        .trim_matches('"')
        .to_owned();
    let id = id.split('.').next().unwrap_or_default().to_owned();
    let secret = cluster.json(&["-n", "kube-system", "get", "secret", &format!("bootstrap-token-{id}")])?;
    ensure!(
        secret["data"]["kimg-node-name"].is_string() && secret["data"]["expiration"].is_string(),
        "the token is not bound: {secret}"
    );
    cluster.k(&["-n", "kube-system", "delete", "secret", &format!("bootstrap-token-{id}")]).map(|_| ())
}
