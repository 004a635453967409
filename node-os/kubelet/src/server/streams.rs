//! exec and attach: WebSocket channels on one side, the runtime's streaming server on the other.

use super::routes::{Query, find, running};
use super::spdy::{Connection, Frame};
use super::websocket::{Channels, Incoming_, upgrade};
use super::{Answer, text};
use crate::cri::{AttachRequest, ExecRequest};
use crate::kubelet::Kubelet;
use crate::pods::spec;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use std::sync::Arc;

const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// What is spoken with the runtime.
const RUNTIME_PROTOCOL: &str = "v4.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wants {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wants {
    fn of(query: &Query) -> Wants {
        let flag = |a: &str, b: &str| query.flag(a) || query.flag(b);
        let tty = query.flag("tty");
        Wants {
            stdin: flag("input", "stdin"),
            stdout: flag("output", "stdout"),
            stderr: flag("error", "stderr") && !tty,
            tty,
        }
    }
}

/// Runs a command in a container.
pub async fn exec(
    kubelet: Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Answer {
    let query = Query::of(&request);
    let wants = Wants::of(&query);
    let cmd = query.all("command");
    if cmd.is_empty() {
        return text(StatusCode::BAD_REQUEST, "you must specify at least 1 command for the container\n");
    }
    let id = match prepare(&kubelet, namespace, pod, container, wants).await {
        Ok(id) => id,
        Err(answer) => return answer,
    };
    let call = ExecRequest {
        container_id: id,
        cmd,
        tty: wants.tty,
        stdin: wants.stdin,
        stdout: wants.stdout,
        stderr: wants.stderr,
    };
    let Some(cri) = &kubelet.cri else { return text(StatusCode::NOT_FOUND, "this node has no container runtime\n") };
    match cri.exec(call).await {
        Ok(url) => bridge(request, url, wants),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Joins a container's own streams.
pub async fn attach(
    kubelet: Arc<Kubelet>,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Answer {
    let query = Query::of(&request);
    let mut wants = Wants::of(&query);
    let id = match prepare(&kubelet, namespace, pod, container, wants).await {
        Ok(id) => id,
        Err(answer) => return answer,
    };
    // The container's own tty decides; a client that asks for one without gets none.
    let own_tty = find(&kubelet, namespace, pod)
        .ok()
        .and_then(|p| spec::find(&p, container))
        .is_some_and(|(_, c)| c.tty.unwrap_or(false));
    wants.tty = own_tty;
    wants.stderr &= !own_tty;
    let call = AttachRequest {
        container_id: id,
        stdin: wants.stdin,
        tty: wants.tty,
        stdout: wants.stdout,
        stderr: wants.stderr,
    };
    let Some(cri) = &kubelet.cri else { return text(StatusCode::NOT_FOUND, "this node has no container runtime\n") };
    match cri.attach(call).await {
        Ok(url) => bridge(request, url, wants),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

async fn prepare(
    kubelet: &Kubelet,
    namespace: &str,
    pod: &str,
    container: &str,
    wants: Wants,
) -> Result<String, Answer> {
    if !(wants.stdin || wants.stdout || wants.stderr) {
        return Err(text(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr\n"));
    }
    let pod = find(kubelet, namespace, pod).map_err(|answer| *answer)?;
    running(kubelet, &pod, container).await
}

fn bridge(request: Request<Incoming>, url: String, wants: Wants) -> Answer {
    upgrade(request, &PROTOCOLS, move |channels| async move {
        let mut channels = channels;
        let status = match run(&mut channels, &url, wants).await {
            Ok(Some(status)) => status,
            // The client is gone: nobody is there to be told.
            Ok(None) => return,
            Err(message) => failure(&message),
        };
        if channels.send(STATUS, &status).await.is_ok() {
            channels.close().await;
        }
    })
}

fn failure(message: &str) -> Vec<u8> {
    let status = serde_json::json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {message}"),
        "details": { "causes": [{ "message": message }] },
    });
    status.to_string().into_bytes()
}

/// Streams of the runtime's side by what they are for.
struct Streams {
    error: u32,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    resize: Option<u32>,
}

async fn open(url: &str, wants: Wants) -> Result<(Connection, Streams), String> {
    let mut connection = Connection::open(url, RUNTIME_PROTOCOL).await?;
    let error = connection.stream(&[("streamtype", "error")]).await?;
    let mut streams = Streams { error, stdin: None, stdout: None, stderr: None, resize: None };
    let mut waiting = vec![error];
    for (wanted, kind) in
        [(wants.stdin, "stdin"), (wants.stdout, "stdout"), (wants.stderr, "stderr"), (wants.tty, "resize")]
    {
        if !wanted {
            continue;
        }
        let id = connection.stream(&[("streamtype", kind)]).await?;
        waiting.push(id);
        match kind {
            "stdin" => streams.stdin = Some(id),
            "stdout" => streams.stdout = Some(id),
            "stderr" => streams.stderr = Some(id),
            _ => streams.resize = Some(id),
        }
    }
    // Data sent on a stream that is not yet accepted would be lost.
    while !waiting.is_empty() {
        match connection.next().await {
            Some(Frame::Reply(id)) => waiting.retain(|w| *w != id),
            Some(Frame::Reset(_) | Frame::GoAway) | None => return Err("the runtime refused a stream".into()),
            Some(_) => {}
        }
    }
    Ok((connection, streams))
}

/// Carries data both ways; the final status, or none if the client went away.
async fn run(channels: &mut Channels, url: &str, wants: Wants) -> Result<Option<Vec<u8>>, String> {
    let (mut connection, streams) = open(url, wants).await?;
    let mut status = Vec::new();
    loop {
        tokio::select! {
            frame = connection.next() => match frame {
                Some(Frame::Data(id, data, last)) => {
                    if id == streams.error {
                        status.extend_from_slice(&data);
                        if last || complete(&status) {
                            return Ok(Some(finished(status)));
                        }
                        continue;
                    }
                    let channel = if Some(id) == streams.stdout {
                        STDOUT
                    } else if Some(id) == streams.stderr {
                        STDERR
                    } else {
                        continue;
                    };
                    if !data.is_empty() && channels.send(channel, &data).await.is_err() {
                        return Ok(None);
                    }
                }
                Some(Frame::GoAway) | None => return Ok(Some(finished(status))),
                Some(Frame::Reset(id)) if id == streams.error => return Ok(Some(finished(status))),
                Some(_) => {}
            },
            message = channels.next() => match message {
                Incoming_::Data(STDIN, data) => {
                    if let Some(id) = streams.stdin.filter(|_| !data.is_empty()) {
                        connection.send(id, &data, false).await?;
                    }
                }
                Incoming_::End(STDIN) => {
                    if let Some(id) = streams.stdin {
                        connection.send(id, &[], true).await?;
                    }
                }
                Incoming_::Data(RESIZE, data) => {
                    if let Some(id) = streams.resize {
                        connection.send(id, &data, false).await?;
                    }
                }
                Incoming_::Data(_, _) | Incoming_::End(_) => {}
                Incoming_::Gone => {
                    if let Some(id) = streams.stdin {
                        connection.send(id, &[], true).await?;
                    }
                    return Ok(None);
                }
            },
        }
    }
}

fn complete(status: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(status).is_ok()
}

/// The runtime's word; without one, the command ended well.
fn finished(status: Vec<u8>) -> Vec<u8> {
    if complete(&status) {
        return status;
    }
    if status.is_empty() {
        return br#"{"metadata":{},"status":"Success"}"#.to_vec();
    }
    failure(&String::from_utf8_lossy(&status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_no_error_output() {
        let wants = Wants::of(&Query::parse("input=1&output=1&error=1&tty=1"));
        assert_eq!(wants, Wants { stdin: true, stdout: true, stderr: false, tty: true });
        let wants = Wants::of(&Query::parse("stdout=true&stderr=true"));
        assert_eq!(wants, Wants { stdin: false, stdout: true, stderr: true, tty: false });
    }

    #[test]
    fn there_is_always_a_final_status() {
        for (given, expected) in
            [(&b""[..], "Success"), (br#"{"metadata":{},"status":"Success"}"#, "Success"), (b"broken", "Failure")]
        {
            let value: serde_json::Value = serde_json::from_slice(&finished(given.to_vec())).unwrap();
            assert_eq!(value["status"], expected);
        }
    }
}
