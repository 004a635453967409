//! Acting as somebody else: the Impersonate-* headers, each part of them authorised.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue};

use super::user::{GROUP_AUTHENTICATED, GROUP_UNAUTHENTICATED, USER_ANONYMOUS};
use crate::authz::Query;
use crate::error::{ApiError, Result};
use crate::request::{UserInfo, decode};

const USER: &str = "impersonate-user";
const UID: &str = "impersonate-uid";
const GROUP: &str = "impersonate-group";
const EXTRA: &str = "impersonate-extra-";

/// What the headers ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A header that names somebody. One that cannot be read is refused, never taken for one that is not there: the
/// request would go on with the rights of who sent it.
pub fn text(name: &str, value: &HeaderValue) -> Result<String> {
    let text = std::str::from_utf8(value.as_bytes());
    text.map(str::to_string).map_err(|_| ApiError::bad_request(format!("the header {name} is not UTF-8")))
}

/// The values of a header, in order.
pub fn texts(headers: &HeaderMap, name: &str) -> Result<Vec<String>> {
    headers.get_all(name).iter().map(|value| text(name, value)).collect()
}

/// Headers `prefix + key`, the key percent-decoded and in lower case.
pub fn extra(headers: &HeaderMap, prefix: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix(prefix) {
            out.entry(decode(key, false).to_ascii_lowercase()).or_default().push(text(name.as_str(), value)?);
        }
    }
    Ok(out)
}

/// Reads the headers; None when there are none.
pub fn wish(headers: &HeaderMap) -> Result<Option<Wish>> {
    let first = |name| headers.get(name).map(|value| text(name, value)).transpose().map(Option::unwrap_or_default);
    let groups = texts(headers, GROUP)?;
    let wish = Wish { user: first(USER)?, uid: first(UID)?, groups, extra: extra(headers, EXTRA)? };
    if !wish.user.is_empty() {
        return Ok(Some(wish));
    }
    if wish == Wish::default() {
        return Ok(None);
    }
    let Wish { uid, groups, extra, .. } = &wish;
    Err(ApiError::bad_request(format!(
        "requested groups {groups:?}, uid {uid:?}, extra {extra:?} without impersonating a user name"
    )))
}

impl Wish {
    /// The permissions (verb impersonate) that this needs: all of them.
    pub fn queries<'a>(&'a self, by: &'a UserInfo) -> Vec<Query<'a>> {
        let base = Query { user: by, verb: "impersonate", version: "v1", is_resource: true, ..Query::empty(by) };
        let mut out = Vec::new();
        match service_account(&self.user) {
            Some((namespace, name)) => out.push(Query { resource: "serviceaccounts", namespace, name, ..base }),
            None => out.push(Query { resource: "users", name: &self.user, ..base }),
        }
        out.extend(self.groups.iter().map(|g| Query { resource: "groups", name: g, ..base }));
        let authn = Query { group: "authentication.k8s.io", ..base };
        if !self.uid.is_empty() {
            out.push(Query { resource: "uids", name: &self.uid, ..authn });
        }
        for (key, values) in &self.extra {
            out.extend(values.iter().map(|v| Query { resource: "userextras", subresource: key, name: v, ..authn }));
        }
        out
    }

    /// The user to go on as.
    pub fn into_user(mut self) -> UserInfo {
        if let Some((namespace, _)) = service_account(&self.user)
            && self.groups.is_empty()
        {
            let of_namespace = format!("system:serviceaccounts:{namespace}");
            self.groups = vec!["system:serviceaccounts".into(), of_namespace];
        }
        let mut user = UserInfo { name: self.user, uid: self.uid, groups: self.groups, extra: self.extra };
        if user.name == USER_ANONYMOUS {
            user.add_group(GROUP_UNAUTHENTICATED);
        } else if !user.in_group(GROUP_UNAUTHENTICATED) {
            user.add_group(GROUP_AUTHENTICATED);
        }
        user
    }
}

fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
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
        assert_eq!(wish(&headers(&[])).expect("none"), None);
        let bytes = |name: &'static str, value: &[u8]| {
            let mut map = headers(&[(USER, "al")]);
            map.insert(name, HeaderValue::from_bytes(value).expect("value"));
            wish(&map)
        };
        assert_eq!(bytes(USER, "jörg".as_bytes()).expect("UTF-8").expect("a wish").user, "jörg");
        assert_eq!(bytes(GROUP, "dév".as_bytes()).expect("UTF-8").expect("a wish").groups, ["dév"]);
        for name in [USER, UID, GROUP, "impersonate-extra-x"] {
            assert!(bytes(name, b"\xff").is_err(), "{name}");
        }
        for alone in [(GROUP, "g"), (UID, "u"), ("impersonate-extra-scope", "x")] {
            assert_eq!(wish(&headers(&[alone])).expect_err("no user").code, 400, "{alone:?}");
        }
        let by = UserInfo::anonymous();
        let wished = wish(&headers(&[(USER, "system:serviceaccount:a:b"), ("impersonate-extra-scope", "x")]));
        let wished = wished.expect("ok").expect("some");
        let asked: Vec<_> =
            wished.queries(&by).iter().map(|q| format!("{}/{}/{}", q.resource, q.subresource, q.name)).collect();
        assert_eq!(asked, ["serviceaccounts//b", "userextras/scope/x"]);
        let user = wished.into_user();
        assert!(user.in_group("system:serviceaccounts:a") && user.in_group(GROUP_AUTHENTICATED));
        let anonymous = wish(&headers(&[(USER, USER_ANONYMOUS)])).expect("ok").expect("some").into_user();
        assert_eq!(anonymous.groups, [GROUP_UNAUTHENTICATED]);
    }
}
