//! Another key for Secrets at rest: the next one writes, and the one before opens what it sealed, until all is sealed anew.
//!
//! Several masters get an image one after the other, and none of their API servers may meet what it cannot open: the next
//! key is announced first, so that images have it behind the one that writes, and writes once all masters know it.
//!
//! `secrets/encryption.old.key` is the journal: while it is there, images have both, and the new one writes.
//! `encryption.next.key` is announced; with one master it is there only between two writes.

use super::secrets::Secrets;
use crate::client::{Https, kube};
use crate::input;
use anyhow::{Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use sha2::{Digest, Sha256};

const NOW: &str = "encryption.key";
const OLD: &str = "encryption.old.key";
const NEXT: &str = "encryption.next.key";

/// What the API server of a master says of its keys, by the beginning of their SHA-256.
#[derive(Debug)]
pub struct Keys {
    /// In their order: the first writes.
    at_hand: Vec<String>,
    /// How many objects each has sealed.
    sealed: Vec<(String, u64)>,
}

impl Keys {
    /// Asks an API server.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ask(api: &Https) -> Result<Keys> {
        let answer = api.send(Method::GET, "/metrics", None).await?;
        if !answer.status.is_success() {
            bail!("reading /metrics of the API server: {}", kube::sentence(&answer));
        }
        let text = String::from_utf8_lossy(&answer.body);
        let numbers = |name: &str| -> Vec<(String, u64)> {
            let begin = format!("{name}{{key=\"xchacha20poly1305:v1:");
            let number = |line: &str| {
                let (id, number) = line.strip_prefix(&begin)?.split_once("\"} ")?;
                Some((id.to_owned(), number.trim().parse().ok()?))
            };
            text.lines().filter_map(number).collect()
        };
        let mut places = numbers("kimg_store_key_place");
        places.sort_by_key(|(_, place)| *place);
        let at_hand = places.into_iter().map(|(id, _)| id).collect();
        Ok(Keys { at_hand, sealed: numbers("kimg_store_sealed_objects") })
    }
}

/// What a master's image has: the key that writes, and the one before while it opens something, or the next one.
pub fn key_file(secrets: &Secrets) -> Result<String> {
    let mut text = secrets.with_former(NOW, OLD)?;
    if secrets.path(NEXT).exists() {
        let next = secrets.read(NEXT)?;
        if !text.contains(&next) {
            text.push_str(&next);
        }
    }
    Ok(text)
}

/// Makes the next key, and keeps the one before; what an interrupted run has begun is ended. Gives whether the next one
/// writes: several masters have to know it before.
pub fn begin(secrets: &Secrets, several_masters: bool) -> Result<bool> {
    let _lock = secrets.lock()?;
    if !secrets.path(NEXT).exists() && !secrets.path(OLD).exists() {
        let key = format!("{}\n", STANDARD.encode(rand::random::<[u8; 32]>()));
        secrets.write(NEXT, key.as_bytes())?;
    }
    if !several_masters {
        take(secrets)?;
    }
    Ok(!secrets.path(NEXT).exists())
}

/// Has the next key write from the next image on. `masters` says which keys each of them has now.
///
/// # Errors
/// Bad input: there is no next key, or a master does not know it yet.
pub fn seal(secrets: &Secrets, masters: impl FnOnce() -> Result<Vec<(String, Keys)>>) -> Result<()> {
    let _lock = secrets.lock()?;
    if !secrets.path(NEXT).exists() {
        if !secrets.path(OLD).exists() {
            return input::bad("no next key is announced yet; first `kimg pki rotate encryption`");
        }
        return Ok(());
    }
    let next = id(secrets, NEXT)?;
    for (node, keys) in masters()? {
        if !keys.at_hand.contains(&next) {
            return input::bad(format!(
                "the API server of {node} does not have the next key yet; first `kimg build all` and `kimg roll master`"
            ));
        }
    }
    take(secrets)
}

/// Puts the next key in the place of the one of now.
fn take(secrets: &Secrets) -> Result<()> {
    if !secrets.path(NEXT).exists() {
        return Ok(());
    }
    let (next, now) = (secrets.read(NEXT)?, secrets.read(NOW)?);
    // Where they are one, the run ended between the writes.
    if next != now {
        secrets.write(OLD, now.as_bytes())?;
        secrets.write(NOW, next.as_bytes())?;
    }
    secrets.remove(NEXT)
}

/// Takes the key before out of the next image. It stays in the folder, for backups of before; gives its file.
///
/// # Errors
/// Bad input: a master says that it is not time for that.
pub fn finish(secrets: &Secrets, masters: impl FnOnce() -> Result<Vec<(String, Keys)>>) -> Result<String> {
    let _lock = secrets.lock()?;
    if secrets.path(NEXT).exists() {
        return input::bad("the next key does not seal yet; first `kimg pki rotate encryption --seal`");
    }
    if !secrets.path(OLD).exists() {
        return input::bad("there is nothing to finish; `kimg pki rotate encryption` begins");
    }
    let (new, old) = (id(secrets, NOW)?, id(secrets, OLD)?);
    for (node, keys) in masters()? {
        if keys.at_hand.first() != Some(&new) {
            return input::bad(format!(
                "the API server of {node} does not seal by the new key yet; first `kimg build all` and `kimg roll master`"
            ));
        }
        if let Some((_, count)) = keys.sealed.iter().find(|(id, count)| *id == old && *count > 0) {
            return input::bad(format!(
                "{count} objects are still sealed by the old key, says the API server of {node}, which counts them every few \
                 seconds; each seals them anew when it starts (`kimg node --node {node} reboot`), and `kimg logs {node} \
                 kube-apiserver` says where it cannot"
            ));
        }
    }
    let kept = format!("encryption-{old}.key");
    // Written before the other goes: it opens backups, and there is no second copy.
    secrets.write(&kept, secrets.read(OLD)?.as_bytes())?;
    secrets.remove(OLD)?;
    Ok(kept)
}

/// What the API server calls a key.
fn id(secrets: &Secrets, name: &str) -> Result<String> {
    let Ok(raw) = STANDARD.decode(secrets.read(name)?.trim()) else { return secrets.damaged(name, "key in base64") };
    Ok(hex::encode(&Sha256::digest(raw)[..4]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::answer;
    use crate::client::tls;
    use crate::pki::issue;

    fn new_secrets() -> (tempfile::TempDir, Secrets) {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        (dir, secrets)
    }

    /// Masters whose API servers have what images of now have, with this many objects sealed by each key.
    fn masters(secrets: &Secrets, sealed: &[(&str, u64)]) -> Vec<(String, Keys)> {
        let raw = |key: &str| Sha256::digest(STANDARD.decode(key).expect("base64"));
        let ids = key_file(secrets).expect("keys").lines().map(|key| hex::encode(&raw(key)[..4])).collect::<Vec<_>>();
        let sealed: Vec<_> = sealed.iter().map(|(name, count)| (id(secrets, name).expect("id"), *count)).collect();
        let keys = |name: &str| (name.to_owned(), Keys { at_hand: ids.clone(), sealed: sealed.clone() });
        vec![keys("a"), keys("b")]
    }

    fn refused<T: std::fmt::Debug>(done: Result<T>) -> String {
        let error = done.expect_err("refused");
        assert!(error.is::<input::BadInput>(), "{error:#}");
        error.to_string()
    }

    fn unasked() -> Result<Vec<(String, Keys)>> {
        panic!("nobody is to be asked")
    }

    #[test]
    fn one_master_seals_by_the_next_key_at_once_and_an_interrupted_run_is_ended() {
        let (_dir, secrets) = new_secrets();
        let first = secrets.read(NOW).expect("key");
        // As a run leaves it that ended after the key, after the journal, or before both.
        let next = format!("{}\n", STANDARD.encode([7; 32]));
        for cut in 0..3 {
            secrets.write(NEXT, next.as_bytes()).expect("written");
            if cut > 0 {
                secrets.write(OLD, first.as_bytes()).expect("written");
            }
            if cut > 1 {
                secrets.write(NOW, next.as_bytes()).expect("written");
            }
            let cut_off = key_file(&secrets).expect("keys");
            assert!(cut_off.contains(&next) && cut_off.contains(&first), "an image of now opens all: {cut}");
            assert!(refused(finish(&secrets, unasked)).contains("--seal"));
            assert!(begin(&secrets, false).expect("goes on"));
            assert!(begin(&secrets, true).expect("once more changes nothing"));
            seal(&secrets, unasked).expect("it does already");
            assert_eq!(key_file(&secrets).expect("keys"), format!("{next}{first}"), "{cut}");
            secrets.write(NOW, first.as_bytes()).expect("written");
            secrets.remove(OLD).expect("removed");
        }
        assert!(refused(finish(&secrets, unasked)).contains("nothing to finish"));
        assert!(refused(seal(&secrets, unasked)).contains("first `kimg pki rotate encryption`"));
        let before = masters(&secrets, &[(NOW, 3)]);
        begin(&secrets, false).expect("begins");
        let both = key_file(&secrets).expect("keys");
        assert!(refused(finish(&secrets, || Ok(before))).contains("of a does not seal by the new key"));
        let early = || Ok(masters(&secrets, &[(OLD, 3), (NOW, 2)]));
        assert!(refused(finish(&secrets, early)).contains("3 objects"));
        assert_eq!(key_file(&secrets).expect("keys"), both, "what was refused changed something");
        let kept = finish(&secrets, || Ok(masters(&secrets, &[(NOW, 5), (OLD, 0)]))).expect("finished");
        assert_eq!(secrets.read(&kept).expect("kept for backups"), first);
        assert_eq!(key_file(&secrets).expect("keys"), secrets.read(NOW).expect("key"));
    }

    #[test]
    fn several_masters_know_the_next_key_before_it_seals() {
        let (_dir, secrets) = new_secrets();
        let first = secrets.read(NOW).expect("key");
        let of_before = masters(&secrets, &[(NOW, 3)]);
        assert!(!begin(&secrets, true).expect("begins"));
        let next = secrets.read(NEXT).expect("next");
        assert!(!begin(&secrets, true).expect("once more changes nothing"));
        assert_eq!(key_file(&secrets).expect("keys"), format!("{first}{next}"), "the old one writes");

        let mut mixed = masters(&secrets, &[(NOW, 3)]);
        mixed[1].1 = of_before.into_iter().next().expect("a master").1;
        assert!(refused(seal(&secrets, || Ok(mixed))).contains("of b does not have the next key"));
        let away = seal(&secrets, || bail!("b: no answer")).expect_err("it must be seen").to_string();
        assert_eq!(away, "b: no answer");
        assert!(refused(finish(&secrets, unasked)).contains("--seal"));
        assert_eq!(key_file(&secrets).expect("keys"), format!("{first}{next}"), "what was refused changed something");

        let known = masters(&secrets, &[(NOW, 3)]);
        // As a run leaves it that ended after the journal.
        secrets.write(OLD, first.as_bytes()).expect("written");
        assert!(!begin(&secrets, true).expect("only --seal goes on"));
        seal(&secrets, || Ok(known)).expect("it seals");
        seal(&secrets, unasked).expect("once more changes nothing");
        assert!(begin(&secrets, true).expect("it seals"));
        assert_eq!(key_file(&secrets).expect("keys"), format!("{next}{first}"));

        // One still has the image in which the old one writes, although all is sealed by the new one just now.
        let mut mixed = masters(&secrets, &[(NOW, 3)]);
        mixed[1].1.at_hand.reverse();
        assert!(refused(finish(&secrets, || Ok(mixed))).contains("of b does not seal by the new key"));
        let kept = finish(&secrets, || Ok(masters(&secrets, &[(NOW, 3)]))).expect("finished");
        assert_eq!(secrets.read(&kept).expect("kept for backups"), first);
        assert_eq!(key_file(&secrets).expect("keys"), next);
    }

    #[test]
    fn the_last_of_several_masters_goes_on_alone() {
        let (_dir, secrets) = new_secrets();
        let first = secrets.read(NOW).expect("key");
        assert!(!begin(&secrets, true).expect("begins"));
        let next = secrets.read(NEXT).expect("next");
        assert!(begin(&secrets, false).expect("goes on"));
        assert_eq!(key_file(&secrets).expect("keys"), format!("{next}{first}"));
    }

    #[tokio::test]
    async fn an_api_server_says_its_keys_in_order() {
        let (_dir, secrets) = new_secrets();
        let metrics = "kimg_store_sealed_objects{key=\"identity\"} 1\n\
                       kimg_store_sealed_objects{key=\"xchacha20poly1305:v1:bb\"} 3\n\
                       kimg_store_key_place{key=\"xchacha20poly1305:v1:aa\"} 2\n\
                       kimg_store_key_place{key=\"xchacha20poly1305:v1:bb\"} 1\n";
        let respond = move |_: &str| {
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{metrics}", metrics.len())
        };
        let server = answer(&secrets, "api", false, respond).await;
        let client = issue::node_operator(&secrets).expect("client");
        let tls = tls::config(&secrets.read("cluster-ca.crt").expect("ca"), &client, None).expect("tls");
        let keys = Keys::ask(&Https::new(server.target, "api".into(), tls)).await.expect("keys");
        assert_eq!(keys.at_hand, ["bb", "aa"]);
        assert_eq!(keys.sealed, [("bb".to_owned(), 3)]);
    }
}
