//! The kubelet's parts put together, in the order in which a node comes up.

use crate::cgroups::{Cgroups, Limits};
use crate::cri::Cri;
use crate::cri::containerd::Containerd;
use crate::events::Recorder;
use crate::images::{self, Images};
use crate::metadata_access::MetadataAccess;
use crate::node::NodeState;
use crate::options::Options;
use crate::pods::status_sender::Statuses;
use crate::pods::{self, Pods};
use crate::volumes::tokens::Tokens;
use crate::{client, eviction, join, local_api, logs, mounts, node, server};
use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::api::Api;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What all parts share.
pub struct Kubelet {
    /// Settings.
    pub options: Options,
    /// The API.
    pub api: kube::Client,
    /// The runtime; none on a node without pods.
    pub cri: Option<Cri>,
    /// Images of the runtime.
    pub images: Option<Arc<Images>>,
    /// Events.
    pub events: Recorder,
    /// Statuses on their way.
    pub statuses: Arc<Statuses>,
    /// cgroups of pods, where the node has cgroup v2.
    pub cgroups: Option<Cgroups>,
    /// What is known of the node.
    pub node: NodeState,
    /// Tokens of pods.
    pub tokens: Tokens,
    /// Which pods may ask the platform's metadata server.
    pub metadata: MetadataAccess,
    /// The pods.
    pub pods: Pods,
    runtime_name: Mutex<String>,
}

impl Kubelet {
    /// Name of the runtime, as container ids begin.
    pub fn runtime_name(&self) -> String {
        crate::lock(&self.runtime_name).clone()
    }

    /// The runtime's handler for a pod's runtime class.
    pub async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let Some(name) = pods::spec::of(pod).runtime_class_name.as_deref().filter(|n| !n.is_empty()) else {
            return Ok(String::new());
        };
        let api: Api<RuntimeClass> = Api::all(self.api.clone());
        match api.get_opt(name).await {
            Ok(Some(class)) => Ok(class.handler),
            Ok(None) => Err(format!("RuntimeClass \"{name}\" not found")),
            Err(error) => Err(client::explain(&error)),
        }
    }
}

/// Runs the kubelet until SIGTERM.
pub async fn run(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        result = serve(options) => result,
        _ = terminate.recv() => stop(),
        _ = interrupt.recv() => stop(),
    }
}

fn stop() -> Result<()> {
    node_sys::notify::stopping();
    tracing::info!("stopping; containers go on running");
    Ok(())
}

async fn serve(options: Options) -> Result<()> {
    let api = node_client::connect(&options.flags.kubeconfig).await?;
    std::fs::create_dir_all(options.flags.root_dir.join("pods"))
        .with_context(|| format!("making {}", options.flags.root_dir.display()))?;
    let cri = options.runtime.as_deref().map(Cri::new);
    let events = Recorder::start(api.clone(), options.node_name.clone());
    let images = cri.clone().map(|cri| Arc::new(Images::new(cri, events.clone())));
    let cgroups = match (&cri, options.flags.cgroups_per_qos) {
        (Some(_), true) => Cgroups::new(&options.flags.cgroup_mount),
        _ => None,
    };
    let statuses = Arc::new(Statuses::new(api.clone()));
    let node = NodeState::new(&options);
    let kubelet = Arc::new(Kubelet {
        runtime_name: Mutex::new("containerd".into()),
        tokens: Tokens::default(),
        metadata: MetadataAccess::new(options.metadata_allow.iter().cloned()),
        pods: Pods::default(),
        options,
        api,
        cri,
        images,
        events,
        statuses: statuses.clone(),
        cgroups,
        node,
    });
    server::start(&kubelet).await?;
    local_api::start(&kubelet)?;
    tokio::spawn(node::lease::run(kubelet.clone()));
    tokio::spawn(node::update::run(kubelet.clone()));
    tokio::spawn(statuses.run());
    if let Some(options) = renewal(&kubelet.options)? {
        tokio::spawn(join::renew::run(kubelet.clone(), options));
    }
    if let Some(cri) = kubelet.cri.clone() {
        prepare_host(&kubelet);
        wait_for_runtime(&kubelet, &cri).await;
        import_images(&kubelet).await;
        kubelet.node.images_imported();
        start_pod_tasks(&kubelet, cri);
    }
    tokio::spawn(pods::source::run(kubelet.clone()));
    wait_until_registered(&kubelet).await;
    node_sys::notify::ready_with_status(&format!("node {} is registered", kubelet.options.node_name));
    std::future::pending::<()>().await;
    Ok(())
}

/// What is to be renewed: on a node that has joined, everything beside the serving certificate.
/// A master's certificates are made at each boot, by who has the CA.
fn renewal(options: &Options) -> Result<Option<join::Options>> {
    let flags = &options.flags;
    let (Some(pki_dir), Some(kubeconfig_dir)) = (flags.tls_cert_file.parent(), flags.kubeconfig.parent()) else {
        return Ok(None);
    };
    if options.master {
        return Ok(None);
    }
    Ok(Some(join::Options {
        node_name: options.node_name.clone(),
        addresses: options.node_ips.clone(),
        // Other components reach the API as the kubelet does.
        server: join::files::server_of(&flags.kubeconfig)?,
        ca_file: flags.client_ca_file.clone(),
        token_file: pki_dir.join("token"),
        kubeconfig_dir: kubeconfig_dir.to_path_buf(),
        pki_dir: pki_dir.to_path_buf(),
    }))
}

fn start_pod_tasks(kubelet: &Arc<Kubelet>, cri: Cri) {
    tokio::spawn(pods::pleg::run(kubelet.clone(), cri.clone()));
    tokio::spawn(pods::housekeeping::run(kubelet.clone(), cri.clone()));
    tokio::spawn(pods::static_pods::run(kubelet.clone()));
    tokio::spawn(logs::rotate::run(kubelet.clone(), cri));
    tokio::spawn(eviction::run(kubelet.clone()));
    if let Some(images) = &kubelet.images {
        let disk = kubelet.options.flags.root_dir.clone();
        let period = Duration::from_secs(kubelet.options.flags.image_gc_period);
        tokio::spawn(images::run_gc(images.clone(), disk, period));
    }
}

/// Mount propagation and cgroups. A host that has them in another way is told of, and goes on.
fn prepare_host(kubelet: &Kubelet) {
    if let Err(error) = mounts::make_shared(&kubelet.options.flags.root_dir) {
        let path = kubelet.options.flags.root_dir.display();
        tracing::warn!("{path} is no shared mount, volumes with mount propagation will not work: {error}");
    }
    let Some(cgroups) = &kubelet.cgroups else {
        tracing::warn!(
            "no cgroup v2 hierarchy at {}: pods have no cgroups of their own",
            kubelet.options.flags.cgroup_mount.display()
        );
        return;
    };
    let limits = Limits { memory: kubelet.node.pods_memory_limit(), cpu_milli: kubelet.node.cpu_milli() };
    if let Err(error) = cgroups.prepare(limits) {
        tracing::warn!("making the cgroups of pods: {error}");
    }
}

async fn wait_for_runtime(kubelet: &Kubelet, cri: &Cri) {
    let mut told = false;
    loop {
        match cri.version().await {
            Ok(version) => {
                let full = format!("{}://{}", version.runtime_name, version.runtime_version);
                *crate::lock(&kubelet.runtime_name) = version.runtime_name;
                kubelet.node.set_runtime_version(full);
                return;
            }
            Err(error) => {
                if !told {
                    node_sys::notify::status(&format!("waits for the container runtime: {error}"));
                    tracing::info!("waits for the container runtime: {error}");
                }
                told = true;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn import_images(kubelet: &Kubelet) {
    let Some(endpoint) = kubelet.options.runtime.as_deref() else { return };
    if kubelet.runtime_name() != "containerd" {
        return;
    }
    let containerd = Containerd::new(endpoint);
    let directory = &kubelet.options.flags.image_archive_dir;
    let mut delay = Duration::from_secs(1);
    loop {
        match images::import_all(&containerd, directory).await {
            Ok(names) => return wait_for_images(kubelet, &names).await,
            Err(error) => {
                tracing::error!("{error:#}");
                node_sys::notify::status(&format!("{error:#}"));
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(60));
            }
        }
    }
}

/// CRI learns of an imported image by an event, a moment later.
async fn wait_for_images(kubelet: &Kubelet, names: &[String]) {
    let Some(cri) = &kubelet.cri else { return };
    for name in names {
        for _ in 0..100 {
            match cri.image_status(name).await {
                Ok(Some(_)) => break,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

async fn wait_until_registered(kubelet: &Kubelet) {
    while kubelet.node.uid().is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
