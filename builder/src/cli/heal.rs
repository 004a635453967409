//! `kimg heal`, and `kimg heal master`.

mod at_provider;

use super::cloud;
use super::image::built_images;
use super::roll::{self, Place, RollArgs};
use crate::backup::Choice;
use crate::backup::away::Away;
use crate::client::{block_on, kube};
use crate::cloud::master::LastCopy;
use crate::cloud::up::write_kubeconfig;
use crate::cloud::{Server, volumes};
use crate::config::Settings;
use crate::heal::{self, Copy, Healer, Lost, workers};
use crate::hint::{dir_flag, next, program, shown};
use crate::input;
use crate::local::api::MasterApi;
use crate::local::interrupt::Interrupt;
use crate::local::state::{self, State};
use crate::local::up::Interrupted;
use crate::local::{down, rebuild};
use crate::logs::kept;
use crate::logs::line::harmless;
use crate::machines::local::{LocalMachines, short};
use crate::machines::{Data, Machines, NO_IMAGE, Order};
use crate::node::Target;
use crate::oci::registry::credentials::environment;
use crate::pki::Secrets;
use crate::pki::kubeconfig::server_url;
use crate::progress::Progress;
use crate::roll::RealClock;
use crate::roll::api::{Api, Kube};
use crate::roll::engine::Stop;
use crate::roll::journal::Outcome;
use crate::roll::members::{self, Members};
use crate::roll::plan::Amount;
use crate::web::Client;
use anyhow::{Context, Result, bail};
use http::Method;
use node_api::{Done, path};
use node_metadata::Role;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long the master may take to take the backup, and then all nodes to be Ready, with KVM; see
/// [`crate::local::Accel::patience`].
const LIMIT: Duration = Duration::from_secs(90);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 all workers are whole, or the master is back; 1 one stays broken, or the cluster is not \
fit for it; 2 a mistake, or a decision that is missing; 130 interrupted.\n\nHow it works: docs/how-to/heal.md"
)]
pub(super) struct HealArgs {
    /// Nothing: workers that stay broken are replaced. `master`, or its name: it was lost with its disk, and comes back from
    /// a backup, or where there are several masters from the others
    #[arg(value_name = "MASTER")]
    master: Option<String>,
    #[command(flatten)]
    choice: Choice,
    /// The master, also where it answers, or its disk or its store's data volume is there: the disk is set aside. What is newer
    /// than the backup is lost; of several masters, the named one gets everything from the others
    #[arg(long)]
    discard_disk: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Go on looking, for ever; needs --yes
    #[arg(long, requires = "yes", conflicts_with = "master")]
    watch: bool,
    /// With --watch: the pause between two looks, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 15, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// How long a worker must be broken before it is replaced, seconds, as this command sees it
    #[arg(long, value_name = "SECONDS", default_value_t = 300, conflicts_with = "master")]
    patience: u64,
    /// Workers that may be broken: a number, or a percentage of all workers (rounded down); where more are, nothing is replaced
    #[arg(long, value_name = "N|N%", default_value = "34%", value_parser = str::parse::<Amount>, conflicts_with = "master")]
    max_unavailable: Amount,
    /// Give up the local volume of this claim; may be repeated
    #[arg(long, value_name = "NAMESPACE/NAME")]
    lose_data: Vec<String>,
    /// Folder with kimg-node, kimg-control and kimg-stage1
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    components: Option<PathBuf>,
    /// End at once at this point of the journal, as if killed; for tests
    #[arg(long, hide = true, value_name = "POINT")]
    fail_at: Option<String>,
}

pub(super) fn run(args: &HealArgs, settings: &Settings) -> Result<ExitCode> {
    match &args.master {
        Some(named) => master(args, named, settings).map(|()| ExitCode::SUCCESS),
        None => workers(args, settings),
    }
}

fn workers(args: &HealArgs, settings: &Settings) -> Result<ExitCode> {
    if args.discard_disk || args.choice.name.is_some() || args.choice.node.is_some() {
        return input::bad("--discard-disk, --name and --node are for `kimg heal master`");
    }
    let interrupt = Interrupt::watch()?;
    let stop = || interrupt.asked();
    let whole = roll::at_place(settings, |secrets, place, machines| {
        let healer = workers::Healer {
            kube: Kube(&place.api),
            workers: settings.nodes_of(Role::Worker).map(|node| node.entry.name.as_str()).collect(),
            rules: workers::Rules {
                patience: Duration::from_secs(args.patience),
                most: args.max_unavailable,
                lose: args.lose_data.clone(),
                every: args.watch.then(|| Duration::from_secs(args.every)),
            },
            clock: &RealClock,
            stop: &stop,
            say: &|line| eprintln!("{line}"),
        };
        healer.run(machines, &mut |machines, due| {
            if !due.is_empty() && !args.yes && !input::agreed("Go on?")?.unwrap_or(false) {
                return input::bad("nothing was changed; --yes says yes in advance");
            }
            let roll = RollArgs {
                nodes: due.to_vec(),
                max_unavailable: Some(args.max_unavailable),
                lose_data: args.lose_data.clone(),
                fail_at: args.fail_at.clone(),
                ..RollArgs::plain()
            };
            roll::heal(&roll, None, settings, secrets, place, machines, &interrupt)
        })
    });
    let whole = whole.map_err(|error| match error.is::<Stop>() {
        true => Interrupted("interrupted; no worker is being replaced".into()).into(),
        false => error,
    })?;
    if whole {
        println!("cluster {}: all workers are whole", settings.name);
    }
    next(&format!("{} status{}", program(), dir_flag(settings)));
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn master(args: &HealArgs, named: &str, settings: &Settings) -> Result<()> {
    if settings.has_several_masters() {
        return match settings.provider {
            Some(_) => at_provider::member(args, named, settings),
            None => member(args, named, settings),
        };
    }
    let master = settings.nodes_of(Role::Master).next().context("cluster.toml names no master")?;
    let name = master.entry.name.as_str();
    if named != "master" && named != name {
        settings.node(named)?;
        return input::bad(format!(
            "{named} is a worker; `kimg heal` replaces those that stay broken, and `kimg roll {named}` this one at once"
        ));
    }
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    if settings.provider.is_some() {
        return at_provider(args, name, settings, &secrets);
    }
    let state = State::load(&settings.run_dir())?;
    if !state.vms.contains_key(name) {
        return input::bad(format!(
            "{name} is no VM on this machine, and cluster.toml has no [provider]; make its machine anew with the user-data \
             of `kimg seed {name} --await-backup`, then say `kimg backup restore`"
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
    let (copy, snapshot) = newest(args, settings)?;
    let image = image_of(args, name, settings, &mut machines)?;
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
    if args.discard_disk {
        // It may still answer; one that is lost does not.
        match kept::keep(settings, name) {
            Ok(path) => eprintln!("{name}: its last logs are in {}", shown(&path)),
            Err(error) => eprintln!("{name}: its last logs are not kept: {error:#}"),
        }
    }
    healer.restore(name, &image)?;
    state::backup_has_come(settings, name)?;
    healer.wait_ready(name, &nodes)?;
    println!("{name} is back after {:.0} s, with {}; all nodes are Ready", begun.elapsed().as_secs_f64(), copy.shown());
    next(&format!("{} status{}", program(), dir_flag(settings)));
    Ok(())
}

/// One of several masters: the others have the store, and it joins them. Where they are not enough, all are made anew.
fn member(args: &HealArgs, named: &str, settings: &Settings) -> Result<()> {
    let begun = Instant::now();
    let what = roll::at_place(settings, |secrets, place, machines| {
        let vms = State::load(&settings.run_dir())?.vms;
        let has_disk = |name: &str| {
            let waits = vms.get(name).is_some_and(|vm| vm.awaits_backup);
            settings.run_dir().join(name).join("disk.raw").exists() && !waits
        };
        let lost = |name: &str| Lost { answers: place.members.serves(name).is_ok(), has_disk: has_disk(name) };
        let name = chosen(settings, named, args.discard_disk, &lost)?;
        if !vms.contains_key(name) {
            return input::bad(format!("{name} has never been started here; `kimg up{}` makes it", dir_flag(settings)));
        }
        // What is made anew already is gone on with.
        let again = roll::heals(settings, name)?;
        if !again {
            heal::check_member(name, lost(name), args.discard_disk)?;
            let own = settings.members().remove(name).with_context(|| format!("{name} is no member of etcd"))?;
            let needed = match place.members.list() {
                Ok(list) => members::needed(&list, &own, false),
                Err(error) => Some(format!("{error:#}")),
            };
            if let Some(why) = needed {
                let masters = settings.nodes_of(Role::Master).map(|node| node.entry.name.as_str());
                let disks: Vec<&str> = masters.filter(|name| has_disk(name)).collect();
                // Whoever names one means that one's disk.
                let discard_all = args.discard_disk && named == "master";
                heal::check_all_lost(name, &why, &disks, discard_all, &dir_flag(settings))?;
                return all_masters(args, &why, settings, secrets, place, machines);
            }
        }
        if args.choice.name.is_some() || args.choice.node.is_some() {
            return input::bad(
                "the other masters have the store, and no backup is restored; leave --name and --node out",
            );
        }
        let image = image_of(args, name, settings, machines)?;
        if !again {
            println!("{name} gets a new disk from image {}, and joins the other masters", short(&image));
            if !args.yes && !input::agreed("Go on?")?.unwrap_or(false) {
                return input::bad("nothing was changed; --yes says yes in advance");
            }
        }
        let roll = RollArgs { nodes: vec![name.to_owned()], fail_at: args.fail_at.clone(), ..RollArgs::plain() };
        let interrupt = Interrupt::watch()?;
        match roll::heal(&roll, Some(&image), settings, secrets, place, machines, &interrupt)? {
            Some(Outcome::Done) => {
                Ok(format!("{name} is back after {:.0} s, a member of etcd", begun.elapsed().as_secs_f64()))
            }
            _ => bail!("{name} is not back"),
        }
    })?;
    println!("{what}");
    next(&format!("{} status{}", program(), dir_flag(settings)));
    Ok(())
}

fn image_of(args: &HealArgs, name: &str, settings: &Settings, machines: &mut dyn Machines) -> Result<String> {
    heal::image(machines, name, || {
        let mut images = built_images(settings, &[Role::Master], args.components.as_deref(), &Progress::new())?;
        images.remove(&Role::Master).context("there is no master image")
    })
}

/// All masters anew: the first one begins with a copy of the store, and the others join it one after the other.
fn all_masters(
    args: &HealArgs,
    why: &str,
    settings: &Settings,
    secrets: &Secrets,
    place: &Place<'_>,
    machines: &mut dyn Machines,
) -> Result<String> {
    let state = State::load(&settings.run_dir())?;
    let masters = settings.nodes_of(Role::Master).map(|node| node.entry.name.as_str());
    let masters: Vec<&str> = masters.filter(|name| state.vms.contains_key(*name)).collect();
    let [first, others @ ..] = masters.as_slice() else { bail!("no master was ever started here") };
    let check = || heal::check_none_serves(masters.iter().copied(), &place.members, &dir_flag(settings));
    check()?;
    let (copy, snapshot) = newest(args, settings)?;
    let mut images = BTreeMap::new();
    for name in &masters {
        images.insert(*name, image_of(args, name, settings, machines)?);
    }
    println!(
        "The masters are too few ({why}), and all are made anew: {first} gets the store of {}, and what was written after it is \
         lost; {} join it. Their disks are set aside. Pods on workers run on.",
        copy.shown(),
        others.join(", ")
    );
    if !args.yes && !input::agreed("Go on?")?.unwrap_or(false) {
        return input::bad("nothing was changed; --yes says yes in advance");
    }
    // One may have come back while the question stood.
    check()?;
    let begun = Instant::now();
    // None of them shall say what the copy does not know.
    for name in others {
        rebuild::retire(settings, secrets, name)?;
    }
    let restore = || -> Result<()> {
        let client = Target { node: Some((*first).to_owned()), ..Target::default() }.client(settings)?;
        block_on(client.post_bytes::<Done>(path::STORE_RESTORE, snapshot.clone())).map(drop)
    };
    let limit = LIMIT * down::patience(&state);
    let (kube, say) = (Kube(&place.api), &|line: &str| eprintln!("{line}"));
    let mut healer = Healer { kube, machines, restore: &restore, clock: &RealClock, limit, say };
    healer.restore(first, &images[first])?;
    state::backup_has_come(settings, first)?;
    healer.wait_ready(first, &[*first])?;
    for name in others {
        eprintln!("{name}: starts with a new disk from image {}", short(&images[name]));
        healer.machines.rebuild(&Order { node: name, image: &images[name], token: None, data: Data::JoinsEtcd })?;
        healer.wait_ready(name, &[*name])?;
    }
    let all: Vec<&str> = settings.nodes.iter().map(|node| node.entry.name.as_str()).collect();
    healer.wait_ready(first, &all)?;
    Ok(format!("all masters are back after {:.0} s, with {}", begun.elapsed().as_secs_f64(), copy.shown()))
}

/// Which master: the one that is named, or the first one that is lost.
fn chosen<'a>(settings: &'a Settings, named: &str, discard_disk: bool, lost: &dyn Fn(&str) -> Lost) -> Result<&'a str> {
    let masters: Vec<&str> = settings.nodes_of(Role::Master).map(|node| node.entry.name.as_str()).collect();
    if let Some(name) = masters.iter().find(|name| **name == named) {
        return Ok(name);
    }
    if named != "master" {
        settings.node(named)?;
        return input::bad(format!(
            "{named} is a worker; `kimg heal` replaces those that stay broken, and `kimg roll {named}` this one at once"
        ));
    }
    let gone: Vec<&str> =
        masters.iter().copied().filter(|name| heal::check_member(name, lost(name), false).is_ok()).collect();
    match gone.as_slice() {
        // The next call takes the next one.
        [name, ..] => Ok(name),
        // All disks are damaged, or none of them is.
        [] if discard_disk && !masters.iter().any(|name| lost(name).answers) => {
            masters.first().copied().context("cluster.toml names no master")
        }
        [] => input::bad(format!(
            "no master has lost its disk; `kimg up` starts one that does not run, and one whose disk is damaged is named \
             (`kimg heal NAME --discard-disk`, of {})",
            masters.join(", ")
        )),
    }
}

/// The newest copy of the store, and what is in it.
fn newest(args: &HealArgs, settings: &Settings) -> Result<(Copy, Vec<u8>)> {
    let away = match Away::look(settings, &Client::new(None)?, &environment) {
        Ok(away) => away,
        Err(error) => {
            // Workers have what is newest, as a rule.
            eprintln!("kimg: going on without [backup] to, which could not be asked: {error:#}");
            None
        }
    };
    let copy = Copy::find(settings, &args.choice, away.as_ref())?;
    let snapshot = copy.open(settings, away.as_ref().map(|(_, away)| away))?;
    Ok((copy, snapshot))
}

/// A master whose machine is there gets a new disk under its addresses. In the place of one that is gone another is made:
/// workers know the address of the one before, so that they are made anew behind it. A store on a data volume goes on there.
fn at_provider(args: &HealArgs, name: &str, settings: &Settings, secrets: &Secrets) -> Result<()> {
    let begun = Instant::now();
    let done = cloud::machines(settings, secrets, |machines| {
        let api = |at: IpAddr| state::api_client(settings, secrets, Some(&server_url(&at.to_string(), 6443)));
        let server = machines.server_of(name)?;
        let volume = machines.store_volume(name)?;
        let keeps = volume.is_some() && !args.discard_disk;
        let answers = |at: IpAddr| api(at).is_ok_and(|https| block_on(kube::ready(&https)).is_ok());
        let check = |server: &Option<Server>| {
            let lost = Lost {
                answers: server.as_ref().and_then(|server| server.public).is_some_and(answers),
                has_disk: !keeps && server.as_ref().is_some_and(|server| server.image != NO_IMAGE),
            };
            // What was closed and copied is on the volume, too, so that only a roll that can go on is in the way.
            let rolls =
                !args.discard_disk && (!keeps || server.as_ref().is_some_and(|server| machines.answers(server)));
            if !lost.answers && rolls && LastCopy::of(&settings.run_dir()).read()?.is_some() {
                return input::bad(format!(
                    "a roll was interrupted that had closed the store of {name} and copied it here: `kimg roll` goes on, and \
                     `kimg roll --rollback` goes back, with all that was acknowledged; --discard-disk gives that up"
                ));
            }
            heal::check(name, lost, args.discard_disk)
        };
        if !args.discard_disk && machines.resume(name)? {
            return Ok(None);
        }
        check(&server)?;
        if keeps && (args.choice.name.is_some() || args.choice.node.is_some()) {
            return input::bad(
                "the store is on the data volume, and no backup is restored; leave --name and --node out, or give the volume's up \
                 with --discard-disk",
            );
        }
        let copy = if keeps { None } else { Some(newest(args, settings)?) };
        let held = match &server {
            Some(server) if machines.holds(&server.image)? => Some(server.image.clone()),
            _ => None,
        };
        let built = match held {
            Some(_) => None,
            None => built_images(settings, &[Role::Master], args.components.as_deref(), &Progress::new())?
                .remove(&Role::Master),
        };
        let image = held.or_else(|| Some(short(&built.as_ref()?.id).to_owned())).context("there is no master image")?;
        let what = match &server {
            Some(server) => format!("the machine of {name} ({}) is rebuilt in place, with its addresses,", server.id),
            None => format!(
                "another machine of {name} is made, with other addresses: all workers, which know the old one, are made anew \
                 behind it, with what is on their disks; its type is the same, and so is its price. It is made"
            ),
        };
        let volume = volume.map(|volume| harmless(&volumes::shown(&volume, machines.offer)));
        let store = match (&copy, volume) {
            (None, Some(volume)) => format!("goes on with the store on the {volume}: nothing is lost"),
            (None, None) => bail!("{name} has neither a data volume nor a backup to go on with"),
            (Some((copy, _)), volume) => {
                let instead = volume.map_or(String::new(), |volume| format!(", in the place of that on the {volume}"));
                format!("gets the store of {}{instead}: what was written after it is lost", copy.shown())
            }
        };
        println!("{what} from image {image}, and {store}.");
        if !args.yes && !input::agreed("Go on?")?.unwrap_or(false) {
            return input::bad("nothing was changed; --yes says yes in advance");
        }
        // The question may have waited for long.
        check(&machines.server_of(name)?)?;
        if let Some(built) = &built {
            machines.offer(built)?;
        }
        eprintln!("{name}: gets a new disk from image {image}");
        machines.revive(name, &image, copy.as_ref().map(|(_, snapshot)| snapshot.as_slice()))?;
        let store = copy.map_or_else(|| "the store on its data volume".to_owned(), |(copy, _)| copy.shown());
        eprintln!("{name}: goes on with {store}");
        let at = machines.server_of(name)?.and_then(|server| server.public).context("the master has no address")?;
        write_kubeconfig(settings, secrets, at)?;
        let api = MasterApi::at(api(at)?);
        let all: Vec<&str> = settings.nodes.iter().map(|node| node.entry.name.as_str()).collect();
        let gone = server.is_none();
        let kube = Kube(&api);
        let restore = || Ok(());
        let limit = LIMIT * 10;
        let healer =
            Healer { kube, machines, restore: &restore, clock: &RealClock, limit, say: &|line| eprintln!("{line}") };
        healer.wait_ready(name, if gone { std::slice::from_ref(&name) } else { &all })?;
        if gone {
            eprintln!("until the API server misses the workers, which look for {name} where it was");
            healer.wait_missed(name, &all)?;
        }
        Ok(Some((store, gone)))
    })?;
    let Some((store, gone)) = done else {
        println!(
            "{name} has begun with the copy that it was given before; `kimg roll` goes on with what was interrupted"
        );
        next(&format!("{} status{}", program(), dir_flag(settings)));
        return Ok(());
    };
    if gone {
        workers_anew(args, settings)?;
    }
    println!("{name} is back after {:.0} s, with {store}; all nodes are Ready", begun.elapsed().as_secs_f64());
    next(&format!("{} status{}", program(), dir_flag(settings)));
    Ok(())
}

/// All workers, by the journal of a roll, from the images that they have.
fn workers_anew(args: &HealArgs, settings: &Settings) -> Result<()> {
    let roll = RollArgs {
        nodes: settings.nodes_of(Role::Worker).map(|node| node.entry.name.clone()).collect(),
        max_unavailable: Some(Amount::Percent(100)),
        lose_data: args.lose_data.clone(),
        fail_at: args.fail_at.clone(),
        ..RollArgs::plain()
    };
    let interrupt = Interrupt::watch()?;
    let done = roll::at_place(settings, |secrets, place, machines| {
        roll::heal(&roll, None, settings, secrets, place, machines, &interrupt)
    });
    match done.context("the master is back, and its workers still look for it where it was; `kimg roll` goes on")? {
        None | Some(Outcome::Done) => Ok(()),
        Some(_) => bail!("the master is back, and not all workers have found it; `kimg roll` goes on"),
    }
}
