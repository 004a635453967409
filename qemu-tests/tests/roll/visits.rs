//! Visits from outside in the background, and what came of them.

use anyhow::{Context, Result, bail, ensure};
use http::Method;
use kimg::client::{Https, block_on};
use qemu_tests::Cluster;
use qemu_tests::stranger::Stranger;
use qemu_tests::stranger::visitor::Visits;
use qemu_tests::writes::api;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Visits a second.
const RATE: u32 = 50;
const LEAST_RATE: f64 = 40.0;
/// Visits on one connection, on average, where they are kept.
const KEPT: usize = 10;
/// How often the Service is asked for its addresses.
const LOOK: Duration = Duration::from_millis(500);
const SERVICE: &str = "/api/v1/namespaces/shop/services/web";

/// The addresses that the Service's status holds now.
pub(crate) fn addresses(api: &Https) -> Result<Vec<Ipv4Addr>> {
    let answer = block_on(api.send(Method::GET, SERVICE, None))?;
    ensure!(answer.status.is_success(), "{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    let service: Value = serde_json::from_slice(&answer.body).context("reading the Service")?;
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    ingress
        .iter()
        .map(|i| i["ip"].as_str().unwrap_or_default().parse().with_context(|| format!("{i} has no address")))
        .collect()
}

/// Somebody who visits until told to stop.
pub(crate) struct Visitor {
    kept: bool,
    stop: Arc<AtomicBool>,
    visits: JoinHandle<Result<Visits>>,
    looks: JoinHandle<usize>,
}

impl Visitor {
    /// On a new connection each time.
    pub(crate) fn start(cluster: &Cluster) -> Result<Visitor> {
        Visitor::of(cluster, false)
    }

    /// On connections that stay open until the server ends them.
    pub(crate) fn start_keeping(cluster: &Cluster) -> Result<Visitor> {
        Visitor::of(cluster, true)
    }

    fn of(cluster: &Cluster, keep: bool) -> Result<Visitor> {
        let (mut client, dir) = (api(&cluster.dir)?, cluster.dir.clone());
        let targets = Arc::new(Mutex::new(addresses(&client)?));
        let stop = Arc::new(AtomicBool::new(false));
        let stranger = Stranger::plug_in(cluster, 1, Ipv4Addr::new(10, 77, 0, 77))?;
        let visits = std::thread::spawn({
            let (stop, targets) = (stop.clone(), targets.clone());
            move || stranger.visit("/status/", RATE, keep, &targets, &stop)
        });
        let looks = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut fewest = usize::MAX;
                while !stop.load(Relaxed) {
                    // Where the API server is slow to answer, clients go on with what they know.
                    match (addresses(&client), targets.lock()) {
                        (Ok(found), Ok(mut known)) => {
                            fewest = fewest.min(found.len());
                            *known = found;
                        }
                        _ => client = api(&dir).unwrap_or(client),
                    }
                    std::thread::park_timeout(LOOK);
                }
                fewest
            }
        });
        Ok(Visitor { kept: keep, stop, visits, looks })
    }

    pub(crate) fn stop(self) -> Result<Seen> {
        self.stop.store(true, Relaxed);
        let visits = self.visits.join();
        let looked = self.looks.join();
        match (visits, looked) {
            (Ok(visits), Ok(fewest)) => Ok(Seen { visits: visits?, kept: self.kept, fewest }),
            _ => bail!("a thread of the visitor failed"),
        }
    }
}

/// What the visitor saw.
pub(crate) struct Seen {
    visits: Visits,
    kept: bool,
    /// The fewest addresses that the Service's status held at a look.
    pub(crate) fewest: usize,
}

impl Seen {
    /// The page, each time, and often enough to have noticed.
    pub(crate) fn check_all_seen(&self) -> Result<()> {
        let visits = &self.visits;
        let seen: usize = visits.seen.values().sum();
        eprintln!(
            "{} visits on {} connections in {:.0} s, {} failed, the slowest took {:.1} s; by address {:?}",
            visits.begun,
            visits.connections,
            visits.lasted.as_secs_f64(),
            visits.failed.len(),
            visits.slowest.as_secs_f64(),
            visits.seen
        );
        let first = &visits.failed[..visits.failed.len().min(20)];
        ensure!(visits.failed.is_empty(), "{} of {} visits failed: {first:#?}", visits.failed.len(), visits.begun);
        ensure!(seen == visits.begun, "of {} visits {seen} saw the page", visits.begun);
        ensure!(visits.seen.len() >= 2, "only {:?} were visited", visits.seen);
        let most = if self.kept { visits.begun / KEPT } else { visits.begun };
        ensure!(visits.connections <= most, "{} connections for {} visits", visits.connections, visits.begun);
        ensure!(visits.rate() >= LEAST_RATE, "only {:.1} visits a second", visits.rate());
        Ok(())
    }
}
