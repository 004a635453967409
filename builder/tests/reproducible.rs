//! Two builds of one input are the same bytes: in two folders, at two times, under two umasks, locales,
//! time zones and numbers of cores. A third one does nothing.
//!
//! Needs what `make build` leaves (it is a test of the release build, so it is run by `make test`,
//! and counted as ignored elsewhere), and a mirror or cached packages.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How the keys of masters are kept.
const FORMS: [&str; 2] = ["secrets = \"plain\"\n", "secrets = \"sealed\"\n"];
const CLUSTER: &str = "name = \"twice\"\n\
    nodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n\
    [image]\nsecure-boot = true\n";
const FILES: [&str; 11] = [
    "disk.iso",
    "disk.raw",
    "disk.raw.zst",
    "initrd",
    "vmlinuz",
    "cmdline",
    "manifest.json",
    "provenance.json",
    "sbom.spdx.json",
    "sbom.cdx.json",
    "licences.tar.zst",
];
/// What `kimg build` writes unless it is told otherwise, and the one form that is made of more than the disk.
const BUILD: &str = "build all --format raw,raw.zst,iso";

fn kimg() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/kimg")
}

/// Runs kimg in `dir`, set about by `shell`, and gives what it printed.
fn run(dir: &Path, shell: &str, args: &str) -> String {
    let script = format!("{shell}; exec \"$KIMG\" {args}");
    let output =
        Command::new("sh").args(["-c", &script]).env("KIMG", kimg()).current_dir(dir).output().expect("sh runs");
    assert!(output.status.success(), "kimg {args} failed: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("folder");
    for entry in std::fs::read_dir(from).expect("folder") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copied");
        }
    }
}

#[test]
#[ignore = "needs the release build: make test runs it"]
fn the_same_input_gives_the_same_bytes() {
    let base = tempfile::tempdir().expect("folder");
    let (one, two) = (base.path().join("one"), base.path().join("another folder"));
    std::fs::create_dir(&one).expect("folder");
    std::fs::write(one.join("cluster.toml"), format!("{}{CLUSTER}", FORMS[0])).expect("cluster.toml");
    run(&one, "umask 022", "lock");
    run(&one, "umask 022; export LC_ALL=C TZ=UTC", BUILD);
    // The same cluster elsewhere: its description, its lock file and its keys.
    copy(&one.join("secrets"), &two.join("secrets"));
    std::fs::set_permissions(two.join("secrets"), std::fs::Permissions::from_mode(0o700)).expect("mode");
    for file in ["cluster.toml", "kimg.lock"] {
        std::fs::copy(one.join(file), two.join(file)).expect("copied");
    }
    // With a cache of its own, which has the packages and nothing that the first build made of them.
    run(&one, ":", "cache export ../bundle.tar");
    run(&two, "export XDG_CACHE_HOME=$PWD/../cache", "cache import ../bundle.tar");
    let surroundings = "umask 077; export XDG_CACHE_HOME=$PWD/../cache LC_ALL=C.UTF-8 TZ=Asia/Tokyo SOURCE_DATE_EPOCH=5; taskset -p 1 $$ >&2 || true";
    run(&two, surroundings, BUILD);
    compare(&one, &two);
    let again = run(&one, ":", BUILD);
    assert_eq!(again.matches("unchanged").count(), 2, "{again}");
    // Sealed by the same key they are the same as well; only the disks are made anew.
    let in_clear = std::fs::read(one.join("build/master/disk.raw.zst")).expect("read");
    for dir in [&one, &two] {
        std::fs::write(dir.join("cluster.toml"), format!("{}{CLUSTER}", FORMS[1])).expect("cluster.toml");
    }
    run(&one, "umask 022", BUILD);
    run(&two, surroundings, BUILD);
    compare(&one, &two);
    assert!(std::fs::read(one.join("build/master/disk.raw.zst")).expect("read") != in_clear, "nothing was sealed");
}

/// Every file of both images is the same in both folders.
fn compare(one: &Path, two: &Path) {
    for role in ["master", "worker"] {
        for file in FILES {
            let read = |dir: &Path| std::fs::read(dir.join("build").join(role).join(file)).expect("read");
            assert!(read(one) == read(two), "{role}/{file} differs");
        }
    }
}

/// With nothing but the keys, the manifest and an export: no mirror, no lock file, no cluster.toml of then.
#[test]
#[ignore = "needs the release build: make test-long runs it"]
fn an_image_comes_back_after_everything_moved_on() {
    let base = tempfile::tempdir().expect("folder");
    let (then, now) = (base.path().join("then"), base.path().join("now"));
    std::fs::create_dir(&then).expect("folder");
    let extensions = "[image.files]\n\"/etc/motd\" = \"motd\"\n\
        [image.worker]\nmodules = [\"dm-crypt\"]\nkernel-args = [\"panic=7\"]\n\
        [image.components]\nwatcher = { binary = \"watch\", args = [\"--all\"] }\n";
    let description = format!("manifests = [\"own.yaml\"]\n{}{CLUSTER}{extensions}", FORMS[1]);
    std::fs::write(then.join("cluster.toml"), description).expect("cluster.toml");
    std::fs::write(then.join("motd"), "hello\n").expect("motd");
    std::fs::write(then.join("watch"), kimg::oci::pause::program()).expect("program");
    std::fs::set_permissions(then.join("watch"), std::fs::Permissions::from_mode(0o755)).expect("mode");
    std::fs::write(then.join("own.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: own}\n")
        .expect("manifest");
    run(&then, ":", BUILD);
    run(&then, ":", "cache export ../bundle.tar");

    copy(&then.join("secrets"), &now.join("secrets"));
    std::fs::set_permissions(now.join("secrets"), std::fs::Permissions::from_mode(0o700)).expect("mode");
    let elsewhere = format!(
        "{}{CLUSTER}[packages]\nmirror = \"http://127.0.0.1:9\"\nsecurity-mirror = \"http://127.0.0.1:9\"\n",
        FORMS[1]
    );
    std::fs::write(now.join("cluster.toml"), elsewhere).expect("cluster.toml");
    let cache = "export XDG_CACHE_HOME=$PWD/../cache";
    run(&now, cache, "cache import ../bundle.tar");
    for role in ["master", "worker"] {
        run(&now, cache, &format!("build --from-manifest ../then/build/{role}/manifest.json"));
    }
    compare(&then, &now);
}
