//! What every namespace has: the ServiceAccount `default`, and the ConfigMap `kube-root-ca.crt`.

use std::sync::Arc;

use anyhow::Context as _;
use control_client::{Key, Queue};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::context::Context;
use crate::runner::{self, Outcome, Worked};

const ACCOUNT: &str = "default";
const BUNDLE: &str = "kube-root-ca.crt";
const BUNDLE_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

#[derive(Debug, PartialEq)]
enum Action {
    CreateAccount,
    CreateBundle,
    MendBundle,
}

fn plan(
    namespace: &Namespace,
    account: Option<&ServiceAccount>,
    bundle: Option<&ConfigMap>,
    wanted: Option<&str>,
) -> Vec<Action> {
    let ends = namespace.metadata.deletion_timestamp.is_some();
    let mut actions = Vec::new();
    if ends {
        return actions;
    }
    if account.is_none() {
        actions.push(Action::CreateAccount);
    }
    if let Some(wanted) = wanted {
        match bundle {
            None => actions.push(Action::CreateBundle),
            Some(bundle) => {
                let data = bundle.data.as_ref();
                if data.and_then(|d| d.get(BUNDLE_KEY)).map(String::as_str) != Some(wanted)
                    || data.is_some_and(|d| d.len() != 1)
                {
                    actions.push(Action::MendBundle);
                }
            }
        }
    }
    actions
}

pub fn start(context: &Arc<Context>) -> anyhow::Result<()> {
    let bundle = match &context.settings.root_ca_file {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading --root-ca-file {}", path.display()))?;
            Some(Arc::<str>::from(text))
        }
        None => None,
    };
    let queue = Arc::new(Queue::<String>::default());
    let caches = &context.caches;
    caches.namespaces.subscribe({
        let queue = queue.clone();
        move |change| queue.add(change.object().metadata.name.clone().unwrap_or_default())
    });
    caches.service_accounts.subscribe({
        let queue = queue.clone();
        move |change| {
            let key = Key::of(&**change.object());
            if key.name == ACCOUNT {
                queue.add(key.namespace);
            }
        }
    });
    caches.root_cas.subscribe({
        let queue = queue.clone();
        move |change| queue.add(change.object().metadata.namespace.clone().unwrap_or_default())
    });
    let context = context.clone();
    runner::run("serviceaccount", &queue, 2, move |name| {
        let (context, bundle) = (context.clone(), bundle.clone());
        async move { work(&context, bundle.as_deref(), &name).await }
    });
    Ok(())
}

async fn work(context: &Context, bundle: Option<&str>, name: &str) -> Worked {
    let caches = &context.caches;
    let Some(namespace) = caches.namespaces.named("", name) else {
        return Ok(Outcome::Done);
    };
    let account = caches.service_accounts.named(name, ACCOUNT);
    let present = caches.root_cas.named(name, BUNDLE);
    for action in plan(&namespace, account.as_deref(), present.as_deref(), bundle) {
        let result = match action {
            Action::CreateAccount => caches.service_accounts.create(&new_account(name)).await.map(drop),
            Action::CreateBundle => caches.root_cas.create(&new_bundle(name, bundle)).await.map(drop),
            Action::MendBundle => {
                let mut mended = new_bundle(name, bundle);
                if let Some(present) = &present {
                    mended.metadata.resource_version = present.metadata.resource_version.clone();
                }
                caches.root_cas.replace(&mended).await.map(drop)
            }
        };
        match result {
            Err(failure) if !failure.already_exists() && !failure.is_not_found() => return Err(failure.into()),
            _ => {}
        }
    }
    Ok(Outcome::Done)
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { namespace: Some(namespace.to_owned()), name: Some(name.to_owned()), ..ObjectMeta::default() }
}

fn new_account(namespace: &str) -> ServiceAccount {
    ServiceAccount { metadata: meta(namespace, ACCOUNT), ..ServiceAccount::default() }
}

fn new_bundle(namespace: &str, bundle: Option<&str>) -> ConfigMap {
    let mut metadata = meta(namespace, BUNDLE);
    metadata.annotations = Some([(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned())].into());
    ConfigMap {
        metadata,
        data: Some([(BUNDLE_KEY.to_owned(), bundle.unwrap_or_default().to_owned())].into()),
        ..ConfigMap::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    #[test]
    fn namespace_gets_what_it_lacks() {
        let live = Namespace::default();
        let mut ending = Namespace::default();
        ending.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::UNIX_EPOCH));
        let account = new_account("n");
        let good = new_bundle("n", Some("CA"));
        let old = new_bundle("n", Some("OLD"));
        assert_eq!(plan(&live, None, None, Some("CA")), [Action::CreateAccount, Action::CreateBundle]);
        assert_eq!(plan(&live, Some(&account), Some(&good), Some("CA")), []);
        assert_eq!(plan(&live, Some(&account), Some(&old), Some("CA")), [Action::MendBundle]);
        assert_eq!(plan(&ending, None, None, Some("CA")), []);
    }
}
