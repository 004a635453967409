//! Machines of others that look like the cluster's.

use super::*;

#[test]
fn what_only_looks_like_ours_is_named_and_not_touched() {
    let (own, other) = (ca(), "ba9876543210");
    let unmarked = |body: &Value| {
        let mut body = body.clone();
        (body["labels"], body["tags"], body["metadata"]) = (json!({}), json!([]), json!({}));
        body
    };
    type Change<'a> = &'a dyn Fn(&Value) -> Value;
    let changes: [(&str, &str, bool, Change<'_>); 4] = [
        ("w.demo", "another cluster called demo", false, &|body| replaced(body, &own, other)),
        ("www", "another cluster called demo", false, &|body| replaced(&replaced(body, &own, other), "w.demo", "www")),
        ("w.demo", "kimg did not make it", false, &unmarked),
        ("kept", "made for this cluster as w.demo", true, &|body| replaced(body, "\"w.demo\"", "\"kept\"")),
    ];
    for (which, (name, says, ours, change)) in ALL.into_iter().flat_map(|which| changes.map(|change| (which, change))) {
        let stage = Stage::whole(which);
        let id = stage.world().machine("w.demo")[0];
        let mut body = change(&stage.world().machines[&id].body.clone());
        // It is in no network and behind no firewall of this cluster.
        (body["vpc_uuid"], body["firewalls"]) = (json!("999"), json!([{"firewall": 999}]));
        stage.world().machines.get_mut(&id).unwrap().body = body;
        let before = stage.server.calls().len();
        let plan = stage.plan();
        assert_eq!(plan.refusals.len(), 1, "{which:?}: {plan:?}");
        let said = &plan.refusals[0];
        let (name, says) = (&which.named(name), &which.named(says));
        assert!([name, says, &id.to_string()].iter().all(|part| said.contains(*part)), "{which:?}: {said}");
        let error = stage.up().unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string() == *said, "{which:?}: {error:#}");
        let inventory = stage.cloud().inventory().unwrap();
        stage.check_only_asked(before);
        match destroy::check(&inventory) {
            Err(error) => assert!(ours && error.is::<BadInput>() && error.to_string().contains(name), "{error:#}"),
            Ok(()) => {
                assert!(!ours, "{which:?}: {says}");
                stage.destroy().unwrap();
                let world = stage.world();
                assert_eq!(world.machines.keys().collect::<Vec<_>>(), [&id], "{which:?}: {says}");
                assert!(world.things.is_empty() && world.tags.is_empty(), "{which:?}: {says}");
            }
        }
    }
}

#[test]
fn a_machine_of_another_has_no_second_one_of_its_name_beside_it() {
    let stage = Stage::whole(Which::DigitalOcean);
    let id = stage.world().machine("w.demo")[0];
    stage.world().machines.get_mut(&id).unwrap().body["tags"] = json!([]);
    let there = stage.cloud().inventory().unwrap();
    let (network, firewall) = (&there.networks[0], &there.firewalls[0]);
    let (node, role, size, image_id, image, user_data) = ("w", Role::Worker, "s-1vcpu-2gb", "77", SUM, "");
    let order = Order { node, role, size, image_id, image, user_data, network, firewall, on_volume: false };
    let error = stage.cloud().make_server(&order).unwrap_err();
    assert!(error.is::<BadInput>() && error.to_string().contains("kimg did not make it"), "{error:#}");
    assert_eq!(stage.world().machine("w.demo"), [id]);
}
