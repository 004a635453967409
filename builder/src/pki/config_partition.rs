//! What of a cluster goes into the CONFIG partition of an image: its settings, the public halves,
//! the add-on manifests, and on masters the private halves, in clear or sealed.

use super::accounts;
use super::authority::Authority;
use super::encryption;
use super::seal;
use super::secrets::Secrets;
use super::successor;
use crate::config::{SecretsForm, Settings};
use crate::manifests;
use anyhow::{Context, Result};
use node_metadata::{BuildInfo, Role};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files of CONFIG by path: mode and content.
pub type ConfigFiles = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// Private halves that a master needs. The node API's is not among them: nothing on a node issues from it.
const MASTER_SECRETS: [&str; 5] = ["cluster-ca.key", "front-proxy-ca.key", "etcd-ca.key", "sa.key", "encryption.key"];

/// Content of CONFIG for an image of `role`. The same settings, secrets and build give the same bytes.
pub fn config_partition(settings: &Settings, role: Role, build: BuildInfo) -> Result<ConfigFiles> {
    let secrets = Secrets::ensure(&settings.secrets_dir(), &settings.name)?;
    let mut files = ConfigFiles::new();
    let cluster = settings.cluster(role, build);
    let mut json = serde_json::to_vec_pretty(&cluster).context("writing cluster.json")?;
    json.push(b'\n');
    files.insert("cluster.json".into(), (0o644, json));
    for authority in Authority::ALL {
        let name = authority.certificate_file();
        let pem = successor::bundle(&secrets, authority)?;
        files.insert(Path::new("pki").join(name), (0o644, pem.into_bytes()));
    }
    files.insert("pki/sa.pub".into(), (0o644, accounts::public_keys(&secrets)?.into_bytes()));
    if let Some(pem) = &settings.logs_ca {
        files.insert("pki/logs-ca.crt".into(), (0o644, pem.clone().into_bytes()));
    }
    if role == Role::Master {
        files.insert("pki/backup.pub".into(), (0o644, secrets.read("backup.pub")?.into_bytes()));
        for (name, text) in manifests::render(settings)? {
            files.insert(Path::new("manifests").join(name), (0o644, text.into_bytes()));
        }
        match settings.secrets {
            SecretsForm::Plain => {
                for name in MASTER_SECRETS {
                    let bytes = master_secret(&secrets, name)?.into_bytes();
                    files.insert(Path::new("secrets").join(name), (0o600, bytes));
                }
            }
            SecretsForm::Sealed => {
                let sealed = seal::files(&secrets, &secrets_tar(&secrets)?)?;
                files.extend(sealed.into_iter().map(|(file, bytes)| (file, (0o644, bytes))));
            }
        }
    }
    Ok(files)
}

fn master_secret(secrets: &Secrets, name: &str) -> Result<String> {
    if name == "encryption.key" { encryption::key_file(secrets) } else { secrets.read(name) }
}

/// The plaintext that is sealed: a tar with `secrets/NAME`, times and owners zero.
fn secrets_tar(secrets: &Secrets) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for name in MASTER_SECRETS {
        let bytes = master_secret(secrets, name)?.into_bytes();
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        tar.append_data(&mut header, Path::new("secrets").join(name), bytes.as_slice())
            .context("packing the master's secrets")?;
    }
    tar.into_inner().context("packing the master's secrets")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn settings(dir: &Path, form: &str) -> Settings {
        let text = format!("name = \"demo\"\nsecrets = \"{form}\"\nnodes = [{{ name = \"m\", role = \"master\" }}]\n");
        config::parse(Path::new("cluster.toml"), &text, dir).expect("valid")
    }

    #[test]
    fn workers_get_public_halves_only() {
        let dir = tempfile::tempdir().expect("dir");
        let settings = settings(dir.path(), "plain");
        let files = config_partition(&settings, Role::Worker, BuildInfo::default()).expect("files");
        let names: Vec<String> = files.keys().map(|p| p.display().to_string()).collect();
        assert_eq!(
            names,
            [
                "cluster.json",
                "pki/cluster-ca.crt",
                "pki/etcd-ca.crt",
                "pki/front-proxy-ca.crt",
                "pki/node-api-ca.crt",
                "pki/sa.pub"
            ]
        );
        for (path, (_, bytes)) in &files {
            assert!(!String::from_utf8_lossy(bytes).contains("PRIVATE"), "{}", path.display());
        }
    }

    #[test]
    fn more_and_fewer_workers_leave_both_images_as_they_are() {
        let dir = tempfile::tempdir().expect("dir");
        let config = |workers: &str, role| {
            let text = format!(
                "name = \"demo\"\n[[nodes]]\nname = \"m\"\nrole = \"master\"\naddresses = [\"10.77.0.10\"]\n{workers}"
            );
            let settings = config::parse(Path::new("cluster.toml"), &text, dir.path()).expect("valid");
            let files = config_partition(&settings, role, BuildInfo::default()).expect("files");
            crate::disk::config_part::encode(&files).expect("CONFIG")
        };
        let one = "[[nodes]]\nname = \"w1\"\nrole = \"worker\"\n";
        let two = format!(
            "{one}[[nodes]]\nname = \"w2\"\nrole = \"worker\"\naddresses = [\"10.77.0.30\"]\nlabels = {{ disk = \"ssd\" }}\n\
             taints = [\"a=b:NoSchedule\"]\nreserved = {{ cpu = \"50m\" }}\n"
        );
        for role in [Role::Master, Role::Worker] {
            let before = config(one, role);
            assert!(before == config(&two, role) && before == config("", role), "the {role} image");
        }
    }

    #[test]
    fn masters_get_secrets_plain_or_sealed_and_the_same_bytes_each_time() {
        let dir = tempfile::tempdir().expect("dir");
        let plain = settings(dir.path(), "plain");
        let files = config_partition(&plain, Role::Master, BuildInfo::default()).expect("files");
        assert!(files.contains_key(Path::new("secrets/sa.key")));
        assert!(!files.contains_key(Path::new("secrets/node-api-ca.key")));
        let sealed = settings(dir.path(), "sealed");
        let one = config_partition(&sealed, Role::Master, BuildInfo::default()).expect("files");
        let two = config_partition(&sealed, Role::Master, BuildInfo::default()).expect("files");
        assert_eq!(one, two);
        assert!(!one.keys().any(|p| p.starts_with("secrets")));
        let key = Secrets::open(&sealed.secrets_dir()).seal_key().expect("key");
        let tar = node_metadata::unseal(&key, &one[Path::new("secrets.sealed")].1).expect("opens");
        let names: Vec<String> = tar::Archive::new(tar.as_slice())
            .entries()
            .expect("tar")
            .map(|e| e.expect("entry").path().expect("path").display().to_string())
            .collect();
        assert!(names.contains(&"secrets/cluster-ca.key".to_string()), "{names:?}");
    }
}
