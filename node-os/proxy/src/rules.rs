//! The nftables rules of Service ports, as the smallest transaction from one state to the next. Pure.
//!
//! ```text
//! prerouting, output (nat) ─► services ── service-ips: address . protocol . port ─► svc-HASH
//!                                      └─ nodeports:   protocol . port          ─► ext-HASH
//! svc-HASH: [mark for masquerade] dnat to one of its endpoints
//! ext-HASH: mark for masquerade, dnat (or local endpoints only, source kept)
//! forward, output, input (filter) ─► no-endpoints, no-endpoint-nodeports ─► reject
//! postrouting (nat): marked or hairpin ─► masquerade
//! ```

use crate::model::{Endpoint, Port, Ports};
use node_sys::nft::{
    Batch, CmpOp, Elem, Expr, Family, Hook, HookPoint, MapData, MetaKey, Reg, Set, Verdict, mark_and, pad4, set_flags,
    types,
};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;

/// Name of the table.
pub(crate) const TABLE: &str = "kube-proxy";
/// Mark bit of packets to masquerade, the one that upstream's kube-proxy uses.
const MASQUERADE_BIT: u32 = 0x4000;

const SERVICE_IPS: &str = "service-ips";
const NODEPORTS: &str = "nodeports";
const NO_ENDPOINTS: &str = "no-endpoints";
const NO_ENDPOINT_NODEPORTS: &str = "no-endpoint-nodeports";
const HAIRPIN: &str = "hairpin";

/// Settings that all rules share.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Sources inside need no masquerade.
    pub(crate) pod_cidr: (Ipv4Addr, u8),
}

/// One transaction from `old` to `new`; `fresh` starts the table from nothing (then `old` must be empty).
pub(crate) fn transaction(old: &Ports, new: &Ports, settings: &Settings, fresh: bool) -> Batch {
    let mut batch = Batch::new(Family::Inet, TABLE);
    if fresh {
        base(&mut batch);
    }
    let changed = |key: &&String| old.get(*key) != new.get(*key);
    let gone: Vec<&String> = old.keys().filter(changed).collect();
    let come: Vec<&String> = new.keys().filter(changed).collect();

    // Chains must exist before elements lead to them, and be unreferenced before they go.
    for key in &come {
        chains(&mut batch, key, old.get(*key), &new[*key], settings);
    }
    let before = elements(old, &gone);
    let after = elements(new, &come);
    for (set, wanted) in &after {
        let had = before.get(set);
        // A key whose data changes must be removed first.
        let stale = had.iter().flat_map(|m| m.iter()).filter(|(k, v)| wanted.get(*k) != Some(v));
        remove(&mut batch, set, stale);
        let missing = wanted.iter().filter(|(k, v)| had.is_none_or(|m| m.get(*k) != Some(v)));
        let elems: Vec<Elem> = missing.map(|(k, v)| elem(k, v)).collect();
        batch.add_elements(set, 0, &elems);
    }
    for (set, had) in before.iter().filter(|(set, _)| !after.contains_key(*set)) {
        remove(&mut batch, set, had.iter());
    }
    for key in gone {
        drop_chains(&mut batch, key, &old[key], new.get(key));
    }
    batch
}

fn remove<'a>(batch: &mut Batch, set: &str, keys: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Verdict>)>) {
    let elems: Vec<Elem> = keys.map(|(k, _)| Elem::key(k.clone())).collect();
    batch.delete_elements(set, &elems);
}

fn elem(key: &[u8], verdict: &Option<Verdict>) -> Elem {
    match verdict {
        Some(v) => Elem::verdict(key, v.clone()),
        None => Elem::key(key),
    }
}

fn base(batch: &mut Batch) {
    batch.replace_table();
    let ip_key = types::concat3(types::IPV4, types::PROTO, types::PORT);
    let port_key = types::concat2(types::PROTO, types::PORT);
    for (name, key_type, key_len) in [
        (SERVICE_IPS, ip_key, 12),
        (NO_ENDPOINTS, ip_key, 12),
        (NODEPORTS, port_key, 8),
        (NO_ENDPOINT_NODEPORTS, port_key, 8),
    ] {
        batch.add_set(&Set { name, id: 0, flags: 0, key_type, key_len, data: MapData::Verdict, timeout_ms: None });
    }
    let pair = types::concat2(types::IPV4, types::IPV4);
    batch.add_set(&Set {
        name: HAIRPIN,
        id: 0,
        flags: 0,
        key_type: pair,
        key_len: 8,
        data: MapData::None,
        timeout_ms: None,
    });

    batch.add_chain("services", None);
    batch.add_rule("services", &lookup_service(SERVICE_IPS));
    batch.add_rule("services", &lookup_nodeport(NODEPORTS));
    batch.add_chain("reject", None);
    batch.add_rule("reject", &[Expr::RejectPort]);
    batch.add_chain("no-endpoints-check", None);
    batch.add_rule("no-endpoints-check", &lookup_service(NO_ENDPOINTS));
    batch.add_rule("no-endpoints-check", &lookup_nodeport(NO_ENDPOINT_NODEPORTS));

    for (name, point) in [("nat-prerouting", HookPoint::Prerouting), ("nat-output", HookPoint::Output)] {
        hook(batch, name, "nat", point, -100);
        batch.add_rule(name, &[Expr::Verdict(Verdict::Jump("services".into()))]);
    }
    for (name, point) in [
        ("filter-input", HookPoint::Input),
        ("filter-forward", HookPoint::Forward),
        ("filter-output", HookPoint::Output),
    ] {
        // Before the host firewall, so that a refusal is heard instead of a drop.
        hook(batch, name, "filter", point, -110);
        const NEW: u32 = 8;
        let mut rule = Expr::ct_state(NEW).to_vec();
        rule.push(Expr::Verdict(Verdict::Jump("no-endpoints-check".into())));
        batch.add_rule(name, &rule);
    }
    hook(batch, "nat-postrouting", "nat", HookPoint::Postrouting, 100);
    let mut marked = mark_and(MASQUERADE_BIT).to_vec();
    marked.push(Expr::Masquerade);
    batch.add_rule("nat-postrouting", &marked);
    let mut hairpin = Expr::ct_dnat().to_vec();
    hairpin.extend(Expr::nfproto(2));
    hairpin.extend([
        Expr::load_saddr4(Reg(0)),
        Expr::load_daddr4(Reg(1)),
        Expr::Lookup { set: HAIRPIN.into(), id: 0, key: Reg(0), invert: false },
        Expr::Masquerade,
    ]);
    batch.add_rule("nat-postrouting", &hairpin);
}

fn hook(batch: &mut Batch, name: &str, kind: &'static str, point: HookPoint, priority: i32) {
    batch.add_chain(name, Some(Hook { kind, point, priority, drop_by_default: false }));
}

fn lookup_service(set: &str) -> Vec<Expr> {
    let mut rule = Expr::nfproto(2).to_vec();
    rule.extend([
        Expr::load_daddr4(Reg(0)),
        Expr::Meta(MetaKey::L4Proto, Reg(1)),
        Expr::load_dport(Reg(2)),
        Expr::Vmap { set: set.into(), id: 0, key: Reg(0) },
    ]);
    rule
}

/// Node ports answer on the node's own addresses, but not on loopback (as upstream's nftables mode).
fn lookup_nodeport(set: &str) -> Vec<Expr> {
    const RTN_LOCAL: u32 = 2;
    let mut rule = Expr::nfproto(2).to_vec();
    rule.extend([Expr::FibDaddrType(Reg(0)), Expr::Cmp(Reg(0), CmpOp::Eq, RTN_LOCAL.to_ne_bytes().to_vec())]);
    rule.extend(Expr::in_prefix4(Expr::load_daddr4(Reg(0)), Ipv4Addr::new(127, 0, 0, 0), 8, CmpOp::Ne));
    rule.extend([
        Expr::Meta(MetaKey::L4Proto, Reg(0)),
        Expr::load_dport(Reg(1)),
        Expr::Vmap { set: set.into(), id: 0, key: Reg(0) },
    ]);
    rule
}

fn hash(key: &str) -> String {
    // Names of chains are short; a collision of 64-bit hashes among some thousand keys does not happen.
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn has_external(port: &Port) -> bool {
    port.node_port.is_some() || !port.external_ips.is_empty()
}

fn affinity_set(chain: &str) -> String {
    format!("aff-{chain}")
}

/// Whether the port's chains were in the kernel.
fn internal_chain(port: &Port) -> bool {
    !port.internal().is_empty()
}
fn external_chain(port: &Port) -> bool {
    has_external(port) && !port.external().is_empty()
}

fn chains(batch: &mut Batch, key: &str, old: Option<&Port>, port: &Port, settings: &Settings) {
    let hash = hash(key);
    if internal_chain(port) {
        let chain = format!("svc-{hash}");
        let rules = vec![masquerade_foreign(settings)];
        choose(batch, &chain, rules, &port.internal(), port.affinity_secs, old.filter(|o| internal_chain(o)));
    }
    if external_chain(port) {
        let chain = format!("ext-{hash}");
        let mut rules = source_filter(port);
        if !port.external_local {
            rules.push(Expr::mark_or(MASQUERADE_BIT).to_vec());
        }
        choose(batch, &chain, rules, &port.external(), port.affinity_secs, old.filter(|o| external_chain(o)));
    }
}

/// Clients that are no pods must get their answers back through this node.
fn masquerade_foreign(settings: &Settings) -> Vec<Expr> {
    let (net, len) = settings.pod_cidr;
    let mut rule = Expr::in_prefix4(Expr::load_saddr4(Reg(0)), net, len, CmpOp::Ne).to_vec();
    rule.extend(Expr::mark_or(MASQUERADE_BIT));
    rule
}

/// With source ranges, other sources are dropped.
fn source_filter(port: &Port) -> Vec<Vec<Expr>> {
    if port.source_ranges.is_empty() || port.external_ips.is_empty() {
        return Vec::new();
    }
    // A source outside every range fails all comparisons; they are chained in one rule that ends in a drop.
    let mut rule = Expr::nfproto(2).to_vec();
    for (net, len) in &port.source_ranges {
        rule.extend(Expr::in_prefix4(Expr::load_saddr4(Reg(0)), *net, *len, CmpOp::Ne));
    }
    rule.push(Expr::Verdict(Verdict::Drop));
    vec![rule]
}

fn choose(
    batch: &mut Batch,
    chain: &str,
    first: Vec<Vec<Expr>>,
    endpoints: &[&Endpoint],
    affinity_secs: Option<u32>,
    old: Option<&Port>,
) {
    batch.add_chain(chain, None);
    if old.is_some() {
        batch.flush_chain(chain);
    }
    let affinity = affinity_set(chain);
    if old.is_some_and(|o| o.affinity_secs.is_some()) {
        // Clients may stick to an endpoint that is gone: they choose again.
        batch.delete_set(&affinity);
    }
    for rule in &first {
        batch.add_rule(chain, rule);
    }
    let address_port = types::concat2(types::IPV4, types::PORT);
    if let Some(secs) = affinity_secs {
        batch.add_set(&Set {
            name: &affinity,
            id: 0,
            flags: set_flags::TIMEOUT | set_flags::EVAL,
            key_type: types::IPV4,
            key_len: 4,
            data: MapData::Bytes(address_port, 8),
            timeout_ms: Some(u64::from(secs) * 1000),
        });
        batch.add_rule(
            chain,
            &[
                Expr::load_saddr4(Reg(0)),
                Expr::Map { set: affinity.clone(), id: 0, key: Reg(0), into: Reg(1) },
                Expr::UpdateMap {
                    set: affinity.clone(),
                    key: Reg(0),
                    data: Reg(1),
                    timeout_ms: u64::from(secs) * 1000,
                },
                Expr::Dnat { v6: false, addr: Reg(1), port: Some(Reg(2)) },
            ],
        );
    }
    let id = batch.fresh_set_id();
    let name = "__map%d";
    batch.add_set(&Set {
        name,
        id,
        flags: set_flags::ANONYMOUS | set_flags::CONSTANT,
        key_type: types::INTEGER,
        key_len: 4,
        data: MapData::Bytes(address_port, 8),
        timeout_ms: None,
    });
    let elems: Vec<Elem> = endpoints
        .iter()
        .enumerate()
        .map(|(i, e)| {
            let mut data = e.ip.octets().to_vec();
            data.extend(pad4(&e.port.to_be_bytes()));
            Elem::data((i as u32).to_ne_bytes(), data)
        })
        .collect();
    batch.add_elements(name, id, &elems);
    let mut rule = vec![
        Expr::Numgen { modulus: endpoints.len() as u32, into: Reg(0) },
        Expr::Map { set: name.into(), id, key: Reg(0), into: Reg(1) },
    ];
    if let Some(secs) = affinity_secs {
        rule.push(Expr::load_saddr4(Reg(0)));
        rule.push(Expr::UpdateMap { set: affinity, key: Reg(0), data: Reg(1), timeout_ms: u64::from(secs) * 1000 });
    }
    rule.push(Expr::Dnat { v6: false, addr: Reg(1), port: Some(Reg(2)) });
    batch.add_rule(chain, &rule);
}

fn drop_chains(batch: &mut Batch, key: &str, old: &Port, new: Option<&Port>) {
    let hash = hash(key);
    let gone = [
        ("svc", internal_chain(old), new.is_some_and(internal_chain)),
        ("ext", external_chain(old), new.is_some_and(external_chain)),
    ];
    for (prefix, was, is) in gone {
        if was && !is {
            let chain = format!("{prefix}-{hash}");
            batch.flush_chain(&chain);
            if old.affinity_secs.is_some() {
                batch.delete_set(&affinity_set(&chain));
            }
            batch.delete_chain(&chain);
        }
    }
}

type Elements = BTreeMap<&'static str, BTreeMap<Vec<u8>, Option<Verdict>>>;

/// All set elements that these ports need.
fn elements(ports: &Ports, keys: &[&String]) -> Elements {
    let mut out = Elements::new();
    for key in keys {
        let Some(port) = ports.get(*key) else { continue };
        let hash = hash(key);
        let goto = |chain: String| Some(Verdict::Goto(chain));
        let reject = || Some(Verdict::Goto("reject".into()));
        let mut put = |set: &'static str, key: Vec<u8>, verdict| {
            out.entry(set).or_default().insert(key, verdict);
        };
        let (set, verdict) =
            if internal_chain(port) { (SERVICE_IPS, goto(format!("svc-{hash}"))) } else { (NO_ENDPOINTS, reject()) };
        put(set, service_key(port.cluster_ip, port), verdict);
        let external = external_chain(port);
        for ip in &port.external_ips {
            let (set, verdict) =
                if external { (SERVICE_IPS, goto(format!("ext-{hash}"))) } else { (NO_ENDPOINTS, reject()) };
            put(set, service_key(*ip, port), verdict);
        }
        if let Some(node_port) = port.node_port {
            let (set, verdict) =
                if external { (NODEPORTS, goto(format!("ext-{hash}"))) } else { (NO_ENDPOINT_NODEPORTS, reject()) };
            let mut key = pad4(&[port.protocol]);
            key.extend(pad4(&node_port.to_be_bytes()));
            put(set, key, verdict);
        }
    }
    out
}

fn service_key(ip: Ipv4Addr, port: &Port) -> Vec<u8> {
    let mut key = ip.octets().to_vec();
    key.extend(pad4(&[port.protocol]));
    key.extend(pad4(&port.port.to_be_bytes()));
    key
}

/// Changes of the hairpin set: endpoints on this node that may be reached from themselves.
pub(crate) fn hairpin(
    batch: &mut Batch,
    old: &std::collections::BTreeSet<Ipv4Addr>,
    new: &std::collections::BTreeSet<Ipv4Addr>,
) {
    let pair = |ip: &Ipv4Addr| Elem::key([ip.octets(), ip.octets()].concat());
    let gone: Vec<Elem> = old.difference(new).map(pair).collect();
    let come: Vec<Elem> = new.difference(old).map(pair).collect();
    batch.delete_elements(HAIRPIN, &gone);
    batch.add_elements(HAIRPIN, 0, &come);
}

/// Addresses of all endpoints on this node.
pub(crate) fn local_endpoints(ports: &Ports) -> std::collections::BTreeSet<Ipv4Addr> {
    ports.values().flat_map(|p| p.endpoints.iter()).filter(|e| e.local).map(|e| e.ip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Endpoint;

    fn settings() -> Settings {
        Settings { pod_cidr: (Ipv4Addr::new(10, 200, 0, 0), 16) }
    }

    /// A port whose every property follows from the bits of `n`.
    fn port(i: u8, n: u32) -> Port {
        Port {
            protocol: if n & 1 == 0 { 6 } else { 17 },
            cluster_ip: Ipv4Addr::new(10, 32, 0, i),
            port: 80,
            node_port: (n & 2 != 0).then(|| 30_000 + u16::from(i)),
            external_ips: if n & 4 != 0 { vec![Ipv4Addr::new(203, 0, 113, i)] } else { vec![] },
            source_ranges: if n & 8 != 0 { vec![(Ipv4Addr::new(192, 0, 2, 0), 24)] } else { vec![] },
            affinity_secs: (n & 16 != 0).then_some(60),
            internal_local: n & 32 != 0,
            external_local: n & 64 != 0,
            endpoints: (0..(n >> 7) % 4)
                .map(|e| Endpoint { ip: Ipv4Addr::new(10, 200, e as u8, i), port: 8080, local: e == 0 })
                .collect(),
        }
    }

    fn ports(seed: u32) -> Ports {
        (1..8u8)
            .filter(|i| (seed >> i) & 1 == 0)
            .map(|i| {
                let n = seed.wrapping_mul(2_654_435_761).rotate_left(u32::from(i) * 3);
                let protocol = if n & 1 == 0 { "TCP" } else { "UDP" };
                (format!("a/s{i}:x/{protocol}"), port(i, n))
            })
            .collect()
    }

    #[test]
    fn nothing_changes_without_a_change() {
        let state = ports(3);
        assert!(transaction(&state, &state, &settings(), false).is_empty());
    }

    #[test]
    fn the_kernel_takes_every_step_between_states() {
        let steps = std::thread::spawn(|| {
            if let Err(error) = node_sys::netns::isolate_thread() {
                return test_spoil::skipped(&format!("a network namespace cannot be made: {error}"));
            }
            let mut old = Ports::new();
            let mut fresh = true;
            for seed in 0..60 {
                let new = ports(seed * 7919);
                let mut batch = transaction(&old, &new, &settings(), fresh);
                hairpin(&mut batch, &local_endpoints(&old), &local_endpoints(&new));
                if let Err(error) = batch.commit() {
                    panic!("step {seed}: {:#}", anyhow::Error::new(error));
                }
                (old, fresh) = (new, false);
            }
            transaction(&old, &Ports::new(), &settings(), false).commit().expect("all services go");
        });
        steps.join().expect("every step is taken");
    }
}
