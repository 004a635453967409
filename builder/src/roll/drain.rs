//! Which pods of a node have to leave, what keeps one, and what then. Pure.

use super::journal::OnBlocked;
use serde_json::Value;
use std::time::Duration;

/// A pod on the node that is drained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// It is being deleted.
    pub ending: bool,
    /// It has run to its end.
    pub finished: bool,
    /// What it is to the node.
    pub kind: Kind,
}

/// What a pod is to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The node's own: of a file on it, or one of a DaemonSet. It ends with the node and comes again with it.
    Node,
    /// A controller starts another one elsewhere.
    Managed,
    /// Nothing starts it again.
    Bare,
}

impl Pod {
    /// As the API server shows it.
    pub fn read(pod: &Value) -> Pod {
        let meta = &pod["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let owners = meta["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
        let controller = owners.iter().find(|owner| owner["controller"] == true);
        let mirror = !meta["annotations"]["kubernetes.io/config.mirror"].is_null();
        let kind = match controller {
            _ if mirror => Kind::Node,
            Some(owner) if owner["kind"] == "DaemonSet" => Kind::Node,
            Some(_) => Kind::Managed,
            None => Kind::Bare,
        };
        Pod {
            namespace: text(&meta["namespace"]),
            name: text(&meta["name"]),
            ending: !meta["deletionTimestamp"].is_null(),
            finished: matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")),
            kind,
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether the node cannot go while it is there.
    pub fn must_leave(&self) -> bool {
        self.kind != Kind::Node
    }
}

/// Why a pod stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// `namespace/name`.
    pub pod: String,
    /// What the API server said; none where the pod is ending and does not come to its end.
    pub said: Option<String>,
}

/// One sentence that names the pod and the budget that keep a node.
pub fn sentence(node: &str, blocked: &[Blocked]) -> String {
    let Some(first) = blocked.first() else { return format!("{node} is not yet drained") };
    // Only those that stay for the same reason.
    let same = blocked.iter().filter(|one| one.said == first.said).count();
    let more = match same - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let others = match blocked.len() - same {
        0 => String::new(),
        1 => "; another pod is still there, too".into(),
        others => format!("; {others} other pods are still there, too"),
    };
    match &first.said {
        Some(said) => format!(
            "{node} cannot be drained: pod {}{more} must stay, since {}{others}",
            first.pod,
            lower(said.trim_end_matches('.'))
        ),
        None => format!("{node} is not drained: pod {}{more} was told to end and still runs", first.pod),
    }
}

fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

/// What the API server's refusal of an eviction says: its cause where it names one, else its message.
pub fn refusal(status: &Value) -> String {
    let causes = status["details"]["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let cause = causes.iter().find_map(|cause| cause["message"].as_str()).filter(|text| !text.is_empty());
    cause.or_else(|| status["message"].as_str()).unwrap_or("the API server refused without a reason").to_string()
}

/// What comes next in a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// No pod is left that must leave.
    Gone,
    /// Evict, and look again.
    Evict,
    /// It took too long, and this was wanted then.
    Overdue(OnBlocked),
}

/// Decides after a look at the node's pods.
pub fn next(left: usize, lasted: Duration, limit: Duration, on_blocked: OnBlocked) -> Next {
    match left {
        0 => Next::Gone,
        _ if lasted < limit || on_blocked == OnBlocked::Wait => Next::Evict,
        _ => Next::Overdue(on_blocked),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_nodes_own_pods_stay() {
        let owner = |kind: &str| json!([{"kind": kind, "controller": true}]);
        let cases = [
            (json!({"ownerReferences": owner("DaemonSet")}), Kind::Node),
            (json!({"annotations": {"kubernetes.io/config.mirror": "x"}}), Kind::Node),
            (json!({"ownerReferences": owner("ReplicaSet")}), Kind::Managed),
            (json!({"ownerReferences": [{"kind": "Thing"}]}), Kind::Bare),
            (json!({}), Kind::Bare),
        ];
        for (meta, kind) in cases {
            let pod = Pod::read(&json!({"metadata": meta}));
            assert_eq!((pod.kind, pod.must_leave()), (kind, kind != Kind::Node), "{meta}");
        }
    }

    #[test]
    fn the_sentence_names_pod_and_budget() {
        let status = json!({
            "message": "Cannot evict pod as it would violate the pod's disruption budget.",
            "details": {"causes": [{
                "reason": "DisruptionBudget",
                "message": "The disruption budget web needs 2 healthy pods and has 2 currently",
            }]},
        });
        let blocked = Blocked { pod: "a/web-1".into(), said: Some(refusal(&status)) };
        assert_eq!(
            sentence("w1", &[blocked.clone(), blocked.clone()]),
            "w1 cannot be drained: pod a/web-1 (and 1 more) must stay, since the disruption budget web needs 2 healthy \
             pods and has 2 currently"
        );
        let ending = Blocked { pod: "a/slow".into(), said: None };
        let others = [blocked.clone(), ending.clone(), ending.clone()];
        assert!(sentence("w1", &others).ends_with("pods and has 2 currently; 2 other pods are still there, too"));
        assert_eq!(sentence("w1", &[ending]), "w1 is not drained: pod a/slow was told to end and still runs");
        assert_eq!(refusal(&json!({"message": "more than one budget"})), "more than one budget");
    }

    #[test]
    fn the_limit_ends_a_drain_as_it_was_wanted() {
        let secs = Duration::from_secs;
        let cases = [
            (0, 99, OnBlocked::Stop, Next::Gone),
            (1, 9, OnBlocked::Stop, Next::Evict),
            (1, 10, OnBlocked::Stop, Next::Overdue(OnBlocked::Stop)),
            (1, 10, OnBlocked::Skip, Next::Overdue(OnBlocked::Skip)),
            (1, 10, OnBlocked::Force, Next::Overdue(OnBlocked::Force)),
            (1, 10_000, OnBlocked::Wait, Next::Evict),
        ];
        for (left, lasted, on_blocked, wanted) in cases {
            assert_eq!(next(left, secs(lasted), secs(10), on_blocked), wanted, "{left} {lasted} {on_blocked:?}");
        }
    }
}
