//! Writes through the API server in the background, and which of them are there in the end.

use crate::Cluster;
use anyhow::{Context, Result, bail, ensure};
use http::Method;
use kimg::client::{Https, block_on};
use kimg::local::state;
use kimg::pki::Secrets;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two writes.
const PAUSE: Duration = Duration::from_millis(100);
const NAMESPACE: &str = "written";
const PATH: &str = "/api/v1/namespaces/written/configmaps";

/// A client of the API server of the cluster in a folder.
///
/// # Errors
/// The folder holds no cluster, or the VMs have never run.
pub fn api(dir: &Path) -> Result<Https> {
    let settings = kimg::config::load(dir)?;
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    state::api_client(&settings, &secrets, None)
}

/// Somebody who writes until told to stop.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Written {
    acknowledged: Vec<String>,
    failed: usize,
    /// Acknowledged since the last failure.
    since: usize,
    /// The longest time from one acknowledged write to the next.
    gap: Duration,
}

impl Writer {
    /// Begins.
    ///
    /// # Errors
    /// There is no place to write to.
    pub fn start(cluster: &Cluster) -> Result<Writer> {
        cluster.namespace(NAMESPACE)?;
        let (mut client, dir) = (api(&cluster.dir)?, cluster.dir.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let (mut written, mut last) = (Written::default(), Instant::now());
                for number in 0.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    // No name twice: an answer that is lost may be one to a write that was done.
                    let name = format!("n{number}");
                    let object = json!({"metadata": {"name": name}, "data": {"number": name}});
                    match block_on(client.send(Method::POST, PATH, Some(&object))) {
                        Ok(answer) if answer.status.is_success() => {
                            written.acknowledged.push(name);
                            written.since += 1;
                            written.gap = written.gap.max(last.elapsed());
                            last = Instant::now();
                        }
                        _ => {
                            (written.failed, written.since) = (written.failed + 1, 0);
                            // A master that was made anew may have another port.
                            client = api(&dir).unwrap_or(client);
                        }
                    }
                    std::thread::park_timeout(PAUSE);
                }
                written
            }
        });
        Ok(Writer { stop, thread })
    }

    /// Ends.
    ///
    /// # Errors
    /// The thread has failed.
    pub fn stop(self) -> Result<Written> {
        self.stop.store(true, Relaxed);
        match self.thread.join() {
            Ok(written) => Ok(written),
            Err(_) => bail!("the thread that writes failed"),
        }
    }
}

impl Written {
    /// Each write that was acknowledged is there, with what was written.
    ///
    /// # Errors
    /// One is not, or there were too few.
    pub fn check_all_there(&self, cluster: &Cluster) -> Result<()> {
        let found = cluster.json(&["-n", NAMESPACE, "get", "configmaps"])?;
        let items = found["items"].as_array().context("no list")?;
        let there: BTreeSet<&str> = items.iter().filter_map(|item| item["data"]["number"].as_str()).collect();
        eprintln!(
            "{} writes acknowledged, {} not; the API was away for {:.1} s",
            self.acknowledged.len(),
            self.failed,
            self.gap.as_secs_f64()
        );
        let lost: Vec<&String> = self.acknowledged.iter().filter(|name| !there.contains(name.as_str())).collect();
        ensure!(lost.is_empty(), "{} acknowledged writes are lost: {lost:?}", lost.len());
        // The master was away for a while, and there was enough before and after it.
        ensure!(self.failed > 0 && self.acknowledged.len() > 50 && self.since > 20, "{self:?}");
        cluster.k(&["delete", "namespace", NAMESPACE]).map(drop)
    }
}
