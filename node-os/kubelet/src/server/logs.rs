//! `/containerLogs`: a container's log, from the file, and on as it grows.

use super::routes::{Query, find};
use super::{Answer, Body, text, typed};
use crate::kubelet::Kubelet;
use crate::logs::read::{Formatter, Wish, history, tail_records};
use crate::pods::observed::{self, Container, State};
use crate::pods::spec;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::{SignedDuration, Timestamp};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Bytes handed on at once.
const CHUNK: usize = 32 << 10;
/// Between two looks at a file that is being followed.
const POLL: Duration = Duration::from_millis(200);

/// Answers with a container's log.
pub async fn answer(kubelet: &Arc<Kubelet>, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
    let wish = match wish_of(query, Timestamp::now()) {
        Ok(wish) => wish,
        Err(sentence) => return text(StatusCode::BAD_REQUEST, format!("{sentence}\n")),
    };
    let pod = match find(kubelet, namespace, pod) {
        Ok(pod) => pod,
        Err(answer) => return *answer,
    };
    let Some(cri) = kubelet.cri.clone() else {
        return text(StatusCode::NOT_FOUND, "this node has no container runtime\n");
    };
    if spec::find(&pod, container).is_none() {
        let sentence = format!("container {container} is not valid for pod {}\n", spec::name(&pod));
        return text(StatusCode::NOT_FOUND, sentence);
    }
    let seen = match observed::observe(&cri, spec::uid(&pod)).await {
        Ok(seen) => seen,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    };
    let previous = query.flag("previous");
    let found = if previous { seen.previous(container) } else { latest_with_log(&seen, container) };
    let Some(found) = found else {
        let sentence = if previous {
            format!("previous terminated container \"{container}\" in pod \"{}\" not found\n", spec::name(&pod))
        } else {
            waiting_sentence(&pod, container)
        };
        return text(StatusCode::BAD_REQUEST, sentence);
    };
    stream(cri, found.clone(), wish)
}

/// The newest run that has begun; one that could not be started has no log of its own.
fn latest_with_log<'a>(seen: &'a observed::Observed, container: &str) -> Option<&'a Container> {
    seen.containers.iter().filter(|c| c.name == container).find(|c| c.started_at > 0 || c.state == State::Exited)
}

fn waiting_sentence(pod: &k8s_openapi::api::core::v1::Pod, container: &str) -> String {
    let status = pod.status.as_ref();
    let lists = status.into_iter().flat_map(|s| [&s.container_statuses, &s.init_container_statuses]);
    let reason = lists
        .flat_map(|l| l.iter().flatten())
        .find(|s| s.name == container)
        .and_then(|s| s.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let reason = reason.unwrap_or_else(|| "ContainerCreating".into());
    format!("container \"{container}\" in pod \"{}\" is waiting to start: {reason}\n", spec::name(pod))
}

fn wish_of(query: &Query, now: Timestamp) -> Result<Wish, String> {
    let number = |key: &str| -> Result<Option<u64>, String> {
        match query.get(key).filter(|v| !v.is_empty()) {
            None => Ok(None),
            Some(text) => {
                text.parse().map(Some).map_err(|_| format!("query parameter {key:?} is not a number: {text:?}"))
            }
        }
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime").filter(|v| !v.is_empty())) {
        (Some(seconds), _) => Some(now - SignedDuration::from_secs(seconds.min(1 << 32) as i64)),
        (None, Some(text)) => {
            Some(text.parse().map_err(|_| format!("query parameter \"sinceTime\" is not a time: {text:?}"))?)
        }
        (None, None) => None,
    };
    let stream = match query.get("stream").unwrap_or_default() {
        "" | "All" => None,
        "Stdout" => Some("stdout".to_string()),
        "Stderr" => Some("stderr".to_string()),
        other => return Err(format!("query parameter \"stream\" is {other:?} and none of All, Stdout, Stderr")),
    };
    Ok(Wish {
        follow: query.flag("follow"),
        tail: number("tailLines")?,
        since,
        timestamps: query.flag("timestamps"),
        limit: number("limitBytes")?,
        stream,
    })
}

fn stream(cri: crate::cri::Cri, container: Container, wish: Wish) -> Answer {
    let path = PathBuf::from(&container.log_path);
    if !path.exists() && history(&path).len() == 1 {
        return typed(StatusCode::OK, "text/plain", Bytes::new());
    }
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(2);
    tokio::spawn(async move {
        let follow = wish.follow.then_some((cri, container.id));
        if let Err(error) = copy(&path, wish, follow, &sender).await {
            tracing::debug!("log {}: {error}", path.display());
        }
    });
    let body: Body = BodyExt::boxed(StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)));
    let mut answer = Response::new(body);
    answer.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    answer
}

type Sender = mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>;

async fn copy(
    path: &Path,
    wish: Wish,
    follow: Option<(crate::cri::Cri, String)>,
    sender: &Sender,
) -> std::io::Result<()> {
    let files = history(path);
    let mut places: VecDeque<(PathBuf, u64)> = match wish.tail {
        Some(tail) => tail_records(&files, tail)?,
        None => files.into_iter().map(|f| (f, 0)).collect(),
    };
    let mut formatter = Formatter::new(wish);
    let mut out = Vec::new();
    while let Some((file, offset)) = places.pop_front() {
        let Ok(file) = File::open(&file) else { continue };
        let last = places.is_empty();
        let mut tail = Tail::new(file, offset)?;
        while tail.read_line()? {
            formatter.add(&tail.line, &mut out);
            tail.line.clear();
            if formatter.full() || out.len() >= CHUNK {
                if !flush(&mut out, sender).await {
                    return Ok(());
                }
                if formatter.full() {
                    return Ok(());
                }
            }
        }
        if !flush(&mut out, sender).await {
            return Ok(());
        }
        if let (true, Some((cri, id))) = (last, &follow) {
            return watch(path, tail, formatter, (cri, id), sender).await;
        }
    }
    Ok(())
}

/// A log being read line by line; a line that is not whole yet is kept.
struct Tail {
    reader: BufReader<File>,
    inode: u64,
    line: Vec<u8>,
}

impl Tail {
    fn new(mut file: File, offset: u64) -> std::io::Result<Tail> {
        file.seek(SeekFrom::Start(offset))?;
        let inode = file.metadata()?.ino();
        Ok(Tail { reader: BufReader::with_capacity(16 << 10, file), inode, line: Vec::new() })
    }

    /// Whether a whole line is there.
    fn read_line(&mut self) -> std::io::Result<bool> {
        self.reader.read_until(b'\n', &mut self.line)?;
        Ok(self.line.ends_with(b"\n"))
    }
}

/// Follows a log until the container has ended or the client is gone.
async fn watch(
    path: &Path,
    mut tail: Tail,
    mut formatter: Formatter,
    (cri, id): (&crate::cri::Cri, &str),
    sender: &Sender,
) -> std::io::Result<()> {
    let mut out = Vec::new();
    let mut ended = false;
    let mut quiet = 0_u32;
    loop {
        let mut any = false;
        while tail.read_line()? {
            any = true;
            formatter.add(&tail.line, &mut out);
            tail.line.clear();
            if (formatter.full() || out.len() >= CHUNK) && (!flush(&mut out, sender).await || formatter.full()) {
                return Ok(());
            }
        }
        if !flush(&mut out, sender).await {
            return Ok(());
        }
        if any {
            quiet = 0;
            continue;
        }
        let fresh = std::fs::metadata(path).ok().filter(|m| m.ino() != tail.inode);
        if fresh.is_some() {
            tail = Tail::new(File::open(path)?, 0)?;
            continue;
        }
        if ended {
            return Ok(());
        }
        quiet += 1;
        // Asking the runtime at every look would cost more than it tells.
        if quiet.is_multiple_of(5) {
            let state = cri.container_status(id).await.map(|s| s.state);
            ended = !matches!(state, Ok(state) if state == crate::cri::ContainerState::Running as i32);
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = sender.closed() => return Ok(()),
        }
    }
}

/// Hands on what there is; whether the client is still there.
async fn flush(out: &mut Vec<u8>, sender: &Sender) -> bool {
    if out.is_empty() {
        return !sender.is_closed();
    }
    sender.send(Ok(Frame::data(Bytes::from(std::mem::take(out))))).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read_from_the_query() {
        let now = Timestamp::from_second(100).unwrap();
        let wish = wish_of(&Query::parse("follow=true&tailLines=5&sinceSeconds=10&timestamps=true&limitBytes=7"), now)
            .unwrap();
        assert_eq!(
            wish,
            Wish {
                follow: true,
                tail: Some(5),
                since: Some(Timestamp::from_second(90).unwrap()),
                timestamps: true,
                limit: Some(7),
                stream: None
            }
        );
        for bad in ["tailLines=x", "sinceTime=never", "stream=Both"] {
            assert!(wish_of(&Query::parse(bad), now).is_err(), "{bad}");
        }
    }
}
