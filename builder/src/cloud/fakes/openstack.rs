//! Keystone, Nova, Neutron and Cinder: nothing is unique, a port and a floating IP are things of their own, and what is in use stays.

use super::{CREATED, Machine, World, gone, number, private, public, with_id};
use crate::web::fake::{Call, Reply};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

const EXTERNAL: &str = "900";
/// So many entries at once; a cluster of three machines has more ports than these.
const A_PAGE: usize = 3;

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.path == "/v3/auth/tokens" {
        let identity = call.json()["auth"]["identity"].clone();
        let credential = &identity["application_credential"];
        let known = identity["password"]["user"]["password"] == "t0ken"
            || (credential["id"] == "a1" && credential["secret"] == "t0ken");
        if !known {
            return Reply::json(
                401,
                &json!({"error": {"message": "The request you have made requires authentication."}}),
            );
        }
        let one = |kind: &str, path: &str| {
            let url = format!("http://{}/{path}", call.header("host"));
            json!({"type": kind, "endpoints": [{"interface": "public", "region": "RegionOne", "url": url}]})
        };
        let all = [one("compute", "compute/v2.1"), one("network", "network/"), one("block-storage", "volume/v3/p1")];
        let token = json!({"token": {"catalog": all}});
        return Reply::json(201, &token).header("x-subject-token", "session");
    }
    assert_eq!(call.header("x-auth-token"), "session");
    let parts: Vec<&str> = call.path.trim_start_matches('/').split('/').collect();
    match &parts[..] {
        ["compute", "v2.1", rest @ ..] => {
            assert_eq!(call.header("openstack-api-version"), "compute 2.57");
            nova(call, world, rest)
        }
        ["network", "v2.0", rest @ ..] => neutron(call, world, rest),
        ["volume", "v3", "p1", rest @ ..] => cinder(call, world, rest),
        what => panic!("{what:?}"),
    }
}

fn nova(call: &Call, world: &mut World, parts: &[&str]) -> Reply {
    match (call.method.as_str(), parts) {
        ("GET", ["flavors", "detail"]) => {
            let one = |id: &str, name: &str, disk: u64| json!({"id": id, "name": name, "disk": disk});
            let all = [one("1", "m1.small", 20), one("2", "m1.medium", 40), one("3", "m1.bare", 0)];
            list(call, "flavors", &all)
        }
        ("GET", ["limits"]) => {
            let most = world.account.map_or(json!(-1), |room| json!(world.machines.len() + room));
            let absolute = json!({"maxTotalInstances": most, "totalInstancesUsed": world.machines.len()});
            Reply::json(200, &json!({"limits": {"rate": [], "absolute": absolute}}))
        }
        ("GET", ["servers", "detail"]) => {
            world.look();
            let all: Vec<Value> = world.machines.iter().map(|(id, machine)| server(world, *id, machine)).collect();
            list(call, "servers", &all)
        }
        ("POST", ["servers"]) => make_server(call, world),
        (_, ["servers", id, rest @ ..]) => {
            if call.method == "GET" && rest.is_empty() {
                world.look();
            }
            let id = number(id);
            if !world.machines.contains_key(&id) {
                return refused(404, "itemNotFound", "Instance could not be found.");
            }
            if rest.first() == Some(&"os-volume_attachments") {
                return attachment(call, world, id, rest.get(1).copied());
            }
            of_server(call, world, id, rest)
        }
        what => panic!("{what:?}"),
    }
}

fn attachment(call: &Call, world: &mut World, machine: u64, volume: Option<&str>) -> Reply {
    let asked = call.json()["volumeAttachment"]["volumeId"].as_str().map(str::to_string);
    let id = number(asked.as_deref().or(volume).unwrap());
    let to = (call.method == "POST").then_some(machine);
    if to.is_none() && world.attached(id) != Some(machine) {
        return refused(404, "itemNotFound", "Instance is not attached.");
    }
    match world.carry(id, to) {
        None if to.is_some() => Reply::json(200, &json!({"volumeAttachment": {"volumeId": id.to_string()}})),
        None => Reply::new(202),
        Some("not_found") => refused(404, "itemNotFound", "Volume could not be found."),
        Some("locked") => refused(409, "conflictingRequest", "Cannot 'attach_volume' instance while it is building"),
        Some(_) => refused(400, "badRequest", "Invalid volume: volume status must be 'available'"),
    }
}

fn cinder(call: &Call, world: &mut World, parts: &[&str]) -> Reply {
    let volume = |id: u64, body: &Value, status: &str| {
        let at = body["server"].as_u64().map(|at| json!([{"server_id": at.to_string(), "volume_id": id.to_string()}]));
        json!({"id": id.to_string(), "name": body["name"], "size": body["size"], "metadata": body["metadata"],
            "status": status, "attachments": at.unwrap_or(json!([]))})
    };
    match (call.method.as_str(), parts) {
        ("GET", ["volumes", "detail"]) => {
            let all: Vec<Value> = world.volumes().iter().map(|(id, body)| volume(*id, body, "available")).collect();
            list(call, "volumes", &all)
        }
        ("POST", ["volumes"]) => {
            let body = call.json()["volume"].clone();
            let id = world.add("volume", &body);
            world.operations.insert(format!("making-{id}"), Value::Null);
            Reply::json(202, &json!({"volume": volume(id, &body, "creating")}))
        }
        ("GET", ["volumes", id]) => {
            let fresh = world.operations.remove(&format!("making-{id}")).is_some();
            let body = &world.things[&("volume", number(id))];
            let status = if fresh { "creating" } else { "available" };
            Reply::json(200, &json!({"volume": volume(number(id), body, status)}))
        }
        ("DELETE", ["volumes", id]) if world.attached(number(id)).is_some() => {
            refused(400, "badRequest", "Invalid volume: Volume status must be available or error")
        }
        ("DELETE", ["volumes", id]) => match world.things.remove(&("volume", number(id))) {
            Some(_) => Reply::new(202),
            None => refused(404, "itemNotFound", "Volume could not be found."),
        },
        what => panic!("{what:?}"),
    }
}

fn make_server(call: &Call, world: &mut World) -> Reply {
    let mut body = call.json()["server"].clone();
    if world.full() {
        return refused(
            403,
            "forbidden",
            "Quota exceeded for instances: Requested 1, but already used 1 of 1 instances",
        );
    }
    let ports: Vec<u64> =
        body["networks"].as_array().unwrap().iter().map(|one| number(one["port"].as_str().unwrap())).collect();
    for port in &ports {
        assert!(holder(world, *port).is_empty(), "port {port} is still in use");
        let port = &world.things[&("port", *port)];
        assert!(world.things.contains_key(&("firewall", number(port["security_groups"][0].as_str().unwrap()))));
    }
    let inside = *ports.last().unwrap();
    let led_to = json!(inside.to_string());
    let leads = world.of("floatingip").any(|(_, one)| one["port_id"] == led_to);
    assert!(leads || ports.len() == 2, "its metadata would say no public address");
    let data = STANDARD.decode(body["user_data"].as_str().unwrap()).unwrap();
    let size = if body["flavorRef"] == "1" { "m1.small" } else { "m1.medium" };
    // As all fakes have it.
    for (field, value) in [
        ("size", json!(size)),
        ("vpc_uuid", json!(inside.to_string())),
        ("ports", json!(ports)),
        ("user_data", json!(String::from_utf8(data).unwrap())),
    ] {
        body[field] = value;
    }
    let off = world.refuses;
    if off {
        body["fault"] =
            json!({"message": "No valid host was found. There are not enough hosts available.", "code": 500});
    }
    let id = world.number();
    world.machines.insert(id, Machine { body, off, at: Some(inside), ..Machine::default() });
    Reply::json(202, &json!({"server": {"id": id.to_string(), "links": []}}))
}

fn of_server(call: &Call, world: &mut World, id: u64, parts: &[&str]) -> Reply {
    let shown = server(world, id, &world.machines[&id]);
    let machine = world.machines.get_mut(&id).unwrap();
    match (call.method.as_str(), parts) {
        ("GET", []) => Reply::json(200, &json!({"server": shown})),
        ("DELETE", []) => {
            (machine.going, machine.looked) = (true, if machine.going { machine.looked } else { 0 });
            gone(true)
        }
        ("POST", ["metadata"]) => {
            for (key, value) in call.json()["metadata"].as_object().unwrap() {
                machine.body["metadata"][key] = value.clone();
            }
            Reply::json(200, &json!({"metadata": machine.body["metadata"]}))
        }
        ("DELETE", ["metadata", key]) => gone(machine.body["metadata"].as_object_mut().unwrap().remove(*key).is_some()),
        ("POST", ["action"]) if call.json().get("os-start").is_some() => {
            if !machine.off {
                return refused(409, "conflictingRequest", "Cannot 'start' instance while it is in vm_state active");
            }
            machine.off = false;
            Reply::new(202)
        }
        ("POST", ["action"]) if world.keeps_disks => {
            refused(400, "badRequest", "Flavor's disk is too small for requested image.")
        }
        ("POST", ["action"]) => {
            let rebuild = &call.json()["rebuild"];
            if machine.going || shown["status"] == "REBUILD" {
                return refused(
                    409,
                    "conflictingRequest",
                    "Cannot 'rebuild' instance while it is in task_state rebuilding",
                );
            }
            let data = STANDARD.decode(rebuild["user_data"].as_str().unwrap()).unwrap();
            machine.body["user_data"] = json!(String::from_utf8(data).unwrap());
            machine.rebuild(rebuild["imageRef"].as_str().unwrap());
            Reply::json(202, &json!({"server": {}}))
        }
        what => panic!("{what:?}"),
    }
}

fn server(world: &World, id: u64, machine: &Machine) -> Value {
    let body = &machine.body;
    let builds = machine.looked <= world.slow && !machine.going;
    let status = match machine {
        _ if body["fault"].is_object() => "ERROR",
        Machine { disks: 0, .. } if builds => "BUILD",
        _ if builds => "REBUILD",
        Machine { off: true, .. } => "SHUTOFF",
        _ => "ACTIVE",
    };
    let task = if machine.going { json!("deleting") } else { Value::Null };
    let launched = if body["fault"].is_object() { Value::Null } else { json!(CREATED) };
    let at = machine.at.unwrap_or(id);
    let port = json!(at.to_string());
    let one = |addr: String, kind: &str| json!({"addr": addr, "version": 4, "OS-EXT-IPS:type": kind});
    let mut addresses = json!({});
    if world.runs(id) {
        addresses["inside"] = json!([one(private(at), "fixed")]);
        if world.of("floatingip").any(|(_, one)| one["port_id"] == port) {
            addresses["inside"].as_array_mut().unwrap().push(one(public(at), "floating"));
        } else if body["ports"].as_array().is_some_and(|ports| ports.len() == 2) {
            addresses["Ext-Net"] = json!([one("2001:db8::7".into(), "fixed"), one(public(at), "fixed")]);
        }
    }
    json!({"id": id.to_string(), "name": body["name"], "status": status, "metadata": body["metadata"], "locked": false,
        "flavor": {"original_name": body["size"]}, "addresses": addresses, "created": CREATED, "fault": body["fault"],
        "OS-EXT-STS:task_state": task, "OS-SRV-USG:launched_at": launched})
}

/// Whose a port is: a router's, or a machine's.
fn holder(world: &World, port: u64) -> String {
    let of_router = world.things.get(&("port", port)).map(|port| port["device_id"].as_str().unwrap_or_default());
    if let Some(router) = of_router.filter(|id| !id.is_empty()) {
        return router.to_string();
    }
    let has = |machine: &Machine| {
        let among = machine.body["ports"].as_array().is_some_and(|all| all.contains(&json!(port)));
        // The tests' machines of others are in no network of the cluster's; one that never ran holds none.
        among && machine.body["vpc_uuid"] != "999" && !machine.body["fault"].is_object()
    };
    world.machines.iter().find(|(_, machine)| has(machine)).map_or(String::new(), |(id, _)| id.to_string())
}

fn neutron(call: &Call, world: &mut World, parts: &[&str]) -> Reply {
    match (call.method.as_str(), parts) {
        ("GET", ["networks"]) => {
            let one = |id: &str, name: &str| json!({"id": id, "name": name, "router:external": true});
            let outside = [one(EXTERNAL, "Ext-Net"), json!({"id": "901", "name": "shared", "router:external": false})];
            let own = world.of("network").map(|(id, body)| with_id(id.to_string(), body));
            list(call, "networks", &own.chain(outside).collect::<Vec<_>>())
        }
        ("GET", ["subnets"]) => things(call, world, "subnet", "subnets"),
        ("GET", ["routers"]) => things(call, world, "router", "routers"),
        ("GET", ["floatingips"]) => things(call, world, "floatingip", "floatingips"),
        ("GET", ["security-groups"]) => things(call, world, "firewall", "security_groups"),
        ("GET", ["security-groups", id]) => match world.things.get(&("firewall", number(id))) {
            Some(body) => Reply::json(200, &json!({"security_group": with_id(id.to_string(), body)})),
            None => refused(404, "SecurityGroupNotFound", "Security group does not exist"),
        },
        ("GET", ["ports"]) => {
            let one = |(id, body): (u64, &Value)| {
                let mut shown = with_id(id.to_string(), body);
                shown["device_id"] = json!(holder(world, id));
                shown
            };
            list(call, "ports", &world.of("port").map(one).collect::<Vec<_>>())
        }
        ("POST", ["networks"]) => make(call, world, "network", "network"),
        ("POST", ["subnets"]) => make(call, world, "subnet", "subnet"),
        ("POST", ["routers"]) => {
            assert_eq!(call.json()["router"]["external_gateway_info"]["network_id"], EXTERNAL);
            make(call, world, "router", "router")
        }
        ("POST", ["ports"]) => make(call, world, "port", "port"),
        ("POST", ["floatingips"]) => {
            assert_eq!(call.json()["floatingip"]["floating_network_id"], EXTERNAL);
            make(call, world, "floatingip", "floatingip")
        }
        ("POST", ["security-groups"]) => make(call, world, "firewall", "security_group"),
        ("POST", ["security-group-rules"]) => {
            let mut all = call.json()["security_group_rules"].as_array().unwrap().clone();
            for rule in &mut all {
                rule["id"] = json!(world.number().to_string());
                let group = number(rule["security_group_id"].as_str().unwrap());
                let group = world.things.get_mut(&("firewall", group)).unwrap();
                let mut known = group["security_group_rules"].as_array().cloned().unwrap_or_default();
                known.push(rule.clone());
                group["security_group_rules"] = json!(known);
            }
            Reply::json(201, &json!({"security_group_rules": all}))
        }
        ("PUT", ["routers", id, what]) => {
            let subnet = call.json()["subnet_id"].clone();
            let is_it = |port: &Value| port["device_id"] == *id && port["fixed_ips"][0]["subnet_id"] == subnet;
            let there = world.of("port").find(|(_, port)| is_it(port)).map(|(id, _)| id);
            match (*what, there) {
                ("add_router_interface", Some(_)) => {
                    return refused(400, "BadRequest", "Router already has a port on subnet");
                }
                ("add_router_interface", None) => {
                    let port = json!({"name": "", "device_id": id, "device_owner": "network:router_interface",
                        "fixed_ips": [{"subnet_id": subnet}]});
                    world.add("port", &port);
                }
                (_, Some(_)) if world.of("floatingip").any(|(_, one)| one["port_id"].is_string()) => {
                    return refused(409, "RouterInterfaceInUseByFloatingIP", "it is required by floating IPs");
                }
                (_, Some(port)) => drop(world.things.remove(&("port", port))),
                (_, None) => return refused(404, "RouterInterfaceNotFound", "no interface on subnet"),
            }
            Reply::json(200, &json!({"subnet_id": subnet}))
        }
        ("PUT", [kind, id]) => {
            let (kind, key) = if *kind == "ports" { ("port", "port") } else { ("floatingip", "floatingip") };
            let Some(one) = world.things.get_mut(&(kind, number(id))) else {
                return refused(404, "NotFound", "not found");
            };
            for (field, value) in call.json()[key].as_object().unwrap() {
                one[field] = value.clone();
            }
            Reply::json(200, &json!({key: with_id(id.to_string(), one)}))
        }
        ("DELETE", ["security-group-rules", id]) => {
            for (_, group) in world.things.iter_mut().filter(|((kind, _), _)| *kind == "firewall") {
                let rules = group["security_group_rules"].as_array().cloned().unwrap_or_default();
                group["security_group_rules"] = rules.into_iter().filter(|rule| rule["id"] != *id).collect();
            }
            Reply::new(204)
        }
        ("DELETE", [kind, id]) => delete(world, kind, number(id)),
        what => panic!("{what:?}"),
    }
}

fn delete(world: &mut World, kind: &str, id: u64) -> Reply {
    let name = json!(id.to_string());
    let on = |world: &World, is_it: &dyn Fn(&Value) -> bool| world.of("port").any(|(_, port)| is_it(port));
    let (kind, used) = match kind {
        "security-groups" => {
            ("firewall", on(world, &|port| port["security_groups"].as_array().is_some_and(|all| all.contains(&name))))
        }
        "routers" => ("router", on(world, &|port| port["device_id"] == name)),
        "networks" => {
            let subnets: Vec<Value> = world
                .of("subnet")
                .filter(|(_, one)| one["network_id"] == name)
                .map(|(id, _)| json!(id.to_string()))
                .collect();
            let inside =
                |port: &Value| port["network_id"] == name || subnets.contains(&port["fixed_ips"][0]["subnet_id"]);
            let used = on(world, &inside);
            if !used {
                world.things.retain(|(kind, _), one| *kind != "subnet" || one["network_id"] != name);
            }
            ("network", used)
        }
        "ports" => {
            for (_, one) in world.things.iter_mut().filter(|((kind, _), _)| *kind == "floatingip") {
                if one["port_id"] == name {
                    one["port_id"] = Value::Null;
                }
            }
            ("port", false)
        }
        "floatingips" => ("floatingip", false),
        what => panic!("{what}"),
    };
    if used { refused(409, "InUse", "it is in use") } else { gone(world.things.remove(&(kind, id)).is_some()) }
}

fn make(call: &Call, world: &mut World, kind: &'static str, key: &str) -> Reply {
    let body = call.json()[key].clone();
    let id = world.add(kind, &body);
    Reply::json(201, &json!({key: with_id(id.to_string(), &body)}))
}

fn things(call: &Call, world: &World, kind: &str, name: &str) -> Reply {
    list(call, name, &world.of(kind).map(|(id, body)| with_id(id.to_string(), body)).collect::<Vec<_>>())
}

/// A few entries a page, of those that are asked for.
fn list(call: &Call, name: &str, all: &[Value]) -> Reply {
    let is_asked = |one: &&Value| {
        ["name", "device_id"].iter().all(|field| call.asked(field).is_none_or(|wanted| one[field] == wanted))
    };
    let all: Vec<Value> = all.iter().filter(is_asked).cloned().collect();
    // What the marker names may be gone meanwhile.
    let number = |one: &Value| number(one["id"].as_str().unwrap());
    let is_behind = |one: &&Value| call.asked("marker").is_none_or(|marker| number(one) > marker.parse().unwrap());
    let rest: Vec<Value> = all.iter().filter(is_behind).cloned().collect();
    let (found, more) = (rest.iter().take(A_PAGE).collect::<Vec<_>>(), rest.len() > A_PAGE);
    let links = if more { json!([{"rel": "next", "href": "http://elsewhere"}]) } else { json!([]) };
    Reply::json(200, &json!({name: found, format!("{name}_links"): links}))
}

fn refused(status: u16, kind: &str, message: &str) -> Reply {
    Reply::json(status, &json!({kind: {"message": message, "code": status}}))
}
