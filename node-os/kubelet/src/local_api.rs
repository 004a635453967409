//! What the node API shows of pods, containers and images: JSON over a unix socket that only
//! root may open.

use crate::kubelet::Kubelet;
use crate::pods::spec;
use crate::server::{Answer, text};
use anyhow::{Context, Result};
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;

/// Listens on the socket.
pub fn start(kubelet: &Arc<Kubelet>) -> Result<()> {
    let path = &kubelet.options.flags.local_socket;
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the old {}", path.display()));
        }
        _ => {}
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("setting the mode of {}", path.display()))?;
    tokio::spawn(serve(listener, kubelet.clone()));
    Ok(())
}

async fn serve(listener: UnixListener, kubelet: Arc<Kubelet>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let kubelet = kubelet.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let kubelet = kubelet.clone();
                async move { Ok::<_, Infallible>(answer(&kubelet, request.uri().path()).await) }
            });
            // Whoever went away needs no answer.
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

async fn answer(kubelet: &Kubelet, path: &str) -> Answer {
    let result = match path {
        "/pods" => Ok(pods(kubelet)),
        "/containers" => containers(kubelet).await,
        "/images" => images(kubelet).await,
        "/healthz" => return text(StatusCode::OK, "ok"),
        other => {
            return text(
                StatusCode::NOT_FOUND,
                format!("{other} is not here; there are /pods, /containers, /images\n"),
            );
        }
    };
    match result {
        Ok(value) => crate::server::json(&value),
        Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

fn pods(kubelet: &Kubelet) -> Value {
    let mut pods = kubelet.pods.list();
    pods.sort_by_key(|p| spec::full_name(p));
    pods.iter()
        .map(|pod| {
            let status = pod.status.clone().unwrap_or_default();
            let all = status.container_statuses.as_deref().unwrap_or_default();
            json!({
                "namespace": spec::namespace(pod),
                "name": spec::name(pod),
                "uid": spec::uid(pod),
                "phase": status.phase,
                "reason": status.reason,
                "message": status.message,
                "ip": status.pod_ip,
                "ready": all.iter().filter(|c| c.ready).count(),
                "containers": spec::mains(pod).len(),
                "restarts": all.iter().map(|c| c.restart_count).sum::<i32>(),
                "start_time": status.start_time.map(|t| t.0.to_string()),
            })
        })
        .collect()
}

async fn containers(kubelet: &Kubelet) -> Result<Value, crate::cri::CriError> {
    let Some(cri) = &kubelet.cri else { return Ok(json!([])) };
    let list = cri.list_containers(None).await?;
    let label = |c: &crate::cri::Container, key: &str| c.labels.get(key).cloned().unwrap_or_default();
    let state = |number: i32| match crate::cri::ContainerState::try_from(number) {
        Ok(crate::cri::ContainerState::Created) => "created",
        Ok(crate::cri::ContainerState::Running) => "running",
        Ok(crate::cri::ContainerState::Exited) => "exited",
        _ => "unknown",
    };
    Ok(list
        .iter()
        .map(|c| {
            json!({
                "id": c.id,
                "namespace": label(c, spec::POD_NAMESPACE),
                "pod": label(c, spec::POD_NAME),
                "name": label(c, spec::CONTAINER_NAME),
                "image": image_name(kubelet, c),
                "state": state(c.state),
                "attempt": c.metadata.as_ref().map_or(0, |m| m.attempt),
                "created": Timestamp::from_nanosecond(i128::from(c.created_at)).unwrap_or_default().to_string(),
            })
        })
        .collect())
}

/// The image as the pod names it; for a container of an unknown pod as the runtime does.
fn image_name(kubelet: &Kubelet, container: &crate::cri::Container) -> String {
    let label = |key: &str| container.labels.get(key).map(String::as_str).unwrap_or_default();
    let pod = kubelet.pods.find(label(spec::POD_NAMESPACE), label(spec::POD_NAME));
    let found = pod.and_then(|p| spec::find(&p, label(spec::CONTAINER_NAME))).and_then(|(_, c)| c.image);
    found.unwrap_or_else(|| container.image.as_ref().map(|i| i.image.clone()).unwrap_or_default())
}

async fn images(kubelet: &Kubelet) -> Result<Value, crate::cri::CriError> {
    let Some(cri) = &kubelet.cri else { return Ok(json!([])) };
    let list = cri.list_images().await?;
    Ok(list
        .iter()
        .map(|i| json!({ "id": i.id, "tags": i.repo_tags, "digests": i.repo_digests, "bytes": i.size, "pinned": i.pinned }))
        .collect())
}
