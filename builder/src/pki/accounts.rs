//! Another key for service-account tokens, with two in trust over a time.
//!
//! Several masters get an image one after the other, and none may refuse what another has signed: the next key is announced
//! first, so that images take its tokens, and signs once all masters do.
//!
//! `secrets/sa.old.pub` is the journal: while it is there, images take tokens of both keys, and new ones are signed with
//! `sa.key`. `sa.next.key` is announced; with one master it is there only between two writes.

use super::secrets::Secrets;
use crate::client::{Https, kube};
use crate::input;
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::Method;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const OLD: &str = "sa.old.pub";
const NEXT: &str = "sa.next.key";
/// Where a token is asked for, to see by which key a master signs.
const TOKEN: &str = "/api/v1/namespaces/kube-system/serviceaccounts/default/token";
/// Kubelets have replaced a pod's token by then: the usual one lives 3607 s, and is renewed after four fifths.
pub const SETTLED: i64 = 3600;

/// What images check tokens with: the key of now, and the one before while it is in trust, or the next one.
pub fn public_keys(secrets: &Secrets) -> Result<String> {
    let mut text = secrets.with_former("sa.pub", OLD)?;
    if secrets.path(NEXT).exists() {
        let next = secrets.key(NEXT)?.public_key_pem();
        if !text.contains(&next) {
            text.push_str(&next);
        }
    }
    Ok(text)
}

/// Whether two keys are in trust.
pub fn begun(secrets: &Secrets) -> bool {
    secrets.has_former(OLD, NEXT)
}

/// Makes the next key, and keeps the public half of the one before; what an interrupted run has begun is ended. Gives
/// whether the next one signs: several masters have to know it before.
pub fn begin(secrets: &Secrets, several_masters: bool) -> Result<bool> {
    let _lock = secrets.lock()?;
    if !secrets.path(NEXT).exists() && !secrets.path(OLD).exists() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).context("making sa.key")?;
        secrets.write(NEXT, key.serialize_pem().as_bytes())?;
    }
    if !several_masters {
        take(secrets)?;
    }
    Ok(!secrets.path(NEXT).exists())
}

/// Has the next key sign from the next image on.
///
/// # Errors
/// Bad input: there is no next key, or a master does not take its tokens yet.
pub async fn sign(secrets: &Secrets, masters: &[(String, Https)]) -> Result<()> {
    let _lock = secrets.lock()?;
    if !secrets.path(NEXT).exists() {
        if !secrets.path(OLD).exists() {
            return input::bad("no next key is announced yet; first `kimg pki rotate service-accounts`");
        }
        return Ok(());
    }
    let next = key_id(&secrets.key(NEXT)?);
    for (node, api) in masters {
        let keys = ask(node, api, Method::GET, "/openid/v1/jwks", None).await?;
        if !keys["keys"].as_array().into_iter().flatten().any(|key| key["kid"] == next.as_str()) {
            return input::bad(format!(
                "the API server of {node} does not take tokens of the next key yet; first `kimg build all` and `kimg roll \
                 master`"
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
/// `since` is when the last of the masters began to run (Unix seconds).
///
/// # Errors
/// Bad input: it is not time for that, and what is to be done first.
pub async fn finish(secrets: &Secrets, masters: &[(String, Https)], since: i64, now: i64) -> Result<()> {
    if secrets.path(NEXT).exists() {
        return input::bad("the next key does not sign yet; first `kimg pki rotate service-accounts --sign`");
    }
    if !begun(secrets) {
        return input::bad("there is nothing to finish; `kimg pki rotate service-accounts` begins");
    }
    let ours = key_id(&secrets.key("sa.key")?);
    for (node, api) in masters {
        let wish = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}});
        let given = ask(node, api, Method::POST, TOKEN, Some(&wish)).await?;
        let token = given["status"]["token"].as_str();
        let token = token.with_context(|| format!("the API server of {node} gave no token"))?;
        if key_of(token).is_none_or(|kid| kid != ours) {
            return input::bad(format!(
                "{node} does not run an image that signs with the new key yet; first `kimg build all` and `kimg roll master`"
            ));
        }
    }
    if now - since < SETTLED {
        return input::bad(format!(
            "a master has signed with the new key for less than an hour, and pods may still have tokens of the old one; \
             come again in {} min",
            (SETTLED - (now - since)).div_euclid(60) + 1
        ));
    }
    let secrets_of = "/api/v1/secrets?fieldSelector=type%3Dkubernetes.io%2Fservice-account-token";
    let Some((node, api)) = masters.first() else { bail!("there is no master") };
    let stale: Vec<String> = ask(node, api, Method::GET, secrets_of, None).await?["items"]
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

async fn ask(node: &str, api: &Https, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
    let answer = api.send(method, path, body).await.with_context(|| format!("asking the API server of {node}"))?;
    if !answer.status.is_success() {
        bail!("asking the API server of {node} for {path}: {}", kube::sentence(&answer));
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("reading {path} of {node}"))
}

/// The API server's name for a key.
fn key_id(key: &KeyPair) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()))
}

/// The key that a token in a Secret says that it is signed with.
fn signed_by(data: &str) -> Option<String> {
    key_of(&String::from_utf8(STANDARD.decode(data).ok()?).ok()?)
}

/// The key that a token says that it is signed with.
fn key_of(token: &str) -> Option<String> {
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
            assert!(begin(&secrets, false).expect("goes on"));
            assert!(begun(&secrets));
            assert_eq!(secrets.read(OLD).expect("old"), old, "{cut}");
            assert_eq!(secrets.read("sa.pub").expect("new"), next.public_key_pem(), "{cut}");
            assert_eq!(public_keys(&secrets).expect("keys"), next.public_key_pem() + &old);
            assert!(begin(&secrets, cut == 1).expect("once more changes nothing"));
            assert_eq!(secrets.key("sa.key").expect("key").public_key_raw(), next.public_key_raw(), "{cut}");
            secrets.write("sa.key", first.serialize_pem().as_bytes()).expect("written");
            secrets.write("sa.pub", old.as_bytes()).expect("written");
            secrets.remove(OLD).expect("removed");
        }
        begin(&secrets, false).expect("begins");
        assert_ne!(secrets.read("sa.pub").expect("new"), old);
    }

    /// An API server that takes tokens of one key, signs by another, and has a Secret with a token.
    async fn master(secrets: &Secrets, takes: &str, signs: &str, held: &str) -> (String, Https) {
        let token = |kid: &str| format!("{}.x.y", URL_SAFE_NO_PAD.encode(format!("{{\"kid\":\"{kid}\"}}")));
        let keys = format!("{{\"keys\":[{{\"kid\":\"{takes}\"}}]}}");
        let given = format!("{{\"status\":{{\"token\":\"{}\"}}}}", token(signs));
        let data = if held.is_empty() { String::new() } else { STANDARD.encode(token(held)) };
        let held = format!(
            "{{\"items\":[{{\"metadata\":{{\"namespace\":\"n\",\"name\":\"s\"}},\"data\":{{\"token\":\"{data}\"}}}}]}}"
        );
        let respond = move |line: &str| {
            let body = match line {
                line if line.contains("jwks") => &keys,
                line if line.contains("serviceaccounts/default/token") => &given,
                _ => &held,
            };
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
        };
        let server = answer(secrets, "api", false, respond).await;
        let client = issue::node_operator(secrets).expect("client");
        let ca = secrets.read(&Authority::Cluster.certificate_file()).expect("ca");
        let tls = tls::config(&ca, &client, None).expect("tls");
        ("m".into(), Https::new(server.target, "api".into(), tls))
    }

    #[tokio::test]
    async fn it_is_finished_when_nobody_needs_the_old_key() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let old = key_id(&secrets.key("sa.key").expect("key"));
        let finish = async |signs: &str, held: &str, since: i64| {
            let masters = [master(&secrets, "", signs, held).await];
            super::finish(&secrets, &masters, since, 10_000).await.map_err(|error| error.to_string())
        };
        assert!(finish(&old, "", 0).await.expect_err("not begun").contains("nothing to finish"));
        begin(&secrets, false).expect("begins");
        let new = key_id(&secrets.key("sa.key").expect("key"));
        assert!(finish(&old, "", 0).await.expect_err("too early").contains("kimg roll master"));
        assert!(finish(&new, "", 6_500).await.expect_err("too early").contains("in 2 min"));
        assert!(finish(&new, &old, 0).await.expect_err("in use").contains("n/s"));
        assert!(begun(&secrets), "what was refused changed something");
        finish(&new, &new, 0).await.expect("finished");
        assert!(!begun(&secrets));
        assert_eq!(public_keys(&secrets).expect("keys"), secrets.read("sa.pub").expect("public"));
    }

    #[tokio::test]
    async fn several_masters_take_the_next_keys_tokens_before_it_signs() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let (old, public) = (key_id(&secrets.key("sa.key").expect("key")), secrets.read("sa.pub").expect("public"));
        let nobody = sign(&secrets, &[]).await.expect_err("nothing is announced");
        assert!(nobody.to_string().contains("first `kimg pki rotate service-accounts`"), "{nobody}");
        for _ in 0..2 {
            assert!(!begin(&secrets, true).expect("announced"));
            resume(&secrets).expect("nothing to end");
        }
        let next = secrets.key(NEXT).expect("next");
        assert_eq!(key_id(&secrets.key("sa.key").expect("key")), old, "it signs still");
        assert_eq!(public_keys(&secrets).expect("keys"), public.clone() + &next.public_key_pem());
        let early = finish(&secrets, &[], 0, 10_000).await.expect_err("it does not sign");
        assert!(early.to_string().contains("--sign"), "{early}");
        let id = key_id(&next);
        let masters = [master(&secrets, &id, &old, "").await, master(&secrets, &old, &old, "").await];
        assert!(
            sign(&secrets, &masters).await.expect_err("one does not know it").to_string().contains("kimg roll master")
        );
        assert!(secrets.path(NEXT).exists() && !begun(&secrets), "what was refused changed something");
        let masters = [master(&secrets, &id, &old, "").await, master(&secrets, &id, &old, "").await];
        sign(&secrets, &masters).await.expect("all know it");
        assert!(begun(&secrets) && key_id(&secrets.key("sa.key").expect("key")) == id);
        assert_eq!(public_keys(&secrets).expect("keys"), next.public_key_pem() + &public);
        sign(&secrets, &[]).await.expect("once more");
        let masters = [master(&secrets, "", &id, "").await, master(&secrets, "", &old, "").await];
        assert!(finish(&secrets, &masters, 0, 10_000).await.is_err(), "one signs with the old one");
        let masters = [master(&secrets, "", &id, "").await, master(&secrets, "", &id, "").await];
        finish(&secrets, &masters, 0, 10_000).await.expect("finished");
        assert_eq!(public_keys(&secrets).expect("keys"), next.public_key_pem());
    }

    #[test]
    fn the_last_of_several_masters_goes_on_alone() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        begin(&secrets, true).expect("announced");
        assert!(begin(&secrets, false).expect("taken") && begun(&secrets));
    }
}
