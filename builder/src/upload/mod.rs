//! Node images at providers: one trait, one way to upload, and nothing temporary that stays.
//!
//! To add a provider: a module with a `Provider`, its arm in [`cmd::open`], its published calls in
//! `builder/tests/data/providers/NAME.json`, a fake in `fakes/NAME.rs`, its row in `docs/uploads.md`.

pub(crate) mod api;
mod aws;
pub mod cmd;
pub(crate) mod digitalocean;
pub(crate) mod ec2;
mod gcp;
pub(crate) mod google;
pub(crate) mod hetzner;
pub(crate) mod keystone;
pub(crate) mod linode;
mod openstack;
pub(crate) mod proxmox;
pub mod rescue;
pub mod s3;
pub mod settings;
pub(crate) mod sigv4;
pub(crate) mod vultr;

#[cfg(test)]
pub(crate) mod fakes;
#[cfg(test)]
pub(crate) mod schema;
#[cfg(test)]
mod tests;

use crate::cache::hash;
use crate::image::leave;
use crate::image::manifest::{self, FileSum};
use crate::image::output::Format;
use crate::web::{Interrupted, Lost, Refused};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

/// How the names of kimg's images and temporary things begin.
pub const PREFIX: &str = "kimg-";

/// A list of more pages than this has no end: at a hundred images and more a page, nobody has so many.
pub(crate) const PAGES: u32 = 100;

/// How far an image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Machines can be made of it.
    Ready,
    /// The provider is at work on it.
    Pending,
    /// It will never be ready: why.
    Broken(String),
}

/// An image at a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Remote {
    /// The provider's name for it.
    pub id: String,
    /// kimg's name for it, which names its content.
    pub name: String,
    /// How far it is.
    pub state: State,
    /// When it was made, as the provider says it.
    pub created: String,
}

/// Something that an earlier run left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Leftover {
    /// What kind of thing.
    pub kind: String,
    /// The provider's name for it.
    pub id: String,
}

/// A place for images.
pub trait Provider {
    /// The form of disk that it takes.
    fn format(&self) -> Format;

    /// The images that kimg put there, in any state.
    ///
    /// # Errors
    /// The provider cannot be asked.
    fn list(&self) -> Result<Vec<Remote>>;

    /// Puts an image there, as far as the provider's own work on it. All that it makes, and the image where it
    /// fails, is noted for [`Provider::tidy`].
    ///
    /// # Errors
    /// The provider refuses it.
    fn import(&self, image: &Local, bar: &ProgressBar) -> Result<String>;

    /// Waits until an image can be used, and compares what the provider says of its content.
    ///
    /// # Errors
    /// The provider gave it up, or holds something else.
    fn wait(&self, id: &str, image: &Local) -> Result<()>;

    /// Removes an image. One that is gone is no error. An interrupt does not stop it.
    ///
    /// # Errors
    /// The provider refuses.
    fn delete(&self, id: &str) -> Result<()>;

    /// Removes what [`Provider::import`] noted. An interrupt does not stop it.
    ///
    /// # Errors
    /// Something stays.
    fn tidy(&self) -> Result<()>;

    /// What earlier runs left.
    ///
    /// # Errors
    /// The provider cannot be asked.
    fn leftovers(&self) -> Result<Vec<Leftover>>;

    /// Removes one of them. One that is gone is no error. An interrupt does not stop it.
    ///
    /// # Errors
    /// The provider refuses.
    fn discard(&self, leftover: &Leftover) -> Result<()>;
}

/// What is to be removed in the end.
#[derive(Debug, Default)]
pub struct Temporaries(Mutex<Vec<Leftover>>);

impl Temporaries {
    fn held(&self) -> MutexGuard<'_, Vec<Leftover>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes one.
    pub fn add(&self, kind: &str, id: &str) {
        self.held().push(Leftover { kind: kind.into(), id: id.into() });
    }

    /// It is to stay after all.
    pub fn keep(&self, id: &str) {
        self.held().retain(|known| known.id != id);
    }

    /// Removes all, the last first.
    ///
    /// # Errors
    /// Some stay; the error names them.
    pub fn clear(&self, discard: impl Fn(&Leftover) -> Result<()>) -> Result<()> {
        let mut stay = Vec::new();
        for known in std::mem::take(&mut *self.held()).iter().rev() {
            if let Err(error) = discard(known) {
                stay.push(format!("{} {}: {error:#}", known.kind, known.id));
            }
        }
        if stay.is_empty() { Ok(()) } else { bail!("{}", stay.join("; ")) }
    }
}

/// Whether a call that failed may have been done: its answer was lost or not waited for, or a gateway lost it.
pub(crate) fn may_be_done(error: &anyhow::Error) -> bool {
    let lost_behind = |refused: &Refused| refused.status >= 500;
    error
        .chain()
        .any(|e| e.is::<Lost>() || e.is::<Interrupted>() || e.downcast_ref::<Refused>().is_some_and(lost_behind))
}

/// The provider's images that will never be ones, for `gc`.
///
/// # Errors
/// The provider cannot be asked.
pub fn broken(provider: &dyn Provider) -> Result<Vec<Leftover>> {
    let broken = provider.list()?.into_iter().filter(|image| matches!(image.state, State::Broken(_)));
    Ok(broken.map(|image| Leftover { kind: "image".into(), id: image.id }).collect())
}

/// The image that a call made although its answer was lost.
///
/// # Errors
/// The call failed otherwise, or made nothing.
pub fn adopt(provider: &dyn Provider, name: &str, error: anyhow::Error) -> Result<String> {
    if !may_be_done(&error) {
        return Err(error);
    }
    match provider.list().map(|all| all.into_iter().find(|known| known.name == name)) {
        Ok(Some(known)) => Ok(known.id),
        Ok(None) => Err(error),
        Err(_) => Err(error.context(format!("whether {name} was made is not known; `kimg image ls` tells"))),
    }
}

/// A node image on this machine, in the form that a provider takes.
#[derive(Debug, Clone)]
pub struct Local {
    /// `kimg-CLUSTER-ROLE-SUM`
    pub name: String,
    /// Role.
    pub role: String,
    /// The file.
    pub path: PathBuf,
    /// Its size and sum.
    pub sum: FileSum,
    /// Size of the disk itself, bytes.
    pub disk_size: u64,
    /// Sum of the disk itself.
    pub disk_sha256: String,
}

impl Local {
    /// The image in `dir`, which `kimg build` made, in this form; a form that is missing is made.
    ///
    /// # Errors
    /// There is no image, it is not what its manifest says or not in this form, or it holds private keys in clear.
    pub fn read(dir: &Path, format: Format) -> Result<Local> {
        let known = manifest::Manifest::of_image(dir)?;
        let raw = Format::Raw.file();
        let disk = known.files.get(raw).with_context(|| format!("the manifest in {} names no {raw}", dir.display()))?;
        let check = |name: &str, sum: &FileSum| -> Result<()> {
            if FileSum::of(&dir.join(name))? != *sum {
                bail!("{} is not the file that its manifest names; build the image again", dir.join(name).display());
            }
            Ok(())
        };
        check(raw, disk)?;
        let path = dir.join(format.file());
        let sum = match known.files.get(format.file()) {
            Some(sum) => {
                if format != Format::Raw {
                    check(format.file(), sum)?;
                }
                sum.clone()
            }
            None => {
                format.write(&dir.join(raw), &path)?;
                FileSum::of(&path)?
            }
        };
        format.check(&path)?;
        leave::may_leave(&path)?;
        let role = known.role.as_str().to_string();
        let name = format!("{PREFIX}{}-{role}-{}", known.cluster, &disk.sha256[..12]);
        Ok(Local { name, role, path, sum, disk_size: disk.size, disk_sha256: disk.sha256.clone() })
    }

    /// SHA-512 of the file, as Glance keeps it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sha512(&self) -> Result<String> {
        hash::sha512_of_file(&self.path)
    }
}

/// What came of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// The provider's name for the image.
    pub id: String,
    /// Whether it was there already.
    pub reused: bool,
}

/// Brings an image to a provider, or finds that it is there.
///
/// # Errors
/// It is not there afterwards. Then nothing temporary is, either, or the error says what.
pub fn upload(provider: &dyn Provider, image: &Local, bar: &ProgressBar) -> Result<Uploaded> {
    for known in provider.list()?.into_iter().filter(|known| known.name == image.name) {
        if let State::Broken(_) = known.state {
            provider.delete(&known.id)?;
        } else {
            provider.wait(&known.id, image)?;
            return Ok(Uploaded { id: known.id, reused: true });
        }
    }
    let imported = provider.import(image, bar);
    let id = imported.as_ref().ok().cloned();
    let done = imported.and_then(|id| provider.wait(&id, image).map(|()| id));
    let mut stays = Vec::new();
    if done.is_err()
        && let Some(id) = id
        && let Err(error) = provider.delete(&id)
    {
        stays.push(format!("the image {id}: {error:#}"));
    }
    if let Err(error) = provider.tidy() {
        stays.push(format!("{error:#}"));
    }
    let stays = stays.join("; ");
    match done {
        Ok(id) if stays.is_empty() => Ok(Uploaded { id, reused: false }),
        Ok(id) => bail!("the image is there as {id}, and something temporary is, too ({stays}); `kimg gc` removes it"),
        Err(error) if stays.is_empty() => Err(error),
        Err(error) => Err(error.context(format!("this stays: {stays}; `kimg gc` removes it"))),
    }
}
