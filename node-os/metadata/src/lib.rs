//! node-metadata.
