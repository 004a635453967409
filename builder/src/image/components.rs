//! The workspace's own executables: where they are, and which build they are.

use crate::cache::hash;
use crate::input;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where cargo puts release builds for the target, and without one.
const RELEASE_FOLDERS: [&str; 2] = ["target/x86_64-unknown-linux-gnu/release", "target/release"];
/// The executable by which a folder of components is known.
const MARK: &str = "kimg-node";

/// An executable that goes into an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Component {
    /// File name.
    pub name: String,
    /// SHA-256.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
}

/// A folder of components.
#[derive(Debug, Clone)]
pub struct Components {
    dir: PathBuf,
    memory: PathBuf,
}

impl Components {
    /// The folder that was asked for, or the first that holds components: beside `kimg`, then the release
    /// folders of the workspace in which `kimg` or the current folder lies.
    pub fn find(given: Option<&Path>, memory: &Path) -> Result<Components> {
        let found = |dir: &Path| Components { dir: dir.to_path_buf(), memory: memory.to_path_buf() };
        if let Some(dir) = given {
            if !dir.join(MARK).is_file() {
                let shown = dir.display();
                return input::bad(format!(
                    "{shown} holds no {MARK}; build the components with `cargo build --release`"
                ));
            }
            return Ok(found(dir));
        }
        let mut places = Vec::new();
        if let Ok(exe) = std::env::current_exe() {
            places.extend(exe.parent().map(Path::to_path_buf));
            places.extend(release_folders(&exe));
        }
        if let Ok(here) = std::env::current_dir() {
            places.extend(release_folders(&here.join("x")));
        }
        match places.iter().find(|dir| dir.join(MARK).is_file()) {
            Some(dir) => Ok(found(dir)),
            None => bail!(
                "the programs for the images ({MARK} and others) are not beside kimg; build them with `cargo build --release`, or say where they are with --components DIR"
            ),
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the executable `name` is.
    pub fn identify(&self, name: &str) -> Result<Component> {
        let path = self.path(name)?;
        let sha256 = hash::hex_of_file_remembered(&path, &self.memory)?;
        let size = std::fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len();
        Ok(Component { name: name.to_string(), sha256, size })
    }

    /// Its content, which must be what [`Components::identify`] saw.
    pub fn read(&self, component: &Component) -> Result<Arc<[u8]>> {
        let path = self.path(&component.name)?;
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        if hash::hex_of(&bytes) != component.sha256 {
            bail!("{} changed while the image was being built; run the build again", path.display());
        }
        Ok(bytes.into())
    }

    /// Where a component lies, if it is the one here.
    pub fn locate(&self, component: &Component) -> Option<PathBuf> {
        let here = self.identify(&component.name).ok()?;
        (here == *component).then(|| self.dir.join(&component.name))
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        // Recipes come from anybody: no other file of this machine may get into an image.
        if Path::new(name).file_name().is_none_or(|file| file != name) {
            return input::bad(format!("'{name}' is no component; write its file name alone"));
        }
        let path = self.dir.join(name);
        if !path.is_file() {
            let dir = self.dir.display();
            return input::bad(format!("{dir} holds no {name}; build it with `cargo build --release`"));
        }
        Ok(path)
    }
}

/// Release folders of all workspaces above `path`.
fn release_folders(path: &Path) -> Vec<PathBuf> {
    path.ancestors().skip(1).flat_map(|dir| RELEASE_FOLDERS.map(|f| dir.join(f))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_components_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let error = Components::find(Some(dir.path()), dir.path()).unwrap_err().to_string();
        assert!(error.contains("cargo build --release"), "{error}");
        std::fs::write(dir.path().join(MARK), "elf").unwrap();
        let found = Components::find(Some(dir.path()), &dir.path().join("memory")).unwrap();
        let component = found.identify(MARK).unwrap();
        assert_eq!(component.size, 3);
        std::fs::create_dir(dir.path().join("below")).unwrap();
        std::fs::write(dir.path().join("below/key"), "key").unwrap();
        for other in ["below/key", "below/../kimg-node", "/etc/passwd", "..", "", "nosuch"] {
            let error = found.identify(other).unwrap_err();
            assert!(error.is::<input::BadInput>() && error.to_string().contains(other), "{error:#}");
        }
        std::fs::write(dir.path().join(MARK), "other").unwrap();
        assert!(found.read(&component).unwrap_err().to_string().contains("changed while"));
    }
}
