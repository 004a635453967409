//! What is wrong with an object: its metadata, and the rules of its kind.
//!
//! Every built-in kind has its rules in the file of its group, as plain functions over
//! [`at::At`] (a value that knows its path) that add to [`at::Errors`]; `rules.rs` says
//! which of them run for which kind and part. Custom resources go by their schema.

mod admission;
mod apps;
mod at;
mod autoscaling;
mod batch;
mod certificates;
mod cluster;
mod coordination;
mod core;
mod cron;
mod customs;
mod devices;
mod discovery;
mod flow;
mod metadata;
mod networking;
mod pod;
mod policy;
mod rbac;
mod resources;
mod rules;
mod selectors;
mod storage;

pub use metadata::{manager, metadata, metadata_update};

use crate::kinds::Kind;
use crate::status::FieldError;
use at::{At, Errors};
use serde_json::Value;

/// A write whose result is to be judged.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    pub kind: &'a Kind,
    /// The group that the request named, where a kind is served by two of them.
    pub group: &'a str,
    /// `""`, `status`, or another part that is written on its own.
    pub part: &'a str,
    /// What is there already.
    pub old: Option<&'a Value>,
}

impl<'a> Write<'a> {
    /// A write of a whole object.
    pub fn of(kind: &'a Kind, old: Option<&'a Value>) -> Write<'a> {
        Write { kind, group: &kind.group, part: "", old }
    }

    /// Everything wrong with the object as it would be.
    pub fn faults(&self, new: &Value) -> Vec<FieldError> {
        self.judge(new).0
    }

    /// Everything wrong with the object as it would be, and what its writer is to be warned of.
    pub fn judge(&self, new: &Value) -> (Vec<FieldError>, Vec<String>) {
        let mut out = match self.old {
            None => metadata(self.kind, new),
            Some(old) => metadata_update(self.kind, new, old),
        };
        if self.kind.is_custom() {
            out.extend(customs::faults(self.kind, new, self.old));
            return (out, Vec::new());
        }
        let mut e = Errors(out, Vec::new());
        let at = At::root(new);
        match self.old {
            None => rules::create(&mut e, self.kind, self.group, &at),
            Some(old) => rules::update(&mut e, self, &at, &At::root(old)),
        }
        (e.0, e.1)
    }
}

/// Everything wrong with a new object.
pub fn create(kind: &Kind, o: &Value) -> Vec<FieldError> {
    Write::of(kind, None).faults(o)
}

/// Everything wrong with a change; the new state's own errors included.
pub fn update(kind: &Kind, new: &Value, old: &Value) -> Vec<FieldError> {
    Write::of(kind, Some(old)).faults(new)
}

/// What is wrong with a Binding.
pub fn binding(o: &Value) -> Vec<FieldError> {
    let mut e = Errors::default();
    core::binding(&mut e, &At::root(o));
    e.0
}

#[cfg(test)]
mod tests;
