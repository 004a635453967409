//! What a release of kimg reads and writes, for people: `kimg version`, `kimg inspect`, `kimg node status`.

use crate::logs::line::harmless;
use node_api::{Release, Versions};

/// In a table.
pub fn table(release: &Release) -> String {
    let line = |what: &str, versions: &Versions| {
        let Versions { reads: (from, to), writes } = versions;
        let reads = if from == to { from.to_string() } else { format!("{from} to {to}") };
        format!("{what:<21} reads {reads}, writes {writes}\n")
    };
    format!(
        "kimg                  {}\nKubernetes API        {}\n{}{}{}",
        release.release,
        release.kubernetes,
        line("store, snapshots", &release.store),
        line("store in etcd", &release.store_etcd),
        line("cluster.toml", &release.cluster_toml)
    )
}

/// In a line. Images and nodes may say anything.
pub fn line(release: &Release) -> String {
    format!(
        "Kubernetes API {}, store format {} (in etcd {}), cluster.toml {}",
        harmless(&release.kubernetes),
        release.store.writes,
        release.store_etcd.writes,
        release.cluster_toml.writes
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use node_api::release::{CLUSTER_TOML, KUBERNETES, STORE_ETCD, STORE_LOG};

    /// kimg and init never link the control plane, so the numbers stand in both.
    #[test]
    fn what_is_stated_is_what_the_control_plane_does() {
        let release = Release::this();
        assert_eq!((release.store.writes, release.store_etcd.writes), (STORE_LOG, STORE_ETCD));
        for (versions, engine) in [
            (&release.store, include_str!("../../control/store/src/frame.rs")),
            (&release.store_etcd, include_str!("../../control/store/src/etcd/root.rs")),
        ] {
            let Versions { reads: (oldest, newest), writes } = versions;
            assert_eq!(newest, writes);
            assert!(engine.contains(&format!("const OLDEST: u32 = {oldest};\nconst NEWEST: u32 = {newest};\n")));
        }
        let server = include_str!("../../control/apiserver/src/lib.rs");
        let version = format!("\"v{KUBERNETES}.0+kimg{}\";", env!("CARGO_PKG_VERSION"));
        assert!(server.contains(&version), "{version}");
        let kubelet = include_str!("../../node-os/kubelet/src/lib.rs");
        assert!(kubelet.contains(&format!("v{KUBERNETES}.0")));
        assert_eq!(release.release, env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn it_is_said_to_people_and_to_programs() {
        let mut release = Release { release: "1.2.3".into(), ..Release::this() };
        release.store.reads = (1, 2);
        let text = table(&release);
        assert!(text.starts_with("kimg                  1.2.3\n"), "{text}");
        assert!(text.contains("store, snapshots      reads 1 to 2, writes 2\n"), "{text}");
        let short = line(&release);
        assert_eq!(
            short,
            format!("Kubernetes API {KUBERNETES}, store format 2 (in etcd 1), cluster.toml {CLUSTER_TOML}")
        );
        let json = serde_json::to_value(&release).expect("json");
        assert_eq!(json["cluster-toml"], serde_json::json!({"reads": [1, 1], "writes": 1}));
        assert_eq!(serde_json::from_value::<Release>(json).expect("read back"), release);
    }
}
