//! `cluster.toml`: from the text as written to settings that hold.
//!
//! [`fragment`] is the file as people write it, `resolve` checks it and fills in the defaults,
//! [`settings`] is the result, [`error`] the one kind of error: file, line, column, field, what is wrong, the way out.
//! Parsing and validation take text; only [`load`] reads a file.

pub mod error;
pub mod fragment;
mod resolve;
pub mod settings;

pub use error::{ConfigError, nearest};
pub use settings::{Api, Arch, ImageOptions, Local, NodeSettings, Packages, SecretsForm, Settings, VmSize};

use anyhow::Context;
use std::path::Path;

/// Name of the file that describes a cluster.
pub const FILE_NAME: &str = "cluster.toml";

/// Reads and validates `DIR/cluster.toml`.
pub fn load(dir: &Path) -> anyhow::Result<Settings> {
    let path = dir.join(FILE_NAME);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::NotFound {
            format!(
                "there is no {FILE_NAME} in {}: make one with `kimg init {}`, or name another folder with --dir",
                dir.display(),
                dir.display()
            )
        } else {
            format!("{} cannot be read: {error}", path.display())
        };
        anyhow::Error::new(ConfigError::whole_file(&path, hint))
    })?;
    let dir = dir.canonicalize().with_context(|| format!("resolving {}", dir.display()))?;
    Ok(parse(&path, &text, &dir)?)
}

/// Parses and validates the text of a `cluster.toml`; `path` is what errors call it.
pub fn parse(path: &Path, text: &str, dir: &Path) -> Result<Settings, ConfigError> {
    let fragment: fragment::Fragment =
        toml::from_str(text).map_err(|error| ConfigError::from_toml(path, text, &error))?;
    resolve::resolve(fragment, dir)
        .map_err(|fault| ConfigError::at(path, text, fault.span, &fault.field, &fault.message))
}

#[cfg(test)]
mod tests;
