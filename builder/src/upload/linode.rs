//! Linode (Akamai): private images, whose bytes go to an address that the API gives out.
//! <https://techdocs.akamai.com/linode-api/reference/post-upload-image>
//!
//! An image is first a slot that waits for its bytes, for a day. Its address is said once: a slot whose answer was
//! lost is of no use and is removed. Linode says nothing of the content that it took.

use super::api::Api;
use super::settings::{self, Environment};
use super::{Leftover, Local, PREFIX, Provider, Remote, State, Temporaries, broken, may_be_done};
use crate::image::output::Format;
use crate::input;
use crate::web::{Client, Request, escape, trust};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::time::Duration;

const API: &str = "https://api.linode.com";
const EVERY: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(3600);
/// The most that an image may have, unpacked and packed.
const UNPACKED: u64 = 6 << 30;
const PACKED: u64 = 5 << 30;

/// An account and a region.
#[derive(Debug)]
pub struct Linode {
    api: Api,
    region: String,
    temporaries: Temporaries,
}

impl Linode {
    /// The account of `LINODE_TOKEN`.
    ///
    /// # Errors
    /// There is no token.
    pub fn new(client: &Client, env: Environment<'_>, region: &str) -> Result<Linode> {
        let api = account(client, env, "a token with the scope images:read_write")?;
        Ok(Linode { api, region: region.into(), temporaries: Temporaries::default() })
    }

    /// Makes a slot: its id, and where its bytes go.
    fn slot(&self, image: &Local) -> Result<(String, String)> {
        let body = json!({
            "label": image.name.chars().take(50).collect::<String>(),
            "region": self.region,
            "description": format!("{} disk sha256 {}", image.name, image.disk_sha256),
            "cloud_init": true,
            "tags": ["kimg"],
        });
        let would = json!({"image": {"id": "private/1"}, "upload_to": "https://UPLOAD"});
        let request = Request::post(self.api.url("/v4/images/upload")).json(&body).would(200, &would);
        let made = self.api.send(request)?.expect(&[200])?.json()?;
        let id = made["image"]["id"].as_str().context("the answer names no image")?.to_string();
        self.temporaries.add("image", &id);
        let place = made["upload_to"].as_str().context("the answer names no place for the bytes")?.to_string();
        if !trust::is_safe(&place) {
            bail!("Linode names a place without TLS for the bytes");
        }
        Ok((id, place))
    }
}

/// The API of the account of `LINODE_TOKEN`; `what` is what the token must be.
///
/// # Errors
/// There is no token.
pub(crate) fn account(client: &Client, env: Environment<'_>, what: &str) -> Result<Api> {
    let token = settings::need(env, "LINODE_TOKEN", what)?;
    Api::new(client, env, "LINODE_URL", API, format!("Bearer {token}"))
}

/// All entries of the list at `path`; `dress` adds what each request needs besides.
///
/// # Errors
/// As [`Api::list`].
pub(crate) fn pages(api: &Api, path: &str, dress: impl Fn(Request) -> Request) -> Result<Vec<Value>> {
    let next = |page: &Value| {
        let (at, of) = (page["page"].as_u64()?, page["pages"].as_u64()?);
        (at < of).then(|| api.url(&format!("{path}?page_size=500&page={}", at + 1)))
    };
    api.list(&format!("{path}?page_size=500&page=1"), "data", dress, next)
}

/// The name is the first word of the description: a label has room for 50 characters only.
fn remote(image: &Value) -> Option<Remote> {
    let name = image["description"].as_str()?.split(' ').next()?;
    Some(Remote {
        id: image["id"].as_str()?.to_string(),
        name: Some(name).filter(|name| name.starts_with(PREFIX))?.to_string(),
        state: match image["status"].as_str().unwrap_or_default() {
            "available" => State::Ready,
            "creating" => State::Pending,
            // So it is called, too, while what came is looked at, which takes minutes.
            "pending_upload" => State::Broken("its bytes never came".into()),
            other => State::Broken(format!("its status is '{other}'")),
        },
        created: image["created"].as_str().unwrap_or_default().to_string(),
    })
}

impl Provider for Linode {
    fn format(&self) -> Format {
        Format::RawGz
    }

    fn list(&self) -> Result<Vec<Remote>> {
        let own = |request: Request| request.header("x-filter", r#"{"is_public":false}"#);
        let images = pages(&self.api, "/v4/images", own)?;
        Ok(images.iter().filter_map(remote).collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        if image.disk_size > UNPACKED || image.sum.size > PACKED {
            return input::bad(format!("{} is larger than the 6 GiB (5 GiB packed) that Linode takes", image.name));
        }
        let mut made = self.slot(image);
        if made.as_ref().is_err_and(may_be_done) {
            for lost in self.list()?.into_iter().filter(|known| known.name == image.name) {
                self.delete(&lost.id)?;
            }
            made = self.slot(image);
        }
        let (id, place) = made?;
        // The address is the key: no token goes there, and it is not shown.
        let request = Request::put(place).file("application/octet-stream", &image.path, 0, image.sum.size, bar);
        let request = request.hiding(true, false).would(200, &Value::Null);
        let answer = self.api.client().send(&request)?;
        answer.expect(&[200, 201, 204]).context("sending the bytes of the image")?;
        self.temporaries.keep(&id);
        Ok(id)
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        self.api.client().poll(&format!("the image {id}"), EVERY, LIMIT, || {
            let request = Request::get(self.api.url(&path(id))).would(200, &json!({"status": "available"}));
            let answer = self.api.send(request)?;
            if answer.status == 404 {
                bail!("Linode removed the image {id}; it did not take {}", image.name);
            }
            match answer.expect(&[200])?.json()?["status"].as_str().unwrap_or_default() {
                "available" => Ok(Some(())),
                "creating" | "pending_upload" => Ok(None),
                other => bail!("Linode did not take {}: its status is '{other}'", image.name),
            }
        })
    }

    fn delete(&self, id: &str) -> Result<()> {
        self.api.remove(&path(id))
    }

    fn tidy(&self) -> Result<()> {
        self.temporaries.clear(|leftover| self.delete(&leftover.id))
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        broken(self)
    }

    fn discard(&self, leftover: &Leftover) -> Result<()> {
        self.delete(&leftover.id)
    }
}

/// An image's id holds a slash.
fn path(id: &str) -> String {
    format!("/v4/images/{}", escape(id, true))
}
