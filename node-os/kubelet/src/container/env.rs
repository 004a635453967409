//! A container's environment: what it refers to is fetched by the caller, then put together here.

use super::downward::{self, Facts};
use super::expand::expand;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::BTreeMap;

/// The data of config maps and secrets that a container's environment names; none for a missing one.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Config maps by name.
    pub config_maps: BTreeMap<String, Option<BTreeMap<String, String>>>,
    /// Secrets by name.
    pub secrets: BTreeMap<String, Option<BTreeMap<String, ByteString>>>,
}

/// Names of config maps and secrets that the environment refers to.
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    maps.sort();
    maps.dedup();
    secrets.sort();
    secrets.dedup();
    (maps, secrets)
}

/// Puts the environment together. An error is a sentence for the container's status.
pub fn build(
    pod: &Pod,
    container: &Container,
    services: &[(String, String)],
    sources: &Sources,
    facts: &Facts,
) -> Result<Vec<(String, String)>, String> {
    let mut env = Environment::default();
    let namespace = crate::pods::spec::namespace(pod);
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name).and_then(Option::as_ref) {
                Some(data) => data.iter().for_each(|(k, v)| env.set(format!("{prefix}{k}"), v.clone())),
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", reference.name)),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name).and_then(Option::as_ref) {
                Some(data) => {
                    data.iter().for_each(|(k, v)| env.set(format!("{prefix}{k}"), text(v)));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", reference.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => Some(expand(value, |name| env.lookup(name, services))),
            (_, None) => Some(String::new()),
            (_, Some(source)) => {
                if let Some(field) = &source.field_ref {
                    let found = downward::field(pod, &field.field_path, facts);
                    Some(found.ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?)
                } else if let Some(selector) = &source.resource_field_ref {
                    let found = downward::resource(pod, &container.name, selector, facts);
                    Some(found.ok_or_else(|| format!("unsupported container resource: {}", selector.resource))?)
                } else if let Some(key) = &source.config_map_key_ref {
                    let map = sources.config_maps.get(&key.name).and_then(Option::as_ref);
                    let found = map.and_then(|m| m.get(&key.key)).cloned();
                    let what = ("configmap", "ConfigMap");
                    required(what, namespace, &key.name, &key.key, map.is_some(), found, key.optional)?
                } else if let Some(key) = &source.secret_key_ref {
                    let map = sources.secrets.get(&key.name).and_then(Option::as_ref);
                    let found = map.and_then(|m| m.get(&key.key)).map(text);
                    let what = ("secret", "Secret");
                    required(what, namespace, &key.name, &key.key, map.is_some(), found, key.optional)?
                } else {
                    Some(String::new())
                }
            }
        };
        if let Some(value) = value {
            env.set(variable.name.clone(), value);
        }
    }
    Ok(env.with_services(services))
}

fn required(
    (lower, upper): (&str, &str),
    namespace: &str,
    name: &str,
    key: &str,
    exists: bool,
    found: Option<String>,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    match found {
        Some(value) => Ok(Some(value)),
        None if optional == Some(true) => Ok(None),
        None if exists => Err(format!("couldn't find key {key} in {upper} {namespace}/{name}")),
        None => Err(format!("{lower} \"{name}\" not found")),
    }
}

fn text(bytes: &ByteString) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

#[derive(Default)]
struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn lookup(&self, name: &str, services: &[(String, String)]) -> Option<String> {
        let service = || services.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        self.values.get(name).cloned().or_else(service)
    }

    /// Services come after, where the container did not say otherwise.
    fn with_services(mut self, services: &[(String, String)]) -> Vec<(String, String)> {
        let mut list: Vec<(String, String)> = Vec::with_capacity(self.order.len() + services.len());
        for name in &self.order {
            if let Some(value) = self.values.get(name) {
                list.push((name.clone(), value.clone()));
            }
        }
        for (name, value) in services {
            if !self.values.contains_key(name) {
                self.values.insert(name.clone(), value.clone());
                list.push((name.clone(), value.clone()));
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(yaml: &str) -> Pod {
        serde_yaml_ng::from_str(&format!("{{metadata: {{name: p, namespace: n}}, spec: {{containers: [{yaml}]}}}}"))
            .unwrap()
    }

    fn env_of(yaml: &str) -> Result<Vec<(String, String)>, String> {
        let pod = pod(yaml);
        let map = BTreeMap::from([("k".to_string(), "v".to_string())]);
        let secret = BTreeMap::from([("s".to_string(), ByteString(b"w".to_vec()))]);
        let sources = Sources {
            config_maps: BTreeMap::from([("m".to_string(), Some(map)), ("gone".to_string(), None)]),
            secrets: BTreeMap::from([("s".to_string(), Some(secret))]),
        };
        let services = vec![("X_SERVICE_HOST".to_string(), "10.32.0.1".to_string())];
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        build(&pod, &container, &services, &sources, &Facts::default())
    }

    fn text_of(yaml: &str) -> String {
        let list = env_of(yaml).unwrap();
        list.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn values_references_and_services() {
        for (container, expected) in [
            ("{name: c}", "X_SERVICE_HOST=10.32.0.1"),
            (
                "{name: c, env: [{name: A, value: a}, {name: B, value: '$(A)-$(X_SERVICE_HOST)-$(C)'}]}",
                "A=a B=a-10.32.0.1-$(C) X_SERVICE_HOST=10.32.0.1",
            ),
            ("{name: c, env: [{name: X_SERVICE_HOST, value: own}]}", "X_SERVICE_HOST=own"),
            (
                "{name: c, envFrom: [{prefix: P_, configMapRef: {name: m}}, {secretRef: {name: s}}]}",
                "P_k=v s=w X_SERVICE_HOST=10.32.0.1",
            ),
            (
                "{name: c, env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: B, valueFrom: {configMapKeyRef: {name: m, key: no, optional: true}}}]}",
                "A=p X_SERVICE_HOST=10.32.0.1",
            ),
        ] {
            assert_eq!(text_of(container), expected, "{container}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (container, message) in [
            ("{name: c, envFrom: [{configMapRef: {name: gone}}]}", "configmap \"gone\" not found"),
            (
                "{name: c, env: [{name: A, valueFrom: {configMapKeyRef: {name: m, key: no}}}]}",
                "couldn't find key no in ConfigMap n/m",
            ),
            ("{name: c, env: [{name: A, valueFrom: {secretKeyRef: {name: no, key: no}}}]}", "secret \"no\" not found"),
        ] {
            assert_eq!(env_of(container).unwrap_err(), message);
        }
    }
}
