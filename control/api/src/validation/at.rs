//! A place in an object, and the errors found there.
//!
//! [`At`] is a value together with its path; the path becomes text only when
//! there is something to say about it. [`Errors`] collects what is said.

use crate::names;
use crate::quantity::Quantity;
use crate::status::{ErrorKind, FieldError};
use serde_json::Value;

static NULL: Value = Value::Null;

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Field(&'p str),
    Index(usize),
    Key(&'p str),
}

/// A value and the way to it: `'p` is how long the way's parts live, `'v` the object.
#[derive(Clone, Copy)]
pub(crate) struct At<'p, 'v> {
    pub value: &'v Value,
    step: Step<'p>,
    up: Option<&'p At<'p, 'v>>,
}

impl<'v> At<'v, 'v> {
    /// The whole object.
    pub fn root(value: &'v Value) -> At<'v, 'v> {
        At { value, step: Step::Root, up: None }
    }
}

impl<'v> At<'_, 'v> {
    /// The field called `name`; `a.b` goes two steps.
    pub fn get<'s>(&'s self, name: &'s str) -> At<'s, 'v> {
        let value = name.split('.').fold(self.value, |v, n| v.get(n).unwrap_or(&NULL));
        self.named(name, value)
    }

    /// A value that errors call `name`.
    pub fn named<'s>(&'s self, name: &'s str, value: &'v Value) -> At<'s, 'v> {
        At { value, step: Step::Field(name), up: Some(self) }
    }

    /// The entry of a map.
    pub fn key<'s>(&'s self, key: &'s str) -> At<'s, 'v> {
        At { value: self.value.get(key).unwrap_or(&NULL), step: Step::Key(key), up: Some(self) }
    }

    /// The item at `i`.
    pub fn index<'s>(&'s self, i: usize) -> At<'s, 'v> {
        At { value: self.value.get(i).unwrap_or(&NULL), step: Step::Index(i), up: Some(self) }
    }

    /// The items of a list.
    pub fn items<'s>(&'s self) -> impl Iterator<Item = At<'s, 'v>> + use<'s, 'v> {
        let list = self.value.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().enumerate().map(move |(i, value)| At { value, step: Step::Index(i), up: Some(self) })
    }

    /// The entries of a map.
    pub fn entries<'s>(&'s self) -> impl Iterator<Item = (&'s str, At<'s, 'v>)> + use<'s, 'v> {
        self.value
            .as_object()
            .into_iter()
            .flatten()
            .map(move |(k, value)| (k.as_str(), At { value, step: Step::Key(k), up: Some(self) }))
    }

    pub fn len(&self) -> usize {
        self.value.as_array().map_or_else(|| self.value.as_object().map_or(0, |m| m.len()), Vec::len)
    }

    /// Its text; empty where there is none.
    pub fn text(&self) -> &'v str {
        self.value.as_str().unwrap_or("")
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn is_true(&self) -> bool {
        self.value == &Value::Bool(true)
    }

    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    /// Missing, or an empty text, list or map.
    pub fn is_empty(&self) -> bool {
        match self.value {
            Value::Null => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(m) => m.is_empty(),
            _ => false,
        }
    }

    pub fn quantity(&self) -> Option<Quantity> {
        match self.value {
            Value::String(s) => Quantity::parse(s),
            Value::Number(n) => Quantity::parse(&n.to_string()),
            _ => None,
        }
    }

    /// The way to it as errors show it.
    pub fn path(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        if let Some(up) = self.up {
            up.write(out);
        }
        match self.step {
            Step::Root => {}
            Step::Field(f) => {
                if !out.is_empty() && !f.is_empty() {
                    out.push('.');
                }
                out.push_str(f);
            }
            Step::Index(i) => out.push_str(&format!("[{i}]")),
            Step::Key(k) => out.push_str(&format!("[{k}]")),
        }
    }
}

/// What was found to be wrong, and sentences about what is taken but not as it may look.
#[derive(Default)]
pub(crate) struct Errors(pub Vec<FieldError>, pub Vec<String>);

pub(crate) const IMMUTABLE: &str = "field is immutable";
const NEGATIVE: &str = "must be greater than or equal to 0";
const PORT: &str = "must be between 1 and 65535, inclusive";
const IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

impl Errors {
    pub fn required(&mut self, at: &At, detail: &str) {
        self.0.push(FieldError::required(at.path(), detail));
    }

    pub fn invalid(&mut self, at: &At, detail: impl Into<String>) {
        self.0.push(FieldError::invalid(at.path(), at.value.clone(), detail));
    }

    pub fn invalid_as(&mut self, at: &At, value: impl Into<Value>, detail: impl Into<String>) {
        self.0.push(FieldError::invalid(at.path(), value, detail));
    }

    /// `Invalid value` where the value is not to be shown.
    pub fn invalid_hidden(&mut self, at: &At, detail: impl Into<String>) {
        self.0.push(FieldError::new(ErrorKind::InvalidHidden, at.path(), Value::Null, detail));
    }

    pub fn forbidden(&mut self, at: &At, detail: impl Into<String>) {
        self.0.push(FieldError::forbidden(at.path(), detail));
    }

    pub fn duplicate(&mut self, at: &At) {
        self.0.push(FieldError::duplicate(at.path(), at.value.clone()));
    }

    pub fn duplicate_as(&mut self, at: &At, value: impl Into<Value>) {
        self.0.push(FieldError::duplicate(at.path(), value));
    }

    pub fn not_supported(&mut self, at: &At, allowed: &[&str]) {
        let value = if at.is_set() { at.value.clone() } else { "".into() };
        self.0.push(FieldError::not_supported(at.path(), value, allowed));
    }

    pub fn not_found(&mut self, at: &At) {
        let value = if at.is_set() { at.value.clone() } else { "".into() };
        self.0.push(FieldError::not_found(at.path(), value));
    }

    pub fn too_long(&mut self, at: &At, max: usize) {
        self.0.push(FieldError::too_long(at.path(), max));
    }

    pub fn too_many(&mut self, at: &At, max: usize) {
        self.0.push(FieldError::too_many(at.path(), at.len(), max));
    }

    /// One `Invalid value` for each text.
    pub fn all(&mut self, at: &At, texts: Vec<String>) {
        let value = if at.is_set() { at.value.clone() } else { "".into() };
        self.0.extend(texts.into_iter().map(|t| FieldError::invalid(at.path(), value.clone(), t)));
    }

    /// Says that a text must be there; whether it is.
    pub fn need(&mut self, at: &At) -> bool {
        if at.is_empty() {
            self.required(at, "");
        }
        !at.is_empty()
    }

    /// A text that, where it is given, is one of these.
    pub fn one_of(&mut self, at: &At, allowed: &[&str]) {
        if !at.is_empty() && !allowed.contains(&at.text()) {
            self.not_supported(at, allowed);
        }
    }

    /// A text that must be there and be one of these.
    pub fn need_one_of(&mut self, at: &At, allowed: &[&str]) {
        if self.need(at) {
            self.one_of(at, allowed);
        }
    }

    pub fn non_negative(&mut self, at: &At) {
        if at.int().is_some_and(|n| n < 0) {
            self.invalid(at, NEGATIVE);
        }
    }

    pub fn between(&mut self, at: &At, low: i64, high: i64) {
        if at.int().is_some_and(|n| n < low || n > high) {
            self.invalid(at, format!("must be between {low} and {high}, inclusive"));
        }
    }

    /// A user or group number.
    pub fn id(&mut self, at: &At) {
        self.between(at, 0, i64::from(i32::MAX));
    }

    /// A port number; a missing one is 0.
    pub fn port(&mut self, at: &At) {
        let n = at.int().unwrap_or(0);
        if !(1..=65_535).contains(&n) {
            self.invalid_as(at, n, PORT);
        }
    }

    pub fn port_or_name(&mut self, at: &At) {
        match at.value {
            Value::String(s) => self.all(at, names::port_name(s)),
            _ => self.port(at),
        }
    }

    pub fn dns_label(&mut self, at: &At) {
        self.all(at, names::dns1123_label(at.text()));
    }

    pub fn dns_subdomain(&mut self, at: &At) {
        self.all(at, names::dns1123_subdomain(at.text()));
    }

    pub fn qualified_name(&mut self, at: &At) {
        self.all(at, names::qualified_name(at.text()));
    }

    pub fn ip(&mut self, at: &At) {
        if at.text().parse::<std::net::IpAddr>().is_err() {
            self.invalid_as(at, at.text(), IP);
        }
    }

    pub fn cidr(&mut self, at: &At) {
        if parse_cidr(at.text().trim()).is_none() {
            self.invalid_as(at, at.text().trim(), CIDR);
        }
    }

    /// That a field is as it was.
    pub fn fixed(&mut self, new: &At, old: &Value) {
        if !same(new.value, old) {
            self.invalid(new, IMMUTABLE);
        }
    }
}

/// Address and length of a network.
pub(crate) fn parse_cidr(s: &str) -> Option<(std::net::IpAddr, u8)> {
    let (ip, bits) = s.split_once('/')?;
    let (ip, bits) = (ip.parse::<std::net::IpAddr>().ok()?, bits.parse::<u8>().ok()?);
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

/// Whether two values mean the same: missing, null, an empty list and (in a field
/// that both have) an empty map are one.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    let empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(&NULL)))
                && y.iter().all(|(k, v)| x.contains_key(k) || same(&NULL, v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(a, b)| same(a, b)),
        _ => a == b || (empty(a) && empty(b)),
    }
}

/// Whether an optional value equals what the other side has when it is not set.
pub(crate) fn text_at<'v>(v: &'v Value, pointer: &str) -> &'v str {
    v.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let o = json!({"spec": {"a": [{"b": {"x/y": 1}}]}});
        let root = At::root(&o);
        let spec = root.get("spec");
        let list = spec.get("a");
        for item in list.items() {
            let b = item.get("b");
            for (_, e) in b.entries() {
                assert_eq!((e.path().as_str(), e.int()), ("spec.a[0].b[x/y]", Some(1)));
            }
        }
        assert_eq!(root.get("spec.c.d").path(), "spec.c.d");
        assert_eq!(root.get("").path(), "");
    }

    #[test]
    fn sameness() {
        for (a, b, want) in [
            (json!({"a": null, "b": []}), json!({}), true),
            (json!({"a": {}}), json!({}), false),
            (json!({"a": [{"b": 1}]}), json!({"a": [{"b": 1, "c": null}]}), true),
            (json!({"a": [1]}), json!({"a": [1, 2]}), false),
        ] {
            assert_eq!((same(&a, &b), same(&b, &a)), (want, want), "{a} {b}");
        }
    }
}
