//! Answers of servers on the network: DHCP, DHCPv6, the time.

use node_init::network::{wire, wire6};
use std::net::{Ipv4Addr, Ipv6Addr};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const TRANSACTION: u32 = 0x0a_0b_0c;

/// The address given and the options, behind a header that is an answer to us; and the bytes as they are.
pub(crate) fn dhcp4(data: &[u8]) {
    let _foreign = wire::decode(data, TRANSACTION, MAC);
    let Some((address, options)) = data.split_first_chunk::<4>() else { return };
    let query = wire::Query {
        kind: wire::Kind::Discover,
        transaction: TRANSACTION,
        mac: MAC,
        own: None,
        wanted: None,
        host_name: None,
    };
    let mut bytes = wire::encode(&query);
    assert_eq!(wire::decode(&bytes, TRANSACTION, MAC), None, "a question is no answer");
    bytes.truncate(240);
    bytes[0] = 2;
    bytes[16..20].copy_from_slice(address);
    bytes.extend(options);
    let Some(answer) = wire::decode(&bytes, TRANSACTION, MAC) else { return };
    assert_eq!(answer.address, Ipv4Addr::from(*address));
    assert!(answer.prefix <= 32 && answer.routes.len() <= options.len() && answer.dns.len() <= options.len());
    let wanted = Some((answer.address, answer.server));
    let request = wire::encode(&wire::Query { kind: wire::Kind::Request, wanted, ..query });
    assert!(request.len() >= 300);
}

/// The first byte chooses an advertisement or a reply; the options follow, behind our own identifier.
pub(crate) fn dhcp6(data: &[u8]) {
    let _foreign = wire6::decode(data, TRANSACTION, MAC);
    let Some((first, options)) = data.split_first() else { return };
    let mut bytes = vec![if first & 1 == 0 { 2 } else { 7 }, 0x0a, 0x0b, 0x0c, 0, 1, 0, 10, 0, 3, 0, 1];
    bytes.extend(MAC);
    bytes.extend(options);
    let Some(answer) = wire6::decode(&bytes, TRANSACTION, MAC) else { return };
    assert!((1..=130).contains(&answer.server.len()), "an identifier of {} bytes", answer.server.len());
    let address: Option<Ipv6Addr> = answer.lease.map(|lease| lease.address);
    let request = wire6::encode(&wire6::Query {
        kind: wire6::Kind::Request,
        transaction: TRANSACTION,
        mac: MAC,
        server: Some(&answer.server),
        address,
        elapsed: 0,
    });
    assert_eq!(wire6::decode(&request, TRANSACTION, MAC), None, "a question is no answer");
}

pub(crate) fn time(data: &[u8]) {
    let cookie = data.get(24..32).and_then(|part| part.try_into().ok()).unwrap_or([0; 8]);
    if let Ok(time) = node_init::boot::clock::read_answer(data, &cookie) {
        // Two eras of 2^32 seconds each.
        assert!((0..=2 << 32).contains(&(time / 1_000_000_000)), "{time}");
    }
}
