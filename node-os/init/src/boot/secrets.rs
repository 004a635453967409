//! A master's private halves: in CONFIG in clear, or sealed and opened with a key from user-data or the node API.

use super::{CONFIG_FOLDER, SECRETS_FOLDER};
use crate::disk::config;
use crate::machine::{Shared, Wait};
use anyhow::{Context, Result};
use node_metadata::{Cluster, Role, SealKey, unseal};
use std::path::Path;
use std::time::Duration;

const SEALED: &str = "secrets.sealed";
const HINT: &str = "give the key with `kimg node unseal`, or put seal-key into the user-data and reboot";

/// Does not return before the secrets are there; workers have none.
pub(super) async fn open(machine: &Shared, cluster: &Cluster, mut key: Option<SealKey>) {
    if cluster.role != Role::Master {
        return;
    }
    machine.stage("secrets");
    machine.begin("secrets");
    let sealed = Path::new(CONFIG_FOLDER).join(SEALED);
    while sealed.exists() {
        let result = match &key {
            Some(key) => open_with(&sealed, key),
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

fn open_with(sealed: &Path, key: &SealKey) -> Result<()> {
    let bytes = std::fs::read(sealed).with_context(|| format!("cannot read {}", sealed.display()))?;
    let tar = unseal(key, &bytes)?;
    config::unpack(&tar, Path::new(SECRETS_FOLDER), Path::new(SECRETS_FOLDER))
}
