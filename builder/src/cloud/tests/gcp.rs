//! What only Google has: a master's disk that another one takes the place of.

use super::*;

#[test]
fn wherever_a_change_of_disks_ends_none_is_left_over() {
    let whole = Stage::whole(Which::Gcp);
    let there = whole.world().clone();
    for n in 0.. {
        let (stage, whole) = cut_off(Which::Gcp, &there, n);
        if n % 2 == 0 && !whole {
            rebuild(&stage, "told").unwrap();
        }
        if n % 2 == 0 || whole {
            let master = stage.world().machine("m.demo")[0];
            assert_eq!(stage.world().machines[&master].made_of, "78", "call {n}");
            assert_eq!(stage.world().kinds(), there.kinds(), "call {n}");
        }
        stage.destroy().unwrap();
        assert!(stage.world().is_empty(), "call {n}: {:?}", stage.world().kinds());
        if whole {
            assert!(n > 20);
            break;
        }
    }
}

#[test]
fn a_disk_of_another_is_not_taken() {
    let stage = Stage::whole(Which::Gcp);
    let (before, other) =
        (stage.world().machines.clone(), json!({"name": "m--demo--2", "labels": {"kimg-ca": "other"}}));
    stage.world().things.insert(("disk", 90), other);
    let error = rebuild(&stage, "told").unwrap_err();
    assert!(error.is::<BadInput>() && error.to_string().contains("a disk is called m--demo--2"), "{error:#}");
    let world = stage.world();
    let master = world.machine("m.demo")[0];
    assert!(world.things.contains_key(&("disk", 90)) && !world.machines[&master].off);
    assert_eq!(world.machines[&master].body, before[&master].body);
}

#[test]
fn a_disk_that_was_made_in_vain_is_removed() {
    let there = Stage::whole(Which::Gcp).world().clone();
    let stage = || {
        let stage = Stage::new(Which::Gcp);
        *stage.world() = there.clone();
        stage
    };
    let whole = stage();
    rebuild(&whole, "told").unwrap();
    let at = whole.server.calls().iter().position(|call| call.path.ends_with("/setMetadata")).unwrap();
    let refused = stage();
    let reply = Reply::json(412, &json!({"error": {"message": "Supplied fingerprint does not match"}}));
    refused.server.fail(at, Fault::Instead(reply));
    let error = rebuild(&refused, "told").unwrap_err();
    assert!(format!("{error:#}").contains("fingerprint"), "{error:#}");
    assert_eq!(refused.world().kinds(), there.kinds());
}

#[test]
fn another_region_in_cluster_toml_hides_nothing_from_destroy() {
    let stage =
        Stage::of(Which::Gcp, read(&super::roll::three(Which::Gcp, "").text.replace("\"w1\"", "\"w1\"\ndata-gb = 20")));
    stage.up().unwrap();
    // What a change of the master's disks left, and one that only is called so.
    let labels = json!({"kimg-cluster": "demo", "kimg-ca": ca()});
    stage.world().things.insert(("disk", 90), json!({"name": "m--demo--2", "sizeGb": "25", "labels": labels}));
    stage.world().things.insert(("disk", 91), json!({"name": "x--demo--2", "sizeGb": "25", "labels": {}}));
    let other = stage.settings.text.replace("europe-west3-a", "us-east1-b");
    let stage = Stage { settings: read(&other), ..stage };
    stage.destroy().unwrap();
    assert_eq!(stage.world().of("disk").map(|(id, _)| id).collect::<Vec<_>>(), [91]);
    assert_eq!(stage.world().kinds(), ["disk", "volume"]);
    stage.check_calls(None);
}
