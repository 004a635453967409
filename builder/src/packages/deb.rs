//! Unpacking .deb files: an `ar` archive whose `data.tar.*` member holds the files.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a package may unpack to, in bytes: it is held in memory, and a few kilobytes may claim to be any number.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Each file that is wanted.
    file: u64,
    /// All of the package.
    all: u64,
}

const LIMITS: Limits = Limits { file: 512 << 20, all: 2 << 30 };

/// How many bytes the files may still have that are taken of several packages and held at once.
#[derive(Debug)]
pub struct Budget(AtomicU64);

impl Default for Budget {
    fn default() -> Budget {
        Budget(AtomicU64::new(LIMITS.all))
    }
}

impl Budget {
    fn take(&self, path: &str, size: u64) -> Result<()> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(size));
        ensure!(
            taken.is_ok(),
            "with {path} the files have more than the {} MiB that an image may have",
            LIMITS.all >> 20
        );
        Ok(())
    }
}

/// One entry of a package. Owners and times are dropped: images have none of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// Regular file: permission bits and content.
    File(u32, Arc<[u8]>),
    /// Symbolic link and its target.
    Link(String),
    /// Directory and its permission bits.
    Dir(u32),
}

/// A package's files by absolute path (`/usr/bin/x`).
pub type Files = BTreeMap<String, Entry>;

/// Reads the files of the package at `path` for which `wanted` is true.
pub fn unpack(path: &Path, budget: &Budget, wanted: impl Fn(&str) -> bool) -> Result<Files> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    unpack_bytes(&bytes, budget, wanted).with_context(|| format!("unpacking {}", path.display()))
}

/// The control file of the package at `path`.
pub fn control(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let read = || -> Result<String> {
        let (name, data) = member(&bytes, "control.tar")?;
        let files = read_tar(decompressed(name, data)?, LIMITS, &Budget::default(), |file| file == "/control")?;
        match files.get("/control") {
            Some(Entry::File(_, text)) => Ok(String::from_utf8_lossy(text).into_owned()),
            _ => bail!("it has no control file"),
        }
    };
    read().with_context(|| format!("unpacking {}", path.display()))
}

fn unpack_bytes(bytes: &[u8], budget: &Budget, wanted: impl Fn(&str) -> bool) -> Result<Files> {
    let (name, data) = member(bytes, "data.tar")?;
    read_tar(decompressed(name, data)?, LIMITS, budget, wanted)
}

fn decompressed<'a>(name: &str, data: &'a [u8]) -> Result<Box<dyn Read + 'a>> {
    Ok(match name.rsplit('.').next() {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(data)),
        Some("zst") => Box::new(zstd::stream::read::Decoder::new(data)?),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(data)),
        Some("tar") => Box::new(data),
        _ => bail!("member {name} has a compression that is not known"),
    })
}

/// Finds the member of an ar archive whose name begins so.
fn member<'a>(bytes: &'a [u8], wanted: &str) -> Result<(&'a str, &'a [u8])> {
    let mut rest = bytes.strip_prefix(b"!<arch>\n").context("not an ar archive")?;
    while let Some((header, body)) = rest.split_at_checked(60) {
        let name = std::str::from_utf8(&header[..16])?.trim().trim_end_matches('/');
        let size: usize = std::str::from_utf8(&header[48..58])?.trim().parse().context("bad member size")?;
        let data = body.get(..size).context("the archive is cut short")?;
        if name.starts_with(wanted) {
            return Ok((name, data));
        }
        rest = body.get(size + size % 2..).unwrap_or_default();
    }
    bail!("no {wanted} member")
}

/// A reader that fails behind so many bytes.
struct Limited<R>(io::Take<R>);

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.0.read(buffer)?;
        if self.0.limit() == 0 {
            return Err(io::Error::other("it unpacks to more than a package may have"));
        }
        Ok(n)
    }
}

/// Reads a tar into memory, with absolute, merged-/usr paths.
fn read_tar(reader: impl Read, limits: Limits, budget: &Budget, wanted: impl Fn(&str) -> bool) -> Result<Files> {
    let mut files = Files::new();
    let mut archive = tar::Archive::new(Limited(reader.take(limits.all)));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = absolute(&entry.path_bytes())?;
        if !wanted(&path) {
            continue;
        }
        let mode = entry.header().mode()? & 0o7777;
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let size = entry.size();
                ensure!(size <= limits.file, "{path} has {size} bytes, which is more than a file may have");
                budget.take(&path, size)?;
                let mut data = Vec::new();
                entry.read_to_end(&mut data)?;
                ensure!(data.len() as u64 == size, "{path} is cut short");
                files.insert(path, Entry::File(mode, data.into()));
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name()?.context("link without a target")?;
                files.insert(path, Entry::Link(target.to_string_lossy().into_owned()));
            }
            tar::EntryType::Link => {
                let target = absolute(&entry.link_name_bytes().context("hard link without a target")?)?;
                if let Some(same) = files.get(&target).cloned() {
                    files.insert(path, same);
                }
            }
            tar::EntryType::Directory => {
                files.insert(path, Entry::Dir(mode));
            }
            _ => {}
        }
    }
    Ok(files)
}

/// `./lib/x` → `/usr/lib/x`: images have a merged /usr.
fn absolute(path: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(path).context("a path is not UTF-8")?;
    let clean = text.trim_start_matches("./").trim_matches('/');
    if clean.split('/').any(|part| part == "..") {
        bail!("the path {text} leaves the package");
    }
    let first = clean.split('/').next().unwrap_or_default();
    Ok(match first {
        "lib" | "lib64" | "bin" | "sbin" => format!("/usr/{clean}"),
        _ => format!("/{clean}"),
    })
}

/// Packages for tests.
#[cfg(test)]
pub mod testing {
    /// A package of these members.
    pub fn deb(members: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = b"!<arch>\n".to_vec();
        for (name, body) in [("debian-binary", &b"2.0\n"[..])].iter().chain(members) {
            out.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100644, body.len()).bytes());
            out.extend(*body);
            if body.len() % 2 == 1 {
                out.push(b'\n');
            }
        }
        out
    }

    /// A tar of these files; content `-> TARGET` stands for a link.
    pub fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            match content.strip_prefix("-> ") {
                Some(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_size(0);
                    builder.append_link(&mut header, path, target).unwrap();
                }
                None => {
                    header.set_size(content.len() as u64);
                    builder.append_data(&mut header, path, content.as_bytes()).unwrap();
                }
            }
        }
        builder.into_inner().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{deb, tar_of};
    use super::*;

    #[test]
    fn files_come_out_with_merged_usr_paths() {
        let tar = tar_of(&[("./sbin/mke2fs", "elf")]);
        for (member, data) in [("data.tar", tar.clone()), ("data.tar.zst", zstd::encode_all(&tar[..], 1).unwrap())] {
            let files = unpack_bytes(&deb(&[(member, &data)]), &Budget::default(), |_| true).unwrap();
            assert_eq!(files["/usr/sbin/mke2fs"], Entry::File(0o755, b"elf"[..].into()));
        }
    }

    #[test]
    fn what_a_package_claims_takes_no_memory() {
        for size in [1 << 36, 1 << 62] {
            let mut header = tar::Header::new_gnu();
            header.set_path("a").unwrap();
            header.set_mode(0o644);
            header.set_size(size);
            header.set_cksum();
            let error =
                unpack_bytes(&deb(&[("data.tar", header.as_bytes())]), &Budget::default(), |_| true).unwrap_err();
            assert!(error.to_string().contains("/a has"), "{error:#}");
        }
        let text = "x".repeat(6000);
        let tar = tar_of(&[("./a", text.as_str()), ("./b", text.as_str())]);
        let read = |file, all| read_tar(&tar[..], Limits { file, all }, &Budget::default(), |_| true);
        assert_eq!(read(6000, 1 << 20).unwrap().len(), 2);
        assert!(read(5999, 1 << 20).unwrap_err().to_string().contains("more than a file may have"));
        assert!(format!("{:#}", read(6000, 10_000).unwrap_err()).contains("more than a package may have"));
        // What several packages have counts together.
        let budget = Budget(AtomicU64::new(7000));
        let wanted = |budget: &Budget, file: &str| read_tar(&tar[..], LIMITS, budget, |path| path == file);
        assert_eq!(wanted(&budget, "/a").unwrap().len(), 1);
        assert!(wanted(&budget, "/none").unwrap().is_empty());
        let error = wanted(&budget, "/b").unwrap_err().to_string();
        assert!(error.contains("with /b the files have more than"), "{error}");
        // Also what nobody wants takes time.
        assert!(read_tar(&tar[..], Limits { file: 0, all: 10_000 }, &Budget::default(), |_| false).is_err());
    }

    #[test]
    fn damage_is_an_error() {
        assert!(unpack_bytes(b"nothing", &Budget::default(), |_| true).is_err());
        let tar = tar_of(&[("./a", "b")]);
        assert!(
            unpack_bytes(&deb(&[("data.tar.xz", &tar)]), &Budget::default(), |_| true).is_err(),
            "no xz behind the name"
        );
        let whole = deb(&[("data.tar", &tar)]);
        assert!(unpack_bytes(&whole, &Budget::default(), |_| true).is_ok());
        for keep in [10, 70, 200, 700] {
            assert!(unpack_bytes(&whole[..keep], &Budget::default(), |_| true).is_err(), "cut to {keep}");
        }
    }
}
