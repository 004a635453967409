//! node-init.
