//! `kube-apiserver store torture` and `… rewrite`, each in a process of its own.

use std::process::{Command, ExitCode, Output};

use store::{DirDisk, Embedded, Expect, Key, Keyring, Options, Sealed, Stamped, Store as _};

const ARGS: &str = "KUBE_APISERVER_TEST_ARGS";

/// The other process: does nothing unless [`store`] starts it.
#[test]
fn command() -> ExitCode {
    match std::env::var(ARGS) {
        Ok(args) => {
            let args = ["kube-apiserver", "store"].into_iter().chain(args.split('\n')).map(Into::into).collect();
            let code = kube_apiserver::main(args);
            if code == ExitCode::from(2) {
                // What a test gives back would end in 101.
                std::process::exit(2);
            }
            code
        }
        Err(_) => ExitCode::SUCCESS,
    }
}

fn store(args: &[&str]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "commands::command", "--nocapture"])
        .env(ARGS, args.join("\n"))
        .output()
        .unwrap()
}

#[test]
fn torture_without_syncs_fails_and_names_the_lost_write() {
    let done = store(&["torture", "--no-sync", "--runs", "5", "--seed", "4"]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success() && said.contains("acknowledged write"), "{said}");
    assert!(said.contains("kube-apiserver store torture --runs 1 --seed "), "{said}");
}

#[test]
fn torture_lists_its_points() {
    let done = store(&["torture", "--points"]);
    let said = String::from_utf8_lossy(&done.stdout);
    for point in ["commit-sync", "checkpoint-write", "compaction-rename", "snapshot-sync", "open-cut"] {
        assert!(done.status.success() && said.lines().any(|l| l == point), "{said}");
    }
}

#[test]
fn rewrite_seals_anew_and_lists_the_keys_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let open =
        || Embedded::open(std::sync::Arc::new(DirDisk::open(&dir.path().join("store")).unwrap()), Options::default());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let plain = r#"{"metadata":{"name":"a","resourceVersion":""}}"#;
        let hole = Stamped { bytes: plain.into(), stamp_at: plain.len() - 3 };
        let engine = open().unwrap();
        engine.put("/core/secrets/default/a", hole, Expect::Absent, None).await.unwrap();
        engine.close();
    });
    std::fs::write(path("key"), [5; 32]).unwrap();
    let flags = ["--store-dir", &path("store"), "--encryption-key-file", &path("key")];
    let listed = store(&[&["rewrite", "--list"], &flags[..]].concat());
    let said = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success() && said.contains("identity: 1 objects"), "{said}");
    let done = store(&[&["rewrite"], &flags[..]].concat());
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && said.contains("1 objects were sealed anew"), "{said}");
    assert!(said.contains("xchacha20poly1305:v1:") && !said.contains("identity"), "{said}");
    runtime.block_on(async {
        // Without the key, and beside whoever has the store.
        let engine = open().unwrap();
        let listed = store(&["rewrite", "--list", "--store-dir", &path("store")]);
        let said = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.status.success() && said.contains("xchacha20poly1305:v1:"), "{said}");
        engine.close();
        drop(engine);
        let (snapshot, elsewhere) = (path("snapshot"), path("elsewhere"));
        assert!(store(&["snapshot", &snapshot, "--store-dir", &path("store")]).status.success());
        for args in [&["verify", &snapshot][..], &["restore", &snapshot, "--store-dir", &elsewhere]] {
            let done = store(args);
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(done.status.success() && said.contains("xchacha20poly1305:v1:"), "the key that it takes: {said}");
        }
    });
    runtime.block_on(async {
        let ring = Keyring::single(Key::from_file(&[5; 32]).unwrap(), "/core/secrets/");
        let sealed = Sealed::open(std::sync::Arc::new(open().unwrap()), ring).await.unwrap();
        let entry = sealed.get("/core/secrets/default/a").await.unwrap().unwrap();
        let wanted = format!(r#"{{"metadata":{{"name":"a","resourceVersion":"{}"}}}}"#, entry.revision);
        assert_eq!(entry.value, wanted, "the revision in it is its own");
    });
}

#[test]
fn a_store_that_is_not_there_is_said_once_and_ends_in_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let nowhere = format!("--store-dir={}", path("nowhere"));
    for args in [&["check", &nowhere][..], &["snapshot", &path("snap"), &nowhere], &["rewrite", "--list", &nowhere]] {
        let done = store(args);
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(&format!("there is no store in {}; look at --store-dir", path("nowhere"))), "{said}");
        assert!(!dir.path().join("nowhere").exists(), "{args:?} made it");
    }
    let done = store(&["verify", &path("nothing")]);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!((done.status.code(), said.matches("no such file").count()), (Some(2), 1), "{said}");
    std::fs::write(path("snap"), "").unwrap();
    let taken = store(&["snapshot", &path("snap"), "--store-socket", &path("socket")]);
    assert_eq!(taken.status.code(), Some(2), "{}", String::from_utf8_lossy(&taken.stderr));
    let damaged = store(&["verify", &path("snap")]);
    let said = String::from_utf8_lossy(&damaged.stderr).into_owned();
    assert!(said.contains("take another snapshot") && !said.contains("replace the disk"), "{said}");
}
