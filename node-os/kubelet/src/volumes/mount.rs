//! Mounts of one container: volumes with sub-paths, the hosts file, the file for last words.

use super::{Volumes, make_directory};
use crate::container::expand::expand;
use crate::cri::{Mount, MountPropagation};
use crate::mounts;
use crate::pods::spec;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::os::fd::AsRawFd;
use std::path::{Component, Path, PathBuf};

/// The mounts of a container's volumes. `pod_dir` holds the places where sub-paths are bound.
pub fn volumes(
    pod: &Pod,
    container: &Container,
    ready: &Volumes,
    env: &[(String, String)],
    pod_dir: &Path,
) -> Result<Vec<Mount>, String> {
    let mut list = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = ready.get(&mount.name).ok_or_else(|| format!("volume \"{}\" is not mounted", mount.name))?;
        let sub_path = sub_path(mount, env)?;
        let host_path = match &sub_path {
            None => volume.path.clone(),
            Some(sub) => {
                let place =
                    pod_dir.join("volume-subpaths").join(&mount.name).join(&container.name).join(index.to_string());
                bind_sub_path(&volume.path, sub, &place, volume.read_only).map_err(|error| {
                    format!(
                        "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {error}",
                        mount.name, container.name
                    )
                })?
            }
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        };
        list.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: host_path.to_string_lossy().into_owned(),
            readonly: volume.read_only || mount.read_only.unwrap_or(false),
            propagation: propagation as i32,
        });
    }
    let _ = pod;
    Ok(list)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_string() } else { format!("/{path}") }
}

fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<PathBuf>, String> {
    let text = match (mount.sub_path_expr.as_deref(), mount.sub_path.as_deref()) {
        (Some(expression), _) if !expression.is_empty() => {
            let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            let text = expand(expression, lookup);
            if text.contains("$(") {
                return Err(format!("failed to expand subPathExpr \"{expression}\": a variable is not set"));
            }
            text
        }
        (_, Some(path)) if !path.is_empty() => path.to_string(),
        _ => return Ok(None),
    };
    let path = PathBuf::from(&text);
    if path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
        return Err(format!("subPath \"{text}\" must be relative and must not contain '..'"));
    }
    Ok(Some(path))
}

/// Binds what is at `sub` in `volume` to `place`. It is opened so that no link in the volume,
/// not even one that changes meanwhile, leads out of it.
fn bind_sub_path(volume: &Path, sub: &Path, place: &Path, read_only: bool) -> Result<PathBuf, String> {
    let at = |error: rustix::io::Errno| format!("{}: {error}", volume.join(sub).display());
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(at)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open =
        || rustix::fs::openat2(&root, sub, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS);
    let file = match open() {
        Err(rustix::io::Errno::NOENT) if !read_only => {
            make_inside(&root, sub).map_err(at)?;
            open().map_err(at)?
        }
        other => other.map_err(at)?,
    };
    let is_directory = rustix::fs::fstat(&file).map_err(at)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
    if mounts::is_mount_point(place) {
        rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH).map_err(at)?;
    }
    if is_directory {
        make_directory(place)?;
    } else {
        make_directory(place.parent().unwrap_or(place))?;
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(place)
            .map_err(|e| format!("{}: {e}", place.display()))?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    mounts::bind(&source, place).map_err(|e| format!("binding {}: {e}", place.display()))?;
    Ok(place.to_path_buf())
}

/// Makes the directories of `sub` one by one below `root`, with the mode that the volume has.
fn make_inside(root: &std::os::fd::OwnedFd, sub: &Path) -> Result<(), rustix::io::Errno> {
    let mode = Mode::from_raw_mode(rustix::fs::fstat(root)?.st_mode & 0o7777);
    let mut so_far = PathBuf::new();
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for part in sub.components() {
        let Component::Normal(name) = part else { continue };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent: &Path = if so_far.as_os_str().is_empty() { Path::new(".") } else { &so_far };
        let directory = rustix::fs::openat2(root, parent, flags, Mode::empty(), resolve)?;
        match rustix::fs::mkdirat(&directory, name, mode) {
            // Said again, because the umask has its say when a directory is made.
            Ok(()) => rustix::fs::chmodat(&directory, name, mode, rustix::fs::AtFlags::empty())?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        so_far.push(name);
    }
    Ok(())
}

/// The pod's hosts file, unless the container mounts something of its own there.
pub fn hosts(container: &Container, file: &Path) -> Option<Mount> {
    let own = container.volume_mounts.iter().flatten().any(|m| m.mount_path == "/etc/hosts");
    (!own).then(|| plain("/etc/hosts", file))
}

/// A fresh file for the container's last words.
pub fn last_words(pod_dir: &Path, container: &Container, restarts: u32) -> Result<Mount, String> {
    let directory = pod_dir.join("containers").join(&container.name);
    make_directory(&directory)?;
    let file = directory.join(format!("{restarts}.message"));
    std::fs::write(&file, b"").map_err(|e| format!("making {}: {e}", file.display()))?;
    super::set_mode(&file, 0o666)?;
    Ok(plain(crate::container::config::message_path(container), &file))
}

fn plain(container_path: &str, host_path: &Path) -> Mount {
    Mount {
        container_path: container_path.into(),
        host_path: host_path.to_string_lossy().into_owned(),
        readonly: false,
        propagation: MountPropagation::Private as i32,
    }
}

/// Where a pod's hosts file lies.
pub fn hosts_path(pod_dir: &Path) -> PathBuf {
    pod_dir.join("etc-hosts")
}

/// Names of the pod, for errors.
pub fn describe(pod: &Pod) -> String {
    spec::full_name(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(sub_path: Option<&str>, expression: Option<&str>) -> VolumeMount {
        VolumeMount {
            sub_path: sub_path.map(Into::into),
            sub_path_expr: expression.map(Into::into),
            ..Default::default()
        }
    }

    #[test]
    fn sub_paths_stay_inside() {
        let env = [("POD".to_string(), "web-0".to_string())];
        assert_eq!(sub_path(&mount(None, None), &env), Ok(None));
        assert_eq!(sub_path(&mount(Some("a/b"), None), &env), Ok(Some("a/b".into())));
        assert_eq!(sub_path(&mount(None, Some("x/$(POD)")), &env), Ok(Some("x/web-0".into())));
        for bad in [mount(Some("../a"), None), mount(Some("/a"), None), mount(None, Some("$(NO)"))] {
            assert!(sub_path(&bad, &env).is_err());
        }
    }
}
