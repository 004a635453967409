//! KVM or TCG. `/dev/kvm` may open, make a virtual CPU, and still not run a kernel (in a VM without
//! nested virtualisation); only a boot proves it. The answer is kept for this host's kernel and QEMU.

use super::qemu::PROGRAM;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How a VM's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// Translated by QEMU: 5 to 20 times slower.
    Tcg,
}

impl Accel {
    /// Name as in `cluster.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }

    /// Waits under TCG are this many times longer.
    pub fn patience(self) -> u32 {
        match self {
            Accel::Kvm => 1,
            Accel::Tcg => 5,
        }
    }
}

/// What is the matter with `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kvm {
    /// It boots.
    Works,
    /// There is no such device.
    Missing,
    /// This user may not open it.
    NoPermission,
    /// It opens, and a guest does not run; with QEMU's words.
    DoesNotBoot(String),
}

impl Kvm {
    /// One sentence, with the way out.
    pub fn sentence(&self) -> String {
        match self {
            Kvm::Works => "KVM boots a guest".into(),
            Kvm::Missing => {
                "no /dev/kvm: the processor's virtualisation is off (firmware setup) or this is a VM without it; VMs run on TCG, slowly"
                    .into()
            }
            Kvm::NoPermission => {
                "no permission on /dev/kvm: run `sudo usermod -aG kvm $USER` and log in again; until then VMs run on TCG, slowly"
                    .into()
            }
            Kvm::DoesNotBoot(why) => {
                format!("/dev/kvm opens but does not boot a guest ({why}); VMs run on TCG, slowly")
            }
        }
    }
}

/// What the device says before anything is booted.
pub fn device() -> Option<Kvm> {
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) if error.kind() == ErrorKind::NotFound => Some(Kvm::Missing),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Some(Kvm::NoPermission),
        Err(error) => Some(Kvm::DoesNotBoot(error.to_string())),
    }
}

/// Which accelerator to use: as told, as kept from an earlier probe, or by booting the kernel beside `image`.
pub fn choose(told: Option<&str>, image: &Path) -> Result<Accel> {
    match told {
        Some("tcg") => return Ok(Accel::Tcg),
        Some("kvm") => match probe(image)? {
            Kvm::Works => return Ok(Accel::Kvm),
            other => bail!("cluster.toml asks for local.accel = \"kvm\": {}", other.sentence()),
        },
        _ => {}
    }
    Ok(match probe(image)? {
        Kvm::Works => Accel::Kvm,
        _ => Accel::Tcg,
    })
}

/// Whether KVM works, by an earlier boot on this host or by one now.
pub fn probe(image: &Path) -> Result<Kvm> {
    if let Some(known) = known() {
        return Ok(known);
    }
    let result = boot(image)?;
    remember(&result);
    Ok(result)
}

/// What is known without a boot: the device's own word, or an earlier probe.
pub fn known() -> Option<Kvm> {
    if let Some(fault) = device() {
        return Some(fault);
    }
    let kept: Kept = serde_json::from_slice(&std::fs::read(cache_file()?).ok()?).ok()?;
    (kept.host == host_identity()).then_some(kept.result)
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    host: String,
    result: Kvm,
}

fn remember(result: &Kvm) {
    let Some(path) = cache_file() else { return };
    let kept = Kept { host: host_identity(), result: result.clone() };
    // Without the note the next `up` probes again: slower, and as right.
    if let (Some(dir), Ok(json)) = (path.parent(), serde_json::to_vec(&kept)) {
        let _ = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&path, json));
    }
}

fn cache_file() -> Option<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))?;
    Some(base.join("kimg/kvm.json"))
}

/// Kernel, boot and QEMU: a probe says nothing about another one.
fn host_identity() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let qemu = Command::new(PROGRAM).arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    let first_line = String::from_utf8_lossy(&qemu).lines().next().unwrap_or_default().to_string();
    format!(
        "{} {} {first_line}",
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/sys/kernel/random/boot_id").trim()
    )
}

/// A guest under KVM says its first word in a second or two; one that cannot run never does.
const BOOT_LIMIT: Duration = Duration::from_secs(12);

fn boot(image: &Path) -> Result<Kvm> {
    let dir = tempfile::tempdir().context("making a folder for the KVM probe")?;
    let (serial, errors) = (dir.path().join("serial"), dir.path().join("errors"));
    let error_file = std::fs::File::create(&errors).context("making a file for the KVM probe")?;
    let mut child = Command::new(PROGRAM)
        .args(["-machine", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "512"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(image.with_file_name("vmlinuz"))
        .args(["-append", "console=ttyS0 panic=-1"])
        .arg("-serial")
        .arg(format!("file:{}", serial.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(error_file)
        .spawn()
        .with_context(|| format!("running {PROGRAM}; `kimg doctor` tells what is missing"))?;
    let end = Instant::now() + BOOT_LIMIT;
    let result = loop {
        let said = std::fs::read_to_string(&errors).unwrap_or_default();
        if let Some(line) = said.lines().find(|l| l.contains("KVM internal error") || l.contains("failed")) {
            break Kvm::DoesNotBoot(line.trim().to_string());
        }
        if std::fs::metadata(&serial).is_ok_and(|m| m.len() > 0) {
            break Kvm::Works;
        }
        if child.try_wait().context("waiting for the KVM probe")?.is_some() {
            let last = said.lines().last().unwrap_or("QEMU ended").trim().to_string();
            break Kvm::DoesNotBoot(last);
        }
        if Instant::now() > end {
            break Kvm::DoesNotBoot(format!("no sign of life within {} s", BOOT_LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    child.kill().context("ending the KVM probe")?;
    child.wait().context("ending the KVM probe")?;
    Ok(result)
}
