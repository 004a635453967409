//! The client's side of an upgrade: which protocol it wants, and the 101 that grants it.

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{HeaderMap, Response, StatusCode};

use super::websocket;
use crate::error::{ApiError, Result};
use crate::pipeline::{Body, full};

/// How the client wants to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// With its `Sec-WebSocket-Key` and the subprotocols it offers.
    WebSocket { key: String, protocols: Vec<String> },
    /// With the stream protocol versions it offers.
    Spdy { protocols: Vec<String> },
}

fn listed(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(|p| p.trim().to_string()).filter(|p| !p.is_empty()).collect()
}

/// Reads the request's wish; 400 where it wants no upgrade.
pub fn wanted(headers: &HeaderMap) -> Result<Wanted> {
    let upgrade = headers.get(UPGRADE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_ascii_lowercase();
    let connection = listed(headers, "connection").iter().any(|c| c.eq_ignore_ascii_case("upgrade"));
    if connection && upgrade == "websocket" {
        let key = headers.get("sec-websocket-key").and_then(|v| v.to_str().ok());
        let key = key.ok_or_else(|| ApiError::bad_request("a WebSocket upgrade needs the header Sec-WebSocket-Key"))?;
        return Ok(Wanted::WebSocket { key: key.to_string(), protocols: listed(headers, "sec-websocket-protocol") });
    }
    if connection && upgrade == "spdy/3.1" {
        return Ok(Wanted::Spdy { protocols: listed(headers, "x-stream-protocol-version") });
    }
    Err(ApiError::bad_request("Upgrade request required"))
}

/// The first of `known` that the client offers; an empty offer means the last of them.
pub fn choose<'a>(offered: &[String], known: &[&'a str]) -> Option<&'a str> {
    if offered.is_empty() {
        return known.last().copied();
    }
    known.iter().copied().find(|k| offered.iter().any(|o| o == k))
}

fn switching() -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response
}

/// The 101 of a WebSocket.
pub fn accept_websocket(key: &str, protocol: Option<&'static str>) -> Result<Response<Body>> {
    let mut response = switching();
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(
        "sec-websocket-accept",
        HeaderValue::from_str(&websocket::accept_key(key)).map_err(ApiError::internal)?,
    );
    if let Some(protocol) = protocol {
        headers.insert("sec-websocket-protocol", HeaderValue::from_static(protocol));
    }
    Ok(response)
}

/// The 101 of SPDY.
pub fn accept_spdy(protocol: &'static str) -> Response<Body> {
    let mut response = switching();
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
    if !protocol.is_empty() {
        response.headers_mut().insert("x-stream-protocol-version", HeaderValue::from_static(protocol));
    }
    response
}

/// The 403 that names what this server speaks.
pub fn no_common_protocol(offered: &[String], known: &[&str]) -> ApiError {
    ApiError::new(
        403,
        "Forbidden",
        format!(
            "unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (k, v) in pairs {
            map.append(*k, v.parse().expect("value"));
        }
        map
    }

    #[test]
    fn wishes() {
        let ws = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-key", "k"),
            ("sec-websocket-protocol", "a, b"),
        ]);
        assert_eq!(
            wanted(&ws).ok(),
            Some(Wanted::WebSocket { key: "k".into(), protocols: vec!["a".into(), "b".into()] })
        );
        let spdy = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4"),
            ("x-stream-protocol-version", "v3"),
        ]);
        assert_eq!(wanted(&spdy).ok(), Some(Wanted::Spdy { protocols: vec!["v4".into(), "v3".into()] }));
        assert_eq!(wanted(&headers(&[])).expect_err("none").code, 400);
        assert_eq!(choose(&["b".into(), "a".into()], &["a", "b"]), Some("a"));
        assert_eq!(choose(&[], &["a", "b"]), Some("b"));
        assert_eq!(choose(&["c".into()], &["a"]), None);
    }
}
