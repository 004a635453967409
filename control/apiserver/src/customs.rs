//! CustomResourceDefinitions: turns them into served kinds, keeps their conditions, and
//! clears away the objects of those that are being deleted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::kinds::Kind;
use api::meta;
use serde_json::{Value, json};

use crate::error::Result;
use crate::registry::Change;
use crate::state::{AppState, CustomKinds};

pub const GROUP: &str = "apiextensions.k8s.io";
pub const RESOURCE: &str = "customresourcedefinitions";
/// Keeps a definition until its objects are gone.
const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// How soon an unfinished or failed pass is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Serves what is defined, and follows CRDs for as long as the server runs.
pub async fn start(state: &Arc<AppState>) {
    let (_, mut watch) = state.definitions.list_and_watch(None, None);
    let mut unfinished = pass(state).await;
    let state = state.clone();
    tokio::spawn(async move {
        let mut stopping = state.stopping();
        loop {
            tokio::select! {
                _ = watch.next() => {}
                () = tokio::time::sleep(AGAIN), if unfinished => {}
                _ = stopping.wait_for(|s| *s) => return,
            }
            unfinished = pass(&state).await;
        }
    });
}

/// Serves what is defined by now: other servers that share the store answer that a definition is established, and their
/// clients use it here.
pub fn catch_up(state: &AppState) {
    let served = *state.definitions_served.lock().unwrap_or_else(|e| e.into_inner());
    if served != state.definitions.last_change() {
        serve_newest(state);
    }
}

/// Serves the kinds of all CRDs as they are now, unless they are served already; gives each with why its names are in
/// use, if so.
fn serve_newest(state: &AppState) -> Vec<(Value, Option<(String, String)>)> {
    // One after the other, so that an older look does not take the place of a newer one.
    let mut served = state.definitions_served.lock().unwrap_or_else(|e| e.into_inner());
    // Before the objects: what changes in between is looked at again.
    let revision = state.definitions.last_change();
    let mut taken = Names::default();
    let mut kinds = CustomKinds::default();
    let objects = state.definitions.list(None);
    // Memory may have objects that the revision does not tell of yet.
    let is_served = *served == revision && objects.iter().all(|object| object.revision <= revision);
    let mut crds: Vec<Value> = objects.iter().map(|o| o.value()).collect();
    // Who came first keeps a name.
    crds.sort_by(|a, b| {
        (is_established(b), meta::field(a, "creationTimestamp"), meta::name(a)).cmp(&(
            is_established(a),
            meta::field(b, "creationTimestamp"),
            meta::name(b),
        ))
    });
    let crds = crds.into_iter().map(|crd| {
        let conflict = taken.take(&crd);
        if conflict.is_none() && !is_served {
            serve(&mut kinds, &crd);
        }
        (crd, conflict)
    });
    let crds = crds.collect();
    if !is_served {
        publish(state, kinds);
        *served = revision;
    }
    crds
}

/// Looks at all CRDs once; says whether something is left to do.
async fn pass(state: &Arc<AppState>) -> bool {
    let mut unfinished = false;
    // Served first, said so afterwards: who waits for a definition to be established uses it at once.
    let all = serve_newest(state);
    for (crd, conflict) in &all {
        if let Err(error) = settle(state, crd, conflict.as_ref()).await {
            tracing::warn!("the definition {} was not brought up to date: {error}", meta::name(crd));
            unfinished = true;
        }
    }
    let crds = all.iter().map(|(crd, _)| crd);
    for crd in crds.filter(|c| meta::deletion_timestamp(c).is_some() && meta::finalizers(c).contains(&CLEANUP)) {
        match clear(state, crd).await {
            Ok(done) => unfinished |= !done,
            Err(error) => {
                tracing::warn!("the objects of {} were not cleared away: {error}", meta::name(crd));
                unfinished = true;
            }
        }
    }
    unfinished
}

fn is_established(crd: &Value) -> bool {
    condition(crd, "Established") == Some("True")
}

fn condition<'a>(crd: &'a Value, kind: &str) -> Option<&'a str> {
    crd["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

/// Names in use, by group and what they name.
#[derive(Default)]
struct Names(HashMap<(String, &'static str, String), String>);

impl Names {
    /// Takes a CRD's names; gives reason and message if one is in use.
    fn take(&mut self, crd: &Value) -> Option<(String, String)> {
        let group = crd["spec"]["group"].as_str().unwrap_or("").to_string();
        let names = &crd["spec"]["names"];
        let text = |field: &str| names[field].as_str().unwrap_or("").to_string();
        let mut wanted = vec![
            ("Plural", "resource", text("plural")),
            ("Singular", "resource", text("singular")),
            ("Kind", "kind", text("kind")),
            ("ListKind", "kind", text("listKind")),
        ];
        for short in names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            wanted.push(("ShortNames", "resource", short.to_string()));
        }
        let own = meta::name(crd).to_string();
        wanted.retain(|(_, _, name)| !name.is_empty());
        for (what, space, name) in &wanted {
            let key = (group.clone(), *space, name.clone());
            if self.0.get(&key).is_some_and(|holder| *holder != own) {
                return Some((format!("{what}Conflict"), format!("{name:?} is already in use")));
            }
        }
        for (_, space, name) in wanted {
            self.0.insert((group.clone(), space, name), own.clone());
        }
        None
    }
}

fn serve(kinds: &mut CustomKinds, crd: &Value) {
    if let Some(stored) = api::crd::kind_of(crd, api::crd::storage_version(crd)) {
        kinds.stored.insert((stored.group.to_string(), stored.plural.to_string()), stored);
        kinds.served.extend(api::crd::kinds(crd));
    }
}

/// Serves the kinds; watches of what is no longer served as it was end.
fn publish(state: &AppState, new: CustomKinds) {
    let old = state.customs();
    let shape = |kinds: &CustomKinds, kind: &Kind| -> Vec<(String, String)> {
        let same = |k: &&Arc<Kind>| k.group == kind.group && k.plural == kind.plural;
        kinds.served.iter().filter(same).map(|k| (k.version.to_string(), k.kind.to_string())).collect()
    };
    for gone in old.stored.values().filter(|k| shape(&old, k) != shape(&new, k)) {
        state.registry.cache(&gone.group, &gone.plural).end_watches();
    }
    state.set_custom_kinds(new);
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn set_condition(crd: &mut Value, kind: &str, status: bool, reason: &str, message: &str) {
    let status = if status { "True" } else { "False" };
    let map = meta::child_mut(meta::object_mut(crd), "status");
    let conditions = map.entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else {
        return;
    };
    let at = list
        .iter()
        .find(|c| c["type"] == kind)
        .filter(|c| c["status"] == status)
        .map(|c| c["lastTransitionTime"].clone());
    let new = json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": at.unwrap_or_else(|| now().into())});
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(condition) => *condition = new,
        None => list.push(new),
    }
}

/// Writes the status that a CRD is to have, if it has another.
async fn settle(state: &AppState, crd: &Value, conflict: Option<&(String, String)>) -> Result<()> {
    let storage = api::crd::storage_version(crd).to_string();
    let change = |mut crd: Value| {
        let before = crd.clone();
        if meta::deletion_timestamp(&crd).is_none() && !meta::finalizers(&crd).contains(&CLEANUP) {
            let mut all: Vec<Value> = meta::finalizers(&crd).into_iter().map(Value::from).collect();
            all.push(CLEANUP.into());
            meta::set_value(&mut crd, "finalizers", all.into());
        }
        match conflict {
            None => {
                set_condition(&mut crd, "NamesAccepted", true, "NoConflicts", "no conflicts found");
                set_condition(
                    &mut crd,
                    "Established",
                    true,
                    "InitialNamesAccepted",
                    "the initial names have been accepted",
                );
                let names = crd["spec"]["names"].clone();
                meta::child_mut(meta::object_mut(&mut crd), "status").insert("acceptedNames".into(), names);
            }
            Some((reason, message)) => {
                set_condition(&mut crd, "NamesAccepted", false, reason, message);
                if !is_established(&crd) {
                    set_condition(&mut crd, "Established", false, "NotAccepted", "not all names are accepted");
                }
            }
        }
        let status = meta::child_mut(meta::object_mut(&mut crd), "status");
        let versions = status.entry("storedVersions").or_insert_with(|| json!([]));
        if let Some(list) = versions.as_array_mut().filter(|l| !l.iter().any(|v| *v == storage)) {
            list.push(storage.clone().into());
        }
        if meta::deletion_timestamp(&crd).is_some() && condition(&crd, "Terminating").is_none() {
            set_condition(
                &mut crd,
                "Terminating",
                true,
                "InstanceDeletionPending",
                "CustomResource deletion is pending",
            );
        }
        Ok(if crd == before { Change::Keep } else { Change::Write(crd) })
    };
    match state.registry.guaranteed_update(GROUP, RESOURCE, "", meta::name(crd), change).await {
        Err(error) if error.reason == "NotFound" => Ok(()),
        done => done.map(drop),
    }
}

/// Removes the objects of a CRD, then lets it go; says whether that is done.
async fn clear(state: &AppState, crd: &Value) -> Result<bool> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_string();
    let (group, plural) = (text(&crd["spec"]["group"]), text(&crd["spec"]["names"]["plural"]));
    let mut left = false;
    for object in state.registry.list(&group, &plural, None) {
        let change = |mut object: Value| {
            if meta::finalizers(&object).is_empty() {
                return Ok(Change::Remove);
            }
            if meta::deletion_timestamp(&object).is_some() {
                return Ok(Change::Keep);
            }
            meta::set(&mut object, "deletionTimestamp", &now());
            meta::set_value(&mut object, "deletionGracePeriodSeconds", 0.into());
            Ok(Change::Write(object))
        };
        match state.registry.guaranteed_update(&group, &plural, &object.namespace, &object.name, change).await {
            Err(error) if error.reason == "NotFound" => {}
            done => left |= done?.is_some(),
        }
    }
    if left {
        return Ok(false);
    }
    let release = |mut crd: Value| {
        let rest: Vec<Value> = meta::finalizers(&crd).into_iter().filter(|f| *f != CLEANUP).map(Value::from).collect();
        if rest.is_empty() {
            return Ok(Change::Remove);
        }
        meta::set_value(&mut crd, "finalizers", rest.into());
        Ok(Change::Write(crd))
    };
    match state.registry.guaranteed_update(GROUP, RESOURCE, "", meta::name(crd), release).await {
        Err(error) if error.reason == "NotFound" => Ok(true),
        done => done.map(|_| true),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::Config;
    use crate::registry::Registry;
    use crate::registry::flaky::Flaky;

    fn definition(plural: &str) -> Value {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1",
            "metadata": {"name": format!("{plural}.example.com"), "uid": plural},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": plural, "kind": plural},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
    }

    #[tokio::test]
    async fn what_is_served_already_is_not_built_again() {
        let config = Config::try_parse_from(["x", "--tls-cert-file=x", "--tls-private-key-file=x"]).unwrap();
        let state = AppState::new(config, Registry::new(Arc::new(Flaky::new()))).unwrap();
        for (number, plural) in ["as", "bs"].into_iter().enumerate() {
            state.registry.create(GROUP, RESOURCE, &definition(plural), None).await.unwrap();
            catch_up(&state);
            let built = state.customs();
            assert_eq!(built.served.len(), number + 1);
            let all = serve_newest(&state);
            assert_eq!(all.len(), number + 1, "what is left to do is looked at");
            assert!(Arc::ptr_eq(&built, &state.customs()));
        }
    }
}
