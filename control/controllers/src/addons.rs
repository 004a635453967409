//! Applies the manifests of `--addon-dir` to the cluster, and keeps them applied.
//!
//! Fields of the manifests are owned by this manager; what others set beside them stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::Value;

use crate::context::Context;
use crate::discovery::{self, Resource};

const MANAGER: &str = "kimg-addons";
const APPLY: &str = "application/apply-patch+yaml";
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
const PERIOD: Duration = Duration::from_secs(600);

pub fn start(context: &Arc<Context>) {
    let Some(folder) = context.settings.addon_dir.clone() else { return };
    let context = context.clone();
    tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        loop {
            match apply_all(&context, &folder).await {
                Ok(count) => {
                    tracing::info!("{count} add-on objects are applied");
                    pause = FIRST_PAUSE;
                    tokio::time::sleep(PERIOD).await;
                }
                Err(error) => {
                    tracing::warn!("add-ons: {error:#}; trying again in {:.1} s", pause.as_secs_f32());
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    });
}

/// Applies what can be applied; an object that fails does not hold up the others.
async fn apply_all(context: &Context, folder: &Path) -> anyhow::Result<usize> {
    let objects = read(folder)?;
    if objects.is_empty() {
        return Ok(0);
    }
    let mut resources = discovery::resources(&context.client).await?.0;
    let mut failed = Vec::new();
    let count = objects.len();
    for (file, object) in objects {
        let kind = object["kind"].as_str().unwrap_or_default();
        if find(&resources, &object).is_none() {
            // Its definition may be among the objects that were just applied.
            resources = discovery::resources(&context.client).await?.0;
        }
        let result = match find(&resources, &object) {
            Some(resource) => apply(context, resource, &object).await,
            None => Err(anyhow::anyhow!("kind {kind} of {} is not served", object["apiVersion"])),
        };
        if let Err(error) = result {
            failed.push(format!("{}: {kind} {}: {error:#}", file.display(), object["metadata"]["name"]));
        }
    }
    if !failed.is_empty() {
        bail!("{} of {count} not applied: {}", failed.len(), failed.join("; "));
    }
    Ok(count)
}

fn read(folder: &Path) -> anyhow::Result<Vec<(PathBuf, Value)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading --addon-dir {}", folder.display())),
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("reading --addon-dir {}", folder.display()))?.path();
        if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            files.push(path);
        }
    }
    files.sort();
    let mut objects = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        for object in parse(&text).with_context(|| format!("parsing {}", file.display()))? {
            objects.push((file.clone(), object));
        }
    }
    // What others need comes first; the order within a rank stays.
    objects.sort_by_key(|(_, object)| rank(object["kind"].as_str().unwrap_or_default()));
    Ok(objects)
}

fn rank(kind: &str) -> u8 {
    match kind {
        "Namespace" => 0,
        "CustomResourceDefinition" | "PriorityClass" | "StorageClass" => 1,
        "ServiceAccount" | "ClusterRole" | "Role" => 2,
        "ClusterRoleBinding" | "RoleBinding" | "ConfigMap" | "Secret" => 3,
        _ => 4,
    }
}

fn parse(text: &str) -> anyhow::Result<Vec<Value>> {
    let mut objects = Vec::new();
    for value in api::codec::parse_yaml_documents(text).map_err(anyhow::Error::msg)? {
        match value {
            Value::Null => {}
            Value::Object(ref map) if map.get("kind").and_then(Value::as_str) == Some("List") => {
                objects.extend(map.get("items").and_then(Value::as_array).cloned().unwrap_or_default());
            }
            Value::Object(_) => objects.push(value),
            other => bail!("a document is no object but {other}"),
        }
    }
    Ok(objects)
}

fn find<'a>(resources: &'a [Resource], object: &Value) -> Option<&'a Resource> {
    let version = object["apiVersion"].as_str()?;
    let kind = object["kind"].as_str()?;
    let group = version.split_once('/').map_or("", |(group, _)| group);
    resources.iter().find(|r| r.kind == kind && r.group == group)
}

async fn apply(context: &Context, resource: &Resource, object: &Value) -> anyhow::Result<()> {
    let name = object["metadata"]["name"].as_str().context("metadata.name is missing")?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    // The manifest's own version, which need not be the preferred one.
    let mut served = resource.clone();
    if let Some(version) = object["apiVersion"].as_str() {
        served.version = version.rsplit('/').next().unwrap_or(version).to_owned();
    }
    let path = format!("{}/{name}", served.path(resource.namespaced.then_some(namespace)));
    let body = serde_json::to_vec(object)?;
    let query = format!("{path}?fieldManager={MANAGER}&force=true");
    context.client.json(Method::PATCH, &query, APPLY, body).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_become_objects() {
        let text = "# nothing\n---\nkind: A\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n";
        let kinds: Vec<_> = parse(text).unwrap().iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        assert!(parse("- just\n- a list\n").is_err());
        let merged = parse("kind: A\nbase: &base {x: 1, y: 2}\nspec: {<<: *base, y: 3}\n").unwrap();
        assert_eq!(merged[0]["spec"], serde_json::json!({"x": 1, "y": 3}));
    }
}
