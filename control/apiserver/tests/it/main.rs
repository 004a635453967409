//! A real server on loopback with throw-away certificates, driven over TLS.

mod client;
mod crash;
mod customs;
mod encryption;
mod objects;
mod watches;
