//! Claims of workers without data volumes, whose data a roll copies from machine to machine.

use super::roll::*;
use super::*;
use crate::machines::Machines;
use crate::roll::fake::Fake;
use crate::roll::journal::{Journal, Outcome};
use crate::roll::plan::Wish;
use crate::roll::tests::{CLAIM, check_clean, command_on, journal_on, never, roll_back_on, rules};
use crate::roll::volumes_tests::forgetful;

fn planned(fake: &Fake, machines: &dyn Machines) -> Journal {
    let images = [("w1".to_string(), NEW.to_string())].into();
    journal_on(fake, machines, &Wish { images, copy: vec!["a/db".into()], ..Wish::default() }, rules(), false)
}

fn check(stage: &Stage, fake: &Fake, there: &World, image: &str, at: &str) {
    let servers = stage.cloud().inventory().unwrap().servers;
    let mut found: Vec<(&str, &str)> = servers.iter().map(|one| (one.node.as_str(), one.image.as_str())).collect();
    found.sort_unstable();
    assert_eq!(found, [("m", SUM), ("w1", image), ("w2", SUM)], "{at}");
    assert_eq!(stage.world().kinds(), there.kinds(), "{at}");
    assert_eq!(fake.data("w1"), "rows", "{at}");
    assert!(fake.0.borrow().objects.contains_key(CLAIM), "{at}: the claim is gone");
    assert!(!fake.copies().path("w1", "v").exists(), "{at}: a copy is left");
    check_clean(fake, at);
}

#[test]
fn a_roll_carries_the_data_behind_whichever_call_it_is_killed() {
    for which in ALL {
        let there = begun(which);
        behind_each_call(which, 10, |n, at| {
            let (mut stage, fake) = (stage(which, &there), forgetful());
            let first = killed_behind(&stage, &fake, n, |both| planned(&fake, both));
            if !was_killed(&mut stage, &fake, &first, at) {
                stage.world().stops = None;
                let (outcome, journal) = first.unwrap();
                assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
                check(&stage, &fake, &there, NEW, at);
                stage.check_calls(None);
                // What it has copied forth it copies back, without being told again.
                let (outcome, journal) = with(&stage, &fake, |both| roll_back_on(&fake, both, &never)).unwrap();
                assert_eq!(outcome, Outcome::Done, "{at}, and back: {journal:?}");
                check(&stage, &fake, &there, SUM, at);
                return true;
            }
            let back = n / step() % 3 == 2;
            let (outcome, journal) = with(&stage, &fake, |both| match back {
                true => roll_back_on(&fake, both, &never),
                false => command_on(&fake, both, fake.process(), &never, |both| planned(&fake, both)),
            })
            .unwrap_or_else(|error| panic!("{at}: {error:#}"));
            assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
            check(&stage, &fake, &there, if back { SUM } else { NEW }, at);
            false
        });
    }
}
