//! Whole rolls of a cluster that is only told of, with its single master among the nodes.

use super::Clock;
use super::api::{Kube, Overtaken};
use super::begin;
use super::engine::Killed;
use super::fake::Fake;
use super::journal::Outcome;
use super::plan::Wish;
use super::tests::{check_clean, journal, kill, never, order, roll, roll_back, roll_back_until, roll_until, rules, to};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

const ALL: [&str; 3] = ["m", "w1", "w2"];

/// What concerns the master, or no node at all.
fn of_master(point: &str) -> bool {
    point.ends_with(":m") || !point.contains(':')
}

#[test]
fn the_master_goes_first_with_its_store_and_after_a_backup() {
    let fake = Fake::with_master(2);
    let (outcome, journal) = roll(&fake, rules());
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!((order(&fake), &fake.0.borrow().logs[..]), (ALL.map(String::from).to_vec(), &ALL.map(String::from)[..]));
    assert_eq!(fake.images(), ["new"; 3]);
    assert!(fake.0.borrow().machines["m"].kept_data && !fake.0.borrow().machines["w1"].kept_data);
    assert_eq!((fake.0.borrow().backups, fake.0.borrow().most_down), (Some(1), 1));
    let (written, version) = Kube(&fake).journal().expect("journal").expect("journal");
    let kept = fake.copy().read().expect("copy").expect("copy");
    assert_eq!((&kept.journal, &kept.version), (&written, &version));
    let file = fake.copy().path().metadata().expect("file");
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    check_clean(&fake, "a roll");
    // No kubelet is newer than its API server at any time.
    assert_eq!(roll_back(&fake).0, Outcome::Done);
    assert_eq!(order(&fake)[3..], ["w1", "w2", "m"]);
    assert_eq!(fake.images(), ["old"; 3]);
    check_clean(&fake, "rolled back");
}

/// Ends the process at every point that the master passes, once at each.
#[test]
fn wherever_it_is_killed_with_the_master_it_goes_on() {
    let mut points = Vec::new();
    for number in 0.. {
        let fake = Fake::with_master(2);
        let Some(point) = kill(number, of_master, |failpoint| roll_until(&fake, failpoint)) else { break };
        // Half of them while the API server is still away.
        fake.sleep(Duration::from_secs(if number % 2 == 0 { 7 } else { 15 }));
        let (outcome, journal) = roll(&fake, rules());
        assert_eq!(outcome, Outcome::Done, "after {point}: {journal:?}");
        assert_eq!(fake.images(), ["new"; 3], "after {point}");
        assert!(fake.0.borrow().machines["m"].rebuilt <= 2, "after {point}");
        check_clean(&fake, &format!("killed at {point}"));
        points.push(point);
    }
    for step in ["leaving", "replacing", "booting", "settling", "returning", "recovering", "done"] {
        for point in [format!("{step}:m"), format!("before-{step}:m")] {
            assert!(points.contains(&point), "nothing was killed at {point}: {points:?}");
        }
    }
}

#[test]
fn wherever_it_is_killed_with_the_master_it_goes_back() {
    for (pause, number) in (0..).flat_map(|number| [(0, number), (15, number)]) {
        let fake = Fake::with_master(2);
        let Some(point) = kill(number, of_master, |failpoint| roll_until(&fake, failpoint)) else { break };
        fake.sleep(Duration::from_secs(pause));
        if Kube(&fake).journal().is_ok_and(|journal| journal.is_none()) {
            continue;
        }
        let (outcome, journal) = roll_back(&fake);
        assert_eq!(outcome, Outcome::Done, "after {point}: {journal:?}");
        assert_eq!(fake.images(), ["old"; 3], "after {point}");
        check_clean(&fake, &format!("killed at {point} and rolled back"));
    }
}

#[test]
fn a_master_whose_api_server_never_answers_goes_back_without_it() {
    let broken = || {
        let fake = Fake::with_master(2);
        fake.0.borrow_mut().mute.insert("new".into());
        let (outcome, journal) = roll(&fake, rules());
        assert_eq!(outcome, Outcome::Stopped, "{journal:?}");
        let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
        assert!(
            why.contains("does not answer (connecting: refused), 90 s after") && why.contains("m waits for"),
            "{why}"
        );
        assert_eq!(fake.images(), ["new", "old", "old"]);
        fake
    };
    let check = |fake: &Fake, what: &str| {
        assert_eq!(fake.images(), ["old"; 3], "{what}");
        check_clean(fake, what);
        let (journal, _) = Kube(fake).journal().expect("journal").expect("journal");
        assert!(journal.back && journal.outcome == Outcome::Done, "{what}: {journal:?}");
    };
    let fake = broken();
    let (outcome, journal) = roll_back(&fake);
    assert_eq!((outcome, journal.nodes.len()), (Outcome::Done, 1));
    check(&fake, "rolled back");
    // And wherever that is killed.
    for number in 0.. {
        let fake = broken();
        let under_way = |point: &str| !["half-end", "end"].contains(&point);
        let Some(point) = kill(number, under_way, |failpoint| roll_back_until(&fake, failpoint)) else { break };
        let (outcome, journal) = roll_until(&fake, &never).expect("a roll");
        assert_eq!(outcome, Outcome::Done, "after {point}: {journal:?}");
        check(&fake, &format!("killed at {point}"));
    }
}

#[test]
fn a_master_that_answers_and_is_not_ready_stops_it() {
    let fake = Fake::with_master(2);
    fake.0.borrow_mut().broken.insert("new".into());
    let (outcome, journal) = roll(&fake, rules());
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(outcome == Outcome::Stopped && why.contains("not Ready: the network is not ready"), "{why}");
    assert_eq!(fake.images(), ["new", "old", "old"]);
    assert_eq!(roll_back(&fake).0, Outcome::Done);
    assert_eq!(fake.images(), ["old"; 3]);
    check_clean(&fake, "rolled back");
}

#[test]
fn a_master_that_comes_and_goes_stops_it() {
    let fake = Fake::with_master(2);
    fake.0.borrow_mut().flapping.insert("new".into());
    let (outcome, journal) = roll(&fake, rules());
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(outcome == Outcome::Stopped && why.contains("not Ready"), "{why}");
    assert_eq!(fake.images(), ["new", "old", "old"]);
}

#[test]
fn a_busy_master_that_does_not_say_its_boot_has_not_booted_again() {
    let fake = Fake::with_master(2);
    fake.0.borrow_mut().busy = true;
    let (outcome, journal) = roll(&fake, rules());
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    check_clean(&fake, "busy");
}

#[test]
fn a_master_that_cannot_be_stopped_is_written_down_where_all_see_it() {
    let fake = Fake::with_master(2);
    fake.0.borrow_mut().stuck.insert("m".into());
    let (outcome, journal) = roll(&fake, rules());
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(outcome == Outcome::Stopped && why.contains("it does not end"), "{why}");
    assert_eq!(Kube(&fake).journal().expect("journal").expect("journal").0, journal);
    check_clean(&fake, "stuck");
}

#[test]
fn without_a_backup_the_master_is_not_touched() {
    let fake = Fake::with_master(2);
    fake.0.borrow_mut().backups = None;
    let (outcome, journal) = roll(&fake, rules());
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(outcome == Outcome::Stopped && why.contains("no backup of its store could be made: no room"), "{why}");
    assert!(order(&fake).is_empty());
    check_clean(&fake, "no backup");
}

#[test]
fn an_api_server_that_goes_away_for_other_reasons_is_no_reason_to_touch_its_master() {
    let fake = Fake::with_master(2);
    let dies = |point: &str| {
        if point == "leaving:m" {
            let until = fake.now() + Duration::from_secs(1000);
            fake.0.borrow_mut().silent_until = until;
        }
        Ok(())
    };
    let ended = roll_until(&fake, &dies).expect_err("ended");
    assert!(ended.to_string().contains("nothing could be done") && !ended.is::<Killed>(), "{ended}");
    assert!(order(&fake).is_empty());
    // Nor is there a way back from what was not done, or to an API server that is older than kubelets.
    assert!(begin::last_without_api(&fake.copy()).expect("copy").is_none());
    let fake = Fake::with_master(2);
    roll(&fake, rules());
    assert!(begin::last_without_api(&fake.copy()).expect("copy").is_none());
}

#[test]
fn a_copy_that_others_have_overtaken_counts_for_nothing() {
    let fake = Fake::with_master(2);
    roll(&fake, rules());
    let kept = fake.copy().read().expect("copy").expect("copy");
    // Somebody else rolls from another machine.
    let kube = Kube(&fake);
    let other = journal(&fake, &Wish { nodes: vec!["w1".into()], ..to(&fake, "newer") }, rules(), false);
    let saved = kube.save(&other, Some(&kept.version)).expect("saved");
    // The answer may have been lost; what another one wrote is no answer.
    assert_eq!(kube.save(&other, Some(&kept.version)).expect("the same"), saved);
    assert!(kube.save(&kept.journal, Some(&kept.version)).expect_err("overtaken").is::<Overtaken>());
    let last = begin::last(kube, &fake.copy()).expect("last").expect("last");
    assert_eq!(last.journal, other);
    // What is newer here than there is what counts.
    let (_, version) = kube.journal().expect("journal").expect("journal");
    fake.copy().write(&kept.journal, &version).expect("written");
    assert_eq!(begin::last(kube, &fake.copy()).expect("last").expect("last").journal, kept.journal);
}
