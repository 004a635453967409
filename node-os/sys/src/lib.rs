//! node-sys.
