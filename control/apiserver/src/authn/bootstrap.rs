//! Bootstrap tokens: `id.secret`, kept in Secrets of kube-system.

use base64::Engine as _;
use serde_json::Value;

use super::AuthnError;
use super::view::{ClusterView, SECRETS, str_at};
use crate::request::UserInfo;

const GROUP_PREFIX: &str = "system:bootstrappers";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";

/// Splits a token of the form `[a-z0-9]{6}.[a-z0-9]{16}`.
pub fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

/// The user `system:bootstrap:ID`, when the token's Secret exists, is in date and allows authentication.
pub fn authenticate(view: &dyn ClusterView, id: &str, secret: &str, now: i64) -> Result<UserInfo, AuthnError> {
    let refused = |why: &str| AuthnError::refused(format!("bootstrap token {id:?} {why}"));
    let object = view
        .get(SECRETS, "kube-system", &format!("bootstrap-token-{id}"))
        .ok_or_else(|| AuthnError::not_known_yet(format!("bootstrap token {id:?} is unknown")))?;
    if str_at(&object, "/type") != SECRET_TYPE || object.pointer("/metadata/deletionTimestamp").is_some() {
        return Err(refused("is unknown"));
    }
    let held = data(&object, "token-secret");
    if data(&object, "token-id") != id || !constant_time_eq(held.as_bytes(), secret.as_bytes()) {
        return Err(refused("has another secret"));
    }
    if expired(&data(&object, "expiration"), now) {
        return Err(refused("has expired"));
    }
    if data(&object, "usage-bootstrap-authentication") != "true" {
        return Err(refused("may not be used for authentication"));
    }
    let mut groups = vec![GROUP_PREFIX.to_string()];
    for group in data(&object, "auth-extra-groups").split(',').map(str::trim).filter(|g| !g.is_empty()) {
        if !group.starts_with("system:bootstrappers:") {
            return Err(refused("names a group outside system:bootstrappers:"));
        }
        groups.push(group.to_string());
    }
    Ok(UserInfo::authenticated(format!("system:bootstrap:{id}"), groups))
}

/// No date means no end; an unreadable one means ended.
fn expired(date: &str, now: i64) -> bool {
    !date.is_empty() && date.parse::<jiff::Timestamp>().map(|t| t.as_second() <= now).unwrap_or(true)
}

fn data(secret: &Value, key: &str) -> String {
    let encoded = secret.get("data").and_then(|d| d.get(key)).and_then(Value::as_str).unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
    String::from_utf8(bytes).unwrap_or_default()
}

fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::super::view::fake::FakeView;
    use super::*;
    use serde_json::json;

    fn put(view: &FakeView, fields: &[(&str, &str)]) {
        let mut data = serde_json::Map::new();
        let base =
            [("token-id", "abcdef"), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-authentication", "true")];
        for (k, v) in base.iter().chain(fields) {
            data.insert(k.to_string(), json!(base64::engine::general_purpose::STANDARD.encode(v)));
        }
        view.put(
            SECRETS,
            json!({"metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef"}, "type": SECRET_TYPE, "data": data}),
        );
    }

    #[test]
    fn token_forms() {
        for (token, ok) in [
            ("abcdef.0123456789abcdef", true),
            ("ABCDEF.0123456789abcdef", false),
            ("abcdef.0123456789abcde", false),
            ("abcdef0123456789abcdef", false),
        ] {
            assert_eq!(parse(token).is_some(), ok, "{token}");
        }
    }

    #[test]
    fn only_a_good_token_counts() {
        let view = FakeView::default();
        let auth = |secret: &str| authenticate(&view, "abcdef", secret, 1_800_000_000);
        assert!(auth("0123456789abcdef").is_err(), "unknown");
        put(&view, &[("auth-extra-groups", "system:bootstrappers:workers")]);
        let user = auth("0123456789abcdef").expect("good");
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert!(user.in_group("system:bootstrappers") && user.in_group("system:bootstrappers:workers"));
        assert!(auth("fffffffffffffff0").is_err());
        put(&view, &[("expiration", "2020-01-01T00:00:00Z")]);
        assert!(auth("0123456789abcdef").is_err(), "expired");
        put(&view, &[("usage-bootstrap-authentication", "false")]);
        assert!(auth("0123456789abcdef").is_err(), "usage");
        put(&view, &[("auth-extra-groups", "system:masters")]);
        assert!(auth("0123456789abcdef").is_err(), "group");
    }
}
