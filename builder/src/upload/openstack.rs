//! OpenStack: images in Glance, by a token of Keystone (OVH's Public Cloud is this, too).
//! <https://docs.openstack.org/api-ref/image/v2/>
//!
//! The bytes go straight to Glance, which keeps their SHA-512; it is compared before the image counts.

use super::keystone::{Keystone, Service};
use super::settings::Environment;
use super::{Leftover, Local, PAGES, PREFIX, Provider, Remote, State, Temporaries, adopt};
use crate::image::output::Format;
use crate::web::{Answer, Client, Request};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::time::Duration;

const EVERY: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(3600);
const GIB: u64 = 1 << 30;

/// A project.
#[derive(Debug)]
pub struct OpenStack {
    client: Client,
    keystone: Keystone,
    temporaries: Temporaries,
}

impl OpenStack {
    /// The project of the variables that OpenStack's own client reads (`OS_…`).
    ///
    /// # Errors
    /// One that is needed is missing.
    pub fn new(client: &Client, env: Environment<'_>, region: Option<&str>) -> Result<OpenStack> {
        let keystone = Keystone::new(env, region)?;
        Ok(OpenStack { client: client.clone(), keystone, temporaries: Temporaries::default() })
    }

    /// Sends a request to Glance.
    fn send(&self, client: &Client, make: &dyn Fn(&str) -> Request) -> Result<Answer> {
        self.keystone.send(client, Service::Image, make)
    }

    fn images(&self) -> Result<Vec<Value>> {
        let (mut all, mut pages) = (Vec::new(), 0);
        let mut next = Some("/v2/images?tag=kimg&limit=100".to_string());
        while let Some(path) = next {
            let make = |glance: &str| Request::get(format!("{glance}{path}")).would(200, &json!({"images": []}));
            let page = self.send(&self.client, &make)?.expect(&[200])?.json()?;
            pages += 1;
            if pages > PAGES {
                bail!("Glance lists without end");
            }
            all.extend(page["images"].as_array().context("the answer has no list of images")?.iter().cloned());
            next = page["next"].as_str().map(str::to_string);
            if next.as_ref().is_some_and(|path| !path.starts_with("/v2/images?")) {
                bail!("Glance points elsewhere for its next page");
            }
        }
        Ok(all)
    }
}

fn state(image: &Value) -> State {
    match image["status"].as_str().unwrap_or_default() {
        "active" => State::Ready,
        "saving" | "uploading" | "importing" => State::Pending,
        "queued" => State::Broken("its bytes never came".into()),
        known @ ("killed" | "deleted" | "pending_delete") => State::Broken(format!("its status is '{known}'")),
        // Switched off for a while, or unknown: not ours to remove.
        _ => State::Pending,
    }
}

fn remote(image: &Value) -> Option<Remote> {
    let text = |key: &str| image[key].as_str().map(str::to_string);
    Some(Remote {
        id: text("id")?,
        name: text("name").filter(|name| name.starts_with(PREFIX))?,
        state: state(image),
        created: text("created_at").unwrap_or_default(),
    })
}

impl Provider for OpenStack {
    fn format(&self) -> Format {
        Format::Qcow2
    }

    fn list(&self) -> Result<Vec<Remote>> {
        Ok(self.images()?.iter().filter_map(remote).collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        let body = json!({
            "name": image.name,
            "disk_format": "qcow2",
            "container_format": "bare",
            "visibility": "private",
            "min_disk": image.disk_size.div_ceil(GIB),
            "tags": ["kimg"],
            "kimg_disk_sha256": image.disk_sha256,
        });
        let make = |glance: &str| {
            let would = json!({"id": "IMAGE", "status": "queued"});
            Request::post(format!("{glance}/v2/images")).json(&body).would(201, &would)
        };
        let made = self.send(&self.client, &make).and_then(|answer| {
            let made = answer.expect(&[201])?.json()?;
            Ok(made["id"].as_str().context("the answer names no image")?.to_string())
        });
        let id = made.or_else(|error| adopt(self, &image.name, error))?;
        self.temporaries.add("image", &id);
        let (size, kind) = (image.sum.size, "application/octet-stream");
        let make = |glance: &str| {
            let url = format!("{glance}/v2/images/{id}/file");
            Request::put(url).file(kind, &image.path, 0, size, bar).would(204, &Value::Null)
        };
        let answer = self.send(&self.client, &make)?;
        // 409: the bytes came with an earlier try whose answer was lost. What they are is looked at by `wait`.
        answer.expect(&[204, 409])?;
        self.temporaries.keep(&id);
        Ok(id)
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        let sha512 = image.sha512()?;
        self.client.poll(&format!("the image {id}"), EVERY, LIMIT, || {
            let make = |glance: &str| {
                let would = json!({"status": "active", "size": image.sum.size, "os_hash_algo": "sha512", "os_hash_value": sha512});
                Request::get(format!("{glance}/v2/images/{id}")).would(200, &would)
            };
            let found = self.send(&self.client, &make)?.expect(&[200])?.json()?;
            match state(&found) {
                State::Pending => return Ok(None),
                State::Broken(why) => bail!("Glance has not taken {}: {why}", image.name),
                State::Ready => {}
            }
            if found["size"] != image.sum.size {
                bail!("Glance has {} bytes of {}, and {} were sent", found["size"], image.name, image.sum.size);
            }
            match (found["os_hash_algo"].as_str(), found["os_hash_value"].as_str()) {
                (Some("sha512"), Some(sum)) if sum != sha512 => {
                    bail!("Glance has the SHA-512 {sum} of {}, and {sha512} was sent; it is damaged", image.name)
                }
                (Some("sha512"), Some(_)) => Ok(Some(())),
                (algorithm, _) => bail!("Glance keeps {algorithm:?} of {} and no SHA-512 to compare", image.name),
            }
        })
    }

    fn delete(&self, id: &str) -> Result<()> {
        let make = |glance: &str| Request::delete(format!("{glance}/v2/images/{id}")).would(204, &Value::Null);
        self.send(&self.client.for_cleanup(), &make)?.expect(&[204, 404])?;
        Ok(())
    }

    fn tidy(&self) -> Result<()> {
        self.temporaries.clear(|leftover| self.delete(&leftover.id))
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        // One whose bytes were on their way when Glance itself crashed is 'saving' for ever.
        let ends = |image: &Value| matches!(state(image), State::Broken(_)) || image["status"] == "saving";
        let left = self.images()?.into_iter().filter(ends).filter_map(|image| remote(&image));
        Ok(left.map(|image| Leftover { kind: "image".into(), id: image.id }).collect())
    }

    fn discard(&self, leftover: &Leftover) -> Result<()> {
        self.delete(&leftover.id)
    }
}
