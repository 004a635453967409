//! Which pods stand behind each Service: EndpointSlices, and Endpoints for older clients.

mod legacy;
mod mirror;
mod slices;

use std::sync::Arc;

use control_client::{Change, Key, Queue, pods, selector};
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

pub fn start(context: &Arc<Context>) {
    let queue = Arc::new(Queue::<Key>::default());
    let caches = &context.caches;
    caches.services.subscribe({
        let queue = queue.clone();
        move |change| queue.add(Key::of(&**change.object()))
    });
    caches.pods.subscribe({
        let (queue, context) = (queue.clone(), context.clone());
        move |change| pod_changed(&context, &queue, change)
    });
    caches.slices.subscribe({
        let queue = queue.clone();
        move |change| {
            let slice = change.object();
            if slices::is_ours(slice)
                && let Some(service) = slices::service_of(slice)
            {
                queue.add(Key::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service));
            }
        }
    });
    caches.endpoints.subscribe({
        let queue = queue.clone();
        move |change| {
            if matches!(change, Change::Deleted(_)) {
                queue.add(Key::of(&**change.object()));
            }
        }
    });
    mirror::start(context);
    let context = context.clone();
    runner::run("endpointslice", &queue, 3, move |key| {
        let context = context.clone();
        async move { work(&context, &key).await }
    });
}

/// Queues the services that select the pod now or did before, if the change is of interest to them.
fn pod_changed(context: &Context, queue: &Queue<Key>, change: &Change<Pod>) {
    let new = change.object();
    if let Change::Updated(old, new) = change
        && same_for_services(old, new)
    {
        return;
    }
    let namespace = new.metadata.namespace.as_deref().unwrap_or_default();
    for service in context.caches.services.in_namespace(namespace) {
        let selects =
            |pod: &Pod| selector_of(&service).is_some_and(|s| selector::contains(s, pod.metadata.labels.as_ref()));
        if selects(new) || change.old().is_some_and(|old| selects(old)) {
            queue.add(Key::of(&*service));
        }
    }
}

fn same_for_services(old: &Pod, new: &Pod) -> bool {
    let view = |p: &Pod| {
        (
            p.metadata.labels.clone(),
            p.metadata.deletion_timestamp.is_some(),
            pods::is_ready(p),
            pods::is_terminal(p),
            addresses(p),
            pods::node_name(p).to_owned(),
        )
    };
    view(old) == view(new)
}

fn selector_of(service: &Service) -> Option<&selector::Labels> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|s| !s.is_empty())
}

fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None")
}

fn addresses(pod: &Pod) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    match &status.pod_ips {
        Some(list) if !list.is_empty() => list.iter().map(|p| p.ip.clone()).collect(),
        _ => status.pod_ip.iter().filter(|ip| !ip.is_empty()).cloned().collect(),
    }
}

/// The pod's port for a port of the service; none where the pod has no port of that name.
fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            // Sidecars are init containers that stay.
            let sidecars =
                spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|c| c.ports.iter().flatten())
                .find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
                .map(|p| p.container_port)
        }
    }
}

/// The service's ports, as this pod serves them.
fn ports_of(pod: &Pod, service: &Service) -> Vec<EndpointPort> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

async fn work(context: &Context, key: &Key) -> Worked {
    let caches = &context.caches;
    let Some(service) = caches.services.get(key) else {
        slices::delete_all(context, key).await?;
        legacy::delete(context, key).await?;
        return Ok(Outcome::Done);
    };
    let Some(wanted) = selector_of(&service) else { return Ok(Outcome::Done) };
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(Outcome::Done);
    }
    let selected: Vec<Arc<Pod>> = caches
        .pods
        .in_namespace(&key.namespace)
        .into_iter()
        .filter(|p| selector::contains(wanted, p.metadata.labels.as_ref()))
        .filter(|p| !pods::is_terminal(p) && !addresses(p).is_empty())
        .collect();
    slices::reconcile(context, &service, &selected).await?;
    legacy::reconcile(context, &service, &selected).await?;
    Ok(Outcome::Done)
}
