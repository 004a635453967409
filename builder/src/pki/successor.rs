//! Another authority for front proxies, node APIs or the cluster, with two in trust over a time.
//!
//! `secrets/STEM.old.crt` is the journal: while it is there, images trust both, and what is signed is signed by the new
//! one (the first in the file). `STEM.next.*` are there only between writes. The old key goes: nothing is signed by it.
//!
//! The cluster's signs on both sides of a connection, and that of front proxies on several masters, which get their images
//! one after the other, so all have to trust the next one before it signs: it is announced first, and `STEM.next.*` stay
//! until then, in trust behind the one of now.

use super::authority::{Authority, self_signed_params};
use super::issue;
use super::secrets::Secrets;
use super::show;
use crate::cache::hash;
use crate::input;
use anyhow::{Context, Result};
use node_api::Certificate;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::Pem;

/// What the cluster was called by when its authority was another one.
const FINGERPRINT: &str = "cluster.id";

/// What images and kubeconfigs trust: the authority of now, the one before while it is in trust, and the next one once it
/// is announced.
pub fn bundle(secrets: &Secrets, authority: Authority) -> Result<String> {
    let mut text = secrets.with_former(&authority.certificate_file(), &old(authority))?;
    let next = next(authority).1;
    if secrets.path(&next).exists() {
        let next = secrets.read(&next)?;
        if !text.contains(&next) {
            text.push_str(&next);
        }
    }
    Ok(text)
}

fn old(authority: Authority) -> String {
    format!("{}.old.crt", authority.stem())
}

fn next(authority: Authority) -> (String, String) {
    (format!("{}.next.key", authority.stem()), format!("{}.next.crt", authority.stem()))
}

/// Where the certificates of all that may be in trust lie.
pub(super) fn certificate_files(authority: Authority) -> [String; 3] {
    [authority.certificate_file(), old(authority), next(authority).1]
}

/// Whether two are in trust, and the new one signs.
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
    make(secrets, authority, cluster)?;
    take(secrets, authority)
}

/// Puts another one in its place at once: for one that signs only what is made anew when its image boots.
pub fn replace(secrets: &Secrets, authority: Authority, cluster: &str) -> Result<()> {
    let _lock = secrets.lock()?;
    make(secrets, authority, cluster)?;
    take(secrets, authority)?;
    secrets.remove(&old(authority))
}

/// Makes the next one, which images from now on trust, and which signs nothing yet. False: it signs already.
pub fn announce(secrets: &Secrets, authority: Authority, cluster: &str) -> Result<bool> {
    let _lock = secrets.lock()?;
    if authority == Authority::Cluster
        && let Some(fingerprint) = fingerprint(secrets)?
    {
        secrets.write(FINGERPRINT, format!("{fingerprint}\n").as_bytes())?;
    }
    make(secrets, authority, cluster)?;
    Ok(!secrets.path(&old(authority)).exists())
}

/// Has the next one sign from the next image on. `nodes` have these certificates now.
///
/// # Errors
/// Bad input: it was not announced, or a node does not trust it yet.
pub fn sign(secrets: &Secrets, authority: Authority, nodes: &[(String, Vec<Certificate>)]) -> Result<()> {
    let (key_file, certificate_file) = next(authority);
    if !begun(secrets, authority) {
        if !secrets.path(&key_file).exists() || !secrets.path(&certificate_file).exists() {
            return input::bad("no next authority is announced yet; the same without --sign does it");
        }
        let _lock = secrets.lock()?;
        if !secrets.path(&old(authority)).exists() {
            check_trust(secrets, &certificate_file, authority, nodes)?;
        }
        take(secrets, authority)?;
    }
    if authority == Authority::Cluster { renew_admin(secrets) } else { Ok(()) }
}

/// Has the administrator's certificate signed by the cluster's authority of now, which the API server trusts already.
fn renew_admin(secrets: &Secrets) -> Result<()> {
    let new = Known::read(secrets, &Authority::Cluster.certificate_file())?;
    let signed = show::read(&secrets.path("admin.crt")).ok().and_then(|mut all| all.pop());
    if signed.is_none_or(|info| info.authority_key_id.replace(':', "").to_lowercase() != new.key_id) {
        secrets.remove("admin.crt")?;
        issue::admin(secrets)?;
    }
    Ok(())
}

/// Makes the files of the next one.
fn make(secrets: &Secrets, authority: Authority, cluster: &str) -> Result<()> {
    let (key_file, certificate_file) = next(authority);
    if !secrets.path(&key_file).exists() && !secrets.path(&old(authority)).exists() {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).with_context(|| format!("making {key_file}"))?;
        secrets.write(&key_file, key.serialize_pem().as_bytes())?;
    }
    if secrets.path(&key_file).exists() && !secrets.path(&certificate_file).exists() {
        let certificate = self_signed_params(cluster, authority.stem())
            .self_signed(&secrets.key(&key_file)?)
            .with_context(|| format!("signing {certificate_file}"))?;
        secrets.write(&certificate_file, certificate.pem().as_bytes())?;
    }
    Ok(())
}

/// Ends what a run that was cut off in [`take`] has begun: key and certificate are taken one after the other.
pub(super) fn resume(secrets: &Secrets, authority: Authority) -> Result<()> {
    let (key_file, certificate_file) = next(authority);
    let own = authority.key_file();
    let there = [&key_file, &certificate_file, &own].iter().all(|name| secrets.path(name).exists());
    if there && secrets.read(&own)? == secrets.read(&key_file)? { take(secrets, authority) } else { Ok(()) }
}

/// Puts the next one in its place.
fn take(secrets: &Secrets, authority: Authority) -> Result<()> {
    let (key_file, certificate_file) = next(authority);
    if !secrets.path(&key_file).exists() {
        return Ok(());
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
/// Bad input: a node does not trust the new one yet, or has something that the one before has signed.
pub fn finish(secrets: &Secrets, authority: Authority, nodes: &[(String, Vec<Certificate>)]) -> Result<()> {
    let file = authority.certificate_file();
    if !begun(secrets, authority) && secrets.path(&next(authority).1).exists() {
        return input::bad("the next authority does not sign yet; first the same with --sign");
    }
    if !begun(secrets, authority) {
        return input::bad(format!(
            "there is nothing to finish: secrets/ has one {file} only; the same without --finish begins"
        ));
    }
    check_trust(secrets, &file, authority, nodes)?;
    match authority {
        Authority::NodeApi => {
            // All take it by now. One signed by the new authority already is of a run that was interrupted here.
            secrets.remove("node-api-client.crt")?;
            issue::node_operator(secrets)?;
        }
        Authority::Cluster => {
            check_leaves(secrets, nodes)?;
            renew_admin(secrets)?;
        }
        Authority::FrontProxy | Authority::Etcd => {}
    }
    secrets.remove(&old(authority))
}

/// Whether all trust the certificate in `file`.
fn check_trust(
    secrets: &Secrets,
    file: &str,
    authority: Authority,
    nodes: &[(String, Vec<Certificate>)],
) -> Result<()> {
    let ours = Known::read(secrets, file)?.sha256;
    let place = format!("/config/pki/{}", authority.certificate_file());
    for (node, certificates) in nodes {
        if !certificates.iter().any(|held| held.file.ends_with(&place) && held.sha256 == ours) {
            return input::bad(format!(
                "{node} does not run an image with the new {} yet; first `kimg build all` and `kimg roll`",
                authority.certificate_file()
            ));
        }
    }
    Ok(())
}

/// Whether all that nodes show is signed by the cluster's new authority.
fn check_leaves(secrets: &Secrets, nodes: &[(String, Vec<Certificate>)]) -> Result<()> {
    let authority = Authority::Cluster;
    let new = Known::read(secrets, &authority.certificate_file())?;
    let former = Known::read(secrets, &old(authority))?;
    for (node, certificates) in nodes {
        // Both are called the same. Who signed it is told by an image that knows of this.
        let of_cluster = |held: &&Certificate| {
            held.issuer == new.subject && held.sha256 != new.sha256 && held.sha256 != former.sha256
        };
        if let Some(held) = certificates.iter().filter(of_cluster).find(|held| held.authority_key_id != new.key_id) {
            return input::bad(format!(
                "{node} has {} from the authority of before; `kimg build all` and `kimg roll` make what is new (of a \
                 worker that keeps its disk: `kimg pki rotate node {node}`)",
                held.file
            ));
        }
    }
    Ok(())
}

/// What nodes say of an authority.
struct Known {
    subject: String,
    sha256: String,
    key_id: String,
}

impl Known {
    fn read(secrets: &Secrets, file: &str) -> Result<Known> {
        let pem = secrets.read(file)?;
        let read = |block: &Pem| {
            let certificate = block.parse_x509().ok()?;
            let key_id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(hex::encode(id.0)),
                _ => None,
            });
            Some(Known {
                subject: certificate.subject().to_string(),
                sha256: hash::hex_of(&block.contents),
                key_id: key_id?,
            })
        };
        let block = x509_parser::pem::parse_x509_pem(pem.as_bytes());
        block.ok().and_then(|(_, block)| read(&block)).map_or_else(|| secrets.damaged(file, "certificate"), Ok)
    }
}

/// What tells a cluster from others of its name: the beginning of the SHA-256 of the public key of its first CA, which
/// outlives the certificate. None where there is none yet.
///
/// # Errors
/// The certificate cannot be read.
pub fn fingerprint(secrets: &Secrets) -> Result<Option<String>> {
    if input::is_there(&secrets.path(FINGERPRINT))? {
        let text = secrets.read(FINGERPRINT)?.trim().to_owned();
        if text.len() != 12 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return secrets.damaged(FINGERPRINT, "fingerprint of 12 hex digits");
        }
        return Ok(Some(text));
    }
    let file = Authority::Cluster.certificate_file();
    if !input::is_there(&secrets.path(&file))? {
        return Ok(None);
    }
    let text = secrets.read(&file)?;
    let key = x509_parser::pem::parse_x509_pem(text.as_bytes()).ok().and_then(|(_, pem)| {
        let (_, certificate) = x509_parser::parse_x509_certificate(&pem.contents).ok()?;
        Some(hash::hex_of(certificate.public_key().raw))
    });
    match key {
        Some(mut sum) => {
            sum.truncate(12);
            Ok(Some(sum))
        }
        None => secrets.damaged(&file, "certificate"),
    }
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
            sha256: hash::hex_of(&block.contents),
            ..held_nothing()
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

    #[test]
    fn whoever_comes_next_ends_what_was_cut_off_between_key_and_certificate() {
        let dir = tempfile::tempdir().expect("dir");
        let folder = dir.path().join("secrets");
        let secrets = Secrets::ensure(&folder, "demo").expect("secrets");
        let authority = Authority::Cluster;
        announce(&secrets, Authority::Cluster, "demo").expect("announced");
        let before = secrets.read("cluster-ca.crt").expect("certificate");
        Secrets::ensure(&folder, "demo").expect("only announced");
        assert_eq!(secrets.read("cluster-ca.crt").expect("certificate"), before);
        let (key_file, certificate_file) = next(authority);
        let after = secrets.read(&certificate_file).expect("certificate");
        secrets.write(&old(authority), before.as_bytes()).expect("written");
        secrets.write("cluster-ca.key", secrets.read(&key_file).expect("key").as_bytes()).expect("written");
        Secrets::ensure(&folder, "demo").expect("ended");
        assert_eq!(secrets.read("cluster-ca.crt").expect("certificate"), after);
        assert!(begun(&secrets, authority));
        secrets.write("cluster-ca.crt", before.as_bytes()).expect("written");
        let error = Secrets::ensure(&folder, "demo").expect_err("no pair");
        assert!(error.is::<input::BadInput>() && error.to_string().contains("does not belong to"), "{error}");
    }

    #[test]
    fn etcd_s_authority_is_another_one_at_once() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let before = secrets.read("etcd-ca.crt").expect("certificate");
        replace(&secrets, Authority::Etcd, "demo").expect("replaced");
        let after = secrets.read("etcd-ca.crt").expect("certificate");
        assert_ne!(after, before);
        assert_eq!(bundle(&secrets, Authority::Etcd).expect("one"), after);
        Authority::Etcd.issuer(&secrets).expect("key and certificate belong together");
        // As a run leaves it that ended before its last write.
        secrets.write("etcd-ca.old.crt", before.as_bytes()).expect("written");
        replace(&secrets, Authority::Etcd, "demo").expect("ended");
        assert_eq!(bundle(&secrets, Authority::Etcd).expect("one"), after);
    }

    /// Whether a node whose image was built now lets the operator in with `client`.
    async fn let_in(node: &Secrets, ca: &str, client: &super::super::ClientCertificate) -> bool {
        let respond = |_: &str| "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}".into();
        let server = answer(node, "node", false, respond).await;
        let tls = tls::config(ca, client, None).expect("tls");
        let https = Https::new(server.target, "node".into(), tls);
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

    /// A server's certificate of the cluster's authority of now, and what a node says of it.
    fn leaf(secrets: &Secrets, node: &str) -> (Vec<Certificate>, String) {
        let signed = issue::issue(
            secrets,
            Authority::Cluster,
            &issue::Subject { user: format!("system:node:{node}"), groups: Vec::new() },
            time::Duration::days(1),
        )
        .expect("signed");
        (of_pem(&format!("/var/lib/kimg/pki/{node}.crt"), &signed.certificate), signed.certificate)
    }

    fn of_pem(file: &str, pem: &str) -> Vec<Certificate> {
        Pem::iter_from_buffer(pem.as_bytes())
            .map(|block| {
                let block = block.expect("pem");
                let certificate = block.parse_x509().expect("certificate");
                let key_id = certificate.extensions().iter().find_map(|e| match e.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(id) => Some(hex::encode(id.key_identifier.as_ref()?.0)),
                    _ => None,
                });
                Certificate {
                    file: file.into(),
                    issuer: certificate.issuer().to_string(),
                    sha256: hash::hex_of(&block.contents),
                    authority_key_id: key_id.unwrap_or_default(),
                    ..held_nothing()
                }
            })
            .collect()
    }

    fn held_nothing() -> Certificate {
        Certificate {
            file: String::new(),
            subject: String::new(),
            issuer: String::new(),
            sans: vec![],
            not_before: String::new(),
            not_after: String::new(),
            sha256: String::new(),
            authority_key_id: String::new(),
        }
    }

    #[test]
    fn the_cluster_s_authority_changes_once_all_trust_it_and_goes_once_it_has_signed_nothing_in_use() {
        let dir = tempfile::tempdir().expect("dir");
        let secrets = Secrets::ensure(&dir.path().join("secrets"), "demo").expect("secrets");
        let authority = Authority::Cluster;
        let called = fingerprint(&secrets).expect("fingerprint");
        let first = secrets.read("cluster-ca.crt").expect("certificate");
        let admin = issue::admin(&secrets).expect("admin");
        // A node on the image of now, with a certificate by who signs now.
        let node = |name: &str| {
            let trusted = of_pem("/run/kimg/config/pki/cluster-ca.crt", &bundle(&secrets, authority).expect("bundle"));
            [trusted, leaf(&secrets, name).0].concat()
        };
        let before = vec![("w".to_string(), node("w"))];
        assert!(
            sign(&secrets, Authority::Cluster, &before)
                .expect_err("not announced")
                .to_string()
                .contains("the same without --sign")
        );

        assert!(announce(&secrets, Authority::Cluster, "demo").expect("announces"));
        assert!(announce(&secrets, Authority::Cluster, "demo").expect("once more changes nothing"));
        let next = secrets.read("cluster-ca.next.crt").expect("certificate");
        assert_eq!(bundle(&secrets, authority).expect("both"), format!("{first}{next}"));
        assert_eq!(secrets.read("cluster-ca.crt").expect("certificate"), first, "it signs already");
        let error = sign(&secrets, Authority::Cluster, &before).expect_err("too early").to_string();
        assert!(error.contains("w does not run") && error.contains("kimg roll"), "{error}");
        assert!(finish(&secrets, authority, &before).expect_err("too early").to_string().contains("--sign"));
        let announced = vec![("w".to_string(), node("w"))];

        // As a run leaves it that ended between its writes.
        secrets.write("cluster-ca.old.crt", first.as_bytes()).expect("written");
        secrets.write("cluster-ca.key", secrets.read("cluster-ca.next.key").expect("key").as_bytes()).expect("written");
        sign(&secrets, Authority::Cluster, &announced).expect("goes on");
        sign(&secrets, Authority::Cluster, &[]).expect("once more changes nothing");
        assert!(!announce(&secrets, Authority::Cluster, "demo").expect("it signs"));
        assert_eq!(bundle(&secrets, authority).expect("both"), format!("{next}{first}"));
        authority.issuer(&secrets).expect("key and certificate belong together");
        let renewed = issue::admin(&secrets).expect("admin");
        assert_ne!(renewed.certificate, admin.certificate);

        // A worker that kept its disk, and one whose image does not say who signed.
        let trusted = of_pem("/run/kimg/config/pki/cluster-ca.crt", &bundle(&secrets, authority).expect("bundle"));
        let kept = vec![("w".to_string(), [trusted.clone(), announced[0].1[2..].to_vec()].concat())];
        let error = finish(&secrets, authority, &kept).expect_err("too early").to_string();
        assert!(error.contains("w has /var/lib/kimg/pki/w.crt") && error.contains("kimg pki rotate node w"), "{error}");
        let silent = Certificate { authority_key_id: String::new(), ..node("w").remove(2) };
        let silent = vec![("w".to_string(), [trusted, vec![silent]].concat())];
        assert!(finish(&secrets, authority, &silent).is_err(), "nobody knows who signed it");
        assert!(finish(&secrets, authority, &announced).is_err(), "the image of before");

        let signed = vec![("w".to_string(), node("w"))];
        finish(&secrets, authority, &signed).expect("finished");
        assert_eq!(bundle(&secrets, authority).expect("one"), next);
        assert_eq!(issue::admin(&secrets).expect("admin").certificate, renewed.certificate);
        assert_eq!(fingerprint(&secrets).expect("fingerprint"), called, "the provider's marks are of another cluster");
    }

    #[test]
    fn several_masters_trust_the_next_front_proxies_before_they_sign() {
        let dir = tempfile::tempdir().expect("dir");
        let folder = dir.path().join("secrets");
        let (secrets, authority) = (Secrets::ensure(&folder, "demo").expect("secrets"), Authority::FrontProxy);
        let old = secrets.read("front-proxy-ca.crt").expect("certificate");
        let before = vec![("m".to_string(), held(&secrets, authority))];
        for _ in 0..2 {
            assert!(announce(&secrets, authority, "demo").expect("announced"));
            Secrets::ensure(&folder, "demo").expect("only announced");
        }
        assert_eq!(secrets.read("front-proxy-ca.crt").expect("certificate"), old, "it signs still");
        let next = secrets.read("front-proxy-ca.next.crt").expect("next");
        assert_eq!(bundle(&secrets, authority).expect("bundle"), old.clone() + &next);
        assert!(sign(&secrets, authority, &before).expect_err("too early").to_string().contains("kimg build all"));
        assert!(finish(&secrets, authority, &before).expect_err("too early").to_string().contains("--sign"));
        let place = "/run/kimg/config/pki/front-proxy-ca.crt";
        let after = vec![("m".to_string(), of_pem(place, &bundle(&secrets, authority).expect("bundle")))];
        sign(&secrets, authority, &after).expect("all trust it");
        assert_eq!(bundle(&secrets, authority).expect("bundle"), next.clone() + &old);
        finish(&secrets, authority, &after).expect("finished");
        assert_eq!(bundle(&secrets, authority).expect("bundle"), next);
        assert!(!secrets.path("cluster.id").exists(), "the cluster is called as ever");
    }
}
