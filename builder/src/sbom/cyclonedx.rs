//! CycloneDX 1.6 as JSON.

use super::{Bill, Kind, Licence, Part, name_and_address};
use serde_json::{Value, json};

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
            {"name": "kimg:source-package", "value": source},
            {"name": "kimg:source-version", "value": version},
        ]);
    }
    out
}
