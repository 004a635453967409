//! Client certificates that are taken back: the ConfigMap `kube-system/kimg-revoked`.
//!
//! `certificate.SHA256` takes back one certificate (hex of the digest of its DER, as in the user's credential-id);
//! `user.SHA256` takes back all of a user (hex of the digest of its name) whose validity begins before the time that the
//! value starts with. What follows in a value is for people. An entry is judged by itself: a time that cannot be read
//! means all certificates of that user, and a key of another form nothing.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

use super::AuthnError;
use super::view::{CONFIG_MAPS, ClusterView};
use super::x509::Peer;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kimg-revoked";

#[derive(Debug, Default)]
struct List {
    certificates: HashSet<String>,
    /// Start of what is still good, by user.
    users: HashMap<String, i64>,
}

/// The list as it was read last, with the revision of what it was read from.
#[derive(Debug, Default)]
pub struct Revoked {
    kept: Mutex<Option<(u64, Arc<List>)>>,
}

impl Revoked {
    /// Refuses a client whose certificate was taken back.
    pub fn check(&self, view: &dyn ClusterView, peer: &Peer) -> Result<(), AuthnError> {
        let Peer::Client { user, fingerprint, not_before, .. } = peer else { return Ok(()) };
        let list = self.list(view);
        let taken_back = list.certificates.contains(fingerprint)
            || (!list.users.is_empty()
                && list.users.get(&hex::encode(Sha256::digest(&user.name))).is_some_and(|good| not_before < good));
        if taken_back {
            return Err(AuthnError::refused(format!(
                "client certificate of {:?} was taken back ({NAMESPACE}/{NAME})",
                user.name
            )));
        }
        Ok(())
    }

    fn list(&self, view: &dyn ClusterView) -> Arc<List> {
        // Before the object: what changes in between is read again the next time.
        let revision = view.revision(CONFIG_MAPS);
        let mut kept = self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*kept {
            Some((of, list)) if *of == revision => list.clone(),
            _ => {
                let list = Arc::new(read(view));
                *kept = Some((revision, list.clone()));
                list
            }
        }
    }
}

fn read(view: &dyn ClusterView) -> List {
    let mut list = List::default();
    let Some(object) = view.get(CONFIG_MAPS, NAMESPACE, NAME) else { return list };
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        if let Some(digest) = key.strip_prefix("certificate.") {
            list.certificates.insert(digest.to_ascii_lowercase());
        } else if let Some(digest) = key.strip_prefix("user.") {
            let time = value.as_str().and_then(|text| text.split_whitespace().next()?.parse::<jiff::Timestamp>().ok());
            list.users.insert(digest.to_ascii_lowercase(), time.map_or(i64::MAX, |time| time.as_second()));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::view::fake::FakeView;
    use super::*;
    use crate::request::UserInfo;
    use serde_json::json;

    #[test]
    fn each_entry_is_judged_by_itself() {
        let view = FakeView::default();
        let revoked = Revoked::default();
        let peer = |name: &str, fingerprint: &str, not_before| Peer::Client {
            user: UserInfo::authenticated(name, []),
            fingerprint: fingerprint.into(),
            not_before,
            not_after: i64::MAX,
        };
        let fine = |name: &str, fingerprint: &str, from| revoked.check(&view, &peer(name, fingerprint, from)).is_ok();
        assert!(fine("joe", "aa", 0));
        let user = |name: &str| format!("user.{}", hex::encode(Sha256::digest(name)));
        view.put(
            CONFIG_MAPS,
            json!({"metadata": {"namespace": NAMESPACE, "name": NAME}, "data": {
                "certificate.AA": "of somebody", "nonsense": "x", (user("joe")): "1970-01-01T00:01:40Z joe",
                (user("eve")): "whenever",
            }}),
        );
        assert!(!fine("somebody", "aa", 1000) && fine("somebody", "bb", 0));
        assert!(!fine("joe", "bb", 99) && fine("joe", "bb", 100));
        assert!(!fine("eve", "bb", i64::MAX - 1), "a time that cannot be read is no pardon");
        assert!(revoked.check(&view, &Peer::None).is_ok());
        view.remove(CONFIG_MAPS, NAMESPACE, NAME);
        assert!(fine("joe", "aa", 0), "an entry that is gone");
    }
}
