//! The store's members, as the operator sees and removes them.

use std::time::Duration;

use futures::future::join_all;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use store::{EtcdOptions, Member, MemberStatus, Members, Membership};

use super::Place;

/// A healthy member says at once how it is.
const STATUS: Duration = Duration::from_secs(3);

/// A member with what it says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Shown {
    id: String,
    name: String,
    peer: String,
    learner: bool,
    started: bool,
    healthy: bool,
    leader: bool,
}

/// Which member is to go.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Remove {
    name: String,
}

/// Why nothing was shown or done.
#[derive(Debug)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) String);

impl From<store::StoreError> for Refused {
    fn from(error: store::StoreError) -> Refused {
        Refused(StatusCode::SERVICE_UNAVAILABLE, format!("the store's members cannot be asked: {error}"))
    }
}

fn options(place: &Place) -> Result<&EtcdOptions, Refused> {
    let embedded = "the store of this master is embedded, and has no members";
    place.etcd.as_ref().ok_or_else(|| Refused(StatusCode::CONFLICT, embedded.into()))
}

pub(super) async fn list(place: &Place) -> Result<Vec<Shown>, Refused> {
    let options = options(place)?;
    let members = Membership::new(&options.members)?.list().await?;
    let said = join_all(members.iter().map(|member| status(&options.members, member))).await;
    Ok(shown(&members, &said))
}

/// What a member says of itself; none: it does not, or another one sits there.
async fn status(access: &Members, member: &Member) -> Option<MemberStatus> {
    let endpoints = vec![member.client_urls.last()?.clone()];
    let membership = Membership::new(&Members { endpoints, ..access.clone() }).ok()?;
    let status = tokio::time::timeout(STATUS, membership.status()).await.ok()?.ok()?;
    (status.id == member.id).then_some(status)
}

fn shown(members: &[Member], said: &[Option<MemberStatus>]) -> Vec<Shown> {
    let leads = |id: u64| said.iter().flatten().any(|status| status.id == id && status.leader == id);
    let shown = members.iter().zip(said).map(|(member, status)| Shown {
        id: format!("{:x}", member.id),
        name: if member.name.is_empty() { member.host() } else { member.name.clone() },
        peer: member.peer_urls.first().cloned().unwrap_or_default(),
        learner: member.learner,
        started: member.started(),
        healthy: status.as_ref().is_some_and(|status| status.leader != 0 && status.errors.is_empty()),
        leader: leads(member.id),
    });
    shown.collect()
}

/// Removes a member, if the rest are a healthy majority of themselves; gives the list after it.
pub(super) async fn remove(place: &Place, wanted: &Remove) -> Result<Vec<Shown>, Refused> {
    let options = options(place)?;
    let membership = Membership::new(&options.members)?;
    let members = membership.list().await?;
    let said = join_all(members.iter().map(|member| status(&options.members, member))).await;
    let name = &wanted.name;
    let found = members.iter().position(|member| member.name == *name || member.host() == *name);
    let Some(at) = found else {
        let all: Vec<String> = shown(&members, &said).into_iter().map(|member| member.name).collect();
        let why = format!("the store has no member {name}; it has {}", all.join(", "));
        return Err(Refused(StatusCode::NOT_FOUND, why));
    };
    let own = membership.status().await?.id;
    if members.len() > 1 && members[at].id == own {
        let why = format!("{name} is the member of the master that was asked; have another master remove it");
        return Err(Refused(StatusCode::CONFLICT, why));
    }
    if let Some(why) = keeps_no_majority(&shown(&members, &said), at) {
        return Err(Refused(StatusCode::CONFLICT, why));
    }
    // etcd has the last word.
    let refused = |error| Refused(StatusCode::CONFLICT, format!("{name} was not removed: {error}"));
    membership.remove(members[at].id).await.map_err(refused)?;
    list(place).await
}

/// Why the store would not go on without the member `at`.
fn keeps_no_majority(members: &[Shown], at: usize) -> Option<String> {
    let rest: Vec<&Shown> =
        members.iter().enumerate().filter(|(place, member)| *place != at && !member.learner).map(|(_, m)| m).collect();
    let healthy = rest.iter().filter(|member| member.healthy).count();
    if healthy * 2 > rest.len() {
        return None;
    }
    let name = &members[at].name;
    let ill: Vec<&str> = rest.iter().filter(|member| !member.healthy).map(|member| member.name.as_str()).collect();
    Some(match ill.as_slice() {
        [] => format!("{name} is the store's only member that has a vote"),
        ill => format!(
            "without {name} only {healthy} of {} members would be healthy, and no majority: bring {} back, or remove it \
             first",
            rest.len(),
            ill.join(", ")
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `h`: healthy, `i`: ill, `l`: a healthy learner.
    fn members(kinds: &str) -> Vec<Shown> {
        let member = |(place, kind)| Shown {
            id: format!("{place}"),
            name: format!("10.77.0.1{place}"),
            peer: String::new(),
            learner: kind == 'l',
            started: true,
            healthy: kind != 'i',
            leader: false,
        };
        kinds.chars().enumerate().map(member).collect()
    }

    #[test]
    fn the_rest_stays_a_healthy_majority() {
        for (kinds, at, kept) in [
            ("hhh", 0, true),
            ("hhi", 2, true),
            ("hhi", 0, false),
            ("hi", 0, false),
            ("hi", 1, true),
            ("hh", 0, true),
            ("h", 0, false),
            ("hl", 1, true),
            ("hl", 0, false),
            ("hhhii", 0, false),
            ("hhhhi", 0, true),
            ("hhhii", 4, true),
        ] {
            let why = keeps_no_majority(&members(kinds), at);
            assert_eq!(why.is_none(), kept, "{kinds} without {at}: {why:?}");
        }
        let why = keeps_no_majority(&members("hhi"), 0).unwrap();
        assert!(why.contains("1 of 2") && why.contains("bring 10.77.0.12 back"), "{why}");
    }
}
