//! The one error of the API server: a `v1 Status` with `status: Failure`.

use bytes::Bytes;
use serde_json::{Value, json};

/// One entry of `details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldManagerConflict`, ...
    pub reason: String,
    pub message: String,
    /// JSON path of the field, empty where there is none.
    pub field: String,
}

impl Cause {
    fn new(reason: &str, field: &str, message: String) -> Cause {
        Cause { reason: reason.into(), message, field: field.into() }
    }
    /// A field must be given.
    pub fn required(field: &str, detail: &str) -> Cause {
        let tail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        Cause::new("FieldValueRequired", field, format!("Required value{tail}"))
    }
    /// A field's value is wrong.
    pub fn invalid(field: &str, value: &Value, detail: &str) -> Cause {
        Cause::new("FieldValueInvalid", field, format!("Invalid value: {value}: {detail}"))
    }
    /// A field may not be set, or not be changed.
    pub fn forbidden(field: &str, detail: &str) -> Cause {
        Cause::new("FieldValueForbidden", field, format!("Forbidden: {detail}"))
    }
    /// A value is not one of those that exist.
    pub fn not_supported(field: &str, value: &Value, allowed: &[&str]) -> Cause {
        let list = allowed.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(", ");
        Cause::new("FieldValueNotSupported", field, format!("Unsupported value: {value}: supported values: {list}"))
    }
    /// Two entries have one key.
    pub fn duplicate(field: &str, value: &Value) -> Cause {
        Cause::new("FieldValueDuplicate", field, format!("Duplicate value: {value}"))
    }
}

/// A failure as clients see it; its parts are those of [`Failure`].
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError(Box<Failure>);

impl std::ops::Deref for ApiError {
    type Target = Failure;
    fn deref(&self) -> &Failure {
        &self.0
    }
}

impl std::ops::DerefMut for ApiError {
    fn deref_mut(&mut self) -> &mut Failure {
        &mut self.0
    }
}

/// The parts of a failure.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub code: u16,
    pub reason: String,
    pub message: String,
    pub kind: String,
    pub group: String,
    pub name: String,
    pub uid: String,
    pub causes: Vec<Cause>,
    pub retry_after: Option<u32>,
    /// Set on 410 of a paged list: the token that goes on from the newest state.
    pub continue_token: String,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for ApiError {}

/// The usual result of everything that answers requests.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_string() } else { format!("{resource}.{group}") }
}

impl ApiError {
    /// Any failure by code, reason and message.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> ApiError {
        ApiError(Box::new(Failure {
            code,
            reason: reason.into(),
            message: message.into(),
            kind: String::new(),
            group: String::new(),
            name: String::new(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after: None,
            continue_token: String::new(),
        }))
    }

    /// Names the object that the failure is about (`kind` is the plural where only that is known).
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> ApiError {
        self.group = group.into();
        self.kind = kind.into();
        self.name = name.into();
        self
    }

    pub fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(400, "BadRequest", message)
    }
    pub fn unauthorized() -> ApiError {
        ApiError::new(401, "Unauthorized", "Unauthorized")
    }
    /// `detail` is the whole sentence after `... is forbidden: `.
    pub fn forbidden(group: &str, resource: &str, name: &str, detail: &str) -> ApiError {
        let what = qualified(resource, group);
        let message = match (what.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {detail}"),
            (false, true) => format!("{what} is forbidden: {detail}"),
            (false, false) => format!("{what} {name:?} is forbidden: {detail}"),
        };
        ApiError::new(403, "Forbidden", message).about(group, resource, name)
    }
    pub fn not_found(group: &str, resource: &str, name: &str) -> ApiError {
        ApiError::new(404, "NotFound", format!("{} {name:?} not found", qualified(resource, group)))
            .about(group, resource, name)
    }
    /// No handler for the path.
    pub fn no_such_path() -> ApiError {
        ApiError::new(404, "NotFound", "the server could not find the requested resource")
    }
    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> ApiError {
        let message = format!("{verb} is not supported on resources of kind {:?}", qualified(resource, group));
        ApiError::new(405, "MethodNotAllowed", message).about(group, resource, "")
    }
    /// No handler for the method on that path.
    pub fn method_not_served() -> ApiError {
        ApiError::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }
    pub fn not_acceptable(message: impl Into<String>) -> ApiError {
        ApiError::new(406, "NotAcceptable", message)
    }
    pub fn already_exists(group: &str, resource: &str, name: &str) -> ApiError {
        ApiError::new(409, "AlreadyExists", format!("{} {name:?} already exists", qualified(resource, group)))
            .about(group, resource, name)
    }
    pub fn conflict(group: &str, resource: &str, name: &str, detail: &str) -> ApiError {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {detail}", qualified(resource, group));
        ApiError::new(409, "Conflict", message).about(group, resource, name)
    }
    /// The optimistic lock was lost.
    pub fn stale(group: &str, resource: &str, name: &str) -> ApiError {
        let detail = "the object has been modified; please apply your changes to the latest version and try again";
        ApiError::conflict(group, resource, name, detail)
    }
    pub fn expired(message: impl Into<String>) -> ApiError {
        ApiError::new(410, "Expired", message)
    }
    pub fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(413, "RequestEntityTooLarge", message)
    }
    pub fn unsupported_media_type(message: impl Into<String>) -> ApiError {
        ApiError::new(415, "UnsupportedMediaType", message)
    }
    /// Validation failed: one message over all causes.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: Vec<Cause>) -> ApiError {
        let each: Vec<String> = causes
            .iter()
            .map(|c| if c.field.is_empty() { c.message.clone() } else { format!("{}: {}", c.field, c.message) })
            .collect();
        let list = if each.len() == 1 { each[0].clone() } else { format!("[{}]", each.join(", ")) };
        let mut error =
            ApiError::new(422, "Invalid", format!("{} {name:?} is invalid: {list}", qualified(kind, group)));
        error.causes = causes;
        error.about(group, kind, name)
    }
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> ApiError {
        let mut error = ApiError::new(429, "TooManyRequests", message);
        error.retry_after = Some(retry_after);
        error
    }
    pub fn internal(message: impl std::fmt::Display) -> ApiError {
        ApiError::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError::new(503, "ServiceUnavailable", message)
    }
    pub fn timeout(message: impl Into<String>) -> ApiError {
        ApiError::new(504, "Timeout", message)
    }

    /// Adds a cause.
    pub fn with_cause(mut self, reason: &str, message: impl Into<String>, field: &str) -> ApiError {
        self.causes.push(Cause::new(reason, field, message.into()));
        self
    }

    /// The Status object.
    pub fn to_value(&self) -> Value {
        let mut details = serde_json::Map::new();
        let mut put = |key: &str, text: &str| {
            if !text.is_empty() {
                details.insert(key.into(), text.into());
            }
        };
        put("name", &self.name);
        put("group", &self.group);
        put("kind", &self.kind);
        put("uid", &self.uid);
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(|c| {
                let mut cause = json!({"reason": c.reason, "message": c.message});
                if !c.field.is_empty() {
                    cause["field"] = c.field.clone().into();
                }
                cause
            });
            details.insert("causes".into(), causes.collect());
        }
        if let Some(seconds) = self.retry_after {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        let mut metadata = json!({});
        if !self.continue_token.is_empty() {
            metadata["continue"] = self.continue_token.clone().into();
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !details.is_empty() {
            status["details"] = Value::Object(details);
        }
        status
    }

    /// The Status object as JSON bytes.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from(self.to_value().to_string())
    }
}

impl From<api::status::Status> for ApiError {
    fn from(status: api::status::Status) -> ApiError {
        let causes = status
            .causes
            .into_iter()
            .map(|c| Cause { reason: c.reason.into_owned(), message: c.message, field: c.field })
            .collect();
        ApiError(Box::new(Failure {
            code: status.code,
            reason: status.reason.into_owned(),
            message: status.message,
            kind: status.kind,
            group: status.group,
            name: status.name,
            uid: status.uid,
            causes,
            retry_after: status.retry_after_seconds,
            continue_token: status.continue_token.unwrap_or_default(),
        }))
    }
}

impl From<api::status::FieldError> for Cause {
    fn from(error: api::status::FieldError) -> Cause {
        Cause { reason: error.kind.reason().to_string(), message: error.body(), field: error.field }
    }
}
