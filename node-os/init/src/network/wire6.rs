//! DHCPv6 messages (RFC 8415; DNS options of RFC 3646). Pure; what comes from the network is hostile.

use std::net::Ipv6Addr;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const ADDRESSES: u16 = 3;
const ADDRESS: u16 = 5;
const WANTED: u16 = 6;
const ELAPSED: u16 = 8;
const STATUS: u16 = 13;
const RAPID_COMMIT: u16 = 14;
const DNS_SERVERS: u16 = 23;
/// Server identifiers are no longer (RFC 8415, 11.1).
const MOST_ID: usize = 130;

/// Kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the RFC's own")]
pub enum Kind {
    Solicit = 1,
    Advertise = 2,
    Request = 3,
    Renew = 5,
    Rebind = 6,
    Reply = 7,
    InformationRequest = 11,
}

/// What a client sends.
#[derive(Debug, Clone)]
pub struct Query<'a> {
    /// Kind.
    pub kind: Kind,
    /// Transaction, 24 bits.
    pub transaction: u32,
    /// Hardware address.
    pub mac: [u8; 6],
    /// The server that is meant, by its identifier; none: all.
    pub server: Option<&'a [u8]>,
    /// Address that the client has, or was offered.
    pub address: Option<Ipv6Addr>,
    /// Hundredths of a second since the exchange began.
    pub elapsed: u16,
}

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Advertise or Reply.
    pub kind: Kind,
    /// The server's identifier.
    pub server: Vec<u8>,
    /// The address given, with the seconds until it is to be renewed and until it ends.
    pub lease: Option<Lease>,
    /// DNS servers.
    pub dns: Vec<Ipv6Addr>,
}

/// An address of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv6Addr,
    /// Seconds until the server should be asked again; 0: the client's choice.
    pub renew_s: u32,
    /// Seconds until the address ends.
    pub valid_s: u32,
}

/// Bytes of a query.
pub fn encode(query: &Query<'_>) -> Vec<u8> {
    let [_, transaction @ ..] = query.transaction.to_be_bytes();
    let mut bytes = vec![query.kind as u8];
    bytes.extend(transaction);
    // DUID of the link-layer kind: type 3, hardware Ethernet.
    option(&mut bytes, CLIENT_ID, &[&[0, 3, 0, 1][..], &query.mac].concat());
    if let Some(server) = query.server {
        option(&mut bytes, SERVER_ID, server);
    }
    option(&mut bytes, ELAPSED, &query.elapsed.to_be_bytes());
    option(&mut bytes, WANTED, &DNS_SERVERS.to_be_bytes());
    if query.kind == Kind::Solicit {
        option(&mut bytes, RAPID_COMMIT, &[]);
    }
    if query.kind != Kind::InformationRequest {
        // One set of addresses, named by the end of the hardware address; its times are the server's choice.
        let [_, _, name @ ..] = query.mac;
        let mut set = [&name[..], &[0; 8]].concat();
        if let Some(address) = query.address {
            option(&mut set, ADDRESS, &[&address.octets()[..], &[0; 8]].concat());
        }
        option(&mut bytes, ADDRESSES, &set);
    }
    bytes
}

fn option(bytes: &mut Vec<u8>, code: u16, value: &[u8]) {
    bytes.extend(code.to_be_bytes());
    bytes.extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
    bytes.extend(value);
}

/// A server's answer to `transaction` of `mac`; `None` for all that is something else, or a refusal.
pub fn decode(bytes: &[u8], transaction: u32, mac: [u8; 6]) -> Option<Answer> {
    let kind = [Kind::Advertise, Kind::Reply].into_iter().find(|kind| bytes.first() == Some(&(*kind as u8)))?;
    let [_, wanted @ ..] = transaction.to_be_bytes();
    if bytes.get(1..4) != Some(&wanted[..]) {
        return None;
    }
    let mut answer = Answer { kind, server: Vec::new(), lease: None, dns: Vec::new() };
    let mut for_us = false;
    for (code, value) in options(bytes.get(4..)?)? {
        match code {
            CLIENT_ID => for_us = value.strip_prefix(&[0, 3, 0, 1]) == Some(&mac[..]),
            SERVER_ID => answer.server = Some(value).filter(|id| (1..=MOST_ID).contains(&id.len()))?.to_vec(),
            ADDRESSES => answer.lease = answer.lease.or(lease(value)?),
            DNS_SERVERS => answer.dns = value.chunks_exact(16).filter_map(ipv6).collect(),
            STATUS if !is_success(value) => return None,
            _ => {}
        }
    }
    (for_us && !answer.server.is_empty()).then_some(answer)
}

/// `None`: broken. `Some(None)`: no address.
fn lease(value: &[u8]) -> Option<Option<Lease>> {
    let renew_s = number(value.get(4..8)?)?;
    let mut found = None;
    for (code, value) in options(value.get(12..)?)? {
        match code {
            STATUS if !is_success(value) => return Some(None),
            ADDRESS => {
                let address = ipv6(value.get(..16)?)?;
                let valid_s = number(value.get(20..24)?)?;
                let usable = !address.is_unspecified() && !address.is_loopback() && !address.is_multicast();
                if usable && valid_s > 0 {
                    found = found.or(Some(Lease { address, renew_s, valid_s }));
                }
            }
            _ => {}
        }
    }
    Some(found)
}

fn options(mut rest: &[u8]) -> Option<Vec<(u16, &[u8])>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = rest.split_at_checked(4)?;
        let code = u16::from_be_bytes(head.get(..2)?.try_into().ok()?);
        let length = u16::from_be_bytes(head.get(2..4)?.try_into().ok()?);
        let (value, tail) = tail.split_at_checked(usize::from(length))?;
        found.push((code, value));
        rest = tail;
    }
    Some(found)
}

fn is_success(status: &[u8]) -> bool {
    status.get(..2) == Some(&[0, 0])
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.try_into().ok().map(u32::from_be_bytes)
}

fn ipv6(bytes: &[u8]) -> Option<Ipv6Addr> {
    <[u8; 16]>::try_from(bytes).ok().map(Ipv6Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

    fn query(kind: Kind) -> Query<'static> {
        Query { kind, transaction: 0x0a_0b_0c, mac: MAC, server: None, address: None, elapsed: 0 }
    }

    fn reply(more: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![7, 0x0a, 0x0b, 0x0c];
        option(&mut bytes, CLIENT_ID, &[&[0, 3, 0, 1][..], &MAC].concat());
        option(&mut bytes, SERVER_ID, &[0, 1, 0, 1, 9, 9]);
        for (code, value) in more {
            option(&mut bytes, *code, value);
        }
        bytes
    }

    fn set(address: &str, valid: u32) -> Vec<u8> {
        let mut set = [&[0, 0, 0, 1][..], &1800u32.to_be_bytes(), &2880u32.to_be_bytes()].concat();
        let address: Ipv6Addr = address.parse().unwrap();
        option(&mut set, ADDRESS, &[&address.octets()[..], &3600u32.to_be_bytes(), &valid.to_be_bytes()].concat());
        set
    }

    #[test]
    fn a_solicit_asks_for_one_address_and_dns() {
        let bytes = encode(&query(Kind::Solicit));
        assert_eq!(bytes[..4], [1, 0x0a, 0x0b, 0x0c]);
        let codes: Vec<u16> = options(&bytes[4..]).unwrap().iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, [CLIENT_ID, ELAPSED, WANTED, RAPID_COMMIT, ADDRESSES]);
        let codes: Vec<u16> =
            options(&encode(&query(Kind::InformationRequest))[4..]).unwrap().iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, [CLIENT_ID, ELAPSED, WANTED]);
    }

    #[test]
    fn a_reply_is_read() {
        let dns: Ipv6Addr = "2001:db8::53".parse().unwrap();
        let bytes = reply(&[(ADDRESSES, set("2001:db8::5", 7200)), (DNS_SERVERS, dns.octets().to_vec())]);
        let answer = decode(&bytes, 0x0a_0b_0c, MAC).unwrap();
        let lease = Lease { address: "2001:db8::5".parse().unwrap(), renew_s: 1800, valid_s: 7200 };
        assert_eq!((answer.kind, answer.lease, answer.dns), (Kind::Reply, Some(lease), vec![dns]));
        assert_eq!(decode(&bytes, 1, MAC), None, "another transaction");
        assert_eq!(decode(&bytes, 0x0a_0b_0c, [0; 6]), None, "another machine");
    }

    #[test]
    fn refusals_give_no_address() {
        assert_eq!(decode(&reply(&[(STATUS, vec![0, 2, b'n', b'o'])]), 0x0a_0b_0c, MAC), None);
        let mut none = vec![0; 12];
        option(&mut none, STATUS, &[0, 2]);
        assert_eq!(decode(&reply(&[(ADDRESSES, none)]), 0x0a_0b_0c, MAC).unwrap().lease, None);
        for address in ["::", "::1", "ff02::1"] {
            let answer = decode(&reply(&[(ADDRESSES, set(address, 60))]), 0x0a_0b_0c, MAC).unwrap();
            assert_eq!(answer.lease, None, "{address}");
        }
        assert_eq!(decode(&reply(&[(ADDRESSES, set("2001:db8::5", 0))]), 0x0a_0b_0c, MAC).unwrap().lease, None);
    }

    #[test]
    fn cut_and_altered_messages_do_no_harm() {
        let bytes = reply(&[(ADDRESSES, set("2001:db8::5", 7200)), (DNS_SERVERS, vec![1; 33])]);
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length], 0x0a_0b_0c, MAC);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = bytes.clone();
                bad[at] = value;
                let _ = decode(&bad, 0x0a_0b_0c, MAC);
            }
        }
    }

    #[test]
    fn spoiled_messages_do_no_harm() {
        let good = reply(&[(ADDRESSES, set("2001:db8::5", 7200)), (DNS_SERVERS, vec![1; 32]), (STATUS, vec![0, 0])]);
        let mut dice = test_spoil::Dice::new(1);
        let read = (0..50_000)
            .filter(|_| {
                let bad = test_spoil::bytes(&good, &mut dice);
                decode(&bad, 0x0a_0b_0c, MAC).is_some()
            })
            .count();
        assert!((1000..50_000).contains(&read), "{read} were read");
    }
}
