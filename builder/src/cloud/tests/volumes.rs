//! Data volumes: made once, carried from a worker's machine to the next, and removed by nobody who was not told to.

use super::roll::*;
use super::*;
use crate::cloud::{Thing, Volume};
use crate::machines::Machines;
use crate::roll::fake::Fake;
use crate::roll::journal::{Journal, Outcome};
use crate::roll::plan::Wish;
use crate::roll::tests::{CLAIM, bind, command_on, journal_on, never, roll_back_on, rules};
use std::cell::RefCell;

/// A master, a worker with data, and one without.
fn with(which: Which, more: &str) -> Settings {
    let text = three(which, more).text.replace("name = \"w1\"\n", "name = \"w1\"\ndata-gb = 20\n");
    read(&text)
}

fn begun_with(which: Which) -> World {
    let stage = Stage::of(which, with(which, ""));
    stage.up().unwrap();
    World::clone(&stage.world())
}

fn on(which: Which, there: &World) -> Stage {
    let stage = Stage::of(which, with(which, ""));
    *stage.world() = there.clone();
    stage
}

impl World {
    /// The only volume, and the machine that it is at.
    fn volume(&self) -> (u64, Option<u64>) {
        let all: Vec<(u64, &Value)> = self.of("volume").collect();
        let [(id, _)] = all[..] else { panic!("{all:?}") };
        (id, self.attached(id))
    }
}

fn changes_volume(call: &Call) -> bool {
    let (path, body) = (call.path.as_str(), String::from_utf8_lossy(&call.body));
    let of_volumes =
        ["/volumes", "/blocks", "volume_attachments", "/disks", "tachDisk"].iter().any(|at| path.contains(at));
    // AWS and Proxmox say it in the body.
    let said = path == "/ec2/" && fakes::aws::action(call).ends_with("Volume")
        || path.contains("/qemu")
            && ["kimg-holds.", "\"protection\"", "\"scsi2\""].iter().any(|word| body.contains(word));
    (of_volumes || said) && !only_asks(call)
}

/// One volume is there, at the machine of `w1`, which has joined.
fn check_attached(stage: &Stage, at: &str) {
    let world = stage.world();
    let machine = world.machine("w1.demo");
    assert!(machine.len() == 1 && world.volume().1 == Some(machine[0]), "{at}: {:?}, {machine:?}", world.volume());
    assert_eq!([world.nodes["w1"]], machine[..], "{at}");
    for (node, told) in [("w1", true), ("w2", false)] {
        let data = &world.machines[&world.machine(&format!("{node}.demo"))[0]].body["user_data"];
        assert_eq!(data.as_str().unwrap().contains("  data-volume: 20\n"), told, "{at}: {node}");
    }
    assert_eq!(world.machines.len(), 3, "{at}");
}

#[test]
fn up_makes_a_volume_once_and_attaches_it_by_published_calls() {
    for which in ALL {
        let stage = Stage::of(which, with(which, ""));
        let plan = stage.plan();
        let row = plan.shown().lines().find(|line| line.starts_with("make the data volume of w1 ")).map(str::to_owned);
        assert!(row.is_some_and(|row| row.contains("20 GB")), "{}", plan.shown());
        stage.up().unwrap();
        check_attached(&stage, "up");
        let sent = stage.server.calls().len();
        assert!(stage.up().unwrap().made.is_empty(), "{which:?}");
        stage.check_only_asked(sent);
        let plan = stage.plan();
        assert!(plan.steps.is_empty() && plan.drift.is_empty() && plan.refusals.is_empty(), "{plan:?}");
        // A machine that was lost leaves it, and the next one has it.
        let (volume, old) = stage.world().volume();
        stage.world().machines.remove(&old.unwrap());
        stage.up().unwrap();
        check_attached(&stage, "made anew");
        assert_eq!(stage.world().volume().0, volume);
        stage.check_calls(None);
    }
}

#[test]
fn whichever_call_fails_there_is_one_volume_where_it_belongs() {
    for which in ALL {
        let calls = {
            let stage = Stage::of(which, with(which, ""));
            stage.up().unwrap();
            stage.server.calls()
        };
        let changes: Vec<usize> = (0..calls.len()).filter(|n| changes_volume(&calls[*n])).collect();
        assert!(changes.len() >= 2, "{which:?}: {changes:?}");
        for n in changes {
            for fault in faults(&calls[n]) {
                let stage = Stage::of(which, with(which, ""));
                stage.server.fail(n, fault.clone());
                let at = format!("{which:?}, call {n}, {fault:?}");
                let first = stage.up();
                if first.is_err() {
                    stage.up().unwrap_or_else(|error| panic!("{at}: {error:#}"));
                }
                check_attached(&stage, &at);
            }
        }
    }
}

#[test]
fn whenever_up_is_interrupted_there_is_one_volume_where_it_belongs() {
    for which in ALL {
        let calls = {
            let stage = Stage::of(which, with(which, ""));
            stage.up().unwrap();
            stage.server.calls()
        };
        // Behind each call that changes a volume, and the one after it.
        let behind = (0..calls.len()).filter(|n| changes_volume(&calls[*n])).flat_map(|n| [n + 1, n + 2]);
        for n in behind {
            let mut stage = Stage::of(which, with(which, ""));
            let stops = Some((stage.clock.clone(), n));
            stage.world().stops = stops;
            let _ = stage.up();
            stage.world().stops = None;
            stage.clock = Virtual::new();
            let at = format!("{which:?}, interrupted behind call {n}");
            stage.up().unwrap_or_else(|error| panic!("{at}: {error:#}"));
            check_attached(&stage, &at);
        }
    }
}

#[test]
fn a_volume_costs_and_is_counted() {
    for which in ALL {
        let (price, more) = match which {
            Which::Hetzner => (Cents(88), ""),
            Which::Linode => (Cents(240), ""),
            Which::DigitalOcean | Which::Vultr => (Cents(200), "prices = { data-gb = 0.1 }\n"),
            Which::OpenStack | Which::Gcp | Which::Aws => (Cents(200), ""),
            Which::Proxmox => (Cents(0), ""),
        };
        let at = |more: &str| Stage::of(which, with(which, more)).plan();
        let plan = at(more);
        let bare = Stage::of(which, three(which, more)).plan();
        assert_eq!(plan.monthly_then, Some([bare.monthly_then.unwrap(), price].into_iter().sum()), "{which:?}");
        assert!(plan.unpriced.is_empty() && plan.shown().contains("machines and data volumes a month"), "{plan:?}");
        if which == Which::Proxmox {
            continue;
        }
        // Without the volume the budget would be kept.
        let budget = format!("budget = {}\n{more}", bare.monthly_then.unwrap().0 / 100 + 1);
        Stage::of(which, three(which, &budget)).plan().check().unwrap();
        let error = at(&budget).check().unwrap_err().to_string();
        assert!(error.contains("it would cost"), "{error}");
    }
    let plan = Stage::of(Which::DigitalOcean, with(Which::DigitalOcean, "budget = 90\n")).plan();
    assert_eq!(plan.unpriced, ["the data volume of w1 (20 GB)"]);
    assert!(plan.refusals[0].contains("write that of a GB as data-gb"), "{:?}", plan.refusals);
}

#[test]
fn what_is_not_as_cluster_toml_says_is_told() {
    for which in ALL {
        let there = begun_with(which);
        let text = with(which, "").text;
        let told = |from: &str, to: &str, world: &World| {
            let stage = Stage::of(which, read(&text.replace(from, to)));
            *stage.world() = world.clone();
            let plan = stage.plan();
            (plan.drift.join("; "), plan.refusals.join("; "), plan.steps)
        };
        let (drift, refusals, steps) = told("= 20", "= 40", &there);
        assert!(drift.contains("has 20 GB, and cluster.toml says 40: kimg does not make one larger yet"), "{drift}");
        assert!(refusals.is_empty() && steps.is_empty(), "{which:?}");
        let (_, refusals, _) = told("= 20", "= 10", &there);
        assert!(refusals.contains("none gets smaller; write data-gb = 20"), "{refusals}");
        // It is no node's any more, and costs on.
        let (drift, refusals, steps) = told("data-gb = 20\n", "", &there);
        assert!(drift.contains("write data-gb = 20 there"), "{drift}");
        assert!(refusals.is_empty() && steps.is_empty(), "{which:?}");
        let mut alone = there.clone();
        alone.machines.remove(&alone.machine("w1.demo")[0]);
        let (drift, ..) = told("data-gb = 20\n", "", &alone);
        assert!(drift.contains("`kimg destroy --node w1 --data` removes it"), "{drift}");
        // A machine that was told nothing of a volume has its data on its own disk: nothing is there that looks like it.
        let bare = begun(which);
        let (drift, _, steps) = told("", "", &bare);
        assert!(drift.contains("the machine of w1 was made without a data volume"), "{drift}");
        assert!(steps.is_empty(), "{steps:?}");
        let stage = on(which, &bare);
        stage.up().unwrap();
        assert_eq!(stage.world().of("volume").count(), 0, "{which:?}");
        let gone = stage.world().machine("w1.demo")[0];
        stage.world().machines.remove(&gone);
        let listed = with_nodes(&stage, |both| both.list()).unwrap();
        assert!(!listed[1].keeps_data, "{which:?}: its data is on its own disk");
        // Somebody detached it, attached it elsewhere, or removed it.
        let mut world = there.clone();
        let (volume, _) = world.volume();
        world.things.get_mut(&("volume", volume)).unwrap()["server"] = Value::Null;
        let (_, _, steps) = told("", "", &world);
        assert_eq!(steps, [Step::AttachVolume { node: "w1".into() }]);
        let stage = on(which, &world);
        stage.up().unwrap();
        check_attached(&stage, "attached again");
        let other = world.machine("w2.demo")[0];
        world.things.get_mut(&("volume", volume)).unwrap()["server"] = json!(other);
        let (_, refusals, _) = told("", "", &world);
        assert!(
            refusals.contains(&format!("is attached to the machine {other}, which is not the node's")),
            "{refusals}"
        );
        world.things.remove(&("volume", volume));
        let (drift, _, steps) = told("", "", &world);
        assert!(drift.contains("the data volume of w1 is gone") && steps.len() == 2, "{drift}, {steps:?}");
        let mut two = there.clone();
        let body = two.things[&("volume", volume)].clone();
        two.things.insert(("volume", 70), body);
        let (_, refusals, _) = told("", "", &two);
        assert!(refusals.contains(&format!("w1 has several data volumes ({volume}, 70)")), "{refusals}");
    }
}

#[test]
fn another_clusters_volume_is_not_touched() {
    for which in ALL {
        let stage = Stage::of(which, with(which, ""));
        let labels = json!({"kimg-cluster": "demo", "kimg-ca": "ffffffffffff", "kimg-node": "w1"});
        let mut other = json!({"name": "kimg-ffffffffffff-w1", "size": 20, "size_gigabytes": 20, "location": "nbg1",
            "region": "fra1", "size_gb": 20, "sizeGb": "20", "labels": labels, "metadata": labels,
            "tags": ["kimg-cluster.demo", "kimg-ca.ffffffffffff", "kimg-node.w1"]});
        match which {
            Which::Aws => other["tags"] = labels,
            Which::Proxmox => other["tags"] = json!(["kimg-cluster.demo", "kimg-ca.ffffffffffff", "kimg-holds.w1"]),
            _ => {}
        }
        stage.world().things.insert(("volume", 80), other.clone());
        assert!(stage.plan().refusals.is_empty(), "{which:?}");
        stage.up().unwrap();
        assert_eq!(stage.world().of("volume").count(), 2, "{which:?}");
        let all = |found: &Inventory| [destroy::things(found), destroy::volumes(found)].concat();
        destroy::destroy(&*stage.cloud(), &stage.clock.client(), all, |_| ()).unwrap();
        assert_eq!(stage.world().of("volume").collect::<Vec<_>>(), [(80, &other)], "{which:?}");
    }
}

#[test]
fn destroy_keeps_volumes_unless_it_is_told() {
    for which in ALL {
        let stage = on(which, &begun_with(which));
        let (volume, _) = stage.world().volume();
        // A worker alone; what is up again has its data.
        let of = |found: &Inventory| destroy::of_node(&stage.settings, found, "w1").unwrap_or_default();
        destroy::destroy(&*stage.cloud(), &stage.clock.client(), of, |_| ()).unwrap();
        assert_eq!(stage.world().volume(), (volume, None), "{which:?}");
        stage.up().unwrap();
        check_attached(&stage, "made anew");
        stage.destroy().unwrap();
        assert_eq!(stage.world().kinds(), ["volume"], "{which:?}");
        assert!(stage.world().tags.is_empty() && stage.world().machines.is_empty(), "{which:?}");
        stage.world().nodes.clear();
        stage.up().unwrap();
        check_attached(&stage, "after all had gone");
        assert_eq!(stage.world().volume().0, volume, "{which:?}");
        // With data, whichever call fails.
        let (before, there) = (stage.server.calls().len(), stage.world().clone());
        let all = |found: &Inventory| [destroy::things(found), destroy::volumes(found)].concat();
        let destroy = |stage: &Stage| destroy::destroy(&*stage.cloud(), &stage.clock.client(), all, |_| ());
        destroy(&stage).unwrap();
        assert!(stage.world().is_empty(), "{which:?}");
        stage.check_calls(None);
        for (n, call) in stage.server.calls().iter().skip(before).enumerate().filter(|(_, call)| !only_asks(call)) {
            for fault in faults(call) {
                let stage = on(which, &there);
                stage.server.fail(n, fault.clone());
                let _ = destroy(&stage);
                destroy(&stage).unwrap_or_else(|error| panic!("{which:?}, call {n}, {fault:?}: {error:#}"));
                assert!(stage.world().is_empty(), "{which:?}, call {n}, {fault:?}");
            }
        }
    }
}

fn with_nodes<T>(stage: &Stage, work: impl FnOnce(&mut Both<'_>) -> T) -> T {
    super::roll::with(stage, &Fake::new(2), work)
}

/// A cluster in which a claim is bound to a volume of w1.
fn bound() -> Fake {
    let fake = Fake::new(2);
    bind(&fake, "w1");
    fake
}

fn planned(fake: &Fake, machines: &dyn Machines) -> Journal {
    let images = [("w1".to_string(), NEW.to_string())].into();
    journal_on(fake, machines, &Wish { images, ..Wish::default() }, rules(), false)
}

fn check_rolled(stage: &Stage, fake: &Fake, there: &World, image: &str, at: &str) {
    let servers = stage.cloud().inventory().unwrap().servers;
    let mut found: Vec<(&str, &str)> = servers.iter().map(|one| (one.node.as_str(), one.image.as_str())).collect();
    found.sort_unstable();
    assert_eq!(found, [("m", SUM), ("w1", image), ("w2", SUM)], "{at}");
    let world = stage.world();
    assert_eq!(world.volume(), (there.volume().0, Some(world.machine("w1.demo")[0])), "{at}");
    assert_eq!(world.kinds(), there.kinds(), "{at}");
    assert!(fake.0.borrow().objects.contains_key(CLAIM), "{at}: the claim is gone");
}

#[test]
fn a_roll_carries_the_volume_behind_whichever_call_it_is_killed() {
    for which in ALL {
        let there = begun_with(which);
        behind_each_call(which, 15, |n, at| {
            let (mut stage, fake) = (on(which, &there), bound());
            let first = killed_behind(&stage, &fake, n, |both| planned(&fake, both));
            if !was_killed(&mut stage, &fake, &first, at) {
                stage.world().stops = None;
                let (outcome, journal) = first.unwrap();
                assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
                assert!(journal.nodes.iter().all(|node| node.keep_data), "{at}: {journal:?}");
                check_rolled(&stage, &fake, &there, NEW, at);
                // A machine that powers off gives it back before it goes; DigitalOcean's fake does not hear it.
                assert_eq!(stage.world().torn, usize::from(which == Which::DigitalOcean), "{at}");
                stage.check_calls(None);
                return true;
            }
            let back = n / step() % 5 == 4;
            let (outcome, journal) = super::roll::with(&stage, &fake, |both| match back {
                true => roll_back_on(&fake, both, &never),
                false => command_on(&fake, both, fake.process(), &never, |both| planned(&fake, both)),
            })
            .unwrap_or_else(|error| panic!("{at}: {error:#}"));
            assert_eq!(outcome, Outcome::Done, "{at}: {journal:?}");
            check_rolled(&stage, &fake, &there, if back { SUM } else { NEW }, at);
            false
        });
    }
}

#[test]
fn a_roll_makes_the_first_volume_and_a_node_that_leaves_keeps_its_own() {
    for which in ALL {
        let (stage, fake) = (on(which, &begun(which)), Fake::new(2));
        let (outcome, journal) = super::roll::with(&stage, &fake, |both| {
            command_on(&fake, both, fake.process(), &never, |both| planned(&fake, both))
        })
        .unwrap();
        assert_eq!(outcome, Outcome::Done, "{which:?}: {journal:?}");
        assert!(journal.nodes.iter().all(|node| !node.keep_data), "{journal:?}");
        let world = World::clone(&stage.world());
        assert_eq!([world.volume().1.unwrap()], world.machine("w1.demo")[..], "{which:?}");
        let stage = on(which, &begun_with(which));
        with_nodes(&stage, |both| both.remove("w1")).unwrap();
        let world = stage.world().clone();
        assert!(world.volume().1.is_none() && world.machine("w1.demo").is_empty(), "{which:?}");
        // A machine that is gone may come back with its data.
        let listed = with_nodes(&stage, |both| both.list()).unwrap();
        assert_eq!(listed.iter().map(|one| one.keeps_data).collect::<Vec<_>>(), [false, true, false], "{which:?}");
    }
}

#[test]
fn machines_power_off_before_they_go_whose_volumes_stay() {
    for which in ALL {
        let stage = on(which, &begun_with(which));
        let found = stage.cloud().inventory().unwrap();
        let (things, volumes) = (destroy::things(&found), destroy::volumes(&found));
        let off = |things: &[Thing]| {
            let told = RefCell::new(Vec::new());
            let tell = |node: &str| told.borrow_mut().push(node.to_string());
            let deaf = with_nodes(&stage, |both| destroy::power_off(&both.cloud, &found, things, tell)).unwrap();
            (told.into_inner(), deaf)
        };
        assert_eq!(off(&[things.clone(), volumes].concat()), (vec![], vec![]), "{which:?}");
        assert_eq!(off(&things[things.len() - 1..]), (vec![], vec![]), "{which:?}: its machine stays");
        let (told, deaf) = off(&things);
        assert_eq!(told, ["w1"], "{which:?}");
        // DigitalOcean's do not hear it.
        let is_deaf = which == Which::DigitalOcean;
        assert_eq!(deaf, if is_deaf { vec!["w1"] } else { vec![] }, "{which:?}");
        let world = stage.world().clone();
        let off: Vec<&Value> = world.machines.values().filter(|one| one.off).map(|one| &one.body["name"]).collect();
        assert_eq!(off, if is_deaf { vec![] } else { vec!["w1.demo"] }, "{which:?}");
        stage.destroy().unwrap();
        assert_eq!(stage.world().kinds(), ["volume"], "{which:?}");
    }
}

#[test]
fn a_volume_is_at_no_machine_that_is_gone_and_is_taken_from_no_other_nodes() {
    let volume =
        |at: &str| Volume { id: "7".into(), node: "w1".into(), gb: 20, region: "nbg1".into(), server: Some(at.into()) };
    let mut found = Inventory { machines: ["1".to_string()].into(), ..Inventory::default() };
    ["1", "2"].into_iter().for_each(|at| found.add_volume(volume(at)));
    let at: Vec<Option<&str>> = found.volumes.iter().map(|volume| volume.server.as_deref()).collect();
    assert_eq!(at, [Some("1"), None], "strangers' machines are there, too");
    for which in ALL {
        let stage = on(which, &begun_with(which));
        let (id, _) = stage.world().volume();
        let other = stage.world().machine("w2.demo")[0];
        stage.world().things.get_mut(&("volume", id)).unwrap()["server"] = json!(other);
        let begun = stage.clock.client().clock().now();
        let error = format!("{:#}", with_nodes(&stage, |both| both.remove("w1")).unwrap_err());
        assert!(error.contains(&format!("attached to the machine {other}, which is not the node's")), "{error}");
        let waited = stage.clock.client().clock().now().duration_since(begun);
        assert!(waited.as_secs() < 240 && stage.world().attached(id) == Some(other), "{which:?}: {waited:?}");
    }
}

#[test]
fn volumes_that_may_not_be_listed_are_told_where_none_is_wanted_and_an_error_where_one_is() {
    let lists = |call: &Call| {
        let path =
            ["/v2/volumes", "/v4/volumes", "/v2/blocks", "/volumes/detail"].iter().any(|end| call.path.ends_with(end));
        call.method == "GET" && path || call.path == "/ec2/" && fakes::aws::action(call) == "DescribeVolumes"
    };
    // Hetzner's token is for all or nothing, and the others' for all that machines are.
    for which in [Which::DigitalOcean, Which::Linode, Which::Vultr, Which::OpenStack, Which::Aws] {
        for settings in [three(which, ""), with(which, "")] {
            let wanted = settings.nodes.iter().any(|node| node.data_gb.is_some());
            let stage = Stage::of(which, settings);
            stage.cloud().inventory().unwrap();
            let calls = stage.server.calls();
            let at = calls.len() + calls.iter().position(lists).unwrap();
            stage.server.fail(at, Fault::Instead(Reply::new(403)));
            match stage.cloud().inventory() {
                Ok(found) => {
                    let lines = destroy::left(&found, &Ok(Vec::new()), true);
                    assert!(!wanted && lines[0].contains("whether data volumes stay"), "{which:?}: {lines:?}");
                }
                Err(error) => assert!(wanted, "{which:?}: {error:#}"),
            }
        }
    }
}
