//! A master's private halves: in CONFIG in clear, or sealed and opened with a key from user-data or the node API.

use super::{CONFIG_FOLDER, SECRETS_FOLDER};
use crate::disk::config;
use crate::machine::{Shared, Wait};
use anyhow::{Context, Result};
use node_metadata::{Cluster, Role, SealError, SealKey, is_sealed_file, seal_of, unseal};
use std::path::{Path, PathBuf};
use std::time::Duration;

const HINT: &str = "give the key with `kimg node unseal`, or put seal-key into the user-data and reboot";

/// Does not return before the secrets are there; workers have none.
pub(super) async fn open(machine: &Shared, cluster: &Cluster, mut key: Option<SealKey>) {
    if cluster.role != Role::Master {
        return;
    }
    machine.stage("secrets");
    machine.begin("secrets");
    let sealed = sealed(Path::new(CONFIG_FOLDER));
    let seals = sealed.iter().filter_map(|file| seal_of(file.file_name()?.to_str()?)).collect();
    machine.update(|status| status.seals = seals);
    while !sealed.is_empty() {
        let result = match &key {
            Some(key) => open_with(&sealed, key)
                .and_then(|tar| config::unpack(&tar, Path::new(SECRETS_FOLDER), Path::new(SECRETS_FOLDER))),
            None => Err(anyhow::anyhow!("the image's secrets are sealed, and no key has come")),
        };
        match result {
            Ok(()) => break,
            Err(error) => {
                let why = format!("{error:#}");
                machine.waits("secrets", Wait { waits_for: "the key of the sealed secrets", why: &why, hint: HINT });
            }
        }
        // A key that comes between two looks is seen at the next.
        let _ = tokio::time::timeout(Duration::from_secs(5), machine.look_again.notified()).await;
        if let Some(text) = machine.seal_key.borrow_mut().take() {
            match SealKey::from_base64(&text) {
                Ok(given) => key = Some(given),
                Err(error) => machine.warn(error.to_string()),
            }
        }
    }
    machine.end("secrets", "");
}

/// The sealed files, each of another key and with the same in it.
fn sealed(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_sealed_file))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

/// What the key opens.
fn open_with(sealed: &[PathBuf], key: &SealKey) -> Result<Vec<u8>> {
    for file in sealed {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        match unseal(key, &bytes) {
            Err(SealError::WrongKey) => {}
            other => return Ok(other?),
        }
    }
    Err(SealError::WrongKey.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_metadata::{seal, sealed_file};

    #[test]
    fn each_key_that_the_image_is_sealed_to_opens_it_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let [now, next, other] = [1, 2, 3].map(|n| SealKey::new([n; 32]));
        std::fs::write(folder.path().join("cluster.json"), "{}").unwrap();
        for (file, key) in [(sealed_file(None), &now), (sealed_file(Some(&next)), &next)] {
            std::fs::write(folder.path().join(file), seal(key, b"keys").unwrap()).unwrap();
        }
        let files = sealed(folder.path());
        assert_eq!(files.len(), 2);
        for key in [&now, &next] {
            assert_eq!(open_with(&files, key).unwrap(), b"keys");
        }
        assert!(open_with(&files, &other).unwrap_err().to_string().contains("does not open"));
    }
}
