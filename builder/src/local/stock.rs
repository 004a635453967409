//! `run/images/`: the images that VMs were made from, so that there is a way back after the next build.
//!
//! They are further names of the files in `build/` (hard links), and take no room until a build replaces those.

use super::state::State;
use super::up::ImageFile;
use crate::cache::{self, hash};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where the image of this hash lies, if it does.
pub fn path(run_dir: &Path, image: &str) -> PathBuf {
    run_dir.join("images").join(format!("{image}.raw"))
}

/// Keeps an image for as long as [`tidy`] sees a use for it.
pub fn keep(run_dir: &Path, image: &ImageFile) -> Result<()> {
    let kept = path(run_dir, &image.id);
    if kept == image.path || kept.exists() {
        return Ok(());
    }
    let dir = run_dir.join("images");
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    match hash::keeping(&image.path, &cache::sums_dir()?, || std::fs::hard_link(&image.path, &kept))? {
        Ok(()) => Ok(()),
        // VMs of one image start at once.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        // Another file system, or one without links.
        Err(_) => {
            let temporary = cache::temporary_beside(&kept)?;
            std::fs::copy(&image.path, &temporary).with_context(|| format!("copying {}", image.path.display()))?;
            cache::store(&temporary, &kept)
        }
    }
}

/// Removes the images that no VM has or had before the one that it has, other than `wanted`.
pub fn tidy(run_dir: &Path, state: &State, wanted: &BTreeSet<String>) -> Result<()> {
    let used: BTreeSet<String> = state
        .vms
        .values()
        .flat_map(|vm| [Some(vm.image.clone()), vm.previous.clone()])
        .flatten()
        .chain(wanted.iter().cloned())
        .map(|image| format!("{image}.raw"))
        .collect();
    let dir = run_dir.join("images");
    let entries = match std::fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("reading {}", dir.display()))?,
    };
    for entry in entries.flatten() {
        if !used.contains(entry.file_name().to_string_lossy().as_ref()) {
            super::down::remove_file(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::state::Vm;
    use node_metadata::Role;

    #[test]
    fn vms_of_one_image_start_at_once() {
        let dir = tempfile::tempdir().expect("dir");
        let built = dir.path().join("disk.raw");
        std::fs::write(&built, "image").expect("built");
        for id in 0..100 {
            let image = ImageFile { path: built.clone(), id: id.to_string() };
            std::thread::scope(|scope| {
                let threads = [(); 4].map(|()| scope.spawn(|| keep(dir.path(), &image)));
                threads.into_iter().for_each(|thread| thread.join().expect("ended").expect("kept"));
            });
            assert_eq!(std::fs::read_dir(dir.path().join("images")).expect("folder").count(), id + 1);
        }
    }

    #[test]
    fn an_image_is_kept_while_there_is_a_way_back_to_it() {
        let dir = tempfile::tempdir().expect("dir");
        let built = dir.path().join("disk.raw");
        for id in ["a", "b", "c"] {
            std::fs::write(&built, id).expect("built");
            keep(dir.path(), &ImageFile { path: built.clone(), id: id.into() }).expect("kept");
            // As a build does it: the old file keeps its content under its other name.
            std::fs::remove_file(&built).expect("replaced");
        }
        assert_eq!(std::fs::read_to_string(path(dir.path(), "a")).expect("kept"), "a");
        let vm = Vm {
            role: Role::Worker,
            process: None,
            api_port: None,
            status_port: None,
            node_port: 1,
            node_ports: Default::default(),
            token: None,
            awaits_backup: false,
            joins_etcd: false,
            new_disk: false,
            image: "c".into(),
            previous: Some("b".into()),
        };
        let state = State { vms: [("w".to_string(), vm)].into(), ..State::default() };
        tidy(dir.path(), &state, &BTreeSet::from(["a".to_string()])).expect("tidied");
        assert!(path(dir.path(), "a").exists() && path(dir.path(), "b").exists());
        tidy(dir.path(), &state, &BTreeSet::new()).expect("tidied");
        assert!(!path(dir.path(), "a").exists() && path(dir.path(), "b").exists() && path(dir.path(), "c").exists());
    }
}
