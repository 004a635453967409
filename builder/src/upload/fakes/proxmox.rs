//! A node of Proxmox VE with one storage.

use super::{Image, Task, World};
use crate::cache::hash;
use crate::web::fake::{Call, Reply};
use serde_json::{Value, json};

const NODE: &str = "/api2/json/nodes/pve";

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.header("authorization") != "PVEAPIToken=kimg@pve!up=s3cr3t" {
        return Reply::new(401);
    }
    let path = call.path.strip_prefix(NODE).unwrap();
    if let Some(task) = path.strip_prefix("/tasks/") {
        let (task, _) = task.split_once('/').unwrap_or((task, ""));
        return answer_of_task(call, &task.replace("%3A", ":"), world);
    }
    let id = path.strip_prefix("/storage/local/content/local%3Aimport/").map(str::to_string);
    match (call.method.as_str(), id) {
        ("GET", None) => {
            let shown = |image: &Image| {
                let id = format!("local:import/{}.qcow2", image.name);
                json!({"volid": id, "format": "qcow2", "size": image.bytes.len(), "ctime": 1_800_000_000})
            };
            let files: Vec<Value> = world.images.values().map(shown).collect();
            Reply::json(200, &json!({"data": files}))
        }
        ("POST", None) => {
            let mut form = call.form();
            // A field behind the file does not count.
            let (_, file, bytes) = form.pop().unwrap();
            let field = |name: &str| form.iter().find(|(known, ..)| known == name).unwrap().2.clone();
            assert_eq!(field("checksum-algorithm"), b"sha256");
            let same = !world.refuses && field("checksum") == hash::hex_of(&bytes).as_bytes();
            let name = file.unwrap().strip_suffix(".qcow2").unwrap().to_string();
            let id = world.task();
            let image = same.then(|| (name.clone(), Image { name, bytes, ..Image::default() }));
            let end = if same { "OK" } else { "checksum mismatch: got 'x' != expect 'y'" };
            world.tasks.insert(id.clone(), Task { asked: 0, end: end.into(), image, ended: false });
            Reply::json(200, &json!({"data": id}))
        }
        ("DELETE", Some(id)) => {
            // What is not there cannot be removed, Proxmox says.
            if world.images.remove(id.strip_suffix(".qcow2").unwrap()).is_none() {
                return Reply::new(500);
            }
            let id = world.task();
            world.tasks.insert(id.clone(), Task { asked: 0, end: "OK".into(), image: None, ended: false });
            Reply::json(200, &json!({"data": id}))
        }
        (method, _) => panic!("{method}"),
    }
}

fn answer_of_task(call: &Call, id: &str, world: &mut World) -> Reply {
    let slow = world.slow;
    let Some(task) = world.tasks.get_mut(id) else { return Reply::new(500) };
    if call.method == "DELETE" {
        task.ended = true;
        task.image = None;
        return Reply::json(200, &json!({"data": null}));
    }
    task.asked += 1;
    if task.asked <= slow && !task.ended {
        return Reply::json(200, &json!({"data": {"status": "running", "upid": id}}));
    }
    task.ended = true;
    let reply = Reply::json(200, &json!({"data": {"status": "stopped", "exitstatus": task.end, "upid": id}}));
    world.images.extend(task.image.take());
    reply
}
