//! Admission: changes and refuses writes after authorisation.
//!
//! Called from one place (the write handlers) with objects in the storage version:
//! [`Admission::mutate`] before validation, [`Admission::validate`] after it.

use std::sync::Arc;

use serde_json::Value;

use crate::config::Config;
use crate::error::Result;
use crate::request::{RequestInfo, UserInfo, Verb};
use crate::state::AppState;

/// What is being done, to whom.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    pub state: &'a Arc<AppState>,
    pub info: &'a RequestInfo,
    pub user: &'a UserInfo,
    /// Create, Update, Delete, or Create with a subresource for connects (exec, proxy).
    pub operation: Operation,
    /// Kind of the object (for subresources: of what is written, `Scale`, `Eviction`, ...).
    pub group: &'a str,
    pub version: &'a str,
    pub kind: &'a str,
    /// Of the object; on create with generateName the generated name.
    pub namespace: &'a str,
    pub name: &'a str,
    pub dry_run: bool,
}

/// Admission's own verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As webhooks and policies spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }

    /// The operation of a verb that writes.
    pub fn of(verb: Verb) -> Operation {
        match verb {
            Verb::Create => Operation::Create,
            Verb::Delete | Verb::DeleteCollection => Operation::Delete,
            _ => Operation::Update,
        }
    }
}

/// Warnings to be sent with the answer.
pub type Warnings = Vec<String>;

/// The built-in plugins, and later the webhooks.
#[derive(Debug)]
pub struct Admission {}

impl Admission {
    /// Reads settings.
    pub fn new(_config: &Config) -> anyhow::Result<Admission> {
        Ok(Admission {})
    }

    /// Runs the mutating plugins.  `old` is None on create.
    pub async fn mutate(&self, _at: Attributes<'_>, _new: &mut Value, _old: Option<&Value>, _warnings: &mut Warnings) -> Result<()> {
        Ok(())
    }

    /// Runs the validating plugins.  `new` is None on delete, `old` is None on create.
    pub async fn validate(&self, _at: Attributes<'_>, _new: Option<&Value>, _old: Option<&Value>, _warnings: &mut Warnings) -> Result<()> {
        Ok(())
    }
}
