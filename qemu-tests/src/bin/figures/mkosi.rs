//! One image of kimg's against one that mkosi makes of the same Debian: kernel, init, containerd and crun, a squashfs
//! root with its hash tree, a UKI, packed by zstd. The packages of both are fetched before.

use crate::build::{self, on_disk};
use crate::measured::{self, Measured};
use anyhow::{Context, Result};
use kimg::packages::{RELEASE, mirror_of};
use qemu_tests::debian::Debian;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What mkosi itself runs, besides Python and apt.
const PACKAGES: [&str; 12] = [
    "mkosi",
    "apt",
    "ca-certificates",
    "cpio",
    "debian-archive-keyring",
    "dosfstools",
    "mtools",
    "squashfs-tools",
    "systemd-boot-tools",
    "systemd-repart",
    "systemd-ukify",
    "zstd",
];

const SETTINGS: &[(&str, &str)] = &[
    (
        "mkosi.conf",
        "[Distribution]\nDistribution=debian\nRelease=trixie\n\
         [Output]\nFormat=disk\nOutput=image\nOutputDirectory=out\nCompressOutput=zstd\n\
         [Content]\nBootable=yes\nBootloader=systemd-boot\nUnifiedKernelImages=yes\nWithDocs=no\n\
         CleanPackageMetadata=yes\n\
         Packages=linux-image-cloud-amd64\n systemd\n systemd-boot\n systemd-boot-efi\n udev\n containerd\n crun\n\
         [Build]\nPackageCacheDirectory=cache\n",
    ),
    (
        "mkosi.repart/00-esp.conf",
        "[Partition]\nType=esp\nFormat=vfat\nCopyFiles=/efi:/\nCopyFiles=/boot:/\nSizeMinBytes=256M\n",
    ),
    (
        "mkosi.repart/10-root.conf",
        "[Partition]\nType=root\nFormat=squashfs\nCopyFiles=/\nExcludeFiles=/boot/ /efi/\nVerity=data\nVerityMatchKey=root\nMinimize=best\n",
    ),
    ("mkosi.repart/20-verity.conf", "[Partition]\nType=root-verity\nVerity=hash\nVerityMatchKey=root\nMinimize=best\n"),
];

/// The host's mirrors, without the debugging archive and the sources, which not every mirror has.
fn apt_sources() -> Result<String> {
    let security = format!("{RELEASE}-security");
    let source = |mirror: &str, suites: &str| {
        format!(
            "Types: deb\nURIs: {mirror}\nSuites: {suites}\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        )
    };
    let main = source(&mirror_of(RELEASE)?, &format!("{RELEASE} {RELEASE}-updates"));
    Ok(format!("{main}\n{}", source(&mirror_of(&security)?, &security)))
}

/// Builds one image with each, and says how they compare: above 1 is what mkosi takes more. Without mkosi there is a
/// reason instead, and the answer is false.
pub fn figures(dir: &Path, into: &mut Map<String, Value>) -> Result<bool> {
    let debian = match Debian::with("mkosi", RELEASE, &PACKAGES) {
        Ok(debian) => debian,
        Err(why) => {
            into.insert("skipped".into(), json!(format!("{why:#}")));
            return Ok(false);
        }
    };
    let project = debian.root.join("project");
    if project.exists() {
        std::fs::remove_dir_all(&project).with_context(|| format!("removing {}", project.display()))?;
    }
    let sources = apt_sources().context("choosing mkosi's mirrors")?;
    let sources = ("mkosi.sandbox/etc/apt/sources.list.d/mkosi.sources", sources.as_str());
    for (name, text) in SETTINGS.iter().copied().chain([sources]) {
        let file = project.join(name);
        let folder = file.parent().context("a file without a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    std::fs::create_dir_all(project.join("cache")).context("making mkosi's cache")?;
    let mkosi = || -> Result<Measured> {
        let mut command = debian.run("mkosi");
        measured::run(command.args(["--directory=/project", "--force", "build"])).context("mkosi build")
    };
    mkosi()?;
    build::build(dir, &["worker"])?;
    let (theirs, ours) = (mkosi()?, build::cold(dir, &["worker"])?);
    let their_bytes = on_disk(&project.join("out/image.raw.zst"))?;
    let our_bytes = on_disk(&dir.join("build/worker/disk.raw.zst"))?;
    for (name, built, bytes) in [("kimg", ours, our_bytes), ("mkosi", theirs, their_bytes)] {
        into.insert(format!("{name}.cold_s"), json!(built.seconds));
        into.insert(format!("{name}.peak_kib"), json!(built.peak_kib));
        into.insert(format!("{name}.zst_bytes"), json!(bytes));
    }
    into.insert("ratio.time".into(), json!(theirs.seconds / ours.seconds));
    into.insert("ratio.memory".into(), json!(theirs.peak_kib as f64 / ours.peak_kib as f64));
    into.insert("ratio.size".into(), json!(their_bytes as f64 / our_bytes as f64));
    Ok(true)
}
