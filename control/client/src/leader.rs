//! Leader election by a Lease in kube-system.
//!
//! The identity is the host's name: init runs one of each component a host, so that a
//! restarted process goes on with its own lease at once.

use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::time::Instant;

use crate::call::{Client, Failure};

const NAMESPACE: &str = "kube-system";
const LEASE: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);
/// Whoever has not renewed for this long stops working, before another may begin.
const GIVE_UP: Duration = Duration::from_secs(12);
const RETRY: Duration = Duration::from_secs(1);
const FIRST_RETRY: Duration = Duration::from_millis(200);

/// What to do about the lease that was found.
#[derive(Debug, PartialEq)]
enum Step {
    Take { transitions: i32 },
    Renew,
    Wait,
}

fn plan(lease: &LeaseSpec, identity: &str, unchanged_for: Duration) -> Step {
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    if holder == identity {
        return Step::Renew;
    }
    let length = Duration::from_secs(lease.lease_duration_seconds.unwrap_or(0).max(0) as u64);
    if holder.is_empty() || unchanged_for >= length {
        return Step::Take { transitions: lease.lease_transitions.unwrap_or(0) + 1 };
    }
    Step::Wait
}

/// The name of this host.
pub fn identity() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Returns once this process leads.
pub async fn acquire(client: &Client, name: &str, identity: &str) {
    let mut observed: Option<(Option<LeaseSpec>, Instant)> = None;
    let mut pause = FIRST_RETRY;
    loop {
        match attempt(client, name, identity, &mut observed).await {
            Ok(true) => return,
            Ok(false) => crate::notify::status("waiting: another master leads"),
            Err(failure) => tracing::debug!("lease {name}: {failure}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY);
    }
}

/// Keeps the lease; returns only when it is lost.
pub async fn keep(client: &Client, name: &str, identity: &str) -> anyhow::Result<()> {
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(RENEW).await;
        match attempt(client, name, identity, &mut None).await {
            Ok(true) => renewed = Instant::now(),
            Ok(false) => bail!("lease {NAMESPACE}/{name} was taken by another master"),
            Err(failure) if renewed.elapsed() > GIVE_UP => {
                bail!("lease {NAMESPACE}/{name} not renewed for {} s: {failure}", GIVE_UP.as_secs())
            }
            Err(failure) => tracing::warn!("renewing lease {name}: {failure}"),
        }
    }
}

async fn attempt(
    client: &Client,
    name: &str,
    identity: &str,
    observed: &mut Option<(Option<LeaseSpec>, Instant)>,
) -> Result<bool, Failure> {
    let now = MicroTime(Timestamp::now());
    let mut lease: Lease = match client.get(Some(NAMESPACE), name).await {
        Ok(lease) => lease,
        Err(failure) if failure.is_not_found() => {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(name.to_owned()),
                    namespace: Some(NAMESPACE.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(held(identity, 0, now.clone(), now)),
            };
            client.create(&lease).await?;
            return Ok(true);
        }
        Err(failure) => return Err(failure),
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let since = match observed {
        Some((known, since)) if *known == lease.spec => *since,
        _ => {
            let now = Instant::now();
            *observed = Some((lease.spec.clone(), now));
            now
        }
    };
    let acquired = spec.acquire_time.clone().unwrap_or_else(|| now.clone());
    lease.spec = Some(match plan(&spec, identity, since.elapsed()) {
        Step::Wait => return Ok(false),
        Step::Renew => held(identity, spec.lease_transitions.unwrap_or(0), acquired, now),
        Step::Take { transitions } => held(identity, transitions, now.clone(), now),
    });
    client.replace(&lease).await?;
    Ok(true)
}

fn held(identity: &str, transitions: i32, acquired: MicroTime, renewed: MicroTime) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(LEASE.as_secs() as i32),
        acquire_time: Some(acquired),
        renew_time: Some(renewed),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_taken_only_when_free_or_expired() {
        let cases = [
            ("", 0, Step::Take { transitions: 1 }),
            ("me", 0, Step::Renew),
            ("other", 14, Step::Wait),
            ("other", 15, Step::Take { transitions: 1 }),
        ];
        for (holder, unchanged, step) in cases {
            let lease = LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(15),
                ..LeaseSpec::default()
            };
            assert_eq!(plan(&lease, "me", Duration::from_secs(unchanged)), step, "{holder}");
        }
    }
}
