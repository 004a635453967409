//! Compaction of etcd's history, by one API server at a time.
//!
//! As upstream's: all servers race to write a key on condition of its version.  Who wins
//! compacts to the revision that it saw one interval ago; who loses takes over version and
//! revision for the next race.

use std::time::{Duration, Instant};

use super::client::{Again, CallError, Client};
use super::space;
use super::wire::{
    self, CompactionRequest, CompactionResponse, Compare, Headed, PutRequest, RangeRequest, Request, TxnRequest,
    TxnResponse,
};

/// Compaction is of all of etcd, so the key stands beside every prefix; upstream's servers
/// use the same.
pub(super) const KEY: &[u8] = b"compact_rev_key";

/// What one server knows of the race.
#[derive(Debug, Default)]
pub(crate) struct Compactor {
    version: i64,
    revision: i64,
}

impl Compactor {
    /// Compacts each `interval`, for ever.
    pub(crate) async fn run(mut self, client: &Client, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            match self.round(client).await {
                Ok(Some(revision)) => tracing::debug!(revision, "etcd's history was compacted"),
                Ok(None) => {}
                Err(error) => tracing::warn!("etcd's history was not compacted: {error}"),
            }
        }
    }

    /// One race; gives the revision that this server compacted to.
    pub(crate) async fn round(&mut self, client: &Client) -> Result<Option<i64>, CallError> {
        let put = PutRequest { key: KEY.into(), value: self.revision.to_string().into(), lease: 0 };
        let get = RangeRequest { key: KEY.into(), ..RangeRequest::default() };
        let request = TxnRequest {
            compare: vec![Compare::version(KEY.into(), self.version)],
            success: vec![Request::Put(put).into()],
            failure: vec![Request::Range(get).into()],
        };
        let answer: TxnResponse = client.call(wire::TXN, request, Again::No).await?;
        let wanted = self.revision;
        self.revision = answer.revision();
        if !answer.succeeded {
            self.version = answer.found(0).map_or(0, |kv| kv.version);
            return Ok(None);
        }
        self.version += 1;
        if wanted == 0 {
            // Nothing is known of an interval ago.
            return Ok(None);
        }
        compact(client, CompactionRequest { revision: wanted, physical: false }).await?;
        Ok(Some(wanted))
    }
}

/// Compacts; what was compacted already is fine.
pub(crate) async fn compact(client: &Client, request: CompactionRequest) -> Result<(), CallError> {
    let begun = Instant::now();
    loop {
        return match client.call::<_, CompactionResponse>(wire::COMPACT, request.clone(), Again::Yes).await {
            Ok(_) => Ok(()),
            Err(CallError::Refused { message, .. }) if message.contains("has been compacted") => Ok(()),
            // A member answers this kind when all that it removes is gone, which may take long.
            Err(CallError::Unavailable(_)) if request.physical && begun.elapsed() < space::DEFRAGMENT => continue,
            Err(error) => Err(error),
        };
    }
}
