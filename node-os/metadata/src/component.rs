//! Own components: programs of the operator's, baked into an image, that init keeps running.

use serde::{Deserialize, Serialize};

/// Folder of their programs on the root, each under its name.
pub const COMPONENT_PROGRAMS: &str = "/usr/lib/kimg/components";

/// What a node's own services and logs are called.
pub const SERVICE_NAMES: [&str; 20] = [
    "api-balancer",
    "audit",
    "backup",
    "cluster-dns",
    "cluster-registry",
    "containerd",
    "etcd",
    "etcd-member",
    "init",
    "join",
    "kernel",
    "kimg-status",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
    "log-shipper",
    "master-pki",
    "overlay",
];

/// The users of own components are this and what follows, 24 bits of it: far from those that people give to pods.
const FIRST_USER: u32 = 0x7000_0000;

/// What an image says of an own component besides its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct OwnComponent {
    /// Arguments behind argv[0], which is its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Most memory, in bytes.
    pub memory: u64,
}

impl OwnComponent {
    /// Whether one may be called so: a DNS label that no service has.
    pub fn is_name(name: &str) -> bool {
        let ends = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = name.as_bytes();
        bytes.len() <= 63
            && bytes.first().is_some_and(ends)
            && bytes.last().is_some_and(ends)
            && bytes.iter().all(|byte| ends(byte) || *byte == b'-')
            && !SERVICE_NAMES.contains(&name)
    }

    /// Its user and group. By the name alone: what comes and goes beside it changes nobody's files on STATE.
    pub fn user(name: &str) -> u32 {
        let sum = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
        sum.as_ref().iter().take(3).fold(0, |user, byte| user << 8 | u32::from(*byte)) + FIRST_USER
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_that_no_service_has() {
        for name in ["agent", "a", "7z", "my-shipper"] {
            assert!(OwnComponent::is_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a.b", "a/b", "..", "kubelet", "log-shipper", &"a".repeat(64)] {
            assert!(!OwnComponent::is_name(name), "{name}");
        }
    }

    /// Files on STATE belong to it, whatever kimg made the next image.
    #[test]
    fn a_user_is_its_name_s_for_ever() {
        let sum = ring::digest::digest(&ring::digest::SHA256, b"agent");
        assert_eq!(OwnComponent::user("agent").to_be_bytes()[1..], sum.as_ref()[..3]);
        assert_eq!(OwnComponent::user("agent") >> 24, 0x70);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let read = |text: &str| serde_json::from_str::<OwnComponent>(text);
        let whole = OwnComponent { args: vec!["--flag".into()], memory: 1 };
        assert_eq!(read(r#"{"args": ["--flag"], "memory": 1}"#).unwrap(), whole);
        for text in [r#"{"memory": 1, "user": 0}"#, "{}", r#"{"memory": -1}"#, r#"{"memory": 1, "args": "--flag"}"#] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
