//! `kimg inspect`: what is in an image, read from the image itself.

use super::manifest::{FileSum, Manifest};
use super::reader::Disk;
use super::verity;
use crate::cache::hash;
use crate::disk::{config_part, gpt};
use crate::input;
use crate::logs::line::harmless;
use crate::pki::config_partition::ConfigFiles;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The most that the CONFIG partition may have: it is read whole.
const MOST_CONFIG: u64 = 64 << 20;
/// The most that the EFI partition may have: it is read whole.
const MOST_ESP: u64 = 256 << 20;
/// The most of a compressed image that is unpacked on the way to a partition: a false partition table may name any place.
const MOST_UNPACKED: u64 = 64 << 30;

/// What an image holds.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// Partitions in order.
    pub partitions: Vec<PartitionReport>,
    /// Verity root hash, from the PARTUUIDs.
    pub root_hash: String,
    /// Whether the hash tree's top has that hash.
    pub hash_tree_matches: bool,
    /// The cluster's settings.
    pub cluster: serde_json::Value,
    /// Certificates in CONFIG.
    pub certificates: Vec<CertificateReport>,
    /// The kernel's command line, from the unified kernel image.
    pub command_line: String,
    /// All files in CONFIG.
    pub config_files: BTreeMap<String, FileSum>,
    /// `none`, `plain` or `sealed`.
    pub secrets: String,
    /// What its programs read and write, from the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub states: Option<node_api::Release>,
    /// SHA-256 of the certificate that the kernel is signed for, from the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secure_boot: Option<String>,
    /// Packages, where the manifest lies beside the image.
    pub packages: BTreeMap<String, String>,
    /// Own executables and their sizes, from the manifest.
    pub components: BTreeMap<String, u64>,
    /// Files and container images that `cluster.toml` had baked in, as it names them, and their sizes, from the manifest.
    pub own: BTreeMap<String, u64>,
    /// Sizes of the files beside the image, from the manifest.
    pub files: BTreeMap<String, u64>,
}

/// One partition.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PartitionReport {
    /// Number from 1.
    pub number: usize,
    /// Name.
    pub name: String,
    /// PARTUUID.
    pub id: String,
    /// Offset in bytes.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// One certificate.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CertificateReport {
    /// File in CONFIG.
    pub file: String,
    /// Subject.
    pub subject: String,
    /// First moment of validity.
    pub not_before: String,
    /// Last moment of validity.
    pub not_after: String,
    /// SHA-256 of the certificate.
    pub fingerprint: String,
}

/// The partition table of an image.
pub fn table_of(disk: &mut Disk) -> Result<gpt::Table> {
    gpt::Table::parse(&disk.read_at(0, 34 * 512)?)
}

/// A partition by its name.
pub fn partition<'t>(table: &'t gpt::Table, name: &str) -> Result<&'t gpt::Partition> {
    table.partition(name).with_context(|| format!("it has no partition '{name}'"))
}

/// A whole partition of at most `most` bytes.
fn read_partition(disk: &mut Disk, table: &gpt::Table, name: &str, most: u64) -> Result<Vec<u8>> {
    let found = partition(table, name)?;
    match found.sectors.checked_mul(gpt::SECTOR).filter(|size| *size <= most) {
        Some(size) => disk.read_at(offset_of(found)?, usize::try_from(size)?),
        None => bail!("its partition '{name}' is larger than kimg makes it"),
    }
}

/// The files of CONFIG, where the disk has not been read beyond it.
pub fn config_in(disk: &mut Disk, table: &gpt::Table) -> Result<ConfigFiles> {
    config_part::decode(&read_partition(disk, table, "config", MOST_CONFIG)?)
}

/// The partition table of an image, and the files of its CONFIG.
pub fn config_of(disk: &mut Disk) -> Result<(gpt::Table, ConfigFiles)> {
    let table = table_of(disk)?;
    let files = config_in(disk, &table)?;
    Ok((table, files))
}

/// Reads an image; compressed ones are read as a stream, front to back.
///
/// # Errors
/// [`input::BadInput`] when the file is no image of kimg, or a damaged one.
pub fn inspect(path: &Path) -> Result<Report> {
    let disk = Disk::open(path)?;
    let manifest = path.parent().map_or(Ok(None), Manifest::known)?;
    // The file is what was typed, so whatever does not hold of it is a mistake in the input. The outermost sentence is
    // ours; what libraries say below it helps nobody.
    read(disk, manifest)
        .or_else(|error| input::bad(format!("{} is no readable image of kimg: {error}", path.display())))
}

/// `manifest`: the one beside the image.
fn read(mut disk: Disk, manifest: Option<Manifest>) -> Result<Report> {
    let table = table_of(&mut disk)?;
    let root_hash = root_hash_of(&table)?;
    // In the order in which they lie, since a stream cannot go back.
    let command_line = command_line_in(&read_partition(&mut disk, &table, "esp", MOST_ESP)?);
    let top = disk.read_at(offset_of(partition(&table, "verity")?)?, 2 * verity::BLOCK)?;
    let files = config_in(&mut disk, &table)?;
    disk.check_end(table.sectors.saturating_mul(gpt::SECTOR))?;
    let manifest = manifest.filter(|m| m.root_hash == root_hash);

    let mut report = Report {
        partitions: table
            .partitions
            .iter()
            .enumerate()
            .map(|(n, p)| PartitionReport {
                number: n + 1,
                name: p.name.clone(),
                id: p.id.to_string(),
                offset: p.first.saturating_mul(gpt::SECTOR),
                size: p.sectors.saturating_mul(gpt::SECTOR),
            })
            .collect(),
        hash_tree_matches: hex::encode(verity::top_hash(&top)?) == root_hash,
        root_hash,
        cluster: serde_json::Value::Null,
        certificates: Vec::new(),
        command_line,
        config_files: BTreeMap::new(),
        secrets: "none".into(),
        states: None,
        secure_boot: None,
        packages: BTreeMap::new(),
        components: BTreeMap::new(),
        own: BTreeMap::new(),
        files: BTreeMap::new(),
    };
    for (file, (_, content)) in &files {
        let name = file.display().to_string();
        if name == "cluster.json" {
            report.cluster = serde_json::from_slice(content).context("reading cluster.json")?;
        } else if name.ends_with(".crt") {
            report.certificates.extend(certificates(&name, content)?);
        }
        if node_metadata::is_sealed_file(&name) {
            report.secrets = "sealed".into();
        } else if name.starts_with("secrets/") {
            report.secrets = "plain".into();
        }
        let sum = FileSum { size: content.len() as u64, sha256: hash::hex_of(content) };
        report.config_files.insert(name, sum);
    }
    if let Some(manifest) = manifest {
        report.states = manifest.states;
        report.secure_boot = manifest.secure_boot;
        report.packages = manifest.packages;
        report.components = manifest.components.into_iter().map(|c| (c.name, c.size)).collect();
        let own = manifest.sources.into_iter().flat_map(|sources| sources.files);
        report.own = own.map(|file| (file.written.display().to_string(), file.sum.size)).collect();
        report.files = manifest.files.into_iter().map(|(name, sum)| (name, sum.size)).collect();
    }
    Ok(report)
}

/// Where a partition begins.
pub fn offset_of(partition: &gpt::Partition) -> Result<u64> {
    let offset = partition.first.checked_mul(gpt::SECTOR).filter(|offset| *offset <= MOST_UNPACKED);
    offset.with_context(|| format!("its partition '{}' lies further out than kimg puts it", partition.name))
}

/// The command line is the only text on the EFI partition that begins with the root hash's name; it ends with a zero.
fn command_line_in(esp: &[u8]) -> String {
    let Some(start) = memchr::memmem::find(esp, b"kimg.roothash=") else { return String::new() };
    let text = esp[start..].split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The verity root hash that the PARTUUIDs stand for, hex.
pub fn root_hash_of(table: &gpt::Table) -> Result<String> {
    Ok(format!("{}{}", partition(table, "root")?.id, partition(table, "verity")?.id).replace('-', ""))
}

/// The certificates of a PEM file of CONFIG.
pub(super) fn certificates(file: &str, pem: &[u8]) -> Result<Vec<CertificateReport>> {
    let mut found = Vec::new();
    for block in x509_parser::pem::Pem::iter_from_buffer(pem) {
        let block = block.with_context(|| format!("reading {file} in CONFIG"))?;
        let certificate = block.parse_x509().with_context(|| format!("reading {file} in CONFIG"))?;
        let date = |time: x509_parser::time::ASN1Time| {
            jiff::Timestamp::from_second(time.timestamp()).map_or_else(|_| time.to_string(), |t| t.to_string())
        };
        found.push(CertificateReport {
            file: file.into(),
            subject: certificate.subject().to_string(),
            not_before: date(certificate.validity().not_before),
            not_after: date(certificate.validity().not_after),
            fingerprint: hash::hex_of(&block.contents),
        });
    }
    Ok(found)
}

impl Report {
    /// For people. Images come from anybody: what they say does nothing to a terminal.
    pub fn to_text(&self) -> String {
        use std::fmt::Write;
        let mut out = String::new();
        let said = |value: &serde_json::Value| harmless(value.as_str().unwrap_or("?"));
        let text = |key: &str| said(&self.cluster[key]);
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{} image of cluster {}, kimg {}",
            text("role"),
            text("name"),
            said(&self.cluster["build"]["version"])
        );
        if let Some(states) = &self.states {
            let _ = writeln!(out, "states    {}", crate::release::line(states));
        }
        let state = if self.hash_tree_matches { "matches the hash tree" } else { "DOES NOT match the hash tree" };
        let _ = writeln!(out, "root hash {} ({state})\nsecrets   {}", self.root_hash, self.secrets);
        let _ = writeln!(out, "kernel    {}", harmless(&self.command_line));
        if let Some(certificate) = &self.secure_boot {
            let _ = writeln!(out, "          signed for the certificate with SHA-256 {}", harmless(certificate));
        }
        let _ = writeln!(out, "\nPartitions");
        for p in &self.partitions {
            let _ = writeln!(
                out,
                "  {} {:7} {:>10}  at {:>10}  {}",
                p.number,
                harmless(&p.name),
                super::cmd::mib(p.size),
                p.offset,
                p.id
            );
        }
        let _ = writeln!(out, "\nCertificates");
        for c in &self.certificates {
            let (file, subject) = (harmless(&c.file), harmless(&c.subject));
            let _ = writeln!(out, "  {file:24} {subject}\n  {:24} {} to {}", "", c.not_before, c.not_after);
        }
        let _ = writeln!(out, "\nSettings");
        for (name, value) in settings(&self.cluster) {
            let _ = writeln!(out, "  {:34} {}", harmless(&name), harmless(&value));
        }
        let _ = writeln!(out, "\nCONFIG");
        for (name, sum) in &self.config_files {
            let _ = writeln!(out, "  {:34} {:>8}", harmless(name), sum.size);
        }
        let own = ("Files and container images of cluster.toml", &self.own);
        for (title, sizes) in [("Programs", &self.components), own, ("Files", &self.files)] {
            if !sizes.is_empty() {
                let _ = writeln!(out, "\n{title}");
                for (name, size) in sizes {
                    let _ = writeln!(out, "  {:34} {:>10}", harmless(name), super::cmd::mib(*size));
                }
            }
        }
        if !self.packages.is_empty() {
            let _ = writeln!(out, "\nPackages");
            for (name, version) in &self.packages {
                let _ = writeln!(out, "  {:44} {}", harmless(name), harmless(version));
            }
        }
        out
    }
}

/// Every value of a JSON document under its dotted name; nodes are named, not numbered.
pub(super) fn settings(value: &serde_json::Value) -> BTreeMap<String, String> {
    fn add(name: String, value: &serde_json::Value, out: &mut BTreeMap<String, String>) {
        let below = |key: &str| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
        match value {
            serde_json::Value::Object(map) => map.iter().for_each(|(key, value)| add(below(key), value, out)),
            serde_json::Value::Array(list) if list.iter().any(serde_json::Value::is_object) => {
                for (n, value) in list.iter().enumerate() {
                    let own = value["name"].as_str().map_or_else(|| n.to_string(), str::to_string);
                    add(below(&own), value, out);
                }
            }
            serde_json::Value::String(text) => {
                out.insert(name, text.clone());
            }
            other => {
                out.insert(name, other.to_string());
            }
        }
    }
    let mut out = BTreeMap::new();
    add(String::new(), value, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, content: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        std::fs::write(&file, content).unwrap();
        let error = inspect(&file).unwrap_err();
        assert!(error.is::<input::BadInput>(), "{error:?}");
        error.to_string()
    }

    #[test]
    fn what_is_no_image_is_a_mistake() {
        assert!(refused("README.md", b"# kimg\n").contains("it is cut short"));
        assert!(refused("big", &[7; 64 * 1024]).contains("no GUID partition table"));
        assert!(refused("disk.raw.zst", b"\x28\xb5\x2f\xfd kimg\n").contains("it is cut short"));
        assert!(inspect(Path::new("/dev/null")).unwrap_err().to_string().contains("is a device"));
    }

    #[test]
    fn what_an_image_says_does_nothing_to_a_terminal() {
        let evil = "\u{1b}]0;x\u{7}\n";
        let report = Report {
            partitions: vec![PartitionReport { number: 1, name: evil.into(), id: String::new(), offset: 0, size: 0 }],
            root_hash: String::new(),
            hash_tree_matches: true,
            cluster: serde_json::json!({"name": evil, "role": evil, "build": {"version": evil}}),
            certificates: vec![CertificateReport {
                file: evil.into(),
                subject: evil.into(),
                not_before: String::new(),
                not_after: String::new(),
                fingerprint: String::new(),
            }],
            command_line: evil.into(),
            config_files: [(evil.to_string(), FileSum { size: 1, sha256: String::new() })].into(),
            secrets: String::new(),
            states: Some(node_api::Release { kubernetes: evil.into(), ..node_api::Release::this() }),
            secure_boot: Some(evil.into()),
            packages: [(evil.to_string(), evil.to_string())].into(),
            components: [(evil.to_string(), 1)].into(),
            own: [(evil.to_string(), 1)].into(),
            files: [(evil.to_string(), 1)].into(),
        };
        let text = report.to_text();
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{text}");
        assert_eq!(text.matches("\\u{1b}]0;x\\u{7}\\n").count(), 18, "{text}");
    }

    #[test]
    fn a_false_partition_table_takes_no_memory() {
        let part = |name: &str, first, sectors| gpt::Partition {
            name: name.into(),
            kind: gpt::types::LINUX,
            id: gpt::Guid::derived(name),
            first,
            sectors,
        };
        for (config, said) in [((1 << 40, 1), "lies further out"), ((64, 1 << 50), "is larger than")] {
            let table = gpt::Table {
                disk: gpt::Guid::derived("disk"),
                partitions: vec![
                    part("esp", 34, 1),
                    part("root", 34, 1),
                    part("verity", 35, 16),
                    part("config", config.0, config.1),
                ],
                sectors: 4096,
            };
            let mut bytes = table.head(&[]);
            bytes.resize(64 * 1024, 0);
            assert!(refused("disk.raw", &bytes).contains(said));
        }
    }
}
