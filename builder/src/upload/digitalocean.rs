//! DigitalOcean: custom images, which it fetches by itself from a public address.
//! <https://docs.digitalocean.com/reference/api/reference/images/>
//!
//! The image stands on a shelf (an object of an S3-compatible bucket, e.g. of Spaces, with a name that nobody can
//! guess) until the import has ended. DigitalOcean says nothing of the content that it took.

use super::s3::Bucket;
use super::settings::{self, Environment};
use super::{Leftover, Local, PAGES, PREFIX, Provider, Remote, State, Temporaries, adopt};
use crate::image::output::Format;
use crate::input;
use crate::web::{Answer, Client, Request, trust};
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
    client: Client,
    api: String,
    token: Token,
    region: String,
    shelf: Bucket,
    temporaries: Temporaries,
}

struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl DigitalOcean {
    /// The account of `DIGITALOCEAN_TOKEN`.
    ///
    /// # Errors
    /// There is no token.
    pub fn new(client: &Client, env: Environment<'_>, region: &str, shelf: Bucket) -> Result<DigitalOcean> {
        let token = settings::need(env, "DIGITALOCEAN_TOKEN", "a token with the scopes image:create, read and delete")?;
        let api = env("DIGITALOCEAN_API_URL").unwrap_or_else(|| API.into());
        if !trust::is_safe(&api) {
            return input::bad(format!("DIGITALOCEAN_API_URL is {api}; a token goes over https:// only"));
        }
        Ok(DigitalOcean {
            client: client.clone(),
            api: api.trim_end_matches('/').to_string(),
            token: Token(token),
            region: region.into(),
            shelf,
            temporaries: Temporaries::default(),
        })
    }

    fn send(&self, client: &Client, request: Request) -> Result<Answer> {
        client.send(&request.secret("authorization", format!("Bearer {}", self.token.0)))
    }

    fn images(&self) -> Result<Vec<Value>> {
        let (mut all, mut pages) = (Vec::new(), 0);
        let mut next = Some(format!("{}/v2/images?private=true&per_page=200", self.api));
        while let Some(url) = next {
            let request = Request::get(url).would(200, &json!({"images": []}));
            let page = self.send(&self.client, request)?.expect(&[200])?.json()?;
            pages += 1;
            if pages > PAGES {
                bail!("{} lists without end", self.api);
            }
            all.extend(page["images"].as_array().context("the answer has no list of images")?.iter().cloned());
            next = page["links"]["pages"]["next"].as_str().map(str::to_string);
            if next.as_ref().is_some_and(|url| !url.starts_with(&format!("{}/", self.api))) {
                bail!("{} points to another server for its next page", self.api);
            }
        }
        Ok(all)
    }
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
        Ok(self.images()?.iter().filter_map(remote).collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        // The address ends in a file name that the importer knows.
        let key = self.shelf.shelf_key(&format!("{}.img.gz", image.name));
        self.shelf.put(&key, &image.path, &image.sum.sha256, true, &self.temporaries, bar)?;
        self.shelf.check_public(&key, image.sum.size)?;
        let body = json!({
            "name": image.name,
            "url": self.shelf.url(&key),
            "region": self.region,
            "distribution": "Unknown",
            "description": format!("kimg {}, disk sha256 {}", image.role, image.disk_sha256),
            "tags": ["kimg"],
        });
        let request = Request::post(format!("{}/v2/images", self.api)).json(&body);
        let request = request.would(202, &json!({"image": {"id": 1}}));
        let made = self.send(&self.client, request).and_then(|answer| {
            let image = answer.expect(&[202])?.json()?;
            Ok(image["image"]["id"].as_u64().context("the answer names no image")?.to_string())
        });
        made.or_else(|error| adopt(self, &image.name, error))
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        self.client.poll(&format!("the import of {} as image {id}", image.name), EVERY, LIMIT, || {
            let request = Request::get(format!("{}/v2/images/{id}", self.api));
            let request = request.would(200, &json!({"image": {"status": "available"}}));
            let answer = self.send(&self.client, request)?;
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
        let request = Request::delete(format!("{}/v2/images/{id}", self.api)).would(204, &Value::Null);
        self.send(&self.client.for_cleanup(), request)?.expect(&[204, 404])?;
        Ok(())
    }

    fn tidy(&self) -> Result<()> {
        self.temporaries.clear(|leftover| self.discard(leftover))
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        let mut all = self.shelf.leftovers()?;
        let broken = self.list()?.into_iter().filter(|image| matches!(image.state, State::Broken(_)));
        all.extend(broken.map(|image| Leftover { kind: "image".into(), id: image.id }));
        Ok(all)
    }

    fn discard(&self, leftover: &Leftover) -> Result<()> {
        if leftover.kind == "image" { self.delete(&leftover.id) } else { self.shelf.discard(leftover) }
    }
}
