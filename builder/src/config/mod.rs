//! `cluster.toml`: from the text as written to settings that hold.
//!
//! [`fragment`] is the file as people write it, `resolve` checks it (`value` its single values) and fills in the defaults,
//! [`settings`] is the result, [`error`] the one kind of error: file, line, column, field, what is wrong, the way out.
//! Parsing and validation take text; only [`load`] reads a file.

mod baked;
mod components;
pub mod edit;
pub mod error;
pub mod fragment;
mod labels;
mod logs;
mod provider;
mod resolve;
pub mod settings;
mod value;

pub use error::{ConfigError, nearest};
pub use settings::{
    Api, Arch, BackupTo, ImageOptions, Local, NodeSettings, Packages, Provider, ProviderName, Proxmox, PublicAddress,
    SecretsForm, Settings, VmSize,
};

pub(crate) use resolve::RESERVED_NAME;
pub(crate) use value::is_dns_label;

use crate::image::recipe::PackageRecipe;
use crate::input;
use anyhow::Context;
use std::path::{Path, PathBuf};

/// Name of the file that describes a cluster.
pub const FILE_NAME: &str = "cluster.toml";

/// Reads and validates `DIR/cluster.toml`.
pub fn load(dir: &Path) -> anyhow::Result<Settings> {
    let path = dir.join(FILE_NAME);
    if !input::is_there(&path)? {
        let shown = dir.display();
        let hint =
            format!("there is no such file: make one with `kimg init {shown}`, or name another folder with --dir");
        return Err(ConfigError::whole_file(&path, hint).into());
    }
    let text = input::text(&path, input::SMALL)?;
    let dir = dir.canonicalize().with_context(|| format!("resolving {}", dir.display()))?;
    Ok(parse(&path, &text, &dir)?)
}

/// Parses and validates the text of a `cluster.toml`; `path` is what errors call it.
pub fn parse(path: &Path, text: &str, dir: &Path) -> Result<Settings, ConfigError> {
    let fragment: fragment::Fragment =
        toml::from_str(text).map_err(|error| ConfigError::from_toml(path, text, &error))?;
    let place = |fault: value::Fault| ConfigError::at(path, text, fault.span, &fault.field, &fault.message);
    let (mut settings, local) = resolve::resolve(fragment, dir).map_err(place)?;
    settings.local.fault = local.map(place);
    settings.text = text.to_string();
    // Images with their keys in clear are for local VMs only: what does not run there runs nowhere.
    match (&settings.local.fault, settings.secrets) {
        (Some(fault), SecretsForm::Plain) => Err(fault.clone()),
        _ => Ok(settings),
    }
}

/// The files that a `cluster.toml` names for a role's image, as they are written: manifests, container images,
/// `[image.files]`, then own components; of both roles before the role's own.
pub fn written_files(text: &str, role: node_metadata::Role) -> anyhow::Result<Vec<PathBuf>> {
    let fragment: fragment::Fragment = toml::from_str(text).context("reading cluster.toml")?;
    let common = fragment.image;
    let own = match role {
        node_metadata::Role::Master => common.master,
        node_metadata::Role::Worker => common.worker,
    };
    let lists = fragment.manifests.into_iter().chain(common.images).chain(own.images);
    let files = common.files.into_values().chain(own.files.into_values());
    let components = common.components.into_values().chain(own.components.into_values());
    let programs = components.map(|component| component.binary);
    Ok(lists.chain(files).chain(programs).map(toml::Spanned::into_inner).collect())
}

/// The packages that a `cluster.toml` adds to the images, each with its place behind the file's name, as errors have it.
pub fn written_packages(text: &str) -> anyhow::Result<Vec<(PackageRecipe, String)>> {
    let image = toml::from_str::<fragment::Fragment>(text).context("reading cluster.toml")?.image;
    let lists =
        [("image", image.packages), ("image.master", image.master.packages), ("image.worker", image.worker.packages)];
    let place = |field: &str, package: &toml::Spanned<PackageRecipe>| {
        let (line, column) = error::line_column(text, package.span().start);
        format!(":{line}:{column}: {field}.packages")
    };
    let placed = lists.into_iter().flat_map(|(field, packages)| {
        packages.into_iter().map(move |package| (place(field, &package), package.into_inner()))
    });
    Ok(placed.map(|(place, package)| (package, place)).collect())
}

#[cfg(test)]
mod tests;
