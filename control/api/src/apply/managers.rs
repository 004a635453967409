//! The entries of `managedFields`.

use super::set::Set;
use crate::meta;
use serde_json::{Value, json};

/// Update entries beyond this many are merged into one.
const MAX_UPDATE_ENTRIES: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// Who owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manager {
    pub name: String,
    pub apply: bool,
    /// Empty for applied entries: they are one whatever version they spoke.
    pub api_version: String,
    pub subresource: String,
}

impl Manager {
    /// As conflicts show it.
    pub fn describe(&self) -> String {
        let mut s = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            s.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.apply {
            s.push_str(&format!(" using {}", self.api_version));
        }
        s
    }
}

/// What is owned, since when.
#[derive(Debug, Clone)]
pub struct Owner {
    pub set: Set,
    pub time: String,
    pub api_version: String,
}

/// All entries.
#[derive(Debug, Default)]
pub struct Managers(Vec<(Manager, Owner)>);

impl Managers {
    /// Reads a list of entries; none when it is malformed.
    pub fn parse(v: &Value) -> Option<Managers> {
        let mut out = Managers::default();
        for e in v.as_array()? {
            let apply = match e["operation"].as_str()? {
                "Apply" => true,
                "Update" => false,
                _ => return None,
            };
            let text = |k: &str| e[k].as_str().unwrap_or("").to_string();
            let api_version = text("apiVersion");
            let id = Manager {
                name: text("manager"),
                apply,
                api_version: if apply { String::new() } else { api_version.clone() },
                subresource: text("subresource"),
            };
            let set = if e["fieldsV1"].is_null() { Set::default() } else { Set::parse(&e["fieldsV1"])? };
            out.put(id, Owner { set, time: text("time"), api_version });
        }
        Some(out)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, id: &Manager) -> Option<&Owner> {
        self.0.iter().find(|(m, _)| m == id).map(|(_, o)| o)
    }

    pub fn put(&mut self, id: Manager, owner: Owner) {
        match self.0.iter_mut().find(|(m, _)| *m == id) {
            Some((_, o)) => *o = owner,
            None => self.0.push((id, owner)),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Manager, &Owner)> {
        self.0.iter().map(|(m, o)| (m, o))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&Manager, &mut Owner)> {
        self.0.iter_mut().map(|(m, o)| (&*m, o))
    }

    pub fn drop_empty(&mut self) {
        self.0.retain(|(_, o)| !o.set.is_empty());
    }

    /// Merges the oldest update entries when there are too many.
    pub fn cap(&mut self, now: &str) {
        let updates = |m: &Managers| m.0.iter().filter(|(m, _)| !m.apply && m.subresource.is_empty()).count();
        while updates(self) > MAX_UPDATE_ENTRIES {
            let oldest = (0..self.0.len())
                .filter(|i| {
                    let m = &self.0[*i].0;
                    !m.apply && m.subresource.is_empty() && m.name != ANCIENT
                })
                .min_by_key(|i| self.0[*i].1.time.clone());
            let Some(i) = oldest else { return };
            let (m, o) = self.0.remove(i);
            let id = Manager { name: ANCIENT.into(), ..m };
            let mut set = o.set;
            let mut time = o.time;
            if let Some(old) = self.get(&id) {
                set.union(&old.set);
                time = time.max(old.time.clone());
            } else if updates(self) >= MAX_UPDATE_ENTRIES {
                // One more goes in with it, or the count would not fall.
                time = time.min(now.to_string());
            }
            self.put(id, Owner { set, time, api_version: o.api_version });
        }
    }

    /// Writes the entries into an object's metadata.
    pub fn store(mut self, o: &mut Value) {
        if self.0.is_empty() {
            meta::remove(o, "managedFields");
            return;
        }
        self.0.sort_by(|(a, x), (b, y)| {
            (!a.apply, &x.time, &a.name, &x.api_version, &a.subresource).cmp(&(
                !b.apply,
                &y.time,
                &b.name,
                &y.api_version,
                &b.subresource,
            ))
        });
        let entry = |(m, o): &(Manager, Owner)| {
            let mut e = json!({
                "manager": m.name, "operation": if m.apply { "Apply" } else { "Update" }, "apiVersion": o.api_version,
                "fieldsType": "FieldsV1",
            });
            e["fieldsV1"] = o.set.to_value();
            if !o.time.is_empty() {
                e["time"] = o.time.as_str().into();
            }
            if !m.subresource.is_empty() {
                e["subresource"] = m.subresource.as_str().into();
            }
            e
        };
        let list: Vec<Value> = self.0.iter().map(entry).collect();
        meta::set_value(o, "managedFields", Value::Array(list));
    }
}
