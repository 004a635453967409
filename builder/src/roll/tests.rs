//! Whole rolls, on a cluster that is only told of.

use super::api::{Api, Kube};
use super::begin;
use super::engine::{Book, Engine, Killed};
use super::fake::Fake;
use super::journal::{Journal, OnBlocked, Outcome, Rules, Step};
use super::lock::Holder;
use super::plan::{self, Plan, Refusal, Situation, Wish};
use super::{Clock, RealClock};
use crate::client::Answer;
use crate::machines::Machines;
use anyhow::Result;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets/";

pub(crate) fn rules() -> Rules {
    Rules { max_unavailable: 1, settle_secs: 10, timeout_secs: 120, ready_secs: 90, on_blocked: OnBlocked::Stop }
}

pub(crate) fn never(_: &str) -> Result<()> {
    Ok(())
}

fn make(fake: &Fake, machines: &dyn Machines, wish: &Wish) -> Plan {
    decide(fake, machines, wish, plan::make).unwrap_or_else(|why| panic!("no plan: {why:?}"))
}

pub(crate) fn decide(
    fake: &Fake,
    machines: &dyn Machines,
    wish: &Wish,
    by: fn(&Wish, &Situation<'_>) -> Result<Plan, Refusal>,
) -> Result<Plan, Refusal> {
    let kube = Kube(fake);
    let machines = machines.list().expect("machines");
    let nodes = kube.nodes().expect("nodes");
    let claims = kube.local_claims().expect("claims");
    let bare = kube.bare_pods().expect("pods");
    let members = fake.members();
    let masters = if members.is_empty() { vec!["m"] } else { members.keys().map(String::as_str).collect() };
    let situation = Situation {
        workers: machines.iter().map(|machine| machine.node.as_str()).filter(|name| name.starts_with('w')).collect(),
        masters,
        members: &members,
        nodes: &nodes,
        machines: &machines,
        gap_secs: 10,
        claims: &claims,
        bare_pods: &bare,
        carried: &begin::last(kube, &fake.copy())
            .expect("a journal")
            .map(|last| begin::carried(&last.journal))
            .unwrap_or_default(),
    };
    by(wish, &situation)
}

pub(super) fn to(fake: &Fake, image: &str) -> Wish {
    let images = fake.list().expect("machines").into_iter().map(|machine| (machine.node, image.to_string()));
    Wish { images: images.collect(), ..Wish::default() }
}

/// The journal of a new roll, as the command writes it.
pub(super) fn journal(fake: &Fake, wish: &Wish, rules: Rules, back: bool) -> Journal {
    journal_on(fake, fake, wish, rules, back)
}

/// The same with other machines than those that the cluster is told of.
pub(crate) fn journal_on(fake: &Fake, machines: &dyn Machines, wish: &Wish, rules: Rules, back: bool) -> Journal {
    let workloads = Kube(fake).workloads().expect("workloads");
    let whole = workloads.into_iter().filter(|(_, (ready, wanted))| ready >= wanted).map(|(name, _)| name).collect();
    make(fake, machines, wish).journal(rules, whole, back, fake.now())
}

/// The last roll; the lock is held after it, where there is an API server.
fn begin_with(fake: &Fake, me: &Holder) -> Result<Option<Book>> {
    let kube = Kube(fake);
    if let Err(error) = kube.check_ready() {
        return begin::last_without_api(&fake.copy())?.map(Some).ok_or(error);
    }
    begin::take_lock(kube, me, fake, &|| false, &|_| ())?;
    begin::last(kube, &fake.copy())
}

fn run(
    fake: &Fake,
    machines: &mut dyn Machines,
    me: Holder,
    failpoint: &dyn Fn(&str) -> Result<()>,
    mut book: Book,
) -> Result<(Outcome, Journal)> {
    let copy = fake.copy();
    let mut engine = Engine {
        kube: Kube(fake),
        machines,
        copy: &copy,
        members: fake,
        volumes: fake,
        backup: &|| fake.back_up(),
        keep_logs: &|node| fake.keep_logs(node),
        clock: fake,
        me,
        stop: &|| false,
        failpoint,
        say: &|line| fake.0.borrow_mut().said.push(line.to_owned()),
    };
    let outcome = begin::run(&mut engine, &mut book)?;
    Ok((outcome, book.journal))
}

/// One `kimg roll`: goes on where there is something to go on with, else does `anew`.
pub(super) fn command(
    fake: &Fake,
    me: Holder,
    failpoint: &dyn Fn(&str) -> Result<()>,
    anew: impl FnOnce() -> Journal,
) -> Result<(Outcome, Journal)> {
    command_on(fake, &mut fake.clone(), me, failpoint, |_| anew())
}

/// The same with other machines than those that the cluster is told of.
pub(crate) fn command_on<M: Machines>(
    fake: &Fake,
    machines: &mut M,
    me: Holder,
    failpoint: &dyn Fn(&str) -> Result<()>,
    anew: impl FnOnce(&M) -> Journal,
) -> Result<(Outcome, Journal)> {
    let last = begin_with(fake, &me)?;
    failpoint("locked")?;
    let book = match last {
        Some(book) if book.journal.outcome == Outcome::Running => book,
        _ => begin::write(Kube(fake), anew(machines))?,
    };
    failpoint("begin")?;
    run(fake, machines, me, failpoint, book)
}

pub(super) fn roll(fake: &Fake, rules: Rules) -> (Outcome, Journal) {
    command(fake, fake.process(), &never, || journal(fake, &to(fake, "new"), rules, false)).expect("a roll")
}

/// `kimg roll --rollback`.
/// The same, which may be ended at a failpoint.
pub(super) fn roll_until(fake: &Fake, failpoint: &dyn Fn(&str) -> Result<()>) -> Result<(Outcome, Journal)> {
    command(fake, fake.process(), failpoint, || journal_of(fake, rules()))
}

/// The nodes, as they were made anew.
pub(super) fn order(fake: &Fake) -> Vec<String> {
    fake.0.borrow().order.clone()
}

pub(super) fn roll_back(fake: &Fake) -> (Outcome, Journal) {
    roll_back_until(fake, &never).expect("a roll back")
}

pub(super) fn roll_back_until(fake: &Fake, failpoint: &dyn Fn(&str) -> Result<()>) -> Result<(Outcome, Journal)> {
    roll_back_on(fake, &mut fake.clone(), failpoint)
}

/// The same with other machines than those that the cluster is told of.
pub(crate) fn roll_back_on(
    fake: &Fake,
    machines: &mut dyn Machines,
    failpoint: &dyn Fn(&str) -> Result<()>,
) -> Result<(Outcome, Journal)> {
    let me = fake.process();
    let last = begin_with(fake, &me)?.expect("a roll before");
    let listed = machines.list().expect("machines");
    if last.apart {
        let journal = begin::back_without_api(&last.journal, &listed, fake.now()).expect("a way back");
        return run(fake, machines, me, failpoint, Book { journal, ..last });
    }
    let last = last.journal;
    let images = begin::images_before(&last, &listed);
    begin::check_held(machines, &images).expect("a way back");
    let nodes: Vec<String> = images.keys().cloned().collect();
    let (first, stores, copy_again) = (begin::unsettled(&last), begin::stores_before(&last), begin::copied(&last));
    let spares = last.nodes.iter().filter(|entry| entry.spare).map(|entry| entry.node.clone()).collect();
    let wish = Wish { nodes, images, back: true, first, stores, spares, copy_again, ..Wish::default() };
    let plan = make(fake, machines, &wish);
    let mut back = plan.journal(rules(), last.whole.clone(), true, fake.now());
    begin::take_along(&mut back, &last, &listed, &Kube(fake).nodes().expect("nodes"));
    run(fake, machines, me, failpoint, begin::write(Kube(fake), back)?)
}

/// Nobody outside noticed anything, and nothing is left over.
pub(crate) fn check_clean(fake: &Fake, what: &str) {
    fake.sleep(Duration::from_secs(60));
    assert!(fake.0.borrow().faults.is_empty(), "{what}: {:?}", fake.0.borrow().faults);
    assert!(fake.names(LEASE).is_empty(), "{what}: the lock is left");
    assert!(fake.names(SECRETS).is_empty(), "{what}: a token is left: {:?}", fake.names(SECRETS));
    for node in Kube(fake).nodes().expect("nodes") {
        assert!(node.ready && !node.cordoned && !node.cordoned_by_roll, "{what}: {node:?}");
    }
    let (ready, wanted) = Kube(fake).workloads().expect("workloads")["Deployment a/web"];
    assert_eq!(ready, wanted, "{what}");
}

#[test]
fn all_workers_are_replaced_and_nobody_notices() {
    let fake = Fake::new(3);
    let (outcome, journal) = roll(&fake, rules());
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!(fake.images(), ["new", "new", "new"]);
    let world = fake.0.borrow();
    assert!(world.machines.values().all(|machine| machine.rebuilt == 1 && !machine.kept_data), "{:?}", world.machines);
    assert_eq!(world.most_down, 1);
    drop(world);
    check_clean(&fake, "a roll");
}

/// Begins a roll and ends its process at the point of this number; gives the point, or None when the roll came to its end
/// before.
fn kill_at(fake: &Fake, number: usize) -> Option<String> {
    kill(number, |_| true, |failpoint| roll_until(fake, failpoint))
}

/// Does something and ends it at the point of this number, of those that count.
pub(super) fn kill(
    number: usize,
    counts: impl Fn(&str) -> bool,
    deed: impl FnOnce(&dyn Fn(&str) -> Result<()>) -> Result<(Outcome, Journal)>,
) -> Option<String> {
    let (passed, hit) = (Cell::new(0), RefCell::new(None));
    let failpoint = |point: &str| {
        if !counts(point) {
            return Ok(());
        }
        let here = passed.replace(passed.get() + 1);
        if here == number {
            *hit.borrow_mut() = Some(point.to_string());
            return Err(Killed(point.to_string()).into());
        }
        Ok(())
    };
    let ended = deed(&failpoint);
    let point = hit.take();
    assert_eq!(ended.is_err_and(|error| error.is::<Killed>()), point.is_some());
    point
}

/// Ends the process at every point that a roll passes, once at each.
#[test]
fn wherever_it_is_killed_it_goes_on() {
    let mut points = Vec::new();
    for number in 0.. {
        let fake = Fake::new(2);
        let Some(point) = kill_at(&fake, number) else { break };
        // Somebody needs a while to notice, and the machines go on.
        fake.sleep(Duration::from_secs(7));
        let (outcome, journal) = roll(&fake, rules());
        assert_eq!(outcome, Outcome::Done, "after {point}: {journal:?}");
        assert_eq!(fake.images(), ["new", "new"], "after {point}");
        check_clean(&fake, &format!("killed at {point}"));
        let most = fake.0.borrow().machines.values().map(|machine| machine.rebuilt).max();
        assert!(most <= Some(2), "after {point} a machine was made {most:?} times");
        points.push(point);
    }
    for step in ["leaving", "draining", "replacing", "booting", "settling", "returning", "recovering", "done"] {
        for node in ["w1", "w2"] {
            for point in [format!("{step}:{node}"), format!("before-{step}:{node}")] {
                assert!(points.contains(&point), "nothing was killed at {point}: {points:?}");
            }
        }
    }
}

#[test]
fn wherever_it_is_killed_it_goes_back() {
    for number in 0.. {
        let fake = Fake::new(2);
        let Some(point) = kill_at(&fake, number) else { break };
        if Kube(&fake).journal().expect("journal").is_none() {
            continue;
        }
        let (outcome, journal) = roll_back(&fake);
        assert_eq!(outcome, Outcome::Done, "after {point}: {journal:?}");
        assert_eq!(fake.images(), ["old", "old"], "after {point}");
        check_clean(&fake, &format!("killed at {point} and rolled back"));
    }
}

#[test]
fn a_node_that_never_becomes_ready_stops_it_and_the_cluster_is_whole() {
    let fake = Fake::new(3);
    fake.0.borrow_mut().broken.insert("new".into());
    let (outcome, journal) = roll(&fake, rules());
    assert_eq!(outcome, Outcome::Stopped);
    let failed = journal.failed().expect("one failed");
    let why = failed.why.clone().expect("a reason");
    assert!(why.contains("not Ready: the network is not ready") && why.contains("waits for its network"), "{why}");
    assert_eq!(fake.images(), ["new", "old", "old"]);
    assert!(fake.0.borrow().faults.is_empty(), "{:?}", fake.0.borrow().faults);
    assert!(fake.names(LEASE).is_empty());
    // The broken node takes no pods, and is where the next roll begins: with a better image, or back.
    let nodes = Kube(&fake).nodes().expect("nodes");
    assert!(nodes.iter().any(|node| node.name == failed.node && node.cordoned_by_roll && !node.ready));
    let (outcome, journal) = roll_back(&fake);
    assert_eq!((outcome, journal.nodes.len()), (Outcome::Done, 1));
    assert_eq!(fake.images(), ["old", "old", "old"]);
    check_clean(&fake, "rolled back");
}

#[test]
fn an_image_whose_kernel_panics_is_not_waited_for() {
    let fake = Fake::new(2);
    fake.0.borrow_mut().broken.insert("new".into());
    fake.0.borrow_mut().panics.insert("new".into());
    let began = fake.now();
    let (outcome, journal) = roll(&fake, rules());
    assert_eq!(outcome, Outcome::Stopped);
    let why = journal.failed().and_then(|failed| failed.why.clone()).expect("a reason");
    assert!(why.contains("does not boot") && why.contains("Kernel panic - not syncing: no init"), "{why}");
    let took = fake.now().duration_since(began).as_secs();
    assert!(took < i64::try_from(rules().ready_secs).expect("seconds"), "{took} s");
}

#[test]
fn after_a_broken_image_comes_a_better_one() {
    let fake = Fake::new(2);
    fake.0.borrow_mut().broken.insert("new".into());
    let (outcome, stopped) = roll(&fake, rules());
    assert_eq!(outcome, Outcome::Stopped);
    // The console's lines stand in the reason, which the end shows, and are not said before that, too.
    let why = stopped.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(why.contains("; its console says:\n  w1 waits for its network"), "{why}");
    let said = fake.0.borrow().said.join("\n");
    assert!(said.contains("it was started from image new") && !said.contains("its console says"), "{said}");
    let better = || journal(&fake, &to(&fake, "better"), rules(), false);
    let (outcome, journal) = command(&fake, fake.process(), &never, better).expect("a roll");
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!(fake.images(), ["better", "better"]);
    check_clean(&fake, "a better image");
}

#[test]
fn pods_that_fail_on_the_new_image_stop_it() {
    let fake = Fake::new(2);
    fake.0.borrow_mut().spoiled.insert("new".into());
    let (outcome, journal) = roll(&fake, rules());
    assert_eq!(outcome, Outcome::Stopped);
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(why.contains("Deployment a/web has 1 of 2 pods ready"), "{why}");
    assert_eq!(fake.images(), ["new", "old"]);
    assert!(fake.0.borrow().faults.is_empty(), "{:?}", fake.0.borrow().faults);
    roll_back(&fake);
    assert_eq!(fake.images(), ["old", "old"]);
    check_clean(&fake, "rolled back");
}

#[test]
fn a_budget_that_blocks_is_named_and_obeys_the_choice() {
    // As many pods as workers, and none may be missing.
    let blocked = |on_blocked| {
        let fake = Fake::new(2);
        fake.0.borrow_mut().budget = Some(2);
        let (outcome, journal) = roll(&fake, Rules { on_blocked, ..rules() });
        (fake, outcome, journal)
    };
    let (fake, outcome, journal) = blocked(OnBlocked::Stop);
    assert_eq!(outcome, Outcome::Stopped);
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(why.contains("w1 cannot be drained: pod a/web-"), "{why}");
    assert!(why.contains("the disruption budget web needs 2 healthy pods and has 2 currently for 120 s"), "{why}");
    assert_eq!(fake.images(), ["old", "old"]);
    check_clean(&fake, "stopped");

    let (fake, outcome, journal) = blocked(OnBlocked::Skip);
    assert_eq!(outcome, Outcome::Done);
    assert!(journal.nodes.iter().all(|entry| entry.step == Step::Skipped), "{journal:?}");
    assert_eq!(fake.images(), ["old", "old"]);
    check_clean(&fake, "skipped");

    let (fake, outcome, journal) = blocked(OnBlocked::Force);
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!(fake.images(), ["new", "new"]);
    check_clean(&fake, "forced");

    // Waits until somebody lets it go on.
    let fake = Fake::new(2);
    fake.0.borrow_mut().budget = Some(2);
    let begun = fake.now();
    let give_way = |_: &str| {
        if fake.now().duration_since(begun).as_secs() > 1000 {
            fake.0.borrow_mut().budget = Some(1);
        }
        Ok(())
    };
    let waiting = Rules { on_blocked: OnBlocked::Wait, ..rules() };
    let (outcome, _) = command(&fake, fake.process(), &give_way, || journal_of(&fake, waiting)).expect("a roll");
    assert_eq!((outcome, fake.images()), (Outcome::Done, vec!["new".to_string(), "new".to_string()]));
    check_clean(&fake, "waited");
}

pub(super) fn journal_of(fake: &Fake, rules: Rules) -> Journal {
    journal(fake, &to(fake, "new"), rules, false)
}

#[test]
fn after_the_first_as_many_as_may_be_away() {
    let fake = Fake::new(5);
    let (outcome, _) = roll(&fake, Rules { max_unavailable: 2, ..rules() });
    assert_eq!((outcome, fake.0.borrow().most_down), (Outcome::Done, 2));
    check_clean(&fake, "two at a time");
}

#[test]
fn what_others_have_cordoned_stays_so() {
    let fake = Fake::new(3);
    fake.change("/api/v1/nodes/w3", |node| node["spec"]["unschedulable"] = json!(true));
    assert_eq!(roll(&fake, rules()).0, Outcome::Done);
    assert_eq!(fake.images(), ["new", "new", "new"]);
    let nodes = Kube(&fake).nodes().expect("nodes");
    let cordoned: BTreeMap<&str, bool> = nodes.iter().map(|node| (node.name.as_str(), node.cordoned)).collect();
    assert_eq!(cordoned, BTreeMap::from([("m", false), ("w1", false), ("w2", false), ("w3", true)]));
}

pub(crate) const CLAIM: &str = "/api/v1/namespaces/a/persistentvolumeclaims/db";

/// Binds a claim to a volume of this node.
pub(crate) fn bind(fake: &Fake, node: &str) {
    let volume = json!({
        "metadata": {"name": "v"},
        "spec": {
            "claimRef": {"namespace": "a", "name": "db"},
            "capacity": {"storage": "1Gi"},
            "hostPath": {"path": "/var/lib/kimg/local-path/v"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
            ]}]}},
        },
        "status": {"phase": "Bound"},
    });
    let claim = json!({"metadata": {"name": "db", "namespace": "a"}});
    let objects = [("/api/v1/persistentvolumes/v".to_string(), volume), (CLAIM.to_string(), claim)];
    fake.0.borrow_mut().objects.extend(objects);
}

#[test]
fn a_claim_that_is_bound_after_the_plan_was_made_keeps_its_data() {
    let fake = Fake::new(2);
    let bound = |point: &str| {
        if point == "leaving:w2" {
            bind(&fake, "w2");
        }
        Ok(())
    };
    let (outcome, _) = command(&fake, fake.process(), &bound, || journal_of(&fake, rules())).expect("a roll");
    assert_eq!((outcome, fake.images()), (Outcome::Done, vec!["new".to_string(), "new".to_string()]));
    let world = fake.0.borrow();
    assert_eq!((world.machines["w1"].kept_data, world.machines["w2"].kept_data), (false, true));
    assert!(world.objects.contains_key(CLAIM));
}

#[test]
fn a_kubelet_that_starts_anew_is_no_reason_to_end_its_pods() {
    // The budget allows no eviction, and the node is not Ready for a while.
    let fake = Fake::new(2);
    fake.0.borrow_mut().budget = Some(2);
    let (begun, away) = (fake.now(), Cell::new(false));
    let blip = |point: &str| {
        let lasted = fake.now().duration_since(begun).as_secs();
        let wanted = point != "locked" && (10..50).contains(&lasted);
        if wanted != away.replace(wanted) {
            let ready = if wanted { "False" } else { "True" };
            fake.change("/api/v1/nodes/w1", |node| node["status"]["conditions"][0]["status"] = json!(ready));
        }
        Ok(())
    };
    let (outcome, journal) = command(&fake, fake.process(), &blip, || journal_of(&fake, rules())).expect("a roll");
    assert_eq!((outcome, fake.images()), (Outcome::Stopped, vec!["old".to_string(), "old".to_string()]), "{journal:?}");
    check_clean(&fake, "a blip");
}

#[test]
fn data_stays_unless_it_is_given_up() {
    for (lose, kept) in [(vec![], true), (vec!["a/db".to_string()], false)] {
        let fake = Fake::new(2);
        bind(&fake, "w2");
        let wish = Wish { lose, ..to(&fake, "new") };
        let begin = || journal(&fake, &wish, rules(), false);
        let (outcome, _) = command(&fake, fake.process(), &never, begin).expect("a roll");
        assert_eq!(outcome, Outcome::Done);
        let world = fake.0.borrow();
        assert_eq!((world.machines["w1"].kept_data, world.machines["w2"].kept_data), (false, kept));
        assert_eq!(world.objects.contains_key(CLAIM), kept);
    }
}

#[test]
fn an_api_server_that_starts_anew_is_waited_for() {
    let fake = Fake::new(2);
    let cut = Cell::new(false);
    let silence = |point: &str| {
        if point == "booting:w1" && !cut.replace(true) {
            let until = fake.now() + Duration::from_secs(100);
            fake.0.borrow_mut().silent_until = until;
        }
        Ok(())
    };
    let (outcome, journal) =
        command(&fake, fake.process(), &silence, || journal_of(&fake, Rules { ready_secs: 300, ..rules() }))
            .expect("a roll");
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    check_clean(&fake, "a silent API server");
}

#[test]
fn a_node_that_goes_away_elsewhere_holds_it_up() {
    let fake = Fake::new(3);
    // The third worker is not rolled, and dies while the first is.
    let wish = Wish { nodes: vec!["w1".into(), "w2".into()], ..to(&fake, "new") };
    let dies = |point: &str| {
        if point == "booting:w1" {
            fake.change("/api/v1/nodes/w3", |node| node["status"]["conditions"][0]["status"] = json!("Unknown"));
        }
        Ok(())
    };
    let held = command(&fake, fake.process(), &dies, || journal(&fake, &wish, rules(), false)).expect_err("held");
    assert!(
        held.to_string().starts_with("w3 is not Ready, and no other node may be away; `kimg roll` goes on"),
        "{held}"
    );
    assert_eq!(fake.images(), ["new", "old", "old"]);
    fake.change("/api/v1/nodes/w3", |node| node["status"]["conditions"][0]["status"] = json!("True"));
    assert_eq!(roll(&fake, rules()).0, Outcome::Done);
    assert_eq!(fake.images(), ["new", "new", "old"]);
    check_clean(&fake, "held up");
}

#[test]
fn two_do_not_roll_at_a_time() {
    let fake = Fake::new(2);
    // This test's own process lives as long as it looks.
    let other = Holder::me();
    begin::take_lock(Kube(&fake), &other, &RealClock, &|| false, &|_| ()).expect("free");
    let refused = command(&fake, fake.process(), &never, || journal_of(&fake, rules())).expect_err("held");
    assert!(refused.to_string().contains("rolls this cluster"), "{refused}");
    Kube(&fake).release_lock(&other).expect("released");
    // One that loses the lock on its way ends, and leaves the journal to the other.
    let steal = |point: &str| {
        if point == "draining:w1" {
            fake.0.borrow_mut().objects.retain(|path, _| !path.starts_with(LEASE));
            begin::take_lock(Kube(&fake), &other, &RealClock, &|| false, &|_| ()).expect("stolen");
        }
        Ok(())
    };
    let ended = command(&fake, fake.process(), &steal, || journal_of(&fake, rules())).expect_err("overtaken");
    assert!(ended.to_string().contains("has taken the lock"), "{ended}");
    assert_eq!(fake.images(), ["old", "old"]);
    assert_eq!(fake.names(LEASE), ["kimg-roll"], "the lock of the other is its own");
}

#[test]
fn an_answer_that_cannot_be_read_is_no_empty_node() {
    struct Garbled(&'static str);
    impl Api for Garbled {
        fn send(&self, _: Method, _: &str, _: Option<&Value>) -> Result<Answer> {
            Ok(Answer { status: StatusCode::OK, headers: Default::default(), body: self.0.into() })
        }
    }
    for body in ["", "<html>", "{}", r#"{"items": 3}"#] {
        let garbled = Garbled(body);
        let kube = Kube(&garbled);
        assert!(kube.pods_on("w1").is_err() && kube.local_claims().is_err() && kube.nodes().is_err(), "{body:?}");
    }
}

/// The journal of `w2`'s removal.
fn removal(fake: &Fake, lose: &[&str]) -> Journal {
    let lose = lose.iter().map(ToString::to_string).collect();
    let wish = Wish { nodes: vec!["w2".into()], lose, ..Wish::default() };
    let plan = decide(fake, fake, &wish, plan::remove).unwrap_or_else(|why| panic!("no plan: {why:?}"));
    plan.journal(rules(), Vec::new(), false, fake.now())
}

fn check_removed(fake: &Fake, at: &str) {
    let world = fake.0.borrow();
    assert_eq!(world.machines.keys().collect::<Vec<_>>(), ["w1", "w3"], "{at}");
    assert!(!world.objects.contains_key("/api/v1/nodes/w2"), "{at}: the node is left");
    assert_eq!(world.order, ["w2"], "{at}");
    assert!(world.faults.is_empty(), "{at}: {:?}", world.faults);
    drop(world);
    assert!(fake.names(LEASE).is_empty() && fake.names(SECRETS).is_empty(), "{at}");
}

#[test]
fn a_worker_leaves_and_nobody_notices_wherever_it_is_killed() {
    let mut points = Vec::new();
    for number in 0.. {
        let fake = Fake::new(3);
        let anew = || removal(&fake, &[]);
        let point = kill(number, |_| true, |failpoint| command(&fake, fake.process(), failpoint, anew));
        let (outcome, journal) = command(&fake, fake.process(), &never, anew).expect("a removal");
        assert_eq!(outcome, Outcome::Done, "after {point:?}: {journal:?}");
        assert!(journal.removes() && !journal.heals());
        check_removed(&fake, &format!("{point:?}"));
        let Some(point) = point else { break };
        points.push(point);
    }
    for point in ["draining:w2", "replacing:w2", "removed:w2", "node-deleted:w2", "done:w2"] {
        assert!(points.iter().any(|known| known == point), "nothing was killed at {point}: {points:?}");
    }
}

#[test]
fn a_removal_obeys_budgets_and_loses_no_claim_without_a_decision() {
    let fake = Fake::new(3);
    bind(&fake, "w2");
    let wish = Wish { nodes: vec!["w2".into()], ..Wish::default() };
    let refused = decide(&fake, &fake, &wish, plan::remove).expect_err("a decision is missing");
    let Refusal::Undecided(shown, why) = refused else { panic!("{refused:?}") };
    assert!(why.contains("w2: a/db (1Gi, no pod)") && why.contains("--lose-data NAMESPACE/CLAIM"), "{why}");
    let text = shown.text();
    assert!(text.contains("w2: is drained and is removed") && text.contains("undecided: claim a/db"), "{text}");
    // Also where a decision is missing besides.
    for lose in [vec!["a/other".into(), "a/db".into()], vec!["db".into()]] {
        let wrong = Wish { lose: lose.clone(), ..wish.clone() };
        let refused = decide(&fake, &fake, &wrong, plan::remove).expect_err("no such claim there");
        let said = format!("--lose-data {}: no node that goes holds a volume of it", lose[0]);
        assert!(
            matches!(&refused, Refusal::Mistake(why) if why.starts_with(&said) && why.ends_with("one of: a/db")),
            "{refused:?}"
        );
    }
    let elsewhere = Wish { nodes: vec!["w1".into()], lose: vec!["a/db".into()], ..wish };
    let refused = decide(&fake, &fake, &elsewhere, plan::remove).expect_err("it is on another node");
    assert!(matches!(&refused, Refusal::Mistake(why) if why.contains("leave it out")), "{refused:?}");
    let (outcome, _) = command(&fake, fake.process(), &never, || removal(&fake, &["a/db"])).expect("a removal");
    assert_eq!(outcome, Outcome::Done);
    assert!(!fake.0.borrow().objects.contains_key(CLAIM));
    check_removed(&fake, "with a claim");

    // Bound after the plan was made.
    let fake = Fake::new(3);
    let bound = |point: &str| {
        if point == "leaving:w2" {
            bind(&fake, "w2");
        }
        Ok(())
    };
    let (outcome, journal) = command(&fake, fake.process(), &bound, || removal(&fake, &[])).expect("an end");
    assert_eq!(outcome, Outcome::Stopped);
    assert!(journal.nodes[0].why.as_ref().is_some_and(|why| why.contains("claim a/db")), "{journal:?}");
    assert!(fake.0.borrow().machines["w2"].running);

    // A budget that leaves no room.
    let fake = Fake::new(3);
    fake.0.borrow_mut().budget = Some(2);
    let on = fake.0.borrow().machines.keys().nth(1).cloned();
    let (outcome, journal) = command(&fake, fake.process(), &never, || removal(&fake, &[])).expect("an end");
    let world = fake.0.borrow();
    assert_eq!((outcome, on.as_deref()), (Outcome::Stopped, Some("w2")), "{journal:?}");
    assert!(world.machines["w2"].running && world.objects["/api/v1/nodes/w2"]["spec"]["unschedulable"].is_null());

    // What is broken elsewhere comes first.
    drop(world);
    let fake = Fake::new(3);
    fake.stop("w3");
    let wish = Wish { nodes: vec!["w2".into()], ..Wish::default() };
    assert!(matches!(decide(&fake, &fake, &wish, plan::remove), Err(Refusal::Unfit(why)) if why.contains("w3")));
}

#[test]
fn a_machine_that_is_known_not_to_run_is_not_waited_for() {
    let fake = Fake::new(3);
    fake.stop("w3");
    let wish = Wish { nodes: vec!["w3".into()], ..to(&fake, "new") };
    let begun = fake.now();
    let replaced = Cell::new(None);
    let at = |point: &str| {
        if point == "replacing:w3" {
            replaced.set(Some(fake.now()));
        }
        Ok(())
    };
    let (outcome, journal) =
        command(&fake, fake.process(), &at, || self::journal(&fake, &wish, rules(), false)).expect("a roll");
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    let secs = replaced.get().expect("replaced").duration_since(begun).as_secs();
    assert!(secs < 10, "it was waited for, for {secs} s");
    check_clean(&fake, "a dead machine");
}

#[test]
fn a_node_whose_machine_could_not_be_made_anew_takes_pods_again_on_the_way_back() {
    let fake = Fake::new(3);
    fake.0.borrow_mut().stuck.insert("w2".into());
    let (outcome, journal) = roll(&fake, rules());
    assert_eq!((outcome, journal.failed().map(|entry| entry.node.as_str())), (Outcome::Stopped, Some("w2")));
    assert!(Kube(&fake).nodes().expect("nodes").iter().any(|node| node.name == "w2" && node.cordoned_by_roll));
    let (outcome, journal) = roll_back(&fake);
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!(fake.images(), ["old", "old", "old"]);
    assert_eq!(order(&fake), ["w1", "w1"]);
    check_clean(&fake, "rolled back");
    // Nothing is left to be taken along.
    let (_, journal) = roll_back(&fake);
    assert!(journal.nodes.iter().all(|entry| entry.node != "w2"), "{journal:?}");
}
