//! Programs of other projects that read and serve images, below `target/tools/`.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    Registry,
    Skopeo,
    Umoci,
    Oras,
    Sshd,
}

/// Suite, package, program.
impl Tool {
    fn origin(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Tool::Registry => ("bookworm", "docker-registry", "docker-registry"),
            Tool::Skopeo => ("bookworm", "skopeo", "skopeo"),
            Tool::Umoci => ("bookworm", "umoci", "umoci"),
            Tool::Oras => ("trixie", "oras", "oras"),
            Tool::Sshd => ("bookworm", "openssh-server", "sshd"),
        }
    }

    /// The libraries that it needs besides the C library.
    fn libraries(self) -> &'static [&'static str] {
        match self {
            Tool::Skopeo => &[
                "libgpgme11",
                "libassuan0",
                "libgpg-error0",
                "libdevmapper1.02.1",
                "libselinux1",
                "libudev1",
                "libpcre2-8-0",
            ],
            Tool::Sshd => &["libwrap0", "libnsl2", "libtirpc3"],
            _ => &[],
        }
    }

    fn tree(self) -> PathBuf {
        let (suite, _, program) = self.origin();
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools").join(format!("{program}-{suite}"))
    }

    /// The program; fetched and unpacked once.
    pub fn find(self) -> Result<PathBuf> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let (suite, package, program) = self.origin();
        let folder = if self == Tool::Sshd { "usr/sbin" } else { "usr/bin" };
        let path = self.tree().join(folder).join(program);
        let _turn = ONE_AT_A_TIME.lock().map_err(|_| anyhow::anyhow!("fetching failed in another test"))?;
        if !path.exists() {
            let packages = [&[package][..], self.libraries()].concat();
            let wanted = |path: &str| path == format!("/{folder}/{program}") || path.contains("/lib/");
            kimg::packages::fetch_tree(suite, &packages, wanted, &self.tree())
                .with_context(|| format!("{package} cannot be had here"))?;
        }
        Ok(path)
    }

    /// The command with the tool's libraries where the loader finds them.
    pub fn prepare(self, mut command: Command) -> Result<Command> {
        if !self.libraries().is_empty() {
            command.env("LD_LIBRARY_PATH", self.library_path()?);
        }
        Ok(command)
    }

    /// Where the loader finds its libraries.
    pub fn library_path(self) -> Result<OsString> {
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| self.tree().join(dir));
        Ok(std::env::join_paths(libraries)?)
    }
}

/// s3rver of the JavaScript registry: the program for node; fetched once.
pub fn s3rver() -> Result<PathBuf> {
    const VERSION: &str = "s3rver@3.7.1";
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().map_err(|_| anyhow::anyhow!("fetching failed in another test"))?;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/s3rver");
    let program = dir.join("node_modules/s3rver/bin/s3rver.js");
    if !program.exists() {
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let output = Command::new("npm")
            .args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", VERSION])
            .current_dir(&dir)
            .output()
            .context("s3rver cannot be had here: npm does not run")?;
        anyhow::ensure!(
            output.status.success() && program.exists(),
            "s3rver cannot be had here: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(program)
}

/// Keystone and Glance.
pub fn openstack() -> Result<PathBuf> {
    python("openstack", "requirements.txt", "Keystone and Glance")
}

/// moto, which stands in for AWS and checks signatures by AWS' own library.
pub fn moto() -> Result<PathBuf> {
    python("moto", "moto.txt", "moto")
}

/// Programs of the Python index, in an environment of their own: its folder; fetched once for each list of packages.
fn python(folder: &str, list: &str, what: &str) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().map_err(|_| anyhow::anyhow!("fetching failed in another test"))?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = here.join("tests/registry").join(list);
    let dir = here.join("../target/tools").join(folder);
    let (stamp, venv) = (dir.join("stamp"), dir.join("venv"));
    let wanted = std::fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(venv);
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    let run = |program: &Path, arguments: &[&str]| -> Result<()> {
        let output = Command::new(program).args(arguments).current_dir(&dir).output();
        let output = output.with_context(|| format!("{what} cannot be had here: Python does not run"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{what} cannot be had here: {said}");
        Ok(())
    };
    run(Path::new("python3"), &["-m", "venv", "--clear", "venv"])?;
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
    let requirements = list.display().to_string();
    run(&venv.join("bin/python3"), &[&install[..], &[&requirements]].concat())?;
    std::fs::write(&stamp, wanted).with_context(|| format!("writing {}", stamp.display()))?;
    Ok(venv)
}
