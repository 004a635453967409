//! Taking client certificates of the API back: entries of the ConfigMap `kube-system/kimg-revoked`, which the API server
//! looks at with every request (`control/apiserver/src/authn/revoked.rs` has the form).

use super::authority::Authority;
use super::issue::{CLIENT_BACKDATED, ClientCertificate, Subject, issue};
use super::secrets::{Secrets, write_private};
use super::show;
use super::successor;
use crate::client::{Https, kube};
use crate::input;
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

const PATH: &str = "/api/v1/namespaces/kube-system/configmaps";
const NAME: &str = "kimg-revoked";

/// What is taken back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Entries(Map<String, Value>);

impl Entries {
    /// All certificates of a user that were issued until now, in a cluster whose certificates live so many seconds.
    pub fn user(user: &str, now: jiff::Timestamp, life_s: u32) -> Entries {
        // Issuers date back by so much: what begins after this was issued after now. The cluster's signer does so by a
        // tenth of a life at most.
        let backdated = CLIENT_BACKDATED.whole_seconds().min(i64::from(life_s) / 10);
        Entries::user_before(user, now.as_second() - backdated + 1)
    }

    /// All certificates of a user that begin before a time (Unix seconds).
    pub fn user_before(user: &str, start: i64) -> Entries {
        let key = format!("user.{}", hex::encode(Sha256::digest(user)));
        let start = jiff::Timestamp::from_second(start).unwrap_or(jiff::Timestamp::MAX);
        Entries(Map::from_iter([(key, json!(format!("{start} {user}")))]))
    }

    /// The client certificates in a PEM file or kubeconfig.
    ///
    /// # Errors
    /// Bad input: one is of another authority than this cluster's, or is the one that kimg itself goes by.
    pub fn file(path: &Path, secrets: &Secrets) -> Result<Entries> {
        let ca = Authority::Cluster.certificate_file();
        let authorities = successor::certificate_files(Authority::Cluster)
            .iter()
            .map(|file| secrets.path(file))
            .filter(|path| path.exists())
            .map(|path| show::read(&path))
            .collect::<Result<Vec<_>>>()?
            .concat();
        let own = secrets.read("admin.crt").ok();
        let mut entries = Map::new();
        for info in show::read(path)?.into_iter().filter(|info| !info.is_ca) {
            let name = info.subject.common_name.as_str();
            if !authorities.iter().any(|ca| ca.subject_key_id == info.authority_key_id) {
                return input::bad(format!(
                    "{}: the certificate of {name:?} is not signed by {ca}, so the API never took it; \
                     docs/how-to/leaked.md says what is done about others",
                    path.display()
                ));
            }
            if own.as_deref().is_some_and(|own| digest(own).is_ok_and(|own| digest(&info.pem).is_ok_and(|d| d == own)))
            {
                return input::bad(format!(
                    "{}: this is the administrator's certificate that kimg itself goes by; `kimg pki rotate admin` makes \
                     a new one and takes this one back",
                    path.display()
                ));
            }
            entries.insert(
                format!("certificate.{}", digest(&info.pem)?),
                json!(format!("{name} until {}", info.not_after)),
            );
        }
        if entries.is_empty() {
            return input::bad(format!("{} holds no client certificate, only authorities", path.display()));
        }
        Ok(Entries(entries))
    }

    /// Certificates by their SHA-256 (hex), and what is to be said of each.
    pub fn certificates<'a>(all: impl Iterator<Item = (&'a String, String)>) -> Entries {
        Entries(all.map(|(digest, about)| (format!("certificate.{digest}"), json!(about))).collect())
    }

    /// What is written of each, for people.
    pub fn shown(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|(key, value)| {
            let about = value.as_str()?;
            Some(match about.split_once(' ').filter(|_| key.starts_with("user.")) {
                Some((start, user)) => format!("all of {user} that begin before {start}"),
                None => about.to_owned(),
            })
        })
    }

    /// These and the others.
    pub fn and(mut self, other: Entries) -> Entries {
        self.0.extend(other.0);
        self
    }
}

/// SHA-256 of a certificate in PEM, hex.
fn digest(pem: &str) -> Result<String> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("reading a certificate")?;
    Ok(hex::encode(Sha256::digest(&block.contents)))
}

/// Takes back what `entries` say; what was taken back stays so.
pub async fn revoke(api: &Https, entries: &Entries) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": entries.0});
    let patch = json!({"data": entries.0});
    // Two who begin the list at a time: the second one adds to it.
    let mut answer = api.send(Method::PATCH, &format!("{PATH}/{NAME}"), Some(&patch)).await?;
    if answer.status == http::StatusCode::NOT_FOUND {
        answer = api.send(Method::POST, PATH, Some(&object)).await?;
        if answer.status == http::StatusCode::CONFLICT {
            answer = api.send(Method::PATCH, &format!("{PATH}/{NAME}"), Some(&patch)).await?;
        }
    }
    if !answer.status.is_success() {
        bail!("taking certificates back: {}", kube::sentence(&answer));
    }
    Ok(())
}

/// Gives the administrator a new certificate, and takes all earlier ones back. `connect` makes a client of a certificate.
///
/// `secrets/admin.next.*` is the journal: it is there from before the new certificate is used until it is in its place.
pub async fn rotate_admin(
    secrets: &Secrets,
    kubeconfig: &Path,
    connect: impl Fn(&ClientCertificate) -> Result<Https>,
) -> Result<()> {
    let next = match (secrets.read("admin.next.crt"), secrets.read("admin.next.key")) {
        (Ok(certificate), Ok(key)) => ClientCertificate { certificate, key },
        _ => {
            let next = issue(secrets, Authority::Cluster, &Subject::admin(), super::issue::OPERATOR_LIFE)?;
            secrets.write("admin.next.key", next.key.as_bytes())?;
            secrets.write("admin.next.crt", next.certificate.as_bytes())?;
            next
        }
    };
    let api = connect(&next)?;
    // Nothing is taken back before the new one is seen to work.
    kube::nodes(&api).await.context("with the new certificate; nothing was taken back")?;
    let (_, block) = x509_parser::pem::parse_x509_pem(next.certificate.as_bytes()).context("reading admin.next.crt")?;
    let start = block.parse_x509().context("reading admin.next.crt")?.validity().not_before.timestamp();
    let mut entries = Entries::user_before(&Subject::admin().user, start);
    let old = (secrets.read("admin.crt").ok(), secrets.read("admin.key").ok());
    // It may be of the same second.
    if let Some(digest) = old
        .0
        .as_deref()
        .and_then(|old| digest(old).ok())
        .filter(|old| digest(&next.certificate).is_ok_and(|next| next != *old))
    {
        entries.0.insert(format!("certificate.{digest}"), json!("kubernetes-admin"));
    }
    revoke(&api, &entries).await?;
    let text = match std::fs::read_to_string(kubeconfig) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("reading {}", kubeconfig.display())),
    };
    if let (Some(certificate), Some(key), Some(text)) = (old.0, old.1, text) {
        let text = text
            .replace(&STANDARD.encode(certificate), &STANDARD.encode(&next.certificate))
            .replace(&STANDARD.encode(key), &STANDARD.encode(&next.key));
        write_private(kubeconfig, text.as_bytes())?;
    }
    secrets.write("admin.key", next.key.as_bytes())?;
    secrets.write("admin.crt", next.certificate.as_bytes())?;
    secrets.remove("admin.next.crt")?;
    secrets.remove("admin.next.key")
}

/// Removes all bootstrap tokens; gives their names.
pub async fn remove_tokens(api: &Https) -> Result<Vec<String>> {
    let path = "/api/v1/namespaces/kube-system/secrets";
    let answer =
        api.send(Method::GET, &format!("{path}?fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken"), None).await?;
    if !answer.status.is_success() {
        bail!("listing bootstrap tokens: {}", kube::sentence(&answer));
    }
    let list: Value = serde_json::from_slice(&answer.body).context("reading the list of bootstrap tokens")?;
    let mut removed = Vec::new();
    for name in list["items"].as_array().into_iter().flatten().filter_map(|item| item["metadata"]["name"].as_str()) {
        let answer = api.send(Method::DELETE, &format!("{path}/{name}"), None).await?;
        if !answer.status.is_success() && answer.status != http::StatusCode::NOT_FOUND {
            bail!("removing {name}: {}", kube::sentence(&answer));
        }
        removed.push(name.to_string());
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::answer;
    use crate::client::tls;
    use crate::pki::{issue, kubeconfig};
    use std::sync::{Arc, Mutex};

    #[test]
    fn only_this_clusters_own_and_not_kimgs_certificate_are_taken_back() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let life = time::Duration::days(1);
        let joe = Subject { user: "joe".into(), groups: vec![] };
        let (api, node) = (
            issue::issue(&secrets, Authority::Cluster, &joe, life).expect("of the API"),
            issue::issue(&secrets, Authority::NodeApi, &joe, life).expect("of the node API"),
        );
        let at = dir.path().join("joe");
        let ca = secrets.read("cluster-ca.crt").expect("ca");
        std::fs::write(&at, kubeconfig::kubeconfig("demo", "https://x:6443", &ca, "joe", &api)).expect("written");
        let entries = Entries::file(&at, &secrets).expect("entries");
        let key = format!("certificate.{}", digest(&api.certificate).expect("digest"));
        assert_eq!(entries.0.keys().collect::<Vec<_>>(), [&key]);
        let refusal = |pem: &str| {
            std::fs::write(&at, pem).expect("written");
            let error = Entries::file(&at, &secrets).expect_err("refused");
            assert!(error.is::<input::BadInput>(), "{error}");
            error.to_string()
        };
        assert!(refusal(&node.certificate).contains("leaked.md"));
        assert!(refusal(&ca).contains("only authorities"));
        let own = issue::admin(&secrets).expect("admin").certificate;
        assert!(refusal(&own).contains("rotate admin"));
    }

    #[test]
    fn what_is_issued_after_a_user_was_taken_back_counts() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let joe = Subject { user: "joe".into(), groups: vec![] };
        let issued = issue::issue(&secrets, Authority::Cluster, &joe, time::Duration::days(1)).expect("issued");
        let (_, block) = x509_parser::pem::parse_x509_pem(issued.certificate.as_bytes()).expect("pem");
        let begins = block.parse_x509().expect("certificate").validity().not_before.timestamp();
        let issued_at = begins + CLIENT_BACKDATED.whole_seconds();
        let good_from = |now: i64| {
            let entries = Entries::user("joe", jiff::Timestamp::from_second(now).expect("time"), 31_536_000);
            let text = entries.0.values().next().and_then(Value::as_str).expect("an entry").to_string();
            text.split(' ').next().expect("a time").parse::<jiff::Timestamp>().expect("a time").as_second()
        };
        let entries = Entries::user_before("joe", 100);
        assert_eq!(entries.shown().collect::<Vec<_>>(), ["all of joe that begin before 1970-01-01T00:01:40Z"]);
        assert!(begins < good_from(issued_at), "issued before");
        assert!(begins >= good_from(issued_at - 1), "issued after");
    }

    #[tokio::test]
    async fn all_bootstrap_tokens_go_and_one_that_is_gone_is_no_fault() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        for refused in [false, true] {
            let lines = Arc::new(Mutex::new(Vec::new()));
            let heard = lines.clone();
            let server = answer(&secrets, "api", false, move |line| {
                heard.lock().expect("lock").push(line.rsplit_once(' ').map_or("", |(line, _)| line).to_string());
                let (status, body) = match line.split(' ').nth(1).and_then(|path| path.rsplit_once('/')) {
                    Some((_, "a")) if refused => ("403 Forbidden", "{\"message\":\"no\"}"),
                    Some((_, "b")) => ("404 Not Found", "{}"),
                    _ => ("200 OK", "{\"items\":[{\"metadata\":{\"name\":\"a\"}},{\"metadata\":{\"name\":\"b\"}}]}"),
                };
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
            })
            .await;
            let ca = secrets.read("cluster-ca.crt").expect("ca");
            let tls = tls::config(&ca, &issue::node_operator(&secrets).expect("client"), None).expect("tls");
            let api = Https::new(server.target, "api".into(), tls);
            let removed = remove_tokens(&api).await;
            let path = "/api/v1/namespaces/kube-system/secrets";
            let mut wanted = vec![
                format!("GET {path}?fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken"),
                format!("DELETE {path}/a"),
            ];
            match refused {
                true => assert!(removed.expect_err("refused").to_string().starts_with("removing a: ")),
                false => {
                    assert_eq!(removed.expect("removed"), ["a", "b"]);
                    wanted.push(format!("DELETE {path}/b"));
                }
            }
            assert_eq!(*lines.lock().expect("lock"), wanted);
        }
    }

    #[tokio::test]
    async fn the_administrator_goes_on_with_a_new_certificate_or_with_the_old_one() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let old = issue::admin(&secrets).expect("admin");
        let (ca, path) = (secrets.read("cluster-ca.crt").expect("ca"), dir.path().join("kubeconfig"));
        std::fs::write(&path, kubeconfig::kubeconfig("demo", "https://x:6443", &ca, "a", &old)).expect("written");
        let mut offered = Vec::new();
        for refused in [true, false] {
            let lines = Arc::new(Mutex::new(Vec::new()));
            let heard = lines.clone();
            let server = answer(&secrets, "api", false, move |line| {
                heard.lock().expect("lock").push(line.split(' ').next().unwrap_or_default().to_string());
                let (status, body) = match line.split(' ').next() {
                    Some("GET") if refused => ("401 Unauthorized", "{\"message\":\"no\"}"),
                    Some("PATCH") => ("404 Not Found", "{}"),
                    _ => ("200 OK", "{\"items\":[]}"),
                };
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
            })
            .await;
            let shown = Mutex::new(String::new());
            let done = rotate_admin(&secrets, &path, |client| {
                *shown.lock().expect("lock") = client.certificate.clone();
                let tls = tls::config(&ca, &issue::node_operator(&secrets)?, None)?;
                Ok(Https::new(server.target.clone(), "api".into(), tls))
            })
            .await;
            offered.push(shown.into_inner().expect("lock"));
            let config = std::fs::read_to_string(&path).expect("kubeconfig");
            let now = issue::admin(&secrets).expect("admin");
            if refused {
                assert!(done.expect_err("refused").to_string().contains("nothing was taken back"));
                assert_eq!(*lines.lock().expect("lock"), ["GET"]);
                assert_eq!(now.certificate, old.certificate);
                assert!(config.contains(&STANDARD.encode(&old.key)));
            } else {
                done.expect("rotated");
                assert_eq!(*lines.lock().expect("lock"), ["GET", "PATCH", "POST"]);
                assert_eq!(now.certificate, offered[0], "it goes on with what it had made");
                assert!(config.contains(&STANDARD.encode(&now.certificate)));
                assert!(config.contains(&STANDARD.encode(&now.key)) && !config.contains(&STANDARD.encode(&old.key)));
                assert!(!secrets.path("admin.next.crt").exists() && !secrets.path("admin.next.key").exists());
            }
        }
        assert_ne!(offered[0], old.certificate);
        assert_eq!(offered[0], offered[1]);
    }
}
