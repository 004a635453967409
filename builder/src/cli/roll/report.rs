//! What came of a roll.

use super::Command;
use crate::hint::{dir_flag, next, program};
use crate::roll::journal::{Journal, Outcome, Step};
use anyhow::{Context, Result};
use serde_json::json;
use std::path::PathBuf;

impl Command<'_> {
    pub(super) fn report(&self, journal: &Journal, outcome: Outcome, backup: Option<PathBuf>) -> Result<()> {
        if self.args.json {
            let answer = json!({"outcome": outcome, "backup": backup, "nodes": journal.nodes});
            println!("{}", serde_json::to_string_pretty(&answer).context("writing JSON")?);
            return Ok(());
        }
        let named = |step: Step, leave: bool| {
            let of = journal.nodes.iter().filter(move |entry| entry.step == step && entry.leaves() == leave);
            of.map(|entry| entry.node.as_str()).collect::<Vec<_>>()
        };
        let (done, removed) = (named(Step::Done, false), named(Step::Done, true));
        for (what, nodes) in [("replaced", &done), ("removed", &removed)] {
            if !nodes.is_empty() {
                println!("{what}: {}", nodes.join(", "));
            }
        }
        if !(done.is_empty() && removed.is_empty()) {
            match (self.place.after)() {
                Ok(lines) => lines.iter().for_each(|line| println!("{line}")),
                // The roll itself went as it is told below.
                Err(error) => eprintln!("kimg: what is to be done after it is not known: {error:#}"),
            }
        }
        for entry in journal.nodes.iter().filter(|entry| entry.step == Step::Skipped) {
            println!("skipped: {}: {}", entry.node, entry.why.as_deref().unwrap_or_default());
        }
        if let Some(failed) = journal.failed() {
            let (waiting, dir) = (named(Step::Waiting, journal.removes()), dir_flag(self.settings));
            let why = failed.why.as_deref().unwrap_or_default();
            // Of a drain the sentence names the node itself.
            match why.starts_with(&format!("{} ", failed.node)) {
                true => println!("failed: {why}"),
                false => println!("failed: {}: {why}", failed.node),
            }
            if !waiting.is_empty() {
                println!("not touched: {}", waiting.join(", "));
            }
            if journal.heals() || journal.removes() {
                return Ok(());
            }
            println!(
                "The roll has stopped. `{0} roll --rollback{dir}` puts the images of before back; with what was wrong put right, \
                 and a new image built where it was that, `{0} roll{dir}` begins anew. What else may be done with a node that \
                 is not drained says `{0} roll --help` (--on-blocked).",
                program()
            );
        }
        next(&format!("{} status{}", program(), dir_flag(self.settings)));
        Ok(())
    }
}
