//! Vultr: nothing is unique, rules of firewalls come and go one by one, and a VPC goes when it is empty.

use super::{CREATED, Machine, World, gone, number, page, private, public, with_id};
use crate::web::fake::{Call, Reply};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    let parts: Vec<&str> = call.path.strip_prefix("/v2/").unwrap().split('/').collect();
    if call.header("authorization") != "Bearer t0ken" && parts != ["plans"] {
        return error(401, "Invalid API token.");
    }
    match (call.method.as_str(), &parts[..]) {
        ("GET", ["account"]) => Reply::json(200, &json!({"account": {"name": "a", "balance": 0}})),
        ("GET", ["plans"]) => {
            let price = if world.no_price { -1.0 } else { 5.0 };
            let one = |id: &str, monthly: f64, disk: u64, place: &str| json!({"id": id, "monthly_cost": monthly, "disk": disk, "locations": [place]});
            let all =
                [one("vc2-1c-1gb", price, 25, "fra"), one("vc2-1c-2gb", 10.0, 55, "fra"), one("x", 1.0, 9, "ewr")];
            list(call, "plans", &all)
        }
        ("GET", ["blocks"]) => {
            let all: Vec<Value> = world.volumes().iter().map(|(id, body)| block(*id, body)).collect();
            list(call, "blocks", &all)
        }
        ("POST", ["blocks"]) => {
            let mut body = call.json();
            body["name"] = body["label"].clone();
            let id = world.add("volume", &body);
            Reply::json(202, &json!({"block": block(id, &body)}))
        }
        ("POST", ["blocks", id, what]) => {
            let body = call.json();
            assert_eq!(body["live"], true, "the machine would be started anew");
            match world.carry(number(id), (*what == "attach").then(|| number(body["instance_id"].as_str().unwrap()))) {
                None => Reply::new(204),
                Some("not_found") => error(404, "Invalid block"),
                Some(why) => error(400, why),
            }
        }
        ("DELETE", ["blocks", id]) if world.attached(number(id)).is_some() => error(400, "Block is attached"),
        ("DELETE", ["blocks", id]) => gone(world.things.remove(&("volume", number(id))).is_some()),
        ("GET", ["vpcs"]) => things(call, world, "vpc", "vpcs"),
        ("GET", ["firewalls"]) => things(call, world, "firewall", "firewall_groups"),
        ("GET", ["instances"]) => {
            world.look();
            let all: Vec<Value> = world.machines.iter().map(|(id, machine)| instance(world, *id, machine)).collect();
            list(call, "instances", &all)
        }
        ("POST", ["vpcs"]) => make(call, world, "vpc", "vpc"),
        ("POST", ["firewalls"]) => make(call, world, "firewall", "firewall_group"),
        (_, ["firewalls", group, "rules", rest @ ..]) => rules(call, world, number(group), rest.first().copied()),
        ("POST", ["instances"]) => {
            let mut body = call.json();
            if world.full() {
                return error(
                    400,
                    "Server add failed: You have reached the maximum monthly fee limit reached for this account.",
                );
            }
            if world.refuses {
                return error(400, "This plan is not available in the selected region.");
            }
            let known = |kind, id: &Value| world.things.contains_key(&(kind, number(id.as_str().unwrap())));
            assert!(known("vpc", &body["attach_vpc"][0]) && known("firewall", &body["firewall_group_id"]));
            let data = STANDARD.decode(body["user_data"].as_str().unwrap()).unwrap();
            // As all fakes have it.
            for (field, value) in [
                ("name", body["label"].clone()),
                ("size", body["plan"].clone()),
                ("vpc_uuid", body["attach_vpc"][0].clone()),
                ("user_data", json!(String::from_utf8(data).unwrap())),
            ] {
                body[field] = value;
            }
            let id = world.number();
            world.machines.insert(id, Machine { body, ..Machine::default() });
            Reply::json(202, &json!({"instance": instance(world, id, &world.machines[&id])}))
        }
        ("PATCH", ["instances", id]) => match world.machines.get_mut(&number(id)) {
            Some(machine) => {
                let mut body = call.json();
                if let Some(data) = body["user_data"].as_str() {
                    body["user_data"] = json!(String::from_utf8(STANDARD.decode(data).unwrap()).unwrap());
                }
                for (field, value) in body.as_object().unwrap().iter().filter(|(_, value)| !value.is_null()) {
                    machine.body[field] = value.clone();
                }
                Reply::json(202, &json!({}))
            }
            None => error(404, "Invalid instance"),
        },
        ("POST", ["instances", _, "restore"]) if world.keeps_disks => error(400, "The snapshot is too large"),
        ("POST", ["instances", id, "restore"]) => match world.machines.get_mut(&number(id)) {
            Some(machine) => {
                machine.rebuild(call.json()["snapshot_id"].as_str().unwrap());
                machine.off = false;
                Reply::json(202, &json!({"status": {}}))
            }
            None => error(404, "Invalid instance"),
        },
        ("POST", ["instances", id, "start"]) => match world.machines.get_mut(&number(id)) {
            Some(machine) => {
                machine.off = false;
                Reply::new(204)
            }
            None => error(404, "Invalid instance"),
        },
        ("DELETE", ["instances", id]) => {
            let Some(machine) = world.machines.get_mut(&number(id)) else { return gone(false) };
            (machine.going, machine.looked) = (true, if machine.going { machine.looked } else { 0 });
            gone(true)
        }
        ("DELETE", ["vpcs", id]) => {
            if world.machines.values().any(|machine| machine.body["vpc_uuid"] == *id) {
                return error(409, "The following servers are attached to this VPC network");
            }
            gone(world.things.remove(&("vpc", number(id))).is_some())
        }
        ("DELETE", ["firewalls", id]) => gone(world.things.remove(&("firewall", number(id))).is_some()),
        what => panic!("{what:?}"),
    }
}

/// The rules of a group lie in it, each with its number.
fn rules(call: &Call, world: &mut World, group: u64, rule: Option<&str>) -> Reply {
    let Some(firewall) = world.things.get_mut(&("firewall", group)) else {
        return error(404, "Invalid firewall group");
    };
    let rules = firewall["rules"].as_array().cloned().unwrap_or_default();
    let next = 1 + rules.iter().filter_map(|rule| rule["id"].as_u64()).max().unwrap_or(0);
    match (call.method.as_str(), rule) {
        ("GET", None) => list(call, "firewall_rules", &rules),
        ("POST", None) => {
            let rule = with_id(next, &call.json());
            firewall["rules"] = rules.into_iter().chain([rule.clone()]).collect();
            Reply::json(201, &json!({"firewall_rule": rule}))
        }
        ("DELETE", Some(id)) => {
            firewall["rules"] = rules.into_iter().filter(|rule| rule["id"] != number(id)).collect();
            Reply::new(204)
        }
        what => panic!("{what:?}"),
    }
}

fn make(call: &Call, world: &mut World, kind: &'static str, key: &str) -> Reply {
    let mut body = call.json();
    body["name"] = body["description"].clone();
    let id = world.add(kind, &body);
    Reply::json(201, &json!({key: with_id(id.to_string(), &body)}))
}

fn things(call: &Call, world: &World, kind: &str, name: &str) -> Reply {
    list(call, name, &world.of(kind).map(|(id, body)| with_id(id.to_string(), body)).collect::<Vec<_>>())
}

fn block(id: u64, body: &Value) -> Value {
    let at = body["server"].as_u64().map_or(String::new(), |id| id.to_string());
    json!({"id": id.to_string(), "label": body["name"], "size_gb": body["size_gb"], "region": body["region"],
        "attached_to_instance": at, "status": "active"})
}

fn instance(world: &World, id: u64, machine: &Machine) -> Value {
    let runs = world.runs(id);
    let (status, power) = match machine {
        Machine { off: true, .. } => ("active", "stopped"),
        _ if runs || machine.going => ("active", "running"),
        _ => ("pending", "running"),
    };
    let (main, internal) = if runs { (public(id), private(id)) } else { ("0.0.0.0".into(), String::new()) };
    let body = &machine.body;
    json!({"id": id.to_string(), "label": body["name"], "status": status, "power_status": power, "tags": body["tags"],
        "plan": body["size"], "region": body["region"], "main_ip": main, "internal_ip": internal,
        "firewall_group_id": body["firewall_group_id"], "date_created": CREATED.replace('Z', "+00:00")})
}

fn list(call: &Call, name: &str, all: &[Value]) -> Reply {
    let at: usize = call.asked("cursor").map_or(1, |cursor| cursor.parse().unwrap());
    let (page, more) = page(all, at);
    let next = if more { (at + 1).to_string() } else { String::new() };
    Reply::json(200, &json!({name: page, "meta": {"total": all.len(), "links": {"next": next, "prev": ""}}}))
}

fn error(status: u16, why: &str) -> Reply {
    Reply::json(status, &json!({"error": why, "status": status}))
}
