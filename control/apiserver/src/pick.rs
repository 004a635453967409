//! Reads a few fields of an encoded object, without making the rest of it.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// An object's key.
#[derive(Deserialize)]
pub(crate) struct Key<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

/// The fields at these paths, names with dots between; of everything else nothing is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pick<'a>(pub(crate) &'a [&'a str]);

impl Pick<'_> {
    /// Takes the value of `key` out of `map`, as far as it is wanted.
    pub(crate) fn take<'de, A: MapAccess<'de>>(
        self,
        key: &str,
        map: &mut A,
        picked: &mut Map<String, Value>,
    ) -> Result<(), A::Error> {
        if self.0.contains(&key) {
            picked.insert(key.into(), map.next_value()?);
            return Ok(());
        }
        let below: Vec<&str> = self.0.iter().filter_map(|path| path.strip_prefix(key)?.strip_prefix('.')).collect();
        if below.is_empty() {
            map.next_value::<IgnoredAny>()?;
        } else {
            picked.insert(key.into(), map.next_value_seed(Pick(&below))?);
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Pick<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

/// What is no map has no fields.
impl<'de> Visitor<'de> for Pick<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut picked = Map::new();
        while let Some(Key(key)) = map.next_key()? {
            self.take(&key, &mut map, &mut picked)?;
        }
        Ok(Value::Object(picked))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_is_made() {
        let text = r#"{"spec":{"nodeName":"n","x":[{"nodeName":1}],"deep":{"a":1,"b":{"c":[1]}}},"speck":1,"list":[{}],"kind":"K"}"#;
        let pick = |paths: &[&str]| {
            let mut from = serde_json::Deserializer::from_str(text);
            Pick(paths).deserialize(&mut from).unwrap()
        };
        assert_eq!(pick(&["spec.nodeName"]), serde_json::json!({"spec": {"nodeName": "n"}}));
        assert_eq!(
            pick(&["spec.deep.b", "kind", "list.x", "spec.x"]),
            serde_json::json!({"spec": {"x": [{"nodeName": 1}], "deep": {"b": {"c": [1]}}}, "list": null, "kind": "K"})
        );
        assert_eq!(pick(&[]), serde_json::json!({}));
    }
}
