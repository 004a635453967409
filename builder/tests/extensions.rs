//! What `cluster.toml` adds to the images is in them, by role, as Debian's unsquashfs and kimg's own readers see it.
//!
//! Needs what `make build` leaves; `make test` runs it.

use kimg::image::contents::{self, Contents};
use kimg::image::inspect;
use kimg::image::reader::Disk;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const CLUSTER: &str = r#"
name = "extended"
secrets = "plain"
manifests = ["own.yaml"]
nodes = [{ name = "m", role = "master" }, { name = "w", role = "worker" }]

[image]
files = { "/etc/motd" = "motd" }
packages = [{ name = "strace", files = ["/usr/bin/strace"] }]
kernel-args = ["loglevel=3"]

[image.master]
files = { "/usr/bin/agent" = "agent" }
kernel-args = ["panic=7"]

[image.worker]
modules = ["dm-crypt"]
images = ["web.tar"]

[image.worker.components.watcher]
binary = "watch"
args = ["--all"]
memory = "8Mi"
"#;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Debian's unsquashfs; fetched once.
fn unsquashfs(squashfs: &Path, to: &Path) {
    let tree = here("target/tools/squashfs-tools-bookworm");
    if !tree.exists() {
        let packages = ["squashfs-tools", "liblzo2-2", "liblz4-1", "libzstd1", "liblzma5", "zlib1g"];
        let wanted = |path: &str| path.ends_with("/unsquashfs") || path.contains(".so.");
        kimg::packages::fetch_tree("bookworm", &packages, wanted, &tree).expect("Debian's unsquashfs");
    }
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| tree.join(dir));
    let output = Command::new(tree.join("usr/bin/unsquashfs"))
        .args(["-quiet", "-no-progress", "-no-xattrs", "-dest"])
        .args([to, squashfs])
        .env("LD_LIBRARY_PATH", std::env::join_paths(libraries).expect("paths"))
        .output()
        .expect("unsquashfs runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn kimg(dir: &Path, args: &[&str]) {
    let output = Command::new(here("target/release/kimg")).current_dir(dir).args(args).output().expect("kimg runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs the release build: make test runs it"]
fn what_a_cluster_adds_is_in_its_images() {
    let base = tempfile::tempdir().expect("folder");
    let dir = base.path();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("file");
    write("cluster.toml", CLUSTER);
    write("motd", "hello\n");
    write("agent", "#!/nothing\n");
    std::fs::set_permissions(dir.join("agent"), std::fs::Permissions::from_mode(0o750)).expect("mode");
    std::fs::write(dir.join("watch"), kimg::oci::pause::program()).expect("file");
    std::fs::set_permissions(dir.join("watch"), std::fs::Permissions::from_mode(0o700)).expect("mode");
    write("own.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: own}\n");
    std::fs::create_dir(dir.join("web")).expect("folder");
    write("web/index.html", "hello");
    kimg(dir, &["build", "image", "web", "--name", "registry.example.com/web:1", "--output", "web.tar"]);
    kimg(dir, &["build", "all", "--format", "raw"]);
    for role in ["master", "worker"] {
        let (master, worker) = (role == "master", role == "worker");
        let image = dir.join("build").join(role).join("disk.raw");
        let mut packed = contents::root_of(&mut Disk::open(&image).expect("disk")).expect("root");
        let (squashfs, root) = (dir.join(format!("{role}.squashfs")), dir.join(role));
        std::io::copy(&mut packed, &mut std::fs::File::create(&squashfs).expect("file")).expect("copied");
        unsquashfs(&squashfs, &root);
        let read = |path: &str| std::fs::read(root.join(path)).ok();
        let mode = |path: &str| std::fs::metadata(root.join(path)).map(|meta| meta.permissions().mode() & 0o7777).ok();

        assert_eq!((read("etc/motd"), mode("etc/motd")), (Some(b"hello\n".to_vec()), Some(0o644)), "{role}");
        assert_eq!(read("usr/bin/agent"), master.then(|| b"#!/nothing\n".to_vec()), "{role}");
        assert_eq!(mode("usr/bin/agent"), master.then_some(0o755), "{role}");
        assert!(read("usr/bin/strace").is_some_and(|bytes| bytes.starts_with(b"\x7fELF")), "{role}");
        let baked = std::fs::read(dir.join("web.tar")).expect("archive");
        assert!(read("usr/share/kimg/images/web.tar") == worker.then_some(baked), "{role}");

        let program = "usr/lib/kimg/components/watcher";
        assert_eq!(read(program), worker.then(kimg::oci::pause::program), "{role}");
        assert_eq!(mode(program), worker.then_some(0o755), "{role}");

        let seen = Contents::of_image(&image).expect("contents");
        let owner = |path: &str| seen.files.get(path).map(|item| item.owner.as_str());
        assert_eq!(owner("/usr/bin/strace"), Some("strace"), "{role}");
        assert!(seen.packages.contains_key("strace"), "{role}");
        let module =
            seen.files.keys().find(|path| path.rsplit('/').next().is_some_and(|n| n.starts_with("dm-crypt.ko")));
        assert_eq!(module.is_some(), worker, "{role}: {module:?}");
        if let Some(module) = module {
            assert!(read(module.trim_start_matches('/')).is_some(), "{module}");
        }
        let report = inspect::inspect(&image).expect("report");
        assert_eq!(owner("/usr/lib/kimg/components/watcher"), worker.then_some("cluster.toml"), "{role}");
        let baked = serde_json::json!({"watcher": {"args": ["--all"], "memory": 8 << 20}});
        assert_eq!(report.cluster.get("components"), worker.then_some(&baked), "{role}");
        let word = |word: &str| report.command_line.split(' ').any(|have| have == word);
        assert!(word("loglevel=3") && word("panic=7") == master, "{role}: {}", report.command_line);
        let added = report.config_files.keys().any(|path| path.starts_with("manifests/") && path.contains("own"));
        assert_eq!(added, master, "{role}: {:?}", report.config_files.keys());
    }
}
