//! The file systems that every node has, beside those that stage 1 brought along.

use anyhow::{Context, Result};
use node_sys::mount::{self, Options};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Root of the control groups.
pub const CGROUPS: &str = "/sys/fs/cgroup";
/// Folder of the services' control groups.
pub const SERVICES_CGROUP: &str = "/sys/fs/cgroup/kimg";
/// The control group of init itself, which the firewall's rules name.
pub const INIT_CGROUP: &str = "/sys/fs/cgroup/kimg/init";
/// The control group of all pods; made here, because the firewall's rules name it.
pub const PODS_CGROUP: &str = "/sys/fs/cgroup/kubepods";
const CONTROLLERS: &str = "+cpu +memory +pids +io +cpuset +hugetlb";

/// Folders below `/run` and their modes.
const FOLDERS: [(&str, u32); 9] = [
    // Own components are users of the node, and what is there is none of theirs.
    ("/run/kimg", 0o700),
    ("/run/notify", 0o711),
    ("/run/kimg/kubeconfig", 0o755),
    ("/run/kimg/pki", 0o755),
    ("/run/kimg/secrets", 0o700),
    ("/run/etc", 0o755),
    ("/run/lock", 0o755),
    ("/run/cni/net.d", 0o755),
    ("/run/containerd", 0o711),
];

/// Mounts and folders. Errors of single ones do not stop the others: the list of them comes back.
pub fn set_up() -> Vec<String> {
    let mut faults = Vec::new();
    let mut note = |result: Result<()>| {
        if let Err(error) = result {
            faults.push(format!("{error:#}"));
        }
    };
    let plain = Options { no_suid_no_dev: true, no_exec: true, ..Options::PLAIN };
    note(mount_at("cgroup2", CGROUPS, "cgroup2", Options::KERNEL, "nsdelegate,memory_recursiveprot"));
    let terminals = Options { no_exec: true, ..Options::PLAIN };
    note(mount_at("devpts", "/dev/pts", "devpts", terminals, "mode=620,ptmxmode=666,gid=5"));
    note(mount_at("tmpfs", "/dev/shm", "tmpfs", plain, "mode=1777,size=50%"));
    note(mount_at("mqueue", "/dev/mqueue", "mqueue", plain, ""));
    note(mount_at("tmpfs", "/tmp", "tmpfs", Options { no_suid_no_dev: true, ..Options::PLAIN }, "mode=1777,size=25%"));
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let link = Path::new("/dev").join(name);
        if !link.exists() {
            note(std::os::unix::fs::symlink(target, &link).with_context(|| format!("cannot link {}", link.display())));
        }
    }
    for (path, mode) in FOLDERS {
        note(folder(path, mode));
    }
    note(control_groups());
    note(mount::make_shared(Path::new("/")).map_err(Into::into));
    faults
}

fn mount_at(source: &str, target: &str, kind: &str, options: Options, data: &str) -> Result<()> {
    Ok(mount::mount(source, Path::new(target), kind, options, data)?)
}

fn folder(path: &str, mode: u32) -> Result<()> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot make {path}"))
}

fn control_groups() -> Result<()> {
    enable_controllers(CGROUPS);
    for path in [SERVICES_CGROUP, PODS_CGROUP] {
        fs::create_dir_all(path).with_context(|| format!("cannot make the control group {path}"))?;
        enable_controllers(path);
    }
    let own = INIT_CGROUP;
    fs::create_dir_all(own).with_context(|| format!("cannot make the control group {own}"))?;
    fs::write(format!("{own}/cgroup.procs"), "1").with_context(|| format!("cannot enter the control group {own}"))
}

/// One at a time: a kernel without one of them still gives the others.
fn enable_controllers(group: &str) {
    for controller in CONTROLLERS.split(' ') {
        let _ = fs::write(format!("{group}/cgroup.subtree_control"), controller);
    }
}
