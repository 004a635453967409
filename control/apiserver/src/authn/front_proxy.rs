//! Identity by X-Remote-* headers, for callers that hold a front-proxy certificate.

use http::HeaderMap;

use super::impersonation::{extra, texts};
use crate::error::Result;
use crate::request::UserInfo;

const USER: &str = "x-remote-user";
const UID: &str = "x-remote-uid";
const GROUP: &str = "x-remote-group";
const EXTRA: &str = "x-remote-extra-";

/// The user the headers name; None without a user header.
pub fn user(headers: &HeaderMap) -> Result<Option<UserInfo>> {
    let first = |name| -> Result<String> { Ok(texts(headers, name)?.into_iter().next().unwrap_or_default()) };
    let name = first(USER)?;
    if name.is_empty() {
        return Ok(None);
    }
    let mut user = UserInfo::authenticated(name, texts(headers, GROUP)?);
    user.uid = first(UID)?;
    user.extra = extra(headers, EXTRA)?;
    Ok(Some(user))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_all_headers() {
        let mut headers = HeaderMap::new();
        assert!(user(&headers).expect("readable").is_none());
        headers.insert(USER, "joe".parse().expect("value"));
        headers.append(GROUP, "a".parse().expect("value"));
        headers.append(GROUP, "b".parse().expect("value"));
        headers.append("x-remote-extra-example.org%2fscope", "x".parse().expect("value"));
        let user = user(&headers).expect("readable").expect("user");
        assert!(user.in_group("a") && user.in_group("b") && user.in_group("system:authenticated"));
        assert_eq!(user.extra_first("example.org/scope"), Some("x"));
    }
}
