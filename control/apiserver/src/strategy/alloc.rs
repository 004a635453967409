//! Cluster addresses and node ports of Services: who has which, never given out twice.
//!
//! The truth is the Service objects themselves. What is reserved for a write
//! that is still on its way is held here; a look through the objects, at most
//! once a minute, frees what updates left behind.
//!
//! Where several servers share a store, none of them knows what the others have on
//! their way: then the objects are looked through each time, and right before its
//! write a Service [claims](claim) what it was given, in the store. A claim lives
//! longer than a write takes, so that a server either meets it or sees the object.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rand::Rng;
use serde_json::Value;
use store::{Expect, Stamped, Store, StoreError};

use super::fields::{items_at, str_at};
use crate::authn::view::{ClusterView, SERVICES};

/// Reservations younger than this survive a rescan that does not see them.
const YOUNG: Duration = Duration::from_secs(60);

/// Who has what another server claimed.
const OTHERS: &str = "";
/// How long a number that another server claimed is passed over; then its Service is seen, or it was given back.
const PASSED: Duration = Duration::from_secs(2);

/// An address range, first address and prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    base: IpAddr,
    /// Addresses in it, capped.
    size: u64,
    prefix: u8,
}

impl Range {
    /// Parses `10.32.0.0/24`.
    pub fn parse(text: &str) -> Option<Range> {
        let (base, prefix) = text.trim().split_once('/')?;
        let (base, prefix): (IpAddr, u8) = (base.parse().ok()?, prefix.parse().ok()?);
        let bits = if base.is_ipv4() { 32 } else { 128 };
        if prefix > bits {
            return None;
        }
        let size = 1u64 << u32::from(bits - prefix).min(20);
        let mask = |v: u128| if bits == prefix { v } else { v >> (bits - prefix) << (bits - prefix) };
        let base = match base {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(mask(u128::from(u32::from(v4))) as u32)),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(mask(u128::from(v6)))),
        };
        Some(Range { base, size, prefix })
    }

    /// Whether the range is IPv6.
    pub fn is_v6(&self) -> bool {
        self.base.is_ipv6()
    }

    /// The address `n` places after the first.
    pub fn nth(&self, n: u64) -> IpAddr {
        match self.base {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4).wrapping_add(n as u32))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6).wrapping_add(u128::from(n)))),
        }
    }

    fn contains(&self, ip: IpAddr) -> bool {
        let same =
            |a: u128, b: u128, bits: u8| self.prefix == 0 || a >> (bits - self.prefix) == b >> (bits - self.prefix);
        match (self.base, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
            _ => false,
        }
    }

    fn is_usable(&self, ip: IpAddr) -> bool {
        let broadcast = self.base.is_ipv4() && ip == self.nth(self.size - 1) && self.size > 2;
        self.contains(ip) && ip != self.base && !broadcast
    }

    /// Dynamic addresses begin here; those below are left for who asks for one by number.
    fn dynamic_from(&self) -> u64 {
        if self.size <= 32 { 1 } else { (self.size / 16).clamp(16, 256) }
    }
}

#[derive(Debug, Default)]
struct Held {
    /// Owner (`namespace/name`) and when it was reserved.
    ips: HashMap<IpAddr, (String, Instant)>,
    ports: HashMap<u16, (String, Instant)>,
    scanned: Option<Instant>,
}

/// The allocator of one server.
#[derive(Debug)]
pub struct Allocator {
    ranges: Vec<Range>,
    ports: (u16, u16),
    /// Whether other servers give out of the same ranges.
    shared: bool,
    held: Mutex<Held>,
}

/// Why something could not be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    #[error("provided IP is already allocated")]
    IpTaken,
    #[error("the provided IP ({0}) is not in the valid range. The range of valid IPs is {1}")]
    IpOutside(IpAddr, String),
    #[error("no {0} service address range is set for this cluster")]
    NoFamily(&'static str),
    #[error("range is full")]
    Full,
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("provided port is not in the valid range. The range of valid ports is {0}-{1}")]
    PortOutside(u16, u16),
}

impl Allocator {
    /// `ranges` is one CIDR or two with a comma; `ports` is `30000-32767`.
    pub fn new(ranges: &str, ports: &str, shared: bool) -> Result<Allocator, String> {
        let parsed: Option<Vec<Range>> = ranges.split(',').map(Range::parse).collect();
        let parsed = parsed.ok_or_else(|| format!("--service-cluster-ip-range {ranges:?} is not a CIDR"))?;
        let range = ports.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
        let range = range.filter(|(a, b): &(u16, u16)| a <= b && *a > 0);
        let ports = range.ok_or_else(|| format!("--service-node-port-range {ports:?} is not FIRST-LAST"))?;
        Ok(Allocator { ranges: parsed, ports, shared, held: Mutex::default() })
    }

    /// Whether other servers give out of the same ranges.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// The families of the ranges, first the default one.
    pub fn families(&self) -> Vec<&'static str> {
        self.ranges.iter().map(|r| if r.is_v6() { "IPv6" } else { "IPv4" }).collect()
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    fn lock(&self, view: &dyn ClusterView) -> MutexGuard<'_, Held> {
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.shared || held.scanned.is_none_or(|t| t.elapsed() > YOUNG) {
            rescan(&mut held, view);
        }
        held
    }

    /// Reserves `wanted`, or any address of the family.
    pub fn ip(
        &self,
        view: &dyn ClusterView,
        owner: &str,
        family: &'static str,
        wanted: Option<IpAddr>,
    ) -> Result<IpAddr, AllocError> {
        let v6 = family == "IPv6";
        let range = self.ranges.iter().find(|r| r.is_v6() == v6).ok_or(AllocError::NoFamily(family))?;
        let mut held = self.lock(view);
        if let Some(ip) = wanted {
            if !range.is_usable(ip) {
                return Err(AllocError::IpOutside(ip, format!("{}/{}", range.base, range.prefix)));
            }
            return match held.ips.get(&ip) {
                Some((by, _)) if by != owner && by != OTHERS => Err(AllocError::IpTaken),
                _ => Ok(take(&mut held.ips, ip, owner)),
            };
        }
        let low = range.dynamic_from();
        let free = |held: &Held, n: u64| range.is_usable(range.nth(n)) && !held.ips.contains_key(&range.nth(n));
        let start = rand::rng().random_range(low..range.size.max(low + 1));
        let upper = (start..range.size).chain(low..start);
        let found = upper.chain((1..low).rev()).find(|n| free(&held, *n)).ok_or(AllocError::Full)?;
        Ok(take(&mut held.ips, range.nth(found), owner))
    }

    /// Reserves `wanted`, or any node port.
    pub fn port(&self, view: &dyn ClusterView, owner: &str, wanted: Option<u16>) -> Result<u16, AllocError> {
        let (first, last) = self.ports;
        let mut held = self.lock(view);
        if let Some(port) = wanted {
            if !(first..=last).contains(&port) {
                return Err(AllocError::PortOutside(first, last));
            }
            return match held.ports.get(&port) {
                Some((by, _)) if by != owner && by != OTHERS => Err(AllocError::PortTaken),
                _ => Ok(take(&mut held.ports, port, owner)),
            };
        }
        let size = last - first + 1;
        let low = first + if size <= 32 { 0 } else { (size / 32).clamp(16, 128) };
        let start = rand::rng().random_range(low..=last);
        let mut order = (start..=last).chain(low..start).chain(first..low);
        let found = order.find(|p| !held.ports.contains_key(p)).ok_or(AllocError::Full)?;
        Ok(take(&mut held.ports, found, owner))
    }

    /// Passes over a claimed number for a moment, unless it is asked for by its number.
    pub fn pass_over(&self, key: &str) {
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        let entry = (OTHERS.to_string(), now.checked_sub(YOUNG - PASSED).unwrap_or(now));
        let number = key.strip_prefix(CLAIMS).unwrap_or(key);
        if let Some(ip) = number.strip_prefix("ip/").and_then(|ip| ip.parse().ok()) {
            held.ips.insert(ip, entry);
        } else if let Some(port) = number.strip_prefix("port/").and_then(|port| port.parse().ok()) {
            held.ports.insert(port, entry);
        }
    }

    /// Gives back what `owner` holds and `keep` (its object, if it still exists) does not use.
    pub fn release(&self, owner: &str, keep: Option<&Value>) {
        let (ips, ports) = keep.map(used).unwrap_or_default();
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        held.ips.retain(|ip, (by, _)| by != owner || ips.contains(ip));
        held.ports.retain(|port, (by, _)| by != owner || ports.contains(port));
    }
}

/// Claims are kept below this, by kind of number.
const CLAIMS: &str = "/kimg/claims/services/";
/// Seconds that a claim lives: longer than any request, and than a server may be behind.
const CLAIM_SECONDS: u64 = 180;

/// The keys of the claims for what a Service uses, and `before` (its old object) did not.
pub fn claims(service: &Value, before: Option<&Value>) -> Vec<String> {
    let ((ips, ports), (old_ips, old_ports)) = (used(service), before.map(used).unwrap_or_default());
    let ips: std::collections::BTreeSet<IpAddr> = ips.into_iter().filter(|ip| !old_ips.contains(ip)).collect();
    let ports: std::collections::BTreeSet<u16> = ports.into_iter().filter(|p| !old_ports.contains(p)).collect();
    let ips = ips.into_iter().map(|ip| format!("{CLAIMS}ip/{ip}"));
    ips.chain(ports.into_iter().map(|port| format!("{CLAIMS}port/{port}"))).collect()
}

/// What came of a [`claim`].
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody had it; the revision of the claim.
    New(u64),
    /// Its owner had it already, maybe for another request that is still on its way.
    Renewed,
    /// Somebody else has it.
    Taken,
}

/// Claims one number for `owner`.
pub async fn claim(store: &dyn Store, key: &str, owner: &str) -> store::Result<Claim> {
    let put = |expect| store.put(key, Stamped::plain(owner), expect, Some(CLAIM_SECONDS));
    let mut expect = Expect::Absent;
    for _ in 0..3 {
        match put(expect).await {
            Ok(revision) if matches!(expect, Expect::Absent) => return Ok(Claim::New(revision)),
            Ok(_) => return Ok(Claim::Renewed),
            Err(StoreError::Mismatch) => {}
            Err(error) => return Err(error),
        }
        expect = match store.get(key).await? {
            Some(entry) if entry.value == owner.as_bytes() => Expect::At(entry.revision),
            Some(_) => return Ok(Claim::Taken),
            None => Expect::Absent,
        };
    }
    Ok(Claim::Taken)
}

/// Gives a claim back, if it is `owner`'s.
pub async fn unclaim(store: &dyn Store, key: &str, owner: &str) -> store::Result<()> {
    let Some(entry) = store.get(key).await?.filter(|entry| entry.value == owner.as_bytes()) else { return Ok(()) };
    match store.delete(key, Expect::At(entry.revision)).await {
        Ok(_) | Err(StoreError::Mismatch) => Ok(()),
        Err(error) => Err(error),
    }
}

fn take<K: std::hash::Hash + Eq + Copy>(map: &mut HashMap<K, (String, Instant)>, key: K, owner: &str) -> K {
    map.insert(key, (owner.to_string(), Instant::now()));
    key
}

/// Addresses and node ports that a Service uses.
fn used(service: &Value) -> (Vec<IpAddr>, Vec<u16>) {
    let listed = items_at(service, "/spec/clusterIPs").iter().filter_map(Value::as_str);
    let ips = listed.chain([str_at(service, "/spec/clusterIP")]).filter_map(|ip| ip.parse().ok()).collect();
    let number = |v: &Value| v.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n != 0);
    let of_ports = items_at(service, "/spec/ports").iter().filter_map(|p| number(&p["nodePort"]));
    (ips, of_ports.chain(number(&service["spec"]["healthCheckNodePort"])).collect())
}

fn rescan(held: &mut Held, view: &dyn ClusterView) {
    let mut fresh = Held { scanned: Some(Instant::now()), ..Held::default() };
    let old = Instant::now().checked_sub(YOUNG).unwrap_or_else(Instant::now);
    for service in view.list(SERVICES, "") {
        let owner = format!("{}/{}", super::fields::namespace(&service), super::fields::name(&service));
        let (ips, ports) = used(&service);
        fresh.ips.extend(ips.into_iter().map(|ip| (ip, (owner.clone(), old))));
        fresh.ports.extend(ports.into_iter().map(|p| (p, (owner.clone(), old))));
    }
    let young = |t: &Instant| t.elapsed() < YOUNG;
    for (ip, entry) in held.ips.drain().filter(|(_, (_, t))| young(t)) {
        fresh.ips.entry(ip).or_insert(entry);
    }
    for (port, entry) in held.ports.drain().filter(|(_, (_, t))| young(t)) {
        fresh.ports.entry(port).or_insert(entry);
    }
    *held = fresh;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authn::view::fake::FakeView;
    use serde_json::json;

    #[test]
    fn nothing_is_given_twice() {
        let view = FakeView::default();
        view.put(SERVICES, json!({"metadata": {"namespace": "a", "name": "old"}, "spec": {"clusterIP": "10.0.0.3", "ports": [{"nodePort": 30001}]}}));
        let alloc = Allocator::new("10.0.0.0/29", "30000-30002", false).expect("allocator");
        let mut seen = vec!["10.0.0.3".parse::<IpAddr>().expect("ip")];
        for i in 0..5 {
            let ip = alloc.ip(&view, &format!("a/{i}"), "IPv4", None).expect("free");
            assert!(!seen.contains(&ip), "{ip} twice");
            assert!(ip.to_string() != "10.0.0.0" && ip.to_string() != "10.0.0.7");
            seen.push(ip);
        }
        assert_eq!(alloc.ip(&view, "a/x", "IPv4", None), Err(AllocError::Full));
        alloc.release("a/2", None);
        assert!(alloc.ip(&view, "a/x", "IPv4", None).is_ok());
        assert_eq!(alloc.ip(&view, "a/y", "IPv4", "10.0.0.3".parse().ok()), Err(AllocError::IpTaken));
        assert!(matches!(alloc.ip(&view, "a/y", "IPv4", "10.1.0.3".parse().ok()), Err(AllocError::IpOutside(..))));
        assert!(matches!(alloc.ip(&view, "a/y", "IPv6", None), Err(AllocError::NoFamily(_))));
        assert_eq!(alloc.port(&view, "a/y", Some(30001)), Err(AllocError::PortTaken));
        assert!(alloc.port(&view, "a/y", None).is_ok() && alloc.port(&view, "a/y", None).is_ok());
        assert_eq!(alloc.port(&view, "a/y", None), Err(AllocError::Full));
    }

    /// Two requests of one owner: neither takes away what the other one relies on.
    #[tokio::test]
    async fn claims_are_given_back_by_who_made_them_alone() {
        let dir = tempfile::tempdir().expect("folder");
        let disk = store::DirDisk::open(dir.path()).expect("disk");
        let store = store::Embedded::open(std::sync::Arc::new(disk), store::Options::default()).expect("store");
        let key = format!("{CLAIMS}ip/10.0.0.3");
        let ask = async |owner: &str| claim(&store, &key, owner).await.expect("an answer");
        let Claim::New(first) = ask("a").await else { panic!("nobody had it") };
        assert_eq!(ask("b").await, Claim::Taken);
        assert_eq!(ask("a").await, Claim::Renewed);
        super::super::give_back(&store, vec![(key.clone(), first)]).await;
        assert_eq!(ask("b").await, Claim::Taken, "it was renewed for another request");
        unclaim(&store, &key, "a").await.expect("given back");
        let Claim::New(second) = ask("b").await else { panic!("it was given back") };
        super::super::give_back(&store, vec![(key.clone(), second)]).await;
        assert!(matches!(ask("a").await, Claim::New(_)));
    }

    #[test]
    fn ranges() {
        assert_eq!(Range::parse("10.32.0.7/24").map(|r| r.nth(1).to_string()), Some("10.32.0.1".into()));
        assert_eq!(Range::parse("fd00::/112").map(|r| r.nth(10).to_string()), Some("fd00::a".into()));
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8"] {
            assert!(Range::parse(bad).is_none(), "{bad}");
        }
    }
}
