//! The last logs of nodes that were replaced, in the cluster's folder: their new machines know nothing of them.

use super::{Printer, Source, Wanted, show::Prefix};
use crate::cache;
use crate::client::block_on;
use crate::config::Settings;
use crate::node::Target;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Of each node.
const KEPT: usize = 3;
/// How long a node may take to say them.
const LIMIT: Duration = Duration::from_secs(30);

/// Where they are.
pub fn dir(settings: &Settings) -> PathBuf {
    settings.dir.join("logs")
}

/// Asks a node for all that its logs hold, keeps it, and says where.
///
/// # Errors
/// It does not answer, or the file cannot be written: there is none then.
pub fn keep(settings: &Settings, node: &str) -> Result<PathBuf> {
    let dir = dir(settings);
    cache::private_dir(&dir)?;
    let file = tempfile::NamedTempFile::new_in(&dir).with_context(|| format!("making a file in {}", dir.display()))?;
    let mut out = file.reopen().with_context(|| format!("opening a file in {}", dir.display()))?;
    let place = dir.clone();
    let write = move |bytes: &[u8]| out.write_all(bytes).with_context(|| format!("writing into {}", place.display()));
    let target = Target { node: Some(node.to_owned()), ..Target::default() };
    let source = Source { node: node.into(), client: target.client(settings) };
    let (mut printer, wanted) = (Printer::plain(Prefix::Service, write), Wanted::default());
    let shown = async {
        let shown = super::show(vec![source], &wanted, &mut printer);
        tokio::time::timeout(LIMIT, shown).await.with_context(|| format!("it took more than {} s", LIMIT.as_secs()))?
    };
    if !block_on(shown)? {
        bail!("it does not answer");
    }
    let path = dir.join(name(node, jiff::Timestamp::now().as_second()));
    file.persist(&path).with_context(|| format!("naming {}", path.display()))?;
    tidy(&dir, node)?;
    Ok(path)
}

fn name(node: &str, second: i64) -> String {
    format!("{node}-{second}.log")
}

/// Removes all but the newest ones of a node.
fn tidy(dir: &Path, node: &str) -> Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let second = |entry: std::fs::DirEntry| -> Option<i64> {
        let name = entry.file_name();
        name.to_str()?.strip_prefix(node)?.strip_prefix('-')?.strip_suffix(".log")?.parse().ok()
    };
    let mut seconds: Vec<i64> = entries.flatten().filter_map(second).collect();
    seconds.sort_unstable();
    seconds.reverse();
    for old in seconds.into_iter().skip(KEPT) {
        let path = dir.join(name(node, old));
        std::fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_node_stay() {
        let dir = tempfile::tempdir().expect("dir");
        let others = ["web-1-5.log", "web-9", "web-x.log", "mine"];
        for file in (1..=5).map(|second| name("web", second)).chain(others.map(String::from)) {
            std::fs::write(dir.path().join(file), "x").expect("written");
        }
        tidy(dir.path(), "web").expect("tidied");
        let mut left: Vec<String> = std::fs::read_dir(dir.path())
            .expect("folder")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["mine", "web-1-5.log", "web-3.log", "web-4.log", "web-5.log", "web-9", "web-x.log"]);
    }

    #[test]
    fn a_node_that_does_not_answer_leaves_no_file() {
        let dir = tempfile::tempdir().expect("dir");
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\", addresses = [\"127.0.0.1\"] }]\n";
        let settings = crate::config::parse(Path::new("cluster.toml"), text, dir.path()).expect("valid");
        keep(&settings, "m").expect_err("no answer");
        assert_eq!(std::fs::read_dir(super::dir(&settings)).expect("folder").count(), 0);
    }
}
