//! JSON text to a message at once, without a tree in between: for what is stored, and read
//! more often than written.

use super::encode;
use super::wire::{bytes_field, string_field};
use crate::schema::{Schema, Ty};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The message of an object that is there as JSON text.
pub fn encode_json(json: &[u8], schema: &Schema) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::with_capacity(json.len() / 2 + 64);
    let mut de = serde_json::Deserializer::from_slice(json);
    Message { schema, out: &mut out }.deserialize(&mut de)?;
    de.end()?;
    Ok(out)
}

/// The fields of a message, from an object.
struct Message<'a> {
    schema: &'a Schema,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        // Fields of embedded messages are few, and go the longer way together.
        let mut embedded = serde_json::Map::new();
        while let Some(Key(name)) = map.next_key()? {
            match self.schema.field(&name).filter(|f| f.number > 0) {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(f) if !f.path.is_empty() => drop(embedded.insert(name.into_owned(), map.next_value()?)),
                Some(f) => map.next_value_seed(Field { number: f.number, schema: f.schema(), out: self.out })?,
            }
        }
        if !embedded.is_empty() {
            self.out.extend(encode::encode_message(&Value::Object(embedded), self.schema));
        }
        Ok(())
    }
}

/// A key, borrowed where the text allows it.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a text")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Key<'de>, E> {
                Ok(Key(Cow::Owned(v.to_string())))
            }
        }
        d.deserialize_str(Text)
    }
}

/// A field's value.
struct Field<'a> {
    number: u32,
    schema: &'a Schema,
    out: &'a mut Vec<u8>,
}

impl Field<'_> {
    fn put(self, value: &Value) {
        if !value.is_null() {
            encode::single(self.out, self.number, value, self.schema);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<(), D::Error> {
        match self.schema.ty {
            Ty::Object | Ty::Array => d.deserialize_any(self),
            // These carry JSON as it is.
            Ty::RawExtension | Ty::FieldsV1 | Ty::Json | Ty::Any => {
                let raw = <&RawValue>::deserialize(d)?;
                if raw.get() != "null" {
                    let mut body = Vec::with_capacity(raw.get().len() + 8);
                    bytes_field(&mut body, 1, raw.get().as_bytes());
                    bytes_field(self.out, self.number, &body);
                }
                Ok(())
            }
            Ty::String => {
                if let Some(Key(text)) = Option::<Key>::deserialize(d)? {
                    string_field(self.out, self.number, &text);
                }
                Ok(())
            }
            _ => {
                self.put(&Value::deserialize(d)?);
                Ok(())
            }
        }
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some(item) = self.schema.items.as_ref().filter(|_| self.schema.is_map()) else {
            let mut body = Vec::new();
            Message { schema: self.schema, out: &mut body }.visit_map(map)?;
            bytes_field(self.out, self.number, &body);
            return Ok(());
        };
        let mut entry = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            entry.clear();
            string_field(&mut entry, 1, &key);
            match item.get().ty {
                // A list inside a map is a message of its own.
                Ty::Array => encode::single(&mut entry, 2, &map.next_value()?, item.get()),
                _ => map.next_value_seed(Field { number: 2, schema: item.get(), out: &mut entry })?,
            }
            bytes_field(self.out, self.number, &entry);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some(item) = self.schema.item() else {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        while seq.next_element_seed(Field { number: self.number, schema: item, out: self.out })?.is_some() {}
        Ok(())
    }
}
