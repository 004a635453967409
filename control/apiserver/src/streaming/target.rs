//! Which pod, container and node a streaming request is about.

use serde_json::Value;

use super::backend::{self, Target};
use crate::authn::view::{items_at, name_of, str_at};
use crate::error::{ApiError, Result};
use crate::request::RequestInfo;
use crate::state::AppState;

/// The pod of a request.
pub fn pod(state: &AppState, info: &RequestInfo, name: &str) -> Result<Value> {
    let found = state.registry.get("", "pods", &info.namespace, name);
    Ok(found.ok_or_else(|| ApiError::not_found("", "pods", name))?.value())
}

/// The kubelet that runs a pod.
pub fn kubelet_of(state: &AppState, pod: &Value) -> Result<Target> {
    let node = str_at(pod, "/spec/nodeName");
    if node.is_empty() {
        return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", name_of(pod))));
    }
    backend::kubelet(state, node)
}

fn names(pod: &Value, list: &str) -> Vec<String> {
    items_at(pod, &format!("/spec/{list}")).iter().map(|c| str_at(c, "/name").to_string()).collect()
}

/// The container that the request names, or the only one.
pub fn container(pod: &Value, asked: Option<&str>) -> Result<String> {
    let (containers, inits) = (names(pod, "containers"), names(pod, "initContainers"));
    let ephemeral = names(pod, "ephemeralContainers");
    let name = name_of(pod);
    match asked.filter(|c| !c.is_empty()) {
        Some(asked) if containers.iter().chain(&inits).chain(&ephemeral).any(|c| c == asked) => Ok(asked.to_string()),
        Some(asked) => Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}"))),
        None if containers.len() == 1 => Ok(containers[0].clone()),
        None => {
            let mut message =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", containers.join(" "));
            if !inits.is_empty() {
                message.push_str(&format!(" or one of the init containers: [{}]", inits.join(" ")));
            }
            if !ephemeral.is_empty() {
                message.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
            }
            Err(ApiError::bad_request(message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn containers() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(container(&one, None).expect("only one"), "a");
        assert_eq!(container(&one, Some("i")).expect("named"), "i");
        assert!(container(&one, Some("x")).is_err());
        assert_eq!(
            container(&two, None).expect_err("several").message,
            "a container name must be specified for pod p, choose one of: [a b]"
        );
    }
}
