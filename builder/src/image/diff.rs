//! `kimg diff A B`: what changed between two images, by package, program, file, setting and certificate.

use super::contents::{Contents, Item};
use super::inspect::{self, Report};
use crate::logs::line::harmless;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What differs between two images. Each list is in the order of the names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Difference {
    /// Debian packages, by version.
    pub packages: Vec<Change>,
    /// Settings of the cluster and of the image: dotted names, as `cluster.json` has them.
    pub settings: Vec<Change>,
    /// Words of the kernel's command line.
    pub kernel_arguments: Vec<Change>,
    /// Certificates, by file and subject: fingerprint and end.
    pub certificates: Vec<Change>,
    /// Files of CONFIG, by size and sum.
    pub config_files: Vec<Change>,
    /// Files of the root, by mode, size and sum.
    pub files: Vec<FileChange>,
}

/// One thing that was added (`before` is missing), removed (`after` is missing) or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Change {
    /// What.
    pub name: String,
    /// In the first image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// In the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// A file of the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileChange {
    /// Path.
    pub path: String,
    /// Package or program that it comes from.
    pub owner: String,
    /// In the first image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<FileState>,
    /// In the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<FileState>,
}

/// What of a file can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FileState {
    /// Permission bits, octal.
    pub mode: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of a file, target of a link.
    pub content: String,
}

impl FileState {
    fn of(item: &Item) -> FileState {
        FileState { mode: format!("{:04o}", item.mode), size: item.size, content: item.content.clone() }
    }
}

/// Compares two images.
///
/// # Errors
/// One of them cannot be read.
pub fn diff(before: &Path, after: &Path) -> Result<Difference> {
    let read = |path: &Path| -> Result<(Report, Contents)> { Ok((inspect::inspect(path)?, Contents::of_image(path)?)) };
    let ((old, old_root), (new, new_root)) = (read(before)?, read(after)?);
    Ok(Difference {
        packages: changes(&old_root.packages, &new_root.packages),
        settings: changes(&inspect::settings(&old.cluster), &inspect::settings(&new.cluster)),
        kernel_arguments: changes(&words(&old.command_line), &words(&new.command_line)),
        certificates: changes(&certificates(&old), &certificates(&new)),
        config_files: changes(&config_files(&old), &config_files(&new)),
        files: file_changes(&old_root, &new_root),
    })
}

/// What differs between two maps; keys that are the same in both are left out.
fn changes<V: PartialEq + ToString>(before: &BTreeMap<String, V>, after: &BTreeMap<String, V>) -> Vec<Change> {
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    let pairs = names.into_iter().map(|name| (name, before.get(name), after.get(name)));
    pairs
        .filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| Change {
            name: name.clone(),
            before: old.map(V::to_string),
            after: new.map(V::to_string),
        })
        .collect()
}

fn file_changes(before: &Contents, after: &Contents) -> Vec<FileChange> {
    let mut paths: Vec<&String> = before.files.keys().chain(after.files.keys()).collect();
    paths.sort();
    paths.dedup();
    let mut found = Vec::new();
    for path in paths {
        let (old, new) = (before.files.get(path), after.files.get(path));
        let (old_state, new_state) = (old.map(FileState::of), new.map(FileState::of));
        if old_state != new_state {
            let owner = new.or(old).map(|item| item.owner.clone()).unwrap_or_default();
            found.push(FileChange { path: path.clone(), owner, before: old_state, after: new_state });
        }
    }
    found
}

/// `console=tty0 console=ttyS0` are two arguments of one name.
fn words(command_line: &str) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for word in command_line.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let all = found.entry(name.to_string()).or_default();
        if !all.is_empty() {
            all.push(' ');
        }
        all.push_str(value);
    }
    found
}

fn certificates(report: &Report) -> BTreeMap<String, String> {
    let line = |c: &inspect::CertificateReport| {
        (format!("{} {}", c.file, c.subject), format!("until {}, SHA-256 {}", c.not_after, c.fingerprint))
    };
    report.certificates.iter().map(line).collect()
}

/// What of CONFIG is not told by content already.
fn config_files(report: &Report) -> BTreeMap<String, String> {
    let told = |name: &str| name == "cluster.json" || name.ends_with(".crt");
    let own = report.config_files.iter().filter(|(name, _)| !told(name));
    own.map(|(name, sum)| (name.clone(), format!("{} B {}…", sum.size, &sum.sha256[..8]))).collect()
}

impl Difference {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        *self == Difference::default()
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for (title, list) in [
            ("Packages", &self.packages),
            ("Settings", &self.settings),
            ("Kernel arguments", &self.kernel_arguments),
            ("Certificates", &self.certificates),
            ("CONFIG", &self.config_files),
        ] {
            section(&mut out, title, list.iter().map(|c| line(&c.name, c.before.as_deref(), c.after.as_deref())));
        }
        let files = self.files.iter().map(|f| {
            let short = |state: &FileState| match state.content.as_bytes() {
                [] => state.mode.clone(),
                content if content.len() == 64 && content.iter().all(u8::is_ascii_hexdigit) => {
                    format!("{} {} B {}…", state.mode, state.size, &state.content[..8])
                }
                _ => format!("→ {}", state.content),
            };
            let name = format!("{} [{}]", f.path, f.owner);
            line(&name, f.before.as_ref().map(short).as_deref(), f.after.as_ref().map(short).as_deref())
        });
        section(&mut out, "Files", files);
        if out.is_empty() {
            out.push_str("The images hold the same.\n");
        }
        out
    }
}

fn section(out: &mut String, title: &str, lines: impl Iterator<Item = String>) {
    let lines: Vec<String> = lines.collect();
    if !lines.is_empty() {
        if !out.is_empty() {
            out.push('\n');
        }
        out.push_str(&format!("{title}\n{}\n", lines.join("\n")));
    }
}

fn line(name: &str, before: Option<&str>, after: Option<&str>) -> String {
    // Images come from anybody.
    harmless(&match (before, after) {
        (None, Some(new)) => format!("  + {name} {new}"),
        (Some(old), None) => format!("  - {name} {old}"),
        (old, new) => format!("  ~ {name}: {} → {}", old.unwrap_or_default(), new.unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{Fixture, image};

    fn change(name: &str, before: Option<&str>, after: Option<&str>) -> Change {
        Change { name: name.into(), before: before.map(str::to_string), after: after.map(str::to_string) }
    }

    #[test]
    fn each_kind_of_change_is_told_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
        let old = Fixture::new(dir.path());
        image(&old, &a);
        image(&old, &b);
        let same = diff(&a, &b).unwrap();
        assert!(same.is_empty(), "{same:#?}");
        assert_eq!(same.to_text(), "The images hold the same.\n");

        let mut new = Fixture::new(dir.path());
        new.packages = "crun 1.22-1\nlibc6 2.41-12\n".into();
        new.files = vec![("/usr/bin/crun", "crun", b"other".to_vec()), ("/etc/new", "kimg", b"x".to_vec())];
        new.command_line = "kimg.roothash=00 console=ttyS0 panic=5".into();
        new.settings = "domain = \"example.org\"\n".into();
        image(&new, &b);
        let found = diff(&a, &b).unwrap();
        assert_eq!(found.packages, [change("crun", Some("1.21-1"), Some("1.22-1"))]);
        assert_eq!(found.settings, [change("domain", Some("cluster.local"), Some("example.org"))]);
        assert_eq!(found.kernel_arguments, [change("panic", None, Some("5"))]);
        assert_eq!(found.certificates, []);
        let files: Vec<(&str, bool, bool)> =
            found.files.iter().map(|f| (f.path.as_str(), f.before.is_some(), f.after.is_some())).collect();
        let lists = [("/usr/share/kimg/files", true, true), ("/usr/share/kimg/packages", true, true)];
        let own = [("/etc/new", false, true), ("/etc/old", true, false), ("/usr/bin/crun", true, true)];
        assert_eq!(files, [&own[..], &lists[..]].concat());
        let text = found.to_text();
        assert!(text.contains("~ crun: 1.21-1 → 1.22-1"), "{text}");
        assert!(text.contains("- /etc/old [kimg] 0644 3 B"), "{text}");
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["files"][0]["after"]["size"], 1);
    }

    #[test]
    fn a_new_authority_is_a_change_of_certificates() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (one.path().join("a.raw"), two.path().join("b.raw"));
        image(&Fixture::new(one.path()), &a);
        image(&Fixture::new(two.path()), &b);
        let found = diff(&a, &b).unwrap();
        assert!(found.certificates.iter().any(|c| c.name.starts_with("pki/cluster-ca.crt ")), "{found:#?}");
        assert!(found.packages.is_empty() && found.files.is_empty());
    }

    #[test]
    fn a_root_that_is_not_the_signed_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.raw");
        image(&Fixture::new(dir.path()), &path);
        let mut bytes = std::fs::read(&path).unwrap();
        let table = crate::disk::gpt::Table::parse(&bytes).unwrap();
        let root = table.partition("root").unwrap();
        bytes[usize::try_from(root.first * 512 + 200).unwrap()] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let error = format!("{:#}", diff(&path, &path).unwrap_err());
        assert!(error.contains("not the one of its verity hash"), "{error}");
    }
}
