//! Clients that write without an end, and go to the next master when one does not answer.

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use kimg::client::{Https, block_on};
use kimg::local::state::{self, State};
use kimg::pki::Secrets;
use qemu_tests::{Cluster, wait};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const CLIENTS: usize = 3;
/// Between two writes of a client.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a client waits for an answer before it asks the next master.
const PATIENCE: Duration = Duration::from_secs(3);
/// No client may be stuck for longer.
const STUCK_S: u64 = 10;
const NAMESPACE: &str = "written";
const PATH: &str = "/api/v1/namespaces/written/configmaps";

/// Clients at work.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Written>>,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Written {
    acknowledged: Vec<String>,
    failed: usize,
    /// The longest time from one acknowledged write of a client to its next.
    gap: Duration,
}

/// A client for each master that there is now.
fn masters(dir: &Path) -> Result<Vec<Https>> {
    let settings = kimg::config::load(dir)?;
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let state = State::load(&settings.run_dir())?;
    let ports = state.vms.values().filter_map(|vm| vm.api_port);
    let all: Vec<Https> = ports
        .map(|port| state::api_client(&settings, &secrets, Some(&format!("https://127.0.0.1:{port}"))))
        .collect::<Result<_>>()?;
    ensure!(!all.is_empty(), "no master has a port here");
    Ok(all)
}

impl Writers {
    pub(crate) fn start(cluster: &Cluster) -> Result<Writers> {
        cluster.namespace(NAMESPACE)?;
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = (0..CLIENTS)
            .map(|client| {
                let (stop, acknowledged, dir) = (stop.clone(), acknowledged.clone(), cluster.dir.clone());
                std::thread::spawn(move || write(client, &dir, &stop, &acknowledged))
            })
            .collect();
        Ok(Writers { stop, acknowledged, threads })
    }

    /// Waits until so many writes more were acknowledged.
    pub(crate) fn some_more(&self, count: usize) -> Result<()> {
        let wanted = self.acknowledged.load(Relaxed) + count;
        wait::until(&format!("{count} writes"), wait::scale(60), || {
            Ok((self.acknowledged.load(Relaxed) >= wanted).then_some(()))
        })
    }

    pub(crate) fn stop(self) -> Result<Written> {
        self.stop.store(true, Relaxed);
        let mut all = Written::default();
        for thread in self.threads {
            let Ok(one) = thread.join() else { bail!("a client has panicked") };
            all.acknowledged.extend(one.acknowledged);
            all.failed += one.failed;
            all.gap = all.gap.max(one.gap);
        }
        Ok(all)
    }
}

fn write(client: usize, dir: &Path, stop: &AtomicBool, acknowledged: &AtomicUsize) -> Written {
    let (mut written, mut last, mut at) = (Written::default(), Instant::now(), client);
    let mut apis = Vec::new();
    for number in 0.. {
        if stop.load(Relaxed) {
            break;
        }
        if apis.is_empty() {
            // A master that was made anew may have another port.
            apis = masters(dir).unwrap_or_default();
        }
        // No name twice: an answer that is lost may be one to a write that was done.
        let name = format!("c{client}-n{number}");
        let object = json!({"metadata": {"name": name}, "data": {"number": name}});
        let ok = apis.get(at % apis.len().max(1)).is_some_and(|api: &Https| {
            let asked = async {
                let answer = tokio::time::timeout(PATIENCE, api.send(Method::POST, PATH, Some(&object))).await;
                Ok(matches!(answer, Ok(Ok(answer)) if answer.status.is_success()))
            };
            block_on(asked).unwrap_or(false)
        });
        if ok {
            written.acknowledged.push(name);
            written.gap = written.gap.max(last.elapsed());
            last = Instant::now();
            acknowledged.fetch_add(1, Relaxed);
        } else {
            written.failed += 1;
            at += 1;
            apis.clear();
        }
        std::thread::park_timeout(PAUSE);
    }
    written.gap = written.gap.max(last.elapsed());
    written
}

impl Written {
    /// Each write that was acknowledged is there, and nobody waited for long.
    pub(crate) fn check(&self, cluster: &Cluster) -> Result<()> {
        let found = cluster.json(&["-n", NAMESPACE, "get", "configmaps"])?;
        let items = found["items"].as_array().context("no list")?;
        let there: BTreeSet<&str> = items.iter().filter_map(|item| item["data"]["number"].as_str()).collect();
        eprintln!(
            "{} writes acknowledged, {} not; the longest that a client waited was {:.1} s",
            self.acknowledged.len(),
            self.failed,
            self.gap.as_secs_f64()
        );
        let lost: Vec<&String> = self.acknowledged.iter().filter(|name| !there.contains(name.as_str())).collect();
        ensure!(lost.is_empty(), "{} acknowledged writes are lost: {lost:?}", lost.len());
        ensure!(self.acknowledged.len() > 50, "only {} writes", self.acknowledged.len());
        let most = wait::scale(STUCK_S);
        ensure!(self.gap <= most, "a client was stuck for {:.1} s", self.gap.as_secs_f64());
        cluster.k(&["delete", "namespace", NAMESPACE]).map(drop)
    }
}
