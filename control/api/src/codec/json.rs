//! A JSON reader that keeps the last of duplicate keys and lists their paths.

use serde::Deserialize;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::fmt;

/// A parsed document.
#[derive(Debug)]
pub struct Parsed {
    pub value: Value,
    /// Paths of keys that appear twice.
    pub duplicates: Vec<String>,
}

/// The memory that one body's values may take: a body of many tiny maps takes a hundred times its size.
pub(crate) const MAX_MEMORY: usize = 64 << 20;
/// A map with one entry, and each entry of a map or list.
pub(crate) const MAP_MEMORY: usize = 640;
pub(crate) const ENTRY_MEMORY: usize = 64;

struct Context {
    path: String,
    duplicates: Vec<String>,
    /// Bytes of texts and keys that may still come: aliases of YAML repeat them.
    room: usize,
    /// Bytes that the values may still take in memory.
    memory: usize,
}

impl Context {
    fn new(room: usize) -> Context {
        Context { path: String::new(), duplicates: Vec::new(), room, memory: MAX_MEMORY }
    }

    fn grow<E: Error>(&mut self, bytes: usize) -> Result<(), E> {
        let left = self.memory.checked_sub(bytes);
        self.memory = left.ok_or_else(|| E::custom("it holds too many maps and values; make it smaller"))?;
        Ok(())
    }

    fn take<E: Error>(&mut self, text: &str) -> Result<(), E> {
        let left = self.room.checked_sub(text.len());
        self.room = left.ok_or_else(|| E::custom("its aliases repeat more than twice what it holds"))?;
        Ok(())
    }
}

struct Seed<'a>(&'a mut Context);

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("numbers must be finite"))
    }

    fn visit_str<E: Error>(self, v: &str) -> Result<Value, E> {
        self.0.take(v)?;
        Ok(v.into())
    }

    fn visit_string<E: Error>(self, v: String) -> Result<Value, E> {
        self.0.take(&v)?;
        Ok(v.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        let len = self.0.path.len();
        loop {
            self.0.path.push_str(&format!("[{}]", out.len()));
            let next = seq.next_element_seed(Seed(self.0))?;
            self.0.path.truncate(len);
            match next {
                Some(v) => {
                    self.0.grow(ENTRY_MEMORY)?;
                    out.push(v);
                }
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        let len = self.0.path.len();
        while let Some(key) = map.next_key::<String>()? {
            self.0.take(&key)?;
            self.0.grow(if out.is_empty() { MAP_MEMORY } else { ENTRY_MEMORY })?;
            if len > 0 {
                self.0.path.push('.');
            }
            self.0.path.push_str(&key);
            if out.contains_key(&key) {
                let path = self.0.path.clone();
                let duplicates = &self.0.duplicates;
                if duplicates.len() < super::MAX_STRICT && !duplicates.contains(&path) {
                    self.0.duplicates.push(path);
                }
            }
            let value = map.next_value_seed(Seed(self.0))?;
            self.0.path.truncate(len);
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

/// What aliases may add to a small document, bytes.
const ALIAS_ROOM: usize = 64 << 10;

/// The reader's work grows with the depth of flow collections for each token; its own limit comes only afterwards.
const MAX_FLOW_DEPTH: usize = 500;

/// No document nests its flow collections deeper than this. What closes one is trusted only
/// before the first character that could hide it: in a quoted text, a comment or a tag.
fn flow_depth_bound(body: &[u8]) -> usize {
    let (mut depth, mut most, mut hidden) = (0usize, 0, false);
    for byte in body {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' if !hidden => depth = depth.saturating_sub(1),
            b'"' | b'\'' | b'#' | b'!' => hidden = true,
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

/// Parses JSON.
pub fn parse_json(body: &[u8]) -> Result<Parsed, serde_json::Error> {
    parse_json_within(body, &Cell::new(MAX_MEMORY))
}

/// Parses JSON that is a part of a body, whose values may still take so much memory.
pub(crate) fn parse_json_within(body: &[u8], memory: &Cell<usize>) -> Result<Parsed, serde_json::Error> {
    let mut context = Context { memory: memory.get(), ..Context::new(usize::MAX) };
    let mut de = serde_json::Deserializer::from_slice(body);
    let value = Seed(&mut context).deserialize(&mut de)?;
    de.end()?;
    memory.set(context.memory);
    Ok(Parsed { value, duplicates: context.duplicates })
}

/// Whether a body that may be YAML is JSON by its look: that is read much faster.
pub fn looks_like_json(body: &[u8]) -> bool {
    body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{')
}

/// Parses YAML (or JSON, which YAML contains).
pub fn parse_yaml(body: &[u8]) -> Result<Parsed, String> {
    if looks_like_json(body)
        && let Ok(parsed) = parse_json(body)
    {
        return Ok(parsed);
    }
    if flow_depth_bound(body) > MAX_FLOW_DEPTH {
        return Err(
            "error converting YAML to JSON: it has too many braces and brackets for YAML; send it as JSON".into()
        );
    }
    let mut context = Context::new(2 * body.len() + ALIAS_ROOM);
    let mut documents = serde_yaml_ng::Deserializer::from_slice(body);
    let Some(de) = documents.next() else {
        return Err("error converting YAML to JSON: the body is empty".into());
    };
    let mut value = Seed(&mut context).deserialize(de).map_err(|e| format!("error converting YAML to JSON: {e}"))?;
    merge(&mut value)?;
    Ok(Parsed { value, duplicates: context.duplicates })
}

/// The documents of a file that is trusted: without the bounds of a body, which many braces and aliases reach.
pub fn parse_yaml_documents(text: &str) -> Result<Vec<Value>, String> {
    let parsed = serde_yaml_ng::Deserializer::from_str(text).map(|document| {
        let mut value = Value::deserialize(document).map_err(|e| e.to_string())?;
        merge(&mut value)?;
        Ok(value)
    });
    parsed.collect()
}

/// Puts what stands at a map's key `<<` into the map, which keeps what it has itself
/// (<https://yaml.org/type/merge.html>; go-yaml does it, too).
fn merge(value: &mut Value) -> Result<(), String> {
    match value {
        Value::Array(items) => items.iter_mut().try_for_each(merge),
        Value::Object(map) => {
            map.values_mut().try_for_each(merge)?;
            let sources = match map.remove("<<") {
                None => return Ok(()),
                Some(Value::Array(sources)) => sources,
                Some(source) => vec![source],
            };
            for source in sources {
                let Value::Object(source) = source else {
                    return Err(
                        "error converting YAML to JSON: map merge requires map or sequence of maps as the value".into(),
                    );
                };
                for (key, value) in source {
                    map.entry(key).or_insert(value);
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keeps_the_last_and_lists_duplicates() {
        let p = parse_json(br#"{"a":1,"b":[{"c":1,"c":2}],"a":{"x":null}}"#).unwrap();
        assert_eq!(p.value, json!({"a": {"x": null}, "b": [{"c": 2}]}));
        assert_eq!(p.duplicates, ["b[0].c", "a"]);
        assert!(parse_json(b"{\"a\":1} x").is_err());
        assert!(parse_json(b"").is_err());
    }

    #[test]
    fn reads_yaml() {
        let p = parse_yaml(b"a: 1\nb:\n- c: 'x'\n  d: true\n").unwrap();
        assert_eq!(p.value, json!({"a": 1, "b": [{"c": "x", "d": true}]}));
        assert_eq!(parse_yaml(b" {\"a\":1}").unwrap().value, json!({"a": 1}));
    }

    #[test]
    fn yaml_merges_maps() {
        let text = b"base: &b {a: 1, deep: {x: 1}}\nother: &o {c: 3}\n\
            one: {<<: *b, a: 2}\nboth:\n- <<: [*o, *b]\n  d: 4\n";
        let value = parse_yaml(text).unwrap().value;
        assert_eq!(value["one"], json!({"a": 2, "deep": {"x": 1}}));
        assert_eq!(value["both"], json!([{"a": 1, "deep": {"x": 1}, "c": 3, "d": 4}]));
        assert!(parse_yaml(b"a: {<<: 5}").unwrap_err().contains("map merge requires"));
        // JSON knows nothing of it.
        assert_eq!(parse_yaml(br#"{"<<": 5}"#).unwrap().value, json!({"<<": 5}));
    }

    #[test]
    fn documents_of_a_file_are_bodies_without_bounds() {
        let many =
            format!("a: '{}'\nb: &b {{c: 1}}\n---\n# nothing\n---\na: &a {{x: 1}}\nb: {{<<: *a}}\n", "{".repeat(2000));
        let documents = parse_yaml_documents(&many).unwrap();
        assert_eq!((documents.len(), &documents[1]), (3, &Value::Null));
        assert_eq!(documents[2]["b"], json!({"x": 1}));
        assert!(parse_yaml_documents("a: [").is_err() && parse_yaml_documents("a: {<<: 5}").is_err());
    }

    #[test]
    fn depth_is_refused_before_it_is_read() {
        for level in ["{a: ", "[", "{a: # }\n", "{\"\n}\n\": ", "[!<]> "] {
            let error = parse_yaml(level.repeat(20_000).as_bytes()).unwrap_err();
            assert!(error.ends_with("send it as JSON"), "{level}: {error}");
        }
        let many = "- {a: [1]}\n".repeat(2000);
        assert_eq!(parse_yaml(many.as_bytes()).unwrap().value.as_array().unwrap().len(), 2000);
    }

    #[test]
    fn texts_with_many_braces_are_refused_after_a_quote() {
        // What is no structure at all cannot be told from it without reading it.
        let text = |braces: usize| format!("a: 'x'\nb: |\n  {}\n", "{} ".repeat(braces));
        assert!(parse_yaml(text(MAX_FLOW_DEPTH).as_bytes()).is_ok());
        let error = parse_yaml(text(MAX_FLOW_DEPTH + 1).as_bytes()).unwrap_err();
        assert!(error.ends_with("send it as JSON"), "{error}");
        assert!(parse_yaml(format!("b: |\n  {}\n", "{} ".repeat(2000)).as_bytes()).is_ok());
    }

    #[test]
    fn many_tiny_maps_are_refused() {
        let many = format!("[{}0]", r#"{"a":1},"#.repeat(200_000));
        assert!(parse_json(many.as_bytes()).unwrap_err().to_string().contains("too many maps"));
        let block = "- a: 1\n".repeat(200_000);
        assert!(parse_yaml(block.as_bytes()).unwrap_err().contains("too many maps"));
        let fewer = format!("[{}0]", r#"{"a":1},"#.repeat(50_000));
        assert_eq!(parse_json(fewer.as_bytes()).unwrap().value.as_array().unwrap().len(), 50_001);
    }

    #[test]
    fn aliases_do_not_multiply_a_body() {
        let p = parse_yaml(b"a: &x {b: c}\nd: *x\n").unwrap();
        assert_eq!(p.value, json!({"a": {"b": "c"}, "d": {"b": "c"}}));
        let text = "x".repeat(100_000);
        let many: String = (0..100).map(|n| format!("k{n}: *a\n")).collect();
        let error = parse_yaml(format!("a: &a {text}\n{many}").as_bytes()).unwrap_err();
        assert!(error.contains("its aliases repeat more than twice what it holds"), "{error}");
    }
}
