//! `licences.tar.zst`: the copyright file of every package and the licence files of every crate in an image, and the
//! versions of their sources, so that the image may be passed on.

use super::{Bill, Kind, crates, debian};
use crate::image::tree::Tree;
use crate::lock::{Lock, LockedPackage};
use anyhow::{Context, Result};
use std::fmt::Write;

/// Text packs well at the highest level, and is written seldom.
const LEVEL: i32 = 19;

/// The archive of a bill's licences.
///
/// # Errors
/// A package's copyright file cannot be had.
pub fn archive(bill: &Bill, lock: &Lock, packages: &[&LockedPackage]) -> Result<Vec<u8>> {
    let texts = debian::copyrights(lock, packages)?;
    let mut tree = Tree::default();
    for package in packages {
        tree.file(&format!("/debian/{}/copyright", package.name), 0o644, texts[&package.name].clone().into_bytes())?;
    }
    let programs: Vec<&str> = bill.parts.iter().filter(|p| p.kind == Kind::Program).map(|p| p.name.as_str()).collect();
    for c in crates::all().iter().filter(|c| c.programs.iter().any(|p| programs.contains(p))) {
        let folder = format!("/crates/{}-{}", c.name, c.version);
        let mut any = false;
        for (name, text) in c.licence_files() {
            tree.file(&format!("{folder}/{name}"), 0o644, text)?;
            any = true;
        }
        if !any {
            let text = format!("This crate ships no licence file. Its Cargo.toml says: {}\n", c.licence);
            tree.file(&format!("{folder}/DECLARED"), 0o644, text.into_bytes())?;
        }
    }
    for (name, text) in crates::rust_licence_files() {
        tree.file(&format!("/rust-std-{}/{name}", crates::rust_version()), 0o644, text)?;
    }
    tree.file("/sources", 0o644, sources(bill).into_bytes())?;
    zstd::encode_all(&tree.to_tar()?[..], LEVEL).context("compressing the licences")
}

/// One line for each part: kind, name, version, and the source that it was built from.
fn sources(bill: &Bill) -> String {
    let mut out = String::new();
    for part in &bill.parts {
        let kind = match part.kind {
            Kind::Deb => "debian",
            Kind::Program => "program",
            Kind::Library => "library",
            Kind::Image => "image",
        };
        let version = part.version.as_deref().unwrap_or("-");
        let (source, source_version) = match &part.source {
            Some((name, version)) => (name.as_str(), version.as_str()),
            None => (part.name.as_str(), version),
        };
        // Writing to a string does not fail.
        let _ = writeln!(out, "{kind} {} {version} {source} {source_version}", part.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::RELEASE;
    use std::collections::BTreeMap;
    use std::io::Read;

    #[test]
    fn every_crate_has_a_text_and_every_part_a_source() {
        let bill = super::super::tests::example();
        let lock = Lock { version: 1, release: RELEASE.into(), architecture: "amd64".into(), packages: Vec::new() };
        let packed = archive(&bill, &lock, &[]).unwrap();
        assert_eq!(packed, archive(&bill, &lock, &[]).unwrap());
        let plain = zstd::decode_all(&packed[..]).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&plain[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(path, text);
        }
        for c in crates::all().iter().filter(|c| c.programs.contains(&"kimg-node")) {
            let folder = format!("crates/{}-{}/", c.name, c.version);
            assert!(files.iter().any(|(path, text)| path.starts_with(&folder) && text.len() > 20), "{folder}");
        }
        assert!(files["sources"].contains("debian libstdc++6 1:14.2.0-19 gcc-14 14.2.0-19\n"));
    }
}
