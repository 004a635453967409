//! The few packets that a stranger sends, and what it understands of those that come back. No I/O.

pub use kimg::switch::Mac;
use std::net::Ipv4Addr;

/// Protocol numbers of IPv4.
pub const ICMP: u8 = 1;
/// See [`ICMP`].
pub const TCP: u8 = 6;
/// See [`ICMP`].
pub const UDP: u8 = 17;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;
/// Flags of TCP.
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const PSH: u8 = 0x08;
/// See [`FIN`].
pub const ACK: u8 = 0x10;
/// Sequence number of every knock.
const SEQUENCE: u32 = 0x6b69_6d67;

/// What was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Who has an address.
    Arp {
        /// Its hardware address.
        mac: Mac,
        /// Its address.
        address: Ipv4Addr,
    },
    /// Somebody wants this machine's hardware address.
    AskedFor {
        /// Who asks.
        mac: Mac,
        /// Who asks.
        address: Ipv4Addr,
    },
    /// The answer to a ping.
    Pong {
        /// Who answers.
        from: Ipv4Addr,
        /// The ping's mark.
        mark: u16,
    },
    /// The answer to a knock at a TCP port.
    Tcp {
        /// Who answers.
        from: Ipv4Addr,
        /// The port that was knocked at.
        port: u16,
        /// The port that knocked.
        to: u16,
        /// Whether somebody listens.
        open: bool,
    },
    /// A datagram.
    Udp {
        /// Who sent it.
        from: Ipv4Addr,
        /// From which port.
        port: u16,
        /// To which port.
        to: u16,
    },
    /// A datagram of ours came to a port where nobody listens.
    Unreachable {
        /// Who says so.
        from: Ipv4Addr,
        /// The port.
        port: u16,
    },
}

/// Asks for the hardware address of `target`.
pub fn arp_request(mac: Mac, own: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let everybody = Mac([0xff; 6]);
    ethernet(mac, everybody, ETHERTYPE_ARP, &arp(ARP_REQUEST, mac, own, Mac([0; 6]), target))
}

/// Tells this machine's hardware address.
pub fn arp_reply(mac: Mac, own: Ipv4Addr, to: Mac, target: Ipv4Addr) -> Vec<u8> {
    ethernet(mac, to, ETHERTYPE_ARP, &arp(ARP_REPLY, mac, own, to, target))
}

fn arp(operation: u8, mac: Mac, own: Ipv4Addr, to: Mac, target: Ipv4Addr) -> Vec<u8> {
    // Ethernet and IPv4, with their lengths.
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(mac.0);
    packet.extend(own.octets());
    packet.extend(to.0);
    packet.extend(target.octets());
    packet
}

/// A frame with an IPv4 packet.
pub fn ipv4(mac: Mac, to: Mac, own: Ipv4Addr, target: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    // No fragments, 64 hops.
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    packet.extend(own.octets());
    packet.extend(target.octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    ethernet(mac, to, ETHERTYPE_IPV4, &packet)
}

pub(crate) fn ethernet(mac: Mac, to: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len().max(46));
    frame.extend(to.0);
    frame.extend(mac.0);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    // The least that Ethernet carries.
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The first packet of a TCP connection.
pub fn knock(own: Ipv4Addr, target: Ipv4Addr, from: u16, to: u16) -> Vec<u8> {
    tcp(own, target, from, to, SEQUENCE, SYN)
}

/// Ends what a knock began.
pub fn reset(own: Ipv4Addr, target: Ipv4Addr, from: u16, to: u16) -> Vec<u8> {
    tcp(own, target, from, to, SEQUENCE + 1, RST)
}

fn tcp(own: Ipv4Addr, target: Ipv4Addr, from: u16, to: u16, sequence: u32, flags: u8) -> Vec<u8> {
    segment(own, target, &Segment { port: to, to: from, sequence, flags, ..Segment::default() })
}

/// A TCP packet of a connection between a port of this machine and one of another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    /// The port over there.
    pub port: u16,
    /// The port here.
    pub to: u16,
    /// Of its first byte.
    pub sequence: u32,
    /// The next byte that the sender expects.
    pub acknowledges: u32,
    /// [`SYN`] and others.
    pub flags: u8,
    /// What it carries.
    pub content: Vec<u8>,
}

/// Writes a segment from here to there.
pub fn segment(own: Ipv4Addr, target: Ipv4Addr, what: &Segment) -> Vec<u8> {
    let mut segment = Vec::from(what.to.to_be_bytes());
    segment.extend(what.port.to_be_bytes());
    segment.extend(what.sequence.to_be_bytes());
    segment.extend(what.acknowledges.to_be_bytes());
    // A header of five words; a window; no checksum yet.
    segment.extend([5 << 4, what.flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    segment.extend(&what.content);
    let sum = checksum(&[&pseudo_header(own, target, TCP, segment.len()), &segment]);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// A UDP datagram.
pub fn datagram(own: Ipv4Addr, target: Ipv4Addr, from: u16, to: u16, content: &[u8]) -> Vec<u8> {
    let length = (8 + content.len()) as u16;
    let mut datagram = Vec::from(from.to_be_bytes());
    datagram.extend(to.to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(content);
    let sum = checksum(&[&pseudo_header(own, target, UDP, datagram.len()), &datagram]);
    // Zero means that there is none.
    let sum = if sum == 0 { 0xffff } else { sum };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// An ICMP echo request.
pub fn ping(mark: u16) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0];
    message.extend(mark.to_be_bytes());
    message.extend([0, 1]);
    let sum = checksum(&[&message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn pseudo_header(own: Ipv4Addr, target: Ipv4Addr, protocol: u8, length: usize) -> Vec<u8> {
    let mut header = Vec::from(own.octets());
    header.extend(target.octets());
    header.extend([0, protocol]);
    header.extend((length as u16).to_be_bytes());
    header
}

/// The Internet checksum (RFC 1071); every part but the last has an even length.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words.map(|w| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Reads a TCP packet to this machine, and who sent it.
pub fn read_segment(frame: &[u8], mac: Mac, own: Ipv4Addr) -> Option<(Ipv4Addr, Segment)> {
    let packet = frame.get(14..)?;
    let ours = frame.get(..6)? == mac.0 && word(frame, 12)? == ETHERTYPE_IPV4 && address(packet, 16)? == own;
    if !ours || *packet.get(9)? != TCP {
        return None;
    }
    // What follows the packet only fills the frame.
    let packet = packet.get(..usize::from(word(packet, 2)?))?;
    let segment = packet.get(usize::from(packet.first()? & 0x0f) * 4..)?;
    let number = |at: usize| Some(u32::from_be_bytes(segment.get(at..at + 4)?.try_into().ok()?));
    let content = segment.get(usize::from(*segment.get(12)? >> 4) * 4..)?;
    let read = Segment {
        port: word(segment, 0)?,
        to: word(segment, 2)?,
        sequence: number(4)?,
        acknowledges: number(8)?,
        flags: *segment.get(13)?,
        content: content.to_vec(),
    };
    Some((address(packet, 12)?, read))
}

/// Reads a frame; none where it says nothing to the machine with these addresses.
pub fn read(frame: &[u8], mac: Mac, own: Ipv4Addr) -> Option<Heard> {
    let to: [u8; 6] = frame.get(..6)?.try_into().ok()?;
    if Mac(to) != mac && !Mac(to).is_group() {
        return None;
    }
    let payload = frame.get(14..)?;
    match word(frame, 12)? {
        ETHERTYPE_ARP => read_arp(payload, own),
        ETHERTYPE_IPV4 => read_ipv4(payload, own),
        _ => None,
    }
}

fn read_arp(packet: &[u8], own: Ipv4Addr) -> Option<Heard> {
    let mac = Mac(packet.get(8..14)?.try_into().ok()?);
    let address = address(packet, 14)?;
    match *packet.get(7)? {
        ARP_REQUEST if self::address(packet, 24)? == own => Some(Heard::AskedFor { mac, address }),
        ARP_REPLY => Some(Heard::Arp { mac, address }),
        _ => None,
    }
}

fn read_ipv4(packet: &[u8], own: Ipv4Addr) -> Option<Heard> {
    let (from, to) = (address(packet, 12)?, address(packet, 16)?);
    if to != own {
        return None;
    }
    let payload = packet.get(usize::from(packet.first()? & 0x0f) * 4..)?;
    match *packet.get(9)? {
        ICMP => read_icmp(payload, from),
        TCP => {
            let flags = *payload.get(13)?;
            let open = flags & (SYN | ACK) == SYN | ACK;
            (open || flags & RST != 0).then_some(Heard::Tcp {
                from,
                port: word(payload, 0)?,
                to: word(payload, 2)?,
                open,
            })
        }
        UDP => Some(Heard::Udp { from, port: word(payload, 0)?, to: word(payload, 2)? }),
        _ => None,
    }
}

fn read_icmp(message: &[u8], from: Ipv4Addr) -> Option<Heard> {
    const ECHO_REPLY: u8 = 0;
    const UNREACHABLE: u8 = 3;
    match *message.first()? {
        ECHO_REPLY => Some(Heard::Pong { from, mark: word(message, 4)? }),
        UNREACHABLE => {
            // The packet that did not arrive follows.
            let packet = message.get(8..)?;
            let payload = packet.get(usize::from(packet.first()? & 0x0f) * 4..)?;
            Some(Heard::Unreachable { from, port: word(payload, 2)? })
        }
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(four))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: (Mac, Ipv4Addr) = (Mac([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 0, 1));
    const NODE: (Mac, Ipv4Addr) = (Mac([2, 0, 0, 0, 0, 2]), Ipv4Addr::new(10, 0, 0, 2));

    /// What I hear when the node sends this.
    fn from_node(protocol: u8, payload: &[u8]) -> Option<Heard> {
        read(&ipv4(NODE.0, ME.0, NODE.1, ME.1, protocol, payload), ME.0, ME.1)
    }

    #[test]
    fn checksums_are_the_internets() {
        // The example of RFC 1071, section 3.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
        // Over a packet with its sum in place, the sum is zero.
        let segment = knock(ME.1, NODE.1, 1, 2);
        assert_eq!(checksum(&[&pseudo_header(ME.1, NODE.1, TCP, segment.len()), &segment]), 0);
        let datagram = datagram(ME.1, NODE.1, 1, 2, b"odd");
        assert_eq!(checksum(&[&pseudo_header(ME.1, NODE.1, UDP, datagram.len()), &datagram]), 0);
    }

    #[test]
    fn what_a_node_says_is_understood() {
        let asked = read(&arp_request(NODE.0, NODE.1, ME.1), ME.0, ME.1);
        assert_eq!(asked, Some(Heard::AskedFor { mac: NODE.0, address: NODE.1 }));
        assert_eq!(read(&arp_request(NODE.0, NODE.1, Ipv4Addr::new(10, 0, 0, 9)), ME.0, ME.1), None);
        let told = read(&arp_reply(NODE.0, NODE.1, ME.0, ME.1), ME.0, ME.1);
        assert_eq!(told, Some(Heard::Arp { mac: NODE.0, address: NODE.1 }));

        let tcp = |flags| from_node(TCP, &tcp(NODE.1, ME.1, 443, 7, 0, flags));
        assert_eq!(tcp(SYN | ACK), Some(Heard::Tcp { from: NODE.1, port: 443, to: 7, open: true }));
        assert_eq!(tcp(RST | ACK), Some(Heard::Tcp { from: NODE.1, port: 443, to: 7, open: false }));
        assert_eq!(tcp(ACK), None);

        assert_eq!(
            from_node(UDP, &datagram(NODE.1, ME.1, 53, 7, b"x")),
            Some(Heard::Udp { from: NODE.1, port: 53, to: 7 })
        );
        let mut refused = vec![3, 3, 0, 0, 0, 0, 0, 0];
        refused.extend(&ipv4(ME.0, NODE.0, ME.1, NODE.1, UDP, &datagram(ME.1, NODE.1, 7, 68, b""))[14..]);
        assert_eq!(from_node(ICMP, &refused), Some(Heard::Unreachable { from: NODE.1, port: 68 }));
        let mut pong = ping(77);
        pong[0] = 0;
        assert_eq!(from_node(ICMP, &pong), Some(Heard::Pong { from: NODE.1, mark: 77 }));
    }

    #[test]
    fn a_segment_is_read_without_what_fills_its_frame() {
        let sent =
            Segment { port: 7, to: 80, sequence: 3, acknowledges: 9, flags: ACK | PSH, content: b"odd".to_vec() };
        let frame = ipv4(NODE.0, ME.0, NODE.1, ME.1, TCP, &segment(NODE.1, ME.1, &sent));
        assert_eq!(frame.len(), 60);
        // What is there for the sender is here for the one who hears it.
        let heard = Segment { port: 80, to: 7, ..sent };
        assert_eq!(read_segment(&frame, ME.0, ME.1), Some((NODE.1, heard)));
        for length in 0..14 + 20 + 23 {
            assert_eq!(read_segment(&frame[..length], ME.0, ME.1), None, "{length}");
        }
    }

    #[test]
    fn what_is_meant_for_others_and_what_is_cut_short_says_nothing() {
        let frame = ipv4(NODE.0, NODE.0, NODE.1, ME.1, ICMP, &ping(1));
        assert_eq!(read(&frame, ME.0, ME.1), None);
        let whole = ipv4(NODE.0, ME.0, NODE.1, ME.1, TCP, &tcp(NODE.1, ME.1, 443, 7, 0, SYN | ACK));
        for length in 0..14 + 20 + 14 {
            assert_eq!(read(&whole[..length], ME.0, ME.1), None, "{length}");
        }
    }
}
