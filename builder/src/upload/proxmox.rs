//! Proxmox VE: a disk in the content `import` of a storage, from which machines are made by `import-from`.
//! <https://pve.proxmox.com/pve-docs/api-viewer/#/nodes/{node}/storage/{storage}/upload>
//!
//! Proxmox compares the SHA-256 of what came before it puts the file in its place, in a task of its own; the copy
//! into the place takes time, so the size of the file is looked at as well.

use super::api::Api;
use super::settings::{self, Environment};
use super::{Leftover, Local, PREFIX, Provider, Remote, State, Temporaries};
use crate::image::output::Format;
use crate::input;
use crate::web::{Answer, Client, Lost, Refused, Request, escape};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(3600);
/// How long a file may be too short: the last step is a copy.
const COPY: Duration = Duration::from_secs(900);
const SUFFIX: &str = ".qcow2";

/// The API of the server of `PROXMOX_URL`, which an authority of `PROXMOX_CA` may vouch for.
///
/// # Errors
/// A variable that is needed is missing, or the file cannot be read.
pub(crate) fn account(client: &Client, env: Environment<'_>) -> Result<Api> {
    if env("PROXMOX_URL").is_none() {
        return input::bad("PROXMOX_URL is not set; it is the server's address, e.g. https://pve.example:8006");
    }
    let id = settings::need(env, "PROXMOX_TOKEN_ID", "a token's name as USER@REALM!NAME")?;
    let secret = settings::need(env, "PROXMOX_TOKEN_SECRET", "the secret of PROXMOX_TOKEN_ID")?;
    let by = |client: &Client| Api::new(client, env, "PROXMOX_URL", "", format!("PVEAPIToken={id}={secret}"));
    // What is wrong with the address is said first.
    let api = by(client)?;
    match env("PROXMOX_CA") {
        Some(ca) => by(&client.trusting(ca.as_ref())?),
        None => Ok(api),
    }
}

/// Where something of a node is.
pub(crate) fn at(node: &str, path: &str) -> String {
    format!("/api2/json/nodes/{}{path}", escape(node, true))
}

/// The task that an answer names.
pub(crate) fn task(answer: &Answer) -> Result<String> {
    Ok(answer.json()?["data"].as_str().context("the answer names no task")?.to_string())
}

/// Waits for a task of a node.
pub(crate) fn done(api: &Api, node: &str, task: &str, what: &str) -> Result<()> {
    api.client().poll(what, EVERY, LIMIT, || {
        let request = Request::get(api.url(&at(node, &format!("/tasks/{}/status", escape(task, true)))));
        let request = request.would(200, &json!({"data": {"status": "stopped", "exitstatus": "OK"}}));
        let task = api.send(request)?.expect(&[200])?.json()?;
        match (task["data"]["status"].as_str(), task["data"]["exitstatus"].as_str()) {
            (Some("stopped"), Some("OK")) => Ok(Some(())),
            // So it ends when there is something to tell, too.
            (Some("stopped"), Some(end)) if end.starts_with("WARNINGS") => Ok(Some(())),
            (Some("stopped"), end) => bail!("{what} failed: {}", end.unwrap_or("Proxmox does not say why")),
            _ => Ok(None),
        }
    })
}

/// A storage of a node.
#[derive(Debug)]
pub struct Proxmox {
    api: Api,
    node: String,
    storage: String,
    temporaries: Temporaries,
}

impl Proxmox {
    /// The storage, by the server of `PROXMOX_URL` and a token of it.
    ///
    /// # Errors
    /// One that is needed is missing.
    pub fn new(client: &Client, env: Environment<'_>, node: &str, storage: &str) -> Result<Proxmox> {
        let api = account(client, env)?;
        Ok(Proxmox { api, node: node.into(), storage: storage.into(), temporaries: Temporaries::default() })
    }

    fn at(&self, path: &str) -> String {
        at(&self.node, path)
    }

    fn content(&self) -> String {
        self.at(&format!("/storage/{}", escape(&self.storage, true)))
    }

    /// Name, id, size and time of kimg's files.
    fn files(&self, api: &Api) -> Result<Vec<(Remote, u64)>> {
        let place = format!("{}/content?content=import", self.content());
        let all = api.list(&place, "data", |request| request, |_| None)?;
        let start = format!("{}:import/", self.storage);
        let file = |file: &Value| {
            let id = file["volid"].as_str()?;
            let name = id.strip_prefix(&start)?.strip_suffix(SUFFIX)?;
            let created = file["ctime"].as_i64().and_then(|time| jiff::Timestamp::from_second(time).ok());
            let remote = Remote {
                id: id.to_string(),
                name: Some(name).filter(|name| name.starts_with(PREFIX))?.to_string(),
                state: State::Ready,
                created: created.map(|time| time.to_string()).unwrap_or_default(),
            };
            Some((remote, file["size"].as_u64().unwrap_or(0)))
        };
        Ok(all.iter().filter_map(file).collect())
    }

    fn size_of(&self, api: &Api, id: &str) -> Result<Option<u64>> {
        Ok(self.files(api)?.into_iter().find(|(file, _)| file.id == id).map(|(_, size)| size))
    }

    /// Sends an image; the task that works on it.
    fn send(&self, image: &Local, name: &str, bar: &ProgressBar) -> Result<String> {
        let fields = [("content", "import"), ("checksum-algorithm", "sha256"), ("checksum", image.sum.sha256.as_str())];
        let request = Request::post(self.api.url(&format!("{}/upload", self.content())));
        let request = request.form(&fields, ("filename", name), &image.path, image.sum.size, bar);
        task(&self.api.send(request.would(200, &json!({"data": "UPID:TASK"})))?.expect(&[200])?)
    }
}

/// Whether an answer was lost, here or behind a gateway. HTTP 500 is what Proxmox itself says to what it refuses.
pub(crate) fn was_lost(error: &anyhow::Error) -> bool {
    let behind = |refused: &Refused| matches!(refused.status, 502..=504);
    error.chain().any(|e| e.is::<Lost>() || e.downcast_ref::<Refused>().is_some_and(behind))
}

impl Provider for Proxmox {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn list(&self) -> Result<Vec<Remote>> {
        Ok(self.files(&self.api)?.into_iter().map(|(file, _)| file).collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        let name = format!("{}{SUFFIX}", image.name);
        let id = format!("{}:import/{name}", self.storage);
        let mut task = self.send(image, &name, bar);
        // Twice is as good as once: the same bytes come to the same place.
        if task.as_ref().is_err_and(was_lost) {
            task = self.send(image, &name, bar);
        }
        let task = task?;
        self.temporaries.add("image", &id);
        self.temporaries.add("task", &task);
        done(&self.api, &self.node, &task, &format!("the import of {name}"))?;
        self.temporaries.keep(&task);
        self.temporaries.keep(&id);
        Ok(id)
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        if self.api.client().is_dry() {
            return Ok(());
        }
        self.api.client().poll(&format!("the copy of {id}"), EVERY, COPY, || match self.size_of(&self.api, id)? {
            Some(size) if size == image.sum.size => Ok(Some(())),
            Some(size) if size < image.sum.size => Ok(None),
            Some(size) => bail!("Proxmox has {size} bytes of {id}, and {} were sent", image.sum.size),
            None => bail!("Proxmox has no {id} any more"),
        })
    }

    fn delete(&self, id: &str) -> Result<()> {
        let api = self.api.for_cleanup();
        // Proxmox calls it a failure of its own when there is nothing to remove.
        if !api.client().is_dry() && self.size_of(&api, id)?.is_none() {
            return Ok(());
        }
        let path = format!("{}/content/{}", self.content(), escape(id, false));
        let request = Request::delete(api.url(&path)).would(200, &json!({"data": null}));
        let answer = api.send(request)?;
        if !answer.is_success() && self.size_of(&api, id)?.is_none() {
            return Ok(());
        }
        match answer.expect(&[200])?.json()?["data"].as_str() {
            Some(task) => done(&api, &self.node, task, &format!("the removal of {id}")),
            None => Ok(()),
        }
    }

    fn tidy(&self) -> Result<()> {
        self.temporaries.clear(|leftover| self.discard(leftover))
    }

    /// A task ends by itself, and what comes of it is an image or nothing.
    fn leftovers(&self) -> Result<Vec<Leftover>> {
        // "None" is what Proxmox says, and nobody else.
        self.files(&self.api)?;
        Ok(Vec::new())
    }

    fn discard(&self, leftover: &Leftover) -> Result<()> {
        if leftover.kind == "task" {
            return self.api.remove(&self.at(&format!("/tasks/{}", escape(&leftover.id, true))));
        }
        self.delete(&leftover.id)
    }
}
