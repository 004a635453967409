//! A real server on loopback with throw-away certificates, driven over TLS.

mod client;
mod commands;
mod crash;
mod customs;
mod encryption;
mod etcd;
mod objects;
mod watches;
