//! A node's disk image as an OCI artifact: the packed disk and its manifest, each under its file name.

use super::build::named;
use super::content::{Blob, Content, check_new_folder};
use super::model::{Descriptor, EMPTY, MANIFEST, Manifest, TITLE};
use super::reference::Reference;
use crate::cache;
use crate::image::leave;
use crate::image::manifest::{self, FileSum};
use crate::image::output::Format;
use crate::input;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// What kind of artifact it is.
pub const NODE_IMAGE: &str = "application/vnd.kimg.node-image.v1";
const DISK: &str = "application/vnd.kimg.node-image.disk.v1.raw+zstd";
const DESCRIPTION: &str = "application/vnd.kimg.node-image.manifest.v1+json";

/// The artifact of the image in `dir`, which `kimg build` made.
///
/// # Errors
/// There is no complete image, it is not what its manifest says, or it holds private keys in clear.
pub fn of_node_image(dir: &Path, names: &[Reference]) -> Result<Content> {
    let known = manifest::Manifest::of_image(dir)?;
    let packed = Format::RawZst.file();
    let Some(sum) = known.files.get(packed) else {
        return input::bad(format!(
            "the image in {} has no {packed}, the form that is pushed (`kimg up` writes none, nor does a build with \
             another --format); write it with `kimg build {} --format raw.zst`",
            dir.display(),
            known.role.as_str()
        ));
    };
    let disk = dir.join(packed);
    let found = FileSum::of(&disk)?;
    if found != *sum {
        bail!("{} is not the file that its manifest names; build the image again", disk.display());
    }
    leave::may_leave(&disk)?;

    let mut content = Content::default();
    let mut layer = Descriptor::new(DISK, &sum.sha256, sum.size);
    content.put_blob(&layer.digest, Blob::File { path: disk, offset: 0, size: sum.size });
    layer.annotations.insert(TITLE.into(), packed.into());
    let text = input::bytes(&dir.join(manifest::FILE), manifest::MOST_BYTES)?;
    let mut description = content.put(DESCRIPTION, text);
    description.annotations.insert(TITLE.into(), manifest::FILE.into());
    let mut artifact = Manifest::new(content.put(EMPTY, b"{}".to_vec()), vec![layer, description]);
    artifact.artifact_type = Some(NODE_IMAGE.into());
    for (key, value) in [
        ("org.opencontainers.image.title", format!("kimg {} of {}", known.role.as_str(), known.cluster)),
        ("org.opencontainers.image.version", known.version.clone()),
        ("io.kimg.role", known.role.as_str().to_string()),
        ("io.kimg.root-hash", known.root_hash.clone()),
    ] {
        artifact.annotations.insert(key.into(), value);
    }
    let mut root = content.put_json(MANIFEST, &artifact)?;
    root.artifact_type = Some(NODE_IMAGE.into());
    content.entries = names.iter().map(|name| named(&root, name)).collect();
    Ok(content)
}

/// Whether a manifest is that of a node's image.
pub fn is_node_image(manifest: &Manifest) -> bool {
    manifest.artifact_type.as_deref() == Some(NODE_IMAGE)
}

/// Writes the files of an artifact into a new folder, and checks that they are what its manifest says.
///
/// # Errors
/// The folder exists, or the artifact is not what it says.
pub fn write_files(content: &Content, artifact: &Manifest, out: &Path) -> Result<()> {
    check_new_folder(out)?;
    let temporary = cache::temporary_beside(out)?;
    std::fs::create_dir(&temporary).with_context(|| format!("making {}", temporary.display()))?;
    let write = || -> Result<()> {
        let packed = Format::RawZst.file();
        for layer in &artifact.layers {
            let name = layer.annotations.get(TITLE).context("a file of the artifact has no name")?;
            if name != packed && name != manifest::FILE {
                let only = format!("a node image has {packed} and {} alone", manifest::FILE);
                bail!("a file of the artifact is called '{name}', which is no plain file name of those: {only}");
            }
            if name == manifest::FILE && layer.size > manifest::MOST_BYTES {
                bail!("the artifact's {name} has {} bytes, which is too long for one", layer.size);
            }
            let path = temporary.join(name);
            let mut file = std::fs::File::create_new(&path).with_context(|| format!("writing {}", path.display()))?;
            std::io::copy(&mut *content.verify(layer)?.open()?, &mut file)
                .with_context(|| format!("writing {}", path.display()))?;
        }
        let known = manifest::Manifest::read(&temporary).context("the artifact has no readable manifest.json")?;
        let sum = known.files.get(packed).with_context(|| format!("the artifact's manifest names no {packed}"))?;
        if FileSum::of(&temporary.join(packed))? != *sum {
            bail!("the disk of the artifact is not the one that its manifest.json names");
        }
        std::fs::rename(&temporary, out).with_context(|| format!("writing {}", out.display()))
    };
    write().inspect_err(|_| {
        // The error that matters is the first one.
        let _ = std::fs::remove_dir_all(&temporary);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{self, Parts, config_part};
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    /// A folder as `kimg build` leaves it, with a disk that has partitions and CONFIG but boots nothing.
    fn built(dir: &Path, secret: &str) {
        std::fs::create_dir_all(dir).unwrap();
        let root = dir.join("root");
        std::fs::write(&root, vec![1; 8192]).unwrap();
        let files = [("cluster.json", "{}"), (secret, "key")];
        let files: BTreeMap<PathBuf, (u32, Vec<u8>)> =
            files.map(|(name, text)| (name.into(), (0o600, text.as_bytes().to_vec()))).into();
        let config = config_part::encode(&files).unwrap();
        let parts = Parts {
            boot_img: &[0; 512],
            esp_files: &[],
            root: &root,
            verity: &root,
            root_hash: [1; 32],
            config: &config,
        };
        let raw = dir.join(Format::Raw.file());
        disk::write(&raw, &parts, b"core").unwrap();
        let packed = dir.join(Format::RawZst.file());
        Format::RawZst.write(&raw, &packed).unwrap();
        let known = manifest::Manifest {
            version: "1".into(),
            states: None,
            cluster: "c".into(),
            role: node_metadata::Role::Master,
            root_hash: "01".repeat(32),
            kernel: String::new(),
            command_line: String::new(),
            secrets: "sealed".into(),
            secure_boot: None,
            inputs: String::new(),
            partitions: BTreeMap::new(),
            packages: BTreeMap::new(),
            components: Vec::new(),
            files: [(Format::RawZst.file().to_string(), FileSum::of(&packed).unwrap())].into(),
            sources: None,
        };
        known.write(dir).unwrap();
    }

    #[test]
    fn a_node_image_is_an_artifact_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        built(&image, "secrets.sealed");
        let names = [Reference::parse("r.example/nodes/master:1").unwrap()];
        let content = of_node_image(&image, &names).unwrap();
        let root = content.choose(None).unwrap();
        let artifact = Manifest::parse(&content.document(root).unwrap()).unwrap();
        assert!(is_node_image(&artifact));
        assert_eq!(artifact.annotations["io.kimg.role"], "master");
        let out = dir.path().join("out");
        write_files(&content, &artifact, &out).unwrap();
        for file in [Format::RawZst.file(), manifest::FILE] {
            assert!(std::fs::read(out.join(file)).unwrap() == std::fs::read(image.join(file)).unwrap(), "{file}");
        }
        assert!(write_files(&content, &artifact, &out).unwrap_err().to_string().contains("exists already"));
        // A disk may be had once, and is no description.
        let refused = |change: &dyn Fn(&mut Manifest)| {
            let mut evil = artifact.clone();
            change(&mut evil);
            let error = format!("{:#}", write_files(&content, &evil, &dir.path().join("evil")).unwrap_err());
            assert!(!dir.path().join("evil").exists());
            error
        };
        let title = |layer: &mut Descriptor, name: &str| layer.annotations.insert(TITLE.into(), name.into());
        let error = refused(&|evil| {
            title(&mut evil.layers[1], "another");
        });
        assert!(error.contains("alone"), "{error}");
        assert!(refused(&|evil| evil.layers.push(evil.layers[0].clone())).contains("writing"));
        assert!(refused(&|evil| evil.layers[1].size = 17 << 20).contains("too long"));
        // A name that leaves the folder is no name.
        let mut evil = artifact.clone();
        evil.layers[1].annotations.insert(TITLE.into(), "../x".into());
        let error = write_files(&content, &evil, &dir.path().join("evil")).unwrap_err().to_string();
        assert!(error.contains("no plain file name"), "{error}");
        assert!(!dir.path().join("x").exists() && !dir.path().join("evil").exists());
    }

    #[test]
    fn keys_in_clear_and_changed_disks_stay_here() {
        let dir = tempfile::tempdir().unwrap();
        // The manifest says sealed; what counts is what the disk holds.
        built(dir.path(), "secrets/sa.key");
        let error = of_node_image(dir.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("private keys in clear") && error.contains("secrets = \"sealed\""), "{error}");
        built(dir.path(), "secrets.sealed");
        let mut unpacked = manifest::Manifest::read(dir.path()).unwrap();
        unpacked.files.clear();
        unpacked.write(dir.path()).unwrap();
        let error = of_node_image(dir.path(), &[]).unwrap_err().to_string();
        assert!(error.contains("`kimg build master --format raw.zst`"), "{error}");
        built(dir.path(), "secrets.sealed");
        let packed = dir.path().join(Format::RawZst.file());
        let mut bytes = std::fs::read(&packed).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&packed, bytes).unwrap();
        assert!(of_node_image(dir.path(), &[]).unwrap_err().to_string().contains("not the file"));
        std::fs::remove_file(dir.path().join(manifest::FILE)).unwrap();
        assert!(of_node_image(dir.path(), &[]).unwrap_err().to_string().contains("kimg build"));
    }
}
