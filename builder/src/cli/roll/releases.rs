//! Whether a roll's images work together with what the other nodes run, and with the store that is there.

use super::Command;
use crate::input;
use crate::roll::journal::Journal;
use crate::roll::plan::Plan;
use crate::roll::skew::{self, Known, Level, Stand};
use anyhow::{Context, Result};
use node_api::{Release, StoreFormat};

/// Of the images that are built here.
pub(super) fn built(_node: &str) -> Known {
    Known { level: Level::this(), states: Some(Release::this()) }
}

/// Of the images that nodes had before the last roll.
pub(super) fn before(last: &Journal) -> impl Fn(&str) -> Known {
    |node| last.nodes.iter().find(|entry| entry.node == node).map(|entry| entry.before.clone()).unwrap_or_default()
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
        if plan.nodes.is_empty() {
            return Ok(None);
        }
        let masters = self.masters();
        let stand = |node: &str, level: Option<Level>| {
            Some(Stand { node: node.to_owned(), master: masters.contains(&node), level: level? })
        };
        let now: Vec<Stand> = self.kube().nodes()?.iter().filter_map(|node| stand(&node.name, node.level)).collect();
        let then: Vec<Stand> = plan.nodes.iter().filter_map(|item| stand(&item.node, gets(&item.node).level)).collect();
        skew::check(&now, &then).or_else(input::bad)?;
        let highest = |of: &[Stand]| of.iter().filter(|one| one.master).map(|one| one.level).max();
        if let Some((has, new)) = highest(&now).zip(highest(&then)).filter(|(has, new)| new > has) {
            plan.gone = self.kube().gone(new).with_context(|| {
                format!("asking what uses APIs that level {new} has no more, as the masters have {has}")
            })?;
        }
        // A master that says nothing is of before it could, or broken. What its API server cannot read it refuses, and
        // changes nothing.
        let store = self.place.members.store_format().ok().flatten().or(last.and_then(|last| last.store));
        for item in plan.nodes.iter_mut().filter(|item| masters.contains(&item.node.as_str())) {
            item.before.states = self.place.members.states(&item.node).ok().flatten();
            if let Some(store) = &store {
                skew::check_store(&item.node, gets(&item.node).states.as_ref(), store).or_else(input::bad)?;
            }
        }
        Ok(store)
    }
}
