//! `kimg restore`: all machines are gone; the cluster's folder, its `secrets/` and a copy of the store bring it back.

use crate::backup::away::Away;
use crate::client::block_on;
use crate::config::Settings;
use crate::heal::{Copy, Healer};
use crate::hint::{dir_flag, next, program};
use crate::input;
use crate::local::api::MasterApi;
use crate::local::down;
use crate::local::state::State;
use crate::local::up::{self, Interrupted};
use crate::machines::local::LocalMachines;
use crate::node::Target;
use crate::oci::registry::credentials::environment;
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::roll::RealClock;
use crate::roll::api::Kube;
use crate::web::Client;
use anyhow::{Context, Result};
use node_api::{Done, path};
use node_metadata::Role;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the master may take to take the backup, with KVM; see [`crate::local::Accel::patience`].
const LIMIT: Duration = Duration::from_secs(90);

#[derive(Debug, clap::Args)]
#[command(after_help = "How it works: docs/backups.md")]
pub(super) struct RestoreArgs {
    /// A backup or snapshot [default: the newest one in backups/, and where `[backup] to` says]
    file: Option<PathBuf>,
    /// Name of a backup in backups/, or where `[backup] to` says, instead of the newest
    #[arg(long, conflicts_with = "file")]
    name: Option<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Folder with kimg-node, kimg-control and kimg-stage1
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    components: Option<PathBuf>,
}

pub(super) fn run(args: &RestoreArgs, settings: &Settings) -> Result<()> {
    // New secrets would read no copy.
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    if settings.provider.is_none() {
        if let Some(fault) = &settings.local.fault {
            return Err(fault.clone().into());
        }
        up::check_all_gone(settings, &State::load(&settings.run_dir())?)?;
    }
    let (snapshot, what) = snapshot(args, settings)?;
    let begun = Instant::now();
    let said = format!(
        "The cluster begins anew with the store of {what}: what was written after it is lost, and so is all \
         that was on the machines' disks."
    );
    println!("{said}");
    if settings.provider.is_some() {
        let give = |at: IpAddr| -> Result<()> {
            let target = Target { address: Some(at.to_string()), ..Target::default() };
            block_on(target.client(settings)?.post_bytes::<Done>(path::STORE_RESTORE, snapshot.clone())).map(drop)
        };
        super::cloud::restore(args.yes, args.components.as_deref(), settings, &give)?;
    } else {
        if !args.yes && !input::agreed("Go on?")?.unwrap_or(false) {
            return input::bad("nothing was changed; --yes says yes in advance");
        }
        local(args, settings, &secrets, &snapshot)?;
    }
    println!(
        "cluster {} is back after {:.0} s, with the store of {what}; all nodes are Ready",
        settings.name,
        begun.elapsed().as_secs_f64()
    );
    next(&format!("{} status{}", program(), dir_flag(settings)));
    Ok(())
}

/// A decrypted copy, and what it is called.
fn snapshot(args: &RestoreArgs, settings: &Settings) -> Result<(Vec<u8>, String)> {
    if let Some(file) = &args.file {
        return Ok((super::store::read_snapshot(settings, file)?, file.display().to_string()));
    }
    // There may be a newer copy, and whoever has lost everything wants that one.
    let away = Away::look(settings, &Client::new(None)?, &environment)
        .context("[backup] to could not be asked; name a file to do without it")?;
    let copy = Copy::of_folder_or_away(settings, args.name.as_deref(), away.as_ref())?;
    let opened = copy.open(settings, away.as_ref().map(|(_, away)| away)).with_context(|| {
        let (program, dir) = (program(), dir_flag(settings));
        format!(
            "{} cannot be used; `{program} backup ls{dir}` shows the others, and `{program} restore --name NAME{dir}` \
             takes one of them",
            copy.shown()
        )
    })?;
    Ok((opened, copy.shown()))
}

fn local(args: &RestoreArgs, settings: &Settings, secrets: &Secrets, snapshot: &[u8]) -> Result<()> {
    let master = settings.nodes_of(Role::Master).next().context("cluster.toml names no master")?;
    let name = master.entry.name.as_str();
    let progress = Progress::new();
    let images = super::image::ensure_images(settings, args.components.as_deref(), &progress)?;
    up::begin_anew(settings, &images)?;
    let give = || -> Result<()> {
        let client = Target { node: Some(name.to_owned()), ..Target::default() }.client(settings)?;
        block_on(client.post_bytes::<Done>(path::STORE_RESTORE, snapshot.to_vec())).map(drop)
    };
    let restore = |stop: &dyn Fn() -> bool| {
        let api = MasterApi::local(settings, secrets)?;
        let patience = down::patience(&State::load(&settings.run_dir())?);
        let mut machines = LocalMachines::new(settings, secrets);
        let healer = Healer {
            kube: Kube(&api),
            machines: &mut machines,
            restore: &give,
            clock: &RealClock,
            limit: LIMIT * patience,
            say: &|line| progress.line(line),
        };
        healer.give(name, stop)
    };
    let others: Vec<&str> = settings.nodes_of(Role::Master).skip(1).map(|node| node.entry.name.as_str()).collect();
    up::up_but(settings, &images, &progress, &others, Some(&restore)).map_err(|error| {
        let goes_on = || Interrupted(format!("interrupted; `{} restore{}` goes on", program(), dir_flag(settings)));
        if error.is::<Interrupted>() { goes_on().into() } else { error }
    })?;
    // Now the cluster is there again, and `kimg up` is what goes on.
    match others.as_slice() {
        [] => Ok(()),
        _ => up::up_by_masters(settings, &images, &progress, &|_| Ok(())).map(drop),
    }
}
