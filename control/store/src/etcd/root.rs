//! The one key of ours that is no object: which part of etcd's key space holds the store,
//! and how its revisions follow from etcd's.
//!
//! Objects lie below `PREFIX/gGENERATION/`.  A restore writes the next generation, and then
//! changes this key: that is the one moment at which the store changes.  Every write of every
//! API server is conditional on this key, so that a server that has not noticed writes
//! nothing any more.
//!
//! A revision of the store is etcd's revision and `base`.  A restore raises `base`, so that
//! the store's revisions grow even where etcd's begin anew.

use std::ops::RangeInclusive;

use bytes::Bytes;

use super::client::{Again, CallError, Client};
use super::wire::{self, Compare, Headed, PutRequest, RangeRequest, RangeResponse, Request, TxnRequest, TxnResponse};
use crate::{Result, StoreError};

/// What the key begins with, before the number of the store's format in etcd.
const MARK: &str = "kimg-store-";
/// The formats that are read, as those of the log ([`crate::frame::FORMATS`]).
pub(crate) const FORMATS: RangeInclusive<u32> = OLDEST..=if cfg!(test) { NEWEST + 1 } else { NEWEST };
const OLDEST: u32 = 1;
const NEWEST: u32 = 1;

/// What the key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) format: u32,
    pub(crate) generation: u64,
    pub(crate) base: u64,
    /// Where the store went, if it is no longer here.
    pub(crate) moved: Option<String>,
}

/// The key as it was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) root: Root,
    /// etcd's revision of its last write: the condition of every other write.
    pub(crate) written: i64,
    pub(crate) cluster: u64,
}

/// Keys as etcd has them.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    prefix: String,
}

impl Layout {
    pub(crate) fn new(prefix: &str) -> Result<Layout> {
        let prefix = prefix.trim_end_matches('/').to_string();
        if !prefix.starts_with('/') {
            return Err(StoreError::Settings(format!("--etcd-prefix {prefix:?} must begin with / and name a path")));
        }
        Ok(Layout { prefix })
    }

    pub(crate) fn root(&self) -> Bytes {
        format!("{}/kimg", self.prefix).into()
    }

    /// Everything of ours: first key, and the key after the last.
    pub(crate) fn all(&self) -> (Bytes, Bytes) {
        (format!("{}/", self.prefix).into(), format!("{}0", self.prefix).into())
    }

    /// What stands before the keys of a generation.
    pub(crate) fn objects(&self, generation: u64) -> String {
        format!("{}/g{generation}", self.prefix)
    }
}

/// The key after the last that begins with `prefix`.
pub(crate) fn after_prefix(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end.into();
        }
    }
    // All keys from the prefix on.
    Bytes::from_static(b"\0")
}

impl Root {
    fn to_bytes(&self) -> Bytes {
        let moved = self.moved.as_deref().map(|m| format!(" moved={m}")).unwrap_or_default();
        format!("{MARK}{} generation={} base={}{moved}", self.format, self.generation, self.base).into()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Root> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
        let format = format_in(words.next()?).filter(|format| FORMATS.contains(format))?;
        let mut root = Root { format, generation: 0, base: 0, moved: None };
        for word in words {
            match word.split_once('=')? {
                ("generation", n) => root.generation = n.parse().ok()?,
                ("base", n) => root.base = n.parse().ok()?,
                ("moved", to) => root.moved = Some(to.into()),
                _ => return None,
            }
        }
        (root.generation > 0).then_some(root)
    }
}

/// The format that the key's first word states.
fn format_in(word: &str) -> Option<u32> {
    word.strip_prefix(MARK)?.parse().ok()
}

/// Why a key that is not read is not.
fn refused(layout: &Layout, value: &[u8]) -> StoreError {
    let key = String::from_utf8_lossy(&layout.root()).into_owned();
    let word = value.split(|byte| *byte == b' ').next().unwrap_or_default();
    match std::str::from_utf8(word).ok().and_then(format_in) {
        Some(format) if format > *FORMATS.end() => {
            StoreError::Newer { what: format!("{key} in etcd"), format, reads: *FORMATS.end() }
        }
        _ => StoreError::Foreign { key },
    }
}

/// Reads the key; None: there is no store yet.
pub(crate) async fn read(client: &Client, layout: &Layout) -> Result<Option<Found>> {
    let request = RangeRequest { key: layout.root(), ..RangeRequest::default() };
    let answer: RangeResponse = client.call(wire::RANGE, request, Again::Yes).await?;
    let cluster = answer.header().map_or(0, |h| h.cluster_id);
    let Some(kv) = answer.kvs.first() else { return Ok(None) };
    let root = Root::from_bytes(&kv.value).ok_or_else(|| refused(layout, &kv.value))?;
    Ok(Some(Found { root, written: kv.mod_revision, cluster }))
}

/// Reads the key, and makes a store if there is none.
pub(crate) async fn open(client: &Client, layout: &Layout) -> Result<Found> {
    loop {
        if let Some(found) = read(client, layout).await? {
            return Ok(found);
        }
        let first = Root { format: *FORMATS.end(), generation: 1, base: 0, moved: None };
        // Whoever is first makes it; what is there then is read.
        match replace(client, layout, 0, &first).await {
            Ok(_) | Err(StoreError::Mismatch | StoreError::Unavailable(_)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes the key if its last write was at `written`; gives etcd's revision of this one.
pub(crate) async fn replace(client: &Client, layout: &Layout, written: i64, root: &Root) -> Result<i64> {
    let put = PutRequest { key: layout.root(), value: root.to_bytes(), lease: 0 };
    let request = TxnRequest {
        compare: vec![Compare::written_at(layout.root(), written)],
        success: vec![Request::Put(put).into()],
        failure: Vec::new(),
    };
    let answer: TxnResponse = client.call(wire::TXN, request, Again::No).await.map_err(|e: CallError| e)?;
    if answer.succeeded { Ok(answer.revision()) } else { Err(StoreError::Mismatch) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_read_as_written() {
        for root in [
            Root { format: 1, generation: 1, base: 0, moved: None },
            Root { format: 2, generation: 7, base: 2_000_000_000, moved: Some("/var/lib/kimg/store".into()) },
        ] {
            assert_eq!(Root::from_bytes(&root.to_bytes()), Some(root));
        }
        for bad in ["", "kimg-store-1", "kimg-store-3 generation=1 base=0", "kimg-store-1 generation=x base=0"] {
            assert_eq!(Root::from_bytes(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_later_releases_key_is_told_from_somebody_elses() {
        let layout = Layout::new("/registry").unwrap();
        let said = |value: &str| refused(&layout, value.as_bytes()).to_string();
        assert!(
            said("kimg-store-3 generation=1 other").starts_with("/registry/kimg in etcd has the store format 3, and"),
            "{}",
            said("kimg-store-3 generation=1 other")
        );
        for foreign in ["", "kimg-store-1", "kimg-store-0 generation=1", "kimg-store-x", "else"] {
            assert!(said(foreign).contains("was not written by this API server"), "{foreign}");
        }
    }

    #[test]
    fn ranges_hold_their_keys_and_no_others() {
        let layout = Layout::new("/registry/").unwrap();
        let (first, end) = layout.all();
        assert!(first <= layout.root() && layout.root() < end);
        assert_eq!(after_prefix("/registry/g1/"), "/registry/g10");
        assert_eq!(layout.objects(1), "/registry/g1");
        assert!(Layout::new("registry").is_err());
    }
}
