//! DNS servers that routers advertise (RDNSS, RFC 8106). The kernel takes the advertisements: it says whether an
//! interface listens to any, and whether one came from its link, and hands on the options that mean nothing to it.

use super::Network;
use anyhow::{Context, Result};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::rc::Weak;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// Options of neighbour discovery for user space (`RTNLGRP_ND_USEROPT`).
const GROUP: u32 = 20;
const NEW_OPTION: u16 = 68;
const ADVERTISEMENT: u8 = 134;
const IPV6: u8 = 10;
const RDNSS: u8 = 25;
/// No more of one interface are kept, as the resolver library looks at no more: a router that names thousands, or
/// others all the time, does not push out those that were there before.
const MOST: usize = 3;
/// How long nothing has to be looked at when no server ends.
const IDLE: Duration = Duration::from_secs(3600);
/// After a fault of the socket; what was missed is advertised again.
const PAUSE: Duration = Duration::from_secs(1);

/// What routers say now.
#[derive(Debug, Default)]
pub(super) struct Advertised {
    /// Servers with their ends, by interface.
    servers: BTreeMap<u32, Vec<(Ipv6Addr, Instant)>>,
    /// Interfaces of which nothing is heard, not even what is on its way already.
    deaf: BTreeSet<u32>,
}

impl Advertised {
    fn take(&mut self, said: &Said, now: Instant) {
        if self.deaf.contains(&said.index) {
            return;
        }
        let known = self.servers.entry(said.index).or_default();
        known.retain(|(_, end)| *end > now);
        // Zero takes a server back; all ones, for ever, are 136 years.
        let end = now + Duration::from_secs(u64::from(said.lifetime_s));
        for server in &said.servers {
            if let Some(entry) = known.iter_mut().find(|(own, _)| own == server) {
                entry.1 = end;
            } else if known.len() < MOST {
                known.push((*server, end));
            }
        }
        self.expire(now);
    }

    fn expire(&mut self, now: Instant) {
        self.servers.values_mut().for_each(|known| known.retain(|(_, end)| *end > now));
        self.servers.retain(|_, known| !known.is_empty());
    }

    /// Whether this interface listens to routers.
    pub(super) fn heed(&mut self, index: u32, heed: bool) {
        if heed {
            self.deaf.remove(&index);
        } else {
            self.deaf.insert(index);
            self.servers.remove(&index);
        }
    }

    pub(super) fn servers(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.servers.values().flatten().map(|(server, _)| *server)
    }

    fn first_end(&self) -> Option<Instant> {
        self.servers.values().flatten().map(|(_, end)| *end).min()
    }
}

/// Hears what the kernel hands on. It is opened before the first card is up: routers are asked only once.
pub(super) fn open() -> Result<TokioSocket> {
    let open = || {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 1 << (GROUP - 1)))?;
        Ok::<_, std::io::Error>(socket)
    };
    open().context("cannot open a netlink socket for router advertisements")
}

/// Keeps the resolver's servers true to what routers say, as long as there is a network.
pub(super) async fn listen(socket: TokioSocket, network: Weak<Network>) {
    let mut next = Instant::now() + IDLE;
    loop {
        let heard = timeout_at(next, socket.recv_from_full()).await;
        let Some(network) = network.upgrade() else { return };
        let now = Instant::now();
        let said = match heard {
            Ok(Ok((bytes, from))) if from.port_number() == 0 => decode(&bytes),
            Ok(Err(error)) => {
                tracing::warn!("router advertisements: {error}");
                sleep(PAUSE).await;
                Vec::new()
            }
            // Not the kernel, or the time of a server is over.
            Ok(Ok(_)) | Err(_) => Vec::new(),
        };
        let written = network.change_dns(|network| {
            let mut advertised = network.advertised.borrow_mut();
            said.iter().for_each(|said| advertised.take(said, now));
            advertised.expire(now);
        });
        if let Err(error) = written {
            tracing::warn!("DNS servers of router advertisements: {error:#}");
        }
        let end = network.advertised.borrow().first_end();
        next = end.unwrap_or(now + IDLE).min(now + IDLE);
    }
}

/// One option.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    /// The interface.
    index: u32,
    /// Seconds.
    lifetime_s: u32,
    servers: Vec<Ipv6Addr>,
}

/// Messages of the kernel, with options that a router wrote.
fn decode(mut bytes: &[u8]) -> Vec<Said> {
    let mut found = Vec::new();
    while let Some((message, rest)) = message(bytes) {
        found.extend(message.unwrap_or_default());
        bytes = rest;
    }
    found
}

/// The first message's options (none when it is about something else), and what follows it.
fn message(bytes: &[u8]) -> Option<(Option<Vec<Said>>, &[u8])> {
    const HEADER: usize = 16;
    let length = usize::try_from(u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?)).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(HEADER..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(((kind == NEW_OPTION).then(|| options(body)).flatten(), rest))
}

fn options(body: &[u8]) -> Option<Vec<Said>> {
    const HEADER: usize = 16;
    let length = usize::from(u16::from_ne_bytes(body.get(2..4)?.try_into().ok()?));
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    if body.first() != Some(&IPV6) || body.get(8) != Some(&ADVERTISEMENT) {
        return None;
    }
    let mut rest = body.get(HEADER..HEADER + length)?;
    let mut found = Vec::new();
    while let [kind, eights, ..] = rest {
        // Without a length there is no next one.
        let (option, tail) =
            rest.split_at_checked(usize::from(*eights) * 8).filter(|(option, _)| !option.is_empty())?;
        if *kind == RDNSS {
            found.extend(rdnss(index, option));
        }
        rest = tail;
    }
    Some(found)
}

fn rdnss(index: u32, option: &[u8]) -> Option<Said> {
    let lifetime_s = u32::from_be_bytes(option.get(4..8)?.try_into().ok()?);
    let addresses = option.get(8..)?.chunks_exact(16).filter_map(|chunk| <[u8; 16]>::try_from(chunk).ok());
    Some(Said { index, lifetime_s, servers: addresses.map(Ipv6Addr::from).filter(is_usable).collect() })
}

/// One on the link means something only with its interface, which pods do not have.
fn is_usable(server: &Ipv6Addr) -> bool {
    let elsewhere = server.to_ipv4_mapped().is_some() || server.is_unicast_link_local() || server.is_multicast();
    !elsewhere && !server.is_loopback() && !server.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn option(lifetime_s: u32, servers: &[&str]) -> Vec<u8> {
        let mut bytes = vec![RDNSS, u8::try_from(1 + 2 * servers.len()).unwrap(), 0, 0];
        bytes.extend(lifetime_s.to_be_bytes());
        servers.iter().for_each(|server| bytes.extend(ip(server).octets()));
        bytes
    }

    /// As the kernel writes it: one option, and then who advertised it.
    fn handed_on(kind: u16, options: &[u8]) -> Vec<u8> {
        let mut body = vec![IPV6, 0];
        body.extend(u16::try_from(options.len()).unwrap().to_ne_bytes());
        body.extend(7u32.to_ne_bytes());
        body.extend([ADVERTISEMENT, 0, 0, 0, 0, 0, 0, 0]);
        body.extend(options);
        body.extend([20, 0, 1, 0]);
        body.extend(ip("fe80::1").octets());
        let mut bytes = Vec::from(u32::try_from(16 + body.len()).unwrap().to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(body);
        bytes
    }

    fn said(lifetime_s: u32, servers: &[&str]) -> Said {
        Said { index: 7, lifetime_s, servers: servers.iter().map(|server| ip(server)).collect() }
    }

    #[test]
    fn options_are_read() {
        let one = option(600, &["2001:db8::53", "2001:db8::54"]);
        let mut two = one.clone();
        // A search list, which is nobody's.
        two.extend([31, 2, 0, 0, 0, 0, 0, 9, 1, b'a', 0, 0, 0, 0, 0, 0]);
        two.extend(option(u32::MAX, &["2001:db8::55"]));
        let mut all = handed_on(NEW_OPTION, &one);
        all.extend(handed_on(16, &one));
        all.extend(handed_on(NEW_OPTION, &two));
        let first = said(600, &["2001:db8::53", "2001:db8::54"]);
        assert_eq!(decode(&all), [first.clone(), first, said(u32::MAX, &["2001:db8::55"])]);
    }

    #[test]
    fn what_is_no_server_is_left_out() {
        let bad = ["fe80::53", "ff02::fb", "::", "::1", "::ffff:10.0.0.1", "2001:db8::53"];
        assert_eq!(decode(&handed_on(NEW_OPTION, &option(60, &bad))), [said(60, &["2001:db8::53"])]);
    }

    #[test]
    fn options_that_lie_about_their_length_are_not_read() {
        let good = option(60, &["2001:db8::53"]);
        // Nothing, more than there is, and the most that can be said.
        for eights in [0, 4, 255] {
            let mut bad = good.clone();
            bad[1] = eights;
            assert_eq!(decode(&handed_on(NEW_OPTION, &bad)), [], "{eights}");
        }
        // An address that is cut in the middle is none, and an option may have none.
        let mut cut = good.clone();
        cut.truncate(16);
        cut[1] = 2;
        assert_eq!(decode(&handed_on(NEW_OPTION, &cut)), [said(60, &[])]);
        assert_eq!(decode(&handed_on(NEW_OPTION, &option(9, &[]))), [said(9, &[])]);
        assert_eq!(decode(&handed_on(NEW_OPTION, &[RDNSS, 1, 0, 0])), []);
        let whole = handed_on(NEW_OPTION, &good);
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), [], "{length}");
        }
        // The message is longer than it says, or says that it is longer.
        for length in [0u32, 15, 16, 40, u32::MAX] {
            let mut bad = whole.clone();
            bad[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(decode(&bad), [], "{length}");
        }
    }

    #[test]
    fn spoiled_messages_do_no_harm() {
        let good = handed_on(NEW_OPTION, &option(600, &["2001:db8::53", "2001:db8::54"]));
        let mut dice = test_spoil::Dice::new(1);
        let read = (0..50_000).filter(|_| !decode(&test_spoil::bytes(&good, &mut dice)).is_empty()).count();
        assert!((1000..50_000).contains(&read), "{read} were read");
    }

    #[test]
    fn servers_live_as_long_as_they_are_advertised() {
        let (mut own, start) = (Advertised::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let servers = |own: &Advertised| own.servers().map(|server| server.to_string()).collect::<Vec<_>>();
        own.take(&said(600, &["2001:db8::1", "2001:db8::2"]), start);
        own.take(&said(600, &["2001:db8::2", "2001:db8::1"]), after(300));
        own.expire(after(700));
        assert_eq!(servers(&own), ["2001:db8::1", "2001:db8::2"], "said again, in the first order");
        own.take(&said(0, &["2001:db8::1", "2001:db8::9"]), after(700));
        assert_eq!((servers(&own), own.first_end()), (vec!["2001:db8::2".to_owned()], Some(after(900))));
        own.take(&said(u32::MAX, &["2001:db8::3"]), after(800));
        own.expire(after(900));
        assert_eq!(servers(&own), ["2001:db8::3"]);
        own.heed(7, false);
        own.take(&said(60, &["2001:db8::3"]), after(900));
        assert_eq!((servers(&own), own.first_end()), (vec![], None));
        own.heed(7, true);
        own.take(&said(60, &["2001:db8::3"]), after(900));
        assert_eq!(servers(&own), ["2001:db8::3"]);
    }

    #[test]
    fn a_router_that_names_many_does_not_push_out_the_others() {
        let (mut own, now) = (Advertised::default(), Instant::now());
        own.take(&said(60, &["2001:db8::1"]), now);
        for last in 0x10..0x1000 {
            let server = format!("2001:db8::{last:x}");
            own.take(&said(u32::MAX, &[&server]), now);
        }
        assert_eq!(
            own.servers().map(|server| server.to_string()).collect::<Vec<_>>(),
            ["2001:db8::1", "2001:db8::10", "2001:db8::11"]
        );
    }
}
