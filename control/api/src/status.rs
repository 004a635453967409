//! The `Status` object that every failure is answered with, and the errors of
//! single fields that an `Invalid` status is made of. Texts are those that
//! clients and scripts know.

use serde_json::{Value, json};
use std::borrow::Cow;
use std::fmt;

/// A failure (or plain success) as the API spells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    pub code: u16,
    pub reason: Cow<'static, str>,
    pub message: String,
    /// `details` without the causes.
    pub name: String,
    pub group: String,
    pub kind: String,
    pub uid: String,
    pub retry_after_seconds: Option<u32>,
    pub causes: Vec<Cause>,
    /// `metadata.continue`, for expired lists that can go on.
    pub continue_token: Option<String>,
    /// `Success` where this is not a failure.
    pub success: bool,
}

/// One entry of `details.causes`.
#[derive(Debug, Clone, PartialEq)]
pub struct Cause {
    pub reason: Cow<'static, str>,
    pub message: String,
    pub field: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

fn quote(s: &str) -> String {
    Value::from(s).to_string()
}

impl Status {
    /// Any failure.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Status {
        Status {
            code,
            reason: reason.into(),
            message: message.into(),
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            uid: String::new(),
            retry_after_seconds: None,
            causes: Vec::new(),
            continue_token: None,
            success: false,
        }
    }

    fn about(mut self, group: &str, resource: &str, name: &str) -> Status {
        self.group = group.into();
        self.kind = resource.into();
        self.name = name.into();
        self
    }

    fn gr(group: &str, resource: &str) -> String {
        if group.is_empty() { resource.to_string() } else { format!("{resource}.{group}") }
    }

    /// 404 for an object.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Status {
        Status::new(404, "NotFound", format!("{} {} not found", Status::gr(group, resource), quote(name)))
            .about(group, resource, name)
    }

    /// 404 for a path that is not served.
    pub fn path_not_found() -> Status {
        Status::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409 on create.
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Status {
        Status::new(409, "AlreadyExists", format!("{} {} already exists", Status::gr(group, resource), quote(name)))
            .about(group, resource, name)
    }

    /// 409 on a stale resourceVersion or a failed precondition.
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Status {
        let gr = Status::gr(group, resource);
        Status::new(409, "Conflict", format!("Operation cannot be fulfilled on {gr} {}: {why}", quote(name)))
            .about(group, resource, name)
    }

    /// 409 with the text of a stale write.
    pub fn stale(group: &str, resource: &str, name: &str) -> Status {
        Status::conflict(
            group,
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403, `why` is what follows the colon.
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Status {
        let gr = Status::gr(group, resource);
        let message = match (gr.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{gr} is forbidden: {why}"),
            (false, false) => format!("{gr} {} is forbidden: {why}", quote(name)),
        };
        Status::new(403, "Forbidden", message).about(group, resource, name)
    }

    /// 401.
    pub fn unauthorized() -> Status {
        Status::new(401, "Unauthorized", "Unauthorized")
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Status {
        Status::new(400, "BadRequest", message)
    }

    /// 405.
    pub fn method_not_allowed(group: &str, resource: &str, action: &str) -> Status {
        let gr = Status::gr(group, resource);
        Status::new(405, "MethodNotAllowed", format!("{action} is not supported on resources of kind {}", quote(&gr)))
            .about(group, resource, "")
    }

    /// 405 for a verb that the path does not have.
    pub fn method_not_served() -> Status {
        Status::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 406.
    pub fn not_acceptable(supported: &[&str]) -> Status {
        Status::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {}", supported.join(", ")),
        )
    }

    /// 415.
    pub fn unsupported_media_type(got: &str, supported: &[&str]) -> Status {
        Status::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}{}",
                supported.join(", "),
                if got.is_empty() { String::new() } else { format!(" (got {got})") }
            ),
        )
    }

    /// 410 for a resourceVersion that is no longer known.
    pub fn expired(message: impl Into<String>) -> Status {
        Status::new(410, "Expired", message)
    }

    /// 410 for a watch or list that starts too far back.
    pub fn too_old(requested: u64, oldest: u64) -> Status {
        Status::expired(format!("too old resource version: {requested} ({oldest})"))
    }

    /// 504 for a resourceVersion from the future.
    pub fn too_large_version(requested: u64, current: u64) -> Status {
        let mut s = Status::new(504, "Timeout", format!("Too large resource version: {requested}, current: {current}"));
        s.retry_after_seconds = Some(1);
        s.causes.push(Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        });
        s
    }

    /// 413.
    pub fn too_large(limit: usize) -> Status {
        Status::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 422 from errors of fields. `kind` and `group` name the object's kind.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Status {
        let list: Vec<String> = errors.iter().map(FieldError::to_string).collect();
        let mut unique: Vec<&String> = Vec::new();
        for l in &list {
            if !unique.contains(&l) {
                unique.push(l);
            }
        }
        let text = match unique.as_slice() {
            [one] => (*one).clone(),
            many => format!("[{}]", many.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(", ")),
        };
        let gk = Status::gr(group, kind);
        let message = if errors.is_empty() {
            format!("{gk} {} is invalid", quote(name))
        } else {
            format!("{gk} {} is invalid: {text}", quote(name))
        };
        let mut s = Status::new(422, "Invalid", message).about(group, kind, name);
        s.causes = errors
            .iter()
            .map(|e| Cause { reason: e.kind.reason().into(), message: e.body(), field: e.field.clone() })
            .collect();
        s
    }

    /// 422 with a free text (failed JSON patch test and the like).
    pub fn unprocessable(message: impl Into<String>) -> Status {
        Status::new(422, "Invalid", message)
    }

    /// 429.
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Status {
        let mut s = Status::new(429, "TooManyRequests", message);
        s.retry_after_seconds = (retry_after > 0).then_some(retry_after);
        s
    }

    /// 500.
    pub fn internal(message: impl fmt::Display) -> Status {
        let mut s = Status::new(500, "InternalError", format!("Internal error occurred: {message}"));
        s.causes.push(Cause { reason: "".into(), message: message.to_string(), field: String::new() });
        s
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Status {
        Status::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub fn timeout(message: impl Into<String>) -> Status {
        Status::new(504, "Timeout", message)
    }

    /// `Status: Success` of a finished deletion.
    pub fn deleted(group: &str, resource: &str, name: &str, uid: &str) -> Status {
        let mut s = Status::new(200, "", "").about(group, resource, name);
        s.uid = uid.into();
        s.success = true;
        s
    }

    /// Adds a cause.
    pub fn with_cause(mut self, reason: &'static str, message: impl Into<String>, field: impl Into<String>) -> Status {
        self.causes.push(Cause { reason: reason.into(), message: message.into(), field: field.into() });
        self
    }

    /// The JSON object.
    pub fn to_value(&self) -> Value {
        let mut v = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": if self.success { "Success" } else { "Failure" }});
        if let Some(t) = &self.continue_token {
            v["metadata"]["continue"] = t.as_str().into();
        }
        if !self.message.is_empty() {
            v["message"] = self.message.as_str().into();
        }
        if !self.reason.is_empty() {
            v["reason"] = self.reason.as_ref().into();
        }
        let mut d = serde_json::Map::new();
        for (k, s) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)] {
            if !s.is_empty() {
                d.insert(k.into(), s.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            d.insert("causes".into(), self.causes.iter().map(Cause::to_value).collect());
        }
        if let Some(r) = self.retry_after_seconds {
            d.insert("retryAfterSeconds".into(), r.into());
        }
        if !d.is_empty() {
            v["details"] = Value::Object(d);
        }
        if !self.success {
            v["code"] = self.code.into();
        }
        v
    }

    /// Reads a Status object, such as a webhook's or another server's answer.
    pub fn from_value(v: &Value) -> Status {
        let s = |p: &Value| p.as_str().unwrap_or("").to_string();
        let d = &v["details"];
        let code = v["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(500);
        let mut out = Status::new(code, "", s(&v["message"])).about(&s(&d["group"]), &s(&d["kind"]), &s(&d["name"]));
        out.reason = s(&v["reason"]).into();
        out.uid = s(&d["uid"]);
        out.success = v["status"] == "Success";
        out.retry_after_seconds = d["retryAfterSeconds"].as_u64().map(|r| r as u32);
        out.causes = d["causes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| Cause { reason: s(&c["reason"]).into(), message: s(&c["message"]), field: s(&c["field"]) })
            .collect();
        out
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut c = serde_json::Map::new();
        for (k, s) in
            [("reason", self.reason.as_ref()), ("message", self.message.as_str()), ("field", self.field.as_str())]
        {
            if !s.is_empty() {
                c.insert(k.into(), s.into());
            }
        }
        Value::Object(c)
    }
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    /// `Invalid value` that does not show the value.
    InvalidHidden,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl ErrorKind {
    /// The machine-readable reason of the cause.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "FieldValueNotFound",
            ErrorKind::Required => "FieldValueRequired",
            ErrorKind::Duplicate => "FieldValueDuplicate",
            ErrorKind::Invalid | ErrorKind::InvalidHidden => "FieldValueInvalid",
            ErrorKind::NotSupported => "FieldValueNotSupported",
            ErrorKind::Forbidden => "FieldValueForbidden",
            ErrorKind::TooLong => "FieldValueTooLong",
            ErrorKind::TooMany => "FieldValueTooMany",
            ErrorKind::Internal => "InternalError",
            ErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            ErrorKind::NotFound => "Not found",
            ErrorKind::Required => "Required value",
            ErrorKind::Duplicate => "Duplicate value",
            ErrorKind::Invalid | ErrorKind::InvalidHidden | ErrorKind::TypeInvalid => "Invalid value",
            ErrorKind::NotSupported => "Unsupported value",
            ErrorKind::Forbidden => "Forbidden",
            ErrorKind::TooLong => "Too long",
            ErrorKind::TooMany => "Too many",
            ErrorKind::Internal => "Internal error",
        }
    }
}

/// An error of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    pub kind: ErrorKind,
    pub field: String,
    pub value: Value,
    pub detail: String,
}

impl FieldError {
    /// Any error.
    pub fn new(kind: ErrorKind, field: impl Into<String>, value: Value, detail: impl Into<String>) -> FieldError {
        FieldError { kind, field: field.into(), value, detail: detail.into() }
    }

    /// `Required value`.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> FieldError {
        FieldError::new(ErrorKind::Required, field, Value::Null, detail)
    }

    /// `Invalid value`.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> FieldError {
        FieldError::new(ErrorKind::Invalid, field, value.into(), detail)
    }

    /// `Forbidden`.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> FieldError {
        FieldError::new(ErrorKind::Forbidden, field, Value::Null, detail)
    }

    /// `Duplicate value`.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> FieldError {
        FieldError::new(ErrorKind::Duplicate, field, value.into(), "")
    }

    /// `Not found`.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> FieldError {
        FieldError::new(ErrorKind::NotFound, field, value.into(), "")
    }

    /// `Unsupported value` with the values that are.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> FieldError {
        let list: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        FieldError::new(ErrorKind::NotSupported, field, value.into(), format!("supported values: {}", list.join(", ")))
    }

    /// `Too long`.
    pub fn too_long(field: impl Into<String>, max: usize) -> FieldError {
        FieldError::new(ErrorKind::TooLong, field, Value::Null, format!("may not be more than {max} bytes"))
    }

    /// `Too many`.
    pub fn too_many(field: impl Into<String>, count: usize, max: usize) -> FieldError {
        FieldError::new(ErrorKind::TooMany, field, count.into(), format!("must have at most {max} items"))
    }

    /// The text without the field's name.
    pub fn body(&self) -> String {
        let mut s = match self.kind {
            ErrorKind::Required
            | ErrorKind::Forbidden
            | ErrorKind::TooLong
            | ErrorKind::Internal
            | ErrorKind::InvalidHidden => self.kind.text().to_string(),
            // Clients know a value that is not set by this word in quotes.
            _ if self.value.is_null() => format!("{}: \"null\"", self.kind.text()),
            _ => format!("{}: {}", self.kind.text(), self.value),
        };
        if !self.detail.is_empty() {
            s.push_str(": ");
            s.push_str(&self.detail);
        }
        s
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() { f.write_str(&self.body()) } else { write!(f, "{}: {}", self.field, self.body()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_the_known_ones() {
        let cases = [
            (Status::not_found("", "pods", "x"), "pods \"x\" not found"),
            (Status::not_found("apps", "deployments", "x"), "deployments.apps \"x\" not found"),
            (Status::already_exists("", "namespaces", "a"), "namespaces \"a\" already exists"),
            (
                Status::stale("apps", "deployments", "d"),
                "Operation cannot be fulfilled on deployments.apps \"d\": the object has been modified; please apply your changes to the latest version and try again",
            ),
            (Status::forbidden("", "pods", "", "User \"u\" cannot list"), "pods is forbidden: User \"u\" cannot list"),
            (
                Status::invalid("", "Pod", "p", &[FieldError::required("spec.containers", "")]),
                "Pod \"p\" is invalid: spec.containers: Required value",
            ),
            (
                Status::invalid(
                    "apps",
                    "Deployment",
                    "d",
                    &[
                        FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0"),
                        FieldError::not_supported("spec.x", "a", &["B", "C"]),
                    ],
                ),
                "Deployment.apps \"d\" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal to 0, spec.x: Unsupported value: \"a\": supported values: \"B\", \"C\"]",
            ),
        ];
        for (s, m) in cases {
            assert_eq!(s.message, m);
            assert_eq!(Status::from_value(&s.to_value()), s);
        }
        let v = Status::invalid("", "Pod", "p", &[FieldError::required("spec.containers", "")]).to_value();
        assert_eq!(
            v["details"]["causes"][0],
            json!({"reason": "FieldValueRequired", "message": "Required value", "field": "spec.containers"})
        );
    }
}
