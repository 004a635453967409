//! Vultr: snapshots, which it fetches by itself from a public address.
//! <https://www.vultr.com/api/#operation/create-snapshot-create-from-url>
//!
//! It takes the disk as it is, unpacked, from a shelf as DigitalOcean does, and says nothing of its content.
//! A snapshot is good in every region.

use super::api::Api;
use super::s3::Bucket;
use super::settings::{self, Environment};
use super::{Leftover, Local, PREFIX, Provider, Remote, State, Temporaries, adopt, broken};
use crate::image::output::Format;
use crate::web::{Client, Request, escape};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::time::Duration;

const API: &str = "https://api.vultr.com";
const EVERY: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(3600);

/// An account, and the shelf.
#[derive(Debug)]
pub struct Vultr {
    api: Api,
    shelf: Bucket,
    temporaries: Temporaries,
}

impl Vultr {
    /// The account of `VULTR_API_KEY`.
    ///
    /// # Errors
    /// There is no key.
    pub fn new(client: &Client, env: Environment<'_>, shelf: Bucket) -> Result<Vultr> {
        Ok(Vultr { api: account(client, env)?, shelf, temporaries: Temporaries::default() })
    }
}

/// The API of the account of `VULTR_API_KEY`.
///
/// # Errors
/// There is no key.
pub(crate) fn account(client: &Client, env: Environment<'_>) -> Result<Api> {
    let key = settings::need(env, "VULTR_API_KEY", "a key of the API that this machine's address may use")?;
    Api::new(client, env, "VULTR_API_URL", API, format!("Bearer {key}"))
}

/// All entries of the list `name` at `path`.
///
/// # Errors
/// As [`Api::list`].
pub(crate) fn pages(api: &Api, path: &str, name: &str) -> Result<Vec<Value>> {
    let next = |page: &Value| {
        let cursor = page["meta"]["links"]["next"].as_str().filter(|cursor| !cursor.is_empty())?;
        Some(api.url(&format!("{path}?per_page=500&cursor={}", escape(cursor, true))))
    };
    api.list(&format!("{path}?per_page=500"), name, |request| request, next)
}

/// A snapshot has no name: the description is it.
fn remote(snapshot: &Value) -> Option<Remote> {
    Some(Remote {
        id: snapshot["id"].as_str()?.to_string(),
        name: snapshot["description"].as_str().filter(|name| name.starts_with(PREFIX))?.to_string(),
        state: state(snapshot),
        created: snapshot["date_created"].as_str().unwrap_or_default().to_string(),
    })
}

fn state(snapshot: &Value) -> State {
    match snapshot["status"].as_str().unwrap_or_default() {
        "complete" => State::Ready,
        "pending" => State::Pending,
        other => State::Broken(format!("its status is '{other}'")),
    }
}

impl Provider for Vultr {
    fn format(&self) -> Format {
        Format::Raw
    }

    fn list(&self) -> Result<Vec<Remote>> {
        let snapshots = pages(&self.api, "/v2/snapshots", "snapshots")?;
        Ok(snapshots.iter().filter_map(remote).collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        let url = self.shelf.show(&format!("{}.raw", image.name), image, &self.temporaries, bar)?;
        let request = Request::post(self.api.url("/v2/snapshots/create-from-url"));
        let request = request.json(&json!({"url": url, "description": image.name}));
        let request = request.would(202, &json!({"snapshot": {"id": "SNAPSHOT"}}));
        let made = self.api.send(request).and_then(|answer| {
            let made = answer.expect(&[201, 202])?.json()?;
            Ok(made["snapshot"]["id"].as_str().context("the answer names no snapshot")?.to_string())
        });
        made.or_else(|error| adopt(self, &image.name, error))
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        self.api.client().poll(&format!("the import of {} as snapshot {id}", image.name), EVERY, LIMIT, || {
            let request = Request::get(self.api.url(&format!("/v2/snapshots/{id}")));
            let request = request.would(200, &json!({"snapshot": {"status": "complete"}}));
            let answer = self.api.send(request)?;
            if answer.status == 404 {
                bail!("Vultr removed the snapshot {id}; it could not import {}", image.name);
            }
            match state(&answer.expect(&[200])?.json()?["snapshot"]) {
                State::Ready => Ok(Some(())),
                State::Pending => Ok(None),
                State::Broken(why) => bail!("Vultr did not import {}: {why}", image.name),
            }
        })
    }

    fn delete(&self, id: &str) -> Result<()> {
        self.api.remove(&format!("/v2/snapshots/{id}"))
    }

    fn tidy(&self) -> Result<()> {
        self.temporaries.clear(|leftover| self.discard(leftover))
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        let mut all = self.shelf.leftovers()?;
        all.extend(broken(self)?);
        Ok(all)
    }

    fn discard(&self, leftover: &Leftover) -> Result<()> {
        if leftover.kind == "image" { self.delete(&leftover.id) } else { self.shelf.discard(leftover) }
    }
}
