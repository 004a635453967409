//! Another authority for front proxies or for node APIs, with two in trust over a time.
//!
//! `secrets/STEM.old.crt` is the journal: while it is there, images trust both, and what is signed is signed by the new
//! one (the first in the file). `STEM.next.*` are there only between writes. The old key goes: nothing is signed by it.

use super::authority::{Authority, self_signed_params};
use super::issue;
use super::secrets::Secrets;
use crate::input;
use anyhow::{Context, Result};
use node_api::Certificate;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use sha2::{Digest, Sha256};

/// What images trust: the authority of now, and the one before while it is in trust.
pub fn bundle(secrets: &Secrets, authority: Authority) -> Result<String> {
    secrets.with_former(&authority.certificate_file(), &old(authority))
}

fn old(authority: Authority) -> String {
    format!("{}.old.crt", authority.stem())
}

fn next(authority: Authority) -> (String, String) {
    (format!("{}.next.key", authority.stem()), format!("{}.next.crt", authority.stem()))
}

/// Whether two are in trust.
pub fn begun(secrets: &Secrets, authority: Authority) -> bool {
    secrets.has_former(&old(authority), &next(authority).0)
}

/// Makes the next one, and keeps the certificate of the one before; what an interrupted run has begun is ended.
pub fn begin(secrets: &Secrets, authority: Authority, cluster: &str) -> Result<()> {
    // It is signed by the authority of before, and nodes on images of before go on taking it.
    if authority == Authority::NodeApi {
        issue::node_operator(secrets)?;
    }
    let _lock = secrets.lock()?;
    let (key_file, certificate_file) = next(authority);
    if !secrets.path(&key_file).exists() && !secrets.path(&old(authority)).exists() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).with_context(|| format!("making {key_file}"))?;
        secrets.write(&key_file, key.serialize_pem().as_bytes())?;
    }
    if !secrets.path(&key_file).exists() {
        return Ok(());
    }
    if !secrets.path(&certificate_file).exists() {
        let certificate = self_signed_params(cluster, authority.stem())
            .self_signed(&secrets.key(&key_file)?)
            .with_context(|| format!("signing {certificate_file}"))?;
        secrets.write(&certificate_file, certificate.pem().as_bytes())?;
    }
    let now = secrets.read(&authority.certificate_file())?;
    // Where they are one, the run ended between the writes.
    if now != secrets.read(&certificate_file)? {
        secrets.write(&old(authority), now.as_bytes())?;
        secrets.write(&authority.key_file(), secrets.read(&key_file)?.as_bytes())?;
        secrets.write(&authority.certificate_file(), secrets.read(&certificate_file)?.as_bytes())?;
    }
    secrets.remove(&key_file)?;
    secrets.remove(&certificate_file)
}

/// Takes the one before out of trust, for the next image. `nodes` have these certificates now.
///
/// # Errors
/// Bad input: a node does not trust the new one yet.
pub fn finish(secrets: &Secrets, authority: Authority, nodes: &[(String, Vec<Certificate>)]) -> Result<()> {
    let file = authority.certificate_file();
    if !begun(secrets, authority) {
        return input::bad(format!(
            "there is nothing to finish: secrets/ has one {file} only; the same without --finish begins"
        ));
    }
    let pem = secrets.read(&file)?;
    let Ok((_, block)) = x509_parser::pem::parse_x509_pem(pem.as_bytes()) else {
        return secrets.damaged(&file, "certificate");
    };
    let ours: String = hex::encode(Sha256::digest(&block.contents));
    for (node, certificates) in nodes {
        if !certificates.iter().any(|held| held.file.ends_with(&format!("/config/pki/{file}")) && held.sha256 == ours) {
            return input::bad(format!(
                "{node} does not run an image with the new {file} yet; first `kimg build all` and `kimg roll`"
            ));
        }
    }
    if authority == Authority::NodeApi {
        // All take it by now. One signed by the new authority already is of a run that was interrupted here.
        secrets.remove("node-api-client.crt")?;
        issue::node_operator(secrets)?;
    }
    secrets.remove(&old(authority))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::answer;
    use crate::client::{Https, tls};
    use http::Method;

    fn held(secrets: &Secrets, authority: Authority) -> Vec<Certificate> {
        let pem = secrets.read(&authority.certificate_file()).expect("certificate");
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("pem");
        vec![Certificate {
            file: format!("/run/kimg/config/pki/{}", authority.certificate_file()),
            subject: String::new(),
            issuer: String::new(),
            sans: vec![],
            not_before: String::new(),
            not_after: String::new(),
            sha256: hex::encode(Sha256::digest(&block.contents)),
        }]
    }

    #[test]
    fn an_interrupted_begin_is_ended_and_finishing_early_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let authority = Authority::FrontProxy;
        let (key_file, certificate_file) = next(authority);
        let before = secrets.read("front-proxy-ca.crt").expect("certificate");
        let on_nodes = vec![("m".to_string(), held(&secrets, authority))];
        assert!(
            finish(&secrets, authority, &on_nodes).expect_err("not begun").to_string().contains("nothing to finish")
        );
        begin(&secrets, authority, "demo").expect("begins");
        let after = secrets.read("front-proxy-ca.crt").expect("certificate");
        assert_eq!(bundle(&secrets, authority).expect("both"), format!("{after}{before}"));
        let key = secrets.read("front-proxy-ca.key").expect("key");
        // As a run leaves it that ended before its last writes, and one that ended after the journal.
        for written in [&after, &before] {
            secrets.write(&key_file, key.as_bytes()).expect("written");
            secrets.write(&certificate_file, after.as_bytes()).expect("written");
            secrets.write("front-proxy-ca.crt", written.as_bytes()).expect("written");
            assert!(!begun(&secrets, authority));
            begin(&secrets, authority, "demo").expect("goes on");
            assert_eq!(bundle(&secrets, authority).expect("both"), format!("{after}{before}"));
        }
        let error = finish(&secrets, authority, &on_nodes).expect_err("early").to_string();
        assert!(error.contains("m does not run") && error.contains("kimg roll"), "{error}");
        finish(&secrets, authority, &[("m".into(), held(&secrets, authority))]).expect("finished");
        assert_eq!(bundle(&secrets, authority).expect("one"), after);
        authority.issuer(&secrets).expect("key and certificate belong together");
    }

    /// Whether a node whose image was built now lets the operator in with `client`.
    async fn let_in(node: &Secrets, ca: &str, client: &super::super::ClientCertificate) -> bool {
        let respond = |_: &str| "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".into();
        let server = answer(node, "node", false, respond).await;
        let tls = tls::config(ca, client, None).expect("tls");
        let https = Https { target: server.target, server_name: "node".into(), tls };
        https.send(Method::GET, "/", None).await.is_ok_and(|answer| answer.status.is_success())
    }

    #[tokio::test]
    async fn the_operator_is_let_in_all_the_time_and_the_old_certificate_not_at_the_end() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let authority = Authority::NodeApi;
        let ca = secrets.read("cluster-ca.crt").expect("ca");
        let leaked = issue::node_operator(&secrets).expect("client");
        // What a node's image has: of before, of both, of the new one.
        let image = |name: &str| {
            let to = Secrets::ensure(&dir.path().join(name), "demo").expect("secrets");
            for file in ["cluster-ca.crt", "cluster-ca.key"] {
                to.write(file, secrets.read(file).expect("file").as_bytes()).expect("written");
            }
            to.write("node-api-ca.crt", bundle(&secrets, authority).expect("bundle").as_bytes()).expect("written");
            to
        };
        let of_before = image("before");
        begin(&secrets, authority, "demo").expect("begins");
        let of_both = image("both");
        let now = issue::node_operator(&secrets).expect("client");
        assert!(let_in(&of_before, &ca, &now).await && let_in(&of_both, &ca, &now).await);
        finish(&secrets, authority, &[("w".into(), held(&secrets, authority))]).expect("finished");
        let of_new = image("new");
        let now = issue::node_operator(&secrets).expect("client");
        assert!(let_in(&of_both, &ca, &now).await && let_in(&of_new, &ca, &now).await);
        assert!(!let_in(&of_new, &ca, &leaked).await, "the old certificate is still taken");
    }
}
