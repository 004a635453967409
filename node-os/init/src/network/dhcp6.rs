//! A DHCPv6 client for one interface: one address (solicit, request, renew, start over), or DNS servers only. Routes come
//! from router advertisements, which the kernel takes by itself.

use super::dhcp::{again_and_again, open_socket, random};
use super::wire6::{self, Answer, Kind, Lease, Query};
use super::{Network, Nic};
use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv6Net};
use node_metadata::network_config::Dhcp6;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep, timeout};

const SERVER_PORT: u16 = 547;
const CLIENT_PORT: u16 = 546;
/// All servers and relays on the link.
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const FIRST_PATIENCE: Duration = Duration::from_secs(1);
const MOST_PATIENCE: Duration = Duration::from_secs(60);
/// What is asked for without an address is asked for again so often.
const REFRESH: Duration = Duration::from_secs(24 * 3600);
/// An address shorter than this would only make noise.
const SHORTEST: Duration = Duration::from_secs(60);

/// One interface's client.
#[derive(Debug)]
pub struct Client {
    pub(super) nic: Nic,
    pub(super) kind: Dhcp6,
    pub(super) use_dns: bool,
}

impl Client {
    /// Runs for ever.
    pub(super) async fn run(self, network: Rc<Network>) {
        let lease = async || match self.kind {
            Dhcp6::Stateful => self.one_lease(&network).await,
            Dhcp6::Stateless => self.information(&network).await,
        };
        again_and_again("DHCPv6", &self.nic.name, lease).await;
    }

    async fn information(&self, network: &Rc<Network>) -> Result<()> {
        let socket = self.socket()?;
        let answer = self.ask(&socket, Kind::InformationRequest, None, None, None).await?;
        self.take_dns(network, &answer)?;
        sleep(REFRESH).await;
        Ok(())
    }

    /// From the first question to the end of the address.
    async fn one_lease(&self, network: &Rc<Network>) -> Result<()> {
        let socket = self.socket()?;
        let (mut answer, mut lease) = self.obtain(&socket).await?;
        tracing::info!("DHCPv6 on {}: {} for {} s", self.nic.name, lease.address, lease.valid_s);
        loop {
            let own = IpNet::V6(Ipv6Net::from(lease.address));
            network.links().add_address(self.nic.index, own).await?;
            self.take_dns(network, &answer)?;
            let length = Duration::from_secs(u64::from(lease.valid_s)).max(SHORTEST);
            let end = Instant::now() + length;
            let wish = Duration::from_secs(u64::from(lease.renew_s));
            sleep(if wish.is_zero() || wish >= length { length / 2 } else { wish }).await;
            match self.renew(&socket, &answer, lease, end).await {
                Ok((next, new)) => {
                    if new.address != lease.address {
                        network.links().remove_address(self.nic.index, own).await?;
                    }
                    (answer, lease) = (next, new);
                }
                Err(error) => {
                    network.links().remove_address(self.nic.index, own).await?;
                    return Err(error.context(format!("the address {} has ended", lease.address)));
                }
            }
        }
    }

    async fn obtain(&self, socket: &UdpSocket) -> Result<(Answer, Lease)> {
        loop {
            let offer = self.ask(socket, Kind::Solicit, None, None, None).await?;
            if let (Kind::Reply, Some(lease)) = (offer.kind, offer.lease) {
                return Ok((offer, lease));
            }
            let Some(offered) = offer.lease else {
                sleep(FIRST_PATIENCE).await;
                continue;
            };
            let patience = Some(Instant::now() + MOST_PATIENCE / 4);
            let reply = self.ask(socket, Kind::Request, Some(&offer.server), Some(offered.address), patience).await;
            if let Ok(reply) = reply
                && let Some(lease) = reply.lease
            {
                return Ok((reply, lease));
            }
        }
    }

    /// The server is asked for four fifths of the time, then anybody.
    async fn renew(&self, socket: &UdpSocket, last: &Answer, lease: Lease, end: Instant) -> Result<(Answer, Lease)> {
        let rest = end.saturating_duration_since(Instant::now());
        for (kind, server, until) in [(Kind::Renew, Some(&last.server), end - rest / 5), (Kind::Rebind, None, end)] {
            let server = server.map(Vec::as_slice);
            if let Ok(reply) = self.ask(socket, kind, server, Some(lease.address), Some(until)).await
                && let Some(lease) = reply.lease
            {
                return Ok((reply, lease));
            }
        }
        anyhow::bail!("no DHCPv6 server has renewed it")
    }

    /// Asks until there is an answer, or until `until`.
    async fn ask(
        &self,
        socket: &UdpSocket,
        kind: Kind,
        server: Option<&[u8]>,
        address: Option<Ipv6Addr>,
        until: Option<Instant>,
    ) -> Result<Answer> {
        let begin = Instant::now();
        let transaction = random()? & 0x00ff_ffff;
        let mut patience = FIRST_PATIENCE;
        while until.is_none_or(|until| Instant::now() < until) {
            let elapsed = u16::try_from(begin.elapsed().as_millis() / 10).unwrap_or(u16::MAX);
            let query = Query { kind, transaction, mac: self.nic.mac, server, address, elapsed };
            let to = SocketAddrV6::new(SERVERS, SERVER_PORT, 0, self.nic.index);
            socket.send_to(&wire6::encode(&query), to).await.with_context(|| format!("cannot send to {to}"))?;
            let left = until.map_or(patience, |until| until.saturating_duration_since(Instant::now()).min(patience));
            match timeout(left, self.listen(socket, transaction)).await {
                Ok(answer) => return answer,
                Err(_) => patience = (patience * 2).min(MOST_PATIENCE),
            }
        }
        anyhow::bail!("no DHCPv6 server answers")
    }

    async fn listen(&self, socket: &UdpSocket, transaction: u32) -> Result<Answer> {
        let mut bytes = vec![0u8; 2048];
        loop {
            let (length, _) = socket.recv_from(&mut bytes).await.context("cannot read the DHCPv6 server's answer")?;
            let message = bytes.get(..length).unwrap_or_default();
            if let Some(answer) = wire6::decode(message, transaction, self.nic.mac) {
                return Ok(answer);
            }
        }
    }

    fn socket(&self) -> Result<UdpSocket> {
        open_socket("DHCPv6", (Ipv6Addr::UNSPECIFIED, CLIENT_PORT).into(), &self.nic.name)
    }

    fn take_dns(&self, network: &Rc<Network>, answer: &Answer) -> Result<()> {
        let dns = if self.use_dns { answer.dns.iter().copied().map(IpAddr::V6).collect() } else { Vec::new() };
        network.set_dhcp_dns(&format!("{}/6", self.nic.name), dns)
    }
}
