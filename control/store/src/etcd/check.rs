//! Whether etcd's members hold the same, and whether all of it can be read.

use std::time::Duration;

use super::EtcdOptions;
use super::client::{CallError, Client, WHOLE};
use super::mirror::pages;
use super::picture::entry;
use super::root::{self, Layout};
use super::wire::{self, HashKvRequest, HashKvResponse, Headed, StatusRequest, StatusResponse};
use crate::{Result, StoreError};

/// A member that is behind gets this many tenths of a second.
const CATCH_UP: usize = 50;

/// What [`check_etcd`] found.
#[derive(Debug)]
pub struct EtcdReport {
    pub keys: usize,
    pub revision: u64,
    pub live_bytes: u64,
    /// One line a member.
    pub members: Vec<String>,
}

/// Reads every object through, and compares the hashes of all members; changes nothing.
pub async fn check_etcd(options: &EtcdOptions) -> Result<EtcdReport> {
    let (client, layout) = (Client::new(&options.members)?, Layout::new(&options.prefix)?);
    let found = root::read(&client, &layout).await?;
    let found =
        found.ok_or_else(|| StoreError::Settings("there is no store in this etcd; look at --etcd-prefix".into()))?;
    let objects = layout.objects(found.root.generation);
    let (mut keys, mut live_bytes) = (0, 0);
    let revision = pages(&client, &format!("{objects}/"), |kv| {
        let entry = entry(kv, &objects, found.root.base)?;
        keys += 1;
        live_bytes += (entry.key.len() + entry.value.len()) as u64;
        Ok(())
    })
    .await?;
    let members = compare_members(&client.of_all_members().await, revision).await?;
    Ok(EtcdReport { keys, revision: found.root.base + revision.max(0) as u64, live_bytes, members })
}

async fn compare_members(client: &Client, revision: i64) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut seen: Vec<(String, HashKvResponse)> = Vec::new();
    for (place, endpoint) in client.endpoints().enumerate() {
        let status: StatusResponse =
            client.call_member(place, wire::STATUS, StatusRequest {}, WHOLE).await.map_err(|e| named(endpoint, e))?;
        if let Some(alarm) = status.errors.first() {
            return Err(StoreError::Differs(format!("etcd member {endpoint} reports: {alarm}")));
        }
        let hash = hash(client, place, revision).await.map_err(|e| named(endpoint, e))?;
        // Hashes of different compactions cannot be compared.
        if let Some((other, theirs)) =
            seen.iter().find(|(_, h)| h.compact_revision == hash.compact_revision && h.hash != hash.hash)
        {
            return Err(StoreError::Differs(format!(
                "etcd members {other} and {endpoint} hold different data at revision {revision} (hashes {:08x} and {:08x}); \
                 replace one of them by a fresh member",
                theirs.hash, hash.hash
            )));
        }
        let leads = status.header().is_some_and(|h| h.member_id == status.leader);
        lines.push(format!(
            "{endpoint}: etcd {}, {} bytes, hash {:08x}{}",
            status.version,
            status.db_size,
            hash.hash,
            if leads { ", leader" } else { "" }
        ));
        seen.push((endpoint.to_string(), hash));
    }
    Ok(lines)
}

pub(super) fn named(endpoint: &str, error: CallError) -> StoreError {
    StoreError::Unavailable(format!("member {endpoint}: {error}"))
}

async fn hash(client: &Client, place: usize, revision: i64) -> Result<HashKvResponse, CallError> {
    for _ in 0..CATCH_UP {
        match client.call_member(place, wire::HASH_KV, HashKvRequest { revision }, WHOLE).await {
            Err(CallError::Unavailable(why)) if why.contains("future revision") => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => return other,
        }
    }
    Err(CallError::Unavailable(format!("it does not come to revision {revision}")))
}
