//! Gives each node its range of pod addresses, of each family of `--cluster-cidr`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use control_client::Queue;
use k8s_openapi::api::core::v1::Node;

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

/// A network: address and prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    length: u8,
}

impl Network {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (address, length) =
            text.split_once('/').with_context(|| format!("{text:?} is no network like 10.200.0.0/16"))?;
        let address: IpAddr = address.parse().with_context(|| format!("{text:?} has no IP address"))?;
        let length: u8 = length.parse().with_context(|| format!("{text:?} has no prefix length"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        if length > bits {
            bail!("{text:?}: the prefix is longer than {bits}");
        }
        Ok(Self { address, length })
    }

    fn bits(&self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The address as a number at the top of 128 bits, without host bits.
    fn base(&self) -> u128 {
        let number = match self.address {
            IpAddr::V4(a) => u128::from(u32::from(a)) << 96,
            IpAddr::V6(a) => u128::from(a),
        };
        if self.length == 0 { 0 } else { number & (u128::MAX << (128 - u32::from(self.length))) }
    }

    fn overlaps(&self, other: &Self) -> bool {
        if self.address.is_ipv4() != other.address.is_ipv4() {
            return false;
        }
        let shorter = u32::from(self.length.min(other.length));
        shorter == 0 || (self.base() ^ other.base()) >> (128 - shorter) == 0
    }

    /// The n-th range of that prefix length inside this network.
    fn part(&self, n: u128, length: u8) -> Self {
        let number = self.base() | (n << (128 - u32::from(length)));
        let address = match self.address {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from((number >> 96) as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        };
        Self { address, length }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Networks to hand out, and what to leave out.
struct Ranges {
    /// Each with the prefix length of one node.
    pools: Vec<(Network, u8)>,
    kept: Vec<Network>,
}

/// The ranges for one more node, given what the others have; none where a pool is used up.
fn plan(ranges: &Ranges, taken: &[Network]) -> Option<Vec<Network>> {
    ranges
        .pools
        .iter()
        .map(|(pool, length)| {
            let count = 1_u128 << u32::from(length - pool.length).min(32);
            (0..count)
                .map(|n| pool.part(n, *length))
                .find(|range| !taken.iter().chain(&ranges.kept).any(|t| t.overlaps(range)))
        })
        .collect()
}

fn ranges_of(node: &Node) -> Vec<Network> {
    let spec = node.spec.as_ref();
    let list = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
    let first = spec.and_then(|s| s.pod_cidr.as_ref());
    // What cannot be read cannot collide either.
    list.iter().chain(first).filter_map(|text| Network::parse(text).ok()).collect()
}

pub fn start(context: &Arc<Context>) -> anyhow::Result<()> {
    let settings = &context.settings;
    let mut pools = Vec::new();
    for text in &settings.cluster_cidr {
        let pool = Network::parse(text).context("--cluster-cidr")?;
        let length = if pool.bits() == 32 { settings.node_cidr_mask_size } else { settings.node_cidr_mask_size_ipv6 };
        if length < pool.length || length > pool.bits() {
            bail!("--node-cidr-mask-size {length} does not fit into --cluster-cidr {pool}");
        }
        pools.push((pool, length));
    }
    let kept: anyhow::Result<Vec<_>> = settings.service_cluster_ip_range.iter().map(|t| Network::parse(t)).collect();
    let ranges = Arc::new(Ranges { pools, kept: kept.context("--service-cluster-ip-range")? });

    let queue = Arc::new(Queue::<String>::default());
    context.caches.nodes.subscribe({
        let queue = queue.clone();
        move |change| {
            if ranges_of(change.object()).is_empty() {
                queue.add(change.object().metadata.name.clone().unwrap_or_default());
            }
        }
    });
    let context = context.clone();
    // One worker: two nodes must not be given the same range at the same time.
    runner::run("nodeipam", &queue, 1, move |name| {
        let (context, ranges) = (context.clone(), ranges.clone());
        async move { work(&context, &ranges, &name).await }
    });
    Ok(())
}

async fn work(context: &Context, ranges: &Ranges, name: &str) -> Worked {
    let nodes = &context.caches.nodes;
    let Some(node) = nodes.named("", name) else { return Ok(Outcome::Done) };
    if !ranges_of(&node).is_empty() || node.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let taken: Vec<Network> = nodes.list().iter().flat_map(|n| ranges_of(n)).collect();
    let Some(given) = plan(ranges, &taken) else {
        context.events.warning(&*node, "CIDRNotAvailable", format!("Node {name} status is now: CIDRNotAvailable"));
        bail!("no range of --cluster-cidr is left for node {name}; a larger --cluster-cidr holds more nodes");
    };
    let texts: Vec<String> = given.iter().map(Network::to_string).collect();
    let patch = serde_json::json!({"spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
    nodes.merge(None, &node, &patch).await?;
    tracing::info!("node {name} has pod range {}", texts.join(", "));
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pools: &[(&str, u8)], kept: &[&str]) -> Ranges {
        Ranges {
            pools: pools.iter().map(|(t, l)| (Network::parse(t).unwrap(), *l)).collect(),
            kept: kept.iter().map(|t| Network::parse(t).unwrap()).collect(),
        }
    }

    #[test]
    fn first_free_range_is_given() {
        // Pools, what the node has, what others have, what is given.
        type Case<'a> = (&'a [(&'a str, u8)], &'a [&'a str], &'a [&'a str], Option<&'a [&'a str]>);
        let cases: [Case<'_>; 5] = [
            (&[("10.200.0.0/16", 24)], &[], &[], Some(&["10.200.0.0/24"])),
            (&[("10.200.0.0/16", 24)], &[], &["10.200.0.0/24", "10.200.2.0/24"], Some(&["10.200.1.0/24"])),
            (&[("10.200.0.0/24", 25)], &["10.200.0.0/25"], &["10.200.0.128/25"], None),
            (&[("10.200.0.0/16", 24)], &[], &["10.200.0.0/23"], Some(&["10.200.2.0/24"])),
            (
                &[("10.200.0.0/16", 24), ("fd00::/48", 64)],
                &[],
                &["10.200.0.0/24", "fd00::/64"],
                Some(&["10.200.1.0/24", "fd00:0:0:1::/64"]),
            ),
        ];
        for (pools, kept, taken, given) in cases {
            let taken: Vec<_> = taken.iter().map(|t| Network::parse(t).unwrap()).collect();
            let result =
                plan(&ranges(pools, kept), &taken).map(|l| l.iter().map(Network::to_string).collect::<Vec<_>>());
            assert_eq!(result, given.map(|g| g.iter().map(|s| (*s).to_string()).collect()), "{pools:?}");
        }
    }
}
