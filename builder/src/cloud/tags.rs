//! Whose a thing is, and what, as tags that are a key, a dot and a value. All providers with flat tags take these.

use super::marks::{CA, CLUSTER};
use super::{Marks, Tenant};
use serde_json::Value;

impl Tenant {
    /// The tags of something of the cluster's.
    pub(super) fn tags(&self, more: &[(&str, &str)]) -> Vec<String> {
        let own = [(CLUSTER, self.cluster.as_str()), (CA, self.ca.as_str())];
        own.iter().chain(more).map(|(key, value)| format!("{key}.{value}")).collect()
    }

    /// What something shows of whose it is, which is called `name`.
    pub(super) fn marks<'a>(&self, one: &Value, name: &'a str) -> Marks<'a> {
        Marks { name, cluster: tagged(one, CLUSTER) == self.cluster, ca: tagged(one, CA) == self.ca }
    }
}

/// What a tag says.
pub(super) fn tagged<'a>(one: &'a Value, key: &str) -> &'a str {
    let tags = one["tags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    tags.filter_map(|tag| tag.split_once('.')).find(|(its, _)| *its == key).map_or("", |(_, value)| value)
}

/// Whether something bears all tags with which `asked` asks for it, in whichever order.
pub(super) fn bears(one: &Value, asked: &Value) -> bool {
    let has = |tag: &Value| one["tags"].as_array().is_some_and(|its| its.contains(tag));
    asked["tags"].as_array().into_iter().flatten().all(has)
}
