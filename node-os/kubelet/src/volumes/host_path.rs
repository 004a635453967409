//! hostPath: checks (and for two types makes) what is to be there.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// Checks a path against its type.
pub fn check(path: &Path, kind: &str) -> Result<(), String> {
    let found = std::fs::metadata(path);
    let is = |what: &str, test: &dyn Fn(&std::fs::Metadata) -> bool| match &found {
        Ok(metadata) if test(metadata) => Ok(()),
        _ => Err(format!("hostPath type check failed: {} is not {what}", path.display())),
    };
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if found.is_err() => {
            super::make_directory(path)?;
            super::set_mode(path, 0o755)
        }
        "FileOrCreate" if found.is_err() => {
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|e| format!("making {}: {e}", path.display()))?;
            super::set_mode(path, 0o644)
        }
        "Directory" | "DirectoryOrCreate" => is("a directory", &|m| m.is_dir()),
        "File" | "FileOrCreate" => is("a file", &|m| m.is_file()),
        "Socket" => is("a socket file", &|m| m.file_type().is_socket()),
        "CharDevice" => is("a character device", &|m| m.file_type().is_char_device()),
        "BlockDevice" => is("a block device", &|m| m.file_type().is_block_device()),
        other => Err(format!("hostPath type {other:?} is not known")),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn types_are_checked_and_two_are_made() {
        let directory = tempfile::tempdir().unwrap();
        let new = directory.path().join("a/b");
        assert!(check(&new, "Directory").is_err());
        assert!(check(&new, "DirectoryOrCreate").is_ok() && new.is_dir());
        assert!(check(&new, "File").is_err());
        let file = new.join("f");
        assert!(check(&file, "FileOrCreate").is_ok() && file.is_file());
        assert!(check(&file, "File").is_ok() && check(&file, "Socket").is_err());
        assert!(check(&directory.path().join("none"), "").is_ok());
        assert!(check(&file, "Nothing").is_err());
    }
}
