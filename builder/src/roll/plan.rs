//! What a roll would do, or why it must not begin. Pure.

#[cfg(test)]
pub(crate) mod tests;

use super::journal::{Copied, DataAt, Entry, Journal, Outcome, Rules, Step, VERSION};
use super::skew::{Known, Level};
use super::spares;
use crate::logs::line::harmless;
use crate::machines::{Machine, NO_IMAGE, local::short};
use jiff::Timestamp;
use node_api::StoreEngine;
use serde::Serialize;
use std::collections::BTreeMap;
use std::str::FromStr;

/// A node as the API server shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Condition Ready is True.
    pub ready: bool,
    /// Why it is not.
    pub reason: String,
    /// The boot that it last reported from.
    pub boot: String,
    /// It takes no new pods.
    pub cordoned: bool,
    /// A roll has cordoned it.
    pub cordoned_by_roll: bool,
    /// Its kubelet's level of the API, where it has told one.
    pub level: Option<Level>,
    /// All addresses.
    pub addresses: Vec<String>,
}

/// A claim whose volume lies on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Which node.
    pub node: String,
    /// `namespace/name`.
    pub claim: String,
    /// As the volume says it.
    pub size: String,
    /// The pods that use it, without their namespace.
    pub pods: Vec<String>,
    /// Its folder on the node, where it is one of those that can be copied.
    #[serde(skip)]
    pub volume: Option<String>,
}

/// What is known when a roll is planned.
#[derive(Debug)]
pub struct Situation<'a> {
    /// Workers and masters of `cluster.toml`, in its order.
    pub workers: Vec<&'a str>,
    /// As above.
    pub masters: Vec<&'a str>,
    /// Each master's name in the etcd that several share; empty where there is one master.
    pub members: &'a BTreeMap<String, String>,
    /// All nodes that the API server knows.
    pub nodes: &'a [Node],
    /// All machines.
    pub machines: &'a [Machine],
    /// For how long the API is away while the master is replaced, about.
    pub gap_secs: u64,
    /// All claims that are bound to volumes of one node.
    pub claims: &'a [Claim],
    /// `(node, namespace/name)` of pods that nothing would make anew.
    pub bare_pods: &'a [(String, String)],
    /// Nodes whose claims' data is on this machine since a roll that did not come to its end.
    pub carried: &'a BTreeMap<String, Vec<Copied>>,
}

/// What the user wants.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// `workers`, `master`, or nodes; nothing means all nodes that are to have an image.
    pub nodes: Vec<String>,
    /// The image that each node is to have.
    pub images: BTreeMap<String, String>,
    /// It goes back to images of before.
    pub back: bool,
    /// Nodes that come before all others: what the API server shows of them may not be true any more.
    pub first: Vec<String>,
    /// Nodes without local volumes keep their data too.
    pub keep_data: bool,
    /// Claims that may be lost.
    pub lose: Vec<String>,
    /// Claims that are copied to the new machine.
    pub copy: Vec<String>,
    /// The same, where the machine keeps nothing and they are still there.
    pub copy_again: Vec<String>,
    /// Pods may be lost that nothing makes anew.
    pub lose_pods: bool,
    /// Where the stores of single masters go with their images.
    pub stores: BTreeMap<String, StoreEngine>,
    /// Spare workers that there are, or that are to be: they leave in the end.
    pub spares: Vec<String>,
    /// So many of them stand in for workers that are replaced.
    pub surge: usize,
    /// The named masters are lost: their disks are new, and they join the others, whoever else is broken.
    pub lost: bool,
}

/// What would be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The nodes that get another image, in this order.
    pub nodes: Vec<Item>,
    /// What uses APIs that the new images have no more, in lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<String>,
}

/// What would be done with a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Item {
    /// The node.
    pub node: String,
    /// It is a spare: it leaves in the end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub spare: bool,
    /// It is the master: for about so long the API is away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_away_secs: Option<u64>,
    /// It is one of several masters: its name in their etcd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Its store is moved there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<StoreEngine>,
    /// The image that it has.
    pub from: String,
    /// What is known of that.
    #[serde(skip)]
    pub before: Known,
    /// The image that it gets; empty: it leaves the cluster.
    pub to: String,
    /// Why it is made anew though its image is the right one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<String>,
    /// Its data stays.
    pub keep_data: bool,
    /// Local volumes whose claims go on.
    pub keeps: Vec<Claim>,
    /// Local volumes that are copied to the new machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<Claim>,
    /// They are on this machine already.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub carried: bool,
    /// Local volumes that are lost.
    pub loses: Vec<Claim>,
    /// Pods that nothing makes anew.
    pub ends: Vec<String>,
}

/// Why a roll must not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// What was asked for is wrong, or lacks a decision: exit code 2.
    Mistake(String),
    /// A decision is missing for this plan: exit code 2.
    Undecided(Plan, String),
    /// The cluster is not fit for it: exit code 1.
    Unfit(String),
}

/// Decides what to roll, in which order.
///
/// # Errors
/// [`Refusal`]
pub fn make(wish: &Wish, now: &Situation<'_>) -> Result<Plan, Refusal> {
    let mut items = Vec::new();
    let names = chosen(wish, now)?;
    let spares = || wish.spares.iter().map(String::as_str);
    let all: Vec<&str> = names.iter().copied().chain(spares()).collect();
    // Whoever has named a claim wrongly is not told to name it.
    let first_named = |refusal| check_claims_named(wish, now, &all).err().unwrap_or(refusal);
    for name in &names {
        items.extend(item(name, wish, now).map_err(first_named)?);
    }
    items.extend(spares::items(wish, now, &items).map_err(first_named)?);
    let goes: Vec<&str> = items.iter().map(|item| item.node.as_str()).collect();
    check_claims_named(wish, now, &goes)?;
    check_carried(now, &items)?;
    let replaced = |name: &str| items.iter().any(|item| item.node == name);
    let known = |name: &str| now.nodes.iter().find(|node| node.name == name);
    let mut broken: Vec<String> = Vec::new();
    // What cluster.toml names and nobody has made yet is no part of the cluster.
    let made = |name: &str| now.machines.iter().any(|machine| machine.node == name);
    let away = |name: &&&str| known(name).is_none() && made(name) && !replaced(name);
    for name in now.masters.iter().chain(&now.workers).filter(away) {
        broken.push(format!("{name} has not joined"));
    }
    for node in now.nodes.iter().filter(|node| !node.ready && !replaced(&node.name)) {
        broken.push(format!("{} is not Ready ({})", node.name, node.reason));
    }
    // The API server shows a node as it was for a while.
    let down = |name: &str| now.machines.iter().any(|machine| machine.node == name && !machine.running);
    for node in now.nodes.iter().filter(|node| node.ready && down(&node.name) && !replaced(&node.name)) {
        broken.push(format!("the machine {} does not run", node.name));
    }
    // Whether the masters do without the lost one, their etcd says.
    if !broken.is_empty() && !items.is_empty() && !wish.lost {
        return Err(Refusal::Unfit(format!(
            "the cluster is not whole, and a roll would make it worse: {}; bring it back first, or name a broken node \
             to have it replaced (`kimg roll NODE`)",
            broken.join(", ")
        )));
    }
    // What is broken comes first: it costs nothing, and what is whole stays so until the image has proved itself. But no
    // kubelet may be newer than its API server: forth the master comes before the workers, and back after them.
    items.sort_by_key(|item| {
        let whole = known(&item.node).is_some_and(|node| node.ready) && !wish.first.contains(&item.node);
        // A spare stands in until all workers are there, and is no newer than its API server, either.
        match (wish.back, item.is_master(), item.spare) {
            (true, false, true) => (1, 1, false),
            (true, master, _) => (usize::from(whole), if master { 2 } else { 0 }, false),
            (false, true, _) => (0, 0, whole),
            (false, _, true) => (if item.to.is_empty() { 3 } else { 1 }, 0, false),
            (false, ..) => (2, 0, whole),
        }
    });
    Ok(Plan { nodes: items, gone: Vec::new() })
}

/// Decides what to remove: workers that are to leave the cluster, in this order.
///
/// # Errors
/// [`Refusal`]
pub fn remove(wish: &Wish, now: &Situation<'_>) -> Result<Plan, Refusal> {
    let mut items = Vec::new();
    let (mut lost, mut ended) = (Vec::new(), Vec::new());
    for name in &wish.nodes {
        let node = now.nodes.iter().find(|node| node.name == *name);
        let machine = now.machines.iter().find(|machine| machine.node == *name);
        let (loses, keeps): (Vec<Claim>, Vec<Claim>) =
            now.claims.iter().filter(|claim| claim.node == *name).cloned().partition(|c| wish.lose.contains(&c.claim));
        lost.extend(keeps.iter().map(|claim| format!("{name}: {}", shown(claim))));
        let ends: Vec<String> = now.bare_pods.iter().filter(|(of, _)| of == name).map(|(_, pod)| pod.clone()).collect();
        let whole = node.is_some_and(|node| node.ready) && machine.is_some_and(|machine| machine.running);
        if whole && !wish.lose_pods {
            ended.extend(ends.iter().map(|pod| format!("{name}: {pod}")));
        }
        items.push(Item { member: now.members.get(name).cloned(), keeps, loses, ends, ..Item::leaving(name, machine) });
    }
    let names: Vec<&str> = wish.nodes.iter().map(String::as_str).collect();
    check_claims_named(wish, now, &names)?;
    if !lost.is_empty() {
        let why = format!(
            "with the machines would go the data of these claims: {}; give each up with `--lose-data NAMESPACE/CLAIM`, or \
             move it first",
            lost.join(", ")
        );
        return Err(Refusal::Undecided(Plan { nodes: items, gone: Vec::new() }, why));
    }
    if !ended.is_empty() {
        let why = format!(
            "nothing would start these pods again: {}; delete them, or give them up with `--lose-pods`",
            ended.join(", ")
        );
        return Err(Refusal::Undecided(Plan { nodes: items, gone: Vec::new() }, why));
    }
    check_carried(now, &items)?;
    let stays = |node: &&Node| !wish.nodes.contains(&node.name) && !node.ready;
    let broken: Vec<String> =
        now.nodes.iter().filter(stays).map(|node| format!("{} is not Ready ({})", node.name, node.reason)).collect();
    if !broken.is_empty() {
        return Err(Refusal::Unfit(format!(
            "the cluster is not whole, and would be smaller still: {}; bring it back first (`kimg heal`)",
            broken.join(", ")
        )));
    }
    Ok(Plan { nodes: items, gone: Vec::new() })
}

/// The nodes that were asked for, in the order of `cluster.toml`.
fn chosen<'a>(wish: &Wish, now: &Situation<'a>) -> Result<Vec<&'a str>, Refusal> {
    let is_asked = |name: &str, group: &str| {
        let named = |wanted: &String| wanted == name || wanted == group || (group == "master" && wanted == "masters");
        wish.nodes.is_empty() || wish.nodes.iter().any(named)
    };
    let all: Vec<&str> = now.masters.iter().chain(&now.workers).copied().collect();
    for name in &wish.nodes {
        if !["workers", "master", "masters"].contains(&name.as_str()) && !all.contains(&name.as_str()) {
            return Err(Refusal::Mistake(format!(
                "{name} is no node of cluster.toml; say `workers`, `master`, or some of: {}",
                all.join(", ")
            )));
        }
    }
    let masters = now.masters.iter().filter(|name| is_asked(name, "master"));
    Ok(masters.chain(now.workers.iter().filter(|name| is_asked(name, "workers"))).copied().collect())
}

/// What a node needs; none where nothing.
fn item(name: &str, wish: &Wish, now: &Situation<'_>) -> Result<Option<Item>, Refusal> {
    let Some(to) = wish.images.get(name) else { return Ok(None) };
    let node = now.nodes.iter().find(|node| node.name == name);
    let named = wish.nodes.iter().any(|wanted| wanted == name);
    let Some(machine) = now.machines.iter().find(|machine| machine.node == name) else {
        return match (named, node) {
            (false, None) => Ok(None),
            _ => Err(Refusal::Unfit(format!("there is no machine {name}; `kimg up` makes it"))),
        };
    };
    let broken = match node {
        Some(node) if node.ready && machine.running => None,
        _ if !machine.running => Some("its machine does not run".to_string()),
        Some(node) => Some(format!("it is not Ready: {}", node.reason)),
        None => Some("it has not joined".to_string()),
    };
    let current = machine.image == *to;
    let carried = now.carried.get(name);
    // A broken node with the right image is made anew only where it was named, or where it lacks its data.
    if current && carried.is_none() && (broken.is_none() && !wish.lost || !named) {
        return Ok(None);
    }
    let master = now.masters.contains(&name);
    let member = now.members.get(name).cloned();
    let (loses, keeps): (Vec<Claim>, Vec<Claim>) =
        now.claims.iter().filter(|claim| claim.node == name).cloned().partition(|c| wish.lose.contains(&c.claim));
    let (copies, keeps) = copied(wish, machine, carried, keeps)?;
    if !keeps.is_empty() && (!machine.keeps_data || carried.is_some()) {
        let list: Vec<String> = keeps.iter().map(shown).collect();
        return Err(Refusal::Mistake(format!(
            "{name} holds data that goes with its machine: {}; have each copied to the new one with `--copy-data NAMESPACE/CLAIM`, \
             give it up with `--lose-data NAMESPACE/CLAIM`, or move it first",
            list.join(", ")
        )));
    }
    let ends: Vec<String> = now.bare_pods.iter().filter(|(node, _)| node == name).map(|(_, pod)| pod.clone()).collect();
    // A node that does not answer has lost them already.
    if !ends.is_empty() && !wish.lose_pods && broken.is_none() {
        return Err(Refusal::Mistake(format!(
            "nothing would start these pods of {name} again: {}; delete them, or give them up with `--lose-pods`",
            ends.join(", ")
        )));
    }
    Ok(Some(Item {
        node: name.to_string(),
        spare: false,
        api_away_secs: (master && member.is_none()).then_some(now.gap_secs),
        store: wish.stores.get(name).copied(),
        from: machine.image.clone(),
        before: Known { level: node.and_then(|node| node.level), ..Known::default() },
        to: to.clone(),
        broken: broken
            .filter(|_| current || node.is_none_or(|node| !node.ready))
            .or_else(|| (current && carried.is_some()).then(|| "it lacks the data of its claims".to_owned())),
        // One of several may have it from the others.
        keep_data: master && !wish.lost && (member.is_none() || machine.keeps_data)
            || machine.keeps_data && (wish.keep_data || !keeps.is_empty()) && copies.is_empty(),
        member,
        keeps,
        carried: carried.is_some() && !copies.is_empty(),
        copies,
        loses,
        ends,
    }))
}

/// Which of a machine's claims are copied, and which are kept as they are. Those whose copies are here are copied on; what
/// is on a data volume stays there, and on a disk that stays for another claim all do.
fn copied(
    wish: &Wish,
    machine: &Machine,
    carried: Option<&Vec<Copied>>,
    claims: Vec<Claim>,
) -> Result<(Vec<Claim>, Vec<Claim>), Refusal> {
    let wanted = |claim: &Claim| match carried {
        Some(carried) => carried.iter().any(|one| one.claim == claim.claim),
        None if machine.on_volume || machine.keeps_data && wish.keep_data => false,
        None if machine.keeps_data => wish.copy.contains(&claim.claim),
        None => wish.copy.contains(&claim.claim) || wish.copy_again.contains(&claim.claim),
    };
    let (mut copies, mut keeps): (Vec<Claim>, Vec<Claim>) = claims.into_iter().partition(wanted);
    if machine.keeps_data && carried.is_none() && !keeps.is_empty() {
        keeps.append(&mut copies);
    }
    match copies.iter().find(|claim| claim.volume.is_none()) {
        Some(claim) => Err(Refusal::Mistake(format!(
            "--copy-data {}: its volume is none of the default class, and kimg copies no other; give it up with \
             `--lose-data NAMESPACE/CLAIM`, or move it first",
            claim.claim
        ))),
        None => Ok((copies, keeps)),
    }
}

/// No copy that somebody still waits for is forgotten.
fn check_carried(now: &Situation<'_>, items: &[Item]) -> Result<(), Refusal> {
    let left = |node: &&String| !items.iter().any(|item| item.node == **node);
    match now.carried.keys().find(left) {
        Some(node) if !items.is_empty() => Err(Refusal::Unfit(format!(
            "the data of {node} was copied to this machine by a roll that did not come to its end, and {node} still waits for \
             it: `kimg roll {node}`, or `kimg roll --rollback`, first"
        ))),
        _ => Ok(()),
    }
}

/// Each claim that was named is bound on one of the nodes that go; where none goes, nothing is to be decided.
fn check_claims_named(wish: &Wish, now: &Situation<'_>, nodes: &[&str]) -> Result<(), Refusal> {
    if let Some(claim) = wish.copy.iter().find(|claim| wish.lose.contains(claim)) {
        return Err(Refusal::Mistake(format!(
            "{claim} is named with --copy-data and with --lose-data; say one of them"
        )));
    }
    let of_them = now.claims.iter().filter(|claim| nodes.contains(&claim.node.as_str()));
    let held: Vec<&str> = of_them.map(|claim| claim.claim.as_str()).collect();
    let copied = wish.copy.iter().map(|claim| ("--copy-data", claim));
    let lost = wish.lose.iter().map(|claim| ("--lose-data", claim));
    match copied.chain(lost).find(|(_, claim)| !held.contains(&claim.as_str())) {
        Some((flag, claim)) if !nodes.is_empty() => Err(Refusal::Mistake(format!(
            "{flag} {claim}: no node that goes holds a volume of it; {}",
            match held.as_slice() {
                [] => "they hold none of any claim, so leave it out".to_owned(),
                held => format!("write NAMESPACE/CLAIM, one of: {}", held.join(", ")),
            }
        ))),
        _ => Ok(()),
    }
}

/// For people.
pub fn shown(claim: &Claim) -> String {
    let pods = if claim.pods.is_empty() { "no pod".to_string() } else { claim.pods.join(", ") };
    format!("{} ({}, {pods})", claim.claim, claim.size)
}

/// There are two.
pub(super) fn other_engine(engine: StoreEngine) -> StoreEngine {
    match engine {
        StoreEngine::Embedded => StoreEngine::Etcd,
        StoreEngine::Etcd => StoreEngine::Embedded,
    }
}

impl Claim {
    /// As a journal says it.
    fn copied(&self) -> Option<Copied> {
        Some(Copied { claim: self.claim.clone(), volume: self.volume.clone()?, lost: false })
    }
}

impl Item {
    /// A node that goes, with its machine where it has one.
    pub(super) fn leaving(name: &str, machine: Option<&Machine>) -> Item {
        Item {
            node: name.to_owned(),
            spare: false,
            api_away_secs: None,
            member: None,
            store: None,
            from: machine.map_or_else(|| NO_IMAGE.to_owned(), |machine| machine.image.clone()),
            before: Known::default(),
            to: String::new(),
            broken: None,
            keep_data: false,
            keeps: Vec::new(),
            copies: Vec::new(),
            carried: false,
            loses: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Whether it serves the API.
    pub fn is_master(&self) -> bool {
        self.api_away_secs.is_some() || self.member.is_some()
    }
}

impl Plan {
    /// The journal of a roll that does this.
    pub fn journal(&self, rules: Rules, whole: Vec<String>, back: bool, now: Timestamp) -> Journal {
        let entry = |item: &Item| Entry {
            node: item.node.clone(),
            master: item.is_master(),
            spare: item.spare,
            member: item.member.clone(),
            store: item.store,
            moved: false,
            from: item.from.clone(),
            before: item.before.clone(),
            to: item.to.clone(),
            keep_data: item.keep_data,
            lose: item.loses.iter().map(|claim| claim.claim.clone()).collect(),
            copy: item.copies.iter().filter_map(Claim::copied).collect(),
            data: if item.carried { DataAt::Here } else { DataAt::Old },
            step: Step::Waiting,
            since: now,
            boot: String::new(),
            token: None,
            why: None,
        };
        let nodes = self.nodes.iter().map(entry).collect();
        Journal { version: VERSION, started: now, back, rules, whole, nodes, outcome: Outcome::Running, store: None }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        for item in &self.nodes {
            if item.spare || item.to.is_empty() {
                let what = if item.member.is_some() { "leaves etcd" } else { "is drained" };
                lines.push(match item.spare {
                    true => spares::text(item),
                    false => format!("{}: {what} and is removed, with all that is on its disk", item.node),
                });
                lines.extend(item.loses.iter().map(|claim| format!("  IS LOST: claim {}", shown(claim))));
                // No plan with one of these is carried out.
                lines.extend(item.keeps.iter().map(|claim| format!("  undecided: claim {}", shown(claim))));
                lines.extend(item.ends.iter().map(|pod| format!("  ends: pod {pod}, which nothing starts again")));
                continue;
            }
            let data = match (item.keep_data, &item.member) {
                (true, Some(_)) => "keeps its data; the other masters serve meanwhile",
                (false, Some(_)) => "gets a new disk, and the store from the other masters, which serve meanwhile",
                (true, None) => "keeps its data",
                (false, None) => "gets a new disk",
            };
            let images = match &item.broken {
                Some(broken) if item.from == item.to => format!("{}, again ({broken})", short(&item.to)),
                Some(broken) => format!("{} to {} ({broken})", short(&item.from), short(&item.to)),
                None => format!("{} to {}", short(&item.from), short(&item.to)),
            };
            lines.push(match item.api_away_secs {
                Some(secs) => format!(
                    "{}: image {images}; {}; the API is away for about {secs} s, pods run on",
                    item.node,
                    match item.store {
                        None => "keeps its store",
                        Some(StoreEngine::Etcd) => "its store moves to etcd",
                        Some(StoreEngine::Embedded) => "its store moves to the embedded one",
                    }
                ),
                None => format!("{}: image {images}; {data}", item.node),
            });
            lines.extend(item.keeps.iter().map(|claim| format!("  stays: claim {}", shown(claim))));
            let through = if item.carried { "from this machine, where it is" } else { "through this machine" };
            lines.extend(item.copies.iter().map(|claim| format!("  is copied {through}: claim {}", shown(claim))));
            lines.extend(item.loses.iter().map(|claim| format!("  IS LOST: claim {}", shown(claim))));
            lines.extend(item.ends.iter().map(|pod| format!("  ends: pod {pod}, which nothing starts again")));
        }
        lines.extend(self.gone.iter().map(|line| harmless(line)));
        lines.join("\n")
    }
}

/// A number of nodes, or a part of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So many.
    Number(usize),
    /// So many of a hundred.
    Percent(usize),
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Amount, String> {
        let wrong = || format!("{text} is neither a number from 1 nor a percentage up to 100%");
        match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|p| *p <= 100).map(Amount::Percent).ok_or_else(wrong),
            None => text.parse().ok().filter(|n| *n > 0).map(Amount::Number).ok_or_else(wrong),
        }
    }
}

impl Amount {
    /// Where none may be meant, too.
    ///
    /// # Errors
    /// A sentence.
    pub fn or_none(text: &str) -> Result<Amount, String> {
        if text == "0" { Ok(Amount::Number(0)) } else { text.parse() }
    }

    /// How many of `total` nodes may be away: rounded down as Cluster API does it for `maxUnavailable`, and one where that
    /// leaves none, since without surge nothing would ever be replaced.
    pub fn unavailable_of(self, total: usize) -> usize {
        match self {
            Amount::Number(number) => number,
            Amount::Percent(percent) => total * percent / 100,
        }
        .max(1)
    }
}
