//! The kernel's table of connections, over ctnetlink
//! (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`). IPv4.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::net::Ipv4Addr;

/// One connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// Who began it.
    pub original_source: Ipv4Addr,
    /// Whom the client asked for.
    pub original_destination: Ipv4Addr,
    /// Source port of the client.
    pub source_port: u16,
    /// Port that the client asked for.
    pub destination_port: u16,
    /// Who really answers (another one than asked for where the destination was translated).
    pub reply_source: Ipv4Addr,
    /// Where the answers go (another one than the client where the source was translated).
    pub reply_destination: Ipv4Addr,
    /// Port of the one that really answers.
    pub reply_port: u16,
    /// Seconds after which the kernel forgets it, if nothing comes.
    pub timeout_secs: u32,
    /// The original tuple as the kernel gave it: its key for deletion.
    tuple: Vec<u8>,
}

const SUBSYS_CTNETLINK: u16 = 1;
const CT_GET: u16 = 1;
const CT_DELETE: u16 = 2;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TIMEOUT: u16 = 7;

/// All IPv4 connections.
///
/// # Errors
/// The kernel refuses (no permission, or conntrack is not loaded).
pub fn list() -> std::io::Result<Vec<Flow>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.send_to(&message(CT_GET, DUMP, &[]), &SocketAddr::new(0, 0), 0)?;
    let mut flows = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while let Some((kind, body, next)) = next_message(rest) {
            match kind {
                NLMSG_DONE => return Ok(flows),
                NLMSG_ERROR => return Err(error_of(body)),
                _ => flows.extend(body.get(4..).and_then(parse)),
            }
            rest = next;
        }
    }
}

/// Deletes the connections that `chosen` picks; how many.
///
/// # Errors
/// As [`list`]. A connection that ended meanwhile is no error.
pub fn delete_where(chosen: impl Fn(&Flow) -> bool) -> std::io::Result<usize> {
    let flows = list()?;
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let mut count = 0;
    for flow in flows.iter().filter(|f| chosen(f)) {
        let mut attrs = Vec::new();
        put(&mut attrs, TUPLE_ORIG | NESTED, &flow.tuple);
        socket.send_to(&message(CT_DELETE, ACK, &attrs), &SocketAddr::new(0, 0), 0)?;
        let (answer, _) = socket.recv_from_full()?;
        if let Some((NLMSG_ERROR, body, _)) = next_message(&answer) {
            let error = error_of(body);
            match error.raw_os_error() {
                Some(0) => count += 1,
                Some(libc::ENOENT) => {}
                _ => return Err(error),
            }
        }
    }
    Ok(count)
}

fn message(kind: u16, flags: u16, attrs: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&((20 + attrs.len()) as u32).to_ne_bytes());
    out.extend_from_slice(&(SUBSYS_CTNETLINK << 8 | kind).to_ne_bytes());
    out.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[libc::AF_INET as u8, 0, 0, 0]);
    out.extend_from_slice(attrs);
    out
}

fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..len)?;
    Some((kind, body, bytes.get(len.next_multiple_of(4)..).unwrap_or(&[])))
}

fn error_of(body: &[u8]) -> std::io::Error {
    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    std::io::Error::from_raw_os_error(-code)
}

/// Finds an attribute in a list; the nested and byte-order flags are not part of its kind.
fn find(mut attrs: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(attrs.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attrs.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = attrs.get(4..len)?;
        if kind == wanted {
            return Some(value);
        }
        attrs = attrs.get(len.next_multiple_of(4)..)?;
    }
}

fn tuple(attrs: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, u8, u16, u16)> {
    const IP: u16 = 1;
    const PROTO: u16 = 2;
    let ip = find(attrs, IP)?;
    let proto = find(attrs, PROTO)?;
    let address = |a: &[u8]| <[u8; 4]>::try_from(a).ok().map(Ipv4Addr::from);
    let port = |kind| find(proto, kind).and_then(|p| p.try_into().ok()).map_or(0, u16::from_be_bytes);
    let number = find(proto, 1)?.first().copied()?;
    Some((find(ip, 1).and_then(address)?, find(ip, 2).and_then(address)?, number, port(2), port(3)))
}

fn parse(attrs: &[u8]) -> Option<Flow> {
    let original = find(attrs, TUPLE_ORIG)?;
    let (source, destination, protocol, source_port, destination_port) = tuple(original)?;
    let (reply_source, reply_destination, _, reply_port, _) = tuple(find(attrs, TUPLE_REPLY)?)?;
    let timeout = find(attrs, TIMEOUT).and_then(|t| t.try_into().ok()).map_or(0, u32::from_be_bytes);
    Some(Flow {
        protocol,
        original_source: source,
        original_destination: destination,
        source_port,
        destination_port,
        reply_source,
        reply_destination,
        reply_port,
        timeout_secs: timeout,
        tuple: original.to_vec(),
    })
}
