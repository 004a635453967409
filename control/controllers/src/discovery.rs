//! Which kinds the API server serves, for controllers that work on all of them.

use anyhow::Context;
use control_client::Client;
use serde::Deserialize;

/// A kind that the server stores, in its preferred version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Resource {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of the collection, of one namespace or of all.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        match namespace {
            Some(namespace) => format!("{root}/{}/namespaces/{namespace}/{}", self.api_version(), self.plural),
            None => format!("{root}/{}/{}", self.api_version(), self.plural),
        }
    }
}

#[derive(Deserialize)]
struct GroupList {
    #[serde(default)]
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    metadata: Name,
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize, Default)]
struct Name {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    #[serde(default)]
    resources: Vec<Listed>,
    #[serde(default)]
    freshness: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    resource: String,
    #[serde(default)]
    response_kind: Option<Kind>,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    verbs: Vec<String>,
}

#[derive(Deserialize)]
struct Kind {
    #[serde(default)]
    kind: String,
}

/// All kinds, each in the first version that serves it; and the groups whose server did not answer.
pub async fn resources(client: &Client) -> anyhow::Result<(Vec<Resource>, Vec<String>)> {
    let mut found = Vec::new();
    let mut stale = Vec::new();
    for path in ["/api", "/apis"] {
        let request = http::Request::get(path)
            .header(http::header::ACCEPT, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
            .body(Vec::new())
            .context("building the discovery request")?;
        let list: GroupList =
            client.raw().request(request).await.with_context(|| format!("asking {path} for what it serves"))?;
        collect(list, &mut found, &mut stale);
    }
    Ok((found, stale))
}

fn collect(list: GroupList, found: &mut Vec<Resource>, stale: &mut Vec<String>) {
    for group in list.items {
        let mut seen = std::collections::HashSet::new();
        for version in group.versions {
            if version.freshness == "Stale" {
                stale.push(format!("{}/{}", group.metadata.name, version.version));
            }
            for listed in version.resources {
                if listed.resource.contains('/') || !seen.insert(listed.resource.clone()) {
                    continue;
                }
                found.push(Resource {
                    group: group.metadata.name.clone(),
                    version: version.version.clone(),
                    plural: listed.resource,
                    kind: listed.response_kind.map(|k| k.kind).unwrap_or_default(),
                    namespaced: listed.scope == "Namespaced",
                    verbs: listed.verbs,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_version_of_a_kind_counts() {
        let list: GroupList = serde_json::from_value(serde_json::json!({"items": [{
            "metadata": {"name": "autoscaling"},
            "versions": [
                {"version": "v2", "resources": [{"resource": "hpas", "scope": "Namespaced", "verbs": ["list"],
                    "responseKind": {"group": "autoscaling", "version": "v2", "kind": "HPA"}}]},
                {"version": "v1", "freshness": "Stale", "resources": [{"resource": "hpas", "scope": "Namespaced"}]}
            ]
        }]}))
        .unwrap();
        let (mut found, mut stale) = (Vec::new(), Vec::new());
        collect(list, &mut found, &mut stale);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path(Some("n")), "/apis/autoscaling/v2/namespaces/n/hpas");
        assert_eq!(stale, ["autoscaling/v1"]);
    }
}
