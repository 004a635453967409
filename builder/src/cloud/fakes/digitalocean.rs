//! DigitalOcean: names of droplets are not unique, tags must be there before they are named, and a VPC goes when it is
//! empty.

use super::{CREATED, Machine, World, gone, number, page, private, public, with_id};
use crate::web::fake::{Call, Reply};
use serde_json::{Value, json};

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.header("authorization") != "Bearer t0ken" {
        return error(401, "unauthorized", "Unable to authenticate you");
    }
    let parts: Vec<&str> = call.path.strip_prefix("/v2/").unwrap().split('/').collect();
    match (call.method.as_str(), &parts[..]) {
        ("GET", ["account"]) => {
            let limit = world.account.unwrap_or(25);
            Reply::json(200, &json!({"account": {"droplet_limit": limit, "status": "active"}}))
        }
        ("GET", ["sizes"]) => {
            let price = if world.no_price { -1.0 } else { 6.0 };
            let one = |slug: &str, price: f64, disk: u64, region: &str| json!({"slug": slug, "price_monthly": price, "disk": disk, "available": true, "regions": [region]});
            let all =
                [one("s-1vcpu-1gb", price, 25, "fra1"), one("s-1vcpu-2gb", 12.0, 50, "fra1"), one("x", 1.0, 9, "nyc1")];
            list(call, "sizes", &all)
        }
        ("GET", ["tags"]) => list(call, "tags", &world.tags.iter().map(|tag| json!({"name": tag})).collect::<Vec<_>>()),
        ("POST", ["tags"]) => {
            world.tags.insert(call.json()["name"].as_str().unwrap().into());
            Reply::json(201, &json!({"tag": call.json()}))
        }
        ("DELETE", ["tags", tag]) => {
            for machine in world.machines.values_mut() {
                machine.body["tags"].as_array_mut().unwrap().retain(|its| its != tag);
            }
            gone(world.tags.remove(*tag))
        }
        ("POST", ["tags", tag, "resources"]) => {
            assert!(world.tags.contains(*tag));
            let id = number(call.json()["resources"][0]["resource_id"].as_str().unwrap());
            let Some(machine) = world.machines.get_mut(&id) else { return error(404, "not_found", "gone") };
            let tags = machine.body["tags"].as_array_mut().unwrap();
            if !tags.iter().any(|its| its == tag) {
                tags.push(json!(tag));
            }
            Reply::new(204)
        }
        ("GET", ["volumes"]) => {
            let all: Vec<Value> = world.volumes().iter().map(|(id, body)| volume(*id, body)).collect();
            list(call, "volumes", &all)
        }
        ("POST", ["volumes"]) => {
            let body = call.json();
            if world.has_named("volume", &body["name"]) {
                return error(409, "conflict", "a volume already exists with that name");
            }
            let id = world.add("volume", &body);
            Reply::json(201, &json!({"volume": volume(id, &body)}))
        }
        ("POST", ["volumes", id, "actions"]) => {
            let body = call.json();
            let to = (body["type"] == "attach").then(|| body["droplet_id"].as_u64().unwrap());
            match world.carry(number(id), to) {
                None => Reply::json(202, &json!({"action": {"id": 1, "status": "in-progress"}})),
                Some("not_found") => error(404, "not_found", "not found"),
                Some(_) => error(422, "unprocessable_entity", "a pending event, or attached already"),
            }
        }
        ("DELETE", ["volumes", id]) if world.attached(number(id)).is_some() => {
            error(409, "conflict", "the volume is attached")
        }
        ("DELETE", ["volumes", id]) => gone(world.things.remove(&("volume", number(id))).is_some()),
        ("GET", ["vpcs"]) => things(call, world, "vpc", "vpcs"),
        ("GET", ["firewalls"]) => things(call, world, "firewall", "firewalls"),
        ("GET", ["account", "keys"]) => things(call, world, "ssh_key", "ssh_keys"),
        ("GET", ["droplets"]) => {
            world.look();
            let all: Vec<Value> = world.machines.iter().map(|(id, machine)| droplet(world, *id, machine)).collect();
            let named = |one: &Value| call.asked("name").is_none_or(|name| one["name"] == name);
            list(call, "droplets", &all.into_iter().filter(named).collect::<Vec<_>>())
        }
        ("POST", ["vpcs"]) => {
            let body = call.json();
            if world.of("vpc").any(|(_, known)| known["ip_range"] == body["ip_range"]) {
                return error(
                    422,
                    "unprocessable_entity",
                    "This range overlaps with another VPC network in your account",
                );
            }
            make(call, world, "vpc", 201)
        }
        ("POST", ["firewalls"]) => {
            let body = call.json();
            assert!(body["tags"].as_array().unwrap().iter().all(|tag| world.tags.contains(tag.as_str().unwrap())));
            if world.has_named("firewall", &body["name"]) {
                return error(409, "conflict", "duplicate name");
            }
            make(call, world, "firewall", 202)
        }
        ("PUT", ["firewalls", id]) => match world.things.get_mut(&("firewall", number(id))) {
            Some(firewall) => {
                *firewall = call.json();
                Reply::json(200, &json!({"firewall": with_id(*id, &call.json())}))
            }
            None => error(404, "not_found", "not found"),
        },
        ("POST", ["account", "keys"]) => make(call, world, "ssh_key", 201),
        ("POST", ["droplets"]) => {
            let body = call.json();
            if world.full() {
                return error(422, "unprocessable_entity", "creating this droplet will exceed your droplet limit");
            }
            if world.refuses {
                return error(422, "unprocessable_entity", "Size is not available in this region.");
            }
            assert!(body["tags"].as_array().unwrap().iter().all(|tag| world.tags.contains(tag.as_str().unwrap())));
            let key = body["ssh_keys"][0].as_u64().unwrap();
            let vpc = number(body["vpc_uuid"].as_str().unwrap());
            assert!(world.things.contains_key(&("ssh_key", key)) && world.things.contains_key(&("vpc", vpc)));
            let id = world.number();
            world.machines.insert(id, Machine { body, ..Machine::default() });
            Reply::json(202, &json!({"droplet": droplet(world, id, &world.machines[&id])}))
        }
        ("POST", ["droplets", _, "actions"]) if world.keeps_disks => {
            error(422, "unprocessable_entity", "image is larger than the disk")
        }
        ("POST", ["droplets", id, "actions"]) => {
            let Some(machine) = world.machines.get_mut(&number(id)) else { return error(404, "not_found", "gone") };
            match call.json()["type"].as_str().unwrap() {
                "power_on" => {}
                "rebuild" => machine.rebuild(&call.json()["image"].to_string()),
                other => panic!("{other}"),
            }
            machine.off = false;
            Reply::json(201, &json!({"action": {"id": 1, "status": "in-progress"}}))
        }
        ("GET", ["droplets", id, "actions", _]) => {
            world.look();
            let status = if world.runs(number(id)) { "completed" } else { "in-progress" };
            Reply::json(200, &json!({"action": {"id": 1, "status": status}}))
        }
        ("DELETE", ["droplets", id]) => {
            let Some(machine) = world.machines.get_mut(&number(id)) else { return gone(false) };
            (machine.going, machine.looked) = (true, if machine.going { machine.looked } else { 0 });
            gone(true)
        }
        ("DELETE", ["vpcs", id]) => {
            if world.machines.values().any(|machine| machine.body["vpc_uuid"] == *id) {
                return error(403, "forbidden", "Can not delete VPC with members");
            }
            if world.of("vpc").any(|(known, vpc)| known == number(id) && vpc["default"] == true) {
                return error(403, "forbidden", "Can not delete default VPCs");
            }
            gone(world.things.remove(&("vpc", number(id))).is_some())
        }
        ("DELETE", ["firewalls", id]) => gone(world.things.remove(&("firewall", number(id))).is_some()),
        ("DELETE", ["account", "keys", id]) => gone(world.things.remove(&("ssh_key", number(id))).is_some()),
        what => panic!("{what:?}"),
    }
}

/// What has numbers has them as such; a VPC and a firewall have texts.
fn shown(kind: &str, id: u64, body: &Value) -> Value {
    if kind == "ssh_key" { with_id(id, body) } else { with_id(id.to_string(), body) }
}

fn make(call: &Call, world: &mut World, kind: &'static str, status: u16) -> Reply {
    let id = world.add(kind, &call.json());
    Reply::json(status, &json!({kind: shown(kind, id, &call.json())}))
}

fn things(call: &Call, world: &World, kind: &str, name: &str) -> Reply {
    list(call, name, &world.of(kind).map(|(id, body)| shown(kind, id, body)).collect::<Vec<_>>())
}

fn volume(id: u64, body: &Value) -> Value {
    let droplets: Vec<&Value> = [&body["server"]].into_iter().filter(|at| at.is_u64()).collect();
    json!({"id": id.to_string(), "name": body["name"], "size_gigabytes": body["size_gigabytes"],
        "region": {"slug": body["region"]}, "droplet_ids": droplets})
}

fn droplet(world: &World, id: u64, machine: &Machine) -> Value {
    let status = match machine {
        Machine { off: true, .. } => "off",
        _ if world.runs(id) || machine.going => "active",
        _ => "new",
    };
    let address = |kind: &str, address: String| json!({"type": kind, "ip_address": address});
    let networks = [address("private", private(id)), address("public", public(id))];
    let networks = if world.runs(id) { &networks[..] } else { &[] };
    json!({"id": id, "name": machine.body["name"], "status": status, "tags": machine.body["tags"], "created_at": CREATED,
        "size_slug": machine.body["size"], "region": {"slug": machine.body["region"]}, "networks": {"v4": networks}})
}

fn list(call: &Call, name: &str, all: &[Value]) -> Reply {
    let at: usize = call.asked("page").map_or(1, |page| page.parse().unwrap());
    let (page, more) = page(all, at);
    let query: String = call.query.split('&').filter(|p| !p.starts_with("page=")).map(|p| format!("{p}&")).collect();
    let next = more.then(|| format!("http://{}{}?{query}page={}", call.header("host"), call.path, at + 1));
    Reply::json(200, &json!({name: page, "links": {"pages": {"next": next}}, "meta": {"total": all.len()}}))
}

fn error(status: u16, id: &str, message: &str) -> Reply {
    Reply::json(status, &json!({"id": id, "message": message, "request_id": "r"}))
}
