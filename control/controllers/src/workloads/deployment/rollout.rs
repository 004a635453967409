//! How replicas move between the sets of a deployment. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::sets::{self, DESIRED, MAX, replicas};

#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Create(ReplicaSet),
    /// Annotations only.
    Update(ReplicaSet),
    /// To so many replicas; the set carries its new annotations.
    Scale {
        set: ReplicaSet,
        to: i32,
    },
    Delete(ReplicaSet),
}

/// Sizes that the strategy speaks of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    pub wanted: i32,
    pub surge: i32,
    pub unavailable: i32,
}

fn resolve(value: Option<&IntOrString>, of: i32, round_up: bool) -> i32 {
    match value {
        None => resolve(Some(&IntOrString::String("25%".to_owned())), of, round_up),
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = i64::from(of) * percent;
            (if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) }) as i32
        }
    }
}

pub fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) != Some("Recreate")
}

pub fn sizes(deployment: &Deployment) -> Sizes {
    let spec = deployment.spec.clone().unwrap_or_default();
    let wanted = spec.replicas.unwrap_or(1);
    if !is_rolling(deployment) || wanted == 0 {
        return Sizes { wanted, surge: 0, unavailable: 0 };
    }
    let rolling = spec.strategy.and_then(|s| s.rolling_update);
    let surge = resolve(rolling.as_ref().and_then(|r| r.max_surge.as_ref()), wanted, true);
    let mut unavailable = resolve(rolling.as_ref().and_then(|r| r.max_unavailable.as_ref()), wanted, false);
    if surge == 0 && unavailable == 0 {
        // Rounding must not bring the rollout to a stand.
        unavailable = 1;
    }
    Sizes { wanted, surge, unavailable: unavailable.min(wanted) }
}

/// One step; the changes it makes bring the next.
pub fn plan(deployment: &Deployment, all: &[Arc<ReplicaSet>], new: Option<usize>, old_pods_run: bool) -> Vec<Action> {
    let sizes = sizes(deployment);
    let paused = deployment.spec.as_ref().and_then(|s| s.paused) == Some(true);
    let mut actions = if paused || is_scaling(all, sizes.wanted) {
        let mut actions: Vec<_> =
            new.and_then(|at| sets::refreshed(deployment, all, at)).map(Action::Update).into_iter().collect();
        if actions.is_empty() {
            actions = scale(all, new, sizes, is_rolling(deployment));
        }
        actions
    } else if is_rolling(deployment) {
        roll(deployment, all, new, sizes)
    } else {
        recreate(deployment, all, new, old_pods_run, sizes)
    };
    if !paused && actions.is_empty() {
        actions = clean_up(deployment, all, new, sizes);
    }
    actions
}

/// The wanted number changed since the sets were last sized.
fn is_scaling(all: &[Arc<ReplicaSet>], wanted: i32) -> bool {
    all.iter().filter(|s| replicas(s) > 0).any(|s| {
        sets::annotation(&s.metadata, DESIRED).and_then(|d| d.parse::<i32>().ok()).is_some_and(|d| d != wanted)
    })
}

fn scale_to(set: &ReplicaSet, to: i32, sizes: Sizes) -> Option<Action> {
    let sized = sets::with_sizes(set, sizes.wanted, sizes.wanted + sizes.surge);
    (sized.metadata.annotations != set.metadata.annotations || replicas(set) != to)
        .then_some(Action::Scale { set: sized, to })
}

/// Brings the sum to the wanted size, each set in proportion, without going on with the rollout.
fn scale(all: &[Arc<ReplicaSet>], new: Option<usize>, sizes: Sizes, rolling: bool) -> Vec<Action> {
    let active: Vec<usize> = (0..all.len()).filter(|at| replicas(&all[*at]) > 0).collect();
    let only = match active.as_slice() {
        [] => new.or((0..all.len()).max_by_key(|at| sets::revision(&all[*at]))),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(at) = only {
        return scale_to(&all[at], sizes.wanted, sizes).into_iter().collect();
    }
    let saturated = new.is_some_and(|at| {
        let set = &all[at];
        replicas(set) == sizes.wanted
            && sets::annotation(&set.metadata, DESIRED) == Some(&sizes.wanted.to_string())
            && set.status.as_ref().and_then(|s| s.available_replicas) == Some(sizes.wanted)
    });
    if saturated {
        let old = active.iter().filter(|at| Some(**at) != new);
        return old.filter_map(|at| scale_to(&all[*at], 0, sizes)).collect();
    }
    if !rolling {
        return Vec::new();
    }
    proportionally(all, &active, sizes)
}

fn proportionally(all: &[Arc<ReplicaSet>], active: &[usize], sizes: Sizes) -> Vec<Action> {
    let total: i32 = active.iter().map(|at| replicas(&all[*at])).sum();
    let allowed = if sizes.wanted > 0 { sizes.wanted + sizes.surge } else { 0 };
    let to_add = allowed - total;
    let mut order = active.to_vec();
    // The largest first; of equals the newest when growing, the oldest when shrinking.
    order.sort_by_key(|at| {
        let age = all[*at].metadata.creation_timestamp.as_ref().map_or(0, |t| t.0.as_second());
        (std::cmp::Reverse(replicas(&all[*at])), if to_add > 0 { -age } else { age })
    });
    let mut added = 0;
    let mut targets = Vec::new();
    for at in &order {
        let set = &all[*at];
        let part = if to_add == 0 { 0 } else { proportion(set, sizes, allowed, to_add, added) };
        added += part;
        targets.push((*at, replicas(set) + part));
    }
    // What rounding left goes to the first.
    if let Some(first) = targets.first_mut() {
        first.1 = (first.1 + to_add - added).max(0);
    }
    targets.into_iter().filter_map(|(at, to)| scale_to(&all[at], to, sizes)).collect()
}

fn proportion(set: &ReplicaSet, sizes: Sizes, allowed: i32, to_add: i32, added: i32) -> i32 {
    let own = replicas(set);
    let most_before = sets::annotation(&set.metadata, MAX)
        .and_then(|m| m.parse::<i32>().ok())
        .filter(|m| *m > 0)
        .unwrap_or(sizes.wanted);
    let fraction = if allowed == 0 {
        -own
    } else {
        (f64::from(own) * f64::from(allowed) / f64::from(most_before.max(1))).round() as i32 - own
    };
    let left = to_add - added;
    if to_add > 0 { fraction.min(left).max(0) } else { fraction.max(left).min(0) }
}

fn sum(all: &[Arc<ReplicaSet>], of: impl Fn(&ReplicaSet) -> i32) -> i32 {
    all.iter().map(|s| of(s)).sum()
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

/// How large the new set may be now.
fn new_size(all: &[Arc<ReplicaSet>], own: i32, sizes: Sizes) -> i32 {
    let room = sizes.wanted + sizes.surge - sum(all, replicas);
    if room <= 0 { own } else { own + room.min(sizes.wanted - own).max(0) }
}

fn roll(deployment: &Deployment, all: &[Arc<ReplicaSet>], new: Option<usize>, sizes: Sizes) -> Vec<Action> {
    let Some(at) = new else {
        let replicas = new_size(all, 0, sizes);
        return vec![Action::Create(sets::make_new(deployment, all, replicas, sizes.wanted + sizes.surge))];
    };
    if let Some(updated) = sets::refreshed(deployment, all, at) {
        return vec![Action::Update(updated)];
    }
    let set = &all[at];
    let own = replicas(set);
    let target = if own > sizes.wanted { sizes.wanted } else { new_size(all, own, sizes) };
    if let Some(action) = scale_to(set, target, sizes) {
        return vec![action];
    }
    shrink_old(all, at, sizes)
}

fn shrink_old(all: &[Arc<ReplicaSet>], new: usize, sizes: Sizes) -> Vec<Action> {
    let mut old: Vec<usize> = (0..all.len()).filter(|at| *at != new && replicas(&all[*at]) > 0).collect();
    if old.is_empty() {
        return Vec::new();
    }
    old.sort_by_key(|at| (all[*at].metadata.creation_timestamp.clone(), all[*at].metadata.name.clone()));
    let least = sizes.wanted - sizes.unavailable;
    let new_missing = replicas(&all[new]) - available(&all[new]);
    let mut spare = sum(all, replicas) - least - new_missing;
    if spare <= 0 {
        return Vec::new();
    }
    let mut targets: Vec<(usize, i32)> = old.iter().map(|at| (*at, replicas(&all[*at]))).collect();
    // Sick pods of old sets go first: they serve nobody.
    for (at, target) in &mut targets {
        let sick = (replicas(&all[*at]) - available(&all[*at])).clamp(0, spare);
        *target -= sick;
        spare -= sick;
    }
    let mut healthy = (sum(all, available) - least).max(0);
    for (_, target) in &mut targets {
        let part = (*target).min(healthy).max(0);
        *target -= part;
        healthy -= part;
    }
    targets
        .into_iter()
        .filter(|(at, to)| *to != replicas(&all[*at]))
        .filter_map(|(at, to)| scale_to(&all[at], to, sizes))
        .collect()
}

fn recreate(
    deployment: &Deployment,
    all: &[Arc<ReplicaSet>],
    new: Option<usize>,
    old_pods_run: bool,
    sizes: Sizes,
) -> Vec<Action> {
    let shrink: Vec<_> = (0..all.len())
        .filter(|at| Some(*at) != new && replicas(&all[*at]) > 0)
        .filter_map(|at| scale_to(&all[at], 0, sizes))
        .collect();
    if !shrink.is_empty() || old_pods_run {
        return shrink;
    }
    match new {
        None => vec![Action::Create(sets::make_new(deployment, all, sizes.wanted, sizes.wanted))],
        Some(at) => match sets::refreshed(deployment, all, at) {
            Some(updated) => vec![Action::Update(updated)],
            None => scale_to(&all[at], sizes.wanted, sizes).into_iter().collect(),
        },
    }
}

/// Old empty sets beyond the history that is to be kept.
fn clean_up(deployment: &Deployment, all: &[Arc<ReplicaSet>], new: Option<usize>, sizes: Sizes) -> Vec<Action> {
    let done = new.is_some_and(|at| replicas(&all[at]) == sizes.wanted && available(&all[at]) == sizes.wanted);
    let keep = deployment.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10);
    let Ok(keep) = usize::try_from(keep) else { return Vec::new() };
    if !done {
        return Vec::new();
    }
    let mut old: Vec<&Arc<ReplicaSet>> =
        all.iter().enumerate().filter(|(at, _)| Some(*at) != new).map(|(_, s)| s).collect();
    old.retain(|s| s.metadata.deletion_timestamp.is_none());
    let surplus = old.len().saturating_sub(keep);
    old.sort_by_key(|s| (sets::revision(s), s.metadata.creation_timestamp.clone()));
    old.into_iter()
        .take(surplus)
        .filter(|s| {
            let status = s.status.clone().unwrap_or_default();
            replicas(s) == 0 && status.replicas == 0 && status.observed_generation >= s.metadata.generation
        })
        .map(|s| Action::Delete((**s).clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSetStatus};
    use k8s_openapi::api::core::v1::{Container, PodSpec, PodTemplateSpec};

    fn deployment(wanted: i32, image: &str) -> Deployment {
        let mut deployment = Deployment::default();
        deployment.metadata.name = Some("web".into());
        deployment.spec = Some(DeploymentSpec {
            replicas: Some(wanted),
            template: PodTemplateSpec {
                spec: Some(PodSpec {
                    containers: vec![Container { image: Some(image.into()), ..Container::default() }],
                    ..PodSpec::default()
                }),
                ..PodTemplateSpec::default()
            },
            ..DeploymentSpec::default()
        });
        deployment
    }

    /// A cluster in which every replica is available one step after it was made.
    fn settle(
        deployment: &Deployment,
        mut all: Vec<Arc<ReplicaSet>>,
        log: &mut Vec<(i32, i32)>,
    ) -> Vec<Arc<ReplicaSet>> {
        for step in 0..100 {
            let new = sets::find_new(deployment, &all);
            let actions = plan(deployment, &all, new, false);
            if actions.is_empty() {
                return all;
            }
            for action in actions {
                match action {
                    Action::Create(set) => all.push(Arc::new(set)),
                    Action::Update(set) => replace(&mut all, set),
                    Action::Scale { mut set, to } => {
                        set.spec.as_mut().unwrap().replicas = Some(to);
                        replace(&mut all, set);
                    }
                    Action::Delete(set) => all.retain(|s| s.metadata.name != set.metadata.name),
                }
            }
            log.push((sum(&all, replicas), sum(&all, |s| available(s).min(replicas(s)))));
            for set in &mut all {
                let mut settled = (**set).clone();
                let size = replicas(&settled);
                settled.status = Some(ReplicaSetStatus {
                    replicas: size,
                    available_replicas: Some(size),
                    ..ReplicaSetStatus::default()
                });
                *set = Arc::new(settled);
            }
            assert!(step < 99, "does not settle");
        }
        all
    }

    fn replace(all: &mut [Arc<ReplicaSet>], set: ReplicaSet) {
        let at = all.iter().position(|s| s.metadata.name == set.metadata.name).unwrap();
        all[at] = Arc::new(set);
    }

    #[test]
    fn rollout_stays_between_least_and_most() {
        let mut log = Vec::new();
        let all = settle(&deployment(4, "a"), Vec::new(), &mut log);
        assert_eq!(all.len(), 1);
        log.clear();
        let all = settle(&deployment(4, "b"), all, &mut log);
        assert!(log.iter().all(|(total, available)| *total <= 5 && *available >= 3), "{log:?}");
        let sizes: Vec<_> = all.iter().map(|s| (sets::revision(s), replicas(s))).collect();
        assert_eq!(sizes, [(1, 0), (2, 4)]);
        // Back to the first template: its set is used again, with a new revision.
        let all = settle(&deployment(4, "a"), all, &mut log);
        let sizes: Vec<_> = all.iter().map(|s| (sets::revision(s), replicas(s))).collect();
        assert_eq!(sizes, [(3, 4), (2, 0)]);
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_keeps_proportions() {
        let old = Arc::new(sets::make_new(&deployment(10, "a"), &[], 8, 13));
        let new = Arc::new(sets::make_new(&deployment(10, "b"), std::slice::from_ref(&old), 5, 13));
        let all = [old, new];
        let actions = plan(&deployment(20, "b"), &all, Some(1), false);
        let sizes: Vec<_> = actions
            .iter()
            .map(|a| match a {
                Action::Scale { to, .. } => *to,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sizes.iter().sum::<i32>(), 25);
        assert_eq!(sizes, [15, 10]);
    }

    #[test]
    fn sizes_round_in_favour_of_progress() {
        let sizes_of = |wanted| {
            let s = sizes(&deployment(wanted, "a"));
            (s.surge, s.unavailable)
        };
        assert_eq!(sizes_of(1), (1, 0));
        assert_eq!(sizes_of(4), (1, 1));
        assert_eq!(sizes_of(10), (3, 2));
    }
}
