//! Leaving the initramfs: its files are freed, the new root becomes `/`.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Mount points that move along into the new root.
const CARRIED: [&str; 4] = ["dev", "proc", "sys", "run"];

/// Makes `new_root` the root directory and frees the memory of the initramfs.
pub fn switch_root(new_root: &Path) -> io::Result<()> {
    for name in CARRIED {
        crate::mount::move_mount(&Path::new("/").join(name), &new_root.join(name))?;
    }
    let initramfs = fs::metadata("/")?.dev();
    std::env::set_current_dir(new_root)?;
    free(Path::new("/"), initramfs);
    crate::mount::move_mount(Path::new("."), Path::new("/"))?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

/// Removes what lies on the initramfs itself; other file systems below it are not entered.
fn free(directory: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.dev() != device {
            continue;
        }
        // What cannot be removed only keeps some memory.
        if metadata.is_dir() {
            free(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}
