//! SHA-256 of bytes, files and step inputs.

use crate::input;
use anyhow::{Context, Result};
use ring::digest;
use std::fs;
use std::io::Read;
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

/// SHA-256 of a file, remembered in `memory` (a folder) as long as size, times and inode stay the same.
pub fn hex_of_file_remembered(path: &Path, memory: &Path) -> Result<String> {
    let (note, stamp) = note_of(path, memory)?;
    if let Ok(text) = fs::read_to_string(&note)
        && let Some((hash, known)) = text.split_once(' ')
        && known == stamp
    {
        return Ok(hash.to_string());
    }
    let hash = hex_of_file(path)?;
    super::write_atomic(&note, format!("{hash} {stamp}").as_bytes())?;
    Ok(hash)
}

/// Remembers a sum that is known of a file as it is now, so that nobody reads it for that again.
pub fn remember(path: &Path, hash: &str, memory: &Path) -> Result<()> {
    let (note, stamp) = note_of(path, memory)?;
    super::write_atomic(&note, format!("{hash} {stamp}").as_bytes())
}

/// Where a file's sum is remembered, and what must stay the same for it to hold.
fn note_of(path: &Path, memory: &Path) -> Result<(PathBuf, String)> {
    let path = fs::canonicalize(path).with_context(|| format!("opening {}", path.display()))?;
    let meta = fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?;
    let stamp = format!(
        "{} {} {}.{} {}.{}",
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    );
    Ok((memory.join(&hex_of(path.as_os_str().as_bytes())[..24]), stamp))
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
}
