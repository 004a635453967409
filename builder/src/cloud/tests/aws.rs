//! What only AWS has: user-data that only a stopped machine takes, and refusals of one status.

use super::*;
use crate::cloud::Busy;

#[test]
fn wherever_a_rebuilding_with_other_user_data_ends_the_next_one_ends_the_same() {
    let whole = Stage::whole(Which::Aws);
    let there = whole.world().clone();
    for n in 0.. {
        let (stage, whole) = cut_off(Which::Aws, &there, n);
        if !whole {
            rebuild(&stage, "told").unwrap();
        }
        let master = stage.world().machine("m.demo")[0];
        let machine = stage.world().machines[&master].clone();
        assert_eq!((machine.made_of.as_str(), machine.off), ("78", false), "call {n}");
        assert_eq!(machine.body["user_data"], "told", "call {n}");
        assert_eq!(stage.world().kinds(), there.kinds(), "call {n}");
        stage.check_calls(None);
        if whole {
            assert!(n > 15, "{n}");
            break;
        }
    }
}

/// What it was told before is the same: it needs no stop, and what is refused leaves it as it was.
#[test]
fn a_rebuilding_with_the_same_user_data_stops_nothing() {
    let stage = Stage::whole(Which::Aws);
    let master = stage.world().machine("m.demo")[0];
    let told = stage.world().machines[&master].body["user_data"].as_str().unwrap().to_string();
    let before = stage.server.calls().len();
    rebuild(&stage, &told).unwrap();
    let actions: Vec<String> = stage.server.calls().iter().skip(before).map(fakes::aws::action).collect();
    let changes: Vec<&str> =
        actions.iter().map(String::as_str).filter(|action| !action.starts_with("Describe")).collect();
    assert_eq!(changes, ["CreateReplaceRootVolumeTask"]);
    // One that is off runs first, and one that is going is busy.
    stage.world().machines.get_mut(&master).unwrap().off = true;
    rebuild(&stage, &told).unwrap();
    assert!(!stage.world().machines[&master].off);
    let state = "<Code>IncorrectInstanceState</Code><Message>it reboots</Message>";
    let reply =
        Reply::new(400).body(format!("<Response><Errors><Error>{state}</Error></Errors></Response>").as_bytes());
    let calls = stage.server.calls();
    let task = calls.iter().skip(before).position(|call| fakes::aws::action(call) == changes[0]).unwrap();
    stage.server.fail(calls.len() + task, Fault::Instead(reply));
    assert!(rebuild(&stage, &told).unwrap_err().is::<Busy>());
}

#[test]
fn a_subnet_that_is_named_is_used_and_stays() {
    let stage = |more: &str| {
        let stage = Stage::of(Which::Aws, settings(Which::Aws, more));
        let vpc = json!({"name": "theirs", "range": "10.80.0.0/16", "routed": true});
        let subnet = json!({"name": "theirs", "vpc": "900", "range": "10.80.0.0/20", "zone": "eu-west-1a"});
        stage.world().things.extend([(("vpc", 900), vpc), (("subnet", 901), subnet)]);
        stage
    };
    let own = stage("subnet = \"901\"\n");
    own.up().unwrap();
    let all = ["address", "firewall", "firewall", "interface", "subnet", "vpc"];
    assert_eq!(own.world().kinds(), all);
    assert!(own.world().machines.values().all(|machine| machine.body["vpc_uuid"] == "901"));
    let before = own.server.calls().len();
    assert!(own.up().unwrap().made.is_empty() && own.plan().drift.is_empty(), "{:?}", own.plan());
    own.check_only_asked(before);
    own.destroy().unwrap();
    assert_eq!(own.world().kinds(), ["subnet", "vpc"]);
    let lines = destroy::left(&own.cloud().inventory().unwrap(), &Ok(Vec::new()), false);
    assert!(matches!(&lines[..], [line] if line.contains("stays: network 10.80.0.0/20 (901)")), "{lines:?}");
    own.check_calls(None);
    let error = stage("subnet = \"902\"\n").up().unwrap_err();
    assert!(error.is::<BadInput>() && error.to_string().contains("has no subnet 902 in eu-west-1"), "{error:#}");
    // Its range is in the rules of the firewalls.
    let error = stage("subnet = \"901\"\nnetwork = \"10.81.0.0/20\"\n").up().unwrap_err();
    assert!(error.is::<BadInput>() && error.to_string().contains("write network = \"10.80.0.0/20\""), "{error:#}");
    // One of its own that an earlier cluster.toml wanted goes all the same.
    let whole = stage("");
    whole.up().unwrap();
    let named = Stage { settings: settings(Which::Aws, "subnet = \"901\"\n"), ..whole };
    named.destroy().unwrap();
    assert_eq!(named.world().kinds(), ["subnet", "vpc"]);
}

#[test]
fn two_rules_by_hand_are_taken_back() {
    let stage = Stage::whole(Which::Aws);
    {
        let mut world = stage.world();
        let firewall = world.things.iter_mut().find(|((kind, _), _)| *kind == "firewall").unwrap().1;
        let rules = firewall["rules"].as_array_mut().unwrap();
        rules.push(json!({"securityGroupRuleId": "900", "isEgress": "false", "ipProtocol": "-1", "fromPort": "-1",
            "toPort": "-1", "referencedGroupInfo": {"groupId": "sg-1"}}));
        rules.push(json!({"securityGroupRuleId": "901", "isEgress": "false", "ipProtocol": "tcp", "fromPort": "22",
            "toPort": "22", "cidrIpv6": "::/0"}));
    }
    assert_eq!(stage.plan().drift, ["the rules of the firewall of the masters were changed"]);
    stage.up().unwrap();
    assert!(stage.plan().drift.is_empty(), "{:?}", stage.plan().drift);
    stage.check_calls(None);
}

#[test]
fn a_machine_that_is_protected_is_said_so() {
    let stage = Stage::whole(Which::Aws);
    let why = "<Code>OperationNotPermitted</Code><Message>Modify its 'disableApiTermination' attribute</Message>";
    let reply = Reply::new(400).body(format!("<Response><Errors><Error>{why}</Error></Errors></Response>").as_bytes());
    let inventory = stage.cloud().inventory().unwrap();
    let thing = inventory.servers[0].thing();
    stage.server.fail(stage.server.calls().len(), Fault::Instead(reply));
    let error = format!("{:#}", stage.cloud().delete(&thing).unwrap_err());
    assert!(error.contains("protected against termination") && error.contains("disableApiTermination"), "{error}");
}

/// What it is told holds a secret; whose it is does not.
#[test]
fn an_error_shows_names_and_no_user_data() {
    let stage = Stage::new(Which::Aws);
    let calls = Stage::whole(Which::Aws).server.calls();
    let run = calls.iter().position(|call| fakes::aws::action(call) == "RunInstances").unwrap();
    let told = String::from_utf8(calls[run].body.clone()).unwrap();
    let said = format!("<Code>InvalidParameterValue</Code><Message>m of master: {told}</Message>");
    let reply = Reply::new(400).body(format!("<Response><Errors><Error>{said}</Error></Errors></Response>").as_bytes());
    stage.server.fail(run, Fault::Instead(reply));
    let error = format!("{:#}", stage.up().unwrap_err());
    assert!(error.contains("InvalidParameterValue") && error.contains("m of master"), "{error}");
    let other = Stage::new(Which::Aws);
    let whole = Reply::new(400).body(&calls[run].body);
    other.server.fail(run, Fault::Instead(whole));
    let error = format!("{:#}", other.up().unwrap_err());
    assert!(!error.contains("c2VhbC1rZXk") && !error.contains("seal-key"), "{error}");
}

#[test]
fn a_machines_own_volume_that_is_left_over_goes_and_no_other() {
    let stage = Stage::whole(Which::Aws);
    let tags = |more: &str, says: &str| json!({"kimg-cluster": "demo", "kimg-ca": ca(), more: says});
    let volume = |tags: Value| json!({"name": "m.demo", "size": 25, "region": "eu-west-1a", "tags": tags});
    stage.world().things.insert(("disk", 90), volume(tags("kimg-role", "master")));
    stage.world().things.insert(("disk", 91), volume(tags("mine", "yes")));
    assert!(stage.plan().drift.is_empty(), "{:?}", stage.plan());
    stage.destroy().unwrap();
    assert_eq!(stage.world().things.keys().collect::<Vec<_>>(), [&("disk", 91)]);
    stage.check_calls(None);
}
