//! One attempt of a probe or hook: http, tcp, exec or grpc. An error is a sentence.

use super::http;
use crate::cri::Cri;
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::IpAddr;
use std::time::Duration;

/// Where network probes go by default, and the container that names its ports.
#[derive(Debug, Clone)]
pub struct Target {
    /// The pod's address.
    pub ip: Option<IpAddr>,
    /// The container.
    pub container: Container,
}

/// Most of a command's output that goes into an event.
const OUTPUT: usize = 10 << 10;

/// Runs a probe once.
pub async fn run(cri: &Cri, id: &str, probe: &Probe, target: &Target, limit: Duration) -> Result<(), String> {
    if let Some(exec) = &probe.exec {
        return command(cri, id, exec.command.as_deref().unwrap_or_default(), limit).await.map(|_| ());
    }
    let attempt = async {
        if let Some(get) = &probe.http_get {
            http_get(get, target, "kube-probe/1.36").await
        } else if let Some(tcp) = &probe.tcp_socket {
            tcp_connect(host(tcp.host.as_deref(), target)?, port(&tcp.port, &target.container)?).await
        } else if let Some(grpc) = &probe.grpc {
            health_check(grpc, target).await
        } else {
            Err("the probe says nothing to do".into())
        }
    };
    tokio::time::timeout(limit, attempt)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s (context deadline exceeded)", limit.as_secs())))
}

/// Runs a command in a container; its output.
pub async fn command(cri: &Cri, id: &str, command: &[String], limit: Duration) -> Result<String, String> {
    let result = cri.exec_sync(id, command, limit).await;
    let answer = result.map_err(|error| match error.code {
        tonic::Code::DeadlineExceeded => format!("command timed out: {command:?} timed out after {}s", limit.as_secs()),
        _ => error.to_string(),
    })?;
    let mut output = String::from_utf8_lossy(&answer.stdout).into_owned();
    output.push_str(&String::from_utf8_lossy(&answer.stderr));
    let cut = (0..=OUTPUT.min(output.len())).rev().find(|at| output.is_char_boundary(*at)).unwrap_or(0);
    output.truncate(cut);
    match answer.exit_code {
        0 => Ok(output),
        code if output.is_empty() => Err(format!("command {command:?} exited with {code}")),
        _ => Err(output),
    }
}

fn host(wish: Option<&str>, target: &Target) -> Result<String, String> {
    match wish.filter(|h| !h.is_empty()) {
        Some(host) => Ok(host.to_string()),
        None => target.ip.map(|ip| ip.to_string()).ok_or_else(|| "the pod has no address yet".to_string()),
    }
}

/// A port by number, or by its name in the container.
pub fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let ports = container.ports.iter().flatten();
            ports.into_iter().find(|p| p.name.as_deref() == Some(name)).map(|p| p.container_port)
        }),
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("port {port:?} is neither a number nor the name of a port of the container"))
}

/// A GET; 200 to 399 is success.
pub async fn http_get(get: &HTTPGetAction, target: &Target, agent: &str) -> Result<(), String> {
    let host = host(get.host.as_deref(), target)?;
    let port = port(&get.port, &target.container)?;
    let tls = get.scheme.as_deref() == Some("HTTPS");
    let path = get.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
    let headers: Vec<(String, String)> =
        get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
    let status = http::get(&host, port, tls, &path, &headers, agent).await?;
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("HTTP probe failed with statuscode: {status}")) }
}

async fn tcp_connect(host: String, port: u16) -> Result<(), String> {
    super::dial::connect(&host, port).await.map(|_| ()).map_err(|e| format!("dial tcp {host}:{port}: {e}"))
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, ::prost::Message)]
struct HealthAnswer {
    /// 1 is SERVING.
    #[prost(int32, tag = "1")]
    status: i32,
}

async fn health_check(grpc: &GRPCAction, target: &Target) -> Result<(), String> {
    let host = host(None, target)?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let address = format!("http://{host}:{}", grpc.port);
    let endpoint = tonic::transport::Endpoint::from_shared(address.clone()).map_err(|e| e.to_string())?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|e| format!("timeout: failed to connect service \"{address}\": {}", crate::chain(&e)))?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| crate::chain(&e))?;
    let codec: tonic_prost::ProstCodec<HealthRequest, HealthAnswer> = Default::default();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let request = HealthRequest { service: grpc.service.clone().unwrap_or_default() };
    let answer = client
        .unary(tonic::Request::new(request), path, codec)
        .await
        .map_err(|s| format!("failed to make health check: {}", s.message()))?;
    match answer.into_inner().status {
        1 => Ok(()),
        other => Err(format!("service unhealthy (responded with status {other}, not SERVING)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_by_number_and_name() {
        let container: Container =
            serde_yaml_ng::from_str("{name: a, ports: [{name: http, containerPort: 8080}]}").unwrap();
        for (given, expected) in [
            (IntOrString::Int(80), Ok(80)),
            (IntOrString::String("http".into()), Ok(8080)),
            (IntOrString::String("81".into()), Ok(81)),
            (IntOrString::String("none".into()), Err(())),
            (IntOrString::Int(0), Err(())),
        ] {
            assert_eq!(port(&given, &container).map_err(|_| ()), expected, "{given:?}");
        }
    }
}
