//! What the registry holds, on the disk. Everything here waits for the disk.
//!
//! ```text
//! blobs/HEX       content by its SHA-256, manifests among it
//! manifests/HEX   that content is a manifest, of this media type
//! tags/NAME:TAG   HEX of a manifest; NAME is the repository with + for /
//! uploads/ID      what has come of a blob so far
//! ```
//!
//! A blob belongs to no repository: who may read one may read all. It gets its name when it is whole and durable, and a
//! tag is written when all that its manifest names is there. What no tag leads to is removed when room is needed.

use crate::names::{Digest, Reference};
use anyhow::{Context, Result};
use ring::rand::SecureRandom;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::fs::{DirEntry, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Of the disk, this much is left to the cluster's store, whatever the limit says.
const KEPT_FREE: u64 = 256 << 20;
/// What was sent and is in no image yet is kept this long: its push goes on, or is begun anew.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Types of manifests, and types of indexes.
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];

/// Why something is not done.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// By the distribution specification's code, and in words.
    #[error("{1}")]
    NotFound(&'static str, String),
    /// The same, of what the client sent.
    #[error("{1}")]
    Wrong(&'static str, String),
    #[error("{0}")]
    Full(String),
    /// An upload goes on at another byte.
    #[error("the upload has {0} bytes, and goes on there")]
    OutOfStep(u64),
    #[error("{0:#}")]
    Broken(anyhow::Error),
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Fault {
        Fault::Broken(error)
    }
}

/// A manifest and what it is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Vec<u8>,
}

/// What manifests and indexes name, as far as it matters here.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    media_type: Option<String>,
    config: Option<Part>,
    layers: Vec<Part>,
    manifests: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    digest: String,
}

/// The registry's content.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    limit: u64,
    /// What was sent or asked for by a push, and when, until a tag leads to it.
    fresh: Mutex<HashMap<Digest, Instant>>,
    /// One at a time adds a manifest or removes: what a manifest names must not go away while it is looked at.
    changing: Mutex<()>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// The content of a folder, which is made; `limit` is in bytes.
    pub(crate) fn open(dir: &Path, limit: u64) -> Result<Store> {
        for part in ["blobs", "manifests", "tags", "uploads"] {
            let path = dir.join(part);
            std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        }
        Ok(Store { dir: dir.to_owned(), limit, fresh: Mutex::default(), changing: Mutex::default() })
    }

    /// How much there is, in a line.
    pub(crate) fn summary(&self) -> Result<String> {
        let names = entries(&self.dir.join("tags"))?.len();
        Ok(format!("{names} images, {} of {} MiB", mib(self.used()?), mib(self.limit)))
    }

    fn at(&self, part: &str, name: &str) -> PathBuf {
        self.dir.join(part).join(name)
    }

    fn tag(&self, repository: &str, tag: &str) -> PathBuf {
        self.at("tags", &format!("{}:{tag}", repository.replace('/', "+")))
    }

    /// Where a blob lies, and its size.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<(PathBuf, u64), Fault> {
        let path = self.at("blobs", digest.hex());
        match std::fs::metadata(&path) {
            Ok(meta) => Ok((path, meta.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(Fault::NotFound("BLOB_UNKNOWN", format!("the registry has no {digest}")))
            }
            Err(error) => Err(anyhow::Error::new(error).context(format!("reading {}", path.display())).into()),
        }
    }

    /// The same for a push, which will not send what is there: it stays for a while.
    pub(crate) fn blob_for_push(&self, digest: &Digest) -> Result<(PathBuf, u64), Fault> {
        let _changing = held(&self.changing);
        let found = self.blob(digest)?;
        held(&self.fresh).insert(digest.clone(), Instant::now());
        Ok(found)
    }

    /// What a name stands for.
    pub(crate) fn manifest(&self, repository: &str, reference: &Reference) -> Result<Manifest, Fault> {
        let unknown = |what: &str| {
            let why = format!("the registry has no {repository}{what}; `kimg push` brings it there");
            Fault::NotFound("MANIFEST_UNKNOWN", why)
        };
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(tag) => {
                let hex = read(&self.tag(repository, tag))?.ok_or_else(|| unknown(&format!(":{tag}")))?;
                Digest::of_hex(&hex).with_context(|| format!("the name {repository}:{tag} is damaged"))?
            }
        };
        let media_type = read(&self.at("manifests", digest.hex()))?.ok_or_else(|| unknown(&format!("@{digest}")))?;
        let (path, _) = self.blob(&digest)?;
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Manifest { digest, media_type, bytes })
    }

    /// All names: repository, tag.
    pub(crate) fn names(&self) -> Result<Vec<(String, String)>> {
        let mut names = Vec::new();
        for entry in entries(&self.dir.join("tags"))? {
            if let Some((repository, tag)) = entry.file_name().to_str().and_then(|name| name.rsplit_once(':')) {
                names.push((repository.replace('+', "/"), tag.to_owned()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Begins an upload.
    pub(crate) fn begin(&self) -> Result<String> {
        let mut random = [0u8; 16];
        ring::rand::SystemRandom::new().fill(&mut random).ok().context("the kernel gives no random numbers")?;
        let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.at("uploads", &id);
        File::create_new(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(id)
    }

    /// Where an upload lies, and how much has come.
    pub(crate) fn upload(&self, id: &str) -> Result<(PathBuf, u64), Fault> {
        let unknown = || Fault::NotFound("BLOB_UPLOAD_UNKNOWN", "there is no such upload; begin another".into());
        if id.len() != 32 || !id.bytes().all(|c| c.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let path = self.at("uploads", id);
        let meta = std::fs::metadata(&path).map_err(|_| unknown())?;
        Ok((path, meta.len()))
    }

    /// Gives up an upload.
    pub(crate) fn cancel(&self, id: &str) -> Result<(), Fault> {
        let (path, _) = self.upload(id)?;
        Ok(std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?)
    }

    /// Makes an upload a blob, if it is what the client says.
    pub(crate) fn finish(&self, id: &str, digest: &Digest) -> Result<(), Fault> {
        let (path, _) = self.upload(id)?;
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let found = sum(&file).with_context(|| format!("reading {}", path.display()))?;
        if found != *digest {
            std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            return Err(Fault::Wrong("DIGEST_INVALID", format!("what came is {found}, and should be {digest}")));
        }
        let _changing = held(&self.changing);
        settle(&file, &path, &self.at("blobs", digest.hex()))?;
        held(&self.fresh).insert(digest.clone(), Instant::now());
        Ok(())
    }

    /// Takes a manifest whose parts are there.
    pub(crate) fn put_manifest(
        &self,
        repository: &str,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, Fault> {
        let digest = Digest::of(bytes);
        if matches!(reference, Reference::Digest(said) if *said != digest) {
            return Err(Fault::Wrong("DIGEST_INVALID", format!("what came is {digest}")));
        }
        self.make_room(bytes.len() as u64)?;
        let _changing = held(&self.changing);
        for (part, folder) in parts_of(media_type, bytes)? {
            if !self.at(folder, part.hex()).exists() {
                let why = format!("the manifest names {part}, which the registry has not; push the image again");
                return Err(Fault::Wrong("MANIFEST_BLOB_UNKNOWN", why));
            }
        }
        self.write("blobs", digest.hex(), bytes)?;
        self.write("manifests", digest.hex(), media_type.as_bytes())?;
        match reference {
            Reference::Digest(_) => {
                held(&self.fresh).insert(digest.clone(), Instant::now());
            }
            Reference::Tag(tag) => {
                let name = self.tag(repository, tag);
                let name = name.file_name().and_then(|name| name.to_str()).context("a tag without a name")?;
                self.write("tags", name, digest.hex().as_bytes())?;
                let reached = self.reached([digest.clone()])?;
                held(&self.fresh).retain(|fresh, _| !reached.contains(fresh));
            }
        }
        Ok(digest)
    }

    /// Removes a tag, or all tags of a manifest, and what nothing leads to any more.
    pub(crate) fn remove(&self, repository: &str, reference: &Reference) -> Result<(), Fault> {
        // What is not there is said to be unknown.
        let digest = self.manifest(repository, reference)?.digest;
        let changing = held(&self.changing);
        for (known, tag) in self.names()?.into_iter().filter(|(known, _)| known == repository) {
            let path = self.tag(&known, &tag);
            let meant = match reference {
                Reference::Tag(wanted) => tag == *wanted,
                Reference::Digest(_) => read(&path)?.is_some_and(|hex| hex == digest.hex()),
            };
            if meant {
                std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        drop(changing);
        Ok(self.collect()?)
    }

    /// Makes sure that so many bytes more may be written.
    pub(crate) fn make_room(&self, bytes: u64) -> Result<(), Fault> {
        if self.lack(bytes)?.is_none() {
            return Ok(());
        }
        self.collect()?;
        self.lack(bytes)?.map_or(Ok(()), |why| Err(Fault::Full(why)))
    }

    /// Why so many bytes more have no room.
    fn lack(&self, bytes: u64) -> Result<Option<String>> {
        let (used, way_out) = (self.used()?, "`kimg registry rm` removes images");
        if used.saturating_add(bytes) > self.limit {
            return Ok(Some(format!(
                "the registry is full: it holds {} of its {} MiB, and {} MiB would come to it; {way_out}, and \
                 [registry] size in cluster.toml is the limit",
                mib(used),
                mib(self.limit),
                mib(bytes)
            )));
        }
        let disk = rustix::fs::statvfs(&self.dir).with_context(|| format!("looking at {}", self.dir.display()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        Ok((free < bytes.saturating_add(KEPT_FREE)).then(|| {
            format!(
                "the master's disk is full: {} MiB are free, of which {} MiB are the cluster's store's; {way_out}",
                mib(free),
                mib(KEPT_FREE)
            )
        }))
    }

    fn used(&self) -> Result<u64> {
        let mut bytes = 0u64;
        for part in ["blobs", "uploads"] {
            // One that has just gone counts nothing.
            let sizes = entries(&self.dir.join(part))?.into_iter().filter_map(|entry| entry.metadata().ok());
            bytes += sizes.map(|meta| meta.len()).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Removes what neither a tag nor a push that may still go on leads to.
    fn collect(&self) -> Result<()> {
        let _changing = held(&self.changing);
        for entry in entries(&self.dir.join("uploads"))? {
            let changed = entry.metadata().and_then(|meta| meta.modified());
            if changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > PATIENCE)) {
                remove_if_there(&entry.path())?;
            }
        }
        held(&self.fresh).retain(|_, since| since.elapsed() < PATIENCE);
        let mut roots: Vec<Digest> = held(&self.fresh).keys().cloned().collect();
        for entry in entries(&self.dir.join("tags"))? {
            let hex = read(&entry.path())?.unwrap_or_default();
            roots.push(Digest::of_hex(&hex).with_context(|| format!("{} is damaged", entry.path().display()))?);
        }
        let reached = self.reached(roots)?;
        // The mark first: a manifest that is left without one is a blob, and goes the next time.
        for part in ["manifests", "blobs"] {
            for entry in entries(&self.dir.join(part))? {
                let digest = entry.file_name().to_str().and_then(Digest::of_hex);
                if digest.is_none_or(|digest| !reached.contains(&digest)) {
                    remove_if_there(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// All that these lead to, and they themselves.
    fn reached(&self, roots: impl IntoIterator<Item = Digest>) -> Result<HashSet<Digest>> {
        let mut open: Vec<Digest> = roots.into_iter().collect();
        let mut reached = HashSet::new();
        while let Some(digest) = open.pop() {
            if !reached.insert(digest.clone()) {
                continue;
            }
            let Some(media_type) = read(&self.at("manifests", digest.hex()))? else { continue };
            let path = self.at("blobs", digest.hex());
            let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let parts = parts_of(&media_type, &bytes).with_context(|| format!("reading {}", path.display()))?;
            open.extend(parts.into_iter().map(|(part, _)| part));
        }
        Ok(reached)
    }

    /// Writes a small file whole or not at all.
    fn write(&self, part: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = self.at("uploads", &self.begin()?);
        let mut file = File::create(&temporary).with_context(|| format!("making {}", temporary.display()))?;
        file.write_all(bytes).with_context(|| format!("writing {}", temporary.display()))?;
        settle(&file, &temporary, &self.at(part, name))
    }
}

/// Gives a file its name once it is durable.
fn settle(file: &File, from: &Path, to: &Path) -> Result<()> {
    file.sync_all().with_context(|| format!("making {} durable", from.display()))?;
    std::fs::rename(from, to).with_context(|| format!("naming {}", to.display()))?;
    let folder = to.parent().context("a file without a folder")?;
    File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("making {} durable", folder.display()))
}

/// What a manifest or an index names, each with the folder in which it must be.
pub fn parts_of(media_type: &str, bytes: &[u8]) -> Result<Vec<(Digest, &'static str)>, Fault> {
    let wrong = |why: String| Fault::Wrong("MANIFEST_INVALID", why);
    let document: Document = serde_json::from_slice(bytes).map_err(|error| wrong(format!("no manifest: {error}")))?;
    if document.media_type.is_some_and(|said| said != media_type) {
        return Err(wrong(format!("the manifest calls itself another type than {media_type}")));
    }
    let (parts, folder): (Vec<Part>, _) = if MANIFESTS.contains(&media_type) {
        (document.config.into_iter().chain(document.layers).collect(), "blobs")
    } else if INDEXES.contains(&media_type) {
        (document.manifests, "manifests")
    } else {
        return Err(wrong(format!("'{media_type}' is no type of a manifest")));
    };
    let digest = |part: Part| {
        let digest = Digest::parse(&part.digest).ok_or_else(|| wrong(format!("'{}' is no digest", part.digest)))?;
        Ok((digest, folder))
    };
    parts.into_iter().map(digest).collect()
}

fn sum(mut file: &File) -> std::io::Result<Digest> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_sum(context.finish().as_ref())),
            read => context.update(&buffer[..read]),
        }
    }
}

fn entries(dir: &Path) -> Result<Vec<DirEntry>> {
    std::fs::read_dir(dir).and_then(|list| list.collect()).with_context(|| format!("reading {}", dir.display()))
}

/// A small file's text, if there is one.
fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}
