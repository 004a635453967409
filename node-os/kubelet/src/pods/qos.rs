//! QoS class and the resources of a pod as a whole. Pure.

use super::spec;
use crate::quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// QoS class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Requests equal limits everywhere.
    Guaranteed,
    /// Some requests or limits.
    Burstable,
    /// None.
    BestEffort,
}

impl Class {
    /// As the API spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Guaranteed => "Guaranteed",
            Class::Burstable => "Burstable",
            Class::BestEffort => "BestEffort",
        }
    }
}

type List = BTreeMap<String, Quantity>;

fn limits(container: &Container) -> Option<&List> {
    container.resources.as_ref()?.limits.as_ref()
}

/// A container's request; without one its limit, as the API server's defaulting does.
pub fn request<'a>(container: &'a Container, resource: &str) -> Option<&'a Quantity> {
    let resources = container.resources.as_ref()?;
    let list = |list: &'a Option<List>| list.as_ref().and_then(|l| l.get(resource));
    list(&resources.requests).or_else(|| list(&resources.limits))
}

/// A container's limit.
pub fn limit<'a>(container: &'a Container, resource: &str) -> Option<&'a Quantity> {
    limits(container)?.get(resource)
}

/// The class of a pod.
pub fn class(pod: &Pod) -> Class {
    if let Some(known) = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        match known {
            "Guaranteed" => return Class::Guaranteed,
            "Burstable" => return Class::Burstable,
            "BestEffort" => return Class::BestEffort,
            _ => {}
        }
    }
    if let Some(resources) = &spec::of(pod).resources {
        let whole = Container { resources: Some(resources.clone()), ..Default::default() };
        if resources.requests.is_some() || resources.limits.is_some() {
            return class_of([&whole].into_iter());
        }
    }
    class_of(spec::inits(pod).iter().chain(spec::mains(pod)))
}

fn class_of<'a>(containers: impl Iterator<Item = &'a Container>) -> Class {
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        for resource in ["cpu", "memory"] {
            let request = request(container, resource).map(quantity::milli).filter(|v| *v > 0);
            let limit = limit(container, resource).map(quantity::milli).filter(|v| *v > 0);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => Class::BestEffort,
        (true, true) => Class::Guaranteed,
        (true, false) => Class::Burstable,
    }
}

/// The whole pod's figure of one resource: the main containers and sidecars together, or the
/// largest init container with the sidecars before it, plus overhead. With `limits`, none when a
/// main container has no limit.
pub fn pod_total(pod: &Pod, resource: &str, limits: bool) -> Option<i64> {
    let of = |c: &Container| {
        let found = if limits { limit(c, resource) } else { request(c, resource) };
        found.map(quantity::milli)
    };
    if let Some(whole) = &spec::of(pod).resources {
        let found = of(&Container { resources: Some(whole.clone()), ..Default::default() });
        if found.is_some() {
            return found;
        }
    }
    let mut total = 0;
    for container in spec::mains(pod) {
        match of(container) {
            Some(value) => total += value,
            None if limits => return None,
            None => {}
        }
    }
    let (mut sidecars, mut largest) = (0, 0);
    for container in spec::inits(pod) {
        let value = of(container).unwrap_or(0);
        if spec::is_sidecar(container) {
            sidecars += value;
            largest = largest.max(sidecars);
        } else {
            largest = largest.max(sidecars + value);
        }
    }
    let overhead = spec::of(pod).overhead.as_ref().and_then(|o| o.get(resource)).map_or(0, quantity::milli);
    Some(largest.max(total + sidecars) + overhead)
}

/// How readily the kernel kills this container when memory is short.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if spec::is_static(pod) || spec::of(pod).priority.unwrap_or(0) >= 2_000_000_000 {
        return -997;
    }
    match class(pod) {
        Class::Guaranteed => -997,
        Class::BestEffort => 1000,
        Class::Burstable => {
            let asked = request(container, "memory").map_or(0, quantity::value);
            let score = 1000 - (1000 * asked).checked_div(memory_capacity).unwrap_or(0);
            score.clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_yaml_ng::from_str(&format!("{{metadata: {{}}, spec: {yaml}}}")).unwrap()
    }

    #[test]
    fn classes() {
        for (spec, class_) in [
            ("{containers: [{name: a}]}", Class::BestEffort),
            ("{containers: [{name: a, resources: {requests: {cpu: 1}}}]}", Class::Burstable),
            ("{containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}]}", Class::Guaranteed),
            ("{containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}, {name: b}]}", Class::Burstable),
            (
                "{containers: [{name: a, resources: {requests: {cpu: 1000m, memory: 1Gi}, limits: {cpu: 1, memory: 1024Mi}}}]}",
                Class::Guaranteed,
            ),
        ] {
            assert_eq!(class(&pod(spec)), class_, "{spec}");
        }
    }

    #[test]
    fn totals_count_the_larger_of_init_and_main() {
        let pod = pod(
            "{initContainers: [{name: i, resources: {requests: {cpu: 2}}}, {name: s, restartPolicy: Always, resources: {requests: {cpu: 100m}}}], containers: [{name: a, resources: {requests: {cpu: 1}}}]}",
        );
        assert_eq!(pod_total(&pod, "cpu", false), Some(2000));
        assert_eq!(pod_total(&pod, "cpu", true), None);
    }
}
