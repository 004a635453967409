//! What an image was made of, in its manifest, and the way back: `kimg build --from-manifest`.

use super::build::{self, Built, Options};
use super::components::Components;
use super::manifest::{FileSum, Manifest};
use super::output::Format;
use crate::cache::bundle;
use crate::config::{self, Packages, Settings};
use crate::lock::{Lock, LockedPackage};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use node_metadata::Role;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Everything besides the programs and the keys that an image was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sources {
    /// The text of `cluster.toml`.
    pub cluster_toml: String,
    /// Files that it names: add-on manifests, and this role's container images.
    pub files: Vec<SourceFile>,
    /// Packages of the image and of the tools that wrote it.
    pub packages: Vec<LockedPackage>,
}

/// A file that `cluster.toml` names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SourceFile {
    /// As it is written there.
    pub written: PathBuf,
    /// File name under which it goes into the image.
    pub name: String,
    /// Permission bits in the image.
    pub mode: u32,
    /// Size and sum; of a folder, those of the container image that was made of it.
    #[serde(flatten)]
    pub sum: FileSum,
}

impl Sources {
    /// Makes the image of a manifest, which [`Manifest::parse`] has read, again, in the cluster's folder `dir`, which holds its keys. Mirrors are those of
    /// `packages` where given, else those that the image was built from.
    ///
    /// # Errors
    /// Something that it was made of cannot be had any more, or what comes out is another image.
    pub fn again(
        manifest: &Manifest,
        dir: &Path,
        packages: Option<Packages>,
        components: Option<&Path>,
        progress: &Progress,
    ) -> Result<Built> {
        let Some(sources) = &manifest.sources else {
            bail!(
                "the manifest does not say what its image was made of; it is of an older kimg ({})",
                manifest.version
            );
        };
        let stage = tempfile::tempdir().context("making a temporary folder")?;
        let mut settings = sources.settings(manifest.role, dir, stage.path())?;
        if let Some(packages) = packages {
            settings.packages = packages;
        }
        let options = Options {
            components: Some(stage_components(manifest, components, stage.path())?),
            formats: formats_of(manifest),
            sources: Some(sources.clone()),
        };
        let mut built = build::build(&settings, &[manifest.role], &options, progress)?;
        let mut built = built.pop().context("nothing was built")?;
        // Its programs are those of then.
        if built.manifest.states != manifest.states {
            built.manifest.states.clone_from(&manifest.states);
            built.manifest.write(&built.dir)?;
        }
        let other: Vec<&str> = manifest
            .files
            .iter()
            // The bytes themselves: what was built before may have been altered since.
            .filter(|(name, sum)| FileSum::of(&built.dir.join(name)).ok().as_ref() != Some(*sum))
            .map(|(name, _)| name.as_str())
            .collect();
        if !other.is_empty() {
            bail!(
                "{} came out as other files than the manifest names: its image was built by kimg {}, this is {}; or the keys in {} are not the ones of then",
                other.join(", "),
                manifest.version,
                env!("CARGO_PKG_VERSION"),
                settings.secrets_dir().display()
            );
        }
        Ok(built)
    }

    /// The lock file of then, as far as this image needs it.
    pub fn lock(&self) -> Lock {
        Lock::of(self.packages.clone())
    }

    /// The settings of then; files that `cluster.toml` names are those that have not changed, or are taken from
    /// the cache.
    fn settings(&self, role: Role, dir: &Path, stage: &Path) -> Result<Settings> {
        let mut table: toml::Table =
            toml::from_str(&self.cluster_toml).context("reading the manifest's cluster.toml")?;
        let other = if role == Role::Master { Role::Worker } else { Role::Master };
        if let Some(toml::Value::Table(image)) = table.get_mut("image") {
            // What it has besides is in the other role's image only.
            image.remove(other.as_str());
        }
        for value in paths_in(&mut table, role) {
            let written = value.as_str().map(PathBuf::from).unwrap_or_default();
            let file = self.files.iter().find(|f| f.written == written).with_context(|| {
                format!("the manifest names {} in cluster.toml, and not its sum", written.display())
            })?;
            let staged = stage.join(&file.sum.sha256).join(&file.name);
            place(&of_then(dir, file)?, &staged, file.mode)?;
            *value = toml::Value::String(staged.display().to_string());
        }
        let text = toml::to_string(&table).context("writing the manifest's cluster.toml")?;
        let mut settings = config::parse(Path::new("cluster.toml of the manifest"), &text, dir)?;
        settings.text.clone_from(&self.cluster_toml);
        Ok(settings)
    }
}

/// The values of a `cluster.toml` that name files for a role's image.
fn paths_in(table: &mut toml::Table, role: Role) -> Vec<&mut toml::Value> {
    let mut found = Vec::new();
    for (key, value) in table.iter_mut() {
        match (key.as_str(), value) {
            ("manifests", toml::Value::Array(list)) => found.extend(list.iter_mut()),
            ("image", toml::Value::Table(image)) => {
                for (key, value) in image.iter_mut() {
                    if key.as_str() != role.as_str() {
                        found.extend(paths_under(key, value));
                    } else if let toml::Value::Table(own) = value {
                        own.iter_mut().for_each(|(key, value)| found.extend(paths_under(key, value)));
                    }
                }
            }
            _ => {}
        }
    }
    found
}

/// Those of one key of `[image]` or `[image.ROLE]`.
fn paths_under<'v>(key: &str, value: &'v mut toml::Value) -> Vec<&'v mut toml::Value> {
    match (key, value) {
        ("images", toml::Value::Array(list)) => list.iter_mut().collect(),
        ("files", toml::Value::Table(files)) => files.iter_mut().map(|(_, file)| file).collect(),
        ("components", toml::Value::Table(all)) => {
            all.iter_mut().filter_map(|(_, component)| component.get_mut("binary")).collect()
        }
        _ => Vec::new(),
    }
}

/// A copy with these permission bits: a link would show those of the cache.
fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let folder = to.parent().context("a file needs a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    std::fs::copy(from, to)
        .and_then(|_| std::fs::set_permissions(to, std::fs::Permissions::from_mode(mode & 0o777)))
        .with_context(|| format!("writing {}", to.display()))
}

/// A file of the cluster's folder that is as it was, else from the cache.
fn of_then(dir: &Path, file: &SourceFile) -> Result<PathBuf> {
    let own = dir.join(&file.written);
    if own.is_file() && FileSum::of(&own).is_ok_and(|sum| sum == file.sum) {
        return Ok(own);
    }
    have_blob(&file.sum.sha256, &file.written.display().to_string())
}

fn have_blob(sha256: &str, what: &str) -> Result<PathBuf> {
    let path = bundle::blob(sha256)?;
    if !path.is_file() {
        bail!(
            "{what} with SHA-256 {sha256} is not in the cache; take in an export of the time at which the image was built: `kimg cache import FILE`"
        );
    }
    Ok(path)
}

fn link(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file needs a folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let from = from.canonicalize().with_context(|| format!("resolving {}", from.display()))?;
    match std::os::unix::fs::symlink(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("linking {}", to.display()))
        }
        _ => Ok(()),
    }
}

/// A folder with the programs of then: from the given or found folder where they are the same, else from the cache.
fn stage_components(manifest: &Manifest, given: Option<&Path>, stage: &Path) -> Result<PathBuf> {
    let folder = stage.join("components");
    let present = Components::find(given, &stage.join("sums"));
    for component in &manifest.components {
        let here = present.as_ref().ok().and_then(|components| components.locate(component));
        let path = match here {
            Some(path) => path,
            None => have_blob(&component.sha256, &format!("the program {}", component.name))?,
        };
        link(&path, &folder.join(&component.name))?;
    }
    Ok(folder)
}

fn formats_of(manifest: &Manifest) -> Vec<Format> {
    let named = |format: &&Format| manifest.files.contains_key(format.file());
    Format::value_variants().iter().filter(named).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back_with_files_of_the_cache() {
        let stage = tempfile::tempdir().unwrap();
        let text = "name = \"demo\"\nmanifests = [\"../own.yaml\"]\nnodes = [{ name = \"m\", role = \"master\" }]\n\
                    [image.worker]\nimages = [\"gone/web.tar\"]\n";
        let sum = FileSum { size: 1, sha256: "12".repeat(32) };
        let file = SourceFile { written: "../own.yaml".into(), name: "own.yaml".into(), mode: 0o644, sum };
        let sources = Sources { cluster_toml: text.into(), files: vec![file], packages: Vec::new() };
        let error = sources.settings(Role::Master, stage.path(), stage.path()).unwrap_err().to_string();
        assert!(error.contains("../own.yaml") && error.contains("kimg cache import"), "{error}");
        let error = sources.settings(Role::Worker, stage.path(), stage.path()).unwrap_err().to_string();
        assert!(error.contains("gone/web.tar") && error.contains("not its sum"), "{error}");
    }

    #[test]
    fn an_own_file_that_has_not_changed_needs_no_export() {
        let (dir, stage) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let own = dir.path().join("motd");
        std::fs::write(&own, "hello\n").unwrap();
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n\
                    [image]\nfiles = { \"/etc/motd\" = \"motd\" }\n";
        let sum = FileSum::of(&own).unwrap();
        let file = SourceFile { written: "motd".into(), name: "motd".into(), mode: 0o644, sum };
        let sources = Sources { cluster_toml: text.into(), files: vec![file], packages: Vec::new() };
        sources.settings(Role::Master, dir.path(), stage.path()).unwrap();
        std::fs::write(&own, "another\n").unwrap();
        let error = sources.settings(Role::Master, dir.path(), stage.path()).unwrap_err().to_string();
        assert!(error.contains("motd with SHA-256") && error.contains("kimg cache import"), "{error}");
    }

    /// As many and the same as those whose sums a manifest takes.
    #[test]
    fn every_file_of_a_role_is_found() {
        let text = r#"
            name = "demo"
            manifests = ["own.yaml"]
            nodes = [{ name = "m", role = "master" }]
            [image]
            images = ["a.tar"]
            files = { "/etc/a" = "a" }
            components = { a = { binary = "a.elf", args = ["x"] } }
            [image.master]
            images = ["m.tar"]
            files = { "/etc/m" = "m" }
            components = { m = { binary = "m.elf" } }
        "#;
        for (role, count) in [(Role::Master, 7), (Role::Worker, 4)] {
            let mut table = toml::from_str(text).unwrap();
            let mut found: Vec<PathBuf> =
                paths_in(&mut table, role).iter().map(|v| v.as_str().unwrap().into()).collect();
            let mut written = config::written_files(text, role).unwrap();
            found.sort();
            written.sort();
            assert_eq!((found.len(), &found), (count, &written));
        }
    }

    #[test]
    fn a_manifest_of_an_older_kimg_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let manifest: Manifest = serde_json::from_value(serde_json::json!({
            "version": "0.0.9", "cluster": "demo", "role": "master", "root-hash": "", "kernel": "", "command-line": "",
            "secrets": "none", "inputs": "", "partitions": {}, "packages": {}, "components": [], "files": {},
        }))
        .unwrap();
        let error = Sources::again(&manifest, dir.path(), None, None, &Progress::new()).unwrap_err().to_string();
        assert!(error.contains("0.0.9"), "{error}");
    }
}
