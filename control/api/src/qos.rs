//! A pod's class of service.

use crate::quantity::Quantity;
use serde_json::Value;

/// Guaranteed, Burstable or BestEffort.
pub fn class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let own = &spec["resources"];
    let of_pod = ["requests", "limits"].iter().any(|s| own[*s].as_object().is_some_and(|m| !m.is_empty()));
    let list = |name: &str| spec[name].as_array().map_or(&[][..], Vec::as_slice);
    let all: Vec<&Value> = if of_pod {
        vec![own]
    } else {
        list("containers").iter().chain(list("initContainers")).map(|c| &c["resources"]).collect()
    };
    let (mut any, mut guaranteed) = (false, true);
    for resources in all {
        for resource in ["cpu", "memory"] {
            let amount = |side: &str| quantity(&resources[side][resource]).filter(|q| !q.is_zero());
            let (request, limit) = (amount("requests"), amount("limits"));
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn quantity(v: &Value) -> Option<Quantity> {
    match v {
        Value::String(s) => Quantity::parse(s),
        Value::Number(n) => Quantity::parse(&n.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn classes() {
        let both = json!({"cpu": "1", "memory": "1Gi"});
        for (resources, want) in [
            (json!({}), "BestEffort"),
            (json!({"limits": both}), "Guaranteed"),
            (json!({"limits": both, "requests": {"cpu": "1000m", "memory": "1024Mi"}}), "Guaranteed"),
            (json!({"limits": both, "requests": {"cpu": "500m"}}), "Burstable"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
        ] {
            let pod = json!({"spec": {"containers": [{"name": "a", "resources": resources}]}});
            assert_eq!(class(&pod), want, "{pod}");
            let whole = json!({"spec": {"resources": resources, "containers": [{"name": "a"}]}});
            assert_eq!(class(&whole), want, "{whole}");
        }
    }
}
