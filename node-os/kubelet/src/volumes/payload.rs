//! Content from the API as files that change all at once: a directory with a time stamp holds
//! the files, `..data` points at it, and what the pod sees are links through `..data`.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

/// A file of a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Content.
    pub data: Vec<u8>,
    /// Mode.
    pub mode: u32,
    /// Owner, where it is not root.
    pub uid: Option<u32>,
}

/// Files by path in the volume.
pub type Files = BTreeMap<String, File>;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Whether a path may be a file of a payload: relative, no `..`, not beginning with `..`.
pub fn valid_path(path: &str) -> bool {
    let plain = |c: Component| matches!(c, Component::Normal(_));
    !path.is_empty() && !path.starts_with("..") && Path::new(path).components().all(plain)
}

/// Makes `root` show exactly these files.
pub fn write(root: &Path, files: &Files) -> io::Result<()> {
    if let Some(bad) = files.keys().find(|p| !valid_path(p)) {
        return Err(io::Error::other(format!("{bad:?} is no path within a volume")));
    }
    let old = std::fs::read_link(root.join(DATA)).ok();
    if let Some(old) = &old
        && same(&root.join(old), files)?
    {
        return Ok(());
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let name = format!("..{stamp}");
    let fresh = root.join(&name);
    std::fs::create_dir(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755))?;
    for (path, file) in files {
        write_file(&fresh.join(path), file)?;
    }
    let link = root.join(NEW_DATA);
    remove_any(&link)?;
    symlink(&name, &link)?;
    std::fs::rename(&link, root.join(DATA))?;
    link_names(root, files)?;
    if let Some(old) = old {
        let path = root.join(old);
        if path.starts_with(root) && path != fresh {
            std::fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

fn write_file(path: &Path, file: &File) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(path, &file.data)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(file.mode & 0o777))?;
    if let Some(uid) = file.uid {
        std::os::unix::fs::chown(path, Some(uid), None)?;
    }
    Ok(())
}

/// One link for each name at the top; links to what is gone go.
fn link_names(root: &Path, files: &Files) -> io::Result<()> {
    let tops: std::collections::BTreeSet<&str> = files.keys().filter_map(|p| p.split('/').next()).collect();
    for top in &tops {
        let link = root.join(top);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(top), &link)?;
        }
    }
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(&*name) && entry.file_type()?.is_symlink() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn same(directory: &Path, files: &Files) -> io::Result<bool> {
    let mut found = Vec::new();
    if list(directory, &mut found).is_err() {
        return Ok(false);
    }
    if found.len() != files.len() {
        return Ok(false);
    }
    for (path, file) in files {
        let full = directory.join(path);
        match std::fs::read(&full) {
            Ok(data) if data == file.data => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

fn list(directory: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), found)?;
        } else {
            found.push(entry.path());
        }
    }
    Ok(())
}

fn remove_any(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o644, uid: None };
        list.iter().map(|(path, data)| (path.to_string(), file(data))).collect()
    }

    #[test]
    fn content_changes_all_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, &files(&[("a", "1"), ("d/e", "2")])).unwrap();
        let first = std::fs::read_link(root.join(DATA)).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("d/e")).unwrap(), "2");
        write(root, &files(&[("a", "1"), ("d/e", "2")])).unwrap();
        assert_eq!(std::fs::read_link(root.join(DATA)).unwrap(), first, "nothing changed");
        write(root, &files(&[("b", "3")])).unwrap();
        assert_eq!(std::fs::read_to_string(root.join("b")).unwrap(), "3");
        assert!(!root.join("a").exists() && std::fs::symlink_metadata(root.join("d")).is_err());
        assert!(!root.join(first).exists());
    }

    #[test]
    fn paths_stay_within() {
        for (path, fine) in
            [("a", true), ("a/b", true), ("/a", false), ("../a", false), ("a/../b", false), ("", false), ("..a", false)]
        {
            assert_eq!(valid_path(path), fine, "{path}");
        }
    }
}
