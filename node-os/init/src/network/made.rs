//! Interfaces that are made of others: bonds, bridges and VLANs, by rtnetlink.

use super::links::{Links, Nic};
use anyhow::{Context, Result, bail};
use netlink_packet_route::link::{BondLacpRate, BondMode, BondXmitHashPolicy, BridgeStpState, LinkMessage};
use node_metadata::network_config::{BondPlan, BridgePlan, LinkKind, NicPlan};
use rtnetlink::{LinkBond, LinkBridge, LinkUnspec, LinkVlan};
use std::collections::BTreeMap;

/// The kernel counts a bridge's times in hundredths of a second.
const TICKS: u32 = 100;

/// Makes an interface and joins its members. `known` holds what lies below it, by its id.
pub(super) async fn make(links: &Links, wanted: &NicPlan, known: &BTreeMap<String, Nic>) -> Result<Nic> {
    let name = wanted.name.as_deref().context("it has no name")?;
    let mut members = Vec::new();
    for part in wanted.kind.parts() {
        members.push(known.get(part).with_context(|| format!("{part}, of which it is made, is not there"))?);
    }
    // One that was left over, or that the driver makes by itself when it is loaded, may be set up otherwise.
    links.remove_link(name).await?;
    let message = match (&wanted.kind, members.as_slice()) {
        (LinkKind::Bond(plan), _) => bond(name, plan, wanted, known),
        (LinkKind::Bridge(plan), _) => bridge(name, plan, wanted),
        (LinkKind::Vlan { tag, .. }, [below]) => {
            // A tagged frame cannot come before the interface below is up.
            links.up_index(below.index).await.with_context(|| format!("cannot set {} up", below.name))?;
            let builder = LinkVlan::new(name, below.index, *tag);
            with_mac(builder, wanted).build()
        }
        _ => bail!("it is not made of others"),
    };
    let mut added = links.handle.link().add(message.clone()).execute().await;
    if is_there(&added) {
        // The kernel has loaded the driver for this very request, and the driver makes `bond0` by itself.
        links.remove_link(name).await?;
        added = links.handle.link().add(message).execute().await;
    }
    added.with_context(|| format!("cannot make {name}; the kernel may lack its module"))?;
    let nic = links.by_name(name).await?.with_context(|| format!("{name} was made and is not there"))?;
    if !matches!(wanted.kind, LinkKind::Vlan { .. }) {
        for member in members {
            join(links, member, &nic).await?;
        }
    }
    Ok(nic)
}

fn is_there(added: &std::result::Result<(), rtnetlink::Error>) -> bool {
    matches!(added, Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code().abs() == super::links::EEXIST)
}

/// A card joins a bond only while it is down.
async fn join(links: &Links, member: &Nic, above: &Nic) -> Result<()> {
    let context = || format!("{} does not join {}", member.name, above.name);
    let set = |message: LinkMessage| links.handle.link().set(message).execute();
    set(LinkUnspec::new_with_index(member.index).down().build()).await.with_context(context)?;
    set(LinkUnspec::new_with_index(member.index).controller(above.index).build()).await.with_context(context)?;
    set(LinkUnspec::new_with_index(member.index).up().build()).await.with_context(context)
}

fn bond(name: &str, plan: &BondPlan, wanted: &NicPlan, known: &BTreeMap<String, Nic>) -> LinkMessage {
    let mut builder = LinkBond::new(name).mode(BondMode::from(plan.mode));
    // Without it a link that went is never noticed.
    builder = builder.miimon(plan.miimon.unwrap_or(100));
    if let Some(delay) = plan.updelay {
        builder = builder.updelay(delay);
    }
    if let Some(delay) = plan.downdelay {
        builder = builder.downdelay(delay);
    }
    if let Some(fast) = plan.lacp_fast {
        builder = builder.ad_lacp_rate(BondLacpRate::from(u8::from(fast)));
    }
    if let Some(policy) = plan.hash_policy {
        builder = builder.xmit_hash_policy(BondXmitHashPolicy::from(policy));
    }
    if let Some(links) = plan.min_links {
        builder = builder.min_links(links);
    }
    if let Some(primary) = plan.primary.as_ref().and_then(|id| known.get(id)) {
        builder = builder.primary(primary.index);
    }
    with_mac(builder, wanted).build()
}

fn bridge(name: &str, plan: &BridgePlan, wanted: &NicPlan) -> LinkMessage {
    let mut builder = LinkBridge::new(name);
    if let Some(stp) = plan.stp {
        builder = builder.stp_state(if stp { BridgeStpState::KernelStp } else { BridgeStpState::Disabled });
    }
    if let Some(seconds) = plan.forward_delay {
        builder = builder.forward_delay(seconds.saturating_mul(TICKS));
    }
    if let Some(seconds) = plan.ageing_time {
        builder = builder.ageing_time(seconds.saturating_mul(TICKS));
    }
    if let Some(priority) = plan.priority {
        builder = builder.priority(priority);
    }
    with_mac(builder, wanted).build()
}

fn with_mac<T>(builder: rtnetlink::LinkMessageBuilder<T>, wanted: &NicPlan) -> rtnetlink::LinkMessageBuilder<T> {
    let octets = wanted.mac.iter().flat_map(|mac| mac.split(':')).map(|pair| u8::from_str_radix(pair, 16));
    match octets.collect::<std::result::Result<Vec<u8>, _>>() {
        Ok(octets) if octets.len() == 6 => builder.address(octets),
        _ => builder,
    }
}
