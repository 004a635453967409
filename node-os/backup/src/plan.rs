//! Who keeps backups, when one is due, and which ones go. Pure.

use k8s_openapi::api::core::v1::Node;
use node_api::Backup;
use std::collections::BTreeSet;

/// Workers that keep copies.
const KEEPERS: usize = 2;
/// The newest ones are all kept.
const NEWEST: usize = 6;
/// Of the rest one an hour for a day, and one a day for a week.
const HOURS: u64 = 24;
const DAYS: u64 = 7;
/// What all of them may take together; the newest one may take more.
const MOST_BYTES: u64 = 256 << 20;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// The workers that keep copies: the first ready ones by name, so that all workers come to the same answer.
pub fn keepers(nodes: &[Node]) -> BTreeSet<&str> {
    let mut able: Vec<&str> =
        nodes.iter().filter(|n| is_worker(n) && is_ready(n)).filter_map(|n| n.metadata.name.as_deref()).collect();
    able.sort_unstable();
    able.into_iter().take(KEEPERS).collect()
}

fn is_worker(node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    !labels.is_some_and(|l| l.contains_key("node-role.kubernetes.io/control-plane"))
}

/// A node that is cordoned may be on its way out.
fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let cordoned = node.spec.as_ref().and_then(|s| s.unschedulable).unwrap_or(false);
    ready && !cordoned && node.metadata.deletion_timestamp.is_none()
}

/// Whether it is time for another one. What was taken by a clock that has been put back since then does not count.
pub fn is_due(kept: &[Backup], now_ms: u64, every_ms: u64) -> bool {
    let newest = kept.iter().map(|b| b.taken_unix_ms).filter(|taken| *taken <= now_ms).max();
    newest.is_none_or(|taken| now_ms - taken >= every_ms)
}

/// The copy that speaks against taking one of `revision`: a store's revisions never go back, not even by a restore, so
/// this is another store, of a master that has lost its own. What could bring that one back must not be crowded out.
/// After a week it is taken for what somebody wanted.
pub fn older_store(kept: &[Backup], revision: u64, now_ms: u64) -> Option<&Backup> {
    let young = |backup: &&Backup| now_ms.saturating_sub(backup.taken_unix_ms) < DAYS * DAY_MS;
    kept.iter().filter(|backup| backup.revision > revision).filter(young).max_by_key(|backup| backup.revision)
}

/// The ones that go. Those that seem to come from the future go once there is another.
pub fn outdated(kept: &[Backup], now_ms: u64) -> Vec<Backup> {
    let (mut sorted, future): (Vec<Backup>, Vec<Backup>) =
        kept.iter().cloned().partition(|backup| backup.taken_unix_ms <= now_ms);
    if sorted.is_empty() {
        return Vec::new();
    }
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let mut periods = BTreeSet::new();
    let mut bytes = 0u64;
    let mut gone = future;
    for (i, backup) in sorted.into_iter().enumerate() {
        let age = now_ms.saturating_sub(backup.taken_unix_ms);
        let period = match age {
            _ if age < HOURS * HOUR_MS => Some((HOUR_MS, backup.taken_unix_ms / HOUR_MS)),
            _ if age < DAYS * DAY_MS => Some((DAY_MS, backup.taken_unix_ms / DAY_MS)),
            _ => None,
        };
        let first_of_period = period.is_some_and(|p| periods.insert(p));
        let fits = bytes.saturating_add(backup.bytes) <= MOST_BYTES;
        if i == 0 || (fits && (i < NEWEST || first_of_period)) {
            bytes = bytes.saturating_add(backup.bytes);
        } else {
            gone.push(backup);
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeCondition, NodeSpec, NodeStatus};

    fn node(name: &str, label: Option<&str>, ready: &str, cordoned: bool) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.metadata.labels = label.map(|l| [(l.to_owned(), String::new())].into());
        let condition = NodeCondition { type_: "Ready".into(), status: ready.into(), ..NodeCondition::default() };
        node.status = Some(NodeStatus { conditions: Some(vec![condition]), ..NodeStatus::default() });
        node.spec = Some(NodeSpec { unschedulable: Some(cordoned), ..NodeSpec::default() });
        node
    }

    #[test]
    fn two_ready_workers_keep_copies() {
        let nodes = [
            node("d", None, "True", false),
            node("a", Some("node-role.kubernetes.io/control-plane"), "True", false),
            node("b", None, "Unknown", false),
            node("e", None, "True", false),
            node("c", None, "True", true),
            node("f", None, "True", false),
        ];
        assert_eq!(keepers(&nodes), ["d", "e"].into());
        assert_eq!(keepers(&nodes[..1]), ["d"].into());
        assert!(keepers(&nodes[1..3]).is_empty());
    }

    fn at(taken_unix_ms: u64, bytes: u64) -> Backup {
        Backup { taken_unix_ms, revision: 1, bytes }
    }

    #[test]
    fn one_is_due_after_its_time_or_when_the_clock_went_back() {
        assert!(is_due(&[], 5, 10));
        assert!(!is_due(&[at(100, 1), at(50, 1)], 109, 10));
        assert!(is_due(&[at(100, 1), at(50, 1)], 110, 10));
        assert!(is_due(&[at(100, 1)], 99, 10));
        assert!(!is_due(&[at(100, 1), at(95, 1)], 99, 10));
    }

    #[test]
    fn a_store_that_begins_anew_does_not_crowd_out_the_one_before() {
        let kept = [Backup { revision: 500, ..at(10, 1) }, Backup { revision: 700, ..at(20, 1) }];
        assert_eq!(older_store(&kept, 700, 30), None);
        assert_eq!(older_store(&kept, 701, 30), None);
        assert_eq!(older_store(&kept, 3, 30), Some(&kept[1]));
        assert_eq!(older_store(&kept, 3, 20 + DAYS * DAY_MS), None);
        assert_eq!(older_store(&[], 3, 30), None);
    }

    #[test]
    fn old_ones_thin_out_and_the_newest_stays() {
        let now = 400 * DAY_MS;
        let every = 10 * 60_000;
        // Ten days of one every ten minutes, thinned out after each.
        let mut kept: Vec<Backup> = Vec::new();
        let mut time = now - 10 * DAY_MS;
        while time <= now {
            kept.push(at(time, 1 << 20));
            let gone = outdated(&kept, time);
            kept.retain(|b| !gone.contains(b));
            time += every;
        }
        assert!((30..=40).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept.iter().map(|b| b.taken_unix_ms).max(), Some(now));
        let oldest = kept.iter().map(|b| b.taken_unix_ms).min().unwrap();
        assert!((now - 7 * DAY_MS..=now - 6 * DAY_MS).contains(&oldest));

        assert_eq!(outdated(&[at(9, 1), at(5, 1)], 6), vec![at(9, 1)], "of a clock that was ahead");
        assert!(outdated(&[at(9, 1)], 6).is_empty(), "better than none");

        let large = [at(3, 300 << 20), at(2, 1), at(1, 300 << 20)];
        assert_eq!(outdated(&large, 3), vec![at(2, 1), at(1, 300 << 20)], "only the newest may be too large");
        let large = [at(3, 200 << 20), at(2, 100 << 20), at(1, 1 << 20)];
        assert_eq!(outdated(&large, 3), vec![at(2, 100 << 20)]);
    }
}
