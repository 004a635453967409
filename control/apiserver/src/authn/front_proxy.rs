//! Identity by X-Remote-* headers, for callers that hold a front-proxy certificate.

use http::HeaderMap;

use crate::request::UserInfo;

const USER: &str = "x-remote-user";
const UID: &str = "x-remote-uid";
const GROUP: &str = "x-remote-group";
const EXTRA: &str = "x-remote-extra-";

/// The user the headers name; None without a user header.
pub fn user(headers: &HeaderMap) -> Option<UserInfo> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let name = text(USER);
    if name.is_empty() {
        return None;
    }
    let groups = headers.get_all(GROUP).iter().filter_map(|v| v.to_str().ok()).map(str::to_string);
    let mut user = UserInfo::authenticated(name, groups);
    user.uid = text(UID).to_string();
    user.extra = super::impersonation::extra(headers, EXTRA);
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_all_headers() {
        let mut headers = HeaderMap::new();
        assert!(user(&headers).is_none());
        headers.insert(USER, "joe".parse().expect("value"));
        headers.append(GROUP, "a".parse().expect("value"));
        headers.append(GROUP, "b".parse().expect("value"));
        headers.append("x-remote-extra-example.org%2fscope", "x".parse().expect("value"));
        let user = user(&headers).expect("user");
        assert!(user.in_group("a") && user.in_group("b") && user.in_group("system:authenticated"));
        assert_eq!(user.extra_first("example.org/scope"), Some("x"));
    }
}
