//! Proxmox VE: a VM that is being made has no name yet, what is changed while it runs waits, and tasks take their time.

use super::{Machine, World};
use crate::seed::tests::Machine as Platform;
use crate::web::fake::{Call, Reply};
use node_metadata::sources;
use serde_json::{Value, json};

pub(in super::super) const TOKEN_ID: &str = "kimg@pve!up";
const FILES: &str = "/storage/local/content";

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.header("authorization") != format!("PVEAPIToken={TOKEN_ID}=t0ken") {
        return Reply::new(401);
    }
    let path = call.path.strip_prefix("/api2/json").unwrap();
    match (call.method.as_str(), path) {
        ("GET", "/nodes") => {
            let one = |node: &str, status: &str| json!({"node": node, "status": status});
            ok(&json!([one("pve", "online"), one("far1", "online"), one("off1", "offline")]))
        }
        ("GET", "/cluster/nextid") => {
            let volumes = world.of("volume").map(|(id, _)| id);
            let free = world.machines.keys().copied().chain(volumes).max().unwrap_or(0).max(world.count) + 1;
            // What it calls free may be taken by then.
            ok(&json!(world.account.map_or(free, |taken| taken as u64).to_string()))
        }
        _ => {
            let (node, rest) = path.strip_prefix("/nodes/").unwrap().split_once('/').unwrap();
            of_node(call, world, node, rest)
        }
    }
}

fn of_node(call: &Call, world: &mut World, node: &str, path: &str) -> Reply {
    let parts: Vec<&str> = path.split('/').collect();
    match (call.method.as_str(), &parts[..]) {
        ("GET", ["qemu"]) => {
            world.look();
            let is_here = |machine: &&Machine| machine.body["node"] == node;
            let slow = world.slow;
            let mut all: Vec<Value> = Vec::new();
            for (id, machine) in world.machines.iter().filter(|(_, machine)| is_here(machine)) {
                let status = if machine.off || machine.going { "stopped" } else { "running" };
                all.push(match is_made(machine, slow) {
                    true => json!({"vmid": id, "status": "stopped", "lock": "create"}),
                    false => {
                        let tags: Vec<&str> =
                            machine.body["tags"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                        let lock = if machine.going { json!("destroyed") } else { Value::Null };
                        json!({"vmid": id, "status": status, "name": machine.body["name"], "tags": tags.join(";"), "lock": lock})
                    }
                });
            }
            all.extend(world.of("volume").filter(|_| node == "pve").map(|(id, one)| {
                let tags: Vec<&str> = one["tags"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                json!({"vmid": id, "status": "stopped", "name": one["name"], "tags": tags.join(";")})
            }));
            ok(&json!(all))
        }
        ("POST", ["qemu"]) if call.json()["tags"].as_str().unwrap().contains("kimg-holds.") => hold(call, world),
        ("POST", ["qemu"]) => create(call, world),
        ("GET", ["tasks"]) => {
            world.look();
            let slow = world.slow;
            let making = world.machines.values().filter(|machine| is_made(machine, slow));
            ok(&json!(making.map(|_| json!({"type": "qmcreate"})).collect::<Vec<_>>()))
        }
        ("GET", ["tasks", task, "status"]) => {
            world.look();
            let slow = world.slow;
            let task = world.operations.get_mut(&task.replace("%3A", ":")).unwrap();
            let asked = task["asked"].as_u64().unwrap_or(0) + 1;
            task["asked"] = json!(asked);
            ok(&match asked > slow as u64 {
                true => json!({"status": "stopped", "exitstatus": task["end"]}),
                false => json!({"status": "running"}),
            })
        }
        ("GET", ["storage", "local", "content"]) => {
            let images = ["master", "worker"]
                .map(|role| json!({"volid": format!("local:import/kimg-demo-{role}-0123456789ab.qcow2"), "size": 9}));
            let files = world.of("file").map(|(_, file)| json!({"volid": file["volid"], "size": file["size"]}));
            ok(&json!(files.chain(images).collect::<Vec<_>>()))
        }
        ("POST", ["storage", "local", "upload"]) => {
            let mut form = call.form();
            let (_, name, bytes) = form.pop().unwrap();
            let id = format!("local:import/{}", name.unwrap());
            let file = json!({"volid": id, "size": bytes.len(), "told": told(bytes)});
            world.things.retain(|_, file| file["volid"] != id.as_str());
            world.add("file", &file);
            task(world, "OK")
        }
        ("DELETE", ["storage", "local", "content", _]) => {
            let id = path.strip_prefix(&FILES[1..]).unwrap().trim_start_matches('/');
            let id = id.replace("%3A", ":").replace("%2F", "/");
            let before = world.things.len();
            world.things.retain(|_, file| file["volid"] != id.as_str());
            if world.things.len() == before { refused(&format!("unable to remove {id}")) } else { task(world, "OK") }
        }
        ("GET", ["storage", "lvm", "content"]) => {
            assert_eq!(call.asked("content"), Some("images"));
            let id = call.asked("vmid").unwrap().parse().unwrap();
            let size = world.things[&("volume", id)]["size"].as_u64().unwrap() << 30;
            ok(&json!([{"volid": disk(id), "size": size, "vmid": id}]))
        }
        (_, ["qemu", id, rest @ ..]) => {
            let id: u64 = id.parse().unwrap();
            if world.things.contains_key(&("volume", id)) {
                return of_holder(call, world, id, rest);
            }
            match world.machines.get(&id) {
                Some(machine) if is_made(machine, world.slow) || machine.going => refused("VM is locked"),
                Some(machine) => {
                    assert_eq!(machine.body["node"], node);
                    of_machine(call, world, id, rest)
                }
                None => refused("Configuration file does not exist"),
            }
        }
        what => panic!("{what:?}"),
    }
}

/// Its disks are still imported.
fn is_made(machine: &Machine, slow: usize) -> bool {
    machine.body["net0"].is_string() && machine.body["whole"].is_null() && machine.looked <= slow
}

/// What a drive says, by the node's own code.
fn told(drive: Vec<u8>) -> Value {
    let platform = Platform(drive);
    let sources = sources::all();
    let mut found = sources.iter().filter(|source| source.detect(&platform));
    let found = found.find_map(|source| source.read(&platform).unwrap()).unwrap();
    let network = found.network.unwrap();
    let nic = &network.nics[0];
    assert!(!nic.dhcp4 && nic.addresses.len() == 1, "{nic:?}");
    json!({
        "user_data": String::from_utf8(found.user_data.unwrap()).unwrap(),
        "address": nic.addresses[0].to_string(),
        "mac": nic.mac,
    })
}

/// What the drive that a disk is imported from says.
fn drive(world: &World, disk: &str) -> Value {
    let id = disk.strip_prefix("lvm:0,import-from=").unwrap();
    let file = world.of("file").find(|(_, file)| file["volid"] == id).map(|(_, file)| file["told"].clone());
    file.unwrap_or_else(|| panic!("{id} is not there"))
}

fn image(body: &Value) -> String {
    body["scsi0"].as_str().unwrap().strip_prefix("lvm:0,import-from=").unwrap().into()
}

fn create(call: &Call, world: &mut World) -> Reply {
    let mut body = call.json();
    let id = body["vmid"].as_u64().unwrap();
    if world.machines.contains_key(&id) {
        return refused(&format!("unable to create VM {id} - VM {id} already exists on node 'pve'"));
    }
    let told = drive(world, body["scsi1"].as_str().unwrap());
    if world.refuses || world.full() {
        return task(world, "unable to create VM - no space left on device");
    }
    let net0 = format!("virtio={},bridge=vmbr0", told["mac"].as_str().unwrap());
    assert_eq!(body["net0"], net0, "its drive would find no interface");
    let address = told["address"].as_str().unwrap();
    let at = address.strip_prefix("192.0.2.").unwrap().strip_suffix("/24").unwrap().parse().unwrap();
    let others = world.machines.values().all(|machine| machine.at != Some(at));
    assert!(others && at != 2, "{address} is taken");
    (body["user_data"], body["node"], body["tags"]) = (told["user_data"].clone(), json!("pve"), tags(&body["tags"]));
    // Others count their VMs, too.
    world.count = world.count.max(id);
    let made_of = image(&body);
    world.machines.insert(id, Machine { body, off: true, at: Some(at), made_of, ..Machine::default() });
    task(world, "OK")
}

/// A VM that holds a disk.
fn hold(call: &Call, world: &mut World) -> Reply {
    let mut body = call.json();
    let id = body["vmid"].as_u64().unwrap();
    let size: u64 = body["scsi0"].as_str().unwrap().strip_prefix("lvm:").unwrap().parse().unwrap();
    (body["size"], body["tags"], body["server"]) = (json!(size), tags(&body["tags"]), Value::Null);
    world.count = world.count.max(id);
    world.things.insert(("volume", id), body);
    task(world, "OK")
}

fn disk(holder: u64) -> String {
    format!("lvm:vm-{holder}-disk-0")
}

fn of_holder(call: &Call, world: &mut World, id: u64, parts: &[&str]) -> Reply {
    let (asked, one) = (call.json(), world.things.get_mut(&("volume", id)).unwrap());
    match (call.method.as_str(), parts) {
        ("GET", ["config"]) => {
            let place = if one["scsi0"].is_string() { "scsi0" } else { "unused0" };
            ok(&json!({"name": one["name"], "memory": "16", place: disk(id)}))
        }
        ("PUT", ["config"]) => {
            if asked["delete"] == "scsi0" {
                assert_ne!(one["protection"], true, "it is protected");
                one["scsi0"] = Value::Null;
            }
            if asked["tags"].is_string() {
                one["tags"] = tags(&asked["tags"]);
            }
            one["protection"] = asked["protection"].clone();
            ok(&Value::Null)
        }
        ("DELETE", []) if one["protection"] == true => refused("can't remove VM - protection mode enabled"),
        ("DELETE", []) => {
            assert!(one["server"].is_null(), "somebody uses its disk");
            world.things.remove(&("volume", id));
            task(world, "OK")
        }
        what => panic!("{what:?}"),
    }
}

/// A disk that a machine does not own is plugged into it, or out of it.
fn plug(asked: &Value, world: &mut World, id: u64) -> Option<Reply> {
    let places = disks(world, id);
    if let Some((_, volume)) = places.iter().find(|(place, _)| asked["delete"] == place.as_str()) {
        world.things.get_mut(&("volume", *volume)).unwrap()["server"] = Value::Null;
        return Some(ok(&Value::Null));
    }
    let disk = asked["scsi2"].as_str()?;
    let volume = disk.strip_prefix("lvm:vm-").unwrap().strip_suffix("-disk-0").unwrap().parse().unwrap();
    let one = world.things.get_mut(&("volume", volume)).unwrap();
    assert!(one["server"].is_null() && places.is_empty() && one["scsi0"].is_null(), "it is in use");
    one["server"] = json!(id);
    Some(ok(&Value::Null))
}

/// The places of the volumes that a machine has.
fn disks(world: &World, id: u64) -> Vec<(String, u64)> {
    let of = world.of("volume").filter(|(_, one)| one["server"] == id).map(|(volume, _)| volume);
    (2..).zip(of).map(|(n, volume)| (format!("scsi{n}"), volume)).collect()
}

fn tags(text: &Value) -> Value {
    json!(text.as_str().unwrap().split(';').collect::<Vec<_>>())
}

fn of_machine(call: &Call, world: &mut World, id: u64, parts: &[&str]) -> Reply {
    let body = call.json();
    let waits = match body["scsi1"].as_str() {
        Some(disk) => {
            json!({"image": image(&body), "user_data": drive(world, disk)["user_data"]})
        }
        _ => Value::Null,
    };
    if call.method == "PUT"
        && parts == ["config"]
        && let Some(done) = plug(&body, world, id)
    {
        return done;
    }
    let (slow, keeps_disks, disks) = (world.slow, world.keeps_disks, disks(world, id));
    let machine = world.machines.get_mut(&id).unwrap();
    // From here on it is one that was made.
    machine.body["whole"] = json!(true);
    match (call.method.as_str(), parts) {
        ("GET", ["config"]) => {
            let mut config = json!({"name": machine.body["name"]});
            for (place, volume) in disks {
                config[place] = json!(format!("{},size=20G", disk(volume)));
            }
            for n in 0..machine.body["unused"].as_u64().unwrap_or(0) {
                config[format!("unused{n}")] = json!(format!("lvm:vm-{id}-disk-{n}"));
            }
            return ok(&config);
        }
        ("PUT", ["resize"]) => assert_eq!(body, json!({"disk": "scsi0", "size": "25G"})),
        ("POST", ["config"]) if keeps_disks && waits.is_object() => {
            // The first of the two disks had room.
            machine.body["waits"] = waits;
            return task(world, "import failed: no space left on device");
        }
        ("POST" | "PUT", ["config"]) => {
            if body["tags"].is_string() {
                machine.body["tags"] = tags(&body["tags"]);
                return ok(&Value::Null);
            }
            if body["delete"].is_string() {
                machine.body["unused"] = json!(0);
                return task(world, "OK");
            }
            if body["revert"].is_string() {
                (machine.body["waits"], machine.body["unused"]) = (Value::Null, json!(1));
                return ok(&Value::Null);
            }
            if waits.is_object() {
                machine.body["waits"] = waits;
            }
            if machine.off {
                take(machine);
            }
        }
        ("POST", ["status", "stop"]) => machine.off = true,
        ("POST", ["status", "start"]) => {
            if !machine.off {
                return refused(&format!("VM {id} already running"));
            }
            take(machine);
            assert!(machine.body["unused"].as_u64().unwrap_or(0) == 0, "its old disks stay");
            (machine.off, machine.looked) = (false, 0);
        }
        ("DELETE", []) => {
            if !machine.off {
                return refused(&format!("VM {id} is running - destroy failed"));
            }
            assert!(slow > 0 && call.asked("purge") == Some("1"));
            (machine.going, machine.looked) = (true, 0);
        }
        what => panic!("{what:?}"),
    }
    task(world, "OK")
}

/// What waited takes its place, and what was there stays without one.
fn take(machine: &mut Machine) {
    let waits = machine.body["waits"].take();
    if let Some(image) = waits["image"].as_str() {
        machine.rebuild(image);
        machine.body["user_data"] = waits["user_data"].clone();
        machine.body["unused"] = json!(machine.body["unused"].as_u64().unwrap_or(0) + 2);
    }
}

fn task(world: &mut World, end: &str) -> Reply {
    let id = format!("UPID:pve:{:08X}:", world.operations.len() + 1);
    world.operations.insert(id.clone(), json!({"end": end}));
    ok(&json!(id))
}

fn ok(data: &Value) -> Reply {
    Reply::json(200, &json!({"data": data}))
}

fn refused(message: &str) -> Reply {
    Reply::json(500, &json!({"data": null, "message": format!("{message}\n")}))
}
