//! The control plane's decoders.

mod documents;
mod log;
mod small;

pub(crate) const TARGETS: &[(&str, crate::Target)] = &[
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
