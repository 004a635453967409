//! What this machine lacks for building images and running them, and the one command that brings it.

use crate::local::accel::{self, Kvm};
use std::path::PathBuf;

/// A program or file that kimg uses.
#[derive(Debug, Clone, Copy)]
struct Need {
    what: &'static str,
    why: &'static str,
    required: bool,
    /// Package names for apt, dnf, pacman, brew.
    packages: [&'static str; 4],
    found: fn() -> bool,
}

const NEEDS: [Need; 4] = [
    Need {
        what: "qemu-system-x86_64",
        why: "runs the VMs of `kimg up`",
        required: true,
        packages: ["qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86", "qemu"],
        found: || in_path("qemu-system-x86_64"),
    },
    Need {
        what: "kubectl",
        why: "talks to the cluster; `kimg doctor --kubectl` fetches Debian's",
        required: true,
        // Its package has another name in each Debian release, and an old one is too old.
        packages: ["", "kubernetes1.32-client", "kubectl", "kubernetes-cli"],
        found: || crate::kubectl::find().is_some(),
    },
    Need {
        what: "qemu-img",
        why: "converts images to other formats",
        required: false,
        packages: ["qemu-utils", "qemu-img", "qemu-img", "qemu"],
        found: || in_path("qemu-img"),
    },
    Need {
        what: "OVMF",
        why: "boots VMs by UEFI (local.firmware = \"uefi\")",
        required: false,
        packages: ["ovmf", "edk2-ovmf", "edk2-ovmf", "qemu"],
        found: || crate::local::qemu::uefi_firmware().is_ok(),
    },
];

/// A package manager: its program, the command before the packages.
const MANAGERS: [(&str, &str); 4] = [
    ("apt-get", "sudo apt-get install --no-install-recommends -y"),
    ("dnf", "sudo dnf install -y"),
    ("pacman", "sudo pacman -S --needed --noconfirm"),
    ("brew", "brew install"),
];

/// What was found.
#[derive(Debug)]
pub struct Findings {
    /// One line for each thing looked at.
    pub lines: Vec<String>,
    /// The command that installs what is missing.
    pub command: Option<String>,
    /// Nothing that is needed is missing.
    pub fit: bool,
}

/// Looks at this machine. `image` is booted once where that is needed to know about KVM.
pub fn examine(image: Option<&std::path::Path>) -> Findings {
    let mut lines = Vec::new();
    let mut missing: Vec<&Need> = Vec::new();
    for need in &NEEDS {
        if (need.found)() {
            lines.push(format!("ok       {}", need.what));
        } else {
            let word = if need.required { "MISSING " } else { "optional" };
            lines.push(format!("{word} {}: {}", need.what, need.why));
            missing.push(need);
        }
    }
    lines.push(kvm_line(image));
    lines.push(memory_line());
    let manager = MANAGERS.iter().position(|(program, _)| in_path(program));
    let command = install_command(&missing, manager);
    Findings { lines, command, fit: !missing.iter().any(|n| n.required) }
}

fn kvm_line(image: Option<&std::path::Path>) -> String {
    let kvm = match (accel::known(), image) {
        (Some(known), _) => known,
        (None, Some(image)) => match accel::probe(image) {
            Ok(kvm) => kvm,
            Err(error) => return format!("unknown  KVM: {error:#}"),
        },
        (None, None) => {
            return "unknown  KVM: /dev/kvm opens; whether it boots a guest is known after the first `kimg build master`".into();
        }
    };
    match kvm {
        Kvm::Works => format!("ok       {}", kvm.sentence()),
        _ => format!("slow     {}", kvm.sentence()),
    }
}

/// The three VMs of the default cluster and QEMU's own share.
const WANTED_MIB: u64 = 3072;

fn memory_line() -> String {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
    match available {
        Some(kib) if kib / 1024 < WANTED_MIB => {
            format!(
                "little   {} MiB of memory are available; the three VMs of the example need about {WANTED_MIB}",
                kib / 1024
            )
        }
        Some(kib) => format!("ok       {} MiB of memory available", kib / 1024),
        None => "unknown  memory: /proc/meminfo does not say".into(),
    }
}

/// None where nothing is missing that a package brings.
fn install_command(missing: &[&Need], manager: Option<usize>) -> Option<String> {
    let names: Vec<&str> = missing.iter().map(|n| n.what).collect();
    let Some(index) = manager else {
        let names = names.join(", ");
        return (!names.is_empty()).then(|| format!("install {names} with this system's package manager"));
    };
    let mut packages: Vec<&str> = missing.iter().map(|n| n.packages[index]).filter(|name| !name.is_empty()).collect();
    packages.dedup();
    (!packages.is_empty()).then(|| format!("{} {}", MANAGERS[index].1, packages.join(" ")))
}

/// Whether a program can be run by its name.
pub fn in_path(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    // Administrators' folders are not in every user's PATH.
    std::env::split_paths(&paths)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_brings_what_is_missing() {
        let all: Vec<&Need> = NEEDS.iter().collect();
        let command = |missing: &[&Need], manager| install_command(missing, manager).unwrap_or_default();
        assert_eq!(
            command(&all, Some(0)),
            "sudo apt-get install --no-install-recommends -y qemu-system-x86 qemu-utils ovmf"
        );
        assert_eq!(command(&all[2..], Some(3)), "brew install qemu");
        assert!(command(&all[..1], None).contains("qemu-system-x86_64"));
        // kubectl alone needs no package.
        assert_eq!(install_command(&all[1..2], Some(0)), None);
        assert_eq!(install_command(&[], None), None);
    }

    #[test]
    fn faults_of_kvm_are_told_apart() {
        let sentences =
            [Kvm::Missing, Kvm::NoPermission, Kvm::DoesNotBoot("x".into()), Kvm::Works].map(|k| k.sentence());
        assert!(sentences[0].contains("no /dev/kvm"));
        assert!(sentences[1].contains("no permission on /dev/kvm"));
        assert!(sentences[2].contains("does not boot"));
    }
}
