//! Who asks: the result of authentication, as authorisation, admission and audit see it.

use serde_json::{Map, Value, json};

use crate::request::UserInfo;

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
