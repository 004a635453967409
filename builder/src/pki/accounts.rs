//! Another key for service-account tokens, with two in trust over a time.
//!
//! `secrets/sa.old.pub` is the journal: while it is there, images take tokens of both keys, and new ones are signed with
//! `sa.key`. `sa.next.key` is there only between two writes.

use super::secrets::Secrets;
use crate::client::{Https, kube};
use crate::input;
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Method;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde_json::Value;
use sha2::{Digest, Sha256};

const OLD: &str = "sa.old.pub";
const NEXT: &str = "sa.next.key";
/// Kubelets have replaced a pod's token by then: the usual one lives 3607 s, and is renewed after four fifths.
pub const SETTLED: i64 = 3600;

/// What images check tokens with: the key of now, and the one before while it is in trust.
pub fn public_keys(secrets: &Secrets) -> Result<String> {
    secrets.with_former("sa.pub", OLD)
}

/// Whether two keys are in trust.
pub fn begun(secrets: &Secrets) -> bool {
    secrets.has_former(OLD, NEXT)
}

/// Makes the next key, and keeps the public half of the one before; what an interrupted run has begun is ended.
pub fn begin(secrets: &Secrets) -> Result<()> {
    let _lock = secrets.lock()?;
    if !secrets.path(NEXT).exists() && !secrets.path(OLD).exists() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("making sa.key")?;
        secrets.write(NEXT, key.serialize_pem().as_bytes())?;
    }
    if !secrets.path(NEXT).exists() {
        return Ok(());
    }
    let (next, now) = (secrets.key(NEXT)?, secrets.key("sa.key")?);
    if next.public_key_raw() != now.public_key_raw() {
        secrets.write(OLD, now.public_key_pem().as_bytes())?;
        secrets.write("sa.key", next.serialize_pem().as_bytes())?;
    }
    resume(secrets)
}

/// Ends what a run has begun that was cut off after it wrote `sa.key`.
pub(super) fn resume(secrets: &Secrets) -> Result<()> {
    if !secrets.path(NEXT).exists() || secrets.read(NEXT)? != secrets.read("sa.key")? {
        return Ok(());
    }
    secrets.write("sa.pub", secrets.key(NEXT)?.public_key_pem().as_bytes())?;
    secrets.remove(NEXT)
}

/// Takes the key before out of trust, for the next image.
///
/// `since` is when the master began to run (Unix seconds).
///
/// # Errors
/// Bad input: it is not time for that, and what is to be done first.
pub async fn finish(secrets: &Secrets, api: &Https, since: i64, now: i64) -> Result<()> {
    if !begun(secrets) {
        return input::bad("there is nothing to finish; `kimg pki rotate service-accounts` begins");
    }
    let ours = key_id(&secrets.key("sa.key")?);
    let keys = get(api, "/openid/v1/jwks").await?;
    if !keys["keys"].as_array().into_iter().flatten().any(|key| key["kid"] == ours.as_str()) {
        return input::bad(
            "the master does not run an image with the new key yet; first `kimg build all` and `kimg roll master`",
        );
    }
    if now - since < SETTLED {
        return input::bad(format!(
            "the master has signed with the new key for less than an hour, and pods may still have tokens of the old one; \
             come again in {} min",
            (SETTLED - (now - since)).div_euclid(60) + 1
        ));
    }
    let secrets_of = "/api/v1/secrets?fieldSelector=type%3Dkubernetes.io%2Fservice-account-token";
    let stale: Vec<String> = get(api, secrets_of).await?["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|secret| signed_by(secret["data"]["token"].as_str().unwrap_or_default()).is_some_and(|kid| kid != ours))
        .map(|secret| {
            let part = |field: &str| secret["metadata"][field].as_str().unwrap_or_default().to_string();
            format!("{}/{}", part("namespace"), part("name"))
        })
        .collect();
    if !stale.is_empty() {
        return input::bad(format!(
            "these Secrets hold tokens of the old key: {}; delete `data.token` of each, a new one is filled in, and give it \
             to whoever uses it; then finish",
            stale.join(", ")
        ));
    }
    secrets.remove(OLD)
}

async fn get(api: &Https, path: &str) -> Result<Value> {
    let answer = api.send(Method::GET, path, None).await?;
    if !answer.status.is_success() {
        bail!("reading {path}: {}", kube::sentence(&answer));
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("reading {path}"))
}

/// The API server's name for a key.
fn key_id(key: &KeyPair) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()))
}

/// The key that a token in a Secret says that it is signed with.
fn signed_by(data: &str) -> Option<String> {
    let token = String::from_utf8(STANDARD.decode(data).ok()?).ok()?;
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?).ok()?;
    header["kid"].as_str().map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::answer;
    use crate::client::tls;
    use crate::pki::{Authority, issue};

    #[test]
    fn two_keys_are_in_trust_and_an_interrupted_begin_is_ended() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let first = secrets.key("sa.key").expect("key");
        let old = secrets.read("sa.pub").expect("public");
        assert_eq!(public_keys(&secrets).expect("keys"), old);
        // As a run leaves it that ended after the journal and the key.
        let next = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key");
        for cut in 0..3 {
            secrets.write(NEXT, next.serialize_pem().as_bytes()).expect("written");
            if cut > 0 {
                secrets.write(OLD, old.as_bytes()).expect("written");
            }
            if cut > 1 {
                secrets.write("sa.key", next.serialize_pem().as_bytes()).expect("written");
            }
            assert!(!begun(&secrets));
            begin(&secrets).expect("goes on");
            assert!(begun(&secrets));
            assert_eq!(secrets.read(OLD).expect("old"), old, "{cut}");
            assert_eq!(secrets.read("sa.pub").expect("new"), next.public_key_pem(), "{cut}");
            assert_eq!(public_keys(&secrets).expect("keys"), next.public_key_pem() + &old);
            begin(&secrets).expect("once more changes nothing");
            assert_eq!(secrets.key("sa.key").expect("key").public_key_raw(), next.public_key_raw(), "{cut}");
            secrets.write("sa.key", first.serialize_pem().as_bytes()).expect("written");
            secrets.write("sa.pub", old.as_bytes()).expect("written");
            secrets.remove(OLD).expect("removed");
        }
        begin(&secrets).expect("begins");
        assert_ne!(secrets.read("sa.pub").expect("new"), old);
    }

    #[tokio::test]
    async fn it_is_finished_when_nobody_needs_the_old_key() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let before = key_id(&secrets.key("sa.key").expect("key"));
        let header = URL_SAFE_NO_PAD.encode(format!("{{\"kid\":\"{before}\"}}"));
        let token = STANDARD.encode(format!("{header}.x.y"));
        let ask = |known: String, token: &str, since: i64| {
            let held = format!(
                "{{\"items\":[{{\"metadata\":{{\"namespace\":\"n\",\"name\":\"s\"}},\"data\":{{\"token\":\"{token}\"}}}}]}}"
            );
            let keys = format!("{{\"keys\":[{{\"kid\":\"{known}\"}}]}}");
            let secrets = &secrets;
            async move {
                let respond = move |line: &str| {
                    let body = if line.contains("jwks") { &keys } else { &held };
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
                };
                let server = answer(secrets, "api", false, respond).await;
                let client = issue::node_operator(secrets).expect("client");
                let ca = secrets.read(&Authority::Cluster.certificate_file()).expect("ca");
                let tls = tls::config(&ca, &client, None).expect("tls");
                let api = Https::new(server.target, "api".into(), tls);
                finish(secrets, &api, since, 10_000).await.map_err(|error| error.to_string())
            }
        };
        assert!(ask(before.clone(), "", 0).await.expect_err("not begun").contains("nothing to finish"));
        begin(&secrets).expect("begins");
        let now = key_id(&secrets.key("sa.key").expect("key"));
        assert!(ask(before, "", 0).await.expect_err("too early").contains("kimg roll master"));
        assert!(ask(now.clone(), "", 6_500).await.expect_err("too early").contains("in 2 min"));
        assert!(ask(now.clone(), &token, 0).await.expect_err("in use").contains("n/s"));
        assert!(begun(&secrets), "what was refused changed something");
        ask(now, "", 0).await.expect("finished");
        assert!(!begun(&secrets));
        assert_eq!(public_keys(&secrets).expect("keys"), secrets.read("sa.pub").expect("public"));
    }
}
