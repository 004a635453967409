//! The endpoints of the Service `kubernetes`: the API servers that live.
//!
//! The embedded store has one server, which names itself. Servers that share etcd each keep a key there that goes by
//! itself where it is not renewed, and the endpoints are the servers whose key is there, as with the `lease` endpoint
//! reconciler of upstream's server. The keys stand beside the objects and are no Leases among them: etcd ends them by
//! its own clock, also those of a server that never comes back, and nobody who may write Leases in `kube-system` says
//! where the cluster's requests go.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use store::{Changes, Expect, Stamped, StoreError};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::bootstrap::{KEEP, ensure};
use crate::error::Result;
use crate::registry::store_error;
use crate::state::AppState;

/// The servers' keys, by address; the value is the port.
const KEYS: &str = "/kimg/masters/";
/// Seconds that a key lives: upstream's `DefaultEndpointReconcilerTTL`.
const LIFE: u64 = 15;
/// How often it is renewed: one round that fails must not end it.
const RENEW: Duration = Duration::from_secs(5);
/// A round that failed is followed by another after this.
const AGAIN: Duration = Duration::from_secs(1);
/// Tries of one write that others are faster with.
const TRIES: usize = 16;

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// Address and port of each server.
type Servers = BTreeMap<IpAddr, u16>;

/// The address that other nodes reach this server at; None: it was told none.
pub fn own_address(state: &AppState) -> Option<IpAddr> {
    let config = &state.config;
    Some(config.advertise_address.unwrap_or(config.bind_address)).filter(|own| !own.is_unspecified())
}

fn is_shared(state: &AppState) -> bool {
    !state.config.etcd.etcd_servers.is_empty()
}

/// Names this server before it serves, where there is no other one.
pub async fn begin(state: &Arc<AppState>) -> anyhow::Result<()> {
    match own_address(state) {
        Some(own) if !is_shared(state) => {
            put_right(state, Some(own)).await.map(drop).context("writing the endpoints of the Service kubernetes")
        }
        _ => Ok(()),
    }
}

/// Keeps the endpoints right until `leaving` turns true; then takes this server out.
pub async fn keep(state: Arc<AppState>, mut leaving: watch::Receiver<bool>) {
    let Some(own) = own_address(&state) else { return };
    let (shared, store) = (is_shared(&state), state.registry.store().clone());
    let mut servers = Servers::new();
    let mut changes: Option<Changes> = None;
    let mut renewed: Option<Instant> = None;
    loop {
        if shared && changes.is_none() {
            // From before the look at the keys: what changes meanwhile is looked at again.
            changes = store.watch(KEYS, store.revision()).ok();
        }
        let round = async {
            if shared && renewed.is_none_or(|at| at.elapsed() >= RENEW) {
                let begun = Instant::now();
                renew(&state, own).await?;
                renewed = Some(begun);
            }
            put_right(&state, Some(own)).await
        };
        let done = tokio::select! {
            done = round => done,
            _ = leaving.wait_for(|leaving| *leaving) => break,
        };
        let failed = done.is_err();
        match done {
            Ok(found) => servers = found,
            Err(error) => tracing::warn!("keeping the endpoints of the Service kubernetes: {error:#}"),
        }
        let pause = if shared { pause(failed, renewed.map(|at| at.elapsed())) } else { KEEP };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = another(&mut changes, &servers) => {}
            _ = leaving.wait_for(|leaving| *leaving) => break,
        }
    }
    if shared && let Err(error) = leave(&state, own).await {
        tracing::warn!("taking this server out of the endpoints of the Service kubernetes: {error:#}");
    }
}

/// From a round to the next one, where the key was renewed so long ago: a round that another server brought about comes
/// between two renewals, and puts the second one off by nothing.
fn pause(failed: bool, since_renewed: Option<Duration>) -> Duration {
    if failed { AGAIN } else { RENEW.saturating_sub(since_renewed.unwrap_or_default()) }
}

/// Waits until a server comes or goes, which a renewed key does not mean.
async fn another(changes: &mut Option<Changes>, servers: &Servers) {
    loop {
        let Some(from) = changes else { return std::future::pending().await };
        match from.recv().await {
            Some(change) => {
                let known = address(&change.key).is_some_and(|of| servers.contains_key(&of));
                if known != change.value.is_some() {
                    return;
                }
            }
            // The next round begins a new one.
            None => *changes = None,
        }
    }
}

fn address(key: &str) -> Option<IpAddr> {
    key.strip_prefix(KEYS)?.parse().ok()
}

/// Says in the store that this server lives.
async fn renew(state: &AppState, own: IpAddr) -> Result<()> {
    let value = Stamped::plain(state.config.secure_port.to_string());
    let key = format!("{KEYS}{own}");
    state.registry.store().put(&key, value, Expect::Any, Some(LIFE)).await.map(drop).map_err(store_error)
}

async fn leave(state: &AppState, own: IpAddr) -> Result<()> {
    match state.registry.store().delete(&format!("{KEYS}{own}"), Expect::Any).await {
        Ok(_) | Err(StoreError::Mismatch) => {}
        Err(error) => return Err(store_error(error)),
    }
    put_right(state, None).await.map(drop)
}

/// The servers that live; `own` does, whatever the store says.
async fn living(state: &AppState, own: Option<IpAddr>) -> Result<Servers> {
    let mut servers = Servers::new();
    if is_shared(state) {
        let (keys, _) = state.registry.store().range(KEYS, "", 0).await.map_err(store_error)?;
        let port = |value: &[u8]| std::str::from_utf8(value).ok()?.parse().ok();
        servers.extend(keys.iter().filter_map(|entry| Some((address(&entry.key)?, port(&entry.value)?))));
    }
    servers.extend(own.map(|own| (own, state.config.secure_port)));
    Ok(servers)
}

/// Writes the endpoints of the servers that live; nothing where there are none, as upstream's server refuses it, too:
/// whoever reads an empty list finds none again. Gives the servers.
async fn put_right(state: &AppState, own: Option<IpAddr>) -> Result<Servers> {
    put_one_right(state, own, ("", "endpoints"), &["subsets"], endpoints).await?;
    put_one_right(state, own, ("discovery.k8s.io", "endpointslices"), &["endpoints", "ports"], slice).await
}

async fn put_one_right(
    state: &AppState,
    own: Option<IpAddr>,
    (group, resource): (&str, &str),
    fields: &[&str],
    wanted: fn(&Servers) -> Value,
) -> Result<Servers> {
    let mut tries = 0;
    loop {
        // Before the servers: whoever comes or goes after that look has written something else by now.
        let there = state.registry.get(group, resource, NAMESPACE, NAME);
        let servers = living(state, own).await?;
        if servers.is_empty() {
            return Ok(servers);
        }
        let wanted = wanted(&servers);
        let Some(there) = there else {
            ensure(state, group, resource, wanted).await?;
            continue;
        };
        let (before, mut after) = (there.value(), there.value());
        for field in fields {
            after[*field] = wanted[*field].clone();
        }
        for (key, value) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
            after["metadata"]["labels"][key] = value.clone();
        }
        if after == before {
            return Ok(servers);
        }
        tries += 1;
        match state.registry.update(group, resource, &after, there.revision).await {
            Ok(_) => return Ok(servers),
            Err(error) if error.reason == "Conflict" && tries < TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

/// The addresses of one family, as a list has one; and the port, which is the same on all servers.
fn of_one_family(servers: &Servers) -> (Vec<&IpAddr>, u16) {
    let Some((first, port)) = servers.first_key_value() else { return (Vec::new(), 0) };
    (servers.keys().filter(|server| server.is_ipv4() == first.is_ipv4()).collect(), *port)
}

fn endpoints(servers: &Servers) -> Value {
    let (addresses, port) = of_one_family(servers);
    let addresses: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    json!({
        "kind": "Endpoints", "apiVersion": "v1",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": addresses, "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
    })
}

fn slice(servers: &Servers) -> Value {
    let (addresses, port) = of_one_family(servers);
    let family = if addresses.first().is_some_and(|ip| ip.is_ipv4()) { "IPv4" } else { "IPv6" };
    let one = |ip: &&IpAddr| json!({"addresses": [ip], "conditions": {"ready": true}});
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": family,
        "endpoints": addresses.iter().map(one).collect::<Vec<_>>(),
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_renewed_in_time_whatever_comes_between() {
        let seconds = Duration::from_secs;
        assert_eq!(pause(false, Some(seconds(0))), RENEW);
        assert_eq!(pause(false, Some(seconds(4))), seconds(1));
        assert_eq!(pause(false, Some(seconds(6))), seconds(0));
        assert_eq!(pause(true, Some(seconds(6))), AGAIN);
        assert_eq!(pause(true, None), AGAIN);
    }
}
