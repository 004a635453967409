//! Pod disruption budgets.

use super::apps::{at_most_100_percent, int_or_percent};
use super::at::{At, Errors};
use super::selectors::{conditions, label_selector};

/// A budget.
pub(crate) fn budget(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let (min, max) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    if min.is_set() && max.is_set() {
        e.invalid(&spec, "minAvailable and maxUnavailable cannot be both set");
    }
    for at in [&min, &max] {
        if at.is_set() {
            int_or_percent(e, at);
            at_most_100_percent(e, at);
        }
    }
    label_selector(e, &spec.get("selector"));
    e.one_of(&spec.get("unhealthyPodEvictionPolicy"), &["AlwaysAllow", "IfHealthyBudget"]);
}

/// A budget's changed status.
pub(crate) fn budget_status(e: &mut Errors, o: &At) {
    let s = o.get("status");
    for field in ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"] {
        e.non_negative(&s.get(field));
    }
    conditions(e, &s.get("conditions"));
}
