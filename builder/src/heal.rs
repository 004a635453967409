//! `kimg heal`: broken workers are replaced ([`workers`]); and `kimg heal master`: a master that was lost with its disk is
//! made anew, and gets its store back from a backup.
//!
//! Between the two it serves nothing ([`Data::AwaitsBackup`]): to workers that see an empty store, all their pods are
//! ones that nobody wants.

pub mod workers;

use crate::backup::away::Away;
use crate::backup::{self, Choice, Found, here};
use crate::config::Settings;
use crate::input::{self, BadInput};
use crate::machines::{Data, Machines, Order, local::short};
use crate::roll::Clock;
use crate::roll::api::Kube;
use crate::roll::engine::Stop;
use crate::roll::members::Members;
use anyhow::{Context, Result, bail};
use node_api::Backup;
use std::time::Duration;

const POLL: Duration = Duration::from_millis(500);
/// How often a line says what is waited for.
const SAY: Duration = Duration::from_secs(30);

/// What is known of the master before anything is done.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    /// Something answers where its API server is.
    pub answers: bool,
    /// Its disk is there.
    pub has_disk: bool,
}

impl Lost {
    /// Why it is not lost, if so.
    fn is_not(self) -> Option<&'static str> {
        match self {
            Lost { answers: true, .. } => Some("its API server answers"),
            Lost { has_disk: true, .. } => Some("its disk is there, and `kimg up` starts it from that"),
            Lost { .. } => None,
        }
    }
}

/// Whether it may be made anew.
///
/// # Errors
/// Bad input: it is not lost, and nobody said that its disk shall go.
pub fn check(master: &str, lost: Lost, discard_disk: bool) -> Result<()> {
    let Some(why) = lost.is_not().filter(|_| !discard_disk) else { return Ok(()) };
    input::bad(format!(
        "{master} is not lost: {why}. To put a backup in the place of a store that is there, say `kimg backup restore`; \
         where the disk itself is damaged, add --discard-disk: it is set aside, and what is newer than the backup is lost"
    ))
}

/// The same for one of several masters.
///
/// # Errors
/// As [`check`].
pub fn check_member(master: &str, lost: Lost, discard_disk: bool) -> Result<()> {
    let Some(why) = lost.is_not().filter(|_| !discard_disk) else { return Ok(()) };
    input::bad(format!(
        "{master} is not lost: {why}. Where the disk itself is damaged, add --discard-disk: it gets a new one, and all data \
         from the other masters"
    ))
}

/// Whether all masters may be made anew from a copy, as one cannot join the others.
///
/// # Errors
/// `why` it cannot, and what is left to do: there are disks that have the store.
pub fn check_all_lost(master: &str, why: &str, disks: &[&str], discard_disk: bool, dir: &str) -> Result<()> {
    if disks.is_empty() || discard_disk {
        return Ok(());
    }
    bail!(
        "{master} cannot join the other masters, and nothing was touched: {why}. `kimg up{dir}` starts those whose disks are \
         there ({}), and more than half of all must answer. Where that many are lost, `kimg heal master --discard-disk{dir}` \
         makes all masters anew with the newest copy of the store, and sets these disks aside",
        disks.join(", ")
    )
}

/// Whether a backup may take the place of a store that several masters have.
///
/// # Errors
/// One of them serves: there is a majority, which has more than any backup.
pub fn check_none_serves<'a>(
    mut masters: impl Iterator<Item = &'a str>,
    members: &dyn Members,
    dir: &str,
) -> Result<()> {
    let Some(one) = masters.find(|master| members.serves(master).is_ok()) else { return Ok(()) };
    bail!(
        "the API server of {one} answers, so the store has its majority, and nothing was touched: no backup takes its place. \
         Wait until `kimg store members{dir}` says that the others are healthy (`kimg up{dir}` starts those that do not run), \
         or give each lost one a new disk by its own name, one at a time"
    )
}

/// A backup, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Copy {
    /// On a worker.
    Worker(Found),
    /// In the cluster's folder.
    Here(Backup),
    /// Where `[backup] to` says.
    Away(Backup, String),
}

impl Copy {
    /// The newest one that fits: of the workers, and, where no worker was named, of the cluster's folder and of where
    /// `[backup] to` says.
    ///
    /// # Errors
    /// There is none, and why.
    pub fn find(settings: &Settings, choice: &Choice, away: Option<&(Vec<Backup>, Away)>) -> Result<Copy> {
        // A master that was lost left workers behind, which have what is newest.
        let elsewhere = match choice.node {
            Some(_) => None,
            None => Copy::elsewhere(settings, choice.name.as_deref(), away)?,
        };
        Copy::newest(choice.find(settings), elsewhere)
    }

    /// The newest one that is not on the cluster's machines, or the one of this name.
    ///
    /// # Errors
    /// There is none, and why.
    pub fn of_folder_or_away(
        settings: &Settings,
        name: Option<&str>,
        away: Option<&(Vec<Backup>, Away)>,
    ) -> Result<Copy> {
        if let Some(copy) = Copy::elsewhere(settings, name, away)? {
            return Ok(copy);
        }
        let places = match away {
            Some((_, away)) => format!("backups/ and {} have", away.shown()),
            None => "cluster.toml names no place of copies ([backup] to), and backups/ has".into(),
        };
        let which = name.map_or("copy of the store".to_owned(), |name| format!("copy {name}"));
        input::bad(format!("{places} no {which}; name a file: `kimg restore FILE`"))
    }

    fn elsewhere(settings: &Settings, name: Option<&str>, away: Option<&(Vec<Backup>, Away)>) -> Result<Option<Copy>> {
        let here = here::list(settings)?.into_iter().map(Copy::Here);
        let there = away
            .into_iter()
            .flat_map(|(list, away)| list.iter().map(|backup| Copy::Away(backup.clone(), away.shown().to_owned())));
        let fits = |copy: &Copy| name.is_none_or(|name| copy.backup().name() == name);
        Ok(here.chain(there).filter(fits).max_by_key(Copy::rank))
    }

    /// What a wrong clock has dated ahead is nobody's newest.
    fn rank(&self) -> (bool, Backup) {
        (!backup::is_ahead(self.backup(), backup::now_ms()), self.backup().clone())
    }

    fn backup(&self) -> &Backup {
        match self {
            Copy::Worker(found) => &found.backup,
            Copy::Here(backup) | Copy::Away(backup, _) => backup,
        }
    }

    fn newest(worker: Result<Found>, elsewhere: Option<Copy>) -> Result<Copy> {
        match (worker.map(Copy::Worker), elsewhere) {
            (Ok(worker), Some(elsewhere)) if worker.rank() < elsewhere.rank() => Ok(elsewhere),
            (Err(_), Some(elsewhere)) => Ok(elsewhere),
            (worker, _) => worker,
        }
    }

    /// For people.
    pub fn shown(&self) -> String {
        let backup = self.backup();
        let place = match self {
            Copy::Worker(found) => format!("of {}", found.node),
            Copy::Here(_) => "of the cluster's folder".to_owned(),
            Copy::Away(_, place) => format!("of {place}"),
        };
        format!("backup {} {place} ({} old)", backup.name(), backup::age_of(backup))
    }

    /// Fetched and decrypted: a snapshot of the store.
    ///
    /// # Errors
    /// It cannot be had, or is damaged.
    pub fn open(&self, settings: &Settings, away: Option<&Away>) -> Result<Vec<u8>> {
        match self {
            Copy::Away(backup, _) => away.context("nothing says where it is")?.read(settings, backup),
            Copy::Worker(found) => backup::fetch(settings, found),
            Copy::Here(backup) => here::read(settings, backup),
        }
    }
}

/// What healing works on and with.
pub struct Healer<'a> {
    /// The API server that is to be.
    pub kube: Kube<'a>,
    /// The machines.
    pub machines: &'a mut dyn Machines,
    /// Gives the snapshot to the master's node API.
    pub restore: &'a dyn Fn() -> Result<()>,
    /// The time.
    pub clock: &'a dyn Clock,
    /// How long each of its parts may take.
    pub limit: Duration,
    /// Where lines about what happens go.
    pub say: &'a dyn Fn(&str),
}

impl std::fmt::Debug for Healer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Healer").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Healer<'_> {
    /// Makes the master anew from an image, and restores the snapshot. Called again after it was interrupted, it begins
    /// anew.
    ///
    /// # Errors
    /// The machine cannot be made or does not come up, or the snapshot is refused.
    pub fn restore(&mut self, master: &str, image: &str) -> Result<()> {
        (self.say)(&format!("{master}: starts with a new disk from image {}", short(image)));
        self.machines.rebuild(&Order { node: master, image, token: None, data: Data::AwaitsBackup })?;
        self.give(master, &|| false)
    }

    /// Restores the snapshot on a master that waits for one.
    ///
    /// # Errors
    /// It does not come up, the snapshot is refused, or the user wants an end.
    pub fn give(&self, master: &str, stop: &dyn Fn() -> bool) -> Result<()> {
        self.until(master, "takes the backup", |healer| {
            if stop() {
                return Err(Stop.into());
            }
            // It serves nothing without a store, so the answer was lost: what was written since must not be.
            if healer.kube.check_ready().is_ok() {
                return Ok(None);
            }
            match (healer.restore)() {
                Ok(()) => Ok(None),
                // It is there, and says no.
                Err(error) if error.is::<BadInput>() => Err(error),
                Err(error) => Ok(Some(format!("{error:#}"))),
            }
        })?;
        (self.say)(&format!("{master}: the backup is restored"));
        Ok(())
    }

    /// Waits until all `nodes` are Ready.
    ///
    /// # Errors
    /// One of them is not for too long.
    pub fn wait_ready(&self, master: &str, nodes: &[&str]) -> Result<()> {
        self.until(master, "is whole", |healer| {
            Ok(healer.missing(nodes).unwrap_or_else(|error| Some(format!("{error:#}"))))
        })
    }

    /// Waits until none of the `nodes` but the master is Ready: they have nobody to report to.
    ///
    /// # Errors
    /// One of them is, for too long.
    pub fn wait_missed(&self, master: &str, nodes: &[&str]) -> Result<()> {
        self.until(master, "misses the others", |healer| {
            let known = healer.kube.nodes()?;
            let there = known.iter().find(|node| node.ready && node.name != master && nodes.contains(&&*node.name));
            Ok(there.map(|node| format!("{} is shown as Ready", node.name)))
        })
    }

    /// The first node that is not Ready from the boot that its machine is in: the store shows them all as they once were.
    fn missing(&self, nodes: &[&str]) -> Result<Option<String>> {
        let known = self.kube.nodes()?;
        for name in nodes {
            let Some(node) = known.iter().find(|node| node.name == *name) else {
                return Ok(Some(format!("{name} has not joined")));
            };
            if !node.ready {
                return Ok(Some(format!("{name} is not Ready: {}", node.reason)));
            }
            if self.machines.boot(name).as_ref() != Some(&node.boot) {
                return Ok(Some(format!("{name} has not reported yet")));
            }
        }
        Ok(None)
    }

    /// Tries until nothing speaks against it.
    fn until(&self, master: &str, what: &str, attempt: impl Fn(&Self) -> Result<Option<String>>) -> Result<()> {
        let begun = self.clock.now();
        let mut said = begun;
        loop {
            let Some(why) = attempt(self)? else { return Ok(()) };
            let now = self.clock.now();
            let lasted = |since| Duration::try_from(now.duration_since(since)).unwrap_or_default();
            if lasted(begun) > self.limit {
                let console: Vec<String> =
                    self.machines.console(master).iter().map(|line| format!("  {line}")).collect();
                bail!(
                    "{why}, and that for {} s; the console of {master} says:\n{}",
                    self.limit.as_secs(),
                    console.join("\n")
                );
            }
            if lasted(said) > SAY {
                (self.say)(&format!("until {master} {what}: {why}"));
                said = now;
            }
            self.clock.sleep(POLL);
        }
    }
}

/// The image to make the master from: the one that it had, where that is kept, else the one that was built.
///
/// # Errors
/// There is neither.
pub fn image(
    machines: &mut dyn Machines,
    master: &str,
    built: impl FnOnce() -> Result<crate::local::up::ImageFile>,
) -> Result<String> {
    let listed = machines.list()?;
    let known = listed.into_iter().find(|machine| machine.node == master);
    let known = known.with_context(|| format!("there never was a machine {master} here; `kimg up` makes one"))?;
    if machines.holds(&known.image)? {
        return Ok(known.image);
    }
    let built = built()?;
    machines.offer(&built)?;
    Ok(built.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roll::fake::Fake;
    use node_api::{StoreEngine, StoreMember};
    use std::cell::Cell;

    #[test]
    fn only_what_is_lost_is_healed() {
        let lost = |answers, has_disk| Lost { answers, has_disk };
        check("m", lost(false, false), false).expect("lost");
        for (lost, word) in
            [(lost(true, true), "answers"), (lost(true, false), "answers"), (lost(false, true), "kimg up")]
        {
            let error = check("m", lost, false).expect_err("not lost");
            assert!(error.is::<BadInput>() && error.to_string().contains(word), "{error}");
            check("m", lost, true).expect("somebody has decided");
        }
    }

    /// The one whose API server answers.
    struct Serves(&'static str);

    impl Members for Serves {
        fn list(&self) -> Result<Vec<StoreMember>> {
            bail!("not asked")
        }

        fn remove(&self, _: &str) -> Result<()> {
            bail!("not asked")
        }

        fn serves(&self, node: &str) -> Result<()> {
            if node == self.0 { Ok(()) } else { bail!("connecting: refused") }
        }

        fn move_store(&self, _: &str, _: StoreEngine) -> Result<String> {
            bail!("not asked")
        }
    }

    #[test]
    fn one_of_several_masters_is_healed_only_where_it_is_lost_and_others_live() {
        let lost = |answers, has_disk| Lost { answers, has_disk };
        check_member("m2", lost(false, false), false).expect("lost");
        for (lost, word) in [(lost(true, true), "answers"), (lost(false, true), "kimg up")] {
            let error = check_member("m2", lost, false).expect_err("not lost");
            assert!(error.is::<BadInput>() && error.to_string().contains(word), "{error}");
            assert!(!error.to_string().contains("backup"), "nothing is restored: {error}");
            check_member("m2", lost, true).expect("somebody has decided");
        }
        let why = "member 10.77.0.1 of etcd does not answer";
        let all = |disks: &[&str], discard| check_all_lost("m2", why, disks, discard, " --dir x");
        let said = all(&["m1"], false).expect_err("refused").to_string();
        for part in [
            "nothing was touched: member 10.77.0.1",
            "`kimg up --dir x`",
            "(m1)",
            "heal master --discard-disk --dir x`",
        ] {
            assert!(said.contains(part), "{said}");
        }
        all(&[], false).expect("all are lost");
        all(&["m1"], true).expect("somebody has decided");
        check_none_serves(["m1", "m2"].into_iter(), &Serves("m3"), "").expect("nobody serves");
        let error = check_none_serves(["m1", "m2"].into_iter(), &Serves("m2"), " --dir x").expect_err("m2 serves");
        for part in ["of m2 answers", "nothing was touched", "`kimg up --dir x`"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn the_newest_copy_is_taken() {
        let at = |second: u64| Backup { taken_unix_ms: second * 1000, revision: 7, bytes: 1 };
        let worker = |second| Ok(Found { node: "w".into(), backup: at(second) });
        let none = || Err(anyhow::anyhow!("no worker keeps a backup"));
        assert_eq!(
            Copy::newest(worker(5), Some(Copy::Here(at(4)))).expect("one"),
            Copy::Worker(worker(5).expect("one"))
        );
        assert_eq!(Copy::newest(worker(5), None).expect("one"), Copy::Worker(worker(5).expect("one")));
        assert_eq!(Copy::newest(worker(5), Some(Copy::Here(at(6)))).expect("one"), Copy::Here(at(6)));
        assert_eq!(Copy::newest(none(), Some(Copy::Here(at(6)))).expect("one"), Copy::Here(at(6)));
        let there = Copy::Away(at(7), "s3://b".into());
        assert_eq!(Copy::newest(worker(5), Some(there.clone())).expect("one"), there);
        // Of a year that is still to come.
        let ahead = Copy::Away(Backup { taken_unix_ms: u64::MAX / 2, ..at(8) }, "s3://b".into());
        assert_eq!(Copy::newest(worker(5), Some(ahead)).expect("one"), Copy::Worker(worker(5).expect("one")));
        assert!(Copy::newest(none(), None).is_err());
        assert!(Copy::Here(at(6)).shown().starts_with("backup 6-7.age of the cluster's folder ("));
    }

    #[test]
    fn whoever_has_lost_all_takes_the_newest_that_is_elsewhere() {
        let dir = tempfile::tempdir().expect("dir");
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n[backup]\nto = \"away\"\n";
        let settings = crate::config::parse(std::path::Path::new("c"), text, dir.path()).expect("valid");
        let client = crate::web::Client::new(None).expect("client");
        let away = || {
            let away = Away::open(&settings, &client, &|_| None).expect("open").expect("named");
            Some((away.list().expect("list"), away))
        };
        let error = Copy::of_folder_or_away(&settings, None, away().as_ref()).expect_err("none").to_string();
        assert!(error.contains("no copy of the store; name a file: `kimg restore FILE`"), "{error}");
        let error = Copy::of_folder_or_away(&settings, None, None).expect_err("none").to_string();
        assert!(error.contains("[backup] to"), "{error}");
        let ahead = backup::now_ms() / 1000 + 100_000;
        for (folder, second) in [("backups", 5), ("away", 6), ("away", ahead)] {
            std::fs::create_dir_all(dir.path().join(folder)).expect("folder");
            std::fs::write(dir.path().join(folder).join(format!("{second}-7.age")), "x").expect("copy");
        }
        let shown =
            |name: Option<&str>| Copy::of_folder_or_away(&settings, name, away().as_ref()).expect("one").shown();
        assert!(shown(None).starts_with("backup 6-7.age of ") && shown(None).contains("/away"), "{}", shown(None));
        assert!(shown(Some("5-7.age")).contains("5-7.age of the cluster's folder"));
        assert!(shown(Some(&format!("{ahead}-7.age"))).contains("/away"));
    }

    /// A cluster whose master and store are gone, and what a backup has of the store.
    fn lost() -> (Fake, std::collections::BTreeMap<String, serde_json::Value>) {
        let fake = Fake::with_master(2);
        let objects = fake.0.borrow().objects.clone();
        fake.0.borrow_mut().machines.get_mut("m").expect("master").running = false;
        fake.sleep(Duration::from_secs(100));
        (fake, objects)
    }

    fn heal(fake: &Fake, restore: &dyn Fn() -> Result<()>) -> Result<()> {
        let mut machines = fake.clone();
        let limit = Duration::from_secs(60);
        let mut healer =
            Healer { kube: Kube(fake), machines: &mut machines, restore, clock: fake, limit, say: &|_| () };
        healer.restore("m", "old")?;
        healer.wait_ready("m", &["m", "w1", "w2"])
    }

    #[test]
    fn a_lost_master_comes_back_and_pods_run_on() {
        let (fake, objects) = lost();
        let asked = Cell::new(0);
        let restore = || {
            // Its node API is not there at once.
            if asked.replace(asked.get() + 1) < 5 {
                bail!("connecting: refused");
            }
            let mut world = fake.0.borrow_mut();
            world.objects = objects.clone();
            world.machines.get_mut("m").expect("master").awaits_backup = false;
            Ok(())
        };
        heal(&fake, &restore).expect("healed");
        let world = fake.0.borrow();
        assert!(world.faults.is_empty(), "{:?}", world.faults);
        assert!(world.machines["m"].rebuilt == 1 && world.machines["w1"].rebuilt == 0);
        assert!(asked.get() == 6 && !world.machines["m"].kept_data);
    }

    #[test]
    fn a_backup_that_was_taken_without_an_answer_is_not_restored_twice() {
        let (fake, objects) = lost();
        let (asked, begun) = (Cell::new(0), fake.now());
        let restore = || {
            if fake.now().duration_since(begun).as_secs() < 15 {
                bail!("connecting: refused");
            }
            asked.set(asked.get() + 1);
            let mut world = fake.0.borrow_mut();
            world.objects = objects.clone();
            world.machines.get_mut("m").expect("master").awaits_backup = false;
            bail!("the connection was cut");
        };
        heal(&fake, &restore).expect("healed");
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn what_is_refused_is_not_tried_again_and_what_never_comes_ends() {
        let (fake, _) = lost();
        let asked = Cell::new(0);
        let refuse = || {
            asked.set(asked.get() + 1);
            input::bad("node m: the snapshot is damaged")
        };
        let error = heal(&fake, &refuse).expect_err("refused");
        assert!(error.is::<BadInput>() && asked.get() == 1, "{error}");
        let silent = || bail!("connecting: refused");
        let error = heal(&fake, &silent).expect_err("silent").to_string();
        assert!(error.contains("connecting: refused, and that for 60 s") && error.contains("m waits for"), "{error}");
        // Restored, and the node never reports.
        let lazy = || {
            let mut world = fake.0.borrow_mut();
            world.broken.insert("old".into());
            world.machines.get_mut("m").expect("master").awaits_backup = false;
            Ok(())
        };
        let error = heal(&fake, &lazy).expect_err("never Ready").to_string();
        assert!(error.contains("m is not Ready: the network is not ready, and that for 60 s"), "{error}");
    }

    #[test]
    fn the_image_is_the_one_that_it_had() {
        let mut fake = Fake::with_master(1);
        let built = || Ok(crate::local::up::ImageFile { path: "x".into(), id: "new".into() });
        assert_eq!(image(&mut fake, "m", built).expect("image"), "old");
        fake.0.borrow_mut().machines.get_mut("m").expect("master").image = "lost".into();
        assert_eq!(image(&mut fake, "m", built).expect("image"), "new");
        assert!(image(&mut fake, "x", built).is_err());
    }
}
