//! A DHCPv4 client for one interface: discover, request, renew at half the lease, start over when it runs out.

use super::Network;
use super::wire::{self, Answer, Kind, Query};
use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net};
use node_metadata::network_config::{NicPlan, RoutePlan};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until, timeout};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const FIRST_PATIENCE: Duration = Duration::from_millis(500);
const MOST_PATIENCE: Duration = Duration::from_secs(16);
/// A lease shorter than this would only make noise.
const SHORTEST_LEASE: Duration = Duration::from_secs(30);

/// One interface's client.
#[derive(Debug)]
pub struct Client {
    pub(super) interface: String,
    pub(super) index: u32,
    pub(super) mac: [u8; 6],
    pub(super) plan: NicPlan,
}

impl Client {
    /// Runs for ever; `first` hears of the first lease.
    pub(super) async fn run(self, network: Rc<Network>, first: oneshot::Sender<()>) {
        let mut first = Some(first);
        again_and_again("DHCP", &self.interface, async || self.one_lease(&network, &mut first).await).await
    }

    /// From discovery to the end of the lease.
    async fn one_lease(&self, network: &Rc<Network>, first: &mut Option<oneshot::Sender<()>>) -> Result<()> {
        let socket = open_socket("DHCP", (Ipv4Addr::UNSPECIFIED, CLIENT_PORT).into(), &self.interface)?;
        let mut lease = self.discover(&socket).await?;
        self.take(network, &lease).await?;
        if let Some(first) = first.take() {
            // Nobody waits any more when the boot has gone on without us.
            let _ = first.send(());
        }
        tracing::info!(
            "DHCP on {}: {}/{} for {} s from {}",
            self.interface,
            lease.address,
            lease.prefix,
            lease.lease_s,
            lease.server
        );
        loop {
            let length = Duration::from_secs(u64::from(lease.lease_s)).max(SHORTEST_LEASE);
            let end = Instant::now() + length;
            sleep(length / 2).await;
            match self.renew(&socket, &lease, end).await {
                Ok(renewed) => {
                    if renewed.address != lease.address {
                        network.links().flush(self.index).await?;
                    }
                    self.take(network, &renewed).await?;
                    lease = renewed;
                }
                Err(error) => {
                    network.links().flush(self.index).await?;
                    return Err(error.context(format!("the lease of {} has ended", lease.address)));
                }
            }
        }
    }

    async fn discover(&self, socket: &UdpSocket) -> Result<Answer> {
        let mut patience = FIRST_PATIENCE;
        loop {
            // A server that refuses at once is not asked again at once.
            let next = Instant::now() + patience;
            if let Some(lease) = self.ask_for_one(socket, patience).await? {
                return Ok(lease);
            }
            sleep_until(next).await;
            patience = (patience * 2).min(MOST_PATIENCE);
        }
    }

    /// An offer, and what comes of it.
    async fn ask_for_one(&self, socket: &UdpSocket, patience: Duration) -> Result<Option<Answer>> {
        let transaction = random()?;
        let query =
            Query { kind: Kind::Discover, transaction, mac: self.mac, own: None, wanted: None, host_name: None };
        let offer = self.ask(socket, &query, Ipv4Addr::BROADCAST, patience).await?;
        let Some(offer) = offer.filter(|offer| offer.kind == Kind::Offer) else { return Ok(None) };
        let request = Query { kind: Kind::Request, wanted: Some((offer.address, offer.server)), ..query };
        let answer = self.ask(socket, &request, Ipv4Addr::BROADCAST, patience).await?;
        Ok(answer.filter(|answer| answer.kind == Kind::Ack))
    }

    /// Asks the server until the lease ends, and everybody in its last eighth.
    async fn renew(&self, socket: &UdpSocket, lease: &Answer, end: Instant) -> Result<Answer> {
        let last_eighth = end - Duration::from_secs(u64::from(lease.lease_s) / 8);
        let mut patience = Duration::from_secs(2);
        while Instant::now() < end {
            let query = Query {
                kind: Kind::Request,
                transaction: random()?,
                mac: self.mac,
                own: Some(lease.address),
                wanted: None,
                host_name: None,
            };
            let server = if Instant::now() < last_eighth { lease.server } else { Ipv4Addr::BROADCAST };
            match self.ask(socket, &query, server, patience).await? {
                Some(answer) if answer.kind == Kind::Ack => return Ok(answer),
                Some(answer) if answer.kind == Kind::Nak => anyhow::bail!("the DHCP server has taken the address back"),
                _ => patience = (patience * 2).min(Duration::from_secs(60)),
            }
            sleep(patience.min(end.saturating_duration_since(Instant::now()))).await;
        }
        anyhow::bail!("no DHCP server has renewed it")
    }

    async fn ask(
        &self,
        socket: &UdpSocket,
        query: &Query<'_>,
        server: Ipv4Addr,
        patience: Duration,
    ) -> Result<Option<Answer>> {
        let to = SocketAddrV4::new(server, SERVER_PORT);
        socket.send_to(&wire::encode(query), to).await.with_context(|| format!("cannot send to {to}"))?;
        let listen = async {
            let mut bytes = vec![0u8; 2048];
            loop {
                let (length, _) = socket.recv_from(&mut bytes).await?;
                let message = bytes.get(..length).unwrap_or_default();
                if let Some(answer) = wire::decode(message, query.transaction, self.mac) {
                    return Ok::<_, std::io::Error>(answer);
                }
            }
        };
        match timeout(patience, listen).await {
            Ok(answer) => Ok(Some(answer.context("cannot read the DHCP server's answer")?)),
            Err(_) => Ok(None),
        }
    }

    async fn take(&self, network: &Rc<Network>, lease: &Answer) -> Result<()> {
        let address = Ipv4Net::new(lease.address, lease.prefix).context("the DHCP server gave an impossible prefix")?;
        network.links().add_address(self.index, IpNet::V4(address)).await?;
        if let (Some(mtu), None, true) = (lease.mtu, self.plan.mtu, self.plan.dhcp_mtu) {
            network.links().set_mtu(self.index, u32::from(mtu)).await?;
        }
        if self.plan.dhcp_routes {
            for (to, gateway) in &lease.routes {
                network.links().add_route(self.index, &self.route(*to, *gateway, address)).await?;
            }
        }
        let dns = if self.plan.dhcp_dns { lease.dns.iter().copied().map(IpAddr::V4).collect() } else { Vec::new() };
        network.set_dhcp_dns(&self.interface, dns)
    }

    fn route(&self, to: Ipv4Net, gateway: Ipv4Addr, own: Ipv4Net) -> RoutePlan {
        // With several interfaces the first one's default route wins, whichever answers first.
        let metric = self.plan.dhcp_metric.unwrap_or(100 + self.index);
        let via = (!gateway.is_unspecified()).then_some(IpAddr::V4(gateway));
        let on_link = via.is_some() && !own.contains(&gateway);
        RoutePlan { metric: Some(metric), on_link, ..RoutePlan::to(IpNet::V4(to), via) }
    }
}

/// Takes one lease after another, for ever; a fault is told when it is another than the last.
pub(super) async fn again_and_again(protocol: &str, interface: &str, mut lease: impl AsyncFnMut() -> Result<()>) {
    let mut last_fault = String::new();
    loop {
        if let Err(error) = lease().await {
            let fault = format!("{error:#}");
            if fault != last_fault {
                tracing::warn!("{protocol} on {interface}: {fault}; trying again");
                last_fault = fault;
            }
            sleep(Duration::from_secs(2)).await;
        }
    }
}

/// A client's UDP socket on one interface; it shares its port with the clients of the others.
pub(super) fn open_socket(protocol: &str, address: SocketAddr, interface: &str) -> Result<UdpSocket> {
    let open = || {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let raw = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&raw, true)?;
        sockopt::set_socket_broadcast(&raw, true)?;
        if address.is_ipv6() {
            sockopt::set_ipv6_v6only(&raw, true)?;
        }
        rustix::net::bind(&raw, &address)?;
        let socket = UdpSocket::from_std(std::net::UdpSocket::from(raw))?;
        socket.bind_device(Some(interface.as_bytes()))?;
        Ok::<_, std::io::Error>(socket)
    };
    open().with_context(|| format!("cannot open a {protocol} socket on {interface}"))
}

pub(super) fn random() -> Result<u32> {
    let mut bytes = [0u8; 4];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| anyhow::anyhow!("the kernel gives no random numbers"))?;
    Ok(u32::from_ne_bytes(bytes))
}
