//! Whether the claims that are to be copied can be, asked before anything is touched.

use super::Command;
use crate::input;
use crate::roll::plan::Plan;
use crate::roll::skew::Known;
use crate::roll::volumes::{Copies, NodeVolumes, Volumes as _};
use anyhow::{Context, Result, bail};

const MIB: u64 = 1 << 20;

impl Command<'_> {
    /// Asks the nodes whose claims are copied, and notes that they can; looks for room, and for copies that are to be here.
    pub(super) fn check_copies(&self, plan: &mut Plan) -> Result<()> {
        let copies = Copies::of(&self.settings.run_dir());
        let mut needed = 0;
        for item in plan.nodes.iter_mut().filter(|item| !item.copies.is_empty()) {
            let name = &item.node;
            let named = |volume: &str| item.copies.iter().any(|claim| claim.volume.as_deref() == Some(volume));
            if item.carried {
                let volumes = item.copies.iter().filter_map(|claim| Some((claim, claim.volume.as_deref()?)));
                for (claim, volume) in volumes {
                    let path = copies.path(name, volume);
                    if !input::is_there(&path)? {
                        return input::bad(format!(
                            "the copy of claim {} ({}) is not on this machine: go on where it was made, or give the claim up \
                             with `--lose-data {}`",
                            claim.claim,
                            path.display(),
                            claim.claim
                        ));
                    }
                }
            } else {
                let there = NodeVolumes(self.settings).list(name).with_context(|| {
                    format!(
                        "nothing was touched, as the claims of {name} cannot be copied; `--lose-data` gives them up"
                    )
                })?;
                needed += there.iter().filter(|one| named(&one.name)).map(|one| one.bytes).sum::<u64>();
            }
            item.before.copies = true;
        }
        let room = if needed > 0 { copies.room()? } else { 0 };
        if needed > room {
            bail!(
                "the claims that are to be copied take up to {} MiB, and where {} is there are {} MiB left",
                needed.div_ceil(MIB),
                self.settings.run_dir().display(),
                room / MIB
            );
        }
        Ok(())
    }
}

/// Whether the images that nodes go back to take copies.
pub(super) fn check_taken(plan: &Plan, gets: &dyn Fn(&str) -> Known) -> Result<()> {
    match plan.nodes.iter().find(|item| !item.copies.is_empty() && !gets(&item.node).copies) {
        Some(item) => input::bad(format!(
            "nothing says that the image which {} had before can take copied claims: build one that can, and roll forth \
             (`kimg roll --copy-data`), or give the claims up with `--lose-data`",
            item.node
        )),
        None => Ok(()),
    }
}
