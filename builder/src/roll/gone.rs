//! What uses APIs that the new level of the API has no more, by what the running API server says of them in `/metrics`:
//! which it serves, and who asked for them lately. Pure.

use super::skew::Level;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;

/// Objects of an API that are named; there may be very many.
const MOST_NAMED: usize = 10;

/// An API that goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gone {
    group: String,
    version: String,
    resource: String,
}

impl Gone {
    /// `group/version`.
    fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Where all its objects are listed.
    pub fn path(&self) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/{}", self.api_version(), self.resource)
    }
}

/// The APIs that an API server serves, and level `new` does not.
pub fn apis(metrics: &str, new: Level) -> Vec<Gone> {
    let series = metrics.lines().filter_map(|line| labels(line, "kimg_removed_apis"));
    series.filter_map(|(labels, _)| api(&labels, new)).collect()
}

/// What of one of them is in use: stored objects, and who asked for it.
pub fn uses(gone: &Gone, objects: &[Value], metrics: &str, new: Level) -> Vec<String> {
    let what = format!("API level {new} has no {} {} any more", gone.api_version(), gone.resource);
    let mut lines = vec![what];
    let used: Vec<String> = objects.iter().filter_map(|object| written_by(object, &gone.api_version())).collect();
    lines.extend(used.iter().take(MOST_NAMED).map(|object| format!("  stored: {object}")));
    if used.len() > MOST_NAMED {
        lines.push(format!("  stored: {} more", used.len() - MOST_NAMED));
    }
    for line in metrics.lines() {
        let Some((labels, last)) = labels(line, "kimg_deprecated_api_last_request_seconds") else { continue };
        let when = last.parse().ok().and_then(|last| Timestamp::from_second(last).ok());
        if let (Some(found), Some(when)) = (api(&labels, new), when)
            && found == *gone
        {
            let said = |key: &str| labels.get(key).map_or("?", String::as_str);
            lines.push(format!("  asked for by {} ({}), last at {when}", said("user"), said("user_agent")));
        }
    }
    lines
}

/// `namespace/name` of an object that somebody wrote by this version, and who.
fn written_by(object: &Value, api_version: &str) -> Option<String> {
    let metadata = &object["metadata"];
    let managers: Vec<&str> = metadata["managedFields"]
        .as_array()?
        .iter()
        .filter(|entry| entry["apiVersion"] == api_version)
        .map(|entry| entry["manager"].as_str().unwrap_or("?"))
        .collect();
    let name = metadata["name"].as_str()?;
    let name =
        metadata["namespace"].as_str().map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
    (!managers.is_empty()).then(|| format!("{name} (by {})", managers.join(", ")))
}

/// The API of a series, where level `new` has it no more.
fn api(labels: &BTreeMap<String, String>, new: Level) -> Option<Gone> {
    let label = |key: &str| labels.get(key).cloned();
    let removed = Level::of(labels.get("removed_release")?)?;
    let gone = Gone { group: label("group")?, version: label("version")?, resource: label("resource")? };
    (removed <= new).then_some(gone)
}

/// Labels and value of a line of Prometheus' text format, where it is of this series.
fn labels<'a>(line: &'a str, series: &str) -> Option<(BTreeMap<String, String>, &'a str)> {
    let mut rest = line.strip_prefix(series)?.strip_prefix('{')?;
    let mut labels = BTreeMap::new();
    while let Some((key, after)) = rest.split_once("=\"") {
        let (mut value, mut chars) = (String::new(), after.char_indices());
        let end = loop {
            match chars.next()? {
                (_, '\\') => value.push(chars.next()?.1),
                (at, '"') => break at,
                (_, other) => value.push(other),
            }
        };
        labels.insert(key.to_owned(), value);
        rest = after.get(end + 1..)?;
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Some((labels, rest.strip_prefix("} ")?)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const METRICS: &str = r##"# HELP kimg_removed_apis x
kimg_removed_apis{group="a.io",version="v1beta1",resource="things",subresource="",removed_release="1.37"} 1
kimg_removed_apis{group="a.io",version="v1beta2",resource="things",subresource="",removed_release="1.40"} 1
kimg_removed_apis{group="",version="v1",resource="endpoints",subresource="",removed_release=""} 1
kimg_removed_apis{group="broken
kimg_deprecated_api_last_request_seconds{group="a.io",version="v1beta1",resource="things",subresource="",removed_release="1.37",user="ci",user_agent="say \"x\\\", y=\"1"} 86400
kimg_deprecated_api_last_request_seconds{group="a.io",version="v1beta2",resource="things",subresource="",removed_release="1.40",user="other",user_agent="x"} 86400
"##;

    #[test]
    fn what_a_level_has_no_more_is_told_with_who_uses_it() {
        let level = |text| Level::of(text).expect("a level");
        assert!(apis(METRICS, level("1.36")).is_empty());
        assert_eq!(apis(METRICS, level("1.40")).len(), 2);
        let gone = apis(METRICS, level("1.37"));
        let [gone] = gone.as_slice() else { panic!("{gone:?}") };
        assert_eq!(gone.path(), "/apis/a.io/v1beta1/things");
        let object = |name: &str, version: &str| {
            json!({"metadata": {"name": name, "namespace": "x",
                   "managedFields": [{"manager": "helm", "apiVersion": version}]}})
        };
        let mut objects =
            vec![object("old", "a.io/v1beta1"), object("new", "a.io/v1"), json!({"metadata": {"name": "z"}})];
        assert_eq!(
            uses(gone, &objects, METRICS, level("1.37")),
            [
                "API level 1.37 has no a.io/v1beta1 things any more",
                "  stored: x/old (by helm)",
                "  asked for by ci (say \"x\\\", y=\"1), last at 1970-01-02T00:00:00Z",
            ]
        );
        objects.extend((0..MOST_NAMED + 1).map(|n| object(&n.to_string(), "a.io/v1beta1")));
        let lines = uses(gone, &objects, METRICS, level("1.37"));
        assert_eq!(lines.len(), 1 + MOST_NAMED + 1 + 1);
        assert!(lines.contains(&"  stored: 2 more".to_owned()), "{lines:?}");
    }
}
