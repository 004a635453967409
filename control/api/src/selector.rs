//! Label and field selectors: parsing, printing, matching; and which fields of
//! which kind a field selector may name.

use crate::kinds::Kind;
use crate::meta;
use serde_json::{Map, Value};
use std::fmt;

/// A label selector. The empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Labels(pub Vec<Requirement>);

/// One condition on a label.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirement {
    pub key: String,
    pub op: Op,
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Equals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let within = |v: &str| self.values.iter().any(|x| x == v);
        match self.op {
            Op::Equals | Op::In => value.is_some_and(within),
            Op::NotEquals | Op::NotIn => !value.is_some_and(within),
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::GreaterThan | Op::LessThan => {
                let (Some(a), Some(b)) = (
                    value.and_then(|v| v.parse::<i64>().ok()),
                    self.values.first().and_then(|v| v.parse::<i64>().ok()),
                ) else {
                    return false;
                };
                if self.op == Op::GreaterThan { a > b } else { a < b }
            }
        }
    }

    fn check(self) -> Result<Requirement, String> {
        if let Some(e) = crate::names::qualified_name(&self.key).first() {
            return Err(format!("key: Invalid value: {:?}: {e}", self.key));
        }
        for v in &self.values {
            if let Some(e) = crate::names::label_value(v).first() {
                return Err(format!("values[0][{}]: Invalid value: {v:?}: {e}", self.key));
            }
        }
        Ok(self)
    }
}

impl Labels {
    /// Parses `a=b,c!=d,e in (f,g),!h,i`.
    pub fn parse(s: &str) -> Result<Labels, String> {
        let mut out = Vec::new();
        for part in split_outside_parens(s) {
            let part = part.trim();
            if !part.is_empty() {
                out.push(requirement(part).map_err(|e| format!("unable to parse requirement: {e}"))?);
            }
        }
        Ok(Labels(out))
    }

    /// From a LabelSelector object (`matchLabels`, `matchExpressions`). None for
    /// null, which matches nothing.
    pub fn from_value(v: &Value) -> Result<Option<Labels>, String> {
        if v.is_null() {
            return Ok(None);
        }
        let mut out = Labels::from_map(v["matchLabels"].as_object()).0;
        for e in v["matchExpressions"].as_array().into_iter().flatten() {
            let op = match e["operator"].as_str().unwrap_or("") {
                "In" => Op::In,
                "NotIn" => Op::NotIn,
                "Exists" => Op::Exists,
                "DoesNotExist" => Op::DoesNotExist,
                o => return Err(format!("{o:?} is not a valid label selector operator")),
            };
            let values =
                e["values"].as_array().into_iter().flatten().filter_map(|v| v.as_str().map(String::from)).collect();
            out.push(Requirement { key: e["key"].as_str().unwrap_or("").into(), op, values });
        }
        Ok(Some(Labels(out)))
    }

    /// Equality with every entry of a map, as Services and ReplicationControllers select.
    pub fn from_map(map: Option<&Map<String, Value>>) -> Labels {
        let eq = |(k, v): (&String, &Value)| Requirement {
            key: k.clone(),
            op: Op::In,
            values: vec![v.as_str().unwrap_or("").into()],
        };
        Labels(
            map.into_iter()
                .flatten()
                .map(eq)
                .map(|mut r| {
                    r.op = Op::Equals;
                    r
                })
                .collect(),
        )
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether these labels match.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.0.iter().all(|r| r.matches(labels.and_then(|l| l.get(&r.key)).and_then(Value::as_str)))
    }

    /// Whether an object's labels match.
    pub fn matches_object(&self, o: &Value) -> bool {
        self.matches(meta::labels(o))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let mut values = r.values.clone();
            values.sort();
            let first = values.first().map_or("", String::as_str);
            match r.op {
                Op::Equals => write!(f, "{}={first}", r.key)?,
                Op::NotEquals => write!(f, "{}!={first}", r.key)?,
                Op::In => write!(f, "{} in ({})", r.key, values.join(","))?,
                Op::NotIn => write!(f, "{} notin ({})", r.key, values.join(","))?,
                Op::Exists => f.write_str(&r.key)?,
                Op::DoesNotExist => write!(f, "!{}", r.key)?,
                Op::GreaterThan => write!(f, "{}>{first}", r.key)?,
                Op::LessThan => write!(f, "{}<{first}", r.key)?,
            }
        }
        Ok(())
    }
}

fn split_outside_parens(s: &str) -> Vec<&str> {
    let (mut out, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (i, c) in s.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(&s[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    out.push(&s[start..]);
    out
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let make = |key: &str, op, values: Vec<&str>| {
        let values = values.into_iter().map(|v| v.trim().to_string()).collect();
        Requirement { key: key.trim().into(), op, values }.check()
    };
    if let Some(key) = part.strip_prefix('!') {
        return make(key, Op::DoesNotExist, vec![]);
    }
    if let Some((head, values)) = part.split_once('(') {
        let values = values.trim().strip_suffix(')').ok_or_else(|| format!("found '{part}', expected: ',' or ')'"))?;
        let mut words = head.split_whitespace();
        let (key, op, rest) = (words.next().unwrap_or(""), words.next().unwrap_or(""), words.next());
        let op = match (op, rest) {
            ("in", None) => Op::In,
            ("notin", None) => Op::NotIn,
            _ => {
                return Err(format!("found '{op}', expected: in, notin, =, ==, !=, gt, lt"));
            }
        };
        return make(key, op, values.split(',').collect());
    }
    for (token, op) in
        [("!=", Op::NotEquals), ("==", Op::Equals), ("=", Op::Equals), (">", Op::GreaterThan), ("<", Op::LessThan)]
    {
        if let Some((key, value)) = part.split_once(token) {
            if matches!(op, Op::GreaterThan | Op::LessThan) && value.trim().parse::<i64>().is_err() {
                return Err(format!(
                    "values[0][{}]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
                    key.trim(),
                    value.trim()
                ));
            }
            return make(key, op, vec![value]);
        }
    }
    if part.split_whitespace().count() > 1 {
        let op = part.split_whitespace().nth(1).unwrap_or("");
        return Err(format!("found '{op}', expected: in, notin, =, ==, !=, gt, lt"));
    }
    make(part, Op::Exists, vec![])
}

/// A field selector. The empty one matches everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fields(pub Vec<FieldTerm>);

/// One condition on a field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldTerm {
    pub field: String,
    pub value: String,
    pub equal: bool,
}

impl Fields {
    /// Parses `metadata.name=x,status.phase!=Running`.
    pub fn parse(s: &str) -> Result<Fields, String> {
        let mut out = Vec::new();
        for part in split_escaped(s) {
            if part.is_empty() {
                continue;
            }
            let (field, value, equal) = if let Some((f, v)) = part.split_once("!=") {
                (f, v, false)
            } else if let Some((f, v)) = part.split_once("==") {
                (f, v, true)
            } else if let Some((f, v)) = part.split_once('=') {
                (f, v, true)
            } else {
                return Err(format!("invalid selector: '{s}'; can't understand '{part}'"));
            };
            out.push(FieldTerm { field: field.into(), value: unescape(value), equal });
        }
        Ok(Fields(out))
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that a field must have, if the selector says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.0.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    /// Refuses fields that the kind does not offer.
    pub fn check(&self, kind: &Kind) -> Result<(), String> {
        for t in &self.0 {
            if !supported(kind, &t.field) {
                return Err(format!("field label not supported: {}", t.field));
            }
        }
        Ok(())
    }

    /// Whether an object matches.
    pub fn matches(&self, kind: &Kind, o: &Value) -> bool {
        self.0.iter().all(|t| (field_value(kind, o, &t.field) == t.value) == t.equal)
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<String> =
            self.0.iter().map(|t| format!("{}{}{}", t.field, if t.equal { "=" } else { "!=" }, t.value)).collect();
        f.write_str(&list.join(","))
    }
}

fn split_escaped(s: &str) -> Vec<String> {
    let (mut out, mut now, mut escaped) = (Vec::new(), String::new(), false);
    for c in s.chars() {
        match c {
            _ if escaped => {
                now.push(c);
                escaped = false;
            }
            '\\' => {
                now.push(c);
                escaped = true;
            }
            ',' => out.push(std::mem::take(&mut now)),
            _ => now.push(c),
        }
    }
    out.push(now);
    out
}

fn unescape(s: &str) -> String {
    let (mut out, mut escaped) = (String::new(), false);
    for c in s.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            out.push(c);
            escaped = false;
        }
    }
    out
}

/// The fields beyond `metadata.name` and `metadata.namespace`.
fn extra_fields(kind: &Kind) -> &'static [&'static str] {
    match (kind.group.as_ref(), kind.plural.as_ref()) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("" | "events.k8s.io", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingComponent",
            "reportingController",
            "source",
            "type",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "namespaces") => &["status.phase"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        ("networking.k8s.io", "ipaddresses") => &["spec.parentRef.group", "spec.parentRef.resource"],
        ("resource.k8s.io", "resourceslices") => &["spec.nodeName", "spec.driver"],
        _ => &[],
    }
}

fn supported(kind: &Kind, field: &str) -> bool {
    field == "metadata.name"
        || (field == "metadata.namespace" && (kind.namespaced || !kind.is_custom()))
        || extra_fields(kind).contains(&field)
        || kind.custom.as_ref().is_some_and(|c| c.selectable.iter().any(|s| s.trim_start_matches('.') == field))
}

/// The value of a selectable field as text.
pub fn field_value(kind: &Kind, o: &Value, field: &str) -> String {
    let get = |path: &str| {
        let v = path.split('.').fold(o, |v, p| &v[p]);
        match v {
            Value::String(s) => s.clone(),
            Value::Null => String::new(),
            v => v.to_string(),
        }
    };
    match field {
        "spec.hostNetwork" | "spec.unschedulable" => {
            if get(field) == "true" {
                "true".into()
            } else {
                "false".into()
            }
        }
        "status.podIPs" => o["status"]["podIPs"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|i| i["ip"].as_str())
            .collect::<Vec<_>>()
            .join(","),
        "status.replicas" | "status.successful" => {
            let v = get(if field == "status.successful" { "status.succeeded" } else { field });
            if v.is_empty() { "0".into() } else { v }
        }
        "source" => {
            let s = get("source.component");
            if s.is_empty() { get("reportingComponent") } else { s }
        }
        _ if kind.plural == "events" => event_field(o, field, &get),
        _ => get(field),
    }
}

/// Events have two spellings of the same fields.
fn event_field(o: &Value, field: &str, get: &dyn Fn(&str) -> String) -> String {
    let other = |from: &str, to: &str| field.strip_prefix(from).map(|rest| format!("{to}{rest}"));
    let v = get(field);
    if !v.is_empty() || o.is_null() {
        return v;
    }
    match field {
        "reportingController" => get("reportingComponent"),
        "reportingComponent" => get("reportingController"),
        _ => other("regarding.", "involvedObject.")
            .or_else(|| other("involvedObject.", "regarding."))
            .map_or(v, |f| get(&f)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_match() {
        let l = json!({"a": "b", "n": "5", "x/y": ""});
        for (s, want) in [
            ("", true),
            ("a=b", true),
            ("a==b", true),
            ("a!=b", false),
            ("z!=b", true),
            ("a in (b,c)", true),
            ("a notin (b)", false),
            ("a", true),
            ("!a", false),
            ("!z", true),
            ("n>4", true),
            ("n<4", false),
            ("a=b,z", false),
            ("x/y=", true),
            ("a in (b, c),n", true),
        ] {
            assert_eq!(Labels::parse(s).unwrap().matches(l.as_object()), want, "{s}");
        }
        for s in ["a in b", "a in (b", "-=x", "a=b c", "a foo (b)"] {
            assert!(Labels::parse(s).is_err(), "{s}");
        }
        assert_eq!(Labels::parse("a = b, c in (e,d)").unwrap().to_string(), "a=b,c in (d,e)");
        let s = Labels::from_value(
            &json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "q", "operator": "DoesNotExist"}]}),
        )
        .unwrap()
        .unwrap();
        assert!(s.matches(l.as_object()));
        assert!(Labels::from_value(&json!({})).unwrap().unwrap().is_empty());
        assert!(Labels::from_value(&Value::Null).unwrap().is_none());
    }

    #[test]
    fn fields_match() {
        let pods = crate::kinds::find("", "v1", "pods").unwrap();
        let p = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        for (s, want) in [
            ("metadata.name=a", true),
            ("spec.nodeName!=n", false),
            ("status.phase=Running,spec.nodeName=n", true),
            ("spec.hostNetwork=false", true),
        ] {
            let f = Fields::parse(s).unwrap();
            f.check(pods).unwrap();
            assert_eq!(f.matches(pods, &p), want, "{s}");
        }
        assert_eq!(
            Fields::parse("spec.foo=1").unwrap().check(pods).unwrap_err(),
            "field label not supported: spec.foo"
        );
        assert_eq!(Fields::parse("metadata.name=a").unwrap().exact("metadata.name"), Some("a"));
        assert!(Fields::parse("x").is_err());
    }
}
