//! `kimg scale workers N`: `cluster.toml` gets the nodes and `up` makes them, or nodes are drained and removed, and then
//! taken out of it. For masters see [`super::masters`].

use super::roll::{self, RollArgs};
use super::{masters, vm};
use crate::cache;
use crate::config::{self, FILE_NAME, Settings, edit};
use crate::hint::{dir_flag, next, program};
use crate::image::components::Components;
use crate::input;
use crate::local::state::{self, State};
use crate::roll::journal::{Journal, OnBlocked, Outcome, Step};
use anyhow::{Context, Result, bail};
use node_metadata::Role;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 the cluster has so many nodes; 1 it is not fit for it, or a node could not be drained; \
2 a mistake, or a decision that is missing; 130 interrupted.\n\nHow it works: docs/how-to/scale.md, docs/how-to/masters.md"
)]
pub(super) struct ScaleArgs {
    /// `workers` or `masters`
    what: String,
    /// How many there are to be (masters: 1, 3 or 5); the last ones of cluster.toml go first
    pub(super) count: usize,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(super) yes: bool,
    /// How long a drain may take, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// What to do with a node that is not drained in time
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    on_blocked: OnBlocked,
    /// Give up the local volume of this claim; may be repeated
    #[arg(long, value_name = "NAMESPACE/NAME")]
    lose_data: Vec<String>,
    /// Give up pods that no controller starts again
    #[arg(long)]
    lose_pods: bool,
    /// Folder with kimg-node, kimg-control and kimg-stage1
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub(super) components: Option<PathBuf>,
    /// End at once at this point of the journal, as if killed; for tests
    #[arg(long, hide = true, value_name = "POINT")]
    fail_at: Option<String>,
}

impl ScaleArgs {
    /// How a roll that is part of it is done.
    pub(super) fn roll(&self) -> RollArgs {
        RollArgs {
            timeout: self.timeout,
            on_blocked: self.on_blocked,
            lose_data: self.lose_data.clone(),
            lose_pods: self.lose_pods,
            components: self.components.clone(),
            fail_at: self.fail_at.clone(),
            ..RollArgs::plain()
        }
    }
}

/// Kubernetes' own limit (kubernetes.io, "Considerations for large clusters").
const MOST_NODES: usize = 5000;

pub(super) fn run(args: &ScaleArgs, settings: &Settings) -> Result<ExitCode> {
    let of_masters = ["master", "masters"].contains(&args.what.as_str());
    match args.what.as_str() {
        "workers" if (1..=MOST_NODES).contains(&args.count) => {}
        "workers" if args.count == 0 => {
            return input::bad("a cluster without workers runs nothing; `kimg down` ends all machines, and keeps data");
        }
        "workers" => {
            return input::bad(format!(
                "Kubernetes is made for {MOST_NODES} nodes at most; {} are too many",
                args.count
            ));
        }
        _ if of_masters => masters::check(args.count)?,
        other => {
            let way = "say `kimg scale workers N` or `kimg scale masters N`";
            return input::bad(format!("`{other}` cannot be scaled; {way}"));
        }
    }
    // Before nodes are gone that it would go on to name.
    if !args.dry_run {
        check_writable(settings)?;
    }
    let _alone = if args.dry_run { None } else { Some(alone(settings)?) };
    // What was interrupted comes to its end first.
    if of_masters && !args.dry_run && roll::go_on(&args.roll(), settings)? == Some(false) {
        return Ok(ExitCode::FAILURE);
    }
    let settings = match removed(args, settings, &[])? {
        Some(journal) => match gone_on(settings, &journal)? {
            Some(settings) => settings,
            None => return Ok(ExitCode::FAILURE),
        },
        None => settings.clone(),
    };
    if of_masters {
        return masters::run(args, &settings);
    }
    let workers: Vec<String> = settings.lasting_workers().map(|node| node.entry.name.clone()).collect();
    if args.count > workers.len() {
        return grow(args, &settings, &workers);
    }
    // What a roll has left counts as none of them.
    let spares = settings.spares().map(|node| node.entry.name.clone());
    let gone: Vec<String> = workers[args.count..].iter().cloned().chain(spares).collect();
    if gone.is_empty() {
        println!("{FILE_NAME} names {} workers", workers.len());
        // They may not be there yet: it is edited before they are made.
        if !args.dry_run {
            vm::up(&vm::UpArgs { components: args.components.clone(), yes: args.yes }, &settings)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(journal) = removed(args, &settings, &gone)? else { return Ok(ExitCode::SUCCESS) };
    let settings = forget(&settings, &journal)?;
    if settings.provider.is_some() {
        super::cloud::show_left_volumes(&settings)?;
    }
    let left = settings.lasting_workers().count();
    println!("cluster {} has {left} workers, here and in {FILE_NAME}", settings.name);
    settings.spares_left().iter().for_each(|sentence| println!("{sentence}"));
    next(&format!("{} status{}", program(), dir_flag(&settings)));
    Ok(if left == args.count && settings.spares().next().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether `cluster.toml` may be edited, asked before anything is done that ends with that.
///
/// # Errors
/// Bad input.
pub(super) fn check_writable(settings: &Settings) -> Result<()> {
    let file = settings.dir.join(FILE_NAME);
    if std::fs::metadata(&file).is_ok_and(|known| known.permissions().readonly()) {
        return input::bad(format!("{0} is read-only, and kimg edits it; run: chmod u+w {0}", file.display()));
    }
    Ok(())
}

/// One edits cluster.toml at a time, and makes what it says before the next one does.
///
/// # Errors
/// Another one is under way, or the file is no longer what was read.
fn alone(settings: &Settings) -> Result<std::fs::File> {
    cache::private_dir(&settings.run_dir())?;
    let path = settings.run_dir().join("scale.lock");
    let file = cache::open_private(&path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => bail!("another `kimg scale` works on this cluster; wait for its end"),
        Err(error) => return Err(error).with_context(|| format!("locking {}", path.display())),
    }
    check_unchanged(&settings.dir.join(FILE_NAME), &settings.text)?;
    Ok(file)
}

/// Drains and removes nodes, or goes on with that where none is named; none where nothing was to be done, or only shown.
pub(super) fn removed(args: &ScaleArgs, settings: &Settings, gone: &[String]) -> Result<Option<Journal>> {
    let roll = RollArgs { nodes: gone.to_vec(), dry_run: args.dry_run, yes: args.yes, ..args.roll() };
    if gone.is_empty() && settings.provider.is_none() && !settings.run_dir().join("roll.json").exists() {
        // No roll was ever begun here, and there may be no cluster yet.
        return Ok(None);
    }
    if let Some(why) = state::stopped(settings, &State::load(&settings.run_dir())?, None) {
        bail!(why);
    }
    roll::at_place(settings, |secrets, place, machines| roll::remove(&roll, settings, secrets, place, machines))
}

/// What is left after a removal that was gone on with; none where it has stopped. Also then those that are gone leave
/// `cluster.toml`, or the next `up` would make them anew.
fn gone_on(settings: &Settings, journal: &Journal) -> Result<Option<Settings>> {
    let left = forget(settings, journal)?;
    Ok((journal.outcome == Outcome::Done).then_some(left))
}

/// Takes the nodes that are gone out of `cluster.toml`; masters only where as many are left as there may be.
pub(super) fn forget(settings: &Settings, journal: &Journal) -> Result<Settings> {
    // Whoever edited it while nodes went keeps what was written.
    let settings = &config::load(&settings.dir)?;
    let is_gone = |name: &String| {
        journal.nodes.iter().any(|entry| entry.node == *name && entry.step == Step::Done && entry.leaves())
    };
    let left = settings.nodes_of(Role::Master).filter(|node| !is_gone(&node.entry.name)).count();
    let may_go = |role| role == Role::Worker || masters::check(left).is_ok();
    let gone = settings.nodes.iter().filter(|node| is_gone(&node.entry.name) && may_go(node.entry.role));
    take_out(settings, gone.map(|node| node.entry.name.clone()).collect())
}

/// Takes nodes out of `cluster.toml` of which there is nothing any more.
pub(super) fn take_out(settings: &Settings, gone: Vec<String>) -> Result<Settings> {
    if gone.is_empty() {
        return Ok(settings.clone());
    }
    let left = settings.nodes.iter().map(|node| node.entry.name.clone()).filter(|name| !gone.contains(name)).collect();
    let text = edit::without(&settings.text, &gone);
    let (path, new) = edited(settings, &text, left, &format!("take out {}", gone.join(", ")))?;
    write(&path, &text, &settings.text)?;
    let settings = new;
    Ok(settings)
}

fn grow(args: &ScaleArgs, settings: &Settings, workers: &[String]) -> Result<ExitCode> {
    if let Some(claim) = args.lose_data.first() {
        return input::bad(format!(
            "--lose-data {claim}: no worker leaves, and no claim's data with one; leave it out"
        ));
    }
    if args.components.is_some() {
        Components::find(args.components.as_deref(), &cache::sums_dir()?)?;
    }
    let all: Vec<String> = settings.nodes.iter().map(|node| node.entry.name.clone()).collect();
    let last = workers.last().map(String::as_str);
    let names = new_names(&all, last, args.count - workers.len(), "worker-");
    let last = workers.last().or(all.last()).context("cluster.toml names no node")?;
    let text = edit::with(&settings.text, &names, last, !workers.is_empty());
    let wanted = all.iter().chain(&names).cloned().collect();
    let (path, grown) = edited(settings, &text, wanted, &format!("add {}", names.join(", ")))?;
    println!("{FILE_NAME} gets {}, like {last}", names.join(", "));
    if settings.provider.is_some() {
        // Whether it can be had, before anything says that it shall be.
        if !super::cloud::agreed_to(&grown, args.yes || args.dry_run)? {
            return Ok(ExitCode::SUCCESS);
        }
    } else if let Some(fault) = &grown.local.fault {
        return Err(fault.clone().into());
    }
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    write(&path, &text, &settings.text)?;
    vm::up(&vm::UpArgs { components: args.components.clone(), yes: true }, &grown)?;
    Ok(ExitCode::SUCCESS)
}

/// Names that go on with the last worker's: `worker-3` after `worker-2`.
pub(super) fn new_names(all: &[String], last: Option<&str>, count: usize, first: &str) -> Vec<String> {
    let stem = last.map_or(first, |name| name.trim_end_matches(|c: char| c.is_ascii_digit()));
    let stem = if last == Some(stem) { format!("{stem}-") } else { stem.to_owned() };
    let number = |name: &String| name.strip_prefix(&stem)?.parse::<u32>().ok();
    let highest = all.iter().filter_map(number).max().unwrap_or_default();
    (1..).map(|more| format!("{stem}{}", highest.saturating_add(more))).take(count).collect()
}

/// What the new text says, where it says what it should.
pub(super) fn edited(settings: &Settings, text: &str, wanted: Vec<String>, what: &str) -> Result<(PathBuf, Settings)> {
    let path = settings.dir.join(FILE_NAME);
    let mut wanted = wanted;
    wanted.sort_unstable();
    let by_hand = |why: &str| {
        input::bad(format!(
            "{}: kimg cannot {what} there{why}; do so by hand: each node as a [[nodes]] table of its own can be edited by kimg",
            path.display()
        ))
    };
    match config::parse(&path, text, &settings.dir) {
        Ok(new) => {
            let mut names: Vec<String> = new.nodes.iter().map(|node| node.entry.name.clone()).collect();
            names.sort_unstable();
            if names == wanted { Ok((path, new)) } else { by_hand("") }
        }
        // Lines of a text that nobody has written say nothing.
        Err(error) => by_hand(&format!(" ({})", error.message)),
    }
}

/// What somebody has written since it was read is not written over.
fn check_unchanged(path: &Path, read: &str) -> Result<()> {
    let now = std::fs::read_to_string(path).with_context(|| format!("reading {} again", path.display()))?;
    if now != read {
        bail!("{} was changed meanwhile, and stays as it is; look at it, and try again", path.display());
    }
    Ok(())
}

/// Whole or not at all, as readable as before, and only in the place of what was read.
pub(super) fn write(path: &Path, text: &str, read: &str) -> Result<()> {
    check_unchanged(path, read)?;
    let path = path.canonicalize().with_context(|| format!("resolving {}", path.display()))?;
    let writing = || format!("writing {}", path.display());
    let mut file =
        tempfile::NamedTempFile::new_in(path.parent().context("a file lies in a folder")?).with_context(writing)?;
    file.write_all(text.as_bytes()).with_context(writing)?;
    let like = std::fs::metadata(&path).with_context(writing)?.permissions();
    file.as_file().set_permissions(like).with_context(writing)?;
    file.as_file().sync_all().with_context(writing)?;
    file.persist(&path).with_context(writing)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_on() {
        let all = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            new_names(&all(&["m", "worker-1", "worker-2"]), Some("worker-2"), 2, "worker-"),
            ["worker-3", "worker-4"]
        );
        assert_eq!(new_names(&all(&["m"]), None, 1, "worker-"), ["worker-1"]);
        assert_eq!(new_names(&all(&["m", "a9", "a2"]), Some("a2"), 1, "worker-"), ["a10"]);
        assert_eq!(new_names(&all(&["m", "web"]), Some("web"), 1, "worker-"), ["web-1"]);
    }

    #[test]
    fn what_failed_after_its_edit_is_no_success_the_second_time() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            scale: ScaleArgs,
        }
        let dir = tempfile::tempdir().expect("dir");
        let text = "name = \"demo\"\n[[nodes]]\nname = \"m\"\nrole = \"master\"\n[[nodes]]\nname = \"w-1\"\nrole = \"worker\"\n";
        std::fs::write(dir.path().join(FILE_NAME), text).expect("written");
        for count in ["2", "1"] {
            let line = ["scale", "workers", count, "-y", "--components", "/nope"];
            let line = <Line as clap::Parser>::try_parse_from(line).expect("arguments");
            let error = run(&line.scale, &config::load(dir.path()).expect("valid")).expect_err("no components");
            assert!(error.is::<input::BadInput>() && error.to_string().contains("/nope"), "{error:#}");
            assert_eq!(std::fs::read_to_string(dir.path().join(FILE_NAME)).expect("text"), text);
        }
        let line = ["scale", "workers", "2", "-y", "--lose-data", "a/db"];
        let line = <Line as clap::Parser>::try_parse_from(line).expect("arguments");
        let error = run(&line.scale, &config::load(dir.path()).expect("valid")).expect_err("none leaves");
        assert!(
            error.is::<input::BadInput>() && error.to_string().contains("--lose-data a/db: no worker"),
            "{error:#}"
        );
        assert!(!dir.path().join("kimg.lock").exists());
        let file = dir.path().join(FILE_NAME);
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o444)).expect("read-only");
        let line = <Line as clap::Parser>::try_parse_from(["scale", "workers", "2", "-y"]).expect("arguments");
        let error = run(&line.scale, &config::load(dir.path()).expect("valid")).expect_err("read-only");
        assert!(error.is::<input::BadInput>() && error.to_string().contains("chmod u+w"), "{error:#}");
    }

    #[test]
    fn what_is_gone_leaves_the_file_also_where_the_rest_has_stopped() {
        use crate::roll::fake::Fake;
        use crate::roll::plan::Wish;
        use crate::roll::tests::{journal_on, rules};
        let dir = tempfile::tempdir().expect("dir");
        let node = |name: &str, role: &str| format!("[[nodes]]\nname = \"{name}\"\nrole = \"{role}\"\n");
        let text = format!("name = \"demo\"\n{}{}{}", node("m", "master"), node("w1", "worker"), node("w2", "worker"));
        std::fs::write(dir.path().join(FILE_NAME), text).expect("written");
        let settings = config::load(dir.path()).expect("valid");
        let fake = Fake::new(2);
        let images = ["w1", "w2"].map(|name| (name.to_owned(), "new".to_owned())).into();
        let wish = Wish { nodes: vec!["w1".into(), "w2".into()], images, ..Wish::default() };
        let mut journal = journal_on(&fake, &fake, &wish, rules(), false);
        for (entry, step) in journal.nodes.iter_mut().zip([Step::Failed, Step::Done]) {
            entry.to.clear();
            entry.step = step;
        }
        journal.outcome = Outcome::Stopped;
        let gone = journal.nodes[1].node.clone();
        assert!(gone_on(&settings, &journal).expect("edited").is_none());
        let left = config::load(dir.path()).expect("valid");
        assert!(left.nodes.len() == 2 && left.nodes.iter().all(|node| node.entry.name != gone));
    }

    #[test]
    fn masters_leave_the_file_only_all_together() {
        use crate::roll::fake::Fake;
        use crate::roll::plan::{self, Wish};
        use crate::roll::tests::{decide, rules};
        let dir = tempfile::tempdir().expect("dir");
        let node = |n: u8| format!("[[nodes]]\nname = \"m{n}\"\nrole = \"master\"\naddresses = [\"10.77.0.{n}\"]\n");
        let text = format!("name = \"demo\"\nstore = \"etcd\"\n{}{}{}", node(1), node(2), node(3));
        std::fs::write(dir.path().join(FILE_NAME), text).expect("written");
        let settings = config::load(dir.path()).expect("valid");
        let fake = Fake::with_masters(2);
        let wish = Wish { nodes: vec!["m3".into(), "m2".into()], ..Wish::default() };
        let plan = decide(&fake, &fake, &wish, plan::remove).expect("a plan");
        let mut journal = plan.journal(rules(), Vec::new(), false, jiff::Timestamp::UNIX_EPOCH);
        journal.nodes[0].step = Step::Done;
        assert_eq!(forget(&settings, &journal).expect("as it was").nodes.len(), 3);
        assert_eq!(config::load(dir.path()).expect("valid").nodes.len(), 3);
        journal.nodes[1].step = Step::Done;
        assert_eq!(forget(&settings, &journal).expect("edited").nodes.len(), 1);
        let left = config::load(dir.path()).expect("valid");
        assert!(left.nodes.len() == 1 && left.nodes[0].entry.name == "m1" && left.text.contains("etcd"));
    }

    #[test]
    fn the_file_is_changed_only_to_what_was_meant() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join(FILE_NAME);
        let inline =
            "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n";
        let settings = config::parse(&path, inline, dir.path()).expect("valid");
        let text = edit::without(inline, &["w".into()]);
        let error = edited(&settings, &text, vec!["m".into()], "take out w").expect_err("stays").to_string();
        assert!(error.contains("kimg cannot take out w there; do so by hand"), "{error}");
        let tables =
            "name = \"demo\"\n[[nodes]]\nname = \"m\"\nrole = \"master\"\n[[nodes]]\nname = \"w\"\nrole = \"worker\"\n";
        std::fs::write(&path, tables).expect("written");
        let settings = config::load(dir.path()).expect("valid");
        let text = edit::without(&settings.text, &["w".into()]);
        let (path, new) = edited(&settings, &text, vec!["m".into()], "take out w").expect("edited");
        write(&path, &text, &text).expect_err("changed meanwhile");
        write(&path, &text, tables).expect("written");
        assert_eq!(config::load(dir.path()).expect("valid").nodes.len(), new.nodes.len());
    }
}
