//! Jobs and cron jobs.

use super::at::{At, Errors, IMMUTABLE, same};
use super::{cron, pod, selectors};
use crate::names;
use serde_json::{Value, json};
use std::collections::HashSet;

const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
const MANY: i64 = 100_000;

/// A job.
pub(crate) fn job(e: &mut Errors, o: &At) {
    generated_selector(e, o);
    job_spec_and_selector(e, &o.get("spec"));
    let (mode, completions) = (o.get("spec.completionMode"), o.get("spec.completions"));
    if mode.text() == "Indexed" && completions.int().is_some_and(|n| n > 0) {
        let name = o.get("metadata.name");
        let host = format!("{}-{}", name.text(), completions.int().unwrap_or(1) - 1);
        if !names::dns1123_label(&host).is_empty() {
            e.invalid(&name, format!("will not able to create pod with invalid DNS label: {host}"));
        }
    }
}

fn generated_selector(e: &mut Errors, o: &At) {
    let spec = o.get("spec");
    let selector = spec.get("selector");
    if spec.get("manualSelector").is_true() || !selector.is_set() {
        return;
    }
    let uid = o.get("metadata.uid");
    e.need(&uid);
    let labels = spec.get("template.metadata.labels");
    for (keys, want) in [(UID_LABELS, uid.text()), (NAME_LABELS, o.get("metadata.name").text())] {
        for key in keys {
            let label = labels.key(key);
            if !label.is_set() {
                e.required(&label, &format!("must be '{want}'"));
            } else if label.text() != want {
                e.invalid_as(&label, labels.value.clone(), format!("must be '{want}'"));
            }
        }
    }
    let mut expected = serde_json::Map::new();
    UID_LABELS.iter().for_each(|k| drop(expected.insert((*k).into(), json!(uid.text()))));
    NAME_LABELS.iter().for_each(|k| drop(expected.insert((*k).into(), o.get("metadata.name").value.clone())));
    let expected = Value::Object(expected);
    if !selectors::matches(&selector, &At::root(&expected)) {
        e.invalid(&selector, "`selector` not auto-generated");
    }
}

fn job_spec_and_selector(e: &mut Errors, spec: &At) {
    job_spec(e, spec);
    let selector = spec.get("selector");
    if !selector.is_set() {
        e.required(&selector, "");
    } else {
        selectors::label_selector(e, &selector);
    }
    let labels = spec.get("template.metadata.labels");
    if !selector.is_set() || !selectors::matches(&selector, &labels) {
        e.invalid(&labels, "`selector` does not match template `labels`");
    }
}

fn job_spec(e: &mut Errors, spec: &At) {
    for f in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        e.non_negative(&spec.get(f));
    }
    if spec.get("maxFailedIndexes").is_set() && !spec.get("backoffLimitPerIndex").is_set() {
        e.required(&spec.get("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    let manager = spec.get("managedBy");
    if manager.is_set() {
        e.all(&manager, names::domain_prefixed_path(manager.text()));
        if manager.text().len() > 63 {
            e.too_long(&manager, 63);
        }
    }
    completion(e, spec);
    if spec.get("podFailurePolicy").is_set() {
        failure_policy(e, spec);
    }
    let success = spec.get("successPolicy");
    if success.is_set() {
        if spec.get("completionMode").text() == "Indexed" {
            success_policy(e, spec, &success);
        } else {
            e.invalid(&success, "requires indexed completion mode");
        }
    }
    let replacement = spec.get("podReplacementPolicy");
    if replacement.is_set() {
        let allowed: &[&str] =
            if spec.get("podFailurePolicy").is_set() { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        if !allowed.contains(&replacement.text()) {
            e.not_supported(&replacement, allowed);
        }
    }
    pod::template(e, &spec.get("template"), &[]);
    let policy = spec.get("template.spec.restartPolicy");
    match policy.text() {
        "" | "Always" => e.required(&policy, "valid values: \"OnFailure\", \"Never\""),
        "Never" => {}
        "OnFailure" => {
            if spec.get("podFailurePolicy").is_set() {
                e.invalid(&policy, "only \"Never\" is supported when podFailurePolicy is specified");
            }
        }
        _ => e.not_supported(&policy, &["OnFailure", "Never"]),
    }
}

fn completion(e: &mut Errors, spec: &At) {
    let (mode, completions, parallelism) =
        (spec.get("completionMode"), spec.get("completions"), spec.get("parallelism"));
    let (failed, per_index) = (spec.get("maxFailedIndexes"), spec.get("backoffLimitPerIndex"));
    if mode.is_set() && !["NonIndexed", "Indexed"].contains(&mode.text()) {
        e.not_supported(&mode, &["NonIndexed", "Indexed"]);
    }
    if mode.text() != "Indexed" {
        if !mode.is_set() || mode.text() == "NonIndexed" {
            for at in [&per_index, &failed] {
                if at.is_set() {
                    e.invalid(at, "requires indexed completion mode");
                }
            }
        }
        return;
    }
    if !completions.is_set() {
        e.required(&completions, "when completion mode is Indexed");
    }
    if parallelism.int().is_some_and(|n| n > MANY) {
        e.invalid(&parallelism, format!("must be less than or equal to {MANY} when completion mode is Indexed"));
    }
    if let (Some(all), Some(max)) = (completions.int(), failed.int())
        && max > all
    {
        e.invalid(&failed, "must be less than or equal to completions");
    }
    if failed.int().is_some_and(|n| n > MANY) {
        e.invalid(&failed, format!("must be less than or equal to {MANY}"));
    }
    if completions.int().is_some_and(|n| n > MANY) && per_index.is_set() {
        if !failed.is_set() {
            e.required(&failed, &format!("must be specified when completions is above {MANY}"));
        }
        for at in [&parallelism, &failed] {
            if at.int().is_some_and(|n| n > 10_000) {
                e.invalid(at, format!("must be less than or equal to 10000 when completions are above {MANY} and used with backoff limit per index"));
            }
        }
    }
}

fn failure_policy(e: &mut Errors, spec: &At) {
    const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
    let rules = spec.get("podFailurePolicy.rules");
    if rules.len() > 20 {
        e.too_many(&rules, 20);
    }
    for rule in rules.items() {
        let action = rule.get("action");
        match action.text() {
            "" => e.required(&action, "valid values: [\"Count\" \"FailIndex\" \"FailJob\" \"Ignore\"]"),
            "FailIndex" => {
                if !spec.get("backoffLimitPerIndex").is_set() {
                    e.invalid(&action, "requires the backoffLimitPerIndex to be set");
                }
            }
            _ => e.one_of(&action, ACTIONS),
        }
        let (codes, conditions) = (rule.get("onExitCodes"), rule.get("onPodConditions"));
        if codes.is_set() {
            exit_codes(e, spec, &codes);
        }
        pod_conditions(e, &conditions);
        match (codes.is_set(), conditions.is_empty()) {
            (true, false) => {
                e.invalid_hidden(&rule, "specifying both OnExitCodes and OnPodConditions is not supported");
            }
            (false, true) => {
                e.invalid_hidden(&rule, "specifying one of OnExitCodes and OnPodConditions is required");
            }
            _ => {}
        }
    }
}

fn pod_conditions(e: &mut Errors, conditions: &At) {
    if conditions.len() > 20 {
        e.too_many(conditions, 20);
    }
    for c in conditions.items() {
        e.qualified_name(&c.get("type"));
        let status = c.get("status");
        if status.is_empty() {
            e.required(&status, "valid values: [\"False\" \"True\" \"Unknown\"]");
        } else {
            e.one_of(&status, &["False", "True", "Unknown"]);
        }
    }
}

fn exit_codes(e: &mut Errors, spec: &At, codes: &At) {
    let (operator, values, container) = (codes.get("operator"), codes.get("values"), codes.get("containerName"));
    if operator.is_empty() {
        e.required(&operator, "valid values: [\"In\" \"NotIn\"]");
    } else {
        e.one_of(&operator, &["In", "NotIn"]);
    }
    let template = spec.get("template.spec");
    let known = ["containers", "initContainers"]
        .iter()
        .any(|l| template.get(l).items().any(|c| c.get("name").text() == container.text()));
    if container.is_set() && !known {
        e.invalid(&container, "must be one of the container or initContainer names in the pod template");
    }
    if values.is_empty() {
        e.invalid(&values, "at least one value is required");
    } else if values.len() > 255 {
        e.too_many(&values, 255);
    }
    let (mut seen, mut ordered) = (HashSet::new(), true);
    let mut last: Option<i64> = None;
    for v in values.items() {
        let n = v.int().unwrap_or(0);
        if operator.text() == "In" && n == 0 {
            e.invalid(&v, "must not be 0 for the In operator");
        }
        if !seen.insert(n) {
            e.duplicate(&v);
        }
        ordered &= last.is_none_or(|last| last <= n);
        last = Some(n);
    }
    if !ordered {
        e.invalid(&values, "must be ordered");
    }
}

fn success_policy(e: &mut Errors, spec: &At, policy: &At) {
    let rules = policy.get("rules");
    if rules.is_empty() {
        e.required(&rules, "at least one rules must be specified when the successPolicy is specified");
    }
    if rules.len() > 20 {
        e.too_many(&rules, 20);
    }
    let completions = spec.get("completions").int().unwrap_or(0);
    for rule in rules.items() {
        let (count, indexes) = (rule.get("succeededCount"), rule.get("succeededIndexes"));
        if !count.is_set() && !indexes.is_set() {
            e.required(&rule, "at least one of succeededCount or succeededIndexes must be specified");
        }
        let mut total = None;
        if indexes.is_set() {
            if indexes.text().len() > 64 * 1024 {
                e.too_long(&indexes, 64 * 1024);
            }
            match count_indexes(indexes.text(), completions) {
                Ok(n) => total = Some(n),
                Err(text) => {
                    total = Some(0);
                    e.invalid(&indexes, format!("error parsing succeededIndexes: {text}"));
                }
            }
        }
        let Some(n) = count.int() else { continue };
        e.non_negative(&count);
        if n > completions {
            let detail = format!("must be less than or equal to {completions} (the number of specified completions)");
            e.invalid(&count, detail);
        }
        if let Some(total) = total.filter(|t| n > *t) {
            e.invalid(&count, format!("must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"));
        }
    }
}

/// How many indexes a text such as `0,2-4` names.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut last, mut total) = (None::<i64>, 0);
    for interval in text.split(',').filter(|_| !text.is_empty()) {
        let (low, high) = indexes(interval, completions)?;
        if let Some(last) = last.filter(|l| *l >= low) {
            return Err(format!("non-increasing order, previous: {last}, current: {low}"));
        }
        total += high - low + 1;
        last = Some(high);
    }
    Ok(total)
}

/// The first and the last index of a text such as `2-4`.
fn indexes(interval: &str, completions: i64) -> Result<(i64, i64), String> {
    let parts: Vec<&str> = interval.split('-').collect();
    if parts.len() > 2 {
        return Err(format!(
            "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
        ));
    }
    let number = |s: &str| match s.parse::<i64>() {
        Err(_) => Err(format!("cannot convert string to integer for index: {s:?}")),
        Ok(n) if n >= completions => Err(format!("too large index: {s:?}")),
        Ok(n) => Ok(n),
    };
    let low = number(parts[0])?;
    let Some(high) = parts.get(1) else { return Ok((low, low)) };
    let high = number(high)?;
    if low >= high {
        return Err(format!("non-increasing order, previous: {low}, current: {high}"));
    }
    Ok((low, high))
}

/// The first index that both texts name; in each they stand in order, or it is refused for that.
fn overlap(a: &str, b: &str, completions: i64) -> Option<i64> {
    let all = |text: &str| -> Vec<(i64, i64)> {
        text.split(',').filter_map(|interval| indexes(interval, completions).ok()).collect()
    };
    let (a, b) = (all(a), all(b));
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        if x.0 <= y.1 && y.0 <= x.1 {
            return Some(x.0.max(y.0));
        }
        if x.1 < y.1 {
            a.next()
        } else {
            b.next()
        };
    }
    None
}

/// A changed job.
pub(crate) fn job_update(e: &mut Errors, new: &At, old: &At) {
    let (spec, was) = (new.get("spec"), old.get("spec"));
    // What the server made is looked at again, but where it was made before there was such a rule.
    let mut before = Errors::default();
    generated_selector(&mut before, old);
    if before.0.is_empty() {
        generated_selector(e, new);
    }
    job_spec_and_selector(e, &spec);
    let completions = spec.get("completions");
    if spec.get("completionMode").text() != "Indexed" {
        e.fixed(&completions, was.get("completions").value);
    } else if completions.int() != was.get("completions").int()
        && completions.is_set()
        && completions.int() != spec.get("parallelism").int()
    {
        e.invalid(&completions, "can only be modified in tandem with spec.parallelism");
    }
    e.fixed(&spec.get("selector"), was.get("selector").value);
    template_update(e, &spec, old);
    for f in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        e.fixed(&spec.get(f), was.get(f).value);
    }
}

/// A suspended job without pods may still choose its nodes and what its containers ask for.
fn template_update(e: &mut Errors, spec: &At, old: &At) {
    let was = old.get("spec");
    let mut before = was.get("template").value.clone();
    let idle = was.get("suspend").is_true() && old.get("status.active").int().unwrap_or(0) == 0;
    if idle {
        let template = spec.get("template");
        for pointer in [
            &["metadata", "annotations"][..],
            &["metadata", "labels"],
            &["spec", "nodeSelector"],
            &["spec", "tolerations"],
            &["spec", "schedulingGates"],
        ] {
            let value = template.get(pointer[0]).get(pointer[1]).value.clone();
            if before[pointer[0]].is_object() {
                before[pointer[0]][pointer[1]] = value;
            }
        }
        for list in ["containers", "initContainers"] {
            for (i, c) in before["spec"][list].as_array_mut().into_iter().flatten().enumerate() {
                let containers = template.get("spec").value;
                let is = &containers[list][i];
                if c.is_object() && is["name"] == c["name"] {
                    c["resources"] = is["resources"].clone();
                }
            }
        }
        let node = template.get("spec.affinity.nodeAffinity").value.clone();
        let had = before["spec"]["affinity"].is_object();
        if template.get("spec.affinity").is_set() || had {
            if !had {
                before["spec"]["affinity"] = json!({});
            }
            before["spec"]["affinity"]["nodeAffinity"] = node;
            let bare = before["spec"]["affinity"].as_object().is_none_or(|m| m.values().all(Value::is_null));
            if bare && !template.get("spec.affinity").is_set() {
                before["spec"]["affinity"] = Value::Null;
            }
        }
    }
    let template = spec.get("template");
    if !same(template.value, &before) {
        e.invalid(&template, IMMUTABLE);
    }
}

fn has(o: &At, kind: &str) -> bool {
    o.get("status.conditions").items().any(|c| c.get("type").text() == kind && c.get("status").text() == "True")
}

/// A job's changed status. Most rules are for what changes only, so that old faults do not block.
pub(crate) fn job_status(e: &mut Errors, new: &At, old: &At) {
    let (s, was) = (new.get("status"), old.get("status"));
    for f in ["active", "succeeded", "failed", "ready", "terminating"] {
        e.non_negative(&s.get(f));
    }
    let uncounted = s.get("uncountedTerminatedPods");
    let mut seen = std::collections::HashSet::new();
    for list in ["succeeded", "failed"] {
        for uid in uncounted.get(list).items() {
            if uid.is_empty() {
                e.invalid(&uid, "must not be empty");
            } else if !seen.insert(uid.text()) {
                e.duplicate(&uid);
            }
        }
    }
    let conditions = s.get("conditions");
    let refuse = |e: &mut Errors, when: bool, text: &str| {
        if when {
            e.invalid_hidden(&conditions, text);
        }
    };
    let changed = |f: &str| !same(s.get(f).value, was.get(f).value);
    let turned = |kind: &str| has(new, kind) != has(old, kind);
    let (complete, failed) = (has(new, "Complete"), has(new, "Failed"));
    let (met, target) = (has(new, "SuccessCriteriaMet"), has(new, "FailureTarget"));
    if turned("Complete") || turned("Failed") {
        refuse(e, complete && failed, "cannot set Complete=True and Failed=true conditions");
    }
    if turned("Complete") || turned("FailureTarget") {
        refuse(e, complete && target, "cannot set Complete=True and FailureTarget=true conditions");
    }
    let (started, ended) = (s.get("startTime"), s.get("completionTime"));
    if turned("Complete") || changed("completionTime") {
        if ended.is_set() && !complete {
            e.invalid(&ended, "cannot set completionTime when there is no Complete=True condition");
        }
        if !ended.is_set() && complete {
            e.required(&ended, "completionTime is required for Complete jobs");
        }
    }
    let moment = |at: &At| crate::time::parse(at.text()).map(|t| t.seconds);
    let early = moment(&ended).zip(moment(&started)).is_some_and(|(ended, started)| ended < started);
    if early && (changed("startTime") || changed("completionTime")) {
        e.invalid(&ended, "completionTime cannot be set before startTime");
    }
    if turned("Failed") || changed("failedIndexes") {
        let text = "cannot set Failed=True condition without the FailureTarget=true condition";
        refuse(e, failed && !target, text);
    }
    if turned("Complete") || turned("SuccessCriteriaMet") {
        let text = "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
        refuse(e, complete && !met, text);
    }
    if complete || failed {
        finished(e, new, old, (has(old, "Complete") || has(old, "Failed")) != (complete || failed));
    }
    status_indexes(e, new, old);
    let n = |o: &At, f: &str| o.get(f).int().unwrap_or(0);
    if n(&s, "terminating") > 0
        && (complete || failed)
        && (turned("Complete") || turned("Failed") || changed("terminating"))
    {
        e.invalid(&s.get("terminating"), "terminating>0 is invalid for finished job");
    }
    if (changed("ready") || changed("active")) && s.get("ready").int().is_some_and(|r| r > n(&s, "active")) {
        e.invalid(&s.get("ready"), "cannot set more ready pods than active");
    }
    refuse(e, met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions");
    refuse(e, met && target, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions");
    if new.get("spec.successPolicy").is_set() {
        let text = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        refuse(e, complete && !met, text);
    }
    for kind in ["Failed", "Complete", "FailureTarget"] {
        let text = format!("cannot disable the terminal {kind}=True condition");
        refuse(e, has(old, kind) && !has(new, kind), &text);
    }
    if n(&s, "failed") < n(&was, "failed") {
        e.invalid_as(&s.get("failed"), n(&s, "failed"), "cannot decrease the failed counter");
    }
    // An indexed job that is made smaller succeeds at fewer indexes.
    let spec = new.get("spec");
    let elastic = spec.get("completionMode").text() == "Indexed"
        && spec.get("completions").int() == spec.get("parallelism").int();
    if n(&s, "succeeded") < n(&was, "succeeded") && !elastic {
        e.invalid_as(&s.get("succeeded"), n(&s, "succeeded"), "cannot decrease the succeeded counter");
    }
    if ended.is_set() && was.get("completionTime").is_set() && changed("completionTime") {
        e.invalid(&ended, "completionTime cannot be mutated");
    }
    if was.get("startTime").is_set() && changed("startTime") && !spec.get("suspend").is_true() {
        e.required(&started, "startTime cannot be removed for unsuspended job");
    }
    refuse(e, has(old, "SuccessCriteriaMet") && !met, "cannot disable the SuccessCriteriaMet=True condition");
    let late = has(old, "Complete") && !has(old, "SuccessCriteriaMet") && met;
    refuse(e, late, "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions");
}

/// What a finished job has no more; `now` whether this change ends it.
fn finished(e: &mut Errors, new: &At, old: &At, now: bool) {
    let (s, was) = (new.get("status"), old.get("status"));
    let concerns = |f: &str| now || !same(s.get(f).value, was.get(f).value);
    let (active, started, uncounted) = (s.get("active"), s.get("startTime"), s.get("uncountedTerminatedPods"));
    if active.int().is_some_and(|n| n > 0) && concerns("active") {
        e.invalid(&active, "active>0 is invalid for finished job");
    }
    // A job of no completions may end without ever having been resumed.
    let never = new.get("spec.suspend").is_true() && new.get("spec.completions").int() == Some(0);
    if !started.is_set() && concerns("startTime") && !never {
        e.required(&started, "startTime is required for finished job");
    }
    let left = ["succeeded", "failed"].iter().any(|l| !uncounted.get(l).is_empty());
    if left && concerns("uncountedTerminatedPods") {
        e.invalid(&uncounted, "uncountedTerminatedPods needs to be empty for finished job");
    }
}

/// The indexes that a status names, where they change.
fn status_indexes(e: &mut Errors, new: &At, old: &At) {
    let (s, spec) = (new.get("status"), new.get("spec"));
    let (done, lost) = (s.get("completedIndexes"), s.get("failedIndexes"));
    let changed = |at: &At, field: &str| at.text() != old.get("status").get(field).text();
    let (done_new, lost_new) = (changed(&done, "completedIndexes"), changed(&lost, "failedIndexes"));
    let completions = spec.get("completions").int();
    let per_index = spec.get("backoffLimitPerIndex").is_set();
    for (at, checked, name) in [(&done, done_new, "completedIndexes"), (&lost, lost_new && per_index, "failedIndexes")]
    {
        let fault = completions.filter(|_| checked).and_then(|n| count_indexes(at.text(), n).err());
        if let Some(fault) = fault {
            e.invalid(at, format!("error parsing {name}: {fault}"));
        }
    }
    if done_new && !done.is_empty() && spec.get("completionMode").text() != "Indexed" {
        e.invalid(&done, "cannot set non-empty completedIndexes when non-indexed completion mode");
    }
    if lost_new && lost.is_set() && !per_index {
        e.invalid(&lost, "cannot set non-null failedIndexes when backoffLimitPerIndex is null");
    }
    let both = completions.filter(|_| done_new || lost_new).and_then(|n| overlap(done.text(), lost.text(), n));
    if let Some(index) = both {
        e.invalid(&lost, format!("failedIndexes and completedIndexes overlap at index: {index}"));
    }
}

/// A cron job.
pub(crate) fn cron_job(e: &mut Errors, o: &At) {
    cron_spec(e, o, None);
    let name = o.get("metadata.name");
    if name.text().len() > 52 {
        e.invalid(&name, "must be no more than 52 characters");
    }
}

/// A changed cron job.
pub(crate) fn cron_job_update(e: &mut Errors, new: &At, old: &At) {
    cron_spec(e, new, Some(old));
}

fn cron_spec(e: &mut Errors, o: &At, old: Option<&At>) {
    let spec = o.get("spec");
    let (schedule, zone) = (spec.get("schedule"), spec.get("timeZone"));
    if e.need(&schedule) {
        if let Some(text) = cron::schedule_error(schedule.text()) {
            e.invalid(&schedule, text);
        }
        let tolerated = old.is_some_and(|o| o.get("spec.schedule").text().contains("TZ"));
        if schedule.text().contains("TZ") {
            if !tolerated {
                e.invalid(&schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
            } else if zone.is_set() {
                e.invalid(&schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
            }
        }
    }
    e.non_negative(&spec.get("startingDeadlineSeconds"));
    let was = old.map(|o| o.get("spec.timeZone").value.clone());
    if zone.is_set()
        && was.as_ref() != Some(zone.value)
        && let Some(text) = cron::time_zone_error(zone.text())
    {
        e.invalid(&zone, text);
    }
    e.need_one_of(&spec.get("concurrencyPolicy"), &["Allow", "Forbid", "Replace"]);
    let job = spec.get("jobTemplate.spec");
    job_spec(e, &job);
    if job.get("selector").is_set() {
        e.invalid(&job.get("selector"), "`selector` will be auto-generated");
    }
    if job.get("manualSelector").is_true() {
        e.not_supported(&job.get("manualSelector"), &["nil", "false"]);
    }
    e.non_negative(&spec.get("successfulJobsHistoryLimit"));
    e.non_negative(&spec.get("failedJobsHistoryLimit"));
}
