//! `kimg roll`.

mod args;
mod finish;
mod releases;
mod report;
mod surge;
mod volumes;

pub(super) use args::RollArgs;

use super::image::built_images;
use crate::backup::here;
use crate::cache;
use crate::client::Https;
use crate::config::{Provider, Settings};
use crate::heal::workers;
use crate::hint::{dir_flag, program, shown};
use crate::input::{self, BadInput};
use crate::local::api::MasterApi;
use crate::local::interrupt::Interrupt;
use crate::local::state::{self, State};
use crate::local::up::{ImageFile, Interrupted};
use crate::logs::kept;
use crate::logs::line::harmless;
use crate::machines::local::{LocalMachines, short};
use crate::machines::{Machine, Machines, NO_IMAGE};
use crate::node::members::Masters;
use crate::pki::Secrets;
use crate::pki::kubeconfig::server_url;
use crate::progress::Progress;
use crate::roll::RealClock;
use crate::roll::api::Kube;
use crate::roll::begin;
use crate::roll::copy::LocalCopy;
use crate::roll::engine::{Book, Engine, Stop};
use crate::roll::journal::{Entry, Journal, Outcome, Rules, Step};
use crate::roll::lock::Holder;
use crate::roll::plan::{self, Plan, Refusal, Situation, Wish};
use crate::roll::spares;
use crate::roll::volumes::NodeVolumes;
use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use node_api::{StoreEngine, StoreFormat};
use node_metadata::Role;
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use surge::Grown;

/// How long a node may take to be Ready with KVM, seconds; see [`crate::local::Accel::patience`].
const READY_SECS: u64 = 90;
/// For how long the API is away while the master is replaced, about, with KVM, seconds: 11 s were measured with emulation.
const GAP_SECS: u64 = 3;
/// How long a node at a provider may take to be Ready, seconds: its machine is made meanwhile.
const MADE_SECS: u64 = 600;
/// For how long the API is away there, about, seconds: a provider puts an image on a disk in a minute or two, and a node
/// boots.
const MADE_GAP_SECS: u64 = 240;

pub(super) fn run(args: &RollArgs, settings: &Settings) -> Result<ExitCode> {
    if args.json && !args.dry_run && !args.yes {
        return input::bad("--json does not ask: add --yes, or --dry-run to see the plan");
    }
    if args.finish {
        return finish::run(args, settings).map(|()| ExitCode::SUCCESS);
    }
    Ok(if replace(args, settings)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Does it; whether all went well, or nothing was to be done.
pub(super) fn replace(args: &RollArgs, settings: &Settings) -> Result<bool> {
    let grown = surge::grown(args, settings)?;
    let journal = at_place(&grown.settings, |secrets, place, machines| roll(args, &grown, secrets, place, machines))?;
    Ok(journal.is_none_or(|journal| journal.outcome == Outcome::Done))
}

/// Asks where the cluster is, and what runs it there.
pub(super) fn at_place<T>(
    settings: &Settings,
    work: impl FnOnce(&Secrets, &Place<'_>, &mut dyn Machines) -> Result<T>,
) -> Result<T> {
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    if let Some(provider) = &settings.provider {
        return super::cloud::roll(settings, &secrets, |machines, at, after| {
            let https = api_of(settings, &secrets, at)?;
            cache::private_dir(&settings.run_dir())?;
            let members = Masters::new(settings, &secrets);
            let place = Place {
                api: MasterApi::at(https),
                members,
                notes: notes(provider, settings.has_several_masters()),
                prices: super::cloud::prices_of_spares(machines)?,
                after,
            };
            work(&secrets, &place, machines)
        });
    }
    let mut machines = LocalMachines::new(settings, &secrets);
    if machines.list()?.is_empty() {
        return input::bad(format!(
            "cluster {} has no VMs on this machine, and cluster.toml no [provider]; machines that were made by hand are made \
             anew from the new image one by one, with the user-data that `kimg seed NODE --replace` prints",
            settings.name
        ));
    }
    let api = MasterApi::local(settings, &secrets)?;
    let members = Masters::new(settings, &secrets);
    let place = Place { api, members, notes: Vec::new(), prices: Vec::new(), after: &|| Ok(Vec::new()) };
    work(&secrets, &place, &mut machines)
}

/// The API servers of masters that are found there.
fn api_of(settings: &Settings, secrets: &Secrets, at: &[IpAddr]) -> Result<Https> {
    let (first, others) = at.split_first().context("the cluster has no master")?;
    let https = state::api_client(settings, secrets, Some(&server_url(&first.to_string(), 6443)))?;
    let target = |at: &IpAddr| SocketAddr::new(*at, 6443).to_string();
    Ok(others.iter().fold(https, |https, at| https.or(target(at), at.to_string())))
}

/// What is to be known of a new machine at a provider before anybody agrees to it.
fn notes(provider: &Provider, several: bool) -> Vec<String> {
    let at = provider.name.as_str();
    let of_master = match several {
        true => {
            "a master's machine stays, with its addresses, and gets a new disk: its member leaves etcd, and joins the others' \
                 as a new one, before the next master is touched"
        }
        false => {
            "a master's machine stays, with its addresses, and gets a new disk: its store is closed, copied into run/ on \
                  this machine, and given back; what the cluster's own registry held goes"
        }
    };
    vec![
        "a worker's machine is removed, and another of its name and type made: no month costs more, and the public and \
         private addresses are new ones"
            .into(),
        of_master.into(),
        "status.loadBalancer of Services has the new addresses by itself; DNS records are yours to set, and told in the \
         end: where clients follow those, replace one node (`kimg roll NODE`), set its record, and go on with the next"
            .into(),
        format!("an image that {at} lacks is uploaded first; it stays and costs money until `kimg image rm`"),
    ]
}

/// Where the cluster is.
pub(super) struct Place<'a> {
    pub(super) api: MasterApi<'a>,
    /// What is asked about masters' stores.
    pub(super) members: Masters<'a>,
    /// What is shown with a plan.
    notes: Vec<String>,
    /// What the spares cost that are to be made.
    prices: Vec<String>,
    /// What is shown when nodes have been replaced.
    after: &'a dyn Fn() -> Result<Vec<String>>,
}

/// Goes on with a roll that this machine has begun and that was interrupted, if there is one; whether all went well then. A
/// removal is none.
pub(super) fn go_on(args: &RollArgs, settings: &Settings) -> Result<Option<bool>> {
    match LocalCopy::of(&settings.run_dir()).read()? {
        Some(kept) if kept.journal.outcome == Outcome::Running && !kept.journal.removes() => {
            replace(args, settings).map(Some)
        }
        _ => Ok(None),
    }
}

fn roll(
    args: &RollArgs,
    grown: &Grown,
    secrets: &Secrets,
    place: &Place<'_>,
    machines: &mut dyn Machines,
) -> Result<Option<Journal>> {
    let settings = &grown.settings;
    let listed = machines.list()?;
    let kube = Kube(&place.api);
    let copy = LocalCopy::of(&settings.run_dir());
    let last = match kube.check_ready() {
        Ok(()) => begin::last(kube, &copy)?,
        Err(error) => Some(without_api(args, settings, &copy, error)?),
    };
    let half = |entry: &&Entry| entry.master && entry.from == NO_IMAGE && entry.step < Step::Done;
    if let Some(entry) = last.iter().flat_map(|last| &last.journal.nodes).find(half)
        && args.rollback
    {
        return input::bad(format!(
            "{} was between two images when this roll began, so there is none to go back to: `kimg roll` goes on to {}",
            entry.node,
            short(&entry.to)
        ));
    }
    let command =
        Command { args, settings, secrets, place, copy: &copy, surge: grown.surge, progress: Progress::new() };
    let mut later = Vec::new();
    let planned = match &last {
        Some(last) if args.rollback && last.apart => Some(command.plan_back_without_api(&last.journal, machines)?),
        Some(last) if args.rollback => command.plan_back(&last.journal, machines, &listed)?,
        None if args.rollback => return input::bad("there was no roll yet that could be taken back"),
        Some(last) if last.journal.outcome == Outcome::Running => command.go_on(&last.journal, &listed)?,
        _ => command.plan_new(machines, &listed, &mut later, last.as_ref().map(|last| &last.journal))?,
    };
    let Some(planned) = planned else {
        if !args.dry_run {
            command.settle_spares(machines)?;
        }
        return Ok(None);
    };
    machines.check(&planned.untouched())?;
    if args.dry_run || !(args.yes || confirmed()?) {
        return Ok(None);
    }
    for image in &later {
        machines.offer(image).context("nothing was touched, as not all images are at the provider")?;
    }
    if planned.makes_spares() {
        grown.write()?;
    }
    let done = command.execute(machines, planned, last.as_ref(), &Interrupt::watch()?);
    let settled = command.settle_spares(machines);
    // What has kept the roll from its end is the first thing to know.
    let done = done?;
    settled.map(|()| Some(done))
}

/// Whether making this node anew was begun on this machine, and interrupted.
pub(super) fn heals(settings: &Settings, node: &str) -> Result<bool> {
    let kept = LocalCopy::of(&settings.run_dir()).read()?;
    let journal =
        kept.map(|kept| kept.journal).filter(|journal| journal.outcome == Outcome::Running && journal.heals());
    Ok(journal.is_some_and(|journal| journal.nodes.iter().any(|entry| entry.node == node)))
}

/// Replaces broken workers from the images that they have, or goes on with that where none is named and it was interrupted.
/// Or makes one of several masters anew from the image `lost`, which joins the others.
pub(super) fn heal(
    args: &RollArgs,
    lost: Option<&str>,
    settings: &Settings,
    secrets: &Secrets,
    place: &Place<'_>,
    machines: &mut dyn Machines,
    interrupt: &Interrupt,
) -> Result<Option<Outcome>> {
    let kube = Kube(&place.api);
    let copy = LocalCopy::of(&settings.run_dir());
    let last = begin::last(kube, &copy)?;
    let command = Command { args, settings, secrets, place, copy: &copy, surge: 0, progress: Progress::hidden() };
    let planned = match &last {
        Some(last) if last.journal.outcome == Outcome::Running && last.journal.heals() => {
            let others = |name: &&String| !last.journal.nodes.iter().any(|entry| entry.node == **name);
            if let Some(name) = args.nodes.iter().filter(|_| lost.is_some()).find(others) {
                let these: Vec<&str> = last.journal.nodes.iter().map(|entry| entry.node.as_str()).collect();
                let dir = dir_flag(settings);
                bail!(
                    "making {} anew was interrupted: `kimg heal{dir}` goes on with it, and then this makes {name} anew",
                    these.join(", ")
                );
            }
            Planned::GoOn(last.journal.clone())
        }
        Some(last) if last.journal.outcome == Outcome::Running => bail!(
            "a roll is under way, or was interrupted: `kimg roll` goes on with it, `kimg roll --rollback` goes back; nothing \
             is healed meanwhile"
        ),
        _ if args.nodes.is_empty() => return Ok(None),
        _ => {
            let workers: Vec<&str> = settings.nodes_of(Role::Worker).map(|node| node.entry.name.as_str()).collect();
            let image = |node: &String| match lost {
                Some(image) => Ok((node.clone(), image.to_owned())),
                None => Ok((node.clone(), workers::image(machines, node, &workers)?)),
            };
            let wish = Wish {
                nodes: args.nodes.clone(),
                images: args.nodes.iter().map(image).collect::<Result<_>>()?,
                lose: args.lose_data.clone(),
                lost: lost.is_some(),
                ..Wish::default()
            };
            let plan = command.make(&wish, &machines.list()?)?;
            println!("{}", plan.text());
            Planned::Anew(Journal { store: format_of(last.as_ref()), ..command.journal(&plan, false)? })
        }
    };
    machines.check(&planned.untouched())?;
    command.execute(machines, planned, last.as_ref(), interrupt).map(|journal| Some(journal.outcome))
}

/// Drains and removes workers, or goes on with that where none is named; none where there is nothing to go on with, or where
/// it is only shown.
pub(super) fn remove(
    args: &RollArgs,
    settings: &Settings,
    secrets: &Secrets,
    place: &Place<'_>,
    machines: &mut dyn Machines,
) -> Result<Option<Journal>> {
    let kube = Kube(&place.api);
    let copy = LocalCopy::of(&settings.run_dir());
    let last = begin::last(kube, &copy)?;
    let command = Command { args, settings, secrets, place, copy: &copy, surge: 0, progress: Progress::hidden() };
    let planned = match &last {
        Some(last) if last.journal.outcome == Outcome::Running && last.journal.removes() => {
            println!("goes on with the removal that began at {}", last.journal.started.strftime("%F %T UTC"));
            let mut journal = last.journal.clone();
            begin::leave_again(&mut journal, &machines.list()?);
            Planned::GoOn(journal)
        }
        Some(last) if last.journal.outcome == Outcome::Running => bail!(
            "a roll is under way, or was interrupted: `kimg roll` goes on with it, `kimg roll --rollback` goes back; the \
             cluster keeps its size meanwhile"
        ),
        _ if args.nodes.is_empty() => return Ok(None),
        _ => {
            let wish = Wish {
                nodes: args.nodes.clone(),
                lose: args.lose_data.clone(),
                lose_pods: args.lose_pods,
                ..Wish::default()
            };
            let plan = command.make_by(plan::remove, &wish, &machines.list()?)?;
            println!("{}", plan.text());
            Planned::Anew(Journal { store: format_of(last.as_ref()), ..command.journal(&plan, false)? })
        }
    };
    if args.dry_run {
        return Ok(None);
    }
    if !args.yes && !confirmed()? {
        // Whoever goes on by the size of the cluster would ask once more.
        return input::bad("nothing was changed; --yes says yes in advance");
    }
    command.execute(machines, planned, last.as_ref(), &Interrupt::watch()?).map(Some)
}

/// What the store is written in, as the last journal says; the next one, of whatever, says it on.
fn format_of(last: Option<&Book>) -> Option<StoreFormat> {
    last.and_then(|last| last.journal.store)
}

/// The last roll as this machine knows it, where it may be why the API server does not answer.
fn without_api(args: &RollArgs, settings: &Settings, copy: &LocalCopy, error: anyhow::Error) -> Result<Book> {
    let dir = dir_flag(settings);
    match begin::last_without_api(copy)? {
        Some(last) if args.rollback || last.journal.outcome == Outcome::Running => Ok(last),
        Some(last) if last.journal.outcome == Outcome::Stopped => Err(error.context(format!(
            "the API server does not answer, and the last roll stopped with its master: `{} roll --rollback{dir}` puts \
             the image of before under it",
            program()
        ))),
        _ => match state::stopped(settings, &State::load(&settings.run_dir())?, None) {
            Some(why) => bail!(why),
            None => Err(error.context("the API server is not fit for a roll")),
        },
    }
}

/// What is to be done.
enum Planned {
    /// A roll that was interrupted.
    GoOn(Journal),
    /// A roll from its beginning.
    Anew(Journal),
    /// A roll that begins while the API server is away.
    WithoutApi(Journal),
}

impl Planned {
    /// The nodes whose machines are still to be made anew.
    fn untouched(&self) -> Vec<&str> {
        let still = |entry: &&Entry| entry.step <= Step::Replacing && !(entry.spare && entry.leaves());
        self.journal().nodes.iter().filter(still).map(|entry| entry.node.as_str()).collect()
    }

    /// Whether spares are to be there first.
    fn makes_spares(&self) -> bool {
        self.journal().nodes.iter().any(Entry::comes)
    }

    fn journal(&self) -> &Journal {
        let (Planned::GoOn(journal) | Planned::Anew(journal) | Planned::WithoutApi(journal)) = self;
        journal
    }
}

struct Command<'a> {
    args: &'a RollArgs,
    settings: &'a Settings,
    secrets: &'a Secrets,
    place: &'a Place<'a>,
    copy: &'a LocalCopy,
    /// How many spares stand in for workers.
    surge: usize,
    progress: Progress,
}

impl Command<'_> {
    /// Images that take time and money to be brought where they are needed go into `later`.
    fn plan_new(
        &self,
        machines: &mut dyn Machines,
        listed: &[Machine],
        later: &mut Vec<ImageFile>,
        last: Option<&Journal>,
    ) -> Result<Option<Planned>> {
        let (wish, built) = self.wish()?;
        let mut plan = self.make(&wish, listed)?;
        let store = self.check_releases(&mut plan, &releases::built, last)?;
        if !self.show(&plan, "every chosen node runs the image that was built last; nothing to do")? {
            return Ok(None);
        }
        if self.settings.provider.is_some() {
            let needed = |image: &ImageFile| plan.nodes.iter().any(|item| item.to == short(&image.id));
            later.extend(built.into_values().filter(needed));
        } else if !self.args.dry_run {
            for image in built.values() {
                machines.offer(image)?;
            }
        }
        Ok(Some(Planned::Anew(Journal { store, ..self.journal(&plan, false)? })))
    }

    /// What a new roll is to do, and the images that were built for it.
    fn wish(&self) -> Result<(Wish, BTreeMap<Role, ImageFile>)> {
        let built = self.built_images()?;
        let at_provider = self.settings.provider.is_some();
        let known = |image: &ImageFile| if at_provider { short(&image.id).to_owned() } else { image.id.clone() };
        let nodes = self.settings.nodes.iter().map(|node| &node.entry);
        let image = |node: &node_metadata::NodeEntry| Some((node.name.clone(), known(built.get(&node.role)?)));
        let wish = Wish {
            nodes: self.args.nodes.clone(),
            images: nodes.filter_map(image).collect(),
            back: false,
            first: Vec::new(),
            keep_data: self.args.keep_data,
            lose: self.args.lose_data.clone(),
            copy: self.args.copy_data.clone(),
            copy_again: Vec::new(),
            lose_pods: self.args.lose_pods,
            stores: self.stores()?,
            spares: self.spares(),
            surge: self.surge,
            lost: false,
        };
        Ok((wish, built))
    }

    fn spares(&self) -> Vec<String> {
        self.settings.spares().map(|node| node.entry.name.clone()).collect()
    }

    fn plan_back(&self, last: &Journal, machines: &dyn Machines, listed: &[Machine]) -> Result<Option<Planned>> {
        let images = begin::images_before(last, listed);
        begin::check_held(machines, &images)?;
        let wish = Wish {
            nodes: images.keys().cloned().collect(),
            images,
            back: true,
            first: begin::unsettled(last),
            keep_data: self.args.keep_data,
            lose: self.args.lose_data.clone(),
            copy: self.args.copy_data.clone(),
            copy_again: begin::copied(last),
            lose_pods: self.args.lose_pods,
            stores: begin::stores_before(last),
            spares: self.spares(),
            surge: 0,
            lost: false,
        };
        let mut plan = self.make(&wish, listed)?;
        let store = self.check_releases(&mut plan, &releases::before(last), Some(last))?;
        volumes::check_taken(&plan, &releases::before(last))?;
        let mut journal = Journal { store, ..self.journal(&plan, true)? };
        begin::take_along(&mut journal, last, listed, &self.kube().nodes()?);
        let returning: Vec<&str> =
            journal.nodes.iter().filter(|e| e.step == Step::Returning).map(|e| e.node.as_str()).collect();
        if !returning.is_empty() && !self.args.json {
            println!("take pods again, with the image that they have: {}", returning.join(", "));
        }
        let nothing = "every node of the last roll has the image of before; nothing to do";
        let any = self.show(&plan, if returning.is_empty() { nothing } else { "" })?;
        Ok((any || !returning.is_empty()).then_some(Planned::Anew(journal)))
    }

    /// Only the master, and only what this machine knows.
    fn plan_back_without_api(&self, last: &Journal, machines: &dyn Machines) -> Result<Planned> {
        let Some(back) = begin::back_without_api(last, &machines.list()?, Timestamp::now()) else {
            bail!(
                "the API server does not answer, and the master has the image of before the last roll; its console is \
                 under {}",
                self.settings.run_dir().display()
            );
        };
        for entry in &back.nodes {
            begin::check_held(machines, &[(entry.node.clone(), entry.to.clone())].into())?;
            if let Some(store) = last.store.as_ref().filter(|_| entry.store.is_none()) {
                releases::before(last)(&entry.node).check_store(&entry.node, store).or_else(input::bad)?;
            }
            if !self.args.json {
                println!(
                    "{}: image {} to {}; keeps its store (the API server does not answer)",
                    entry.node,
                    short(&entry.from),
                    short(&entry.to)
                );
            } else if self.args.dry_run {
                println!("{}", serde_json::to_string_pretty(&back).context("writing JSON")?);
            }
        }
        Ok(Planned::WithoutApi(back))
    }

    fn go_on(&self, last: &Journal, listed: &[Machine]) -> Result<Option<Planned>> {
        let asked = |entry: &Entry| {
            let group = if entry.master { ["master", "masters"] } else { ["workers", "workers"] };
            self.args.nodes.iter().any(|name| *name == entry.node || group.contains(&name.as_str()))
        };
        // The command that began it goes on with it, too.
        if !self.args.nodes.is_empty() && !last.nodes.iter().all(asked) {
            return input::bad(
                "the last roll was interrupted: `kimg roll` without nodes goes on with it, `kimg roll --rollback` goes back",
            );
        }
        let mut journal = last.clone();
        begin::give_up(&mut journal, &self.args.lose_data);
        begin::leave_again(&mut journal, listed);
        if self.args.json {
            if self.args.dry_run {
                println!("{}", serde_json::to_string_pretty(&journal).context("writing JSON")?);
            }
        } else {
            println!(
                "goes on with the roll that began at {}, and with what was said then (--settle, --timeout, --ready-timeout, \
                 --on-blocked, …):",
                last.started.strftime("%F %T UTC")
            );
            for entry in &last.nodes {
                let what = match entry.leaves() {
                    true => "leaves".into(),
                    false => harmless(&format!("image {} to {}", short(&entry.from), short(&entry.to))),
                };
                println!("{}: {what}: {}", harmless(&entry.node), step_name(entry.step));
            }
        }
        Ok(Some(Planned::GoOn(journal)))
    }

    /// The masters that there are.
    fn masters(&self) -> Vec<&str> {
        let all = self.settings.nodes_of(Role::Master).map(|node| node.entry.name.as_str());
        all.filter(|name| !self.args.leave_out.iter().any(|later| later == name)).collect()
    }

    /// Where the store of a single master goes whose image carries another engine than the next one. At a provider it is
    /// copied, which does the same.
    fn stores(&self) -> Result<BTreeMap<String, StoreEngine>> {
        let (Some(master), None) = (self.masters().first().copied(), &self.settings.provider) else {
            return Ok(BTreeMap::new());
        };
        let asked = |name: &String| ["master", "masters", master].contains(&name.as_str());
        if self.masters().len() > 1 || !(self.args.nodes.is_empty() || self.args.nodes.iter().any(asked)) {
            return Ok(BTreeMap::new());
        }
        let wanted = self.settings.store == node_metadata::StoreEngine::Etcd;
        let has = self.place.members.has_etcd(master).context("asking the master which store its image has")?;
        let to = if wanted { StoreEngine::Etcd } else { StoreEngine::Embedded };
        Ok((has != wanted).then(|| (master.to_owned(), to)).into_iter().collect())
    }

    /// The images of the chosen nodes' roles, where they are what a build would make.
    fn built_images(&self) -> Result<BTreeMap<Role, ImageFile>> {
        let asked = |role: Role, groups: &[&str]| {
            let named = |name: &String| {
                groups.contains(&name.as_str()) || self.settings.nodes_of(role).any(|n| n.entry.name == *name)
            };
            self.args.nodes.is_empty() || self.args.nodes.iter().any(named)
        };
        let roles = [(Role::Master, &["master", "masters"][..]), (Role::Worker, &["workers"][..])];
        let roles: Vec<Role> =
            roles.into_iter().filter(|(role, groups)| asked(*role, groups)).map(|(role, _)| role).collect();
        built_images(self.settings, &roles, self.args.components.as_deref(), &self.progress)
    }

    fn kube(&self) -> Kube<'_> {
        Kube(&self.place.api)
    }

    /// How many times longer everything takes than with KVM.
    fn patience(&self) -> Result<u64> {
        let accel = State::load(&self.settings.run_dir())?.accel;
        let accel = if accel == "kvm" { crate::local::Accel::Kvm } else { crate::local::Accel::Tcg };
        Ok(accel.patience().into())
    }

    fn make(&self, wish: &Wish, listed: &[Machine]) -> Result<Plan> {
        self.make_by(plan::make, wish, listed)
    }

    fn make_by(
        &self,
        decide: fn(&Wish, &Situation<'_>) -> Result<Plan, Refusal>,
        wish: &Wish,
        listed: &[Machine],
    ) -> Result<Plan> {
        let masters = self.masters();
        let mut members = self.settings.members();
        members.retain(|name, _| masters.len() > 1 && masters.contains(&name.as_str()));
        let workers = self.settings.nodes_of(Role::Worker).filter(|node| !wish.spares.contains(&node.entry.name));
        let situation = Situation {
            workers: workers.map(|n| n.entry.name.as_str()).collect(),
            masters,
            members: &members,
            nodes: &self.kube().nodes()?,
            machines: listed,
            gap_secs: if self.settings.provider.is_some() { MADE_GAP_SECS } else { GAP_SECS * self.patience()? },
            claims: &self.kube().local_claims()?,
            bare_pods: &self.kube().bare_pods()?,
            carried: &begin::last(self.kube(), self.copy)?
                .map(|last| begin::carried(&last.journal))
                .unwrap_or_default(),
        };
        let mut plan = decide(wish, &situation).map_err(|refusal| match refusal {
            Refusal::Mistake(why) => anyhow::Error::new(BadInput(why)),
            Refusal::Undecided(undecided, why) => {
                if self.args.dry_run {
                    println!("{}", undecided.text());
                }
                BadInput(why).into()
            }
            Refusal::Unfit(why) => anyhow::anyhow!(why),
        })?;
        self.check_copies(&mut plan)?;
        Ok(plan)
    }

    /// Shows the plan; whether there is anything to do.
    fn show(&self, plan: &Plan, nothing: &str) -> Result<bool> {
        let any = !plan.nodes.is_empty();
        if self.args.json {
            if self.args.dry_run {
                println!("{}", serde_json::to_string_pretty(plan).context("writing JSON")?);
            } else if !any && !nothing.is_empty() {
                println!("{}", json!({"outcome": "done", "nodes": []}));
            }
        } else if any {
            println!("{}", plan.text());
            if plan.nodes.iter().any(|item| item.spare && !item.to.is_empty()) {
                self.spare_notes().iter().for_each(|note| println!("{note}"));
            }
            self.place.notes.iter().for_each(|note| println!("{note}"));
            println!("first: {}", here::intent(self.settings));
        } else if !nothing.is_empty() {
            println!("{nothing}");
        }
        Ok(any)
    }

    fn journal(&self, plan: &Plan, back: bool) -> Result<Journal> {
        let rules = Rules {
            max_unavailable: spares::at_a_time(
                self.args.max_unavailable,
                self.surge,
                self.settings.lasting_workers().count(),
            ),
            settle_secs: self.args.settle,
            timeout_secs: self.args.timeout,
            ready_secs: match (self.args.ready_timeout, &self.settings.provider) {
                (Some(secs), _) => secs,
                (None, Some(_)) => MADE_SECS,
                (None, None) => READY_SECS * self.patience()?,
            },
            on_blocked: self.args.on_blocked,
        };
        let workloads = self.kube().workloads()?;
        let whole =
            workloads.into_iter().filter(|(_, (ready, wanted))| ready >= wanted).map(|(name, _)| name).collect();
        Ok(plan.journal(rules, whole, back, Timestamp::now()))
    }

    fn execute(
        &self,
        machines: &mut dyn Machines,
        planned: Planned,
        last: Option<&Book>,
        interrupt: &Interrupt,
    ) -> Result<Journal> {
        let stop = || interrupt.asked();
        let say = |line: &str| eprintln!("{line}");
        let failpoint = |point: &str| {
            if self.args.fail_at.as_deref() == Some(point) {
                eprintln!("ended at {point}");
                std::process::exit(137);
            }
            Ok(())
        };
        let (kube, me, _alone) = (self.kube(), Holder::me(), self.copy.lock()?);
        let apart = last.is_some_and(|last| last.apart);
        if !apart {
            begin::take_lock(kube, &me, &RealClock, &stop, &say).map_err(|error| self.explain(error))?;
        }
        let found = if apart { begin::last_without_api(self.copy)? } else { begin::last(kube, self.copy)? };
        if found.as_ref().map(|found| &found.journal) != last.map(|last| &last.journal) {
            if !apart {
                kube.release_lock(&me)?;
            }
            bail!("another roll was begun or ended while this one was planned; run `kimg roll` again");
        }
        let kept = RefCell::new(None);
        let backup = || {
            let (said, file) = here::make(self.settings, self.secrets, self.place.api.now()?)?;
            *kept.borrow_mut() = file;
            anyhow::Ok(said)
        };
        let mut book = match (planned, found) {
            (Planned::GoOn(journal) | Planned::WithoutApi(journal), Some(found)) => Book { journal, ..found },
            (Planned::GoOn(journal) | Planned::WithoutApi(journal) | Planned::Anew(journal), _) => {
                match backup() {
                    Ok(said) => say(&said),
                    // What is broken must not keep itself from being put right.
                    Err(error) if journal.back => say(&format!("no backup of the store: {error:#}")),
                    Err(error) => {
                        kube.release_lock(&me)?;
                        return Err(error.context("nothing was touched, as no backup of the store could be made"));
                    }
                }
                begin::write(kube, journal)?
            }
        };
        failpoint("begin")?;
        let clock = RealClock;
        interrupt.busy(true);
        let mut engine = Engine {
            kube,
            members: &self.place.members,
            volumes: &NodeVolumes(self.settings),
            machines,
            copy: self.copy,
            backup: &backup,
            keep_logs: &|node| {
                let path = kept::keep(self.settings, node)?;
                Ok(format!("its last logs are in {}", shown(&path)))
            },
            clock: &clock,
            me,
            stop: &stop,
            failpoint: &failpoint,
            say: &say,
        };
        let outcome = begin::run(&mut engine, &mut book).map_err(|error| self.explain(error));
        interrupt.busy(false);
        let outcome = outcome?;
        self.report(&book.journal, outcome, kept.into_inner())?;
        if outcome == Outcome::Done {
            machines.tidy()?;
        }
        Ok(book.journal)
    }

    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if error.is::<Stop>() {
            let dir = dir_flag(self.settings);
            return Interrupted(format!(
                "interrupted; `kimg roll{dir}` goes on where it was, and `kimg roll --rollback{dir}` goes back"
            ))
            .into();
        }
        error
    }
}

pub(super) fn step_name(step: Step) -> String {
    format!("{step:?}").to_lowercase()
}

fn confirmed() -> Result<bool> {
    match input::agreed("Go on?")? {
        Some(agreed) => Ok(agreed),
        None => input::bad("nobody is there to be asked: add --yes, or --dry-run to see the plan only"),
    }
}
