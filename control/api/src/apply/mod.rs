//! Server-side apply and the bookkeeping of field owners (`metadata.managedFields`)
//! for every other write.
//!
//! [`on_update`] is called for create, update and the other patches with the
//! object as it was and as it will be; [`apply`] merges an applied configuration
//! into the live object. Both leave `managedFields` set on what they return.

mod managers;
mod set;
mod typed;

pub use set::{Element, Set};

use crate::meta;
use crate::schema::Schema;
use crate::status::Status;
use managers::{Manager, Managers, Owner};
use serde_json::{Map, Value};

/// Who writes, and how.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// `fieldManager`, or the first part of the user agent.
    pub manager: &'a str,
    /// The version the writer spoke.
    pub api_version: &'a str,
    /// The sub-resource written through, or empty.
    pub subresource: &'a str,
    /// RFC 3339.
    pub now: &'a str,
    /// Whether the kind has a status sub-resource: its status is then not owned
    /// by writers of the main resource, nor the spec by writers of the status.
    pub has_status: bool,
}

impl Write<'_> {
    fn id(&self, apply: bool) -> Manager {
        Manager {
            name: self.manager.into(),
            apply,
            api_version: if apply { String::new() } else { self.api_version.into() },
            subresource: self.subresource.into(),
        }
    }

    /// Fields that nobody owns, or not through this sub-resource.
    fn strip(&self, set: &mut Set) {
        for path in [&["apiVersion"][..], &["kind"], &["metadata"]] {
            set.remove_member(path);
        }
        for f in [
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        ] {
            set.remove_tree(&["metadata", f]);
        }
        match self.subresource {
            "status" => set.remove_tree(&["spec"]),
            "" if self.has_status => set.remove_tree(&["status"]),
            _ => {}
        }
    }
}

/// The name used when a request names no manager: the user agent up to its slash.
pub fn default_manager(user_agent: &str) -> String {
    let name: String =
        user_agent.split('/').next().unwrap_or("").chars().filter(|c| !c.is_control()).take(128).collect();
    if name.is_empty() { "unknown".into() } else { name }
}

/// Keeps `managedFields` of `new` for a create (`live` is none) or an update.
pub fn on_update(live: Option<&Value>, new: &mut Value, schema: &Schema, write: Write) {
    let given = meta::remove(new, "managedFields");
    // A list with one empty entry asks for the bookkeeping to be forgotten.
    let forget = given
        .as_ref()
        .and_then(Value::as_array)
        .is_some_and(|a| a.len() == 1 && a[0].as_object().is_none_or(Map::is_empty));
    let of_live = live.map_or(&Value::Null, |l| &l["metadata"]["managedFields"]);
    let mut managers = if forget {
        Managers::default()
    } else {
        given
            .as_ref()
            .and_then(Managers::parse)
            .filter(|m| !m.is_empty())
            .or_else(|| Managers::parse(of_live))
            .unwrap_or_default()
    };
    let untracked = live.is_some() && Managers::parse(of_live).is_none_or(|m| m.is_empty());
    if (untracked && managers.is_empty()) || forget {
        return;
    }
    let empty = Value::Object(Map::new());
    let old = live.unwrap_or(&empty);
    let mut change = typed::compare(old, new, schema);
    write.strip(&mut change.modified);
    write.strip(&mut change.added);
    write.strip(&mut change.removed);
    let id = write.id(false);
    take_over(&mut managers, &change, &id, true);
    let mut own = change.modified;
    own.append(change.added);
    if !own.is_empty() {
        let mut set = managers.get(&id).map(|o| o.set.clone()).unwrap_or_default();
        set.append(own);
        managers.put(id, Owner { set, time: write.now.into(), api_version: write.api_version.into() });
    }
    managers.drop_empty();
    managers.cap(write.now);
    managers.store(new);
}

/// What others own of a change: they lose it. Returns who was in the way.
fn take_over(managers: &mut Managers, change: &typed::Change, me: &Manager, include_me: bool) -> Vec<(Manager, Set)> {
    if managers.is_empty() {
        return Vec::new();
    }
    let mut touched = change.modified.clone();
    touched.union(&change.added);
    let mut conflicts = Vec::new();
    for (id, owner) in managers.iter_mut() {
        if id == me && !include_me {
            continue;
        }
        let conflict = owner.set.intersection(&touched);
        owner.set.difference(&change.removed);
        if !conflict.is_empty() && id != me {
            owner.set.difference(&conflict);
            conflicts.push((id.clone(), conflict));
        }
    }
    conflicts
}

/// Applies a configuration. `live` is none when the object does not exist yet.
/// The result has `managedFields`; it is still to be defaulted and validated.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    schema: &Schema,
    write: Write,
    force: bool,
) -> Result<Value, Status> {
    if config["metadata"].get("managedFields").is_some_and(|m| m.as_array().is_none_or(|a| !a.is_empty())) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let mut config = config.clone();
    drop_nulls(&mut config);
    let empty = Value::Object(Map::new());
    let base = live.unwrap_or(&empty);
    let mut managers = Managers::parse(&base["metadata"]["managedFields"]).unwrap_or_default();
    if live.is_some() && managers.is_empty() {
        before_first_apply(&mut managers, base, schema, &write);
    }
    let mut live_bare = base.clone();
    meta::remove(&mut live_bare, "managedFields");

    let mut set = typed::fields(&config, schema).map_err(|e| {
        Status::new(500, "InternalError", format!("failed to create typed patch object ({}): {e}", describe(&config)))
    })?;
    write.strip(&mut set);
    let id = write.id(true);
    let last = managers.get(&id).map(|o| o.set.clone());
    let merged = typed::merge(&live_bare, &config, schema);
    let new = match &last {
        Some(last) => {
            let mut keep = set.clone();
            managers.iter().filter(|(m, _)| **m != id).for_each(|(_, o)| keep.union(&o.set));
            typed::prune(merged, last, &keep, schema)
        }
        None => merged,
    };
    let mut change = typed::compare(&live_bare, &new, schema);
    for s in [&mut change.modified, &mut change.added, &mut change.removed] {
        write.strip(s);
    }
    let conflicts = take_over(&mut managers, &change, &id, false);
    if !conflicts.is_empty() && !force {
        return Err(conflict_error(conflicts));
    }
    let unchanged = last.as_ref() == Some(&set) && change.is_empty();
    let time = match managers.get(&id) {
        Some(o) if unchanged => o.time.clone(),
        _ => write.now.to_string(),
    };
    managers.put(id, Owner { set, time, api_version: write.api_version.into() });
    managers.drop_empty();
    let mut out = new;
    managers.store(&mut out);
    Ok(out)
}

/// An object as errors of apply name it.
pub fn describe(o: &Value) -> String {
    let ns = meta::namespace(o);
    let name = if ns.is_empty() { format!("/{}", meta::name(o)) } else { format!("{ns}/{}", meta::name(o)) };
    let (group, version) = crate::kinds::split_api_version(meta::api_version(o));
    format!("{name}; {group}/{version}, Kind={}", meta::kind(o))
}

fn drop_nulls(v: &mut Value) {
    match v {
        Value::Object(m) => {
            m.retain(|_, v| !v.is_null());
            m.values_mut().for_each(drop_nulls);
        }
        Value::Array(a) => a.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Objects from before the bookkeeping: all they have belongs to a made-up manager.
fn before_first_apply(managers: &mut Managers, live: &Value, schema: &Schema, write: &Write) {
    let Ok(mut set) = typed::fields(live, schema) else {
        return;
    };
    let main = Write { subresource: "", has_status: true, ..*write };
    main.strip(&mut set);
    if !set.is_empty() {
        let id = Manager {
            name: "before-first-apply".into(),
            apply: false,
            api_version: write.api_version.into(),
            subresource: String::new(),
        };
        managers.put(id, Owner { set, time: write.now.into(), api_version: write.api_version.into() });
    }
}

fn conflict_error(conflicts: Vec<(Manager, Set)>) -> Status {
    let mut list: Vec<(String, Vec<String>)> = conflicts.into_iter().map(|(m, s)| (m.describe(), s.paths())).collect();
    list.sort();
    let count: usize = list.iter().map(|(_, p)| p.len()).sum();
    let message = match list.as_slice() {
        [(m, paths)] if paths.len() == 1 => format!("Apply failed with 1 conflict: conflict with {m}: {}", paths[0]),
        _ => {
            let parts: Vec<String> = list
                .iter()
                .map(|(m, paths)| {
                    format!(
                        "conflicts with {m}:\n{}",
                        paths.iter().map(|p| format!("- {p}")).collect::<Vec<_>>().join("\n")
                    )
                })
                .collect();
            format!("Apply failed with {count} conflicts: {}", parts.join("\n"))
        }
    };
    let mut s = Status::new(409, "Conflict", message);
    for (m, paths) in list {
        for p in paths {
            s = s.with_cause("FieldManagerConflict", format!("conflict with {m}"), p);
        }
    }
    s
}

#[cfg(test)]
mod tests;
