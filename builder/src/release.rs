//! What a release of kimg reads and writes: `kimg version`.

use serde::Serialize;

/// The `version` of `cluster.toml`.
pub const CLUSTER_TOML: u32 = 1;
/// The store's format in the embedded engine's log, and in snapshots of either engine.
pub const STORE_LOG: u32 = 2;
/// The store's format in etcd.
pub const STORE_ETCD: u32 = 1;
/// The minor level of Kubernetes whose API the masters serve.
pub const KUBERNETES: &str = "1.36";

/// A format's versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Versions {
    /// The oldest and the newest that are read.
    pub reads: (u32, u32),
    /// The one that is written.
    pub writes: u32,
}

/// What a release states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Release {
    /// kimg's version.
    pub release: String,
    /// Level of the API.
    pub kubernetes: String,
    /// The embedded store, and snapshots.
    pub store: Versions,
    /// The store in etcd.
    pub store_etcd: Versions,
    /// `cluster.toml`.
    pub cluster_toml: Versions,
}

impl Release {
    /// This one.
    pub fn this() -> Release {
        // No format has been replaced yet.
        let only = |format| Versions { reads: (format, format), writes: format };
        Release {
            release: env!("CARGO_PKG_VERSION").into(),
            kubernetes: KUBERNETES.into(),
            store: only(STORE_LOG),
            store_etcd: only(STORE_ETCD),
            cluster_toml: only(CLUSTER_TOML),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let line = |what: &str, versions: &Versions| {
            let Versions { reads: (from, to), writes } = versions;
            let reads = if from == to { from.to_string() } else { format!("{from} to {to}") };
            format!("{what:<21} reads {reads}, writes {writes}\n")
        };
        format!(
            "kimg                  {}\nKubernetes API        {}\n{}{}{}",
            self.release,
            self.kubernetes,
            line("store, snapshots", &self.store),
            line("store in etcd", &self.store_etcd),
            line("cluster.toml", &self.cluster_toml)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kimg never links the control plane, so the numbers stand in both.
    #[test]
    fn what_is_stated_is_what_the_control_plane_does() {
        let log = include_str!("../../control/store/src/frame.rs");
        assert!(log.contains(&format!("b\"KIMG-STORE-LOG-{STORE_LOG}\";")));
        let snapshot = include_str!("backup/snapshot.rs");
        assert!(snapshot.contains(&format!("const VERSION: &[u8] = b\"{STORE_LOG}\";")));
        let etcd = include_str!("../../control/store/src/etcd/root.rs");
        assert!(etcd.contains(&format!("const FORMAT: u32 = {STORE_ETCD};")));
        let server = include_str!("../../control/apiserver/src/lib.rs");
        let version = format!("\"v{KUBERNETES}.0+kimg{}\";", env!("CARGO_PKG_VERSION"));
        assert!(server.contains(&version), "{version}");
    }

    #[test]
    fn it_is_said_to_people_and_to_programs() {
        let mut release = Release { release: "1.2.3".into(), ..Release::this() };
        release.store.reads = (1, 2);
        let text = release.text();
        assert!(text.starts_with("kimg                  1.2.3\n"), "{text}");
        assert!(text.contains("store, snapshots      reads 1 to 2, writes 2\n"), "{text}");
        let json = serde_json::to_value(&release).expect("json");
        assert_eq!(json["cluster-toml"], serde_json::json!({"reads": [1, 1], "writes": 1}));
    }
}
