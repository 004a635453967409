//! The whole nftables rule set as text, for people: one line a rule, in the manner of `nft list ruleset`.
//! What has no word here is shown by the kernel's own name of the expression.

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

const SUBSYSTEM: u16 = 10;
const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_SET: u16 = 10;
const GET_ELEMENTS: u16 = 13;
const DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const FAMILIES: [(u8, &str); 6] = [(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];
const HOOKS: [&str; 6] = ["prerouting", "input", "forward", "output", "postrouting", "ingress"];
const OPERATORS: [&str; 6] = ["", "!= ", "< ", "<= ", "> ", ">= "];
/// Larger sets are cut in the listing.
const MOST_ELEMENTS: usize = 200;

/// One answer: address family and attributes.
type Message = (u8, Vec<u8>);

/// The rule set.
///
/// # Errors
/// The kernel refuses (no permission, or nftables is not loaded).
pub fn dump() -> io::Result<String> {
    let chains = ask(GET_CHAIN, 0, &[])?;
    let rules = ask(GET_RULE, 0, &[])?;
    let sets = ask(GET_SET, 0, &[])?;
    let mut text = String::new();
    for (family, table) in ask(GET_TABLE, 0, &[])? {
        let name = text_of(&table, 1);
        // Writing to a String does not fail.
        let _ = writeln!(text, "table {} {name} {{", family_name(family));
        let own = |list: &[Message]| -> Vec<Vec<u8>> {
            list.iter()
                .filter(|(of, attrs)| *of == family && text_of(attrs, 1) == name)
                .map(|(_, attrs)| attrs.clone())
                .collect()
        };
        for set in own(&sets) {
            show_set(&mut text, family, &name, &set)?;
        }
        for chain in own(&chains) {
            show_chain(&mut text, &chain, &own(&rules));
        }
        text.push_str("}\n");
    }
    Ok(text)
}

fn show_set(text: &mut String, family: u8, table: &str, set: &[u8]) -> io::Result<()> {
    let name = text_of(set, 2);
    let key_type = number(set, 4);
    let map = number(set, 3) & 8 != 0;
    let mut request = Vec::new();
    put(&mut request, 1, format!("{table}\0").as_bytes());
    put(&mut request, 2, format!("{name}\0").as_bytes());
    let mut elements = Vec::new();
    for (_, attrs) in ask(GET_ELEMENTS, family, &request)? {
        for (_, element) in attributes(attribute(&attrs, 3).unwrap_or_default()) {
            elements.push(show_element(element, key_type));
        }
    }
    let count = elements.len();
    elements.truncate(MOST_ELEMENTS);
    let more = if count > MOST_ELEMENTS { format!(", … {count} in all") } else { String::new() };
    let _ = writeln!(text, "  {} {name} {{ {}{more} }}", if map { "map" } else { "set" }, elements.join(", "));
    Ok(())
}

fn show_element(element: &[u8], key_type: u32) -> String {
    let key = attribute(element, 1).and_then(|key| attribute(key, 1)).unwrap_or_default();
    let mut shown = typed(key, key_type);
    if number(element, 3) & 1 != 0 {
        shown.push_str(" (end)");
    }
    if let Some(data) = attribute(element, 2) {
        let value = match attribute(data, 2) {
            Some(verdict) => show_verdict(verdict),
            None => concatenated(attribute(data, 1).unwrap_or_default()),
        };
        let _ = write!(shown, " : {value}");
    }
    shown
}

/// By nft's numbers of types; concatenations have six bits for each part.
fn typed(key: &[u8], key_type: u32) -> String {
    let mut types = Vec::new();
    let mut rest = key_type;
    while rest > 0 {
        types.insert(0, rest & 63);
        rest >>= 6;
    }
    let mut at = 0;
    let mut parts = Vec::new();
    for kind in types {
        let (length, show): (usize, fn(&[u8]) -> String) = match kind {
            7 => (4, address4),
            8 => (16, address6),
            12 => (1, decimal),
            13 => (2, decimal),
            _ => return concatenated(key),
        };
        parts.push(show(key.get(at..at + length).unwrap_or_default()));
        at += length.next_multiple_of(4);
    }
    if parts.is_empty() { hex(key) } else { parts.join(" . ") }
}

/// Without types: an address in front and a port behind are what maps of services hold.
fn concatenated(bytes: &[u8]) -> String {
    match bytes.len() {
        4 => address4(bytes),
        8 => format!(
            "{} . {}",
            address4(bytes.get(..4).unwrap_or_default()),
            decimal(bytes.get(4..6).unwrap_or_default())
        ),
        16 => address6(bytes),
        _ => hex(bytes),
    }
}

fn show_chain(text: &mut String, chain: &[u8], rules: &[Vec<u8>]) {
    let name = text_of(chain, 3);
    let _ = writeln!(text, "  chain {name} {{");
    if let Some(hook) = attribute(chain, 4) {
        let point = HOOKS.get(number(hook, 1) as usize).copied().unwrap_or("?");
        let policy = if number(chain, 5) == 0 { "drop" } else { "accept" };
        let _ = writeln!(
            text,
            "    type {} hook {point} priority {}; policy {policy};",
            text_of(chain, 7),
            number(hook, 2) as i32
        );
    }
    for rule in rules.iter().filter(|rule| text_of(rule, 2) == name) {
        let list = attributes(attribute(rule, 4).unwrap_or_default());
        let words: Vec<String> = list
            .into_iter()
            .map(|(_, expression)| show_expression(expression))
            .filter(|word| !word.is_empty())
            .collect();
        let _ = writeln!(text, "    {}", words.join(" "));
    }
    text.push_str("  }\n");
}

fn show_expression(expression: &[u8]) -> String {
    let name = text_of(expression, 1);
    let data = attribute(expression, 2).unwrap_or_default();
    match name.as_str() {
        "meta" if attribute(data, 3).is_some() => "mark set".to_owned(),
        "meta" => meta(number(data, 2)),
        "payload" => payload(number(data, 2), number(data, 3), number(data, 4)),
        "cmp" => {
            let operator = OPERATORS.get(number(data, 2) as usize).copied().unwrap_or("? ");
            format!(
                "{operator}{}",
                readable(attribute(data, 3).and_then(|value| attribute(value, 1)).unwrap_or_default())
            )
        }
        "ct" => {
            if number(data, 2) == 0 {
                "ct state".to_owned()
            } else {
                "ct status".to_owned()
            }
        }
        "bitwise" => format!("& {}", hex(attribute(data, 4).and_then(|mask| attribute(mask, 1)).unwrap_or_default())),
        "lookup" => format!("{}@{}", if number(data, 5) & 1 != 0 { "!= " } else { "" }, text_of(data, 1)),
        "immediate" => immediate(data),
        "socket" => format!("socket cgroupv2 level {}", number(data, 3)),
        "nat" => {
            if number(data, 1) == 0 {
                "snat".to_owned()
            } else {
                "dnat".to_owned()
            }
        }
        "masq" => "masquerade".to_owned(),
        "numgen" => format!("numgen random mod {}", number(data, 2)),
        "fib" => "fib daddr type".to_owned(),
        "dynset" => format!("update @{}", text_of(data, 1)),
        _ => name,
    }
}

fn immediate(data: &[u8]) -> String {
    let value = attribute(data, 2).unwrap_or_default();
    match attribute(value, 2) {
        Some(verdict) => show_verdict(verdict),
        None => concatenated(attribute(value, 1).unwrap_or_default()),
    }
}

fn show_verdict(verdict: &[u8]) -> String {
    let chain = text_of(verdict, 2);
    match number(verdict, 1) as i32 {
        0 => "drop".to_owned(),
        1 => "accept".to_owned(),
        -1 => "continue".to_owned(),
        -3 => format!("jump {chain}"),
        -4 => format!("goto {chain}"),
        -5 => "return".to_owned(),
        other => format!("verdict {other}"),
    }
}

fn meta(key: u32) -> String {
    match key {
        3 => "mark",
        6 => "iifname",
        7 => "oifname",
        10 => "skuid",
        15 => "nfproto",
        16 => "l4proto",
        other => return format!("meta {other}"),
    }
    .to_owned()
}

fn payload(base: u32, offset: u32, length: u32) -> String {
    match (base, offset, length) {
        (1, 12, 4) => "ip saddr".to_owned(),
        (1, 16, 4) => "ip daddr".to_owned(),
        (1, 8, 16) => "ip6 saddr".to_owned(),
        (1, 24, 16) => "ip6 daddr".to_owned(),
        (2, 0, 2) => "sport".to_owned(),
        (2, 2, 2) => "dport".to_owned(),
        _ => format!("@{},{offset},{length}", ["ll", "nh", "th"].get(base as usize).copied().unwrap_or("?")),
    }
}

/// A compared value: a name, a number or an address.
fn readable(bytes: &[u8]) -> String {
    let name: Vec<u8> = bytes.iter().copied().take_while(|byte| *byte != 0).collect();
    let printable = name.len() >= 2 && name.iter().all(|byte| byte.is_ascii_graphic());
    match bytes.len() {
        3 | 5.. if printable => format!("\"{}\"", String::from_utf8_lossy(&name)),
        1 | 2 => decimal(bytes),
        4 if bytes.iter().all(|byte| *byte == 0) => "0".to_owned(),
        4 => address4(bytes),
        16 => address6(bytes),
        _ => hex(bytes),
    }
}

fn address4(bytes: &[u8]) -> String {
    <[u8; 4]>::try_from(bytes).map_or_else(|_| hex(bytes), |octets| Ipv4Addr::from(octets).to_string())
}

fn address6(bytes: &[u8]) -> String {
    <[u8; 16]>::try_from(bytes).map_or_else(|_| hex(bytes), |octets| Ipv6Addr::from(octets).to_string())
}

fn decimal(bytes: &[u8]) -> String {
    bytes.iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte)).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn family_name(family: u8) -> &'static str {
    FAMILIES.iter().find(|(number, _)| *number == family).map_or("?", |(_, name)| name)
}

/// All answers to one question.
fn ask(kind: u16, family: u8, attrs: &[u8]) -> io::Result<Vec<Message>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    let mut request = Vec::new();
    request.extend_from_slice(&((20 + attrs.len()) as u32).to_ne_bytes());
    request.extend_from_slice(&(SUBSYSTEM << 8 | kind).to_ne_bytes());
    request.extend_from_slice(&DUMP.to_ne_bytes());
    request.extend_from_slice(&[0; 8]);
    request.extend_from_slice(&[family, 0, 0, 0]);
    request.extend_from_slice(attrs);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some((kind, body, next)) = next_message(rest) {
            match kind {
                DONE => return Ok(answers),
                ERROR => {
                    let code = body.get(..4).and_then(|part| part.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => answers.push((body.first().copied().unwrap_or(0), body.get(4..).unwrap_or_default().to_vec())),
            }
            rest = next;
        }
    }
}

fn next_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    Some((kind, bytes.get(16..length)?, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (half(bytes, 0), half(bytes, 2)) {
        let Some(value) = bytes.get(4..usize::from(length)) else { break };
        found.push((kind & 0x3fff, value));
        bytes = bytes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).into_iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// A big-endian number of any length.
fn number(bytes: &[u8], kind: u16) -> u32 {
    attribute(bytes, kind).unwrap_or_default().iter().fold(0, |sum: u32, byte| (sum << 8) | u32::from(*byte))
}

fn text_of(bytes: &[u8], kind: u16) -> String {
    String::from_utf8_lossy(attribute(bytes, kind).unwrap_or_default()).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_readable() {
        assert_eq!(readable(b"eth0\0\0\0\0\0\0\0\0\0\0\0\0"), "\"eth0\"");
        assert_eq!(readable(b"pod"), "\"pod\"");
        assert_eq!(readable(&[0x19, 0x2b]), "6443");
        assert_eq!(readable(&[10, 0, 0, 1]), "10.0.0.1");
        assert_eq!(typed(&[6, 0, 0, 0, 0, 80, 0, 0], 12 << 6 | 13), "6 . 80");
        assert_eq!(payload(1, 16, 4), "ip daddr");
    }

    #[test]
    fn cut_attributes_end_the_list() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, b"abc\0");
        assert_eq!(text_of(&bytes, 1), "abc");
        for length in 0..bytes.len() {
            assert!(attribute(&bytes[..length], 1).is_none());
        }
    }
}
