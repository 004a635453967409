//! Who asks: the result of authentication, as authorisation, admission and audit see it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Group of everyone who proved an identity.
pub const GROUP_AUTHENTICATED: &str = "system:authenticated";
/// Group of everyone who did not.
pub const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
/// Name of a caller without an identity.
pub const USER_ANONYMOUS: &str = "system:anonymous";
/// Group whose members are never refused.
pub const GROUP_MASTERS: &str = "system:masters";
/// Group of the kubelets.
pub const GROUP_NODES: &str = "system:nodes";

/// An identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// User name, for example `system:node:worker-1`.
    pub name: String,
    /// Unique id, empty where the method of authentication has none.
    pub uid: String,
    /// Groups, including `system:authenticated`.
    pub groups: Vec<String>,
    /// Further attributes, keyed in lower case.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// An authenticated user; `system:authenticated` is added.
    pub fn authenticated(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut user = Self { name: name.into(), groups: groups.into_iter().collect(), ..Self::default() };
        user.add_group(GROUP_AUTHENTICATED);
        user
    }

    /// The caller who showed nothing.
    pub fn anonymous() -> Self {
        Self { name: USER_ANONYMOUS.into(), groups: vec![GROUP_UNAUTHENTICATED.into()], ..Self::default() }
    }

    /// The server itself, for its own writes.
    pub fn apiserver() -> Self {
        Self::authenticated("system:apiserver", [GROUP_MASTERS.to_string()])
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Adds a group once.
    pub fn add_group(&mut self, group: &str) {
        if !self.in_group(group) {
            self.groups.push(group.to_string());
        }
    }

    /// The node's name, when this is a kubelet.
    pub fn node_name(&self) -> Option<&str> {
        let name = self.name.strip_prefix("system:node:")?;
        (!name.is_empty() && self.in_group(GROUP_NODES)).then_some(name)
    }

    /// `(namespace, name)`, when this is a service account.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let rest = self.name.strip_prefix("system:serviceaccount:")?;
        rest.split_once(':')
    }

    /// First value of an extra attribute.
    pub fn extra_first(&self, key: &str) -> Option<&str> {
        self.extra.get(key).and_then(|v| v.first()).map(String::as_str)
    }

    /// The `UserInfo` object of authentication.k8s.io and audit.k8s.io.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        if !self.name.is_empty() {
            map.insert("username".into(), json!(self.name));
        }
        if !self.uid.is_empty() {
            map.insert("uid".into(), json!(self.uid));
        }
        if !self.groups.is_empty() {
            map.insert("groups".into(), json!(self.groups));
        }
        if !self.extra.is_empty() {
            map.insert("extra".into(), json!(self.extra));
        }
        Value::Object(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_and_service_account_names() {
        let node = UserInfo::authenticated("system:node:w1", [GROUP_NODES.to_string()]);
        assert_eq!(node.node_name(), Some("w1"));
        let fake = UserInfo::authenticated("system:node:w1", []);
        assert_eq!(fake.node_name(), None);
        let sa = UserInfo::authenticated("system:serviceaccount:ns:n", []);
        assert_eq!(sa.service_account(), Some(("ns", "n")));
    }
}
