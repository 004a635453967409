//! Whose a thing is, and what, as tags that are a key, a dot and a value. All providers with flat tags take these.

use super::marks::{CA, CLUSTER, IMAGE};
use super::{Marks, Tenant};
use crate::machines::NO_IMAGE;
use serde_json::Value;

impl Tenant {
    /// The tags of something of the cluster's.
    pub(super) fn tags(&self, more: &[(&str, &str)]) -> Vec<String> {
        let own = [(CLUSTER, self.cluster.as_str()), (CA, self.ca.as_str())];
        let said = own.iter().chain(more).filter(|(_, value)| !value.is_empty());
        said.map(|(key, value)| format!("{key}.{value}")).collect()
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

/// The tags that something has, with those of these keys in the place of its own; an empty value: without one.
pub(super) fn retagged(one: &Value, with: &[(&str, &str)]) -> Vec<String> {
    let its = one["tags"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let other = |tag: &&str| with.iter().all(|(key, _)| tag.split_once('.').is_none_or(|(its, _)| its != *key));
    let new = with.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("{key}.{value}"));
    its.filter(other).map(String::from).chain(new).collect()
}

/// The tag of an image; without one while it is being made anew.
pub(super) fn of_image(image: &str) -> (&'static str, &str) {
    (IMAGE, if image == NO_IMAGE { "" } else { image })
}

/// Whether something bears all tags with which `asked` asks for it, in whichever order.
pub(super) fn bears(one: &Value, asked: &Value) -> bool {
    let has = |tag: &Value| one["tags"].as_array().is_some_and(|its| its.contains(tag));
    asked["tags"].as_array().into_iter().flatten().all(has)
}
