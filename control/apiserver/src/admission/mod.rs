//! Admission: changes and refuses writes after authorisation.
//!
//! Called from one place (the write handlers) with objects in the storage version:
//! [`Admission::mutate`] before validation, [`Admission::validate`] after it.
//! The plugins are plain functions in a fixed order, which is the order of the lines below;
//! webhooks come after the built-in ones, the quota after everything else.

pub mod certificates;
pub mod lifecycle;
pub mod limits;
pub mod node_restriction;
pub mod pod_security;
pub mod pods;
pub mod quota;
pub mod service_account;
pub mod storage;

use std::sync::Arc;

use serde_json::Value;

use crate::authn::view::{self, ClusterView};
use crate::config::Config;
use crate::error::{ApiError, Cause, Result};
use crate::request::{RequestInfo, UserInfo, Verb};
use crate::state::AppState;
use crate::strategy::alloc::Allocator;

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

impl Attributes<'_> {
    /// Whether this is `resource` of `group` itself, not one of its sub-resources.
    pub fn is(&self, group: &str, resource: &str) -> bool {
        self.info.group == group && self.info.resource == resource && self.info.subresource.is_empty()
    }

    /// Whether this is a sub-resource of `resource`.
    pub fn is_sub(&self, group: &str, resource: &str, subresource: &str) -> bool {
        self.info.group == group && self.info.resource == resource && self.info.subresource == subresource
    }

    /// The 403 of a plugin.
    pub fn forbidden(&self, detail: &str) -> ApiError {
        ApiError::forbidden(&self.info.group, &self.info.resource, self.name, detail)
    }

    fn view(&self) -> &dyn ClusterView {
        &self.state.registry
    }
}

/// The built-in plugins, and later the webhooks.
#[derive(Debug)]
pub struct Admission {
    /// Cluster addresses and node ports of Services.
    pub services: Allocator,
    /// Who charges quotas.
    turns: quota::Turns,
    /// Name of the node that this server runs on.
    pub own_node: String,
}

impl Admission {
    /// Reads settings.
    pub fn new(config: &Config) -> anyhow::Result<Admission> {
        let services = Allocator::new(
            &config.service_cluster_ip_range,
            &config.service_node_port_range,
            !config.etcd.etcd_servers.is_empty(),
        );
        // A node's name is its host name; without one nobody is beside us.
        let own_node = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_string();
        Ok(Admission { services: services.map_err(anyhow::Error::msg)?, turns: quota::Turns::default(), own_node })
    }

    /// Runs the mutating plugins.  `old` is None on create.
    pub async fn mutate(
        &self,
        at: Attributes<'_>,
        new: &mut Value,
        old: Option<&Value>,
        _warnings: &mut Warnings,
    ) -> Result<()> {
        lifecycle::check(&at)?;
        node_restriction::check(&at, Some(new), old)?;
        if at.operation == Operation::Create && at.is("", "pods") {
            limits::set_defaults(&at, new);
            service_account::admit(&at, new).await?;
            pods::priority(&at, new)?;
            pods::default_tolerations(new);
            pods::runtime_class(&at, new)?;
            // What the plugins added may change the class.
            new["status"]["qosClass"] = api::qos::class(new).into();
        }
        if at.operation == Operation::Create {
            pods::taint_new_node(&at, new);
            storage::default_class(&at, new);
            storage::protect(&at, new);
            storage::default_ingress_class(&at, new);
        }
        certificates::check(&at, new, old)?;
        Ok(())
    }

    /// Runs the validating plugins.  `new` is None on delete, `old` is None on create.
    pub async fn validate(
        &self,
        at: Attributes<'_>,
        new: Option<&Value>,
        old: Option<&Value>,
        warnings: &mut Warnings,
    ) -> Result<()> {
        if let Some(new) = new {
            limits::validate(&at, new)?;
            storage::resize(&at, new, old)?;
            pods::priority_class(&at, new)?;
            pod_security::check(&at, new, old, warnings)?;
            pod_security::check_namespace(&at, new, old, warnings)?;
            not_in_force(&at, new, old, warnings)?;
            quota::charge(&at, new, old).await?;
        } else {
            lifecycle::check_delete(&at)?;
            node_restriction::check(&at, None, old)?;
        }
        Ok(())
    }
}

/// Says of what others would rely on that it is not done: webhooks and policies are kept and hold nobody back, and
/// objects are not converted. Where several versions are served that would spoil them, so that is refused.
fn not_in_force(at: &Attributes<'_>, new: &Value, old: Option<&Value>, warnings: &mut Warnings) -> Result<()> {
    if at.info.group == "admissionregistration.k8s.io" && at.info.subresource.is_empty() {
        warnings.push(format!(
            "{} {:?} is stored and not in force: this server calls no admission webhooks and evaluates no admission policies yet",
            at.kind, at.name
        ));
    }
    if !at.is("apiextensions.k8s.io", "customresourcedefinitions") {
        return Ok(());
    }
    let spoils = |crd: &Value| {
        let served = view::items_at(crd, "/spec/versions").iter().filter(|v| v["served"] == true).count();
        (crd["spec"]["conversion"]["strategy"] == "Webhook").then_some(served > 1)
    };
    match spoils(new) {
        Some(true) if old.and_then(spoils) != Some(true) => {
            let field = "spec.conversion.strategy";
            let mut cause = Cause::not_supported(field, &"Webhook".into(), &["None"]);
            cause
                .message
                .push_str(": this server calls no conversion webhooks yet, and more than one version is served");
            Err(ApiError::invalid("apiextensions.k8s.io", "CustomResourceDefinition", at.name, vec![cause]))
        }
        Some(_) => {
            let text = "spec.conversion.strategy: this server calls no conversion webhooks yet: objects are stored and served as they are";
            warnings.push(text.to_string());
            Ok(())
        }
        None => Ok(()),
    }
}
