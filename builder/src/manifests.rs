//! The cluster's add-on manifests: the built-in ones with the settings filled in, and the cluster's own.
//!
//! A `{{key}}` in a built-in manifest is replaced by a setting; files that the cluster adds are taken as they are.

use crate::config::Settings;
use crate::input;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::BTreeMap;

/// `(file name, text)`, applied in this order of names.
const BUILT_IN: [(&str, &str); 3] = [
    ("10-rbac.yaml", include_str!("../../images/manifests/10-rbac.yaml")),
    ("20-dns.yaml", include_str!("../../images/manifests/20-dns.yaml")),
    ("30-storage.yaml", include_str!("../../images/manifests/30-storage.yaml")),
];

/// Where the cluster has a status page.
const STATUS: (&str, &str) = ("15-status.yaml", include_str!("../../images/manifests/15-status.yaml"));

/// All manifests of a cluster by file name.
pub fn render(settings: &Settings) -> Result<BTreeMap<String, String>> {
    let values = [
        ("cluster", settings.name.clone()),
        ("domain", settings.domain.clone()),
        ("dns-address", settings.dns_address.to_string()),
        ("ip-family", if settings.dns_address.is_ipv4() { "IPv4" } else { "IPv6" }.to_string()),
    ];
    let mut files = BTreeMap::new();
    for (name, template) in BUILT_IN.into_iter().chain(settings.status_page.then_some(STATUS)) {
        files.insert(name.to_string(), fill(name, template, &values)?);
    }
    for path in &settings.manifests {
        let text = input::text(path, input::SMALL)?;
        if let Err(error) = check(&text) {
            return input::bad(format!("the manifest {}: {error:#}", path.display()));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // After the built-in ones, so that a cluster's manifests can build on them.
        files.insert(format!("90-{name}"), text);
    }
    Ok(files)
}

/// Whether every document is an object of Kubernetes, as far as one can see from outside.
fn check(text: &str) -> Result<()> {
    let mut objects = 0;
    for (n, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let merged = serde_yaml_ng::Value::deserialize(document).and_then(|mut value| {
            value.apply_merge()?;
            serde_yaml_ng::from_value::<serde_json::Value>(value)
        });
        let value = merged.with_context(|| format!("document {}", n + 1))?;
        if value.is_null() {
            continue;
        }
        for field in ["/apiVersion", "/kind", "/metadata/name"] {
            let list = value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
            if value.pointer(field).and_then(serde_json::Value::as_str).is_none()
                && !(list && field == "/metadata/name")
            {
                bail!("document {} has no {}", n + 1, field.trim_start_matches('/').replace('/', "."));
            }
        }
        objects += 1;
    }
    if objects == 0 {
        bail!("it holds no object");
    }
    Ok(())
}

fn fill(name: &str, template: &str, values: &[(&str, String)]) -> Result<String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (key, tail) = after.split_once("}}").with_context(|| format!("manifest {name}: `{{{{` without `}}}}`"))?;
        let value = values
            .iter()
            .find(|(known, _)| *known == key)
            .with_context(|| format!("manifest {name}: no setting is called {key}"))?;
        out.push_str(before);
        out.push_str(&value.1);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn built_in_manifests_are_filled_in() {
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        let settings = crate::config::parse(Path::new("c"), text, Path::new("/nowhere")).expect("valid");
        let files = render(&settings).expect("renders");
        assert!(files["20-dns.yaml"].contains("clusterIP: 10.32.0.10"));
        assert!(files.values().all(|text| !text.contains("{{")) && !files.contains_key(STATUS.0));
        let text = format!("{text}[status]\npage = true\n");
        let settings = crate::config::parse(Path::new("c"), &text, Path::new("/nowhere")).expect("valid");
        check(&render(&settings).expect("renders")[STATUS.0]).expect("objects");
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_place() {
        check("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n# nothing\n").unwrap();
        check("x: &x {kind: Namespace}\n<<: *x\napiVersion: v1\nmetadata: {name: a}\n").unwrap();
        for (text, says) in [
            ("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: Pod\n", "document 2 has no apiVersion"),
            ("apiVersion: v1\nkind: Pod\n", "document 1 has no metadata.name"),
            ("a: [", "document 1"),
            ("# nothing\n", "no object"),
        ] {
            let error = format!("{:#}", check(text).unwrap_err());
            assert!(error.contains(says), "{error}");
        }
    }
}
