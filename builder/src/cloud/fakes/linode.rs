//! Linode: labels are unique, what was refused is 400 with a reason, and a VPC goes when it is empty.

use super::{CREATED, Machine, World, number, page, private, public, with_id};
use crate::web::fake::{Call, Reply};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.header("authorization") != "Bearer t0ken" {
        return error(401, "Invalid Token");
    }
    let parts: Vec<&str> = call.path.strip_prefix("/v4/").unwrap().split('/').collect();
    match (call.method.as_str(), &parts[..]) {
        ("GET", ["regions"]) => {
            let one = |id: &str, has: &[&str]| json!({"id": id, "capabilities": has});
            let all = ["Linodes", "VPCs", "Metadata", "Cloud Firewall"];
            list(call, &[one("ap-west", &["Linodes"]), one("eu-central", &all), one("us-ord", &all)])
        }
        ("GET", ["linode", "types"]) => {
            let one = |id: &str, monthly: f64, disk: u64| json!({"id": id, "price": {"monthly": monthly}, "disk": disk * 1024, "region_prices": []});
            let mut dear = one("g6-nanode-1", 4.0, 25);
            let price = if world.no_price { -1.0 } else { 5.0 };
            dear["region_prices"] = json!([{"id": "eu-central", "monthly": price}, {"id": "us-ord", "monthly": 9.0}]);
            list(call, &[dear, one("g6-standard-1", 12.0, 50), one("x", 1.0, 9)])
        }
        ("GET", ["volumes", "types"]) => {
            let price = |monthly: f64| json!({"id": "eu-central", "monthly": monthly});
            let one = json!({"id": "volume", "price": {"monthly": 0.1}, "region_prices": [price(0.12)]});
            list(call, &[one])
        }
        ("GET", ["volumes"]) => {
            let all: Vec<Value> = world.volumes().iter().map(|(id, body)| volume(*id, body)).collect();
            list(call, &all)
        }
        ("POST", ["volumes"]) => make(world, "volume", call.json()),
        ("POST", ["volumes", id, what]) => {
            let to = (*what == "attach").then(|| call.json()["linode_id"].as_u64().unwrap());
            match world.carry(number(id), to) {
                None => Reply::json(200, &json!({})),
                Some("not_found") => error(404, "Not found"),
                Some(why) => error(400, why),
            }
        }
        ("DELETE", ["volumes", id]) if world.attached(number(id)).is_some() => error(400, "Volume is attached"),
        ("DELETE", ["volumes", id]) => gone(world.things.remove(&("volume", number(id))).is_some()),
        ("GET", ["vpcs"]) => things(call, world, "vpc"),
        ("GET", ["networking", "firewalls"]) => things(call, world, "firewall"),
        ("GET", ["vpcs", "ips"]) => {
            let of = |id: &u64| json!({"address": private(*id), "linode_id": id, "vpc_id": 1, "subnet_id": 1});
            // Of another network.
            let other = json!({"address": "10.9.0.7", "linode_id": 1});
            let ips: Vec<Value> =
                [other].into_iter().chain(world.machines.keys().filter(|id| world.runs(**id)).map(of)).collect();
            list(call, &ips)
        }
        ("GET", ["linode", "instances"]) => {
            world.look();
            let all: Vec<Value> = world.machines.iter().map(|(id, machine)| instance(world, *id, machine)).collect();
            list(call, &all)
        }
        ("POST", ["vpcs"]) => {
            let mut body = call.json();
            body["subnets"][0]["id"] = json!(world.number());
            make(world, "vpc", body)
        }
        ("POST", ["networking", "firewalls"]) => make(world, "firewall", call.json()),
        ("PUT", ["networking", "firewalls", id, "rules"]) => match world.things.get_mut(&("firewall", number(id))) {
            Some(firewall) => {
                firewall["rules"] = call.json();
                Reply::json(200, &call.json())
            }
            None => error(404, "Not found"),
        },
        ("POST", ["linode", "instances"]) => {
            let mut body = call.json();
            if world.full() {
                return error(400, "Account Limit reached. Please open a support ticket.");
            }
            if world.refuses {
                return error(400, "This type is not available in this region.");
            }
            if !world.machine(body["label"].as_str().unwrap()).is_empty() {
                return error(400, "Label must be unique among your linodes");
            }
            let firewall = body["firewall_id"].as_u64().unwrap();
            let vpc = world.of("vpc").find(|(_, vpc)| vpc["subnets"][0]["id"] == body["interfaces"][1]["subnet_id"]);
            let vpc = vpc.unwrap().0.to_string();
            assert!(world.things.contains_key(&("firewall", firewall)));
            let data = STANDARD.decode(body["metadata"]["user_data"].as_str().unwrap()).unwrap();
            // As all fakes have it.
            for (field, value) in [
                ("name", body["label"].clone()),
                ("size", body["type"].clone()),
                ("vpc_uuid", json!(vpc)),
                ("user_data", json!(String::from_utf8(data).unwrap())),
            ] {
                body[field] = value;
            }
            let id = world.number();
            world.machines.insert(id, Machine { body, ..Machine::default() });
            Reply::json(200, &instance(world, id, &world.machines[&id]))
        }
        ("POST", ["linode", "instances", _, "rebuild"]) if world.keeps_disks => {
            error(400, "Not enough unallocated space to create disk")
        }
        ("POST", ["linode", "instances", id, "rebuild"]) => {
            let body = call.json();
            assert_eq!(body["booted"], false);
            let Some(machine) = world.machines.get_mut(&number(id)) else { return error(404, "Not found") };
            if machine.going {
                return error(400, "Linode busy.");
            }
            let data = STANDARD.decode(body["metadata"]["user_data"].as_str().unwrap()).unwrap();
            machine.body["user_data"] = json!(String::from_utf8(data).unwrap());
            machine.rebuild(body["image"].as_str().unwrap());
            (machine.off, machine.bare) = (true, true);
            let attached: Vec<u64> =
                world.of("volume").filter(|(_, volume)| volume["server"] == number(id)).map(|(id, _)| id).collect();
            world.stale.extend(attached);
            Reply::json(200, &json!({}))
        }
        ("GET", ["linode", "instances", _, "configs"]) => list(call, &[json!({"id": 5})]),
        ("PUT", ["linode", "instances", id, "configs", "5"]) => {
            let body = call.json();
            let at = private(number(id));
            assert!(body["kernel"] == "linode/direct-disk" && body["interfaces"][1]["ipv4"]["vpc"] == at, "{body}");
            world.machines.get_mut(&number(id)).unwrap().bare = false;
            Reply::json(200, &json!({}))
        }
        ("PUT", ["linode", "instances", id]) => {
            let Some(machine) = world.machines.get_mut(&number(id)) else { return error(404, "Not found") };
            machine.body["tags"] = call.json()["tags"].clone();
            Reply::json(200, &json!({}))
        }
        ("POST", ["linode", "instances", id, "boot"])
            if world.machines.get(&number(id)).is_some_and(|one| one.bare) =>
        {
            error(400, "There is nothing to boot")
        }
        ("POST", ["linode", "instances", id, "boot"]) => match world.machines.get_mut(&number(id)) {
            Some(machine) => {
                machine.off = false;
                Reply::json(200, &json!({}))
            }
            None => error(404, "Not found"),
        },
        ("DELETE", ["linode", "instances", id]) => {
            let Some(machine) = world.machines.get_mut(&number(id)) else { return error(404, "Not found") };
            if machine.going {
                return error(400, "Linode busy.");
            }
            (machine.going, machine.looked) = (true, 0);
            Reply::json(200, &json!({}))
        }
        ("DELETE", ["vpcs", id]) => {
            if world.machines.values().any(|machine| machine.body["vpc_uuid"] == *id) {
                return error(400, "Cannot delete a VPC with subnets that have Linodes");
            }
            gone(world.things.remove(&("vpc", number(id))).is_some())
        }
        ("DELETE", ["networking", "firewalls", id]) => gone(world.things.remove(&("firewall", number(id))).is_some()),
        what => panic!("{what:?}"),
    }
}

fn make(world: &mut World, kind: &'static str, mut body: Value) -> Reply {
    body["name"] = body["label"].clone();
    if world.has_named(kind, &body["name"]) {
        return error(400, "Label must be unique");
    }
    let id = world.add(kind, &body);
    Reply::json(200, &with_id(id, &body))
}

fn things(call: &Call, world: &World, kind: &str) -> Reply {
    list(call, &world.of(kind).map(|(id, body)| with_id(id, body)).collect::<Vec<_>>())
}

fn volume(id: u64, body: &Value) -> Value {
    json!({"id": id, "label": body["name"], "size": body["size"], "region": body["region"], "tags": body["tags"],
        "linode_id": body["server"], "status": "active"})
}

fn instance(world: &World, id: u64, machine: &Machine) -> Value {
    let status = match machine {
        Machine { going: true, .. } => "deleting",
        Machine { bare: true, looked, .. } if *looked <= world.slow => "rebuilding",
        Machine { off: true, .. } => "offline",
        _ if world.runs(id) => "running",
        _ => "provisioning",
    };
    let body = &machine.body;
    json!({"id": id, "label": body["name"], "status": status, "tags": body["tags"], "type": body["size"],
        "region": body["region"], "ipv4": ["192.168.130.7", public(id)], "created": CREATED.trim_end_matches('Z')})
}

fn list(call: &Call, all: &[Value]) -> Reply {
    let at: usize = call.asked("page").unwrap().parse().unwrap();
    let (page, _) = page(all, at);
    Reply::json(200, &json!({"data": page, "page": at, "pages": all.len().div_ceil(2).max(1), "results": all.len()}))
}

fn gone(was: bool) -> Reply {
    if was { Reply::json(200, &json!({})) } else { error(404, "Not found") }
}

fn error(status: u16, reason: &str) -> Reply {
    Reply::json(status, &json!({"errors": [{"reason": reason}]}))
}
