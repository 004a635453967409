//! The store through `kimg`: snapshot, integrity check, restore.

use anyhow::ensure;
use qemu_tests::{Cluster, Result, wait};

pub(crate) const TESTS: &[super::Test] = &[("the_store_is_snapshot_checked_and_restored", snapshot_and_restore)];

fn exists(cluster: &Cluster, name: &str) -> Result<bool> {
    let out = cluster.kubectl(&["-n", "default", "get", "configmap", name])?;
    ensure!(out.ok || out.all().contains("NotFound"), "asking for {name}: {}", out.all());
    Ok(out.ok)
}

fn snapshot_and_restore(cluster: &Cluster) -> Result {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("snapshot").display().to_string();
    cluster.k(&["-n", "default", "create", "configmap", "before-snapshot"])?;
    cluster.kimg(&["store", "snapshot", &file])?.success()?;
    let bytes = std::fs::read(&file)?;
    let holds = |text: &[u8]| bytes.windows(text.len()).any(|w| w == text);
    ensure!(holds(b"before-snapshot"), "the snapshot does not have what was written before it");
    let again = cluster.kimg(&["store", "snapshot", &file])?;
    ensure!(!again.ok && again.all().contains("exists"), "a file was overwritten: {}", again.all());
    let checked = cluster.kimg(&["store", "check"])?.success()?;
    ensure!(checked.contains("compared with the server's memory"), "{checked}");

    let no_etcd = cluster.kimg(&["store", "migrate", "--to", "etcd"])?;
    ensure!(!no_etcd.ok && no_etcd.all().contains("store = \"etcd\""), "an image without etcd: {}", no_etcd.all());

    cluster.k(&["-n", "default", "create", "configmap", "after-snapshot"])?;
    let damaged = dir.path().join("damaged").display().to_string();
    let mut wrong = bytes.clone();
    let middle = wrong.len() / 2;
    wrong[middle] ^= 1;
    std::fs::write(&damaged, wrong)?;
    let refused = cluster.kimg(&["store", "restore", "--yes", &damaged])?;
    ensure!(!refused.ok && refused.all().contains("damaged"), "a damaged snapshot: {}", refused.all());
    wait::until("the API server after the damaged snapshot", wait::scale(30), || {
        Ok(exists(cluster, "after-snapshot").ok().filter(|there| *there))
    })?;

    cluster.kimg(&["store", "restore", "--yes", &file])?.success()?;
    wait::until("the API server after the restore", wait::scale(30), || Ok(exists(cluster, "before-snapshot").ok()))?;
    ensure!(exists(cluster, "before-snapshot")? && !exists(cluster, "after-snapshot")?, "not what the snapshot holds");
    cluster.k(&["-n", "default", "delete", "configmap", "before-snapshot"])?;
    // Controllers, kubelets and proxies list anew, and go on.
    cluster.all_ready()
}
