//! kimg.
