//! Compares the calls that kimg sends with what a provider has published, as far as `builder/tests/data/providers`
//! writes it down: paths, queries, header fields, and bodies and forms by the words of JSON Schema that these use.

use crate::web::fake::Call;
use serde_json::Value;

/// A provider's published calls.
pub(crate) struct Published(Value);

impl Published {
    pub(crate) fn new(text: &str) -> Published {
        Published(serde_json::from_str(text).unwrap())
    }

    /// Panics where a call is none of the published ones.
    pub(crate) fn check(&self, call: &Call) {
        let calls = self.0["calls"].as_object().unwrap();
        let mut what = format!("{} {}", call.method, call.path);
        if call.path == "/ec2/" {
            // All calls of EC2 go to one place.
            let action = call.form().into_iter().find(|(name, ..)| name == "Action").unwrap().2;
            what.push_str(std::str::from_utf8(&action).unwrap());
        }
        let (_, published) = calls
            .iter()
            .filter(|(pattern, _)| fits(pattern, &what))
            // The one with the fewest places to fill in is the one that is meant.
            .min_by_key(|(pattern, _)| pattern.matches('{').count())
            .unwrap_or_else(|| panic!("{what} is no published call"));
        for header in published["headers"].as_array().unwrap() {
            assert!(!call.header(header.as_str().unwrap()).is_empty(), "{what} has no {header}");
        }
        let query = published["query"].as_array().cloned().unwrap_or_default();
        for parameter in call.query.split('&').filter(|p| !p.is_empty()) {
            let name = parameter.split('=').next().unwrap();
            assert!(query.iter().any(|known| known == name), "{what} has no parameter {name}");
        }
        if let Some(content) = published["content"].as_str().filter(|_| !call.body.is_empty()) {
            assert_eq!(call.header("content-type").split(';').next(), Some(content), "{what}");
        }
        if published["form"].is_object() {
            let text = |bytes: Vec<u8>| Value::String(String::from_utf8(bytes).unwrap());
            let field = |(name, file, bytes): (String, Option<String>, Vec<u8>)| {
                (name, file.map_or_else(|| text(bytes), Value::String))
            };
            validate(&what, &published["form"], &call.form().into_iter().map(field).collect());
        }
        if published["body"].is_object() {
            assert_eq!(call.header("content-type"), "application/json", "{what}");
            validate(&what, &published["body"], &call.json());
        } else if published["content"].is_null() {
            assert!(call.body.is_empty(), "{what} has a body");
        }
    }
}

/// `{name}` stands for one part of a path, and at its end for the rest.
fn fits(pattern: &str, what: &str) -> bool {
    let (mut pattern, mut what) = (pattern.split('/').peekable(), what.split('/'));
    while let Some(part) = pattern.next() {
        let Some(found) = what.next() else { return false };
        let open = part.starts_with('{') && !found.is_empty();
        if !open && part != found {
            return false;
        }
        if open && pattern.peek().is_none() {
            return part == "{key}" || what.next().is_none();
        }
    }
    what.next().is_none()
}

/// The name of a form's field with an N for each number in it: EC2 counts entries of lists.
fn numbered(name: &str) -> String {
    let part =
        |part: &'_ str| if part.bytes().all(|byte| byte.is_ascii_digit()) { "N".into() } else { part.to_string() };
    name.split('.').map(part).collect::<Vec<String>>().join(".")
}

fn validate(at: &str, schema: &Value, value: &Value) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    assert_eq!(schema["type"], kind, "{at}");
    if let Some(known) = schema["enum"].as_array() {
        assert!(known.contains(value), "{at}: {value} is none of {known:?}");
    }
    if let Some(text) = value.as_str() {
        let length = text.chars().count() as u64;
        assert!(length >= schema["minLength"].as_u64().unwrap_or(0), "{at}: too short");
        assert!(length <= schema["maxLength"].as_u64().unwrap_or(u64::MAX), "{at}: too long");
    }
    if let Some(number) = value.as_i64() {
        assert!(number >= schema["minimum"].as_i64().unwrap_or(i64::MIN), "{at}: too small");
        assert!(number <= schema["maximum"].as_i64().unwrap_or(i64::MAX), "{at}: too large");
    }
    if let Some(list) = value.as_array() {
        assert!(list.len() as u64 >= schema["minItems"].as_u64().unwrap_or(0), "{at}: too few");
        for (n, item) in list.iter().enumerate() {
            validate(&format!("{at}[{n}]"), &schema["items"], item);
        }
    }
    if let Some(object) = value.as_object() {
        for needed in schema["required"].as_array().into_iter().flatten() {
            assert!(object.contains_key(needed.as_str().unwrap()), "{at}: {needed} is missing");
        }
        for (name, item) in object {
            let place = format!("{at}.{name}");
            let known = schema["properties"].get(name).or_else(|| schema["properties"].get(numbered(name)));
            match (known.unwrap_or(&Value::Null), &schema["additionalProperties"]) {
                (Value::Object(known), _) => validate(&place, &Value::Object(known.clone()), item),
                (_, Value::Object(rest)) => validate(&place, &Value::Object(rest.clone()), item),
                _ => panic!("{place} is no published field"),
            }
        }
    }
}

mod tests {
    use super::*;
    use serde_json::json;

    fn refused(schema: Value, value: Value) -> bool {
        std::panic::catch_unwind(|| validate("x", &schema, &value)).is_err()
    }

    #[test]
    fn what_is_not_published_is_found() {
        let schema = || {
            json!({"type": "object", "required": ["a"], "additionalProperties": false,
                "properties": {"a": {"type": "string", "maxLength": 2}, "n": {"type": "integer", "minimum": 1}}})
        };
        assert!(!refused(schema(), json!({"a": "x", "n": 1})));
        for bad in
            [json!({}), json!({"a": 1}), json!({"a": "xyz"}), json!({"a": "x", "b": 1}), json!({"a": "x", "n": 0})]
        {
            assert!(refused(schema(), bad.clone()), "{bad}");
        }
        let counted = json!({"type": "object", "properties": {"T.N.K.N": {"type": "string"}}});
        assert!(!refused(counted.clone(), json!({"T.1.K.12": "x"})) && refused(counted, json!({"T.1.L.2": "x"})));
        assert!(fits("GET /v2/images/{id}", "GET /v2/images/7") && !fits("GET /v2/images/{id}", "GET /v2/images/7/x"));
        assert!(fits("PUT /{bucket}/{key}", "PUT /b/k/with/slashes") && !fits("GET /{bucket}/", "GET /b/k"));
        assert!(fits("GET /{bucket}/", "GET /b/") && !fits("GET /{bucket}/{key}", "GET /b/"));
    }
}
