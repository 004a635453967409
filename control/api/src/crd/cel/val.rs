//! Values of objects as CEL sees them, by their schema.

use std::collections::HashMap;

use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelDuration, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelTimestamp,
};
use cel::common::value::Val;
use serde_json::Value;

use crate::schema::{Schema, Ty};

type Boxed<'v> = Box<dyn Val + 'v>;

/// Words that no expression can select as they are.
pub(crate) const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// How an expression names a property; None: it cannot.
pub(super) fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let first = name.chars().next()?;
    if !(first.is_ascii_alphabetic() || first == '_') {
        return None;
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let (piece, len) = match c {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            c if c.is_ascii_alphanumeric() || c == '_' => (&rest[..1], 1),
            _ => return None,
        };
        out.push_str(piece);
        rest = &rest[len..];
    }
    Some(out)
}

/// The `format` of a node.
fn format(schema: &Schema) -> &str {
    schema.extra.as_ref().and_then(|e| e.rules.as_ref()?["format"].as_str()).unwrap_or("")
}

/// Whether an object of the schema is a resource of its own, of whose metadata only the names can be seen.
pub(super) fn is_resource(schema: &Schema, root: bool) -> bool {
    root || schema.extra.as_ref().is_some_and(|e| e.embedded)
}

/// The value; `root`: it is the whole object.
pub(super) fn of<'v>(value: &'v Value, schema: Option<&Schema>, root: bool) -> Boxed<'v> {
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(b) => Box::new(CelBool::from(*b)),
        Value::Number(n) => number(n, schema),
        Value::String(s) => text(s, schema),
        Value::Array(items) => {
            let item = schema.and_then(Schema::item);
            Box::new(CelList::from(items.iter().map(|v| of(v, item, false)).collect::<Vec<Boxed<'v>>>()))
        }
        Value::Object(map) => {
            let mut out: HashMap<CelMapKey<'v>, Boxed<'v>> = HashMap::with_capacity(map.len());
            for (name, v) in map {
                let field = schema.and_then(|s| s.field(name));
                let key = match field {
                    None => CelMapKey::from(name.as_str()),
                    Some(_) => match escape(name) {
                        Some(escaped) if escaped != *name => CelMapKey::from(escaped),
                        Some(_) => CelMapKey::from(name.as_str()),
                        None => continue,
                    },
                };
                let v = if name == "metadata" && schema.is_some_and(|s| is_resource(s, root)) {
                    names_of(v)
                } else {
                    of(v, field.map_or_else(|| schema.and_then(|s| s.child(name)), |f| Some(f.schema())), false)
                };
                out.insert(key, v);
            }
            Box::new(CelMap::from(out))
        }
    }
}

fn names_of(metadata: &Value) -> Boxed<'_> {
    let seen = ["name", "generateName"].into_iter().filter_map(|name| Some((name, metadata[name].as_str()?)));
    let map: HashMap<CelMapKey<'_>, Boxed<'_>> =
        seen.map(|(name, v)| (CelMapKey::from(name), Box::new(CelString::from(v)) as Boxed<'_>)).collect();
    Box::new(CelMap::from(map))
}

fn number<'v>(n: &serde_json::Number, schema: Option<&Schema>) -> Boxed<'v> {
    let whole = n.as_i64().or_else(|| n.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64));
    match (schema.map(|s| s.ty), whole) {
        (Some(Ty::Number), _) | (_, None) => Box::new(CelDouble::from(n.as_f64().unwrap_or(f64::NAN))),
        (_, Some(i)) => Box::new(CelInt::from(i)),
    }
}

fn text<'v>(s: &'v str, schema: Option<&Schema>) -> Boxed<'v> {
    // What is malformed, the schema has refused already.
    let special: Option<Boxed<'v>> = match schema.filter(|s| s.ty == Ty::String).map(format).unwrap_or("") {
        "date-time" => chrono::DateTime::parse_from_rfc3339(s).ok().map(|t| Box::new(CelTimestamp::from(t)) as _),
        "date" => chrono::DateTime::parse_from_rfc3339(&format!("{s}T00:00:00Z"))
            .ok()
            .map(|t| Box::new(CelTimestamp::from(t)) as _),
        "duration" => crate::time::parse_duration(s)
            .map(|nanos| Box::new(CelDuration::from(chrono::Duration::nanoseconds(nanos))) as _),
        "byte" => {
            use base64::Engine;
            let bytes = base64::engine::general_purpose::STANDARD.decode(s).ok();
            bytes.map(|b| Box::new(CelBytes::from(b)) as _)
        }
        _ => None,
    };
    special.unwrap_or_else(|| Box::new(CelString::from(s)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_upstream_does() {
        for (name, want) in [
            ("a", Some("a")),
            ("namespace", Some("__namespace__")),
            ("x-y.z/w", Some("x__dash__y__dot__z__slash__w")),
            ("a__b", Some("a__underscores__b")),
            ("_a", Some("_a")),
            ("1a", None),
            ("ü", None),
            ("a b", None),
        ] {
            assert_eq!(escape(name).as_deref(), want, "{name}");
        }
    }
}
