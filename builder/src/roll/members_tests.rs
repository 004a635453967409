//! Whole rolls of a cluster that is only told of, with three masters that share etcd; and of one whose store moves there.

use super::api::Kube;
use super::engine::Killed;
use super::fake::Fake;
use super::journal::{Journal, Outcome, Step};
use super::plan::{self, Refusal, Wish};
use super::tests::{
    check_clean, command, decide, journal, kill, never, order, roll, roll_back, roll_back_until, roll_until, rules, to,
};
use super::{Clock, begin};
use crate::machines::{Machine, Machines};
use anyhow::bail;
use node_api::StoreEngine;
use std::time::Duration;

const MASTERS: [&str; 3] = ["m1", "m2", "m3"];

/// What concerns a master, or no node at all.
fn of_masters(point: &str) -> bool {
    point.contains(":m") || !point.contains(':')
}

#[test]
fn masters_go_one_after_the_other_and_the_api_stays() {
    let fake = Fake::with_masters(2);
    let (outcome, journal) = roll(&fake, rules());
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!(order(&fake), ["m1", "m2", "m3", "w1", "w2"]);
    assert_eq!(fake.images(), ["new"; 5]);
    let world = fake.0.borrow();
    assert!(MASTERS.iter().all(|name| world.machines[*name].kept_data));
    assert_eq!((world.most_down, world.backups), (1, Some(0)), "no copy of the store is needed");
    drop(world);
    check_clean(&fake, "a roll");
    assert_eq!(roll_back(&fake).0, Outcome::Done);
    assert_eq!(order(&fake)[5..7], ["w1", "w2"], "no kubelet is newer than its API server");
    assert_eq!(fake.images(), ["old"; 5]);
    check_clean(&fake, "rolled back");
}

/// Ends the process at every point that the masters pass, once at each.
#[test]
fn wherever_it_is_killed_with_a_master_it_goes_on_or_back() {
    let mut points = Vec::new();
    for (back, number) in (0..).flat_map(|number| [(false, number), (true, number)]) {
        let fake = Fake::with_masters(2);
        let Some(point) = kill(number, of_masters, |failpoint| roll_until(&fake, failpoint)) else { break };
        let at = format!("killed at {point}, back: {back}");
        fake.sleep(Duration::from_secs(7));
        if back && Kube(&fake).journal().expect("journal").is_none() {
            continue;
        }
        let (outcome, journal) = if back { roll_back(&fake) } else { roll(&fake, rules()) };
        assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
        assert_eq!(fake.images(), [if back { "old" } else { "new" }; 5], "{at}");
        assert!(fake.0.borrow().machines.values().all(|machine| machine.rebuilt <= 2), "{at}");
        check_clean(&fake, &at);
        points.push(point);
    }
    for step in ["leaving", "draining", "replacing", "booting", "settling", "returning", "recovering", "done"] {
        for name in MASTERS {
            for point in [format!("{step}:{name}"), format!("before-{step}:{name}")] {
                assert!(points.contains(&point), "nothing was killed at {point}: {points:?}");
            }
        }
    }
}

#[test]
fn a_master_is_not_touched_while_another_member_is_away() {
    let fake = Fake::with_masters(2);
    fake.0.borrow_mut().lame.insert("m3".into());
    let (outcome, journal) = roll(&fake, rules());
    let failed = journal.failed().expect("one failed");
    let why = failed.why.clone().expect("a reason");
    assert_eq!((outcome, failed.node.as_str()), (Outcome::Stopped, "m1"));
    assert!(why.contains("member 10.0.0.4 of etcd does not answer, and that for 120 s"), "{why}");
    assert!(order(&fake).is_empty());
    check_clean(&fake, "one is away");
    // In the middle of it, until it is back.
    let fake = Fake::with_masters(2);
    let lame = |point: &str| {
        let mut world = fake.0.borrow_mut();
        match point {
            "leaving:m2" => drop(world.lame.insert("m1".into())),
            "done:m1" => world.lame.clear(),
            _ => {}
        }
        Ok(())
    };
    let ended = roll_until(&fake, &lame).expect("an end");
    assert_eq!((ended.0, order(&fake)), (Outcome::Stopped, vec!["m1".to_string()]));
    fake.0.borrow_mut().lame.clear();
    assert_eq!(roll(&fake, rules()).0, Outcome::Done);
    check_clean(&fake, "back again");
}

#[test]
fn a_master_whose_own_api_server_never_answers_stops_it() {
    let fake = Fake::with_masters(2);
    fake.0.borrow_mut().mute.insert("new".into());
    let (outcome, journal) = roll(&fake, rules());
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(outcome == Outcome::Stopped && why.contains("the API server of m1 does not answer, 90 s after"), "{why}");
    assert_eq!(order(&fake), ["m1"]);
    // The others serve, so that there is no way back without them.
    assert!(begin::last_without_api(&fake.copy()).expect("copy").is_none());
    assert_eq!(roll_back(&fake).0, Outcome::Done);
    assert_eq!(fake.images(), ["old"; 5]);
    check_clean(&fake, "rolled back");
}

/// The journal that removes all masters but the first.
fn removal(fake: &Fake) -> Journal {
    let wish = Wish { nodes: vec!["m3".into(), "m2".into()], ..Wish::default() };
    let plan = decide(fake, fake, &wish, plan::remove).unwrap_or_else(|why| panic!("no plan: {why:?}"));
    plan.journal(rules(), Vec::new(), false, fake.now())
}

#[test]
fn masters_leave_etcd_before_their_machines_go_wherever_it_is_killed() {
    let mut points = Vec::new();
    let wish = Wish { nodes: vec!["m3".into()], ..Wish::default() };
    let fake = Fake::with_masters(2);
    let text = decide(&fake, &fake, &wish, plan::remove).expect("a plan").text();
    assert!(text.contains("m3: leaves etcd and is removed"), "{text}");
    for number in 0.. {
        let fake = Fake::with_masters(2);
        let anew = || removal(&fake);
        let point = kill(number, |_| true, |failpoint| command(&fake, fake.process(), failpoint, anew));
        let at = format!("killed at {point:?}");
        if point.is_some() {
            let (outcome, journal) = command(&fake, fake.process(), &never, anew).expect("a removal");
            assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
        }
        assert_eq!(fake.members().into_keys().collect::<Vec<_>>(), ["m1"], "{at}");
        assert_eq!(order(&fake), ["m3", "m2"], "{at}");
        let nodes = Kube(&fake).nodes().expect("nodes");
        assert_eq!(nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["m1", "w1", "w2"], "{at}");
        check_clean(&fake, &at);
        let Some(point) = point else { break };
        points.push(point);
    }
    for point in ["member-removed:m3", "removed:m3", "node-deleted:m3", "done:m3", "member-removed:m2", "done:m2"] {
        assert!(points.iter().any(|known| known == point), "nothing was killed at {point}: {points:?}");
    }
}

#[test]
fn a_master_that_has_left_etcd_is_not_back_with_its_machine() {
    let fake = Fake::with_masters(2);
    let killed = |point: &str| if point == "member-removed:m3" { bail!(Killed(point.into())) } else { Ok(()) };
    command(&fake, fake.process(), &killed, || removal(&fake)).expect_err("killed");
    let (outcome, journal) = roll_back(&fake);
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(outcome == Outcome::Stopped && why.contains("the API server of m3 does not answer"), "{why}");
}

#[test]
fn a_master_that_up_has_made_anew_leaves_once_more() {
    let fake = Fake::with_masters(2);
    let mut journal = removal(&fake);
    journal.nodes[0].step = Step::Done;
    let mut machines = Machines::list(&fake).expect("machines");
    let again = |machines: &[Machine]| {
        let mut journal = journal.clone();
        begin::leave_again(&mut journal, machines);
        journal.nodes[0].step
    };
    assert_eq!(again(&machines), Step::Waiting);
    machines.retain(|machine| machine.node != "m3");
    assert_eq!(again(&machines), Step::Done);
}

/// The journal that makes a lost master anew.
fn healing(fake: &Fake) -> Journal {
    let images = [("m2".to_string(), "old".to_string())].into();
    let wish = Wish { nodes: vec!["m2".into()], images, lost: true, ..Wish::default() };
    journal(fake, &wish, rules(), false)
}

#[test]
fn a_lost_master_joins_the_others_wherever_it_is_killed() {
    let lost = || {
        let fake = Fake::with_masters(2);
        fake.stop("m2");
        fake
    };
    for number in 0.. {
        let fake = lost();
        let anew = || healing(&fake);
        let point = kill(number, |_| true, |failpoint| command(&fake, fake.process(), failpoint, anew));
        if point.is_some() {
            let (outcome, journal) = command(&fake, fake.process(), &never, anew).expect("healed");
            assert_eq!(outcome, Outcome::Done, "after {point:?}: {journal:?}");
            assert!(journal.heals() && !journal.removes());
        }
        let world = fake.0.borrow();
        let machine = &world.machines["m2"];
        assert!(machine.joined && !machine.kept_data && !machine.awaits_backup, "after {point:?}");
        assert_eq!(world.machines["m1"].rebuilt, 0, "after {point:?}");
        drop(world);
        check_clean(&fake, &format!("healed after {point:?}"));
        if point.is_none() {
            break;
        }
    }
    // A broken worker keeps no master from coming back, and a second lost master does.
    let fake = lost();
    fake.stop("w1");
    let (outcome, journal) = command(&fake, fake.process(), &never, || healing(&fake)).expect("healed");
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    let fake = lost();
    fake.0.borrow_mut().lame.insert("m1".into());
    let refused = command(&fake, fake.process(), &never, || healing(&fake));
    assert!(refused.is_err() && order(&fake).is_empty(), "{refused:?}");
}

/// A single master with the embedded store, and an image that has etcd.
fn to_etcd() -> Fake {
    let fake = Fake::with_master(2);
    fake.0.borrow_mut().with_etcd.insert("new".into());
    fake
}

fn moving(fake: &Fake) -> Journal {
    let stores = [("m".to_string(), StoreEngine::Etcd)].into();
    journal(fake, &Wish { nodes: vec!["master".into()], stores, ..to(fake, "new") }, rules(), false)
}

#[test]
fn the_store_of_a_single_master_goes_to_etcd_and_back_with_its_image_wherever_it_is_killed() {
    let mut points = Vec::new();
    for (back, number) in (0..).flat_map(|number| [(false, number), (true, number)]) {
        let fake = to_etcd();
        let anew = || moving(&fake);
        let point = kill(number, of_masters, |failpoint| command(&fake, fake.process(), failpoint, anew));
        let at = format!("killed at {point:?}, back: {back}");
        fake.sleep(Duration::from_secs(if number % 2 == 0 { 7 } else { 15 }));
        let begun = fake.copy().read().expect("copy").is_some() || Kube(&fake).journal().expect("journal").is_some();
        if point.is_some() && !back {
            let (outcome, journal) = command(&fake, fake.process(), &never, anew).expect("goes on");
            assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
        }
        if back && !begun {
            continue;
        }
        if back {
            let (outcome, journal) = roll_back(&fake);
            assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
        }
        let world = fake.0.borrow();
        let is = (world.machines["m"].image.as_str(), world.store);
        let wanted = if back { ("old", StoreEngine::Embedded) } else { ("new", StoreEngine::Etcd) };
        assert_eq!(is, wanted, "{at}");
        drop(world);
        check_clean(&fake, &at);
        match point {
            Some(point) => points.push(point),
            None if back => break,
            None => {}
        }
    }
    assert!(points.iter().any(|point| point == "moved:m"), "{points:?}");
}

#[test]
fn a_store_that_cannot_be_moved_stops_the_roll_and_goes_back() {
    let fake = to_etcd();
    fake.0.borrow_mut().immovable = true;
    let (outcome, journal) = command(&fake, fake.process(), &never, || moving(&fake)).expect("an end");
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(
        outcome == Outcome::Stopped && why.contains("its store is not moved to etcd (nothing was changed"),
        "{why}"
    );
    // It still says no; but nobody has moved it.
    let ended = roll_back_until(&fake, &never);
    assert!(!ended.as_ref().is_err_and(|error| error.is::<Killed>()), "{ended:?}");
    assert_eq!((fake.images(), fake.0.borrow().store), (vec!["old".to_string(); 3], StoreEngine::Embedded));
    check_clean(&fake, "rolled back");
}

#[test]
fn a_master_that_was_lost_is_no_reason_to_touch_the_others() {
    let fake = Fake::with_masters(2);
    fake.stop("m2");
    let refused = decide(&fake, &fake, &to(&fake, "old"), plan::make).map(|plan| plan.nodes.len());
    assert_eq!(refused, Ok(0), "nothing is old, and nobody named it");
    let refused = decide(&fake, &fake, &Wish { nodes: vec!["m1".into()], ..to(&fake, "new") }, plan::make);
    assert!(matches!(&refused, Err(Refusal::Unfit(why)) if why.contains("m2 is not Ready")), "{refused:?}");
}
