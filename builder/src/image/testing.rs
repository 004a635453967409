//! Small disk images for tests: a real partition table, CONFIG and verity, and a root of a few files.

use super::contents::tests::squashfs;
use super::verity;
use crate::config;
use crate::disk::{self, config_part};
use crate::pki;
use node_metadata::{BuildInfo, Role};
use std::path::{Path, PathBuf};

/// What goes into a test's image.
pub struct Fixture {
    /// The cluster's folder; its keys are made there.
    pub dir: PathBuf,
    /// Lines of `cluster.toml` besides name and nodes.
    pub settings: String,
    /// Lines of the list of packages.
    pub packages: String,
    /// Path, owner and content of the root's files.
    pub files: Vec<(&'static str, &'static str, Vec<u8>)>,
    /// The kernel's.
    pub command_line: String,
}

impl Fixture {
    /// An image of a cluster in `dir`.
    pub fn new(dir: &Path) -> Fixture {
        Fixture {
            dir: dir.to_path_buf(),
            settings: String::new(),
            packages: "crun 1.21-1\nlibc6 2.41-12\n".into(),
            files: vec![("/usr/bin/crun", "crun", b"elf".to_vec()), ("/etc/old", "kimg", b"old".to_vec())],
            command_line: "kimg.roothash=00 console=ttyS0".into(),
        }
    }
}

/// Writes the master's image.
pub fn image(fixture: &Fixture, path: &Path) {
    let text = format!("name = \"demo\"\n{}nodes = [{{ name = \"m\", role = \"master\" }}]\n", fixture.settings);
    let settings = config::parse(Path::new("cluster.toml"), &text, &fixture.dir).unwrap();
    let config = pki::config_partition(&settings, Role::Master, BuildInfo::default()).unwrap();
    let work = tempfile::tempdir().unwrap();
    let (root, tree) = (work.path().join("root"), work.path().join("tree"));
    std::fs::write(&root, squashfs(&fixture.files, &fixture.packages)).unwrap();
    let root_hash = verity::write(&root, &tree).unwrap();
    let parts = disk::Parts {
        boot_img: &[0; 512],
        esp_files: &[("/EFI/BOOT/BOOTX64.EFI", fixture.command_line.as_bytes())],
        root: &root,
        verity: &tree,
        root_hash,
        config: &config_part::encode(&config).unwrap(),
    };
    disk::write(path, &parts, b"core").unwrap();
}
