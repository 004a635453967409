//! A real server on loopback with throw-away certificates, driven over TLS.

mod bodies;
mod client;
mod commands;
mod crash;
mod customs;
mod documents;
mod encryption;
mod etcd;
mod kept;
mod kinds;
mod limits;
mod masters;
mod members;
mod memory;
mod objects;
mod reads;
mod revoked;
mod rights;
mod watches;
mod writes;
