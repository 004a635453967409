//! What QEMU writes down of a cable (`filter-dump`, pcap's format), as far as it tells who asked a server.

use std::net::Ipv4Addr;

const FILE_HEADER: usize = 24;
const FRAME_HEADER: usize = 16;
const IPV4: [u8; 2] = [8, 0];
const TCP: u8 = 6;
const SYN: u8 = 2;
const ACK: u8 = 0x10;

/// The addresses from which connections to `server` were begun, each once, the first first. The file may still grow.
pub(super) fn connections_to(server: Ipv4Addr, port: u16, file: &[u8]) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut rest = file.get(FILE_HEADER..).unwrap_or_default();
    while let Some((frame, tail)) = first(rest) {
        if let Some(from) = begins_connection(frame, server, port)
            && !found.contains(&from)
        {
            found.push(from);
        }
        rest = tail;
    }
    found
}

fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let kept = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    bytes.get(FRAME_HEADER..)?.split_at_checked(kept as usize)
}

fn begins_connection(frame: &[u8], server: Ipv4Addr, port: u16) -> Option<Ipv4Addr> {
    let packet = frame.get(14..).filter(|_| frame[12..14] == IPV4)?;
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let segment = packet.get(usize::from(packet.first()? & 0x0f) * 4..)?;
    let begins = *packet.get(9)? == TCP && segment.get(13)? & (SYN | ACK) == SYN;
    (begins && address(16)? == server && segment.get(2..4)? == port.to_be_bytes()).then(|| address(12)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stranger::frames::{self, Mac};

    #[test]
    fn who_began_a_connection_is_found() {
        let [server, own, other] = [[169, 254, 169, 254], [169, 254, 3, 4], [169, 254, 169, 15]].map(Ipv4Addr::from);
        let knock = |from, to, port| {
            frames::ipv4(Mac([2; 6]), Mac([4; 6]), from, to, frames::TCP, &frames::knock(from, to, 7, port))
        };
        let sent = [
            knock(other, own, 80),
            knock(own, server, 80),
            frames::arp_request(Mac([2; 6]), other, server),
            knock(other, server, 443),
            knock(own, server, 80),
            knock(other, server, 80),
        ];
        let mut file = vec![0; FILE_HEADER];
        for frame in &sent {
            file.extend([0; 8]);
            let length = u32::try_from(frame.len()).expect("short");
            file.extend(length.to_ne_bytes().repeat(2));
            file.extend(frame);
        }
        assert_eq!(connections_to(server, 80, &file), [own, other]);
        for length in 0..file.len() {
            let found = connections_to(server, 80, &file[..length]);
            assert!([own, other].starts_with(&found), "{length}: {found:?}");
        }
    }
}
