//! The OpenAPI documents: what `build.rs` wrote of the built-in kinds, with the custom kinds put
//! in.  They are unpacked as they go out.

use std::io::Read as _;
use std::sync::Arc;

use api::kinds::Kind;
use api::openapi::{self, Frame, Parts};
use bytes::Bytes;
use flate2::read::DeflateDecoder;
use futures::stream;
use http_body::Frame as BodyFrame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};

use crate::GIT_VERSION;
use crate::pipeline::Body;

/// Bytes that go out in one piece.
const PIECE: usize = 64 << 10;

/// Bytes that were packed when the server was built.
#[derive(Clone, Copy)]
struct Part {
    /// Their number, unpacked.
    size: usize,
    deflated: &'static [u8],
}

/// The built-in kinds' part of one document.
#[derive(Clone, Copy)]
struct Builtin {
    group: &'static str,
    version: &'static str,
    hash: &'static str,
    paths: Part,
    schemas: Part,
}

include!(concat!(env!("OUT_DIR"), "/openapi.rs"));

/// A document, and the hash of its state.
pub struct Document {
    pub hash: String,
    pieces: Vec<Piece>,
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Document").field("hash", &self.hash).finish_non_exhaustive()
    }
}

enum Piece {
    Bytes(Vec<u8>),
    Packed(DeflateDecoder<&'static [u8]>),
}

impl Piece {
    fn packed(part: &Part) -> Piece {
        Piece::Packed(DeflateDecoder::new(part.deflated))
    }
}

impl Document {
    fn whole(hash: String, frame: Frame, parts: Parts) -> Document {
        let [head, middle, tail] = frame;
        Document { hash, pieces: [head, parts.paths, middle, parts.schemas, tail].map(Piece::Bytes).into() }
    }

    fn spliced(hash: String, frame: Frame, builtin: &Builtin, more: Parts) -> Document {
        let [head, middle, tail] = frame;
        let pieces = [
            Piece::Bytes(head),
            Piece::packed(&builtin.paths),
            Piece::Bytes(more.paths),
            Piece::Bytes(middle),
            Piece::packed(&builtin.schemas),
            Piece::Bytes(more.schemas),
            Piece::Bytes(tail),
        ];
        Document { hash, pieces: pieces.into() }
    }

    /// The document as a body, unpacked piece by piece.
    pub fn into_body(self) -> Body {
        let pieces = stream::unfold(self.pieces.into_iter().peekable(), |mut pieces| async move {
            let mut out = Vec::with_capacity(PIECE);
            while out.len() < PIECE {
                match pieces.peek_mut() {
                    None => break,
                    Some(Piece::Bytes(bytes)) => {
                        out.append(bytes);
                        pieces.next();
                    }
                    Some(Piece::Packed(decoder)) => {
                        let room = (PIECE - out.len()) as u64;
                        match decoder.by_ref().take(room).read_to_end(&mut out) {
                            Ok(0) => drop(pieces.next()),
                            Ok(_) => {}
                            Err(error) => return Some((Err(error), pieces)),
                        }
                    }
                }
            }
            (!out.is_empty()).then(|| (Ok(BodyFrame::data(Bytes::from(out))), pieces))
        });
        StreamBody::new(pieces).boxed_unsync()
    }
}

fn customs(kinds: &[Arc<Kind>]) -> Vec<Arc<Kind>> {
    kinds.iter().filter(|k| k.is_custom()).cloned().collect()
}

fn with_comma(mut part: Vec<u8>) -> Vec<u8> {
    if !part.is_empty() {
        part.insert(0, b',');
    }
    part
}

/// The v2 document, as JSON or in protobuf; custom kinds are put in at once.
pub fn v2(kinds: &[Arc<Kind>], protobuf: bool) -> Document {
    let customs = customs(kinds);
    let builtin = if protobuf { &V2_PROTOBUF } else { &V2 };
    let hash = v2_hash(&customs, builtin);
    if protobuf {
        let more = openapi::v2_protobuf_custom_parts(&customs);
        let (paths, schemas) = (builtin.paths.size + more.paths.len(), builtin.schemas.size + more.schemas.len());
        return Document::spliced(hash, openapi::v2_protobuf_frame(GIT_VERSION, paths, schemas), builtin, more);
    }
    let more = openapi::v2_custom_parts(&customs);
    let more = Parts { paths: with_comma(more.paths), schemas: with_comma(more.schemas) };
    Document::spliced(hash, openapi::v2_frame(GIT_VERSION), builtin, more)
}

fn v2_hash(customs: &[Arc<Kind>], builtin: &Builtin) -> String {
    let states: Vec<String> = customs.iter().map(|k| openapi::custom_state(k)).collect();
    let mut all = vec![GIT_VERSION.as_bytes(), builtin.hash.as_bytes()];
    all.extend(states.iter().map(|s| s.as_bytes()));
    openapi::hash(&all)
}

/// The hash of a group and version's v3 document.  None: there is none.
pub fn v3_hash(kinds: &[Arc<Kind>], group: &str, version: &str) -> Option<String> {
    let builtin = V3.iter().find(|b| b.group == group && b.version == version);
    let of = kinds.iter().filter(|k| k.is_custom() && k.group == group && k.version == version);
    let states: Vec<String> = of.map(|k| openapi::custom_state(k)).collect();
    if builtin.is_none() && states.is_empty() {
        return None;
    }
    let mut all = vec![GIT_VERSION.as_bytes(), builtin.map_or("", |b| b.hash).as_bytes()];
    all.extend(states.iter().map(|s| s.as_bytes()));
    Some(openapi::hash(&all))
}

/// The v3 document of a group and version.
pub fn v3(kinds: &[Arc<Kind>], group: &str, version: &str) -> Option<Document> {
    let hash = v3_hash(kinds, group, version)?;
    let frame = openapi::v3_frame(GIT_VERSION);
    let custom = kinds.iter().any(|k| k.is_custom() && k.group == group && k.version == version);
    match V3.iter().find(|b| b.group == group && b.version == version) {
        Some(builtin) if !custom => Some(Document::spliced(hash, frame, builtin, Parts::default())),
        _ => openapi::v3_parts(kinds, group, version).map(|parts| Document::whole(hash, frame, parts)),
    }
}

/// The list of v3 documents, by paths, with the hashes of their states.
pub fn v3_index(kinds: &[Arc<Kind>]) -> Value {
    let entry = |(path, group, version): (String, String, String)| {
        let hash = v3_hash(kinds, &group, &version)?;
        let url = format!("/openapi/v3/{path}?hash={hash}");
        Some((path, json!({"serverRelativeURL": url})))
    };
    let paths: serde_json::Map<String, Value> = openapi::group_versions(kinds).into_iter().filter_map(entry).collect();
    json!({"paths": paths})
}
