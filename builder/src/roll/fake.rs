//! A cluster that is only told of: an API server with a Deployment behind a load balancer, machines and a clock. Where
//! the master is one of the machines, the API server is there while that runs.
//!
//! It keeps its own account of what a roll must not do: [`World::faults`] lists every moment in which a request would
//! have been lost.

mod machines;

use super::Clock;
use super::api::Api;
use super::copy::LocalCopy;
use super::lock::Holder;
use super::members::Members;
use super::volumes_tests::FakeVolume;
use crate::client::Answer;
use crate::input;
use crate::local::process::Process;
use crate::local::up::ImageFile;
use crate::machines::{Data, Ended, Machine, Machines, Order};
use anyhow::{Result, bail};
use http::{Method, StatusCode};
use jiff::Timestamp;
use node_api::{StoreEngine, StoreMember};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// From the start of a machine until its node reports.
const BOOT_SECS: i64 = 20;
/// From the start of a container until it is ready.
const START_SECS: i64 = 3;
/// From the word to a pod that it is to end until it is gone.
const GRACE_SECS: i64 = 2;
/// Until the API server shows that a node is not heard of.
const MISSED_SECS: i64 = 40;
/// From an API server that is there again until the workers hear of it.
const REJOIN_SECS: i64 = 25;
const RENEW_SECS: i64 = 10;
/// The Deployment's namespace.
const PODS: &str = "/api/v1/namespaces/a/pods/";

/// All that there is.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    /// Objects by their path.
    pub(crate) objects: BTreeMap<String, Value>,
    pub(crate) machines: BTreeMap<String, FakeMachine>,
    /// Images whose nodes boot and never become Ready.
    pub(crate) broken: BTreeSet<String>,
    /// Images whose kernel panics; they are broken, too.
    pub(crate) panics: BTreeSet<String>,
    /// Images whose nodes are Ready for a while, and then not, and so on.
    pub(crate) flapping: BTreeSet<String>,
    /// Machines that cannot be stopped.
    pub(crate) stuck: BTreeSet<String>,
    /// What rolls have said.
    pub(crate) said: Vec<String>,
    /// Nodes say their boot every other second only.
    pub(crate) busy: bool,
    /// Images of masters whose API server never answers.
    pub(crate) mute: BTreeSet<String>,
    /// Nodes of several masters, and their names in etcd.
    members: BTreeMap<String, String>,
    /// Members that do not answer though their machines run.
    pub(crate) lame: BTreeSet<String>,
    /// Images of a single master that carry etcd, and whether its store is there.
    pub(crate) with_etcd: BTreeSet<String>,
    pub(crate) store: StoreEngine,
    /// Machines keep no data.
    pub(crate) forgetful: bool,
    /// A master's store cannot be moved.
    pub(crate) immovable: bool,
    /// Backups that were made of the store; none can be made where there is none.
    pub(crate) backups: Option<usize>,
    /// The nodes whose last logs were kept.
    pub(crate) logs: Vec<String>,
    /// The machines that were made anew, in this order.
    pub(crate) order: Vec<String>,
    /// The cluster's folder for what runs.
    dir: tempfile::TempDir,
    /// Images on which containers never become ready.
    pub(crate) spoiled: BTreeSet<String>,
    /// Pods of the Deployment that its budget wants; none: no budget.
    pub(crate) budget: Option<usize>,
    /// The API server does not answer until then.
    pub(crate) silent_until: Timestamp,
    /// Since when the API server has been there; none while it is not.
    api_since: Option<Timestamp>,
    /// Somebody writes all the time: what was acknowledged, where it is asked for.
    pub(crate) acknowledged: Option<Vec<String>>,
    /// What went wrong for somebody outside.
    pub(crate) faults: Vec<String>,
    /// The most machines that were down at a time.
    pub(crate) most_down: usize,
    /// The fewest workers that were up at a time, spares among them.
    pub(crate) least_up: usize,
    version: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct FakeMachine {
    pub(crate) image: String,
    pub(crate) running: bool,
    pub(crate) rebuilt: usize,
    pub(crate) kept_data: bool,
    started: Timestamp,
    /// The node has reported from this start.
    booted: bool,
    /// It serves nothing until a backup is restored.
    pub(crate) awaits_backup: bool,
    /// Its store is closed.
    pub(crate) fenced: bool,
    /// Its etcd has joined that of the others with this disk.
    pub(crate) joined: bool,
    /// What is in its local volumes.
    pub(crate) volumes: BTreeMap<String, FakeVolume>,
}

/// The master's node, and its machine where there is one.
const MASTER: &str = "m";

/// Spares are made, all others are there.
fn is_spare(node: &str) -> bool {
    node.starts_with('s')
}

/// The world, for all who have to do with it.
#[derive(Debug, Clone)]
pub(crate) struct Fake(pub(crate) Rc<RefCell<World>>);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn new_node(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {}},
        "spec": {},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": address}],
            "nodeInfo": {"bootID": at(0).to_string()},
        },
    })
}

impl Fake {
    /// A master, so many workers with the image `old`, and a Deployment of two pods, never two on a node.
    pub(crate) fn new(workers: usize) -> Fake {
        Fake::of(workers, &[MASTER])
    }

    /// The same with three masters that share etcd, which are machines too.
    pub(crate) fn with_masters(workers: usize) -> Fake {
        Fake::of(workers, &["m1", "m2", "m3"])
    }

    fn of(workers: usize, masters: &[&str]) -> Fake {
        let mut world = World {
            now: at(1000),
            objects: BTreeMap::new(),
            machines: BTreeMap::new(),
            broken: BTreeSet::new(),
            panics: BTreeSet::new(),
            flapping: BTreeSet::new(),
            stuck: BTreeSet::new(),
            said: Vec::new(),
            busy: false,
            mute: BTreeSet::new(),
            members: BTreeMap::new(),
            lame: BTreeSet::new(),
            with_etcd: BTreeSet::new(),
            store: StoreEngine::Embedded,
            forgetful: false,
            immovable: false,
            backups: Some(0),
            logs: Vec::new(),
            order: Vec::new(),
            dir: tempfile::tempdir().expect("a folder"),
            spoiled: BTreeSet::new(),
            budget: Some(1),
            silent_until: at(0),
            api_since: Some(at(0)),
            acknowledged: None,
            faults: Vec::new(),
            most_down: 0,
            least_up: usize::MAX,
            version: 0,
        };
        let names = (1..=workers).map(|n| format!("w{n}")).chain(masters.iter().map(ToString::to_string));
        for (number, name) in names.enumerate() {
            world.put(&format!("/api/v1/nodes/{name}"), new_node(&name, &format!("10.0.0.{number}")));
            if masters.len() > 1 && masters.contains(&name.as_str()) {
                world.members.insert(name.clone(), format!("10.0.0.{number}"));
            }
            if name != MASTER {
                world.machines.insert(name, FakeMachine::old());
            }
        }
        let deployment = json!({"metadata": {"name": "web", "namespace": "a"}, "spec": {"replicas": 2}, "status": {}});
        world.put("/apis/apps/v1/namespaces/a/deployments/web", deployment);
        let service = json!({"metadata": {"name": "web", "namespace": "a"}, "status": {"loadBalancer": {}}});
        world.put("/api/v1/namespaces/a/services/web", service);
        let fake = Fake(Rc::new(RefCell::new(world)));
        fake.sleep(Duration::from_secs(30));
        fake
    }

    /// The same, and the master is a machine with the image `old` too.
    pub(crate) fn with_master(workers: usize) -> Fake {
        let fake = Fake::new(workers);
        fake.0.borrow_mut().machines.insert(MASTER.into(), FakeMachine::old());
        fake
    }

    /// The masters' names in etcd, by node; none of a single master.
    pub(crate) fn members(&self) -> BTreeMap<String, String> {
        self.0.borrow().members.clone()
    }

    /// Another `kimg`, and all before it have ended.
    pub(crate) fn process(&self) -> Holder {
        let mut world = self.0.borrow_mut();
        world.version += 1;
        let process = Process { pid: i32::MAX, started: world.version };
        Holder { process, ..Holder::me() }
    }

    /// The journal on this machine.
    pub(crate) fn copy(&self) -> LocalCopy {
        LocalCopy::of(self.0.borrow().dir.path())
    }

    /// As a roll asks for it.
    pub(crate) fn back_up(&self) -> Result<String> {
        let mut world = self.0.borrow_mut();
        match (world.has_api(), world.backups) {
            (true, Some(made)) => world.backups = Some(made + 1),
            _ => bail!("no room"),
        }
        Ok("backup of the store".into())
    }

    /// As a roll asks for it; a node that has no machine any more, or none that runs, says nothing.
    pub(crate) fn keep_logs(&self, node: &str) -> Result<String> {
        let mut world = self.0.borrow_mut();
        if !world.machines.get(node).is_some_and(|machine| machine.running) {
            bail!("it does not answer");
        }
        world.logs.push(node.to_owned());
        Ok("kept".into())
    }

    /// A machine breaks down, and the API server has noticed.
    pub(crate) fn stop(&self, node: &str) {
        {
            let mut world = self.0.borrow_mut();
            let now = world.now;
            let machine = world.machines.get_mut(node).expect("a machine");
            (machine.running, machine.booted, machine.started) = (false, false, now);
        }
        self.sleep(Duration::from_secs(60));
    }

    /// Changes an object where it stands.
    pub(crate) fn change(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut world = self.0.borrow_mut();
        let mut object = world.objects[path].clone();
        change(&mut object);
        world.put(path, object);
    }

    /// Names of the objects below a path.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let world = self.0.borrow();
        world.objects.keys().filter_map(|key| key.strip_prefix(path)).map(str::to_string).collect()
    }

    /// The image of each machine.
    pub(crate) fn images(&self) -> Vec<String> {
        self.0.borrow().machines.values().map(|machine| machine.image.clone()).collect()
    }
}

impl FakeMachine {
    fn old() -> FakeMachine {
        let (rebuilt, kept_data, booted) = (0, false, true);
        FakeMachine {
            image: "old".into(),
            running: true,
            rebuilt,
            kept_data,
            started: at(0),
            booted,
            awaits_backup: false,
            fenced: false,
            joined: false,
            volumes: BTreeMap::new(),
        }
    }

    /// Its node has reported from this start.
    pub(crate) fn is_booted(&self) -> bool {
        self.booted
    }

    /// Made anew at that moment.
    pub(crate) fn anew(&self, image: &str, started: Timestamp, awaits_backup: bool) -> FakeMachine {
        let (image, rebuilt) = (image.to_string(), self.rebuilt + 1);
        FakeMachine {
            image,
            running: true,
            rebuilt,
            kept_data: false,
            started,
            booted: false,
            awaits_backup,
            fenced: false,
            joined: false,
            volumes: BTreeMap::new(),
        }
    }
}

impl World {
    /// Whether the API server answers: in the middle of its master's boot it does, before the node reports.
    fn has_api(&self) -> bool {
        if !self.members.is_empty() {
            let members = self.etcd();
            let voters = members.iter().filter(|member| !member.learner).count();
            let healthy = members.iter().filter(|member| !member.learner && member.healthy).count();
            return healthy * 2 > voters && self.members.keys().any(|node| self.serves(node));
        }
        let Some(master) = self.machines.get(MASTER) else { return true };
        let lasted = self.now.as_second() - master.started.as_second();
        let serves = master.running && !master.awaits_backup && !master.fenced;
        let started = serves && (master.booted || lasted >= BOOT_SECS / 2);
        let opens = self.with_etcd.contains(&master.image) == (self.store == StoreEngine::Etcd);
        started && opens && !self.mute.contains(&master.image)
    }

    fn workers(&self) -> impl Iterator<Item = &String> {
        self.machines.keys().filter(|name| !self.is_master(name))
    }

    fn is_master(&self, name: &str) -> bool {
        name.starts_with(MASTER)
    }

    /// Whether a machine is so far that what is not its node answers there.
    fn is_up(&self, node: &str) -> bool {
        let Some(machine) = self.machines.get(node) else { return false };
        let lasted = self.now.as_second() - machine.started.as_second();
        machine.running && (machine.booted || lasted >= BOOT_SECS / 2)
    }

    fn serves(&self, node: &str) -> bool {
        let member = self.etcd().into_iter().find(|member| self.members.get(node) == Some(&member.name));
        member.is_some_and(|member| member.healthy && !member.learner)
            && !self.mute.contains(&self.machines[node].image)
    }

    fn etcd(&self) -> Vec<StoreMember> {
        let member = |(node, name): (&String, &String)| {
            let up = self.is_up(node);
            let catches_up = self.machines.get(node).is_some_and(|machine| machine.joined && !machine.booted);
            StoreMember {
                id: node.clone(),
                name: name.clone(),
                peer: format!("https://{name}:2380"),
                learner: catches_up,
                started: up || !catches_up,
                healthy: up && !self.lame.contains(node),
                leader: false,
            }
        };
        self.members.iter().map(member).collect()
    }

    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_string(), object.clone());
        object
    }

    fn node(&self, name: &str) -> &Value {
        self.objects.get(&format!("/api/v1/nodes/{name}")).unwrap_or(&Value::Null)
    }

    fn takes_pods(&self, name: &str) -> bool {
        let node = self.node(name);
        node["status"]["conditions"][0]["status"] == "True" && node["spec"]["unschedulable"] != true
    }

    /// All whose paths begin so. It is asked for some times in each second of each test, of hundreds of objects.
    fn below(&self, start: &str) -> impl Iterator<Item = (&String, &Value)> {
        self.objects.range(start.to_owned()..).take_while(move |(path, _)| path.starts_with(start))
    }

    fn pods(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.below(PODS)
    }

    fn is_ready(&self, pod: &Value) -> bool {
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let Some(machine) = self.machines.get(node) else { return false };
        let since = pod["fake"]["started"].as_i64().unwrap_or(i64::MAX);
        machine.running
            && machine.booted
            && !self.spoiled.contains(&machine.image)
            && pod["metadata"]["deletionTimestamp"].is_null()
            && self.now.as_second() >= since + START_SECS
    }

    fn ready_pods(&self) -> usize {
        self.pods().filter(|(_, pod)| self.is_ready(pod)).count()
    }

    /// Lets a second pass.
    fn tick(&mut self) {
        self.now += Duration::from_secs(1);
        if self.has_api() {
            self.api_since.get_or_insert(self.now);
            self.boot();
            self.renew();
            self.end_pods();
            self.start_pods();
            self.balance();
            self.write();
        } else {
            self.api_since = None;
        }
        if !self.members.is_empty() && !self.has_api() && self.now > at(1020) {
            self.faults.push(format!("{}: no master answers", self.now));
        }
        let down = self.machines.values().filter(|machine| !machine.booted).count();
        self.most_down = self.most_down.max(down);
        self.least_up = self.least_up.min(self.workers().filter(|name| self.machines[*name].booted).count());
        // The first pods of all need their time.
        if self.ready_pods() == 0 && self.now > at(1020) {
            self.faults.push(format!("{}: no pod answers", self.now));
        }
    }

    fn write(&mut self) {
        if let Some(mut acknowledged) = self.acknowledged.take() {
            let path = format!("/api/v1/namespaces/b/configmaps/w{}", acknowledged.len());
            self.put(&path, json!({"metadata": {}}));
            acknowledged.push(path);
            self.acknowledged = Some(acknowledged);
        }
    }

    /// Whether a node acts on what the API server says now.
    fn hears(&self, name: &str) -> bool {
        let since = self.api_since.map_or(i64::MAX, Timestamp::as_second);
        self.machines[name].booted && self.now.as_second() >= since.saturating_add(REJOIN_SECS)
    }

    fn renew(&mut self) {
        if self.now.as_second() % RENEW_SECS != 0 {
            return;
        }
        let heard: Vec<String> = self.machines.keys().filter(|name| self.hears(name)).cloned().collect();
        for name in heard {
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
            let lease = json!({"metadata": {"name": name}, "spec": {"renewTime": self.now.to_string()}});
            self.put(&path, lease);
        }
    }

    fn boot(&mut self) {
        for (name, machine) in self.machines.clone() {
            let path = format!("/api/v1/nodes/{name}");
            if machine.booted {
                if self.flapping.contains(&machine.image) {
                    let ready = self.now.as_second() / 5 % 2 == 0;
                    let mut node = self.objects[&path].clone();
                    node["status"]["conditions"][0]["status"] = json!(if ready { "True" } else { "False" });
                    self.put(&path, node);
                }
                continue;
            }
            let lasted = self.now.as_second() - machine.started.as_second();
            let known = self.objects.get(&path).cloned();
            if known.is_none() && lasted < BOOT_SECS {
                // It has not joined yet.
                continue;
            }
            let mut node = known.unwrap_or_else(|| new_node(&name, &format!("10.0.1.{}", name.trim_matches('s'))));
            if machine.running && lasted >= BOOT_SECS {
                let ready = !self.broken.contains(&machine.image);
                node["status"]["conditions"][0]["status"] = json!(if ready { "True" } else { "False" });
                node["status"]["conditions"][0]["message"] = json!("the network is not ready");
                node["status"]["nodeInfo"]["bootID"] = json!(format!("{}", machine.started));
                if let Some(machine) = self.machines.get_mut(&name) {
                    machine.booted = true;
                }
                self.put(&path, node);
            } else if lasted >= MISSED_SECS {
                node["status"]["conditions"][0]["status"] = json!("Unknown");
                self.put(&path, node);
            }
        }
    }

    fn end_pods(&mut self) {
        let has_ended = |pod: &Value| {
            let ends = pod["fake"]["ends"].as_i64();
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
            let there = self.machines.get(node).is_none_or(|machine| machine.booted);
            ends.is_some_and(|ends| ends <= self.now.as_second()) && there
        };
        let ended: Vec<String> = self.pods().filter(|(_, pod)| has_ended(pod)).map(|(path, _)| path.clone()).collect();
        for path in ended {
            self.objects.remove(&path);
        }
    }

    fn start_pods(&mut self) {
        let living = self.pods().filter(|(_, pod)| pod["metadata"]["deletionTimestamp"].is_null()).count();
        if living < 2 {
            self.version += 1;
            let name = format!("web-{}", self.version);
            let owner = json!([{"kind": "ReplicaSet", "controller": true}]);
            let meta = json!({"name": name, "namespace": "a", "ownerReferences": owner});
            self.put(&format!("{PODS}{name}"), json!({"metadata": meta, "spec": {}, "status": {}}));
        }
        let waits = |(_, pod): &(&String, &Value)| pod["spec"]["nodeName"].is_null();
        let waiting: Vec<(String, Value)> =
            self.pods().filter(waits).map(|(path, pod)| (path.clone(), pod.clone())).collect();
        for (path, mut pod) in waiting {
            let is_taken = |name: &str| self.pods().any(|(_, pod)| pod["spec"]["nodeName"] == name);
            let free = self.workers().find(|name| !is_taken(name) && self.takes_pods(name));
            if let Some(node) = free.cloned() {
                pod["spec"]["nodeName"] = json!(node);
                pod["fake"]["started"] = json!(self.now.as_second());
                self.put(&path, pod);
            }
        }
    }

    /// The controller of load balancers.
    fn balance(&mut self) {
        let ready: Vec<Value> = self
            .workers()
            .filter(|name| self.takes_pods(name))
            .map(|name| json!({"ip": self.node(name)["status"]["addresses"][0]["address"]}))
            .collect();
        let ready = json!(ready);
        let known = &self.objects["/api/v1/namespaces/a/services/web"];
        if known["status"]["loadBalancer"]["ingress"] != ready {
            let mut service = known.clone();
            service["status"]["loadBalancer"]["ingress"] = ready;
            self.put("/api/v1/namespaces/a/services/web", service);
        }
    }

    fn balanced(&self, node: &str) -> bool {
        let service = &self.objects["/api/v1/namespaces/a/services/web"];
        let list = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        list.iter().any(|ingress| ingress["ip"] == self.node(node)["status"]["addresses"][0]["address"])
    }

    fn list(&self, path: &str) -> Vec<Value> {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let node = query.strip_prefix("fieldSelector=spec.nodeName%3D");
        let (group, plural) = path.rsplit_once('/').unwrap_or(("", path));
        let belongs = |key: &str| {
            let Some(rest) = key.strip_prefix(group) else { return false };
            let parts: Vec<&str> = rest.trim_start_matches('/').split('/').collect();
            matches!(parts.as_slice(), [kind, _] | ["namespaces", _, kind, _] if *kind == plural)
        };
        let found = self.below(group).filter(|(key, _)| belongs(key)).map(|(_, object)| object.clone());
        found.filter(|object| node.is_none_or(|node| object["spec"]["nodeName"] == node)).collect()
    }

    fn evict(&mut self, path: &str) -> (StatusCode, Value) {
        if !self.objects.contains_key(path) {
            return (StatusCode::NOT_FOUND, json!({"message": "not found"}));
        }
        let ready = self.ready_pods();
        if let Some(budget) = self.budget
            && self.is_ready(&self.objects[path])
            && ready <= budget
        {
            let cause = format!("The disruption budget web needs {budget} healthy pods and has {ready} currently");
            let status = json!({"message": "Cannot evict pod", "details": {"causes": [{"message": cause}]}});
            return (StatusCode::TOO_MANY_REQUESTS, status);
        }
        // Who has not heard where the other pods are goes on sending to this one.
        let deaf = self.workers().find(|name| self.machines[*name].booted && !self.hears(name)).cloned();
        if let Some(deaf) = deaf {
            self.faults.push(format!("{}: a pod is evicted that {deaf} does not hear of", self.now));
        }
        self.end(path);
        (StatusCode::CREATED, json!({}))
    }

    fn end(&mut self, path: &str) {
        let mut pod = self.objects[path].clone();
        if pod["metadata"]["deletionTimestamp"].is_null() {
            pod["metadata"]["deletionTimestamp"] = json!(self.now.to_string());
            pod["fake"]["ends"] = json!(self.now.as_second() + GRACE_SECS);
            self.put(path, pod);
        }
    }

    fn answer(&mut self, method: &Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let object = || body.cloned().unwrap_or_default();
        let conflict = (StatusCode::CONFLICT, json!({"message": "conflict"}));
        match *method {
            Method::GET if path == "/readyz" => (StatusCode::OK, json!("ok")),
            Method::GET if path.ends_with("/deployments") => {
                let mut items = self.list(path);
                items.iter_mut().for_each(|web| web["status"]["readyReplicas"] = json!(self.ready_pods()));
                (StatusCode::OK, json!({"items": items}))
            }
            Method::GET => match self.objects.get(path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None if path.contains(super::api::NAME) => (StatusCode::NOT_FOUND, json!({"message": "not found"})),
                None => (StatusCode::OK, json!({"items": self.list(path)})),
            },
            Method::POST if path.ends_with("/eviction") => self.evict(path.trim_end_matches("/eviction")),
            Method::POST => {
                let name = object()["metadata"]["name"].as_str().unwrap_or_default().to_string();
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    return conflict;
                }
                (StatusCode::CREATED, self.put(&path, object()))
            }
            Method::PUT => match self.objects.get(path) {
                Some(old) if old["metadata"]["resourceVersion"] == object()["metadata"]["resourceVersion"] => {
                    (StatusCode::OK, self.put(path, object()))
                }
                _ => conflict,
            },
            Method::PATCH => {
                let mut patched = self.objects[path].clone();
                merge(&mut patched, &object());
                (StatusCode::OK, self.put(path, patched))
            }
            Method::DELETE if path.starts_with(PODS) && self.objects.contains_key(path) => {
                self.end(path);
                (StatusCode::OK, json!({}))
            }
            Method::DELETE => match self.objects.remove(path) {
                Some(_) => (StatusCode::OK, json!({})),
                None => (StatusCode::NOT_FOUND, json!({"message": "not found"})),
            },
            _ => (StatusCode::METHOD_NOT_ALLOWED, json!({})),
        }
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        match (value, target.as_object_mut()) {
            (Value::Null, Some(map)) => drop(map.remove(key)),
            _ => merge(&mut target[key], value),
        }
    }
}

impl Api for Fake {
    fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        let mut world = self.0.borrow_mut();
        if world.now < world.silent_until || !world.has_api() {
            bail!("connecting: refused");
        }
        let (status, body) = world.answer(&method, path, body);
        Ok(Answer { status, headers: Default::default(), body: serde_json::to_vec(&body)?.into() })
    }
}

impl Clock for Fake {
    fn now(&self) -> Timestamp {
        self.0.borrow().now
    }

    /// In whole seconds, at least one.
    fn sleep(&self, time: Duration) {
        for _ in 0..time.as_secs().max(1) {
            self.0.borrow_mut().tick();
        }
    }
}

impl Members for Fake {
    fn list(&self) -> Result<Vec<StoreMember>> {
        let world = self.0.borrow();
        match world.members.keys().any(|node| world.is_up(node)) {
            true => Ok(world.etcd()),
            false => bail!("no master answers"),
        }
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.0.borrow_mut().members.retain(|_, known| known != name);
        Ok(())
    }

    fn serves(&self, node: &str) -> Result<()> {
        let world = self.0.borrow();
        if world.serves(node) { Ok(()) } else { bail!("the API server of {node} does not answer") }
    }

    fn move_store(&self, node: &str, to: StoreEngine) -> Result<String> {
        let mut world = self.0.borrow_mut();
        if !world.is_up(node) {
            bail!("connecting: refused");
        }
        if world.immovable || !world.with_etcd.contains(&world.machines[node].image) {
            return input::bad("nothing was changed: no room");
        }
        world.store = to;
        Ok("the store was moved".into())
    }
}
