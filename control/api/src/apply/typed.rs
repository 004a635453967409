//! Objects as trees of owned fields, by schema: which fields an object has, how
//! two differ, how a configuration merges into an object, how fields that are no
//! longer wanted leave it.

use super::set::{Element, Set};
use crate::schema::{ListType, Schema, Ty};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// How a value is taken apart.
enum Shape {
    /// Owned as a whole.
    Leaf,
    /// By field name; the schema of a name, and whether names are free.
    Object,
    /// By item.
    List,
}

fn shape(v: &Value, schema: Option<&Schema>, atomic: bool) -> Shape {
    let Some(s) = schema else {
        // Unknown shape: objects by field, lists as a whole.
        return if v.is_object() { Shape::Object } else { Shape::Leaf };
    };
    match (v, s.ty) {
        (Value::Object(_), Ty::Object | Ty::Any) if !s.atomic && !atomic => Shape::Object,
        (Value::Array(_), Ty::Array) if matches!(s.list, ListType::Map | ListType::Set) => Shape::List,
        _ => Shape::Leaf,
    }
}

/// The schema of a field, and whether the field makes it atomic.
fn child<'a>(schema: Option<&'a Schema>, name: &str) -> (Option<&'a Schema>, bool, bool) {
    match schema.and_then(|s| s.field(name)) {
        Some(f) => (Some(f.schema()), f.atomic, true),
        None => (schema.and_then(|s| s.child(name)), false, false),
    }
}

/// Default of a list key that objects may leave open.
fn key_default(key: &str) -> Option<Value> {
    (key == "protocol").then(|| "TCP".into())
}

/// The element that names an item of a list.
fn item_element(v: &Value, schema: &Schema) -> Option<Element> {
    match schema.list {
        ListType::Set => Some(Element::Value(v.to_string())),
        ListType::Map => {
            let mut keys = Map::new();
            for k in &schema.keys {
                let found = v.get(k.as_ref()).filter(|x| !x.is_null()).cloned();
                let default = || {
                    schema
                        .item()
                        .and_then(|i| i.child(k))
                        .and_then(|c| c.extra.as_ref())
                        .and_then(|e| e.default.clone())
                };
                if let Some(x) = found.or_else(default).or_else(|| key_default(k)) {
                    keys.insert(k.to_string(), x);
                }
            }
            (!keys.is_empty()).then(|| Element::Key(Value::Object(keys).to_string()))
        }
        _ => None,
    }
}

/// The set of fields that an object has.
pub fn fields(v: &Value, schema: &Schema) -> Result<Set, String> {
    let mut out = Set::default();
    collect_as(v, Some(schema), false, false, &Path(None), &mut out)?;
    Ok(out)
}

/// Where a value lies: the fields from the root, the last one first.
struct Path<'a>(Option<(&'a Path<'a>, &'a str)>);

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |(above, name)| write!(f, "{above}.{name}"))
    }
}

/// Fills `out` with what is inside `v`; false when `v` is owned as a whole.
/// Updates own the maps they make (`maps`), applied configurations do not.
fn collect_as(
    v: &Value,
    schema: Option<&Schema>,
    atomic: bool,
    maps: bool,
    path: &Path<'_>,
    out: &mut Set,
) -> Result<bool, String> {
    match (shape(v, schema, atomic), v) {
        (Shape::Object, Value::Object(m)) => {
            for (k, x) in m {
                let (s, atomic, named) = child(schema, k);
                let mut below = Set::default();
                let inside = collect_as(x, s, atomic, maps, &Path(Some((path, k))), &mut below)?;
                let bare = x.is_null() || x.as_object().is_some_and(Map::is_empty);
                let own = !inside || bare || !named || (maps && s.is_some_and(Schema::is_map));
                out.put(Element::Field(k.clone()), own, below);
            }
            Ok(true)
        }
        (Shape::List, Value::Array(items)) => {
            let Some(s) = schema else { return Ok(false) };
            for (i, x) in items.iter().enumerate() {
                let e = item_element(x, s).ok_or_else(|| {
                    let keys: Vec<String> = s.keys.iter().map(|k| format!("{:?}", k.as_ref())).collect();
                    format!("{path}: element {i}: associative list with keys has an element that omits key field {} (and doesn't have default value)", keys.join(", "))
                })?;
                if out.has(&e) {
                    return Err(format!(
                        "{path}: duplicate entries for key {}",
                        Value::from(match &e {
                            Element::Key(k) | Element::Value(k) => k.clone(),
                            _ => String::new(),
                        })
                    ));
                }
                let mut below = Set::default();
                collect_as(x, s.item(), false, maps, path, &mut below)?;
                out.put(e, true, below);
            }
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// How one object differs from another.
#[derive(Debug, Default)]
pub struct Change {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

impl Change {
    /// Whether both are equal.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }
}

/// The change from `old` to `new`.
pub fn compare(old: &Value, new: &Value, schema: &Schema) -> Change {
    let mut out = Change::default();
    compare_node(old, new, Some(schema), false, &mut out);
    out
}

/// Compares what is inside; false when the values are owned as a whole.
fn compare_node(old: &Value, new: &Value, schema: Option<&Schema>, atomic: bool, out: &mut Change) -> bool {
    match (shape(old, schema, atomic), shape(new, schema, atomic)) {
        (Shape::Object, Shape::Object) => {
            let (Value::Object(a), Value::Object(b)) = (old, new) else {
                return false;
            };
            for (k, x) in a {
                let (s, atomic, _) = child(schema, k);
                entry(Element::Field(k.clone()), Some(x), b.get(k), s, atomic, out);
            }
            for (k, y) in b.iter().filter(|(k, _)| !a.contains_key(*k)) {
                let (s, atomic, _) = child(schema, k);
                entry(Element::Field(k.clone()), None, Some(y), s, atomic, out);
            }
            true
        }
        (Shape::List, Shape::List) => {
            let (Value::Array(a), Value::Array(b), Some(s)) = (old, new, schema) else {
                return false;
            };
            let named = |list: &[Value]| list.iter().map(|v| item_element(v, s)).collect::<Vec<_>>();
            let (ours, theirs) = (named(a), named(b));
            let (before, after) = (places(&ours), places(&theirs));
            for (e, x) in ours.iter().zip(a) {
                let Some(e) = e else { continue };
                let y = after.get(e).map(|i| &b[*i]);
                entry(e.clone(), Some(x), y, s.item(), false, out);
            }
            for (e, y) in theirs.iter().zip(b) {
                let Some(e) = e.as_ref().filter(|e| !before.contains_key(e)) else { continue };
                entry(e.clone(), None, Some(y), s.item(), false, out);
            }
            true
        }
        _ => false,
    }
}

/// Where each item with a name is first.
fn places(named: &[Option<Element>]) -> HashMap<&Element, usize> {
    let mut out = HashMap::with_capacity(named.len());
    for (i, e) in named.iter().enumerate() {
        if let Some(e) = e {
            out.entry(e).or_insert(i);
        }
    }
    out
}

fn entry(
    e: Element,
    old: Option<&Value>,
    new: Option<&Value>,
    schema: Option<&Schema>,
    atomic: bool,
    out: &mut Change,
) {
    match (old, new) {
        (Some(a), Some(b)) if a == b => {}
        (Some(a), Some(b)) => {
            let mut below = Change::default();
            if compare_node(a, b, schema, atomic, &mut below) {
                out.added.put(e.clone(), false, below.added);
                out.modified.put(e.clone(), false, below.modified);
                out.removed.put(e, false, below.removed);
            } else {
                whole(&mut out.modified, e, b, schema, atomic);
            }
        }
        (None, Some(b)) => whole(&mut out.added, e, b, schema, atomic),
        (Some(a), None) => whole(&mut out.removed, e, a, schema, atomic),
        (None, None) => {}
    }
}

/// All fields of a value that is there on one side only.
fn whole(out: &mut Set, e: Element, v: &Value, schema: Option<&Schema>, atomic: bool) {
    let mut below = Set::default();
    // Items without a key cannot be told apart; the whole is owned then.
    let inside = collect_as(v, schema, atomic, true, &Path(None), &mut below).unwrap_or(false);
    if !inside {
        below = Set::default();
    }
    // Maps with free keys own themselves too, so that they stay when they run empty.
    let map = schema.is_some_and(Schema::is_map);
    let own = below.is_empty() || map || matches!(e, Element::Key(_) | Element::Value(_));
    out.put(e, own, below);
}

/// The live object with a configuration merged into it.
pub fn merge(live: &Value, config: &Value, schema: &Schema) -> Value {
    merge_node(live, config, Some(schema), false)
}

fn merge_node(live: &Value, config: &Value, schema: Option<&Schema>, atomic: bool) -> Value {
    match (shape(live, schema, atomic), shape(config, schema, atomic)) {
        (Shape::Object, Shape::Object) => {
            let (Value::Object(a), Value::Object(b)) = (live, config) else {
                return config.clone();
            };
            let mut out = a.clone();
            for (k, y) in b {
                let (s, atomic, _) = child(schema, k);
                let merged = match a.get(k) {
                    Some(x) => merge_node(x, y, s, atomic),
                    None => y.clone(),
                };
                out.insert(k.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::List, Shape::List) => {
            let (Value::Array(a), Value::Array(b), Some(s)) = (live, config, schema) else {
                return config.clone();
            };
            Value::Array(merge_lists(a, b, s))
        }
        _ => config.clone(),
    }
}

/// The configuration's items in its order; the others stay where they were
/// relative to the items they preceded.
fn merge_lists(live: &[Value], config: &[Value], s: &Schema) -> Vec<Value> {
    let named = |list: &[Value]| list.iter().map(|v| item_element(v, s)).collect::<Vec<_>>();
    let (ours, theirs) = (named(live), named(config));
    let (live_at, config_at) = (places(&ours), places(&theirs));
    // Live objects may hold items without a name from before the schema asked for one; the configuration has none.
    let in_config = |i: usize| ours[i].as_ref().is_some_and(|e| config_at.contains_key(e));
    let mut out = Vec::new();
    let mut at = 0;
    for (c, e) in config.iter().zip(&theirs) {
        if let Some(&i) = e.as_ref().and_then(|e| live_at.get(e)) {
            while at < i {
                if !in_config(at) {
                    out.push(live[at].clone());
                }
                at += 1;
            }
            at = at.max(i + 1);
            out.push(merge_node(&live[i], c, s.item(), false));
        } else {
            while at < live.len() && !in_config(at) {
                out.push(live[at].clone());
                at += 1;
            }
            out.push(c.clone());
        }
    }
    out.extend((at..live.len()).filter(|i| !in_config(*i)).map(|i| live[i].clone()));
    out
}

/// Takes out what `last` had and nobody in `keep` has.
pub fn prune(v: Value, last: &Set, keep: &Set, schema: &Schema) -> Value {
    prune_node(v, last, keep, Some(schema), false)
}

fn prune_node(v: Value, last: &Set, keep: &Set, schema: Option<&Schema>, atomic: bool) -> Value {
    let empty = Set::default();
    let step = |e: Element, x: Value, s: Option<&Schema>, atomic: bool| -> Option<Value> {
        if last.has(&e) && !keep.touches(&e) {
            return None;
        }
        let Some(below) = last.below(&e).filter(|b| !b.is_empty()) else {
            return Some(x);
        };
        let was_empty = is_bare(&x);
        let out = prune_node(x, below, keep.below(&e).unwrap_or(&empty), s, atomic);
        // What runs empty goes, unless somebody wants it there.
        if is_bare(&out) && !was_empty && !keep.has(&e) { None } else { Some(out) }
    };
    match (shape(&v, schema, atomic), v) {
        (Shape::Object, Value::Object(m)) => {
            let mut out = Map::new();
            for (k, x) in m {
                let (s, atomic, _) = child(schema, &k);
                if let Some(x) = step(Element::Field(k.clone()), x, s, atomic) {
                    out.insert(k, x);
                }
            }
            Value::Object(out)
        }
        (Shape::List, Value::Array(items)) => {
            let Some(s) = schema else {
                return Value::Array(items);
            };
            let mut out = Vec::new();
            for x in items {
                match item_element(&x, s) {
                    Some(e) => out.extend(step(e, x, s.item(), false)),
                    None => out.push(x),
                }
            }
            Value::Array(out)
        }
        (_, v) => v,
    }
}

fn is_bare(v: &Value) -> bool {
    match v {
        Value::Object(m) => m.is_empty(),
        Value::Array(a) => a.is_empty(),
        _ => false,
    }
}
