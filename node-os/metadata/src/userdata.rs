//! User-data: `#cloud-config` YAML with a `kimg:` section, raw, base64, gzip, or base64 of gzip.

use crate::encoding::{self, EncodingError};
use crate::{Reserved, Role, SealKey};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::num::NonZeroU32;

/// A document with a `kimg:` section may have so many bytes, decoded.
pub const KIMG_LIMIT: usize = 1024;
/// Nothing larger is looked at at all.
const HARD_LIMIT: usize = 16 * 1024;
const HEADER: &str = "#cloud-config";

/// Why user-data cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UserDataError {
    /// Beyond a limit.
    #[error("user-data has more than {limit} bytes; shorten it")]
    TooLarge {
        /// The limit it exceeds.
        limit: usize,
    },
    /// Gzip, base64 or UTF-8 is broken.
    #[error("user-data is unreadable: {0}; give it as plain text, base64 or gzip")]
    Unreadable(String),
    /// The first line is another.
    #[error("user-data does not begin with the line #cloud-config, but with {0:?}; kimg understands no other kind")]
    NotCloudConfig(String),
    /// YAML or the `kimg:` section is wrong.
    #[error("user-data is wrong: {0}")]
    Invalid(String),
    /// It has no `kimg:` section.
    #[error("user-data has no kimg: section; write it with `kimg seed NODE`")]
    NoSection,
}

/// What user-data says.
#[derive(Debug, Clone, Default)]
pub struct UserData {
    /// `hostname`.
    pub hostname: Option<String>,
    /// The `kimg:` section.
    pub kimg: Kimg,
}

/// The `kimg:` section.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Kimg {
    /// The role the operator expects.
    pub role: Option<Role>,
    /// Node addresses, the first is the InternalIP; a range stands for the address in it that the machine has.
    #[serde(deserialize_with = "one_or_many")]
    pub node_ip: Vec<String>,
    /// Masters, `host` or `host:port`; for masters on etcd, where there are several, the address of each.
    #[serde(deserialize_with = "one_or_many")]
    pub api: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, Scalar>,
    /// Taints as `key[=value]:Effect`.
    pub taints: Vec<String>,
    /// What the system keeps for itself.
    pub reserved: Reserved,
    /// Bootstrap token.
    pub token: Option<Secret>,
    /// Key of the sealed secrets.
    pub seal_key: Option<Secret>,
    /// A master without a store waits for a backup, and serves nothing until then.
    pub await_backup: bool,
    /// This master's etcd joins the members that run, and never begins a store.
    pub join_etcd: bool,
    /// It has a disk of so many GB, a worker for the volumes of pods and a single master for its store, and waits until it is
    /// attached.
    pub data_volume: Option<NonZeroU32>,
}

/// A text that must not show up in logs.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// A label's value: YAML reads `true` and `1` as something else than text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// Text.
    Text(String),
    /// `true`, `false`.
    Flag(bool),
    /// A whole number.
    Number(i64),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Scalar::Text(text) => f.write_str(text),
            Scalar::Flag(flag) => write!(f, "{flag}"),
            Scalar::Number(number) => write!(f, "{number}"),
        }
    }
}

impl Kimg {
    /// The seal key, checked.
    pub fn seal_key(&self) -> Result<Option<SealKey>, crate::SealError> {
        self.seal_key.as_ref().map(|text| SealKey::from_base64(&text.0)).transpose()
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Either::deserialize(input)? {
        Either::One(text) => vec![text],
        Either::Many(list) => list,
    })
}

/// Reads a document as the platform handed it over.
pub fn parse(raw: &[u8]) -> Result<UserData, UserDataError> {
    let text = decode(raw)?;
    let first = text.lines().next().unwrap_or_default().trim_end();
    if first != HEADER {
        return Err(UserDataError::NotCloudConfig(first.chars().take(40).collect()));
    }
    #[derive(Deserialize)]
    struct Document {
        hostname: Option<String>,
        kimg: Option<serde_yaml_ng::Value>,
    }
    // Other keys of a cloud-config are other programs' business; those of `kimg:` are checked strictly.
    let document: Document =
        serde_yaml_ng::from_str(&text).map_err(|error| UserDataError::Invalid(error.to_string()))?;
    let section = document.kimg.ok_or(UserDataError::NoSection)?;
    if text.len() > KIMG_LIMIT {
        return Err(UserDataError::TooLarge { limit: KIMG_LIMIT });
    }
    let kimg = Kimg::deserialize(section).map_err(|error| UserDataError::Invalid(format!("kimg: {error}")))?;
    Ok(UserData { hostname: document.hostname, kimg })
}

/// Undoes base64 and gzip.
pub fn decode(raw: &[u8]) -> Result<String, UserDataError> {
    encoding::decode(raw, HARD_LIMIT).map_err(|error| match error {
        EncodingError::TooLarge(limit) => UserDataError::TooLarge { limit },
        EncodingError::Broken(why) => UserDataError::Unreadable(why),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use std::io::Write;

    const GOOD: &str = "#cloud-config\nhostname: worker-1\nusers: []\nkimg:\n  role: worker\n  node-ip: 10.77.0.11\n  \
                        api: [10.77.0.10]\n  labels: {disk: ssd, fast: true}\n  taints: [\"a=b:NoSchedule\"]\n  \
                        token: abcdef.0123456789abcdef\n";

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_encoding_reads_the_same() {
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes).into_bytes();
        let plain = GOOD.as_bytes();
        for raw in [plain.to_vec(), encode(plain), gzip(plain), encode(&gzip(plain)), GOOD.replace('\n', "\r\n").into()]
        {
            let data = parse(&raw).unwrap();
            assert_eq!(data.hostname.as_deref(), Some("worker-1"));
            assert_eq!(data.kimg.role, Some(Role::Worker));
            assert_eq!(data.kimg.node_ip, ["10.77.0.11"]);
            assert_eq!(data.kimg.labels["fast"].to_string(), "true");
            assert!(!format!("{data:?}").contains("0123456789abcdef"), "tokens are not shown");
        }
    }

    #[test]
    fn every_fault_has_its_sentence() {
        let cases: &[(Vec<u8>, &str)] = &[
            (b"#!/bin/sh\n".to_vec(), "does not begin with the line #cloud-config"),
            (b"#cloud-config\nhostname: a\n".to_vec(), "no kimg: section"),
            (b"#cloud-config\nkimg: {rolle: worker}\n".to_vec(), "unknown field `rolle`"),
            (b"#cloud-config\nkimg: {role: boss}\n".to_vec(), "unknown variant `boss`"),
            (b"#cloud-config\nkimg: [\n".to_vec(), "user-data is wrong"),
            (b"#cloud-config\nkimg: \xff\n".to_vec(), "not UTF-8"),
            (format!("#cloud-config\nkimg: {{}}\n#{}", "x".repeat(1100)).into_bytes(), "more than 1024 bytes"),
            (vec![b'#'; 17000], "more than 16384 bytes"),
            (gzip(&vec![b' '; 2_000_000]), "more than 16384 bytes"),
            (gzip(b"#cloud-config")[..14].to_vec(), "gzip"),
            (Vec::new(), "does not begin"),
        ];
        for (raw, wanted) in cases {
            let error = parse(raw).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error:?} should contain {wanted:?}");
        }
    }
}
