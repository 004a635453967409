//! Leases and their candidates.

use super::at::{At, Errors};
use crate::names;

const STRATEGY: &str = "OldestEmulationVersion";

/// A lease.
pub(crate) fn lease(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let seconds = spec.get("leaseDurationSeconds");
    if seconds.int().is_some_and(|n| n <= 0) {
        e.invalid(&seconds, "must be greater than 0");
    }
    e.non_negative(&spec.get("leaseTransitions"));
    let chosen = spec.get("strategy");
    if chosen.is_set() {
        strategy(e, &chosen);
    }
    if !spec.get("preferredHolder").is_empty() && chosen.is_empty() {
        e.forbidden(&spec.get("preferredHolder"), "may only be specified if `strategy` is defined");
    }
}

fn strategy(e: &mut Errors, at: &At) {
    if !at.text().contains('/') {
        if at.text() != STRATEGY {
            e.0.push(crate::status::FieldError::not_supported(
                format!("{}.strategy", at.path()),
                at.text(),
                &[STRATEGY],
            ));
        }
    } else {
        for text in names::qualified_name(at.text()) {
            e.invalid_as(&at.get("strategy"), at.text(), text);
        }
    }
}

fn version(at: &At) -> Option<Vec<u64>> {
    let text = at.text().split(['-', '+']).next().unwrap_or("");
    let parts: Vec<u64> = text.split('.').map_while(|p| p.parse().ok()).collect();
    (parts.len() == 3).then_some(parts)
}

/// A candidate for a lease.
pub(crate) fn candidate(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    e.need(&spec.get("leaseName"));
    let (emulation, binary) = (spec.get("emulationVersion"), spec.get("binaryVersion"));
    for at in [&emulation, &binary] {
        if !at.is_empty() && version(at).is_none() {
            e.invalid(at, "must be a valid semantic version");
        }
    }
    if let (Some(b), Some(em)) = (version(&binary), version(&emulation))
        && b < em
    {
        e.invalid(&binary, "must be greater than or equal to `emulationVersion`");
    }
    let chosen = spec.get("strategy");
    if !e.need(&chosen) {
        return;
    }
    if chosen.text() == STRATEGY {
        for at in [&binary, &emulation] {
            if version(at).is_none() {
                e.required(at, "must be specified when `strategy` is 'OldestEmulationVersion'");
            }
        }
    }
    strategy(e, &chosen);
}

/// A changed candidate.
pub(crate) fn candidate_update(e: &mut Errors, new: &At, old: &At) {
    candidate(e, new);
    e.fixed(&new.get("spec.leaseName"), old.get("spec.leaseName").value);
}
