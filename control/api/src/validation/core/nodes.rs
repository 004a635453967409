//! Nodes.

use crate::validation::at::{At, Errors};
use crate::validation::{pod, resources};
use std::collections::HashSet;

/// A node.
pub(crate) fn node(e: &mut Errors, o: &At) {
    taints(e, o);
    capacities(e, o);
    let cidrs = o.get("spec.podCIDRs");
    cidrs.items().for_each(|c| e.cidr(&c));
    if cidrs.len() > 1 {
        let six = cidrs.items().filter(|c| c.text().contains(':')).count();
        if cidrs.len() > 2 || six != 1 {
            e.invalid(&cidrs, "may specify no more than one CIDR for each IP family");
        }
        let mut seen = HashSet::new();
        for c in cidrs.items() {
            if !seen.insert(c.text()) {
                e.duplicate(&c);
            }
        }
    }
}

fn taints(e: &mut Errors, o: &At) {
    // The path is the one that clients know.
    let list = o.named("metadata.taints", o.get("spec.taints").value);
    pod::taints(e, &list);
}

fn capacities(e: &mut Errors, o: &At) {
    for side in ["capacity", "allocatable"] {
        let status = o.get("status");
        let map = status.get(side);
        for (resource, value) in map.entries() {
            let shown = map.named(resource, value.value);
            resources::amount(e, &shown, resource);
        }
    }
}

/// A changed node.
pub(crate) fn node_update(e: &mut Errors, new: &At, old: &At) {
    capacities(e, new);
    let addresses = new.get("status.addresses");
    let mut seen = HashSet::new();
    for a in addresses.items() {
        if !seen.insert(a.value) {
            e.duplicate(&a);
        }
    }
    let (cidrs, was) = (new.get("spec.podCIDRs"), old.get("spec.podCIDRs"));
    if !was.is_empty() && cidrs.value != was.value {
        e.forbidden(&cidrs, "node updates may not change podCIDR except from \"\" to valid");
    }
    let (id, was) = (new.get("spec.providerID"), old.get("spec.providerID"));
    if !was.is_empty() && id.text() != was.text() {
        e.forbidden(&id, "node updates may not change providerID except from \"\" to valid");
    }
    taints(e, new);
    if new.get("spec.externalID").value != old.get("spec.externalID").value {
        e.forbidden(&new.get("spec.externalID"), "may not be updated");
    }
}
