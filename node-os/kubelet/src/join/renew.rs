//! Renewal of a node's certificates by the kubelet, and its serving certificate, which needs the
//! Node object and therefore comes after the join.

use super::files::{self, Authorities};
use super::request::{self, Wish};
use super::{COMPONENTS, OPTIONAL, Options};
use crate::kubelet::Kubelet;
use k8s_openapi::api::core::v1::Node;
use std::sync::Arc;
use std::time::Duration;

/// The longest time from one look to the next.
const PERIOD: Duration = Duration::from_secs(600);
const EAGER: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(30);
const USUAL_FAILURES: u32 = 3;
/// Asks for new certificates in the place of all whose validity begins before this time.
const ANNOTATION: &str = "kimg.dev/renew-certificates-before";
/// How often the annotation is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Renews until the kubelet ends.
pub async fn run(kubelet: Arc<Kubelet>, options: Options) {
    while kubelet.node.uid().is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut failures = 0_u32;
    loop {
        let asked = asked(kubelet.node.object().as_ref());
        let obtain = |component, wish| {
            let (api, pair) = (&kubelet.api, options.pair(component));
            async move { request::obtain(api, &pair, &wish).await }
        };
        let fine = round(&options, asked, failures, obtain).await;
        failures = if fine { 0 } else { failures.saturating_add(1) };
        let wait = match failures {
            0 => until_due(&options),
            1..=10 => EAGER,
            _ => RETRY,
        };
        let until = tokio::time::Instant::now() + wait;
        while tokio::time::Instant::now() < until && self::asked(kubelet.node.object().as_ref()) == asked {
            tokio::time::sleep(LOOK.min(wait)).await;
        }
    }
}

/// When the first certificate is to be renewed, where that is soon.
fn until_due(options: &Options) -> Duration {
    let now = jiff::Timestamp::now().as_second();
    let due = wishes(options).into_iter().filter_map(|(component, _)| {
        let leaf = options.pair(component).leaf().ok()?;
        // What was refused is no failure, and waits for a twentieth of its life.
        let refused = if component == OPTIONAL { now + (leaf.not_after - leaf.not_before) / 20 } else { now };
        Some(leaf.renew_at().max(refused))
    });
    let seconds = due.min().map(|at| u64::try_from(at - now).unwrap_or(0));
    seconds.map_or(PERIOD, |seconds| Duration::from_secs(seconds).clamp(EAGER, PERIOD))
}

/// What the Node's annotation asks for, in Unix seconds. What cannot be read asks for nothing.
fn asked(node: Option<&Node>) -> Option<i64> {
    let text = node?.metadata.annotations.as_ref()?.get(ANNOTATION)?;
    let now = jiff::Timestamp::now();
    // A time to come would ask for ever new ones.
    text.parse::<jiff::Timestamp>().ok().filter(|time| *time <= now).map(|time| time.as_second())
}

/// Asks for all that is due; whether the node has what it needs.
async fn round<F: Future<Output = Result<(), request::Error>>>(
    options: &Options,
    asked: Option<i64>,
    failures: u32,
    obtain: impl Fn(&'static str, Wish) -> F,
) -> bool {
    let mut fine = true;
    for (component, wish) in wishes(options) {
        // It is the last, and its answer may take a minute: until then what is needed would not be asked for again.
        if component == OPTIONAL && !fine {
            continue;
        }
        let Some(reason) = due(options, component, &wish, asked) else {
            provide(options, component);
            continue;
        };
        tracing::info!("asking for a certificate of {component}: {reason}");
        match obtain(component, wish).await {
            Ok(()) => {
                tracing::info!("certificate of {component} is new");
                provide(options, component);
            }
            // The master may be older than the component: no reason to hurry.
            Err(error) if component == OPTIONAL => {
                tracing::warn!("this node works without {component}: {error}; trying again in {PERIOD:?}");
            }
            Err(error) => {
                fine = false;
                // A node that has just joined is not known to everybody at once.
                if failures < USUAL_FAILURES {
                    tracing::debug!("certificate of {component}: {error}; trying again");
                } else {
                    tracing::warn!("certificate of {component}: {error}");
                }
            }
        }
    }
    fine
}

/// The join writes no kubeconfig where there is no certificate yet; and this kubelet may have ended right after it came.
fn provide(options: &Options, component: &str) {
    if component != OPTIONAL || options.kubeconfig_dir.join(format!("{component}.conf")).exists() {
        return;
    }
    if let Err(error) = files::write_kubeconfig(options, component, &options.pair(component)) {
        tracing::warn!("kubeconfig of {component}: {error:#}");
    }
}

fn wishes(options: &Options) -> Vec<(&'static str, Wish)> {
    let mut list = vec![
        ("kubelet-server", Wish::node_serving(&options.node_name, &options.addresses)),
        ("kubelet", Wish::node_client(&options.node_name)),
    ];
    list.extend(COMPONENTS.map(|(component, user)| (component, Wish::component(component, user))));
    list
}

/// Why a new certificate is needed, if one is.
fn due(options: &Options, component: &str, wish: &Wish, asked: Option<i64>) -> Option<String> {
    let leaf = match options.pair(component).leaf() {
        Ok(leaf) => leaf,
        Err(reason) => return Some(reason),
    };
    if leaf.subject != wish.common_name {
        return Some(format!("it is of {}", leaf.subject));
    }
    if let Some(address) = wish.addresses.iter().find(|a| !leaf.addresses.contains(a)) {
        return Some(format!("it does not name {address}"));
    }
    if component == "kubelet-server" {
        let authorities = match Authorities::read(&options.ca_file) {
            Ok(authorities) => authorities,
            Err(error) => {
                tracing::warn!("{error:#}");
                return None;
            }
        };
        let signed = options.pair(component).is_of(&authorities);
        if !signed {
            return Some("it is not signed by this cluster".into());
        }
    }
    if asked.is_some_and(|asked| leaf.not_before < asked) {
        return Some("the Node's annotation asks for a new one".into());
    }
    let now = jiff::Timestamp::now().as_second();
    (now >= leaf.renew_at()).then(|| "seven tenths of its life are over".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[tokio::test]
    async fn what_a_node_works_without_is_asked_for_when_it_has_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let options = crate::join::tests::options(directory.path());
        for (refused, last, fine) in [("dns", "dns", false), (OPTIONAL, OPTIONAL, true), ("", OPTIONAL, true)] {
            let asked = RefCell::new(Vec::new());
            let obtain = |component: &'static str, _| {
                asked.borrow_mut().push(component);
                let pending = || request::Error::Pending(component.into());
                std::future::ready(if component == refused { Err(pending()) } else { Ok(()) })
            };
            assert_eq!(round(&options, None, 0, obtain).await, fine, "{refused}");
            assert_eq!(asked.borrow().last(), Some(&last));
            assert!(asked.borrow().len() >= 5, "all that are needed");
        }
    }

    #[test]
    fn the_annotation_asks_for_what_began_before() {
        let directory = tempfile::tempdir().unwrap();
        let options = crate::join::tests::options(directory.path());
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "kimg:dns");
        let begin = jiff::Timestamp::now().as_second() - 300;
        params.not_before = (std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(begin as u64)).into();
        params.not_after = params.not_before + Duration::from_secs(86_400);
        let key = rcgen::KeyPair::generate().unwrap();
        let pair = options.pair("dns");
        std::fs::create_dir_all(&options.pki_dir).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        std::fs::write(&pair.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        let wish = Wish::component("dns", "kimg:dns");
        for (value, is_due) in [
            (None, false),
            (jiff::Timestamp::from_second(begin).ok().map(|time| time.to_string()), false),
            (jiff::Timestamp::from_second(begin + 1).ok().map(|time| time.to_string()), true),
            (jiff::Timestamp::from_second(begin + 9000).ok().map(|time| time.to_string()), false),
            (Some("soon".into()), false),
        ] {
            let mut node = Node::default();
            node.metadata.annotations = value.clone().map(|value| [(ANNOTATION.to_string(), value)].into());
            assert_eq!(due(&options, "dns", &wish, asked(Some(&node))).is_some(), is_due, "{value:?}");
        }
    }

    #[test]
    fn a_short_lived_certificate_is_looked_at_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let options = crate::join::tests::options(directory.path());
        std::fs::create_dir_all(&options.pki_dir).unwrap();
        let write = |component: &str, begins: i64, life: u64| {
            let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
            let begin = jiff::Timestamp::now().as_second() + begins;
            params.not_before = (std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(begin as u64)).into();
            params.not_after = params.not_before + Duration::from_secs(life);
            let key = rcgen::KeyPair::generate().unwrap();
            let pair = options.pair(component);
            std::fs::write(&pair.key, key.serialize_pem()).unwrap();
            std::fs::write(&pair.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        };
        assert_eq!(until_due(&options), PERIOD, "there is none");
        write("dns", 0, 31_536_000);
        assert_eq!(until_due(&options), PERIOD);
        write(OPTIONAL, -95, 100);
        let soon = until_due(&options).as_secs();
        assert!((4..=5).contains(&soon), "{soon}: it was refused perhaps");
        write("kubelet", 0, 100);
        write(OPTIONAL, 0, 31_536_000);
        let soon = until_due(&options).as_secs();
        assert!((68..=70).contains(&soon), "{soon}");
        write("kubelet", -95, 100);
        assert_eq!(until_due(&options), EAGER);
    }

    #[tokio::test]
    async fn a_certificate_without_its_kubeconfig_gets_one() {
        let directory = tempfile::tempdir().unwrap();
        let options = crate::join::tests::options(directory.path());
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "kimg:backup");
        let key = rcgen::KeyPair::generate().unwrap();
        let pair = options.pair(OPTIONAL);
        std::fs::create_dir_all(&options.pki_dir).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        std::fs::write(&pair.certificate, params.self_signed(&key).unwrap().pem()).unwrap();
        let obtain = |component, _| {
            assert_ne!(component, OPTIONAL, "it is there");
            std::future::ready(Ok(()))
        };
        assert!(round(&options, None, 0, obtain).await);
        let server = files::server_of(&options.kubeconfig_dir.join("backup.conf")).unwrap();
        assert_eq!(server, options.server);
    }
}
