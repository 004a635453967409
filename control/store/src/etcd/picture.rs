//! Whole stores out of etcd and into it: snapshot, restore, migration.

use bytes::Bytes;

use super::client::{Again, Client};
use super::lease::Leases;
use super::mirror::pages;
use super::root::{self, Found, Layout, Root, after_prefix};
use super::wire::{
    self, Compare, DeleteRangeRequest, DeleteRangeResponse, Headed, KeyValue, PutRequest, Request, TxnRequest,
    TxnResponse,
};
use super::{EtcdOptions, space, value};
use crate::embedded::beyond;
use crate::{Entry, Result, StoreError};

/// etcd takes at most 128 operations and 1.5 MiB in one transaction, unless told otherwise.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 1 << 20;
/// Keys that go at about the same time share a lease.
const TTL_STEP: u64 = 30;

/// Everything in the store, in key order, and its revision.
pub async fn read_etcd(options: &EtcdOptions) -> Result<(Vec<Entry>, u64)> {
    let (client, layout) = (Client::new(&options.members)?, Layout::new(&options.prefix)?);
    let found = existing(&client, &layout).await?;
    let objects = layout.objects(found.root.generation);
    let mut entries = Vec::new();
    let revision = pages(&client, &format!("{objects}/"), |kv| {
        entries.push(entry(kv, &objects, found.root.base)?);
        Ok(())
    })
    .await?;
    Ok((entries, found.root.base + revision.max(0) as u64))
}

async fn existing(client: &Client, layout: &Layout) -> Result<Found> {
    root::read(client, layout).await?.ok_or_else(|| {
        StoreError::Settings(format!(
            "there is no store in etcd below {}; look at --etcd-prefix",
            layout.objects(1).trim_end_matches("/g1")
        ))
    })
}

/// A key and value of etcd, as the store has it; `objects` stands before its keys.
pub(crate) fn entry(kv: &KeyValue, objects: &str, base: u64) -> Result<Entry> {
    let name = std::str::from_utf8(&kv.key).ok().and_then(|k| k.strip_prefix(objects)).unwrap_or_default();
    let own = (base + kv.mod_revision.max(0) as u64, base + kv.create_revision.max(0) as u64);
    let read = value::decode(name, &kv.value, own.0)?;
    let (revision, created) = read.carried.unwrap_or(own);
    Ok(Entry { key: name.into(), value: read.value, revision, created, expires: read.expires })
}

/// What etcd says of its store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EtcdHolds {
    /// There was never one, or nothing was ever put in it.
    Nothing,
    Store,
    /// What was left behind when it went there.
    Moved(String),
}

/// What is in etcd; changes nothing.
pub async fn etcd_holds(options: &EtcdOptions) -> Result<EtcdHolds> {
    let (client, layout) = (Client::new(&options.members)?, Layout::new(&options.prefix)?);
    Ok(match root::read(&client, &layout).await? {
        None => EtcdHolds::Nothing,
        Some(Found { root: Root { moved: Some(to), .. }, .. }) => EtcdHolds::Moved(to),
        // A restore makes the root first, and may have come no further.
        Some(found) if is_empty(&client, &layout.objects(found.root.generation)).await? => EtcdHolds::Nothing,
        Some(_) => EtcdHolds::Store,
    })
}

async fn is_empty(client: &Client, objects: &str) -> Result<bool> {
    let prefix = format!("{objects}/");
    let (key, range_end) = (prefix.clone().into(), after_prefix(&prefix));
    let request = wire::RangeRequest { key, range_end, limit: 1, keys_only: true, ..Default::default() };
    let answer: wire::RangeResponse = client.call(wire::RANGE, request, Again::Yes).await?;
    Ok(answer.kvs.is_empty())
}

/// Puts entries in the place of the store in etcd, at a revision beyond `revision` and any
/// that this store has given out; gives it.  They are written beside what is there, read
/// back, and compared; only then do they take its place.  API servers that run on the store
/// end, and see the new one when they start.
pub async fn write_etcd(options: &EtcdOptions, entries: &[Entry], revision: u64) -> Result<u64> {
    let (client, layout) = (Client::new(&options.members)?, Layout::new(&options.prefix)?);
    let old = root::open(&client, &layout).await?;
    let generation = old.root.generation + 1;
    let objects = layout.objects(generation);
    // What an interrupted restore left.
    remove(&client, &objects).await?;
    space::relieve(&client).await?;
    let copied = async {
        write(&client, &objects, entries).await?;
        compare(&client, &objects, entries).await
    };
    if let Err(error) = copied.await {
        // The store that is there goes on, and needs the room.
        let tidied = async {
            remove_unused(&client, &layout, &objects, old.written).await?;
            space::relieve(&client).await
        };
        if let Err(left) = tidied.await {
            tracing::warn!("what was copied stays in etcd until the next restore: {left}");
        }
        return Err(error);
    }
    let given_out = old.root.base + newest(&client, &layout).await?;
    let base = beyond(revision.max(given_out));
    // All is written anew here, so what was raised before is not: the release that took the copy may go on with it.
    let new = Root { format: *root::FORMATS.start(), generation, base, moved: None };
    let written = root::replace(&client, &layout, old.written, &new).await;
    let written = written.map_err(|error| match error {
        StoreError::Mismatch => StoreError::Differs("another process restored into this etcd at the same time".into()),
        other => other,
    })?;
    remove(&client, &layout.objects(old.root.generation)).await?;
    Ok(base + written.max(0) as u64)
}

/// Says in etcd that its store was moved to `to`: API servers on it end and do not start
/// again.  Without `to` it may be used again.
pub async fn retire_etcd(options: &EtcdOptions, to: Option<&str>) -> Result<()> {
    let (client, layout) = (Client::new(&options.members)?, Layout::new(&options.prefix)?);
    let found = existing(&client, &layout).await?;
    space::relieve(&client).await?;
    let moved = to.map(|t| t.replace(' ', "_"));
    root::replace(&client, &layout, found.written, &Root { moved, ..found.root }).await.map(drop)
}

async fn newest(client: &Client, layout: &Layout) -> Result<u64> {
    let request = wire::RangeRequest { key: layout.root(), count_only: true, ..Default::default() };
    let answer: wire::RangeResponse = client.call(wire::RANGE, request, Again::Yes).await?;
    Ok(answer.revision().max(0) as u64)
}

async fn remove(client: &Client, objects: &str) -> Result<()> {
    let prefix = format!("{objects}/");
    let request = DeleteRangeRequest { range_end: after_prefix(&prefix), key: prefix.into() };
    client.call::<_, DeleteRangeResponse>(wire::DELETE_RANGE, request, Again::Yes).await?;
    Ok(())
}

/// The same, unless the root was written since: another restore may have made these objects the store.
async fn remove_unused(client: &Client, layout: &Layout, objects: &str, written: i64) -> Result<()> {
    let prefix = format!("{objects}/");
    let delete = DeleteRangeRequest { range_end: after_prefix(&prefix), key: prefix.into() };
    let request = TxnRequest {
        compare: vec![Compare::written_at(layout.root(), written)],
        success: vec![Request::Delete(delete).into()],
        failure: Vec::new(),
    };
    client.call::<_, TxnResponse>(wire::TXN, request, Again::Yes).await?;
    Ok(())
}

async fn write(client: &Client, objects: &str, entries: &[Entry]) -> Result<()> {
    let leases = Leases::default();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for entry in entries.iter().filter(|entry| !is_over(entry)) {
        let value = value::encode_carried(entry);
        let lease = if entry.expires == 0 {
            0
        } else {
            let left = entry.expires.saturating_sub(crate::unix_now()).max(1);
            leases.for_ttl(client, left.div_ceil(TTL_STEP) * TTL_STEP).await?
        };
        if !batch.is_empty() && (batch.len() >= BATCH || bytes + value.len() > BATCH_BYTES) {
            put(client, std::mem::take(&mut batch)).await?;
            bytes = 0;
        }
        bytes += value.len();
        batch.push(PutRequest { key: Bytes::from(format!("{objects}{}", entry.key)), value, lease });
    }
    put(client, batch).await
}

/// These keys are nobody else's yet, so that writing them twice does no harm.
async fn put(client: &Client, puts: Vec<PutRequest>) -> Result<()> {
    if puts.is_empty() {
        return Ok(());
    }
    let largest = puts.iter().max_by_key(|p| p.value.len());
    let largest = largest.map(|p| (String::from_utf8_lossy(&p.key).into_owned(), p.value.len()));
    let success = puts.into_iter().map(|p| Request::Put(p).into()).collect();
    let request = TxnRequest { compare: Vec::new(), success, failure: Vec::new() };
    let done = client.call::<_, TxnResponse>(wire::TXN, request, Again::Yes).await;
    done.map(drop).map_err(|error| match largest {
        Some((key, size)) if error.is_too_large() => StoreError::TooLargeForEtcd { key, size },
        _ => error.into(),
    })
}

/// Whether its time is over: its lease has ended no earlier.
fn is_over(entry: &Entry) -> bool {
    (1..=crate::unix_now()).contains(&entry.expires)
}

/// Reads what was written, and compares each entry with what was to be written; what has gone by itself since is not
/// missing.
async fn compare(client: &Client, objects: &str, entries: &[Entry]) -> Result<()> {
    let mut expected = entries.iter();
    let differs =
        |key: &str| StoreError::Differs(format!("{key} is not in etcd as it was written; nothing was changed"));
    pages(client, &format!("{objects}/"), |kv| {
        let found = entry(kv, objects, 0)?;
        match expected.find(|e| e.key == found.key || !is_over(e)) {
            Some(e) if same(e, &found) => Ok(()),
            _ => Err(differs(&found.key)),
        }
    })
    .await?;
    expected.find(|e| !is_over(e)).map_or(Ok(()), |missing| Err(differs(&missing.key)))
}

/// Whether two entries are the same object at the same revision.
pub(crate) fn same(a: &Entry, b: &Entry) -> bool {
    (&a.key, &a.value, a.revision, a.created, a.expires) == (&b.key, &b.value, b.revision, b.created, b.expires)
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;
    use super::*;

    /// A copy takes longer than some keys live.
    #[tokio::test]
    async fn what_has_gone_by_itself_is_not_missing() {
        let etcd = test_etcd::Etcd::start(1);
        let client = Client::new(&options(&etcd, "/r").members).unwrap();
        let entry = |key: &str, expires| Entry {
            key: key.into(),
            value: Bytes::from_static(b"x"),
            revision: 1,
            created: 1,
            expires,
        };
        let later = crate::unix_now() + 1000;
        let all = [entry("/a", 1), entry("/b", 0), entry("/c", 1), entry("/d", later), entry("/e", 1)];
        write(&client, "/r/g2", &all).await.unwrap();
        let mut written = Vec::new();
        pages(&client, "/r/g2/", |kv| {
            written.push(String::from_utf8_lossy(&kv.key).into_owned());
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(written, ["/r/g2/b", "/r/g2/d"]);
        compare(&client, "/r/g2", &all).await.unwrap();
        for (at, expires) in [(0, later), (2, 0), (4, later)] {
            let mut all = all.clone();
            all[at].expires = expires;
            let error = compare(&client, "/r/g2", &all).await.unwrap_err().to_string();
            assert!(error.contains("not in etcd as it was written"), "{at}: {error}");
        }
    }
}
