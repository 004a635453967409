//! DigitalOcean: custom images, which it fetches by itself from a public address.
//! <https://docs.digitalocean.com/reference/api/reference/images/>
//!
//! The image stands on a shelf (an object of an S3-compatible bucket, e.g. of Spaces, with a name that nobody can
//! guess) until the import has ended. DigitalOcean says nothing of the content that it took.

use super::api::Api;
use super::s3::Bucket;
use super::settings::{self, Environment};
use super::{Leftover, Local, PREFIX, Provider, Remote, State, Temporaries, adopt, broken};
use crate::image::output::Format;
use crate::web::{Client, Request};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::time::Duration;

const API: &str = "https://api.digitalocean.com";
const EVERY: Duration = Duration::from_secs(10);
/// Imports of small images take minutes; an hour is no import any more.
const LIMIT: Duration = Duration::from_secs(3600);

/// An account, a region, and the shelf.
#[derive(Debug)]
pub struct DigitalOcean {
    api: Api,
    region: String,
    shelf: Bucket,
    temporaries: Temporaries,
}

impl DigitalOcean {
    /// The account of `DIGITALOCEAN_TOKEN`.
    ///
    /// # Errors
    /// There is no token.
    pub fn new(client: &Client, env: Environment<'_>, region: &str, shelf: Bucket) -> Result<DigitalOcean> {
        let api = account(client, env, "a token with the scopes image:create, read and delete")?;
        Ok(DigitalOcean { api, region: region.into(), shelf, temporaries: Temporaries::default() })
    }
}

/// The API of the account of `DIGITALOCEAN_TOKEN`; `what` is what the token must be.
///
/// # Errors
/// There is no token.
pub(crate) fn account(client: &Client, env: Environment<'_>, what: &str) -> Result<Api> {
    let token = settings::need(env, "DIGITALOCEAN_TOKEN", what)?;
    Api::new(client, env, "DIGITALOCEAN_API_URL", API, format!("Bearer {token}"))
}

/// All entries of the list `name` at `path`.
///
/// # Errors
/// As [`Api::list`].
pub(crate) fn pages(api: &Api, path: &str, name: &str) -> Result<Vec<Value>> {
    let next = |page: &Value| page["links"]["pages"]["next"].as_str().map(str::to_string);
    api.list(path, name, |request| request, next)
}

fn remote(image: &Value) -> Option<Remote> {
    let name = image["name"].as_str()?.to_string();
    Some(Remote {
        id: image["id"].as_u64()?.to_string(),
        state: state(image),
        created: image["created_at"].as_str().unwrap_or_default().to_string(),
        name: Some(name).filter(|name| name.starts_with(PREFIX))?,
    })
}

fn state(image: &Value) -> State {
    match image["status"].as_str().unwrap_or_default() {
        "available" => State::Ready,
        "NEW" | "new" | "pending" => State::Pending,
        other => {
            let why = image["error_message"].as_str().filter(|m| !m.is_empty());
            State::Broken(why.map_or_else(|| format!("its status is '{other}'"), str::to_string))
        }
    }
}

impl Provider for DigitalOcean {
    fn format(&self) -> Format {
        Format::RawGz
    }

    fn list(&self) -> Result<Vec<Remote>> {
        let images = pages(&self.api, "/v2/images?private=true&per_page=200", "images")?;
        Ok(images.iter().filter_map(remote).collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        // The address ends in a file name that the importer knows.
        let url = self.shelf.show(&format!("{}.img.gz", image.name), image, &self.temporaries, bar)?;
        let body = json!({
            "name": image.name,
            "url": url,
            "region": self.region,
            "distribution": "Unknown",
            "description": format!("kimg {}, disk sha256 {}", image.role, image.disk_sha256),
            "tags": ["kimg"],
        });
        let request = Request::post(self.api.url("/v2/images")).json(&body);
        let request = request.would(202, &json!({"image": {"id": 1}}));
        let made = self.api.send(request).and_then(|answer| {
            let image = answer.expect(&[202])?.json()?;
            Ok(image["image"]["id"].as_u64().context("the answer names no image")?.to_string())
        });
        made.or_else(|error| adopt(self, &image.name, error))
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        self.api.client().poll(&format!("the import of {} as image {id}", image.name), EVERY, LIMIT, || {
            let request = Request::get(self.api.url(&format!("/v2/images/{id}")));
            let request = request.would(200, &json!({"image": {"status": "available"}}));
            let answer = self.api.send(request)?;
            if answer.status == 404 {
                bail!("DigitalOcean removed the image {id}; its importer did not take it");
            }
            match state(&answer.expect(&[200])?.json()?["image"]) {
                State::Ready => Ok(Some(())),
                State::Pending => Ok(None),
                State::Broken(why) => bail!("DigitalOcean did not import {}: {why}", image.name),
            }
        })
    }

    fn delete(&self, id: &str) -> Result<()> {
        self.api.remove(&format!("/v2/images/{id}"))
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
