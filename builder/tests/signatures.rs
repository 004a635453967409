//! What `kimg sign` writes, judged by Debian's cosign.
//!
//! Needs Debian's package of cosign; `make test` runs it.

use kimg::image::components::Component;
use kimg::image::manifest::{FileSum, Manifest};
use kimg::image::provenance;
use kimg::pki::Secrets;
use node_metadata::Role;
use std::path::{Path, PathBuf};
use std::process::Command;

fn cosign() -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/cosign");
    if !program.exists() {
        kimg::packages::fetch_program("trixie", "cosign", "/usr/bin/cosign", &program).expect("Debian's cosign");
    }
    program
}

/// Whether cosign, without its log of signatures and without any network, takes a file.
fn takes(dir: &Path, args: &[&str]) -> (bool, String) {
    let output = Command::new(cosign())
        .args(args)
        .args(["--insecure-ignore-tlog=true", "--key", "signing.pub"])
        .current_dir(dir)
        .env("HOME", dir)
        .output()
        .expect("cosign runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
#[ignore = "needs Debian's cosign: make test runs it"]
fn cosign_takes_what_is_signed_and_nothing_else() {
    let dir = tempfile::tempdir().expect("folder");
    let dir = dir.path();
    std::fs::write(dir.join("disk.raw"), "a disk").expect("disk");
    let manifest = Manifest {
        version: env!("CARGO_PKG_VERSION").into(),
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
        files: [("disk.raw".to_string(), FileSum::of(&dir.join("disk.raw")).expect("sum"))].into(),
        sources: None,
    };
    manifest.write(dir).expect("manifest");
    let secrets = Secrets::ensure(&dir.join("secrets"), "demo").expect("keys");
    provenance::sign(dir, &secrets).expect("signed");

    let blob = ["verify-blob", "--signature", "manifest.json.sig", "manifest.json"];
    let (taken, said) = takes(dir, &blob);
    assert!(taken, "{said}");
    let statement = [
        "verify-blob-attestation",
        "--signature",
        "provenance.dsse.json",
        "--type",
        "slsaprovenance1",
        "--check-claims=true",
        "disk.raw",
    ];
    let (taken, said) = takes(dir, &statement);
    assert!(taken, "{said}");

    std::fs::write(dir.join("disk.raw"), "b disk").expect("disk");
    assert!(!takes(dir, &statement).0, "cosign takes another disk");
    let mut text = std::fs::read(dir.join("manifest.json")).expect("manifest");
    text.push(b' ');
    std::fs::write(dir.join("manifest.json"), text).expect("manifest");
    assert!(!takes(dir, &blob).0, "cosign takes another manifest");
}
