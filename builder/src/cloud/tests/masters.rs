//! Several masters at a provider: they begin together, are rolled one after the other, and one that is lost joins the others;
//! wherever kimg is ended.

use super::roll::{NEW, Shelf};
use super::*;
use crate::cloud::machines::{CloudMachines, Nodes};
use crate::local::up::ImageFile;
use crate::machines::{Data, Ended, Machine as Listed, Machines, NO_IMAGE, Order as Wanted};
use crate::roll::Clock as _;
use crate::roll::engine::Killed;
use crate::roll::fake::Fake;
use crate::roll::journal::{Journal, Outcome, Rules};
use crate::roll::plan::Wish;
use crate::roll::tests::{check_clean, command_on, journal_on, never, roll_back_on, rules};
use node_api::{Masters, StoreMember, Taken};
use std::cell::RefCell;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const MASTERS: [&str; 3] = ["m1", "m2", "m3"];

/// Where kimg keeps the addresses of all masters, and not of one only.
fn places() -> impl Iterator<Item = Which> {
    ALL.into_iter().filter(|which| ![Which::Gcp, Which::Aws].contains(which))
}

fn several(which: Which, workers: &[&str]) -> Settings {
    let node = |name: &&str, role: &str| format!("[[nodes]]\nname = \"{name}\"\nrole = \"{role}\"\n");
    let masters = MASTERS.iter().map(|name| node(name, "master"));
    let nodes: String = masters.chain(workers.iter().map(|name| node(name, "worker"))).collect();
    read(&format!("name = \"demo\"\nstore = \"etcd\"\n[provider]\n{}{nodes}", which.provider()))
}

fn stage(which: Which) -> Stage {
    Stage::of(which, several(which, &["w"]))
}

/// All machines are there once, the masters share one store, and the worker knows all of them.
fn check_whole(stage: &Stage, at: &str) {
    let mut world = stage.world();
    let mut names: Vec<&str> = world.machines.values().map(|machine| machine.body["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["m1.demo", "m2.demo", "m3.demo", "w.demo"], "{at}");
    assert_eq!(world.nodes.len(), 4, "{at}");
    check_members(&mut world, at);
}

fn check_members(world: &mut World, at: &str) {
    world.members();
    let mut wanted: Vec<u64> = MASTERS.iter().flat_map(|name| world.machine(&format!("{name}.demo"))).collect();
    wanted.sort_unstable();
    assert_eq!(world.whole_members(), wanted, "{at}");
    assert_eq!(world.count_members(), 3, "{at}: one that is lost still counts");
}

#[test]
fn three_masters_begin_together_and_go() {
    for which in places() {
        let stage = stage(which);
        (stage.world().away, stage.world().unready) = (3, 4);
        let plan = stage.plan();
        assert_eq!(plan.steps.iter().filter(|step| matches!(step, Step::MakeServer { .. })).count(), 4, "{which:?}");
        let done = stage.up().unwrap();
        assert_eq!(done.made, ["m1", "m2", "m3", "w"], "{which:?}");
        check_whole(&stage, "up");
        // Other tests write the same file.
        assert!(std::fs::read_to_string(&done.kubeconfig).unwrap().contains("server: https://192.0.2."));
        let sent = stage.server.calls().len();
        assert!(stage.up().unwrap().made.is_empty(), "{which:?}");
        stage.check_only_asked(sent);
        assert!(stage.plan().steps.is_empty() && stage.plan().drift.is_empty(), "{:?}", stage.plan());
        // Switched off, and on again.
        for machine in stage.world().machines.values_mut() {
            machine.off = true;
        }
        stage.up().unwrap();
        check_whole(&stage, "started");
        stage.destroy().unwrap();
        assert!(stage.world().is_empty(), "{which:?}");
        stage.check_calls(None);
    }
}

#[test]
fn a_lost_cluster_gets_its_store_from_a_copy() {
    for which in places() {
        let stage = stage(which);
        let give = |_: IpAddr| stage.world().begin_filled();
        stage.up_with(Some(&give)).unwrap();
        check_whole(&stage, "restored");
        let servers = stage.cloud().inventory().unwrap().servers;
        assert!(servers.iter().all(|server| server.image == SUM), "{which:?}: {servers:?}");
    }
}

#[test]
fn whenever_up_is_ended_the_next_run_ends_the_same() {
    for which in places() {
        behind_each_call(which, 15, |n, at| {
            let mut stage = stage(which);
            let stops = Some((stage.clock.clone(), n));
            stage.world().stops = stops;
            match stage.up() {
                Ok(_) => return true,
                Err(error) => assert!(error.is::<Interrupted>(), "{at}: {error:#}"),
            }
            stage.world().stops = None;
            stage.clock = Virtual::new();
            stage.up().unwrap_or_else(|error| panic!("{at}: {error:#}"));
            check_whole(&stage, at);
            false
        });
    }
}

#[test]
fn whichever_call_of_up_fails_the_next_run_ends_the_same() {
    for which in places() {
        let calls = {
            let stage = stage(which);
            stage.up().unwrap();
            stage.server.calls()
        };
        for (n, call) in ends(which).map_while(|n| Some((n, calls.get(n)?))) {
            let all = faults(call);
            // One at each call, and another at the next.
            let fault = all[n % all.len()].clone();
            let stage = stage(which);
            stage.server.fail(n, fault.clone());
            let at = format!("{which:?}, call {n}, {fault:?}");
            drop(stage.up());
            stage.up().unwrap_or_else(|error| panic!("{at}: the next run: {error:#}"));
            check_whole(&stage, &at);
            stage.check_calls(Some(n));
        }
    }
}

#[test]
fn up_makes_no_master_in_the_place_of_one_that_had_the_store() {
    for which in places() {
        let whole = stage(which);
        whole.up().unwrap();
        let lost = whole.world().machine("m2.demo")[0];
        // A new disk, which nobody has told anything.
        whole.world().machines.get_mut(&lost).unwrap().disks += 1;
        let error = whole.up().unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("`kimg heal m2`"), "{which:?}: {error:#}");
        whole.world().machines.remove(&lost);
        let sent = whole.server.calls().len();
        let error = whole.up().unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("`kimg heal m2` makes another"), "{error:#}");
        whole.check_only_asked(sent);
        let mut plan = whole.plan();
        assert_eq!((plan.refusals.len(), &plan.refusals), (1, &plan.lost), "{which:?}");
        plan.heals();
        let makes = |step: &Step| matches!(step, Step::MakeServer { node, .. } if node == "m2");
        assert!(plan.check().is_ok() && plan.steps.iter().all(makes), "what makes it anew goes on");
        // Before there was any worker the store may have begun as well.
        let worker = whole.world().machine("w.demo")[0];
        whole.world().machines.remove(&worker);
        let error = whole.up().unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("`kimg heal m2` makes another"), "{error:#}");
        assert_eq!(whole.world().machines.len(), 2, "{which:?}: something was made");
    }
}

/// The masters' nodes: those of the provider's machines, and what a roll's own cluster has of them.
#[derive(Clone)]
struct Told {
    world: Shared,
    fake: Fake,
    /// It began with one master, whose first image knows of no others.
    one: bool,
    /// The disk whose store is closed.
    fenced: std::rc::Rc<std::cell::Cell<Option<(u64, usize)>>>,
    /// Machine and disk of each master, as they were seen last.
    seen: std::rc::Rc<RefCell<BTreeMap<String, (u64, usize)>>>,
}

impl Told {
    fn new(stage: &Stage, fake: &Fake) -> Told {
        let (world, fake) = (stage.world.clone(), fake.clone());
        let told = Told { world, fake, one: false, fenced: Default::default(), seen: Default::default() };
        told.seen.replace(told.now());
        told
    }

    fn now(&self) -> BTreeMap<String, (u64, usize)> {
        let world = held(&self.world);
        let disk = |name: &&str| {
            let id = *world.machine(&format!("{name}.demo")).first()?;
            Some((name.to_string(), (id, world.machines[&id].disks)))
        };
        MASTERS.iter().filter_map(disk).collect()
    }

    /// One whose disk is new, or whose machine is gone, is no member until it is told.
    fn see(&self) {
        let now = self.now();
        for name in MASTERS {
            if self.seen.borrow().get(name) != now.get(name) {
                let mut told = self.fake.0.borrow_mut();
                let time = told.now;
                let master = told.machines.get_mut(name).unwrap();
                *master = master.anew("new disk", time, false);
                master.running = false;
            }
        }
        self.seen.replace(now);
    }

    /// The machine of a master that answers.
    fn at(&self, node: &str, at: IpAddr) -> Result<u64> {
        self.fake.sleep(Duration::from_secs(1));
        self.see();
        let mut world = held(&self.world);
        let World { answered, stops, .. } = &mut *world;
        fake::count(answered, stops.as_ref());
        let id = world.machine(&format!("{node}.demo")).first().copied();
        match id.filter(|id| world.runs(*id) && world.public(*id) == at.to_string()) {
            Some(id) => Ok(id),
            None => anyhow::bail!("nobody answers at {at}"),
        }
    }
}

impl Nodes for Told {
    fn boot(&self, node: &str, at: IpAddr) -> Option<String> {
        self.at(node, at).ok().map(|_| "any".into())
    }

    fn told(&self, node: &str, at: IpAddr) -> Result<Option<Masters>> {
        let id = self.at(node, at)?;
        let world = held(&self.world);
        let knows_itself = self.one && node == "m1" && world.machines[&id].made_of != "78";
        Ok((!knows_itself).then(|| world.told_of(id)))
    }

    fn tell(&self, node: &str, at: IpAddr, masters: &Masters) -> Result<()> {
        let id = self.at(node, at)?;
        let alone = self.one && node == "m1" && masters.masters.len() == 1;
        assert!(masters.join || alone, "a second store would begin");
        held(&self.world).tell(id, masters);
        let mut told = self.fake.0.borrow_mut();
        let time = told.now;
        let master = told.machines.get_mut(node).unwrap();
        if !master.running {
            let image = if held(&self.world).machines[&id].made_of == "78" { NEW } else { SUM };
            *master = master.anew(image, time, false);
            master.joined = true;
        }
        Ok(())
    }

    fn members(&self, node: &str, at: IpAddr) -> Result<Vec<StoreMember>> {
        self.at(node, at)?;
        Ok(held(&self.world).members())
    }

    fn remove_member(&self, node: &str, at: IpAddr, name: &str) -> Result<()> {
        self.at(node, at)?;
        held(&self.world).remove_member(name);
        Ok(())
    }

    fn power_off(&self, node: &str, _: IpAddr) -> Result<()> {
        anyhow::bail!("{node} is to run on")
    }

    /// What follows is asked of a single master only.
    fn take(&self, node: &str, at: IpAddr) -> Result<Option<Taken>> {
        panic!("{node} at {at} has no data volume")
    }

    fn fence(&self, node: &str, at: IpAddr) -> Result<()> {
        let id = self.at(node, at)?;
        assert!(self.one && held(&self.world).count_members() < 2, "the store of {node} is shared");
        self.fenced.set(Some((id, held(&self.world).machines[&id].disks)));
        Ok(())
    }

    fn unfence(&self, node: &str, at: IpAddr) -> Result<()> {
        self.at(node, at)?;
        self.fenced.set(None);
        Ok(())
    }

    fn snapshot(&self, node: &str, at: IpAddr) -> Result<Vec<u8>> {
        self.at(node, at)?;
        Ok(b"all that was acknowledged".into())
    }

    fn begin(&self, node: &str, at: IpAddr, copy: &[u8]) -> Result<bool> {
        let id = self.at(node, at)?;
        assert_eq!(copy, b"all that was acknowledged");
        let mut world = held(&self.world);
        if self.fenced.get() == Some((id, world.machines[&id].disks)) {
            return Ok(false);
        }
        world.begin_filled().map(|()| true)
    }
}

/// The machines at the provider, of whose disks the told cluster hears.
struct Both<'a> {
    cloud: CloudMachines<'a>,
    told: &'a Told,
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

    fn check(&self, nodes: &[&str]) -> Result<()> {
        self.cloud.check(nodes)
    }

    /// An interrupt stands for the end of the process.
    fn rebuild(&mut self, order: &Wanted<'_>) -> Result<Ended> {
        let made = self.cloud.rebuild(order);
        self.told.see();
        made.map_err(|error| if error.is::<Interrupted>() { Killed("a call".into()).into() } else { error })
    }

    fn remove(&mut self, node: &str) -> Result<Ended> {
        anyhow::bail!("{node} is to stay")
    }

    fn boot(&self, node: &str) -> Option<String> {
        self.told.fake.boot(node)
    }

    fn console(&self, node: &str) -> Vec<String> {
        self.cloud.console(node)
    }
}

/// A provider with three masters and two workers, and the cluster on them.
fn begun(which: Which) -> World {
    let stage = Stage::of(which, several(which, &["w1", "w2"]));
    stage.up().unwrap();
    World::clone(&stage.world())
}

fn again(which: Which, there: &World) -> (Stage, Told) {
    let stage = Stage::of(which, several(which, &["w1", "w2"]));
    *stage.world() = there.clone();
    let fake = Fake::with_masters(2);
    fake.0.borrow_mut().machines.values_mut().for_each(|machine| machine.image = SUM.into());
    let told = Told::new(&stage, &fake);
    (stage, told)
}

fn with<T>(stage: &Stage, told: &Told, work: impl FnOnce(&mut Both<'_>) -> T) -> T {
    let (cloud, client, secrets) = (stage.cloud(), stage.clock.client(), Secrets::open(&stage.settings.secrets_dir()));
    let offer = cloud.offer().unwrap();
    let cloud = CloudMachines {
        settings: &stage.settings,
        provider: stage.provider(),
        secrets: &secrets,
        offer: &offer,
        cloud: &*cloud,
        images: &Shelf { full: false },
        nodes: told,
        client: &client,
    };
    work(&mut Both { cloud, told })
}

fn patient() -> Rules {
    Rules { ready_secs: 600, ..rules() }
}

/// The journal that puts the new image under all masters.
fn rolls(told: &Told, both: &Both<'_>) -> Journal {
    let images = MASTERS.map(|node| (node.to_string(), NEW.to_string())).into();
    journal_on(&told.fake, both, &Wish { images, ..Wish::default() }, patient(), false)
}

/// The one that does so with the first.
fn rolls_one(told: &Told, both: &Both<'_>) -> Journal {
    let images = [("m1".to_string(), NEW.to_string())].into();
    journal_on(&told.fake, both, &Wish { images, ..Wish::default() }, patient(), false)
}

/// The one that makes a lost master anew.
fn heals(told: &Told, both: &Both<'_>) -> Journal {
    let images = [("m2".to_string(), SUM.to_string())].into();
    let wish = Wish { nodes: vec!["m2".into()], images, lost: true, ..Wish::default() };
    journal_on(&told.fake, both, &wish, patient(), false)
}

type Plans = fn(&Told, &Both<'_>) -> Journal;

/// One command, which is killed behind so many calls, where it is.
fn command(stage: &Stage, told: &Told, plans: Plans, calls: Option<usize>) -> Result<(Outcome, Journal)> {
    with(stage, told, |both| {
        command_on(&told.fake, both, told.fake.process(), &never, |both| {
            let journal = plans(told, both);
            let mut world = stage.world();
            world.stops = calls.map(|calls| (stage.clock.clone(), world.answered + calls));
            journal
        })
    })
}

/// All masters are whole members with these images, and nothing else was touched.
fn check(stage: &Stage, told: &Told, there: &World, images: [&str; 3], at: &str) {
    check_clean(&told.fake, at);
    let servers = stage.cloud().inventory().unwrap().servers;
    let mut found: Vec<(&str, &str)> = servers.iter().map(|one| (one.node.as_str(), one.image.as_str())).collect();
    found.sort_unstable();
    let [m1, m2, m3] = images;
    assert_eq!(found, [("m1", m1), ("m2", m2), ("m3", m3), ("w1", SUM), ("w2", SUM)], "{at}");
    check_members(&mut stage.world(), at);
    assert_eq!(stage.world().kinds().len(), there.kinds().len(), "{at}");
    // Nothing is missing, and whoever was told of another address before knows the new one.
    stage.up().unwrap_or_else(|error| panic!("{at}: {error:#}"));
    assert!(stage.plan().steps.is_empty(), "{at}: {:?}", stage.plan());
}

#[test]
fn masters_are_rolled_one_after_the_other_and_the_api_stays() {
    for which in places() {
        let there = begun(which);
        let (stage, told) = again(which, &there);
        let (outcome, journal) = command(&stage, &told, rolls, None).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        for name in MASTERS {
            assert_eq!(stage.world().machine(&format!("{name}.demo")), there.machine(&format!("{name}.demo")));
            assert!(told.fake.0.borrow().machines[name].joined, "{which:?}: {name}");
        }
        check(&stage, &told, &there, [NEW; 3], "forth");
        let (outcome, journal) = with(&stage, &told, |both| roll_back_on(&told.fake, both, &never)).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &told, &there, [SUM; 3], "back");
        stage.check_calls(None);
    }
}

#[test]
fn behind_whichever_call_of_a_roll_it_is_killed_it_goes_on_or_back() {
    for which in places() {
        let there = begun(which);
        behind_each_call(which, 15, |n, at| {
            let (mut stage, told) = again(which, &there);
            let first = command(&stage, &told, rolls_one, Some(n));
            if !stage.clock.stopped.load(Relaxed) {
                first.unwrap();
                return true;
            }
            stage.world().stops = None;
            stage.clock = Virtual::new();
            told.fake.sleep(Duration::from_secs(7));
            let back = n % 2 == 1;
            let (outcome, journal) = match back {
                true => with(&stage, &told, |both| roll_back_on(&told.fake, both, &never)),
                false => command(&stage, &told, rolls_one, None),
            }
            .unwrap_or_else(|error| panic!("{at}: {error:#}"));
            assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
            check(&stage, &told, &there, [if back { SUM } else { NEW }, SUM, SUM], at);
            false
        });
    }
}

#[test]
fn behind_whichever_call_of_healing_it_is_killed_the_lost_master_joins() {
    for (which, gone) in places().flat_map(|which| [(which, false), (which, true)]) {
        let there = begun(which);
        behind_each_call(which, 5, |n, at| {
            let at = &format!("{at}, gone: {gone}");
            let (mut stage, told) = again(which, &there);
            let old = stage.world().machine("m2.demo")[0];
            match gone {
                true => drop(stage.world().machines.remove(&old)),
                false => stage.world().machines.get_mut(&old).unwrap().disks += 1,
            }
            told.see();
            told.fake.sleep(Duration::from_secs(60));
            let first = command(&stage, &told, heals, Some(n));
            let whole = !stage.clock.stopped.load(Relaxed);
            stage.world().stops = None;
            if whole {
                first.unwrap();
            } else {
                stage.clock = Virtual::new();
                told.fake.sleep(Duration::from_secs(7));
                let (outcome, journal) =
                    command(&stage, &told, heals, None).unwrap_or_else(|error| panic!("{at}: {error:#}"));
                assert!(outcome == Outcome::Done && journal.heals(), "{at}: {journal:?}");
            }
            check(&stage, &told, &there, [SUM; 3], at);
            assert_eq!(stage.world().machines.contains_key(&old), !gone, "{at}");
            stage.check_calls(None);
            whole
        });
    }
}

#[test]
fn a_master_that_cannot_be_rebuilt_is_a_member_as_before() {
    for which in places() {
        let there = begun(which);
        let (stage, told) = again(which, &there);
        stage.world().keeps_disks = true;
        let (outcome, journal) = command(&stage, &told, rolls, None).unwrap();
        let why = journal.failed().and_then(|entry| entry.why.clone()).unwrap_or_default();
        assert!(outcome == Outcome::Stopped && why.contains("rebuilding the machine of m1"), "{which:?}: {why}");
        assert!(stage.cloud().inventory().unwrap().servers.iter().all(|server| server.image != NO_IMAGE));
        check_members(&mut stage.world(), "refused");
        stage.world().keeps_disks = false;
        let (outcome, journal) = command(&stage, &told, rolls, None).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &told, &there, [NEW; 3], "later");
    }
}

/// What `kimg scale masters 3` does where there is one: it gets the image that knows all, and the others join it.
fn grow(stage: &Stage, told: &Told, calls: Option<usize>) -> Result<()> {
    with(stage, told, |both| {
        let answered = stage.world().answered;
        stage.world().stops = calls.map(|calls| (stage.clock.clone(), answered + calls));
        let image = |both: &Both<'_>, name: &str| {
            both.list().map(|all| all.into_iter().find(|one| one.node == name).map(|one| one.image).unwrap())
        };
        let mut order = Wanted { node: "m1", image: NEW, token: None, data: Data::Stays };
        if image(both, "m1")? != NEW {
            both.cloud.rebuild(&order)?;
        }
        both.cloud.introduce_all()?;
        for name in ["m2", "m3"] {
            if image(both, name)? == NO_IMAGE {
                (order.node, order.data) = (name, Data::JoinsEtcd);
                both.cloud.rebuild(&order)?;
            }
        }
        Ok(())
    })
}

#[test]
fn behind_whichever_call_one_master_becomes_three() {
    for which in places() {
        let one = format!("name = \"demo\"\nstore = \"etcd\"\n[provider]\n{}", which.provider());
        let node = |name: &str, role: &str| format!("[[nodes]]\nname = \"{name}\"\nrole = \"{role}\"\n");
        let before = Stage::of(which, read(&format!("{one}{}{}", node("m1", "master"), node("w", "worker"))));
        before.up().unwrap();
        let there = World::clone(&before.world());
        behind_each_call(which, 10, |n, at| {
            let dir = tempfile::tempdir().unwrap();
            let settings = several(which, &["w"]);
            std::os::unix::fs::symlink(settings.dir.join("secrets"), dir.path().join("secrets")).unwrap();
            let mut stage = Stage::of(which, Settings { dir: dir.path().into(), ..settings });
            std::fs::create_dir_all(stage.settings.run_dir()).unwrap();
            *stage.world() = there.clone();
            let told = Told { one: true, ..Told::new(&stage, &Fake::with_masters(2)) };
            let refused = with(&stage, &told, |both| {
                both.cloud.rebuild(&Wanted { node: "m1", image: NEW, token: None, data: Data::JoinsEtcd })
            });
            let why = format!("{:#}", refused.unwrap_err());
            assert!(why.contains("the other masters cannot do without m1, so it is not touched"), "{which:?}: {why}");
            // Nor is a machine made that cannot join anybody.
            let in_vain = with(&stage, &told, |both| {
                both.cloud.rebuild(&Wanted { node: "m2", image: NEW, token: None, data: Data::JoinsEtcd })
            });
            let why = format!("{:#}", in_vain.unwrap_err());
            assert!(why.contains("the image of m1 knows no other masters"), "{which:?}: {why}");
            assert!(stage.world().machine("m2.demo").is_empty(), "{which:?}: one was made");
            let first = grow(&stage, &told, Some(n));
            let whole = !stage.clock.stopped.load(Relaxed);
            stage.world().stops = None;
            if whole {
                first.unwrap();
            } else {
                stage.clock = Virtual::new();
                grow(&stage, &told, None).unwrap_or_else(|error| panic!("{at}: {error:#}"));
            }
            stage.up().unwrap_or_else(|error| panic!("{at}: {error:#}"));
            check_whole(&stage, at);
            let servers = stage.cloud().inventory().unwrap().servers;
            let masters = servers.iter().filter(|server| server.node.starts_with('m'));
            assert!(masters.clone().count() == 3 && masters.clone().all(|one| one.image == NEW), "{at}: {servers:?}");
            assert!(!stage.settings.run_dir().join("store.snapshot").exists(), "{at}: a copy is left");
            assert_eq!(stage.world().machine("m1.demo"), there.machine("m1.demo"), "{at}");
            // And back: whoever is gone is no member any more, and the one that is left knows of nobody else.
            if whole {
                for name in ["m3", "m2"] {
                    let (id, own) = {
                        let world = stage.world();
                        let id = world.machine(&format!("{name}.demo"))[0];
                        (id, world.private(id))
                    };
                    stage.world().machines.remove(&id);
                    stage.world().remove_member(&own);
                }
                with(&stage, &told, |both| both.cloud.introduce_all()).unwrap();
                let id = stage.world().machine("m1.demo")[0];
                let own: IpAddr = stage.world().private(id).parse().unwrap();
                assert_eq!(stage.world().told_of(id), Masters { masters: vec![own], join: true }, "{at}");
            }
            whole
        });
    }
}
