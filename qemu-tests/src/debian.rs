//! A Debian of its own to run programs in, made once by debootstrap below `target/tools/`.
//!
//! It takes root: debootstrap enters what it makes, and so does whoever runs a program there.

use crate::tools::{once, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// With its own processes, the machine's devices, and nothing of its firmware; all mounts end with the program.
const ENTER: &str = "root=$1; shift; mount --bind \"$root\" \"$root\" && mount -t proc proc \"$root/proc\" && \
                     mount --rbind /dev \"$root/dev\" && mount -t sysfs -o ro sysfs \"$root/sys\" && \
                     mount -t tmpfs tmpfs \"$root/run\" && exec chroot \"$root\" \"$@\"";

/// The tree of a Debian.
#[derive(Debug, Clone)]
pub struct Debian {
    /// Its root folder.
    pub root: PathBuf,
}

impl Debian {
    /// A suite with these packages (and what they need, not what they recommend), by this name; made once.
    ///
    /// # Errors
    /// This user may not, or the mirror does not give it.
    pub fn with(name: &str, suite: &str, packages: &[&str]) -> Result<Debian> {
        if !rustix::process::geteuid().is_root() {
            bail!("a Debian to run programs in is made and entered by root only");
        }
        let tools = workspace().join("target/tools");
        let root = tools.join(name);
        let debian = Debian { root: root.clone() };
        once(&tools.join(format!("{name}.stamp")), &format!("{suite} {}", packages.join(" ")), || {
            if root.exists() {
                std::fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
            }
            let program = debootstrap(&tools)?;
            let log = tools.join(format!("{name}.log"));
            let mut command = Command::new(program.join("usr/sbin/debootstrap"));
            command
                .args(["--variant=minbase", suite])
                .args([root.as_os_str(), kimg::packages::mirror_of(suite)?.as_ref()])
                .env("DEBOOTSTRAP_DIR", program.join("usr/share/debootstrap"));
            logged(&mut command, &log)?;
            std::fs::copy("/etc/resolv.conf", root.join("etc/resolv.conf")).context("copying resolv.conf")?;
            let mut install = debian.run("apt-get");
            install.args(["install", "-qy", "--no-install-recommends"]).args(packages);
            logged(install.env("DEBIAN_FRONTEND", "noninteractive"), &log)
        })?;
        Ok(debian)
    }

    /// A program in it, ready for its arguments.
    pub fn run(&self, program: &str) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--propagation=private", "sh", "-c", ENTER, "sh"]);
        command.arg(&self.root).arg(program);
        command
    }
}

/// debootstrap's own tree.
fn debootstrap(tools: &Path) -> Result<PathBuf> {
    let tree = tools.join("debootstrap");
    if !tree.exists() {
        std::fs::create_dir_all(tools).with_context(|| format!("making {}", tools.display()))?;
        kimg::packages::fetch_tree("trixie", &["debootstrap"], |_| true, &tree).context("fetching debootstrap")?;
    }
    Ok(tree)
}

/// Runs a command that says much; the error holds the end of it.
fn logged(command: &mut Command, log: &Path) -> Result<()> {
    let file =
        File::options().create(true).append(true).open(log).with_context(|| format!("opening {}", log.display()))?;
    let both = file.try_clone().with_context(|| format!("opening {}", log.display()))?;
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.stdout(file).stderr(both).status().with_context(|| format!("starting {name}"))?;
    let said = std::fs::read_to_string(log).unwrap_or_default();
    let last: Vec<&str> = said.lines().rev().take(5).collect();
    ensure!(
        status.success(),
        "{name} failed ({}): {}",
        log.display(),
        last.into_iter().rev().collect::<Vec<_>>().join(" / ")
    );
    Ok(())
}
