//! UDP flows have no end: those that still lead to an endpoint that is gone are forgotten,
//! so that the next datagram chooses anew. (TCP notices by itself.)

use crate::model::Ports;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const UDP: u8 = 17;

/// Forgets the UDP flows to what `new` no longer has.
pub(crate) fn forget_stale(old: &Ports, new: &Ports) {
    let stale = stale(old, new);
    if stale.is_empty() {
        return;
    }
    let gone = |flow: &node_sys::conntrack::Flow| {
        flow.protocol == UDP && stale.contains(&(flow.original_destination, flow.reply_source))
    };
    if let Err(error) = node_sys::conntrack::delete_where(gone) {
        tracing::warn!("cannot forget stale UDP flows: {error}");
    }
}

/// Pairs of service address and endpoint address whose flows are stale. An address
/// that had no endpoint before is paired with itself: such flows were never translated.
fn stale(old: &Ports, new: &Ports) -> BTreeSet<(Ipv4Addr, Ipv4Addr)> {
    let mut out = BTreeSet::new();
    for (key, before) in old.iter().filter(|(_, p)| p.protocol == UDP) {
        let now: BTreeSet<Ipv4Addr> = new.get(key).iter().flat_map(|p| p.endpoints.iter()).map(|e| e.ip).collect();
        for gone in before.endpoints.iter().filter(|e| !now.contains(&e.ip)) {
            out.insert((before.cluster_ip, gone.ip));
            out.extend(before.external_ips.iter().map(|ip| (*ip, gone.ip)));
        }
        if before.endpoints.is_empty() && !now.is_empty() {
            out.insert((before.cluster_ip, before.cluster_ip));
        }
    }
    out
}
