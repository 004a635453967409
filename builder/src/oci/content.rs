//! Images on this machine: an OCI layout in a folder or in an archive, or in memory.

use super::model::{CONTAINERD_NAME, Descriptor, Index, Manifest, REF_NAME};
use crate::cache::{self, hash};
use crate::input;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Manifests and configurations are small; what is larger is none.
const DOCUMENT_LIMIT: u64 = 16 << 20;
/// How deep indexes may stand within each other.
pub(super) const DEPTH: u32 = 4;
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Bytes named by their sum.
#[derive(Debug, Clone)]
pub enum Blob {
    /// In memory.
    Bytes(Arc<[u8]>),
    /// In a file without a name, which is gone when nobody holds it any more, and how long it is.
    Nameless(Arc<File>, u64),
    /// In a file.
    File {
        /// The file.
        path: PathBuf,
        /// Where the blob begins in it.
        offset: u64,
        /// How long it is.
        size: u64,
    },
}

impl Blob {
    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Blob::Bytes(bytes) => bytes.len() as u64,
            Blob::Nameless(_, size) => *size,
            Blob::File { size, .. } => *size,
        }
    }

    /// Reads it from its beginning.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(&self) -> Result<Box<dyn Read + '_>> {
        match self {
            Blob::Bytes(bytes) => Ok(Box::new(&bytes[..])),
            Blob::Nameless(file, size) => Ok(Box::new(ReadAt { file, at: 0 }.take(*size))),
            Blob::File { path, offset, size } => {
                let mut file = input::open(path)?;
                file.seek(SeekFrom::Start(*offset)).with_context(|| format!("reading {}", path.display()))?;
                Ok(Box::new(file.take(*size)))
            }
        }
    }
}

/// Reads a file that others read too, each at a place of its own.
struct ReadAt<'a> {
    file: &'a File,
    at: u64,
}

impl Read for ReadAt<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Images: what the layout's index names, and all blobs.
#[derive(Debug, Clone, Default)]
pub struct Content {
    /// What `index.json` names.
    pub entries: Vec<Descriptor>,
    blobs: BTreeMap<String, Blob>,
}

impl Content {
    /// Reads a layout: a folder, or a tar of one.
    ///
    /// # Errors
    /// [`input::BadInput`]: it is neither, or damaged.
    pub fn read(path: &Path) -> Result<Content> {
        let content = if path.is_dir() { Content::read_folder(path) } else { Content::read_archive(path) };
        content.or_else(|error| match error.is::<input::BadInput>() {
            true => Err(error),
            false => input::bad(format!("{}: {error:#}", path.display())),
        })
    }

    fn read_folder(folder: &Path) -> Result<Content> {
        let index = folder.join("index.json");
        if !index.exists() {
            bail!("the folder is no OCI layout: it has no index.json");
        }
        let index = input::bytes(&index, DOCUMENT_LIMIT)?;
        let mut content = Content { entries: Index::parse(&index)?.manifests, ..Content::default() };
        let blobs = folder.join("blobs/sha256");
        for entry in std::fs::read_dir(&blobs).with_context(|| format!("reading {}", blobs.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let size = entry.metadata()?.len();
            content.blobs.insert(format!("sha256:{name}"), Blob::File { path: entry.path(), offset: 0, size });
        }
        Ok(content)
    }

    fn read_archive(path: &Path) -> Result<Content> {
        let file = input::open(path)?;
        let mut content = Content::default();
        let mut index = None;
        for entry in tar::Archive::new(file).entries()? {
            let mut entry = entry.map_err(|_| anyhow!("the archive is damaged, or no tar"))?;
            let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_string();
            if name == "index.json" {
                let mut bytes = Vec::new();
                Read::by_ref(&mut entry).take(DOCUMENT_LIMIT).read_to_end(&mut bytes)?;
                index = Some(Index::parse(&bytes)?);
            } else if let Some(sum) = name.strip_prefix("blobs/sha256/").filter(|s| !s.is_empty()) {
                let blob = Blob::File { path: path.into(), offset: entry.raw_file_position(), size: entry.size() };
                content.blobs.insert(format!("sha256:{sum}"), blob);
            }
        }
        let Some(index) = index else {
            bail!("it is no OCI archive: it has no index.json; make one with `kimg build image`");
        };
        content.entries = index.manifests;
        Ok(content)
    }

    /// Adds bytes.
    pub fn put(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let descriptor = Descriptor::of(media_type, &bytes);
        self.blobs.insert(descriptor.digest.clone(), Blob::Bytes(bytes.into()));
        descriptor
    }

    /// Adds a document.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn put_json(&mut self, media_type: &str, document: &impl serde::Serialize) -> Result<Descriptor> {
        Ok(self.put(media_type, serde_json::to_vec(document).context("writing a document")?))
    }

    /// Adds a blob whose sum and size are known.
    pub fn put_blob(&mut self, digest: &str, blob: Blob) {
        self.blobs.insert(digest.to_string(), blob);
    }

    /// Takes over all blobs of another one.
    pub fn take_blobs(&mut self, other: &Content) {
        self.blobs.extend(other.blobs.iter().map(|(digest, blob)| (digest.clone(), blob.clone())));
    }

    /// The blob that a descriptor names.
    ///
    /// # Errors
    /// It is not there, or has another size.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<&Blob> {
        descriptor.sha256()?;
        let blob = self.blobs.get(&descriptor.digest);
        let blob = blob.with_context(|| format!("the blob {} is missing", descriptor.digest))?;
        if blob.size() != descriptor.size {
            let (digest, size) = (&descriptor.digest, descriptor.size);
            return input::bad(format!("the blob {digest} has {} bytes and should have {size}", blob.size()));
        }
        Ok(blob)
    }

    /// Reads a blob's every byte and compares its sum.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn verify(&self, descriptor: &Descriptor) -> Result<&Blob> {
        let blob = self.blob(descriptor)?;
        let found = hash::hex_of_reader(&mut *blob.open()?)?;
        if found != descriptor.sha256()? {
            return input::bad(format!("the blob {} has the sum {found}: it is damaged", descriptor.digest));
        }
        Ok(blob)
    }

    /// A document's bytes, checked.
    ///
    /// # Errors
    /// It is missing, damaged or far too long.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > DOCUMENT_LIMIT {
            bail!("the document {} has {} bytes, which is too long for one", descriptor.digest, descriptor.size);
        }
        let mut bytes = Vec::new();
        self.verify(descriptor)?.open()?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Everything that `root` needs, what is needed before what needs it, nothing twice.
    ///
    /// # Errors
    /// A document is missing or damaged.
    pub fn reach(&self, root: &Descriptor) -> Result<Vec<Descriptor>> {
        let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
        self.reach_into(root, 0, &mut found, &mut seen)?;
        Ok(found)
    }

    fn reach_into(
        &self,
        from: &Descriptor,
        depth: u32,
        found: &mut Vec<Descriptor>,
        seen: &mut BTreeSet<String>,
    ) -> Result<()> {
        if !seen.insert(from.digest.clone()) {
            return Ok(());
        }
        if from.is_index() {
            if depth > DEPTH {
                bail!("{} and others are indexes within each other, more than {DEPTH} deep", from.digest);
            }
            for manifest in Index::parse(&self.document(from)?)?.manifests {
                self.reach_into(&manifest, depth + 1, found, seen)?;
            }
        } else if from.is_manifest() {
            let manifest = Manifest::parse(&self.document(from)?)?;
            for part in std::iter::once(&manifest.config).chain(&manifest.layers) {
                self.reach_into(part, depth + 1, found, seen)?;
            }
        }
        found.push(from.clone());
        Ok(())
    }

    /// The names that images have here: full names, or bare tags of layouts that other tools wrote.
    pub fn names(&self) -> Vec<(String, &Descriptor)> {
        let name = |d: &Descriptor| d.annotations.get(CONTAINERD_NAME).or(d.annotations.get(REF_NAME)).cloned();
        self.entries.iter().filter_map(|d| Some((name(d)?, d))).collect()
    }

    /// The full names that images have here.
    pub fn full_names(&self) -> impl Iterator<Item = (&str, &Descriptor)> {
        self.entries.iter().filter_map(|d| Some((d.annotations.get(CONTAINERD_NAME)?.as_str(), d)))
    }

    /// The one image here, or that of the given name or tag.
    ///
    /// # Errors
    /// There is no such image, or there are several and none was named.
    pub fn choose(&self, name: Option<&str>) -> Result<&Descriptor> {
        let names = self.names();
        let known = || names.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>().join(", ");
        let tag_of = |d: &Descriptor| d.annotations.get(REF_NAME).cloned();
        let fitting: BTreeMap<&str, &Descriptor> = self
            .entries
            .iter()
            .filter(|d| {
                name.is_none_or(|n| {
                    tag_of(d).as_deref() == Some(n) || names.iter().any(|(k, e)| k == n && e.digest == d.digest)
                })
            })
            .map(|d| (d.digest.as_str(), d))
            .collect();
        match (fitting.len(), name) {
            (1, _) => fitting.into_values().next().context("one was counted"),
            (0, Some(name)) => bail!("there is no image {name} here; there are: {}", known()),
            (0, None) => bail!("there is no image here"),
            (_, None) => bail!("there are several images here ({}); say which one with --image", known()),
            (_, Some(name)) => bail!("{name} is the name of several images here"),
        }
    }

    /// Writes an archive, each blob checked; the same content gives the same bytes.
    ///
    /// # Errors
    /// A blob is missing or damaged, or the file cannot be written; then there is none.
    pub fn write_archive(&self, out: &Path) -> Result<u64> {
        let temporary = cache::temporary_beside(out)?;
        let write = || -> Result<u64> {
            let mut file = File::create(&temporary)?;
            self.pack(std::io::BufWriter::with_capacity(1 << 20, &mut file))?;
            file.flush()?;
            std::fs::rename(&temporary, out)?;
            Ok(file.metadata()?.len())
        };
        write().with_context(|| format!("writing {}", out.display())).inspect_err(|_| {
            // The error that matters is the first one.
            let _ = std::fs::remove_file(&temporary);
        })
    }

    /// The archive as bytes.
    ///
    /// # Errors
    /// A blob is missing or damaged.
    pub fn to_archive(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.pack(&mut bytes)?;
        Ok(bytes)
    }

    /// What the entries reach, by digest.
    fn needed(&self) -> Result<BTreeMap<String, Descriptor>> {
        let mut needed = BTreeMap::new();
        for entry in &self.entries {
            needed.extend(self.reach(entry)?.into_iter().map(|d| (d.digest.clone(), d)));
        }
        Ok(needed)
    }

    fn pack(&self, out: impl Write) -> Result<()> {
        let mut tar = tar::Builder::new(out);
        let mut put = |name: &str, size: u64, kind: tar::EntryType, from: &mut dyn Read| -> Result<()> {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(size);
            tar.append_data(&mut header, name, from).with_context(|| format!("packing {name}"))
        };
        for folder in ["blobs/", "blobs/sha256/"] {
            put(folder, 0, tar::EntryType::Directory, &mut std::io::empty())?;
        }
        for descriptor in self.needed()?.values() {
            let blob = self.verify(descriptor)?;
            let name = format!("blobs/sha256/{}", descriptor.sha256()?);
            put(&name, blob.size(), tar::EntryType::Regular, &mut *blob.open()?)?;
        }
        let index = self.index()?;
        put("index.json", index.len() as u64, tar::EntryType::Regular, &mut &index[..])?;
        put("oci-layout", LAYOUT.len() as u64, tar::EntryType::Regular, &mut &*LAYOUT)?;
        tar.into_inner()?.flush().context("packing")
    }

    fn index(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(&Index::new(self.entries.clone())).context("writing index.json")
    }

    /// Writes a layout into a new folder, each blob checked.
    ///
    /// # Errors
    /// The folder exists, a blob is missing or damaged, or it cannot be written; then there is none.
    pub fn write_folder(&self, out: &Path) -> Result<()> {
        check_new_folder(out)?;
        let temporary = cache::temporary_beside(out)?;
        let write = || -> Result<()> {
            let blobs = temporary.join("blobs/sha256");
            std::fs::create_dir_all(&blobs)?;
            for descriptor in self.needed()?.values() {
                let mut file = File::create(blobs.join(descriptor.sha256()?))?;
                std::io::copy(&mut *self.verify(descriptor)?.open()?, &mut file)?;
            }
            std::fs::write(temporary.join("index.json"), self.index()?)?;
            std::fs::write(temporary.join("oci-layout"), LAYOUT)?;
            Ok(std::fs::rename(&temporary, out)?)
        };
        write().with_context(|| format!("writing {}", out.display())).inspect_err(|_| {
            // The error that matters is the first one.
            let _ = std::fs::remove_dir_all(&temporary);
        })
    }
}

/// Whether a folder can be made there.
///
/// # Errors
/// [`input::BadInput`]: there is something.
pub fn check_new_folder(out: &Path) -> Result<()> {
    if out.exists() {
        return input::bad(format!("{} exists already; name a new folder", out.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::model::INDEX;
    use crate::oci::pause_content;

    #[test]
    fn folder_and_archive_hold_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let content = pause_content().unwrap();
        let (folder, archive) = (dir.path().join("layout"), dir.path().join("x.tar"));
        content.write_folder(&folder).unwrap();
        content.write_archive(&archive).unwrap();
        assert_eq!(std::fs::read(&archive).unwrap(), content.to_archive().unwrap());
        for path in [&folder, &archive] {
            let read = Content::read(path).unwrap();
            assert_eq!(read.to_archive().unwrap(), content.to_archive().unwrap());
            assert_eq!(read.choose(None).unwrap().digest, content.entries[0].digest);
            assert_eq!(read.choose(Some("1")).unwrap().digest, content.entries[0].digest);
            assert!(read.choose(Some("2")).unwrap_err().to_string().contains("kimg.local/pause:1"));
        }
        assert!(content.write_folder(&folder).unwrap_err().is::<input::BadInput>());
    }

    #[test]
    fn indexes_within_each_other_have_an_end() {
        let mut content = Content::default();
        let mut root = content.put_json(INDEX, &Index::new(Vec::new())).unwrap();
        for depth in 1..10_000 {
            root = content.put_json(INDEX, &Index::new(vec![root.clone(), root])).unwrap();
            if depth == 4 {
                assert_eq!(content.reach(&root).unwrap().len(), 5);
            }
        }
        assert!(content.reach(&root).unwrap_err().to_string().contains("within each other"));
    }

    #[test]
    fn damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("layout");
        pause_content().unwrap().write_folder(&folder).unwrap();
        let blobs: Vec<PathBuf> =
            std::fs::read_dir(folder.join("blobs/sha256")).unwrap().map(|e| e.unwrap().path()).collect();
        for blob in blobs {
            let good = std::fs::read(&blob).unwrap();
            let mut bad = good.clone();
            bad[20] ^= 1;
            std::fs::write(&blob, bad).unwrap();
            let error = Content::read(&folder).unwrap().to_archive().unwrap_err();
            assert!(format!("{error:#}").contains("damaged"), "{error:#}");
            std::fs::write(&blob, good).unwrap();
        }
        Content::read(&folder).unwrap().to_archive().unwrap();
        std::fs::write(dir.path().join("no.tar"), [1; 600]).unwrap();
        assert!(Content::read(&dir.path().join("no.tar")).is_err());
        // A pipe is no image, and is not waited for.
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        assert!(format!("{:#}", Content::read(&pipe).unwrap_err()).contains("is a pipe"));
    }
}
