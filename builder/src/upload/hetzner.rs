//! Hetzner Cloud: snapshots, each of the disk of a server that is there for that alone.
//! <https://docs.hetzner.cloud/reference/cloud>
//!
//! Hetzner imports nothing. So a server is made and started in the rescue system, which writes the image on its disk
//! ([`super::rescue`]) and says what stands there then; the snapshot is of that disk. Server and key are removed.

use super::api::Api;
use super::rescue::{Keys, Rescue, Writer};
use super::settings::{self, Environment};
use super::{Leftover, Local, PREFIX, Provider, Remote, State, Temporaries, adopt, broken, may_be_done};
use crate::image::output::Format;
use crate::web::{Client, Request, escape};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;

const API: &str = "https://api.hetzner.cloud/v1";
const EVERY: Duration = Duration::from_secs(3);
/// A snapshot of an image takes minutes.
const LIMIT: Duration = Duration::from_secs(3600);
/// How long it may be at work on something that is to be removed.
const LOCKED: Duration = Duration::from_secs(900);
/// The rescue system is there after a minute.
const BOOT: Duration = Duration::from_secs(600);
/// The system that a server has before its disk is written, and that is never started.
const FIRST_SYSTEM: &str = "debian-12";

/// A project, and what servers are made of.
#[derive(Debug)]
pub struct Hetzner {
    api: Api,
    location: Option<String>,
    server_type: String,
    writer: Box<dyn Writer>,
    temporaries: Temporaries,
}

impl Hetzner {
    /// The project of `HCLOUD_TOKEN`. A snapshot is there in all locations; its server is in this one, or where
    /// Hetzner likes. Machines that are made of it have at least the disk of `server_type`.
    ///
    /// # Errors
    /// There is no token.
    pub fn new(client: &Client, env: Environment<'_>, location: Option<&str>, server_type: &str) -> Result<Hetzner> {
        let api = project(client, env)?;
        let writer = Box::new(Rescue {
            port: 22,
            user: "root".into(),
            sshd: "/usr/sbin/sshd".into(),
            user_data: "http://169.254.169.254/hetzner/v1/userdata".into(),
            disk: "/dev/sda".into(),
            boot: BOOT,
        });
        let temporaries = Temporaries::default();
        Ok(Hetzner {
            api,
            location: location.map(str::to_string),
            server_type: server_type.into(),
            writer,
            temporaries,
        })
    }

    /// With another way to the disk.
    #[cfg(test)]
    pub(super) fn with_writer(mut self, writer: Box<dyn Writer>) -> Hetzner {
        self.writer = writer;
        self
    }

    /// Makes a thing with a name of its own, and notes it. Where the answer is lost it is looked for by its name.
    fn make(&self, kind: Kind, name: &str, body: &Value, would: &Value) -> Result<(u64, Value)> {
        let request = Request::post(self.api.url(kind.path)).json(body).hiding(false, true).would(201, would);
        let made = self.api.send(request).and_then(|answer| answer.expect(&[201])?.json());
        let made = made.or_else(|error| {
            if !may_be_done(&error) {
                return Err(error);
            }
            match self.all(&self.api.for_cleanup(), kind, &format!("name={name}")) {
                Ok(found) => found.into_iter().next().map(|one| json!({kind.key: one})).ok_or(error),
                Err(_) => Err(error.context(format!("whether {name} was made is not known; `kimg gc` finds it"))),
            }
        })?;
        let id = made[kind.key]["id"].as_u64().with_context(|| format!("the answer names no {}", kind.name))?;
        self.temporaries.add(kind.name, &id.to_string());
        Ok((id, made))
    }

    fn all(&self, api: &Api, kind: Kind, query: &str) -> Result<Vec<Value>> {
        pages(api, kind.path, kind.list, query)
    }

    /// Has something done with a server, which twice is as good as once, and waits for its end.
    fn act(&self, server: u64, what: &str, body: &Value) -> Result<()> {
        let request = Request::post(self.api.url(&format!("/servers/{server}/actions/{what}"))).repeatable(true);
        let request = if body.is_null() { request } else { request.json(body) };
        // The rescue system's password stands in the answer, and is not used.
        let would = json!({"action": {"id": 1, "status": "success"}});
        let answer = self.api.send(request.would(201, &would))?.expect(&[201])?.json()?;
        self.done(&answer["action"], &format!("'{what}' of the server {server}"))
    }

    fn done(&self, action: &Value, what: &str) -> Result<()> {
        done(&self.api, action, what)
    }

    /// Removes a thing, once Hetzner is no more at work on it.
    fn remove(&self, kind: Kind, id: &str) -> Result<()> {
        let api = self.api.for_cleanup();
        api.client().poll(&format!("removing the {} {id}", kind.name), EVERY, LOCKED, || {
            let request = Request::delete(api.url(&format!("{}/{id}", kind.path))).would(204, &Value::Null);
            let answer = api.send(request)?;
            if answer.status == 423 || answer.status == 409 {
                return Ok(None);
            }
            answer.expect(&[200, 204, 404]).map(|_| Some(()))
        })
    }

    /// A server in its rescue system, and where it is.
    fn server(&self, keys: &Keys) -> Result<(u64, IpAddr)> {
        let name = format!("kimg-upload-{:08x}", rand::random::<u32>());
        let labels = json!({"kimg": "upload"});
        let body = json!({"name": name, "public_key": keys.client, "labels": labels});
        let (key, _) = self.make(KEY, &name, &body, &json!({"ssh_key": {"id": 1}}))?;
        let mut body = json!({
            "name": name,
            "server_type": self.server_type,
            "image": FIRST_SYSTEM,
            "start_after_create": false,
            "ssh_keys": [name],
            "user_data": keys.user_data(),
            "labels": labels,
        });
        if let Some(location) = &self.location {
            body["location"] = json!(location);
        }
        let would = json!({"server": {"id": 1, "public_net": {"ipv4": {"ip": "192.0.2.1"}}},
            "action": {"id": 1, "status": "success"}});
        let (server, made) = self.make(SERVER, &name, &body, &would)?;
        let address = made["server"]["public_net"]["ipv4"]["ip"].as_str().and_then(|text| text.parse().ok());
        let address = address.with_context(|| format!("Hetzner names no address of the server {server}"))?;
        if made["action"].is_object() {
            self.done(&made["action"], &format!("making the server {server}"))?;
        } else {
            self.made(server)?;
        }
        self.act(server, "enable_rescue", &json!({"type": "linux64", "ssh_keys": [key]}))?;
        self.act(server, "poweron", &Value::Null)?;
        Ok((server, address))
    }

    /// Waits for a server of whose making no answer came.
    fn made(&self, server: u64) -> Result<()> {
        self.api.client().poll(&format!("making the server {server}"), EVERY, LIMIT, || {
            let request = Request::get(self.api.url(&format!("/servers/{server}")));
            let found = self.api.send(request)?.expect(&[200])?.json()?;
            Ok((found["server"]["status"] == "off").then_some(()))
        })
    }
}

/// The API of the project of `HCLOUD_TOKEN`.
///
/// # Errors
/// There is no token.
pub(crate) fn project(client: &Client, env: Environment<'_>) -> Result<Api> {
    let token = settings::need(env, "HCLOUD_TOKEN", "a token of the project that may read and write")?;
    Api::new(client, env, "HCLOUD_ENDPOINT", API, format!("Bearer {token}"))
}

/// All entries of the list `name` at `path`, of those that the query names.
///
/// # Errors
/// As [`Api::list`].
pub(crate) fn pages(api: &Api, path: &str, name: &str, query: &str) -> Result<Vec<Value>> {
    let query = if query.is_empty() { String::new() } else { format!("{query}&") };
    let page = |number: u64| format!("{path}?{query}per_page=50&page={number}");
    let next = |found: &Value| Some(api.url(&page(found["meta"]["pagination"]["next_page"].as_u64()?)));
    api.list(&page(1), name, |request| request, next)
}

/// Waits until an action has ended well.
///
/// # Errors
/// It has not.
pub(crate) fn done(api: &Api, action: &Value, what: &str) -> Result<()> {
    let id = action["id"].as_u64().context("the answer names no action")?;
    let mut known = action.clone();
    api.client().poll(what, EVERY, LIMIT, || {
        match known["status"].as_str() {
            Some("success") => return Ok(Some(())),
            Some("error") => bail!("{what}: {}", known["error"]["message"].as_str().unwrap_or("it failed")),
            Some("running") => {}
            other => bail!("{what}: its status is {other:?}, which Hetzner does not describe"),
        }
        let request = Request::get(api.url(&format!("/actions/{id}")));
        known = api.send(request)?.expect(&[200])?.json()?["action"].take();
        Ok((known["status"] == "success").then_some(()))
    })
}

/// What Hetzner calls a kind of thing, and what `kimg gc` does.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    path: &'static str,
    key: &'static str,
    list: &'static str,
}

const SERVER: Kind = Kind { name: "server", path: "/servers", key: "server", list: "servers" };
const KEY: Kind = Kind { name: "ssh-key", path: "/ssh_keys", key: "ssh_key", list: "ssh_keys" };
const IMAGE: Kind = Kind { name: "image", path: "/images", key: "image", list: "images" };

/// The name is the first word of the description: Hetzner's own `name` is for its systems only.
fn remote(image: &Value) -> Option<Remote> {
    let name = image["description"].as_str()?.split(' ').next()?;
    Some(Remote {
        id: image["id"].as_u64()?.to_string(),
        name: Some(name).filter(|name| name.starts_with(PREFIX))?.to_string(),
        state: state(image),
        created: image["created"].as_str().unwrap_or_default().to_string(),
    })
}

fn state(image: &Value) -> State {
    match image["status"].as_str().unwrap_or_default() {
        "available" => State::Ready,
        "creating" => State::Pending,
        other => State::Broken(format!("its status is '{other}'")),
    }
}

impl Provider for Hetzner {
    fn format(&self) -> Format {
        Format::RawZst
    }

    fn list(&self) -> Result<Vec<Remote>> {
        let query = format!("type=snapshot&label_selector={}", escape("kimg=image", true));
        Ok(self.all(&self.api, IMAGE, &query)?.iter().filter_map(remote).collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        let keys = Keys::new()?;
        let (server, address) = self.server(&keys)?;
        let client = self.api.client();
        if client.is_dry() {
            client.tell(&format!("ssh root@{address}: {} bytes for the server's disk", image.sum.size));
        } else {
            self.writer.write(address, &keys, client, image, bar)?;
        }
        // So that nothing of it changes while the snapshot is made.
        self.act(server, "poweroff", &Value::Null)?;
        let body = json!({
            "type": "snapshot",
            "description": format!("{} disk sha256 {}", image.name, image.disk_sha256),
            "labels": {"kimg": "image", "kimg-role": image.role},
        });
        let would = json!({"image": {"id": 1}, "action": {"id": 1, "status": "success"}});
        let request = Request::post(self.api.url(&format!("/servers/{server}/actions/create_image"))).json(&body);
        let made = self.api.send(request.would(201, &would)).and_then(|answer| {
            let made = answer.expect(&[201])?.json()?;
            Ok(made["image"]["id"].as_u64().context("the answer names no image")?.to_string())
        });
        made.or_else(|error| adopt(self, &image.name, error))
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        self.api.client().poll(&format!("the snapshot {id}"), EVERY, LIMIT, || {
            let request = Request::get(self.api.url(&format!("/images/{id}")));
            let answer = self.api.send(request.would(200, &json!({"image": {"status": "available"}})))?;
            if answer.status == 404 {
                bail!("Hetzner removed the snapshot {id}; it did not make one of {}", image.name);
            }
            match state(&answer.expect(&[200])?.json()?["image"]) {
                State::Ready => Ok(Some(())),
                State::Pending => Ok(None),
                State::Broken(why) => bail!("Hetzner made no snapshot of {}: {why}", image.name),
            }
        })
    }

    fn delete(&self, id: &str) -> Result<()> {
        self.remove(IMAGE, id)
    }

    fn tidy(&self) -> Result<()> {
        self.temporaries.clear(|leftover| self.discard(leftover))
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        let mut left = broken(self)?;
        let query = format!("label_selector={}", escape("kimg=upload", true));
        for kind in [SERVER, KEY] {
            let found = self.all(&self.api, kind, &query)?;
            let ids = found.iter().filter_map(|one| one["id"].as_u64());
            left.extend(ids.map(|id| Leftover { kind: kind.name.into(), id: id.to_string() }));
        }
        Ok(left)
    }

    fn discard(&self, leftover: &Leftover) -> Result<()> {
        let kind = [SERVER, KEY].into_iter().find(|kind| kind.name == leftover.kind).unwrap_or(IMAGE);
        self.remove(kind, &leftover.id)
    }
}
