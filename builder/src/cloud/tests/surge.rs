//! A roll with a spare: another machine for its time, which nobody pays for without being asked, and nothing of it stays.

use super::roll::{NEW, begun, check, ends_well, killed_behind, three, was_killed, with, with_all};
use super::*;
use crate::machines::Machines;
use crate::roll::fake::Fake;
use crate::roll::journal::{Journal, Outcome, Rules};
use crate::roll::plan::Wish;
use crate::roll::tests::{command_on, journal_on, never, rules};

/// A master and two workers, as they are after `up`, and a spare that `cluster.toml` has since.
fn stage(which: Which, there: &World, more: &str) -> Stage {
    let stage = Stage::of(which, with_spare(which, more));
    *stage.world() = there.clone();
    stage
}

fn with_spare(which: Which, more: &str) -> Settings {
    let text = three(which, more).text;
    read(&format!("{text}[[nodes]]\nname = \"s1\"\nrole = \"worker\"\nspare = true\n"))
}

fn planned(fake: &Fake, machines: &dyn Machines) -> Journal {
    let images = ["w1", "w2", "s1"].map(|node| (node.to_string(), NEW.to_string())).into();
    let wish = Wish { images, spares: vec!["s1".into()], surge: 1, ..Wish::default() };
    journal_on(fake, machines, &wish, Rules { max_unavailable: 1, ..rules() }, false)
}

/// One `kimg roll`.
fn roll(stage: &Stage, fake: &Fake) -> Result<(Outcome, Journal)> {
    with(stage, fake, |both| command_on(fake, both, fake.process(), &never, |both| planned(fake, both)))
}

fn cluster() -> Fake {
    let fake = Fake::new(2);
    fake.0.borrow_mut().least_up = 2;
    fake
}

#[test]
fn a_spare_is_made_and_removed_and_no_worker_is_missed() {
    for which in ALL {
        let there = begun(which);
        let (stage, fake) = (stage(which, &there, ""), cluster());
        let (outcome, journal) = roll(&stage, &fake).unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        check(&stage, &fake, &there, NEW, &format!("{which:?}"));
        let world = fake.0.borrow();
        assert_eq!(
            (&world.order[..], world.least_up),
            (&["s1", "w1", "w2", "s1"].map(String::from)[..], 2),
            "{which:?}"
        );
        drop(world);
        stage.check_calls(None);
    }
}

#[test]
fn behind_whichever_call_it_is_killed_no_machine_is_left_over() {
    for which in ALL {
        let there = begun(which);
        behind_each_call(which, 20, |n, at| {
            let (mut stage, fake) = (stage(which, &there, ""), cluster());
            let first = killed_behind(&stage, &fake, n, |both| planned(&fake, both));
            if !was_killed(&mut stage, &fake, &first, at) {
                return true;
            }
            let back = ends_well(&stage, &fake, &there, n, at, roll);
            if !back {
                assert_eq!(fake.0.borrow().least_up, 2, "{at}: a worker was missing");
            }
            false
        });
    }
}

#[test]
fn a_spare_that_is_above_the_budget_or_has_no_room_is_refused_before_anything_is_touched() {
    for which in rented() {
        let there = begun(which);
        // So much as the cluster costs without it, in whole units.
        let monthly = Stage { settings: three(which, ""), ..stage(which, &there, "") }.plan().monthly_now.unwrap();
        let budget = |whole: u64| format!("budget = {whole}\n");
        let (fake, full) = (cluster(), stage(which, &there, &budget(monthly.0.div_ceil(100))));
        let before = full.server.calls().len();
        let error = with(&full, &fake, |both| both.cloud.check(&["s1", "w1", "w2"])).unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("and the budget is"), "{which:?}: {error:#}");
        full.check_only_asked(before);
        let lines = full.plan().prices_of_spares(&full.settings);
        assert!(
            lines.len() == 2 && lines[0].starts_with("the spare s1 is a ") && lines[1].contains("of a budget of"),
            "{lines:?}"
        );
        // With money and without room.
        let rich = stage(which, &there, &budget(1000));
        let offer = super::super::Offer { room: Some(0), ..rich.cloud().offer().unwrap() };
        let refused = |nodes: &[&str]| with_all(&rich, &fake, false, &offer, |both| both.cloud.check(nodes));
        let error = refused(&["s1", "w1"]).unwrap_err().to_string();
        assert!(error.contains("the account may have 0 more"), "{which:?}: {error}");
        with(&rich, &fake, |both| both.cloud.check(&["s1", "w1", "w2"])).unwrap();
    }
}

#[test]
fn a_plan_says_what_removes_a_spare() {
    let stage = stage(Which::Hetzner, &begun(Which::Hetzner), "");
    let drift = stage.plan().drift.join("\n");
    assert!(drift.contains("s1 is a spare") && drift.contains("`kimg scale workers 2`"), "{drift}");
}
