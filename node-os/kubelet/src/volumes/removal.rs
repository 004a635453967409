//! Removal of local volumes whose claims are gone: the controller writes their names on the
//! Node; this node removes the folders and takes the names off again.

use super::claim::LOCAL_PATH;
use crate::client::explain;
use crate::kubelet::Kubelet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use serde_json::json;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::Path;

const ANNOTATION: &str = "kimg.dev/remove-local-volumes";

/// Does what the Node's annotation asks for. What fails stays asked for.
pub async fn follow(kubelet: &Kubelet, node: &Node) {
    let names = names_of(node);
    if names.is_empty() {
        return;
    }
    let work = tokio::task::spawn_blocking(move || {
        let left = names.into_iter().filter(|name| {
            if let Err(error) = remove(Path::new(LOCAL_PATH), name) {
                tracing::warn!("removing local volume {name:?}: {error}");
                return true;
            }
            tracing::info!("removed local volume {name}");
            false
        });
        left.collect::<Vec<String>>()
    });
    let Ok(left) = work.await else { return };
    let value = if left.is_empty() { serde_json::Value::Null } else { json!(left.join(",")) };
    // With the version that was read: a name that came meanwhile must not be lost.
    let patch = json!({ "metadata": {
        "resourceVersion": node.metadata.resource_version,
        "annotations": { ANNOTATION: value },
    }});
    let api: Api<Node> = Api::all(kubelet.api.clone());
    let patched = api.patch(&kubelet.options.node_name, &PatchParams::default(), &Patch::Merge(patch)).await;
    if let Err(error) = patched {
        tracing::debug!("taking removed volumes off the Node: {}", explain(&error));
    }
}

fn names_of(node: &Node) -> Vec<String> {
    let text =
        node.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION)).map(String::as_str).unwrap_or_default();
    text.split(',').map(str::trim).filter(|n| !n.is_empty()).map(String::from).collect()
}

fn remove(folder: &Path, name: &str) -> std::io::Result<()> {
    let plain = !name.starts_with('.') && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    if !plain {
        return Err(std::io::Error::other("that is no name of a volume"));
    }
    all(&folder.join(name))
}

/// Removes a folder and what is in it; one that is gone is removed. A pod may have nested folders so deep that no path
/// leads to the last, and that the standard library, which calls itself for each, runs out of stack: what lies deeper
/// than the second is moved up. No link is followed, not even one that changes meanwhile.
pub fn all(folder: &Path) -> std::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(folder, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut moved = 0;
    while each(&top, |name| {
        if !is_folder(rustix::fs::unlinkat(&top, name, AtFlags::empty()))? {
            return Ok(());
        }
        let below = rustix::fs::openat(&top, name, flags, Mode::empty())?;
        each(&below, |name| {
            if is_folder(rustix::fs::unlinkat(&below, name, AtFlags::empty()))? {
                move_up(&below, name, &top, &mut moved)?;
            }
            Ok(())
        })?;
        rustix::fs::unlinkat(&top, name, AtFlags::REMOVEDIR)
    })? {}
    std::fs::remove_dir(folder)
}

/// Does something with each name in a folder; whether there was any.
fn each(folder: &OwnedFd, mut work: impl FnMut(&CStr) -> Result<(), Errno>) -> Result<bool, Errno> {
    let mut any = false;
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            any = true;
            work(entry.file_name())?;
        }
    }
    Ok(any)
}

/// Whether a name was not removed because a folder has it.
fn is_folder(removed: Result<(), Errno>) -> Result<bool, Errno> {
    match removed {
        Ok(()) => Ok(false),
        Err(Errno::ISDIR) => Ok(true),
        Err(error) => Err(error),
    }
}

fn move_up(from: &OwnedFd, name: &CStr, to: &OwnedFd, moved: &mut u64) -> Result<(), Errno> {
    loop {
        *moved += 1;
        match rustix::fs::renameat_with(from, name, to, moved.to_string(), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_volumes_go() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("pvc-1/a")).unwrap();
        remove(directory.path(), "pvc-1").unwrap();
        assert!(!directory.path().join("pvc-1").exists());
        assert!(remove(directory.path(), "pvc-1").is_ok(), "already gone");
        for bad in ["..", "a/b", "", ".", "/etc"] {
            assert!(bad.is_empty() || remove(directory.path(), bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn however_deep_folders_go_and_what_links_lead_to_stays() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("volume");
        let outside = directory.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "").unwrap();
        // Also names that what is moved up would get.
        for name in ["a", "1", "2/b/c"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        for place in ["link", "a/link", "2/b/link"] {
            std::os::unix::fs::symlink(&outside, folder.join(place)).unwrap();
        }
        std::fs::write(folder.join("2/b/file"), "").unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut deepest = rustix::fs::open(folder.join("a"), flags, Mode::empty()).unwrap();
        for _ in 0..4000 {
            rustix::fs::mkdirat(&deepest, "d", Mode::RWXU).unwrap();
            deepest = rustix::fs::openat(&deepest, "d", flags, Mode::empty()).unwrap();
        }
        // A thread of the runtime has eight times as much stack, and pods nest as deep as they like.
        let thread = std::thread::Builder::new().stack_size(256 << 10);
        let removed = thread.spawn({
            let folder = folder.clone();
            move || all(&folder)
        });
        removed.unwrap().join().unwrap().unwrap();
        assert!(!folder.exists() && outside.join("file").exists());
        all(&folder).unwrap();
        assert!(all(&outside.join("file")).is_err(), "it is no folder");
    }
}
