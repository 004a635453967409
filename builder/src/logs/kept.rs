//! The last logs of nodes that were replaced, in the cluster's folder: their new machines know nothing of them.
//!
//! `logs/NODE-SECOND.log.zst`: lines as `kimg logs NODE` prints them, each with its service before it, by time.

use super::line::Reader;
use super::merge::{self, Entry};
use super::{AUDIT, Printer, Source, Wanted, show::Prefix};
use crate::cache;
use crate::client::block_on;
use crate::config::Settings;
use crate::input;
use crate::local::state::State;
use crate::node::Target;
use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Of each node.
const KEPT: usize = 3;
/// How long a node may take to say them.
const LIMIT: Duration = Duration::from_secs(30);
/// The most of a node's lines, in bytes: as much as its own bounds let it have, and about a tenth when compressed.
const MOST: usize = 48 << 20;
/// What stands around them is less than that again.
const MOST_READ: u64 = 2 * MOST as u64;

/// Where they are.
pub fn dir(settings: &Settings) -> PathBuf {
    settings.dir.join("logs")
}

/// What was kept of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kept {
    /// The node.
    pub node: String,
    /// When, in seconds since 1970.
    second: i64,
    path: PathBuf,
}

impl Kept {
    fn new(dir: &Path, node: &str, second: i64) -> Kept {
        Kept { node: node.to_owned(), second, path: dir.join(format!("{node}-{second}.log.zst")) }
    }

    fn of_file(path: PathBuf) -> Option<Kept> {
        let name = path.file_name()?.to_str()?;
        let (node, second) = name.strip_suffix(".log.zst")?.rsplit_once('-')?;
        Some(Kept { node: node.to_owned(), second: second.parse().ok()?, path })
    }
}

/// What there is, by node and time.
///
/// # Errors
/// The folder cannot be read.
pub fn list(settings: &Settings) -> Result<Vec<Kept>> {
    list_in(&dir(settings))
}

fn list_in(dir: &Path) -> Result<Vec<Kept>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", dir.display())),
    };
    let mut all: Vec<Kept> = entries.flatten().filter_map(|entry| Kept::of_file(entry.path())).collect();
    all.sort_unstable();
    Ok(all)
}

/// Asks a node for all that its logs hold, keeps it, and says where.
///
/// # Errors
/// It does not answer, or the file cannot be written: there is none then.
pub fn keep(settings: &Settings, node: &str) -> Result<PathBuf> {
    // Nobody is to start it for that, as others who ask it are told.
    if State::load(&settings.run_dir())?.vms.get(node).is_some_and(|vm| !vm.running()) {
        bail!("its VM does not run");
    }
    let target = Target { node: Some(node.to_owned()), ..Target::default() };
    keep_of(&dir(settings), Source { node: node.into(), client: target.client(settings) }, Timestamp::now())
}

fn keep_of(dir: &Path, source: Source, now: Timestamp) -> Result<PathBuf> {
    let node = source.node.clone();
    let wanted = Wanted { audit: true, ..Wanted::default() };
    let asked = async {
        let asked = tokio::time::timeout(LIMIT, super::whole(source, &wanted, super::MOST)).await;
        asked.with_context(|| format!("it took more than {} s", LIMIT.as_secs()))?
    };
    let held = block_on(asked)?;
    let mut entries = held.entries;
    // What it does give is kept.
    for error in held.failed {
        eprintln!("kimg: {node}: {error:#}");
    }
    if entries.is_empty() {
        bail!("it has none");
    }
    merge::sort(&mut entries);
    merge::newest(&mut entries, MOST);
    cache::private_dir(dir)?;
    let kept = Kept::new(dir, &node, now.as_second());
    // For nobody else to read, whatever becomes of the folder.
    let mut file =
        tempfile::NamedTempFile::new_in(dir).with_context(|| format!("making a file in {}", dir.display()))?;
    file.write_all(&packed(&entries)?).with_context(|| format!("writing into {}", dir.display()))?;
    cache::store(file.path(), &kept.path)?;
    tidy(dir, &node)?;
    Ok(kept.path)
}

fn packed(entries: &[Entry]) -> Result<Vec<u8>> {
    let packer = zstd::Encoder::new(Vec::new(), zstd::DEFAULT_COMPRESSION_LEVEL).context("compressing logs")?;
    let packer = Arc::new(Mutex::new(packer));
    let to = packer.clone();
    let write =
        move |bytes: &[u8]| to.lock().unwrap_or_else(|e| e.into_inner()).write_all(bytes).context("compressing logs");
    Printer::plain(Prefix::Service, write).print(entries)?;
    let packer = Arc::into_inner(packer).context("compressing logs")?;
    packer.into_inner().unwrap_or_else(|e| e.into_inner()).finish().context("compressing logs")
}

/// Shows what was kept of some nodes, or of all where none is named.
///
/// # Errors
/// There is nothing, or it cannot be read.
pub fn show(kept: &[Kept], nodes: &[String], wanted: &Wanted, now: Timestamp, printer: &mut Printer) -> Result<()> {
    let known: BTreeSet<&str> = kept.iter().map(|kept| kept.node.as_str()).collect();
    if let Some(node) = nodes.iter().find(|node| !known.contains(node.as_str())) {
        return input::bad(format!("no logs of {node} were kept; there are some of: {}", listed(known)));
    }
    if known.is_empty() {
        return input::bad("no logs were kept yet: they are when a node's machine is ended, in logs/");
    }
    let mut all: Vec<Entry> = Vec::new();
    for kept in kept.iter().filter(|kept| nodes.is_empty() || nodes.contains(&kept.node)) {
        let fresh = read(kept)?;
        // A machine that was made anew with its disk says again what it said before.
        let begins = begins(&fresh);
        all.retain(|old| begins.get(&(old.node.clone(), old.service.clone())).is_none_or(|begin| old.at < *begin));
        all.extend(fresh);
    }
    let services: BTreeSet<&str> = all.iter().map(|entry| &*entry.service).collect();
    if let Some(name) = wanted.services.iter().find(|name| !services.contains(name.as_str())) {
        return input::bad(format!(
            "`{name}` is neither a node nor a service of which logs were kept; services are {}",
            listed(services)
        ));
    }
    let since = wanted.since.map(|since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
    let since = since.map_or(i64::MIN, |since| now.as_microsecond().saturating_sub(since));
    let chosen = |name: &str| match wanted.services.is_empty() {
        true => wanted.audit || name != AUDIT,
        false => wanted.services.iter().any(|service| service == name),
    };
    all.retain(|entry| entry.at >= since && chosen(&entry.service));
    merge::sort(&mut all);
    merge::last(&mut all, wanted.tail);
    printer.print(&all)
}

fn listed(names: BTreeSet<&str>) -> String {
    if names.is_empty() { "no node".to_owned() } else { Vec::from_iter(names).join(", ") }
}

/// When each log begins.
fn begins(entries: &[Entry]) -> BTreeMap<(Arc<str>, Arc<str>), i64> {
    let mut begins = BTreeMap::new();
    for entry in entries {
        let begin = begins.entry((entry.node.clone(), entry.service.clone())).or_insert(entry.at);
        *begin = entry.at.min(*begin);
    }
    begins
}

fn read(kept: &Kept) -> Result<Vec<Entry>> {
    let what = || format!("reading {}", kept.path.display());
    let file = std::fs::File::open(&kept.path).with_context(what)?;
    let mut bytes = Vec::new();
    zstd::Decoder::new(file).and_then(|open| open.take(MOST_READ).read_to_end(&mut bytes)).with_context(what)?;
    let text = String::from_utf8_lossy(&bytes);
    let service = |line: &str| line.split(' ').next().map_or(0, str::len);
    // As the printer has aligned them.
    let width = text.split_terminator('\n').map(service).max().unwrap_or(0) + 2;
    let mut logs: BTreeMap<&str, (Reader, Vec<super::line::Line>)> = BTreeMap::new();
    for line in text.split_terminator('\n') {
        let Some((before, said)) = line.split_at_checked(width) else { continue };
        let (reader, lines) = logs.entry(before.trim_end()).or_insert_with(|| (Reader::new(0), Vec::new()));
        lines.extend(reader.feed(format!("{said}\n").as_bytes()));
    }
    let (node, otherwise): (Arc<str>, i64) = (kept.node.as_str().into(), kept.second.saturating_mul(1_000_000));
    let entries = |(service, (_, lines)): (&str, (Reader, _))| merge::entries(&node, &service.into(), lines, otherwise);
    Ok(logs.into_iter().flat_map(entries).collect())
}

/// Removes all but the newest ones of a node.
fn tidy(dir: &Path, node: &str) -> Result<()> {
    let old = list_in(dir)?.into_iter().rev().filter(|kept| kept.node == node).skip(KEPT);
    for kept in old {
        std::fs::remove_file(&kept.path).with_context(|| format!("removing {}", kept.path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{node, printer, source};
    use super::*;
    use crate::client::tests::secrets;
    use crate::input::BadInput;
    use crate::local::state::Vm;
    use node_metadata::Role;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_newest_of_each_node_stay() {
        let dir = tempfile::tempdir().expect("dir");
        let others = ["web-1-5.log.zst", "web-9", "web-x.log.zst", "mine"];
        let names = (1..=5).map(|second| format!("web-{second}.log.zst")).chain(others.map(String::from));
        for file in names {
            std::fs::write(dir.path().join(file), "x").expect("written");
        }
        tidy(dir.path(), "web").expect("tidied");
        let mut left: Vec<String> = std::fs::read_dir(dir.path())
            .expect("folder")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        let expected =
            ["mine", "web-1-5.log.zst", "web-3.log.zst", "web-4.log.zst", "web-5.log.zst", "web-9", "web-x.log.zst"];
        assert_eq!(left, expected);
    }

    #[test]
    fn a_node_that_does_not_answer_leaves_no_file() {
        let dir = tempfile::tempdir().expect("dir");
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        let mut settings = crate::config::parse(Path::new("cluster.toml"), text, dir.path()).expect("valid");
        settings.nodes[0].entry.addresses = vec![[127, 0, 0, 1].into()];
        keep(&settings, "m").expect_err("no answer");
        assert!(list(&settings).expect("list").is_empty());
    }

    fn shown(dir: &Path, nodes: &[&str], wanted: &Wanted, now: &str) -> Result<Vec<String>> {
        let (mut printer, out) = printer();
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        show(&list_in(dir)?, &nodes, wanted, now.parse().expect("time"), &mut printer)?;
        let out = out.lock().unwrap().clone();
        Ok(out.lines().map(ToString::to_string).collect())
    }

    #[test]
    fn what_was_kept_is_shown_as_a_node_would() {
        let (dir, (_secrets_dir, secrets)) = (tempfile::tempdir().expect("dir"), secrets());
        let at = |text: &str| text.parse::<Timestamp>().expect("time");
        let kept = block_on(async {
            let server = node(&secrets, "a").await;
            // As the roll, from a thread that waits for it.
            let (source, to) = (source(&secrets, "a", &server.target), dir.path().join("logs"));
            tokio::task::spawn_blocking(move || keep_of(&to, source, at("2025-11-27T00:02:00Z"))).await.expect("kept")
        })
        .expect("kept");
        assert_eq!(std::fs::metadata(&kept).expect("file").permissions().mode() & 0o777, 0o600);
        let logs = dir.path().join("logs");
        let all = shown(&logs, &[], &Wanted::default(), "2025-11-27T00:02:00Z").expect("shown");
        let expected = [
            "a  kubelet  2025-11-27T00:00:00Z a 0",
            "a  kernel   2025-11-27T00:00:00.700000Z Linux",
            "a  kubelet  2025-11-27T00:00:01Z a 1",
            "a  kubelet    more",
        ];
        assert_eq!(all, expected);
        let wanted = |service: &str, since| Wanted {
            services: vec![service.into()],
            since: Some(Duration::from_secs(since)),
            ..Wanted::default()
        };
        assert_eq!(shown(&logs, &["a"], &wanted("kubelet", 59), "2025-11-27T00:01:00Z").expect("shown"), expected[2..]);
        for (nodes, service) in [(&["b"][..], "kubelet"), (&[], "etcd")] {
            let error = shown(&logs, nodes, &wanted(service, 1), "2025-11-27T00:00:00Z").unwrap_err();
            assert!(error.is::<BadInput>(), "{error}");
        }
        let nothing = shown(dir.path(), &[], &Wanted::default(), "2025-11-27T00:00:00Z").unwrap_err();
        assert!(nothing.is::<BadInput>(), "{nothing}");
    }

    #[test]
    fn what_a_disk_says_again_is_shown_once_and_audit_when_it_is_asked_for() {
        let dir = tempfile::tempdir().expect("dir");
        let write = |second: i64, lines: &[(&str, &str)]| {
            let mut entries = Vec::new();
            for (service, text) in lines {
                let at = text.parse::<Timestamp>().map_or(0, Timestamp::as_microsecond);
                entries.push(Entry { at, node: "m".into(), service: (*service).into(), text: (*text).into() });
            }
            std::fs::write(Kept::new(dir.path(), "m", second).path, packed(&entries).expect("packed"))
                .expect("written");
        };
        let audit = r#"{"stageTimestamp":"2025-11-27T00:00:03Z"}"#;
        let times = ["2025-11-27T00:00:01Z", "2025-11-27T00:00:02Z", "2025-11-27T00:00:04Z"];
        write(100, &[("dns", times[0]), ("dns", times[1]), ("audit", audit)]);
        write(200, &[("dns", times[1]), ("dns", times[2])]);
        let of = |wanted: &Wanted| shown(dir.path(), &["m"], wanted, times[0]).expect("shown");
        assert_eq!(of(&Wanted::default()), times.map(|time| format!("m  dns  {time}")));
        let wanted = Wanted { services: vec!["audit".into()], ..Wanted::default() };
        assert_eq!(of(&wanted), [format!("m  audit  {audit}")]);
    }

    #[test]
    fn nobody_is_told_to_start_a_vm_that_is_replaced() {
        let dir = tempfile::tempdir().expect("dir");
        let text =
            "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n";
        let settings = crate::config::parse(Path::new("c"), text, dir.path()).expect("valid");
        cache::private_dir(&settings.run_dir()).expect("run");
        let mut state = State::default();
        state.vms.insert("w".into(), Vm::new(Role::Worker, "image"));
        state.save(&settings.run_dir()).expect("saved");
        assert_eq!(keep(&settings, "w").expect_err("it does not run").to_string(), "its VM does not run");
    }
}
