//! Rolls that copy what lies in local volumes, where machines keep nothing.

use super::Clock as _;
use super::api::Kube;
use super::begin;
use super::engine::Held;
use super::fake::Fake;
use super::journal::{Copied, DataAt, Journal, Outcome, Step};
use super::plan::Wish;
use super::tests::{self, CLAIM, bind, check_clean, command, kill, never, roll_back_until, rules, to};
use super::volumes::{Copies, Volumes};
use crate::input;
use crate::machines::Machine;
use anyhow::{Context, Result, bail};
use node_api::Volume;
use node_api::copy::{Checked, Summed};
use serde_json::json;
use std::io::{Read, Write};
use std::time::Duration;

/// A local volume, which is one file here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FakeVolume {
    bytes: Vec<u8>,
    copy_of: Option<String>,
}

impl Fake {
    /// What is in the volume of [`bind`] on a node, where it is there.
    pub(crate) fn data(&self, node: &str) -> String {
        let world = self.0.borrow();
        let volume = world.machines[node].volumes.get("v").cloned().unwrap_or_default();
        String::from_utf8(volume.bytes).expect("text")
    }

    /// A pod writes to it, which makes it where it is not there.
    pub(crate) fn write(&self, node: &str, text: &str) {
        let mut world = self.0.borrow_mut();
        let machine = world.machines.get_mut(node).expect("a machine");
        machine.volumes.entry("v".into()).or_default().bytes.extend(text.as_bytes());
    }

    fn answers(&self, node: &str) -> Result<()> {
        let world = self.0.borrow();
        let up = world.machines.get(node).is_some_and(|machine| machine.running && machine.is_booted());
        if up { Ok(()) } else { bail!("{node} does not answer") }
    }

    pub(crate) fn copies(&self) -> Copies {
        Copies::of(self.copy().path().parent().expect("a folder"))
    }
}

impl Volumes for Fake {
    fn list(&self, node: &str) -> Result<Vec<Volume>> {
        self.answers(node)?;
        let volume = |(name, volume): (&String, &FakeVolume)| Volume {
            name: name.clone(),
            bytes: 4096,
            empty: volume.bytes.is_empty(),
            copy_of: volume.copy_of.clone(),
        };
        Ok(self.0.borrow().machines[node].volumes.iter().map(volume).collect())
    }

    fn fetch(&self, node: &str, volume: &str, to: &mut (dyn Write + Send), meanwhile: &dyn Fn()) -> Result<()> {
        self.answers(node)?;
        meanwhile();
        let mut summed = Summed::new(to);
        let bytes = self.0.borrow().machines[node].volumes.get(volume).cloned().unwrap_or_default().bytes;
        summed.write_all(&bytes)?;
        summed.finish().map(drop).context("writing")
    }

    fn give(&self, node: &str, volume: &str, copy: Box<dyn Read + Send>, meanwhile: &dyn Fn()) -> Result<()> {
        self.answers(node)?;
        meanwhile();
        let (mut copy, mut bytes) = (Checked::new(copy), Vec::new());
        copy.read_to_end(&mut bytes)?;
        let sum = copy.finish()?;
        let mut world = self.0.borrow_mut();
        let there = world.machines.get_mut(node).context("it is gone")?.volumes.entry(volume.into()).or_default();
        match &there.copy_of {
            Some(known) if *known == sum => {}
            _ if there.bytes.is_empty() => *there = FakeVolume { bytes, copy_of: Some(sum) },
            _ => return input::bad("it holds something else already"),
        }
        Ok(())
    }
}

/// Machines that keep nothing, and a claim on `w1`.
pub(crate) fn forgetful() -> Fake {
    let fake = Fake::new(2);
    fake.0.borrow_mut().forgetful = true;
    bind(&fake, "w1");
    fake.write("w1", "rows");
    fake
}

fn planned(fake: &Fake) -> Journal {
    let wish = Wish { copy: vec!["a/db".into()], ..to(fake, "new") };
    tests::journal(fake, &wish, rules(), false)
}

fn roll(fake: &Fake, failpoint: &dyn Fn(&str) -> Result<()>) -> Result<(Outcome, Journal)> {
    command(fake, fake.process(), failpoint, || planned(fake))
}

/// The same, with a pod that writes as soon as the node takes any.
fn roll_writing(fake: &Fake, failpoint: &dyn Fn(&str) -> Result<()>) -> Result<(Outcome, Journal)> {
    roll(fake, &|point| {
        if point == "uncordoned:w1" {
            assert!(fake.data("w1").starts_with("rows"), "it takes pods, and lacks its data");
            fake.write("w1", ", more");
        }
        failpoint(point)
    })
}

/// The data is with the node, and nowhere else.
fn check(fake: &Fake, data: &str, images: [&str; 2], at: &str) {
    assert_eq!(fake.data("w1"), data, "{at}");
    assert_eq!(fake.images(), images, "{at}");
    assert!(fake.0.borrow().objects.contains_key(CLAIM), "{at}: the claim is gone");
    assert!(!fake.copies().path("w1", "v").exists(), "{at}: a copy is left");
    check_clean(fake, at);
}

#[test]
fn a_claim_goes_from_machine_to_machine_wherever_it_is_killed() {
    let mut points = Vec::new();
    for number in 0.. {
        let fake = forgetful();
        let point = kill(number, |_| true, |failpoint| roll_writing(&fake, failpoint));
        fake.sleep(Duration::from_secs(7));
        let at = format!("killed at {point:?}");
        let (outcome, journal) = roll_writing(&fake, &never).unwrap_or_else(|error| panic!("{at}: {error:#}"));
        assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
        check(&fake, "rows, more", ["new", "new"], &at);
        let Some(point) = point else { break };
        points.push(point);
    }
    for point in ["fetched:w1", "kept:w1", "rebuilt:w1", "given:w1", "handed-over:w1", "forgotten:w1", "uncordoned:w1"]
    {
        assert!(points.iter().any(|known| known == point), "nothing was killed at {point}: {points:?}");
    }
}

#[test]
fn wherever_it_was_killed_it_goes_back_with_the_data() {
    let mut killed = 0;
    for number in 0.. {
        let fake = forgetful();
        let first = kill(number, |point| point != "locked", |failpoint| roll_writing(&fake, failpoint));
        let Some(point) = first else { break };
        killed += 1;
        fake.sleep(Duration::from_secs(7));
        let (at, data) = (format!("back from {point}"), fake.data("w1"));
        // The way back is killed, too, where it copies.
        let again = kill(number % 7, |point| point.ends_with(":w1"), |failpoint| roll_back_until(&fake, failpoint));
        let (outcome, journal) = match again {
            Some(_) => {
                command(&fake, fake.process(), &never, || panic!("{at}: nothing to go on with")).expect("went on")
            }
            None => roll_back_until(&fake, &never).expect("a roll back"),
        };
        assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
        let data = if data.is_empty() { "rows".to_owned() } else { data };
        check(&fake, &data, ["old", "old"], &at);
    }
    assert!(killed > 40, "{killed}");
}

#[test]
fn without_its_copy_a_node_takes_no_pods_until_the_claim_is_given_up() {
    for point in ["rebuilt:w1", "kept:w1"] {
        let fake = forgetful();
        let stop = |here: &str| if here == point { Err(super::engine::Killed(here.into()).into()) } else { Ok(()) };
        roll(&fake, &stop).expect_err("killed");
        fake.copies().forget("w1").expect("removed");
        for _ in 0..2 {
            let error = roll(&fake, &never).expect_err("the copy is not here");
            let said = format!("{error:#}");
            assert!(error.is::<Held>() && said.contains("is not here") && said.contains("--lose-data a/db"), "{said}");
            let nodes = Kube(&fake).nodes().expect("nodes");
            assert!(nodes.iter().any(|node| node.name == "w1" && node.cordoned_by_roll), "{nodes:?}");
        }
        assert_eq!(fake.images()[0], if point == "kept:w1" { "old" } else { "new" });
        // Back neither.
        assert!(roll_back_until(&fake, &never).expect_err("no copy").is::<Held>());
        let (mut journal, version) = Kube(&fake).journal().expect("read").expect("there");
        begin::give_up(&mut journal, &["a/db".into()]);
        Kube(&fake).save(&journal, Some(&version)).expect("saved");
        let (outcome, journal) = roll(&fake, &never).expect("a roll");
        assert_eq!(outcome, Outcome::Done, "{journal:?}");
        assert!(!fake.0.borrow().objects.contains_key(CLAIM), "the claim is there without its data");
        check_clean(&fake, point);
    }
}

#[test]
fn a_node_that_holds_something_else_keeps_it_and_the_copy_stays() {
    let fake = forgetful();
    let fill = |point: &str| {
        if point == "settling:w1" {
            fake.write("w1", "other");
        }
        Ok(())
    };
    let error = roll(&fake, &fill).expect_err("refused");
    assert!(error.is::<Held>() && format!("{error:#}").contains("stays on this machine"), "{error:#}");
    assert!(fake.data("w1") == "other" && fake.copies().path("w1", "v").exists());
    fake.0.borrow_mut().machines.get_mut("w1").expect("a machine").volumes.clear();
    let (outcome, journal) = roll(&fake, &never).expect("a roll");
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    check(&fake, "rows", ["new", "new"], "went on");
}

#[test]
fn what_pods_still_use_is_not_copied_and_its_node_is_left_as_it_was() {
    let fake = forgetful();
    let pod = json!({
        "metadata": {"name": "agent", "namespace": "a", "ownerReferences": [{"kind": "DaemonSet", "controller": true}]},
        "spec": {"nodeName": "w1", "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "db"}}]},
        "status": {"phase": "Running"},
    });
    fake.0.borrow_mut().objects.insert("/api/v1/namespaces/b/pods/agent".into(), pod);
    let (outcome, journal) = roll(&fake, &never).expect("a roll");
    let why = journal.failed().and_then(|entry| entry.why.clone()).unwrap_or_default();
    assert!(outcome == Outcome::Stopped && why.contains("pod a/agent still uses a claim"), "{why}");
    assert_eq!(journal.nodes[0].data, DataAt::Old);
    check(&fake, "rows", ["old", "old"], "left");
    fake.0.borrow_mut().objects.remove("/api/v1/namespaces/b/pods/agent");
    assert_eq!(roll(&fake, &never).expect("a roll").0, Outcome::Done);
    check(&fake, "rows", ["new", "new"], "again");
}

#[test]
fn a_node_that_somebody_lets_take_pods_is_not_made_anew_from_an_older_copy() {
    let fake = forgetful();
    fake.0.borrow_mut().stuck.insert("w1".into());
    let (outcome, journal) = roll(&fake, &never).expect("a roll");
    assert!(outcome == Outcome::Stopped && journal.nodes[0].is_carried(), "{journal:?}");
    fake.0.borrow_mut().stuck.clear();
    let path = "/api/v1/nodes/w1";
    fake.change(path, |node| node["spec"]["unschedulable"] = json!(null));
    fake.write("w1", ", more");
    let error = roll(&fake, &never).expect_err("held");
    assert!(error.is::<Held>() && format!("{error:#}").contains("kubectl cordon w1"), "{error:#}");
    assert_eq!((fake.data("w1").as_str(), fake.images()[0].as_str()), ("rows, more", "old"));
    fake.change(path, |node| node["spec"]["unschedulable"] = json!(true));
    let (outcome, journal) = roll(&fake, &never).expect("a roll");
    assert_eq!(outcome, Outcome::Done, "{journal:?}");
    check(&fake, "rows", ["new", "new"], "went on");
}

/// Its image never boots; a better one gets the data that the first one never had.
#[test]
fn a_roll_that_stopped_leaves_its_copy_to_the_next_one() {
    for back in [false, true] {
        let fake = forgetful();
        fake.0.borrow_mut().broken.insert("new".into());
        let (outcome, journal) = roll(&fake, &never).expect("a roll");
        assert!(outcome == Outcome::Stopped && journal.nodes[0].step == Step::Failed, "{journal:?}");
        assert!(journal.nodes[0].is_carried() && fake.data("w1").is_empty(), "{journal:?}");
        fake.sleep(Duration::from_secs(60));
        let (outcome, journal) = match back {
            true => roll_back_until(&fake, &never),
            // Nobody has to say again what is to be copied.
            false => {
                command(&fake, fake.process(), &never, || tests::journal(&fake, &to(&fake, "better"), rules(), false))
            }
        }
        .expect("a roll");
        assert_eq!(outcome, Outcome::Done, "{journal:?}");
        check(&fake, "rows", if back { ["old", "old"] } else { ["better", "better"] }, &format!("back: {back}"));
    }
}

#[test]
fn whoever_waits_for_its_data_is_not_forgotten_where_only_the_master_goes_back() {
    let mut last = super::journal::tests::journal(1, &[Step::Booting, Step::Failed, Step::Done]);
    last.nodes[0].master = true;
    let copied = Copied { claim: "a/db".into(), volume: "v".into(), lost: false };
    (last.nodes[1].copy, last.nodes[1].data) = (vec![copied], DataAt::Here);
    let machine = |node: &str, image: &str| Machine {
        node: node.into(),
        image: image.into(),
        running: true,
        keeps_data: false,
        on_volume: false,
    };
    let machines = [machine("n0", "new"), machine("n1", "old"), machine("n2", "new")];
    let back = begin::back_without_api(&last, &machines, last.started).expect("a way back");
    let [master, worker] = back.nodes.as_slice() else { panic!("{back:?}") };
    assert_eq!((master.to.as_str(), worker.to.as_str(), worker.step), ("old", "old", Step::Waiting));
    assert!(worker.is_carried(), "{worker:?}");
}
