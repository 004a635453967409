//! What a pod may learn about itself: fieldRef and resourceFieldRef. Pure.

use super::super::pods::{qos, spec};
use crate::quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What of a pod's surroundings the downward API tells.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Name of this node.
    pub node_name: String,
    /// This node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// What this node offers: stands in for limits that are not set.
    pub allocatable: BTreeMap<String, Quantity>,
}

/// The value of a field of the pod; none if the path is not supported.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Option<String> {
    let join = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(IpAddr::to_string).unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &pod.metadata.labels,
            "metadata.annotations" => &pod.metadata.annotations,
            _ => return None,
        };
        return Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let spec = spec::of(pod);
    Some(match path {
        "metadata.name" => spec::name(pod).into(),
        "metadata.namespace" => spec::namespace(pod).into(),
        "metadata.uid" => spec::uid(pod).into(),
        "metadata.labels" => format_map(pod.metadata.labels.as_ref()),
        "metadata.annotations" => format_map(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => join(&facts.host_ips),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => join(&facts.pod_ips),
        _ => return None,
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// Labels or annotations as the volume prints them: sorted, quoted as Go quotes.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v))).collect();
    lines.join("\n")
}

fn go_quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => quoted.push_str(&format!("\\x{:02x}", c as u32)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// The value of a container's resource, divided and rounded up; none if the selector is not supported.
pub fn resource(pod: &Pod, own: &str, selector: &ResourceFieldSelector, facts: &Facts) -> Option<String> {
    let name = selector.container_name.as_deref().filter(|n| !n.is_empty()).unwrap_or(own);
    let (_, container) = spec::find(pod, name)?;
    let (list, resource) = selector.resource.split_once('.')?;
    let milli = match list {
        "limits" => limit_or_node(&container, resource, facts),
        "requests" => qos::request(&container, resource).map(quantity::milli).unwrap_or(0),
        _ => return None,
    };
    let divisor = selector.divisor.as_ref().and_then(|d| quantity::parse_milli(&d.0)).filter(|d| *d > 0);
    let divisor = divisor.unwrap_or(1000);
    let milli = i128::from(milli);
    Some(((milli + divisor - 1) / divisor).to_string())
}

fn limit_or_node(container: &Container, resource: &str, facts: &Facts) -> i64 {
    qos::limit(container, resource).or_else(|| facts.allocatable.get(resource)).map(quantity::milli).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_yaml_ng::from_str(
            "{metadata: {name: p, namespace: n, uid: u, labels: {a: 'x\"y', b: z}}, spec: {serviceAccountName: sa, containers: [{name: c, resources: {limits: {cpu: 1500m, memory: 64Mi}}}, {name: d}]}}",
        )
        .unwrap();
        let facts = Facts {
            node_name: "w1".into(),
            host_ips: vec!["10.77.0.11".parse().unwrap()],
            pod_ips: vec!["10.200.1.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            allocatable: BTreeMap::from([("cpu".to_string(), Quantity("3".into()))]),
        };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels['b']", "z"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"z\""),
            ("spec.nodeName", "w1"),
            ("status.podIPs", "10.200.1.2,fd00::2"),
            ("status.hostIP", "10.77.0.11"),
        ] {
            assert_eq!(field(&pod, path, &facts).as_deref(), Some(expected), "{path}");
        }
        assert_eq!(field(&pod, "spec.containers", &facts), None);
        for (own, which, divisor, expected) in [
            ("c", "limits.cpu", None, "2"),
            ("c", "limits.cpu", Some("1m"), "1500"),
            ("c", "limits.memory", Some("1Mi"), "64"),
            ("c", "requests.memory", None, "67108864"),
            ("d", "limits.cpu", None, "3"),
        ] {
            let selector = ResourceFieldSelector {
                container_name: None,
                divisor: divisor.map(|d| Quantity(d.into())),
                resource: which.into(),
            };
            assert_eq!(resource(&pod, own, &selector, &facts).as_deref(), Some(expected), "{own} {which}");
        }
    }
}
