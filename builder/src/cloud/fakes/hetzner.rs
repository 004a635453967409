//! Hetzner Cloud: names are unique, deletions take their time, labels are selected by.

use super::{CREATED, Machine, World, action, gone, number, page, private, public, with_id};
use crate::web::fake::{Call, Reply};
use serde_json::{Value, json};

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    let token = call.header("authorization").strip_prefix("Bearer ").unwrap_or_default();
    if token != "t0ken" && world.also.as_deref() != Some(token) {
        return error(401, "unauthorized");
    }
    let parts: Vec<&str> = call.path.strip_prefix("/v1/").unwrap().split('/').collect();
    match (call.method.as_str(), &parts[..]) {
        ("GET", ["locations"]) => {
            let location = |name: &str, zone: &str| json!({"name": name, "network_zone": zone});
            list(call, "locations", &[location("ash", "us-east"), location("nbg1", "eu-central")])
        }
        ("GET", ["pricing"]) => {
            let net = if world.no_price { "NaN" } else { "0.5000000000" };
            let prices = json!([{"location": "nbg1", "price_monthly": {"net": net, "gross": "0.5950"}}]);
            Reply::json(
                200,
                &json!({"pricing": {"currency": "EUR", "primary_ips": [{"type": "ipv4", "prices": prices}],
                    "volume": {"price_per_gb_month": {"net": "0.0440000000", "gross": "0.05236"}}}}),
            )
        }
        ("GET", ["server_types"]) => {
            let one = |name: &str, disk: u64, net: &str, architecture: &str| {
                json!({"name": name, "disk": disk, "architecture": architecture,
                    "prices": [{"location": "nbg1", "price_monthly": {"net": net, "gross": "99"}}]})
            };
            let all = [
                one("cx23", 40, "2.9900000000", "x86"),
                one("cax11", 40, "3.29", "arm"),
                one("cx33", 80, "5.49", "x86"),
            ];
            list(call, "server_types", &all)
        }
        ("GET", ["networks"]) => things(call, world, "network", "networks"),
        ("GET", ["firewalls"]) => things(call, world, "firewall", "firewalls"),
        ("GET", ["servers"]) => {
            world.look();
            let all: Vec<Value> = world.machines.iter().map(|(id, machine)| server(world, *id, machine)).collect();
            list(call, "servers", &all)
        }
        ("GET", ["volumes"]) => {
            let all: Vec<Value> = world.volumes().iter().map(|(id, body)| volume(*id, body)).collect();
            list(call, "volumes", &all)
        }
        ("POST", ["volumes"]) => {
            let body = call.json();
            if world.has_named("volume", &body["name"]) {
                return error(409, "uniqueness_error");
            }
            let id = world.add("volume", &body);
            let action = action(world);
            Reply::json(201, &json!({"volume": volume(id, &body), "action": action, "next_actions": []}))
        }
        ("POST", ["volumes", id, "actions", what]) => {
            let to = (*what == "attach").then(|| call.json()["server"].as_u64().unwrap());
            match world.carry(number(id), to) {
                None => Reply::json(201, &json!({"action": action(world)})),
                Some("locked") => error(423, "locked"),
                Some("not_found") => error(404, "not_found"),
                Some(why) => error(422, why),
            }
        }
        ("DELETE", ["volumes", id]) if world.attached(number(id)).is_some() => error(422, "volume is attached"),
        ("DELETE", ["volumes", id]) => gone(world.things.remove(&("volume", number(id))).is_some()),
        ("POST", ["networks"]) => make(call, world, "network"),
        ("POST", ["firewalls"]) => make(call, world, "firewall"),
        ("POST", ["firewalls", id, "actions", "set_rules"]) => {
            let action = action(world);
            match world.things.get_mut(&("firewall", number(id))) {
                Some(firewall) => {
                    firewall["rules"] = call.json()["rules"].clone();
                    Reply::json(201, &json!({"actions": [action]}))
                }
                None => error(404, "not_found"),
            }
        }
        ("POST", ["servers"]) => {
            let body = call.json();
            if world.full() {
                return error(403, "resource_limit_exceeded");
            }
            if !world.machine(body["name"].as_str().unwrap()).is_empty() {
                return error(409, "uniqueness_error");
            }
            let known = |kind, id: &Value| id.as_u64().is_some_and(|id| world.things.contains_key(&(kind, id)));
            assert!(known("network", &body["networks"][0]) && known("firewall", &body["firewalls"][0]["firewall"]));
            let id = world.number();
            world.machines.insert(id, Machine { body, ..Machine::default() });
            let action = action(world);
            let made = server(world, id, &world.machines[&id]);
            Reply::json(201, &json!({"server": made, "action": action, "next_actions": [], "root_password": "unused"}))
        }
        ("POST", ["servers", _, "actions", "rebuild"]) if world.keeps_disks => error(422, "image_disk_too_big"),
        ("POST", ["servers", id, "actions", "rebuild"]) => {
            let action = action(world);
            let Some(machine) = world.machines.get_mut(&number(id)) else { return error(404, "not_found") };
            if machine.going {
                return error(423, "locked");
            }
            machine.body["user_data"] = call.json()["user_data"].clone();
            machine.rebuild(call.json()["image"].as_str().unwrap());
            machine.off = false;
            Reply::json(201, &json!({"action": action}))
        }
        ("PUT", ["servers", id]) => {
            let Some(machine) = world.machines.get_mut(&number(id)) else { return error(404, "not_found") };
            machine.body["labels"] = call.json()["labels"].clone();
            Reply::json(200, &json!({}))
        }
        ("POST", ["servers", id, "actions", "poweron"]) => {
            let action = action(world);
            match world.machines.get_mut(&number(id)) {
                Some(machine) => machine.off = false,
                None => return error(404, "not_found"),
            }
            Reply::json(201, &json!({"action": action}))
        }
        ("GET", ["actions", id]) => {
            let status = if world.refuses { "error" } else { "success" };
            let error = json!({"code": "action_failed", "message": "no room in this location"});
            Reply::json(200, &json!({"action": {"id": number(id), "status": status, "error": error}}))
        }
        ("DELETE", ["servers", id]) => {
            let Some(machine) = world.machines.get_mut(&number(id)) else { return error(404, "not_found") };
            if machine.body["protected"] == true {
                return error(423, "protected");
            }
            if machine.going {
                return error(423, "locked");
            }
            (machine.going, machine.looked) = (true, 0);
            Reply::json(200, &json!({"action": action(world)}))
        }
        ("DELETE", ["firewalls", id]) => {
            let used = |body: &Value| body["firewalls"][0]["firewall"] == number(id);
            if world.machines.values().any(|machine| used(&machine.body)) {
                return error(422, "resource_in_use");
            }
            gone(world.things.remove(&("firewall", number(id))).is_some())
        }
        ("DELETE", ["networks", id]) => gone(world.things.remove(&("network", number(id))).is_some()),
        what => panic!("{what:?}"),
    }
}

fn make(call: &Call, world: &mut World, kind: &'static str) -> Reply {
    let body = call.json();
    if world.has_named(kind, &body["name"]) {
        return error(409, "uniqueness_error");
    }
    let id = world.add(kind, &body);
    Reply::json(201, &json!({kind: with_id(id, &body), "actions": []}))
}

fn things(call: &Call, world: &World, kind: &str, name: &str) -> Reply {
    let all: Vec<Value> = world.of(kind).map(|(id, body)| with_id(id, body)).collect();
    list(call, name, &all)
}

fn volume(id: u64, body: &Value) -> Value {
    json!({"id": id, "name": body["name"], "size": body["size"], "location": {"name": body["location"]},
        "labels": body["labels"], "server": body["server"]})
}

fn server(world: &World, id: u64, machine: &Machine) -> Value {
    let status = match machine {
        Machine { going: true, .. } => "deleting",
        Machine { off: true, .. } => "off",
        _ if world.runs(id) => "running",
        _ => "initializing",
    };
    // The private address comes later than the machine.
    let private = if world.runs(id) { json!([{"ip": private(id)}]) } else { json!([]) };
    json!({"id": id, "name": machine.body["name"], "status": status, "labels": machine.body["labels"], "created": CREATED,
        "server_type": {"name": machine.body["server_type"]}, "location": {"name": machine.body["location"]}, "public_net": {"ipv4": {"ip": public(id)}},
        "private_net": private})
}

/// Two entries a page, of those with the name and the label that are asked for.
fn list(call: &Call, name: &str, all: &[Value]) -> Reply {
    let named = |one: &Value| call.asked("name").is_none_or(|name| one["name"] == name);
    let labelled = |one: &Value| match call.asked("label_selector").map(|s| s.split_once("%3D").unwrap()) {
        Some((label, value)) => one["labels"][label] == value,
        None => true,
    };
    let all: Vec<Value> = all.iter().filter(|one| named(one) && labelled(one)).cloned().collect();
    let at = call.asked("page").unwrap().parse().unwrap();
    let (page, more) = page(&all, at);
    let next = more.then_some(at + 1);
    Reply::json(200, &json!({name: page, "meta": {"pagination": {"page": at, "next_page": next}}}))
}

fn error(status: u16, code: &str) -> Reply {
    Reply::json(status, &json!({"error": {"code": code, "message": code, "details": {}}}))
}
