//! Container images without a container engine: made from files, kept as OCI layouts, moved to and from registries.

pub mod artifact;
pub mod build;
pub mod cmd;
pub mod content;
pub mod model;
pub mod own;
pub mod pause;
pub mod reference;
pub mod registry;
pub mod source;
pub mod transfer;

use crate::image::tree::{Data, Tree};
use crate::input::{self, BadInput};
use anyhow::Result;
use build::{Common, Config, Variant};
use content::Content;
use model::Platform;
use reference::Reference;
use std::path::Path;

/// The sandbox image that containerd is configured with.
pub const PAUSE_IMAGE: &str = "kimg.local/pause:1";

/// The pause image.
pub fn pause_content() -> Result<Content> {
    let mut tree = Tree::default();
    tree.file("/pause", 0o755, pause::program())?;
    // Numeric, since the image has no /etc/passwd: nobody.
    let config = Config { entrypoint: vec!["/pause".into()], user: "65535:65535".into(), ..Config::default() };
    let common = Common { names: vec![Reference::parse(PAUSE_IMAGE)?], config, ..Common::default() };
    build::build(&common, &[Variant { platform: Platform::default(), base: None, layers: vec![tree] }])
}

/// Image references in an archive that containerd imports, from its index.
pub fn references(archive: &Path) -> Result<Vec<String>> {
    drop(input::open(archive)?);
    let content = Content::read(archive).map_err(|_| {
        let shown = archive.display();
        BadInput(format!("{shown} is no OCI archive (a tar with an index.json); make one with `kimg build image`"))
    })?;
    Ok(content.full_names().map(|(name, _)| name.to_string()).collect())
}

/// The most that the files of a folder, or a program alone, may have in an image, in bytes.
pub const MOST_FILES: u64 = 2 << 30;

/// Reads a folder as an image's root. Owners become root; modes become 0644 or 0755, so that the umask under
/// which the folder was made does not matter.
pub fn tree_of_folder(folder: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    let mut left = MOST_FILES;
    add_folder(&mut tree, folder, "", &mut left)?;
    Ok(tree)
}

/// `left` is how many bytes the files may still have.
fn add_folder(tree: &mut Tree, folder: &Path, prefix: &str, left: &mut u64) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let entries = std::fs::read_dir(folder)
        .map_err(|error| BadInput(format!("the folder {} cannot be read: {error}", folder.display())))?;
    for entry in entries {
        let entry = entry.map_err(|error| BadInput(format!("{} cannot be read: {error}", folder.display())))?;
        let shown = entry.path().display().to_string();
        let unreadable = |error: std::io::Error| BadInput(format!("{shown} cannot be read: {error}"));
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| BadInput(format!("the name of {shown} is no UTF-8; rename it")))?;
        let path = format!("{prefix}/{name}");
        let meta = entry.path().symlink_metadata().map_err(unreadable)?;
        if meta.is_dir() {
            tree.dir(&path, 0o755)?;
            add_folder(tree, &entry.path(), &path, left)?;
        } else if meta.is_symlink() {
            let target = std::fs::read_link(entry.path()).map_err(unreadable)?;
            let target = target.to_str().ok_or_else(|| BadInput(format!("what {shown} leads to is no UTF-8")))?;
            tree.link(&path, target)?;
        } else if meta.is_file() {
            let mode = if meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
            let Some(rest) = left.checked_sub(meta.len()) else {
                return input::bad(format!(
                    "with {shown} the folder has more than {} MiB, which is more than kimg puts into an image",
                    MOST_FILES >> 20
                ));
            };
            *left = rest;
            tree.file(&path, mode, Data::on_disk(&entry.path(), meta.len(), None))?;
        } else {
            return input::bad(format!("{shown} is neither file, folder nor link and cannot go into an image"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_names_its_image_and_is_stable() {
        let bytes = pause_content().unwrap().to_archive().unwrap();
        assert_eq!(bytes, pause_content().unwrap().to_archive().unwrap());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        assert_eq!(references(file.path()).unwrap(), [PAUSE_IMAGE]);
    }

    #[test]
    fn a_folder_of_any_size_takes_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        // Sparse: nothing of them is read.
        for (name, size) in [("sub/large", MOST_FILES), ("small", 1)] {
            std::fs::File::create(dir.path().join(name)).unwrap().set_len(size).unwrap();
        }
        let mut left = MOST_FILES - 1;
        let error = add_folder(&mut Tree::default(), dir.path(), "", &mut left).unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("more than 2048 MiB"), "{error:#}");
    }

    #[test]
    fn what_cannot_go_into_an_image_is_named() {
        use std::os::unix::ffi::OsStrExt;
        for (name, target) in [(&b"x\xff"[..], None), (b"link", Some(&b"y\xff"[..]))] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(std::ffi::OsStr::from_bytes(name));
            match target {
                None => std::fs::write(&path, "x").unwrap(),
                Some(target) => std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &path).unwrap(),
            }
            let error = tree_of_folder(dir.path()).unwrap_err();
            assert!(error.is::<BadInput>() && error.to_string().contains(&path.display().to_string()), "{error:#}");
        }
    }

    #[test]
    fn a_folder_becomes_a_tree_whatever_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        let file = dir.path().join("bin/x");
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o700)).unwrap();
        let tree = tree_of_folder(dir.path()).unwrap();
        assert_eq!(tree.get("/bin/x"), Some(&crate::image::tree::Node::File(0o755, (*b"x").into())));
    }
}
