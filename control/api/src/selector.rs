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
        out.sort_by(|a, b| a.key.cmp(&b.key));
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

    /// Whether labels, looked up by `get`, match.
    pub fn matches_by<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|r| r.matches(get(&r.key)))
    }

    /// Whether these labels match.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.matches_by(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
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

    /// Refuses fields that the kind does not offer, and calls the others by the names under
    /// which [`offered`] has them.
    pub fn check(mut self, kind: &Kind) -> Result<Fields, String> {
        for term in &mut self.0 {
            let known = canonical(kind, &term.field);
            term.field = known.ok_or_else(|| format!("field label not supported: {}", term.field))?;
        }
        Ok(self)
    }

    /// Whether an object matches.
    pub fn matches(&self, o: &Value) -> bool {
        self.0.iter().all(|t| (field_value(o, &t.field) == t.value) == t.equal)
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

/// The fields beyond `metadata.name` and `metadata.namespace` that selectors may name, of a
/// resource as it is stored.
pub fn offered(group: &str, plural: &str) -> &'static [&'static str] {
    match (group, plural) {
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
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "secrets") => &["type"],
        ("", "namespaces") => &["status.phase", "name"],
        ("", "replicationcontrollers") | ("apps", "replicasets") => &["status.replicas"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("batch", "jobs") => &["status.successful"],
        ("certificates.k8s.io", "certificatesigningrequests") => &["spec.signerName"],
        ("resource.k8s.io", "resourceslices") => &["spec.nodeName", "spec.driver"],
        _ => &[],
    }
}

/// The stored resource's name for a field of `kind`, if selectors may name it.
fn canonical(kind: &Kind, field: &str) -> Option<String> {
    if field == "metadata.name" || (field == "metadata.namespace" && (kind.namespaced || !kind.is_custom())) {
        return Some(field.to_string());
    }
    if let Some(custom) = &kind.custom {
        return custom.selectable.iter().any(|s| s.trim_start_matches('.') == field).then(|| field.to_string());
    }
    let name = match (kind.group.as_ref(), field.split_once('.')) {
        // The newer group has other names for some fields of events.
        ("events.k8s.io", Some(("regarding", rest))) => format!("involvedObject.{rest}"),
        ("events.k8s.io", Some(_)) => return None,
        ("events.k8s.io", None) if field == "reportingController" => "reportingComponent".into(),
        ("events.k8s.io", None) if !matches!(field, "reason" | "type") => return None,
        // What the field was called before v1.
        ("", _) if kind.plural == "pods" && field == "spec.host" => "spec.nodeName".into(),
        _ => field.to_string(),
    };
    let stored = kind.storage();
    offered(&stored.group, &stored.plural).contains(&name.as_str()).then_some(name)
}

/// The paths that [`field_value`] looks at for a field: enough of an object to be given to it.
pub fn field_paths(field: &'static str) -> impl Iterator<Item = &'static str> {
    let (own, other) = match field {
        "name" => ("metadata.name", None),
        "status.successful" => ("status.succeeded", None),
        "source" => ("source.component", Some("reportingComponent")),
        "reportingComponent" => (field, Some("source.component")),
        _ => (field, None),
    };
    std::iter::once(own).chain(other)
}

/// The value of a selectable field as text.
pub fn field_value(o: &Value, field: &str) -> String {
    let get = |path: &str| match path.split('.').fold(o, |v, p| &v[p]) {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        v => v.to_string(),
    };
    let or = |v: String, other: &dyn Fn() -> String| if v.is_empty() { other() } else { v };
    match field {
        "name" => get("metadata.name"),
        "spec.hostNetwork" | "spec.unschedulable" => or(get(field), &|| "false".into()),
        "status.podIPs" => {
            let ips = o["status"]["podIPs"].as_array().into_iter().flatten();
            ips.filter_map(|i| i["ip"].as_str()).collect::<Vec<_>>().join(",")
        }
        "status.replicas" => or(get(field), &|| "0".into()),
        "status.successful" => or(get("status.succeeded"), &|| "0".into()),
        "source" => or(get("source.component"), &|| get("reportingComponent")),
        "reportingComponent" => or(get(field), &|| get("source.component")),
        _ => get(field),
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
        let p = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "podIPs": [{"ip": "1.2.3.4"}, {"ip": "::1"}]}});
        for (s, want) in [
            ("metadata.name=a", true),
            ("spec.nodeName!=n", false),
            ("spec.host=n", true),
            ("status.phase=Running,spec.nodeName=n", true),
            ("spec.hostNetwork=false", true),
            ("status.podIPs=1.2.3.4\\,::1", true),
        ] {
            let f = Fields::parse(s).unwrap().check(pods).unwrap();
            assert_eq!(f.matches(&p), want, "{s}");
        }
        assert_eq!(
            Fields::parse("spec.foo=1").unwrap().check(pods).unwrap_err(),
            "field label not supported: spec.foo"
        );
        assert_eq!(Fields::parse("metadata.name=a").unwrap().exact("metadata.name"), Some("a"));
        assert!(Fields::parse("x").is_err());
    }

    #[test]
    fn events_have_two_spellings() {
        let e = json!({"involvedObject": {"name": "p"}, "source": {"component": "c"}, "type": "Normal"});
        let (core, newer) = (
            crate::kinds::find("", "v1", "events").unwrap(),
            crate::kinds::find("events.k8s.io", "v1", "events").unwrap(),
        );
        for (kind, s, want) in [
            (core, "involvedObject.name=p,source=c", Some(true)),
            (core, "regarding.name=p", None),
            (newer, "regarding.name=p,reportingController=c,type!=Warning", Some(true)),
            (newer, "regarding.name=q", Some(false)),
            (newer, "involvedObject.name=p", None),
            (newer, "source=c", None),
        ] {
            assert_eq!(Fields::parse(s).unwrap().check(kind).ok().map(|f| f.matches(&e)), want, "{s}");
        }
    }
}
