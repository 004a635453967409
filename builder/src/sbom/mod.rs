//! The bill of materials of an image: every Debian package, program, crate and baked container image in it, with
//! version, sum, licence and source; written as SPDX 2.3 and CycloneDX 1.6, with all licence files beside.
//!
//! The same image gives the same bytes: identifiers follow from its content, and no moment is named.

pub mod crates;
pub mod cyclonedx;
pub mod debian;
pub mod licences;
pub mod spdx;
pub mod tracker;

use crate::cache::hash;
use crate::image::components::Component;
use crate::image::root::BakedImage;
use crate::lock::{Lock, LockedPackage};
use crate::packages::RELEASE;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

/// File names beside an image.
pub const SPDX_FILE: &str = "sbom.spdx.json";
/// CycloneDX.
pub const CYCLONEDX_FILE: &str = "sbom.cdx.json";
/// All licence texts, by package and crate, and a list of sources.
pub const LICENCES_FILE: &str = "licences.tar.zst";

/// Form of an SBOM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// SPDX 2.3, JSON
    Spdx,
    /// CycloneDX 1.6, JSON
    Cyclonedx,
}

impl Form {
    /// Name of the file beside an image.
    pub fn file(self) -> &'static str {
        match self {
            Form::Spdx => SPDX_FILE,
            Form::Cyclonedx => CYCLONEDX_FILE,
        }
    }
}

/// What kind of thing a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Debian package.
    Deb,
    /// A program of ours.
    Program,
    /// A crate, or a library that is linked into programs.
    Library,
    /// A container image that is baked in.
    Image,
}

/// Under what a part may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Licence {
    /// SPDX expression.
    Expression(String),
    /// Names as Debian's copyright files have them, which are not SPDX's; none where the file is prose.
    Names(Vec<String>),
}

/// One part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Unique in the bill; letters, digits, `.` and `-`.
    pub id: String,
    /// Kind.
    pub kind: Kind,
    /// Name.
    pub name: String,
    /// Version; a container image has none.
    pub version: Option<String>,
    /// SHA-256, hex: of the .deb, the crate's archive, the program, the container image.
    pub sha256: Option<String>,
    /// Package URL.
    pub purl: Option<String>,
    /// Licence.
    pub licence: Licence,
    /// Maintainer, `NAME <ADDRESS>`.
    pub maintainer: Option<String>,
    /// Where its authors are.
    pub homepage: Option<String>,
    /// Source package and its version.
    pub source: Option<(String, String)>,
    /// Ids of the parts that it needs.
    pub depends: Vec<String>,
}

/// All parts of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bill {
    /// The image's name, e.g. `demo-master`.
    pub name: String,
    /// Identifies the content.
    pub digest: [u8; 32],
    /// In order of their ids.
    pub parts: Vec<Part>,
}

/// What a bill is made of.
pub struct Inputs<'a> {
    /// The image's name.
    pub name: &'a str,
    /// The lock file.
    pub lock: &'a Lock,
    /// Packages of which something is in the image.
    pub packages: &'a [&'a LockedPackage],
    /// Programs, and the version of the C library that each was linked with, where it says so.
    pub programs: &'a [(Component, Option<String>)],
    /// Container images.
    pub images: &'a [BakedImage],
}

/// Lists the parts of an image. The packages must have been fetched.
///
/// # Errors
/// A package cannot be read.
pub fn bill(inputs: &Inputs<'_>) -> Result<Bill> {
    let mut parts = debian_parts(inputs)?;
    parts.extend(rust_parts(inputs.programs));
    // An archive without a name in it is called as its file is.
    let named = |image: &'_ BakedImage| match image.references.is_empty() {
        true => vec![image.name.clone()],
        false => image.references.clone(),
    };
    let images = inputs.images.iter().flat_map(|image| named(image).into_iter().map(move |name| (name, image)));
    parts.extend(images.map(|(name, image)| Part {
        id: id("image", &name, ""),
        kind: Kind::Image,
        name,
        version: None,
        sha256: Some(image.sha256.clone()),
        purl: None,
        licence: Licence::Names(Vec::new()),
        maintainer: None,
        homepage: None,
        source: None,
        depends: Vec::new(),
    }));
    parts.sort_by(|a, b| a.id.cmp(&b.id));
    let mut digest = hash::Inputs::new("bill");
    for part in &parts {
        digest = digest.with(&part.id, part.sha256.as_deref().unwrap_or_default());
    }
    let digest = hash::sha256(digest.with("name", inputs.name).key().as_bytes());
    Ok(Bill { name: inputs.name.to_string(), digest, parts })
}

fn id(kind: &str, name: &str, version: &str) -> String {
    let text = if version.is_empty() { format!("{kind}-{name}") } else { format!("{kind}-{name}-{version}") };
    // Two names that differ in other characters only would become one id: those are spelled out.
    text.chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || c == '.' || c == '-' => c.to_string(),
            c => format!(".{:x}.", u32::from(c)),
        })
        .collect()
}

/// Percent-encodes a part of a package URL.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}

fn debian_parts(inputs: &Inputs<'_>) -> Result<Vec<Part>> {
    let texts = debian::copyrights(inputs.lock, inputs.packages)?;
    let names: BTreeSet<&str> = inputs.packages.iter().map(|p| p.name.as_str()).collect();
    let mut parts = Vec::new();
    for package in inputs.packages {
        let about = debian::about(package)?;
        let architecture = if package.path.ends_with("_all.deb") { "all" } else { "amd64" };
        parts.push(Part {
            id: id("deb", &package.name, ""),
            kind: Kind::Deb,
            name: package.name.clone(),
            version: Some(package.version.clone()),
            sha256: Some(package.sha256.clone()),
            purl: Some(format!(
                "pkg:deb/debian/{}@{}?arch={architecture}&distro={RELEASE}",
                encoded(&package.name),
                encoded(&package.version)
            )),
            licence: Licence::Names(debian::licence_names(&texts[&package.name])),
            maintainer: Some(about.maintainer),
            homepage: about.homepage,
            source: Some((about.source, about.source_version)),
            depends: package.depends.iter().filter(|d| names.contains(d.as_str())).map(|d| id("deb", d, "")).collect(),
        });
    }
    Ok(parts)
}

/// Programs, the crates and the libraries that are linked into them.
fn rust_parts(programs: &[(Component, Option<String>)]) -> Vec<Part> {
    let library = |name: &str, version: &str, purl: Option<String>, licence: &str| Part {
        id: id("library", name, version),
        kind: Kind::Library,
        name: name.to_string(),
        version: Some(version.to_string()),
        sha256: None,
        purl,
        licence: Licence::Expression(licence.to_string()),
        maintainer: None,
        homepage: None,
        source: None,
        depends: Vec::new(),
    };
    let rust = library("rust-std", crates::rust_version(), None, "MIT OR Apache-2.0");
    let mut parts: BTreeMap<String, Part> = BTreeMap::new();
    for (program, libc) in programs {
        let own: Vec<&crates::Crate> =
            crates::all().iter().filter(|c| c.programs.contains(&program.name.as_str())).collect();
        let mut depends: Vec<String> = own.iter().map(|c| id("crate", c.name, c.version)).collect();
        depends.push(rust.id.clone());
        parts.insert(rust.id.clone(), rust.clone());
        if let Some(version) = libc {
            let purl = format!("pkg:deb/debian/glibc@{}?arch=source", encoded(version));
            let mut part = library("glibc", version, Some(purl), "LGPL-2.1-or-later");
            part.source = Some(("glibc".into(), version.clone()));
            depends.push(part.id.clone());
            parts.insert(part.id.clone(), part);
        }
        for c in own {
            let id_of = id("crate", c.name, c.version);
            let sha256 = (!c.checksum.is_empty()).then(|| c.checksum.to_string());
            let purl = (!c.own).then(|| format!("pkg:cargo/{}@{}", encoded(c.name), encoded(c.version)));
            let mut part = library(c.name, c.version, purl, &c.expression());
            part.id = id_of.clone();
            part.sha256 = sha256;
            part.depends = c.depends.iter().map(|(name, version)| id("crate", name, version)).collect();
            parts.insert(id_of, part);
        }
        let mut part = library(&program.name, env!("CARGO_PKG_VERSION"), None, "Apache-2.0");
        part.id = id("program", &program.name, "");
        part.kind = Kind::Program;
        part.sha256 = Some(program.sha256.clone());
        part.depends = depends;
        parts.insert(part.id.clone(), part);
    }
    parts.into_values().collect()
}

/// Version of the C library that a static program carries, e.g. `2.41-12`: the library says it in a string of its own.
pub fn libc_of(program: &[u8]) -> Option<String> {
    let at = memchr::memmem::find(program, b"GNU C Library (")?;
    let text = program[at..].split(|byte| *byte == b')').next()?;
    let text = std::str::from_utf8(text.get(..text.len().min(100))?).ok()?;
    text.rsplit(' ').next().map(str::to_string)
}

impl Bill {
    /// A UUID (version 8 of RFC 9562) that follows from the content.
    fn uuid(&self) -> String {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.digest[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let h = hex::encode(bytes);
        format!("{}-{}-{}-{}-{}", &h[..8], &h[8..12], &h[12..16], &h[16..20], &h[20..])
    }

    /// The SBOM in a form.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub fn document(&self, form: Form) -> Result<Vec<u8>> {
        let value = match form {
            Form::Spdx => spdx::document(self),
            Form::Cyclonedx => cyclonedx::document(self),
        };
        let mut bytes = serde_json::to_vec_pretty(&value).context("writing the SBOM")?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// `NAME <ADDRESS>` in its two parts.
fn name_and_address(maintainer: &str) -> (&str, Option<&str>) {
    match maintainer.rsplit_once(" <") {
        Some((name, address)) => (name.trim().trim_matches('"'), Some(address.trim_end_matches('>'))),
        None => (maintainer, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn example() -> Bill {
        let program = Component { name: "kimg-node".into(), sha256: "ab".repeat(32), size: 1 };
        let mut parts = rust_parts(&[(program, Some("2.41-12".into()))]);
        parts.push(Part {
            id: id("deb", "libstdc++6", ""),
            kind: Kind::Deb,
            name: "libstdc++6".into(),
            version: Some("1:14.2.0-19".into()),
            sha256: Some("cd".repeat(32)),
            purl: Some("pkg:deb/debian/libstdc%2B%2B6@1%3A14.2.0-19?arch=amd64&distro=trixie".into()),
            licence: Licence::Names(vec!["GPL-3+ with exception".into()]),
            maintainer: Some("Debian GCC Maintainers <debian-gcc@lists.debian.org>".into()),
            homepage: Some("http://gcc.gnu.org/".into()),
            source: Some(("gcc-14".into(), "14.2.0-19".into())),
            depends: Vec::new(),
        });
        parts.sort_by(|a, b| a.id.cmp(&b.id));
        Bill { name: "demo-worker".into(), digest: [7; 32], parts }
    }

    #[test]
    fn every_dependency_is_a_part_and_no_id_stands_twice() {
        let bill = example();
        let ids: BTreeSet<&str> = bill.parts.iter().map(|p| p.id.as_str()).collect();
        assert_eq!(ids.len(), bill.parts.len());
        for part in &bill.parts {
            assert!(part.id.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c)), "{}", part.id);
            for need in &part.depends {
                assert!(ids.contains(need.as_str()), "{} needs {need}", part.id);
            }
        }
        assert!(ids.contains("program-kimg-node") && ids.contains("library-glibc-2.41-12"));
        assert!(!bill.parts.iter().any(|p| p.name == "kube-apiserver"), "a crate of another program");
    }

    #[test]
    fn a_container_image_is_called_by_its_reference() {
        let image = |references: &[&str]| BakedImage {
            name: "web.tar".into(),
            references: references.iter().map(ToString::to_string).collect(),
            path: "web.tar".into(),
            sha256: "ef".repeat(32),
        };
        let lock = Lock { version: 1, release: "trixie".into(), architecture: "amd64".into(), packages: Vec::new() };
        let named = |images: &[BakedImage]| {
            let inputs = Inputs { name: "demo-worker", lock: &lock, packages: &[], programs: &[], images };
            bill(&inputs).unwrap().parts.into_iter().map(|part| part.name).collect::<Vec<_>>()
        };
        assert_eq!(named(&[image(&["r.example/web:1", "r.example/web:2"])]), ["r.example/web:1", "r.example/web:2"]);
        assert_eq!(named(&[image(&[])]), ["web.tar"]);
    }

    #[test]
    fn names_and_versions_are_encoded() {
        assert_eq!(encoded("1:2.3+b1~x"), "1%3A2.3%2Bb1~x");
        assert_ne!(id("deb", "a+b", ""), id("deb", "a-b", ""));
        assert_eq!(name_and_address("A B <a@example.org>"), ("A B", Some("a@example.org")));
        assert_eq!(name_and_address("nobody"), ("nobody", None));
    }

    #[test]
    fn a_static_program_says_which_c_library_it_has() {
        let text = b"\0\0GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.\0";
        assert_eq!(libc_of(text).as_deref(), Some("2.36-9+deb12u14"));
        assert_eq!(libc_of(b"nothing"), None);
    }

    #[test]
    fn documents_are_the_same_twice_and_name_no_moment() {
        let bill = example();
        for form in [Form::Spdx, Form::Cyclonedx] {
            assert_eq!(bill.document(form).unwrap(), example().document(form).unwrap());
        }
        let spdx = spdx::document(&bill);
        assert_eq!(spdx["creationInfo"]["created"], "1970-01-01T00:00:00Z");
        assert_eq!(cyclonedx::document(&bill)["metadata"].get("timestamp"), None);
    }
}
