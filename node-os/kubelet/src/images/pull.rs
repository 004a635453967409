//! Makes sure that a container's image is there: policy, back-off, events.

use super::credentials::Credentials;
use crate::cri::{Cri, PodSandboxConfig};
use crate::events::{self, Recorder};
use k8s_openapi::api::core::v1::{Container, Pod};
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Pulls that run at the same time: more only compete for the one link and disk.
const PARALLEL: usize = 2;
const FIRST_DELAY: Duration = Duration::from_secs(10);
const LONGEST_DELAY: Duration = Duration::from_secs(300);

/// Why a container cannot have its image now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// ErrImagePull, ImagePullBackOff, ErrImageNeverPull, InvalidImageName, ErrImageInspect…
    pub reason: String,
    /// Sentence.
    pub message: String,
    /// When to try again.
    pub again: Duration,
}

/// An image that is there.
#[derive(Debug, Clone, Default)]
pub struct Pulled {
    /// What the runtime takes.
    pub reference: String,
    /// Numeric user of the image.
    pub uid: Option<i64>,
    /// Named user of the image.
    pub user: String,
}

struct Delay {
    until: Instant,
    length: Duration,
    message: String,
}

/// Pulls images for all pods.
pub struct Images {
    cri: Cri,
    events: Recorder,
    slots: Semaphore,
    delays: Mutex<HashMap<String, Delay>>,
    /// When an image was last asked for, for garbage collection.
    pub(super) last_used: Mutex<HashMap<String, Instant>>,
}

impl Images {
    /// Images of the runtime behind `cri`.
    pub fn new(cri: Cri, events: Recorder) -> Images {
        Images {
            cri,
            events,
            slots: Semaphore::new(PARALLEL),
            delays: Mutex::new(HashMap::new()),
            last_used: Mutex::new(HashMap::new()),
        }
    }

    /// The runtime.
    pub fn cri(&self) -> &Cri {
        &self.cri
    }

    /// Makes sure that the container's image is there.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        field: Option<String>,
        credentials: &Credentials,
        sandbox: &PodSandboxConfig,
    ) -> Result<Pulled, Refusal> {
        let image = container.image.as_deref().unwrap_or_default();
        if image.is_empty() || image.contains(char::is_whitespace) {
            return Err(refusal(
                "InvalidImageName",
                format!("Failed to apply default image tag \"{image}\": couldn't parse image name"),
                LONGEST_DELAY,
            ));
        }
        let reference = || events::pod_reference(pod, field.clone());
        let present = self.present(image).await?;
        let policy = pull_policy(container, image);
        match (policy, present) {
            ("IfNotPresent" | "Never", Some(found)) => {
                let text = format!("Container image \"{image}\" already present on machine");
                self.events.normal(reference(), "Pulled", text);
                return Ok(found);
            }
            ("Never", None) => {
                let text = format!("Container image \"{image}\" is not present with pull policy of Never");
                self.events.warning(reference(), "ErrImageNeverPull", text.clone());
                return Err(refusal("ErrImageNeverPull", text, FIRST_DELAY));
            }
            _ => {}
        }
        let key = format!("{}_{image}", crate::pods::spec::uid(pod));
        if let Some(waiting) = self.backing_off(&key) {
            let text = format!("Back-off pulling image \"{image}\"");
            self.events.normal(reference(), "BackOff", text.clone());
            let message = format!("{text}: {}", waiting.1);
            return Err(refusal("ImagePullBackOff", message, waiting.0));
        }
        let asked = Instant::now();
        let Ok(_slot) = self.slots.acquire().await else {
            return Err(refusal("ErrImagePull", "the kubelet is stopping".into(), FIRST_DELAY));
        };
        self.events.normal(reference(), "Pulling", format!("Pulling image \"{image}\""));
        let begun = Instant::now();
        match self.pull(image, credentials, sandbox).await {
            Ok(found) => {
                crate::lock(&self.delays).remove(&key);
                let text = format!(
                    "Successfully pulled image \"{image}\" in {} ({} including waiting)",
                    go_duration(begun.elapsed()),
                    go_duration(asked.elapsed())
                );
                self.events.normal(reference(), "Pulled", text);
                Ok(found)
            }
            Err(message) => {
                let text = format!("Failed to pull image \"{image}\": {message}");
                self.events.warning(reference(), "Failed", text);
                self.events.warning(reference(), "Failed", "Error: ErrImagePull");
                let again = self.delay(&key, &message);
                Err(refusal("ErrImagePull", message, again))
            }
        }
    }

    /// The image, if the node has it.
    async fn present(&self, image: &str) -> Result<Option<Pulled>, Refusal> {
        let found = self.cri.image_status(image).await.map_err(|error| {
            refusal("ImageInspectError", format!("Failed to inspect image \"{image}\": {error}"), FIRST_DELAY)
        })?;
        Ok(found.map(|found| {
            crate::lock(&self.last_used).insert(found.id.clone(), Instant::now());
            Pulled { reference: found.id, uid: found.uid.map(|u| u.value), user: found.username }
        }))
    }

    async fn pull(&self, image: &str, credentials: &Credentials, sandbox: &PodSandboxConfig) -> Result<Pulled, String> {
        let mut last = String::from("no credentials fit");
        for auth in credentials.for_image(image) {
            match self.cri.pull_image(image, auth, Some(sandbox.clone())).await {
                Ok(reference) => {
                    return match self.present(&reference).await {
                        Ok(Some(found)) => Ok(found),
                        Ok(None) => Ok(Pulled { reference, ..Default::default() }),
                        Err(refusal) => Err(refusal.message),
                    };
                }
                Err(error) => last = error.to_string(),
            }
        }
        if let Some(hint) = own_registry(image, &last) {
            last.push_str(hint);
        }
        Err(last)
    }

    fn backing_off(&self, key: &str) -> Option<(Duration, String)> {
        let delays = crate::lock(&self.delays);
        let delay = delays.get(key)?;
        let left = delay.until.checked_duration_since(Instant::now())?;
        (!left.is_zero()).then(|| (left, delay.message.clone()))
    }

    fn delay(&self, key: &str, message: &str) -> Duration {
        let mut delays = crate::lock(&self.delays);
        let now = Instant::now();
        delays.retain(|_, d| now < d.until + 2 * LONGEST_DELAY);
        let length = delays.get(key).map_or(FIRST_DELAY, |d| (d.length * 2).min(LONGEST_DELAY));
        delays.insert(key.into(), Delay { until: now + length, length, message: message.into() });
        length
    }
}

/// What to do where the cluster's own registry gave no image.
fn own_registry(image: &str, error: &str) -> Option<&'static str> {
    if !image.strip_prefix(node_metadata::REGISTRY)?.starts_with('/') {
        return None;
    }
    Some(if error.contains("not found") {
        "; `kimg push` brings images to the cluster's registry, and `kimg registry ls` lists them"
    } else {
        "; the cluster's registry does not answer: it runs on the master, where [registry] stands in cluster.toml, and \
         is asked again"
    })
}

fn refusal(reason: &str, message: String, again: Duration) -> Refusal {
    Refusal { reason: reason.into(), message, again }
}

/// The container's policy; without one, `latest` is always looked for.
fn pull_policy<'a>(container: &'a Container, image: &str) -> &'a str {
    match container.image_pull_policy.as_deref() {
        Some(policy @ ("Always" | "Never" | "IfNotPresent")) => policy,
        _ if super::normalize(image).ends_with(":latest") => "Always",
        _ => "IfNotPresent",
    }
}

/// A duration as the events have it.
fn go_duration(duration: Duration) -> String {
    if duration.as_secs() == 0 {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{:.3}s", duration.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_own_registry_lacks_is_said_with_a_way_out() {
        let own = "registry.kimg.local/web:1";
        assert!(own_registry(own, "failed to resolve reference: not found").unwrap().contains("`kimg push`"));
        assert!(own_registry(own, "failed to do request: EOF").unwrap().contains("does not answer"));
        assert_eq!(own_registry("registry.kimg.local.example/web:1", "not found"), None);
        assert_eq!(own_registry("web:1", "not found"), None);
    }
}
