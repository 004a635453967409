//! One of several masters at a provider: its machine gets a new disk under its addresses, or another is made where it is
//! gone, and it joins the others.

use super::{HealArgs, chosen};
use crate::cli::image::built_images;
use crate::cli::roll::{self, Place, RollArgs};
use crate::cloud::up::write_kubeconfig;
use crate::config::Settings;
use crate::heal::{self, Lost};
use crate::hint::{dir_flag, next, program};
use crate::input;
use crate::local::interrupt::Interrupt;
use crate::machines::NO_IMAGE;
use crate::machines::local::short;
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::roll::journal::Outcome;
use crate::roll::members::{self, Members};
use anyhow::{Context, Result, bail};
use node_metadata::Role;
use std::time::Instant;

pub(super) fn member(args: &HealArgs, named: &str, settings: &Settings) -> Result<()> {
    let begun = Instant::now();
    let name = roll::at_place(settings, |secrets, place, machines| {
        let listed = machines.list()?;
        let has_disk = |name: &str| listed.iter().any(|one| one.node == name && one.image != NO_IMAGE);
        let lost = |name: &str| Lost { answers: place.members.serves(name).is_ok(), has_disk: has_disk(name) };
        let name = chosen(settings, named, args.discard_disk, &lost)?;
        // What is made anew already is gone on with.
        let again = roll::heals(settings, name)?;
        if !again {
            heal::check_member(name, lost(name), args.discard_disk)?;
            let needed = match place.members.list() {
                Ok(list) => members::needed(&list, name, false),
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(why) = needed {
                bail!(
                    "{name} cannot join the other masters, and nothing was touched: {why}. `kimg up{0}` starts those that are \
                     switched off, and more than half of all must answer. Where that many are lost, `kimg destroy{0}` and \
                     `kimg restore{0}` begin anew with a copy of the store",
                    dir_flag(settings)
                );
            }
        }
        if args.choice.name.is_some() || args.choice.node.is_some() {
            return input::bad(
                "the other masters have the store, and no backup is restored; leave --name and --node out",
            );
        }
        let image = heal::image(machines, name, || {
            let mut images = built_images(settings, &[Role::Master], args.components.as_deref(), &Progress::new())?;
            images.remove(&Role::Master).context("there is no master image")
        })?;
        let image = short(&image).to_owned();
        if !again {
            println!(
                "{name} gets a new disk from image {image} (where its machine is gone, another is made, of the same type and \
                 price, with other addresses), and joins the other masters"
            );
            if !args.yes && !input::agreed("Go on?")?.unwrap_or(false) {
                return input::bad("nothing was changed; --yes says yes in advance");
            }
        }
        let roll = RollArgs { nodes: vec![name.to_owned()], fail_at: args.fail_at.clone(), ..RollArgs::plain() };
        let interrupt = Interrupt::watch()?;
        match roll::heal(&roll, Some(&image), settings, secrets, place, machines, &interrupt)? {
            Some(Outcome::Done) => {}
            _ => bail!("{name} is not back"),
        }
        point_at_one(settings, secrets, place)?;
        Ok(name.to_owned())
    })?;
    println!("{name} is back after {:.0} s, a member of etcd", begun.elapsed().as_secs_f64());
    next(&format!("{} status{}", program(), dir_flag(settings)));
    Ok(())
}

/// The kubeconfig may name the address of a machine that is gone.
fn point_at_one(settings: &Settings, secrets: &Secrets, place: &Place<'_>) -> Result<()> {
    let masters = || settings.nodes_of(Role::Master).map(|node| node.entry.name.as_str());
    let serves = masters().find(|name| place.members.serves(name).is_ok());
    let at = place.members.address(serves.context("no master's API server answers")?)?;
    write_kubeconfig(settings, secrets, at).map(drop)
}
