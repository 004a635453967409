//! Sends pod statuses to the API: the newest of each pod, one after the other, again until the
//! API has taken it; and deletes pods that have ended.

use super::{spec, status_patch};
use crate::client::{code, explain};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

struct Pending {
    pod: Arc<Pod>,
    status: PodStatus,
    delete: bool,
}

/// The statuses that wait to be sent.
pub struct Statuses {
    api: kube::Client,
    pending: Mutex<HashMap<String, Pending>>,
    sent: Mutex<HashMap<String, PodStatus>>,
    notify: Notify,
}

const RETRY: Duration = Duration::from_secs(1);

impl Statuses {
    /// Nothing to send yet.
    pub fn new(api: kube::Client) -> Statuses {
        Statuses { api, pending: Mutex::default(), sent: Mutex::default(), notify: Notify::new() }
    }

    /// Hands over a pod's status. `delete`: the pod has ended and is to vanish from the API.
    pub fn put(&self, pod: Arc<Pod>, status: PodStatus, delete: bool) {
        let uid = spec::uid(&pod).to_string();
        let mut pending = crate::lock(&self.pending);
        let delete = delete || pending.get(&uid).is_some_and(|p| p.delete);
        if !delete && self.known(&uid, &pod).as_ref() == Some(&status) && !pending.contains_key(&uid) {
            return;
        }
        pending.insert(uid, Pending { pod, status, delete });
        drop(pending);
        self.notify.notify_one();
    }

    /// What the API is known to have.
    fn known(&self, uid: &str, pod: &Pod) -> Option<PodStatus> {
        crate::lock(&self.sent).get(uid).cloned().or_else(|| pod.status.clone())
    }

    /// Forgets a pod that is gone.
    pub fn forget(&self, uid: &str) {
        crate::lock(&self.pending).remove(uid);
        crate::lock(&self.sent).remove(uid);
    }

    /// Sends until the kubelet ends.
    pub async fn run(self: Arc<Self>) {
        loop {
            let next = {
                let mut pending = crate::lock(&self.pending);
                let uid = pending.keys().next().cloned();
                uid.and_then(|uid| pending.remove(&uid).map(|p| (uid, p)))
            };
            let Some((uid, pending)) = next else {
                self.notify.notified().await;
                continue;
            };
            if let Err(error) = self.send(&uid, &pending).await {
                tracing::warn!("status of pod {}: {}", spec::full_name(&pending.pod), explain(&error));
                crate::lock(&self.pending).entry(uid).or_insert(pending);
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn send(&self, uid: &str, pending: &Pending) -> Result<(), kube::Error> {
        let name = spec::name(&pending.pod);
        let api: Api<Pod> = Api::namespaced(self.api.clone(), spec::namespace(&pending.pod));
        let old = self.known(uid, &pending.pod).unwrap_or_default();
        if let Some(mut patch) = status_patch::patch(uid, &old, &pending.status) {
            if spec::is_static(&pending.pod) {
                // Its image in the API has a uid of its own.
                if let Some(object) = patch.as_object_mut() {
                    object.remove("metadata");
                }
            }
            match api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {
                    crate::lock(&self.sent).insert(uid.to_string(), pending.status.clone());
                }
                Err(error) if matches!(code(&error), Some(404 | 422)) => {
                    tracing::debug!("status of {name}: {}", explain(&error));
                }
                // Another pod of that name is there by now.
                Err(error) if code(&error) == Some(409) => {
                    tracing::debug!("status of {name}: {}", explain(&error));
                }
                Err(error) => return Err(error),
            }
        }
        if pending.delete && !spec::is_static(&pending.pod) {
            let parameters = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions { uid: Some(uid.to_string()), resource_version: None }),
                ..Default::default()
            };
            match api.delete(name, &parameters).await {
                Ok(_) => {}
                Err(error) if matches!(code(&error), Some(404 | 409)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
