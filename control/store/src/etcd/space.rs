//! Room in etcd's database.
//!
//! When a write would take it beyond its quota, etcd raises an alarm and refuses every write but removals, until
//! somebody takes the alarm back. What is removed or compacted leaves gaps: the file gets smaller only when it is
//! written anew.

use std::time::{Duration, Instant};

use super::check::named;
use super::client::{Again, Client};
use super::compactor;
use super::wire::{
    self, AlarmRequest, AlarmResponse, CompactionRequest, DefragmentRequest, DefragmentResponse, Headed, RangeRequest,
    RangeResponse, StatusRequest, StatusResponse,
};
use crate::Result;

/// etcd's numbers for the alarm of a full database, and for what may be done with alarms.
const FULL: i32 = 1;
const LIST: i32 = 0;
const TAKE_BACK: i32 = 2;

/// A member may have to copy a gigabyte on a slow disk.
pub(super) const DEFRAGMENT: Duration = Duration::from_secs(300);
/// How often a server looks whether etcd is full.
const LOOK: Duration = Duration::from_secs(10);

/// Makes room whenever etcd is full, for ever.
pub(super) async fn keep(client: &Client, interval: Duration) {
    let look = LOOK.min(interval);
    let mut pause = look;
    loop {
        tokio::time::sleep(pause).await;
        pause = match in_turn(client, interval).await {
            // Where the objects alone are too many it is full again at once, and each time its members stand still.
            Ok(true) => interval,
            Ok(false) => look,
            Err(error) => {
                tracing::warn!("no room was made in etcd: {error}");
                look
            }
        };
    }
}

/// Where etcd is full, waits until there is room, and says whether this server made it.  All servers see that it is full,
/// and no two may have members stand still at the same time, while nothing can be written that they could agree by: the
/// one whose member leads makes room, any other one only where that has not come for `patience`.
pub(super) async fn in_turn(client: &Client, patience: Duration) -> Result<bool> {
    let begun = Instant::now();
    loop {
        let status: StatusResponse = client.call(wire::STATUS, StatusRequest {}, Again::Yes).await?;
        if !status.errors.iter().any(|error| error.contains("NOSPACE")) {
            return Ok(false);
        }
        let leads = status.header().is_some_and(|header| header.member_id == status.leader);
        if leads || begun.elapsed() >= patience {
            relieve(client).await?;
            return Ok(true);
        }
        tokio::time::sleep(LOOK.min(patience)).await;
    }
}

/// If etcd takes no more writes because it is full: gives up all of its history, writes its files anew, and takes the
/// alarm back.  Writes nothing itself.  Where the objects alone are too many, the next write raises the alarm again.
pub(super) async fn relieve(client: &Client) -> Result<()> {
    let alarm = |action, member_id| AlarmRequest { action, member_id, alarm: FULL };
    let raised: AlarmResponse = client.call(wire::ALARM, alarm(LIST, 0), Again::Yes).await?;
    if raised.alarms.is_empty() {
        return Ok(());
    }
    tracing::warn!("etcd's database is full: all of its history is given up to make room");
    let any = RangeRequest { key: compactor::KEY.into(), count_only: true, ..RangeRequest::default() };
    let now: RangeResponse = client.call(wire::RANGE, any, Again::Yes).await?;
    compactor::compact(client, CompactionRequest { revision: now.revision(), physical: true }).await?;
    // A member that is down keeps the others from nothing.
    if let Err(error) = defragment(client).await {
        tracing::warn!("not every member's file was written anew: {error}");
    }
    for member in raised.alarms {
        client.call::<_, AlarmResponse>(wire::ALARM, alarm(TAKE_BACK, member.member_id), Again::Yes).await?;
    }
    tracing::warn!("etcd's database has room again");
    Ok(())
}

/// Has each member write its file anew, without what was compacted; a member serves nothing
/// meanwhile, so that one follows the other.
pub(super) async fn defragment(client: &Client) -> Result<()> {
    let (client, mut failed) = (client.of_all_members().await, None);
    for (place, endpoint) in client.endpoints().enumerate() {
        let request = DefragmentRequest {};
        let done = client.call_member::<_, DefragmentResponse>(place, wire::DEFRAGMENT, request, DEFRAGMENT).await;
        if let Err(error) = done {
            failed.get_or_insert(named(endpoint, error));
        }
    }
    failed.map_or(Ok(()), Err)
}
