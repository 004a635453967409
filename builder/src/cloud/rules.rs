//! Rules of firewalls, at providers that have each for one range of addresses.

use super::Rule;
use std::collections::{BTreeMap, BTreeSet};

/// A rule of one range: protocol, ports, range.
pub(super) type Single = (String, String, String);

/// Rules of one range each, which is how such a provider has them, as those that they are together.
pub(super) fn together(single: impl Iterator<Item = Single>) -> BTreeSet<Rule> {
    let mut by_port = BTreeMap::<(String, String), BTreeSet<String>>::new();
    for (protocol, ports, from) in single {
        by_port.entry((protocol, ports)).or_default().insert(from);
    }
    by_port.into_iter().map(|((protocol, ports), from)| Rule { protocol, ports, from }).collect()
}

/// The other way round.
pub(super) fn apart(rules: BTreeSet<Rule>) -> BTreeSet<Single> {
    let single = |rule: Rule| {
        let one = move |from| (rule.protocol.clone(), rule.ports.clone(), from);
        rule.from.into_iter().map(one)
    };
    rules.into_iter().flat_map(single).collect()
}
