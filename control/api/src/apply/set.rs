//! Sets of fields, and their form in `fieldsV1`.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// One step of a path to a field.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// `f:name`
    Field(String),
    /// `k:{"name":"x"}`, the keys as canonical JSON.
    Key(String),
    /// `v:"x"`, the value as JSON.
    Value(String),
    /// `i:0`
    Index(usize),
}

impl Element {
    fn to_text(&self) -> String {
        match self {
            Element::Field(s) => ["f:", s].concat(),
            Element::Key(s) => ["k:", s].concat(),
            Element::Value(s) => ["v:", s].concat(),
            Element::Index(i) => format!("i:{i}"),
        }
    }

    fn parse(s: &str) -> Option<Element> {
        let (tag, rest) = s.split_once(':')?;
        Some(match tag {
            "f" => Element::Field(rest.into()),
            "k" => Element::Key(serde_json::from_str::<Value>(rest).ok()?.to_string()),
            "v" => Element::Value(serde_json::from_str::<Value>(rest).ok()?.to_string()),
            "i" => Element::Index(rest.parse().ok()?),
            _ => return None,
        })
    }

    /// As conflicts show it.
    fn show(&self) -> String {
        match self {
            Element::Field(s) => format!(".{s}"),
            Element::Key(s) => {
                let keys: Map<String, Value> = serde_json::from_str(s).unwrap_or_default();
                let list: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                format!("[{}]", list.join(","))
            }
            Element::Value(s) => format!("[={s}]"),
            Element::Index(i) => format!("[{i}]"),
        }
    }
}

/// A set of fields as a tree. An element that is itself in the set has `member`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Set {
    nodes: BTreeMap<Element, Node>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    member: bool,
    below: Set,
}

impl Set {
    /// Reads `fieldsV1`.
    pub fn parse(v: &Value) -> Option<Set> {
        let mut out = Set::default();
        for (k, below) in v.as_object()? {
            if k == "." {
                continue;
            }
            let m = below.as_object()?;
            let node = Node { member: m.is_empty() || m.contains_key("."), below: Set::parse(below)? };
            out.nodes.insert(Element::parse(k)?, node);
        }
        Some(out)
    }

    /// Writes `fieldsV1`.
    pub fn to_value(&self) -> Value {
        let mut m = Map::new();
        for (e, n) in &self.nodes {
            let mut below = n.below.to_value();
            if n.member
                && let Value::Object(b) = &mut below
                && !b.is_empty()
            {
                b.insert(".".into(), Value::Object(Map::new()));
            }
            m.insert(e.to_text(), below);
        }
        Value::Object(m)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.nodes.values().all(|n| !n.member && n.below.is_empty())
    }

    /// Whether the element itself is in the set.
    pub fn has(&self, e: &Element) -> bool {
        self.nodes.get(e).is_some_and(|n| n.member)
    }

    /// Whether the element or anything below it is in the set.
    pub fn touches(&self, e: &Element) -> bool {
        self.nodes.get(e).is_some_and(|n| n.member || !n.below.is_empty())
    }

    /// What lies below an element.
    pub fn below(&self, e: &Element) -> Option<&Set> {
        self.nodes.get(e).map(|n| &n.below)
    }

    /// Adds an element if it is a `member`, and what lies below it.
    pub fn put(&mut self, e: Element, member: bool, below: Set) {
        if member || !below.is_empty() {
            let mine = self.nodes.entry(e).or_default();
            mine.member |= member;
            mine.below.append(below);
        }
    }

    /// Adds everything of another set.
    pub fn union(&mut self, other: &Set) {
        for (e, n) in &other.nodes {
            let mine = self.nodes.entry(e.clone()).or_default();
            mine.member |= n.member;
            mine.below.union(&n.below);
        }
    }

    /// Moves everything of another set into this one.
    pub fn append(&mut self, other: Set) {
        if self.nodes.is_empty() {
            *self = other;
            return;
        }
        for (e, n) in other.nodes {
            self.put(e, n.member, n.below);
        }
    }

    /// Takes everything of another set out.
    pub fn difference(&mut self, other: &Set) {
        for (e, n) in &other.nodes {
            if let Some(mine) = self.nodes.get_mut(e) {
                mine.member &= !n.member;
                mine.below.difference(&n.below);
            }
        }
        self.nodes.retain(|_, n| n.member || !n.below.is_empty());
    }

    /// What both have.
    pub fn intersection(&self, other: &Set) -> Set {
        let mut out = Set::default();
        for (e, n) in &self.nodes {
            let Some(o) = other.nodes.get(e) else {
                continue;
            };
            let node = Node { member: n.member && o.member, below: n.below.intersection(&o.below) };
            if node.member || !node.below.is_empty() {
                out.nodes.insert(e.clone(), node);
            }
        }
        out
    }

    /// Takes one field out, leaving what is below it.
    pub fn remove_member(&mut self, path: &[&str]) {
        self.edit(path, |n| n.member = false);
    }

    /// Takes a field and everything below it out.
    pub fn remove_tree(&mut self, path: &[&str]) {
        self.edit(path, |n| *n = Node::default());
    }

    fn edit(&mut self, path: &[&str], f: impl FnOnce(&mut Node)) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let e = Element::Field((*first).to_string());
        if let Some(n) = self.nodes.get_mut(&e) {
            if rest.is_empty() {
                f(n)
            } else {
                n.below.edit(rest, f)
            }
            if !n.member && n.below.is_empty() {
                self.nodes.remove(&e);
            }
        }
    }

    /// All members as text (`.spec.replicas`).
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, prefix: &str, out: &mut Vec<String>) {
        for (e, n) in &self.nodes {
            let path = format!("{prefix}{}", e.show());
            if n.member {
                out.push(path.clone());
            }
            n.below.collect(&path, out);
        }
    }
}
