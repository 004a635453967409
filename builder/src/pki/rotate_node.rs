//! New certificates for a worker that goes on running, and the ones before taken back.
//!
//! The node's kubelet renews them when an annotation of the Node asks; `secrets/node.NAME.rotating` is the journal: what the
//! node had before, from before the node is asked until it is taken back.

use super::revoke::{self, Entries};
use super::secrets::Secrets;
use crate::client::{Https, kube};
use crate::input;
use anyhow::{Context, Result, bail};
use http::Method;
use node_api::Certificate;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

/// `node-os/kubelet/src/join/renew.rs` reads it.
const ANNOTATION: &str = "kimg.dev/renew-certificates-before";
/// Where a worker keeps what the cluster signed for it.
const FOLDER: &str = "/var/lib/kimg/pki/";
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    /// Unix seconds: what begins before is of before.
    before: i64,
    /// SHA-256 of each certificate of before, and its file.
    certificates: BTreeMap<String, String>,
}

/// Rotates; `certificates` reads what the node has now. Gives the files that are new.
pub async fn rotate<F: Future<Output = Result<Vec<Certificate>>>>(
    secrets: &Secrets,
    node: &str,
    api: &Https,
    limit: Duration,
    certificates: impl Fn() -> F,
) -> Result<Vec<String>> {
    let file = format!("node.{node}.rotating");
    let journal: Journal = if secrets.path(&file).exists() {
        let text = secrets.read(&file)?;
        serde_json::from_str(&text).or_else(|_| secrets.damaged(&file, "list of a node's certificates"))?
    } else {
        let journal = journal(node, &certificates().await?)?;
        secrets.write(&file, serde_json::to_string(&journal)?.as_bytes())?;
        journal
    };
    let before = jiff::Timestamp::from_second(journal.before).context("a certificate's start")?.to_string();
    let patch = json!({"metadata": {"annotations": {ANNOTATION: before}}});
    let answer = api.send(Method::PATCH, &format!("/api/v1/nodes/{node}"), Some(&patch)).await?;
    if !answer.status.is_success() {
        bail!("asking {node} for new certificates: {}", kube::sentence(&answer));
    }
    let mut last = String::from("it has not answered yet");
    let renewed = async {
        loop {
            match certificates().await {
                Ok(all) => match renewed(&journal, &all) {
                    Ok(start) => return start,
                    Err(missing) => last = format!("it still has the old {missing}"),
                },
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let Ok(start) = tokio::time::timeout(limit, renewed).await else {
        bail!(
            "{node} has not renewed its certificates within {} s: {last}; nothing was taken back. `kimg logs {node} kubelet` \
             says why, and the same command goes on; `kimg pki revoke --node {node}` does not wait",
            limit.as_secs()
        );
    };
    let entries = Entries::user_before(&format!("system:node:{node}"), start).and(Entries::certificates(
        journal.certificates.iter().map(|(digest, file)| (digest, format!("{node}: {file}"))),
    ));
    revoke::revoke(api, &entries).await?;
    secrets.remove(&file)?;
    Ok(journal.certificates.into_values().collect())
}

fn start(certificate: &Certificate) -> Option<i64> {
    certificate.not_before.parse::<jiff::Timestamp>().ok().map(|time| time.as_second())
}

fn journal(node: &str, all: &[Certificate]) -> Result<Journal> {
    let own: Vec<&Certificate> = all.iter().filter(|certificate| certificate.file.starts_with(FOLDER)).collect();
    let Some(latest) = own.iter().filter_map(|certificate| start(certificate)).max() else {
        return input::bad(format!("{node} has no certificates of this cluster; it has not joined"));
    };
    if own.iter().any(|certificate| certificate.sha256.is_empty()) {
        return input::bad(format!(
            "{node} runs an image that cannot renew certificates when asked; `kimg build all` and `kimg roll {node}` give it \
             new ones, and then `kimg pki revoke` takes old ones back that you have as files"
        ));
    }
    let certificates = own.iter().map(|own| (own.sha256.clone(), own.file.clone())).collect();
    Ok(Journal { before: latest + 1, certificates })
}

/// When the kubelet's new certificate begins; or the first file that is not new.
fn renewed(journal: &Journal, all: &[Certificate]) -> std::result::Result<i64, String> {
    for file in journal.certificates.values() {
        let now = all.iter().find(|certificate| certificate.file == *file);
        if now.is_none_or(|now| journal.certificates.contains_key(&now.sha256)) {
            return Err(file.clone());
        }
    }
    let kubelet = format!("{FOLDER}kubelet.crt");
    all.iter().find(|certificate| certificate.file == kubelet).and_then(start).ok_or(kubelet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::answer;
    use crate::client::tls;
    use crate::pki::issue;
    use std::sync::Mutex;

    fn certificate(name: &str, generation: i64) -> Certificate {
        Certificate {
            file: format!("{FOLDER}{name}.crt"),
            subject: String::new(),
            issuer: String::new(),
            sans: vec![],
            not_before: jiff::Timestamp::from_second(1000 * generation).expect("time").to_string(),
            not_after: String::new(),
            sha256: format!("{name}{generation}"),
            authority_key_id: String::new(),
        }
    }

    #[tokio::test]
    async fn nothing_is_taken_back_before_all_is_new() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let lines = std::sync::Arc::new(Mutex::new(Vec::new()));
        let heard = lines.clone();
        let server = answer(&secrets, "api", false, move |line| {
            heard.lock().expect("lock").push(line.rsplit_once(' ').map_or("", |(line, _)| line).to_string());
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".into()
        })
        .await;
        let tls = tls::config(
            &secrets.read("cluster-ca.crt").expect("ca"),
            &issue::node_operator(&secrets).expect("client"),
            None,
        );
        let api = Https::new(server.target, "api".into(), tls.expect("tls"));
        let old = || vec![certificate("kubelet", 1), certificate("dns", 1)];
        let half = || vec![certificate("kubelet", 2), certificate("dns", 1)];
        let patch = "PATCH /api/v1/nodes/w1";
        // It does not renew in time; then it renews half, and all: the journal knows what was before.
        let run = |limit, answers: Vec<Vec<Certificate>>| {
            let answers = Mutex::new(answers);
            let (secrets, api) = (&secrets, &api);
            async move {
                let next = || {
                    let mut answers = answers.lock().expect("lock");
                    let now = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
                    std::future::ready(Ok(now))
                };
                rotate(secrets, "w1", api, limit, next).await
            }
        };
        let error = run(Duration::ZERO, vec![old()]).await.expect_err("not in time").to_string();
        assert!(error.contains("nothing was taken back") && error.contains("revoke --node w1"), "{error}");
        assert_eq!(*lines.lock().expect("lock"), [patch]);
        let all = vec![certificate("kubelet", 2), certificate("dns", 2)];
        assert_eq!(renewed(&journal("w1", &old()).expect("journal"), &half()), Err(format!("{FOLDER}dns.crt")));
        assert_eq!(renewed(&journal("w1", &old()).expect("journal"), &all), Ok(2000));
        let done = run(Duration::from_secs(60), vec![all]).await.expect("rotated");
        assert_eq!(done.len(), 2);
        let list = "PATCH /api/v1/namespaces/kube-system/configmaps/kimg-revoked";
        assert_eq!(*lines.lock().expect("lock"), [patch, patch, list]);
        assert!(!secrets.path("node.w1.rotating").exists());
    }

    #[test]
    fn a_node_that_cannot_is_told() {
        let mut older = certificate("kubelet", 1);
        older.sha256.clear();
        let error = journal("w1", &[older]).expect_err("older").to_string();
        assert!(error.contains("kimg roll w1"), "{error}");
        assert!(journal("w1", &[]).expect_err("none").is::<input::BadInput>());
        assert_eq!(journal("w1", &[certificate("kubelet", 1), certificate("dns", 2)]).expect("journal").before, 2001);
    }
}
