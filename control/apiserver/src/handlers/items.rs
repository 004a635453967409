//! Objects in the form that was negotiated: one by one for watches, and as the items of lists.
//!
//! A list is never whole in memory: its envelope and its items are written piece by piece as
//! the client takes them, whatever the form.

use std::sync::Arc;

use api::codec::{Accept, Format, Transform};
use api::kinds::Kind;
use api::protobuf::wire;
use api::table::Include;
use base64::Engine as _;
use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Scope, respond};
use crate::error::{ApiError, Result};
use crate::object::Object;
use crate::pipeline::Body;

/// Bytes that go out in one piece.
const PIECE: usize = 32 << 10;
/// Items that are measured before others get their turn.
const TURN: usize = 64;

/// How a request wants its objects.
#[derive(Clone, Debug)]
pub(super) struct Form {
    kind: Arc<Kind>,
    accept: Accept,
    /// Whether stored objects are what clients of this version get.
    as_stored: bool,
    include: Include,
}

#[derive(Deserialize)]
struct Light<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

impl Form {
    /// The form that a request asks for.
    pub(super) fn of(scope: &Scope<'_>) -> Result<Form> {
        Ok(Form {
            kind: scope.kind.clone(),
            accept: scope.accept.clone(),
            as_stored: respond::served_as_stored(scope),
            include: respond::include(scope)?,
        })
    }

    /// Whether stored bytes can go out as they are.
    pub(super) fn is_stored_json(&self) -> bool {
        self.as_stored && respond::plain_json(&self.accept)
    }

    pub(super) fn is_protobuf(&self) -> bool {
        self.accept.format == Format::Protobuf
    }

    /// Whether the stored object itself is wanted, in whatever encoding.
    fn is_plain(&self) -> bool {
        self.as_stored && self.accept.transform == Transform::None
    }

    /// The object in protobuf with its envelope, if it is wanted as it is.
    pub(super) fn enveloped(&self, object: &Object) -> Option<Vec<u8>> {
        let plain = self.is_protobuf() && self.is_plain();
        plain.then(|| api::protobuf::wrap(&self.kind.api_version(), &self.kind.kind, &self.message(object)))
    }

    /// The object in the request's version.
    fn served(&self, object: &Object) -> Value {
        let mut value = object.value();
        if !self.as_stored {
            crate::versions::serve(&mut value, &self.kind);
        }
        value
    }

    /// PartialObjectMetadata as JSON, without a look at the rest of the object.
    fn partial(&self, object: &Object, version: &str) -> String {
        let metadata = serde_json::from_slice::<Light<'_>>(&object.json).map_or("{}", |light| light.metadata.get());
        format!(
            "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata}}}"
        )
    }

    /// What stands for the object in a watch event: `columns` says whether a table names them.
    pub(super) fn whole(&self, object: &Object, columns: bool) -> Value {
        match &self.accept.transform {
            Transform::Table(version) => {
                crate::table::of_event(&self.kind, &self.served(object), version, self.include, columns)
            }
            Transform::Partial(version) | Transform::PartialList(version) => {
                serde_json::from_str(&self.partial(object, version)).unwrap_or_default()
            }
            _ => self.served(object),
        }
    }

    /// What stands for a bookmark, of which only the metadata counts.
    pub(super) fn bookmark(&self, metadata: Value, columns: bool) -> Value {
        let value = json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata});
        match &self.accept.transform {
            Transform::Table(version) => crate::table::of_bookmark(&self.kind, &value, version, columns),
            Transform::Partial(version) | Transform::PartialList(version) => respond::partial(&value, version),
            _ => value,
        }
    }

    pub(super) fn watch_content_type(&self) -> String {
        self.accept.watch_content_type()
    }

    /// One item of a list as JSON: the object, its metadata, or its row of a table.
    fn item(&self, object: &Object) -> Value {
        match &self.accept.transform {
            Transform::Table(version) => crate::table::row(&self.kind, &self.served(object), version, self.include),
            _ => self.whole(object, false),
        }
    }

    /// One item of a list, as its bytes.
    fn write_item(&self, out: &mut Vec<u8>, object: &Object) {
        match (self.accept.format, &self.accept.transform) {
            (Format::Json, _) if self.accept.pretty => indent(out, &api::codec::pretty(&self.item(object)), "    "),
            (Format::Json, Transform::None) if self.as_stored => out.extend_from_slice(&object.json),
            (Format::Json, Transform::PartialList(version)) => {
                out.extend_from_slice(self.partial(object, version).as_bytes())
            }
            // Writing to memory does not fail.
            (Format::Json, _) => drop(serde_json::to_writer(out, &self.item(object))),
            (Format::Yaml, _) => {
                let text = api::codec::encode(&self.item(object), Format::Yaml, None).unwrap_or_default();
                out.extend_from_slice(b"- ");
                indent(out, &text, "  ");
            }
            (Format::Protobuf, _) => wire::bytes_field(out, 2, &self.message(object)),
        }
    }

    /// The protobuf message of an item, without an envelope.
    fn message(&self, object: &Object) -> Vec<u8> {
        if self.is_plain() {
            // What is stored was read when it entered the cache.
            let message = api::protobuf::encode_json(&object.json, self.kind.schema()).unwrap_or_default();
            object.set_message_size(message.len());
            return message;
        }
        let partial = match &self.accept.transform {
            Transform::Partial(_) | Transform::PartialList(_) => {
                api::protobuf::schema_of("meta.k8s.io/v1", "PartialObjectMetadata")
            }
            _ => None,
        };
        api::protobuf::encode_message(&self.item(object), partial.unwrap_or(self.kind.schema()))
    }

    /// The list's own fields: `kind`, `apiVersion`, `metadata`, and where the items go.
    fn envelope(&self, metadata: &Value) -> (Vec<(&'static str, Value)>, &'static str) {
        match &self.accept.transform {
            Transform::Table(version) => {
                let columns = api::table::columns(&self.kind);
                let own = [
                    ("kind", "Table".into()),
                    ("apiVersion", format!("meta.k8s.io/{version}").into()),
                    ("metadata", metadata.clone()),
                    ("columnDefinitions", columns),
                ];
                (own.to_vec(), "rows")
            }
            Transform::Partial(version) | Transform::PartialList(version) => {
                let own = [
                    ("kind", "PartialObjectMetadataList".into()),
                    ("apiVersion", format!("meta.k8s.io/{version}").into()),
                    ("metadata", metadata.clone()),
                ];
                (own.to_vec(), "items")
            }
            _ => {
                let own = [
                    ("kind", self.kind.list_kind.as_ref().into()),
                    ("apiVersion", self.kind.api_version().into()),
                    ("metadata", metadata.clone()),
                ];
                (own.to_vec(), "items")
            }
        }
    }

    /// What stands before, between and after the items.
    fn frame(&self, metadata: &Value, empty: bool) -> (Vec<u8>, &'static [u8], &'static [u8]) {
        let (own, items) = self.envelope(metadata);
        let object = || Value::Object(own.iter().map(|(k, v)| (k.to_string(), v.clone())).collect());
        match self.accept.format {
            Format::Yaml => {
                let mut head = api::codec::encode(&object(), Format::Yaml, None).unwrap_or_default();
                head.extend_from_slice(format!("{items}:{}\n", if empty { " []" } else { "" }).as_bytes());
                (head, b"", b"")
            }
            _ if self.accept.pretty => {
                let mut head = api::codec::pretty(&object());
                head.truncate(head.len() - "\n}\n".len());
                head.extend_from_slice(format!(",\n  \"{items}\": [\n    ").as_bytes());
                (head, b",\n    ", b"\n  ]\n}\n")
            }
            _ => {
                let own: Vec<String> = own.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
                (format!("{{{},\"{items}\":[", own.join(",")).into_bytes(), b",", b"]}\n")
            }
        }
    }

    /// The empty list in the form of this request, in base64: with it a client that watches makes the list that it
    /// did not ask for (`kubernetes.io/initial-events-list-blueprint`). There is none of a table.
    pub(super) fn blueprint(&self) -> String {
        let mut form = self.clone();
        form.accept.pretty = false;
        if matches!(form.accept.transform, Transform::Table(_)) {
            form.accept.transform = Transform::None;
        }
        let metadata = json!({});
        let bytes = if form.is_protobuf() {
            form.protobuf_head(&metadata, 0)
        } else {
            let (head, _, tail) = form.frame(&metadata, true);
            [&head, tail].concat()
        };
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    /// The protobuf list's envelope up to its first item: lengths stand first, so that the
    /// size of all items must be known.
    fn protobuf_head(&self, metadata: &Value, items: usize) -> Vec<u8> {
        let (own, _) = self.envelope(metadata);
        let text = |i: usize| own[i].1.as_str().unwrap_or("").to_string();
        let meta = api::protobuf::list_message(metadata, std::iter::empty());
        api::protobuf::wrap_head(&text(1), &text(0), &meta, meta.len() + items)
    }
}

/// Lines after the first get `margin` before them; the last line's end goes.
fn indent(out: &mut Vec<u8>, text: &[u8], margin: &str) {
    let last_end = text.len() - usize::from(text.ends_with(b"\n"));
    for byte in &text[..last_end] {
        out.push(*byte);
        if *byte == b'\n' {
            out.extend_from_slice(margin.as_bytes());
        }
    }
    if margin.len() == 2 {
        out.push(b'\n');
    }
}

/// What is still to be sent of a list.
struct Rest {
    form: Form,
    objects: Vec<Arc<Object>>,
    at: usize,
    /// About how many bytes all of it is.
    size: usize,
    head: Vec<u8>,
    between: &'static [u8],
    tail: &'static [u8],
    ended: bool,
}

impl Rest {
    /// The next piece; the items' bytes are made now.
    fn piece(&mut self, most: usize) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.head);
        out.reserve(self.size.min(PIECE) + PIECE / 8);
        while self.at < self.objects.len() && out.len() < most {
            if self.at > 0 {
                out.extend_from_slice(self.between);
            }
            self.form.write_item(&mut out, &self.objects[self.at]);
            self.at += 1;
        }
        if self.at == self.objects.len() {
            out.extend_from_slice(self.tail);
            self.ended = true;
        }
        out
    }
}

/// A list of these objects as a body.
pub(super) async fn list(form: Form, metadata: &Value, objects: Vec<Arc<Object>>) -> Body {
    let (head, between, tail): (_, &[u8], &[u8]) = if form.is_protobuf() {
        (form.protobuf_head(metadata, measured(&form, &objects).await), b"", b"")
    } else {
        form.frame(metadata, objects.is_empty())
    };
    let size: usize = objects.iter().map(|o| o.json.len()).sum();
    let mut rest = Rest { form, objects, at: 0, size, head, between, tail, ended: false };
    if size <= PIECE {
        return crate::pipeline::full(rest.piece(usize::MAX));
    }
    let pieces = stream::unfold(rest, |mut rest| async move {
        if rest.ended {
            return None;
        }
        let piece: Result<Frame<Bytes>, std::io::Error> = Ok(Frame::data(rest.piece(PIECE).into()));
        Some((piece, rest))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// The size of all items in protobuf.
async fn measured(form: &Form, objects: &[Arc<Object>]) -> usize {
    let mut total = 0;
    for (i, object) in objects.iter().enumerate() {
        if i % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        let known = object.message_size().filter(|_| form.is_plain());
        let size = known.unwrap_or_else(|| form.message(object).len());
        total += wire::bytes_field_size(2, size);
    }
    total
}

/// A single object cannot be shown as a list, and a list not as one object.
pub(super) fn check_shape(accept: &Accept, is_list: bool) -> Result<()> {
    match (&accept.transform, is_list) {
        (Transform::Partial(_), true) => {
            Err(ApiError::not_acceptable("you requested PartialObjectMetadata, but the requested object is a list"))
        }
        (Transform::PartialList(_), false) => Err(ApiError::not_acceptable(
            "you requested PartialObjectMetadataList, but the requested object is not a list",
        )),
        _ => Ok(()),
    }
}
