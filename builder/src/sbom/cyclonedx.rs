//! CycloneDX 1.6 as JSON.

use super::tracker::Source;
use super::{Bill, Kind, Licence, Part, name_and_address};
use crate::packages::RELEASE;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const SOURCE_PACKAGE: &str = "kimg:source-package";
const SOURCE_VERSION: &str = "kimg:source-version";

/// The document.
pub fn document(bill: &Bill) -> Value {
    let mut dependencies: Vec<Value> =
        bill.parts.iter().map(|part| json!({"ref": part.id, "dependsOn": part.depends})).collect();
    let top: Vec<&str> = bill.parts.iter().filter(|p| p.kind != Kind::Library).map(|p| p.id.as_str()).collect();
    dependencies.push(json!({"ref": "image", "dependsOn": top}));
    json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": format!("urn:uuid:{}", bill.uuid()),
        "version": 1,
        "metadata": {
            "tools": {"components": [
                {"type": "application", "name": "kimg", "version": env!("CARGO_PKG_VERSION")},
            ]},
            "component": {
                "type": "operating-system",
                "bom-ref": "image",
                "name": bill.name,
                "version": env!("CARGO_PKG_VERSION"),
            },
        },
        "components": bill.parts.iter().map(component).collect::<Vec<_>>(),
        "dependencies": dependencies,
    })
}

fn component(part: &Part) -> Value {
    let kind = match part.kind {
        Kind::Program => "application",
        Kind::Image => "container",
        Kind::Library | Kind::Deb => "library",
    };
    let mut out = json!({"type": kind, "bom-ref": part.id, "name": part.name});
    if let Some(version) = &part.version {
        out["version"] = json!(version);
    }
    if let Some(sha256) = &part.sha256 {
        out["hashes"] = json!([{"alg": "SHA-256", "content": sha256}]);
    }
    match &part.licence {
        Licence::Expression(expression) => out["licenses"] = json!([{"expression": expression}]),
        Licence::Names(names) if !names.is_empty() => {
            out["licenses"] = names.iter().map(|name| json!({"license": {"name": name}})).collect();
        }
        Licence::Names(_) => {}
    }
    if let Some(purl) = &part.purl {
        out["purl"] = json!(purl);
    }
    if let Some(maintainer) = &part.maintainer {
        let (name, address) = name_and_address(maintainer);
        out["supplier"] = json!({"name": name});
        if let Some(address) = address {
            out["supplier"]["contact"] = json!([{"email": address}]);
        }
    }
    if let Some(homepage) = &part.homepage {
        out["externalReferences"] = json!([{"type": "website", "url": homepage}]);
    }
    if let Some((source, version)) = &part.source {
        out["properties"] = json!([
            {"name": SOURCE_PACKAGE, "value": source},
            {"name": SOURCE_VERSION, "value": version},
        ]);
    }
    out
}

/// The source packages that a document names.
///
/// # Errors
/// It names none: every image has some.
pub fn sources(document: &str) -> Result<BTreeSet<Source>> {
    let document: Value = serde_json::from_str(document).context("reading the bill of materials")?;
    let components = document["components"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sources: BTreeSet<Source> = components.iter().filter_map(source).collect();
    ensure!(!sources.is_empty(), "the bill of materials names no source package");
    Ok(sources)
}

fn source(component: &Value) -> Option<Source> {
    let property = |name| {
        let all = component["properties"].as_array()?;
        all.iter().find(|property| property["name"] == name)?["value"].as_str()
    };
    let (name, version) = (property(SOURCE_PACKAGE)?, property(SOURCE_VERSION)?);
    // The C library in programs is that of the machine on which they were compiled.
    let release = if component["purl"].as_str()?.ends_with("arch=source") { release_of(version) } else { RELEASE };
    // Debian signs kernels in a source package of its own, with `+` for the first `-` of the version; the tracker knows
    // the one that was compiled.
    let (name, version) = match name.starts_with("linux-signed-") {
        true => ("linux", version.replacen('+', "-", 1)),
        false => (name, version.to_string()),
    };
    Some(Source { name: name.into(), version, release: release.into() })
}

/// The release from which a version is: updates of a release have its number in theirs.
fn release_of(version: &str) -> &'static str {
    let names = [("deb11", "bullseye"), ("deb12", "bookworm"), ("deb13", "trixie"), ("deb14", "forky")];
    names.iter().find(|(number, _)| version.contains(number)).map_or(RELEASE, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_packages_are_read_back_as_the_tracker_calls_them() {
        let mut bill = crate::sbom::tests::example();
        let mut kernel = bill.parts.iter().find(|part| part.kind == Kind::Deb).expect("a package").clone();
        kernel.source = Some(("linux-signed-amd64".into(), "6.12.57+1~deb13u1+2".into()));
        bill.parts.push(kernel);
        let libc = bill.parts.iter_mut().find(|part| part.name == "glibc").expect("the C library");
        libc.source = Some(("glibc".into(), "2.36-9+deb12u14".into()));
        let found = sources(&document(&bill).to_string()).unwrap();
        let found: Vec<_> = found.iter().map(|s| format!("{} {} {}", s.name, s.version, s.release)).collect();
        assert_eq!(
            found,
            ["gcc-14 14.2.0-19 trixie", "glibc 2.36-9+deb12u14 bookworm", "linux 6.12.57-1~deb13u1+2 trixie"]
        );
        assert!(sources("{}").is_err());
    }
}
