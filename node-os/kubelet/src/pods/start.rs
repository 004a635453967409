//! Starting one container: image, environment, mounts, creation, start, postStart hook.

use super::spec::{self, Kind};
use super::status::Waiting;
use crate::container::downward::Facts;
use crate::container::{config, env, service_env};
use crate::cri::{ContainerConfig, PodSandboxConfig};
use crate::events;
use crate::images::{Credentials, Pulled};
use crate::kubelet::Kubelet;
use crate::probes::attempt;
use crate::volumes::{self, Volumes};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Service};
use kube::api::{Api, ListParams};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why a container did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For the container's status.
    pub waiting: Waiting,
    /// When to try again.
    pub again: Duration,
}

/// What a container is started with.
pub struct Starter<'a> {
    /// The kubelet.
    pub kubelet: &'a Arc<Kubelet>,
    /// Its pod.
    pub pod: &'a Arc<Pod>,
    /// The pod's sandbox in the runtime.
    pub sandbox: &'a str,
    /// As it was asked for.
    pub sandbox_config: &'a PodSandboxConfig,
    /// Volumes that are ready.
    pub volumes: &'a Volumes,
    /// What the downward API tells.
    pub facts: &'a Facts,
    /// Pull secrets.
    pub credentials: &'a Credentials,
}

const AGAIN: Duration = Duration::from_secs(5);

fn failure(reason: &str, message: impl Into<String>) -> Failure {
    Failure { waiting: Waiting { reason: reason.into(), message: message.into() }, again: AGAIN }
}

impl Starter<'_> {
    /// Starts a container; its runtime id. The postStart hook is the caller's, who has the probes.
    pub async fn start(
        &self,
        kind: Kind,
        container: &Container,
        restarts: u32,
        target: Option<&str>,
    ) -> Result<String, Failure> {
        let reference = || events::pod_reference(self.pod, Some(super::field_path(kind, &container.name)));
        let Some(images) = &self.kubelet.images else {
            return Err(failure("CreateContainerError", "this node has no container runtime"));
        };
        let image = images
            .ensure(
                self.pod,
                container,
                Some(super::field_path(kind, &container.name)),
                self.credentials,
                self.sandbox_config,
            )
            .await
            .map_err(|r| Failure { waiting: Waiting { reason: r.reason, message: r.message }, again: r.again })?;
        let config = match self.config(container, restarts, target, &image).await {
            Ok(config) => config,
            Err(message) => {
                self.kubelet.events.warning(reference(), "Failed", format!("Error: {message}"));
                return Err(failure("CreateContainerConfigError", message));
            }
        };
        let cri = images.cri();
        let log = PathBuf::from(&self.sandbox_config.log_directory).join(&config.log_path);
        let id = match cri.create_container(self.sandbox, config, self.sandbox_config.clone()).await {
            Ok(id) => id,
            Err(error) => {
                self.kubelet.events.warning(reference(), "Failed", format!("Error: {error}"));
                return Err(failure("CreateContainerError", error.to_string()));
            }
        };
        self.kubelet.events.normal(reference(), "Created", format!("Created container: {}", container.name));
        if let Err(error) = cri.start_container(&id).await {
            self.kubelet.events.warning(reference(), "Failed", format!("Error: {error}"));
            return Err(failure("RunContainerError", error.to_string()));
        }
        self.kubelet.events.normal(reference(), "Started", format!("Started container {}", container.name));
        self.link_log(container, &id, &log);
        Ok(id)
    }

    async fn config(
        &self,
        container: &Container,
        restarts: u32,
        target: Option<&str>,
        image: &Pulled,
    ) -> Result<ContainerConfig, String> {
        crate::container::security::check_non_root(self.pod, container, image.uid, &image.user)?;
        let sources = self.sources(container).await?;
        let services = self.services().await?;
        let env = env::build(self.pod, container, &services, &sources, self.facts)?;
        let pod_dir = self.kubelet.options.pod_dir(spec::uid(self.pod));
        let mut mounts = volumes::mount::volumes(self.pod, container, self.volumes, &env, &pod_dir)?;
        mounts.extend(volumes::mount::hosts(container, &volumes::mount::hosts_path(&pod_dir)));
        mounts.push(volumes::mount::last_words(&pod_dir, container, restarts)?);
        let log_dir = PathBuf::from(&self.sandbox_config.log_directory).join(&container.name);
        volumes::make_directory(&log_dir)?;
        Ok(config::config(
            self.pod,
            container,
            config::Parts {
                env,
                mounts,
                devices: Vec::new(),
                image_ref: &image.reference,
                restarts,
                target,
                image_user: &image.user,
                memory_capacity: self.kubelet.node.memory_capacity(),
                cgroup_v2: self.kubelet.cgroups.is_some(),
                seccomp_root: &self.kubelet.options.flags.root_dir.join("seccomp"),
            },
        ))
    }

    async fn sources(&self, container: &Container) -> Result<env::Sources, String> {
        let (maps, secrets) = env::references(container);
        let namespace = spec::namespace(self.pod);
        let mut sources = env::Sources::default();
        for name in maps {
            let api: Api<ConfigMap> = Api::namespaced(self.kubelet.api.clone(), namespace);
            let found = api.get_opt(&name).await.map_err(|e| crate::client::explain(&e))?;
            sources.config_maps.insert(name, found.map(|m| m.data.unwrap_or_default()));
        }
        for name in secrets {
            let api: Api<Secret> = Api::namespaced(self.kubelet.api.clone(), namespace);
            let found = api.get_opt(&name).await.map_err(|e| crate::client::explain(&e))?;
            sources.secrets.insert(name, found.map(|s| s.data.unwrap_or_default()));
        }
        Ok(sources)
    }

    /// The API's own service, and those of the pod's namespace if it wants them.
    async fn services(&self) -> Result<Vec<(String, String)>, String> {
        let links = spec::of(self.pod).enable_service_links.unwrap_or(true);
        let namespace = spec::namespace(self.pod);
        let explain = |e: kube::Error| {
            format!(
                "services have not yet been read at least once, cannot construct envvars: {}",
                crate::client::explain(&e)
            )
        };
        let mut list = Vec::new();
        if links {
            let api: Api<Service> = Api::namespaced(self.kubelet.api.clone(), namespace);
            list = api.list(&ListParams::default().match_any()).await.map_err(explain)?.items;
        }
        if !(links && namespace == "default") {
            let api: Api<Service> = Api::namespaced(self.kubelet.api.clone(), "default");
            list.extend(api.get_opt("kubernetes").await.map_err(explain)?);
        }
        list.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        Ok(service_env::variables(&list))
    }

    /// The name under which log collectors look for the log.
    fn link_log(&self, container: &Container, id: &str, log: &std::path::Path) {
        let directory = self.kubelet.options.container_log_dir();
        let name = format!("{}_{}_{}-{id}.log", spec::name(self.pod), spec::namespace(self.pod), container.name);
        let result =
            std::fs::create_dir_all(&directory).and_then(|()| std::os::unix::fs::symlink(log, directory.join(&name)));
        if let Err(error) = result {
            tracing::debug!("linking the log of {name}: {error}");
        }
    }

    /// Runs the postStart hook; a failure ends the container.
    pub async fn post_start(&self, kind: Kind, container: &Container, id: &str) -> Result<(), Failure> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
        let Some(images) = &self.kubelet.images else { return Ok(()) };
        let target = attempt::Target { ip: self.facts.pod_ips.first().copied(), container: container.clone() };
        let Err(error) = super::kill::run_hook(images.cri(), id, hook, &target).await else { return Ok(()) };
        let reference = events::pod_reference(self.pod, Some(super::field_path(kind, &container.name)));
        self.kubelet.events.warning(reference.clone(), "FailedPostStartHook", format!("PostStartHook failed: {error}"));
        self.kubelet.events.normal(reference, "Killing", "FailedPostStartHook");
        if let Err(error) = images.cri().stop_container(id, spec::grace(self.pod)).await {
            tracing::warn!("stopping container {} of {}: {error}", container.name, spec::full_name(self.pod));
        }
        Err(failure("PostStartHookError", format!("PostStartHook failed: {error}")))
    }
}
