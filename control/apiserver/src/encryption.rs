//! Encryption at rest as upstream configures it: `EncryptionConfiguration`, read again when it
//! changes, and objects sealed anew by the key that writes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use serde::Deserialize;
use serde_yaml_ng::Value;
use store::{Entry, Key, Keyring, Rule, Sealed, Stamped, StoreError};

use crate::config::Config;
use crate::registry::{encode, prefix};
use crate::state::AppState;

/// How often the configuration file is looked at.
const CHECK: Duration = Duration::from_secs(2);
/// How long after a failed rewriting the next one starts.
const RETRY: Duration = Duration::from_secs(60);
/// How often is counted what is sealed by other keys than the one that writes.
const COUNT: Duration = Duration::from_secs(10);

/// What is to be done about values that are not sealed by the key that writes.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// They are sealed anew.
    Rewrite,
    /// Another server has sealed them by another key, and would seal them so again when it starts: they are only
    /// counted, until it starts with the keys of this one and seals them itself.
    Count,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document {
    api_version: String,
    kind: String,
    resources: Vec<Resources>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resources {
    resources: Vec<String>,
    providers: Vec<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<NamedKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedKey {
    name: String,
    secret: String,
}

/// The keys and rules of the flags.
pub(crate) fn keyring(config: &Config) -> anyhow::Result<Keyring> {
    let ring = keyring_of(config.encryption_provider_config.as_deref(), config.encryption_key_file.as_deref())?;
    if !ring.seals(&prefix("", "secrets")) {
        tracing::warn!(
            "Secrets are stored as they are, readable for whoever has the store's files, a snapshot or etcd: no key \
             seals them (--encryption-key-file, or the first provider for secrets in --encryption-provider-config)"
        );
    }
    Ok(ring)
}

/// Says by key how many values it sealed, one a line.  Secrets that are plain count as `identity`, whatever the rules.
pub(crate) fn keys_in_use(entries: &[Entry], ring: &Keyring) -> Vec<String> {
    let secrets = prefix("", "secrets");
    let usage = store::usage_of(entries, |name| ring.seals(name) || name.starts_with(&secrets));
    usage.into_iter().map(|(key, count)| format!("{key}: {count} objects")).collect()
}

/// What is to be said of entries that keys sealed, none of which is at hand.
pub(crate) fn needed_keys(entries: &[Entry]) -> String {
    let usage: Vec<String> = store::usage_of(entries, |_| false)
        .into_iter()
        .map(|(key, count)| format!("{key} ({count} objects)"))
        .collect();
    if usage.is_empty() {
        return String::new();
    }
    format!("; no server opens it without the keys that sealed what is in it: {}", usage.join(", "))
}

/// The keys and rules of a provider configuration and of a key file.  The file's key seals the
/// Secrets that the configuration does not name, and opens what it sealed before.
pub(crate) fn keyring_of(providers: Option<&Path>, key_file: Option<&Path>) -> anyhow::Result<Keyring> {
    let (mut rules, mut keys) = (Vec::new(), Vec::new());
    if let Some(file) = providers {
        let context = || format!("--encryption-provider-config {}", file.display());
        let text = std::fs::read_to_string(file).with_context(context)?;
        (rules, keys) = parse(&text).with_context(context)?;
    }
    if let Some(file) = key_file {
        let context = || format!("--encryption-key-file {}", file.display());
        let content = std::fs::read(file).with_context(context)?;
        let own = keys_of(&content).map_err(anyhow::Error::msg).with_context(context)?;
        rules.push(Rule { prefixes: vec![prefix("", "secrets")], write: own.first().cloned(), plain: true });
        keys.extend(own);
    }
    Ok(Keyring::new(rules, keys))
}

/// The keys of a key file: one, or one a line.
fn keys_of(content: &[u8]) -> Result<Vec<Arc<Key>>, String> {
    let whole = match Key::from_file(content) {
        Ok(key) => return Ok(vec![Arc::new(key)]),
        Err(error) => error,
    };
    let text = std::str::from_utf8(content).map_err(|_| whole.clone())?;
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.len() < 2 {
        return Err(whole);
    }
    let key = |(number, line): (usize, &&str)| {
        // A line of 32 characters is no raw key.
        let key = if line.trim().len() == 32 { Err(whole.clone()) } else { Key::from_file(line.as_bytes()) };
        key.map(Arc::new).map_err(|error| format!("key {}: {error}", number + 1))
    };
    lines.iter().enumerate().map(key).collect()
}

fn parse(text: &str) -> anyhow::Result<(Vec<Rule>, Vec<Arc<Key>>)> {
    let document: Document = serde_yaml_ng::from_str(text)?;
    let Document { api_version, kind, resources } = document;
    ensure!(
        api_version == "apiserver.config.k8s.io/v1" && kind == "EncryptionConfiguration",
        "it is a {kind} of {api_version}; an EncryptionConfiguration of apiserver.config.k8s.io/v1 is wanted"
    );
    ensure!(!resources.is_empty(), "resources is empty");
    let (mut rules, mut keys, mut named) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (i, entry) in resources.into_iter().enumerate() {
        let at = format!("resources[{i}]");
        ensure!(!entry.resources.is_empty(), "{at}.resources is empty");
        ensure!(!entry.providers.is_empty(), "{at}.providers is empty");
        let mut prefixes = Vec::new();
        for (j, resource) in entry.resources.iter().enumerate() {
            let place = format!("{at}.resources[{j}]");
            let prefix = resource_prefix(resource).with_context(|| place.clone())?;
            let hidden = named.iter().find(|earlier: &&String| prefix.starts_with(earlier.as_str()));
            ensure!(hidden.is_none(), "{place}: {resource:?} stands behind an entry that covers it already");
            named.insert(prefix.clone());
            prefixes.push(prefix);
        }
        let mut rule = Rule { prefixes, write: None, plain: false };
        for (j, provider) in entry.providers.into_iter().enumerate() {
            let place = format!("{at}.providers[{j}]");
            ensure!(provider.len() == 1, "{place} must have exactly one provider, not {}", provider.len());
            for (name, value) in provider {
                let own = provider_keys(&name, value).with_context(|| format!("{place}.{name}"))?;
                rule.plain |= own.is_empty();
                if j == 0 {
                    rule.write = own.first().cloned();
                }
                keys.extend(own);
            }
        }
        rules.push(rule);
    }
    Ok((rules, keys))
}

/// Keys of a provider; none: it leaves values plain.
fn provider_keys(provider: &str, value: Value) -> anyhow::Result<Vec<Arc<Key>>> {
    let make: fn(&str, &[u8]) -> Result<Key, String> = match provider {
        "identity" => return Ok(Vec::new()),
        "aesgcm" => Key::aesgcm,
        "secretbox" => Key::secretbox,
        "aescbc" | "kms" => bail!("the provider {provider} is not supported; use secretbox or aesgcm"),
        _ => bail!("there is no provider {provider:?}; there are aesgcm, secretbox and identity"),
    };
    let Keys { keys } = serde_yaml_ng::from_value(value)?;
    ensure!(!keys.is_empty(), "keys is empty");
    let mut names = BTreeSet::new();
    let mut made = Vec::new();
    for (i, NamedKey { name, secret }) in keys.into_iter().enumerate() {
        let place = format!("keys[{i}]");
        let secret = base64::engine::general_purpose::STANDARD
            .decode(secret.trim())
            .with_context(|| format!("{place}.secret is not base64"))?;
        made.push(Arc::new(make(&name, &secret).map_err(anyhow::Error::msg).context(place.clone())?));
        ensure!(names.insert(name.clone()), "{place}: there is another key {name:?}");
    }
    Ok(made)
}

/// What the keys of a resource begin with: `secrets`, `deployments.apps`, `*.apps`, `*.`, `*.*`.
fn resource_prefix(resource: &str) -> anyhow::Result<String> {
    let (name, group) = resource.split_once('.').unwrap_or((resource, ""));
    let core = if group.is_empty() { "core" } else { group };
    match name {
        "" => bail!("{resource:?} names no resource"),
        "*" if resource == "*" => bail!("\"*\" is not allowed; write \"*.\" for the core group, or \"*.*\" for all"),
        "*" if group == "*" => Ok("/".into()),
        "*" => Ok(format!("/{core}/")),
        _ if group.contains('*') || name.contains('*') => bail!("a wildcard stands for a whole part: {resource:?}"),
        _ if resource.chars().any(char::is_uppercase) => bail!("names of resources are lower case: {resource:?}"),
        _ => Ok(prefix(group, name)),
    }
}

/// An object that was stored plain, with the hole for its revision again.
pub(crate) fn encode_again(entry: &Entry) -> Result<Stamped, StoreError> {
    let failed = |what: String| StoreError::Sealed { key: entry.key.to_string(), what };
    let object = serde_json::from_slice(&entry.value).map_err(|e| failed(format!("it is no JSON: {e}")))?;
    encode(&object).map_err(|e| failed(e.message.to_string()))
}

/// Seals anew what is to be, at the start and after each change of the configuration.
pub(crate) async fn follow(state: Arc<AppState>, sealed: Arc<Sealed>) {
    let file = state.config.encryption_provider_config.as_deref();
    let file = file.filter(|_| state.config.encryption_provider_config_automatic_reload);
    let mut seen = file.and_then(stamp);
    let mut stopping = state.stopping();
    let mut next = take(Step::Rewrite, &state, &sealed).await;
    loop {
        let wait = next.map_or(Duration::MAX, |(_, wait)| wait);
        let pause = if file.is_some() { CHECK } else { wait };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stopping.wait_for(|s| *s) => return,
        }
        let now = file.and_then(stamp);
        if now != seen {
            seen = now;
            if reload(&state, &sealed).await {
                next = take(Step::Rewrite, &state, &sealed).await;
                continue;
            }
        }
        next = match next {
            Some((step, wait)) if wait <= pause => take(step, &state, &sealed).await,
            later => later.map(|(step, wait)| (step, wait.saturating_sub(pause))),
        };
    }
}

fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

async fn reload(state: &AppState, sealed: &Sealed) -> bool {
    let done = match keyring(&state.config) {
        Ok(ring) => sealed.reload(ring).await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    let [taken, refused] = &state.metrics.encryption_reloads;
    match &done {
        Ok(()) => {
            taken.fetch_add(1, Ordering::Relaxed);
            tracing::info!("the changed encryption configuration is taken");
        }
        Err(error) => {
            refused.fetch_add(1, Ordering::Relaxed);
            tracing::error!("the changed encryption configuration is not taken; the old one stays: {error:#}");
        }
    }
    done.is_ok()
}

/// Gives what is to come next, and when.
async fn take(step: Step, state: &AppState, sealed: &Sealed) -> Option<(Step, Duration)> {
    let done = match step {
        Step::Rewrite => sealed.rewrite(encode_again).await,
        Step::Count => sealed.count().await.map(|()| 0),
    };
    *state.metrics.sealed.lock().unwrap_or_else(|e| e.into_inner()) = sealed.usage();
    *state.metrics.keys.lock().unwrap_or_else(|e| e.into_inner()) = sealed.keys();
    match done {
        Ok(count) => {
            if count > 0 {
                tracing::info!(count, "objects were sealed anew by the key that writes");
            }
            sealed.has_others().then_some((Step::Count, COUNT))
        }
        Err(error) => {
            tracing::error!("not all objects are known to be sealed by the key that writes: {error}");
            Some((step, RETRY))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(providers: &str) -> String {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
             resources:\n- resources: [secrets, deployments.apps]\n  providers: {providers}\n"
        )
    }

    fn refusal(text: &str) -> String {
        format!("{:#}", parse(text).expect_err("it is refused"))
    }

    #[test]
    fn the_first_provider_writes_and_all_read() {
        let secret = base64::engine::general_purpose::STANDARD.encode([1; 32]);
        let text = document(&format!(
            "[{{secretbox: {{keys: [{{name: new, secret: {secret}}}, {{name: mid, secret: {secret}}}]}}}},\n  \
             {{aesgcm: {{keys: [{{name: old, secret: {secret}}}]}}}}, {{identity: {{}}}}]"
        ));
        let (rules, keys) = parse(&text).unwrap();
        let ids: Vec<&str> = keys.iter().map(|k| k.id()).collect();
        assert_eq!(ids, ["secretbox:v1:new", "secretbox:v1:mid", "aesgcm:v1:old"]);
        assert_eq!(rules[0].prefixes, ["/core/secrets/", "/apps/deployments/"]);
        assert_eq!(rules[0].write.as_ref().unwrap().id(), "secretbox:v1:new");
        assert!(rules[0].plain);
        let (rules, _) = parse(&document("[{identity: {}}]")).unwrap();
        assert!(rules[0].plain && rules[0].write.is_none());
        let secret_is_sealed = |(rules, keys)| Keyring::new(rules, keys).seals("/core/secrets/default/a");
        assert!(secret_is_sealed(parse(&text).unwrap()));
        assert!(
            !secret_is_sealed(parse(&document("[{identity: {}}]")).unwrap())
                && !Keyring::default().seals("/core/secrets/default/a")
        );
    }

    #[test]
    fn a_key_file_has_one_key_or_one_a_line() {
        let encoded = |byte| base64::engine::general_purpose::STANDARD.encode([byte; 32]);
        let ids = |text: &str| {
            keys_of(text.as_bytes()).map(|keys| keys.iter().map(|key| key.id().to_string()).collect::<Vec<_>>())
        };
        let (one, two) = (ids(&encoded(1)).unwrap(), ids(&format!("{}\n", encoded(2))).unwrap());
        assert_eq!(ids(&format!("{}\n{}\n", encoded(2), encoded(1))).unwrap(), [&two[0], &one[0]].map(Clone::clone));
        assert_eq!(keys_of(&[b'\n'; 32]).unwrap().len(), 1, "raw");
        assert!(ids(&format!("{}\nnonsense\n", encoded(2))).unwrap_err().starts_with("key 2: "));
        assert!(ids("nonsense").unwrap_err().starts_with("the encryption key must be"));
    }

    #[test]
    fn resources_become_prefixes() {
        for (resource, wanted) in [
            ("secrets", "/core/secrets/"),
            ("widgets.example.com", "/example.com/widgets/"),
            ("*.apps", "/apps/"),
            ("*.", "/core/"),
            ("*.*", "/"),
        ] {
            assert_eq!(resource_prefix(resource).unwrap(), wanted);
        }
        for bad in ["*", "", "*ets", "Secrets", "secrets.*"] {
            assert!(resource_prefix(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn refusals_name_the_field() {
        let key = |secret: &str| format!("[{{aesgcm: {{keys: [{{name: k, secret: {secret}}}]}}}}]");
        for (text, wanted) in [
            (document("[{aescbc: {keys: []}}]"), "resources[0].providers[0].aescbc: the provider aescbc is not"),
            (document("[{rot13: {}}]"), "there is no provider \"rot13\""),
            (document("[{identity: {}, aesgcm: {}}]"), "exactly one provider"),
            (document("[]"), "resources[0].providers is empty"),
            (document(&key("AAAA")), "aesgcm: keys[0]: an aesgcm key has 16 or 32 bytes, this one has 3"),
            (document(&key("'?'")), "keys[0].secret is not base64"),
            (document("[{identity: {}}]").replace("secrets", "'*.*'"), "behind an entry that covers it"),
            (document("[{identity: {}}]").replace("/v1", "/v9"), "apiserver.config.k8s.io/v9"),
            (document("[{identity: {}}]") + "extra: 1\n", "extra"),
        ] {
            let refusal = refusal(&text);
            assert!(refusal.contains(wanted), "{refusal}");
            refusal_has_no_secret(&refusal);
        }
    }

    fn refusal_has_no_secret(text: &str) {
        assert!(!text.contains("AAAA"), "{text}");
    }
}
