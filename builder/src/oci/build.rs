//! A container image from file trees: layers on a base, a configuration, for one platform or several.

use super::content::{Blob, Content};
use super::model::{
    BASE_DIGEST, BASE_NAME, CONFIG, CONTAINERD_NAME, Descriptor, INDEX, Index, LAYER, MANIFEST, Manifest, Platform,
    REF_NAME,
};
use super::reference::Reference;
use crate::cache::{self, hash};
use crate::image::tree::Tree;
use crate::input;
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::SpooledData;

/// Images have no time of their own.
const CREATED: &str = "1970-01-01T00:00:00Z";
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

/// An image to build on.
#[derive(Debug, Clone)]
pub struct Base {
    /// Its name, where it has one that others can resolve.
    pub name: Option<String>,
    /// What the name stood for: the index or the manifest.
    pub digest: String,
    /// The manifest of the platform.
    pub manifest: Descriptor,
    /// Its blobs.
    pub content: Content,
}

/// An image of one platform.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Where it runs.
    pub platform: Platform,
    /// What it is built on.
    pub base: Option<Base>,
    /// Its own layers, lowest first.
    pub layers: Vec<Tree>,
}

/// What all platforms have in common.
#[derive(Debug, Clone, Default)]
pub struct Common {
    /// Names; the first is the image's own.
    pub names: Vec<Reference>,
    /// What a container does.
    pub config: Config,
    /// Annotations of each manifest, and of the index.
    pub annotations: BTreeMap<String, String>,
    /// Compress the layers.
    pub gzip: bool,
}

/// Builds the image. The same input gives the same bytes.
///
/// # Errors
/// A base that does not fit, a faulty label.
pub fn build(common: &Common, variants: &[Variant]) -> Result<Content> {
    let mut content = Content::default();
    let mut manifests = Vec::new();
    for variant in variants {
        let manifest = build_variant(&mut content, common, variant)
            .with_context(|| format!("making the image for {}", variant.platform))?;
        manifests.push(manifest);
    }
    let root = match <[Descriptor; 1]>::try_from(manifests) {
        Ok([only]) => only,
        Err(several) => {
            let mut index = Index::new(several);
            index.annotations.clone_from(&common.annotations);
            content.put_json(INDEX, &index)?
        }
    };
    for name in &common.names {
        content.entries.push(named(&root, name));
    }
    Ok(content)
}

/// The root under a name, as containerd and skopeo look for it.
pub fn named(root: &Descriptor, name: &Reference) -> Descriptor {
    let mut entry = root.clone();
    entry.annotations.insert(CONTAINERD_NAME.into(), name.to_string());
    if let Some(tag) = &name.tag {
        entry.annotations.insert(REF_NAME.into(), tag.clone());
    }
    entry
}

fn build_variant(content: &mut Content, common: &Common, variant: &Variant) -> Result<Descriptor> {
    let mut image = json!({"config": {}, "rootfs": {"type": "layers", "diff_ids": []}, "history": []});
    let (mut layers, mut annotations) = (Vec::new(), common.annotations.clone());
    if let Some(base) = &variant.base {
        let manifest = Manifest::parse(&base.content.document(&base.manifest)?)?;
        image = serde_json::from_slice(&base.content.document(&manifest.config)?)
            .context("reading the configuration of the base image")?;
        check_base(&image, &manifest, &variant.platform)?;
        if !image["rootfs"]["diff_ids"].is_array() {
            // A base without layers need not say so.
            image["rootfs"] = json!({"type": "layers", "diff_ids": []});
        }
        for layer in manifest.layers {
            let media_type = oci_layer(&layer.media_type)?;
            content.put_blob(&layer.digest, base.content.verify(&layer)?.clone());
            layers.push(Descriptor { media_type, ..layer });
        }
        if let Some(name) = &base.name {
            annotations.insert(BASE_NAME.into(), name.clone());
        }
        annotations.insert(BASE_DIGEST.into(), base.digest.clone());
    }
    let mut add = |place: &str, value: Value| {
        if let Some(list) = image.pointer_mut(place).and_then(Value::as_array_mut) {
            list.push(value);
        }
    };
    for tree in &variant.layers {
        // Of the layers' format, and no file: it takes away what lower layers hold.
        let removal = |path: &&str| path.split('/').any(|part| part.starts_with(".wh."));
        if let Some(path) = tree.iter().map(|(path, _)| path).find(removal) {
            return input::bad(format!("{path}: in an image a name that begins with .wh. removes a file; rename it"));
        }
        let layer = Layer::write(tree, common.gzip)?;
        add("/rootfs/diff_ids", json!(format!("sha256:{}", layer.unpacked)));
        add("/history", json!({"created": CREATED, "created_by": "kimg build image"}));
        let kind = if common.gzip { format!("{LAYER}+gzip") } else { LAYER.into() };
        let descriptor = Descriptor::new(&kind, &layer.sha256, layer.blob.size());
        content.put_blob(&descriptor.digest, layer.blob);
        layers.push(descriptor);
    }
    image["config"] = config_json(&common.config, &image["config"])?;
    image["created"] = json!(CREATED);
    for (key, value) in [("architecture", &variant.platform.architecture), ("os", &variant.platform.os)] {
        image[key] = json!(value);
    }
    if let Some(version) = &variant.platform.variant {
        image["variant"] = json!(version);
    }
    let mut manifest = Manifest::new(content.put_json(CONFIG, &image)?, layers);
    manifest.annotations = annotations;
    let mut descriptor = content.put_json(MANIFEST, &manifest)?;
    descriptor.platform = Some(variant.platform.clone());
    Ok(descriptor)
}

/// What of a layer is held in memory; more of it goes to the disk.
const IN_MEMORY: usize = 8 << 20;

/// A layer as it stands in an image.
struct Layer {
    /// Sum of the tar.
    unpacked: String,
    /// Sum of what is in the blob.
    sha256: String,
    blob: Blob,
}

impl Layer {
    fn write(tree: &Tree, gzip: bool) -> Result<Layer> {
        // Beside what is downloaded: /tmp may be memory.
        let folder = cache::user_dir()?;
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let out = hash::Summed::new(tempfile::spooled_tempfile_in(IN_MEMORY, folder));
        let (out, unpacked) = if gzip {
            let encoder = flate2::GzBuilder::new().mtime(0).write(out, flate2::Compression::best());
            let mut tar = hash::Summed::new(encoder);
            tree.write_tar(&mut tar)?;
            let (encoder, unpacked, _) = tar.finish();
            (encoder.finish().context("packing a layer")?, Some(unpacked))
        } else {
            let mut out = out;
            tree.write_tar(&mut out)?;
            (out, None)
        };
        let (spooled, sha256, size) = out.finish();
        let blob = match spooled.into_inner() {
            SpooledData::InMemory(bytes) => Blob::Bytes(bytes.into_inner().into()),
            SpooledData::OnDisk(file) => Blob::Nameless(Arc::new(file), size),
        };
        Ok(Layer { unpacked: unpacked.unwrap_or_else(|| sha256.clone()), sha256, blob })
    }
}

fn check_base(image: &Value, manifest: &Manifest, platform: &Platform) -> Result<()> {
    let of = |key: &str| image[key].as_str().unwrap_or_default();
    if of("architecture") != platform.architecture || of("os") != platform.os {
        bail!("the base image is for {}/{}", of("os"), of("architecture"));
    }
    let sums = image["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
    if sums != manifest.layers.len() {
        bail!("the base image has {} layers and the sums of {sums}", manifest.layers.len());
    }
    if !image["history"].is_array() && !image["history"].is_null() {
        bail!("the history of the base image is no list");
    }
    Ok(())
}

/// Docker's layers are OCI's by another name.
fn oci_layer(media_type: &str) -> Result<String> {
    Ok(match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => format!("{LAYER}+gzip"),
        "application/vnd.docker.image.rootfs.diff.tar" => LAYER.into(),
        known if known == LAYER || known == format!("{LAYER}+gzip") || known == format!("{LAYER}+zstd") => known.into(),
        other => bail!("the base image has a layer of the type {other}, which cannot be passed on"),
    })
}

/// The configuration over that of the base.
fn config_json(config: &Config, base: &Value) -> Result<Value> {
    let mut out = base.as_object().cloned().unwrap_or_default();
    let mut set = |key: &str, list: &[String]| {
        if !list.is_empty() {
            out.insert(key.into(), json!(list));
        }
    };
    set("Entrypoint", &config.entrypoint);
    set("Cmd", &config.cmd);
    if !config.entrypoint.is_empty() && config.cmd.is_empty() {
        // The arguments of the base belong to its own program.
        out.remove("Cmd");
    }
    let mut env: Vec<String> = match out.get("Env") {
        // What Go writes for an empty list.
        None | Some(Value::Null) => Vec::new(),
        Some(env) => serde_json::from_value(env.clone()).context("reading the environment of the base image")?,
    };
    for new in &config.env {
        let Some((name, _)) = new.split_once('=') else {
            return input::bad(format!("the variable '{new}' is not NAME=VALUE"));
        };
        env.retain(|old| old.split('=').next() != Some(name));
        env.push(new.clone());
    }
    if !env.iter().any(|e| e.starts_with("PATH=")) {
        env.insert(0, PATH.into());
    }
    out.insert("Env".into(), json!(env));
    check_user(&config.user)?;
    config.ports.iter().try_for_each(|port| check_port(port))?;
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return input::bad(format!("the working folder '{}' is no absolute path", config.working_dir));
    }
    for (key, text) in [("User", &config.user), ("WorkingDir", &config.working_dir)] {
        if !text.is_empty() {
            out.insert(key.into(), json!(text));
        }
    }
    let ports = config.ports.iter().map(|p| (if p.contains('/') { p.clone() } else { format!("{p}/tcp") }, json!({})));
    extend(&mut out, "ExposedPorts", ports);
    let mut labels = Vec::new();
    for label in &config.labels {
        let Some((key, value)) = label.split_once('=') else {
            return input::bad(format!("the label '{label}' is not KEY=VALUE"));
        };
        labels.push((key.to_string(), json!(value)));
    }
    extend(&mut out, "Labels", labels);
    Ok(Value::Object(out))
}

/// Names would need the image's own `/etc/passwd`, and a kubelet that may run no root wants to see that it is none.
fn check_user(user: &str) -> Result<()> {
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u32>().is_ok();
    if user.is_empty()
        || user.split_once(':').map_or_else(|| number(user), |(user, group)| number(user) && number(group))
    {
        return Ok(());
    }
    input::bad(format!("the user '{user}' is not UID or UID:GID, in numbers: root is 0, and 65534 is nobody"))
}

fn check_port(port: &str) -> Result<()> {
    let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let known = number.bytes().all(|b| b.is_ascii_digit()) && number.parse::<u16>().is_ok_and(|number| number > 0);
    if known && ["tcp", "udp", "sctp"].contains(&protocol) {
        return Ok(());
    }
    input::bad(format!(
        "'{port}' is no port; write one from 1 to 65535, with /udp or /sctp behind it where it is not TCP"
    ))
}

fn extend(out: &mut Map<String, Value>, key: &str, more: impl IntoIterator<Item = (String, Value)>) {
    let mut all = out.get(key).and_then(Value::as_object).cloned().unwrap_or_default();
    all.extend(more);
    if !all.is_empty() {
        out.insert(key.into(), Value::Object(all));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tree::Data;
    use std::io::Read;

    fn tree(path: &str, text: &str) -> Tree {
        let mut tree = Tree::default();
        tree.file(path, 0o644, text.as_bytes().to_vec()).unwrap();
        tree
    }

    fn variant(platform: &str, layers: Vec<Tree>, base: Option<Base>) -> Variant {
        Variant { platform: platform.parse().unwrap(), base, layers }
    }

    fn config_of(content: &Content, manifest: &Descriptor) -> (Manifest, Value) {
        let manifest = Manifest::parse(&content.document(manifest).unwrap()).unwrap();
        let config = serde_json::from_slice(&content.document(&manifest.config).unwrap()).unwrap();
        (manifest, config)
    }

    fn base() -> Content {
        let config = Config {
            entrypoint: vec!["/old".into()],
            cmd: vec!["old".into()],
            env: vec!["A=1".into(), "B=1".into()],
            labels: vec!["x=1".into()],
            ports: vec!["80".into()],
            ..Config::default()
        };
        let names = vec![Reference::parse("r.example/base:1").unwrap()];
        let common = Common { names, config, gzip: true, ..Common::default() };
        build(&common, &[variant("linux/amd64", vec![tree("/base", "b")], None)]).unwrap()
    }

    #[test]
    fn an_image_stands_on_its_base() {
        let base = base();
        let on = Base {
            name: Some("r.example/base:1".into()),
            digest: base.entries[0].digest.clone(),
            manifest: base.entries[0].clone(),
            content: base.clone(),
        };
        let common = Common {
            names: vec![
                Reference::parse("r.example/web:1").unwrap(),
                Reference::parse("r.example/web:latest").unwrap(),
            ],
            config: Config {
                entrypoint: vec!["/new".into()],
                env: vec!["B=2".into()],
                labels: vec!["y=2".into()],
                ..Config::default()
            },
            annotations: [("org.opencontainers.image.licenses".to_string(), "Apache-2.0".to_string())].into(),
            gzip: true,
        };
        let variants = [variant("linux/amd64", vec![tree("/a", "a"), tree("/b", "b")], Some(on.clone()))];
        let content = build(&common, &variants).unwrap();
        assert_eq!(content.to_archive().unwrap(), build(&common, &variants).unwrap().to_archive().unwrap());
        let names: Vec<String> = content.names().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["r.example/web:1", "r.example/web:latest"]);
        let (manifest, config) = config_of(&content, &content.entries[0]);
        let (old, _) = config_of(&base, &base.entries[0]);
        assert_eq!((manifest.layers.len(), &manifest.layers[0]), (3, &old.layers[0]));
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 3);
        assert_eq!(config["history"].as_array().unwrap().len(), 3);
        assert_eq!(config["config"]["Entrypoint"], json!(["/new"]));
        assert_eq!(config["config"]["Cmd"], Value::Null);
        assert_eq!(config["config"]["Env"], json!([PATH, "A=1", "B=2"]));
        assert_eq!(config["config"]["Labels"], json!({"x": "1", "y": "2"}));
        assert_eq!(config["config"]["ExposedPorts"], json!({"80/tcp": {}}));
        assert_eq!(manifest.annotations[BASE_DIGEST], on.digest);
        assert_eq!(manifest.annotations[BASE_NAME], "r.example/base:1");
        let error = build(&common, &[variant("linux/arm64", vec![], Some(on))]).unwrap_err();
        assert!(format!("{error:#}").contains("base image is for linux/amd64"), "{error:#}");
    }

    #[test]
    fn a_base_may_leave_out_what_it_has_not() {
        let mut content = Content::default();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": null}});
        let config = content.put_json(CONFIG, &config).unwrap();
        let manifest = content.put_json(MANIFEST, &Manifest::new(config, Vec::new())).unwrap();
        let base = Base { name: None, digest: manifest.digest.clone(), manifest, content };
        let common = Common { names: vec![Reference::parse("r.example/web:1").unwrap()], ..Common::default() };
        let content = build(&common, &[variant("linux/amd64", vec![tree("/a", "a")], Some(base))]).unwrap();
        let (manifest, config) = config_of(&content, &content.entries[0]);
        assert_eq!(manifest.layers.len(), 1);
        assert_eq!(config["rootfs"], json!({"type": "layers", "diff_ids": [manifest.layers[0].digest]}));
        assert_eq!(config["config"]["Env"], json!([PATH]));
    }

    #[test]
    fn a_large_layer_lies_on_the_disk_and_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        let bytes: Vec<u8> =
            (0..3 * IN_MEMORY as u32 / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        std::fs::write(&path, &bytes).unwrap();
        let mut on_disk = Tree::default();
        on_disk.file("/large", 0o644, Data::on_disk(&path, bytes.len() as u64, None)).unwrap();
        let mut in_memory = Tree::default();
        in_memory.file("/large", 0o644, bytes).unwrap();
        let tar = in_memory.to_tar().unwrap();
        for gzip in [false, true] {
            let layer = Layer::write(&on_disk, gzip).unwrap();
            assert!(matches!(&layer.blob, Blob::Nameless(..)), "it takes memory");
            assert_eq!(layer.unpacked, hash::hex_of(&tar));
            let mut blob = Vec::new();
            layer.blob.open().unwrap().read_to_end(&mut blob).unwrap();
            assert_eq!((layer.blob.size(), &layer.sha256), (blob.len() as u64, &hash::hex_of(&blob)));
            let mut unpacked = Vec::new();
            match gzip {
                true => flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut unpacked).unwrap(),
                false => blob.as_slice().read_to_end(&mut unpacked).unwrap(),
            };
            assert!(unpacked == tar);
        }
    }

    #[test]
    fn users_are_numbers_and_ports_are_ports() {
        let made = |config: Config| {
            let names = vec![Reference::parse("r.example/web:1").unwrap()];
            let common = Common { names, config, ..Common::default() };
            build(&common, &[variant("linux/amd64", vec![tree("/a", "a")], None)])
        };
        for (user, port, dir, fine) in [
            ("0", "1", "/", true),
            ("65532:65532", "65535/udp", "/srv", true),
            ("", "132/sctp", "", true),
            ("root", "1", "", false),
            ("0:root", "1", "", false),
            ("4294967296", "1", "", false),
            ("+1", "1", "", false),
            ("1:", "1", "", false),
            ("", "99999", "", false),
            ("", "0", "", false),
            ("", "+80", "", false),
            ("", "80/http", "", false),
            ("", "", "", false),
            ("", "80", "srv", false),
        ] {
            let config =
                Config { user: user.into(), ports: vec![port.into()], working_dir: dir.into(), ..Config::default() };
            let made = made(config);
            assert_eq!(made.is_ok(), fine, "{user} {port} {dir}");
            assert!(made.err().is_none_or(|error| error.chain().any(|e| e.is::<input::BadInput>())), "{user} {port}");
        }
    }

    #[test]
    fn several_platforms_stand_in_one_index() {
        let names = vec![Reference::parse("r.example/web:1").unwrap()];
        let common = Common { names, ..Common::default() };
        let variants =
            [variant("linux/amd64", vec![tree("/a", "x")], None), variant("linux/arm/v7", vec![tree("/a", "y")], None)];
        let content = build(&common, &variants).unwrap();
        let root = content.choose(None).unwrap();
        assert!(root.is_index());
        let index = Index::parse(&content.document(root).unwrap()).unwrap();
        let platforms: Vec<String> = index.manifests.iter().map(|m| m.platform.clone().unwrap().to_string()).collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm/v7"]);
        assert_eq!(config_of(&content, &index.manifests[1]).1["variant"], "v7");
        // Two configurations, layers and manifests, and the index.
        assert_eq!(content.reach(root).unwrap().len(), 7);
    }
}
