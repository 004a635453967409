//! SPDX 2.3 as JSON.

use super::{Bill, Kind, Licence, Part, name_and_address};
use serde_json::{Value, json};

const NONE: &str = "NOASSERTION";

/// The document.
pub fn document(bill: &Bill) -> Value {
    let image = json!({
        "SPDXID": "SPDXRef-image",
        "name": bill.name,
        "versionInfo": env!("CARGO_PKG_VERSION"),
        "primaryPackagePurpose": "OPERATING-SYSTEM",
        "downloadLocation": NONE,
        "filesAnalyzed": false,
        "licenseConcluded": NONE,
        "licenseDeclared": NONE,
        "copyrightText": NONE,
    });
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image")];
    for part in &bill.parts {
        // Crates are in the image by way of the programs that they are linked into.
        if part.kind != Kind::Library {
            relationships.push(relationship("SPDXRef-image", "CONTAINS", &reference(&part.id)));
        }
        let how = if part.kind == Kind::Program { "STATIC_LINK" } else { "DEPENDS_ON" };
        for need in &part.depends {
            relationships.push(relationship(&reference(&part.id), how, &reference(need)));
        }
    }
    let packages: Vec<Value> = std::iter::once(image).chain(bill.parts.iter().map(package)).collect();
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": bill.name,
        "documentNamespace": format!("urn:uuid:{}", bill.uuid()),
        "creationInfo": {
            // An image has no moment of its own.
            "created": "1970-01-01T00:00:00Z",
            "creators": [concat!("Tool: kimg-", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relationships,
    })
}

fn reference(id: &str) -> String {
    format!("SPDXRef-{id}")
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

fn package(part: &Part) -> Value {
    let purpose = match part.kind {
        Kind::Library => "LIBRARY",
        Kind::Program => "APPLICATION",
        Kind::Image => "CONTAINER",
        Kind::Deb => "INSTALL",
    };
    let mut out = json!({
        "SPDXID": reference(&part.id),
        "name": part.name,
        "primaryPackagePurpose": purpose,
        "downloadLocation": NONE,
        "filesAnalyzed": false,
        "licenseConcluded": NONE,
        "licenseDeclared": NONE,
        "copyrightText": NONE,
    });
    match &part.licence {
        Licence::Expression(expression) => out["licenseDeclared"] = json!(expression),
        Licence::Names(names) if !names.is_empty() => {
            out["licenseComments"] = json!(format!("Debian's copyright file names: {}", names.join(", ")));
        }
        Licence::Names(_) => {}
    }
    if let Some(version) = &part.version {
        out["versionInfo"] = json!(version);
    }
    if let Some(sha256) = &part.sha256 {
        out["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": sha256}]);
    }
    if let Some(maintainer) = &part.maintainer {
        let (name, address) = name_and_address(maintainer);
        out["supplier"] = match address {
            Some(address) => json!(format!("Organization: {name} ({address})")),
            None => json!(format!("Organization: {name}")),
        };
    }
    if let Some(homepage) = &part.homepage {
        out["homepage"] = json!(homepage);
    }
    if let Some((source, version)) = &part.source {
        out["sourceInfo"] = json!(format!("built from the source package {source} {version}"));
    }
    if let Some(purl) = &part.purl {
        out["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": purl,
        }]);
    }
    out
}
