//! The etcd that several masters share: whether one of them may be away, and whether it is back. Pure, but for the trait.

use anyhow::Result;
use node_api::{StoreEngine, StoreMember};

/// What masters are asked about their stores; or a fake of them.
pub trait Members {
    /// The members, as any of the masters sees them.
    fn list(&self) -> Result<Vec<StoreMember>>;

    /// A member leaves; one that is none is no error.
    ///
    /// # Errors
    /// The rest would be no majority, or cannot be asked.
    fn remove(&self, name: &str) -> Result<()>;

    /// Whether this master's own API server is ready.
    ///
    /// # Errors
    /// It is not, and why.
    fn serves(&self, node: &str) -> Result<()>;

    /// Moves the store of a single master to another engine, and says what came of it; one that is there already stays.
    ///
    /// # Errors
    /// [`crate::client::node::Refused`] or bad input: it answered, and has not moved it.
    fn move_store(&self, node: &str, to: StoreEngine) -> Result<String>;
}

/// Why the others need this member; none where they go on without it. One that `leaves` is no member any more then.
pub fn needed(members: &[StoreMember], name: &str, leaves: bool) -> Option<String> {
    let others = || members.iter().filter(|member| !is(member, name));
    // One that does not answer itself is missing already: others may be missing, too, as long as more than half are there.
    // But there is one that joins at a time.
    let missing = members.iter().find(|member| is(member, name)).is_none_or(|member| state(member).is_some());
    let joins = |member: &&StoreMember| member.learner || !member.started;
    if let Some(lame) = others().filter(|member| !missing || joins(member)).find_map(state) {
        return Some(lame);
    }
    let (all, left) = (members.iter().filter(|member| !member.learner).count(), others().filter(|m| m.healthy).count());
    let enough = if leaves && !missing { left > 0 } else { left * 2 > all };
    let named = || others().find_map(state).map_or(String::new(), |lame| format!(" ({lame})"));
    (!enough).then(|| {
        format!("{left} of the {all} members of etcd would be left, and that is not more than half of them{}", named())
    })
}

/// Why this member is not back; none where it is.
pub fn lacks(members: &[StoreMember], name: &str) -> Option<String> {
    match members.iter().find(|member| is(member, name)) {
        Some(member) => state(member),
        None => Some(format!("{name} is no member of etcd")),
    }
}

/// Whether it is the member of the master with this address; one that began as the only one may have another name.
pub fn is(member: &StoreMember, name: &str) -> bool {
    member.name == name || member.peer == format!("https://{name}:2380")
}

/// What is wrong with a member.
fn state(member: &StoreMember) -> Option<String> {
    let what = match member {
        StoreMember { started: false, .. } => "has not started yet",
        StoreMember { learner: true, .. } => "has not caught up with the others yet",
        StoreMember { healthy: false, .. } => "does not answer",
        _ => return None,
    };
    Some(format!("member {} of etcd {what}", member.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> StoreMember {
        StoreMember {
            id: "1".into(),
            name: name.into(),
            peer: format!("https://{name}:2380"),
            learner: false,
            started: true,
            healthy: true,
            leader: false,
        }
    }

    #[test]
    fn a_member_goes_only_where_more_than_half_of_all_are_left() {
        let all = |count: usize| (1..=count).map(|n| member(&n.to_string())).collect::<Vec<_>>();
        assert_eq!(needed(&all(3), "1", false), None);
        assert_eq!(needed(&all(5), "1", false), None);
        for count in [1, 2] {
            let why = needed(&all(count), "1", false).expect("needed");
            assert!(why.contains("not more than half"), "{why}");
        }
        // One that leaves is not counted any more, but for the last one.
        assert_eq!((needed(&all(2), "2", true), needed(&all(1), "1", true).is_some()), (None, true));
        let mut lame = all(3);
        lame[1].healthy = false;
        assert_eq!(needed(&lame, "1", false).as_deref(), Some("member 2 of etcd does not answer"));
        // It is the one that is to go.
        assert_eq!((needed(&lame, "2", false), needed(&lame, "2", true)), (None, None));
        // Two of five are missing, and each of them may be made anew, or go; with a third one none.
        let mut two = all(5);
        (two[3].healthy, two[4].healthy) = (false, false);
        assert_eq!((needed(&two, "4", false), needed(&two, "5", true)), (None, None));
        assert_eq!(needed(&two[..4], "9", false).as_deref(), None, "its member was removed already");
        assert!(needed(&two, "1", false).expect("needed").contains("member 4 of etcd does not answer"));
        two[2].healthy = false;
        let why = needed(&two, "4", false).expect("needed");
        assert!(why.starts_with("2 of the 5 members") && why.contains("member 3 of etcd does not answer"), "{why}");
        two[2] = StoreMember { learner: true, ..member("3") };
        assert!(needed(&two, "4", false).expect("needed").contains("caught up"));
        lame[1] = StoreMember { learner: true, ..member("2") };
        assert!(needed(&lame, "1", true).expect("needed").contains("caught up"));
        assert!(lacks(&lame, "2").is_some() && lacks(&lame, "1").is_none());
        lame[1] = StoreMember { started: false, ..member("2") };
        assert!(lacks(&lame, "2").expect("lacks").contains("started") && lacks(&lame, "9").is_some());
        let first = StoreMember { name: "master-1".into(), ..member("1") };
        assert_eq!(
            (lacks(std::slice::from_ref(&first), "1"), needed(std::slice::from_ref(&first), "2", true)),
            (None, None)
        );
    }
}
