//! Label and field selectors, as query parameters carry them.

use crate::error::{ApiError, Result};
use crate::fields;
use crate::object::{Object, Shape};

/// One demand on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Demand {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

/// A label selector: all demands must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<(String, Demand)>);

impl LabelSelector {
    /// Parses `a=b,c!=d,e in (f,g),h,!i`.
    pub fn parse(text: &str) -> Result<LabelSelector> {
        let demands = split_outside_parens(text).into_iter().filter(|t| !t.trim().is_empty()).map(parse_term);
        demands.collect::<Result<Vec<_>>>().map(LabelSelector)
    }

    /// Whether everything fits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels, looked up by `get`, satisfy it.
    pub fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|(key, demand)| {
            let value = get(key);
            match demand {
                Demand::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
                Demand::NotIn(values) => value.is_none_or(|v| !values.iter().any(|w| w == v)),
                Demand::Exists => value.is_some(),
                Demand::Absent => value.is_none(),
                Demand::Greater(than) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *than),
                Demand::Less(than) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *than),
            }
        })
    }
}

fn split_outside_parens(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_term(term: &str) -> Result<(String, Demand)> {
    let bad = |why: &str| ApiError::bad_request(format!("unable to parse requirement: {why} in {:?}", term.trim()));
    let term = term.trim();
    if let Some(key) = term.strip_prefix('!') {
        return Ok((checked_key(key.trim()).ok_or_else(|| bad("a label key is malformed"))?, Demand::Absent));
    }
    if let Some(open) = term.find('(') {
        let values = term[open + 1..].strip_suffix(')').ok_or_else(|| bad("a closing parenthesis is missing"))?;
        let values = values.split(',').map(|v| v.trim().to_string()).collect();
        let mut words = term[..open].split_whitespace();
        let key = words.next().and_then(checked_key).ok_or_else(|| bad("a label key is malformed"))?;
        return match (words.next(), words.next()) {
            (Some("in"), None) => Ok((key, Demand::In(values))),
            (Some("notin"), None) => Ok((key, Demand::NotIn(values))),
            _ => Err(bad("found an unknown operator, expected: in, notin")),
        };
    }
    for (operator, width) in [("!=", 2), ("==", 2), ("=", 1), (">", 1), ("<", 1)] {
        let Some(at) = term.find(operator) else {
            continue;
        };
        let key = checked_key(term[..at].trim()).ok_or_else(|| bad("a label key is malformed"))?;
        let value = term[at + width..].trim().to_string();
        if !label_value(&value) {
            return Err(bad("a label value is malformed"));
        }
        let number = || value.parse().map_err(|_| bad("for > and < the value must be a whole number"));
        return Ok(match operator {
            "!=" => (key, Demand::NotIn(vec![value])),
            ">" => (key, Demand::Greater(number()?)),
            "<" => (key, Demand::Less(number()?)),
            _ => (key, Demand::In(vec![value])),
        });
    }
    Ok((checked_key(term).ok_or_else(|| bad("a label key is malformed"))?, Demand::Exists))
}

fn checked_key(key: &str) -> Option<String> {
    let good = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    good.then(|| key.to_string())
}

fn label_value(value: &str) -> bool {
    value.len() <= 63 && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// A field selector: field, value, whether equal is demanded (else unequal).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<(String, String, bool)>);

impl FieldSelector {
    /// Parses `a=b,c!=d`; a field that the resource does not offer is a 400.
    pub fn parse(text: &str, shape: Shape, custom: &[String]) -> Result<FieldSelector> {
        let mut terms = Vec::new();
        for term in split_terms(text).iter().filter(|t| !t.is_empty()) {
            let (field, value, equal) = if let Some((f, v)) = term.split_once("!=") {
                (f, v, false)
            } else if let Some((f, v)) = term.split_once("==") {
                (f, v, true)
            } else if let Some((f, v)) = term.split_once('=') {
                (f, v, true)
            } else {
                return Err(ApiError::bad_request(format!("invalid selector: '{text}'; can't understand '{term}'")));
            };
            if !fields::selectable(shape, custom, field) {
                return Err(ApiError::bad_request(format!("field label not supported: {field}")));
            }
            terms.push((field.to_string(), unescape(value), equal));
        }
        Ok(FieldSelector(terms))
    }

    /// The value that `field` must have, if one is demanded.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|(f, _, equal)| f == field && *equal).map(|(_, v, _)| v.as_str())
    }
}

fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        match c {
            ',' if !escaped => terms.push(String::new()),
            _ => terms.last_mut().into_iter().for_each(|t| t.push(c)),
        }
        escaped = c == '\\' && !escaped;
    }
    terms
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    out
}

/// What a list or watch wants to see.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    pub shape: Shape,
    pub custom: Vec<String>,
}

impl Filter {
    /// Whether everything is wanted.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.0.is_empty()
    }

    /// Whether an object is wanted.
    pub fn matches(&self, object: &Object) -> bool {
        let field = |name: &str| fields::field_of(object, self.shape, &self.custom, name).unwrap_or_default();
        self.fields.0.iter().all(|(name, value, equal)| (field(name) == *value) == *equal)
            && self.labels.matches(|key| object.label(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        let table = [
            ("", true),
            ("a=1", true),
            ("a==1,b!=3", true),
            ("a!=1", false),
            ("a in (1,2),!c", true),
            ("a notin (1, 2)", false),
            ("b", true),
            ("!b", false),
            ("c!=x", true),
            ("b>1,b<3", true),
        ];
        let get = |key: &str| match key {
            "a" => Some("1"),
            "b" => Some("2"),
            _ => None,
        };
        for (text, wanted) in table {
            assert_eq!(LabelSelector::parse(text).unwrap().matches(get), wanted, "{text}");
        }
        for bad in ["a in 1", "a like (b)", "a in (b", "a=b c", "=x"] {
            assert!(LabelSelector::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_of_pods() {
        let shape = fields::shape("", "pods");
        let selector = FieldSelector::parse("spec.nodeName=n1,metadata.name!=x", shape, &[]).unwrap();
        assert_eq!(selector.required("spec.nodeName"), Some("n1"));
        assert_eq!(selector.required("metadata.name"), None);
        assert!(FieldSelector::parse("spec.nothing=1", shape, &[]).is_err());
        let json = r#"{"metadata":{"name":"p","namespace":"d"},"spec":{"nodeName":"n1"}}"#;
        let object = Object::decode(bytes::Bytes::from_static(json.as_bytes()), 1, shape).unwrap();
        assert!(Filter { fields: selector, shape, ..Filter::default() }.matches(&object));
    }
}
