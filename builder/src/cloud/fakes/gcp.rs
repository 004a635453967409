//! Google: names are unique, a call of the same number is the same call, and all that changes something goes on behind its
//! answer.

use super::{CREATED, Machine, World, number, page, private, public, with_id};
use crate::web::fake::{Call, Reply};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Who has the key that counts.
pub(in super::super) const EMAIL: &str = "kimg@p";
const ZONE: &str = "europe-west3-a";

/// What comes of a call: the scope of its operation, and how that ends.
type Done = Result<(&'static str, Option<Value>), Reply>;

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.path == "/token" {
        return token(call);
    }
    if call.header("authorization") != "Bearer t0ken" {
        return error(401, "Invalid Credentials");
    }
    let path = call.path.strip_prefix("/compute/v1/projects/p/").unwrap();
    let parts: Vec<&str> = path.split('/').collect();
    if call.method == "GET" {
        return read(call, &parts, world);
    }
    // Removing twice is as good as once; all else is known by its number.
    let id = call.asked("requestId").map(str::to_string);
    assert!(id.is_some() || call.method == "DELETE", "{path} has no number");
    let name = id.unwrap_or_else(|| format!("removal-{}", world.operations.len()));
    if !world.operations.contains_key(&name) {
        let (scope, end) = match write(call, &parts, world) {
            Ok(done) => done,
            Err(refused) => return refused,
        };
        let mut operation = json!({"name": name, "status": "DONE"});
        if scope != "global" {
            operation[scope] = json!(format!("https://www.googleapis.com/compute/v1/projects/p/{scope}s/{}", parts[1]));
        }
        if let Some(end) = end {
            (operation["error"], operation["httpErrorStatusCode"]) = (json!({"errors": [end]}), json!(503));
        }
        world.operations.insert(name.clone(), operation);
    }
    let mut begun = world.operations[&name].clone();
    // What is in no zone and no region is done at once.
    if begun["zone"].is_string() || begun["region"].is_string() {
        begun["status"] = json!("RUNNING");
        begun.as_object_mut().unwrap().remove("error");
    }
    Reply::json(200, &begun)
}

fn token(call: &Call) -> Reply {
    let assertion = String::from_utf8(call.body.clone()).unwrap().rsplit_once('=').unwrap().1.to_string();
    let claims = URL_SAFE_NO_PAD.decode(assertion.split('.').nth(1).unwrap()).unwrap();
    let claims: Value = serde_json::from_slice(&claims).unwrap();
    if claims["iss"] != EMAIL {
        return Reply::json(400, &json!({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}));
    }
    Reply::json(200, &json!({"access_token": "t0ken", "expires_in": 3599, "token_type": "Bearer"}))
}

fn read(call: &Call, parts: &[&str], world: &mut World) -> Reply {
    let shown = |found: Option<Value>| found.map_or_else(|| error(404, "was not found"), |one| Reply::json(200, &one));
    match parts {
        ["zones"] => list(call, &[ZONE, "us-east1-b"].map(|zone| json!({"name": zone}))),
        ["regions", "europe-west3"] => {
            let quota = |metric: &str, limit: usize| json!({"metric": metric, "limit": limit as f64, "usage": 0.0});
            let most = world.account.unwrap_or(100);
            Reply::json(
                200,
                &json!({"quotas": [quota("CPUS", 1), quota("INSTANCES", most), quota("IN_USE_ADDRESSES", 100)]}),
            )
        }
        ["zones", ZONE, "machineTypes"] => {
            let one = |name: &str, architecture: &str| json!({"name": name, "architecture": architecture});
            list(call, &[one("c4a-standard-1", "ARM64"), one("e2-medium", "X86_64"), one("e2-small", "X86_64")])
        }
        ["global", "networks", name] => shown(find(world, "network", name).map(|(_, mut network)| {
            let subnets = world.of("subnetwork").map(|(_, one)| {
                format!("https://x/regions/europe-west3/subnetworks/{}", one["name"].as_str().unwrap())
            });
            network["subnetworks"] = subnets.collect();
            network
        })),
        ["regions", "europe-west3", "subnetworks", name] => shown(find(world, "subnetwork", name).map(|(_, one)| one)),
        ["regions", "europe-west3", "addresses", name] => {
            shown(find(world, "address", name).map(|(id, _)| json!({"name": name, "address": public(id)})))
        }
        ["aggregated", "addresses"] => {
            let region = "https://x/projects/p/regions/europe-west3";
            let all = world.of("address");
            let all: Value =
                all.map(|(id, one)| json!({"name": one["name"], "address": public(id), "region": region})).collect();
            paged(json!({"items": {"regions/europe-west3": {"addresses": all}}}), None)
        }
        ["aggregated", "disks"] => {
            let of = world.machines.iter().filter(|(_, machine)| machine.body["disk"].is_string());
            let mut all: Vec<Value> = of
                .map(|(id, machine)| {
                    let body = &machine.body;
                    disk(
                        500 + id,
                        &json!({"name": body["disk"], "labels": body["disk_labels"], "sizeGb": "25"}),
                        Some(*id),
                        world,
                    )
                })
                .collect();
            all.extend(world.of("disk").map(|(id, one)| disk(id, one, None, world)));
            all.extend(world.of("volume").map(|(id, one)| disk(id, one, one["server"].as_u64(), world)));
            drop(world.volumes());
            let at: usize = call.asked("pageToken").map_or(1, |token| token.parse().unwrap());
            let (some, more) = page(&all, at);
            paged(json!({"items": {format!("zones/{ZONE}"): {"disks": some}}}), more.then_some(at + 1))
        }
        ["global", "firewalls"] => {
            let prefix = call.asked("filter").unwrap().strip_prefix("name%20eq%20%22").unwrap();
            let prefix = prefix.strip_suffix(".%2A%22").unwrap();
            let all = world.of("firewall").map(|(id, one)| with_id(id.to_string(), &unruled(one)));
            let all: Value = all.filter(|one| one["name"].as_str().unwrap().starts_with(prefix)).collect();
            Reply::json(200, &json!({"items": all}))
        }
        ["aggregated", "instances"] => {
            world.look();
            let all: Vec<Value> = world.machines.iter().map(|(id, machine)| instance(world, *id, machine)).collect();
            let at: usize = call.asked("pageToken").map_or(1, |token| token.parse().unwrap());
            let (some, more) = page(&all, at);
            let mut items = json!({"zones/us-east1-b": {"warning": {"code": "NO_RESULTS_ON_PAGE"}}});
            for one in some {
                let zone = last(&one["zone"]).to_string();
                let known = items[format!("zones/{zone}")]["instances"].as_array().cloned().unwrap_or_default();
                items[format!("zones/{zone}")] =
                    json!({"instances": known.into_iter().chain([one]).collect::<Vec<_>>()});
            }
            paged(json!({"items": items}), more.then_some(at + 1))
        }
        ["zones", _, "instances", what] => {
            let id = machine(world, what);
            shown(id.map(|id| instance(world, id, &world.machines[&id])))
        }
        ["zones", _, "disks", name] => {
            let attached = world.machines.values().find(|machine| machine.body["disk"] == *name);
            shown(
                attached.map(|machine| json!({"name": name, "labels": machine.body["disk_labels"]})).or_else(|| {
                    find(world, "disk", name).or_else(|| find(world, "volume", name)).map(|(_, disk)| disk)
                }),
            )
        }
        [.., "operations", name] => shown(world.operations.get(*name).cloned()),
        what => panic!("{what:?}"),
    }
}

fn write(call: &Call, parts: &[&str], world: &mut World) -> Done {
    match (call.method.as_str(), parts) {
        ("POST", ["global", "networks"]) => make(call, world, "network", "global"),
        ("POST", ["regions", "europe-west3", "subnetworks"]) => {
            assert!(find(world, "network", last(&call.json()["network"])).is_some());
            make(call, world, "subnetwork", "region")
        }
        ("POST", ["regions", "europe-west3", "addresses"]) => make(call, world, "address", "region"),
        ("POST", ["global", "firewalls"]) => make(call, world, "firewall", "global"),
        ("PUT", ["global", "firewalls", name]) => match find(world, "firewall", name) {
            Some((id, _)) => {
                world.things.insert(("firewall", id), ruled(&call.json()));
                Ok(("global", None))
            }
            None => Err(error(404, "was not found")),
        },
        ("POST", ["zones", ZONE, "disks"]) if call.json()["sourceImage"].is_null() => {
            assert_eq!(call.json()["type"], format!("zones/{ZONE}/diskTypes/pd-balanced"));
            make(call, world, "volume", "zone")
        }
        ("POST", ["zones", ZONE, "disks"]) if world.keeps_disks => {
            let why =
                json!({"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "The zone does not have enough resources"});
            Ok(("zone", Some(why)))
        }
        ("POST", ["zones", ZONE, "disks"]) => {
            let name = call.json()["name"].clone();
            if world.machines.values().any(|machine| machine.body["disk"] == name) {
                return Err(error(409, "already exists"));
            }
            make(call, world, "disk", "zone")
        }
        ("POST", ["zones", ZONE, "instances"]) => insert(&call.json(), world),
        ("POST", ["zones", _, "instances", id, what]) => {
            let id = machine(world, id).ok_or_else(|| error(404, "was not found"))?;
            change(call, what, id, world).map(|()| ("zone", None))
        }
        ("DELETE", ["zones", _, "instances", id]) => {
            let id = machine(world, id).ok_or_else(|| error(404, "was not found"))?;
            let machine = world.machines.get_mut(&id).unwrap();
            if machine.going {
                return Err(error(400, "The resource is not ready"));
            }
            (machine.going, machine.looked) = (true, 0);
            Ok(("zone", None))
        }
        ("DELETE", [.., kind, name]) => {
            let kind =
                ["network", "subnetwork", "address", "firewall", "disk"].into_iter().find(|one| kind.starts_with(one));
            let kind = kind.map(|kind| if find(world, "volume", name).is_some() { "volume" } else { kind });
            let Some((id, _)) = find(world, kind.unwrap(), name) else { return Err(error(404, "was not found")) };
            let used = match kind.unwrap() {
                "network" => world.of("firewall").chain(world.of("subnetwork")).next().is_some(),
                "subnetwork" => world.machines.values().any(|machine| machine.body["vpc_uuid"] == *name),
                "address" => world.machines.contains_key(&id),
                "volume" => world.attached(id).is_some(),
                _ => false,
            };
            if used {
                return Err(error(400, "The resource is already being used by another"));
            }
            world.things.remove(&(kind.unwrap(), id));
            let scope = match parts[0] {
                "zones" => "zone",
                "regions" => "region",
                _ => "global",
            };
            Ok((scope, None))
        }
        what => panic!("{what:?}"),
    }
}

fn insert(asked: &Value, world: &mut World) -> Done {
    if world.full() {
        return Err(error(403, "Quota 'INSTANCES' exceeded.  Limit: 1.0 in region europe-west3."));
    }
    let name = asked["name"].as_str().unwrap().replace("--", ".");
    let (disk, nic) = (&asked["disks"][0], &asked["networkInterfaces"][0]);
    let disk_name = disk["initializeParams"]["diskName"].as_str().unwrap();
    if !world.machine(&name).is_empty() || find(world, "disk", disk_name).is_some() {
        return Err(error(409, "already exists"));
    }
    if world.refuses {
        let why = json!({"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": "The zone does not have enough resources"});
        return Ok(("zone", Some(why)));
    }
    let subnet = last(&nic["subnetwork"]);
    let tag = asked["tags"]["items"][0].as_str().unwrap();
    assert!(find(world, "subnetwork", subnet).is_some() && find(world, "firewall", tag).is_some(), "{asked}");
    // As all fakes have it.
    let body = json!({"name": name, "size": last(&asked["machineType"]), "region": ZONE, "labels": asked["labels"],
        "user_data": asked["metadata"]["items"][0]["value"], "vpc_uuid": subnet, "disk": disk_name,
        "disk_labels": disk["initializeParams"]["labels"]});
    // The machine with a reserved address has the number by which that is known here.
    let address = nic["accessConfigs"][0]["natIP"].as_str();
    let id = match address.map(|address| world.of("address").find(|(id, _)| public(*id) == address).unwrap().0) {
        Some(id) => id,
        None => world.number(),
    };
    world.machines.insert(id, Machine { body, ..Machine::default() });
    Ok(("zone", None))
}

fn change(call: &Call, what: &str, id: u64, world: &mut World) -> Result<(), Reply> {
    let asked = call.json();
    if let Some(done) = carry(call, what, id, world) {
        return done;
    }
    let disk = find(world, "disk", last(&asked["source"]));
    let number = if what == "detachDisk" { world.number() } else { 0 };
    let machine = world.machines.get_mut(&id).unwrap();
    match what {
        "start" if machine.body["disk"].is_null() => return Err(error(400, "There is no boot disk")),
        "start" => machine.off = false,
        "stop" => machine.off = true,
        "setLabels" => {
            assert_eq!(asked["labelFingerprint"], "f1");
            machine.body["labels"] = asked["labels"].clone();
        }
        "setMetadata" => {
            assert_eq!(asked["fingerprint"], "f2");
            machine.body["user_data"] = asked["items"].as_array().unwrap().last().unwrap()["value"].clone();
        }
        "detachDisk" => {
            assert!(machine.off && call.asked("deviceName") == Some("boot"));
            let name = machine.body["disk"].take();
            let left = json!({"name": name, "labels": machine.body["disk_labels"].take()});
            world.things.insert(("disk", number), left);
        }
        "attachDisk" => {
            assert!(
                machine.off && machine.body["disk"].is_null() && asked["boot"] == true && asked["autoDelete"] == true
            );
            let (disk, new) = disk.unwrap();
            machine.rebuild(last(&new["sourceImage"]));
            machine.body["disk"] = new["name"].clone();
            machine.body["disk_labels"] = new["labels"].clone();
            world.things.remove(&("disk", disk));
        }
        what => panic!("{what}"),
    }
    Ok(())
}

/// Attaches a data volume, or takes it away; none where it is about a machine's own disk. It is done with the operation.
fn carry(call: &Call, what: &str, id: u64, world: &mut World) -> Option<Result<(), Reply>> {
    let (asked, name) = (call.json(), |asked: &Value| last(asked).to_string());
    let (volume, to) = match what {
        "attachDisk" => (find(world, "volume", &name(&asked["source"]))?.0, Some(id)),
        "detachDisk" if call.asked("deviceName") == Some("data") => {
            (world.of("volume").find(|(_, one)| one["server"] == id)?.0, None)
        }
        _ => return None,
    };
    if to.is_some() {
        assert!(asked["autoDelete"] == false && asked["boot"] == false && asked["deviceName"] == "data");
    }
    Some(match world.carry(volume, to) {
        None => {
            drop(world.volumes());
            Ok(())
        }
        Some("locked") => Err(error(400, "The resource is not ready")),
        Some(_) => Err(error(400, "The disk resource is already being used by another")),
    })
}

fn disk(id: u64, body: &Value, user: Option<u64>, world: &World) -> Value {
    let zone = format!("https://x/projects/p/zones/{ZONE}");
    let called = |id: u64| match world.machines.get(&id) {
        Some(machine) => machine.body["name"].as_str().unwrap().replace('.', "--"),
        None => format!("gone-{id}"),
    };
    let users: Vec<String> = user.into_iter().map(|id| format!("{zone}/instances/{}", called(id))).collect();
    json!({"id": id.to_string(), "name": body["name"], "labels": body["labels"], "sizeGb": body["sizeGb"], "zone": zone,
        "users": users})
}

/// With rules where tests look for them, and back.
fn ruled(body: &Value) -> Value {
    let mut body = body.clone();
    body["rules"] = body["allowed"].take();
    body
}

fn unruled(body: &Value) -> Value {
    let mut body = body.clone();
    body["allowed"] = body["rules"].take();
    body
}

fn make(call: &Call, world: &mut World, kind: &'static str, scope: &'static str) -> Done {
    let body = call.json();
    if find(world, kind, body["name"].as_str().unwrap()).is_some() {
        return Err(error(409, "already exists"));
    }
    world.add(kind, &if kind == "firewall" { ruled(&body) } else { body });
    Ok((scope, None))
}

fn find(world: &World, kind: &str, name: &str) -> Option<(u64, Value)> {
    world.of(kind).find(|(_, one)| one["name"] == name).map(|(id, one)| (id, one.clone()))
}

/// By its number or its name.
fn machine(world: &World, what: &str) -> Option<u64> {
    let known = |id: &u64| world.machines.contains_key(id);
    if what.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(number(what)).filter(known);
    }
    world.machine(&what.replace("--", ".")).first().copied()
}

fn last(value: &Value) -> &str {
    value.as_str().unwrap_or_default().rsplit('/').next().unwrap()
}

fn instance(world: &World, id: u64, machine: &Machine) -> Value {
    let body = &machine.body;
    let runs = world.runs(id);
    let status = match machine {
        Machine { going: true, .. } => "STOPPING",
        Machine { off: true, .. } => "TERMINATED",
        _ if runs => "RUNNING",
        _ => "STAGING",
    };
    let zone = format!("https://x/projects/p/zones/{}", body["region"].as_str().unwrap());
    let mut nic = json!({"accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]});
    if runs || machine.off {
        nic["networkIP"] = json!(private(id));
    }
    // Only what is reserved outlives a stop.
    if runs || world.things.contains_key(&("address", id)) {
        nic["accessConfigs"][0]["natIP"] = json!(public(id));
    }
    let boot = body["disk"].as_str().map(|disk| (true, "boot", disk));
    let of = world.of("volume").filter(|(_, one)| one["server"] == id);
    let data = of.map(|(_, one)| (false, "data", one["name"].as_str().unwrap()));
    let disks: Value = boot
        .into_iter()
        .chain(data)
        .map(|(boot, device, disk)| json!({"boot": boot, "deviceName": device, "source": format!("{zone}/disks/{disk}")}))
        .collect();
    json!({"id": id.to_string(), "name": body["name"].as_str().unwrap().replace('.', "--"), "status": status,
        "labels": body["labels"], "labelFingerprint": "f1", "zone": zone, "networkInterfaces": [nic], "disks": disks,
        "machineType": format!("{zone}/machineTypes/{}", body["size"].as_str().unwrap()),
        "metadata": {"fingerprint": "f2", "items": [{"key": "user-data", "value": body["user_data"]}]},
        "creationTimestamp": CREATED.replace('Z', ".000+00:00")})
}

fn list(call: &Call, all: &[Value]) -> Reply {
    let at: usize = call.asked("pageToken").map_or(1, |token| token.parse().unwrap());
    let (items, more) = page(all, at);
    paged(if items.is_empty() { json!({}) } else { json!({"items": items}) }, more.then_some(at + 1))
}

fn paged(mut page: Value, next: Option<usize>) -> Reply {
    if let Some(next) = next {
        page["nextPageToken"] = json!(next.to_string());
    }
    Reply::json(200, &page)
}

fn error(status: u16, why: &str) -> Reply {
    Reply::json(status, &json!({"error": {"code": status, "message": why}}))
}
