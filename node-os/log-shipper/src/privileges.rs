//! From root to a user who may read logs, and nothing else.

use anyhow::{Context, Result};
use rustix::fs::{Gid, Mode, Uid, chmod, chown};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Nobody else on a node has this number, of user and group.
const ID: u32 = 64_127;

/// Gives the logs to a group (also those that are made from now on, by the folder's mode), the cursors' folder to a user,
/// and becomes that user in that group. Nothing but this thread may be there yet. By hand, without root, it does nothing.
pub fn drop_to_reader(logs: &Path, own: &Path) -> Result<()> {
    let dir = || format!("making {}", own.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(own).with_context(dir)?;
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(ID), Gid::from_raw(ID));
    let give = |path: &Path, owner: Option<Uid>, mode: Option<u32>| -> Result<()> {
        let what = || format!("giving away {}", path.display());
        chown(path, owner, Some(gid)).with_context(what)?;
        mode.map_or(Ok(()), |mode| chmod(path, Mode::from_raw_mode(mode))).with_context(what)
    };
    give(logs, None, Some(0o2750))?;
    for entry in std::fs::read_dir(logs).with_context(|| format!("reading {}", logs.display()))?.flatten() {
        give(&entry.path(), None, Some(0o640))?;
    }
    give(own, Some(uid), None)?;
    for entry in std::fs::read_dir(own).with_context(dir)?.flatten() {
        give(&entry.path(), Some(uid), None)?;
    }
    node_sys::notify::open();
    let become_reader = || -> rustix::io::Result<()> {
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        // From root to another user, which takes all capabilities away.
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        rustix::thread::set_no_new_privs(true)
    };
    become_reader().context("becoming a user without rights")
}
