//! Storage classes, attachments, CSI drivers, nodes and capacities.

use super::at::{At, Errors, IMMUTABLE, same};
use super::selectors::{label_name, label_selector};
use super::{core, pod};
use crate::names;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

fn driver(e: &mut Errors, at: &At) {
    if e.need(at) {
        let lower = at.text().to_lowercase();
        names::qualified_name(&lower).into_iter().for_each(|t| e.invalid_as(at, lower.as_str(), t));
    }
}

fn parameters(e: &mut Errors, at: &At, needed: bool) {
    if at.len() > 512 {
        return e.too_long(at, 512);
    }
    let mut size = 0;
    for (key, value) in at.entries() {
        if key.is_empty() {
            e.invalid_as(at, key, "field can not be empty.");
        }
        size += key.len() + value.text().len();
    }
    if size > 256 * 1024 {
        e.too_long(at, 256 * 1024);
    }
    if needed && at.is_empty() {
        e.required(at, "must contain at least one key/value pair");
    }
}

/// A storage class.
pub(crate) fn class(e: &mut Errors, o: &At) {
    driver(e, &o.get("provisioner"));
    parameters(e, &o.get("parameters"), false);
    e.one_of(&o.get("reclaimPolicy"), &["Delete", "Retain"]);
    e.need_one_of(&o.get("volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]);
    let terms = o.get("allowedTopologies");
    // Upstream holds a term that names nothing for said already.
    let mut seen: BTreeSet<BTreeMap<&str, BTreeSet<&str>>> = BTreeSet::from([BTreeMap::new()]);
    for term in terms.items() {
        let mut keys = BTreeSet::new();
        for x in term.get("matchLabelExpressions").items() {
            let values = x.get("values");
            e.need(&values);
            let mut named = BTreeSet::new();
            values.items().filter(|v| !named.insert(v.text())).for_each(|v| e.duplicate(&v));
            label_name(e, &x.get("key"));
            if !keys.insert(x.get("key").text()) {
                e.duplicate(&x.get("key"));
            }
        }
        let expressions = term.value["matchLabelExpressions"].as_array().into_iter().flatten();
        let meant = expressions.map(|x| {
            let values = x["values"].as_array().into_iter().flatten();
            (x["key"].as_str().unwrap_or(""), values.filter_map(Value::as_str).collect())
        });
        // Once a term, where upstream says it once for each of those before.
        if !seen.insert(meant.collect()) {
            e.duplicate_as(&term.get("matchLabelExpressions"), "");
        }
    }
}

/// A changed storage class.
pub(crate) fn class_update(e: &mut Errors, new: &At, old: &At) {
    for field in ["parameters", "provisioner", "reclaimPolicy"] {
        if !same(new.get(field).value, old.get(field).value) {
            e.forbidden(&new.get(field), format!("updates to {field} are forbidden."));
        }
    }
    e.fixed(&new.get("volumeBindingMode"), old.get("volumeBindingMode").value);
}

/// A volume attachment.
pub(crate) fn attachment(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    e.need(&spec.get("attacher"));
    let source = spec.get("source");
    let (inline, name) = (source.get("inlineVolumeSpec"), source.get("persistentVolumeName"));
    let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (inline.is_set(), name.is_set()) {
        (false, false) => e.required(&source, detail),
        (true, true) => e.forbidden(&source, detail),
        (false, true) if name.is_empty() => e.required(&name, "must specify non empty persistentVolumeName"),
        (false, true) => {}
        (true, false) => core::inline_volume_spec(e, &inline),
    }
    e.all(&spec.get("nodeName"), names::dns1123_subdomain(spec.get("nodeName").text()));
    attachment_status(e, &o.get("status"));
}

fn attachment_status(e: &mut Errors, s: &At) {
    const MOST: usize = 256 * 1024;
    let about = s.get("attachmentMetadata");
    if about.entries().map(|(k, v)| k.len() + v.text().len()).sum::<usize>() > MOST {
        e.too_long(&about, MOST);
    }
    for field in ["attachError", "detachError"] {
        let fault = s.get(field);
        if fault.get("message").text().len() > 1024 {
            // The bound that clients are told is the other one.
            e.too_long(&fault.get("message"), MOST);
        }
        e.id(&fault.get("errorCode"));
    }
}

/// What only a new attachment must fulfil.
pub(crate) fn new_attachment(e: &mut Errors, o: &At) {
    attachment(e, o);
    let attacher = o.get("spec.attacher");
    pod::driver_name(e, &attacher);
    let name = o.get("spec.source.persistentVolumeName");
    if name.is_set() {
        e.dns_subdomain(&name);
    }
}

/// A changed attachment.
pub(crate) fn attachment_update(e: &mut Errors, new: &At, old: &At) {
    attachment(e, new);
    e.fixed(&new.get("spec"), old.get("spec").value);
}

/// A CSINode.
pub(crate) fn csi_node(e: &mut Errors, o: &At) {
    let mut seen = HashSet::new();
    for d in o.get("spec.drivers").items() {
        let name = d.get("name");
        pod::driver_name(e, &name);
        let id = d.get("nodeID");
        e.need(&id);
        if id.text().len() > 256 {
            e.invalid(&id, "must be 256 characters or less");
        }
        e.non_negative(&d.get("allocatable.count"));
        if !seen.insert(name.text()) {
            e.duplicate(&name);
        }
        let mut keys = HashSet::new();
        for key in d.get("topologyKeys").items() {
            if key.is_empty() {
                e.required(&d, "");
            }
            if !keys.insert(key.text()) {
                e.duplicate_as(&d, key.text());
            }
            names::qualified_name(key.text()).into_iter().for_each(|t| e.invalid_as(&d, key.text(), t));
        }
    }
}

/// A changed CSINode: what a driver says of the node stays.
pub(crate) fn csi_node_update(e: &mut Errors, new: &At, old: &At) {
    csi_node(e, new);
    let bare = |d: &At| {
        let mut d = d.value.clone();
        if let Some(m) = d.as_object_mut() {
            m.remove("allocatable");
        }
        d
    };
    let drivers = new.get("spec.drivers");
    let mut named: HashMap<&str, Vec<At>> = HashMap::new();
    drivers.items().for_each(|d| named.entry(d.get("name").text()).or_default().push(d));
    for was in old.get("spec.drivers").items() {
        for is in named.get(was.get("name").text()).into_iter().flatten() {
            if !same(&bare(is), &bare(&was)) {
                e.invalid_as(&drivers, is.value.clone(), IMMUTABLE);
            }
        }
    }
}

/// A CSIDriver.
pub(crate) fn csi_driver(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    for (field, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        let at = spec.named(shown, spec.get(field).value);
        if !at.is_set() {
            e.required(&at, "");
        }
    }
    e.one_of(&spec.get("fsGroupPolicy"), &["File", "None", "ReadWriteOnceWithFSType"]);
    let mut seen = HashSet::new();
    for t in spec.get("tokenRequests").items() {
        let audience = t.get("audience");
        if !seen.insert(audience.text()) {
            e.duplicate(&audience);
            continue;
        }
        let seconds = t.get("expirationSeconds");
        if seconds.int().is_some_and(|n| n < 600) {
            e.invalid(&seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds.int().is_some_and(|n| n > 1 << 32) {
            e.invalid(&seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
    let modes = spec.get("volumeLifecycleModes");
    for mode in modes.items().filter(|m| !["Persistent", "Ephemeral"].contains(&m.text())) {
        e.0.push(crate::status::FieldError::not_supported(modes.path(), mode.text(), &["Persistent", "Ephemeral"]));
    }
    let period = spec.get("nodeAllocatableUpdatePeriodSeconds");
    if period.int().is_some_and(|n| n < 10) {
        e.invalid(&period, "must be greater than or equal to 10 seconds");
    }
    let secret = spec.get("serviceAccountTokenInSecrets");
    if secret.is_set() && spec.get("tokenRequests").is_empty() {
        e.invalid(&secret, "serviceAccountTokenInSecrets is set but no tokenRequests are specified");
    }
}

/// A changed CSIDriver.
pub(crate) fn csi_driver_update(e: &mut Errors, new: &At, old: &At) {
    csi_driver(e, new);
    let (spec, was) = (new.get("spec"), old.get("spec"));
    e.fixed(&spec.named("attachedRequired", spec.get("attachRequired").value), was.get("attachRequired").value);
    e.fixed(&spec.get("volumeLifecycleModes"), was.get("volumeLifecycleModes").value);
}

/// A CSIStorageCapacity.
pub(crate) fn capacity(e: &mut Errors, o: &At) {
    label_selector(e, &o.get("nodeTopology"));
    e.all(&o.get("storageClassName"), names::dns1123_subdomain(o.get("storageClassName").text()));
    if let Some(q) = o.get("capacity").quantity().filter(|q| q.sign() < 0) {
        e.invalid_as(&o.get("capacity"), q.to_string(), "must be greater than or equal to 0");
    }
}

/// A changed CSIStorageCapacity.
pub(crate) fn capacity_update(e: &mut Errors, new: &At, old: &At) {
    for field in ["nodeTopology", "storageClassName"] {
        e.fixed(&new.get(field), old.get(field).value);
    }
}

/// A VolumeAttributesClass.
pub(crate) fn attributes_class(e: &mut Errors, o: &At) {
    driver(e, &o.get("driverName"));
    parameters(e, &o.get("parameters"), true);
}

/// A changed VolumeAttributesClass.
pub(crate) fn attributes_class_update(e: &mut Errors, new: &At, old: &At) {
    for field in ["driverName", "parameters"] {
        if !same(new.get(field).value, old.get(field).value) {
            e.forbidden(&new.get(field), format!("updates to {field} are forbidden."));
        }
    }
    attributes_class(e, new);
}
