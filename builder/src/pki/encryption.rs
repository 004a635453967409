//! Another key for Secrets at rest: the next one writes, and the one before opens what it sealed, until all is sealed anew.
//!
//! `secrets/encryption.old.key` is the journal: while it is there, images have both. `encryption.next.key` is there only
//! between two writes.

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

/// What a master's image has: the key that writes, and the one before while it opens something.
pub fn key_file(secrets: &Secrets) -> Result<String> {
    secrets.with_former(NOW, OLD)
}

/// Whether images have two keys.
pub fn begun(secrets: &Secrets) -> bool {
    secrets.has_former(OLD, NEXT)
}

/// Makes the next key, and keeps the one before; what an interrupted run has begun is ended.
///
/// # Errors
/// Bad input: there are several masters. One after the other gets the next key, and the first one seals by it what the others
/// do not open yet. A rotation that was begun with one master goes on: its image is the others', too.
pub fn begin(secrets: &Secrets, several_masters: bool) -> Result<()> {
    let _lock = secrets.lock()?;
    if several_masters && !secrets.path(OLD).exists() {
        return input::bad(
            "with several masters the first one that is rolled would seal by a key that the other API servers do not have, \
             and those would end: first `kimg scale masters 1`, then this up to the roll after `--finish`, and then \
             `kimg scale masters 3` (or 5) again",
        );
    }
    if !secrets.path(NEXT).exists() && !secrets.path(OLD).exists() {
        let key = format!("{}\n", STANDARD.encode(rand::random::<[u8; 32]>()));
        secrets.write(NEXT, key.as_bytes())?;
    }
    if secrets.path(NEXT).exists() {
        let (next, now) = (secrets.read(NEXT)?, secrets.read(NOW)?);
        // Where they are one, the run ended between the writes.
        if next != now {
            secrets.write(OLD, now.as_bytes())?;
            secrets.write(NOW, next.as_bytes())?;
        }
        secrets.remove(NEXT)?;
    }
    Ok(())
}

/// Takes the key before out of the next image. It stays in the folder, for backups of before; gives its file.
///
/// # Errors
/// Bad input: the API server says that it is not time for that.
pub async fn finish(secrets: &Secrets, api: &Https) -> Result<String> {
    if !begun(secrets) {
        return input::bad("there is nothing to finish; `kimg pki rotate encryption` begins");
    }
    let answer = api.send(Method::GET, "/metrics", None).await?;
    if !answer.status.is_success() {
        bail!("reading /metrics of the API server: {}", kube::sentence(&answer));
    }
    let text = String::from_utf8_lossy(&answer.body);
    let (new, old) = (id(secrets, NOW)?, id(secrets, OLD)?);
    let sealed = |id: &str| {
        let begin = format!("kimg_store_sealed_objects{{key=\"xchacha20poly1305:v1:{id}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&begin)?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    if sealed(&new) == 0 {
        return input::bad(
            "no Secret was sealed by the new key when the API server last looked, which is at its start: first \
             `kimg build all` and `kimg roll master` (and where the cluster has no Secret at all, make one before)",
        );
    }
    if sealed(&old) > 0 {
        return input::bad(format!(
            "{} objects are still sealed by the old key; the API server seals them anew by itself, and \
             `kimg logs kube-apiserver` says where it cannot",
            sealed(&old)
        ));
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

    #[tokio::test]
    async fn the_old_key_opens_until_nothing_is_sealed_by_it() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
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
            assert!(!begun(&secrets));
            begin(&secrets, false).expect("goes on");
            begin(&secrets, true).expect("once more changes nothing");
            assert_eq!(key_file(&secrets).expect("keys"), format!("{next}{first}"), "{cut}");
            secrets.write(NOW, first.as_bytes()).expect("written");
            secrets.remove(OLD).expect("removed");
        }
        let ask = |lines: String| {
            let secrets = &secrets;
            async move {
                let respond = move |_: &str| {
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{lines}", lines.len())
                };
                let server = answer(secrets, "api", false, respond).await;
                let client = issue::node_operator(secrets).expect("client");
                let tls = tls::config(&secrets.read("cluster-ca.crt").expect("ca"), &client, None).expect("tls");
                let api = Https::new(server.target, "api".into(), tls);
                finish(secrets, &api).await.map_err(|error| error.to_string())
            }
        };
        assert!(ask(String::new()).await.expect_err("not begun").contains("nothing to finish"));
        let refused = begin(&secrets, true).expect_err("several masters");
        assert!(refused.is::<input::BadInput>() && refused.to_string().contains("kimg scale masters 1"), "{refused:#}");
        assert!(!begun(&secrets) && !secrets.path(NEXT).exists(), "what was refused changed something");
        assert_eq!(key_file(&secrets).expect("keys"), first);
        begin(&secrets, false).expect("begins");
        let line = |name: &str, count: u32| {
            let id = id(&secrets, name).expect("id");
            format!("kimg_store_sealed_objects{{key=\"xchacha20poly1305:v1:{id}\"}} {count}\n")
        };
        assert!(ask(line(OLD, 3)).await.expect_err("too early").contains("kimg roll master"));
        assert!(ask(line(OLD, 3) + &line(NOW, 2)).await.expect_err("too early").contains("3 objects"));
        assert!(begun(&secrets), "what was refused changed something");
        let kept = ask(line(NOW, 5)).await.expect("finished");
        assert_eq!(secrets.read(&kept).expect("kept for backups"), first);
        assert_eq!(key_file(&secrets).expect("keys"), secrets.read(NOW).expect("key"));
    }
}
