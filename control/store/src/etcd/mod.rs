//! The etcd engine: the same trait on real etcd 3.5, by gRPC over mutual TLS.
//!
//! All API servers of a cluster write to one etcd.  Each keeps the live set in memory, as
//! the embedded engine does, fed by one watch ([`mirror`]); a write is a transaction on
//! condition of the key's `mod_revision`, and is answered when the watch has shown it.
//! Reads are linearizable: etcd is asked how far it is, once for all readers that wait, and
//! the answer is given from memory when memory is as far.

mod check;
mod client;
mod compactor;
mod lease;
mod members;
mod mirror;
mod picture;
mod root;
mod space;
mod value;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::state::Keep;
use crate::{Changes, Counters, Entry, Expect, Format, Observer, Result, Stamped, Store, StoreError};
use client::{Again, CallError, Client};
use lease::Leases;
use mirror::Mirror;
use root::{Layout, Root};
use wire::{
    CompactionRequest, Compare, DeleteRangeRequest, Headed, PutRequest, RangeRequest, RangeResponse, Request,
    TxnRequest, TxnResponse,
};

pub use check::{EtcdReport, check_etcd};
pub use client::Members;
pub use members::{EtcdData, Member, MemberStatus, Membership, Sight, data_of, look};
pub use picture::{EtcdHolds, etcd_holds, read_etcd, retire_etcd, write_etcd};

/// Settings of the engine.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    pub members: Members,
    /// What the keys of this cluster begin with.
    pub prefix: String,
    /// Changes kept in memory for watches, and the bytes of their keys and values.
    pub history: usize,
    pub history_bytes: u64,
    /// How often etcd's history is compacted; zero: never by this server.
    pub compaction_interval: Duration,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        EtcdOptions {
            members: Members::default(),
            prefix: "/registry".into(),
            history: 4096,
            history_bytes: 4 << 20,
            compaction_interval: Duration::from_secs(300),
        }
    }
}

struct Inner {
    mirror: Mirror,
    leases: Leases,
    closed: AtomicBool,
}

/// The engine; dropping it ends its tasks.
pub struct Etcd {
    inner: Arc<Inner>,
    /// Readers that wait to hear how far etcd is.
    readers: mpsc::UnboundedSender<oneshot::Sender<Result<u64, String>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Etcd")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Etcd {
    /// Connects, loads everything, and follows it from then on; needs a tokio runtime, now
    /// and while it lives.
    pub async fn open(options: EtcdOptions) -> Result<Etcd> {
        let client = Arc::new(Client::new(&options.members)?);
        let layout = Layout::new(&options.prefix)?;
        let found = root::open(&client, &layout).await?;
        if let Some(to) = &found.root.moved {
            return Err(StoreError::Moved { to: to.clone() });
        }
        if !options.compaction_interval.is_zero()
            && let Err(error) = space::in_turn(&client, options.compaction_interval).await
        {
            // Much can be done without writing; the task below tries again.
            tracing::warn!("no room was made in etcd: {error}");
        }
        let keep = Keep { changes: options.history, bytes: options.history_bytes };
        let (mirror, picture) = Mirror::load(client, layout, found, keep).await?;
        let inner = Arc::new(Inner { mirror, leases: Leases::default(), closed: AtomicBool::new(false) });
        let (readers, waiting) = mpsc::unbounded_channel();
        let mut tasks = vec![
            tokio::spawn({
                let inner = inner.clone();
                async move { inner.mirror.follow().await }
            }),
            tokio::spawn(answer_readers(inner.clone(), waiting)),
        ];
        if !options.compaction_interval.is_zero() {
            let inner = inner.clone();
            let race = compactor::Compactor::default();
            tasks.push(tokio::spawn(async move {
                let (client, interval) = (&inner.mirror.client, options.compaction_interval);
                tokio::join!(space::keep(client, interval), race.run(client, interval));
            }));
        }
        let store = Etcd { inner, readers, tasks };
        store.inner.mirror.reach(picture).await?;
        store.inner.mirror.history_is_whole();
        Ok(store)
    }
}

/// Asks etcd how far it is, once for all who wait, and answers them when memory is as far.
async fn answer_readers(inner: Arc<Inner>, mut waiting: mpsc::UnboundedReceiver<oneshot::Sender<Result<u64, String>>>) {
    while let Some(first) = waiting.recv().await {
        let mut readers = vec![first];
        while let Ok(next) = waiting.try_recv() {
            readers.push(next);
        }
        let asked = inner.ask_revision().await;
        let inner = inner.clone();
        // Waiting for the watch must not hold up the next question.
        tokio::spawn(async move {
            let answer = match asked {
                Ok(revision) => inner.mirror.reach(revision).await.map(|()| inner.mirror.outer(revision)),
                Err(error) => Err(error),
            };
            let answer = answer.map_err(|error| match error {
                // Who gets it says the rest of the sentence.
                StoreError::Unavailable(what) => what,
                other => other.to_string(),
            });
            for reader in readers {
                // A reader that went away needs no answer.
                drop(reader.send(answer.clone()));
            }
        });
    }
}

impl Inner {
    /// etcd's revision, agreed on by a majority.
    async fn ask_revision(&self) -> Result<i64> {
        let mirror = &self.mirror;
        let seen = mirror.seen();
        let request = RangeRequest { key: mirror.layout.root(), count_only: true, ..RangeRequest::default() };
        let answer: RangeResponse = mirror.client.call(wire::RANGE, request, Again::Yes).await?;
        if answer.header().is_some_and(|h| h.cluster_id != mirror.found.cluster) || answer.revision() < seen {
            let what = "etcd was replaced by another one, or restored from its own snapshot; start the server anew";
            mirror.shared.fail(what);
            return Err(StoreError::Failed(what.into()));
        }
        Ok(answer.revision())
    }

    /// Does `change` if `key` is as expected; gives the answer, and what it wrote at.
    async fn transact(&self, key: &str, expect: Expect, change: Request) -> Result<TxnResponse> {
        let mirror = &self.mirror;
        if let Some(what) = mirror.shared.failure() {
            return Err(StoreError::Failed(what));
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Failed("the store was closed".into()));
        }
        let size = if let Request::Put(put) = &change { put.value.len() } else { 0 };
        let inner_key = mirror.key(key);
        let mut compare = vec![Compare::written_at(mirror.layout.root(), mirror.found.written)];
        match expect {
            Expect::Any => {}
            Expect::Absent => compare.push(Compare::written_at(inner_key.clone(), 0)),
            Expect::At(revision) => match mirror.written(key, revision) {
                Some(revision) => compare.push(Compare::written_at(inner_key.clone(), revision)),
                None => return Err(StoreError::Mismatch),
            },
        }
        let root = RangeRequest { key: mirror.layout.root(), keys_only: true, ..RangeRequest::default() };
        let request = TxnRequest { compare, success: vec![change.into()], failure: vec![Request::Range(root).into()] };
        let answer: TxnResponse =
            mirror.client.call(wire::TXN, request, Again::No).await.map_err(|error| match error {
                CallError::Unavailable(what) => StoreError::Unavailable(format!(
                    "{what}; the write may have been done: look before it is done again"
                )),
                error => refused(key, size, error),
            })?;
        if answer.succeeded {
            return Ok(answer);
        }
        if answer.found(0).map(|kv| kv.mod_revision) != Some(mirror.found.written) {
            let error = mirror::replaced();
            mirror.shared.fail(&error.to_string());
            return Err(error);
        }
        // Whoever tries again must see why.
        mirror.reach(answer.revision()).await?;
        Err(StoreError::Mismatch)
    }

    async fn put(&self, key: &str, value: Stamped, expect: Expect, ttl_seconds: Option<u64>) -> Result<u64> {
        let size = value.bytes.len();
        if size > crate::MAX_VALUE {
            return Err(StoreError::TooLarge { size });
        }
        let mirror = &self.mirror;
        let expires = ttl_seconds.map_or(0, |ttl| crate::unix_now() + ttl);
        let bytes = value::encode(&value, expires);
        for last in [false, true] {
            let lease = match ttl_seconds {
                Some(ttl) => {
                    self.leases.for_ttl(&mirror.client, ttl).await.map_err(|error| refused(key, size, error))?
                }
                None => 0,
            };
            let change = PutRequest { key: mirror.key(key), value: bytes.clone(), lease };
            match self.transact(key, expect, Request::Put(change)).await {
                Ok(answer) => {
                    mirror.reach(answer.revision()).await.map_err(written)?;
                    return Ok(mirror.outer(answer.revision()));
                }
                Err(StoreError::Failed(what)) if what.contains("requested lease not found") && !last => {
                    self.leases.forget(lease).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Unavailable("its leases end as they are made".into()))
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<u64> {
        let change = DeleteRangeRequest { key: self.mirror.key(key), range_end: Bytes::new() };
        let answer = self.transact(key, expect, Request::Delete(change)).await?;
        self.mirror.reach(answer.revision()).await.map_err(written)?;
        let deleted = answer.responses.first().and_then(|r| r.response.as_ref());
        match deleted {
            Some(wire::Response::Delete(d)) if d.deleted > 0 => Ok(self.mirror.outer(answer.revision())),
            _ => Err(StoreError::Mismatch),
        }
    }
}

/// What is said of a write that was done, when the server does not come to see it.
fn written(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(what) => StoreError::Unavailable(format!("the write was done, but {what}")),
        other => other,
    }
}

/// etcd's "no" to one write is no failure of the store.
fn refused(key: &str, size: usize, error: CallError) -> StoreError {
    match error {
        error if error.is_too_large() => StoreError::TooLargeForEtcd { key: key.into(), size },
        CallError::Refused { message, .. } if message.contains("database space exceeded") => StoreError::Unavailable(
            "its database is full (--quota-backend-bytes); the servers make room, unless the objects alone fill it"
                .into(),
        ),
        other => other.into(),
    }
}

impl Store for Etcd {
    fn revision(&self) -> u64 {
        self.inner.mirror.shared.read().revision
    }

    fn fresh(&self) -> BoxFuture<'_, Result<u64>> {
        let (reply, answer) = oneshot::channel();
        let sent = self.readers.send(reply).is_ok();
        async move {
            if !sent {
                return Err(StoreError::Failed("the store was closed".into()));
            }
            match answer.await {
                Ok(Ok(revision)) => Ok(revision),
                Ok(Err(what)) => Err(self.failure().map_or(StoreError::Unavailable(what), StoreError::Failed)),
                Err(_) => Err(StoreError::Failed("the store was closed".into())),
            }
        }
        .boxed()
    }

    fn compacted(&self) -> u64 {
        self.inner.mirror.shared.read().compacted
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>>> {
        async move {
            self.fresh().await?;
            Ok(self.inner.mirror.shared.read().live.get(key).cloned())
        }
        .boxed()
    }

    fn range<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<(Vec<Entry>, u64)>> {
        async move {
            self.fresh().await?;
            Ok(self.inner.mirror.shared.read().range(prefix, after, limit))
        }
        .boxed()
    }

    fn put<'a>(
        &'a self,
        key: &'a str,
        value: Stamped,
        expect: Expect,
        ttl_seconds: Option<u64>,
    ) -> BoxFuture<'a, Result<u64>> {
        self.inner.put(key, value, expect, ttl_seconds).boxed()
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Expect) -> BoxFuture<'a, Result<u64>> {
        self.inner.delete(key, expect).boxed()
    }

    fn watch(&self, prefix: &str, after: u64) -> Result<Changes> {
        self.inner.mirror.shared.watch(prefix, after)
    }

    fn attach(&self, prefix: &str, observer: Arc<dyn Observer>) {
        self.inner.mirror.shared.attach(prefix, observer);
    }

    fn compact(&self, revision: u64) -> BoxFuture<'_, Result<()>> {
        let mirror = &self.inner.mirror;
        async move {
            self.fresh().await?;
            mirror.shared.compact(revision);
            match mirror.inner(revision.min(self.revision())) {
                Some(revision) if revision > 0 => {
                    let request = CompactionRequest { revision, physical: true };
                    Ok(compactor::compact(&mirror.client, request).await?)
                }
                // Of a time before the last restore: nothing of it is kept.
                _ => Ok(()),
            }
        }
        .boxed()
    }

    fn snapshot<'a>(&'a self, to: PathBuf) -> BoxFuture<'a, Result<u64>> {
        async move {
            self.fresh().await?;
            let (entries, revision) = self.inner.mirror.shared.read().range("", "", 0);
            let write = move || crate::write_picture_file(&to, &entries, revision);
            let written = tokio::task::spawn_blocking(write);
            written.await.unwrap_or_else(|e| Err(StoreError::Failed(e.to_string())))
        }
        .boxed()
    }

    fn scrub<'a>(&'a self) -> BoxFuture<'a, Result<()>> {
        async move {
            // What etcd has compacted, its own defragmentation takes out of its database.
            let revision = self.fresh().await?;
            self.compact(revision).await?;
            space::defragment(&self.inner.mirror.client).await
        }
        .boxed()
    }

    fn format(&self) -> Format {
        Format { has: self.inner.mirror.found.root.format, newest: *root::FORMATS.end() }
    }

    /// All servers see the other root key then, and open the store anew.
    fn raise<'a>(&'a self) -> BoxFuture<'a, Result<()>> {
        async move {
            let Mirror { client, layout, found, .. } = &self.inner.mirror;
            let Format { has, newest } = self.format();
            if has < newest {
                root::replace(client, layout, found.written, &Root { format: newest, ..found.root.clone() }).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn counters(&self) -> Option<Counters> {
        None
    }

    fn failure(&self) -> Option<String> {
        self.inner.mirror.shared.failure()
    }

    fn trouble(&self) -> Option<String> {
        self.failure().or_else(|| self.inner.mirror.trouble())
    }

    fn live_bytes(&self) -> u64 {
        self.inner.mirror.shared.read().live_bytes
    }

    fn close(&self) {
        // Nothing waits to be written: a write is answered by etcd or not at all.
        self.inner.closed.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod chaos_tests;
#[cfg(test)]
mod tests;
