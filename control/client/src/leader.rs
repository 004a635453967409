//! Leader election by a Lease in kube-system.
//!
//! The identity is the host's name: init runs one of each component a host, so that a
//! restarted process goes on with its own lease at once.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::bail;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};

use crate::call::Client;
use crate::health::Health;
use crate::notify;

const NAMESPACE: &str = "kube-system";
/// Upstream's `--leader-elect-lease-duration`: whoever sees no renewal for so long takes the lease.
const LEASE: Duration = Duration::from_secs(15);
/// Upstream's `--leader-elect-renew-deadline`: whoever has not renewed for so long stops working, before another may begin.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Upstream's `--leader-elect-retry-period`.
const RETRY: Duration = Duration::from_secs(2);
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// One try takes no longer: an API server that is dead says nothing.
const TRY: Duration = Duration::from_secs(4);

/// When what was asked for, and then granted, was asked for: others count from no earlier.
#[derive(Debug, Clone, Copy)]
struct Held(Instant);

/// What to do about the lease that was found.
#[derive(Debug, PartialEq)]
enum Step {
    Take { transitions: i32 },
    Renew,
    Wait,
}

fn plan(lease: &LeaseSpec, identity: &str, unchanged_for: Duration) -> Step {
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    if holder == identity {
        return Step::Renew;
    }
    let length = Duration::from_secs(lease.lease_duration_seconds.unwrap_or(0).max(0) as u64);
    if holder.is_empty() || unchanged_for >= length {
        return Step::Take { transitions: lease.lease_transitions.unwrap_or(0) + 1 };
    }
    Step::Wait
}

/// The name of this host.
pub fn identity() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Does `work` while this process holds the Lease `name`; stands by until then.
///
/// # Errors
/// The lease is lost, or the work has failed.
pub async fn lead(
    client: &Client,
    name: &str,
    health: &Health,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    notify::status("waiting for the API server");
    let (world, identity) = (Cluster { client, name }, identity());
    // To stand by is all that it has to do then.
    let stand_by = || {
        health.set_ready();
        notify::ready("standing by: another master leads");
    };
    let held = acquire_in(&world, &identity, stand_by).await;
    tracing::info!("leading as {identity}");
    tokio::select! {
        result = work => result,
        lost = keep_in(&world, &identity, held) => lost.map(|never| match never {}),
    }
}

/// Lets the lease go at once, for a process that has ended its work.
pub async fn let_go(client: anyhow::Result<Client>, name: &str) {
    let done = match &client {
        Ok(client) => release_in(&Cluster { client, name }, &identity()).await,
        Err(error) => Err(format!("{error:#}")),
    };
    match done {
        Ok(true) => tracing::info!("lease {NAMESPACE}/{name} is released"),
        Ok(false) => {}
        Err(why) => tracing::warn!("lease {NAMESPACE}/{name} is not released, and ends by itself: {why}"),
    }
}

/// The Lease, and the time.
trait World {
    fn now(&self) -> Instant;
    async fn sleep_until(&self, moment: Instant);
    /// None: there is none yet.
    async fn read(&self) -> Result<Option<Lease>, String>;
    /// Creates a Lease, or replaces the one that was read.
    async fn write(&self, lease: Lease) -> Result<(), String>;

    /// What comes of `work` until `moment`.
    async fn until<T>(&self, moment: Instant, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        tokio::select! {
            biased;
            done = work => done,
            () = self.sleep_until(moment) => Err("no answer".to_owned()),
        }
    }
}

/// The Lease `name` of the cluster.
struct Cluster<'a> {
    client: &'a Client,
    name: &'a str,
}

impl World for Cluster<'_> {
    fn now(&self) -> Instant {
        Instant::now()
    }

    async fn sleep_until(&self, moment: Instant) {
        tokio::time::sleep_until(moment.into()).await;
    }

    async fn read(&self) -> Result<Option<Lease>, String> {
        match self.client.get(Some(NAMESPACE), self.name).await {
            Ok(lease) => Ok(Some(lease)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure.to_string()),
        }
    }

    async fn write(&self, mut lease: Lease) -> Result<(), String> {
        let meta = &mut lease.metadata;
        (meta.namespace, meta.name) = (Some(NAMESPACE.to_owned()), Some(self.name.to_owned()));
        let is_new = meta.resource_version.is_none();
        let done = if is_new { self.client.create(&lease).await } else { self.client.replace(&lease).await };
        done.map(drop).map_err(|failure| failure.to_string())
    }
}

async fn acquire_in(world: &impl World, identity: &str, another: impl FnOnce()) -> Held {
    let mut another = Some(another);
    let mut observed = None;
    let mut pause = FIRST_RETRY;
    loop {
        let begun = world.now();
        match world.until(begun + TRY, attempt(world, identity, &mut observed)).await {
            Ok(true) => return Held(begun),
            Ok(false) => {
                if let Some(say) = another.take() {
                    say();
                }
            }
            Err(why) => tracing::debug!("taking the lease: {why}"),
        }
        world.sleep_until(world.now() + pause).await;
        pause = (pause * 2).min(RETRY);
    }
}

async fn keep_in(world: &impl World, identity: &str, held: Held) -> anyhow::Result<Infallible> {
    let Held(mut renewed) = held;
    let mut next = renewed;
    loop {
        next = (next + RETRY).max(world.now());
        let end = renewed + GIVE_UP;
        world.sleep_until(next.min(end)).await;
        let begun = world.now();
        let why = match world.until(end.min(begun + TRY), attempt(world, identity, &mut None)).await {
            Ok(true) => {
                renewed = begun;
                continue;
            }
            Ok(false) => bail!("the lease was taken by another master"),
            Err(why) => why,
        };
        if world.now() >= end {
            bail!("the lease was not renewed for {} s: {why}", GIVE_UP.as_secs());
        }
        tracing::warn!("renewing the lease: {why}");
    }
}

/// Whether there was something to let go.
async fn release_in(world: &impl World, identity: &str) -> Result<bool, String> {
    let let_go = async {
        let Some(mut lease) = world.read().await? else { return Ok(false) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_deref() == Some(identity)) else {
            return Ok(false);
        };
        let now = MicroTime(Timestamp::now());
        // Upstream writes the same: nobody's, and for a second only.
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.acquire_time = Some(now.clone());
        spec.renew_time = Some(now);
        world.write(lease).await.map(|()| true)
    };
    world.until(world.now() + TRY, let_go).await
}

/// Tries to take the lease, or to renew it; `observed` is what it was, and since when.
async fn attempt(
    world: &impl World,
    identity: &str,
    observed: &mut Option<(Option<LeaseSpec>, Instant)>,
) -> Result<bool, String> {
    let now = MicroTime(Timestamp::now());
    let Some(mut lease) = world.read().await? else {
        let spec = Some(held(identity, 0, now.clone(), now));
        world.write(Lease { metadata: ObjectMeta::default(), spec }).await?;
        return Ok(true);
    };
    let spec = lease.spec.clone().unwrap_or_default();
    let since = match observed {
        Some((known, since)) if *known == lease.spec => *since,
        _ => {
            let now = world.now();
            *observed = Some((lease.spec.clone(), now));
            now
        }
    };
    let acquired = spec.acquire_time.clone().unwrap_or_else(|| now.clone());
    lease.spec = Some(match plan(&spec, identity, world.now().saturating_duration_since(since)) {
        Step::Wait => return Ok(false),
        Step::Renew => held(identity, spec.lease_transitions.unwrap_or(0), acquired, now),
        Step::Take { transitions } => held(identity, transitions, now.clone(), now),
    });
    world.write(lease).await?;
    Ok(true)
}

fn held(identity: &str, transitions: i32, acquired: MicroTime, renewed: MicroTime) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: Some(LEASE.as_secs() as i32),
        acquire_time: Some(acquired),
        renew_time: Some(renewed),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    use std::task::{Poll, Waker};

    use futures::executor::LocalPool;
    use futures::task::LocalSpawnExt as _;

    use super::*;

    #[test]
    fn lease_is_taken_only_when_free_or_expired() {
        let cases = [
            ("", 0, Step::Take { transitions: 1 }),
            ("me", 0, Step::Renew),
            ("other", 14, Step::Wait),
            ("other", 15, Step::Take { transitions: 1 }),
        ];
        for (holder, unchanged, step) in cases {
            let lease = LeaseSpec {
                holder_identity: Some(holder.into()),
                lease_duration_seconds: Some(15),
                ..LeaseSpec::default()
            };
            assert_eq!(plan(&lease, "me", Duration::from_secs(unchanged)), step, "{holder}");
        }
    }

    /// How one process reaches the API.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Way {
        Open,
        /// Connections are refused.
        Refused,
        /// Nothing arrives, and nothing comes back.
        Silent,
        /// What is written is written, and the answer is lost.
        Deaf,
        /// The API server itself has no quorum: what was read is old, and nothing is written.
        Stale,
    }

    /// A cluster with a Lease, in a time of its own.
    struct Model {
        begun: Instant,
        now: Cell<Duration>,
        sleepers: RefCell<Vec<(Duration, Waker)>>,
        lease: RefCell<Option<Lease>>,
        version: Cell<u64>,
        ways: RefCell<[Way; 3]>,
        leads: [Cell<bool>; 3],
    }

    impl Model {
        fn new() -> Rc<Model> {
            Rc::new(Model {
                begun: Instant::now(),
                now: Cell::default(),
                sleepers: RefCell::default(),
                lease: RefCell::default(),
                version: Cell::new(0),
                ways: RefCell::new([Way::Open; 3]),
                leads: <[Cell<bool>; 3]>::default(),
            })
        }

        /// Goes on to the next moment at which anybody wakes.
        fn step(&self, pool: &mut LocalPool) {
            pool.run_until_stalled();
            let mut sleepers = self.sleepers.borrow_mut();
            let next = sleepers.iter().map(|(moment, _)| *moment).min().expect("somebody sleeps");
            self.now.set(next.max(self.now.get()));
            sleepers.extract_if(.., |(moment, _)| *moment <= next).for_each(|(_, waker)| waker.wake());
            drop(sleepers);
            pool.run_until_stalled();
            assert!(self.leading().len() <= 1, "{:?} work at one time", self.leading());
        }

        fn leading(&self) -> Vec<usize> {
            (0..3).filter(|who| self.leads[*who].get()).collect()
        }

        fn holder(&self) -> String {
            let lease = self.lease.borrow();
            lease.as_ref().and_then(|l| l.spec.as_ref()?.holder_identity.clone()).unwrap_or_default()
        }

        /// Goes on until it is so; fails where it is not within the time.
        fn until(&self, pool: &mut LocalPool, seconds: u64, so: impl Fn() -> bool) {
            pool.run_until_stalled();
            let end = self.now.get() + Duration::from_secs(seconds);
            while !so() {
                assert!(self.now.get() < end, "not within {seconds} s; {:?} lead", self.leading());
                self.step(pool);
            }
        }
    }

    /// One process in it.
    #[derive(Clone)]
    struct Process {
        model: Rc<Model>,
        who: usize,
    }

    impl Process {
        fn way(&self) -> Way {
            self.model.ways.borrow()[self.who]
        }

        async fn reach(&self) -> Result<(), String> {
            match self.way() {
                Way::Refused => Err("connection refused".to_owned()),
                Way::Silent => std::future::pending().await,
                Way::Open | Way::Deaf | Way::Stale => Ok(()),
            }
        }
    }

    impl World for Process {
        fn now(&self) -> Instant {
            self.model.begun + self.model.now.get()
        }

        async fn sleep_until(&self, moment: Instant) {
            let moment = moment.saturating_duration_since(self.model.begun);
            std::future::poll_fn(|context| {
                if self.model.now.get() >= moment {
                    return Poll::Ready(());
                }
                self.model.sleepers.borrow_mut().push((moment, context.waker().clone()));
                Poll::Pending
            })
            .await;
        }

        async fn read(&self) -> Result<Option<Lease>, String> {
            self.reach().await?;
            Ok(self.model.lease.borrow().clone())
        }

        async fn write(&self, mut lease: Lease) -> Result<(), String> {
            self.reach().await?;
            if self.way() == Way::Stale {
                return Err("etcd has no leader".to_owned());
            }
            {
                let mut kept = self.model.lease.borrow_mut();
                let before = kept.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
                if lease.metadata.resource_version != before {
                    return Err("the object has been modified".to_owned());
                }
                self.model.version.set(self.model.version.get() + 1);
                lease.metadata.resource_version = Some(self.model.version.get().to_string());
                *kept = Some(lease);
            }
            if self.way() == Way::Deaf {
                std::future::pending().await
            }
            Ok(())
        }
    }

    const NAMES: [&str; 3] = ["a", "b", "c"];

    /// A process that is started again whenever it ends.
    async fn run(process: Process) {
        let (name, leads) = (NAMES[process.who], &process.model.leads[process.who]);
        loop {
            let held = acquire_in(&process, name, || ()).await;
            leads.set(true);
            keep_in(&process, name, held).await.expect_err("it never ends well");
            leads.set(false);
        }
    }

    /// Cuts one after the other off, in each way, and looks at every moment who works.
    #[test]
    fn one_leads_at_a_time_whoever_is_cut_off() {
        let (model, mut pool) = (Model::new(), LocalPool::new());
        for who in 0..3 {
            pool.spawner().spawn_local(run(Process { model: model.clone(), who })).unwrap();
        }
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..40 {
            model.until(&mut pool, 30, || !model.leading().is_empty());
            let leader = model.leading()[0];
            seen.insert(leader);
            let way = [Way::Refused, Way::Silent, Way::Deaf, Way::Stale][round % 4];
            model.ways.borrow_mut()[leader] = way;
            if way == Way::Deaf {
                // Its writes arrive, so that the lease stays its own: it ends, and comes again.
                model.until(&mut pool, 15, || model.leading().is_empty());
            } else {
                // By the lease's time and a few tries.
                model.until(&mut pool, 25, || !model.leading().is_empty() && model.leading() != [leader]);
            }
            model.ways.borrow_mut()[leader] = Way::Open;
            let quiet = model.now.get() + Duration::from_millis(3_700 * (round as u64 % 7));
            while model.now.get() < quiet {
                model.step(&mut pool);
            }
        }
        assert!(seen.len() > 1, "{seen:?}");
    }

    #[test]
    fn what_is_released_is_taken_at_once() {
        let (model, mut pool) = (Model::new(), LocalPool::new());
        let [a, b] = [0, 1].map(|who| Process { model: model.clone(), who });
        pool.run_until(acquire_in(&a, "a", || ()));
        pool.spawner().spawn_local(run(b)).unwrap();
        model.step(&mut pool);
        // Whoever does not hold it lets nothing go.
        assert_eq!(pool.run_until(release_in(&a, "c")), Ok(false));
        assert_eq!(model.holder(), "a");
        assert_eq!(pool.run_until(release_in(&a, "a")), Ok(true));
        model.until(&mut pool, RETRY.as_secs(), || model.leading() == [1]);
        assert_eq!(model.holder(), "b");
    }

    #[test]
    fn a_process_that_begins_again_goes_on_with_its_lease() {
        let (model, mut pool) = (Model::new(), LocalPool::new());
        let process = Process { model: model.clone(), who: 0 };
        for _ in 0..2 {
            pool.run_until(acquire_in(&process, "a", || panic!("it is its own")));
        }
        assert_eq!(model.now.get(), Duration::ZERO);
    }
}
