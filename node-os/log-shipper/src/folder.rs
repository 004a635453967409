//! The folder of a node's logs, as whoever reads it sees it.

use crate::cursor::{Cursor, Seen};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Logs by name, and the place in each.
pub type Cursors = BTreeMap<String, Cursor>;

/// The names of the logs.
pub fn names(folder: &Path) -> Result<Vec<String>> {
    let what = || format!("reading {}", folder.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(what)? {
        let name = entry.with_context(what)?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(".log")).map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

/// The file that a log grows in, and the one that it put aside.
fn paths(folder: &Path, name: &str) -> [PathBuf; 2] {
    ["log", "log.1"].map(|end| folder.join(format!("{name}.{end}")))
}

/// The files of a log, oldest first.
pub fn look(folder: &Path, name: &str) -> Vec<Seen> {
    // The newer one first: put aside in between, it is seen twice, and nothing is overlooked.
    let [new, old] = paths(folder, name).map(|path| std::fs::metadata(path).ok().map(|metadata| seen(&metadata)));
    let old = old.filter(|old| new.is_none_or(|new| !new.is(old)));
    old.into_iter().chain(new).collect()
}

fn seen(metadata: &Metadata) -> Seen {
    let born = metadata.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
    let born = born.map_or(0, |born| u64::try_from(born.as_nanos()).unwrap_or(0));
    Seen { inode: metadata.ino(), born, size: metadata.len() }
}

/// What comes next in a log, at most so many bytes.
pub fn read(folder: &Path, name: &str, cursor: &Cursor, most: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut position = cursor.position;
    for file in &cursor.files {
        let mut found = None;
        for path in paths(folder, name) {
            let open = match File::open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                open => open.with_context(|| format!("opening {}", path.display()))?,
            };
            if open.metadata().is_ok_and(|metadata| seen(&metadata).is(file)) {
                found = Some((open, path));
                break;
            }
        }
        // Put aside or gone just now: at the next look it is known.
        let Some((mut open, path)) = found else { break };
        let what = || format!("reading {}", path.display());
        let size = file.size.saturating_sub(position).min((most - bytes.len()) as u64);
        open.seek(SeekFrom::Start(position)).with_context(what)?;
        let before = bytes.len();
        open.take(size).read_to_end(&mut bytes).with_context(what)?;
        // Not on to the next file behind a gap.
        if ((bytes.len() - before) as u64) < file.size.saturating_sub(position) {
            break;
        }
        position = 0;
    }
    Ok(bytes)
}

/// Keeps the cursors over restarts. What is lost of it in a power cut is sent again.
pub fn store(path: &Path, cursors: &Cursors) -> Result<()> {
    let what = || format!("writing {}", path.display());
    let part = path.with_extension("part");
    std::fs::write(&part, serde_json::to_vec(cursors).with_context(what)?).with_context(what)?;
    std::fs::rename(&part, path).with_context(what)
}

/// The cursors of before, or those of somebody who has sent nothing.
pub fn load(path: &Path) -> Cursors {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Cursors::new(),
        read => read.map_err(anyhow::Error::from),
    };
    text.and_then(|text| Ok(serde_json::from_slice(&text)?)).unwrap_or_else(|error| {
        tracing::warn!("{} is of no use, and all logs are sent again: {error:#}", path.display());
        Cursors::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn append(path: &Path, text: &str) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_log_is_read_once_however_its_files_move() {
        let dir = tempfile::tempdir().unwrap();
        let (new, old) = (dir.path().join("dns.log"), dir.path().join("dns.log.1"));
        let mut cursor = Cursor::default();
        let mut take = |most: usize| {
            let gone = cursor.look(&look(dir.path(), "dns"));
            let bytes = read(dir.path(), "dns", &cursor, most).unwrap();
            cursor.advance(bytes.len() as u64);
            (String::from_utf8(bytes).unwrap(), gone)
        };
        assert_eq!(take(99), (String::new(), 0));
        append(&new, "one\ntwo\n");
        assert_eq!(take(4), ("one\n".into(), 0));
        append(&new, "thr");
        std::fs::rename(&new, &old).unwrap();
        append(&new, "ee\nfour\n");
        assert_eq!(take(99), ("two\nthree\nfour\n".into(), 0));
        assert_eq!(take(99), (String::new(), 0));
        append(&new, "five\n");
        assert_eq!(take(0).1, 0, "seen, and not read");
        for text in ["six\n", "seven\n"] {
            std::fs::rename(&new, &old).unwrap();
            append(&new, text);
        }
        assert_eq!(take(99), ("six\nseven\n".into(), 5));
        assert_eq!(names(dir.path()).unwrap(), ["dns"]);
    }

    #[test]
    fn cursors_are_kept_and_damaged_ones_begin_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursors.json");
        assert!(load(&path).is_empty());
        let cursor = Cursor { files: vec![Seen { inode: 1, born: 2, size: 3 }], position: 2, gap: 7 };
        let cursors = Cursors::from([("dns".to_owned(), cursor)]);
        store(&path, &cursors).unwrap();
        assert_eq!(load(&path), cursors);
        std::fs::write(&path, "{").unwrap();
        assert!(load(&path).is_empty());
    }
}
