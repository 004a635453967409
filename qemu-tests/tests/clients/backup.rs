//! Backups of the store: what the server encrypts, age and `kimg` read; what age encrypts, `kimg` reads.

use anyhow::{Context, ensure};
use kimg::backup::age::{Identity, decrypt};
use qemu_tests::apiserver::{Apiserver, End, program};
use qemu_tests::{Kubectl, Result, tools};
use std::process::{Command, Stdio};

pub(crate) const TESTS: &[super::Test] = &[("a_backup_is_read_by_age_and_by_kimg", read)];

/// More than one piece of the format.
const OBJECTS: usize = 40;
const SIZE: usize = 4096;

fn read(server: &mut Apiserver) -> Result {
    let identity = Identity::generate();
    let at = |name: &str| server.dir().join(name);
    let (recipient, key, sealed, plain) = (at("backup.pub"), at("backup.key"), at("store.age"), at("store.snapshot"));
    std::fs::write(&recipient, identity.recipient()?)?;
    std::fs::write(&key, identity.to_text()?)?;
    let ask = |server: &Apiserver| -> Result<std::process::Output> {
        Command::new(tools::kubectl(Kubectl::V1_32)?)
            .arg(format!("--kubeconfig={}", server.kubeconfig().display()))
            .args(["get", "--raw", "/kimg/backup"])
            .output()
            .context("asking with kubectl")
    };
    let without = ask(server)?;
    ensure!(!without.status.success(), "a server without a key gave a backup out");
    server.end(End::InOrder)?;
    server.flags.push(format!("--backup-recipient-file={}", recipient.display()));
    server.begin()?;
    let text: String = (0..OBJECTS)
        .map(|i| {
            let data = format!("{i}-{}", "x".repeat(SIZE));
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{i}}}\ndata: {{text: {data}}}\n---\n")
        })
        .collect();
    std::fs::write(at_of(server, "objects.yaml"), text)?;
    let made = Command::new(tools::kubectl(Kubectl::V1_32)?)
        .arg(format!("--kubeconfig={}", server.kubeconfig().display()))
        .args(["create", "-f"])
        .arg(at_of(server, "objects.yaml"))
        .output()?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let got = ask(server)?;
    ensure!(got.status.success(), "{}", String::from_utf8_lossy(&got.stderr));
    std::fs::write(&sealed, &got.stdout)?;
    ensure!(!contains(&got.stdout, b"ConfigMap"), "the backup can be read without a key");
    let opened = Command::new(tools::age()?).arg("-d").arg("-i").arg(&key).arg(&sealed).output()?;
    ensure!(opened.status.success(), "age: {}", String::from_utf8_lossy(&opened.stderr));
    let mut ours = Vec::new();
    decrypt(&identity, got.stdout.as_slice(), &mut ours)?;
    ensure!(ours == opened.stdout, "age and kimg read different things");
    ensure!(ours.len() > OBJECTS * SIZE, "it holds {} bytes only", ours.len());
    std::fs::write(&plain, &ours)?;
    let verified = Command::new(program()?).args(["kube-apiserver", "store", "verify"]).arg(&plain).output()?;
    ensure!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));

    // Not a byte of it can be changed, left out or added.
    for at in [30, 200, got.stdout.len() / 2, got.stdout.len() - 1] {
        let mut changed = got.stdout.clone();
        changed[at] ^= 1;
        ensure!(decrypt(&identity, changed.as_slice(), Vec::new()).is_err(), "byte {at} was changed unnoticed");
    }
    let piece = 65536 + 16;
    for cut in [got.stdout.len() - 1, got.stdout.len() - piece, 300] {
        ensure!(decrypt(&identity, &got.stdout[..cut], Vec::new()).is_err(), "cut at {cut}, unnoticed");
    }
    let longer = [got.stdout.as_slice(), b"x"].concat();
    ensure!(decrypt(&identity, longer.as_slice(), Vec::new()).is_err(), "a byte was added unnoticed");
    ensure!(decrypt(&Identity::generate(), got.stdout.as_slice(), Vec::new()).is_err(), "another key opens it");

    // The other way round, of sizes around a piece.
    for size in [0, 1, 65535, 65536, 65537, 200_000] {
        let data = vec![7u8; size];
        std::fs::write(&plain, &data)?;
        let theirs = Command::new(tools::age()?)
            .args(["-r", &identity.recipient()?])
            .arg(&plain)
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(theirs.status.success(), "age does not take the public key");
        let mut read = Vec::new();
        decrypt(&identity, theirs.stdout.as_slice(), &mut read).with_context(|| format!("{size} bytes of age's"))?;
        ensure!(read == data, "{size} bytes came back as {}", read.len());
    }
    Ok(())
}

fn at_of(server: &Apiserver, name: &str) -> std::path::PathBuf {
    server.dir().join(name)
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|w| w == what)
}
