//! Where an image comes from, as an in-toto statement (v1) with SLSA's provenance (v1), and its signature: a DSSE
//! envelope and a signature of the manifest, by the cluster's signing key, as cosign verifies them.

use super::manifest::{self, FileSum, Manifest};
use crate::cache;
use crate::input;
use crate::packages::RELEASE;
use crate::pki::Secrets;
use crate::sbom;
use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The statement, beside each image.
pub const STATEMENT_FILE: &str = "provenance.json";
/// The signed statement.
pub const ENVELOPE_FILE: &str = "provenance.dsse.json";
/// The signature of the manifest.
pub const SIGNATURE_FILE: &str = "manifest.json.sig";
/// The public half of the key that signed.
pub const PUBLIC_KEY_FILE: &str = "signing.pub";
/// DSSE's name for in-toto statements.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// The statement of a manifest: what came out, and all that went in. The same image gives the same statement; it names
/// no moment and no machine.
pub fn statement(manifest: &Manifest) -> Value {
    let digest = |sum: &FileSum| json!({"sha256": sum.sha256});
    let subject: Vec<Value> =
        manifest.files.iter().map(|(name, sum)| json!({"name": name, "digest": digest(sum)})).collect();
    let mut dependencies: Vec<Value> =
        manifest.components.iter().map(|c| json!({"name": c.name, "digest": {"sha256": c.sha256}})).collect();
    let mut parameters = json!({"cluster": manifest.cluster, "role": manifest.role, "secrets": manifest.secrets});
    if let Some(sources) = &manifest.sources {
        parameters["cluster.toml"] = json!(sources.cluster_toml);
        dependencies.extend(sources.files.iter().map(|f| json!({"name": f.name, "digest": digest(&f.sum)})));
        dependencies.extend(sources.packages.iter().map(|p| {
            let uri =
                format!("pkg:deb/debian/{}@{}?distro={RELEASE}", sbom::encoded(&p.name), sbom::encoded(&p.version));
            json!({"uri": uri, "digest": {"sha256": p.sha256}})
        }));
    }
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:kimg:image:1",
                "externalParameters": parameters,
                "internalParameters": {"inputs": manifest.inputs},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": format!("urn:kimg:{}", manifest.version), "version": {"kimg": manifest.version}},
            },
        },
    })
}

fn text(value: &Value) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).context("writing the provenance")?;
    text.push(b'\n');
    Ok(text)
}

/// Writes the statement beside an image.
///
/// # Errors
/// The folder cannot be written.
pub fn write(manifest: &Manifest, dir: &Path) -> Result<()> {
    cache::write_atomic(&dir.join(STATEMENT_FILE), &text(&statement(manifest))?)
}

/// Signs the image in `dir`, after its files have been found to be those of its manifest; the files written. The same
/// image and key give the same signatures (RFC 6979).
///
/// # Errors
/// A file is missing or another, or the key cannot be read.
pub fn sign(dir: &Path, secrets: &Secrets) -> Result<Vec<PathBuf>> {
    let path = dir.join(manifest::FILE);
    let bytes = input::bytes(&path, manifest::MOST_BYTES).context("build the image first")?;
    let manifest = Manifest::parse(&bytes).with_context(|| format!("reading {}", path.display()))?;
    for (name, sum) in &manifest.files {
        let found = FileSum::of(&dir.join(name))?;
        ensure!(found == *sum, "{} is not the file that its manifest names; build it again", dir.join(name).display());
    }
    let key = SigningKey::from_slice(&secrets.signing_key()?).context("reading the signing key")?;
    let payload = text(&statement(&manifest))?;
    let signature: Signature = key.sign(&authenticated(PAYLOAD_TYPE, &payload));
    let envelope = json!({
        "payloadType": PAYLOAD_TYPE,
        "payload": STANDARD.encode(&payload),
        "signatures": [{"keyid": "", "sig": STANDARD.encode(signature.to_der().as_bytes())}],
    });
    let of_manifest: Signature = key.sign(&bytes);
    let files = [
        (STATEMENT_FILE, payload.clone()),
        (ENVELOPE_FILE, text(&envelope)?),
        (SIGNATURE_FILE, STANDARD.encode(of_manifest.to_der().as_bytes()).into_bytes()),
        (PUBLIC_KEY_FILE, secrets.read(PUBLIC_KEY_FILE)?.into_bytes()),
    ];
    let mut written = Vec::new();
    for (name, content) in files {
        cache::write_atomic(&dir.join(name), &content)?;
        written.push(dir.join(name));
    }
    Ok(written)
}

/// What is signed of a payload (DSSE v1, "PAE").
fn authenticated(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::components::Component;
    use node_metadata::Role;
    use p256::ecdsa::VerifyingKey;
    use p256::ecdsa::signature::Verifier;

    fn manifest(dir: &Path) -> Manifest {
        std::fs::write(dir.join("disk.raw"), "disk").unwrap();
        let manifest = Manifest {
            version: "0.1.0".into(),
            states: None,
            cluster: "demo".into(),
            role: Role::Worker,
            root_hash: "00".repeat(32),
            kernel: String::new(),
            command_line: String::new(),
            secrets: "none".into(),
            secure_boot: None,
            inputs: "in".into(),
            partitions: Default::default(),
            packages: Default::default(),
            components: vec![Component { name: "kimg-node".into(), sha256: "ab".repeat(32), size: 1 }],
            files: [("disk.raw".to_string(), FileSum::of(&dir.join("disk.raw")).unwrap())].into(),
            sources: None,
        };
        manifest.write(dir).unwrap();
        manifest
    }

    #[test]
    fn the_statement_names_what_came_out_and_what_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let statement = statement(&manifest(dir.path()));
        assert_eq!(statement["subject"][0]["name"], "disk.raw");
        assert_eq!(statement["predicate"]["buildDefinition"]["resolvedDependencies"][0]["name"], "kimg-node");
        assert!(!statement.to_string().contains(&dir.path().display().to_string()));
    }

    #[test]
    fn signatures_are_the_same_twice_and_verify() {
        let dir = tempfile::tempdir().unwrap();
        manifest(dir.path());
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").unwrap();
        sign(dir.path(), &secrets).unwrap();
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        let first = (read(ENVELOPE_FILE), read(SIGNATURE_FILE));
        sign(dir.path(), &secrets).unwrap();
        assert_eq!(first, (read(ENVELOPE_FILE), read(SIGNATURE_FILE)));
        let key = VerifyingKey::from(&SigningKey::from_slice(&secrets.signing_key().unwrap()).unwrap());
        let envelope: Value = serde_json::from_slice(&first.0).unwrap();
        let bytes = |value: &Value| STANDARD.decode(value.as_str().unwrap()).unwrap();
        let signature = Signature::from_der(&bytes(&envelope["signatures"][0]["sig"])).unwrap();
        key.verify(&authenticated(PAYLOAD_TYPE, &bytes(&envelope["payload"])), &signature).unwrap();
        let signature = Signature::from_der(&STANDARD.decode(first.1).unwrap()).unwrap();
        key.verify(&read(manifest::FILE), &signature).unwrap();
    }

    #[test]
    fn an_altered_image_is_not_signed() {
        let dir = tempfile::tempdir().unwrap();
        manifest(dir.path());
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").unwrap();
        std::fs::write(dir.path().join("disk.raw"), "dusk").unwrap();
        assert!(sign(dir.path(), &secrets).unwrap_err().to_string().contains("disk.raw is not the file"));
        assert!(!dir.path().join(ENVELOPE_FILE).exists());
    }
}
