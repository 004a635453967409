//! Messages to values.

use super::wire::{Fields, Raw};
use super::{Error, MAGIC};
use crate::codec::{ENTRY_MEMORY, MAP_MEMORY, MAX_MEMORY};
use crate::schema::{Field, Schema, Ty};
use base64::Engine;
use serde_json::{Map, Value};
use std::cell::Cell;

const MAX_DEPTH: u32 = 64;

/// How deep a message is, and the memory that what is read may still take.
#[derive(Clone, Copy)]
struct At<'a> {
    depth: u32,
    room: &'a Cell<usize>,
}

impl At<'_> {
    fn deeper(self) -> Result<Self, Error> {
        if self.depth >= MAX_DEPTH { Err(Error::Depth) } else { Ok(At { depth: self.depth + 1, ..self }) }
    }

    fn take(self, bytes: usize) -> Result<(), Error> {
        self.room.set(self.room.get().checked_sub(bytes).ok_or(Error::Large)?);
        Ok(())
    }
}

/// Reads a whole body. Without a schema the type in the envelope decides.
pub fn decode_object(body: &[u8], schema: Option<&Schema>) -> Result<Value, Error> {
    object(body, schema, At { depth: 0, room: &Cell::new(MAX_MEMORY) })
}

fn object(body: &[u8], schema: Option<&Schema>, at: At<'_>) -> Result<Value, Error> {
    let mut fields = Fields(body.strip_prefix(MAGIC).ok_or(Error::Magic)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((n, v)) = fields.field()? {
        match n {
            1 => {
                let mut meta = Fields(v.bytes());
                while let Some((n, v)) = meta.field()? {
                    match n {
                        1 => api_version = text(v),
                        2 => kind = text(v),
                        _ => {}
                    }
                }
            }
            2 => raw = v.bytes(),
            _ => {}
        }
    }
    let by_type = super::schema_of(&api_version, &kind);
    let schema = by_type.or(schema).ok_or_else(|| Error::Unknown(format!("{api_version} {kind}")))?;
    let mut map = Map::new();
    message(raw, schema, &mut Vec::new(), &mut map, at)?;
    if !api_version.is_empty() {
        map.insert("apiVersion".into(), api_version.into());
    }
    if !kind.is_empty() {
        map.insert("kind".into(), kind.into());
    }
    Ok(Value::Object(map))
}

/// Reads one message.
pub fn decode_message(body: &[u8], schema: &Schema) -> Result<Map<String, Value>, Error> {
    let mut map = Map::new();
    message(body, schema, &mut Vec::new(), &mut map, At { depth: 0, room: &Cell::new(MAX_MEMORY) })?;
    Ok(map)
}

fn text(raw: Raw) -> String {
    String::from_utf8_lossy(raw.bytes()).into_owned()
}

fn message(
    body: &[u8],
    schema: &Schema,
    path: &mut Vec<u32>,
    out: &mut Map<String, Value>,
    at: At<'_>,
) -> Result<(), Error> {
    let mut fields = Fields(body);
    while let Some((n, raw)) = fields.field()? {
        if let Some(f) = schema.fields.iter().find(|f| f.number == n && f.path == *path) {
            field(f, raw, out, at)?;
        } else if schema
            .fields
            .iter()
            .any(|f| f.path.len() > path.len() && f.path[..path.len()] == **path && f.path[path.len()] == n)
        {
            path.push(n);
            let done = message(raw.bytes(), schema, path, out, at.deeper()?);
            path.pop();
            done?;
        }
    }
    Ok(())
}

fn field(f: &Field, raw: Raw, out: &mut Map<String, Value>, at: At<'_>) -> Result<(), Error> {
    let schema = f.schema();
    at.take(if out.is_empty() { MAP_MEMORY } else { ENTRY_MEMORY })?;
    match schema.ty {
        Ty::Array => {
            let Some(item) = schema.item() else {
                return Ok(());
            };
            let list = out.entry(f.name.to_string()).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(list) = list {
                repeated(list, raw, item, at)?;
            }
        }
        Ty::Object if schema.is_map() => {
            let Some(item) = schema.items.as_ref() else {
                return Ok(());
            };
            let (mut k, mut v) = (String::new(), None);
            let mut entry = Fields(raw.bytes());
            while let Some((n, r)) = entry.field()? {
                match n {
                    1 => k = text(r),
                    2 => v = Some(single(r, item.get(), at)?),
                    _ => {}
                }
            }
            let v = match v {
                Some(v) => v,
                None => single(Raw::Bytes(&[]), item.get(), at)?,
            };
            let map = out.entry(f.name.to_string()).or_insert_with(|| Value::Object(Map::new()));
            map[k.as_str()] = v;
        }
        _ => {
            let v = single(raw, schema, at)?;
            if !drop_zero(f, &v) {
                // A message that comes in pieces is merged.
                match (out.get_mut(f.name.as_ref()), v) {
                    (Some(Value::Object(old)), Value::Object(new)) => old.extend(new),
                    (_, v) => {
                        out.insert(f.name.to_string(), v);
                    }
                }
            }
        }
    }
    Ok(())
}

/// Plain fields are always on the wire, zero or not; JSON leaves their zeros out.
fn drop_zero(f: &Field, v: &Value) -> bool {
    // In these a zero is a value like any other.
    let any = matches!(
        f.schema().ty,
        Ty::Quantity
            | Ty::Any
            | Ty::Json
            | Ty::RawExtension
            | Ty::FieldsV1
            | Ty::PropsOrArray
            | Ty::PropsOrBool
            | Ty::PropsOrStrings
    );
    let zero = match v {
        Value::Null => return true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        _ => false,
    };
    zero && !any && !f.required && !f.optional
}

fn repeated(list: &mut Vec<Value>, raw: Raw, item: &Schema, at: At<'_>) -> Result<(), Error> {
    if let (Ty::Int32 | Ty::Int64 | Ty::Boolean, Raw::Bytes(b)) = (item.ty, raw) {
        let mut packed = Fields(b);
        while !packed.0.is_empty() {
            let v = packed.varint()?;
            at.take(ENTRY_MEMORY)?;
            list.push(single(Raw::Varint(v), item, at)?);
        }
        return Ok(());
    }
    at.take(ENTRY_MEMORY)?;
    list.push(single(raw, item, at)?);
    Ok(())
}

fn single(raw: Raw, schema: &Schema, at: At<'_>) -> Result<Value, Error> {
    let at = at.deeper()?;
    Ok(match schema.ty {
        Ty::Boolean => (raw.number() != 0).into(),
        Ty::Int32 => (raw.number() as i32).into(),
        Ty::Int64 => (raw.number() as i64).into(),
        Ty::Number => f64::from_bits(raw.number()).into(),
        Ty::String => text(raw).into(),
        Ty::Bytes => base64::engine::general_purpose::STANDARD.encode(raw.bytes()).into(),
        Ty::Object => {
            let mut map = Map::new();
            message(raw.bytes(), schema, &mut Vec::new(), &mut map, at)?;
            Value::Object(map)
        }
        Ty::Array => {
            let mut list = Vec::new();
            let mut fields = Fields(raw.bytes());
            while let (Some((n, r)), Some(item)) = (fields.field()?, schema.item()) {
                if n == 1 {
                    repeated(&mut list, r, item, at)?;
                }
            }
            Value::Array(list)
        }
        _ => special(raw.bytes(), schema, at)?,
    })
}

fn special(body: &[u8], schema: &Schema, at: At<'_>) -> Result<Value, Error> {
    let mut fields = Fields(body);
    let (mut numbers, mut first, mut second, mut third) = ([0u64; 2], None, Vec::new(), String::new());
    while let Some((n, raw)) = fields.field()? {
        match (n, raw) {
            (1 | 2, Raw::Varint(v)) => numbers[n as usize - 1] = v,
            (1, r) => first = Some(r.bytes()),
            (2, r) => second.push(r.bytes()),
            (3, r) => third = text(r),
            _ => {}
        }
    }
    let props = |b: &[u8]| -> Result<Value, Error> {
        let mut map = Map::new();
        message(b, crate::schema::schema_props(), &mut Vec::new(), &mut map, at)?;
        Ok(Value::Object(map))
    };
    Ok(match schema.ty {
        Ty::Quantity => {
            let s = String::from_utf8_lossy(first.unwrap_or(b"0")).into_owned();
            if s.is_empty() { "0".into() } else { s.into() }
        }
        Ty::Time if body.is_empty() => Value::Null,
        Ty::MicroTime if body.is_empty() => Value::Null,
        Ty::Time => crate::time::format(numbers[0] as i64).into(),
        Ty::MicroTime => crate::time::format_micro(numbers[0] as i64, numbers[1] as u32).into(),
        Ty::IntOrString if numbers[0] == 1 => third.into(),
        Ty::IntOrString => (numbers[1] as i32).into(),
        Ty::PropsOrArray => match first {
            Some(b) => props(b)?,
            None => Value::Array(second.into_iter().map(props).collect::<Result<_, _>>()?),
        },
        Ty::PropsOrBool => match second.first() {
            Some(b) => props(b)?,
            None => (numbers[0] != 0).into(),
        },
        Ty::PropsOrStrings => match first {
            Some(b) => props(b)?,
            None => second.into_iter().map(|b| Value::from(String::from_utf8_lossy(b).into_owned())).collect(),
        },
        _ => match first {
            Some(b) if b.starts_with(MAGIC) => object(b, None, at)?,
            Some(b) if !b.is_empty() => crate::codec::parse_json_within(b, at.room).map_err(Error::Json)?.value,
            _ => Value::Null,
        },
    })
}
