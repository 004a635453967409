//! The documents of the OCI image specification, as far as kimg reads and writes them.

use crate::cache::hash;
use crate::input;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// One image.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Several images under one name.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An image's configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// A configuration of something that is no container image.
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Docker's older names for the same documents.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's older name of an index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Annotation: full name, for containerd.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation: tag, or name.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation: file name of a layer, for oras.
pub const TITLE: &str = "org.opencontainers.image.title";
/// Annotation: name of the base image.
pub const BASE_NAME: &str = "org.opencontainers.image.base.name";
/// Annotation: digest of the base image.
pub const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";

/// Names a blob by its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Where it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What kind of artifact the manifest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Of these bytes.
    pub fn of(media_type: &str, bytes: &[u8]) -> Descriptor {
        Descriptor::new(media_type, &hash::hex_of(bytes), bytes.len() as u64)
    }

    /// Of a blob whose sum and size are known.
    pub fn new(media_type: &str, sha256: &str, size: u64) -> Descriptor {
        Descriptor {
            media_type: media_type.to_string(),
            digest: format!("sha256:{sha256}"),
            size,
            platform: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
        }
    }

    /// The digest's hex digits.
    ///
    /// # Errors
    /// It is no SHA-256.
    pub fn sha256(&self) -> Result<&str> {
        if !super::reference::is_digest(&self.digest) {
            bail!("{} is no digest that kimg can check; it checks sha256", self.digest);
        }
        Ok(self.digest.trim_start_matches("sha256:"))
    }

    /// Whether it names manifests.
    pub fn is_index(&self) -> bool {
        self.media_type == INDEX || self.media_type == DOCKER_INDEX
    }

    /// Whether it names a configuration and layers.
    pub fn is_manifest(&self) -> bool {
        self.media_type == MANIFEST || self.media_type == DOCKER_MANIFEST
    }
}

/// `os/architecture[/variant]`
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// As Go names it.
    pub architecture: String,
    /// As Go names it.
    pub os: String,
    /// Of the architecture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Default for Platform {
    fn default() -> Platform {
        Platform { architecture: "amd64".into(), os: "linux".into(), variant: None }
    }
}

impl Platform {
    /// Whether programs for the one are programs for the other: arm64 has its variant v8 with or without saying so.
    pub fn is_same(&self, other: &Platform) -> bool {
        let variant = |p: &Platform| p.variant.clone().filter(|v| !(p.architecture == "arm64" && v == "v8"));
        (&self.os, &self.architecture, variant(self)) == (&other.os, &other.architecture, variant(other))
    }
}

impl FromStr for Platform {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Platform> {
        let words: Vec<&str> = text.split('/').collect();
        let fine = |w: &&str| !w.is_empty() && w.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        match words[..] {
            [os, architecture] if words.iter().all(fine) => {
                Ok(Platform { architecture: architecture.into(), os: os.into(), variant: None })
            }
            [os, architecture, variant] if words.iter().all(fine) => {
                Ok(Platform { architecture: architecture.into(), os: os.into(), variant: Some(variant.into()) })
            }
            _ => {
                let way_out = "write OS/ARCHITECTURE, e.g. linux/amd64 or linux/arm/v7";
                input::bad(format!("'{text}' is no platform; {way_out}"))
            }
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What kind of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Configuration.
    pub config: Descriptor,
    /// Layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// A manifest of these parts.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: Some(MANIFEST.into()),
            artifact_type: None,
            config,
            layers,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Manifest> {
        serde_json::from_slice(bytes).context("reading a manifest")
    }
}

/// An index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it names.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// An index of these manifests.
    pub fn new(manifests: Vec<Descriptor>) -> Index {
        Index { schema_version: 2, media_type: Some(INDEX.into()), manifests, annotations: BTreeMap::new() }
    }

    /// Reads one.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Index> {
        serde_json::from_slice(bytes).context("reading an index")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_has_two_names() {
        for (one, other, same) in [
            ("linux/arm64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm64", "linux/arm64/v9", false),
            ("linux/arm/v8", "linux/arm", false),
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "windows/amd64", false),
        ] {
            let parse = |text: &str| text.parse::<Platform>().unwrap();
            assert_eq!(parse(one).is_same(&parse(other)), same, "{one} {other}");
        }
    }
}
