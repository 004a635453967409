//! What a user may type wrong, through the program itself: exit code 2, a sentence, nothing made, no panic, no wait.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn kimg(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kimg"))
        .current_dir(dir)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("kimg runs")
}

/// The error of a command that must end with this code.
fn ends_with(code: i32, dir: &Path, args: &[&str]) -> String {
    let output = kimg(dir, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
    assert!(!said.contains("panicked") && !said.contains("os error 17"), "{args:?}: {said}");
    said
}

/// A folder with a cluster and its keys.
fn cluster() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("dir");
    ends_with(0, dir.path(), &["init", "."]);
    dir
}

fn pipe(path: &Path) {
    rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into()).expect("pipe");
}

#[test]
fn a_full_disk_behind_the_output_is_an_error() {
    let cluster = cluster();
    for args in [&["kubeconfig"][..], &["completion", "bash"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("device");
        let output = Command::new(env!("CARGO_BIN_EXE_kimg"))
            .current_dir(cluster.path())
            .args(args)
            .stdin(Stdio::null())
            .stdout(full)
            .output()
            .expect("kimg runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("No space left") && !said.contains("panicked"), "{args:?}: {said}");
    }
}

#[test]
fn what_is_made_is_never_writable_by_everybody() {
    let dir = tempfile::tempdir().expect("dir");
    let script = format!("umask 0; exec {} init a", env!("CARGO_BIN_EXE_kimg"));
    let made = Command::new("sh").current_dir(dir.path()).args(["-c", &script]).output().expect("kimg runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for made in ["a", "a/cluster.toml"] {
        let mode = std::fs::metadata(dir.path().join(made)).expect("made").permissions().mode();
        assert_eq!(mode & 0o002, 0, "{made}: {mode:o}");
    }
}

#[test]
fn each_mistake_is_told_and_ends_with_2() {
    let cluster = cluster();
    let dir = cluster.path();
    std::fs::write(dir.join("notes.md"), "# Notes\n").expect("file");
    std::fs::write(dir.join("kimg.lock"), "version = 1\ngarbage").expect("file");
    pipe(&dir.join("pipe"));
    let cases: [(&[&str], &str); 43] = [
        (&["inspect", "nosuch"], "there is no nosuch"),
        (&["inspect", "notes.md"], "notes.md is no readable image"),
        (&["inspect", "pipe"], "pipe is a pipe"),
        (&["inspect", "/dev/zero"], "/dev/zero is a device"),
        (&["inspect", "secrets"], "there is no secrets/disk.raw"),
        (&["vulnerabilities", "notes.md", "--tracker", "pipe"], "pipe is a pipe"),
        (&["vulnerabilities", "notes.md", "--tracker", "notes.md"], "notes.md is no readable image"),
        (&["diff", "pipe", "pipe"], "pipe is a pipe"),
        (&["init", "notes.md"], "notes.md is no folder"),
        (&["init", "."], "exists and stays as it is"),
        (&["pki", "show", "notes.md"], "notes.md holds no certificate"),
        (&["pki", "show", "pipe"], "pipe is a pipe"),
        (&["pki", "show", "secrets"], "secrets is a folder"),
        (&["pki", "issue", "u", "--output", "nosuch/u"], "there is no folder nosuch"),
        (&["kubeconfig", "--output", "nosuch/x"], "there is no folder nosuch"),
        (&["node", "--node", "worker-9", "status"], "has no node worker-9; did you mean `worker-1`?"),
        (&["node", "restart", "a b"], "the VMs of cluster"),
        (&["node", "unseal"], "nothing is sealed"),
        (&["store", "--node", "worker-1", "check"], "worker-1 is a worker and has no store"),
        (&["store", "restore", "--yes", "notes.md"], "notes.md is neither a snapshot"),
        (&["store", "restore", "--yes", "pipe"], "pipe is a pipe"),
        (&["seed", "nobody"], "has no node nobody"),
        (&["seed", "master-1", "--drive", "notes.md"], "notes.md exists and is no seed"),
        (&["build", "image", "nosuch"], "there is no nosuch"),
        (&["build", "image", "notes.md", "--name", "x"], "neither a folder nor a program"),
        (&["build", "image", "pipe", "--name", "x"], "pipe is a pipe"),
        (&["build", "image", "secrets", "--name", "X y"], "'X y' is no image name"),
        (&["build", "image", "secrets", "--name", "x", "--user", "root"], "the user 'root' is not UID or UID:GID"),
        (&["build", "image", "secrets", "--name", "x", "--port", "99999"], "'99999' is no port"),
        (&["build", "image", "secrets", "--name", "x", "--workdir", "srv"], "'srv' is no absolute path"),
        (&["push", "nosuch"], "there is no nosuch"),
        (&["pull", "r.example/web", "--ca", "notes.md"], "notes.md holds no certificate in PEM form"),
        (&["push", "worker"], "a node image has no name of its own"),
        (&["pull", "r.example/web:"], "is no image name"),
        (&["pull", "u:s3cr3t@r.example/web"], "no user and password in it"),
        (&["push", "u:s3cr3t@r.example/web"], "no user and password in it"),
        (&["upload", "nobody", "--to", "s3"], "'nobody' is no role"),
        (&["upload", "master", "--to", "s3"], "--bucket is missing"),
        (&["upload", "master", "--to", "s3", "--dry-run", "--bucket", "a/b/c"], "--bucket: 'a/b/c' is no name"),
        (&["upload", "master", "--to", "s3", "--dry-run", "--bucket", "ab"], "--bucket: 'ab' is no bucket's name"),
        (&["upload", "master", "--to", "linode", "--dry-run", "--region", ""], "--region: '' is no name"),
        (&["image", "ls", "--at", "digitalocean"], "--region is missing"),
        (&["build", "all"], "kimg.lock:2 is not as `kimg lock` writes it"),
    ];
    for (args, said) in cases {
        // Whether the VMs run is looked at before what is asked of them: not a mistake, but a failure.
        let code = if said.starts_with("the VMs") { 1 } else { 2 };
        let error = ends_with(code, dir, args);
        assert!(error.contains(said) && !error.contains("s3cr3t"), "{args:?}: {error}");
    }
}

#[test]
fn an_image_that_is_not_there_is_a_mistake() {
    let dir = tempfile::tempdir().expect("dir");
    let store = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", store.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for mut stream in store.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let list = "<ListBucketResult></ListBucketResult>";
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{list}", list.len());
        }
    });
    let output = Command::new(env!("CARGO_BIN_EXE_kimg"))
        .current_dir(dir.path())
        .args(["image", "rm", "nothere", "--at", "s3", "--bucket", "images", "--endpoint", &endpoint])
        .env("AWS_ACCESS_KEY_ID", "key")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .output()
        .expect("kimg runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("kimg has put no image nothere there"), "{said}");
}

#[test]
fn a_faulty_cluster_toml_is_told_by_every_command() {
    let cluster = cluster();
    let dir = cluster.path();
    let path = dir.join("cluster.toml");
    let commands: [&[&str]; 9] = [
        &["status"],
        &["up"],
        &["down"],
        &["build", "all"],
        &["lock"],
        &["node", "status"],
        &["seed", "worker-1"],
        &["kubeconfig"],
        &["doctor"],
    ];
    let text = std::fs::read_to_string(&path).expect("example");
    std::fs::write(&path, text.replace("#pod-cidr = \"10.200.0.0/16\"", "pod-cidr = \"10.200.0.0/24\"")).expect("file");
    for command in commands {
        let error = ends_with(2, dir, command);
        assert!(error.contains("pod-cidr: 10.200.0.0/24 has room for 1 node,"), "{command:?}: {error}");
        assert_eq!(error.matches("cluster.toml").count(), 1, "{error}");
    }
    std::fs::remove_file(&path).expect("removed");
    pipe(&path);
    for command in commands {
        let error = ends_with(2, dir, command);
        assert!(error.contains("cluster.toml is a pipe"), "{command:?}: {error}");
    }
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("folder");
    assert!(ends_with(2, dir, &["status"]).contains("cluster.toml is a folder"));
    std::fs::remove_dir(&path).expect("removed");
    std::fs::write(&path, vec![b'#'; 2 << 20]).expect("file");
    assert!(ends_with(2, dir, &["status"]).contains("cluster.toml is longer than"));
    assert!(!dir.join("run").exists());
}

#[test]
fn stopped_vms_are_named_and_nothing_is_made() {
    let cluster = cluster();
    let dir = cluster.path();
    std::fs::remove_dir_all(dir.join("secrets")).expect("removed");
    let status = kimg(dir, &["status"]);
    let text = String::from_utf8_lossy(&status.stdout);
    assert!(text.contains("do not run; start them with `kimg up`"), "{text}");
    assert!(ends_with(0, dir, &["down"]).is_empty());
    for args in [&["node", "status"] as &[&str], &["store", "check"]] {
        let error = ends_with(1, dir, args);
        assert!(error.contains("do not run; start them with `kimg up`"), "{args:?}: {error}");
    }
    assert!(!dir.join("run").exists() && !dir.join("secrets").exists());
    // A sealed cluster may run elsewhere, so its API is asked: not with authorities that it does not know.
    let path = dir.join("cluster.toml");
    let text = std::fs::read_to_string(&path).expect("cluster.toml");
    std::fs::write(&path, text.replace("secrets = \"plain\"", "secrets = \"sealed\"")).expect("cluster.toml");
    assert!(ends_with(2, dir, &["status"]).contains("does not hold this cluster's secrets"));
    std::fs::write(&path, text).expect("cluster.toml");
    // As in a clone of the folder: new authorities would be of no use with the image that is there.
    for args in [&["seed", "worker-1"] as &[&str], &["kubeconfig"], &["seed", "master-1"]] {
        let error = ends_with(2, dir, args);
        assert!(error.contains("does not hold this cluster's secrets"), "{args:?}: {error}");
    }
    assert!(!dir.join("secrets").exists());
    assert!(kimg(dir, &["pki", "init"]).status.success());
    let error = ends_with(1, dir, &["seed", "worker-1"]);
    assert!(error.contains("do not run; start them with `kimg up`"), "{error}");
}

#[test]
fn a_kubeconfig_needs_the_place_of_the_api() {
    let cluster = cluster();
    let dir = cluster.path();
    let server = |args: &[&str]| {
        let output = kimg(dir, args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let server = text.lines().find_map(|line| line.trim().strip_prefix("server: ")).map(str::to_string);
        server.unwrap_or_else(|| panic!("{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr)))
    };
    assert_eq!(
        server(&["kubeconfig", "--output", "-", "--server", "https://api.example:6443"]),
        "https://api.example:6443"
    );
    assert!(!dir.join("-").exists());
    // At a provider, as docs/provider.md has it, but without the API's place.
    let path = dir.join("cluster.toml");
    let text = std::fs::read_to_string(&path).expect("cluster.toml");
    let lines = text.lines().filter(|line| !line.starts_with("secrets") && !line.starts_with("addresses"));
    let text: String = lines.flat_map(|line| [line, "\n"]).collect();
    std::fs::write(&path, &text).expect("cluster.toml");
    for args in [&["kubeconfig"] as &[&str], &["seed", "worker-1"], &["status"], &["node", "status"]] {
        let error = ends_with(2, dir, args);
        assert!(error.contains("give master-1 its address (`addresses = ["), "{error}");
        assert!(error.contains("`addresses` or `names` under [api]"), "{error}");
    }
    assert_eq!(server(&["kubeconfig", "--server", "https://10.0.0.1:6443"]), "https://10.0.0.1:6443");
    std::fs::write(&path, format!("{text}[api]\nnames = [\"api.example\"]\n")).expect("cluster.toml");
    assert_eq!(server(&["kubeconfig"]), "https://api.example:6443");
}

/// As docs/how-to/colleague.md has it.
#[test]
fn a_colleague_gets_a_kubeconfig_of_her_own() {
    let cluster = cluster();
    let dir = cluster.path();
    let issue = ["pki", "issue", "anna", "--group", "developers", "--days", "90", "-o", "anna.kubeconfig"];
    let server = ["--server", "https://api.example:6443"];
    ends_with(2, dir, &[&issue[..], &server].concat());
    ends_with(0, dir, &[&issue[..], &server, &["--kubeconfig"]].concat());
    let path = dir.join("anna.kubeconfig");
    let text = std::fs::read_to_string(&path).expect("kubeconfig");
    assert!(text.contains("server: https://api.example:6443") && text.contains("name: anna"), "{text}");
    assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o077, 0);
    let shown = String::from_utf8_lossy(&kimg(dir, &["pki", "show", "anna.kubeconfig"]).stdout).into_owned();
    assert!(shown.contains("CN=anna") && shown.contains("O=developers"), "{shown}");
}

/// No user can follow a link to itself, as others may not enter a folder of mode 0.
#[test]
fn what_may_not_be_read_is_not_missing() {
    let cluster = cluster();
    let dir = cluster.path();
    ends_with(0, dir, &["pki", "init"]);
    for (name, commands) in [
        ("build", &[&["inspect", "master"][..], &["diff", "master", "worker"]][..]),
        ("secrets", &[&["kubeconfig"], &["pki", "show"], &["pki", "ls"], &["seed", "worker-1"]]),
        ("run", &[&["status"], &["node", "status"]]),
        ("cluster.toml", &[&["status"], &["build", "all"]]),
    ] {
        let path = dir.join(name);
        let aside = dir.join("aside");
        let was = std::fs::rename(&path, &aside).is_ok();
        std::os::unix::fs::symlink(name, &path).expect("link");
        for args in commands {
            let error = ends_with(2, dir, args);
            assert!(error.contains(name) && error.contains("cannot be read: "), "{args:?}: {error}");
        }
        std::fs::remove_file(&path).expect("removed");
        if was {
            std::fs::rename(&aside, &path).expect("back");
        }
    }
}

#[test]
fn certificates_are_listed_without_a_file() {
    let cluster = cluster();
    let output = kimg(cluster.path(), &["pki", "show"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.starts_with("FILE") && text.contains("secrets/etcd-ca.crt"), "{text}");
}

#[test]
fn a_reader_that_goes_away_is_no_fault() {
    let cluster = cluster();
    for args in [&["pki", "show", "--all"] as &[&str], &["completion", "bash"], &["--help"], &["status"]] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kimg"))
            .current_dir(cluster.path())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kimg runs");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked") && !said.contains("Broken pipe"), "{args:?}: {said}");
        assert!(matches!(output.status.code(), Some(0 | 1 | 141)), "{args:?}: {:?}", output.status);
    }
    // Nobody reads the error: the exit code still tells.
    let mut child = Command::new(env!("CARGO_BIN_EXE_kimg"))
        .current_dir(cluster.path())
        .args(["inspect", "nosuch"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("kimg runs");
    drop(child.stderr.take());
    assert_eq!(child.wait().expect("ends").code(), Some(2));
}
