//! `kimg up`, `down`, and the hidden switch process.

use crate::config::{ProviderName, Settings};
use crate::hint::{dir_flag, next, program, shown};
use crate::input;
use crate::kubectl;
use crate::local;
use crate::local::state::State;
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::switch::Rules;
use anyhow::{Result, bail};
use node_metadata::Role;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct UpArgs {
    /// Folder with kimg-node, kimg-control and kimg-stage1
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(super) components: Option<PathBuf>,
    /// At a provider: do not ask
    #[arg(long)]
    pub(super) yes: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct DownArgs {
    /// Remove the VMs' disks too: everything that the cluster holds
    #[arg(long)]
    delete: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) fn up(args: &UpArgs, settings: &Settings) -> Result<()> {
    if settings.provider.is_some() {
        return super::cloud::up(args.yes, args.components.as_deref(), settings);
    }
    // Before images are built for VMs that could not run.
    if let Some(fault) = &settings.local.fault {
        return Err(fault.clone().into());
    }
    let progress = Progress::new();
    let images = super::image::ensure_images(settings, args.components.as_deref(), &progress)?;
    let up = local::up::up(settings, &images, &progress)?;
    match up.boot_time {
        Some(time) => println!(
            "cluster {}: {} nodes Ready after {:.1} s ({})",
            settings.name,
            up.nodes.iter().filter(|n| n.ready).count(),
            time.as_secs_f64(),
            up.accel.as_str()
        ),
        None => println!("cluster {}: all nodes were running and are Ready", settings.name),
    }
    for (guest, host) in &up.node_ports {
        let why = if guest == host { String::new() } else { format!(" (port {guest} of this machine is taken)") };
        println!("NodePort {guest}: http://127.0.0.1:{host}/{why}");
    }
    if !up.outdated.is_empty() {
        println!(
            "run an older image than the built one: {} (`roll` replaces them one by one while the cluster runs; `down` and `up` start all from the new one, with their data)",
            up.outdated.join(", ")
        );
    }
    let found = kubectl::find();
    let kubectl = found.as_deref().map_or("kubectl".to_string(), shown);
    println!("use it:  {kubectl} --kubeconfig {} get nodes -o wide", shown(&up.kubeconfig));
    if found.is_none() {
        println!("         this machine has no kubectl; `{} doctor --kubectl` fetches Debian's", program());
    }
    println!("end it:  {} down{}", program(), dir_flag(settings));
    Ok(())
}

pub(super) fn down(args: &DownArgs, settings: &Settings) -> Result<()> {
    if let Some(provider) = &settings.provider {
        if args.delete {
            return input::bad(format!("the machines are at {}; `kimg destroy` removes them", provider.name.as_str()));
        }
        return switch_off(settings, provider.name);
    }
    if args.delete && !args.yes {
        agree_to_delete(&State::load(&settings.run_dir())?, input::agreed)?;
    }
    let done = local::down::down(settings, args.delete, &Progress::new())?;
    if done.clean.is_empty() && done.forced.is_empty() {
        println!("cluster {}: no VM was running", settings.name);
    } else {
        println!(
            "cluster {}: stopped {}",
            settings.name,
            [done.clean.clone(), done.forced.clone()].concat().join(", ")
        );
    }
    if !done.forced.is_empty() {
        println!("did not power off by themselves and were ended: {}", done.forced.join(", "));
    }
    if done.deleted {
        println!("their disks are removed");
    }
    next(&format!("{} up{}", program(), dir_flag(settings)));
    Ok(())
}

/// Where there is something that would be lost.
fn agree_to_delete(state: &State, ask: impl FnOnce(&str) -> Result<Option<bool>>) -> Result<()> {
    if state.vms.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = state.vms.keys().map(String::as_str).collect();
    println!(
        "The disks of {} are removed, and with them all that the cluster holds; cluster.toml, secrets/ and backups/ stay.",
        names.join(", ")
    );
    if !ask("Go on?")?.unwrap_or(false) {
        return input::bad(
            "nothing was changed; --yes says yes in advance, and `kimg down` without --delete keeps the disks",
        );
    }
    Ok(())
}

/// At a provider: workers first, then the master, as [`local::down::down`] does it.
fn switch_off(settings: &Settings, at: ProviderName) -> Result<()> {
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    super::cloud::roll(settings, &secrets, |machines, _, _| {
        for role in [Role::Worker, Role::Master] {
            for node in settings.nodes_of(role) {
                let name = &node.entry.name;
                eprintln!("{name}: powering off");
                if !machines.switch_off(name)? {
                    bail!(
                        "{name} does not power off; nothing after it was touched. `kimg node --node {name} status` may tell \
                         why, and `kimg up` starts what is off"
                    );
                }
            }
        }
        let costs = match at {
            // They are somebody's own.
            ProviderName::Proxmox => String::new(),
            ProviderName::Gcp | ProviderName::Aws => {
                format!("; {} charges for the disks and the master's address all the same", at.as_str())
            }
            _ => format!("; {} charges for them all the same", at.as_str()),
        };
        println!("cluster {}: all machines are off, with their data{costs}", settings.name);
        next(&format!("{} up{}", program(), dir_flag(settings)));
        Ok(())
    })
}

#[derive(Debug, clap::Args)]
pub(super) struct SwitchArgs {
    /// Change the running switch's rules for these nodes (`all`: every node)
    #[arg(long, value_name = "NODE")]
    set: Vec<String>,
    /// Drop what the node sends under a foreign address
    #[arg(long, requires = "set")]
    check_source: bool,
    /// Unplug the node
    #[arg(long, requires = "set")]
    cut: bool,
    /// Part of the frames towards the node that gets lost, 0.0 to 1.0
    #[arg(long, requires = "set", default_value_t = 0.0)]
    loss: f64,
    /// Milliseconds that frames towards the node are late
    #[arg(long, requires = "set", default_value_t = 0)]
    delay_ms: u64,
    /// Put back what cluster.toml says
    #[arg(long, requires = "set")]
    reset: bool,
}

pub(super) fn switch(args: &SwitchArgs, settings: &Settings) -> Result<()> {
    if args.set.is_empty() {
        return local::switch::run(settings);
    }
    let nodes = if args.set.iter().any(|n| n == "all") {
        settings.nodes.iter().map(|n| n.entry.name.clone()).collect()
    } else {
        for name in &args.set {
            settings.node(name)?;
        }
        args.set.clone()
    };
    let rules = Rules {
        check_source: args.check_source,
        cut: args.cut,
        loss: args.loss.clamp(0.0, 1.0),
        delay_ms: args.delay_ms,
    };
    local::switch::set_rules(settings, &nodes, (!args.reset).then_some(rules))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::state::Vm;

    #[test]
    fn disks_are_removed_only_where_somebody_agrees() {
        let mut state = State::default();
        agree_to_delete(&state, |_| panic!("nothing would be lost")).expect("nothing to ask");
        state.vms.insert("w1".into(), Vm::new(Role::Worker, "image"));
        for answer in [None, Some(false)] {
            let error = agree_to_delete(&state, |_| Ok(answer)).expect_err("not agreed to");
            assert!(error.is::<input::BadInput>() && error.to_string().contains("--yes"), "{answer:?}: {error}");
        }
        agree_to_delete(&state, |_| Ok(Some(true))).expect("agreed to");
    }
}
