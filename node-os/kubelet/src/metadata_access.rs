//! Pods that may ask the platform's metadata server, because `[metadata] allow` names their service account.
//!
//! The firewall is init's: it has a set for the addresses of such pods, and one for the control groups of those with
//! the host's network. Both are kept here, whole at each change.

use crate::pods::spec;
use k8s_openapi::api::core::v1::Pod;
use node_metadata::{METADATA_GROUPS, METADATA_PODS};
use node_sys::nft::{Batch, Elem, Family, NftError};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

const TABLE: &str = "kimg-host";

/// By what the firewall knows a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Pass {
    addresses: Vec<Ipv4Addr>,
    /// The inode of its control group, where it has the host's network.
    group: Option<u64>,
}

/// Who has access at the moment.
#[derive(Debug, Default)]
pub struct MetadataAccess {
    /// Service accounts as `namespace/name`.
    allowed: BTreeSet<String>,
    passes: Mutex<BTreeMap<String, Pass>>,
}

impl MetadataAccess {
    /// Nobody has access yet, whatever an earlier kubelet has left.
    pub fn new(allowed: impl IntoIterator<Item = String>) -> MetadataAccess {
        let access = MetadataAccess { allowed: allowed.into_iter().collect(), passes: Mutex::default() };
        if !access.allowed.is_empty()
            && let Err(error) = batch(&BTreeMap::new()).commit()
        {
            tracing::error!("the firewall does not forget who might ask for metadata before: {error}");
        }
        access
    }

    /// Whether the pod's service account is among those that `cluster.toml` names.
    pub fn concerns(&self, pod: &Pod) -> bool {
        let account = spec::of(pod).service_account_name.as_deref().unwrap_or_default();
        // A static pod's account is what somebody wrote into a file, not what the API has admitted.
        !spec::is_static(pod) && self.allowed.contains(&format!("{}/{account}", spec::namespace(pod)))
    }

    /// Lets the pod's connections through, from its addresses or, with the host's network, from its control group.
    pub fn open(&self, pod: &Pod, addresses: &[IpAddr], group: Option<&Path>) {
        if !self.concerns(pod) {
            return;
        }
        let pass = if spec::host_network(pod) {
            let inode = group.and_then(|path| match std::fs::metadata(path) {
                Ok(found) => Some(found.ino()),
                Err(error) => {
                    tracing::warn!("metadata access of {}: {}: {error}", spec::full_name(pod), path.display());
                    None
                }
            });
            Pass { addresses: Vec::new(), group: inode }
        } else {
            let v4 = addresses.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None });
            Pass { addresses: v4.collect(), group: None }
        };
        let mut passes = crate::lock(&self.passes);
        if passes.get(spec::uid(pod)) == Some(&pass) {
            return;
        }
        let mut more = passes.clone();
        more.insert(spec::uid(pod).to_owned(), pass);
        match batch(&more).commit() {
            Ok(()) => *passes = more,
            // The pod's next look tries again.
            Err(error) => tracing::warn!("metadata access of {}: {error}", spec::full_name(pod)),
        }
    }

    /// Ends a pod's access. Called before its address can become another pod's, which waits while this fails.
    pub fn close(&self, uid: &str) -> Result<(), NftError> {
        let mut passes = crate::lock(&self.passes);
        let mut fewer = passes.clone();
        if fewer.remove(uid).is_some() {
            batch(&fewer).commit()?;
            *passes = fewer;
        }
        Ok(())
    }
}

fn batch(passes: &BTreeMap<String, Pass>) -> Batch {
    let addresses: BTreeSet<Ipv4Addr> = passes.values().flat_map(|pass| pass.addresses.iter().copied()).collect();
    let groups: BTreeSet<u64> = passes.values().filter_map(|pass| pass.group).collect();
    let addresses: Vec<Elem> = addresses.into_iter().map(|ip| Elem::key(ip.octets())).collect();
    let groups: Vec<Elem> = groups.into_iter().map(|id| Elem::key(id.to_ne_bytes())).collect();
    let mut batch = Batch::new(Family::Inet, TABLE);
    for (set, elements) in [(METADATA_PODS, addresses), (METADATA_GROUPS, groups)] {
        batch.flush_set(set);
        batch.add_elements(set, 0, &elements);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, account: &str) -> Pod {
        let text = format!(
            "{{metadata: {{name: p, namespace: {namespace}, uid: u}}, spec: {{containers: [], serviceAccountName: {account}}}}}"
        );
        serde_yaml_ng::from_str(&text).unwrap()
    }

    #[test]
    fn only_named_accounts_of_the_named_namespace() {
        let access = MetadataAccess { allowed: ["kube-system/csi".into()].into(), passes: Mutex::default() };
        for (namespace, account, wanted) in
            [("kube-system", "csi", true), ("default", "csi", false), ("kube-system", "default", false)]
        {
            assert_eq!(access.concerns(&pod(namespace, account)), wanted, "{namespace}/{account}");
        }
        let mut of_a_file = pod("kube-system", "csi");
        of_a_file.metadata.annotations = Some([("kubernetes.io/config.source".to_owned(), "file".to_owned())].into());
        assert!(!access.concerns(&of_a_file));
        assert!(!MetadataAccess::default().concerns(&pod("kube-system", "csi")));
    }
}
