//! Devices that pods claim: their classes, claims and templates of claims, and slices of pools.
//! Expressions of selectors are not compiled here.

use super::at::{At, Errors, IMMUTABLE, same};
use super::{pod, resources, selectors};
use crate::names;
use serde_json::Value;
use std::collections::BTreeSet;

/// Most entries that lists of requests, constraints, selectors and the like may have.
const MANY: usize = 32;
/// The longest text of an expression or of a driver's parameters.
const LONG: usize = 10 * 1024;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];
const REFERENCE: &str =
    "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

fn list(e: &mut Errors, at: &At, most: usize, mut item: impl FnMut(&mut Errors, &At)) {
    if at.len() > most {
        return e.too_many(at, most);
    }
    at.items().for_each(|i| item(e, &i));
}

/// A list whose items differ in the field `key`, or in themselves where that is empty.
fn set(e: &mut Errors, at: &At, most: usize, key: &str, item: impl FnMut(&mut Errors, &At)) {
    list(e, at, most, item);
    if at.len() <= most {
        unique(e, at, |i| if key.is_empty() { i.text().into() } else { i.get(key).text().into() });
    }
}

fn unique(e: &mut Errors, at: &At, key: impl Fn(&At) -> String) {
    let mut seen = BTreeSet::new();
    for item in at.items() {
        let key = key(&item);
        if !seen.insert(key.clone()) {
            e.duplicate_as(&item, key);
        }
    }
}

/// A class of devices; selectors and parameters that stay are taken as they are.
pub(crate) fn class(e: &mut Errors, o: &At, old: Option<&At>) {
    let spec = o.get("spec");
    let stays = |field: &str| old.is_some_and(|o| same(o.get("spec").get(field).value, spec.get(field).value));
    choosers(e, &spec.get("selectors"), stays("selectors"));
    let stored = stays("config");
    list(e, &spec.get("config"), MANY, |e, c| configuration(e, c, stored));
    let name = spec.get("extendedResourceName");
    if name.is_set() && !resources::is_extended(name.text()) {
        e.invalid(&name, "must be a valid extended resource name");
    }
}

/// A claim.
pub(crate) fn claim(e: &mut Errors, o: &At) {
    claimed(e, &o.get("spec.devices"));
}

/// A template of claims.
pub(crate) fn template(e: &mut Errors, o: &At) {
    let metadata = o.get("spec.metadata");
    selectors::labels(e, &metadata.get("labels"));
    selectors::annotations(e, &metadata.get("annotations"));
    claimed(e, &o.get("spec.spec.devices"));
}

fn claimed(e: &mut Errors, devices: &At) {
    // Each reference below is looked for among them.
    if devices.get("requests").len() > MANY {
        return e.too_many(&devices.get("requests"), MANY);
    }
    set(e, &devices.get("requests"), MANY, "name", request);
    list(e, &devices.get("constraints"), MANY, |e, c| {
        references(e, &c.get("requests"), devices);
        match ["matchAttribute", "distinctAttribute"].iter().map(|f| c.get(f)).find(At::is_set) {
            Some(name) => {
                attribute_name(e, &name, name.text());
                if !name.text().contains('/') {
                    e.invalid(&name, "a fully qualified name must be a domain and a name separated by a slash");
                }
            }
            None => e.required(
                c,
                "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set",
            ),
        }
    });
    list(e, &devices.get("config"), MANY, |e, c| {
        references(e, &c.get("requests"), devices);
        configuration(e, c, false);
    });
}

fn request(e: &mut Errors, r: &At) {
    e.dns_label(&r.get("name"));
    let (exactly, first) = (r.get("exactly"), r.get("firstAvailable"));
    match (exactly.is_set(), !first.is_empty()) {
        (false, false) => e.required(r, "exactly one of `exactly` or `firstAvailable` is required"),
        (true, true) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            e.invalid_as(r, Value::Null, detail);
        }
        (true, false) => wanted(e, &exactly),
        (false, true) => set(e, &first, 8, "name", |e, s| {
            e.dns_label(&s.get("name"));
            wanted(e, s);
        }),
    }
}

/// What a request asks for.
fn wanted(e: &mut Errors, at: &At) {
    let class = at.get("deviceClassName");
    if e.need(&class) {
        e.dns_subdomain(&class);
    }
    choosers(e, &at.get("selectors"), false);
    let (mode, count) = (at.get("allocationMode"), at.get("count"));
    let n = count.int().unwrap_or(0);
    match mode.text() {
        "All" if n != 0 => e.invalid(&count, "must not be specified when allocationMode is 'All'"),
        "All" => {}
        "ExactCount" if n <= 0 => e.invalid_as(&count, n, "must be greater than zero"),
        "ExactCount" => {}
        _ => e.not_supported(&mode, &["All", "ExactCount"]),
    }
    at.get("tolerations").items().for_each(|t| toleration(e, &t));
}

fn toleration(e: &mut Errors, t: &At) {
    let (key, operator, value) = (t.get("key"), t.get("operator"), t.get("value"));
    if !key.is_empty() {
        selectors::label_name(e, &key);
    }
    match operator.text() {
        "Exists" if !value.is_empty() => e.invalid(&value, "must be empty for operator `Exists`"),
        "Exists" => {}
        "Equal" => e.all(&value, names::label_value(value.text())),
        _ => e.need_one_of(&operator, &["Equal", "Exists"]),
    }
    e.one_of(&t.get("effect"), EFFECTS);
}

/// Selectors; of stored ones not even the length is looked at.
fn choosers(e: &mut Errors, at: &At, stored: bool) {
    list(e, at, MANY, |e, s| {
        let cel = s.get("cel");
        if !cel.is_set() {
            return e.required(&cel, "");
        }
        let text = cel.get("expression");
        if e.need(&text) && !stored && text.text().len() > LONG {
            e.too_long(&text, LONG);
        }
    });
}

fn configuration(e: &mut Errors, c: &At, stored: bool) {
    let opaque = c.get("opaque");
    if !opaque.is_set() {
        return e.required(&opaque, "");
    }
    pod::driver_name(e, &opaque.get("driver"));
    raw(e, &opaque.get("parameters"), stored);
}

/// What only a driver understands: an object, and not a large one.
fn raw(e: &mut Errors, at: &At, stored: bool) {
    if !at.is_set() {
        e.required(at, "");
    } else if !stored && at.value.to_string().len() > LONG {
        e.too_long(at, LONG);
    } else if !at.value.is_object() {
        e.invalid_as(at, "<value omitted>", "must be a valid JSON object");
    }
}

fn references(e: &mut Errors, at: &At, devices: &At) {
    set(e, at, MANY, "", |e, name| reference(e, name, devices));
}

/// The name of a request, or of one of its alternatives.
fn reference(e: &mut Errors, at: &At, devices: &At) {
    let parts: Vec<&str> = at.text().split('/').collect();
    if parts.len() > 2 {
        return e.invalid(at, REFERENCE);
    }
    for part in &parts {
        names::dns1123_label(part).into_iter().for_each(|t| e.invalid_as(at, *part, t));
    }
    let named = |o: &At, name: &str| o.get("name").text() == name;
    let requests = devices.get("requests");
    let known = requests
        .items()
        .find(|r| named(r, parts[0]))
        .is_some_and(|r| parts.get(1).is_none_or(|sub| r.get("firstAvailable").items().any(|s| named(&s, sub))));
    if !known {
        e.invalid_as(at, at.text(), REFERENCE);
    }
}

/// The name of an attribute or a capacity, with or without a domain.
fn attribute_name(e: &mut Errors, at: &At, name: &str) {
    const ID: &str = "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')";
    let id = match name.split('/').collect::<Vec<_>>()[..] {
        [id] => id,
        [domain, id] => {
            if domain.is_empty() {
                e.invalid_as(at, "", "the domain must not be empty");
            } else {
                let value = Value::from(domain);
                let text = At::root(&value);
                let mut faults = Errors::default();
                pod::driver_name(&mut faults, &text);
                e.0.extend(faults.0.into_iter().map(|mut f| {
                    f.field = at.path();
                    f
                }));
            }
            if id.is_empty() {
                return e.invalid_as(at, "", "the name must not be empty");
            }
            id
        }
        _ => return,
    };
    if id.len() > 32 {
        e.too_long(at, 32);
    }
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if id.is_empty() || id.starts_with(|c: char| c.is_ascii_digit()) || !id.chars().all(word) {
        e.invalid_as(at, id, ID);
    }
}

fn pool_name(e: &mut Errors, at: &At) {
    if !e.need(at) {
        return;
    }
    if at.text().len() > 253 {
        e.too_long(at, 253);
    }
    for part in at.text().split('/') {
        names::dns1123_subdomain(part).into_iter().for_each(|t| e.invalid_as(at, part, t));
    }
}

/// A claim's changed status.
pub(crate) fn claim_status(e: &mut Errors, new: &At, old: &At) {
    let (s, was, devices) = (new.get("status"), old.get("status"), new.get("spec.devices"));
    let (reserved, allocation) = (s.get("reservedFor"), s.get("allocation"));
    set(e, &reserved, 256, "uid", |e, r| {
        for field in ["resource", "name", "uid"] {
            e.need(&r.get(field));
        }
    });
    let id = |d: &At| ["driver", "pool", "device", "shareID"].map(|f| d.get(f).text().to_string());
    let given: BTreeSet<[String; 4]> = allocation.get("devices.results").items().map(|d| id(&d)).collect();
    let reported = s.get("devices");
    for d in reported.items() {
        pod::driver_name(e, &d.get("driver"));
        pool_name(e, &d.get("pool"));
        e.dns_label(&d.get("device"));
        if !given.contains(&id(&d)) {
            e.invalid_as(&d, id(&d)[..3].join("/"), "must be an allocated device in the claim");
        }
        let conditions = d.get("conditions");
        if conditions.len() > 8 {
            e.too_many(&conditions, 8);
        }
        selectors::conditions(e, &conditions);
        if d.get("data").is_set() {
            raw(e, &d.get("data"), false);
        }
    }
    unique(e, &reported, |d| id(d)[..3].join("/"));
    if !reserved.is_empty() {
        let before = was.get("reservedFor");
        let added = || reserved.items().any(|r| !before.items().any(|b| b.value == r.value));
        if !allocation.is_set() {
            e.forbidden(&reserved, "may not be specified when `allocated` is not set");
        } else if new.get("metadata.deletionTimestamp").is_set() && added() {
            e.forbidden(
                &reserved,
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set",
            );
        }
    }
    if !allocation.is_set() {
        return;
    }
    if was.get("allocation").is_set() {
        // What was allocated is not looked at again.
        return e.fixed(&allocation, was.get("allocation").value);
    }
    list(e, &allocation.get("devices.results"), MANY, |e, r| {
        reference(e, &r.get("request"), &devices);
        pod::driver_name(e, &r.get("driver"));
        pool_name(e, &r.get("pool"));
        e.dns_label(&r.get("device"));
    });
    list(e, &allocation.get("devices.config"), 2 * MANY, |e, c| {
        e.need_one_of(&c.get("source"), &["FromClaim", "FromClass"]);
        references(e, &c.get("requests"), &devices);
        configuration(e, c, false);
    });
    if allocation.get("nodeSelector").is_set() {
        selectors::node_selector(e, &allocation.get("nodeSelector"));
    }
}

/// A slice of a pool.
pub(crate) fn slice(e: &mut Errors, o: &At, old: Option<&At>) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let spec = o.get("spec");
    pod::driver_name(e, &spec.get("driver"));
    let pool = spec.get("pool");
    pool_name(e, &pool.get("name"));
    let count = pool.get("resourceSliceCount");
    if count.int().unwrap_or(0) <= 0 {
        e.invalid_as(&count, count.int().unwrap_or(0), "must be greater than zero");
    }
    if pool.get("generation").int().is_some_and(|n| n < 0) {
        e.invalid(&pool.get("generation"), "must be greater than or equal to zero");
    }
    if let Some(was) = old.map(|o| o.get("spec").value) {
        for (at, was) in [
            (&pool.get("name"), &was["pool"]["name"]),
            (&spec.get("driver"), &was["driver"]),
            (&spec.get("nodeName"), &was["nodeName"]),
        ] {
            if at.value != was {
                e.invalid(at, IMMUTABLE);
            }
        }
    }
    let mut chosen = place(e, &spec, "must be either unset or set to a non-empty string");
    let terms = spec.get("nodeSelector.nodeSelectorTerms");
    if spec.get("nodeSelector").is_set() && terms.len() != 1 {
        let selector = spec.get("nodeSelector");
        e.invalid(&selector.get("nodeSelectorTerms"), "must have exactly one node selector term");
    }
    chosen.extend(only_true(e, &spec.get("perDeviceNodeSelection"), "`perDeviceNodeSelection`"));
    match chosen.len() {
        0 => e.required(&spec, ONE),
        1 => {}
        _ => e.invalid_as(&spec, format!("{{{}}}", chosen.join(", ")), format!("{ONE}, but multiple fields are set")),
    }
    let (devices, counters) = (spec.get("devices"), spec.get("sharedCounters"));
    if devices.is_set() && counters.is_set() {
        e.invalid_as(&spec, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let costly = |d: &At| !d.get("taints").is_empty() || !d.get("consumesCounters").is_empty();
    let most = if devices.items().any(|d| costly(&d)) { 64 } else { 128 };
    let each = spec.get("perDeviceNodeSelection").is_true();
    set(e, &devices, most, "name", |e, d| device(e, d, each));
    set(e, &counters, 8, "name", |e, c| {
        if e.need(&c.get("name")) {
            e.dns_label(&c.get("name"));
        }
        self::counters(e, &c.get("counters"));
    });
}

fn only_true(e: &mut Errors, at: &At, name: &'static str) -> Option<&'static str> {
    if at.is_set() && !at.is_true() {
        e.invalid(at, "must be either unset or set to true");
    }
    at.is_true().then_some(name)
}

/// Where devices are: the fields that say so.
fn place(e: &mut Errors, at: &At, empty: &str) -> Vec<&'static str> {
    let mut chosen = Vec::new();
    let (node, selector) = (at.get("nodeName"), at.get("nodeSelector"));
    if !node.is_empty() {
        chosen.push("`nodeName`");
        e.dns_subdomain(&node);
    } else if node.is_set() {
        e.invalid(&node, empty);
    }
    if selector.is_set() {
        chosen.push("`nodeSelector`");
        selectors::node_selector(e, &selector);
    }
    chosen.extend(only_true(e, &at.get("allNodes"), "`allNodes`"));
    chosen
}

fn counters(e: &mut Errors, at: &At) {
    if at.is_empty() {
        return e.required(at, "");
    }
    if at.len() > MANY {
        return e.too_many(at, MANY);
    }
    for (name, c) in at.entries() {
        names::dns1123_label(name).into_iter().for_each(|t| e.invalid_as(&c, name, t));
    }
}

fn device(e: &mut Errors, d: &At, each: bool) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    e.dns_label(&d.get("name"));
    let (attributes, capacity) = (d.get("attributes"), d.get("capacity"));
    let n = attributes.len() + capacity.len();
    if n > MANY {
        e.invalid_as(d, n, format!("the total number of attributes and capacities must not exceed {MANY}"));
    }
    for (name, a) in attributes.entries() {
        attribute_name(e, &a, name);
        attribute(e, &a);
    }
    let shared = d.get("allowMultipleAllocations").is_true();
    for (name, c) in capacity.entries() {
        attribute_name(e, &c, name);
        if c.get("requestPolicy").is_set() && !shared {
            e.forbidden(&c.get("requestPolicy"), "allowMultipleAllocations must be true");
        }
    }
    list(e, &d.get("taints"), 16, |e, t| {
        selectors::label_name(e, &t.get("key"));
        e.all(&t.get("value"), names::label_value(t.get("value").text()));
        e.need_one_of(&t.get("effect"), EFFECTS);
    });
    set(e, &d.get("consumesCounters"), 2, "counterSet", |e, c| {
        if e.need(&c.get("counterSet")) {
            e.dns_label(&c.get("counterSet"));
        }
        counters(e, &c.get("counters"));
    });
    if !each {
        if ["nodeName", "nodeSelector", "allNodes"].iter().any(|f| d.get(f).is_set()) {
            e.invalid_as(d, Value::Null, "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec");
        }
        return;
    }
    let chosen = place(e, d, "must not be empty");
    match chosen.len() {
        0 => e.required(d, ONE),
        1 => {}
        _ => e.invalid_as(d, format!("{{{}}}", chosen.join(", ")), ONE),
    }
}

fn attribute(e: &mut Errors, a: &At) {
    let (text, version) = (a.get("string"), a.get("version"));
    if text.text().len() > 64 {
        e.too_long(&text, 64);
    }
    if version.is_set() {
        if !is_version(version.text()) {
            e.invalid(&version, "must be a string compatible with semver.org spec 2.0.0");
        }
        if version.text().len() > 64 {
            e.too_long(&version, 64);
        }
    }
    match a.entries().filter(|(_, v)| v.is_set()).count() {
        0 => e.invalid_as(a, "", "exactly one value must be specified"),
        1 => {}
        _ => e.invalid(a, "exactly one value must be specified"),
    }
}

/// Whether a text is a semantic version.
fn is_version(text: &str) -> bool {
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()) && (s == "0" || !s.starts_with('0'));
    let word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let (rest, build) = text.split_once('+').map_or((text, None), |(r, b)| (r, Some(b)));
    let (core, early) = rest.split_once('-').map_or((rest, None), |(c, p)| (c, Some(p)));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    core.split('.').count() == 3
        && core.split('.').all(number)
        && early.is_none_or(|p| p.split('.').all(|s| word(s) && (!digits(s) || number(s))))
        && build.is_none_or(|b| b.split('.').all(word))
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions() {
        for good in ["1.2.3", "0.0.0", "1.0.0-alpha.1", "1.0.0+b-1.02", "1.0.0-x-y+z"] {
            assert!(super::is_version(good), "{good}");
        }
        for bad in ["", "1.2", "1.2.3.4", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3+", "v1.2.3"] {
            assert!(!super::is_version(bad), "{bad}");
        }
    }
}
