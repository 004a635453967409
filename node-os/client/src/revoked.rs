//! Client certificates that were taken back, for components that take such certificates themselves: the ConfigMap
//! `kube-system/kimg-revoked`, which the API server reads with every request, followed by a watch.
//!
//! Its form is that of `control/apiserver/src/authn/revoked.rs`. Before it was read once, nobody is let in; while the API
//! server is away, what was read last counts.

use crate::{Change, follow};
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::watcher;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kimg-revoked";

/// What the list may name of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    user: String,
    /// SHA-256 of the certificate and of the user's name, hex.
    fingerprint: String,
    user_digest: String,
    begins: i64,
}

impl Shown {
    /// Of a certificate (DER) that was verified; none where it names no user.
    pub fn of(certificate: &[u8]) -> Option<Shown> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let user = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        Some(Shown {
            fingerprint: hex::encode(Sha256::digest(certificate)),
            user_digest: hex::encode(Sha256::digest(&user)),
            begins: parsed.validity().not_before.timestamp(),
            user,
        })
    }

    /// SHA-256 of the certificate, hex.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

#[derive(Debug, Default)]
struct List {
    certificates: HashSet<String>,
    /// Start of what is still good, by user.
    users: HashMap<String, i64>,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// His certificate was taken back.
    TakenBack(String),
    /// It is not known yet what was taken back.
    Unread(String),
}

/// The list as it was read last.
#[derive(Debug, Default)]
pub struct Revoked {
    list: RwLock<Option<List>>,
    changes: AtomicU64,
}

impl Revoked {
    /// Follows the list; never ends.
    pub async fn follow(self: Arc<Self>, client: kube::Client) {
        let only = watcher::Config::default().fields(&format!("metadata.name={NAME}")).timeout(290);
        let mut changes = pin!(follow(Api::<ConfigMap>::namespaced(client, NAMESPACE), only, "what was taken back"));
        while let Some(change) = changes.next().await {
            let now = match change {
                Change::All(all) => all.into_iter().next(),
                Change::Apply(object) => Some(object),
                Change::Delete(_) => None,
            };
            self.set(now.and_then(|object| object.data).unwrap_or_default());
        }
    }

    /// What the ConfigMap holds now.
    pub fn set(&self, data: BTreeMap<String, String>) {
        let mut list = List::default();
        for (key, value) in data {
            if let Some(digest) = key.strip_prefix("certificate.") {
                list.certificates.insert(digest.to_ascii_lowercase());
            } else if let Some(digest) = key.strip_prefix("user.") {
                // A time that cannot be read means all certificates of that user.
                let time = value.split_whitespace().next().and_then(|text| text.parse::<jiff::Timestamp>().ok());
                list.users.insert(digest.to_ascii_lowercase(), time.map_or(i64::MAX, |time| time.as_second()));
            }
        }
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = Some(list);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Whether who shows this certificate is let in.
    ///
    /// # Errors
    /// He is not.
    pub fn check(&self, shown: &Shown) -> Result<(), Refused> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let Some(list) = &*list else {
            let why = format!("the API server did not say yet what was taken back ({NAMESPACE}/{NAME})");
            return Err(Refused::Unread(why));
        };
        let of_user = list.users.get(&shown.user_digest).is_some_and(|good| shown.begins < *good);
        if list.certificates.contains(&shown.fingerprint) || of_user {
            return Err(Refused::TakenBack(format!(
                "client certificate of {:?} was taken back ({NAMESPACE}/{NAME})",
                shown.user
            )));
        }
        Ok(())
    }
}

/// A connection that carries nothing more, in either direction, once its client's certificate was taken back. One whose
/// client is not let in at its start goes on, and gets an answer that says so.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    /// Nothing for a client without a certificate.
    by: Option<(Arc<Revoked>, Shown)>,
    looked_at: u64,
}

impl<S> Guarded<S> {
    /// The connection of a client that shows this certificate, or none.
    pub fn new(stream: S, revoked: &Arc<Revoked>, shown: Option<Shown>) -> Guarded<S> {
        let looked_at = revoked.changes.load(Ordering::Acquire);
        let by = shown.filter(|shown| revoked.check(shown).is_ok()).map(|shown| (revoked.clone(), shown));
        Guarded { stream, by, looked_at }
    }

    fn check(&mut self) -> io::Result<()> {
        let Some((revoked, shown)) = &self.by else { return Ok(()) };
        let now = revoked.changes.load(Ordering::Acquire);
        if now == self.looked_at {
            return Ok(());
        }
        if revoked.check(shown).is_err() {
            return Err(io::Error::new(ErrorKind::PermissionDenied, "the client's certificate was taken back"));
        }
        self.looked_at = now;
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn shown(user: &str, fingerprint: &str, begins: i64) -> Shown {
        let user_digest = hex::encode(Sha256::digest(user));
        Shown { user: user.into(), fingerprint: fingerprint.into(), user_digest, begins }
    }

    fn entries(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn each_entry_is_judged_by_itself() {
        let revoked = Revoked::default();
        let fine = |user: &str, fingerprint: &str, begins| revoked.check(&shown(user, fingerprint, begins)).is_ok();
        assert!(matches!(revoked.check(&shown("joe", "aa", 0)), Err(Refused::Unread(_))), "nothing was read yet");
        revoked.set(BTreeMap::new());
        assert!(fine("joe", "aa", 0));
        let user = |name: &str| format!("user.{}", hex::encode(Sha256::digest(name)));
        revoked.set(entries(&[
            ("certificate.AA", "of somebody"),
            ("nonsense", "x"),
            (&user("joe"), "1970-01-01T00:01:40Z joe"),
            (&user("eve"), "whenever"),
        ]));
        assert!(!fine("somebody", "aa", 1000) && fine("somebody", "bb", 0));
        assert!(!fine("joe", "bb", 99) && fine("joe", "bb", 100));
        assert!(!fine("eve", "bb", i64::MAX - 1), "a time that cannot be read is no pardon");
        revoked.set(BTreeMap::new());
        assert!(fine("joe", "aa", 0), "an entry that is gone");
    }

    #[test]
    fn what_the_list_names_is_read_from_a_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "joe");
        params.not_before = rcgen::date_time_ymd(2027, 1, 2);
        let certificate = params.self_signed(&key).unwrap();
        let begins = "2027-01-02T00:00:00Z".parse::<jiff::Timestamp>().unwrap().as_second();
        let digest = hex::encode(Sha256::digest(certificate.der()));
        assert_eq!(Shown::of(certificate.der()), Some(shown("joe", &digest, begins)));
        assert_eq!(Shown::of(b"nothing"), None);
    }

    #[tokio::test]
    async fn an_open_connection_ends_with_its_certificate_and_no_other_does() {
        let revoked = Arc::new(Revoked::default());
        revoked.set(BTreeMap::new());
        let open = |fingerprint: &str| {
            let (ours, theirs) = tokio::io::duplex(64);
            (Guarded::new(ours, &revoked, Some(shown("joe", fingerprint, 0))), theirs)
        };
        let ((mut leaked, mut thief), (mut other, mut friend)) = (open("aa"), open("bb"));
        revoked.set(entries(&[("certificate.aa", "joe")]));
        thief.write_all(b"x").await.unwrap();
        friend.write_all(b"x").await.unwrap();
        assert_eq!(leaked.read_u8().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(leaked.write_all(b"x").await.unwrap_err().kind(), ErrorKind::PermissionDenied);
        assert_eq!(other.read_u8().await.unwrap(), b'x');
        // One that comes afterwards is told why.
        let (mut late, mut thief) = open("aa");
        thief.write_all(b"x").await.unwrap();
        assert_eq!(late.read_u8().await.unwrap(), b'x');
    }
}
