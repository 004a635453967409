//! Debian control data: stanzas, the `Packages` index, and dependency fields.

use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// One stanza of a deb822 file.
pub type Stanza<'a> = BTreeMap<&'a str, String>;

/// Splits a control file into its stanzas; continuation lines are joined by newlines.
pub fn stanzas(text: &str) -> Vec<Stanza<'_>> {
    let mut all = Vec::new();
    let mut current = Stanza::new();
    let mut last: Option<&str> = None;
    for line in text.lines() {
        if line.trim().is_empty() {
            if !current.is_empty() {
                all.push(std::mem::take(&mut current));
            }
            last = None;
        } else if line.starts_with('#') {
        } else if line.starts_with([' ', '\t']) {
            if let Some(value) = last.and_then(|key| current.get_mut(key)) {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((key, value)) = line.split_once(':') {
            current.insert(key, value.trim().to_string());
            last = Some(key);
        }
    }
    if !current.is_empty() {
        all.push(current);
    }
    all
}

/// A package version that a suite offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Suite that offers it.
    pub suite: String,
    /// Package name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Bytes of the .deb.
    pub size: u64,
    /// SHA-256 of the .deb, hex.
    pub sha256: String,
    /// Path below the archive root.
    pub path: String,
    /// `Pre-Depends` and `Depends`: each an "or" list.
    pub depends: Vec<Vec<Dependency>>,
    /// Names it provides.
    pub provides: Vec<String>,
}

/// One alternative of a dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// Package name.
    pub name: String,
    /// Operator and version, where given.
    pub bound: Option<(String, String)>,
}

/// Reads a `Packages` file, keeping only amd64 and `all`.
pub fn parse_packages(suite: &str, text: &str) -> Result<Vec<Offer>> {
    // The index of the release has 60 000 stanzas: only the needed fields are looked at.
    let mut offers = Vec::new();
    for stanza in text.split("\n\n") {
        if let Some(offer) = parse_offer(suite, stanza)? {
            offers.push(offer);
        }
    }
    Ok(offers)
}

fn parse_offer(suite: &str, stanza: &str) -> Result<Option<Offer>> {
    let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
    for line in stanza.lines() {
        if let Some((key, value)) = line.split_once(": ")
            && matches!(
                key,
                "Package"
                    | "Version"
                    | "Size"
                    | "SHA256"
                    | "Filename"
                    | "Depends"
                    | "Pre-Depends"
                    | "Provides"
                    | "Architecture"
            )
        {
            fields.insert(key, value.trim());
        }
    }
    let Some(name) = fields.get("Package") else { return Ok(None) };
    if !matches!(fields.get("Architecture"), Some(&"amd64" | &"all")) {
        return Ok(None);
    }
    let need = |key: &str| fields.get(key).copied().with_context(|| format!("package {name} in {suite} has no {key}"));
    let mut depends = parse_depends(fields.get("Pre-Depends").unwrap_or(&""));
    depends.extend(parse_depends(fields.get("Depends").unwrap_or(&"")));
    Ok(Some(Offer {
        suite: suite.to_string(),
        name: name.to_string(),
        version: need("Version")?.to_string(),
        size: need("Size")?.parse().with_context(|| format!("reading the size of package {name} in {suite}"))?,
        sha256: need("SHA256")?.to_string(),
        path: need("Filename")?.to_string(),
        depends,
        provides: fields
            .get("Provides")
            .map(|v| parse_depends(v).into_iter().flatten().map(|d| d.name).collect())
            .unwrap_or_default(),
    }))
}

/// Parses `a (>= 1), b | c`.
pub fn parse_depends(text: &str) -> Vec<Vec<Dependency>> {
    text.split(',')
        .map(|group| group.split('|').filter_map(parse_dependency).collect::<Vec<_>>())
        .filter(|group| !group.is_empty())
        .collect()
}

fn parse_dependency(text: &str) -> Option<Dependency> {
    let text = text.trim();
    let (name, rest) = text.split_at(text.find([' ', '(', '[']).unwrap_or(text.len()));
    // Multi-arch qualifiers (`libc6:any`) do not matter with one architecture.
    let name = name.split(':').next()?.trim();
    if name.is_empty() {
        return None;
    }
    let bound = rest.split_once('(').and_then(|(_, inner)| {
        let inner = inner.split(')').next()?.trim();
        let (op, version) = inner.split_at(inner.find(|c: char| !"<>=".contains(c))?);
        Some((op.to_string(), version.trim().to_string()))
    });
    Some(Dependency { name: name.to_string(), bound })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packages_file_is_read() {
        let text = "Package: crun\nVersion: 1.21-1\nArchitecture: amd64\nDepends: libc6 (>= 2.38), libcap2 (>= 1:2.10) | other:any\nDescription: x\n long: y\nFilename: pool/c.deb\nSize: 12\nSHA256: ab\n\nPackage: x\nArchitecture: arm64\n";
        let offers = parse_packages("trixie", text).unwrap();
        assert_eq!(offers.len(), 1);
        assert_eq!(offers[0].size, 12);
        assert_eq!(offers[0].depends[0][0].bound, Some((">=".into(), "2.38".into())));
        assert_eq!(offers[0].depends[1][1], Dependency { name: "other".into(), bound: None });
    }

    #[test]
    fn a_missing_field_is_named() {
        let error = parse_packages("trixie", "Package: a\nArchitecture: all\n").unwrap_err();
        assert!(error.to_string().contains("package a in trixie has no Version"));
    }
}
