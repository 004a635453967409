//! What a list or watch wants to see, of objects as the watch cache holds them.

use std::borrow::Cow;

use api::kinds::Kind;
use api::selector::{FieldTerm, Fields, Labels};

use crate::error::{ApiError, Result};
use crate::object::Object;

/// The selectors of a request.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    labels: Labels,
    fields: Fields,
    /// The names of [`Object::fields`].
    shape: &'static [&'static str],
}

impl Filter {
    /// Reads the selectors of a request on `kind`, objects of which are stored as `stored`.
    pub fn parse(kind: &Kind, stored: &Kind, labels: &str, fields: &str) -> Result<Filter> {
        let labels = Labels::parse(labels).map_err(ApiError::bad_request)?;
        let fields = Fields::parse(fields).and_then(|f| f.check(kind)).map_err(ApiError::bad_request)?;
        Ok(Filter { labels, fields, shape: api::selector::offered(&stored.group, &stored.plural) })
    }

    /// Wants the object of this name only.
    pub fn named(mut self, name: &str) -> Filter {
        self.fields.0.push(FieldTerm { field: "metadata.name".into(), value: name.into(), equal: true });
        self
    }

    /// Whether everything is wanted.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one value that a field must have, if one is named.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.fields.exact(field)
    }

    /// Whether an object is wanted.
    pub fn matches(&self, object: &Object) -> bool {
        self.fields.0.iter().all(|t| (self.field(object, &t.field) == t.value) == t.equal)
            && self.labels.matches_by(|key| object.label(key))
    }

    fn field<'a>(&self, object: &'a Object, name: &str) -> Cow<'a, str> {
        match name {
            "metadata.name" => return Cow::Borrowed(&*object.name),
            "metadata.namespace" => return Cow::Borrowed(&*object.namespace),
            _ => {}
        }
        match object.field(self.shape, name) {
            Some(value) => Cow::Borrowed(value),
            // Selectable fields of custom resources are rare, so that they are parsed when asked for.
            None => Cow::Owned(api::selector::field_value(&object.value(), name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_pods() {
        let pods = api::kinds::find("", "v1", "pods").unwrap();
        let json = r#"{"metadata":{"name":"p","namespace":"d","labels":{"a":"b"}},"spec":{"nodeName":"n1"}}"#;
        let shape = api::selector::offered("", "pods");
        let object = Object::decode(bytes::Bytes::from_static(json.as_bytes()), 1, shape).unwrap();
        for (labels, fields, wanted) in [
            ("", "", true),
            ("a=b", "spec.nodeName=n1,metadata.name!=x", true),
            ("a!=b", "", false),
            ("", "spec.nodeName=n2", false),
            ("", "metadata.namespace=d", true),
        ] {
            let filter = Filter::parse(pods, pods, labels, fields).unwrap();
            assert_eq!(filter.matches(&object), wanted, "{labels} {fields}");
        }
        assert!(!Filter::default().named("x").matches(&object));
        assert!(Filter::parse(pods, pods, "", "spec.nothing=1").is_err());
        assert!(Filter::parse(pods, pods, "a in 1", "").is_err());
    }
}
