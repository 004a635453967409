//! The spares of a roll: workers that are there for its time, so that no other is missed while it is away. Pure.

use super::plan::{Amount, Claim, Item, Refusal, Situation, Wish, shown};
use crate::machines::NO_IMAGE;

/// How many spares a roll has that may replace so many workers of so many: a percentage is rounded up, as Cluster API does
/// it for `maxSurge`, and more than are replaced would stand in for nobody.
pub fn surge(wanted: Option<Amount>, total: usize, replaced: usize) -> usize {
    let wanted = match wanted {
        None => 0,
        Some(Amount::Number(number)) => number,
        Some(Amount::Percent(percent)) => (total * percent).div_ceil(100),
    };
    wanted.min(replaced)
}

/// How many of `total` workers may be under way at a time: those that may be missed, and those that spares stand in for.
/// Where nothing is said, none is missed with spares, and one without.
pub fn at_a_time(unavailable: Option<Amount>, surge: usize, total: usize) -> usize {
    let unavailable = match unavailable {
        None => usize::from(surge == 0),
        Some(Amount::Number(number)) => number,
        Some(Amount::Percent(percent)) => total * percent / 100,
    };
    (unavailable + surge).max(1)
}

/// What becomes of the spares beside these nodes: as many as are wanted come first, where a worker is replaced, and all
/// leave in the end.
///
/// # Errors
/// A decision is missing about what would go with them.
pub(super) fn items(wish: &Wish, now: &Situation<'_>, others: &[Item]) -> Result<Vec<Item>, Refusal> {
    let is_new = |name: &String| {
        let whole = now.nodes.iter().any(|node| node.name == *name && node.ready && !node.cordoned);
        let machine = now.machines.iter().find(|machine| machine.node == *name);
        whole && machine.is_some_and(|machine| machine.running && wish.images.get(name) == Some(&machine.image))
    };
    let mut spares: Vec<&String> = wish.spares.iter().collect();
    spares.sort_by_key(|name| !is_new(name));
    let wanted = wish.surge.min(others.iter().filter(|item| !item.is_master()).count());
    let mut items = Vec::new();
    for (number, name) in spares.into_iter().enumerate() {
        let node = now.nodes.iter().find(|node| node.name == *name);
        let machine = now.machines.iter().find(|machine| machine.node == *name);
        let to = wish.images.get(name).filter(|_| number < wanted && !is_new(name));
        let (loses, keeps): (Vec<Claim>, Vec<Claim>) =
            now.claims.iter().filter(|claim| claim.node == *name).cloned().partition(|c| wish.lose.contains(&c.claim));
        if !keeps.is_empty() {
            if wish.back {
                // The way back is not kept up by it; it stays.
                continue;
            }
            let list: Vec<String> = keeps.iter().map(shown).collect();
            return Err(Refusal::Mistake(format!(
                "{name} is a spare, which leaves when the roll is over, and with it would go the data of these claims: {}; \
                 give each up with `--lose-data NAMESPACE/CLAIM`, or move it first",
                list.join(", ")
            )));
        }
        let ends: Vec<String> = now.bare_pods.iter().filter(|(of, _)| of == name).map(|(_, pod)| pod.clone()).collect();
        if !ends.is_empty() && !wish.lose_pods && node.is_some_and(|node| node.ready) {
            return Err(Refusal::Mistake(format!(
                "{name} is a spare, which leaves when the roll is over, and nothing would start these pods of it again: {}; \
                 delete them, or give them up with `--lose-pods`",
                ends.join(", ")
            )));
        }
        items.push(Item {
            spare: true,
            // One that is not to be made only goes.
            to: to.cloned().unwrap_or_default(),
            keeps,
            loses,
            ends,
            ..Item::leaving(name, machine)
        });
    }
    Ok(items)
}

/// For people.
pub(super) fn text(item: &Item) -> String {
    match (item.to.is_empty(), item.from == NO_IMAGE) {
        (true, _) => format!("{}: is a spare; drained and removed when all others are there", item.node),
        (false, true) => {
            format!("{}: is made as a spare, and drained and removed when all others are there", item.node)
        }
        (false, false) => {
            format!("{}: is a spare; made anew, and drained and removed when all others are there", item.node)
        }
    }
}
