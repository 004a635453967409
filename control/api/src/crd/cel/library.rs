//! The functions of Kubernetes' CEL libraries that the interpreter does not bring: quantities, URLs, addresses, lists,
//! sets and patterns.

use std::any::Any;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::net::IpAddr;

use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelString, DYN_TYPE, LIST_TYPE, Type,
};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::{DeclarationError, Env, ExecutionError, add_member_overload, add_overload};

use super::cost;
use crate::quantity::Quantity;

type Fallible<T> = Result<T, ExecutionError>;

fn fail<T>(function: &str, why: impl ToString) -> Fallible<T> {
    Err(ExecutionError::function_error(function, why))
}

/// A type of CEL that is a Rust type without borrows.
macro_rules! cel_type {
    ($name:ident, $ty:ident, $text:literal) => {
        static $ty: Type = Type::new_unspecified_type($text);

        impl Val for $name {
            fn get_type(&self) -> &Type {
                &$ty
            }
            fn cel_type() -> &'static Type {
                &$ty
            }
            fn equals(&self, other: &dyn Val) -> bool {
                other.downcast_ref::<$name>().is_some_and(|other| other == self)
            }
            fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
                Box::new(self.clone())
            }
            fn as_any(&self) -> Option<&dyn Any> {
                Some(self)
            }
        }

        impl StaticVal for $name {}
    };
}

#[derive(Clone, Debug, PartialEq)]
struct Amount(Quantity);
cel_type!(Amount, QUANTITY, "kubernetes.Quantity");

#[derive(Clone, Debug, PartialEq)]
struct Url {
    scheme: String,
    host: String,
    path: String,
    query: String,
}
cel_type!(Url, URL, "kubernetes.URL");

#[derive(Clone, Debug, PartialEq)]
struct Ip(IpAddr);
cel_type!(Ip, IP, "net.IP");

#[derive(Clone, Debug, PartialEq)]
struct Cidr {
    ip: IpAddr,
    bits: u8,
}
cel_type!(Cidr, CIDR, "net.CIDR");

/// Declares all of it.
pub(super) fn extension(env: &mut Env) -> Result<(), DeclarationError> {
    quantities(env)?;
    urls(env)?;
    addresses(env)?;
    env.add_member_overload("isSorted", "list.isSorted()", LIST_TYPE, vec![], is_sorted)?;
    env.add_member_overload("sum", "list.sum()", LIST_TYPE, vec![], sum)?;
    env.add_member_overload("min", "list.min()", LIST_TYPE, vec![], min)?;
    env.add_member_overload("max", "list.max()", LIST_TYPE, vec![], max)?;
    env.add_member_overload("indexOf", "list.indexOf(dyn)", LIST_TYPE, vec![DYN_TYPE], index_of)?;
    env.add_member_overload("lastIndexOf", "list.lastIndexOf(dyn)", LIST_TYPE, vec![DYN_TYPE], last_index_of)?;
    env.add_overload("sets.contains", "sets.contains", vec![LIST_TYPE, LIST_TYPE], sets_contains)?;
    env.add_overload("sets.equivalent", "sets.equivalent", vec![LIST_TYPE, LIST_TYPE], sets_equivalent)?;
    env.add_overload("sets.intersects", "sets.intersects", vec![LIST_TYPE, LIST_TYPE], sets_intersects)?;
    // Instead of the interpreter's own, which compiles patterns of any size.
    add_overload!(env, fn matches: (CelString, CelString) -> Result<CelBool>, name = cost::MATCHES, id = "matches")?;
    add_member_overload!(
        env,
        fn matches: (CelString, CelString) -> Result<CelBool>,
        name = cost::MATCHES,
        id = "matches_string"
    )?;
    add_member_overload!(env, fn find: (CelString, CelString) -> Result<CelString>)?;
    add_member_overload!(env, fn find_all: (CelString, CelString) -> Result<CelList>)?;
    add_member_overload!(env, fn find_some: (CelString, CelString, CelInt) -> Result<CelList>, name = "findAll")
}

fn quantities(env: &mut Env) -> Result<(), DeclarationError> {
    add_overload!(env, fn is_quantity: (CelString) -> CelBool)?;
    add_overload!(env, fn quantity: (CelString) -> Result<Amount>)?;
    add_member_overload!(env, fn is_integer: (Amount) -> CelBool)?;
    add_member_overload!(env, fn as_integer: (Amount) -> Result<CelInt>)?;
    add_member_overload!(env, fn as_approximate_float: (Amount) -> CelDouble)?;
    add_member_overload!(env, fn sign: (Amount) -> CelInt)?;
    add_member_overload!(env, fn add: (Amount, Amount) -> Amount)?;
    add_member_overload!(env, fn add_int: (Amount, CelInt) -> Amount, name = "add")?;
    add_member_overload!(env, fn sub: (Amount, Amount) -> Amount)?;
    add_member_overload!(env, fn sub_int: (Amount, CelInt) -> Amount, name = "sub")?;
    add_member_overload!(env, fn is_less_than: (Amount, Amount) -> CelBool)?;
    add_member_overload!(env, fn is_greater_than: (Amount, Amount) -> CelBool)?;
    add_member_overload!(env, fn compare_to: (Amount, Amount) -> CelInt)
}

fn urls(env: &mut Env) -> Result<(), DeclarationError> {
    add_overload!(env, fn is_url: (CelString) -> CelBool, name = "isURL")?;
    add_overload!(env, fn url: (CelString) -> Result<Url>)?;
    add_member_overload!(env, fn get_scheme: (Url) -> CelString)?;
    add_member_overload!(env, fn get_host: (Url) -> CelString)?;
    add_member_overload!(env, fn get_hostname: (Url) -> CelString)?;
    add_member_overload!(env, fn get_port: (Url) -> CelString)?;
    add_member_overload!(env, fn get_escaped_path: (Url) -> CelString)?;
    add_member_overload!(env, fn get_query: (Url) -> CelMap)
}

fn addresses(env: &mut Env) -> Result<(), DeclarationError> {
    add_overload!(env, fn is_ip: (CelString) -> CelBool, name = "isIP")?;
    add_overload!(env, fn ip: (CelString) -> Result<Ip>)?;
    add_overload!(env, fn is_canonical: (CelString) -> Result<CelBool>, name = "ip.isCanonical")?;
    add_overload!(env, fn ip_text: (Ip) -> CelString, name = "string")?;
    add_member_overload!(env, fn family: (Ip) -> CelInt)?;
    add_member_overload!(env, fn is_unspecified: (Ip) -> CelBool)?;
    add_member_overload!(env, fn is_loopback: (Ip) -> CelBool)?;
    add_member_overload!(env, fn is_link_local_multicast: (Ip) -> CelBool)?;
    add_member_overload!(env, fn is_link_local_unicast: (Ip) -> CelBool)?;
    add_member_overload!(env, fn is_global_unicast: (Ip) -> CelBool)?;
    add_overload!(env, fn is_cidr: (CelString) -> CelBool, name = "isCIDR")?;
    add_overload!(env, fn cidr: (CelString) -> Result<Cidr>)?;
    add_overload!(env, fn cidr_text: (Cidr) -> CelString, name = "string")?;
    add_member_overload!(env, fn contains_ip: (Cidr, Ip) -> CelBool, name = "containsIP")?;
    add_member_overload!(env, fn contains_ip_text: (Cidr, CelString) -> Result<CelBool>, name = "containsIP")?;
    add_member_overload!(env, fn contains_cidr: (Cidr, Cidr) -> CelBool, name = "containsCIDR")?;
    add_member_overload!(env, fn contains_cidr_text: (Cidr, CelString) -> Result<CelBool>, name = "containsCIDR")?;
    add_member_overload!(env, fn ip_of: (Cidr) -> Ip, name = "ip")?;
    add_member_overload!(env, fn masked: (Cidr) -> Cidr)?;
    add_member_overload!(env, fn prefix_length: (Cidr) -> CelInt)
}

fn is_quantity(s: &CelString<'_>) -> CelBool {
    Quantity::parse(s.inner()).is_some().into()
}

fn quantity(s: &CelString<'_>) -> Fallible<Amount> {
    let bad = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    Quantity::parse(s.inner()).map_or_else(|| fail("quantity", bad), |q| Ok(Amount(q)))
}

fn whole(a: &Amount) -> Option<i64> {
    let n = a.0.value();
    let rest = a.0.minus(&Quantity::from_units(n, crate::quantity::Suffix::Decimal));
    rest.is_zero().then_some(n)
}

fn is_integer(a: &Amount) -> CelBool {
    whole(a).is_some().into()
}

fn as_integer(a: &Amount) -> Fallible<CelInt> {
    whole(a).map_or_else(|| fail("asInteger", "cannot convert value to integer"), |n| Ok(n.into()))
}

fn as_approximate_float(a: &Amount) -> CelDouble {
    a.0.approximately().into()
}

fn sign(a: &Amount) -> CelInt {
    i64::from(a.0.sign()).into()
}

fn units(n: &CelInt) -> Quantity {
    Quantity::from_units(*n.inner(), crate::quantity::Suffix::Decimal)
}

fn add(a: &Amount, b: &Amount) -> Amount {
    Amount(a.0.plus(&b.0))
}

fn add_int(a: &Amount, b: &CelInt) -> Amount {
    Amount(a.0.plus(&units(b)))
}

fn sub(a: &Amount, b: &Amount) -> Amount {
    Amount(a.0.minus(&b.0))
}

fn sub_int(a: &Amount, b: &CelInt) -> Amount {
    Amount(a.0.minus(&units(b)))
}

fn is_less_than(a: &Amount, b: &Amount) -> CelBool {
    (a.0 < b.0).into()
}

fn is_greater_than(a: &Amount, b: &Amount) -> CelBool {
    (a.0 > b.0).into()
}

fn compare_to(a: &Amount, b: &Amount) -> CelInt {
    a.0.partial_cmp(&b.0).map_or(0, |o| o as i64).into()
}

/// An absolute URI or an absolute path, as Go's `url.ParseRequestURI` takes it.
fn parse_url(s: &str) -> Option<Url> {
    let bad = |c: char| c.is_control() || c == ' ' || c == '\u{7f}';
    if s.is_empty() || s.chars().any(bad) {
        return None;
    }
    let (scheme, rest) = match s.split_once(':') {
        _ if s.starts_with('/') => ("", s),
        Some((scheme, rest)) if scheme.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)).then_some((scheme, rest))?
        }
        _ => return None,
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = match rest.strip_prefix("//").filter(|_| !scheme.is_empty()) {
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => ("", rest),
    };
    if host.is_empty() && !path.starts_with('/') {
        return None;
    }
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let port =
        if host.starts_with('[') { host.split_once(']')?.1 } else { &host[host.find(':').unwrap_or(host.len())..] };
    let numeric = port.strip_prefix(':').is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()));
    let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]<>\"".contains(&b) || b >= 0x80);
    let escapes = [host, path].iter().all(|part| {
        part.match_indices('%')
            .all(|(i, _)| part.as_bytes().get(i + 1..i + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)))
    });
    let port_alone = port.is_empty() || port.starts_with(':');
    (numeric && plain && escapes && port_alone).then(|| Url {
        scheme: scheme.to_ascii_lowercase(),
        host: host.into(),
        path: path.into(),
        query: query.into(),
    })
}

fn is_url(s: &CelString<'_>) -> CelBool {
    parse_url(s.inner()).is_some().into()
}

fn url(s: &CelString<'_>) -> Fallible<Url> {
    match parse_url(s.inner()) {
        Some(url) => Ok(url),
        None => fail(
            "url",
            format!("URL parse error during conversion from string: parse {:?}: invalid URI for request", s.inner()),
        ),
    }
}

fn get_scheme(u: &Url) -> CelString<'static> {
    u.scheme.clone().into()
}

fn get_host(u: &Url) -> CelString<'static> {
    u.host.clone().into()
}

/// Name and port of a host.
fn host_and_port(u: &Url) -> (&str, &str) {
    let end = u.host.rfind(']').map_or(0, |i| i + 1);
    let (host, port) = match u.host[end..].find(':') {
        Some(i) => (&u.host[..end + i], &u.host[end + i + 1..]),
        None => (u.host.as_str(), ""),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

fn get_hostname(u: &Url) -> CelString<'static> {
    host_and_port(u).0.to_string().into()
}

fn get_port(u: &Url) -> CelString<'static> {
    host_and_port(u).1.to_string().into()
}

fn get_escaped_path(u: &Url) -> CelString<'static> {
    u.path.clone().into()
}

fn get_query(u: &Url) -> CelMap<'static> {
    let mut all: HashMap<String, Vec<Box<dyn Val>>> = HashMap::new();
    for pair in u.query.split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        all.entry(unescape(key)).or_default().push(Box::new(CelString::from(unescape(value))));
    }
    let entries = all.into_iter().map(|(k, v)| (CelMapKey::from(k), Box::new(CelList::from(v)) as Box<dyn Val>));
    CelMap::from(entries.collect::<HashMap<_, _>>())
}

fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &tail[2..];
                continue;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(*byte),
        }
        rest = tail;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Addresses as Kubernetes takes them: no zones, no IPv4 in IPv6.
fn parse_ip(s: &str) -> Option<IpAddr> {
    s.parse().ok().filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()))
}

fn is_ip(s: &CelString<'_>) -> CelBool {
    parse_ip(s.inner()).is_some().into()
}

fn ip(s: &CelString<'_>) -> Fallible<Ip> {
    let bad = || fail("ip", format!("IP Address {:?} parse error during conversion from string", s.inner()));
    parse_ip(s.inner()).map_or_else(bad, |ip| Ok(Ip(ip)))
}

fn is_canonical(s: &CelString<'_>) -> Fallible<CelBool> {
    Ok((ip(s)?.0.to_string() == s.inner()).into())
}

fn ip_text(i: &Ip) -> CelString<'static> {
    i.0.to_string().into()
}

fn family(i: &Ip) -> CelInt {
    if i.0.is_ipv4() { 4.into() } else { 6.into() }
}

fn is_unspecified(i: &Ip) -> CelBool {
    i.0.is_unspecified().into()
}

fn is_loopback(i: &Ip) -> CelBool {
    i.0.is_loopback().into()
}

fn link_local_multicast(i: &Ip) -> bool {
    match i.0 {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}

fn is_link_local_multicast(i: &Ip) -> CelBool {
    link_local_multicast(i).into()
}

fn link_local_unicast(i: &Ip) -> bool {
    match i.0 {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn is_link_local_unicast(i: &Ip) -> CelBool {
    link_local_unicast(i).into()
}

fn is_global_unicast(i: &Ip) -> CelBool {
    let broadcast = matches!(i.0, IpAddr::V4(v4) if v4.is_broadcast());
    let global =
        !broadcast && !i.0.is_unspecified() && !i.0.is_loopback() && !i.0.is_multicast() && !link_local_unicast(i);
    global.into()
}

fn parse_cidr(s: &str) -> Option<Cidr> {
    let (ip, bits) = s.split_once('/')?;
    let ip = parse_ip(ip)?;
    let plain = bits == "0" || !bits.starts_with(['0', '+']);
    let bits = bits.parse().ok().filter(|b: &u8| plain && *b <= if ip.is_ipv4() { 32 } else { 128 })?;
    Some(Cidr { ip, bits })
}

fn is_cidr(s: &CelString<'_>) -> CelBool {
    parse_cidr(s.inner()).is_some().into()
}

fn cidr(s: &CelString<'_>) -> Fallible<Cidr> {
    let bad = || fail("cidr", format!("network address parse error during conversion from string: {:?}", s.inner()));
    parse_cidr(s.inner()).map_or_else(bad, Ok)
}

fn cidr_text(c: &Cidr) -> CelString<'static> {
    format!("{}/{}", c.ip, c.bits).into()
}

fn mask(ip: IpAddr, bits: u8) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

fn has_ip(c: &Cidr, ip: IpAddr) -> bool {
    c.ip.is_ipv4() == ip.is_ipv4() && mask(ip, c.bits) == mask(c.ip, c.bits)
}

fn contains_ip(c: &Cidr, i: &Ip) -> CelBool {
    has_ip(c, i.0).into()
}

fn contains_ip_text(c: &Cidr, s: &CelString<'_>) -> Fallible<CelBool> {
    Ok(has_ip(c, ip(s)?.0).into())
}

fn contains_cidr(c: &Cidr, other: &Cidr) -> CelBool {
    (c.bits <= other.bits && has_ip(c, other.ip)).into()
}

fn contains_cidr_text(c: &Cidr, s: &CelString<'_>) -> Fallible<CelBool> {
    Ok(contains_cidr(c, &cidr(s)?))
}

fn ip_of(c: &Cidr) -> Ip {
    Ip(c.ip)
}

fn masked(c: &Cidr) -> Cidr {
    Cidr { ip: mask(c.ip, c.bits), bits: c.bits }
}

fn prefix_length(c: &Cidr) -> CelInt {
    i64::from(c.bits).into()
}

/// The items of a list, a step each.
fn items<'a, 'v>(list: &'a CowVal<'_, 'v>) -> Fallible<Vec<&'a (dyn Val + 'v)>> {
    let mut out = Vec::new();
    if let Some(iterable) = list.as_iterable() {
        let mut all = iterable.iter();
        while let Some(item) = all.next() {
            out.push(item);
        }
    }
    cost::pay(out.len() as i64)?;
    Ok(out)
}

fn compare(function: &str, a: &dyn Val, b: &dyn Val) -> Fallible<Ordering> {
    match a.as_comparer() {
        Some(comparer) => comparer.compare(b),
        None => fail(function, "list elements must be comparable"),
    }
}

fn is_sorted<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Fallible<CowVal<'b, 'v>> {
    for pair in items(&args[0])?.windows(2) {
        if compare("isSorted", pair[0], pair[1])? == Ordering::Greater {
            return bool(false);
        }
    }
    bool(true)
}

fn sum<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Fallible<CowVal<'b, 'v>> {
    let mut total: Option<Box<dyn Val + 'v>> = None;
    for item in items(&args[0])? {
        total = Some(match total {
            None => item.clone_as_boxed(),
            Some(total) => match total.as_adder() {
                Some(adder) => adder.add(item)?.into_owned(),
                None => return fail("sum", "list elements must be numbers or durations"),
            },
        });
    }
    Ok(CowVal::Owned(total.unwrap_or_else(|| Box::new(CelInt::from(0)))))
}

fn extreme<'b, 'v>(function: &str, args: &[CowVal<'b, 'v>], wanted: Ordering) -> Fallible<CowVal<'b, 'v>> {
    let all = items(&args[0])?;
    let Some(mut best) = all.first().copied() else {
        return fail(function, format!("{function} called on empty list"));
    };
    for item in &all[1..] {
        if compare(function, *item, best)? == wanted {
            best = *item;
        }
    }
    Ok(CowVal::Owned(best.clone_as_boxed()))
}

fn min<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Fallible<CowVal<'b, 'v>> {
    extreme("min", &args, Ordering::Less)
}

fn max<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Fallible<CowVal<'b, 'v>> {
    extreme("max", &args, Ordering::Greater)
}

fn position<'b, 'v>(at: Option<usize>) -> Fallible<CowVal<'b, 'v>> {
    Ok(CowVal::owned(CelInt::from(at.and_then(|i| i64::try_from(i).ok()).unwrap_or(-1))))
}

fn index_of<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Fallible<CowVal<'b, 'v>> {
    position(items(&args[0])?.iter().position(|item| item.equals(args[1].as_ref())))
}

fn last_index_of<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Fallible<CowVal<'b, 'v>> {
    position(items(&args[0])?.iter().rposition(|item| item.equals(args[1].as_ref())))
}

/// Whether each of `b` has its like in `a`, or (`any`) one of them.
fn has(a: &CowVal<'_, '_>, b: &CowVal<'_, '_>, any: bool) -> Fallible<bool> {
    let (a, b) = (items(a)?, items(b)?);
    cost::pay((a.len() as i64).saturating_mul(b.len() as i64))?;
    let mut there = b.iter().map(|x| a.iter().any(|y| y.equals(*x)));
    Ok(if any { there.any(|t| t) } else { there.all(|t| t) })
}

fn bool<'b, 'v>(value: bool) -> Fallible<CowVal<'b, 'v>> {
    Ok(CowVal::owned(CelBool::from(value)))
}

fn sets_contains<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Fallible<CowVal<'b, 'v>> {
    bool(has(&args[0], &args[1], false)?)
}

fn sets_equivalent<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Fallible<CowVal<'b, 'v>> {
    bool(has(&args[0], &args[1], false)? && has(&args[1], &args[0], false)?)
}

fn sets_intersects<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Fallible<CowVal<'b, 'v>> {
    bool(has(&args[0], &args[1], true)?)
}

/// How large a compiled pattern may be, bytes: the next is tried where one does not do, so that each pays for its own
/// size.
const SIZES: [usize; 3] = [1 << 14, 1 << 17, 1 << 20];
/// Bytes of a compiled pattern that count as one step of compiling it.
const SIZE_STEP: usize = 16;
/// Steps for each byte of a pattern's text: a few may name thousands of characters.
const BYTE_STEPS: usize = 16;
/// Compiled patterns that are kept for the rest of an object's rules, but for the largest.
const MAX_KEPT: usize = 64;

fn compiled(function: &str, text: &str) -> Fallible<(regex::Regex, usize)> {
    let text = &crate::crd::values::upstream_form(text);
    for size in SIZES {
        let steps = (size / SIZE_STEP).saturating_add(text.len().saturating_mul(BYTE_STEPS));
        cost::pay(i64::try_from(steps).unwrap_or(i64::MAX))?;
        match regex::RegexBuilder::new(text).size_limit(size).dfa_size_limit(1 << 18).build() {
            Ok(done) => return Ok((done, size)),
            Err(regex::Error::CompiledTooBig(_)) => {}
            Err(e) => return fail(function, format!("Illegal regex: {e}")),
        }
    }
    fail(function, "Illegal regex: it is too large when it is compiled")
}

/// Does something with a text and a compiled pattern. Costs what upstream says, or more for a pattern that is larger
/// than it looks.
fn with_pattern<T>(
    function: &str,
    s: &CelString<'_>,
    re: &CelString<'_>,
    work: impl FnOnce(&regex::Regex, &str) -> T,
) -> Fallible<T> {
    thread_local! {
        static KEPT: RefCell<HashMap<String, (regex::Regex, usize)>> = RefCell::default();
    }
    let (s, text) = (s.inner(), re.inner());
    let run = |(re, size): &(regex::Regex, usize)| {
        let each = text.len().div_ceil(4).max(size / SIZES[0]);
        let steps = (s.len() + 1).div_ceil(10).saturating_mul(each);
        cost::pay(i64::try_from(steps).unwrap_or(i64::MAX))?;
        Ok(work(re, s))
    };
    KEPT.with_borrow_mut(|kept| {
        if let Some(known) = kept.get(text) {
            return run(known);
        }
        let new = compiled(function, text)?;
        if new.1 == SIZES[SIZES.len() - 1] {
            return run(&new);
        }
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        run(kept.entry(text.to_string()).or_insert(new))
    })
}

fn matches(s: &CelString<'_>, re: &CelString<'_>) -> Fallible<CelBool> {
    with_pattern("matches", s, re, |re, s| re.is_match(s).into())
}

fn find(s: &CelString<'_>, re: &CelString<'_>) -> Fallible<CelString<'static>> {
    with_pattern("find", s, re, |re, s| re.find(s).map_or("", |m| m.as_str()).to_string().into())
}

fn find_all(s: &CelString<'_>, re: &CelString<'_>) -> Fallible<CelList<'static>> {
    find_some(s, re, &CelInt::from(-1))
}

fn find_some(s: &CelString<'_>, re: &CelString<'_>, most: &CelInt) -> Fallible<CelList<'static>> {
    let most = usize::try_from(*most.inner()).unwrap_or(usize::MAX);
    let found: Vec<Box<dyn Val>> = with_pattern("findAll", s, re, |re, s| {
        let found = re.find_iter(s).take(most);
        found.map(|m| Box::new(CelString::from(m.as_str().to_string())) as Box<dyn Val>).collect()
    })?;
    Ok(CelList::from(found))
}
