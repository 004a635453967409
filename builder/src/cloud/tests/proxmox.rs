//! What only Proxmox has: numbers and addresses that others may take, and no prices, networks and firewalls.

use super::*;

#[test]
fn addresses_are_those_that_no_machine_has() {
    let stage = Stage::whole(Which::Proxmox);
    let at = |stage: &Stage| {
        let servers = stage.cloud().inventory().unwrap().servers;
        servers.into_iter().map(|one| one.public.unwrap().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(at(&stage), ["192.0.2.1", "192.0.2.3"], "the gateway's is between them");
    let old = stage.world().machine("w.demo")[0];
    let mut body = stage.world().machines[&old].body.clone();
    body["tags"] = json!(["kimg-cluster.other", "kimg-at.192.0.2.4"]);
    body["name"] = json!("other");
    stage.world().machines.insert(70, Machine { body, at: Some(4), ..Machine::default() });
    let text = format!("{}[[nodes]]\nname = \"v\"\nrole = \"worker\"\n", stage.settings.text);
    let more = Stage { settings: read(&text), ..stage };
    assert_eq!(more.up().unwrap().made, ["v"]);
    assert_eq!(at(&more).len(), 3);
    assert!(at(&more).contains(&"192.0.2.5".to_string()), "{:?}", at(&more));
    let full = more.settings.text.replace("192.0.2.9", "192.0.2.5").replace("\"v\"", "\"u\"");
    let full = Stage { settings: read(&full), ..more };
    let error = full.up().unwrap_err();
    assert!(
        error.is::<BadInput>() && format!("{error:#}").contains("all of 192.0.2.1-192.0.2.5 are taken"),
        "{error:#}"
    );
}

#[test]
fn a_number_that_another_took_is_no_failure() {
    let stage = Stage::new(Which::Proxmox);
    // Whoever was faster has the number that Proxmox calls free.
    let body = json!({"name": "other", "tags": [], "node": "pve"});
    stage.world().machines.insert(7, Machine { body, off: true, at: Some(200), ..Machine::default() });
    stage.world().account = Some(7);
    let error = format!("{:#}", stage.up().unwrap_err());
    assert!(error.contains("others have taken 20 numbers"), "{error}");
    assert!(stage.world().kinds().is_empty(), "its drive holds secrets");
    // That one is taken by nobody any more.
    stage.world().machines.remove(&7);
    stage.world().account = None;
    stage.up().unwrap();
    stage.check_whole("with a number");
}

#[test]
fn a_machine_that_never_was_whole_is_none() {
    let stage = Stage::whole(Which::Proxmox);
    let old = stage.world().machine("w.demo")[0];
    stage.world().machines.get_mut(&old).unwrap().body["tags"].as_array_mut().unwrap().push(json!("kimg-making.1"));
    assert_eq!(stage.cloud().inventory().unwrap().servers.len(), 1);
    assert_eq!(stage.up().unwrap().made, ["w"]);
    assert!(!stage.world().machines.contains_key(&old));
    stage.check_whole("made anew");
    // A drive that is left goes with its node.
    stage.world().things.insert(("file", 90), {
        let id = format!("local:import/kimg-seed-demo-{}-w.raw", ca());
        json!({"volid": id, "size": 1})
    });
    let of = |found: &Inventory| destroy::of_node(&stage.settings, found, "w").unwrap_or_default();
    destroy::destroy(&*stage.cloud(), &stage.clock.client(), of, |_| ()).unwrap();
    assert!(stage.world().kinds().is_empty());
    assert_eq!(stage.world().machines.len(), 1);
}

#[test]
fn nothing_is_made_besides_machines_and_they_cost_nothing() {
    let stage = Stage::new(Which::Proxmox);
    let plan = stage.plan();
    assert!(plan.steps.len() == 2 && plan.refusals.is_empty(), "{plan:?}");
    assert_eq!((plan.monthly_then, plan.unpriced.len()), (Some(Cents(0)), 0));
    let elsewhere = read(&stage.settings.text.replace("\"pve\"", "\"off1\""));
    let error = Stage::of(Which::Proxmox, elsewhere).cloud().offer().unwrap_err();
    assert!(error.is::<BadInput>() && error.to_string().contains("there are pve, far1, off1"), "{error:#}");
}

/// A disk that waits would take the place of the store's by whatever starts the machine next.
#[test]
fn an_import_that_fails_leaves_nothing_that_waits() {
    let stage = Stage::whole(Which::Proxmox);
    stage.world().keeps_disks = true;
    let error = rebuild(&stage, "told").unwrap_err();
    assert!(error.is::<BadInput>() && error.to_string().contains("no space left on device"), "{error:#}");
    let id = stage.world().machine("m.demo")[0];
    let machine = stage.world().machines[&id].clone();
    assert!(machine.body["waits"].is_null() && machine.body["unused"] == 0 && !machine.off, "{}", machine.body);
    assert!(stage.world().kinds().is_empty(), "its drive holds secrets");
    stage.check_calls(None);
    // What could not be taken back is no refusal, after which the old disk would be as it was.
    let taken_back = |call: &Call| String::from_utf8_lossy(&call.body).contains("revert");
    // The calls of the second time are as those of the first.
    let (calls, whole) = (stage.server.calls(), Stage::whole(Which::Proxmox).server.calls().len());
    let at = calls.len() + calls[whole..].iter().position(taken_back).unwrap();
    stage.server.fail(at, Fault::Instead(Reply::json(400, &json!({"message": "not now"}))));
    let error = rebuild(&stage, "told").unwrap_err();
    assert!(format!("{error:#}").contains("could not be taken back: "), "{error:#}");
    assert!(!error.chain().any(|cause| cause.is::<Refused>() || cause.is::<BadInput>()), "{error:#}");
}

#[test]
fn a_volume_is_held_by_a_vm_that_uses_it_for_nothing_and_is_protected() {
    let text = Stage::new(Which::Proxmox).settings.text.replace("\"w\"", "\"w\"\ndata-gb = 20");
    let stage = Stage::of(Which::Proxmox, read(&text));
    stage.up().unwrap();
    let found = stage.cloud().inventory().unwrap();
    let volume = found.volumes[0].clone();
    let held = |stage: &Stage| stage.world().of("volume").next().map(|(_, one)| one.clone()).unwrap();
    assert!(held(&stage)["scsi0"].is_null() && held(&stage)["protection"] == true, "{}", held(&stage));
    // It is in the machine's configuration before that starts.
    let calls = stage.server.calls();
    let said = |word: &str| calls.iter().rposition(|call| String::from_utf8_lossy(&call.body).contains(word)).unwrap();
    let started = calls.iter().rposition(|call| call.path.ends_with("/status/start")).unwrap();
    assert!(said("\"scsi2\"") < started);
    // As long as a machine has it, it is not removed.
    let thing = volume.thing();
    let error = stage.cloud().delete(&thing).unwrap_err();
    assert!(error.is::<crate::cloud::Busy>() && error.to_string().contains("it is attached to VM"), "{error:#}");
    assert_eq!(held(&stage)["protection"], true);
    // What an interrupted attempt left is no volume, and goes with the next one.
    let mut world = stage.world();
    let (mut half, id) = (world.things.remove(&("volume", volume.id.parse().unwrap())).unwrap(), 60);
    half["tags"].as_array_mut().unwrap().push(json!("kimg-making.1"));
    (half["server"], half["protection"], half["scsi0"]) = (Value::Null, Value::Null, json!("lvm:20"));
    world.things.insert(("volume", id), half);
    drop(world);
    assert!(stage.cloud().inventory().unwrap().volumes.is_empty());
    stage.cloud().make_volume("w", 20).unwrap();
    assert!(stage.world().of("volume").count() == 1 && !stage.world().things.contains_key(&("volume", id)));
    stage.check_calls(None);
}
