//! node-api.
