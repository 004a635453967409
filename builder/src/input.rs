//! What people give kimg: arguments, and files of theirs. A mistake in them ends in exit code 2.

use anyhow::{Context, Result};
use std::fs::{File, FileType};
use std::io::{IsTerminal, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// The most that a file which people write, a key or a certificate may hold, in bytes.
pub const SMALL: u64 = 1 << 20;

/// A mistake in what was typed, or in a file that kimg was given: exit code 2, and nothing was changed.
/// The sentence says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Fails with [`BadInput`].
pub fn bad<T>(message: impl Into<String>) -> Result<T> {
    Err(BadInput(message.into()).into())
}

/// Opens a file to read it. Only regular files: a pipe or a device may never end, or never begin.
///
/// # Errors
/// [`BadInput`] when there is none, it is something else, or it cannot be opened.
pub fn open(path: &Path) -> Result<File> {
    let shown = path.display();
    let unreadable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => BadInput(format!("there is no {shown}")),
        _ => BadInput(format!("{shown} cannot be read: {error}")),
    };
    // Looked at before it is opened: opening a pipe waits for its other end, and opening a device may do something.
    let kind = std::fs::metadata(path).map_err(unreadable)?.file_type();
    if !kind.is_file() {
        return bad(format!("{shown} is {}; name a regular file", name_of(kind)));
    }
    Ok(File::open(path).map_err(unreadable)?)
}

/// Whether something is there. What may not be looked at is not missing.
///
/// # Errors
/// [`BadInput`] when it cannot be known.
pub fn is_there(path: &Path) -> Result<bool> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match std::fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if [NotFound, NotADirectory].contains(&error.kind()) => Ok(false),
        Err(error) => bad(format!("{} cannot be read: {error}", path.display())),
    }
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// As [`open`]; and when the file is longer.
pub fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut read = Vec::new();
    open(path)?
        .take(limit + 1)
        .read_to_end(&mut read)
        .map_err(|error| BadInput(format!("{} cannot be read: {error}", path.display())))?;
    if read.len() as u64 > limit {
        return bad(format!("{} is longer than the {} KiB that such a file may have", path.display(), limit / 1024));
    }
    Ok(read)
}

/// Reads a text of at most `limit` bytes.
///
/// # Errors
/// As [`bytes`]; and when it is not UTF-8.
pub fn text(path: &Path, limit: u64) -> Result<String> {
    let bytes = bytes(path, limit)?;
    String::from_utf8(bytes).or_else(|_| bad(format!("{} is no text (UTF-8)", path.display())))
}

/// Asks a question that is answered with yes or no; None: nobody is there to be asked.
///
/// # Errors
/// The answer cannot be read.
pub fn agreed(question: &str) -> Result<Option<bool>> {
    Ok(typed(&format!("{question} [y/N]"))?.map(|answer| matches!(answer.as_str(), "y" | "Y" | "yes")))
}

/// Asks for a line; None: nobody is there to be asked.
///
/// # Errors
/// The answer cannot be read.
pub fn typed(question: &str) -> Result<Option<String>> {
    if !std::io::stdin().is_terminal() {
        return Ok(None);
    }
    eprint!("{question} ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("reading the answer")?;
    Ok(Some(answer.trim().to_string()))
}

/// Checks that a file with a secret is its owner's alone.
///
/// # Errors
/// [`BadInput`] when others may read it.
pub fn check_private(path: &Path) -> Result<()> {
    let shown = path.display();
    let mode = std::fs::metadata(path).map_err(|error| BadInput(format!("{shown} cannot be read: {error}")))?.mode();
    if mode & 0o077 != 0 {
        return bad(format!("{shown} holds a secret and others may read it; run: chmod 600 {shown}"));
    }
    Ok(())
}

/// Checks that a file can be written there: its folder exists, and what is there is a file, which will be replaced.
///
/// # Errors
/// [`BadInput`] when there is no such folder, or something else in the file's place.
pub fn writable_place(path: &Path) -> Result<()> {
    if let Ok(there) = std::fs::symlink_metadata(path)
        && !there.is_file()
        && !there.is_dir()
    {
        let kind = if there.is_symlink() { "a link" } else { name_of(there.file_type()) };
        return bad(format!("{} is {kind}, and would be replaced; name a file", path.display()));
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            bad(format!("there is no folder {} to write {} to", folder.display(), path.display()))
        }
        _ if path.is_dir() => bad(format!("{} is a folder; name a file", path.display())),
        _ => Ok(()),
    }
}

/// Checks that a new file can be written there.
///
/// # Errors
/// [`BadInput`] when there is no such folder, or something in the file's place.
pub fn free_place(path: &Path) -> Result<()> {
    writable_place(path)?;
    if path.exists() {
        return bad(format!("{} exists; remove it, or name another file", path.display()));
    }
    Ok(())
}

fn name_of(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        "no file"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().expect("dir");
        let said = |path: &Path| {
            let error = text(path, 4).expect_err("refused");
            assert!(error.is::<BadInput>());
            error.to_string()
        };
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).expect("pipe");
        assert!(said(&pipe).contains("is a pipe"));
        assert!(said(dir.path()).contains("is a folder"));
        assert!(said(Path::new("/dev/zero")).contains("is a device"));
        assert!(said(&dir.path().join("nosuch")).contains("there is no"));
        let file = dir.path().join("file");
        std::fs::write(&file, "12345").expect("file");
        assert!(said(&file).contains("is longer than"));
        assert!(said(&file.join("x")).contains("there is no"));
        std::fs::write(&file, [0xff]).expect("file");
        assert!(said(&file).contains("is no text"));
        std::fs::write(&file, "1234").expect("file");
        assert_eq!(text(&file, 4).expect("text"), "1234");
    }

    #[test]
    fn a_file_needs_a_folder() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(writable_place(&dir.path().join("x")).is_ok());
        assert!(free_place(&dir.path().join("x")).is_ok());
        assert!(writable_place(Path::new("x")).is_ok());
        assert!(writable_place(&dir.path().join("a/x")).is_err());
        assert!(writable_place(dir.path()).is_err());
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(writable_place(&file).is_ok() && free_place(&file).is_err());
        assert!(writable_place(&link).unwrap_err().to_string().contains("is a link"));
        assert!(writable_place(Path::new("/dev/null")).unwrap_err().to_string().contains("is a device"));
    }
}
