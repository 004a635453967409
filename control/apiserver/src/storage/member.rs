//! `kube-apiserver store member|promote`: how the etcd of one of several masters begins, joins, or goes on.
//!
//! `member` is what init runs as the service `etcd`: it finds out how etcd is to start, and becomes it. Each look begins
//! anew from what is there, so that it may be interrupted anywhere. `promote` follows it, and ends when the member has
//! its vote.

use std::ffi::OsString;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use futures::future::join_all;
use store::{EtcdData, Member, Members, Membership, Sight};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// A majority is asked for no longer; a member with data goes on without its answer.
const MAJORITY: Duration = Duration::from_secs(5);
const MIB: u64 = 1 << 20;
/// etcd makes each piece of its log (64 MB) whole, before it needs it.
const SEGMENT: u64 = 64_000_000;
/// One to write to, and the next.
const BEGIN: u64 = 2 * SEGMENT;

/// Who we are to etcd.
#[derive(Args, Debug)]
pub(crate) struct Identity {
    /// CA bundle that etcd's certificates are checked with.
    #[arg(long)]
    etcd_cafile: PathBuf,
    /// Client certificate shown to etcd.
    #[arg(long)]
    etcd_certfile: PathBuf,
    /// Key of the client certificate shown to etcd.
    #[arg(long)]
    etcd_keyfile: PathBuf,
}

impl Identity {
    fn to(&self, endpoints: Vec<String>) -> Members {
        Members {
            endpoints,
            ca_file: Some(self.etcd_cafile.clone()),
            cert_file: Some(self.etcd_certfile.clone()),
            key_file: Some(self.etcd_keyfile.clone()),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct MemberArgs {
    /// Peer URL of this member (https://ADDRESS:2380).
    #[arg(long)]
    peer_url: String,
    /// Peer URLs of the other masters' members, with commas.
    #[arg(long, value_delimiter = ',')]
    others: Vec<String>,
    /// Peer URLs where members may run that no store begins with, with commas.
    #[arg(long, value_delimiter = ',')]
    perhaps: Vec<String>,
    /// File that says which the masters are and whether their store runs already, instead of --others and --join. Without
    /// it nothing begins; it is read at each look.
    #[arg(long, conflicts_with_all = ["others", "perhaps", "join"])]
    masters: Option<PathBuf>,
    /// Join members that run; never begin a store.
    #[arg(long)]
    join: bool,
    /// etcd's data.
    #[arg(long)]
    data_dir: PathBuf,
    /// File that is there once etcd was started in this boot.
    #[arg(long)]
    begun: PathBuf,
    #[command(flatten)]
    identity: Identity,
    /// etcd, and its other flags.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// What [`MemberArgs::masters`] says; the node API writes it.
#[derive(Debug, Default, serde::Deserialize)]
struct Told {
    peers: Vec<String>,
    join: bool,
}

impl Told {
    /// None: nobody has told it yet.
    fn read(path: &Path) -> anyhow::Result<Option<Told>> {
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("reading {}", path.display()))?,
        };
        serde_json::from_slice(&text).with_context(|| format!("{} does not say which the masters are", path.display()))
    }
}

#[derive(Args, Debug)]
pub(crate) struct PromoteArgs {
    /// Peer URL that this member is to have.
    #[arg(long)]
    peer_url: String,
    /// This member.
    #[arg(long)]
    etcd_server: String,
    #[command(flatten)]
    identity: Identity,
}

/// What is known before a step.
#[derive(Clone, Debug)]
struct Known {
    /// Our peer URL, and those of all masters with it.
    own: String,
    all: Vec<String>,
    join: bool,
    /// Nobody has said yet which the others are.
    untold: bool,
    data: Option<EtcdData>,
    /// etcd was started in this boot already.
    begun: bool,
    /// What the others' peer ports say, from their own knowledge.
    sights: Vec<Sight>,
    /// What a majority says; only that is ever acted on by removing something.
    agreed: Result<Vec<Member>, String>,
    /// Bytes free where the data lies.
    free: u64,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Start etcd on the data that is there.
    GoOn,
    /// Start etcd, which begins a store together with the others that do.
    Begin,
    /// Start etcd as one of these, of which it is one already.
    Join(Vec<Member>),
    /// The member that this machine was: its data is lost, and it cannot come back.
    Remove(u64),
    /// Become a member.
    Add,
    /// What lies here is of a member that was removed.
    Clear,
    Wait(String),
}

fn decide(known: &Known) -> Step {
    match known.data {
        Some(data) => with_data(known, data),
        None if known.untold => Step::Wait(
            "it has no store, and was not told yet which the other masters are: `kimg up` tells it, or `kimg heal` with its \
             name"
                .into(),
        ),
        None => without_data(known),
    }
}

/// Data goes on, whatever anybody says, unless a majority says that it is nobody's any more.
fn with_data(known: &Known, data: EtcdData) -> Step {
    let (Some(own), Ok(agreed)) = (data.member, &known.agreed) else { return Step::GoOn };
    if agreed.iter().any(|member| member.id == own) {
        return Step::GoOn;
    }
    let others = hosts(agreed);
    match (known.join, known.begun) {
        (true, false) => Step::Clear,
        (true, true) => Step::Wait(format!(
            "the member of this master was removed from the store (which has {others} now); restart the machine for it to \
             join anew, or end it"
        )),
        (false, _) => Step::Wait(format!(
            "the member of this master was removed from the store (which has {others} now), and its data counts no more; \
             for it to join anew, set join-etcd: true in its user-data and restart the machine"
        )),
    }
}

fn without_data(known: &Known) -> Step {
    let lists: Vec<&Vec<Member>> = known
        .sights
        .iter()
        .filter_map(|sight| match sight {
            Sight::Listed(list) => Some(list),
            _ => None,
        })
        .collect();
    let mine = || lists.iter().flat_map(|list| list.iter()).filter(|member| member.is_at(&known.own));
    if known.free < BEGIN {
        return Step::Wait(format!(
            "the disk has {} MiB free, and etcd needs {} MiB to begin with; give the machine a larger disk, or make room",
            known.free / MIB,
            BEGIN / MIB
        ));
    }
    // Whoever has run and lost its disk, or was being added when it was interrupted, joins without being told so.
    let counted = known.agreed.as_ref().is_ok_and(|agreed| agreed.iter().any(|member| member.is_at(&known.own)));
    if known.join || counted || mine().any(|member| member.started() || member.learner) {
        return join(known);
    }
    let silent: Vec<&str> = known
        .sights
        .iter()
        .filter_map(|sight| match sight {
            Sight::Silent(why) => Some(why.as_str()),
            _ => None,
        })
        .collect();
    let same = |list: &Vec<Member>| {
        list.len() == known.all.len() && known.all.iter().all(|url| list.iter().any(|member| member.is_at(url)))
    };
    match known.agreed.iter().chain(lists).find(|list| !same(list)) {
        // One of them may have the store, in which this machine's disk is the lost one: those that list this machine as
        // one that has not started may know no better.
        None if !silent.is_empty() => Step::Wait(format!(
            "a store begins when all masters are there: {}; start those, or set join-etcd: true where the store runs \
             already",
            silent.join("; ")
        )),
        // Nobody has begun, or they have, and wait for each other.
        None => Step::Begin,
        Some(list) => Step::Wait(format!(
            "the store has the members {}, and this master is told of {}; for it to join them, set join-etcd: true in its \
             user-data, or correct api in that of all masters",
            hosts(list),
            hosts_of(&known.all)
        )),
    }
}

fn join(known: &Known) -> Step {
    let agreed = match &known.agreed {
        Ok(agreed) => agreed,
        Err(why) => {
            return Step::Wait(format!(
                "no majority of the store's members answers, so none can join: {why}; start their machines, or, where those \
                 are lost for good, end all masters and restore a backup"
            ));
        }
    };
    let at_loopback = |member: &&Member| !is_loopback(&known.own) && is_loopback(&url_of(member));
    if let Some(member) = agreed.iter().find(at_loopback) {
        let name = &member.name;
        return Step::Wait(format!(
            "the member {name} says of itself only 127.0.0.1; its master is to start anew first"
        ));
    }
    match agreed.iter().find(|member| member.is_at(&known.own)) {
        Some(member) if member.started() => Step::Remove(member.id),
        Some(_) => Step::Join(agreed.clone()),
        None => match agreed.iter().find(|member| member.learner) {
            Some(other) => Step::Wait(format!(
                "another member is joining, {}, and etcd takes one at a time; if its machine is gone for good, remove it \
                 from the store",
                other.host()
            )),
            None => Step::Add,
        },
    }
}

fn url_of(member: &Member) -> String {
    member.peer_urls.first().cloned().unwrap_or_default()
}

fn host(url: &str) -> String {
    Member { id: 0, name: String::new(), peer_urls: vec![url.into()], client_urls: vec![], learner: false }.host()
}

fn is_loopback(url: &str) -> bool {
    host(url).parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn hosts(members: &[Member]) -> String {
    members.iter().map(Member::host).collect::<Vec<_>>().join(", ")
}

/// `NAME=URL,…`: a member is called by its master's address.
fn initial_cluster<'a>(urls: impl Iterator<Item = &'a str>) -> String {
    urls.map(|url| format!("{}={url}", host(url))).collect::<Vec<_>>().join(",")
}

/// The flags of etcd that follow from a step; none: it does not start yet.
fn flags(step: &Step, all: &[String]) -> Option<[String; 2]> {
    let (members, state) = match step {
        // Of a member with data etcd only wants to find its own name there.
        Step::GoOn | Step::Begin => (initial_cluster(all.iter().map(String::as_str)), "new"),
        Step::Join(members) => {
            let urls: Vec<String> = members.iter().map(url_of).collect();
            (initial_cluster(urls.iter().map(String::as_str)), "existing")
        }
        _ => return None,
    };
    Some([format!("--initial-cluster={members}"), format!("--initial-cluster-state={state}")])
}

/// Says each thing once, in the log and to init.
#[derive(Default)]
struct Says(String);

impl Says {
    fn say(&mut self, what: &str) {
        if self.0 != what {
            eprintln!("{what}");
            // A line break would be another message.
            crate::notify::send(&format!("STATUS={}", what.replace('\n', " ")));
            self.0 = what.to_owned();
        }
    }
}

/// Becomes etcd; comes back only with why it could not.
pub(crate) fn member(args: &MemberArgs) -> anyhow::Result<String> {
    let name = host(&args.peer_url);
    anyhow::ensure!(!name.is_empty(), settings(format!("--peer-url {} is no URL", args.peer_url)));
    let Some((program, rest)) = args.command.split_first() else {
        return Err(settings("no etcd is named behind --".into()));
    };
    let flags = super::commands::block_on(settle(args))?;
    std::fs::write(&args.begun, "").with_context(|| format!("writing {}", args.begun.display()))?;
    let error = Command::new(program)
        .arg0("etcd")
        .args(rest)
        .arg(format!("--name={name}"))
        .arg(format!("--data-dir={}", args.data_dir.display()))
        .arg(format!("--initial-advertise-peer-urls={}", args.peer_url))
        .args(flags)
        .exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

fn settings(why: String) -> anyhow::Error {
    store::StoreError::Settings(why).into()
}

/// Takes step after step until etcd may start.
async fn settle(args: &MemberArgs) -> anyhow::Result<[String; 2]> {
    let mut says = Says::default();
    // Of a removal that was interrupted.
    remove(&gone(args)).with_context(|| format!("removing {}", gone(args).display()))?;
    loop {
        let (known, membership) = look(args).await?;
        let step = decide(&known);
        if step == Step::GoOn {
            remove(&joins(args)).with_context(|| format!("removing {}", joins(args).display()))?;
        }
        if let Some(flags) = flags(&step, &known.all) {
            says.say(&starts(&step, &known));
            return Ok(flags);
        }
        let done = match (&step, &membership) {
            (Step::Remove(id), Some(membership)) => {
                says.say("the data of this master's member is lost: the member is removed, and joins anew");
                // Once it is removed, nobody knows any more that it is to join.
                note(&joins(args))?;
                membership.remove(*id).await
            }
            (Step::Add, Some(membership)) => membership.add_learner(&known.own).await,
            (Step::Clear, _) => {
                says.say("this master's member was removed from the store: its data is removed, and it joins anew");
                clear(args)?;
                Ok(())
            }
            (Step::Wait(why), _) => {
                says.say(&format!("waits: {why}"));
                tokio::time::sleep(PAUSE).await;
                Ok(())
            }
            _ => Ok(()),
        };
        // etcd refuses what would cost it its majority, and more than one learner: later it may not.
        if let Err(error) = done {
            says.say(&format!("waits until the store takes this master's member: {error}"));
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What etcd starts with; it stays to be read when etcd has ended.
fn starts(step: &Step, known: &Known) -> String {
    if known.free < SEGMENT {
        return format!(
            "the disk has {} MiB free: etcd ends when it finds no {} MiB for the next piece of its log; give the machine a \
             larger disk, or make room",
            known.free / MIB,
            SEGMENT / MIB
        );
    }
    match step {
        Step::GoOn => "etcd goes on with its data".into(),
        Step::Begin => format!("etcd begins a store of {}", hosts_of(&known.all)),
        _ => "etcd joins the members that run".into(),
    }
}

fn hosts_of(urls: &[String]) -> String {
    urls.iter().map(|url| host(url)).collect::<Vec<_>>().join(", ")
}

async fn look(args: &MemberArgs) -> anyhow::Result<(Known, Option<Membership>)> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&args.data_dir);
    made.with_context(|| format!("making {}", args.data_dir.display()))?;
    let data = store::data_of(&args.data_dir)?;
    let identity = &args.identity.to(Vec::new());
    let told = args.masters.as_deref().map(Told::read).transpose()?;
    let untold = matches!(told, Some(None));
    let told = told.flatten().unwrap_or_default();
    let others: Vec<&String> = args.others.iter().chain(&told.peers).filter(|url| **url != args.peer_url).collect();
    let perhaps = args.perhaps.iter().map(|url| async move {
        match store::look(url, identity).await {
            // Of a machine that is not made yet.
            Sight::Silent(_) => Sight::Nobody,
            sight => sight,
        }
    });
    let looks = join_all(others.iter().map(|url| store::look(url, identity)));
    let (mut sights, perhaps) = futures::future::join(looks, join_all(perhaps)).await;
    sights.extend(perhaps);
    let endpoints = clients(&sights, &args.peer_url);
    let (agreed, membership) = if endpoints.is_empty() {
        (Err(reasons(&sights, others.iter().copied().chain(&args.perhaps))), None)
    } else {
        let membership = Membership::new(&args.identity.to(endpoints))?;
        let agreed = match tokio::time::timeout(MAJORITY, membership.list()).await {
            Ok(Ok(list)) => Ok(list),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} seconds", MAJORITY.as_secs())),
        };
        (agreed, Some(membership))
    };
    let disk = rustix::fs::statvfs(&args.data_dir);
    let disk = disk.with_context(|| format!("asking for the room of {}", args.data_dir.display()))?;
    let known = Known {
        own: args.peer_url.clone(),
        all: std::iter::once(&args.peer_url).chain(others).cloned().collect(),
        untold,
        join: args.join || told.join || data.is_none() && joins(args).exists(),
        data,
        begun: args.begun.exists(),
        sights,
        agreed,
        free: disk.f_bavail.saturating_mul(disk.f_frsize),
    };
    Ok((known, membership))
}

/// Where clients reach those that have ever run, but for the one at our own peer URL.
fn clients(sights: &[Sight], own: &str) -> Vec<String> {
    let mut urls: Vec<String> = sights
        .iter()
        .filter_map(|sight| if let Sight::Listed(list) = sight { Some(list) } else { None })
        .flatten()
        .filter(|member| !member.is_at(own) && !member.learner)
        .filter_map(|member| member.client_urls.last().cloned())
        .collect();
    urls.sort();
    urls.dedup();
    urls
}

fn reasons<'a>(sights: &[Sight], urls: impl Iterator<Item = &'a String>) -> String {
    let each = sights.iter().zip(urls).map(|(sight, url)| match sight {
        Sight::Listed(_) => format!("{url}: it knows no member that has ever run"),
        Sight::Nobody => format!("{url}: no etcd runs there"),
        Sight::Silent(why) => why.clone(),
    });
    let each = each.collect::<Vec<_>>().join("; ");
    if each.is_empty() { "no other master is known".into() } else { each }
}

/// A file beside the data, while a member that lost its own joins anew, also without being told to.
fn joins(args: &MemberArgs) -> PathBuf {
    args.data_dir.with_added_extension("joins")
}

fn note(path: &Path) -> anyhow::Result<()> {
    let written = std::fs::File::create(path).and_then(|file| file.sync_all());
    let folder = path.parent().unwrap_or(Path::new("/"));
    written
        .and_then(|()| std::fs::File::open(folder)?.sync_all())
        .with_context(|| format!("writing {}", path.display()))
}

/// Removes a file or a folder, if it is there.
fn remove(path: &Path) -> std::io::Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Where data that counts no more is moved before it is removed.
fn gone(args: &MemberArgs) -> PathBuf {
    args.data_dir.join("gone")
}

/// Removes a member's data. It is moved away first: half of it would be taken for all of it.
fn clear(args: &MemberArgs) -> anyhow::Result<()> {
    let (dir, gone) = (&args.data_dir, gone(args));
    let cleared = remove(&gone)
        .and_then(|()| std::fs::rename(dir.join("member"), &gone))
        .and_then(|()| std::fs::File::open(dir)?.sync_all())
        .and_then(|()| remove(&gone));
    cleared.with_context(|| format!("removing the data of a member that was removed from {}", dir.display()))
}

/// Waits until this member has a vote and is known by its address.
pub(crate) fn promote(args: &PromoteArgs) -> anyhow::Result<String> {
    super::commands::block_on(async {
        let mut says = Says::default();
        loop {
            match promoted(args).await {
                Ok(()) => return Ok(format!("the member at {} has its vote", args.peer_url)),
                Err(error) => says.say(&format!("waits for the store: {error:#}")),
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

async fn promoted(args: &PromoteArgs) -> anyhow::Result<()> {
    let own = Membership::new(&args.identity.to(vec![args.etcd_server.clone()]))?;
    let status = own.status().await?;
    anyhow::ensure!(status.leader != 0, "no majority of its members is there");
    if !status.learner {
        let list = own.list().await?;
        let member = list.iter().find(|member| member.id == status.id).context("this member is not in its list")?;
        // It was the only one, and had no address that others could reach.
        if !member.is_at(&args.peer_url) {
            own.update(member.id, &args.peer_url).await?;
        }
        return Ok(());
    }
    // A learner answers nothing but what it is; its peer port says who has a vote.
    let sight = store::look(&args.peer_url, &args.identity.to(Vec::new())).await;
    let voters = clients(std::slice::from_ref(&sight), &args.peer_url);
    anyhow::ensure!(!voters.is_empty(), "this member does not know the others yet");
    Membership::new(&args.identity.to(voters))?.promote(status.id).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "https://10.77.0.10:2380";

    fn url(number: u8) -> String {
        format!("https://10.77.0.1{number}:2380")
    }

    fn started(number: u8) -> Member {
        let client_urls = vec![format!("https://10.77.0.1{number}:2379")];
        Member { id: 100 + u64::from(number), client_urls, ..added(number) }
    }

    fn added(number: u8) -> Member {
        Member {
            id: 200 + u64::from(number),
            name: String::new(),
            peer_urls: vec![url(number)],
            client_urls: vec![],
            learner: false,
        }
    }

    fn learner(number: u8) -> Member {
        Member { learner: true, ..added(number) }
    }

    /// A machine with an empty disk, among three, whose others are not there.
    fn fresh() -> Known {
        Known {
            own: OWN.into(),
            all: vec![url(0), url(1), url(2)],
            join: false,
            untold: false,
            data: None,
            begun: false,
            sights: vec![Sight::Nobody, Sight::Nobody],
            agreed: Err("nobody runs".into()),
            free: 10 * BEGIN,
        }
    }

    /// Where the others run, and agree on this.
    fn among(list: &[Member]) -> Known {
        Known { sights: vec![Sight::Listed(list.to_vec()), Sight::Nobody], agreed: Ok(list.to_vec()), ..fresh() }
    }

    fn waits(known: &Known, why: &str) {
        match decide(known) {
            Step::Wait(sentence) => assert!(sentence.contains(why), "{sentence}"),
            step => panic!("{step:?} instead of waiting: {why}"),
        }
    }

    #[test]
    fn a_store_begins_only_where_there_can_be_none() {
        assert_eq!(decide(&fresh()), Step::Begin);
        let alone = Known { all: vec![url(0)], sights: vec![], ..fresh() };
        assert_eq!(decide(&alone), Step::Begin);
        let silent =
            Known { sights: vec![Sight::Nobody, Sight::Silent("https://10.77.0.12:2380: no route".into())], ..fresh() };
        waits(&silent, "10.77.0.12:2380: no route");
        // Another has begun the same one, and waits for us.
        let together = Known { agreed: Err("no leader".into()), ..among(&[added(0), added(1), added(2)]) };
        assert_eq!(decide(&together), Step::Begin);
        let mut late_third = together.clone();
        late_third.sights[1] = Sight::Silent("https://10.77.0.12:2380: no route".into());
        waits(&late_third, "10.77.0.12:2380: no route");
        // Two of three have begun, and are a majority.
        let late = [added(0), started(1), started(2)];
        assert_eq!(decide(&among(&late)), Step::Join(late.to_vec()));
        waits(&Known { agreed: Ok(vec![started(1), started(2)]), ..together }, "set join-etcd: true");
        waits(&among(&[started(1), started(2)]), "set join-etcd: true");
        let told_otherwise = Known { agreed: Err("no leader".into()), ..among(&[added(0), added(1)]) };
        waits(&told_otherwise, "correct api");
        waits(&Known { join: true, ..fresh() }, "nobody runs");
        waits(&Known { untold: true, all: vec![url(0)], sights: vec![], ..fresh() }, "was not told yet");
        waits(&Known { free: BEGIN - 1, ..fresh() }, "larger disk");
    }

    #[test]
    fn whoever_is_told_to_or_lost_its_disk_joins() {
        let told = |list: &[Member]| Known { join: true, ..among(list) };
        assert_eq!(decide(&told(&[started(1), started(2)])), Step::Add);
        let others = [started(1), started(2), learner(0)];
        assert_eq!(decide(&told(&others)), Step::Join(others.to_vec()), "it was added, and then interrupted");
        assert_eq!(decide(&among(&others)), Step::Join(others.to_vec()));
        for known in [told(&[started(0), started(1), started(2)]), among(&[started(0), started(1), started(2)])] {
            assert_eq!(decide(&known), Step::Remove(100));
            waits(&Known { agreed: Err("no leader".into()), ..known }, "no leader");
        }
        waits(&told(&[started(1), learner(2)]), "10.77.0.12");
        let mut alone = started(1);
        alone.peer_urls = vec!["https://127.0.0.1:2380".into()];
        alone.name = "master-2".into();
        waits(&told(&[alone]), "master-2 says of itself only 127.0.0.1");
    }

    #[test]
    fn data_goes_on_unless_a_majority_says_that_it_is_gone() {
        let data = Some(EtcdData { member: Some(100) });
        for known in [
            fresh(),
            Known { untold: true, ..fresh() },
            Known { join: true, free: 0, ..fresh() },
            among(&[started(0), started(1)]),
        ] {
            assert_eq!(decide(&Known { data, ..known }), Step::GoOn);
        }
        let removed = Known { data, ..among(&[started(1), started(2)]) };
        waits(&removed, "for it to join anew, set join-etcd: true");
        waits(&Known { join: true, begun: true, ..removed.clone() }, "restart the machine");
        assert_eq!(decide(&Known { join: true, ..removed.clone() }), Step::Clear);
        let one_says_so = Known { join: true, agreed: Err("no leader".into()), ..removed.clone() };
        assert_eq!(decide(&one_says_so), Step::GoOn, "a member that is behind is not believed");
        assert_eq!(decide(&Known { data: Some(EtcdData { member: None }), join: true, ..removed }), Step::GoOn);
        // Another machine has taken its place.
        let replaced = Known { data, ..among(&[added(0), started(1)]) };
        waits(&replaced, "was removed from the store");
    }

    #[test]
    fn a_full_disk_is_what_is_said_of_an_etcd_that_ended() {
        let full = starts(&Step::GoOn, &Known { free: 3 * MIB, ..fresh() });
        assert!(full.contains("3 MiB free") && full.contains("61 MiB"), "{full}");
        assert_eq!(starts(&Step::GoOn, &fresh()), "etcd goes on with its data");
        assert_eq!(starts(&Step::Begin, &fresh()), "etcd begins a store of 10.77.0.10, 10.77.0.11, 10.77.0.12");
    }

    #[test]
    fn etcd_is_told_who_is_there() {
        let all = [url(0), url(1)];
        let told = |step| flags(&step, &all).map(|flags| flags.join(" "));
        let both = "--initial-cluster=10.77.0.10=https://10.77.0.10:2380,10.77.0.11=https://10.77.0.11:2380";
        assert_eq!(told(Step::Begin), Some(format!("{both} --initial-cluster-state=new")));
        assert_eq!(
            told(Step::Join(vec![learner(0), started(1)])),
            Some(format!("{both} --initial-cluster-state=existing"))
        );
        assert_eq!(told(Step::Add), None);
        assert_eq!(initial_cluster(["https://[fd00::1]:2380"].into_iter()), "fd00::1=https://[fd00::1]:2380");
    }
}
