//! Audit records: one JSON line at the end of each request worth one, to `--audit-log-path`.
//!
//! The policy is fixed: metadata (who, what, from where, with which result; never bodies) of
//! every write and of every refusal, and of reads that give away secrets or let somebody in: Secrets,
//! backups, and what is opened in pods; nothing of health checks, leases and events.  The file is cut
//! over to `.1` when it is large.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::ApiError;
use crate::request::{RequestInfo, UserInfo};

/// Records that wait for the disk; beyond that they are dropped and counted in the log.
const QUEUE: usize = 4096;

/// Writes audit records.
#[derive(Debug)]
pub struct Audit {
    queue: Option<SyncSender<String>>,
}

/// One request's record in the making.
#[derive(Debug)]
pub struct Record {
    /// Goes out as the `Audit-ID` header.
    pub id: String,
    /// None where nothing is written.
    event: Option<Box<Value>>,
    /// Written only if the request is refused.
    quiet: bool,
}

/// The name of what a request made or would have made, where it does not stand in the request's path.
#[derive(Clone, Debug)]
pub struct Made(pub String);

impl Made {
    /// What an answer says of it.
    pub fn of<T>(answer: &Result<http::Response<T>, ApiError>) -> Option<Made> {
        match answer {
            Ok(response) => response.extensions().get::<Made>().cloned(),
            Err(error) if matches!(error.reason.as_str(), "AlreadyExists" | "Invalid") => {
                Some(Made(error.name.clone()))
            }
            Err(_) => None,
        }
    }
}

impl Audit {
    /// Opens the log, if one is set.
    pub fn new(config: &Config) -> anyhow::Result<Audit> {
        let Some(path) = &config.audit_log_path else { return Ok(Audit { queue: None }) };
        let file = open(path).with_context(|| format!("--audit-log-path {}: cannot be opened", path.display()))?;
        let (tx, rx) = sync_channel(QUEUE);
        let (path, most) = (path.clone(), config.audit_log_maxsize << 20);
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write_lines(file, &path, most, &rx))
            .context("starting the audit thread")?;
        Ok(Audit { queue: Some(tx) })
    }

    /// Called once it is known who asks (the default is nobody who is known), and as whom the user acts, if as another.
    pub fn begin(
        &self,
        info: &RequestInfo,
        user: &UserInfo,
        acting: Option<&UserInfo>,
        remote: std::net::SocketAddr,
    ) -> Record {
        let id = uuid::Uuid::new_v4().to_string();
        let wanted = self.queue.as_ref().filter(|_| !is_noise(info));
        let event = wanted.map(|_| Box::new(event(&id, info, user, acting, remote)));
        Record { id, event, quiet: info.verb.is_read() && !is_telling(info) }
    }

    /// Called with the answer's code.
    pub fn finish(&self, record: Record, code: u16, made: Option<Made>) {
        let (Some(queue), Some(mut event)) = (&self.queue, record.event) else { return };
        if record.quiet && !matches!(code, 401 | 403) {
            return;
        }
        event["responseStatus"] = json!({"metadata": {}, "code": code});
        let reference = event.get_mut("objectRef").and_then(Value::as_object_mut);
        if let (Some(reference), Some(Made(name))) = (reference, made.filter(|made| !made.0.is_empty())) {
            reference.entry("name").or_insert(name.into());
        }
        event["stageTimestamp"] = json!(now());
        if let Err(TrySendError::Full(_)) = queue.try_send(format!("{event}\n")) {
            tracing::warn!(id = record.id, "an audit record was dropped: the disk is too slow");
        }
    }
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Requests that would fill the log and tell nothing.
fn is_noise(info: &RequestInfo) -> bool {
    if !info.is_resource {
        return info.verb.is_read() && !is_own(info);
    }
    matches!(
        info.resource.as_str(),
        "events" | "leases" | "selfsubjectaccessreviews" | "subjectaccessreviews" | "tokenreviews"
    )
}

/// A path of this server's own, as that of backups.
fn is_own(info: &RequestInfo) -> bool {
    info.path.starts_with("/kimg/")
}

/// Reads that are worth a line.
fn is_telling(info: &RequestInfo) -> bool {
    let opened = info.rest.split('/').next().unwrap_or_default();
    let core = info.is_resource && info.group.is_empty();
    match (info.resource.as_str(), info.subresource.as_str()) {
        ("secrets", _) if core => true,
        // The kubelet opens the same.
        ("nodes", "proxy") if core => matches!(opened, "exec" | "attach" | "portForward"),
        _ => info.opens_pod() || is_own(info),
    }
}

fn event(
    id: &str,
    info: &RequestInfo,
    user: &UserInfo,
    acting: Option<&UserInfo>,
    remote: std::net::SocketAddr,
) -> Value {
    let uri = match info.query.pairs() {
        [] => info.path.clone(),
        // The query of an exec holds the command line, which may hold secrets: names only.
        pairs => format!("{}?{}", info.path, pairs.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>().join("&")),
    };
    let mut out = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": id, "stage": "ResponseComplete",
        "requestURI": uri, "verb": info.verb.as_str(), "user": user.to_json(), "sourceIPs": [remote.ip().to_string()],
        "requestReceivedTimestamp": now(),
    });
    if let Some(acting) = acting {
        out["impersonatedUser"] = acting.to_json();
    }
    if info.is_resource {
        out["objectRef"] = Value::Object(object_ref(info));
    }
    out
}

fn object_ref(info: &RequestInfo) -> Map<String, Value> {
    let fields = [
        ("resource", &info.resource),
        ("namespace", &info.namespace),
        ("name", &info.name),
        ("apiGroup", &info.group),
        ("apiVersion", &info.version),
        ("subresource", &info.subresource),
    ];
    fields.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_string(), json!(v))).collect()
}

fn open(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    // The folder's group may be that of whoever sends logs away; else it is root's.
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

fn write_lines(mut file: File, path: &Path, most: u64, lines: &Receiver<String>) {
    let mut size = file.metadata().map(|m| m.len()).unwrap_or(0);
    // A full disk is told once, or the log of this server would fill what is left of it.
    let mut lost = 0_u64;
    let mut stuck = false;
    while let Ok(line) = lines.recv() {
        if size > most {
            match cut_over(path) {
                Ok(fresh) => (file, size, stuck) = (fresh, 0, false),
                Err(e) if !stuck => {
                    tracing::error!("audit log {}: cannot be cut over, and grows on: {e}", path.display());
                    stuck = true;
                }
                Err(_) => {}
            }
        }
        match file.write_all(line.as_bytes()) {
            Ok(()) => {
                size += line.len() as u64;
                if lost > 0 {
                    tracing::warn!("audit log {}: {lost} records were lost", path.display());
                    lost = 0;
                }
            }
            Err(e) => {
                if lost == 0 {
                    tracing::error!("audit log {}: records are lost: {e}", path.display());
                }
                lost += 1;
            }
        }
    }
}

fn cut_over(path: &Path) -> std::io::Result<File> {
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    match std::fs::rename(path, PathBuf::from(old)) {
        // Put aside before, by a try that came no further.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        done => done?,
    }
    open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn a_file_that_is_large_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let (tx, rx) = sync_channel(8);
        for line in ["one\n", "two\n", "three\n"] {
            tx.send(line.to_string()).unwrap();
        }
        drop(tx);
        write_lines(open(&path).unwrap(), &path, 5, &rx);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("audit.log.1")).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn a_file_that_was_put_aside_before_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let old = open(&path).unwrap();
        std::fs::write(&path, "a whole file\n").unwrap();
        std::fs::rename(&path, dir.path().join("audit.log.1")).unwrap();
        let (tx, rx) = sync_channel(8);
        tx.send("new\n".to_string()).unwrap();
        drop(tx);
        write_lines(old, &path, 5, &rx);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("audit.log.1")).unwrap(), "a whole file\n");
    }

    #[test]
    fn what_is_worth_a_line() {
        let table = [
            ("GET", "/healthz", true),
            ("PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/x", true),
            ("POST", "/api/v1/namespaces/a/events", true),
            ("POST", "/api/v1/namespaces/a/pods", false),
            ("GET", "/api/v1/namespaces/a/secrets/s", false),
            ("GET", "/kimg/backup", false),
        ];
        for (method, path, noise) in table {
            assert_eq!(
                is_noise(&RequestInfo::parse(&method.parse::<Method>().expect("method"), path, "")),
                noise,
                "{path}"
            );
        }
    }

    #[test]
    fn reads_that_tell_or_open() {
        for (path, telling) in [
            ("/api/v1/namespaces/a/secrets/s", true),
            ("/api/v1/namespaces/a/pods/p/exec", true),
            ("/api/v1/namespaces/a/pods/p/attach", true),
            ("/api/v1/namespaces/a/pods/p/portforward", true),
            ("/api/v1/nodes/n/proxy/exec/a/p/c", true),
            ("/kimg/backup", true),
            ("/api/v1/namespaces/a/pods/p/log", false),
            ("/api/v1/nodes/n/proxy/metrics", false),
            ("/apis/example.org/v1/namespaces/a/secrets/s", false),
            ("/api/v1/namespaces/a/configmaps/c", false),
        ] {
            assert_eq!(is_telling(&RequestInfo::parse(&Method::GET, path, "")), telling, "{path}");
        }
    }

    #[test]
    fn commands_stay_out() {
        let info = RequestInfo::parse(&Method::POST, "/api/v1/namespaces/a/pods/p/exec", "command=secret&stdin=1");
        let event = event("id", &info, &UserInfo::anonymous(), None, ([127, 0, 0, 1], 1).into());
        assert_eq!(event["requestURI"], "/api/v1/namespaces/a/pods/p/exec?command&stdin");
        assert_eq!(event["objectRef"]["subresource"], "exec");
        assert_eq!(event["user"]["username"], "system:anonymous");
    }
}
