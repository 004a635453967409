//! The integrity check: everything is read through, and compared with what the server has in
//! memory, if one runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::bail;
use store::{Entry, Store};

use super::Place;

/// Checks a store that no server has open, or beside one.
pub(super) async fn offline(place: &Place) -> anyhow::Result<String> {
    let (entries, revision) = place.read().await?;
    let members = members(place).await?;
    let tail = if place.etcd.is_none() { store::verify(&place.log())?.tail() } else { None };
    let tail = tail.map(|tail| format!("; {tail}")).unwrap_or_default();
    Ok(format!("{place}: {} keys, revision {revision}, all readable{members}{tail}", entries.len()))
}

/// Checks what lies on disk or in etcd against the memory of a running server, while it goes on.
pub(super) async fn online(place: &Place, store: &Arc<dyn Store>) -> anyhow::Result<String> {
    let (before, _) = store.range("", "", 0).await?;
    let (stored, revision) = place.read().await?;
    let (after, _) = store.range("", "", 0).await?;
    let compared = compare(&before, &stored, &after)?;
    let members = members(place).await?;
    Ok(format!(
        "{place}: {} keys, revision {revision}, all readable; {compared} compared with the server's memory{members}",
        stored.len()
    ))
}

async fn members(place: &Place) -> anyhow::Result<String> {
    let Some(options) = &place.etcd else { return Ok(String::new()) };
    let report = store::check_etcd(options).await?;
    Ok(format!("; members hold the same\n  {}", report.members.join("\n  ")))
}

/// What did not change in memory while the store was read must be there just so; gives how many
/// keys that are.
fn compare(before: &[Entry], stored: &[Entry], after: &[Entry]) -> anyhow::Result<usize> {
    let by_key = |entries: &'_ [Entry]| entries.iter().map(|e| (e.key.clone(), e.clone())).collect::<BTreeMap<_, _>>();
    let (before, stored) = (by_key(before), by_key(stored));
    let mut compared = 0;
    for entry in after.iter().filter(|e| before.get(&e.key).is_some_and(|b| b.revision == e.revision)) {
        match stored.get(&entry.key) {
            Some(found) if (found.revision, &found.value) == (entry.revision, &entry.value) => compared += 1,
            Some(found) => bail!(
                "{} is stored otherwise (revision {}) than the server has it (revision {}); restore a snapshot",
                entry.key,
                found.revision,
                entry.revision
            ),
            None => bail!("{} is missing in the store; restore a snapshot", entry.key),
        }
    }
    let after = by_key(after);
    match stored.keys().find(|key| !before.contains_key(*key) && !after.contains_key(*key)) {
        // It may have come and gone in between.
        Some(key) if stored[key].revision <= before.values().map(|e| e.revision).max().unwrap_or(0) => {
            bail!("{key} is stored, and the server does not know it; restart the server")
        }
        _ => Ok(compared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(list: &[(&str, u64, &str)]) -> Vec<Entry> {
        let entry = |(key, revision, value): &(&str, u64, &str)| Entry {
            key: (*key).into(),
            value: value.to_string().into(),
            revision: *revision,
            created: *revision,
            expires: 0,
        };
        list.iter().map(entry).collect()
    }

    #[test]
    fn what_did_not_change_must_be_stored_just_so() {
        let before = entries(&[("a", 5, "x"), ("b", 6, "x"), ("c", 7, "x")]);
        let after = entries(&[("a", 5, "x"), ("b", 9, "y"), ("d", 10, "x")]);
        for (stored, expected) in [
            (entries(&[("a", 5, "x"), ("b", 6, "x"), ("c", 7, "x")]), Ok(1)),
            (entries(&[("a", 5, "x"), ("b", 9, "y"), ("d", 10, "x")]), Ok(1)),
            (entries(&[("a", 5, "x"), ("b", 9, "y"), ("brief", 8, "x")]), Ok(1)),
            (entries(&[("a", 5, "z"), ("b", 9, "y")]), Err("otherwise")),
            (entries(&[("a", 4, "x"), ("b", 9, "y")]), Err("otherwise")),
            (entries(&[("b", 9, "y")]), Err("missing")),
            (entries(&[("a", 5, "x"), ("old", 3, "x")]), Err("does not know")),
        ] {
            match (compare(&before, &stored, &after), expected) {
                (Ok(n), Ok(m)) => assert_eq!(n, m),
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
                (got, expected) => panic!("{got:?} instead of {expected:?}"),
            }
        }
    }
}
