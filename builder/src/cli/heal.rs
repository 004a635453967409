//! `kimg heal master`.

use super::roll::{MasterApi, built_images};
use super::{dir_flag, next, program};
use crate::backup::Choice;
use crate::client::block_on;
use crate::config::Settings;
use crate::heal::{self, Copy, Healer, Lost};
use crate::input;
use crate::local::state::{self, State};
use crate::machines::local::{LocalMachines, short};
use crate::node::Target;
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::roll::RealClock;
use crate::roll::api::{Api, Kube};
use anyhow::{Context, Result};
use http::Method;
use node_api::{Done, path};
use node_metadata::Role;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long the master may take to take the backup, and then all nodes to be Ready, with KVM; see
/// [`crate::local::Accel::patience`].
const LIMIT: Duration = Duration::from_secs(90);

#[derive(Debug, clap::Args)]
pub(super) struct HealArgs {
    /// `master`, or its name
    #[arg(value_name = "MASTER")]
    master: String,
    #[command(flatten)]
    choice: Choice,
    /// Also where the master answers, or its disk is there: the disk is set aside, and what is newer than the backup lost
    #[arg(long)]
    discard_disk: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Folder with kimg-node, kimg-control and kimg-stage1
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    components: Option<PathBuf>,
}

pub(super) fn run(args: &HealArgs, settings: &Settings) -> Result<()> {
    let master = settings.nodes_of(Role::Master).next().context("cluster.toml names no master")?;
    let name = master.entry.name.as_str();
    if args.master != "master" && args.master != name {
        settings.node(&args.master)?;
        return input::bad(format!("{0} is a worker; `kimg roll {0}` replaces a broken one", args.master));
    }
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let state = State::load(&settings.run_dir())?;
    if !state.vms.contains_key(name) {
        return input::bad(format!(
            "{name} is no VM on this machine; make its machine anew with the user-data of `kimg seed {name} \
             --await-backup`, then say `kimg backup restore`"
        ));
    }
    let api = MasterApi::local(settings, &secrets)?;
    let check = || {
        let awaits_backup = State::load(&settings.run_dir())?.vms.get(name).is_some_and(|vm| vm.awaits_backup);
        let lost = Lost {
            answers: api.send(Method::GET, "/readyz", None).is_ok(),
            has_disk: settings.run_dir().join(name).join("disk.raw").exists() && !awaits_backup,
        };
        heal::check(name, lost, args.discard_disk)
    };
    check()?;
    let mut machines = LocalMachines::new(settings, &secrets);
    let copy = Copy::find(settings, &args.choice)?;
    let snapshot = copy.open(settings)?;
    let image = heal::image(&mut machines, name, || {
        let mut images = built_images(settings, &[Role::Master], args.components.as_deref(), &Progress::new())?;
        images.remove(&Role::Master).context("there is no master image")
    })?;
    println!(
        "{name} is made anew from image {}, and gets the store of {}: what was written after it is lost. Pods on workers \
         run on.",
        short(&image),
        copy.shown()
    );
    if !args.yes && !input::agreed("Go on?")?.unwrap_or(false) {
        return input::bad("nothing was changed; --yes says yes in advance");
    }
    // The question may have waited for long.
    check()?;
    let begun = Instant::now();
    let restore = || -> Result<()> {
        let client = Target { node: Some(name.to_owned()), ..Target::default() }.client(settings)?;
        block_on(client.post_bytes::<Done>(path::STORE_RESTORE, snapshot.clone())).map(drop)
    };
    let accel = if state.accel == "kvm" { crate::local::Accel::Kvm } else { crate::local::Accel::Tcg };
    let mut healer = Healer {
        kube: Kube(&api),
        machines: &mut machines,
        restore: &restore,
        clock: &RealClock,
        limit: LIMIT * accel.patience(),
        say: &|line| eprintln!("{line}"),
    };
    let nodes: Vec<&str> = settings.nodes.iter().map(|node| node.entry.name.as_str()).collect();
    healer.restore(name, &image)?;
    state::backup_has_come(settings, name)?;
    healer.wait_ready(name, &nodes)?;
    println!("{name} is back after {:.0} s, with {}; all nodes are Ready", begun.elapsed().as_secs_f64(), copy.shown());
    next(&format!("{} status{}", program(), dir_flag(settings)));
    Ok(())
}
