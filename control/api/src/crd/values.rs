//! Checks the values of custom resources against their schema, with the texts
//! that clients know.

use crate::schema::{ListType, Schema, Ty};
use crate::status::{ErrorKind, FieldError};
use regex::Regex;
use serde_json::Value;
use std::collections::HashSet;

/// All errors of a value. `path` is the field's name in errors, empty at the root.
pub fn validate(value: &Value, schema: &Schema, path: &str) -> Vec<FieldError> {
    let mut out = Vec::new();
    node(value, schema, path, &mut out);
    out
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

fn type_name(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn node(value: &Value, schema: &Schema, path: &str, out: &mut Vec<FieldError>) {
    let Some(extra) = &schema.extra else { return };
    if value.is_null() {
        if !extra.nullable && schema.ty != Ty::Any {
            wrong_type(value, schema, path, out);
        }
        return;
    }
    if !type_fits(value, schema) {
        wrong_type(value, schema, path, out);
        return;
    }
    if let Some(rules) = &extra.rules {
        check_rules(value, rules, path, out);
    }
    match value {
        Value::Object(map) => {
            for (k, v) in map {
                let Some(child) = schema.child(k) else {
                    continue;
                };
                let at = if schema.field(k).is_some() { join(path, k) } else { format!("{path}.{k}") };
                node(v, child, &at, out);
            }
        }
        Value::Array(items) => {
            if let Some(item) = schema.item() {
                items.iter().enumerate().for_each(|(i, v)| node(v, item, &format!("{path}[{i}]"), out));
            }
            duplicates(items, schema, path, out);
        }
        _ => {}
    }
}

fn type_fits(v: &Value, schema: &Schema) -> bool {
    match schema.ty {
        Ty::Object => v.is_object(),
        Ty::Array => v.is_array(),
        Ty::String => v.is_string(),
        Ty::Boolean => v.is_boolean(),
        Ty::Int32 | Ty::Int64 => v.is_i64() || v.is_u64() || v.as_f64().is_some_and(|f| f.fract() == 0.0),
        Ty::Number => v.is_number(),
        Ty::IntOrString => v.is_string() || v.is_i64() || v.is_u64(),
        _ => true,
    }
}

fn wrong_type(value: &Value, schema: &Schema, path: &str, out: &mut Vec<FieldError>) {
    let want = match schema.ty {
        Ty::IntOrString => "integer,string",
        ty => ty.name(),
    };
    let got = type_name(value);
    let detail = format!("{path} in body must be of type {want}: \"{got}\"");
    out.push(FieldError::new(ErrorKind::TypeInvalid, path, got.into(), detail));
}

/// The value checks of one node (also of the branches of allOf, anyOf, oneOf, not).
fn check_rules(v: &Value, r: &Value, path: &str, out: &mut Vec<FieldError>) {
    let mut bad = |detail: String| out.push(FieldError::invalid(path, v.clone(), format!("{path} in body {detail}")));
    match v {
        Value::Number(n) => {
            let n = n.as_f64().unwrap_or(0.0);
            if let Some(m) = r["minimum"].as_f64() {
                let exclusive = r["exclusiveMinimum"] == true;
                if n < m || (exclusive && n == m) {
                    bad(format!(
                        "should be greater than {}{}",
                        if exclusive { "" } else { "or equal to " },
                        r["minimum"]
                    ));
                }
            }
            if let Some(m) = r["maximum"].as_f64() {
                let exclusive = r["exclusiveMaximum"] == true;
                if n > m || (exclusive && n == m) {
                    bad(format!("should be less than {}{}", if exclusive { "" } else { "or equal to " }, r["maximum"]));
                }
            }
            if let Some(m) = r["multipleOf"].as_f64().filter(|m| *m != 0.0)
                && (n / m).fract() != 0.0
            {
                bad(format!("should be a multiple of {}", r["multipleOf"]));
            }
            if r["format"] == "int32" && (n < f64::from(i32::MIN) || n > f64::from(i32::MAX)) {
                bad("must be of type int32".to_string());
            }
        }
        Value::String(s) => strings(s, r, &mut bad),
        Value::Array(a) => {
            if let Some(m) = r["minItems"].as_u64().filter(|m| (a.len() as u64) < *m) {
                out.push(FieldError::invalid(path, a.len(), format!("{path} in body should have at least {m} items")));
            }
            if let Some(m) = r["maxItems"].as_u64().filter(|m| a.len() as u64 > *m) {
                out.push(FieldError::too_many(path, a.len(), m as usize));
            }
        }
        Value::Object(o) => {
            for k in r["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !o.contains_key(k) {
                    out.push(FieldError::required(join(path, k), ""));
                }
            }
            if let Some(m) = r["minProperties"].as_u64().filter(|m| (o.len() as u64) < *m) {
                out.push(FieldError::invalid(
                    path,
                    o.len(),
                    format!("{path} in body should have at least {m} properties"),
                ));
            }
            if let Some(m) = r["maxProperties"].as_u64().filter(|m| o.len() as u64 > *m) {
                out.push(FieldError::too_many(path, o.len(), m as usize));
            }
        }
        _ => {}
    }
    if let Some(max) = r["maxLength"].as_u64()
        && v.as_str().is_some_and(|s| s.chars().count() as u64 > max)
    {
        out.push(FieldError::too_long(path, max as usize));
    }
    if let Some(list) = r["enum"].as_array().filter(|l| !l.contains(v)) {
        let supported: Vec<String> =
            list.iter().map(|e| e.as_str().map_or_else(|| e.to_string(), String::from)).collect();
        let refs: Vec<&str> = supported.iter().map(String::as_str).collect();
        out.push(FieldError::not_supported(path, v.clone(), &refs));
    }
    combinations(v, r, path, out);
}

fn strings(s: &str, r: &Value, bad: &mut impl FnMut(String)) {
    if let Some(m) = r["minLength"].as_u64().filter(|m| (s.chars().count() as u64) < *m) {
        bad(format!("should be at least {m} chars long"));
    }
    if let Some(p) = r["pattern"].as_str()
        && !pattern(p).is_some_and(|re| re.is_match(s))
    {
        bad(format!("should match '{p}'"));
    }
    let fits = match r["format"].as_str() {
        Some("date-time") => crate::time::parse(s).is_some(),
        Some("date") => crate::time::parse(&format!("{s}T00:00:00Z")).is_some(),
        Some("ipv4") => s.parse::<std::net::Ipv4Addr>().is_ok(),
        Some("ipv6") => s.parse::<std::net::Ipv6Addr>().is_ok(),
        Some("cidr") => cidr(s),
        Some("byte") => crate::codec::base64_ok(s),
        Some("uuid") => uuid(s),
        Some("duration") => crate::time::parse_duration(s).is_some(),
        Some("email") => s.split_once('@').is_some_and(|(a, b)| !a.is_empty() && !b.is_empty()),
        Some("uri") => s
            .split_once(':')
            .is_some_and(|(a, _)| !a.is_empty() && a.bytes().all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c))),
        _ => true,
    };
    if !fits {
        let format = r["format"].as_str().unwrap_or("");
        bad(format!("must be of type {format}: {}", Value::from(s)));
    }
}

fn cidr(s: &str) -> bool {
    let Some((ip, bits)) = s.split_once('/') else {
        return false;
    };
    match (ip.parse::<std::net::IpAddr>(), bits.parse::<u8>()) {
        (Ok(ip), Ok(b)) => b <= if ip.is_ipv4() { 32 } else { 128 },
        _ => false,
    }
}

fn uuid(s: &str) -> bool {
    let hex: String = s.chars().filter(|c| *c != '-').collect();
    hex.len() == 32 && hex.bytes().all(|c| c.is_ascii_hexdigit())
}

/// A pattern as upstream reads it: `\d`, `\s` and `\w` are ASCII's (Unicode's are large when they are compiled), a brace
/// that opens no repetition is one, and classes hold no classes and no operators.
pub(super) fn upstream_form(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => rest = escaped(rest, &mut out),
            '[' => rest = class(rest, &mut out),
            '{' if !repeats(rest) => out.push_str(r"\{"),
            _ => out.push(c),
        }
    }
    out
}

/// Writes a class, after its bracket; gives what comes after it.
fn class<'p>(mut rest: &'p str, out: &mut String) -> &'p str {
    out.push('[');
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    let mut first = true;
    while !rest.is_empty() {
        // A bracket that comes first closes nothing.
        if let (false, Some(after)) = (first, rest.strip_prefix(']')) {
            out.push(']');
            return after;
        }
        first = false;
        let set = |c: char| "dDsSwWpP".contains(c);
        if let Some((name, after)) = rest.strip_prefix("[:").and_then(|r| r.split_once(":]")) {
            out.extend(["[:", name, ":]"]);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('\\').filter(|r| r.starts_with(set)) {
            rest = escaped(after, out);
        } else {
            rest = member(rest, out);
            if let Some(to) = rest.strip_prefix('-').filter(|to| !to.starts_with(']')) {
                out.push('-');
                rest = member(to, out);
            }
        }
    }
    rest
}

/// Writes one character of a class; gives what comes after it.
fn member<'p>(rest: &'p str, out: &mut String) -> &'p str {
    let mut chars = rest.chars();
    match chars.next() {
        Some('\\') => return escaped(chars.as_str(), out),
        Some(c) => out.push_str(&regex_syntax::escape(c.encode_utf8(&mut [0; 4]))),
        None => {}
    }
    chars.as_str()
}

/// Writes what a backslash begins; gives what comes after it.
fn escaped<'p>(rest: &'p str, out: &mut String) -> &'p str {
    let mut chars = rest.chars();
    match chars.next() {
        Some('d') => out.push_str("[0-9]"),
        Some('D') => out.push_str("[^0-9]"),
        Some('s') => out.push_str(r"[\t\n\f\r ]"),
        Some('S') => out.push_str(r"[^\t\n\f\r ]"),
        Some('w') => out.push_str("[0-9A-Za-z_]"),
        Some('W') => out.push_str("[^0-9A-Za-z_]"),
        Some('Q') => {
            let (text, after) = chars.as_str().split_once(r"\E").unwrap_or((chars.as_str(), ""));
            out.push_str(&regex_syntax::escape(text));
            return after;
        }
        Some(c @ ('p' | 'P' | 'x')) if chars.as_str().starts_with('{') => {
            let text = chars.as_str();
            let (name, after) = text.split_at(text.find('}').map_or(text.len(), |end| end + 1));
            out.extend(['\\', c]);
            out.push_str(name);
            return after;
        }
        Some(c) if c.is_ascii_punctuation() => out.push_str(&regex_syntax::escape(c.encode_utf8(&mut [0; 4]))),
        other => out.extend(std::iter::once('\\').chain(other)),
    }
    chars.as_str()
}

/// Whether a brace opens a repetition, by what comes after it.
fn repeats(rest: &str) -> bool {
    let Some((bounds, _)) = rest.split_once('}') else { return false };
    let (from, to) = bounds.split_once(',').unwrap_or((bounds, ""));
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    !from.is_empty() && number(from) && number(to)
}

/// Why no engine knows a pattern; upstream refuses these too.
pub(super) fn fault(p: &str) -> Option<String> {
    regex_syntax::ast::parse::Parser::new()
        .parse(&upstream_form(p))
        .err()
        .map(|e| e.kind().to_string())
        .or_else(|| pattern(p).is_none().then(|| "it is too large when it is compiled".into()))
}

/// A compiled pattern; none when [`fault`] says why. No value matches one that was stored all the same.
/// A few are kept, because the same ones come again and again.
fn pattern(p: &str) -> Option<Regex> {
    use std::cell::RefCell;
    thread_local! {
        static KEPT: RefCell<Vec<(String, Option<Regex>)>> = const { RefCell::new(Vec::new()) };
    }
    KEPT.with_borrow_mut(|kept| {
        if let Some(i) = kept.iter().position(|(k, _)| k == p) {
            return kept[i].1.clone();
        }
        let re = regex::RegexBuilder::new(&upstream_form(p)).size_limit(1 << 20).build().ok();
        if kept.len() >= 32 {
            kept.remove(0);
        }
        kept.push((p.to_string(), re.clone()));
        re
    })
}

fn passes(v: &Value, branch: &Value, path: &str) -> bool {
    let mut errors = Vec::new();
    branch_rules(v, branch, path, &mut errors);
    errors.is_empty()
}

/// A branch may speak of properties and items too.
fn branch_rules(v: &Value, branch: &Value, path: &str, out: &mut Vec<FieldError>) {
    if let Some(t) = branch["type"].as_str() {
        let got = type_name(v);
        if got != t && !(t == "number" && got == "integer") {
            out.push(FieldError::new(
                ErrorKind::TypeInvalid,
                path,
                got.into(),
                format!("{path} in body must be of type {t}: \"{got}\""),
            ));
            return;
        }
    }
    check_rules(v, branch, path, out);
    if let (Some(p), Some(m)) = (branch["properties"].as_object(), v.as_object()) {
        for (k, b) in p {
            if let Some(x) = m.get(k) {
                branch_rules(x, b, &join(path, k), out);
            }
        }
    }
    if let (true, Some(a)) = (branch["items"].is_object(), v.as_array()) {
        a.iter().enumerate().for_each(|(i, x)| branch_rules(x, &branch["items"], &format!("{path}[{i}]"), out));
    }
}

fn combinations(v: &Value, r: &Value, path: &str, out: &mut Vec<FieldError>) {
    let list = |k: &str| r[k].as_array().map_or(&[][..], Vec::as_slice);
    list("allOf").iter().for_each(|b| branch_rules(v, b, path, out));
    let mut bad = |text: &str| out.push(FieldError::invalid(path, v.clone(), format!("{path} in body {text}")));
    if !list("anyOf").is_empty() && !list("anyOf").iter().any(|b| passes(v, b, path)) {
        bad("must validate at least one schema (anyOf)");
    }
    if !list("oneOf").is_empty() {
        let n = list("oneOf").iter().filter(|b| passes(v, b, path)).count();
        if n == 0 {
            bad("must validate one and only one schema (oneOf). Found none valid");
        } else if n > 1 {
            bad(&format!("must validate one and only one schema (oneOf). Found {n} valid alternatives"));
        }
    }
    if r["not"].is_object() && passes(v, &r["not"], path) {
        bad("must not validate the schema (not)");
    }
}

fn duplicates(items: &[Value], schema: &Schema, path: &str, out: &mut Vec<FieldError>) {
    let id = |v: &Value| match schema.list {
        ListType::Set => Some(v.clone()),
        ListType::Map => Some(Value::Object(
            schema.keys.iter().filter_map(|k| Some((k.to_string(), v.get(k.as_ref())?.clone()))).collect(),
        )),
        _ => None,
    };
    let mut seen = HashSet::new();
    for (i, v) in items.iter().enumerate() {
        let Some(id) = id(v) else { return };
        if let Some(twice) = seen.replace(id) {
            out.push(FieldError::duplicate(format!("{path}[{i}]"), twice));
        }
    }
}
