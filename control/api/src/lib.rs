//! API machinery without I/O, driven by tables. Objects are `serde_json::Value`.
pub mod blob;
pub mod codec;
pub mod crd;
pub mod defaults;
pub mod discovery;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod time;
