//! S3-compatible object stores: as a place for images, and as the shelf from which other providers fetch them.
//!
//! Parts are signed with the sum of their bytes, so the store itself refuses a damaged one. An object's name holds
//! the sum of the disk: an upload that broke off goes on with the parts that are there.

use super::settings::{self, Environment};
use super::sigv4::{EMPTY, Signer, query};
use super::{Leftover, Local, PAGES, PREFIX, Provider, Remote, State, Temporaries, may_be_done};
use crate::cache::hash;
use crate::image::output::Format;
use crate::input;
use crate::web::{Answer, Client, Refused, Request, escape, trust};
use anyhow::{Context, Result, bail, ensure};
use http::Method;
use indicatif::ProgressBar;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Size of a part: at least 5 MiB by the protocol, and ten thousand of them are 160 GB.
const PART: u64 = 16 << 20;
const SUFFIX: &str = ".raw.zst";
/// Names of objects that are only there to be fetched begin so.
const SHELF: &str = "kimg-staging-";
/// How often a broken answer is asked for again.
const READS: u32 = 4;

/// A bucket.
#[derive(Debug, Clone)]
pub struct Bucket {
    client: Client,
    signer: Signer,
    endpoint: String,
    name: String,
    prefix: String,
    part: u64,
}

/// An upload that has begun.
struct Begun {
    id: String,
    /// Tags of the parts that are there, by number.
    parts: BTreeMap<u64, String>,
}

impl Bucket {
    /// The bucket with the credentials of AWS' own variables and file.
    ///
    /// # Errors
    /// There are none.
    pub fn open(
        client: &Client,
        env: Environment<'_>,
        name: &str,
        prefix: &str,
        endpoint: Option<&str>,
        region: Option<&str>,
    ) -> Result<Bucket> {
        let setting = |names: &[&str]| names.iter().find_map(|name| env(name));
        let region = region.map(str::to_string).or_else(|| setting(&["AWS_REGION", "AWS_DEFAULT_REGION"]));
        let region = region.unwrap_or_else(|| "us-east-1".into());
        let endpoint = endpoint.map(str::to_string).or_else(|| setting(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
        let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
        trust::check_address("the endpoint", &endpoint, "a key")?;
        let (key, secret, token) = credentials(env)?;
        let signer = Signer { key, secret, token, region, service: "s3" };
        let endpoint = endpoint.trim_end_matches('/').to_string();
        Ok(Bucket { client: client.clone(), signer, endpoint, name: name.into(), prefix: prefix.into(), part: PART })
    }

    /// The same bucket with parts of another size.
    #[cfg(test)]
    pub(super) fn with_parts_of(mut self, size: u64) -> Bucket {
        self.part = size;
        self
    }

    /// An object's address.
    pub fn url(&self, key: &str) -> String {
        format!("{}/{}/{}", self.endpoint, escape(&self.name, true), escape(key, false))
    }

    fn request(&self, method: Method, key: &str, pairs: &[(&str, &str)]) -> Request {
        let query = if pairs.is_empty() { String::new() } else { format!("?{}", query(pairs)) };
        Request::new(method, format!("{}{query}", self.url(key)))
    }

    fn send(&self, client: &Client, request: Request, headers: &[(&str, &str)], sum: &str) -> Result<Answer> {
        client.send(&self.signer.sign_each(request, headers, sum))
    }

    /// Puts a file there, in parts where it is large. What stays behind when it fails is in `temporaries`.
    ///
    /// # Errors
    /// The store refuses it, or has something else afterwards.
    pub fn put(
        &self,
        key: &str,
        file: &Path,
        sha256: &str,
        public: bool,
        temporaries: &Temporaries,
        bar: &ProgressBar,
    ) -> Result<()> {
        let size = std::fs::metadata(file).with_context(|| format!("reading {}", file.display()))?.len();
        let mut headers = vec![("x-amz-meta-sha256", sha256)];
        if public {
            headers.push(("x-amz-acl", "public-read"));
        }
        if size <= self.part {
            let bytes = part_of(file, 0, size)?;
            let sum = hash::hex_of(&bytes);
            let request = self.request(Method::PUT, key, &[]).bytes("application/octet-stream", bytes);
            let sent = self.send(&self.client, request.would(200, &Value::Null), &headers, &sum);
            let sent = sent.and_then(|answer| answer.expect(&[200]));
            if sent.as_ref().map_or_else(may_be_done, |_| true) {
                temporaries.add("object", key);
            }
            sent?;
            bar.inc(size);
        } else {
            self.put_parts(key, file, size, &headers, temporaries, bar)?;
        }
        match self.head(key, size, sha256)? {
            Some((found, sum)) if found == size && sum == sha256 => Ok(()),
            found => {
                bail!("{} is {found:?} after it was sent, and should have {size} bytes and {sha256}", self.url(key))
            }
        }
    }

    fn put_parts(
        &self,
        key: &str,
        file: &Path,
        size: u64,
        headers: &[(&str, &str)],
        temporaries: &Temporaries,
        bar: &ProgressBar,
    ) -> Result<()> {
        let mut begun = self.begin(key, headers)?;
        let note = format!("{key}?{}", begun.id);
        temporaries.add("upload", &note);
        for number in 1..=size.div_ceil(self.part) {
            let at = (number - 1) * self.part;
            let length = self.part.min(size - at);
            if !begun.parts.contains_key(&number) {
                let bytes = part_of(file, at, length)?;
                let sum = hash::hex_of(&bytes);
                let text = number.to_string();
                let pairs = [("partNumber", text.as_str()), ("uploadId", begun.id.as_str())];
                let request = self.request(Method::PUT, key, &pairs).bytes("application/octet-stream", bytes);
                let request = request.would(200, &Value::Null).would_header("etag", "\"ETAG\"");
                let answer = self.send(&self.client, request, &[], &sum)?.expect(&[200])?;
                let tag = answer.header("etag").context("the store gave a part no tag")?.to_string();
                begun.parts.insert(number, tag);
            }
            bar.inc(length);
        }
        let list: String = begun
            .parts
            .iter()
            .map(|(number, tag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", quoted(tag)))
            .collect();
        let body = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
        let sum = hash::hex_of(body.as_bytes());
        let request = self.request(Method::POST, key, &[("uploadId", &begun.id)]).bytes("application/xml", body);
        let ended = self.send(&self.client, request.would(200, &Value::Null), &[], &sum);
        match ended.and_then(|answer| answer.expect(&[200, 404])) {
            // Another kimg may have ended the upload. Its object is not ours to remove, and as good.
            Ok(answer) if answer.status == 404 => Ok(()),
            Ok(answer) => {
                // The store begins its answer before it knows how it ends.
                if String::from_utf8_lossy(&answer.body).contains("<Error>") {
                    return Err(answer.refused().into());
                }
                temporaries.keep(&note);
                temporaries.add("object", key);
                Ok(())
            }
            // Whether it was done is what the caller looks for; if not, there still is an upload to remove.
            Err(error) if may_be_done(&error) => {
                temporaries.add("object", key);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The upload of this key that has begun, or a new one.
    fn begin(&self, key: &str, headers: &[(&str, &str)]) -> Result<Begun> {
        let mut lost = None;
        for _ in 0..2 {
            if let Some((_, id)) = self.uploads(key)?.into_iter().find(|(known, _)| known == key) {
                let parts = self.parts(key, &id)?;
                return Ok(Begun { id, parts });
            }
            let request = self.request(Method::POST, key, &[("uploads", "")]);
            let request = request.would(200, &Value::String("<UploadId>UPLOAD</UploadId>".into()));
            let answer = self.send(&self.client, request, headers, EMPTY).and_then(|answer| answer.expect(&[200]));
            match answer {
                Ok(answer) => {
                    let text = String::from_utf8(answer.body).context("an answer is no text")?;
                    let id = elements(&text, "UploadId").into_iter().next().context("the store names no upload")?;
                    return Ok(Begun { id, parts: BTreeMap::new() });
                }
                Err(error) if may_be_done(&error) => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(lost.context("the store begins no upload")?)
    }

    /// Asks for all pages of a list, which is an element `root`: a proxy may answer in the store's place, and that is
    /// no empty list.
    fn pages(&self, root: &str, fixed: &[(&str, &str)], marks: &[(&str, &str)]) -> Result<Vec<String>> {
        let mut pages: Vec<String> = Vec::new();
        let mut next: Vec<(String, String)> = Vec::new();
        loop {
            let pairs = fixed.iter().map(|(k, v)| (*k, *v)).chain(next.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            let pairs: Vec<(&str, &str)> = pairs.collect();
            let request = self.request(Method::GET, "", &pairs).would(200, &Value::String(format!("<{root}>")));
            let answer = self.send(&self.client, request, &[], EMPTY)?.expect(&[200])?;
            let text = String::from_utf8(answer.body).context("an answer is no text")?;
            ensure!(
                text.contains(&format!("<{root}")),
                "{} answers with no {root}, so what answers is no S3 store; check the endpoint, and what proxy is used",
                self.url("")
            );
            let more = elements(&text, "IsTruncated").first().is_some_and(|t| t == "true");
            next = marks
                .iter()
                .filter_map(|(element, parameter)| {
                    Some((parameter.to_string(), elements(&text, element).into_iter().next()?))
                })
                .collect();
            pages.push(text);
            if !more {
                return Ok(pages);
            }
            if next.is_empty() || pages.len() > PAGES as usize {
                bail!("{} lists without end", self.url(""));
            }
        }
    }

    /// Keys that begin so, with their sizes.
    ///
    /// # Errors
    /// The store cannot be asked.
    pub fn sizes(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        let one = |entry: String| {
            let key = first(&entry, "Key");
            let size = first(&entry, "Size").parse().with_context(|| format!("the list has no size of {key}"))?;
            Ok((key, size))
        };
        self.entries(prefix)?.into_iter().map(one).collect()
    }

    /// Puts a file there that stays: when it fails, nothing is left of it.
    ///
    /// # Errors
    /// The store refuses it, or has something else afterwards.
    pub fn keep(&self, key: &str, file: &Path, sha256: &str) -> Result<()> {
        let temporaries = Temporaries::default();
        let put = self.put(key, file, sha256, false, &temporaries, &ProgressBar::hidden());
        if let Err(error) = put {
            return match temporaries.clear(|leftover| self.discard(leftover)) {
                Ok(()) => Err(error),
                Err(stays) => Err(error.context(format!("{stays:#}"))),
            };
        }
        temporaries.keep(key);
        Ok(())
    }

    /// An object that should have this many bytes.
    ///
    /// # Errors
    /// It cannot be read, or is longer or shorter.
    pub fn get(&self, key: &str, size: u64) -> Result<Vec<u8>> {
        let request = self.signer.sign_each(self.request(Method::GET, key, &[]), &[], EMPTY);
        let (answer, body) = self.client.open(&request)?;
        answer.expect(&[200])?;
        let mut bytes = Vec::new();
        body.take(size.saturating_add(1))
            .read_to_end(&mut bytes)
            .with_context(|| format!("reading {}", self.url(key)))?;
        ensure!(bytes.len() as u64 == size, "{} has not the {size} bytes that its list says", self.url(key));
        Ok(bytes)
    }

    /// Removes an object.
    ///
    /// # Errors
    /// The store refuses.
    pub fn remove(&self, key: &str) -> Result<()> {
        self.discard(&Leftover { kind: "object".into(), id: key.into() })
    }

    /// Keys that begin so, with their time.
    fn objects(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let entries = self.entries(prefix)?;
        Ok(entries.into_iter().map(|entry| (first(&entry, "Key"), first(&entry, "LastModified"))).collect())
    }

    /// What the store says of each object whose key begins so.
    fn entries(&self, prefix: &str) -> Result<Vec<String>> {
        let marks = [("NextContinuationToken", "continuation-token")];
        let pages = self.pages("ListBucketResult", &[("list-type", "2"), ("prefix", prefix)], &marks)?;
        let entries = pages.iter().flat_map(|page| elements(page, "Contents"));
        // A server that overlooks what was asked for lists what is not ours to remove.
        Ok(entries.filter(|entry| first(entry, "Key").starts_with(prefix)).collect())
    }

    /// Uploads that have begun: key and id.
    fn uploads(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let marks = [("NextKeyMarker", "key-marker"), ("NextUploadIdMarker", "upload-id-marker")];
        let fixed = [("uploads", ""), ("prefix", prefix)];
        let pages = match self.pages("ListMultipartUploadsResult", &fixed, &marks) {
            // A small store may keep no such list; then nothing that broke off is taken up again.
            Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 501) => Vec::new(),
            pages => pages?,
        };
        let entries = pages.iter().flat_map(|page| elements(page, "Upload"));
        let named = entries.map(|entry| (first(&entry, "Key"), first(&entry, "UploadId")));
        Ok(named.filter(|(key, _)| key.starts_with(prefix)).collect())
    }

    /// Tags of an upload's parts that have the size that they should have.
    fn parts(&self, key: &str, id: &str) -> Result<BTreeMap<u64, String>> {
        let request = self.request(Method::GET, key, &[("uploadId", id)]);
        let answer = self.send(&self.client, request, &[], EMPTY)?.expect(&[200])?;
        let text = String::from_utf8(answer.body).context("an answer is no text")?;
        let mut parts = BTreeMap::new();
        for part in elements(&text, "Part") {
            let number: u64 = first(&part, "PartNumber").parse().context("a part has no number")?;
            if first(&part, "Size") == self.part.to_string() {
                parts.insert(number, first(&part, "ETag"));
            }
        }
        Ok(parts)
    }

    /// Size and noted sum of an object; what a dry run would find.
    fn head(&self, key: &str, size: u64, sha256: &str) -> Result<Option<(u64, String)>> {
        let request = self.request(Method::HEAD, key, &[]);
        let request =
            request.would_header("content-length", &size.to_string()).would_header("x-amz-meta-sha256", sha256);
        let answer = self.send(&self.client, request, &[], EMPTY)?;
        if answer.status == 404 {
            return Ok(None);
        }
        let answer = answer.expect(&[200])?;
        let length = answer.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        Ok(Some((length, answer.header("x-amz-meta-sha256").unwrap_or_default().to_string())))
    }

    /// Reads an object to its end and sums it.
    fn sum_of(&self, key: &str, size: u64) -> Result<String> {
        let mut tries = 1;
        loop {
            let request = self.signer.sign_each(self.request(Method::GET, key, &[]), &[], EMPTY);
            let (answer, body) = self.client.open(&request)?;
            answer.expect(&[200])?;
            // One byte too many makes another sum; without an end to it, there would be none here.
            match hash::hex_of_reader(&mut body.take(size.saturating_add(1))) {
                Ok(sum) => return Ok(sum),
                Err(error) if tries == READS => return Err(error.context(format!("reading {} back", self.url(key)))),
                Err(_) => tries += 1,
            }
        }
    }

    /// Whether anybody can fetch an object as an importer does: HEAD, then GET.
    ///
    /// # Errors
    /// Nobody can, so that the provider could not.
    fn check_public(&self, key: &str, size: u64) -> Result<()> {
        let head = Request::new(Method::HEAD, self.url(key)).would_header("content-length", &size.to_string());
        let answer = self.client.send(&head)?;
        let get = Request::get(self.url(key)).header("range", "bytes=0-0").would(206, &Value::Null);
        let first = self.client.send(&get)?;
        let length = answer.header("content-length").and_then(|l| l.parse().ok());
        if answer.status != 200 || length != Some(size) || !matches!(first.status, 200 | 206) {
            bail!(
                "{} cannot be fetched without a password (HTTP {} and {}), so the provider could not, either; the bucket {} must allow public objects",
                self.url(key),
                answer.status,
                first.status,
                self.name
            );
        }
        Ok(())
    }

    /// Puts an image where anybody who knows its name can fetch it, under a name that nobody can guess and that ends
    /// in `file`. Its address; it is noted in `temporaries`.
    ///
    /// # Errors
    /// The store refuses it, or lets nobody fetch it.
    pub fn show(&self, file: &str, image: &Local, temporaries: &Temporaries, bar: &ProgressBar) -> Result<String> {
        let key = format!("{}{SHELF}{:032x}/{file}", self.prefix, rand::random::<u128>());
        self.put(&key, &image.path, &image.sum.sha256, true, temporaries, bar)?;
        self.check_public(&key, image.sum.size)?;
        Ok(self.url(&key))
    }

    /// What earlier runs left: uploads that never ended, and what stood on the shelf.
    ///
    /// # Errors
    /// The store cannot be asked.
    pub fn leftovers(&self) -> Result<Vec<Leftover>> {
        let uploads = self.uploads(&format!("{}{PREFIX}", self.prefix))?;
        let objects = self.objects(&format!("{}{SHELF}", self.prefix))?;
        let uploads =
            uploads.into_iter().map(|(key, id)| Leftover { kind: "upload".into(), id: format!("{key}?{id}") });
        let objects = objects.into_iter().map(|(key, _)| Leftover { kind: "object".into(), id: key });
        Ok(uploads.chain(objects).collect())
    }

    /// Removes an object or an upload.
    ///
    /// # Errors
    /// The store refuses.
    pub fn discard(&self, leftover: &Leftover) -> Result<()> {
        let (key, id) = match leftover.kind.as_str() {
            "upload" => leftover.id.rsplit_once('?').context("an upload is named by key and id")?,
            _ => (leftover.id.as_str(), ""),
        };
        let pairs: &[(&str, &str)] = if leftover.kind == "upload" { &[("uploadId", id)] } else { &[] };
        let request = self.request(Method::DELETE, key, pairs).would(204, &Value::Null);
        self.send(&self.client.for_cleanup(), request, &[], EMPTY)?.expect(&[200, 204, 404])?;
        Ok(())
    }
}

/// Access key, secret key and session token.
pub(super) fn credentials(env: Environment<'_>) -> Result<(String, String, Option<String>)> {
    if let Some(key) = settings::find(env, "AWS_ACCESS_KEY_ID")? {
        let secret = settings::need(env, "AWS_SECRET_ACCESS_KEY", "the secret key of AWS_ACCESS_KEY_ID")?;
        return Ok((key, secret, settings::find(env, "AWS_SESSION_TOKEN")?));
    }
    let file = match (env("AWS_SHARED_CREDENTIALS_FILE"), env("HOME")) {
        (Some(file), _) => PathBuf::from(file),
        (None, Some(home)) => Path::new(&home).join(".aws/credentials"),
        (None, None) => PathBuf::new(),
    };
    if !file.exists() {
        let why = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set, and there is no ~/.aws/credentials; set them, \
                   or let AWS_SHARED_CREDENTIALS_FILE name a file with them";
        return input::bad(why);
    }
    let profile = env("AWS_PROFILE").unwrap_or_else(|| "default".into());
    let text = settings::read_private(&file)?;
    let of_profile = text
        .split("\n[")
        .map(|part| part.trim_start_matches('['))
        .find_map(|part| part.split_once(']').filter(|(name, _)| name.trim() == profile));
    let of_profile = of_profile.with_context(|| format!("{} has no profile [{profile}]", file.display()))?.1;
    let value = |name: &str| {
        let lines = of_profile.lines().filter_map(|line| line.split_once('='));
        lines.map(|(k, v)| (k.trim(), v.trim())).find(|(k, _)| *k == name).map(|(_, v)| v.to_string())
    };
    let need = |name: &str| value(name).with_context(|| format!("[{profile}] in {} has no {name}", file.display()));
    Ok((need("aws_access_key_id")?, need("aws_secret_access_key")?, value("aws_session_token")))
}

fn part_of(file: &Path, at: u64, length: u64) -> Result<Vec<u8>> {
    let mut from = File::open(file).with_context(|| format!("opening {}", file.display()))?;
    let mut bytes = vec![0; usize::try_from(length)?];
    from.seek(SeekFrom::Start(at))
        .and_then(|_| from.read_exact(&mut bytes))
        .with_context(|| format!("reading {}", file.display()))?;
    Ok(bytes)
}

/// The text of all elements of this name, in the flat XML that AWS answers with.
pub(super) fn elements(xml: &str, name: &str) -> Vec<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = xml;
    let mut found = Vec::new();
    while let Some((_, after)) = rest.split_once(&open) {
        let Some((text, tail)) = after.split_once(&close) else { break };
        found.push(plain(text));
        rest = tail;
    }
    found
}

/// Text without XML's escapes, unless it holds elements.
pub(super) fn plain(text: &str) -> String {
    if text.contains('<') {
        return text.to_string();
    }
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#34;", "\"");
    text.replace("&apos;", "'").replace("&#39;", "'").replace("&amp;", "&")
}

/// The first element of this name; nothing where there is none.
fn first(xml: &str, name: &str) -> String {
    elements(xml, name).into_iter().next().unwrap_or_default()
}

fn quoted(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A bucket as the place where images are kept.
#[derive(Debug)]
pub struct Store {
    bucket: Bucket,
    temporaries: Temporaries,
}

impl Store {
    /// Images in this bucket.
    pub fn new(bucket: Bucket) -> Store {
        Store { bucket, temporaries: Temporaries::default() }
    }
}

impl Provider for Store {
    fn format(&self) -> Format {
        Format::RawZst
    }

    fn list(&self) -> Result<Vec<Remote>> {
        let objects = self.bucket.objects(&format!("{}{PREFIX}", self.bucket.prefix))?;
        let name = |key: &str| Some(key.strip_prefix(&self.bucket.prefix)?.strip_suffix(SUFFIX)?.to_string());
        let remote = |(key, created): (String, String)| {
            Some(Remote { name: name(&key).filter(|n| !n.contains('/'))?, id: key, state: State::Ready, created })
        };
        Ok(objects.into_iter().filter_map(remote).collect())
    }

    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String> {
        let key = format!("{}{}{SUFFIX}", self.bucket.prefix, image.name);
        self.bucket.put(&key, &image.path, &image.sum.sha256, false, &self.temporaries, bar)?;
        self.temporaries.keep(&key);
        Ok(key)
    }

    fn wait(&self, id: &str, image: &Local) -> Result<()> {
        if self.bucket.client.is_dry() {
            return Ok(());
        }
        let sum = self.bucket.sum_of(id, image.sum.size)?;
        if sum != image.sum.sha256 {
            bail!(
                "{} reads back with SHA-256 {sum}, and {} was sent; it is damaged",
                self.bucket.url(id),
                image.sum.sha256
            );
        }
        Ok(())
    }

    fn delete(&self, id: &str) -> Result<()> {
        self.bucket.discard(&Leftover { kind: "object".into(), id: id.into() })
    }

    fn tidy(&self) -> Result<()> {
        self.temporaries.clear(|leftover| self.bucket.discard(leftover))
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        self.bucket.leftovers()
    }

    fn discard(&self, leftover: &Leftover) -> Result<()> {
        self.bucket.discard(leftover)
    }
}
