//! What a pod's failure means for the job, by `spec.podFailurePolicy`. Pure.

use control_client::pods;
use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

#[derive(Debug, PartialEq)]
pub enum Meaning {
    Count,
    Ignore,
    FailJob(String),
    FailIndex,
}

pub fn judge(job: &Job, pod: &Pod) -> Meaning {
    let rules = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref()).map(|p| p.rules.as_slice());
    for (at, rule) in rules.unwrap_or_default().iter().enumerate() {
        let Some(why) = matches(rule, pod) else { continue };
        return match rule.action.as_str() {
            "Ignore" => Meaning::Ignore,
            "FailIndex" => Meaning::FailIndex,
            "FailJob" => Meaning::FailJob(format!("{why} matching FailJob rule at index {at}")),
            _ => Meaning::Count,
        };
    }
    Meaning::Count
}

fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let name = format!(
        "{}/{}",
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default()
    );
    if let Some(codes) = &rule.on_exit_codes {
        let status = pod.status.as_ref()?;
        let mut all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
        let found = all.find_map(|c| exit_code(codes, c).map(|code| (c.name.clone(), code)))?;
        return Some(format!("Container {} for pod {name} failed with exit code {}", found.0, found.1));
    }
    let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
    let met = patterns
        .iter()
        .find(|p| pods::condition(pod, &p.type_).is_some_and(|c| c.status == p.status.as_deref().unwrap_or("True")))?;
    Some(format!("Pod {name} has condition {}", met.type_))
}

fn exit_code(rule: &PodFailurePolicyOnExitCodesRequirement, container: &ContainerStatus) -> Option<i32> {
    if rule.container_name.as_ref().is_some_and(|n| *n != container.name) {
        return None;
    }
    let code = container.state.as_ref()?.terminated.as_ref()?.exit_code;
    let listed = rule.values.contains(&code);
    let holds = match rule.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    };
    (code != 0 && holds).then_some(code)
}
