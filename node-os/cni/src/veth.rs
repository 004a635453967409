//! The pod's interface: made on the host, moved into the pod's network namespace, set up there.

use crate::config::{Failure, Request, code};
use futures::TryStreamExt;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

/// The pod's next hop: an address that needs not exist, because its hardware address is told to the pod.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Hardware address of every host side; each is alone on its link with its pod.
const HOST_MAC: [u8; 6] = [0xee; 6];
pub(crate) const HOST_MAC_TEXT: &str = "ee:ee:ee:ee:ee:ee";
const ENODEV: i32 = 19;

/// Names of the two ends, made of what the runtime calls the container.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) host: String,
    /// The pod's end while it is still on the host.
    moving: String,
}

impl Pair {
    pub(crate) fn of(container: &str, interface: &str) -> Pair {
        let mut hasher = DefaultHasher::new();
        (container, interface).hash(&mut hasher);
        let hash = hasher.finish() >> 16;
        Pair { host: format!("pod{hash:012x}"), moving: format!("cni{hash:012x}") }
    }
}

fn fail(doing: &str) -> impl FnOnce(rtnetlink::Error) -> Failure + '_ {
    move |error| Failure::new(code::NETWORK, doing, error)
}

fn open() -> Result<Handle, Failure> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(|e| Failure::new(code::IO, "opening a netlink socket", e))?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn find(handle: &Handle, name: &str) -> Result<Option<(u32, String)>, Failure> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(None) => Ok(None),
        Ok(Some(link)) => {
            let mac = link.attributes.iter().find_map(|a| match a {
                LinkAttribute::Address(bytes) => {
                    Some(bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":"))
                }
                _ => None,
            });
            Ok(Some((link.header.index, mac.unwrap_or_default())))
        }
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code().abs() == ENODEV => Ok(None),
        Err(error) => Err(fail("looking for an interface")(error)),
    }
}

async fn index(handle: &Handle, name: &str) -> Result<u32, Failure> {
    let found = find(handle, name).await?;
    found.map(|(i, _)| i).ok_or_else(|| Failure::new(code::NETWORK, format!("interface {name}"), "is not there"))
}

/// Makes and sets up both ends; the hardware address of the pod's end.
pub(crate) async fn connect(
    pair: &Pair,
    netns: String,
    request: &Request,
    address: Ipv4Addr,
) -> Result<String, Failure> {
    let handle = open()?;
    let namespace = std::fs::File::open(&netns).map_err(|e| Failure::new(code::IO, format!("opening {netns}"), e))?;
    // A leftover of the same name is from an ADD that was cut off.
    disconnect(pair).await?;
    let veth = LinkVeth::new(&pair.host, &pair.moving).address(HOST_MAC.to_vec()).mtu(request.mtu);
    handle.link().add(veth.build()).execute().await.map_err(fail("making the veth pair"))?;
    let moving = index(&handle, &pair.moving).await?;
    let change = LinkUnspec::new_with_index(moving).mtu(request.mtu).setns_by_fd(namespace.as_raw_fd());
    handle.link().set(change.build()).execute().await.map_err(fail("moving the pod's interface"))?;
    let (from, to) = (pair.moving.clone(), request.interface.clone());
    let mac = inside(netns, move |handle| inner(handle, from, to, address)).await?;
    outer(&handle, pair, request, address, &mac).await?;
    Ok(mac)
}

/// The pod's side: name, address, and the way out.
async fn inner(handle: Handle, from: String, to: String, address: Ipv4Addr) -> Result<String, Failure> {
    let own = index(&handle, &from).await?;
    let rename = LinkUnspec::new_with_index(own).name(to.clone()).up();
    handle.link().set(rename.build()).execute().await.map_err(fail("naming the pod's interface"))?;
    let add = handle.address().add(own, IpAddr::V4(address), 32);
    add.execute().await.map_err(fail("setting the pod's address"))?;
    let next_hop = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(GATEWAY, 32)
        .output_interface(own)
        .scope(RouteScope::Link);
    handle.route().add(next_hop.build()).execute().await.map_err(fail("adding the pod's next hop"))?;
    let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY).output_interface(own);
    handle.route().add(default.build()).execute().await.map_err(fail("adding the pod's default route"))?;
    let arp = handle.neighbours().add(own, IpAddr::V4(GATEWAY)).link_layer_address(&HOST_MAC);
    arp.replace().execute().await.map_err(fail("telling the pod its next hop"))?;
    Ok(find(&handle, &to).await?.map(|(_, mac)| mac).unwrap_or_default())
}

/// The host's side: the way to the pod.
async fn outer(handle: &Handle, pair: &Pair, request: &Request, address: Ipv4Addr, mac: &str) -> Result<(), Failure> {
    let host = index(handle, &pair.host).await?;
    // The pod network is IPv4; without this each pair would talk router solicitations for nothing.
    let no_v6 = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", pair.host);
    if Path::new(&no_v6).exists() {
        std::fs::write(&no_v6, "1").map_err(|e| Failure::new(code::IO, format!("writing {no_v6}"), e))?;
    }
    handle
        .link()
        .set(LinkUnspec::new_with_index(host).up().build())
        .execute()
        .await
        .map_err(fail("setting the veth pair up"))?;
    let bytes: Vec<u8> = mac.split(':').filter_map(|b| u8::from_str_radix(b, 16).ok()).collect();
    let arp = handle.neighbours().add(host, IpAddr::V4(address)).link_layer_address(&bytes);
    arp.replace().execute().await.map_err(fail("noting the pod's hardware address"))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(address, 32)
        .output_interface(host)
        .scope(RouteScope::Link)
        .protocol(RouteProtocol::Static)
        .pref_source(request.pod_cidr.network());
    handle.route().add(route.build()).replace().execute().await.map_err(fail("adding the route to the pod"))
}

/// Removes both ends; what is gone already is no error.
pub(crate) async fn disconnect(pair: &Pair) -> Result<(), Failure> {
    let handle = open()?;
    for name in [&pair.host, &pair.moving] {
        if let Some((index, _)) = find(&handle, name).await? {
            match handle.link().del(index).execute().await {
                // The runtime may remove the namespace, and with it the pair, at the same time.
                Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code().abs() == ENODEV => {}
                other => other.map_err(fail("removing the veth pair"))?,
            }
        }
    }
    Ok(())
}

/// Whether the host's side is there.
pub(crate) async fn exists(pair: &Pair) -> Result<bool, Failure> {
    Ok(find(&open()?, &pair.host).await?.is_some())
}

/// Sets `lo` up in a network namespace.
pub(crate) async fn loopback_up(netns: String) -> Result<(), Failure> {
    inside(netns, |handle| async move {
        let lo = index(&handle, "lo").await?;
        handle.link().set(LinkUnspec::new_with_index(lo).up().build()).execute().await.map_err(fail("setting lo up"))
    })
    .await
}

/// Runs netlink work inside a network namespace, on a thread of its own, which ends there.
async fn inside<T, F, R>(netns: String, work: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: FnOnce(Handle) -> R + Send + 'static,
    R: Future<Output = Result<T, Failure>>,
{
    let thread = tokio::task::spawn_blocking(move || {
        let work = move || {
            node_sys::netns::enter(Path::new(&netns))
                .map_err(|e| Failure::new(code::NETWORK, format!("entering {netns}"), e))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|e| Failure::new(code::IO, "starting", e))?;
            runtime.block_on(async { work(open()?).await })
        };
        // A thread from the pool would carry the namespace on to other work.
        std::thread::spawn(work)
            .join()
            .unwrap_or_else(|_| Err(Failure::new(code::NETWORK, "setting the pod up", "a thread ended badly")))
    });
    thread.await.unwrap_or_else(|e| Err(Failure::new(code::NETWORK, "setting the pod up", e)))
}
