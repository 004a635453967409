//! The protobuf form of built-in kinds, by the field numbers of the tables.
//!
//! Bodies are `k8s\0` and a `runtime.Unknown` message that carries the type and
//! the kind's own message; watches are frames with a length in front.

mod decode;
mod encode;
mod transcode;
pub mod wire;

pub use decode::{decode_message, decode_object};
pub use encode::encode_message;
pub use transcode::encode_json;

use crate::schema::Schema;
use serde_json::Value;
use wire::{bytes_field, string_field};

/// What the body begins with.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    #[error("the protobuf message ends too early")]
    Truncated,
    #[error("the protobuf message has a field of wire type {0}, which is not used")]
    WireType(u8),
    #[error("the protobuf message nests too deeply")]
    Depth,
    #[error("the protobuf message holds too many values; make it smaller")]
    Large,
    #[error("the protobuf message holds JSON that cannot be read: {0}")]
    Json(serde_json::Error),
    #[error("no protobuf form is known for {0}")]
    Unknown(String),
}

/// The whole body of an object: envelope and message.
pub fn encode_object(object: &Value, schema: Option<&Schema>) -> Vec<u8> {
    let (v, k) = (crate::meta::api_version(object), crate::meta::kind(object));
    let found = schema.or_else(|| schema_of(v, k));
    wrap(v, k, &found.map(|s| encode_message(object, s)).unwrap_or_default())
}

/// The schema for an apiVersion and kind: a built-in kind, its list, or one of meta's.
pub fn schema_of(api_version: &str, kind: &str) -> Option<&'static Schema> {
    let (g, v) = crate::kinds::split_api_version(api_version);
    if g == "meta.k8s.io" {
        return partial_schema(kind);
    }
    crate::kinds::type_schema(g, v, kind)
}

/// PartialObjectMetadata and its list are not in OpenAPI; their messages are
/// `metadata = 1` and `metadata = 1, items = 2`.
fn partial_schema(kind: &str) -> Option<&'static Schema> {
    use crate::schema::{Field, Ref, Ty, index_of};
    use std::sync::{Arc, LazyLock};
    static PARTIAL: LazyLock<Schema> = LazyLock::new(|| {
        let mut s = Schema::of(Ty::Object);
        let meta = index_of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").map_or(Ref::Leaf(Ty::Any), Ref::Type);
        let mut f = Field::custom("metadata".into(), meta, false);
        f.number = 1;
        s.fields = vec![f];
        s
    });
    static LIST: LazyLock<Schema> = LazyLock::new(|| {
        let mut item = Schema::of(Ty::Object);
        let meta = index_of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").map_or(Ref::Leaf(Ty::Any), Ref::Type);
        let mut f = Field::custom("metadata".into(), meta, false);
        f.number = 1;
        item.fields = vec![f];
        let mut array = Schema::of(Ty::Array);
        array.items = Some(Ref::Own(Arc::new(item)));
        let list = index_of("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta").map_or(Ref::Leaf(Ty::Any), Ref::Type);
        let mut items = Field::custom("items".into(), Ref::Own(Arc::new(array)), false);
        items.number = 2;
        let mut meta = Field::custom("metadata".into(), list, false);
        meta.number = 1;
        let mut s = Schema::of(Ty::Object);
        s.fields = vec![items, meta];
        s
    });
    match kind {
        "PartialObjectMetadata" => Some(&PARTIAL),
        "PartialObjectMetadataList" => Some(&LIST),
        _ => None,
    }
}

/// The envelope of a message that follows in pieces: `start` is how it begins, `size` how long
/// all of it is.
pub fn wrap_head(api_version: &str, kind: &str, start: &[u8], size: usize) -> Vec<u8> {
    let mut meta = Vec::with_capacity(32);
    string_field(&mut meta, 1, api_version);
    string_field(&mut meta, 2, kind);
    let mut out = Vec::with_capacity(start.len() + meta.len() + 16);
    out.extend_from_slice(MAGIC);
    bytes_field(&mut out, 1, &meta);
    wire::key(&mut out, 2, 2);
    wire::varint(&mut out, size as u64);
    out.extend_from_slice(start);
    out
}

/// Puts a message into its envelope.
pub fn wrap(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut meta = Vec::with_capacity(32);
    string_field(&mut meta, 1, api_version);
    string_field(&mut meta, 2, kind);
    let mut out = Vec::with_capacity(message.len() + meta.len() + 16);
    out.extend_from_slice(MAGIC);
    bytes_field(&mut out, 1, &meta);
    bytes_field(&mut out, 2, message);
    string_field(&mut out, 3, "");
    string_field(&mut out, 4, "");
    out
}

/// The message of a list from its metadata and the messages of its items.
pub fn list_message<'a>(metadata: &Value, items: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    let meta =
        crate::schema::by_name("io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta").map(|s| encode_message(metadata, s));
    bytes_field(&mut out, 1, &meta.unwrap_or_default());
    for item in items {
        bytes_field(&mut out, 2, item);
    }
    out
}

/// A watch event as a frame: `object` is a whole body (with envelope).
pub fn watch_frame(event: &str, object: &[u8]) -> Vec<u8> {
    let mut raw = Vec::with_capacity(object.len() + 8);
    bytes_field(&mut raw, 1, object);
    let mut message = Vec::with_capacity(raw.len() + 16);
    string_field(&mut message, 1, event);
    bytes_field(&mut message, 2, &raw);
    let mut out = Vec::with_capacity(message.len() + 4);
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(&message);
    out
}

#[cfg(test)]
mod tests;
