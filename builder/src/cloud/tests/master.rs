//! A roll of the single master at a provider: its machine stays, and no acknowledged write is lost.

use super::roll::{Both, NEW, begun, killed_behind, see_disk, stage, was_killed, with};
use super::*;
use crate::machines::Machines;
use crate::machines::NO_IMAGE;
use crate::roll::Clock as _;
use crate::roll::fake::Fake;
use crate::roll::journal::{Journal, Outcome};
use crate::roll::plan::Wish;
use crate::roll::tests::{check_clean, command_on, journal_on, never, roll_back_on, rules};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// A cluster whose master is a machine, and to which somebody writes all the time.
pub(super) fn told() -> Fake {
    let fake = Fake::with_master(2);
    {
        let mut world = fake.0.borrow_mut();
        world.acknowledged = Some(Vec::new());
        world.machines.values_mut().for_each(|machine| machine.image = SUM.into());
    }
    fake
}

pub(super) fn planned(fake: &Fake, machines: &dyn Machines, nodes: &[&str]) -> Journal {
    let images = nodes.iter().map(|node| (node.to_string(), NEW.to_string())).collect();
    let patient = crate::roll::journal::Rules { ready_secs: 600, ..rules() };
    journal_on(fake, machines, &Wish { images, ..Wish::default() }, patient, false)
}

/// One `kimg roll`.
pub(super) fn roll(stage: &Stage, fake: &Fake, nodes: &[&str]) -> Result<(Outcome, Journal)> {
    with(stage, fake, |both| command_on(fake, both, fake.process(), &never, |both| planned(fake, both, nodes)))
}

/// The master's machine is the one that it was, at its addresses, with the image of all; nothing that was acknowledged is
/// gone, and nothing is left over.
pub(super) fn check(stage: &Stage, fake: &Fake, before: &World, (image, workers): (&str, &str), at: &str) {
    check_clean(fake, at);
    let servers = stage.cloud().inventory().unwrap().servers;
    let mut found: Vec<(&str, &str)> = servers.iter().map(|one| (one.node.as_str(), one.image.as_str())).collect();
    found.sort_unstable();
    assert_eq!(found, [("m", image), ("w1", workers), ("w2", workers)], "{at}");
    let world = stage.world();
    assert_eq!(world.machine("m.demo"), before.machine("m.demo"), "{at}");
    assert_eq!(world.kinds(), before.kinds(), "{at}");
    let told = fake.0.borrow();
    let master = &told.machines["m"];
    assert!(!master.awaits_backup && !master.fenced, "{at}");
    let acknowledged = told.acknowledged.as_ref().unwrap();
    assert!(acknowledged.len() > 20, "{at}");
    let lost: Vec<&String> = acknowledged.iter().filter(|path| !told.objects.contains_key(*path)).collect();
    assert!(lost.is_empty(), "{at}: acknowledged, and lost: {lost:?}");
    assert!(!stage.settings.run_dir().join("store.snapshot").exists(), "{at}: a copy is left");
}

/// Whether the master is of this image, and has its store: what comes then asks the same again and again.
pub(super) fn is_through(stage: &Stage, image: &str) -> bool {
    let servers = stage.cloud().inventory().unwrap().servers;
    let noted = servers.iter().any(|one| one.node == "m" && one.image == image);
    noted && !stage.settings.run_dir().join("store.snapshot").exists()
}

fn apart(which: Which, there: &World) -> (Stage, tempfile::TempDir) {
    in_folder(stage(which, there))
}

/// Its own folder, since a copy of the store lies there meanwhile.
pub(super) fn in_folder(stage: Stage) -> (Stage, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let folder = stage.settings.dir.join("secrets");
    std::os::unix::fs::symlink(folder, dir.path().join("secrets")).unwrap();
    let settings = Settings { dir: dir.path().into(), ..stage.settings.clone() };
    std::fs::create_dir_all(settings.run_dir()).unwrap();
    (Stage { settings, ..stage }, dir)
}

#[test]
fn a_master_is_rebuilt_where_it_is_and_keeps_every_acknowledged_write() {
    for which in ALL {
        let there = begun(which);
        let ((stage, _dir), fake) = (apart(which, &there), told());
        let (outcome, journal) = roll(&stage, &fake, &["m", "w1", "w2"]).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &fake, &there, (NEW, NEW), "forth");
        let id = stage.world().machine("m.demo")[0];
        let machine = stage.world().machines[&id].clone();
        assert_eq!((machine.disks, machine.made_of.as_str()), (1, "78"), "{which:?}");
        let told = machine.body["user_data"].as_str().unwrap();
        assert!(told.contains("await-backup: true") && told.contains("seal-key: "), "{which:?}: {told}");
        assert_eq!(fake.0.borrow().order, ["w1", "w2"], "the master is none of those that were made anew");
        let (outcome, journal) = with(&stage, &fake, |both| roll_back_on(&fake, both, &never)).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &fake, &there, (SUM, SUM), "back");
        stage.check_calls(None);
    }
}

#[test]
fn behind_whichever_call_of_the_masters_roll_it_is_killed_it_goes_on_and_back() {
    for which in ALL {
        let there = begun(which);
        behind_each_call(which, 8, |n, at| {
            let ((mut stage, _dir), fake) = (apart(which, &there), told());
            let first = killed_behind(&stage, &fake, n, |both| planned(&fake, both, &["m"]));
            if !was_killed(&mut stage, &fake, &first, at) {
                return true;
            }
            let (back, through) = (n % 2 == 1, is_through(&stage, NEW));
            let (outcome, journal) = match back {
                true => with(&stage, &fake, |both| roll_back_on(&fake, both, &never)),
                false => roll(&stage, &fake, &["m"]),
            }
            .unwrap_or_else(|error| panic!("{at}: {error:#}"));
            assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
            check(&stage, &fake, &there, (if back { SUM } else { NEW }, SUM), at);
            through
        });
    }
}

#[test]
fn a_master_that_cannot_be_rebuilt_serves_again_as_it_was() {
    for which in ALL {
        let there = begun(which);
        let ((stage, _dir), fake) = (apart(which, &there), told());
        let refused = with(&stage, &fake, |both| {
            command_on(&fake, both, fake.process(), &never, |both| {
                stage.world().keeps_disks = true;
                planned(&fake, both, &["m"])
            })
        });
        let (outcome, journal) = refused.unwrap();
        let why = journal.failed().and_then(|entry| entry.why.clone()).unwrap_or_default();
        assert!(outcome == Outcome::Stopped && why.contains("rebuilding the machine of m"), "{which:?}: {why}");
        check(&stage, &fake, &there, (SUM, SUM), "refused");
        assert_eq!(with(&stage, &fake, |both| both.list()).unwrap()[0].image, SUM);
    }
}

/// What has begun is closed and copied again, and that, too, may be interrupted.
#[test]
fn behind_whichever_call_of_the_way_back_it_is_killed_it_goes_on_back() {
    for which in ALL {
        let there = begun(which);
        // Forth, and killed behind so many calls.
        let forth = |calls: usize| {
            let ((mut stage, dir), fake) = (apart(which, &there), told());
            let ended = killed_behind(&stage, &fake, calls, |both| planned(&fake, both, &["m"]));
            assert!(ended.is_err(), "{which:?}, call {calls}: {ended:?}");
            stage.world().stops = None;
            stage.clock = Virtual::new();
            (stage, dir, fake)
        };
        // The new master may have begun, and is not noted yet.
        let calls = (0..).find(|calls| forth(*calls).0.settings.run_dir().join("store.begun").exists()).unwrap();
        behind_each_call(which, 8, |n, at| {
            let (mut stage, _dir, fake) = forth(calls);
            fake.sleep(Duration::from_secs(30));
            // From where the plan is made.
            let counted = |point: &str| {
                if point == "copied" {
                    let answered = stage.world().answered;
                    stage.world().stops = Some((stage.clock.clone(), answered + n));
                }
                Ok(())
            };
            let first = with(&stage, &fake, |both| roll_back_on(&fake, both, &counted));
            if !was_killed(&mut stage, &fake, &first, at) {
                return true;
            }
            let through = is_through(&stage, SUM);
            if first.is_err() {
                let (outcome, journal) = match crate::roll::begin::last_without_api(&fake.copy()).unwrap() {
                    Some(last) if last.journal.back => roll(&stage, &fake, &["m"]),
                    _ => with(&stage, &fake, |both| roll_back_on(&fake, both, &never)),
                }
                .unwrap_or_else(|error| panic!("{at}: {error:#}"));
                assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
            }
            check(&stage, &fake, &there, (SUM, SUM), at);
            through
        });
    }
}

#[test]
fn an_image_whose_node_never_answers_goes_back_with_every_acknowledged_write() {
    for which in ALL {
        let there = begun(which);
        let ((stage, _dir), fake) = (apart(which, &there), told());
        fake.0.borrow_mut().mute.insert("78".into());
        let (outcome, journal) = roll(&stage, &fake, &["m"]).unwrap();
        let why = journal.failed().and_then(|entry| entry.why.clone()).unwrap_or_default();
        assert!(outcome == Outcome::Stopped && why.contains("has not taken its store"), "{which:?}: {why}");
        // Nor does the old one at first.
        fake.0.borrow_mut().mute.insert("77".into());
        let (outcome, journal) = with(&stage, &fake, |both| roll_back_on(&fake, both, &never)).unwrap();
        assert_eq!(outcome, Outcome::Stopped, "{which:?}: {journal:?}");
        fake.0.borrow_mut().mute.remove("77");
        let (outcome, journal) = with(&stage, &fake, |both| roll_back_on(&fake, both, &never)).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &fake, &there, (SUM, SUM), "back");
    }
}

/// One `kimg heal` of the master, which is killed behind so many calls, and another one where it still is not back; whether
/// the first came to its end.
pub(super) fn heal_killed_behind(
    stage: &mut Stage,
    fake: &Fake,
    calls: usize,
    revive: impl Fn(&Both<'_>) -> Result<()>,
) -> bool {
    let first = with(stage, fake, |both| {
        let mut world = stage.world();
        world.stops = Some((stage.clock.clone(), world.answered + calls));
        drop(world);
        revive(both)
    });
    let whole = !stage.clock.stopped.load(Relaxed);
    stage.world().stops = None;
    if whole {
        first.unwrap();
        return true;
    }
    stage.clock = Virtual::new();
    fake.sleep(Duration::from_secs(30));
    if !with(stage, fake, |both| both.cloud.resume("m")).unwrap() {
        let found = stage.cloud().inventory().unwrap().servers.into_iter().find(|one| one.node == "m");
        let answers = crate::roll::api::Kube(fake).check_ready().is_ok();
        if !(answers && found.is_some_and(|one| one.image == SUM)) {
            with(stage, fake, |both| revive(both)).unwrap();
        }
    }
    false
}

/// The master serves with all that was acknowledged, and no copy of its store is left here.
pub(super) fn check_healed(stage: &Stage, fake: &Fake, at: &str) {
    let told = fake.0.borrow();
    assert!(!told.machines["m"].awaits_backup && told.faults.is_empty(), "{at}: {:?}", told.faults);
    let acknowledged = told.acknowledged.as_ref().unwrap();
    assert!(acknowledged.len() > 20, "{at}");
    let lost: Vec<&String> = acknowledged.iter().filter(|path| !told.objects.contains_key(*path)).collect();
    assert!(lost.is_empty(), "{at}: what was acknowledged is lost: {lost:?}");
    assert!(!stage.settings.run_dir().join("store.snapshot").exists(), "{at}");
}

/// A master whose machine is there with a store that nobody can read, or is gone.
#[test]
fn behind_whichever_call_of_healing_it_is_killed_the_next_one_ends_the_same() {
    for (which, gone) in ALL.into_iter().flat_map(|which| [(which, false), (which, true)]) {
        let there = begun(which);
        behind_each_call(which, 5, |n, at| {
            let at = &format!("{at}, gone: {gone}");
            let ((mut stage, _dir), fake) = (apart(which, &there), Fake::with_master(2));
            let copy = serde_json::to_vec(&fake.0.borrow().objects).unwrap();
            let old = stage.world().machine("m.demo")[0];
            if gone {
                stage.world().machines.remove(&old);
                see_disk(&stage.world(), &fake);
            } else {
                fake.0.borrow_mut().machines.get_mut("m").unwrap().running = false;
            }
            // Whatever is acknowledged from here on was so by the master that is back.
            fake.0.borrow_mut().acknowledged = Some(Vec::new());
            let whole = heal_killed_behind(&mut stage, &fake, n, |both| both.cloud.revive("m", SUM, Some(&copy)));
            fake.sleep(Duration::from_secs(60));
            let servers = stage.cloud().inventory().unwrap().servers;
            let masters: Vec<&str> =
                servers.iter().filter(|one| one.node == "m").map(|one| one.image.as_str()).collect();
            assert_eq!((masters, servers.len()), (vec![SUM], 3), "{at}");
            // Google's fake knows the master by its address, which stays.
            assert_eq!(stage.world().machines.contains_key(&old), !gone || which == Which::Gcp, "{at}");
            assert_eq!(stage.world().kinds(), there.kinds(), "{at}");
            check_healed(&stage, &fake, at);
            stage.check_calls(None);
            whole
        });
    }
}

#[test]
fn up_begins_no_empty_store_where_a_copy_is_waited_for() {
    for which in ALL {
        let stage = Stage::whole(which);
        let id = stage.world().machine("m.demo")[0];
        let server = stage.cloud().inventory().unwrap().servers.into_iter().find(|one| one.node == "m").unwrap();
        stage.cloud().mark(&server, NO_IMAGE).unwrap();
        stage.world().machines.get_mut(&id).unwrap().disks += 1;
        let error = stage.up().unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("waits for its store"), "{which:?}: {error:#}");
        // Noted or not, workers are there.
        stage.cloud().mark(&server, SUM).unwrap();
        let error = format!("{:#}", stage.up().unwrap_err());
        assert!(error.contains("it waits for a backup"), "{which:?}: {error}");
        stage.check_calls(None);
    }
}
