//! The CONFIG partition: `KIMGCFG1`, u64le length, SHA-256, then a tar of this cluster's files.

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

const MAGIC: &[u8; 8] = b"KIMGCFG1";
const HEADER: usize = 8 + 8 + 32;
/// Certificates, settings and add-on manifests are far from this.
const LIMIT: u64 = 64 << 20;

/// The checked tar of a CONFIG partition.
pub fn read(partition: &Path) -> Result<Vec<u8>> {
    let name = partition.display();
    let file = File::open(partition).with_context(|| format!("cannot open the CONFIG partition {name}"))?;
    let mut header = [0u8; HEADER];
    file.read_exact_at(&mut header, 0).with_context(|| format!("cannot read the CONFIG partition {name}"))?;
    let (length, sum) = parse_header(&header)?;
    let mut tar = vec![0; usize::try_from(length)?];
    file.read_exact_at(&mut tar, HEADER as u64).with_context(|| format!("the CONFIG partition {name} is cut off"))?;
    ensure!(
        Sha256::digest(&tar).as_slice() == sum,
        "the CONFIG partition {name} has a wrong checksum; write the image to the disk again"
    );
    Ok(tar)
}

fn parse_header(header: &[u8; HEADER]) -> Result<(u64, [u8; 32])> {
    ensure!(
        header.starts_with(MAGIC),
        "the CONFIG partition does not begin with KIMGCFG1; write the image to the disk again"
    );
    let field = |from: usize, to: usize| header.get(from..to).context("the CONFIG header is cut off");
    let length = u64::from_le_bytes(field(8, 16)?.try_into()?);
    ensure!(length <= LIMIT, "the CONFIG partition says that it holds {length} bytes, which cannot be");
    Ok((length, field(16, HEADER)?.try_into()?))
}

/// Unpacks a tar: `secrets/` goes to `secrets_folder` (files 0600), all else to `folder` (files 0644).
pub fn unpack(tar: &[u8], folder: &Path, secrets_folder: &Path) -> Result<()> {
    let mut archive = tar::Archive::new(tar);
    for entry in archive.entries().context("the CONFIG partition's tar is unreadable")? {
        let mut entry = entry.context("the CONFIG partition's tar is unreadable")?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().context("a name in CONFIG is unreadable")?.into_owned();
        let (target, mode) = place(&path, folder, secrets_folder)?;
        let mut content = Vec::new();
        entry.read_to_end(&mut content).with_context(|| format!("{} in CONFIG is cut off", path.display()))?;
        write(&target, &content, mode)?;
    }
    Ok(())
}

/// Where a file of the tar goes; names that lead elsewhere are refused.
fn place(path: &Path, folder: &Path, secrets_folder: &Path) -> Result<(PathBuf, u32)> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                bail!("CONFIG holds a file with the name {}", path.display())
            }
        }
    }
    Ok(match clean.strip_prefix("secrets") {
        Ok(secret) => (secrets_folder.join(secret), 0o600),
        Err(_) => (folder.join(clean), 0o644),
    })
}

fn write(target: &Path, content: &[u8], mode: u32) -> Result<()> {
    let context = || format!("cannot write {}", target.display());
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).with_context(context)?;
    }
    // The mode is set before the content is there.
    let file = File::create(target).with_context(context)?;
    file.set_permissions(Permissions::from_mode(mode)).with_context(context)?;
    file.write_all_at(content, 0).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_checked() {
        let mut header = [0u8; HEADER];
        assert!(parse_header(&header).is_err());
        header[..8].copy_from_slice(MAGIC);
        header[8] = 9;
        assert_eq!(parse_header(&header).unwrap().0, 9);
        header[15] = 1;
        assert!(parse_header(&header).is_err());
    }

    #[test]
    fn names_stay_inside() {
        let place = |name: &str| place(Path::new(name), Path::new("/c"), Path::new("/s"));
        assert_eq!(place("./pki/a.crt").unwrap(), ("/c/pki/a.crt".into(), 0o644));
        assert_eq!(place("secrets/a.key").unwrap(), ("/s/a.key".into(), 0o600));
        assert!(place("../etc/passwd").is_err());
        assert!(place("secrets/../../x").is_err());
    }
}
