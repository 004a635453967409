//! `metrics.k8s.io` of another server: where an APIService names a Service, requests go there and not to [`crate::usage`].
//!
//! The other server knows by the front-proxy certificate that it is this one that asks, and by headers for whom.
//! What is passed on is marked, so that an APIService that leads back here is seen.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{LOCATION, VIA};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use hyper::body::Incoming;
use serde_json::Value;

use super::backend::{Target, escape};
use super::{proxy, tls};
use crate::authn::view::str_at;
use crate::error::{ApiError, Result};
use crate::pipeline::Body;
use crate::request::{RequestInfo, UserInfo, decode};
use crate::state::AppState;

/// Port of a Service that the APIService does not name.
const PORT: u64 = 443;
/// Who passed a request on (RFC 9110, 7.6.3).
const OWN_VIA: &str = "1.1 kube-apiserver";

/// The APIService that gives the request's group and version to a Service.
pub fn service(state: &AppState, info: &RequestInfo) -> Option<Value> {
    if info.group != api::usage::GROUP || !reads_as_authorized(info) {
        return None;
    }
    let name = format!("{}.{}", info.version, info.group);
    let object = state.registry.get("apiregistration.k8s.io", "apiservices", "", &name)?;
    Some(object.value()).filter(|service| service["spec"]["service"].is_object())
}

/// Whether another server will read the path as it was read here: what was authorised must be what is asked there.
fn reads_as_authorized(info: &RequestInfo) -> bool {
    let path = info.path.strip_suffix('/').unwrap_or(&info.path);
    if !info.is_resource {
        return !info.version.is_empty() && path == format!("/apis/{}/{}", info.group, info.version);
    }
    path.split('/').skip(1).map(|part| decode(part, false)).all(|part| {
        let steps = part.is_empty() || part == "." || part == "..";
        !steps && !part.contains('/')
    })
}

/// Passes a request on; authorisation has been done here, and is done there once more.
pub async fn pass(
    state: &AppState,
    service: &Value,
    user: &UserInfo,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    if request.headers().get_all(VIA).iter().any(|via| via.to_str().is_ok_and(|via| via.contains(OWN_VIA))) {
        return Err(ApiError::unavailable(format!(
            "the service {:?} of APIService {} leads back to this API server; name the service of the server that answers for it",
            str_at(service, "/spec/service/name"),
            str_at(service, "/metadata/name")
        )));
    }
    let target = target(state, service)?;
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_string();
    let mut own = identity(user)?;
    own.insert(VIA, HeaderValue::from_static(OWN_VIA));
    let response = proxy::pass(&target, "", &path, request, own).await?;
    // A client would follow with the credentials that it has for this server (upstream: RejectForwardingRedirects).
    if response.status().is_redirection() && response.headers().contains_key(LOCATION) {
        let what = "the backend attempted to redirect this request, which is not permitted";
        return Err(ApiError::new(502, "InternalError", what));
    }
    Ok(response)
}

fn target(state: &AppState, service: &Value) -> Result<Target> {
    let (namespace, name) = (str_at(service, "/spec/service/namespace"), str_at(service, "/spec/service/name"));
    let port = service["spec"]["service"]["port"].as_u64().unwrap_or(PORT);
    let (ip, port) = proxy::endpoint(state, namespace, name, &port.to_string())?;
    let ip = ip.parse().map_err(|_| ApiError::unavailable(format!("service {name:?} has the endpoint {ip:?}")))?;
    if !proxy::is_allowed(ip) {
        return Err(ApiError::unavailable(format!("service {name:?} has an endpoint that is not allowed: {ip}")));
    }
    let authority = match str_at(service, "/spec/caBundle") {
        "" => None,
        text => Some(STANDARD.decode(text).map_err(|e| ApiError::unavailable(format!("its caBundle: {e}")))?),
    };
    let insecure = service["spec"]["insecureSkipTLSVerify"] == true;
    let tls = tls::aggregated(&state.config, authority.as_deref(), insecure)
        .map_err(|e| ApiError::unavailable(format!("APIService {}: {e:#}", str_at(service, "/metadata/name"))))?;
    Ok(Target { host: format!("{name}.{namespace}.svc"), port, tls: Some(tls), ips: vec![ip] })
}

/// Who asks, in headers.
fn identity(user: &UserInfo) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    let mut add = |name: &str, value: &str| {
        let failed = || ApiError::bad_request(format!("{name} of the user cannot be passed on"));
        let name = HeaderName::try_from(name).map_err(|_| failed())?;
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| failed())?);
        Ok::<(), ApiError>(())
    };
    add("x-remote-user", &user.name)?;
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid)?;
    }
    for group in &user.groups {
        add("x-remote-group", group)?;
    }
    for (key, values) in &user.extra {
        for value in values {
            add(&format!("x-remote-extra-{}", escape(key)), value)?;
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn only_what_was_authorized_is_passed_on() {
        for (path, passed) in [
            ("/apis/metrics.k8s.io/v1beta1", true),
            ("/apis/metrics.k8s.io/v1beta1/", true),
            ("/apis/metrics.k8s.io/v1beta1/pods", true),
            ("/apis/metrics.k8s.io/v1beta1/namespaces/a/pods/x", true),
            ("/apis/metrics.k8s.io/v1beta1//", false),
            ("/apis/metrics.k8s.io/v1beta1//pods", false),
            ("/apis/metrics.k8s.io/v1beta1/watch/", false),
            ("/apis/metrics.k8s.io/v1beta1/watch//pods", false),
            ("/apis/metrics.k8s.io//v1beta1/pods", false),
            ("//apis/metrics.k8s.io/v1beta1/pods", false),
            ("/apis/metrics%2Ek8s.io/v1beta1", false),
            ("/apis/metrics.k8s.io/v1beta1/namespaces/a/../b/pods", false),
            ("/apis/metrics.k8s.io/v1beta1/namespaces/a/%2e%2E/pods", false),
            ("/apis/metrics.k8s.io/v1beta1/namespaces/a%2Fpods", false),
            ("/apis/metrics.k8s.io", false),
        ] {
            let info = RequestInfo::parse(&Method::GET, path, "");
            assert_eq!(reads_as_authorized(&info), passed, "{path}");
        }
    }

    #[test]
    fn users_are_told_in_headers() {
        let extra = [("example.com/scope".to_string(), vec!["a".to_string(), "b".into()])].into();
        let groups = vec!["dev".into(), "system:authenticated".into()];
        let user = UserInfo { name: "jörg".into(), uid: "7".into(), groups, extra };
        let headers = identity(&user).unwrap();
        assert_eq!(headers["x-remote-user"].as_bytes(), "jörg".as_bytes());
        assert_eq!(headers["x-remote-uid"], "7");
        let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("x-remote-group"), ["dev", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2fscope"), ["a", "b"]);
        assert!(identity(&UserInfo { name: "a\nx-remote-group: system:masters".into(), ..user }).is_err());
    }
}
