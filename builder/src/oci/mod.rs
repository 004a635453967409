//! Container images without a container engine: an OCI image of one layer, as an archive that containerd imports.

pub mod cmd;
pub mod pause;
pub mod source;

use crate::cache::hash;
use crate::image::tree::Tree;
use crate::input::{self, BadInput};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;

/// The sandbox image that containerd is configured with.
pub const PAUSE_IMAGE: &str = "kimg.local/pause:1";
/// Images have no time of their own.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// What a container of the image does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Program and fixed arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user[:group]`.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// `port/protocol`.
    pub ports: Vec<String>,
    /// `key=value`.
    pub labels: Vec<String>,
}

/// Writes an OCI archive (a tar of an OCI layout) of one image. The same input gives the same bytes.
pub fn archive(reference: &str, tree: &Tree, config: &Config, gzip: bool) -> Result<Vec<u8>> {
    let reference = full_reference(reference)?;
    let layer = tree.to_tar()?;
    let diff_id = digest(&layer);
    let (layer, layer_type) = if gzip {
        let mut encoder = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::best());
        encoder.write_all(&layer)?;
        (encoder.finish()?, "application/vnd.oci.image.layer.v1.tar+gzip")
    } else {
        (layer, "application/vnd.oci.image.layer.v1.tar")
    };
    let image = serde_json::to_vec(&json!({
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": config_json(config)?,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": CREATED, "created_by": "kimg build image"}],
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &image),
        "layers": [descriptor(layer_type, &layer)],
    }))?;
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["platform"] = json!({"architecture": "amd64", "os": "linux"});
    let tag = reference.rsplit(':').next().unwrap_or_default();
    entry["annotations"] = json!({"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag});
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;

    let mut out = Tree::default();
    out.file("/oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())?;
    out.file("/index.json", 0o644, index)?;
    for blob in [image, manifest, layer] {
        out.file(&format!("/blobs/sha256/{}", hash::hex_of(&blob)), 0o644, blob)?;
    }
    out.to_tar()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hash::hex_of(bytes))
}

fn descriptor(media_type: &str, blob: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn config_json(config: &Config) -> Result<Value> {
    let mut out = serde_json::Map::new();
    let mut lists = |key: &str, list: &[String]| {
        if !list.is_empty() {
            out.insert(key.into(), json!(list));
        }
    };
    lists("Entrypoint", &config.entrypoint);
    lists("Cmd", &config.cmd);
    let mut env = config.env.clone();
    if !env.iter().any(|e| e.starts_with("PATH=")) {
        env.insert(0, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    lists("Env", &env);
    if !config.user.is_empty() {
        out.insert("User".into(), json!(config.user));
    }
    if !config.working_dir.is_empty() {
        out.insert("WorkingDir".into(), json!(config.working_dir));
    }
    if !config.ports.is_empty() {
        let ports: serde_json::Map<String, Value> = config
            .ports
            .iter()
            .map(|p| (if p.contains('/') { p.clone() } else { format!("{p}/tcp") }, json!({})))
            .collect();
        out.insert("ExposedPorts".into(), Value::Object(ports));
    }
    let mut labels = serde_json::Map::new();
    for label in &config.labels {
        let Some((key, value)) = label.split_once('=') else {
            return input::bad(format!("the label '{label}' is not KEY=VALUE"));
        };
        labels.insert(key.into(), json!(value));
    }
    if !labels.is_empty() {
        out.insert("Labels".into(), Value::Object(labels));
    }
    Ok(Value::Object(out))
}

/// Completes a reference as containerd's CRI does: `web` → `docker.io/library/web:latest`.
pub fn full_reference(reference: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    if reference.is_empty() || !reference.chars().all(fine) || reference.contains('@') {
        return input::bad(format!("'{reference}' is no image name; write NAME:TAG, e.g. registry.example.com/web:1"));
    }
    let (first, rest) = reference.split_once('/').unwrap_or(("", reference));
    let has_domain = first.contains(['.', ':']) || first == "localhost";
    let path = match (has_domain, first.is_empty()) {
        (true, _) => reference.to_string(),
        (false, true) => format!("docker.io/library/{rest}"),
        (false, false) => format!("docker.io/{reference}"),
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    Ok(if name.contains(':') { path } else { format!("{path}:latest") })
}

/// The pause image as an archive.
pub fn pause_archive() -> Result<Vec<u8>> {
    let mut tree = Tree::default();
    tree.file("/pause", 0o755, pause::program())?;
    // Numeric, since the image has no /etc/passwd: nobody.
    let config = Config { entrypoint: vec!["/pause".into()], user: "65535:65535".into(), ..Config::default() };
    archive(PAUSE_IMAGE, &tree, &config, false)
}

/// Image references in an archive, from its index.
pub fn references(archive: &Path) -> Result<Vec<String>> {
    let no_archive = || {
        let shown = archive.display();
        BadInput(format!("{shown} is no OCI archive (a tar with an index.json); make one with `kimg build image`"))
    };
    let mut tar = tar::Archive::new(input::open(archive)?);
    for entry in tar.entries().map_err(|_| no_archive())? {
        let entry = entry.map_err(|_| no_archive())?;
        let path = entry.path()?.to_string_lossy().trim_start_matches("./").to_string();
        if path == "index.json" {
            let index: Value = serde_json::from_reader(entry.take(input::SMALL)).map_err(|_| no_archive())?;
            let names = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
            return Ok(names
                .iter()
                .filter_map(|m| m["annotations"]["io.containerd.image.name"].as_str().map(str::to_string))
                .collect());
        }
    }
    Err(no_archive().into())
}

/// Reads a folder as an image's root. Owners become root; modes become 0644 or 0755, so that the umask under
/// which the folder was made does not matter.
pub fn tree_of_folder(folder: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    add_folder(&mut tree, folder, "")?;
    Ok(tree)
}

fn add_folder(tree: &mut Tree, folder: &Path, prefix: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let entries = std::fs::read_dir(folder)
        .map_err(|error| BadInput(format!("the folder {} cannot be read: {error}", folder.display())))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().with_context(|| format!("{} is not UTF-8", entry.path().display()))?;
        let path = format!("{prefix}/{name}");
        let meta = entry.path().symlink_metadata()?;
        if meta.is_dir() {
            tree.dir(&path, 0o755)?;
            add_folder(tree, &entry.path(), &path)?;
        } else if meta.is_symlink() {
            let target = std::fs::read_link(entry.path())?;
            tree.link(&path, target.to_str().context("a link's target is not UTF-8")?)?;
        } else if meta.is_file() {
            let mode = if meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
            let data = std::fs::read(entry.path()).with_context(|| format!("reading {}", entry.path().display()))?;
            tree.file(&path, mode, data)?;
        } else {
            let shown = entry.path().display().to_string();
            return input::bad(format!("{shown} is neither file, folder nor link and cannot go into an image"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_as_the_runtime_does() {
        for (short, full) in [
            ("web", "docker.io/library/web:latest"),
            ("example/web:1", "docker.io/example/web:1"),
            ("kimg.local/pause:1", "kimg.local/pause:1"),
            ("localhost/web", "localhost/web:latest"),
            ("registry:5000/web", "registry:5000/web:latest"),
        ] {
            assert_eq!(full_reference(short).unwrap(), full);
        }
        assert!(full_reference("a b").is_err());
        assert!(full_reference("").is_err());
    }

    #[test]
    fn an_archive_names_its_image_and_is_stable() {
        let bytes = pause_archive().unwrap();
        assert_eq!(bytes, pause_archive().unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(references(file.path()).unwrap(), [PAUSE_IMAGE]);
    }

    #[test]
    fn a_folder_becomes_a_tree_whatever_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let file = dir.path().join("bin/x");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
        let tree = tree_of_folder(dir.path()).unwrap();
        assert_eq!(tree.get("/bin/x"), Some(&crate::image::tree::Node::File(0o755, (*b"x").into())));
    }
}
