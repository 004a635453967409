//! One object of each kind, sent and read in each form.

use serde_json::{Value, json};

use crate::client::Cluster;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Objects that are valid with as little as their kinds demand: path, and the rest of the object.
fn all() -> Vec<(String, Value)> {
    include_str!("kinds.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What differs between two creations of one object.
fn bare(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().unwrap();
    for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        metadata.remove(field);
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        // Drawn anew by each creation.
        for field in ["clusterIP", "clusterIPs"] {
            spec.remove(field);
        }
    }
    let mut text = object.to_string();
    // Selectors and labels of jobs name their uid.
    while let Some(at) = text.find("controller-uid\":\"") {
        text.replace_range(at..at + "controller-uid\":\"".len() + 36, "uid\":\"");
    }
    let mut object: Value = serde_json::from_str(&text).unwrap();
    // Counters of a status are always in upstream's JSON, and zeros never in what is read here; the time of a volume's
    // phase is that of each creation.
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.retain(|field, v| *v != 0 && field != "lastPhaseTransitionTime");
    }
    prune(&mut object);
    object
}

/// Empty lists and maps have no form of their own in protobuf.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(prune);
            map.retain(|_, v| !matches!(v, Value::Array(a) if a.is_empty()) && !v.is_null());
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_in_every_form() {
    let cluster = Cluster::start().await;
    let kinds = api::kinds::builtin();
    // What pods run as; the controllers would make it.
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}});
    cluster.post("/api/v1/namespaces/default/serviceaccounts", account).await.expect(201);
    for (path, rest) in &all() {
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let (group, version) = if parts[0] == "api" { ("", parts[1]) } else { (parts[1], parts[2]) };
        let kind =
            kinds.iter().find(|k| k.group == group && k.version == version && k.plural == *parts.last().unwrap());
        let kind = kind.unwrap_or_else(|| panic!("{path}"));
        let mut object = rest.clone();
        api::meta::set_type(&mut object, &kind.api_version(), &kind.kind);
        object["metadata"] = json!({"name": "form", "labels": {"x": "y"}});
        if parts.contains(&"default") {
            object["metadata"]["namespace"] = "default".into();
        }
        let dry = format!("{path}?dryRun=All&fieldManager=t");
        let plain = cluster.post(&dry, object.clone()).await;
        assert_eq!(plain.code, 201, "{path}: {}", String::from_utf8_lossy(&plain.body));
        let plain = bare(plain.json());
        let yaml = api::codec::encode(&object, api::codec::Format::Yaml, None).unwrap();
        let headers = [("content-type", "application/yaml"), ("accept", "application/yaml")];
        let answer = cluster.send_with("POST", &dry, &headers, yaml).await;
        assert_eq!(answer.code, 201, "{path} in YAML: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(bare(api::codec::parse_yaml(&answer.body).unwrap().value), plain, "{path} in YAML");
        let bytes = api::protobuf::encode_object(&object, Some(kind.schema()));
        let headers = [("content-type", PROTOBUF), ("accept", PROTOBUF)];
        let answer = cluster.send_with("POST", &dry, &headers, bytes).await;
        assert_eq!(answer.code, 201, "{path} in protobuf: {}", String::from_utf8_lossy(&answer.body));
        assert_eq!(bare(api::protobuf::decode_object(&answer.body, None).unwrap()), plain, "{path} in protobuf");
    }
}
