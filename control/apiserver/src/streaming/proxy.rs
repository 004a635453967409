//! `pods/proxy`, `services/proxy` and `nodes/proxy`: HTTP passed through, upgrades included.

use std::net::IpAddr;

use http::header::{CONNECTION, HeaderValue, LOCATION, UPGRADE};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rand::seq::IndexedRandom;
use serde_json::Value;

use super::backend::{self, Target};
use super::target;
use crate::authn::view::{items_at, str_at};
use crate::error::{ApiError, Result};
use crate::pipeline::{Body, full};
use crate::request::RequestInfo;
use crate::state::AppState;

/// `[scheme:]name[:port]`.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    https: bool,
    name: &'a str,
    port: &'a str,
}

fn parse_name(text: &str) -> Result<Name<'_>> {
    let parts: Vec<&str> = text.split(':').collect();
    let (scheme, name, port) = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme, name, port] => (*scheme, *name, *port),
        _ => return Err(ApiError::bad_request(format!("invalid name {text:?}: expected [scheme:]name[:port]"))),
    };
    if !matches!(scheme, "" | "http" | "https") || name.is_empty() {
        return Err(ApiError::bad_request(format!("invalid name {text:?}: the scheme must be http or https")));
    }
    Ok(Name { https: scheme == "https", name, port })
}

/// Answers a proxied request.
pub async fn handle(state: &AppState, info: &RequestInfo, request: Request<Incoming>) -> Result<Response<Body>> {
    let prefix = own_prefix(info);
    if info.rest.is_empty()
        && !info.path.ends_with('/')
        && request.method() == http::Method::GET
        && request.headers().get(UPGRADE).is_none()
    {
        return redirect(&prefix, request.uri());
    }
    let target = looked_up(locate(state, info)?).await?;
    let path = format!("/{}", info.rest);
    let path = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    pass(&target, &prefix, &path, request, HeaderMap::new()).await
}

fn own_prefix(info: &RequestInfo) -> String {
    let place = if info.namespace.is_empty() { String::new() } else { format!("namespaces/{}/", info.namespace) };
    format!("/api/v1/{place}{}/{}/proxy", info.resource, info.name)
}

/// Relative links need the slash.
fn redirect(prefix: &str, uri: &Uri) -> Result<Response<Body>> {
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let place = HeaderValue::from_str(&format!("{prefix}/{query}")).map_err(ApiError::internal)?;
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    response.headers_mut().insert(LOCATION, place);
    Ok(response)
}

fn locate(state: &AppState, info: &RequestInfo) -> Result<Target> {
    let name = parse_name(&info.name)?;
    let tls = name.https.then(|| state.streaming.any_tls.clone());
    match info.resource.as_str() {
        "nodes" => {
            let mut target = backend::kubelet(state, name.name)?;
            if let Ok(port) = name.port.parse::<u16>()
                && port != target.port
            {
                target = Target { port, tls, ..target };
            }
            Ok(target)
        }
        "pods" => {
            let pod = target::pod(state, info, name.name)?;
            let host = str_at(&pod, "/status/podIP").to_string();
            if host.is_empty() {
                return Err(ApiError::bad_request(format!(
                    "address not allowed: pod {:?} has no address yet",
                    name.name
                )));
            }
            Ok(Target { host, port: pod_port(&pod, name.port)?, tls, ips: Vec::new() })
        }
        _ => {
            let (host, port) = endpoint(state, &info.namespace, name.name, name.port)?;
            Ok(Target { host, port, tls, ips: Vec::new() })
        }
    }
}

/// Who can write a node's or a pod's status must not reach this server's own ports, or its network's, by it.
async fn looked_up(target: Target) -> Result<Target> {
    let ips: Vec<IpAddr> = match target.host.parse() {
        Ok(ip) => vec![ip],
        Err(_) => {
            let place = target.authority();
            let failed =
                |e: &dyn std::fmt::Display| ApiError::unavailable(format!("error trying to reach {place}: {e}"));
            let lookup = tokio::net::lookup_host((target.host.as_str(), target.port));
            let found = tokio::time::timeout(backend::CONNECT_TIMEOUT, lookup).await;
            let found = found.map_err(|_| failed(&"its name was not found within 10 s"))?;
            found.map_err(|e| failed(&e))?.map(|address| address.ip()).collect()
        }
    };
    if ips.is_empty() || !ips.iter().all(|ip| is_allowed(*ip)) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    Ok(Target { ips, ..target })
}

pub(super) fn is_allowed(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

fn pod_port(pod: &Value, asked: &str) -> Result<u16> {
    if let Ok(port) = asked.parse() {
        return Ok(port);
    }
    let ports = || items_at(pod, "/spec/containers").iter().flat_map(|c| items_at(c, "/ports"));
    let found = if asked.is_empty() { ports().next() } else { ports().find(|p| str_at(p, "/name") == asked) };
    let number = found.and_then(|p| p["containerPort"].as_u64()).and_then(|p| u16::try_from(p).ok());
    match (number, asked.is_empty()) {
        (Some(port), _) => Ok(port),
        (None, true) => Ok(80),
        (None, false) => Err(ApiError::bad_request(format!("the pod has no port named {asked:?}"))),
    }
}

/// A ready endpoint of the service, any one.
pub(super) fn endpoint(state: &AppState, namespace: &str, name: &str, port: &str) -> Result<(String, u16)> {
    let service = state.registry.get("", "services", namespace, name);
    let service = service.ok_or_else(|| ApiError::not_found("", "services", name))?.value();
    let asked = port;
    let port = service_port(&service, asked)?;
    let mut found = Vec::new();
    for slice in state.registry.list("discovery.k8s.io", "endpointslices", Some(namespace)) {
        if slice.label("kubernetes.io/service-name") == Some(name) {
            endpoints_of(&slice.value(), &port, &mut found);
        }
    }
    found.choose(&mut rand::rng()).cloned().ok_or_else(|| {
        let what = if asked.is_empty() { format!("{name:?}") } else { format!("\"{name}:{asked}\"") };
        ApiError::unavailable(format!("no endpoints available for service {what}"))
    })
}

/// The name (maybe empty) of the service's port that was asked for by name or number.
fn service_port(service: &Value, asked: &str) -> Result<String> {
    let ports = items_at(service, "/spec/ports");
    let number = asked.parse::<u64>().ok();
    let found = match asked {
        "" if ports.len() == 1 => ports.first(),
        // Several ports and no word which: the one without a name, as upstream looks it up.
        "" => ports.iter().find(|p| str_at(p, "/name").is_empty()),
        _ => ports.iter().find(|p| str_at(p, "/name") == asked || number.is_some() && p["port"].as_u64() == number),
    };
    let found = found.ok_or_else(|| {
        ApiError::unavailable(format!(
            "no service port {asked:?} found for service {:?}",
            str_at(service, "/metadata/name")
        ))
    })?;
    Ok(str_at(found, "/name").to_string())
}

fn endpoints_of(slice: &Value, port: &str, found: &mut Vec<(String, u16)>) {
    let number = items_at(slice, "/ports").iter().find(|p| str_at(p, "/name") == port).and_then(|p| p["port"].as_u64());
    let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { return };
    for endpoint in items_at(slice, "/endpoints") {
        if endpoint.pointer("/conditions/ready").and_then(Value::as_bool) == Some(false) {
            continue;
        }
        found.extend(
            items_at(endpoint, "/addresses").iter().filter_map(Value::as_str).take(1).map(|a| (a.to_string(), number)),
        );
    }
}

/// Passes a request on to `path` of the target, with headers of our own.
pub(super) async fn pass(
    target: &Target,
    prefix: &str,
    path: &str,
    mut request: Request<Incoming>,
    own: HeaderMap,
) -> Result<Response<Body>> {
    let upgrade = request.headers().get(UPGRADE).cloned();
    let upgraded = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let original_host = parts.headers.get(http::header::HOST).cloned();
    backend::strip(&mut parts.headers);
    parts.headers.extend(own);
    parts.uri = path.parse().map_err(|e| ApiError::bad_request(format!("the path {path:?} cannot be proxied: {e}")))?;
    parts.version = http::Version::HTTP_11;
    parts.extensions.clear();
    if let Some(host) = original_host {
        parts.headers.insert("x-forwarded-host", host);
    }
    parts
        .headers
        .insert("x-forwarded-uri", HeaderValue::from_str(&format!("{prefix}{path}")).map_err(ApiError::internal)?);
    parts.headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
    if let Some(upgrade) = upgrade {
        parts.headers.insert(UPGRADE, upgrade);
        parts.headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    }
    let mut response = backend::send(target, Request::from_parts(parts, body)).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = upgraded else { return Err(ApiError::internal("the backend switched protocols unasked")) };
        let backend = hyper::upgrade::on(&mut response);
        tokio::spawn(bridge(client, backend));
        return Ok(backend::body_of(response));
    }
    rewrite_location(target, prefix, response.headers_mut());
    backend::strip(response.headers_mut());
    Ok(backend::body_of(response))
}

async fn bridge(client: hyper::upgrade::OnUpgrade, backend: hyper::upgrade::OnUpgrade) {
    match tokio::try_join!(client, backend) {
        Ok((client, backend)) => {
            let copied = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await;
            if let Err(e) = copied {
                tracing::debug!("proxied connection ended: {e}");
            }
        }
        Err(e) => tracing::debug!("proxied upgrade failed: {e}"),
    }
}

/// A redirect within the backend stays below the proxy's path.
fn rewrite_location(target: &Target, prefix: &str, headers: &mut HeaderMap) {
    let Some(uri) = headers.get(LOCATION).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<Uri>().ok()) else {
        return;
    };
    let own = uri
        .authority()
        .is_none_or(|a| a.as_str() == target.authority() || a.host() == target.host && a.port().is_none());
    let Some(path) = uri.path_and_query().map(|p| p.as_str()).filter(|p| own && p.starts_with('/')) else { return };
    if let Ok(value) = HeaderValue::from_str(&format!("{prefix}{path}")) {
        headers.insert(LOCATION, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names() {
        assert_eq!(parse_name("a").ok(), Some(Name { https: false, name: "a", port: "" }));
        assert_eq!(parse_name("a:80").ok(), Some(Name { https: false, name: "a", port: "80" }));
        assert_eq!(parse_name("https:a:web").ok(), Some(Name { https: true, name: "a", port: "web" }));
        assert_eq!(parse_name("https:a:").ok(), Some(Name { https: true, name: "a", port: "" }));
        for bad in ["ftp:a:1", ":", "a:b:c:d"] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_addresses_of_others() {
        for good in ["10.0.0.1", "192.0.2.7", "fd00::1", "2001:db8::1"] {
            assert!(is_allowed(good.parse().expect("ip")), "{good}");
        }
        for bad in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            assert!(!is_allowed(bad.parse().expect("ip")), "{bad}");
        }
    }

    #[tokio::test]
    async fn names_are_checked_by_their_addresses() {
        let target = |host: &str| Target { host: host.into(), port: 80, tls: None, ips: Vec::new() };
        let good = looked_up(target("10.0.0.1")).await.expect("allowed");
        assert_eq!(good.ips, ["10.0.0.1".parse::<IpAddr>().expect("ip")]);
        for bad in ["localhost", "127.0.0.1"] {
            assert_eq!(looked_up(target(bad)).await.map(|t| t.ips).expect_err(bad).code, 400, "{bad}");
        }
        assert_eq!(looked_up(target("node.invalid")).await.map(|t| t.ips).expect_err("no such host").code, 503);
    }

    #[test]
    fn only_ready_endpoints() {
        let slice = json!({"ports": [{"name": "web", "port": 8080}], "endpoints": [
            {"addresses": ["10.0.0.1"], "conditions": {"ready": true}}, {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]});
        let mut found = Vec::new();
        endpoints_of(&slice, "web", &mut found);
        endpoints_of(&slice, "other", &mut found);
        assert_eq!(found, [("10.0.0.1".to_string(), 8080)]);
        let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"name": "web", "port": 80}]}});
        assert_eq!(service_port(&service, "80").ok().as_deref(), Some("web"));
        assert_eq!(service_port(&service, "").ok().as_deref(), Some("web"));
        assert!(service_port(&service, "81").is_err());
    }

    #[test]
    fn redirects_stay_inside() {
        let target = Target { host: "10.0.0.1".into(), port: 80, tls: None, ips: Vec::new() };
        for (from, to) in
            [("/x", "/p/x"), ("http://10.0.0.1:80/x?y", "/p/x?y"), ("http://elsewhere/x", "http://elsewhere/x")]
        {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, from.parse().expect("value"));
            rewrite_location(&target, "/p", &mut headers);
            assert_eq!(headers[LOCATION], to);
        }
    }
}
