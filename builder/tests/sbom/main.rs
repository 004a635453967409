//! The SBOM in both forms, judged by independent validators from PyPI.
//!
//! Needs Python and its packages; `make test-long PART=sbom` runs it. Where they cannot be had the test says so and fails.

use kimg::image::components::Component;
use kimg::image::root::BakedImage;
use kimg::lock::Lock;
use kimg::sbom::{self, Bill, Form, Inputs, Kind, Licence, Part};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn run(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{}: {e}", program.display()));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} {args:?}:\n{said}", program.display());
    said
}

fn here(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sbom").join(name).display().to_string()
}

/// A Python with the validators; made once for each list of them, by the test that needs it first.
fn python() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(make_python).clone()
}

fn make_python() -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/sbom");
    let (stamp, python) = (dir.join("stamp"), dir.join("venv/bin/python3"));
    let wanted = std::fs::read_to_string(here("requirements.txt")).expect("requirements");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return python;
    }
    std::fs::create_dir_all(&dir).expect("folder");
    run(Path::new("python3"), &["-m", "venv", "--clear", &dir.join("venv").display().to_string()]);
    let args = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    run(&python, &[&args[..], &[&here("requirements.txt")]].concat());
    std::fs::write(&stamp, wanted).expect("stamp");
    python
}

/// All programs with their crates, a container image, and a package with every field.
fn bill() -> Bill {
    let program = |name: &str| {
        (Component { name: name.into(), sha256: "ab".repeat(32), size: 1 }, Some("2.36-9+deb12u14".to_string()))
    };
    let lock = Lock { version: 1, release: "trixie".into(), architecture: "amd64".into(), packages: Vec::new() };
    let mut bill = sbom::bill(&Inputs {
        name: "demo-worker",
        lock: &lock,
        packages: &[],
        programs: &["kimg-node", "kimg-control", "kimg-stage1"].map(program),
        images: &[BakedImage {
            name: "web.tar".into(),
            references: vec!["r.example/web:1".into()],
            path: "web.tar".into(),
            sha256: "ef".repeat(32),
        }],
    })
    .expect("bill");
    bill.parts.push(Part {
        id: "deb-libstdc.2b..2b.6".into(),
        kind: Kind::Deb,
        name: "libstdc++6".into(),
        version: Some("1:14.2.0-19~x".into()),
        sha256: Some("cd".repeat(32)),
        purl: Some("pkg:deb/debian/libstdc%2B%2B6@1%3A14.2.0-19~x?arch=amd64&distro=trixie".into()),
        licence: Licence::Names(vec!["GPL-3+ with exception".into()]),
        maintainer: Some("Debian GCC Maintainers <debian-gcc@lists.debian.org>".into()),
        homepage: Some("http://gcc.gnu.org/".into()),
        source: Some(("gcc-14".into(), "14.2.0-19".into())),
        depends: Vec::new(),
    });
    bill
}

fn judge(spdx: &Path, cyclonedx: &Path) -> String {
    run(&python(), &[&here("validate.py"), &spdx.display().to_string(), &cyclonedx.display().to_string()])
}

#[test]
#[ignore = "needs packages of PyPI: make test-long runs it"]
fn both_forms_are_valid() {
    let dir = tempfile::tempdir().expect("folder");
    let bill = bill();
    let paths = [Form::Spdx, Form::Cyclonedx].map(|form| {
        let path = dir.path().join(form.file());
        std::fs::write(&path, bill.document(form).expect("document")).expect("written");
        path
    });
    assert_eq!(judge(&paths[0], &paths[1]).trim(), format!("{} parts", bill.parts.len()));
}

/// The papers of both images of a fresh build.
#[test]
#[ignore = "needs the release build: make test-long runs it"]
fn the_papers_of_both_images_are_valid_and_whole() {
    let dir = tempfile::tempdir().expect("folder");
    let cluster =
        "name = \"papers\"\nnodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n";
    std::fs::write(dir.path().join("cluster.toml"), cluster).expect("cluster.toml");
    let kimg = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/kimg");
    let at = dir.path().display().to_string();
    run(&kimg, &["--dir", &at, "build", "all", "--format", "raw"]);
    for role in ["master", "worker"] {
        let folder = dir.path().join("build").join(role);
        judge(&folder.join(sbom::SPDX_FILE), &folder.join(sbom::CYCLONEDX_FILE));
        let spdx = std::fs::read_to_string(folder.join(sbom::SPDX_FILE)).expect("SBOM");
        let packages = std::fs::read(folder.join("manifest.json")).expect("manifest");
        let manifest: serde_json::Value = serde_json::from_slice(&packages).expect("manifest");
        let named = manifest["packages"].as_object().expect("packages");
        for wanted in ["libc6", "ca-certificates", "grub-pc-bin", "linux-image-"] {
            assert!(named.keys().any(|name| name.starts_with(wanted)), "{role}: no {wanted} in {named:?}");
        }
        let packed = std::fs::read(folder.join(sbom::LICENCES_FILE)).expect("licences");
        let plain = zstd::decode_all(&packed[..]).expect("zstd");
        let files: Vec<String> = tar::Archive::new(&plain[..])
            .entries()
            .expect("tar")
            .map(|entry| entry.expect("entry").path().expect("path").display().to_string())
            .collect();
        for name in named.keys() {
            assert!(spdx.contains(&format!("\"name\": \"{name}\"")), "{role}: {name} is not in the SBOM");
            assert!(files.contains(&format!("debian/{name}/copyright")), "{role}: no copyright file of {name}");
        }
        let printed = run(&kimg, &["--dir", &at, "inspect", "--sbom", "spdx", role]);
        assert_eq!(printed, spdx);
    }
}
