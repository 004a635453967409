//! Rolls with spares: nobody is missed while another is away, and nothing is left over in the end.

use super::Clock as _;
use super::api::Kube;
use super::fake::Fake;
use super::journal::{Journal, Outcome, Rules, Step};
use super::plan::{self, Amount, Plan, Refusal, Wish};
use super::spares::{at_a_time, surge};
use super::tests::{
    bind, check_clean, command, decide, journal, kill, never, order, roll_back, roll_back_until, rules, to,
};
use anyhow::Result;
use std::time::Duration;

#[test]
fn amounts_round_as_cluster_api_does() {
    let amount = |text: &str| Amount::or_none(text).expect("an amount");
    // Up, and no more than are replaced.
    let cases = [
        ("1", 3, 3, 1),
        ("2", 3, 3, 2),
        ("9", 3, 3, 3),
        ("34%", 3, 3, 2),
        ("1%", 3, 3, 1),
        ("100%", 4, 1, 1),
        ("0", 3, 3, 0),
    ];
    for (text, total, replaced, wanted) in cases {
        assert_eq!(surge(Some(amount(text)), total, replaced), wanted, "{text} of {total}, {replaced} replaced");
    }
    assert_eq!(surge(None, 3, 3), 0);
    // Down; with spares none may be missing, and without at least one is.
    let cases = [
        (None, 0, 3, 1),
        (None, 2, 3, 2),
        (Some("0"), 1, 3, 1),
        (Some("1"), 1, 3, 2),
        (Some("50%"), 1, 3, 2),
        (Some("34%"), 0, 3, 1),
        (Some("1%"), 0, 3, 1),
        (Some("1%"), 1, 3, 1),
        (Some("67%"), 0, 3, 2),
    ];
    for (text, spares, total, most) in cases {
        assert_eq!(at_a_time(text.map(amount), spares, total), most, "{text:?} and {spares} spares of {total}");
    }
    assert!("0".parse::<Amount>().is_err() && Amount::or_none("-1").is_err() && Amount::or_none("101%").is_err());
}

/// What a roll with so many spares is to do, of which as many stand in.
fn wish(fake: &Fake, image: &str, spares: usize, surge: usize) -> Wish {
    let spares: Vec<String> = (1..=spares).map(|number| format!("s{number}")).collect();
    let mut wish = Wish { spares: spares.clone(), surge, ..to(fake, image) };
    wish.images.extend(spares.into_iter().map(|name| (name, image.to_owned())));
    wish
}

fn planned(fake: &Fake, spares: usize, surge: usize) -> Journal {
    let rules = Rules { max_unavailable: at_a_time(None, surge, 3), ..rules() };
    journal(fake, &wish(fake, "new", spares, surge), rules, false)
}

/// `kimg roll` with this many spares in `cluster.toml`.
fn roll(fake: &Fake, spares: usize, surge: usize) -> (Outcome, Journal) {
    roll_until(fake, spares, surge, &never).expect("a roll")
}

fn roll_until(
    fake: &Fake,
    spares: usize,
    surge: usize,
    failpoint: &dyn Fn(&str) -> Result<()>,
) -> Result<(Outcome, Journal)> {
    command(fake, fake.process(), failpoint, || planned(fake, spares, surge))
}

/// A cluster that counts from here on.
fn cluster(workers: usize) -> Fake {
    let fake = Fake::new(workers);
    fake.0.borrow_mut().least_up = workers;
    fake
}

/// The workers have this image, there is nothing else, and as many were up at any time as there are.
fn check(fake: &Fake, workers: usize, image: &str, at: &str) {
    assert_eq!(fake.images(), vec![image.to_owned(); workers], "{at}");
    assert!(!fake.names("/api/v1/nodes/").iter().any(|name| name.starts_with('s')), "{at}: the node is left");
    assert_eq!(fake.0.borrow().least_up, workers, "{at}: workers were missing");
    check_clean(fake, at);
}

fn tell(plan: &Plan) -> Vec<(&str, &str)> {
    plan.nodes.iter().map(|item| (item.node.as_str(), item.to.as_str())).collect()
}

#[test]
fn no_worker_is_missed_while_another_is_away() {
    let fake = cluster(3);
    let (outcome, journal) = roll(&fake, 1, 1);
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert!(!journal.removes() && !journal.heals());
    assert_eq!(order(&fake), ["s1", "w1", "w2", "w3", "s1"]);
    check(&fake, 3, "new", "one spare");

    let fake = cluster(5);
    let (outcome, journal) = roll(&fake, 2, 2);
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    let order = order(&fake);
    // The first worker goes alone, then two at a time.
    assert_eq!((&order[..3], order.len()), (&["s1", "s2", "w1"].map(String::from)[..], 9), "{order:?}");
    assert_eq!(fake.0.borrow().most_down, 2);
    check(&fake, 5, "new", "two spares");
    // Back without one: the cluster is smaller meanwhile.
    let (outcome, _) = roll_back(&fake);
    assert_eq!((outcome, fake.images()), (Outcome::Done, vec!["old".to_owned(); 5]));
    check_clean(&fake, "rolled back");
}

#[test]
fn wherever_it_is_killed_it_comes_to_the_same_end() {
    let mut points = Vec::new();
    for number in 0.. {
        let fake = cluster(2);
        let Some(point) = kill(number, |_| true, |failpoint| roll_until(&fake, 1, 1, failpoint)) else { break };
        fake.sleep(Duration::from_secs(7));
        let (outcome, journal) = roll(&fake, 1, 1);
        assert_eq!(outcome, Outcome::Done, "after {point}: {journal:?}");
        check(&fake, 2, "new", &format!("killed at {point}"));
        points.push(point);
    }
    for point in ["token-made:s1", "rebuilt:s1", "done:s1", "spares", "draining:s1", "removed:s1", "node-deleted:s1"] {
        assert!(points.iter().any(|known| known == point), "nothing was killed at {point}: {points:?}");
    }
}

#[test]
fn wherever_it_is_killed_it_goes_back_and_leaves_no_spare() {
    for number in 0.. {
        let fake = cluster(2);
        let Some(point) = kill(number, |_| true, |failpoint| roll_until(&fake, 1, 1, failpoint)) else { break };
        if Kube(&fake).journal().expect("journal").is_none() {
            continue;
        }
        fake.sleep(Duration::from_secs(7));
        let (outcome, journal) = roll_back_until(&fake, &never).expect("a way back");
        assert_eq!(outcome, Outcome::Done, "after {point}: {journal:?}");
        assert_eq!(fake.images(), ["old", "old"], "after {point}");
        check_clean(&fake, &format!("killed at {point} and rolled back"));
    }
}

#[test]
fn a_node_that_fails_keeps_the_spare_until_a_roll_comes_to_its_end() {
    let stopped = || {
        let fake = cluster(3);
        fake.0.borrow_mut().stuck.insert("w2".into());
        let (outcome, journal) = roll(&fake, 1, 1);
        assert_eq!((outcome, journal.failed().map(|entry| entry.node.as_str())), (Outcome::Stopped, Some("w2")));
        let world = fake.0.borrow();
        assert!(world.machines["s1"].running && world.faults.is_empty(), "{:?}", world.faults);
        assert_eq!((world.least_up, world.machines["w3"].image.as_str()), (3, "old"));
        drop(world);
        fake.0.borrow_mut().stuck.clear();
        fake
    };
    // With a spare that is there, and without asking for one.
    for surge in [1, 0] {
        let fake = stopped();
        let (outcome, journal) = roll(&fake, 1, surge);
        assert_eq!(outcome, Outcome::Done, "{journal:?}");
        check(&fake, 3, "new", "gone on with");
        // It was not made anew.
        assert_eq!(order(&fake).iter().filter(|node| *node == "s1").count(), 2);
    }
    let fake = stopped();
    let (outcome, journal) = roll_back(&fake);
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!((fake.images(), fake.0.borrow().least_up), (vec!["old".to_owned(); 3], 3));
    assert!(fake.0.borrow().faults.is_empty(), "{:?}", fake.0.borrow().faults);
}

#[test]
fn an_image_that_does_not_work_ends_with_the_spare() {
    let fake = cluster(2);
    fake.0.borrow_mut().broken.insert("new".into());
    let (outcome, journal) = roll(&fake, 1, 1);
    assert_eq!((outcome, journal.failed().map(|entry| entry.node.as_str())), (Outcome::Stopped, Some("s1")));
    assert_eq!(order(&fake), ["s1"]);
    // Nothing is to be taken back but the spare.
    let (outcome, journal) = roll_back(&fake);
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    check(&fake, 2, "old", "a broken image");
    // A better one: the spare is made anew where it is there.
    let fake = cluster(2);
    fake.0.borrow_mut().broken.insert("new".into());
    roll(&fake, 1, 1);
    let better = || journal_of(&fake, &wish(&fake, "better", 1, 1));
    let (outcome, journal) = command(&fake, fake.process(), &never, better).expect("a roll");
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!(order(&fake), ["s1", "s1", "w1", "w2", "s1"]);
    check(&fake, 2, "better", "a better image");
}

fn journal_of(fake: &Fake, wish: &Wish) -> Journal {
    journal(fake, wish, rules(), false)
}

/// A roll that has stopped with its spare there, and all workers on the new image by now.
fn left(fake: &Fake) {
    let stop = |point: &str| if point == "spares" { Err(super::engine::Killed(point.into()).into()) } else { Ok(()) };
    roll_until(fake, 1, 1, &stop).expect_err("killed");
    // As if it had come to its end without that.
    let (mut journal, version) = Kube(fake).journal().expect("journal").expect("one");
    journal.outcome = Outcome::Stopped;
    let version = Kube(fake).save(&journal, Some(&version)).expect("saved");
    fake.copy().write(&journal, &version).expect("written");
}

#[test]
fn spares_that_are_left_go_where_nothing_else_is_to_be_done() {
    for number in 0.. {
        let fake = cluster(2);
        left(&fake);
        let plan = decide(&fake, &fake, &wish(&fake, "new", 1, 1), plan::make).expect("a plan");
        assert_eq!(tell(&plan), [("s1", "")]);
        assert!(plan.text().contains("s1: is a spare; drained and removed"), "{}", plan.text());
        let point = kill(number, |_| true, |failpoint| roll_until(&fake, 1, 0, failpoint));
        // Also where nothing of it is there any more, and only `cluster.toml` still says so.
        let (outcome, journal) = roll(&fake, 1, 0);
        assert_eq!(outcome, Outcome::Done, "after {point:?}: {journal:?}");
        check(&fake, 2, "new", &format!("{point:?}"));
        if point.is_none() {
            break;
        }
    }
}

#[test]
fn what_is_on_a_spare_is_not_lost_without_a_decision() {
    // Bound while the roll goes on: it stops at its end, and all workers are replaced.
    let fake = cluster(2);
    let bound = |point: &str| {
        if point == "done:w2" {
            bind(&fake, "s1");
        }
        Ok(())
    };
    let (outcome, journal) = roll_until(&fake, 1, 1, &bound).expect("an end");
    let why = journal.failed().and_then(|entry| entry.why.clone()).expect("a reason");
    assert!(outcome == Outcome::Stopped && why.contains("claim a/db") && why.contains("--lose-data a/db"), "{why}");
    assert!(fake.0.borrow().machines["s1"].running);
    // Known before: nothing is begun, until it is given up.
    let leftover = wish(&fake, "new", 1, 0);
    let refused = decide(&fake, &fake, &leftover, plan::make).expect_err("a decision is missing");
    assert!(
        matches!(&refused, Refusal::Mistake(why) if why.contains("s1 is a spare") && why.contains("a/db (1Gi")),
        "{refused:?}"
    );
    // The way back does not wait for it.
    let back = Wish { back: true, nodes: vec!["w1".into()], ..wish(&fake, "old", 1, 0) };
    let plan = decide(&fake, &fake, &back, plan::make).expect("a way back");
    assert_eq!(tell(&plan), [("w1", "old")]);
    let lost = Wish { lose: vec!["a/db".into()], ..leftover };
    let (outcome, journal) = command(&fake, fake.process(), &never, || journal_of(&fake, &lost)).expect("a roll");
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    check(&fake, 2, "new", "given up");
}

#[test]
fn a_spare_is_never_newer_than_its_master() {
    let fake = Fake::with_master(3);
    let forth = decide(&fake, &fake, &wish(&fake, "new", 1, 1), plan::make).expect("a plan");
    assert_eq!(tell(&forth), [("m", "new"), ("s1", "new"), ("w1", "new"), ("w2", "new"), ("w3", "new")]);
    // Where only the master goes, none is made.
    let only = Wish { nodes: vec!["master".into()], ..wish(&fake, "new", 1, 1) };
    assert_eq!(tell(&decide(&fake, &fake, &only, plan::make).expect("a plan")), [("m", "new"), ("s1", "")]);
    let (outcome, journal) = roll(&fake, 1, 1);
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!(order(&fake), ["m", "s1", "w1", "w2", "w3", "s1"]);
    // On the way back it leaves before the master goes.
    let fake = Fake::with_master(3);
    fake.0.borrow_mut().stuck.insert("w2".into());
    roll(&fake, 1, 1);
    fake.0.borrow_mut().stuck.clear();
    let (outcome, journal) = roll_back(&fake);
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    assert_eq!(order(&fake), ["m", "s1", "w1", "w1", "s1", "m"]);
    assert!(journal.nodes.iter().all(|entry| entry.step == Step::Done));
}
