//! Paths of the server.

use super::auth::{Access, Certificate, Refusal};
use super::{Answer, logs, metrics, port_forward, stats, streams, text, typed};
use crate::kubelet::Kubelet;
use crate::pods::spec;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;

/// Answers a request.
pub async fn answer(
    kubelet: Arc<Kubelet>,
    access: &Access,
    certificate: Option<Certificate>,
    request: Request<Incoming>,
) -> Answer {
    let token = request
        .headers()
        .get(http::header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .map(String::from);
    match access.check(certificate, token.as_deref(), request.method(), request.uri().path()).await {
        Ok(()) => route(kubelet, request).await,
        Err(Refusal::Unauthorized) => text(StatusCode::UNAUTHORIZED, "Unauthorized\n"),
        Err(Refusal::TakenBack(why)) => {
            tracing::info!("request refused: {why}");
            text(StatusCode::UNAUTHORIZED, "Unauthorized\n")
        }
        Err(Refusal::Forbidden(sentence)) => text(StatusCode::FORBIDDEN, sentence),
        Err(Refusal::Unavailable(sentence)) => text(StatusCode::SERVICE_UNAVAILABLE, sentence),
    }
}

/// Whether the kubelet works.
pub fn health(kubelet: &Kubelet) -> Answer {
    let troubles: Vec<String> = kubelet
        .node
        .troubles()
        .into_iter()
        .filter(|t| t.starts_with("PLEG") || t.contains("runtime is down"))
        .collect();
    if troubles.is_empty() {
        text(StatusCode::OK, "ok")
    } else {
        text(StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", troubles.join(", ")))
    }
}

async fn route(kubelet: Arc<Kubelet>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_string();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let streaming = [Method::GET, Method::POST].contains(request.method());
    match parts.as_slice() {
        ["healthz", ..] => health(&kubelet),
        ["pods"] | ["runningpods"] => pods(&kubelet),
        ["metrics"] => metrics::kubelet(&kubelet),
        ["metrics", "resource"] => metrics::resource(&kubelet).await,
        ["metrics", "cadvisor" | "probes"] => text(StatusCode::OK, ""),
        ["stats", "summary"] => stats::summary(&kubelet).await,
        ["configz"] => configz(&kubelet),
        ["containerLogs", namespace, pod, container] => {
            logs::answer(&kubelet, namespace, pod, container, &Query::of(&request)).await
        }
        ["exec", namespace, pod, container] if streaming => {
            streams::exec(kubelet.clone(), namespace, pod, container, request).await
        }
        ["attach", namespace, pod, container] if streaming => {
            streams::attach(kubelet.clone(), namespace, pod, container, request).await
        }
        ["portForward", namespace, pod] if streaming => {
            port_forward::answer(kubelet.clone(), namespace, pod, request).await
        }
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// A parsed query string.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// The query of a request.
    pub fn of<B>(request: &Request<B>) -> Query {
        Query::parse(request.uri().query().unwrap_or_default())
    }

    /// Parses a query.
    pub fn parse(query: &str) -> Query {
        let pairs = query.split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Query(pairs.collect())
    }

    /// The first value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values of a key.
    pub fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect()
    }

    /// `1` or `true`.
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "true"))
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut result = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) => {
                result.push(byte);
                at += 3;
            }
            None => {
                result.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&result).into_owned()
}

/// JSON of anything.
pub fn json<T: serde::Serialize>(value: &T) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => typed(StatusCode::OK, "application/json", Bytes::from(bytes)),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn pods(kubelet: &Kubelet) -> Answer {
    let pods = kubelet.pods.list();
    let items: Vec<&Pod> = pods.iter().map(|p| &**p).collect();
    json(&serde_json::json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items }))
}

fn configz(kubelet: &Kubelet) -> Answer {
    let options = &kubelet.options;
    json(&serde_json::json!({ "kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "clusterDomain": options.cluster_domain,
        "clusterDNS": options.cluster_dns,
        "maxPods": options.flags.max_pods,
        "port": options.flags.port,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": options.runtime,
        "systemReserved": options.reserved,
        "podPidsLimit": -1,
        "containerLogMaxSize": "10Mi",
        "containerLogMaxFiles": 3,
    }}))
}

/// The pod of a request.
pub fn find(kubelet: &Kubelet, namespace: &str, name: &str) -> Result<Arc<Pod>, Box<Answer>> {
    kubelet.pods.find(namespace, name).ok_or_else(|| {
        let sentence = format!("pod \"{name}\" not found in namespace \"{namespace}\" on this node\n");
        Box::new(text(StatusCode::NOT_FOUND, sentence))
    })
}

/// The running container of a request.
pub async fn running(kubelet: &Kubelet, pod: &Pod, container: &str) -> Result<String, Answer> {
    let Some(cri) = &kubelet.cri else {
        return Err(text(StatusCode::NOT_FOUND, "this node has no container runtime\n"));
    };
    if spec::find(pod, container).is_none() {
        let sentence = format!("container {container} is not valid for pod {}\n", spec::name(pod));
        return Err(text(StatusCode::NOT_FOUND, sentence));
    }
    let seen = crate::pods::observed::observe(cri, spec::uid(pod))
        .await
        .map_err(|e| text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")))?;
    match seen.latest(container) {
        Some(found) if found.state == crate::pods::observed::State::Running => Ok(found.id.clone()),
        _ => Err(text(StatusCode::NOT_FOUND, format!("container not found (\"{container}\"): it does not run\n"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("command=sh&command=-c&command=echo%20a%2Bb&tty=1&input=false&x");
        assert_eq!(query.all("command"), ["sh", "-c", "echo a+b"]);
        assert!(query.flag("tty") && !query.flag("input") && !query.flag("none"));
        assert_eq!(query.get("x"), Some(""));
        assert_eq!(decode("%zz+"), "%zz ");
    }
}
