//! The network at the other ends of a machine's cables, which lead to one switch: a router that advertises a prefix and
//! a DNS server, and behind a VLAN's tag a DHCPv6 server. It pings, and hears who answers over which cable.

use crate::stranger::frames::{self, Heard as Spoken, Mac, checksum, ethernet};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The VLAN's tag.
pub const TAG: u16 = 7;
/// What the router advertises, without a tag: addresses of this prefix, of 64 bits.
pub const PREFIX: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0);
/// The DNS server that the router advertises; it hears and says nothing.
pub const DNS: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x53);
/// What DHCPv6 gives, behind the tag.
pub const LEASE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 0x77);

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const EVERYBODY: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const VLAN: [u8; 2] = [0x81, 0];
const IPV6: u16 = 0x86dd;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const TICK: Duration = Duration::from_millis(200);
const FRAME_LIMIT: usize = 1 << 16;

/// What was heard of the machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heard {
    /// It has answered a ping.
    Pong {
        /// Over the cable of this number.
        cable: usize,
        /// With this tag.
        tag: Option<u16>,
        /// From this address.
        from: IpAddr,
    },
    /// It has asked the advertised DNS server.
    Question,
}

/// The network; ends when dropped.
#[derive(Debug)]
pub struct Cables(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    cables: Vec<(UnixDatagram, PathBuf)>,
    /// Keeps the short paths to the sockets alive.
    _folder: File,
    heard: Mutex<BTreeSet<Heard>>,
    stop: AtomicBool,
}

impl Cables {
    /// Takes the far ends of these cables in this folder: `NAME.sw` is ours, `NAME.vm` QEMU's.
    ///
    /// # Errors
    /// The sockets cannot be made.
    pub fn plug_in(folder: &Path, names: &[&str]) -> Result<Cables> {
        let folder = File::open(folder).with_context(|| format!("opening {}", folder.display()))?;
        // The address of a socket must be short.
        let path = |name: &str, end: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}.{end}", folder.as_raw_fd()));
        let bind = |name: &&str| {
            let socket = UnixDatagram::bind(path(name, "sw")).with_context(|| format!("binding {name}.sw"))?;
            socket.set_read_timeout(Some(TICK)).context("setting a limit to waiting")?;
            Ok((socket, path(name, "vm")))
        };
        let cables = names.iter().map(bind).collect::<Result<_>>()?;
        let shared =
            Arc::new(Shared { cables, _folder: folder, heard: Mutex::default(), stop: AtomicBool::new(false) });
        for cable in 0..names.len() {
            let shared = shared.clone();
            std::thread::spawn(move || shared.serve(cable));
        }
        Ok(Cables(shared))
    }

    /// Pings the machine with this hardware address over all cables.
    pub fn ping(&self, mac: Mac, tag: Option<u16>, to: IpAddr) {
        let frame = match to {
            IpAddr::V4(to) => frames::ipv4(MAC, mac, own(tag), to, frames::ICMP, &frames::ping(1)),
            IpAddr::V6(to) => icmpv6(mac, to, vec![128, 0, 0, 0, 0, 1, 0, 1]),
        };
        for cable in 0..self.0.cables.len() {
            self.0.send(cable, tag, &frame);
        }
    }

    /// Whether this was heard, at any time.
    pub fn has_heard(&self, what: &Heard) -> bool {
        self.0.heard.lock().unwrap_or_else(PoisonError::into_inner).contains(what)
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// The network's own address: with the tag, and without.
fn own(tag: Option<u16>) -> Ipv4Addr {
    if tag.is_some() { Ipv4Addr::new(10, 7, 0, 1) } else { Ipv4Addr::new(10, 77, 0, 1) }
}

impl Shared {
    fn serve(&self, cable: usize) {
        let mut buffer = vec![0; FRAME_LIMIT];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok(length) = self.cables[cable].0.recv(&mut buffer) else { continue };
            let Some((tag, frame)) = untagged(&buffer[..length]) else { continue };
            if let Some(answer) = self.hear(cable, tag, &frame) {
                self.send(cable, tag, &answer);
            }
        }
    }

    fn send(&self, cable: usize, tag: Option<u16>, frame: &[u8]) {
        let (socket, path) = &self.cables[cable];
        let tagged = match tag {
            Some(tag) => [&frame[..12], &VLAN, &tag.to_be_bytes(), &frame[12..]].concat(),
            None => frame.to_vec(),
        };
        // As on a cable whose other end is not plugged in.
        let _ = socket.send_to(&tagged, path);
    }

    fn note(&self, heard: Heard) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(heard);
    }

    fn hear(&self, cable: usize, tag: Option<u16>, frame: &[u8]) -> Option<Vec<u8>> {
        let (own, from) = (own(tag), Mac(frame.get(6..12)?.try_into().ok()?));
        match frames::read(frame, MAC, own) {
            Some(Spoken::AskedFor { mac, address }) => return Some(frames::arp_reply(MAC, own, mac, address)),
            Some(Spoken::Pong { from, .. }) => self.note(Heard::Pong { cable, tag, from: from.into() }),
            _ => {}
        }
        let packet = frame.get(14..).filter(|_| frame[12..14] == IPV6.to_be_bytes())?;
        let (source, target) = (address(packet, 8)?, address(packet, 24)?);
        let payload = packet.get(40..)?;
        match (packet.get(6)?, payload.first()?) {
            // Who asks for routers may not have an address of its own yet: all hear of it.
            (&ICMPV6, 133) if tag.is_none() => Some(icmpv6(Mac([0x33, 0x33, 0, 0, 0, 1]), EVERYBODY, advertisement())),
            (&ICMPV6, 135) if !source.is_unspecified() => {
                let wanted = address(payload, 8).filter(|wanted| [ROUTER, DNS].contains(wanted))?;
                // Asked for and final; option 2 is the hardware address.
                let message = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &wanted.octets(), &[2, 1], &MAC.0].concat();
                Some(icmpv6(from, source, message))
            }
            (&ICMPV6, 129) => {
                self.note(Heard::Pong { cable, tag, from: source.into() });
                None
            }
            (&UDP, _) => match u16::from_be_bytes(payload.get(2..4)?.try_into().ok()?) {
                53 if target == DNS => {
                    self.note(Heard::Question);
                    None
                }
                547 if tag == Some(TAG) => Some(udp(from, source, 547, 546, &lease(payload.get(8..)?)?)),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The frame without its tag, and the tag.
fn untagged(frame: &[u8]) -> Option<(Option<u16>, Vec<u8>)> {
    if frame.get(12..14)? != VLAN {
        return Some((None, frame.to_vec()));
    }
    let tag = u16::from_be_bytes(frame.get(14..16)?.try_into().ok()?) & 0x0fff;
    Some((Some(tag), [&frame[..12], frame.get(16..)?].concat()))
}

/// RFC 4861 and 8106: 64 hops, half an hour; the prefix is on the link and gives addresses, for an hour.
fn advertisement() -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([1, 1]);
    message.extend(MAC.0);
    message.extend([3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 0, 0]);
    message.extend(PREFIX.octets());
    message.extend([25, 3, 0, 0, 0, 0, 14, 16]);
    message.extend(DNS.octets());
    message
}

/// RFC 8415: who asks for an offer gets it, and whoever asks for more gets the address.
fn lease(question: &[u8]) -> Option<Vec<u8>> {
    let mut answer = vec![if *question.first()? == 1 { 2 } else { 7 }];
    answer.extend(question.get(1..4)?);
    // The client's identifier is its first option.
    answer.extend(question.get(4..4 + 4 + 10)?);
    answer.extend([0, 2, 0, 4, 0, 3, 0, 9]);
    // Its set of addresses is named by the end of its identifier.
    answer.extend([0, 3, 0, 40]);
    answer.extend(question.get(14..18)?);
    answer.extend([0, 0, 7, 8, 0, 0, 11, 64, 0, 5, 0, 24]);
    answer.extend(LEASE.octets());
    answer.extend([0, 0, 14, 16, 0, 0, 28, 32]);
    Some(answer)
}

fn icmpv6(to: Mac, target: Ipv6Addr, message: Vec<u8>) -> Vec<u8> {
    ipv6(to, target, ICMPV6, message, 2)
}

fn udp(to: Mac, target: Ipv6Addr, from: u16, port: u16, content: &[u8]) -> Vec<u8> {
    let length = (8 + content.len()) as u16;
    let words = [from, port, length, 0].map(u16::to_be_bytes).concat();
    ipv6(to, target, UDP, [&words, content].concat(), 6)
}

/// A packet of the router's whose payload has its checksum there.
fn ipv6(to: Mac, target: Ipv6Addr, protocol: u8, mut payload: Vec<u8>, sum_at: usize) -> Vec<u8> {
    let length = payload.len() as u16;
    let addresses = [ROUTER.octets(), target.octets()].concat();
    let end = [&[0, 0][..], &length.to_be_bytes(), &[0, 0, 0, protocol]].concat();
    let sum = checksum(&[&addresses, &end, &payload]);
    payload[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
    // What is not from this link is refused: 255 hops.
    let head = [&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[protocol, 255]].concat();
    ethernet(MAC, to, IPV6, &[head, addresses, payload].concat())
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?))
}
