//! Hetzner Cloud, and the rescue systems of its servers.

use super::{Image, Server, Shared, World, held};
use crate::upload::Local;
use crate::upload::rescue::{Keys, Writer};
use crate::web::Client;
use crate::web::fake::{Call, Reply};
use anyhow::{Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::net::IpAddr;

pub(in super::super) fn answer(call: &Call, world: &mut World) -> Reply {
    if call.header("authorization") != "Bearer t0ken" {
        return error(401, "unauthorized");
    }
    let path = call.path.strip_prefix("/v1/").unwrap();
    let parts: Vec<&str> = path.split('/').collect();
    match (call.method.as_str(), &parts[..]) {
        ("GET", ["images"]) => {
            assert_eq!(call.asked("label_selector"), Some("kimg%3Dimage"));
            list(call, world, "images", world.images.iter().map(image).collect())
        }
        ("GET", ["servers"]) => list(call, world, "servers", world.servers.iter().map(server).collect()),
        ("GET", ["ssh_keys"]) => {
            let key = |(id, name): (&String, &String)| json!({"id": number(id), "name": name});
            list(call, world, "ssh_keys", world.keys.iter().map(key).collect())
        }
        ("POST", ["ssh_keys"]) => {
            let name = call.json()["name"].as_str().unwrap().to_string();
            if world.keys.values().any(|known| *known == name) {
                return error(409, "uniqueness_error");
            }
            let id = world.number();
            world.keys.insert(id.clone(), name.clone());
            Reply::json(201, &json!({"ssh_key": {"id": number(&id), "name": name}}))
        }
        ("POST", ["servers"]) => {
            let body = call.json();
            let text = |key: &str| body[key].as_str().unwrap().to_string();
            if world.servers.values().any(|known| known.name == text("name")) {
                return error(409, "uniqueness_error");
            }
            assert!(world.keys.values().any(|known| body["ssh_keys"] == json!([known])), "{body}");
            let id = world.number();
            let made = Server { name: text("name"), user_data: text("user_data"), ..Server::default() };
            world.servers.insert(id.clone(), made);
            let action = action(world);
            let made = server((&id, &world.servers[&id]));
            Reply::json(201, &json!({"server": made, "action": action, "next_actions": [], "root_password": null}))
        }
        ("GET", ["servers", id]) => match world.servers.get_key_value(*id) {
            Some(known) => Reply::json(200, &json!({"server": server(known)})),
            None => error(404, "not_found"),
        },
        ("POST", ["servers", id, "actions", what]) => {
            if !world.servers.contains_key(*id) {
                return error(404, "not_found");
            }
            act(call, world, id, what)
        }
        ("GET", ["actions", id]) => {
            let status = if world.refuses { "error" } else { "success" };
            let error = json!({"code": "action_failed", "message": "no rescue system today"});
            Reply::json(200, &json!({"action": {"id": number(id), "status": status, "error": error}}))
        }
        ("GET", ["images", id]) => {
            let slow = world.slow;
            let Some(known) = world.images.get_mut(*id) else { return error(404, "not_found") };
            known.asked += 1;
            if known.asked > slow {
                known.status = "available".into();
            }
            Reply::json(200, &json!({"image": image((&id.to_string(), &world.images[*id]))}))
        }
        ("DELETE", ["images", id]) => Reply::new(if world.images.remove(*id).is_some() { 204 } else { 404 }),
        ("DELETE", ["ssh_keys", id]) => Reply::new(if world.keys.remove(*id).is_some() { 204 } else { 404 }),
        ("DELETE", ["servers", id]) => {
            let Some(known) = world.servers.get_mut(*id) else { return error(404, "not_found") };
            if known.locked > 0 {
                known.locked -= 1;
                return error(423, "locked");
            }
            world.servers.remove(*id);
            Reply::json(200, &json!({"action": action(world)}))
        }
        what => panic!("{what:?}"),
    }
}

fn act(call: &Call, world: &mut World, id: &str, what: &str) -> Reply {
    let name = world.servers[id].name.clone();
    let known = world.servers.get_mut(id).unwrap();
    match what {
        "enable_rescue" => {
            let key = world.keys.iter().find(|(_, known)| **known == name).unwrap().0;
            assert_eq!(call.json()["ssh_keys"], json!([number(key)]));
            known.rescue = true;
        }
        // The rescue system is for the next start only.
        "poweron" if !known.runs => (known.runs, known.in_rescue, known.rescue) = (true, known.rescue, false),
        "poweron" => {}
        "poweroff" => known.runs = false,
        "create_image" => {
            assert!(!known.runs, "a snapshot of a server that runs");
            known.locked = 2;
            let description = call.json()["description"].as_str().unwrap().to_string();
            let image_id = world.number();
            let bytes = world.servers[id].disk.clone();
            let name = description.split(' ').next().unwrap().to_string();
            let made = Image { name, status: "creating".into(), bytes, ..Image::default() };
            world.images.insert(image_id.clone(), made);
            let action = action(world);
            let made = image((&image_id, &world.images[&image_id]));
            return Reply::json(201, &json!({"image": made, "action": action}));
        }
        what => panic!("{what}"),
    }
    let action = action(world);
    Reply::json(201, &json!({"action": action, "root_password": "unused"}))
}

/// An action at work: it has ended when it is asked for.
fn action(world: &mut World) -> Value {
    json!({"id": number(&world.number()), "status": "running", "progress": 0})
}

fn number(id: &str) -> u64 {
    id.parse().unwrap()
}

fn image((id, image): (&String, &Image)) -> Value {
    json!({"id": number(id), "type": "snapshot", "description": image.name, "status": image.status})
}

fn server((id, server): (&String, &Server)) -> Value {
    let status = if server.runs { "running" } else { "off" };
    json!({"id": number(id), "name": server.name, "status": status, "public_net": {"ipv4": {"ip": address(id)}}})
}

fn address(id: &str) -> String {
    format!("192.0.2.{id}")
}

/// One entry a page.
fn list(call: &Call, world: &World, name: &str, all: Vec<Value>) -> Reply {
    let wanted = call.asked("name");
    let all: Vec<Value> = all.into_iter().filter(|one| wanted.is_none_or(|name| one["name"] == name)).collect();
    let at: usize = call.asked("page").unwrap().parse().unwrap();
    let next = (world.endless || at < all.len()).then_some(at + 1);
    let page: Vec<&Value> = all.iter().skip(at - 1).take(1).collect();
    Reply::json(200, &json!({name: page, "meta": {"pagination": {"page": at, "next_page": next}}}))
}

fn error(status: u16, code: &str) -> Reply {
    Reply::json(status, &json!({"error": {"code": code, "message": code, "details": {}}}))
}

/// The way into a rescue system.
pub(in super::super) struct Disk(pub(in super::super) Shared);

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

impl Writer for Disk {
    fn write(&self, at: IpAddr, keys: &Keys, client: &Client, image: &Local, _: &ProgressBar) -> Result<()> {
        client.clock().check()?;
        let mut world = held(&self.0);
        let damages = world.damages;
        let (_, server) = world.servers.iter_mut().find(|(id, _)| address(id) == at.to_string()).unwrap();
        assert!(server.runs && server.in_rescue, "no rescue system");
        assert_eq!(server.user_data, keys.user_data());
        if damages {
            bail!("it is damaged");
        }
        server.disk = std::fs::read(&image.path)?;
        Ok(())
    }
}
