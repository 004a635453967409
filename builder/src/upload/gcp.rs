//! Google Cloud: images of Compute Engine, each made of an archive in a bucket of Cloud Storage.
//! <https://cloud.google.com/compute/docs/reference/rest/v1/images/insert>
//!
//! The archive goes to the bucket in pieces, whose CRC32C Cloud Storage says in the end, and is removed when the image
//! has been made. Nobody but the project reads it.

use super::google::{Account, Compute, crc32c, endpoint};
use super::settings::Environment;
use super::{Leftover, Local, PREFIX, Provider, Remote, State, Temporaries, adopt, broken};
use crate::image::output::Format;
use crate::input;
use crate::web::{Client, Request, escape, trust};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde_json::{Value, json};
use std::time::Duration;

const STORAGE: &str = "https://storage.googleapis.com";
const EVERY: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(3600);
/// Pieces are multiples of 256 KiB by the protocol.
const PIECE: u64 = 16 << 20;
const _: () = assert!(PIECE.is_multiple_of(256 << 10));
/// How often a piece may bring nothing.
const STALLS: u32 = 5;
/// Names of archives begin so.
const STAGING: &str = "kimg-staging-";

/// A project and a bucket.
#[derive(Debug)]
pub struct Gcp {
    compute: Compute,
    storage: String,
    bucket: String,
    piece: u64,
    temporaries: Temporaries,
}

impl Gcp {
    /// The project of the key in `account`, or of `GOOGLE_CLOUD_PROJECT`.
    ///
    /// # Errors
    /// A variable names an address without TLS.
    pub fn new(env: Environment<'_>, account: Account, bucket: &str) -> Result<Gcp> {
        let compute = Compute::new(env, account)?;
        let (storage, temporaries) = (endpoint(env, "STORAGE", STORAGE)?, Temporaries::default());
        Ok(Gcp { compute, storage, bucket: bucket.into(), piece: PIECE, temporaries })
    }

    /// The same with pieces of another size.
    #[cfg(test)]
    pub(super) fn with_pieces_of(mut self, size: u64) -> Gcp {
        self.piece = size;
        self
    }

    fn client(&self) -> &Client {
        self.compute.account.client()
    }

    fn objects(&self) -> String {
        format!("{}/storage/v1/b/{}/o", self.storage, escape(&self.bucket, true))
    }

    fn object(&self, key: &str) -> String {
        format!("{}/{}", self.objects(), escape(key, true))
    }

    /// All entries of a list; an empty one is left out of the answer.
    fn pages(&self, first: &str) -> Result<Vec<Value>> {
        let pages = self.compute.account.pages(first)?;
        Ok(pages.iter().flat_map(|page| page["items"].as_array().into_iter().flatten()).cloned().collect())
    }

    /// Size and CRC32C of an object; `sum` is what a dry run would find.
    fn find(&self, key: &str, size: u64, sum: &str) -> Result<Option<(u64, String)>> {
        let request = Request::get(self.object(key)).would(200, &json!({"size": size.to_string(), "crc32c": sum}));
        let answer = self.compute.account.send(self.client(), request)?;
        if answer.status == 404 {
            return Ok(None);
        }
        let found = answer.expect(&[200])?.json()?;
        let size = found["size"].as_str().and_then(|size| size.parse().ok()).context("the object has no size")?;
        Ok(Some((size, found["crc32c"].as_str().unwrap_or_default().to_string())))
    }

    /// Brings the archive into the bucket, unless it is there.
    fn stage(&self, key: &str, image: &Local, bar: &ProgressBar) -> Result<()> {
        let (size, sum) = (image.sum.size, crc32c(&image.path)?);
        let whole = Some((size, sum.clone()));
        self.temporaries.add("object", key);
        if !self.client().is_dry() && self.find(key, size, &sum)? == whole {
            return Ok(());
        }
        if !self.put(key, image, bar)? && !self.put(key, image, bar)? {
            bail!("Cloud Storage gave up the upload of {key} twice");
        }
        let found = self.find(key, size, &sum)?;
        if found != whole {
            bail!("Cloud Storage has {found:?} of {key}, and {size} bytes with CRC32C {sum} were sent; it is damaged");
        }
        Ok(())
    }

    /// Sends the archive piece by piece; false where the place for it was given up in between.
    fn put(&self, key: &str, image: &Local, bar: &ProgressBar) -> Result<bool> {
        let (bucket, size) = (escape(&self.bucket, true), image.sum.size);
        let key = escape(key, true);
        let url = format!("{}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&name={key}", self.storage);
        // A place that gets no bytes costs nothing, and is gone after a week.
        let request = Request::post(url).repeatable(true).json(&json!({"contentType": "application/gzip"}));
        let request = request.header("x-upload-content-length", size.to_string());
        let request = request.would(200, &Value::Null).would_header("location", "https://UPLOAD");
        let answer = self.compute.account.send(self.client(), request)?.expect(&[200])?;
        let place = answer.header("location").context("the answer names no place for the bytes")?.to_string();
        if !trust::is_safe(&place) {
            bail!("Cloud Storage names a place without TLS for the bytes");
        }
        let (mut at, mut stalls) = (0, 0);
        loop {
            let length = self.piece.min(size - at);
            // The address is the key: no token goes there, and it is not shown.
            let request = Request::put(&place).hiding(true, false);
            let request = request.file("application/gzip", &image.path, at, length, bar);
            let request = request.header("content-range", format!("bytes {at}-{}/{size}", at + length - 1));
            let answer = self.client().send(&request.would(200, &Value::Null))?;
            match answer.status {
                200 | 201 => return Ok(true),
                404 | 410 => return Ok(false),
                _ => {}
            }
            let answer = answer.expect(&[308])?;
            // What has come may be less than what was sent.
            let last = answer.header("range").and_then(|range| range.rsplit('-').next()?.parse::<u64>().ok());
            let next = last.map_or(0, |last| last + 1);
            stalls = if next > at { 0 } else { stalls + 1 };
            if next >= size || stalls > STALLS {
                bail!("Cloud Storage has taken {next} of {size} bytes and does not go on");
            }
            at = next;
        }
    }

    fn image(&self, id: &str) -> String {
        self.compute.url(&format!("global/images/{}", escape(id, true)))
    }
}

fn remote(image: &Value) -> Option<Remote> {
    let name = image["name"].as_str().filter(|name| name.starts_with(PREFIX))?.to_string();
    let created = image["creationTimestamp"].as_str().unwrap_or_default().to_string();
    Some(Remote { id: name.clone(), name, state: state(image), created })
}

fn state(image: &Value) -> State {
    match image["status"].as_str().unwrap_or_default() {
        "READY" => State::Ready,
        "PENDING" => State::Pending,
        other => State::Broken(format!("its status is '{other}'")),
    }
}

impl Provider for Gcp {
    fn format(&self) -> Format {
        Format::Gce
    }

    fn list(&self) -> Result<Vec<Remote>> {
        let filter = escape(&format!("name eq \"{PREFIX}.*\""), true);
        Ok(self
            .pages(&self.compute.url(&format!("global/images?maxResults=500&filter={filter}")))?
            .iter()
            .filter_map(remote)
            .collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        if image.name.len() > 63 {
            return input::bad(format!("{} is longer than the 63 characters that names have at Google", image.name));
        }
        let key = format!("{STAGING}{}.tar.gz", image.name);
        self.stage(&key, image, bar)?;
        let body = json!({
            "name": image.name,
            "description": format!("kimg {}, disk sha256 {}", image.role, image.disk_sha256),
            "rawDisk": {"source": format!("{}/{}/{key}", self.storage, self.bucket), "containerType": "TAR"},
            "guestOsFeatures": [{"type": "UEFI_COMPATIBLE"}, {"type": "GVNIC"}, {"type": "VIRTIO_SCSI_MULTIQUEUE"}],
            "architecture": "X86_64",
        });
        let request = Request::post(self.compute.url("global/images")).json(&body);
        let request = request.would(200, &json!({"name": "OPERATION"}));
        let made = self.compute.account.send(self.client(), request).and_then(|answer| answer.expect(&[200])?.json());
        let operation = match made {
            Ok(operation) => operation,
            Err(error) => return adopt(self, &image.name, error),
        };
        self.temporaries.add("image", &image.name);
        self.compute.done(self.client(), &operation, &format!("the import of {}", image.name))?;
        self.temporaries.keep(&image.name);
        Ok(image.name.clone())
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        self.client().poll(&format!("the image {id}"), EVERY, LIMIT, || {
            let request = Request::get(self.image(id)).would(200, &json!({"status": "READY"}));
            let answer = self.compute.account.send(self.client(), request)?;
            if answer.status == 404 {
                bail!("Google removed the image {id}; it did not take {}", image.name);
            }
            match state(&answer.expect(&[200])?.json()?) {
                State::Ready => Ok(Some(())),
                State::Pending => Ok(None),
                State::Broken(why) => bail!("Google did not take {}: {why}", image.name),
            }
        })
    }

    fn delete(&self, id: &str) -> Result<()> {
        let client = self.client().for_cleanup();
        let request = Request::delete(self.image(id)).would(200, &json!({"name": "OPERATION"}));
        let answer = self.compute.account.send(&client, request)?.expect(&[200, 404])?;
        if answer.status == 404 {
            return Ok(());
        }
        // Its name is free, and the archive below it unused, when this has ended.
        self.compute.done(&client, &answer.json()?, &format!("the removal of {id}"))
    }

    fn tidy(&self) -> Result<()> {
        self.temporaries.clear(|leftover| self.discard(leftover))
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        let objects = self.pages(&format!("{}?prefix={STAGING}", self.objects()))?;
        let objects = objects.iter().filter_map(|object| object["name"].as_str());
        let objects = objects.map(|name| Leftover { kind: "object".into(), id: name.to_string() });
        Ok(objects.chain(broken(self)?).collect())
    }

    fn discard(&self, leftover: &Leftover) -> Result<()> {
        if leftover.kind == "image" {
            return self.delete(&leftover.id);
        }
        let request = Request::delete(self.object(&leftover.id)).would(204, &Value::Null);
        self.compute.account.send(&self.client().for_cleanup(), request)?.expect(&[200, 204, 404])?;
        Ok(())
    }
}
