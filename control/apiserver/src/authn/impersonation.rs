//! Acting as somebody else: the Impersonate-* headers, each part of them authorised.

use std::collections::BTreeMap;

use http::HeaderMap;

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

/// Headers `prefix + key`, the key percent-decoded and in lower case.
pub fn extra(headers: &HeaderMap, prefix: &str) -> BTreeMap<String, Vec<String>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(prefix), value.to_str()) {
            out.entry(decode(key, false).to_ascii_lowercase()).or_default().push(value.to_string());
        }
    }
    out
}

/// Reads the headers; None when there are none.
pub fn wish(headers: &HeaderMap) -> Result<Option<Wish>> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
    let groups = headers.get_all(GROUP).iter().filter_map(|v| v.to_str().ok()).map(str::to_string).collect();
    let wish = Wish { user: text(USER), uid: text(UID), groups, extra: extra(headers, EXTRA) };
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
