//! What a roll asks the API server for, and tells it.

use super::drain::{self, Pod};
use super::gone;
use super::journal::{self, Journal};
use super::lock::{self, Holder, Look, Verdict};
use super::plan::{Claim, Node};
use super::skew::Level;
use crate::client::{Answer, Https, block_on, kube};
use crate::seed::token::{BootstrapToken, LIFE};
use anyhow::{Context, Result, bail};
use http::{Method, StatusCode};
use jiff::Timestamp;
use node_api::copy::{LOCAL_PATH, is_volume_name};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Name of the lock and of the journal.
pub const NAME: &str = "kimg-roll";
/// Where they are.
pub const NAMESPACE: &str = "kube-system";
/// On a node that a roll has cordoned, so that one that somebody else has cordoned stays so.
const CORDONED: &str = "kimg.dev/cordoned-by";
const NODES: &str = "/api/v1/nodes";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
const NODE_LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const JOURNALS: &str = "/api/v1/namespaces/kube-system/configmaps";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
/// The node that a volume's affinity names.
const HOST: &str = "kubernetes.io/hostname";

/// An API server, or a fake of one.
pub trait Api {
    /// Sends a request and reads the whole answer.
    fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer>;
}

impl Api for Https {
    fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer> {
        block_on(Https::send(self, method, path, body))
    }
}

/// The requests of a roll.
#[derive(Clone, Copy)]
pub struct Kube<'a>(pub &'a dyn Api);

impl std::fmt::Debug for Kube<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kube")
    }
}

/// What became of an eviction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Evicted {
    /// The pod ends, or is gone.
    Yes,
    /// A disruption budget is against it.
    Refused(String),
}

/// Somebody else wrote the journal, or holds the lock: this process must not go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Overtaken(pub String);

impl Kube<'_> {
    /// Whether the API server says that it is ready.
    pub fn check_ready(&self) -> Result<()> {
        let answer = self.0.send(Method::GET, "/readyz", None)?;
        done(&answer, "asking whether the API server is ready")
    }

    /// All nodes.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        Ok(self.items(NODES)?.iter().map(read_node).collect())
    }

    /// When each node renewed its Lease last, by its own clock: what a kubelet does every ten seconds.
    pub fn renewals(&self) -> Result<BTreeMap<String, String>> {
        let leases = self.items(NODE_LEASES)?;
        Ok(leases.iter().map(|lease| (name_of(lease), text(&lease["spec"]["renewTime"]))).collect())
    }

    /// What uses APIs that level `new` has no more.
    pub fn gone(&self, new: Level) -> Result<Vec<String>> {
        let answer = self.0.send(Method::GET, "/metrics", None)?;
        done(&answer, "reading /metrics")?;
        let metrics = String::from_utf8_lossy(&answer.body);
        let mut lines = Vec::new();
        for api in gone::apis(&metrics, new) {
            lines.extend(gone::uses(&api, &self.items(&api.path())?, &metrics, new));
        }
        Ok(lines)
    }

    /// Pods on a node.
    pub fn pods_on(&self, node: &str) -> Result<Vec<Pod>> {
        let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}");
        Ok(self.items(&path)?.iter().map(Pod::read).collect())
    }

    /// `(node, namespace/name)` of the pods that nothing would start again, other than those that are at their end.
    pub fn bare_pods(&self) -> Result<Vec<(String, String)>> {
        let pods = self.items("/api/v1/pods")?;
        let bare = pods.iter().map(|pod| (text(&pod["spec"]["nodeName"]), Pod::read(pod)));
        let bare = bare.filter(|(_, pod)| pod.kind == drain::Kind::Bare && !pod.finished && !pod.ending);
        Ok(bare.map(|(node, pod)| (node, pod.key())).collect())
    }

    /// Claims that are bound to a volume of one node.
    pub fn local_claims(&self) -> Result<Vec<Claim>> {
        let volumes = self.items("/api/v1/persistentvolumes")?;
        let local: Vec<(&Value, String)> =
            volumes.iter().filter_map(|volume| Some((volume, node_of_volume(volume)?))).collect();
        if local.is_empty() {
            return Ok(Vec::new());
        }
        let pods = self.items("/api/v1/pods")?;
        Ok(local
            .into_iter()
            .filter(|(volume, _)| volume["status"]["phase"] == "Bound")
            .map(|(volume, node)| {
                let of = &volume["spec"]["claimRef"];
                let (namespace, name) = (text(&of["namespace"]), text(&of["name"]));
                Claim {
                    node,
                    pods: pods.iter().filter(|pod| uses(pod, &namespace, &name)).map(name_of).collect(),
                    claim: format!("{namespace}/{name}"),
                    size: text(&volume["spec"]["capacity"]["storage"]),
                    volume: folder_of_volume(volume),
                }
            })
            .collect())
    }

    /// A pod on the node that uses one of these claims and has not come to its end, `namespace/name`.
    pub fn user_of(&self, node: &str, claims: &[&str]) -> Result<Option<String>> {
        let pods = self.items(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}"))?;
        let used = |pod: &Value| {
            let of = claims.iter().filter_map(|claim| claim.split_once('/'));
            of.into_iter().any(|(namespace, name)| uses(pod, namespace, name))
        };
        let users = pods.iter().filter(|pod| used(pod)).map(Pod::read);
        Ok(users.into_iter().find(|pod| !pod.finished).map(|pod| pod.key()))
    }

    /// How many of the pods that each workload wants are ready, by `Kind namespace/name`.
    pub fn workloads(&self) -> Result<BTreeMap<String, (i64, i64)>> {
        let mut found = BTreeMap::new();
        for (kind, plural) in
            [("Deployment", "deployments"), ("StatefulSet", "statefulsets"), ("DaemonSet", "daemonsets")]
        {
            for object in self.items(&format!("/apis/apps/v1/{plural}"))? {
                let number = |value: &Value| value.as_i64().unwrap_or_default();
                let status = &object["status"];
                let (ready, wanted) = match kind {
                    "DaemonSet" => (number(&status["numberReady"]), number(&status["desiredNumberScheduled"])),
                    _ => (number(&status["readyReplicas"]), object["spec"]["replicas"].as_i64().unwrap_or(1)),
                };
                let meta = &object["metadata"];
                found.insert(format!("{kind} {}/{}", text(&meta["namespace"]), name_of(&object)), (ready, wanted));
            }
        }
        Ok(found)
    }

    /// Services of type LoadBalancer that are reached at one of the addresses.
    pub fn balanced_at(&self, addresses: &[String]) -> Result<Vec<String>> {
        let services = self.items("/api/v1/services")?;
        let here = |service: &&Value| {
            let list = service["status"]["loadBalancer"]["ingress"].as_array();
            list.into_iter().flatten().any(|i| addresses.iter().any(|address| i["ip"] == address.as_str()))
        };
        let named = |service: &Value| format!("{}/{}", text(&service["metadata"]["namespace"]), name_of(service));
        Ok(services.iter().filter(here).map(named).collect())
    }

    /// The node takes no new pods.
    pub fn cordon(&self, node: &str) -> Result<()> {
        self.patch_node(node, &json!({"metadata": {"annotations": {CORDONED: NAME}}, "spec": {"unschedulable": true}}))
    }

    /// The node takes pods again.
    pub fn uncordon(&self, node: &str) -> Result<()> {
        self.patch_node(node, &json!({"metadata": {"annotations": {CORDONED: null}}, "spec": {"unschedulable": null}}))
    }

    fn patch_node(&self, node: &str, patch: &Value) -> Result<()> {
        let answer = self.0.send(Method::PATCH, &format!("{NODES}/{node}"), Some(patch))?;
        done(&answer, &format!("changing node {node}"))
    }

    /// Deletes a node: the cluster is without it from then on.
    pub fn delete_node(&self, node: &str) -> Result<()> {
        self.delete(&format!("{NODES}/{node}"), &format!("node {node}"))
    }

    /// Evicts a pod where its disruption budget allows it.
    pub fn evict(&self, pod: &Pod) -> Result<Evicted> {
        let body = json!({
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
        });
        let answer = self.0.send(Method::POST, &format!("{}/eviction", path_of(pod)), Some(&body))?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(Evicted::Yes),
            // 500: it has more than one budget, which evictions do not know how to obey.
            StatusCode::TOO_MANY_REQUESTS | StatusCode::INTERNAL_SERVER_ERROR => {
                Ok(Evicted::Refused(drain::refusal(&serde_json::from_slice(&answer.body).unwrap_or_default())))
            }
            _ => done(&answer, &format!("evicting pod {}", pod.key())).map(|()| Evicted::Yes),
        }
    }

    /// Deletes a pod, whatever its budget says.
    pub fn delete_pod(&self, pod: &Pod) -> Result<()> {
        self.delete(&path_of(pod), &format!("pod {}", pod.key()))
    }

    /// Deletes a claim, `namespace/name`.
    pub fn delete_claim(&self, claim: &str) -> Result<()> {
        let (namespace, name) = claim.split_once('/').with_context(|| format!("{claim} is no NAMESPACE/NAME"))?;
        let path = format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}");
        self.delete(&path, &format!("claim {claim}"))
    }

    /// Makes a token that takes over the node's name.
    pub fn create_token(&self, token: &BootstrapToken, node: &str) -> Result<()> {
        let secret = kube::token_secret(token, node, true, LIFE)?;
        let answer = self.0.send(Method::POST, SECRETS, Some(&secret))?;
        done(&answer, &format!("making the bootstrap token of {node}"))
    }

    /// Takes a token back; one that was used is gone already.
    pub fn delete_token(&self, id: &str) -> Result<()> {
        self.delete(&format!("{SECRETS}/bootstrap-token-{id}"), &format!("the bootstrap token {id}"))
    }

    /// The journal and its version.
    pub fn journal(&self) -> Result<Option<(Journal, String)>> {
        let answer = self.0.send(Method::GET, &format!("{JOURNALS}/{NAME}"), None)?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let object = said(&answer, "reading the roll's journal")?;
        let version: u64 = serde_json::from_str::<Value>(&text(&object["data"]["journal"]))
            .ok()
            .and_then(|journal| journal["version"].as_u64())
            .with_context(|| {
                format!("ConfigMap {NAMESPACE}/{NAME} is not as kimg writes it; look at it, and delete it once no roll is under way")
            })?;
        journal::check_version(version, &format!("the journal of the roll (ConfigMap {NAMESPACE}/{NAME})"))?;
        let journal = serde_json::from_str(&text(&object["data"]["journal"])).context("reading the roll's journal")?;
        Ok(Some((journal, text(&object["metadata"]["resourceVersion"]))))
    }

    /// Writes the journal over the version that was read, or anew; its new version.
    ///
    /// # Errors
    /// [`Overtaken`] where somebody else wrote in between.
    pub fn save(&self, journal: &Journal, version: Option<&str>) -> Result<String> {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": NAMESPACE},
            "data": {"journal": serde_json::to_string_pretty(journal).context("writing the journal")?},
        });
        let answer = match version {
            Some(version) => {
                object["metadata"]["resourceVersion"] = json!(version);
                self.0.send(Method::PUT, &format!("{JOURNALS}/{NAME}"), Some(&object))?
            }
            None => self.0.send(Method::POST, JOURNALS, Some(&object))?,
        };
        if answer.status == StatusCode::CONFLICT {
            // It may be this very journal, whose answer was lost.
            return match self.journal()? {
                Some((there, version)) if there == *journal => Ok(version),
                _ => Err(Overtaken("another `kimg roll` has written the journal; this one ends".into()).into()),
            };
        }
        let object = said(&answer, "writing the roll's journal")?;
        Ok(text(&object["metadata"]["resourceVersion"]))
    }

    /// Takes the lock where it may be taken, and renews it where it is one's own.
    pub fn take_lock(&self, me: &Holder, first: &mut Option<Look>, now: Timestamp) -> Result<Verdict> {
        let answer = self.0.send(Method::GET, &format!("{LEASES}/{NAME}"), None)?;
        let found = match answer.status {
            StatusCode::NOT_FOUND => None,
            _ => Some(said(&answer, "reading the roll's lock")?),
        };
        let verdict = lock::judge(found.as_ref(), me, first, now);
        if !matches!(verdict, Verdict::Take | Verdict::Mine) {
            return Ok(verdict);
        }
        let mut lease = lock::lease(me, now);
        let answer = match &found {
            Some(found) => {
                lease["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"].clone();
                if verdict == Verdict::Mine {
                    lease["spec"]["acquireTime"] = found["spec"]["acquireTime"].clone();
                }
                self.0.send(Method::PUT, &format!("{LEASES}/{NAME}"), Some(&lease))?
            }
            None => self.0.send(Method::POST, LEASES, Some(&lease))?,
        };
        if answer.status == StatusCode::CONFLICT {
            return Ok(Verdict::Held("another process, which was quicker".into()));
        }
        done(&answer, "taking the roll's lock")?;
        Ok(Verdict::Mine)
    }

    /// Gives the lock back, if it is one's own.
    pub fn release_lock(&self, me: &Holder) -> Result<()> {
        let path = format!("{LEASES}/{NAME}");
        let answer = self.0.send(Method::GET, &path, None)?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        let lease = said(&answer, "reading the roll's lock")?;
        if lease["spec"]["holderIdentity"] != me.identity() {
            return Ok(());
        }
        self.delete(&path, "the roll's lock")
    }

    fn delete(&self, path: &str, what: &str) -> Result<()> {
        let answer = self.0.send(Method::DELETE, path, None)?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(());
        }
        done(&answer, &format!("deleting {what}"))
    }

    fn items(&self, path: &str) -> Result<Vec<Value>> {
        let answer = self.0.send(Method::GET, path, None)?;
        let what = format!("reading {}", path.split('?').next().unwrap_or(path));
        let mut list = said(&answer, &what)?;
        // An answer that is no list must never pass for an empty one: no pods, no claims.
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("{what}: the API server's answer is no list"),
        }
    }
}

/// Fails where the request did.
fn done(answer: &Answer, what: &str) -> Result<()> {
    if !answer.status.is_success() {
        bail!("{what}: {}", kube::sentence(answer));
    }
    Ok(())
}

/// The answer's JSON where the request succeeded.
fn said(answer: &Answer, what: &str) -> Result<Value> {
    done(answer, what)?;
    serde_json::from_slice(&answer.body).with_context(|| format!("{what}: the API server's answer is not readable"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn name_of(object: &Value) -> String {
    text(&object["metadata"]["name"])
}

fn path_of(pod: &Pod) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.name)
}

fn uses(pod: &Value, namespace: &str, claim: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    pod["metadata"]["namespace"] == namespace
        && volumes.iter().any(|volume| volume["persistentVolumeClaim"]["claimName"] == claim)
}

/// The one node that a volume can be used on.
fn node_of_volume(volume: &Value) -> Option<String> {
    let terms = volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"].as_array()?;
    let expressions = terms.iter().filter_map(|term| term["matchExpressions"].as_array()).flatten();
    let host = expressions.into_iter().find(|e| e["key"] == HOST && e["operator"] == "In")?;
    match host["values"].as_array()?.as_slice() {
        [node] => node.as_str().map(str::to_string),
        _ => None,
    }
}

/// The folder of a volume of the default class, which kimg copies.
fn folder_of_volume(volume: &Value) -> Option<String> {
    let spec = &volume["spec"];
    let path = spec["hostPath"]["path"].as_str().or(spec["local"]["path"].as_str())?;
    let name = path.strip_prefix(LOCAL_PATH)?.strip_prefix('/')?.trim_end_matches('/');
    is_volume_name(name).then(|| name.to_owned())
}

fn read_node(node: &Value) -> Node {
    let state = kube::node_state(node);
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    Node {
        name: state.name,
        ready: state.ready,
        reason: state.reason,
        boot: state.boot_id,
        cordoned: node["spec"]["unschedulable"] == true,
        cordoned_by_roll: node["metadata"]["annotations"][CORDONED] == NAME,
        level: Level::of(&state.version),
        addresses: addresses.iter().map(|address| text(&address["address"])).collect(),
    }
}
