//! `metrics.k8s.io`: what nodes and pods use of cpu and memory. Its kinds are made as those of custom resources are,
//! as they are no part of upstream's tables, but nothing of them is ever stored or written.

use std::sync::{Arc, LazyLock};

use serde_json::{Value, json};

use crate::crd;
use crate::kinds::Kind;
use crate::quantity::Quantity;

/// The group.
pub const GROUP: &str = "metrics.k8s.io";
/// Its version.
pub const VERSION: &str = "v1beta1";

static KINDS: LazyLock<[Arc<Kind>; 2]> = LazyLock::new(|| {
    [
        made("NodeMetrics", "nodes", false, usage()),
        made("PodMetrics", "pods", true, json!({"containers": containers()})),
    ]
});

/// Both kinds, in discovery order.
pub fn kinds() -> &'static [Arc<Kind>] {
    &*KINDS
}

/// Whether a kind is one of them; custom resources may be of the same group.
pub fn is_measured(kind: &Arc<Kind>) -> bool {
    kinds().iter().any(|own| Arc::ptr_eq(own, kind))
}

fn made(kind: &str, plural: &str, namespaced: bool, own: Value) -> Arc<Kind> {
    let mut properties = json!({
        "timestamp": {"type": "string", "format": "date-time", "description": "The end of the window."},
        "window": {"type": "string", "description": "The time over which cpu was measured, as a duration."},
    });
    crate::meta::object_mut(&mut properties).extend(own.as_object().cloned().unwrap_or_default());
    let column = |name: &str, format: &str, path: &str| json!({"name": name, "type": "string", "format": format, "jsonPath": path});
    let definition = json!({"spec": {
        "group": GROUP,
        "scope": if namespaced { "Namespaced" } else { "Cluster" },
        "names": {"kind": kind, "plural": plural},
        "versions": [{
            "name": VERSION, "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {
                "type": "object", "required": ["timestamp", "window"], "properties": properties,
                "description": format!("{kind} says what was used of cpu and memory in a short time before it was asked for."),
            }},
            "additionalPrinterColumns": [
                column("cpu", "quantity", ".usage.cpu"),
                column("memory", "quantity", ".usage.memory"),
                column("Window", "duration", ".window"),
            ],
        }],
    }});
    let made = crd::kind_of(&definition, VERSION).and_then(Arc::into_inner);
    let mut made = made.expect("the definition has this version, and nobody else has the kind yet");
    made.verbs = vec!["get".into(), "list".into()];
    Arc::new(made)
}

fn usage() -> Value {
    let quantity = json!({"x-kubernetes-int-or-string": true});
    json!({"usage": {
        "type": "object", "additionalProperties": quantity,
        "description": "What was used: cpu in cores, memory as the working set in bytes.",
    }})
}

fn containers() -> Value {
    let mut properties = usage();
    properties["name"] = json!({"type": "string"});
    json!({"type": "array", "items": {"type": "object", "required": ["name", "usage"], "properties": properties}})
}

/// Cells of a row: of a pod the sums over its containers.
pub(crate) fn cells(o: &Value) -> Vec<Value> {
    let all = match o["containers"].as_array() {
        Some(containers) => containers.iter().map(|c| &c["usage"]).collect(),
        None => vec![&o["usage"]],
    };
    let sum = |resource: &str| {
        let each = all.iter().filter_map(|usage| Quantity::parse(usage[resource].as_str()?));
        each.reduce(|sum, one| sum.plus(&one)).map_or(Value::Null, |sum| sum.to_string().into())
    };
    vec![o["metadata"]["name"].clone(), sum("cpu"), sum("memory"), o["window"].clone()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{self, Include};

    #[test]
    fn kinds_are_only_read() {
        let shape = |k: &Kind| (k.kind.to_string(), k.list_kind.to_string(), k.plural.to_string(), k.namespaced);
        assert_eq!(shape(&kinds()[0]), ("NodeMetrics".into(), "NodeMetricsList".into(), "nodes".into(), false));
        assert_eq!(shape(&kinds()[1]), ("PodMetrics".into(), "PodMetricsList".into(), "pods".into(), true));
        assert!(kinds().iter().all(|k| k.verbs == ["get", "list"] && k.subresources.is_empty()));
        let served = crate::kinds::Registry::builtin();
        assert!(is_measured(served.resource(GROUP, VERSION, "pods").unwrap()));
        assert!(!is_measured(&made("Other", "others", true, json!({}))));
        // Whoever asks for `pods` means those of the core.
        let all = crate::kinds::Registry::builtin();
        assert_eq!(crate::discovery::groups(all.kinds()).last().unwrap().0, GROUP);
    }

    #[test]
    fn rows_add_up_containers() {
        let pod = json!({"metadata": {"name": "p"}, "window": "15s", "containers": [
            {"name": "a", "usage": {"cpu": "250000000n", "memory": "4Ki"}},
            {"name": "b", "usage": {"cpu": "1500000n", "memory": "1020Ki"}},
        ]});
        let node = json!({"metadata": {"name": "n"}, "window": "1s", "usage": {"cpu": "0", "memory": "2048Ki"}});
        for (kind, object, expected) in [
            (&kinds()[1], pod, json!(["p", "251500u", "1Mi", "15s"])),
            (&kinds()[0], node, json!(["n", "0", "2Mi", "1s"])),
        ] {
            let table = table::table(kind, [&object], json!({}), Include::None, "v1", true, 0);
            assert_eq!(table["rows"][0]["cells"], expected);
            let names: Vec<&Value> =
                table["columnDefinitions"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
            assert_eq!(names, ["Name", "cpu", "memory", "Window"]);
        }
    }
}
