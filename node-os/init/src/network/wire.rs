//! DHCPv4 messages (RFC 2131, options of RFC 2132 and 3442). Pure; what comes from the network is hostile.

use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

const MAGIC: [u8; 4] = [99, 130, 83, 99];
const HEADER: usize = 236;
const BROADCAST_FLAG: u8 = 0x80;

/// Kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the RFC's own")]
pub enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Ack = 5,
    Nak = 6,
}

/// What a client sends.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    /// Kind.
    pub kind: Kind,
    /// Transaction.
    pub transaction: u32,
    /// Hardware address.
    pub mac: [u8; 6],
    /// Address that the client has and renews.
    pub own: Option<Ipv4Addr>,
    /// Address that it asks for, and the server that offered it.
    pub wanted: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Host name, when it is known.
    pub host_name: Option<&'a str>,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Kind.
    pub kind: Kind,
    /// The address given.
    pub address: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
    /// The server.
    pub server: Ipv4Addr,
    /// Destination and gateway of each route; the unspecified gateway means on the link.
    pub routes: Vec<(Ipv4Net, Ipv4Addr)>,
    /// DNS servers.
    pub dns: Vec<Ipv4Addr>,
    /// Seconds for which the address is given.
    pub lease_s: u32,
    /// MTU.
    pub mtu: Option<u16>,
}

/// Bytes of a query.
pub fn encode(query: &Query<'_>) -> Vec<u8> {
    let mut bytes = vec![0u8; HEADER];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    put(0, &[1, 1, 6, 0]);
    put(4, &query.transaction.to_be_bytes());
    // An address that is not there yet cannot be sent to.
    put(10, &[if query.own.is_none() { BROADCAST_FLAG } else { 0 }, 0]);
    if let Some(own) = query.own {
        put(12, &own.octets());
    }
    put(28, &query.mac);
    bytes.extend(MAGIC);
    let mut option = |code: u8, value: &[u8]| {
        bytes.push(code);
        bytes.push(u8::try_from(value.len()).unwrap_or(0));
        bytes.extend(value.get(..value.len().min(255)).unwrap_or_default());
    };
    option(53, &[query.kind as u8]);
    option(61, &[&[1][..], &query.mac].concat());
    option(57, &1472u16.to_be_bytes());
    if let Some((address, server)) = query.wanted {
        option(50, &address.octets());
        option(54, &server.octets());
    }
    if let Some(name) = query.host_name.filter(|name| name.len() <= 63) {
        option(12, name.as_bytes());
    }
    option(55, &[1, 3, 6, 15, 26, 51, 54, 121]);
    bytes.push(255);
    // Some relays drop messages shorter than BOOTP's 300 bytes.
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

/// A server's answer to `transaction` of `mac`; `None` for all that is something else.
pub fn decode(bytes: &[u8], transaction: u32, mac: [u8; 6]) -> Option<Answer> {
    let is_ours = bytes.first() == Some(&2)
        && bytes.get(4..8) == Some(&transaction.to_be_bytes()[..])
        && bytes.get(28..34) == Some(&mac[..])
        && bytes.get(HEADER..HEADER + 4) == Some(&MAGIC[..]);
    if !is_ours {
        return None;
    }
    let address = ipv4(bytes.get(16..20)?)?;
    let mut kind = None;
    let mut answer = Answer {
        kind: Kind::Nak,
        address,
        prefix: natural_prefix(address),
        server: Ipv4Addr::UNSPECIFIED,
        routes: Vec::new(),
        dns: Vec::new(),
        lease_s: 3600,
        mtu: None,
    };
    let mut router = None;
    let mut rest = bytes.get(HEADER + 4..)?;
    while let Some((&code, tail)) = rest.split_first() {
        match code {
            0 => {
                rest = tail;
                continue;
            }
            255 => break,
            _ => {}
        }
        let (&length, tail) = tail.split_first()?;
        let (value, tail) = tail.split_at_checked(usize::from(length))?;
        match code {
            1 => answer.prefix = ipnet::ipv4_mask_to_prefix(ipv4(value)?).ok()?,
            3 => router = ipv4(value.get(..4)?),
            6 => answer.dns = value.chunks_exact(4).filter_map(ipv4).collect(),
            26 => answer.mtu = value.try_into().ok().map(u16::from_be_bytes).filter(|mtu| *mtu >= 576),
            51 => answer.lease_s = u32::from_be_bytes(value.try_into().ok()?),
            53 => kind = kind_of(*value.first()?),
            54 => answer.server = ipv4(value)?,
            121 => answer.routes = classless_routes(value)?,
            _ => {}
        }
        rest = tail;
    }
    // RFC 3442: with classless routes the router option is not looked at.
    if let (true, Some(router)) = (answer.routes.is_empty(), router) {
        answer.routes.push((Ipv4Net::default(), router));
    }
    answer.kind = kind?;
    let usable =
        !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() && !address.is_broadcast();
    (usable || answer.kind == Kind::Nak).then_some(answer)
}

fn kind_of(code: u8) -> Option<Kind> {
    [Kind::Offer, Kind::Ack, Kind::Nak].into_iter().find(|kind| *kind as u8 == code)
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn natural_prefix(address: Ipv4Addr) -> u8 {
    match address.octets().first() {
        Some(0..128) => 8,
        Some(128..192) => 16,
        _ => 24,
    }
}

fn classless_routes(mut rest: &[u8]) -> Option<Vec<(Ipv4Net, Ipv4Addr)>> {
    let mut routes = Vec::new();
    while let Some((&prefix, tail)) = rest.split_first() {
        let significant = usize::from(prefix.div_ceil(8));
        let (destination, tail) = tail.split_at_checked(significant)?;
        let (gateway, tail) = tail.split_at_checked(4)?;
        let mut octets = [0u8; 4];
        octets.get_mut(..significant)?.copy_from_slice(destination);
        routes.push((Ipv4Net::new(octets.into(), prefix).ok()?.trunc(), ipv4(gateway)?));
        rest = tail;
    }
    Some(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

    fn answer(options: &[u8]) -> Vec<u8> {
        let query = Query { kind: Kind::Discover, transaction: 7, mac: MAC, own: None, wanted: None, host_name: None };
        let mut bytes = encode(&query)[..HEADER + 4].to_vec();
        bytes[0] = 2;
        bytes[16..20].copy_from_slice(&[10, 0, 2, 15]);
        bytes.extend(options);
        bytes
    }

    #[test]
    fn an_offer_is_read() {
        let bytes = answer(&[
            53, 1, 2, 0, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 2, 2, 6, 4, 10, 0, 2, 3, 51, 4, 0, 1, 81, 128, 54, 4, 10,
            0, 2, 2, 255,
        ]);
        let answer = decode(&bytes, 7, MAC).unwrap();
        assert_eq!((answer.kind, answer.prefix, answer.lease_s), (Kind::Offer, 24, 86400));
        assert_eq!(answer.routes, [(Ipv4Net::default(), Ipv4Addr::new(10, 0, 2, 2))]);
        assert_eq!(answer.dns, [Ipv4Addr::new(10, 0, 2, 3)]);
        assert_eq!(decode(&bytes, 8, MAC), None, "another transaction");
        assert_eq!(decode(&bytes, 7, [0; 6]), None, "another machine");
    }

    #[test]
    fn classless_routes_stand_above_the_router() {
        let bytes = answer(&[53, 1, 5, 3, 4, 1, 1, 1, 1, 121, 14, 0, 10, 0, 2, 2, 24, 10, 9, 8, 0, 0, 0, 0, 0, 0, 255]);
        assert_eq!(decode(&bytes, 7, MAC), None, "a broken option spoils the message");
        let bytes = answer(&[53, 1, 5, 3, 4, 1, 1, 1, 1, 121, 13, 0, 10, 0, 2, 2, 24, 10, 9, 8, 0, 0, 0, 0, 255]);
        let routes = decode(&bytes, 7, MAC).unwrap().routes;
        assert_eq!(routes.len(), 2);
        assert_eq!(routes[1].0.to_string(), "10.9.8.0/24");
    }

    #[test]
    fn cut_messages_are_refused_without_harm() {
        let bytes = answer(&[53, 1, 2, 1, 4, 255, 255, 255, 0, 6, 8, 1, 2]);
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length], 7, MAC);
        }
        assert_eq!(decode(&bytes, 7, MAC), None);
    }

    #[test]
    fn spoiled_messages_do_no_harm() {
        let good = answer(&[
            53, 1, 5, 1, 4, 255, 255, 255, 0, 3, 4, 10, 0, 2, 2, 6, 8, 10, 0, 2, 3, 10, 0, 2, 4, 26, 2, 5, 220, 51, 4,
            0, 1, 81, 128, 54, 4, 10, 0, 2, 2, 121, 8, 24, 10, 9, 8, 0, 0, 0, 0, 255,
        ]);
        let mut dice = test_spoil::Dice::new(1);
        let read = (0..50_000)
            .filter(|_| {
                let bad = test_spoil::bytes(&good, &mut dice);
                decode(&bad, 7, MAC).is_some()
            })
            .count();
        assert!((1000..50_000).contains(&read), "{read} were read");
    }
}
