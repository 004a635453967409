//! Image archives that the node's image carries: OCI layouts in tar files, put into
//! containerd's store when they are not there yet. No registry is needed for a first pod.

use crate::cri::containerd::{Containerd, Descriptor, StoredImage};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct OciDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<OciDescriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: OciDescriptor,
    layers: Vec<OciDescriptor>,
}

/// Of an image's configuration: the digests of its unpacked layers, the lowest first.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    rootfs: RootFs,
}

/// Empty where an archive holds something that is no container image, and has nothing to unpack.
#[derive(Deserialize, Default)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// Where a file of the archive lies in it.
type Files = BTreeMap<String, (u64, u64)>;

/// Imports every archive in `directory` whose images are not there yet; the names of the new ones.
pub async fn import_all(containerd: &Containerd, directory: &Path) -> Result<Vec<String>> {
    let mut paths: Vec<_> = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", directory.display())),
        Ok(entries) => {
            entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "tar")).collect()
        }
    };
    paths.sort();
    let mut imported = Vec::new();
    for path in paths {
        let new = import(containerd, &path).await.with_context(|| format!("importing image {}", path.display()))?;
        imported.extend(new);
    }
    Ok(imported)
}

async fn import(containerd: &Containerd, path: &Path) -> Result<Vec<String>> {
    let files = list(path)?;
    let index: Index = read_json(path, &files, "index.json")?;
    let mut imported = Vec::new();
    for entry in &index.manifests {
        let Some(name) = image_name(&entry.annotations) else {
            bail!("index.json names no image: annotation io.containerd.image.name is missing");
        };
        if containerd.image_digest(&name).await.map_err(sentence)?.as_deref() == Some(entry.digest.as_str()) {
            continue;
        }
        import_image(containerd, path, &files, entry, &name).await.with_context(|| format!("image {name}"))?;
        tracing::info!("imported image {name}");
        imported.push(name);
    }
    Ok(imported)
}

fn sentence(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("containerd: {}", status.message())
}

fn image_name(annotations: &BTreeMap<String, String>) -> Option<String> {
    if let Some(name) = annotations.get("io.containerd.image.name") {
        return Some(super::normalize(name));
    }
    let name = annotations.get("org.opencontainers.image.ref.name")?;
    name.contains(['/', ':']).then(|| super::normalize(name))
}

async fn import_image(
    containerd: &Containerd,
    path: &Path,
    files: &Files,
    entry: &OciDescriptor,
    name: &str,
) -> Result<()> {
    let lease = format!("kimg-import-{}", std::process::id());
    let expire = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    containerd.create_lease(&lease, &expire.to_string()).await.map_err(sentence)?;
    let result = write_image(containerd, path, files, entry, name, &lease).await;
    containerd.delete_lease(&lease).await.map_err(sentence)?;
    result
}

async fn write_image(
    containerd: &Containerd,
    path: &Path,
    files: &Files,
    entry: &OciDescriptor,
    name: &str,
    lease: &str,
) -> Result<()> {
    let manifests = if entry.media_type.contains("index") || entry.media_type.contains("manifest.list") {
        let index: Index = read_json(path, files, &blob(&entry.digest)?)?;
        let labels = child_labels("m", index.manifests.iter());
        let fitting: Vec<_> = index.manifests.into_iter().filter(fits).collect();
        write(containerd, path, files, entry, labels, lease).await?;
        fitting
    } else {
        vec![entry.clone()]
    };
    for manifest in &manifests {
        let content: Manifest = read_json(path, files, &blob(&manifest.digest)?)?;
        for layer in &content.layers {
            write(containerd, path, files, layer, BTreeMap::new(), lease).await?;
        }
        let Configuration { rootfs } = read_json(path, files, &blob(&content.config.digest)?)?;
        let chain = chain_ids(&rootfs.diff_ids);
        let top = chain.last().map(|top| ("containerd.io/gc.ref.snapshot.overlayfs".to_owned(), top.clone()));
        write(containerd, path, files, &content.config, top.into_iter().collect(), lease).await?;
        let mut labels = child_labels("l", content.layers.iter());
        labels.insert("containerd.io/gc.ref.content.config".into(), content.config.digest.clone());
        write(containerd, path, files, manifest, labels, lease).await?;
        if !chain.is_empty() && content.layers.len() != chain.len() {
            bail!("{} layers, and digests of {} unpacked ones", content.layers.len(), chain.len());
        }
        let mut below = "";
        for ((layer, diff_id), name) in content.layers.iter().zip(&rootfs.diff_ids).zip(&chain) {
            containerd.unpack(described(layer), diff_id, below, name, lease).await.map_err(sentence)?;
            below = name;
        }
    }
    let target = described(entry);
    // Without CRI's own label: its plugin sees the new name, registers the image under its id
    // and labels both itself. With the label it would take that as done.
    let image = StoredImage { name: name.into(), labels: BTreeMap::new(), target: Some(target) };
    containerd.put_image(image, lease).await.map_err(sentence)
}

fn described(descriptor: &OciDescriptor) -> Descriptor {
    Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.clone(),
        size: descriptor.size as i64,
        annotations: BTreeMap::new(),
    }
}

/// What each layer makes of those below it, as a name (OCI image specification, "Layer ChainID").
fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => format!("sha256:{}", hex::encode(Sha256::digest(format!("{below} {diff_id}")))),
        });
    }
    chain
}

fn fits(descriptor: &OciDescriptor) -> bool {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    descriptor.platform.as_ref().is_none_or(|p| p.os == "linux" && p.architecture == architecture)
}

/// Labels by which containerd's garbage collector finds what a blob refers to.
fn child_labels<'a>(kind: &str, children: impl Iterator<Item = &'a OciDescriptor>) -> BTreeMap<String, String> {
    children
        .enumerate()
        .map(|(at, child)| (format!("containerd.io/gc.ref.content.{kind}.{at}"), child.digest.clone()))
        .collect()
}

async fn write(
    containerd: &Containerd,
    path: &Path,
    files: &Files,
    descriptor: &OciDescriptor,
    labels: BTreeMap<String, String>,
    lease: &str,
) -> Result<()> {
    let (offset, size) = *files
        .get(&blob(&descriptor.digest)?)
        .with_context(|| format!("blob {} is not in the archive", descriptor.digest))?;
    if size != descriptor.size {
        bail!("blob {} has {size} bytes where the manifest says {}", descriptor.digest, descriptor.size);
    }
    let reader = section(path, offset, size)?;
    containerd.write_blob(&descriptor.digest, size, reader, labels, lease).await.map_err(sentence)
}

fn blob(digest: &str) -> Result<String> {
    let (algorithm, hex) = digest.split_once(':').with_context(|| format!("{digest:?} is not a digest"))?;
    if algorithm != "sha256" || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        bail!("{digest:?} is not a sha256 digest");
    }
    Ok(format!("blobs/sha256/{hex}"))
}

fn list(path: &Path) -> Result<Files> {
    let mut archive = tar::Archive::new(File::open(path)?);
    let mut files = Files::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if entry.header().entry_type().is_file() {
            let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_string();
            files.insert(name, (entry.raw_file_position(), entry.size()));
        }
    }
    Ok(files)
}

fn section(path: &Path, offset: u64, size: u64) -> Result<impl Read + Send + 'static> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    Ok(file.take(size))
}

/// Largest JSON document taken from an archive.
const JSON_LIMIT: u64 = 4 << 20;

fn read_json<T: serde::de::DeserializeOwned>(path: &Path, files: &Files, name: &str) -> Result<T> {
    let (offset, size) = *files.get(name).with_context(|| format!("{name} is not in the archive"))?;
    if size > JSON_LIMIT {
        bail!("{name} has {size} bytes, more than a document of an image archive may have");
    }
    serde_json::from_reader(section(path, offset, size)?).with_context(|| format!("{name} is not what it should be"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_listed_and_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let index = br#"{"manifests":[{"mediaType":"m","digest":"sha256:ab","size":2,"annotations":{"io.containerd.image.name":"pause"}}]}"#;
        for (name, content) in [("./index.json", &index[..]), ("blobs/sha256/ab", b"{}")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
        }
        builder.finish().unwrap();
        let files = list(&path).unwrap();
        let index: Index = read_json(&path, &files, "index.json").unwrap();
        assert_eq!(image_name(&index.manifests[0].annotations).as_deref(), Some("docker.io/library/pause:latest"));
        assert_eq!(files["blobs/sha256/ab"].1, 2);
        assert!(read_json::<Index>(&path, &files, "none").is_err());
        assert!(blob("md5:00").is_err());
    }
}
