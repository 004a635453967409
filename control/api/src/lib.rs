//! API machinery without I/O, driven by tables. Objects are `serde_json::Value`
//! (maps are ordered); the clock is always an argument.
//!
//! Where to begin:
//! - [`kinds::Registry`] finds a [`kinds::Kind`] by resource or by kind, built-in
//!   or custom; [`crd::kinds`] makes the custom ones from a CRD.
//! - [`codec::decode`] and [`codec::encode`] read and write JSON, YAML and
//!   protobuf; [`codec::negotiate`] reads an Accept header; unknown and duplicate
//!   fields come back as `Decoded::strict`.
//! - [`defaults::apply`], [`validation::create`], [`validation::update`]: what
//!   happens to an object on its way to the store.
//! - [`patch::apply`] for JSON, merge and strategic patches; [`apply`] for
//!   server-side apply and `managedFields` of every other write.
//! - [`selector`] for label and field selectors, [`table`] for printed rows,
//!   [`discovery`] and [`openapi`] for the documents that describe the API.
//! - [`status::Status`] is the error of everything here, ready to be sent.

// Statuses are made when a request fails and moved once; boxing them buys nothing.
#![allow(clippy::result_large_err)]
#![cfg_attr(test, recursion_limit = "256")]

pub mod apply;
mod blob;
pub mod codec;
pub mod continuation;
pub mod convert;
pub mod crd;
pub mod defaults;
pub mod discovery;
pub mod kinds;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod qos;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod time;
pub mod usage;
pub mod validation;
