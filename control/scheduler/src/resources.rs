//! Amounts of resources: what pods ask for, what nodes have.

use std::collections::BTreeMap;

use control_client::quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// What a container without requests is counted with where nodes are compared.
const DEFAULT_CPU_MILLI: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    pub cpu_milli: i64,
    pub memory: i64,
    pub ephemeral: i64,
    pub pods: i64,
    /// Extended resources and huge pages.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    pub fn parse(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut all = Self::default();
        for (name, quantity) in list.into_iter().flatten() {
            // The API server refuses what is no quantity.
            match name.as_str() {
                "cpu" => all.cpu_milli = quantity::milli(quantity).unwrap_or(0),
                "memory" => all.memory = quantity::units(quantity).unwrap_or(0),
                "ephemeral-storage" => all.ephemeral = quantity::units(quantity).unwrap_or(0),
                "pods" => all.pods = quantity::units(quantity).unwrap_or(0),
                other => {
                    all.others.insert(other.to_owned(), quantity::units(quantity).unwrap_or(0));
                }
            }
        }
        all
    }

    fn combine(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        self.cpu_milli = with(self.cpu_milli, other.cpu_milli);
        self.memory = with(self.memory, other.memory);
        self.ephemeral = with(self.ephemeral, other.ephemeral);
        for (name, amount) in &other.others {
            let own = self.others.entry(name.clone()).or_insert(0);
            *own = with(*own, *amount);
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.combine(other, |a, b| a + b);
    }

    pub fn subtract(&mut self, other: &Self) {
        self.combine(other, |a, b| a - b);
    }

    pub fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }
}

fn requests(container: &Container) -> Resources {
    Resources::parse(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

fn with_defaults(container: &Container) -> Resources {
    let listed = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let mut all = Resources::parse(listed);
    if listed.is_none_or(|l| !l.contains_key("cpu")) {
        all.cpu_milli = DEFAULT_CPU_MILLI;
    }
    if listed.is_none_or(|l| !l.contains_key("memory")) {
        all.memory = DEFAULT_MEMORY;
    }
    all
}

/// The sum of containers and sidecars, or the largest moment of initialisation, plus overhead.
fn total(spec: &PodSpec, of: fn(&Container) -> Resources) -> Resources {
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    let mut sidecars = Resources::default();
    let mut largest = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut moment = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&moment);
            moment = sidecars.clone();
        } else {
            moment.add(&sidecars);
        }
        largest.raise_to(&moment);
    }
    running.add(&sidecars);
    running.raise_to(&largest);
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        // Requests of the pod as a whole stand above those of its containers.
        let whole_amounts = Resources::parse(Some(whole));
        if whole.contains_key("cpu") {
            running.cpu_milli = whole_amounts.cpu_milli;
        }
        if whole.contains_key("memory") {
            running.memory = whole_amounts.memory;
        }
    }
    running.add(&Resources::parse(spec.overhead.as_ref()));
    running
}

/// What the node must have free for the pod.
pub fn of_pod(spec: &PodSpec) -> Resources {
    total(spec, requests)
}

/// CPU and memory by which nodes are compared: pods without requests count a little too.
pub fn of_pod_for_score(spec: &PodSpec) -> (i64, i64) {
    let all = total(spec, with_defaults);
    (all.cpu_milli, all.memory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ResourceRequirements;

    fn container(cpu: &str, always: bool) -> Container {
        Container {
            resources: Some(ResourceRequirements {
                requests: Some([("cpu".to_owned(), Quantity(cpu.into()))].into()),
                ..ResourceRequirements::default()
            }),
            restart_policy: always.then(|| "Always".to_owned()),
            ..Container::default()
        }
    }

    #[test]
    fn init_containers_count_by_their_largest_moment() {
        let spec = PodSpec {
            containers: vec![container("100m", false), container("100m", false)],
            init_containers: Some(vec![container("50m", true), container("500m", false)]),
            ..PodSpec::default()
        };
        assert_eq!(of_pod(&spec).cpu_milli, 550);
        assert_eq!(of_pod_for_score(&PodSpec { containers: vec![Container::default()], ..PodSpec::default() }).0, 100);
    }
}
