//! A disk that is full, a folder that cannot be written, two builds at once, a mirror that gives other bytes or none: a
//! sentence, nothing half-made, and the next run works. File systems for it are mounted in a mount namespace of the
//! test's own.
//!
//! Needs what `make build` leaves; `make test` runs it.

use kimg::lock::Lock;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

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
    // The mount went with its namespace.
    assert_eq!(std::fs::read_dir(dir.path().join("build")).expect("folder").count(), 0);
    let output = apart(dir.path(), "$KIMG build worker --format raw");
    assert!(output.status.success(), "{}", said(&output));
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

/// What a mirror gives for every file: a range of it where one is asked for, and 404 where it has moved on.
#[derive(Default)]
struct Mirror {
    file: Mutex<Option<Vec<u8>>>,
    asked: Mutex<Vec<String>>,
}

impl Mirror {
    fn start() -> (Arc<Mirror>, String) {
        let (mirror, listener) = (Arc::<Mirror>::default(), TcpListener::bind("127.0.0.1:0").expect("port"));
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let there = mirror.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that went away meanwhile is its own affair.
                let _ = there.answer(stream.expect("connection"));
            }
        });
        (mirror, url)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let path = lines.next().transpose()?.and_then(|line| Some(line.split(' ').nth(1)?.to_string()));
        let mut from = 0;
        for line in lines {
            let line = line?.to_lowercase();
            if let Some(range) = line.strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse().expect("an offset");
            }
            if line.is_empty() {
                break;
            }
        }
        self.asked.lock().expect("paths").extend(path);
        let file = self.file.lock().expect("file").clone();
        let (status, body) = match &file {
            None => (404, &[][..]),
            Some(bytes) if from == 0 => (200, &bytes[..]),
            Some(bytes) if from < bytes.len() => (206, &bytes[from..]),
            Some(_) => (416, &[][..]),
        };
        write!(stream, "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len())?;
        stream.write_all(body)
    }

    fn gives(&self, file: Option<Vec<u8>>) {
        *self.file.lock().expect("file") = file;
        self.asked.lock().expect("paths").clear();
    }
}

#[test]
#[ignore = "needs the release build: make test runs it"]
fn a_package_that_comes_altered_cut_or_not_at_all_is_named() {
    const NAME: &str = "crun";
    let dir = cluster();
    // A cache of its own, with everything but that one package.
    let export = apart(dir.path(), "$KIMG cache export bundle.tar");
    assert!(export.status.success(), "{}", said(&export));
    let cache = dir.path().join("cache");
    let run = |args: &str| apart(dir.path(), &format!("export XDG_CACHE_HOME={}; $KIMG {args}", cache.display()));
    assert!(run("cache import bundle.tar").status.success());
    let lock = Lock::read(dir.path()).expect("lock");
    let package = lock.package(NAME).expect("package");
    let kept = cache.join("kimg/packages").join(&package.sha256);
    let good = std::fs::read(&kept).expect("package");
    let (main, url) = Mirror::start();
    let (security, security_url) = Mirror::start();
    let packages = |main: &str, security: &str, more: &str| {
        let text = format!("{CLUSTER}[packages]\nmirror = \"{main}\"\nsecurity-mirror = \"{security}\"\n{more}");
        std::fs::write(dir.path().join("cluster.toml"), text).expect("cluster.toml");
    };
    packages(&url, &security_url, "");
    let gives = |file: Option<Vec<u8>>| [&main, &security].iter().for_each(|mirror| mirror.gives(file.clone()));
    let left = || {
        let built = std::fs::read_dir(dir.path().join("build/worker")).into_iter().flatten();
        built.map(|entry| entry.expect("entry").file_name()).collect::<Vec<_>>()
    };
    let fails = |wanted: &[&str]| {
        let output = run("build worker --format raw");
        let text = said(&output);
        assert_eq!(output.status.code(), Some(1), "{text}");
        let who = format!("{NAME} {}", package.version);
        assert!(wanted.iter().chain([&who.as_str()]).all(|word| text.contains(word)), "{wanted:?}: {text}");
        assert_eq!(left(), Vec::<std::ffi::OsString>::new());
        assert!(!kept.exists(), "what is no package is not kept as one");
    };

    std::fs::remove_file(&kept).expect("package");
    let mut altered = good.clone();
    altered[good.len() / 2] ^= 1;
    gives(Some(altered));
    fails(&["fetching", "changes files", &package.sha256]);
    gives(Some(good[..good.len() / 2].to_vec()));
    fails(&["fetching", &format!("of {} bytes", good.len())]);
    gives(None);
    fails(&["the mirror no longer has", "`kimg lock`", "`mirror`"]);

    // A snapshot still has it, and there the lock file's version is fetched by its own path.
    let (snapshot, snapshot_url) = Mirror::start();
    snapshot.gives(Some(good.clone()));
    packages(&snapshot_url, &snapshot_url, "snapshot = \"2026-01-01T00:00:00Z\"\n");
    let output = run("build worker --format raw");
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(*snapshot.asked.lock().expect("paths"), [format!("/{}", package.path)]);
    assert!(std::fs::read(&kept).expect("package") == good && left().iter().any(|name| name == "disk.raw"));

    // Altered where it is kept, as long as before: fetched again where it is needed.
    let mut spoiled = good.clone();
    spoiled[good.len() / 2] ^= 1;
    std::fs::write(&kept, spoiled).expect("package");
    std::fs::remove_dir_all(cache.join("kimg/steps")).expect("what was built");
    std::fs::remove_dir_all(dir.path().join("build")).expect("what was built");
    let output = run("build worker --format raw");
    assert!(output.status.success(), "{}", said(&output));
    assert!(std::fs::read(&kept).expect("package") == good);
}
