//! What outsiders' bytes go through, one target a decoder: no input may make it panic, hang or grow without
//! bound, and what it understood it must understand again after writing it.
//!
//! A finding becomes a file in `corpus/TARGET/`, which the unit tests replay.

mod documents;
mod log;
mod small;

/// What an input goes through.
pub type Target = fn(&[u8]);

/// Name and function of each target.
pub const TARGETS: &[(&str, Target)] = &[
    ("json", documents::json),
    ("yaml", documents::yaml),
    ("protobuf", documents::protobuf),
    ("patch", documents::patch),
    ("apply", documents::apply),
    ("selector", small::selector),
    ("continue", small::continue_token),
    ("quantity", small::quantity),
    ("log", log::log),
];
