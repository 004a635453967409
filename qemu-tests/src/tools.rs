//! Programs that the tests drive: this workspace's own `kimg`, and others' from Debian's packages and Python's registry.

use crate::cluster::run_in;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A version of kubectl.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kubectl {
    /// Debian bookworm's.
    V1_20,
    /// Debian trixie's.
    V1_32,
}

impl Kubectl {
    fn suite(self) -> &'static str {
        match self {
            Kubectl::V1_20 => "bookworm",
            Kubectl::V1_32 => "trixie",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Kubectl::V1_20 => "kubernetes-client",
            Kubectl::V1_32 => "kubectl",
        }
    }
}

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// The `kimg` that `make build` left.
pub fn kimg() -> PathBuf {
    workspace().join("target/release/kimg")
}

static FETCH: Mutex<()> = Mutex::new(());

/// A real kubectl; fetched and unpacked once into `target/tools/`.
///
/// # Errors
/// The package cannot be had.
pub fn kubectl(version: Kubectl) -> Result<PathBuf> {
    let program = workspace().join("target/tools").join(format!("kubectl-{}", version.suite()));
    let _one_at_a_time = FETCH.lock().map_err(|_| anyhow::anyhow!("fetching kubectl failed in another test"))?;
    if !program.exists() {
        kimg::packages::fetch_program(version.suite(), version.package(), "/usr/bin/kubectl", &program)
            .with_context(|| format!("fetching kubectl from Debian {}", version.suite()))?;
    }
    Ok(program)
}

/// Debian trixie's etcd server; fetched once into `target/tools/`.
///
/// # Errors
/// The package cannot be had.
pub fn etcd() -> Result<PathBuf> {
    let program = workspace().join("target/tools/etcd");
    if !program.exists() {
        kimg::packages::fetch_program("trixie", "etcd-server", "/usr/bin/etcd", &program)
            .context("fetching etcd-server from Debian trixie")?;
    }
    Ok(program)
}

/// Debian's static busybox; fetched once.
///
/// # Errors
/// The package cannot be had.
pub fn busybox() -> Result<PathBuf> {
    let program = workspace().join("target/tools/busybox");
    if !program.exists() {
        kimg::packages::fetch_program("trixie", "busybox-static", "/usr/bin/busybox", &program)
            .context("fetching busybox-static from Debian trixie")?;
    }
    Ok(program)
}

/// Debian's rsyslog with its TLS, a tree with its libraries; fetched once into `target/tools/`.
///
/// # Errors
/// The packages cannot be had.
pub fn rsyslog() -> Result<PathBuf> {
    let tree = workspace().join("target/tools/rsyslog");
    if !tree.exists() {
        std::fs::create_dir_all(workspace().join("target/tools")).context("making target/tools")?;
        let wanted = |path: &str| path == "/usr/sbin/rsyslogd" || path.contains(".so");
        let packages = ["rsyslog", "rsyslog-openssl", "libestr0", "libfastjson4", "liblognorm5", "libssl3"];
        kimg::packages::fetch_tree("bookworm", &packages, wanted, &tree)
            .context("fetching rsyslog from Debian bookworm")?;
    }
    Ok(tree)
}

/// Debian's age; fetched once.
///
/// # Errors
/// The package cannot be had.
pub fn age() -> Result<PathBuf> {
    let program = workspace().join("target/tools/age");
    if !program.exists() {
        kimg::packages::fetch_program("bookworm", "age", "/usr/bin/age", &program)
            .context("fetching age from Debian bookworm")?;
    }
    Ok(program)
}

/// Ubuntu's and Debian's verifier of signed EFI programs, ready for its arguments; fetched once.
///
/// # Errors
/// The packages cannot be had.
pub fn sbverify() -> Result<Command> {
    let tree = workspace().join("target/tools/sbsigntool");
    if !tree.exists() {
        std::fs::create_dir_all(workspace().join("target/tools")).context("making target/tools")?;
        let wanted = |path: &str| path == "/usr/bin/sbverify" || path.contains(".so.");
        kimg::packages::fetch_tree("bookworm", &["sbsigntool", "libssl3"], wanted, &tree)
            .context("fetching sbsigntool from Debian bookworm")?;
    }
    let mut command = Command::new(tree.join("usr/bin/sbverify"));
    command.env("LD_LIBRARY_PATH", tree.join("usr/lib/x86_64-linux-gnu"));
    Ok(command)
}

/// Debian's emulator of a TPM, ready for its arguments; fetched once.
///
/// # Errors
/// The packages cannot be had.
pub fn swtpm() -> Result<Command> {
    let tree = workspace().join("target/tools/swtpm");
    if !tree.exists() {
        std::fs::create_dir_all(workspace().join("target/tools")).context("making target/tools")?;
        let wanted = |path: &str| path == "/usr/bin/swtpm" || path.contains(".so.");
        kimg::packages::fetch_tree(
            "bookworm",
            &["swtpm", "swtpm-libs", "libtpms0", "libseccomp2", "libssl3"],
            wanted,
            &tree,
        )
        .context("fetching swtpm from Debian bookworm")?;
    }
    let mut command = Command::new(tree.join("usr/bin/swtpm"));
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let libraries = std::env::join_paths([libraries.join("swtpm"), libraries]).context("naming swtpm's libraries")?;
    command.env("LD_LIBRARY_PATH", libraries);
    Ok(command)
}

/// A browser without a window.
#[derive(Debug)]
pub struct Browser(PathBuf);

/// Chromium, and the libraries and the font that a machine without a screen lacks.
const BROWSER: &[&str] = &[
    "chromium-headless-shell",
    "chromium-common",
    "fonts-dejavu-core",
    "libasound2",
    "libasyncns0",
    "libatk1.0-0",
    "libatspi2.0-0",
    "libbrotli1",
    "libbsd0",
    "libdav1d6",
    "libdbus-1-3",
    "libdouble-conversion3",
    "libdrm2",
    "libexpat1",
    "libffi8",
    "libflac12",
    "libfontconfig1",
    "libfreetype6",
    "libgbm1",
    "libglib2.0-0",
    "libgraphite2-3",
    "libharfbuzz-subset0",
    "libharfbuzz0b",
    "libjpeg62-turbo",
    "liblcms2-2",
    "libminizip1",
    "libmp3lame0",
    "libmpg123-0",
    "libnspr4",
    "libnss3",
    "libogg0",
    "libopenh264-7",
    "libopenjp2-7",
    "libopus0",
    "libpng16-16",
    "libpulse0",
    "libsndfile1",
    "libvorbis0a",
    "libvorbisenc2",
    "libwayland-server0",
    "libx11-6",
    "libx11-xcb1",
    "libxau6",
    "libxcb1",
    "libxcomposite1",
    "libxdamage1",
    "libxdmcp6",
    "libxext6",
    "libxfixes3",
    "libxi6",
    "libxkbcommon0",
    "libxnvctrl0",
    "libxrandr2",
    "libxrender1",
];

/// Debian's Chromium; fetched once.
///
/// # Errors
/// The packages cannot be had.
pub fn browser() -> Result<Browser> {
    let tree = workspace().join("target/tools/chromium");
    if !tree.exists() {
        std::fs::create_dir_all(workspace().join("target/tools")).context("making target/tools")?;
        let wanted = |path: &str| {
            let library = path.contains("/x86_64-linux-gnu/") && path.contains(".so");
            library || path.starts_with("/usr/lib/chromium/") || path.starts_with("/usr/share/fonts/")
        };
        kimg::packages::fetch_tree("bookworm", BROWSER, wanted, &tree)
            .context("fetching chromium from Debian bookworm")?;
    }
    let fonts = format!("<fontconfig><dir>{}</dir></fontconfig>", tree.join("usr/share/fonts").display());
    std::fs::write(tree.join("fonts.conf"), fonts).context("writing fonts.conf")?;
    Ok(Browser(tree))
}

impl Browser {
    /// Ready for its arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.0.join("usr/lib/chromium/chromium-headless-shell"));
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/pulseaudio"];
        let libraries: Vec<String> = libraries.iter().map(|part| self.0.join(part).display().to_string()).collect();
        command.env("LD_LIBRARY_PATH", libraries.join(":")).env("FONTCONFIG_FILE", self.0.join("fonts.conf"));
        command
    }
}

/// systemd's boot loader, which puts Secure Boot keys into a firmware that has none; fetched once.
///
/// # Errors
/// The package cannot be had.
pub fn systemd_boot() -> Result<PathBuf> {
    let program = workspace().join("target/tools/systemd-bootx64.efi");
    if !program.exists() {
        let path = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";
        kimg::packages::fetch_program("trixie", "systemd-boot-efi", path, &program)
            .context("fetching systemd-boot-efi from Debian trixie")?;
    }
    Ok(program)
}

/// The program that writes keys into OVMF's variables; installed once.
///
/// # Errors
/// Python or its packages cannot be had.
pub fn virt_fw_vars() -> Result<PathBuf> {
    let list = workspace().join("qemu-tests/firmware/requirements.txt");
    Ok(python_environment("firmware", &list)?.join("bin/virt-fw-vars"))
}

/// A virtual environment of Python below `target/tools/NAME` with what `requirements` names; made once.
///
/// # Errors
/// Python or its packages cannot be had.
pub fn python_environment(name: &str, requirements: &Path) -> Result<PathBuf> {
    let dir = workspace().join("target/tools").join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let list = std::fs::read_to_string(requirements).with_context(|| format!("reading {}", requirements.display()))?;
    once(&dir.join("stamp"), &list, || {
        must(&dir, "python3", &["-m", "venv", "--clear", "venv"])?;
        let pip = dir.join("venv/bin/pip").display().to_string();
        let file = requirements.display().to_string();
        must(&dir, &pip, &["install", "--quiet", "--disable-pip-version-check", "--requirement", &file])
    })?;
    Ok(dir.join("venv"))
}

/// Whether `stamp` says that what is beside it was made from `want`; if not, makes it and says so.
///
/// # Errors
/// It cannot be made.
pub fn once(stamp: &Path, want: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    if std::fs::read_to_string(stamp).is_ok_and(|made| made == want) {
        return Ok(());
    }
    make()?;
    std::fs::write(stamp, want).with_context(|| format!("writing {}", stamp.display()))
}

/// Runs a program in `dir`, which must succeed.
///
/// # Errors
/// It does not; the error holds what it said.
pub fn must(dir: &Path, program: &str, args: &[&str]) -> Result<()> {
    run_in(dir, program.into(), args, None)?
        .success()
        .with_context(|| format!("{program} {}", args.join(" ")))
        .map(|_| ())
}
