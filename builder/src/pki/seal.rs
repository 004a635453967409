//! Another key for the sealed secrets of masters' images.
//!
//! `secrets/seal.next.key` is the journal: while it is there, images are sealed to both keys, and user-data has the one of
//! before, which also opens the images of before. Afterwards both have the next one only.

use super::secrets::Secrets;
use crate::input;
use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use node_api::NodeStatus;
use node_metadata::{SealKey, seal, sealed_file};
use std::path::PathBuf;

const NOW: &str = "seal.key";
const NEXT: &str = "seal.next.key";

/// The key of now, and the next one while there is one.
fn keys(secrets: &Secrets) -> Result<(SealKey, Option<SealKey>)> {
    let next = secrets.path(NEXT).exists().then(|| secrets.seal_key_of(NEXT)).transpose()?;
    let now = secrets.seal_key()?;
    // Where they are one, the run that finished ended between its writes.
    let next = next.filter(|next| next.id() != now.id());
    Ok((now, next))
}

/// Files of CONFIG with what is sealed: one for each key that opens it.
pub fn files(secrets: &Secrets, plaintext: &[u8]) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let (now, next) = keys(secrets)?;
    let keys = std::iter::once((sealed_file(None), now)).chain(next.map(|key| (sealed_file(Some(&key)), key)));
    keys.map(|(file, key)| Ok((file.into(), seal(&key, plaintext).context("sealing the master's secrets")?))).collect()
}

/// Makes the next key, to which images from now on are sealed as well.
pub fn begin(secrets: &Secrets) -> Result<()> {
    let _lock = secrets.lock()?;
    if keys(secrets)?.1.is_none() {
        secrets.write(NEXT, format!("{}\n", STANDARD.encode(rand::random::<[u8; 32]>())).as_bytes())?;
    }
    Ok(())
}

/// Puts the next key in the place of the one before, for user-data and images from now on. The masters say these.
///
/// # Errors
/// Bad input: a master's image does not open with the next one yet.
pub fn finish(secrets: &Secrets, masters: &[(String, NodeStatus)]) -> Result<()> {
    let _lock = secrets.lock()?;
    let Some(next) = keys(secrets)?.1 else {
        if secrets.path(NEXT).exists() {
            return secrets.remove(NEXT);
        }
        return input::bad("there is nothing to finish; `kimg pki rotate seal` begins");
    };
    for (node, status) in masters {
        if !status.seals.contains(&next.id()) {
            return input::bad(format!(
                "{node} does not run an image that the next key opens; first `kimg build all` and `kimg roll master`"
            ));
        }
    }
    secrets.write(NOW, secrets.read(NEXT)?.as_bytes())?;
    secrets.remove(NEXT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_metadata::unseal;

    #[test]
    fn every_image_opens_with_the_user_data_of_its_time_and_the_old_key_opens_none_at_the_end() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let image = || files(&secrets, b"keys").expect("files");
        let opens = |image: &[(PathBuf, Vec<u8>)], key: &SealKey| {
            image.iter().any(|(_, sealed)| unseal(key, sealed).is_ok_and(|text| text == b"keys"))
        };
        let said = |image: &[(PathBuf, Vec<u8>)]| {
            let seals = image.iter().filter_map(|(file, _)| node_metadata::seal_of(file.to_str()?)).collect();
            vec![("m".to_string(), NodeStatus { seals, ..NodeStatus::default() })]
        };
        let old = secrets.seal_key().expect("key");
        let before = image();
        assert_eq!(before.len(), 1);
        let error = finish(&secrets, &said(&before)).expect_err("not begun").to_string();
        assert!(error.contains("nothing to finish"), "{error}");

        begin(&secrets).expect("begins");
        let both = image();
        begin(&secrets).expect("once more changes nothing");
        assert_eq!(image(), both);
        // Whatever boots anew in between, of either image, has the old key in its user-data.
        let given = secrets.seal_key().expect("key");
        assert!(opens(&before, &given) && opens(&both, &given));
        let error = finish(&secrets, &said(&before)).expect_err("too early").to_string();
        assert!(error.contains("m does not run") && error.contains("kimg roll"), "{error}");

        finish(&secrets, &said(&both)).expect("finished");
        let (given, after) = (secrets.seal_key().expect("key"), image());
        assert!(opens(&both, &given) && opens(&both, &old), "the master boots with old and new user-data");
        assert!(opens(&after, &given) && !opens(&after, &old) && !opens(&before, &given));
        // As a run leaves it that ended between the two writes.
        secrets.write(NEXT, secrets.read(NOW).expect("key").as_bytes()).expect("written");
        assert_eq!(image(), after);
        finish(&secrets, &[]).expect("ends it");
        assert!(!secrets.path(NEXT).exists());
    }
}
