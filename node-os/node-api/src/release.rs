//! What a release of kimg reads and writes. A node says it of its image, and `kimg version` of itself.

use serde::{Deserialize, Serialize};

/// The `version` of `cluster.toml`.
pub const CLUSTER_TOML: u32 = 1;
/// The store's newest format in the embedded engine's log, and in snapshots of either engine.
pub const STORE_LOG: u32 = 2;
/// The store's newest format in etcd.
pub const STORE_ETCD: u32 = 1;
/// The minor level of Kubernetes whose API the masters serve.
pub const KUBERNETES: &str = "1.36";

/// Of an image that states nothing: what all those had that were made before images did. They never change.
pub const UNSTATED_KUBERNETES: &str = "1.36";
/// Its format of the store in the log.
pub const UNSTATED_LOG: u32 = 2;
/// And in etcd.
pub const UNSTATED_ETCD: u32 = 1;

/// A format's versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Versions {
    /// The oldest and the newest that are read.
    pub reads: (u32, u32),
    /// The one that is written. A store that is there goes on in its own until `kimg roll --finish`.
    pub writes: u32,
}

/// What a release states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}
