//! Pods, containers and images: the kubelet knows them and answers on its local socket; its words are put
//! into the node API's types.

use super::server::{Body, Refusal, json};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use node_api::path;
use serde::Deserialize;
use std::time::Duration;
use tokio::net::UnixStream;

const SOCKET: &str = "/run/kimg/kubelet.sock";
const PATIENCE: Duration = Duration::from_secs(10);
const MOST_BYTES: usize = 8 << 20;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
    phase: Option<String>,
    reason: Option<String>,
    restarts: u32,
    start_time: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    id: String,
    namespace: String,
    pod: String,
    name: String,
    image: String,
    state: String,
    attempt: u32,
    created: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Image {
    id: String,
    tags: Vec<String>,
    digests: Vec<String>,
    bytes: u64,
}

/// Asks the kubelet.
pub(super) async fn ask(target: &str) -> Result<Response<Body>, Refusal> {
    let unavailable = |why: String| {
        Refusal(StatusCode::SERVICE_UNAVAILABLE, format!("the kubelet of this node does not answer: {why}"))
    };
    // The kubelet has no versions of its own.
    let short = target.strip_prefix("/v1").unwrap_or(target);
    let bytes = match tokio::time::timeout(PATIENCE, fetch(short)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(unavailable(format!("{error:#}"))),
        Err(_) => return Err(unavailable("it took too long".to_owned())),
    };
    let answer = match target {
        path::PODS => json(&read::<Pod>(&bytes).map_err(unavailable)?.into_iter().map(pod).collect::<Vec<_>>()),
        path::CONTAINERS => {
            json(&read::<Container>(&bytes).map_err(unavailable)?.into_iter().map(container).collect::<Vec<_>>())
        }
        _ => json(&read::<Image>(&bytes).map_err(unavailable)?.into_iter().map(image).collect::<Vec<_>>()),
    };
    Ok(answer)
}

fn read<T: serde::de::DeserializeOwned>(bytes: &Bytes) -> Result<Vec<T>, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("its answer is unreadable: {error}"))
}

fn pod(pod: Pod) -> node_api::Pod {
    let phase = pod.phase.unwrap_or_else(|| "Pending".to_owned());
    node_api::Pod {
        id: pod.uid.clone(),
        namespace: pod.namespace,
        name: pod.name,
        uid: pod.uid,
        state: pod.reason.map_or_else(|| phase.clone(), |reason| format!("{phase} ({reason})")),
        attempt: pod.restarts,
        created_unix_ms: unix_ms(pod.start_time.as_deref().unwrap_or_default()),
    }
}

fn container(container: Container) -> node_api::Container {
    node_api::Container {
        pod_id: String::new(),
        pod: format!("{}/{}", container.namespace, container.pod),
        id: container.id,
        name: container.name,
        image: container.image,
        state: container.state,
        attempt: container.attempt,
        created_unix_ms: unix_ms(&container.created),
    }
}

fn image(image: Image) -> node_api::Image {
    node_api::Image { id: image.id, tags: image.tags, digests: image.digests, size: image.bytes }
}

fn unix_ms(time: &str) -> u64 {
    time.parse::<jiff::Timestamp>().ok().and_then(|time| u64::try_from(time.as_millisecond()).ok()).unwrap_or(0)
}

async fn fetch(target: &str) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(SOCKET).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(async move {
        // Its end shows in the answer.
        let _ = connection.await;
    });
    let request = Request::get(target).header("host", "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MOST_BYTES)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!(error))?
        .to_bytes();
    anyhow::ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&body));
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelets_words_become_the_node_apis() {
        let text = r#"[{"namespace":"a","name":"b","uid":"c","phase":"Running","reason":null,"restarts":2,"start_time":"2026-01-01T00:00:01Z","ip":"1.2.3.4"}]"#;
        let pods: Vec<Pod> = read(&Bytes::from_static(text.as_bytes())).unwrap();
        let shown = pod(pods.into_iter().next().unwrap());
        assert_eq!((shown.state.as_str(), shown.attempt, shown.created_unix_ms), ("Running", 2, 1_767_225_601_000));
    }
}
