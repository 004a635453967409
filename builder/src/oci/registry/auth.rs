//! What a registry asks for before it answers: nothing, a password, or a token from a server that it names
//! (distribution's token authentication and its OAuth2 form).

use super::credentials::Credentials;
use crate::web::{Client, Request, escape, trust};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// A challenge: scheme and parameters of `WWW-Authenticate` (RFC 9110).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token.
    Bearer(BTreeMap<String, String>),
}

impl Challenge {
    /// Reads the header.
    pub fn parse(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = BTreeMap::new();
        let mut rest = rest.trim();
        while let Some((name, after)) = rest.split_once('=') {
            let (value, tail) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_at(after.find(',').unwrap_or(after.len())),
            };
            parameters.insert(name.trim().to_ascii_lowercase(), value.to_string());
            rest = tail.trim_start_matches([',', ' ']);
        }
        Some(Challenge::Bearer(parameters))
    }
}

/// Gets the value of the `Authorization` header that answers a challenge.
pub fn answer(
    client: &Client,
    authority: &str,
    challenge: &Challenge,
    scopes: &[String],
    credentials: Option<&Credentials>,
) -> Result<String> {
    let parameters = match challenge {
        Challenge::Basic => {
            let known = credentials.and_then(Credentials::basic);
            return known.with_context(|| super::no_credentials(authority));
        }
        Challenge::Bearer(parameters) => parameters,
    };
    let realm = parameters.get("realm").with_context(|| format!("{authority} names no token server"))?;
    check_realm(authority, realm)?;
    let service = parameters.get("service").map_or("", String::as_str);
    let request = match credentials {
        Some(Credentials::Identity(token)) => {
            let scope = scopes.join(" ");
            let fields = [
                ("grant_type", "refresh_token"),
                ("service", service),
                ("client_id", "kimg"),
                ("scope", &scope),
                ("refresh_token", token),
            ];
            let form: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={}", escape(v, true))).collect();
            Request::post(realm)
                .bytes("application/x-www-form-urlencoded", form.join("&"))
                .repeatable(true)
                .hiding(false, true)
        }
        _ => {
            let mut query: Vec<String> = scopes.iter().map(|s| format!("scope={}", escape(s, true))).collect();
            if !service.is_empty() {
                query.insert(0, format!("service={}", escape(service, true)));
            }
            let mark = if realm.contains('?') { '&' } else { '?' };
            let mut request = Request::get(format!("{realm}{mark}{}", query.join("&")));
            if let Some(basic) = credentials.and_then(Credentials::basic) {
                request = request.secret("authorization", basic);
            }
            request
        }
    };
    let answer = client.send(&request)?;
    if matches!(answer.status, 401 | 403) {
        let refused = answer.refused();
        return Err(match credentials {
            None => anyhow::Error::new(refused).context(super::no_credentials(authority)),
            Some(_) => anyhow::Error::new(refused).context(format!("{authority} does not accept the credentials")),
        });
    }
    let body = answer.expect(&[200])?.json()?;
    let token = body["token"].as_str().or(body["access_token"].as_str());
    Ok(format!("Bearer {}", token.with_context(|| format!("the answer to {} holds no token", request.shown()))?))
}

/// A password goes over plain HTTP to this machine only.
fn check_realm(authority: &str, realm: &str) -> Result<()> {
    if trust::is_safe(realm) {
        return Ok(());
    }
    bail!("{authority} names a token server without TLS, {realm}; kimg shows it no password")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let header =
            r#"Bearer realm="https://a.example/token?x=1",service="r, e",scope="repository:a:pull,push",error=x"#;
        let Some(Challenge::Bearer(parameters)) = Challenge::parse(header) else { panic!("{header}") };
        assert_eq!(parameters["realm"], "https://a.example/token?x=1");
        assert_eq!(parameters["service"], "r, e");
        assert_eq!(parameters["scope"], "repository:a:pull,push");
        assert_eq!(parameters["error"], "x");
        assert_eq!(Challenge::parse("basic realm=x"), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
    }

    #[test]
    fn no_password_goes_out_in_clear() {
        check_realm("r", "https://a.example/token").unwrap();
        check_realm("r", "http://127.0.0.1:5001/token").unwrap();
        assert!(check_realm("r", "http://a.example/token").is_err());
        assert!(check_realm("r", "http://localhost.a.example/token").is_err());
        assert!(check_realm("r", "http://localhost@a.example/token").is_err());
    }
}
