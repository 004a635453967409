//! What only OpenStack has: ports and addresses of their own, and machines that never ran.

use super::*;

/// Where machines have a port on the external network, nothing leads to them besides.
#[test]
fn a_port_on_the_external_network_needs_no_router() {
    let stage = Stage::of(Which::OpenStack, settings(Which::OpenStack, "public-address = \"port\"\n"));
    let done = stage.up().unwrap();
    assert!(done.servers.iter().all(|server| server.public.is_some() && server.private.is_some()), "{done:?}");
    let all = ["firewall", "firewall", "network", "port", "port", "port", "port", "subnet"];
    assert_eq!(stage.world().kinds(), all);
    assert!(stage.world().of("subnet").all(|(_, subnet)| subnet["gateway_ip"].is_null()));
    let there = World::clone(&stage.world());
    assert!(stage.up().unwrap().made.is_empty() && stage.plan().drift.is_empty(), "{:?}", stage.plan());
    assert_eq!(stage.world().kinds(), there.kinds());
    stage.destroy().unwrap();
    assert!(stage.world().is_empty());
    stage.check_calls(None);
    let wrong = settings(Which::OpenStack, "external-network = \"Ext\"\n");
    let error = Stage::of(Which::OpenStack, wrong).up().unwrap_err();
    assert!(error.is::<BadInput>() && error.to_string().contains("there are Ext-Net"), "{error:#}");
}

/// There was no room for it: it is removed when another is made, which takes its port and its address.
#[test]
fn a_machine_that_never_ran_is_none() {
    let stage = Stage::new(Which::OpenStack);
    stage.world().refuses = true;
    stage.up().unwrap_err();
    let broken = stage.world().machine("m.demo");
    let address = stage.world().of("floatingip").map(|(id, _)| id).next();
    assert!(broken.len() == 1 && stage.plan().refusals.is_empty(), "{:?}", stage.plan());
    stage.world().refuses = false;
    stage.up().unwrap();
    stage.check_whole("with room");
    assert_ne!(stage.world().machine("m.demo"), broken);
    assert!(stage.world().of("floatingip").any(|(id, _)| Some(id) == address));
}

#[test]
fn an_address_that_no_machine_has_is_told_and_removed() {
    let stage = Stage::whole(Which::OpenStack);
    let id = stage.world().machine("w.demo")[0];
    stage.world().machines.remove(&id);
    assert!(stage.plan().drift.is_empty(), "the next machine of w has it: {:?}", stage.plan());
    let text = settings(Which::OpenStack, "").text.replace("name = \"w\"", "name = \"x\"");
    let stage = Stage { settings: read(&text), ..stage };
    let drift = stage.plan().drift;
    assert!(drift.len() == 1 && drift[0].contains("`kimg destroy --node w` removes it"), "{drift:?}");
    let of = |found: &Inventory| destroy::of_node(&stage.settings, found, "w").unwrap_or_default();
    destroy::destroy(&*stage.cloud(), &stage.clock.client(), of, |_| ()).unwrap();
    assert!(stage.plan().drift.is_empty(), "{:?}", stage.plan());
    assert_eq!(stage.world().kinds().len(), OF_OPENSTACK.len() - 2);
    stage.check_calls(None);
}

#[test]
fn what_cluster_toml_asks_for_no_more_is_removed_too() {
    let stage = Stage::whole(Which::OpenStack);
    let other = settings(Which::OpenStack, "public-address = \"port\"\n");
    let stage = Stage { settings: other, ..stage };
    stage.destroy().unwrap();
    assert!(stage.world().is_empty(), "{:?}", stage.world().kinds());
}

#[test]
fn a_cloud_without_volumes_is_none_for_nodes_that_want_one() {
    for wanted in [false, true] {
        let text = super::roll::three(Which::OpenStack, "").text;
        let text = if wanted { text.replace("\"w1\"", "\"w1\"\ndata-gb = 20") } else { text };
        let stage = Stage::of(Which::OpenStack, read(&text));
        let one = |kind: &str, path: &str| {
            let url = format!("{}/{path}", stage.server.url());
            json!({"type": kind, "endpoints": [{"interface": "public", "region": "RegionOne", "url": url}]})
        };
        let catalog = json!({"catalog": [one("compute", "compute/v2.1"), one("network", "network/")]});
        let token = Reply::json(201, &json!({"token": catalog})).header("x-subject-token", "session");
        stage.server.fail(0, Fault::Instead(token));
        match stage.cloud().inventory() {
            Ok(found) => assert!(!wanted && found.volumes.is_empty()),
            Err(error) => {
                assert!(
                    wanted && error.is::<BadInput>() && error.to_string().contains("no block storage"),
                    "{error:#}"
                );
            }
        }
        stage.check_only_asked(0);
    }
}

#[test]
fn a_volume_of_another_zone_is_no_matter_of_patience() {
    let text = super::roll::three(Which::OpenStack, "").text.replace("\"w1\"", "\"w1\"\ndata-gb = 20");
    let attaches = |call: &Call| call.path.ends_with("/os-volume_attachments");
    let whole = Stage::of(Which::OpenStack, read(&text));
    whole.up().unwrap();
    let at = whole.server.calls().iter().position(attaches).unwrap();
    let stage = Stage::of(Which::OpenStack, read(&text));
    let said = "Invalid volume: Instance and volume are not in the same availability_zone";
    stage.server.fail(at, Fault::Instead(Reply::json(400, &json!({"badRequest": {"message": said}}))));
    let error = format!("{:#}", stage.up().unwrap_err());
    assert!(error.contains("same availability_zone"), "{error}");
    assert_eq!(stage.server.calls().iter().filter(|call| attaches(call)).count(), 1);
}
