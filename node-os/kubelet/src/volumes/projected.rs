//! The files of configMap, secret, downwardAPI and projected volumes.

use super::payload::{File, Files};
use crate::client::explain;
use crate::container::downward::{self, Facts};
use crate::kubelet::Kubelet;
use crate::pods::spec;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccountTokenProjection, Volume,
};
use kube::api::Api;
use std::collections::BTreeMap;

/// Mode of files where the volume does not say.
const MODE: i32 = 0o644;

/// Kind of directory, whether it lies in memory, and the files of a volume.
pub async fn files(
    kubelet: &Kubelet,
    pod: &Pod,
    volume: &Volume,
    facts: &Facts,
) -> Result<(&'static str, bool, Files), String> {
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let data = config_map(kubelet, pod, &source.name, source.optional).await?;
        let mode = source.default_mode.unwrap_or(MODE);
        select(&mut files, data, source.items.as_deref(), mode, source.optional, &source.name)?;
        return Ok(("configmap", false, files));
    }
    if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let data = secret(kubelet, pod, name, source.optional).await?;
        let mode = source.default_mode.unwrap_or(MODE);
        select(&mut files, data, source.items.as_deref(), mode, source.optional, name)?;
        return Ok(("secret", true, files));
    }
    if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(MODE);
        downward(&mut files, pod, source.items.as_deref().unwrap_or_default(), mode, facts)?;
        return Ok(("downward-api", true, files));
    }
    let Some(source) = &volume.projected else { return Err("the volume has no source".into()) };
    let mode = source.default_mode.unwrap_or(MODE);
    for part in source.sources.iter().flatten() {
        if let Some(source) = &part.config_map {
            let data = config_map(kubelet, pod, &source.name, source.optional).await?;
            select(&mut files, data, source.items.as_deref(), mode, source.optional, &source.name)?;
        }
        if let Some(source) = &part.secret {
            let data = secret(kubelet, pod, &source.name, source.optional).await?;
            select(&mut files, data, source.items.as_deref(), mode, source.optional, &source.name)?;
        }
        if let Some(source) = &part.downward_api {
            downward(&mut files, pod, source.items.as_deref().unwrap_or_default(), mode, facts)?;
        }
        if let Some(source) = &part.service_account_token {
            token(kubelet, pod, source, mode, &mut files).await?;
        }
        if part.cluster_trust_bundle.is_some() || part.pod_certificate.is_some() {
            return Err("clusterTrustBundle and podCertificate sources are not supported on this node".into());
        }
    }
    Ok(("projected", true, files))
}

type Data = BTreeMap<String, Vec<u8>>;

async fn config_map(kubelet: &Kubelet, pod: &Pod, name: &str, optional: Option<bool>) -> Result<Data, String> {
    let api: Api<ConfigMap> = Api::namespaced(kubelet.api.clone(), spec::namespace(pod));
    let found = api.get_opt(name).await.map_err(|e| explain(&e))?;
    let Some(map) = found else { return missing("configmap", name, optional) };
    let text = map.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
    let binary = map.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0));
    Ok(text.chain(binary).collect())
}

async fn secret(kubelet: &Kubelet, pod: &Pod, name: &str, optional: Option<bool>) -> Result<Data, String> {
    let api: Api<Secret> = Api::namespaced(kubelet.api.clone(), spec::namespace(pod));
    let found = api.get_opt(name).await.map_err(|e| explain(&e))?;
    let Some(secret) = found else { return missing("secret", name, optional) };
    Ok(secret.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect())
}

fn missing(kind: &str, name: &str, optional: Option<bool>) -> Result<Data, String> {
    if optional == Some(true) { Ok(Data::new()) } else { Err(format!("{kind} \"{name}\" not found")) }
}

/// Takes all keys, or those that are listed, under the names they are listed with.
fn select(
    files: &mut Files,
    mut data: Data,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: Option<bool>,
    name: &str,
) -> Result<(), String> {
    let file = |data, mode: i32| File { data, mode: mode as u32, uid: None };
    let Some(items) = items.filter(|i| !i.is_empty()) else {
        files.extend(data.into_iter().map(|(key, data)| (key, file(data, mode))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key).cloned() {
            Some(bytes) => {
                files.insert(item.path.clone(), file(bytes, item.mode.unwrap_or(mode)));
            }
            None if optional == Some(true) => {}
            None => return Err(format!("references non-existent config key: {} of {name}", item.key)),
        }
    }
    data.clear();
    Ok(())
}

fn downward(
    files: &mut Files,
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    mode: i32,
    facts: &Facts,
) -> Result<(), String> {
    for item in items {
        let text = if let Some(field) = &item.field_ref {
            downward::field(pod, &field.field_path, facts)
                .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?
        } else if let Some(selector) = &item.resource_field_ref {
            downward::resource(pod, "", selector, facts)
                .ok_or_else(|| format!("unsupported container resource: {}", selector.resource))?
        } else {
            continue;
        };
        let mode = item.mode.unwrap_or(mode) as u32;
        files.insert(item.path.clone(), File { data: text.into_bytes(), mode, uid: None });
    }
    Ok(())
}

async fn token(
    kubelet: &Kubelet,
    pod: &Pod,
    source: &ServiceAccountTokenProjection,
    mode: i32,
    files: &mut Files,
) -> Result<(), String> {
    let token = kubelet.tokens.get(kubelet, pod, source).await?;
    let context = spec::of(pod).security_context.as_ref();
    let group = context.and_then(|c| c.fs_group);
    let user = common_user(pod).and_then(|u| u32::try_from(u).ok());
    let mode = if user.is_some() || group.is_some() { 0o600 } else { mode };
    files.insert(source.path.clone(), File { data: token.into_bytes(), mode: mode as u32, uid: user });
    Ok(())
}

/// The one user that all containers run as, where the spec says so.
fn common_user(pod: &Pod) -> Option<i64> {
    let mut users =
        spec::inits(pod).iter().chain(spec::mains(pod)).map(|c| crate::container::security::run_as_user(pod, c));
    let first = users.next()??;
    users.all(|u| u == Some(first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_choose_and_rename() {
        let data = Data::from([("a".to_string(), b"1".to_vec()), ("b".to_string(), b"2".to_vec())]);
        let item = |key: &str, path: &str| KeyToPath { key: key.into(), path: path.into(), mode: Some(0o400) };
        let mut files = Files::new();
        select(&mut files, data.clone(), None, MODE, None, "m").unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a", "b"]);
        let mut files = Files::new();
        select(&mut files, data.clone(), Some(&[item("a", "x/y")]), MODE, None, "m").unwrap();
        assert_eq!(files["x/y"], File { data: b"1".to_vec(), mode: 0o400, uid: None });
        assert!(select(&mut files, data.clone(), Some(&[item("no", "x")]), MODE, None, "m").is_err());
        assert!(select(&mut files, data, Some(&[item("no", "x")]), MODE, Some(true), "m").is_ok());
    }
}
