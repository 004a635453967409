//! A disk that is full, a folder that cannot be written, two builds at once: a sentence, nothing half-made, and the next
//! run works. File systems for it are mounted in a mount namespace of the test's own.
//!
//! Needs what `make build` leaves; `make test` runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CLUSTER: &str = "name = \"faults\"\n\
    nodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n";

fn kimg() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/kimg")
}

/// Runs a script in `dir`, as root of namespaces of its own.
fn apart(dir: &Path, script: &str) -> Output {
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-ec", script])
        .env("KIMG", kimg())
        .current_dir(dir)
        .output();
    output.expect("unshare runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn cluster() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("folder");
    std::fs::write(dir.path().join("cluster.toml"), CLUSTER).expect("cluster.toml");
    dir
}

#[test]
#[ignore = "needs the release build: make test runs it"]
fn a_full_disk_is_told_and_leaves_nothing() {
    let dir = cluster();
    // All but the disk itself is there already.
    assert!(apart(dir.path(), "$KIMG build worker --format raw").status.success());
    let script = "rm -r build/worker; mkdir build/worker; mount -t tmpfs -o size=20m none build/worker\n\
        rc=0; $KIMG build worker --format raw || rc=$?\n\
        ls -A build/worker >left; umount build/worker; exit $rc";
    let output = apart(dir.path(), script);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("No space left on device"), "{}", said(&output));
    let left = std::fs::read_to_string(dir.path().join("left")).expect("list");
    assert!(!left.lines().any(|name| name.starts_with("disk.") || name.starts_with('.')), "{left}");
    let output = apart(dir.path(), "$KIMG build worker --format raw");
    assert!(output.status.success(), "{}", said(&output));
    assert!(dir.path().join("build/worker/manifest.json").exists());
}

#[test]
#[ignore = "needs the release build: make test runs it"]
fn a_folder_that_cannot_be_written_is_named() {
    let dir = cluster();
    let script =
        "$KIMG pki init 2>/dev/null || true; mkdir -p build; mount -t tmpfs -o ro none build; $KIMG build worker";
    let output = apart(dir.path(), script);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("/build ") && text.contains("Read-only file system"), "{text}");
}

#[test]
#[ignore = "needs the release build: make test runs it"]
fn of_two_builds_in_one_folder_one_is_told_who_builds() {
    let dir = cluster();
    let build = || {
        let mut command = Command::new(kimg());
        command.args(["build", "worker", "--format", "raw"]).current_dir(dir.path());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn().expect("kimg runs")
    };
    let (one, two) = (build(), build());
    let ids = [one.id(), two.id()];
    let outputs = [one, two].map(|child| child.wait_with_output().expect("ends"));
    let done = outputs.iter().filter(|output| output.status.success()).count();
    assert!(done >= 1, "{}\n{}", said(&outputs[0]), said(&outputs[1]));
    // Where the first was done before the second began, both are right.
    for (n, output) in outputs.iter().enumerate().filter(|(_, output)| !output.status.success()) {
        assert!(said(output).contains(&format!("process {}", ids[1 - n])), "{}", said(output));
    }
    let again = build().wait_with_output().expect("ends");
    assert!(String::from_utf8_lossy(&again.stdout).contains("unchanged"), "{}", said(&again));
}
