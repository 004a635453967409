//! What stands in an Ethernet frame, as far as a switch cares.

use std::net::Ipv4Addr;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads `52:54:00:12:34:56`.
    pub fn parse(text: &str) -> Option<Mac> {
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        parts.next().is_none().then_some(Mac(bytes))
    }

    /// Broadcast or multicast.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|b| format!("{b:02x}")).collect();
        f.write_str(&parts.join(":"))
    }
}

/// Destination and source of a frame; none where it is too short to be one.
pub fn ends(frame: &[u8]) -> Option<(Mac, Mac)> {
    let destination = frame.get(..6)?.try_into().ok()?;
    let source = frame.get(6..12)?.try_into().ok()?;
    frame.get(12..14)?;
    Some((Mac(destination), Mac(source)))
}

/// Whether a machine with these addresses may say what this frame says about its sender.
pub fn source_is_own(frame: &[u8], mac: Mac, addresses: &[Ipv4Addr]) -> bool {
    let Some((_, source)) = ends(frame) else {
        return false;
    };
    if source != mac {
        return false;
    }
    let own = |at: usize| address(frame, at).is_some_and(|a| addresses.contains(&a) || a.is_unspecified());
    match u16::from_be_bytes([frame[12], frame[13]]) {
        // Header length does not matter: the source stands before the options.
        ETHERTYPE_IPV4 => own(14 + 12),
        // Sender's hardware and protocol address.
        ETHERTYPE_ARP => frame.get(14 + 8..14 + 14) == Some(mac.0.as_slice()) && own(14 + 14),
        _ => true,
    }
}

fn address(frame: &[u8], at: usize) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Addr::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(source: u8, ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, source]);
        frame.extend(ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    }

    #[test]
    fn own_and_foreign_sources() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let own = [Ipv4Addr::new(10, 0, 0, 1)];
        let ip = |last: u8| {
            let mut p = vec![0x45; 12];
            p.extend([10, 0, 0, last, 10, 0, 0, 9]);
            p
        };
        let arp = |hardware: u8, last: u8| {
            let mut p = vec![0; 8];
            p.extend([2, 0, 0, 0, 0, hardware, 10, 0, 0, last]);
            p
        };
        let cases = [
            (frame(1, 0x0800, &ip(1)), true),
            (frame(1, 0x0800, &ip(2)), false),
            (frame(2, 0x0800, &ip(1)), false),
            (frame(1, 0x0806, &arp(1, 1)), true),
            (frame(1, 0x0806, &arp(1, 7)), false),
            (frame(1, 0x0806, &arp(7, 1)), false),
            (frame(1, 0x86dd, &[0; 40]), true),
            (frame(1, 0x0800, &[0x45; 4]), false),
            (vec![1, 2, 3], false),
        ];
        for (frame, expected) in cases {
            assert_eq!(source_is_own(&frame, mac, &own), expected, "{frame:02x?}");
        }
    }

    #[test]
    fn hardware_addresses_as_text() {
        let mac = Mac::parse("52:54:00:12:34:56").expect("mac");
        assert_eq!(mac.to_string(), "52:54:00:12:34:56");
        assert_eq!(Mac::parse("52:54:00:12:34"), None);
        assert!(Mac([0xff; 6]).is_group() && !mac.is_group());
    }
}
