//! The data volume of a single master: its store stays there, whatever becomes of the machine.

use super::master::{check, check_healed, heal_killed_behind, in_folder, is_through, planned, roll, told};
use super::roll::{NEW, killed_behind, see_disk, three, was_killed};
use super::*;
use crate::machines::Machines as _;
use crate::roll::Clock as _;
use crate::roll::journal::Outcome;
use crate::roll::tests::{never, roll_back_on};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Those that can tell a machine of a volume that it had not.
const MOVE: [Which; 3] = [Which::Hetzner, Which::Linode, Which::Vultr];

/// A master with a volume, and two workers without.
fn with_volume(which: Which) -> Settings {
    read(&three(which, "").text.replace("name = \"m\"\n", "name = \"m\"\ndata-gb = 20\n"))
}

fn on(which: Which, there: &World) -> Stage {
    let stage = Stage::of(which, with_volume(which));
    *stage.world() = there.clone();
    stage
}

/// After `up` of these settings.
fn begun(which: Which, settings: Settings) -> World {
    let stage = Stage::of(which, settings);
    stage.up().unwrap();
    World::clone(&stage.world())
}

/// The master is told of its volume, has it, and the store is on it.
fn check_on_volume(stage: &Stage, at: &str) -> u64 {
    let world = stage.world();
    let all: Vec<u64> = world.of("volume").map(|(id, _)| id).collect();
    let machine = world.machine("m.demo")[0];
    assert!(all.len() == 1 && world.told(machine) && world.sees(machine) == Some(all[0]), "{at}: {all:?}");
    assert!(world.stores.contains(&all[0]), "{at}: no store is on the volume");
    drop(world);
    let servers = stage.cloud().inventory().unwrap().servers;
    assert!(servers.iter().all(|one| one.on_volume == (one.node == "m")), "{at}: {servers:?}");
    all[0]
}

#[test]
fn up_gives_the_master_its_volume_and_gives_it_back_after_destroy() {
    for which in ALL {
        let stage = Stage::of(which, with_volume(which));
        assert!(stage.plan().shown().contains("make the data volume of m "), "{}", stage.plan().shown());
        stage.up().unwrap();
        let volume = check_on_volume(&stage, "up");
        let sent = stage.server.calls().len();
        assert!(stage.up().unwrap().made.is_empty(), "{which:?}");
        stage.check_only_asked(sent);
        let plan = stage.plan();
        assert!(plan.steps.is_empty() && plan.drift.is_empty() && plan.refusals.is_empty(), "{plan:?}");
        stage.destroy().unwrap();
        assert_eq!(stage.world().kinds(), ["volume"], "{which:?}");
        stage.world().nodes.clear();
        stage.up().unwrap();
        assert_eq!(check_on_volume(&stage, "after all had gone"), volume, "{which:?}");
        stage.check_calls(None);
    }
}

#[test]
fn whenever_up_is_interrupted_the_master_has_one_volume() {
    for which in ALL {
        behind_each_call(which, 10, |n, at| {
            let mut stage = Stage::of(which, with_volume(which));
            stage.world().stops = Some((stage.clock.clone(), n));
            let _ = stage.up();
            let whole = !stage.clock.stopped.load(Relaxed);
            stage.world().stops = None;
            stage.clock = Virtual::new();
            stage.up().unwrap_or_else(|error| panic!("{at}: {error:#}"));
            check_on_volume(&stage, at);
            whole
        });
    }
}

/// Forth, killed behind each call, and then forth or back.
fn rolls(which: Which, there: &World) {
    let mut after = there.clone();
    if after.of("volume").count() == 0 {
        after.things.insert(("volume", 0), json!({}));
    }
    behind_each_call(which, 8, |n, at| {
        let ((mut stage, _dir), fake) = (in_folder(on(which, there)), told());
        let first = killed_behind(&stage, &fake, n, |both| planned(&fake, both, &["m"]));
        if !was_killed(&mut stage, &fake, &first, at) {
            stage.world().stops = None;
            let (outcome, journal) = first.unwrap();
            assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
            check(&stage, &fake, &after, (NEW, SUM), at);
            check_on_volume(&stage, at);
            stage.check_calls(None);
            return true;
        }
        let (back, through) = (n % 2 == 1, is_through(&stage, NEW));
        let (outcome, journal) = match back {
            true => super::roll::with(&stage, &fake, |both| roll_back_on(&fake, both, &never)),
            false => roll(&stage, &fake, &["m"]),
        }
        .unwrap_or_else(|error| panic!("{at}: {error:#}"));
        assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
        let moved = stage.world().of("volume").count() > 0;
        let image = if back { SUM } else { NEW };
        check(&stage, &fake, if moved { &after } else { there }, (image, SUM), at);
        // Before it is closed, there is nothing to bring back.
        if moved || !back {
            check_on_volume(&stage, at);
        }
        through
    });
}

#[test]
fn behind_whichever_call_a_roll_is_killed_the_store_goes_on_on_its_volume() {
    for which in ALL {
        rolls(which, &begun(which, with_volume(which)));
    }
}

#[test]
fn behind_whichever_call_the_first_roll_with_a_volume_is_killed_the_store_moves_there() {
    for which in MOVE {
        rolls(which, &begun(which, three(which, "")));
    }
}

#[test]
fn a_master_whose_volume_cannot_be_had_serves_again_as_it_was() {
    for which in MOVE {
        let there = begun(which, three(which, ""));
        let ((stage, _dir), fake) = (in_folder(on(which, &there)), told());
        stage.world().keeps_disks = true;
        let (outcome, journal) = roll(&stage, &fake, &["m"]).unwrap();
        let why = journal.failed().and_then(|entry| entry.why.clone()).unwrap_or_default();
        assert!(outcome == Outcome::Stopped && why.contains("rebuilding the machine of m"), "{which:?}: {why}");
        check(&stage, &fake, &there, (SUM, SUM), "refused");
        // Nor is a volume left that might be taken for what it had.
        stage.world().keeps_disks = false;
        let (outcome, journal) = roll(&stage, &fake, &["m"]).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check_on_volume(&stage, "moved");
    }
}

#[test]
fn an_image_whose_node_never_answers_goes_back_with_the_store_on_its_volume() {
    for (which, there) in ALL.into_iter().map(|which| (which, begun(which, with_volume(which)))) {
        let ((stage, _dir), fake) = (in_folder(on(which, &there)), told());
        fake.0.borrow_mut().mute.insert("78".into());
        let (outcome, journal) = roll(&stage, &fake, &["m"]).unwrap();
        assert_eq!(outcome, Outcome::Stopped, "{which:?}: {journal:?}");
        let (outcome, journal) = super::roll::with(&stage, &fake, |both| roll_back_on(&fake, both, &never)).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &fake, &there, (SUM, SUM), "back");
        check_on_volume(&stage, "back");
    }
}

/// What a new master has acknowledged is on its volume, also where nobody can close and copy it any more.
#[test]
fn a_master_that_has_begun_and_never_answers_again_is_in_nobodys_way() {
    for which in ALL {
        let there = begun(which, with_volume(which));
        let forth = |calls: usize| {
            let ((mut stage, dir), fake) = (in_folder(on(which, &there)), told());
            let ended = killed_behind(&stage, &fake, calls, |both| planned(&fake, both, &["m"]));
            assert!(ended.is_err(), "{which:?}, call {calls}: {ended:?}");
            stage.world().stops = None;
            stage.clock = Virtual::new();
            (stage, dir, fake)
        };
        let calls = (0..).find(|calls| forth(*calls).0.settings.run_dir().join("store.begun").exists()).unwrap();
        for heals in [false, true] {
            let (stage, _dir, fake) = forth(calls);
            fake.sleep(Duration::from_secs(30));
            fake.0.borrow_mut().mute.insert("78".into());
            if heals {
                super::roll::with(&stage, &fake, |both| {
                    assert!(!both.cloud.resume("m")?);
                    both.cloud.revive("m", SUM, None)
                })
                .unwrap();
                fake.0.borrow_mut().mute.clear();
            }
            let (outcome, journal) = match heals {
                true => roll(&stage, &fake, &["m"]),
                false => super::roll::with(&stage, &fake, |both| roll_back_on(&fake, both, &never)),
            }
            .unwrap();
            assert_eq!(outcome, Outcome::Done, "{which:?}, healed: {heals}: {journal:?}");
            check(&stage, &fake, &there, (if heals { NEW } else { SUM }, SUM), "gone on");
            check_on_volume(&stage, "gone on");
        }
    }
}

/// The machine is there and does not answer, or it is gone.
#[test]
fn behind_whichever_call_healing_is_killed_nothing_is_lost() {
    for (which, gone) in ALL.into_iter().flat_map(|which| [(which, false), (which, true)]) {
        let there = begun(which, with_volume(which));
        behind_each_call(which, 5, |n, at| {
            let at = &format!("{at}, gone: {gone}");
            let ((mut stage, _dir), fake) = (in_folder(on(which, &there)), told());
            fake.sleep(Duration::from_secs(60));
            let (old, volume) = (there.machine("m.demo")[0], there.of("volume").next().unwrap().0);
            if gone {
                stage.world().machines.remove(&old);
                see_disk(&stage.world(), &fake);
            } else {
                fake.0.borrow_mut().machines.get_mut("m").unwrap().running = false;
            }
            let whole = heal_killed_behind(&mut stage, &fake, n, |both| {
                assert!(both.cloud.store_volume("m")?.is_some());
                both.cloud.revive("m", SUM, None)
            });
            fake.sleep(Duration::from_secs(60));
            assert_eq!(check_on_volume(&stage, at), volume, "{at}");
            check_healed(&stage, &fake, at);
            assert_eq!(stage.world().kinds(), there.kinds(), "{at}");
            stage.check_calls(None);
            whole
        });
    }
}

#[test]
fn a_volume_without_a_store_and_one_that_is_given_up_are_told_apart() {
    for which in ALL {
        let there = begun(which, with_volume(which));
        let ((stage, _dir), fake) = (in_folder(on(which, &there)), told());
        let copy = serde_json::to_vec(&fake.0.borrow().objects).unwrap();
        fake.sleep(Duration::from_secs(60));
        let newest = fake.0.borrow().acknowledged.as_ref().unwrap().last().unwrap().clone();
        stage.world().stores.clear();
        let old = stage.world().machine("m.demo")[0];
        stage.world().machines.remove(&old);
        see_disk(&stage.world(), &fake);
        let error = super::roll::with(&stage, &fake, |both| both.cloud.revive("m", SUM, None)).unwrap_err();
        assert!(
            format!("{error:#}").contains("holds no store: `kimg heal master --discard-disk`"),
            "{which:?}: {error:#}"
        );
        super::roll::with(&stage, &fake, |both| both.cloud.revive("m", SUM, Some(&copy))).unwrap();
        assert!(!fake.0.borrow().objects.contains_key(&newest), "{which:?}: the backup is older");
        check_on_volume(&stage, "given up");
    }
}

#[test]
fn what_would_lose_a_store_or_hide_it_is_refused() {
    for which in ALL {
        let there = begun(which, with_volume(which));
        let volume = there.of("volume").next().unwrap().0;
        let refused = |settings: Settings, world: &World| {
            let stage = Stage::of(which, settings);
            *stage.world() = world.clone();
            (stage.plan().refusals.join("; "), super::roll::with(&stage, &told(), |both| both.cloud.check(&["m"])))
        };
        // The line is gone.
        let (says, checked) = refused(three(which, ""), &there);
        assert!(says.contains("kimg takes none off again: write data-gb = 20"), "{says}");
        assert!(checked.unwrap_err().is::<BadInput>(), "{which:?}");
        // A machine that is gone.
        let mut gone = there.clone();
        gone.machines.remove(&gone.machine("m.demo")[0]);
        let (says, _) = refused(with_volume(which), &gone);
        assert!(says.contains("`kimg heal master` makes another, and gives it the data volume"), "{says}");
        // And the line with it: neither a new store nor a backup comes beside the one on the volume.
        let (says, _) = refused(three(which, ""), &gone);
        assert!(says.contains("may have the store of m: write data-gb = 20"), "{says}");
        let stage = Stage::of(which, three(which, ""));
        *stage.world() = gone;
        let error = super::roll::with(&stage, &told(), |both| both.cloud.store_volume("m")).unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("write data-gb = 20"), "{error:#}");
        // The line is back, and meanwhile the store was on a disk.
        let mut stale = begun(which, three(which, ""));
        let (says, checked) = refused(with_volume(which), &stale);
        assert!(says.is_empty(), "{says}");
        let error = checked.map_err(|error| error.to_string());
        match MOVE.contains(&which) {
            true => error.unwrap(),
            false => assert!(error.unwrap_err().contains("tells a machine that is rebuilt of none"), "{which:?}"),
        }
        let mut body = there.things[&("volume", volume)].clone();
        body["server"] = Value::Null;
        stale.things.insert(("volume", 70), body);
        let (says, checked) = refused(with_volume(which), &stale);
        assert!(says.contains("is on its own disk, and the data volume 70"), "{says}");
        assert!(checked.unwrap_err().is::<BadInput>(), "{which:?}");
    }
}
