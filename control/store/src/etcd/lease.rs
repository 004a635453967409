//! Leases: many keys share one, as each costs etcd memory and a timer.  As upstream's API
//! server does, a lease is used again for a minute (or a twentieth of its time, if that is
//! less), and for a thousand keys at most.

use std::time::{Duration, Instant};

use super::client::{Again, CallError, Client};
use super::wire::{self, LeaseGrantRequest, LeaseGrantResponse};

const SHARED_FOR: u64 = 60;
const KEYS: usize = 1000;

#[derive(Debug, Clone, Copy)]
struct Lease {
    id: i64,
    /// Before this moment no key may go.
    ends: Instant,
    keys: usize,
}

/// Leases that further keys may join.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    /// Few different times are in use: Events, and what is asked for by tests.
    open: tokio::sync::Mutex<std::collections::HashMap<u64, Lease>>,
}

impl Leases {
    /// A lease that lasts `ttl` seconds or a little longer.
    pub(crate) async fn for_ttl(&self, client: &Client, ttl: u64) -> Result<i64, CallError> {
        let mut open = self.open.lock().await;
        let enough = Instant::now() + Duration::from_secs(ttl);
        if let Some(lease) = open.get_mut(&ttl).filter(|l| l.ends >= enough && l.keys < KEYS) {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let whole = ttl + (ttl / 20).min(SHARED_FOR);
        let ends = Instant::now() + Duration::from_secs(whole);
        let request = LeaseGrantRequest { ttl: whole as i64 };
        let answer: LeaseGrantResponse = client.call(wire::LEASE_GRANT, request, Again::Yes).await?;
        open.insert(ttl, Lease { id: answer.id, ends, keys: 1 });
        Ok(answer.id)
    }

    /// etcd does not know the lease (any more).
    pub(crate) async fn forget(&self, id: i64) {
        self.open.lock().await.retain(|_, lease| lease.id != id);
    }
}
