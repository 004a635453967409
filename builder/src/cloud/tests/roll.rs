//! Rolls of workers at a provider: its fake has the machines, and the roll's own fake the rest of the cluster.

use super::*;
use crate::cloud::Offer;
use crate::cloud::cluster::Cluster as _;
use crate::cloud::machines::{CloudMachines, Nodes};
use crate::image::build::output_dir;
use crate::local::up::ImageFile;
use crate::machines::{Data, Ended, Machine as Listed, Machines, Order as Wanted};
use crate::roll::Clock as _;
use crate::roll::engine::Killed;
use crate::roll::fake::{Fake, FakeMachine};
use crate::roll::journal::{Journal, Outcome};
use crate::roll::plan::Wish;
use crate::roll::tests::{check_clean, command_on, journal_on, never, roll_back_on, rules};
use crate::seed::token::BootstrapToken;
use anyhow::Context as _;
use jiff::Timestamp;
use node_api::Taken;
use std::cell::Cell;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

pub(super) const NEW: &str = "ba9876543210";

/// Two images that are at the provider, where none can be brought besides.
pub(super) struct Shelf {
    pub(super) full: bool,
}

impl Images for Shelf {
    fn ensure(&self, _: Role) -> Result<Image> {
        if self.full {
            anyhow::bail!("no room for images");
        }
        Ok(Image { id: "78".into(), sum: NEW.into() })
    }

    fn find(&self, sum: &str) -> Result<Option<Image>> {
        let id = [(SUM, "77"), (NEW, "78")].into_iter().find(|(known, _)| *known == sum);
        Ok(id.map(|(sum, id)| Image { id: id.into(), sum: sum.into() }))
    }
}

/// Nodes that power off when they are told to, unless they are deaf.
pub(super) struct Powered {
    pub(super) world: Shared,
    pub(super) fake: Fake,
    pub(super) deaf: bool,
}

impl Powered {
    /// The master's node, which answers where its machine is and runs; a new disk of it waits for a store.
    fn master(&self, at: IpAddr) -> Result<()> {
        let world = held(&self.world);
        let id = world.machine("m.demo").first().copied().context("it is gone")?;
        see_disk(&world, &self.fake);
        let (mute, empty) = {
            let told = self.fake.0.borrow();
            let is = |check: &dyn Fn(&FakeMachine) -> bool| told.machines.get("m").is_some_and(check);
            (is(&|master| told.mute.contains(&master.image)), is(&|master| master.awaits_backup))
        };
        // A new disk has no certificate before its services start, for which it waits. One that has a store itself does not.
        let on_disk = !empty && world.stores.is_empty();
        let waits = !on_disk && world.told(id) && world.sees(id).is_none();
        if mute || waits || !world.runs(id) || world.public(id) != at.to_string() {
            anyhow::bail!("nobody answers at {at}");
        }
        Ok(())
    }

    /// The data volume that the master was told of, and whether a store is on it.
    fn volume(&self) -> Result<(Option<u64>, bool)> {
        let world = held(&self.world);
        let id = world.machine("m.demo").first().copied().context("it is gone")?;
        let volume = world.sees(id).filter(|_| world.told(id));
        Ok((volume, volume.is_some_and(|volume| world.stores.contains(&volume))))
    }

    fn with_master<T>(&self, at: IpAddr, work: impl FnOnce(&mut FakeMachine) -> T) -> Result<T> {
        // Others go on meanwhile.
        self.fake.sleep(Duration::from_secs(1));
        self.master(at)?;
        Ok(work(self.fake.0.borrow_mut().machines.get_mut("m").unwrap()))
    }
}

/// What has become of the master's disk at the provider is so in the cluster.
pub(super) fn see_disk(world: &World, fake: &Fake) {
    let mut told = fake.0.borrow_mut();
    let now = told.now;
    let Some(master) = told.machines.get_mut("m") else { return };
    let Some(machine) = world.machines.get(world.machine("m.demo").first().unwrap_or(&0)) else {
        (master.running, master.rebuilt) = (false, usize::MAX / 2);
        return;
    };
    if master.rebuilt != machine.disks {
        *master = master.anew(&machine.made_of, now, true);
        master.rebuilt = machine.disks;
    }
}

impl Nodes for Powered {
    fn boot(&self, node: &str, at: IpAddr) -> Option<String> {
        if node != "m" {
            return None;
        }
        self.fake.sleep(Duration::from_secs(1));
        self.master(at).ok().map(|()| "any".into())
    }

    fn fence(&self, _: &str, at: IpAddr) -> Result<()> {
        self.with_master(at, |master| {
            assert!(!master.awaits_backup, "there is no store to close");
            master.fenced = true;
        })
    }

    fn unfence(&self, _: &str, at: IpAddr) -> Result<()> {
        self.with_master(at, |master| master.fenced = false)
    }

    fn take(&self, _: &str, at: IpAddr) -> Result<Option<Taken>> {
        let (volume, has) = self.volume()?;
        let taken = self.with_master(at, |master| {
            if master.fenced {
                return None;
            }
            // On a new disk there is nothing but what is on the volume.
            master.awaits_backup &= !has;
            Some(Taken { store: !master.awaits_backup, on_volume: volume.is_some() })
        })?;
        Ok(taken)
    }

    fn snapshot(&self, _: &str, at: IpAddr) -> Result<Vec<u8>> {
        self.with_master(at, |_| ())?;
        Ok(serde_json::to_vec(&self.fake.0.borrow().objects)?)
    }

    fn begin(&self, _: &str, at: IpAddr, copy: &[u8]) -> Result<bool> {
        let (fenced, awaits) = self.with_master(at, |master| (master.fenced, master.awaits_backup))?;
        if awaits && !fenced {
            let mut told = self.fake.0.borrow_mut();
            told.objects = serde_json::from_slice(copy)?;
            told.machines.get_mut("m").unwrap().awaits_backup = false;
            drop(told);
            if let Some(volume) = self.volume()?.0 {
                held(&self.world).stores.insert(volume);
            }
        }
        Ok(!fenced)
    }

    fn told(&self, _: &str, _: IpAddr) -> Result<Option<node_api::Masters>> {
        Ok(None)
    }

    fn tell(&self, node: &str, _: IpAddr, _: &node_api::Masters) -> Result<()> {
        anyhow::bail!("{node} is the only master")
    }

    fn members(&self, node: &str, _: IpAddr) -> Result<Vec<node_api::StoreMember>> {
        anyhow::bail!("{node} is the only master")
    }

    fn remove_member(&self, node: &str, _: IpAddr, _: &str) -> Result<()> {
        anyhow::bail!("{node} is the only master")
    }

    fn power_off(&self, node: &str, _: IpAddr) -> Result<()> {
        let mut world = held(&self.world);
        let id = world.machine(&format!("{node}.demo")).first().copied().filter(|_| !self.deaf);
        world.machines.get_mut(&id.context("no answer")?).unwrap().off = true;
        Ok(())
    }
}

/// The machines at the provider, of whose ends and starts the told cluster hears.
pub(super) struct Both<'a> {
    pub(super) cloud: CloudMachines<'a>,
    fake: Fake,
    world: Shared,
    ended: Cell<Option<Ended>>,
}

impl Both<'_> {
    /// An interrupt stands for the end of the process.
    fn told<T>(&self, node: &str, result: Result<T>) -> Result<T> {
        if held(&self.world).machine(&format!("{node}.demo")).is_empty()
            && let Some(machine) = self.fake.0.borrow_mut().machines.get_mut(node)
        {
            machine.running = false;
        }
        result.map_err(|error| if error.is::<Interrupted>() { Killed("a call".into()).into() } else { error })
    }
}

impl Machines for Both<'_> {
    fn list(&self) -> Result<Vec<Listed>> {
        self.cloud.list()
    }

    fn offer(&mut self, image: &ImageFile) -> Result<()> {
        self.cloud.offer(image)
    }

    fn holds(&self, image: &str) -> Result<bool> {
        self.cloud.holds(image)
    }

    fn end(&mut self, order: &Wanted<'_>) -> Result<Option<Ended>> {
        let ended = self.cloud.end(order);
        let ended = self.told(order.node, ended)?;
        self.ended.set(ended);
        Ok(ended)
    }

    fn rebuild(&mut self, order: &Wanted<'_>) -> Result<Ended> {
        if order.node == "m" {
            let made = self.cloud.rebuild(order);
            see_disk(&held(&self.world), &self.fake);
            return self.told(order.node, made);
        }
        // As the cluster on the machines would know it.
        let token = order.token.unwrap().to_string();
        held(&self.world).tokens.insert(token, (order.node.into(), Timestamp::MAX));
        let made = self.cloud.rebuild(order);
        self.told(order.node, made)?;
        self.fake.rebuild(order)
    }

    fn remove(&mut self, node: &str) -> Result<Ended> {
        let ended = self.cloud.remove(node);
        let ended = self.told(node, ended)?;
        self.fake.remove(node)?;
        Ok(ended)
    }

    /// A master is asked for it many times.
    fn boot(&self, node: &str) -> Option<String> {
        if node == "m" { self.fake.boot(node) } else { self.cloud.boot(node) }
    }

    fn console(&self, node: &str) -> Vec<String> {
        self.cloud.console(node)
    }
}

pub(super) fn three(which: Which, more: &str) -> Settings {
    let nodes: String = ["m", "w1", "w2"]
        .map(|node| {
            let role = if node == "m" { "master" } else { "worker" };
            format!("[[nodes]]\nname = \"{node}\"\nrole = \"{role}\"\n")
        })
        .concat();
    read(&format!("name = \"demo\"\n[provider]\n{}{more}{nodes}", which.provider()))
}

/// A provider with a master and two workers, as it is after `up`.
pub(super) fn begun(which: Which) -> World {
    let stage = Stage::of(which, three(which, ""));
    stage.up().unwrap();
    // Not the guard itself, which would outlive the stage.
    World::clone(&stage.world())
}

pub(super) fn stage(which: Which, there: &World) -> Stage {
    let stage = Stage::of(which, three(which, ""));
    *stage.world() = there.clone();
    stage
}

/// One `kimg` with the machines of a provider.
pub(super) fn with<T>(stage: &Stage, fake: &Fake, work: impl FnOnce(&mut Both<'_>) -> T) -> T {
    with_images(stage, fake, false, work)
}

pub(super) fn with_images<T>(stage: &Stage, fake: &Fake, full: bool, work: impl FnOnce(&mut Both<'_>) -> T) -> T {
    let offer = stage.cloud().offer().unwrap();
    with_all(stage, fake, full, &offer, work)
}

pub(super) fn with_all<T>(
    stage: &Stage,
    fake: &Fake,
    full: bool,
    offer: &Offer,
    work: impl FnOnce(&mut Both<'_>) -> T,
) -> T {
    let (cloud, client) = (stage.cloud(), stage.clock.client());
    let secrets = Secrets::open(&stage.settings.secrets_dir());
    let nodes = Powered { world: stage.world.clone(), fake: fake.clone(), deaf: stage.which == Which::DigitalOcean };
    let cloud = CloudMachines {
        settings: &stage.settings,
        provider: stage.provider(),
        secrets: &secrets,
        offer,
        cloud: &*cloud,
        images: &Shelf { full },
        nodes: &nodes,
        client: &client,
    };
    work(&mut Both { cloud, fake: fake.clone(), world: stage.world.clone(), ended: Cell::new(None) })
}

/// A `kimg roll` that is killed behind as many calls of the provider, counted from its plan.
pub(super) fn killed_behind(
    stage: &Stage,
    fake: &Fake,
    calls: usize,
    planned: impl Fn(&Both<'_>) -> Journal,
) -> Result<(Outcome, Journal)> {
    with(stage, fake, |both| {
        command_on(fake, both, fake.process(), &never, |both| {
            let journal = planned(both);
            let mut world = stage.world();
            world.stops = Some((stage.clock.clone(), world.answered + calls));
            journal
        })
    })
}

/// Whether it was; then somebody else comes a while later. Behind its last call it may come to its end all the same.
pub(super) fn was_killed(stage: &mut Stage, fake: &Fake, ended: &Result<(Outcome, Journal)>, at: &str) -> bool {
    let killed = stage.clock.stopped.load(Relaxed);
    if killed {
        if let Err(error) = ended {
            assert!(error.is::<Killed>(), "{at}: {error:#}");
        }
        stage.world().stops = None;
        stage.clock = Virtual::new();
        fake.sleep(Duration::from_secs(7));
    }
    killed
}

fn planned(fake: &Fake, machines: &dyn Machines) -> Journal {
    let images = ["w1", "w2"].map(|node| (node.to_string(), NEW.to_string())).into();
    journal_on(fake, machines, &Wish { images, ..Wish::default() }, rules(), false)
}

/// One `kimg roll`.
fn roll(stage: &Stage, fake: &Fake) -> Result<(Outcome, Journal)> {
    with(stage, fake, |both| command_on(fake, both, fake.process(), &never, |both| planned(fake, both)))
}

/// Each node has one machine, the master the one that it had, and the workers' are of this image and have joined.
pub(super) fn check(stage: &Stage, fake: &Fake, before: &World, image: &str, at: &str) {
    let servers = stage.cloud().inventory().unwrap().servers;
    let mut found: Vec<(&str, &str)> = servers.iter().map(|one| (one.node.as_str(), one.image.as_str())).collect();
    found.sort_unstable();
    assert_eq!(found, [("m", SUM), ("w1", image), ("w2", image)], "{at}");
    assert_eq!(stage.world().machine("m.demo"), before.machine("m.demo"), "{at}");
    assert_eq!(stage.world().kinds(), before.kinds(), "{at}");
    let (clock, world) = (stage.clock.client(), stage.world.clone());
    let cluster = FakeCluster { settings: &stage.settings, world, now: Box::new(move || clock.clock().now()) };
    let master = servers.iter().find(|server| server.node == "m").unwrap().public.unwrap();
    // It also looks whether each is told where its master is.
    for _ in 0..4 {
        cluster.nodes(master).unwrap();
    }
    let world = stage.world().clone();
    for node in ["w1", "w2"] {
        assert_eq!([world.nodes[node]], world.machine(&format!("{node}.demo"))[..], "{at}: {node}");
    }
    check_clean(fake, at);
}

#[test]
fn each_worker_gets_a_new_machine_and_its_old_one_goes_back() {
    for which in ALL {
        let there = begun(which);
        let (stage, fake) = (stage(which, &there), Fake::new(2));
        let before = stage.plan();
        let (outcome, journal) = roll(&stage, &fake).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &fake, &there, NEW, "forth");
        for node in ["w1", "w2"] {
            assert_ne!(stage.world().machine(&format!("{node}.demo")), there.machine(&format!("{node}.demo")));
        }
        let world = fake.0.borrow();
        assert_eq!((&world.logs[..], world.most_down), (&["w1", "w2"].map(String::from)[..], 1), "{which:?}");
        drop(world);
        let after = stage.plan();
        assert_eq!((after.monthly_now, after.steps), (before.monthly_now, Vec::new()), "{which:?}");
        let (outcome, journal) = with(&stage, &fake, |both| roll_back_on(&fake, both, &never)).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &fake, &there, SUM, "back");
        stage.check_calls(None);
    }
}

/// What was killed behind call `n` goes on, or back. Each call is one of several alike: the way back, which it tells, need
/// not be tried behind all.
pub(super) fn ends_well(
    stage: &Stage,
    fake: &Fake,
    there: &World,
    n: usize,
    at: &str,
    roll: impl Fn(&Stage, &Fake) -> Result<(Outcome, Journal)>,
) -> bool {
    let back = n / step() % 5 == 4;
    let (outcome, journal) = match back {
        true => with(stage, fake, |both| roll_back_on(fake, both, &never)),
        false => roll(stage, fake),
    }
    .unwrap_or_else(|error| panic!("{at}: {error:#}"));
    assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
    check(stage, fake, there, if back { SUM } else { NEW }, at);
    back
}

#[test]
fn behind_whichever_call_it_is_killed_it_goes_on_and_back() {
    for which in ALL {
        let there = begun(which);
        behind_each_call(which, 20, |n, at| {
            let (mut stage, fake) = (stage(which, &there), Fake::new(2));
            let first = killed_behind(&stage, &fake, n, |both| planned(&fake, both));
            if !was_killed(&mut stage, &fake, &first, at) {
                return true;
            }
            ends_well(&stage, &fake, &there, n, at, roll);
            false
        });
    }
}

#[test]
fn what_finds_no_room_is_made_by_the_next_roll() {
    for which in ALL {
        let there = begun(which);
        let (stage, fake) = (stage(which, &there), Fake::new(2));
        stage.world().limit = Some(2);
        let (outcome, journal) = roll(&stage, &fake).unwrap();
        let why = journal.failed().and_then(|entry| entry.why.clone()).unwrap();
        // There is no account at Proxmox, and its storage has an end.
        let says = if which == Which::Proxmox { "no space left on device" } else { "may have no more of these" };
        assert!(outcome == Outcome::Stopped && why.contains(says), "{which:?}: {why}");
        assert!(stage.world().machine("w1.demo").is_empty());
        assert_eq!(
            stage.world().machine("w2.demo"),
            there.machine("w2.demo"),
            "{which:?}: the next one is not touched"
        );
        stage.world().limit = None;
        let listed = with(&stage, &fake, |both| both.list()).unwrap();
        assert_eq!((listed[1].image.as_str(), listed[1].running), ("none", false), "{which:?}");
        let (outcome, journal) = roll(&stage, &fake).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &fake, &there, NEW, "with room");
    }
}

#[test]
fn what_could_not_be_made_anew_is_not_touched() {
    let token = BootstrapToken::random();
    let order = Wanted { node: "w1", image: NEW, token: Some(&token), data: Data::Goes };
    for which in ALL {
        let there = begun(which);
        let (fake, at_first) = (Fake::new(2), stage(which, &there));
        let refused = |stage: &Stage, order: &Wanted<'_>, says: &str| {
            let before = stage.server.calls().len();
            for again in [false, true] {
                let error = with(stage, &fake, |both| match again {
                    true => both.cloud.rebuild(order).map(drop),
                    false => both.cloud.end(order).map(drop),
                });
                let error = format!("{:#}", error.unwrap_err());
                assert!(error.contains(says), "{which:?}: {error}");
            }
            stage.check_only_asked(before);
        };
        refused(&at_first, &Wanted { image: "000000000000", ..order.clone() }, "is not at");
        refused(&at_first, &Wanted { data: Data::Stays, ..order.clone() }, "keeps the data of no machine");
        refused(&at_first, &Wanted { token: None, ..order.clone() }, "keeps the data of no machine");
        let says = |stage: &Stage, says: &str| {
            let error = with(stage, &fake, |both| both.cloud.check(&["w1"])).unwrap_err();
            assert!(error.is::<BadInput>() && error.to_string().contains(says), "{which:?}: {error:#}");
            refused(stage, &order, says);
        };
        // Another type costs something else.
        let size = match which {
            Which::Hetzner => ("server_type", "cx33"),
            Which::DigitalOcean => ("size", "s-1vcpu-1gb"),
            Which::Linode => ("size", "g6-standard-1"),
            Which::Vultr => ("size", "vc2-1c-2gb"),
            Which::OpenStack => ("size", "m1.medium"),
            Which::Gcp => ("size", "e2-medium"),
            Which::Aws => ("size", "t3.medium"),
            Which::Proxmox => ("tags", "2c-1g"),
        };
        let other = stage(which, &there);
        let id = other.world().machine("w1.demo")[0];
        {
            let mut world = other.world();
            let body = &mut world.machines.get_mut(&id).unwrap().body;
            body[size.0] = match which {
                Which::Proxmox => replaced(&body["tags"], "1c-1g", size.1),
                _ => json!(size.1),
            };
        }
        says(&other, &format!("w1 is a {}", size.1));
        with(&other, &fake, |both| both.cloud.check(&["w2"])).unwrap();
        if which != Which::Proxmox {
            // Without its firewall a machine would stand open.
            let open = stage(which, &there);
            open.world().things.retain(|(kind, _), _| *kind != "firewall");
            says(&open, "`kimg up` puts it right");
            // What was removed by hand is not made above the budget.
            let gone = Stage { settings: three(which, "budget = 8\n"), ..stage(which, &there) };
            gone.world().machines.remove(&id);
            says(&gone, "and the budget is 8.00");
        }
        // A type that nobody makes any more.
        let before = at_first.server.calls().len();
        let mut offer = at_first.cloud().offer().unwrap();
        offer.sizes.values_mut().for_each(|size| size.available = false);
        let error = with_all(&at_first, &fake, false, &offer, |both| both.cloud.check(&["w1"]));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("would go and none would come"), "{error}");
        at_first.check_only_asked(before);
    }
    // A machine that is protected stays.
    let stage = stage(Which::Hetzner, &begun(Which::Hetzner));
    let id = stage.world().machine("w1.demo")[0];
    stage.world().machines.get_mut(&id).unwrap().body["protected"] = json!(true);
    let (outcome, journal) = roll(&stage, &Fake::new(2)).unwrap();
    let why = journal.failed().and_then(|entry| entry.why.clone()).unwrap();
    assert!(outcome == Outcome::Stopped && why.contains("is protected against deletion"), "{why}");
    assert_eq!(stage.world().machine("w1.demo"), [id]);
}

#[test]
fn an_image_that_cannot_be_brought_changes_nothing() {
    for which in ALL {
        let (stage, fake) = (stage(which, &begun(which)), Fake::new(2));
        let before = stage.server.calls().len();
        let path = output_dir(&stage.settings, Role::Worker).join("disk.raw");
        let built = |sum: &str| ImageFile { path: path.clone(), id: sum.repeat(6)[..64].to_string() };
        let offered = |full, sum: &str| with_images(&stage, &fake, full, |both| both.offer(&built(sum)));
        let error = offered(true, NEW).unwrap_err().to_string();
        assert!(error.contains("no room for images"), "{error}");
        let error = offered(false, SUM).unwrap_err().to_string();
        assert!(error.contains("another worker image was built meanwhile"), "{error}");
        offered(false, NEW).unwrap();
        stage.check_only_asked(before);
    }
}

#[test]
fn a_node_that_hears_ends_by_itself() {
    for (which, how) in [(Which::Hetzner, Ended::Clean), (Which::DigitalOcean, Ended::Forced)] {
        let (stage, fake) = (stage(which, &begun(which)), Fake::new(2));
        with(&stage, &fake, |both| {
            command_on(&fake, both, fake.process(), &never, |both| planned(&fake, both)).unwrap();
            assert_eq!(both.ended.get(), Some(how), "{which:?}");
        });
    }
}

#[test]
fn a_worker_is_removed_for_good_and_others_are_switched_off() {
    for which in ALL {
        let there = begun(which);
        let (stage, fake) = (stage(which, &there), Fake::new(2));
        with(&stage, &fake, |both| {
            // DigitalOcean's fake does not hear it, and is not said to be off.
            let off = both.cloud.switch_off("w1").unwrap();
            assert_eq!(off, which != Which::DigitalOcean);
            assert_eq!(stage.cloud().inventory().unwrap().servers.len(), 3);
            both.cloud.remove("w2").unwrap();
            both.cloud.remove("w2").unwrap();
        });
        let servers = stage.cloud().inventory().unwrap().servers;
        let mut nodes: Vec<&str> = servers.iter().map(|server| server.node.as_str()).collect();
        nodes.sort_unstable();
        assert_eq!(nodes, ["m", "w1"]);
    }
}
