//! Whether a roll's images work together with what the other nodes run, and with the store that is there.

use super::Command;
use crate::input;
use crate::roll::journal::Journal;
use crate::roll::plan::{Item, Plan};
use crate::roll::skew::{self, Known, Level, Stand};
use anyhow::{Context, Result};
use node_api::{Release, StoreFormat};

/// Of the images that are built here.
pub(super) fn built(_node: &str) -> Known {
    Known { level: Level::this(), asked: true, states: Some(Release::this()), copies: true }
}

/// Of the images that nodes had before the last roll.
pub(super) fn before(last: &Journal) -> impl Fn(&str) -> Known {
    |node| last.nodes.iter().find(|entry| entry.node == node).map(|entry| entry.before.clone()).unwrap_or_default()
}

/// What a master said; none where it did not answer.
fn said<T>(what: &str, answer: Result<T>) -> Option<T> {
    answer.inspect_err(|error| tracing::debug!("{what}: {error:#}")).ok()
}

impl Command<'_> {
    /// Notes in the plan what is known of the images that its nodes have, for the way back; gives what the store is
    /// written in. `gets`: what is known of the images that they would get.
    ///
    /// # Errors
    /// Bad input: what would not work together.
    pub(super) fn check_releases(
        &self,
        plan: &mut Plan,
        gets: &dyn Fn(&str) -> Known,
        last: Option<&Journal>,
    ) -> Result<Option<StoreFormat>> {
        let known = last.and_then(|last| last.store);
        if plan.nodes.is_empty() {
            return Ok(known);
        }
        let masters = self.masters();
        let stand = |node: &str, level: Option<Level>| {
            Some(Stand { node: node.to_owned(), master: masters.contains(&node), level: level? })
        };
        // What is no node of cluster.toml may say what it likes, and of one that gets nobody knows what nothing is compared.
        let ours = |name: &str| self.settings.nodes.iter().any(|node| node.entry.name == name);
        // Nor with one that leaves.
        let leaves = |item: &Item| item.to.is_empty();
        let blank = |name: &str| {
            plan.nodes.iter().any(|item| item.node == name && (leaves(item) || gets(name).level.is_none()))
        };
        let there = self.kube().nodes()?;
        let there = there.iter().filter(|node| ours(&node.name) && !blank(&node.name));
        let now: Vec<Stand> = there.filter_map(|node| stand(&node.name, node.level)).collect();
        let then = plan.nodes.iter().filter(|item| !leaves(item));
        let then: Vec<Stand> = then.filter_map(|item| stand(&item.node, gets(&item.node).level)).collect();
        skew::check(&now, &then).or_else(input::bad)?;
        let highest = |of: &[Stand]| of.iter().filter(|one| one.master).map(|one| one.level).max();
        if let Some((has, new)) = highest(&now).zip(highest(&then)).filter(|(has, new)| new > has) {
            plan.gone = self.kube().gone(new).with_context(|| {
                format!("asking what uses APIs that level {new} has no more, as the masters have {has}")
            })?;
        }
        // Where masters are broken, what the journal says has to do.
        let store = said("the store's format", self.place.members.store_format()).flatten().or(known);
        for item in plan.nodes.iter_mut().filter(|item| masters.contains(&item.node.as_str())) {
            if let Some(states) = said(&item.node, self.place.members.states(&item.node)) {
                (item.before.asked, item.before.states) = (true, states);
            }
            // One that is moved to another engine is written anew there, in what all releases read.
            if let Some(store) = store.as_ref().filter(|_| item.store.is_none()) {
                gets(&item.node).check_store(&item.node, store).or_else(input::bad)?;
            }
        }
        Ok(store)
    }
}
