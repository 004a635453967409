//! SHA-256 of bytes, files and step inputs.

use crate::input;
use anyhow::{Context, Result};
use ring::digest;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether a text is a SHA-256 in hex: what is none must never become part of a path.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte))
}

/// SHA-256 in lower-case hex.
pub fn hex_of(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

/// SHA-256 as bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

/// SHA-256 of a file, read once.
pub fn hex_of_file(path: &Path) -> Result<String> {
    let mut file = input::open(path)?;
    hex_of_reader(&mut file).with_context(|| format!("reading {}", path.display()))
}

/// SHA-512 of a file, read once.
pub fn sha512_of_file(path: &Path) -> Result<String> {
    let mut file = input::open(path)?;
    sum_of_reader(&digest::SHA512, &mut file).with_context(|| format!("reading {}", path.display()))
}

/// SHA-256 of what a reader gives.
pub fn hex_of_reader(reader: &mut dyn Read) -> Result<String> {
    sum_of_reader(&digest::SHA256, reader)
}

fn sum_of_reader(algorithm: &'static digest::Algorithm, reader: &mut dyn Read) -> Result<String> {
    let mut context = digest::Context::new(algorithm);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex::encode(context.finish()));
        }
        context.update(&buffer[..n]);
    }
}

/// A writer that sums what goes through it.
pub struct Summed<W> {
    inner: W,
    sum: digest::Context,
    bytes: u64,
}

impl<W: Write> Summed<W> {
    /// Writes to `inner`.
    pub fn new(inner: W) -> Summed<W> {
        Summed { inner, sum: digest::Context::new(&digest::SHA256), bytes: 0 }
    }

    /// The writer, and SHA-256 and number of the bytes that it got.
    pub fn finish(self) -> (W, String, u64) {
        (self.inner, hex::encode(self.sum.finish()), self.bytes)
    }
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.sum.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// SHA-256 of a file, remembered in `memory` (a folder) as long as size, times and inode stay the same.
///
/// # Errors
/// The file cannot be read, or its sum cannot be remembered.
pub fn hex_of_file_remembered(path: &Path, memory: &Path) -> Result<String> {
    let note = Note::of(path, memory)?;
    if let Some(hash) = note.known() {
        return Ok(hash);
    }
    let hash = hex_of_file(path)?;
    note.write(&hash)?;
    Ok(hash)
}

/// Whether there is a file with this sum, as [`hex_of_file_remembered`] finds it.
///
/// # Errors
/// The file cannot be read, or its sum cannot be remembered: that says nothing of its bytes.
pub fn is_file_of(path: &Path, sha256: &str, memory: &Path) -> Result<bool> {
    Ok(path.is_file() && hex_of_file_remembered(path, memory)? == sha256)
}

/// Remembers a sum that is known of a file as it is now, so that nobody reads it for that again.
pub fn remember(path: &Path, hash: &str, memory: &Path) -> Result<()> {
    Note::of(path, memory)?.write(hash)
}

/// Does to a file what leaves its bytes alone, such as giving it one more name; its sum stays known.
pub fn keeping<T>(path: &Path, memory: &Path, change: impl FnOnce() -> T) -> Result<T> {
    let before = Note::of(path, memory)?;
    let known = before.known();
    let changed = change();
    let after = Note::of(path, memory)?;
    if let Some(hash) = known.filter(|_| before.content == after.content) {
        after.write(&hash)?;
    }
    Ok(changed)
}

/// Forgets the sums of files that are gone.
pub fn forget_gone(memory: &Path) {
    super::sweep(memory);
    for entry in fs::read_dir(memory).into_iter().flatten().flatten() {
        // One that is being written has a name of its own.
        if entry.file_name().as_bytes().starts_with(b".") {
            continue;
        }
        let Ok(text) = fs::read(entry.path()) else { continue };
        let path = text.iter().position(|byte| *byte == b'\n').map(|end| OsStr::from_bytes(&text[end + 1..]));
        if path.is_none_or(|path| !Path::new(path).exists()) {
            // A note that stays takes space and nothing else.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// What is remembered of a file: its sum, what must stay the same for it to hold, and behind a newline its path.
struct Note {
    place: PathBuf,
    path: PathBuf,
    /// Inode, size and time of the last writing.
    content: String,
    /// Time of the last change of any kind.
    changed: String,
}

impl Note {
    /// Of a file as it is now.
    fn of(path: &Path, memory: &Path) -> Result<Note> {
        let path = fs::canonicalize(path).with_context(|| format!("opening {}", path.display()))?;
        let meta = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Note {
            place: memory.join(&hex_of(path.as_os_str().as_bytes())[..24]),
            content: format!("{} {} {}.{}", meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()),
            changed: format!("{}.{}", meta.ctime(), meta.ctime_nsec()),
            path,
        })
    }

    /// The sum, where one is remembered that still holds.
    fn known(&self) -> Option<String> {
        let text = fs::read(&self.place).ok()?;
        let line = text.split(|byte| *byte == b'\n').next()?;
        let (hash, stamp) = std::str::from_utf8(line).ok()?.split_once(' ')?;
        (stamp == format!("{} {}", self.content, self.changed)).then(|| hash.to_string())
    }

    fn write(&self, hash: &str) -> Result<()> {
        let mut text = format!("{hash} {} {}\n", self.content, self.changed).into_bytes();
        text.extend_from_slice(self.path.as_os_str().as_bytes());
        super::write_atomic(&self.place, &text)
            .with_context(|| format!("remembering the sum of {}", self.path.display()))
    }
}

/// Collects the inputs of a step; every input is set apart by name and length.
#[derive(Clone)]
pub struct Inputs(digest::Context);

impl Inputs {
    /// `step` names the step and the version of its code.
    pub fn new(step: &str) -> Inputs {
        Inputs(digest::Context::new(&digest::SHA256)).with("step", step.as_bytes())
    }

    /// Adds one input.
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Inputs {
        let value = value.as_ref();
        for part in [name.as_bytes(), value] {
            self.0.update(&(part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// The key of the step's result.
    pub fn key(self) -> String {
        hex::encode(self.0.finish())[..40].to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_do_not_run_into_each_other() {
        let a = Inputs::new("s").with("ab", "c").key();
        let b = Inputs::new("s").with("a", "bc").key();
        assert_ne!(a, b);
        assert_eq!(a, Inputs::new("s").with("ab", "c").key());
    }

    #[test]
    fn a_changed_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "one").unwrap();
        let memory = dir.path().join("memory");
        assert_eq!(hex_of_file_remembered(&file, &memory).unwrap(), hex_of(b"one"));
        assert_eq!(hex_of_file_remembered(&file, &memory).unwrap(), hex_of(b"one"));
        fs::write(&file, "other").unwrap();
        assert_eq!(hex_of_file_remembered(&file, &memory).unwrap(), hex_of(b"other"));
    }

    #[test]
    fn a_sum_that_cannot_be_remembered_is_no_other_sum() {
        let dir = tempfile::tempdir().unwrap();
        let (file, memory) = (dir.path().join("f"), dir.path().join("memory"));
        fs::write(&file, "one").unwrap();
        // In its place stands a file: nothing can be written there.
        fs::write(&memory, "").unwrap();
        let error = format!("{:#}", is_file_of(&file, &hex_of(b"one"), &memory).unwrap_err());
        assert!(error.contains("remembering the sum") && error.contains(&memory.display().to_string()), "{error}");
        fs::remove_file(&memory).unwrap();
        assert!(is_file_of(&file, &hex_of(b"one"), &memory).unwrap());
        assert!(!is_file_of(&file, &hex_of(b"two"), &memory).unwrap());
        assert!(!is_file_of(&dir.path().join("g"), &hex_of(b"one"), &memory).unwrap());
    }

    #[test]
    fn a_further_name_changes_no_sum() {
        let dir = tempfile::tempdir().unwrap();
        let (file, memory) = (dir.path().join("f"), dir.path().join("memory"));
        fs::write(&file, "one").unwrap();
        // Known only from what is remembered: the file itself has another.
        let claimed = hex_of(b"claimed");
        remember(&file, &claimed, &memory).unwrap();
        keeping(&file, &memory, || fs::hard_link(&file, dir.path().join("g"))).unwrap().unwrap();
        assert_eq!(hex_of_file_remembered(&file, &memory).unwrap(), claimed);
        keeping(&file, &memory, || fs::write(&file, "longer")).unwrap().unwrap();
        assert_eq!(hex_of_file_remembered(&file, &memory).unwrap(), hex_of(b"longer"));
    }

    #[test]
    fn what_is_remembered_goes_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let (stays, goes, memory) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("memory"));
        for file in [&stays, &goes] {
            fs::write(file, "x").unwrap();
            hex_of_file_remembered(file, &memory).unwrap();
        }
        fs::remove_file(&goes).unwrap();
        // As an older kimg wrote them.
        fs::write(memory.join("0123"), "hash stamp").unwrap();
        forget_gone(&memory);
        let left: Vec<_> = fs::read_dir(&memory).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [Note::of(&stays, &memory).unwrap().place]);
    }
}
