//! Port-forward: connects to a port in the pod's network namespace and carries its data over
//! WebSocket channels, 2i for data and 2i+1 for errors of the i-th port.

use super::routes::{Query, find};
use super::websocket::{Channels, Incoming_, upgrade};
use super::{Answer, text};
use crate::kubelet::Kubelet;
use crate::pods::spec;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use rustix::thread::LinkNameSpaceType;
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;

const PROTOCOLS: [&str; 1] = ["v4.channel.k8s.io"];
const CONNECT: Duration = Duration::from_secs(10);
const BUFFER: usize = 16 << 10;

/// Takes the upgrade for the ports of the query.
pub async fn answer(kubelet: Arc<Kubelet>, namespace: &str, pod: &str, request: Request<Incoming>) -> Answer {
    let query = Query::of(&request);
    let wanted = query.all("port").into_iter().chain(query.all("ports"));
    let ports: Result<Vec<u16>, _> = wanted.flat_map(|p| p.split(',').map(str::parse).collect::<Vec<_>>()).collect();
    let ports = match ports {
        Ok(ports) if !ports.is_empty() && !ports.contains(&0) && ports.len() <= 64 => ports,
        _ => return text(StatusCode::BAD_REQUEST, "query parameter \"port\" must name a port from 1 to 65535\n"),
    };
    let pod = match find(&kubelet, namespace, pod) {
        Ok(pod) => pod,
        Err(answer) => return *answer,
    };
    let namespace = match network_namespace(&kubelet, &pod).await {
        Ok(namespace) => namespace,
        Err(sentence) => return text(StatusCode::NOT_FOUND, format!("{sentence}\n")),
    };
    upgrade(request, &PROTOCOLS, move |channels| forward(channels, namespace, ports))
}

/// The pod's network namespace; none for the node's own.
async fn network_namespace(
    kubelet: &Kubelet,
    pod: &k8s_openapi::api::core::v1::Pod,
) -> Result<Option<PathBuf>, String> {
    let Some(cri) = &kubelet.cri else { return Err("this node has no container runtime".into()) };
    let seen = crate::pods::observed::observe(cri, spec::uid(pod)).await.map_err(|e| e.to_string())?;
    let sandbox = seen.ready_sandbox().ok_or_else(|| format!("pod {} does not run", spec::name(pod)))?;
    if spec::host_network(pod) {
        return Ok(None);
    }
    let status = cri.pod_sandbox_status(&sandbox.id, true).await.map_err(|e| e.to_string())?;
    let info = status.info.get("info").map(String::as_str).unwrap_or_default();
    namespace_in(info).map(Some).ok_or_else(|| "the runtime does not say where the pod's network namespace is".into())
}

/// The namespace's path in the runtime's JSON.
fn namespace_in(info: &str) -> Option<PathBuf> {
    let value: serde_json::Value = serde_json::from_str(info).ok()?;
    let namespaces = value.pointer("/runtimeSpec/linux/namespaces").and_then(|n| n.as_array());
    let path = namespaces.into_iter().flatten().find(|n| n["type"] == "network").and_then(|n| n["path"].as_str());
    match path {
        Some(path) => Some(PathBuf::from(path)),
        None => value
            .get("pid")
            .and_then(|p| p.as_i64())
            .filter(|p| *p > 0)
            .map(|p| PathBuf::from(format!("/proc/{p}/ns/net"))),
    }
}

/// Connects from within a network namespace. The thread that enters it ends afterwards: no other
/// work ever runs in a foreign namespace.
async fn connect(namespace: Option<PathBuf>, port: u16) -> Result<TcpStream, String> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("port-forward".into())
        .stack_size(128 << 10)
        .spawn(move || sender.send(connect_within(namespace, port)).ok())
        .map_err(|e| e.to_string())?;
    let stream = receiver.await.map_err(|_| "the connecting thread ended".to_string())??;
    stream.set_nonblocking(true).map_err(|e| e.to_string())?;
    TcpStream::from_std(stream).map_err(|e| e.to_string())
}

fn connect_within(namespace: Option<PathBuf>, port: u16) -> Result<StdStream, String> {
    if let Some(path) = namespace {
        let file = std::fs::File::open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| format!("entering the pod's network namespace: {e}"))?;
    }
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    StdStream::connect_timeout(&v4, CONNECT).or_else(|first| {
        StdStream::connect_timeout(&v6, CONNECT)
            .map_err(|_| format!("failed to connect to localhost:{port} inside the pod: {first}"))
    })
}

enum Event {
    Data(usize, Vec<u8>),
    End(usize),
}

async fn forward(mut channels: Channels, namespace: Option<PathBuf>, ports: Vec<u16>) {
    let (sender, mut events) = mpsc::channel::<Event>(4);
    let mut writers: HashMap<usize, OwnedWriteHalf> = HashMap::new();
    let mut open = 0;
    for (index, port) in ports.iter().enumerate() {
        let number = port.to_le_bytes();
        for channel in [data_channel(index), error_channel(index)] {
            if channels.send(channel, &number).await.is_err() {
                return;
            }
        }
        match connect(namespace.clone(), *port).await {
            Ok(stream) => {
                let (reader, writer) = stream.into_split();
                writers.insert(index, writer);
                open += 1;
                tokio::spawn(read(reader, index, sender.clone()));
            }
            Err(sentence) => {
                if channels.send(error_channel(index), sentence.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    }
    drop(sender);
    while open > 0 {
        tokio::select! {
            event = events.recv() => {
                let sent = match event {
                    Some(Event::Data(index, data)) => channels.send(data_channel(index), &data).await,
                    Some(Event::End(index)) => {
                        open -= 1;
                        channels.send(data_channel(index), &[]).await
                    }
                    None => break,
                };
                if sent.is_err() {
                    return;
                }
            }
            message = channels.next() => match message {
                Incoming_::Data(channel, data) if channel % 2 == 0 => {
                    let index = usize::from(channel / 2);
                    if data.is_empty() {
                        // Dropping a write half closes that direction.
                        writers.remove(&index);
                    } else if let Some(writer) = writers.get_mut(&index)
                        && writer.write_all(&data).await.is_err()
                    {
                        writers.remove(&index);
                    }
                }
                Incoming_::End(channel) => {
                    writers.remove(&usize::from(channel / 2));
                }
                Incoming_::Data(_, _) => {}
                Incoming_::Gone => return,
            },
        }
    }
    channels.close().await;
}

fn data_channel(index: usize) -> u8 {
    (2 * index) as u8
}

fn error_channel(index: usize) -> u8 {
    (2 * index + 1) as u8
}

async fn read(mut reader: tokio::net::tcp::OwnedReadHalf, index: usize, sender: mpsc::Sender<Event>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if sender.send(Event::Data(index, buffer[..length].to_vec())).await.is_err() {
                    return;
                }
            }
        }
    }
    // The receiver is gone when the client is.
    sender.send(Event::End(index)).await.ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_is_found() {
        let path = |text: &str| namespace_in(text).map(|p| p.to_string_lossy().into_owned());
        let json = r#"{"pid":7,"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/run/netns/a"}]}}}"#;
        assert_eq!(path(json).as_deref(), Some("/run/netns/a"));
        assert_eq!(path(r#"{"pid":7}"#).as_deref(), Some("/proc/7/ns/net"));
        assert_eq!(path("{}"), None);
    }
}
