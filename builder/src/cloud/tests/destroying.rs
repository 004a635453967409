//! What `destroy` removes whatever fails, and what stays.

use super::*;

#[test]
fn whichever_call_of_destroy_fails_the_next_run_leaves_nothing() {
    for which in ALL {
        let whole = Stage::whole(which);
        let (before, there) = (whole.server.calls().len(), whole.world().clone());
        whole.destroy().unwrap();
        let calls = whole.server.calls().split_off(before);
        for (n, call) in ends(which).map_while(|n| Some((n, calls.get(n)?))) {
            for fault in faults(call) {
                let stage = Stage::new(which);
                *stage.world() = there.clone();
                stage.server.fail(n, fault.clone());
                let first = stage.destroy();
                assert!(first.is_err() || stage.world().is_empty(), "{which:?}, call {n}, {fault:?}");
                stage.destroy().unwrap_or_else(|error| panic!("{which:?}, call {n}, {fault:?}: {error:#}"));
                assert!(stage.world().is_empty(), "{which:?}, call {n}, {fault:?}");
            }
        }
    }
}

#[test]
fn what_the_provider_refuses_to_remove_keeps_no_other() {
    // A machine that is protected stays, with what it is in, and the other one goes.
    let stage = Stage::whole(Which::Hetzner);
    let master = stage.world().machine("m.demo")[0];
    stage.world().machines.get_mut(&master).unwrap().body["protected"] = json!(true);
    let error = format!("{:#}", stage.destroy().unwrap_err());
    assert!(error.contains(&format!("server m ({master}): the server m is protected")), "{error}");
    assert!(error.contains("firewall of the masters") && error.contains("a machine that stays needs it"), "{error}");
    assert_eq!(stage.world().machines.keys().collect::<Vec<_>>(), [&master]);
    assert_eq!(stage.world().kinds(), ["firewall", "firewall", "network"]);
    stage.world().machines.get_mut(&master).unwrap().body["protected"] = json!(false);
    stage.destroy().unwrap();
    assert!(stage.world().is_empty());
    // Of what machines are in, only that one thing stays.
    let is_firewall = |path: &str| path.contains("/firewalls/") || path.contains("/security-groups/");
    for which in rented() {
        let whole = Stage::whole(which);
        let (before, there) = (whole.server.calls().len(), whole.world().clone());
        whole.destroy().unwrap();
        let calls = whole.server.calls();
        let removes = |c: &Call| match which {
            Which::Aws => fakes::aws::action(c) == "DeleteSecurityGroup",
            _ => c.method == "DELETE" && is_firewall(&c.path),
        };
        let firewalls = calls.iter().skip(before).position(removes);
        let stage = Stage::new(which);
        *stage.world() = there;
        stage.server.fail(firewalls.unwrap(), Fault::Instead(Reply::new(403)));
        let error = format!("{:#}", stage.destroy().unwrap_err());
        assert!(error.contains("these stay: firewall of the masters") && !error.contains("network 10."), "{error}");
        // Google's is two, and in the network; AWS' is in the VPC.
        let stay: &[&str] = match which {
            Which::Gcp => &["firewall", "firewall", "network"],
            Which::Aws => &["firewall", "vpc"],
            _ => &["firewall"],
        };
        assert_eq!(stage.world().kinds(), stay, "{which:?}");
        assert!(stage.world().tags.is_empty(), "{which:?}");
        stage.destroy().unwrap();
        assert!(stage.world().is_empty(), "{which:?}");
    }
}

#[test]
fn what_stays_is_told() {
    // The default VPC of a region goes by nobody's hand.
    let stage = Stage::whole(Which::DigitalOcean);
    stage.world().things.iter_mut().find(|((kind, _), _)| *kind == "vpc").unwrap().1["default"] = json!(true);
    stage.destroy().unwrap();
    assert!(stage.server.log().iter().all(|call| !call.starts_with("DELETE /v2/vpcs")));
    assert_eq!(stage.world().kinds(), ["vpc"]);
    let inventory = stage.cloud().inventory().unwrap();
    let lines = destroy::left(&inventory, &Ok(Vec::new()), false);
    assert!(matches!(&lines[..], [line] if line.contains("stays: network 10.80.0.0/20")), "{lines:?}");
    // Images cost money.
    let image = Remote {
        id: "77".into(),
        name: format!("kimg-demo-master-{SUM}"),
        state: upload::State::Ready,
        created: String::new(),
    };
    let empty = Inventory::default();
    let lines = destroy::left(&empty, &Ok(vec![image.clone()]), false);
    let says = format!("costs money: image kimg-demo-master-{SUM} (77); `kimg destroy --data`");
    assert!(matches!(&lines[..], [line] if line.contains(&says)), "{lines:?}");
    assert!(destroy::left(&empty, &Ok(vec![image]), true).is_empty());
    let lines = destroy::left(&empty, &Err(anyhow::anyhow!("no bucket")), false);
    assert!(matches!(&lines[..], [line] if line.contains("is not known (no bucket)")), "{lines:?}");
}
