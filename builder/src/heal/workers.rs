//! `kimg heal`: workers that stay broken are made anew from the image that they have, by a roll of just those.
//!
//! How long one has been broken is what was seen here: a condition bears the time of another clock.

use super::SAY;
use crate::machines::{Machine, Machines};
use crate::roll::Clock;
use crate::roll::api::Kube;
use crate::roll::engine::Stop;
use crate::roll::journal::Outcome;
use crate::roll::plan::{Amount, Claim, Node, shown};
use anyhow::{Result, bail};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A step of a pause, so that Ctrl-C is noticed.
const POLL: Duration = Duration::from_millis(500);

/// What is seen of the cluster at a moment.
#[derive(Debug)]
pub struct Look<'a> {
    /// Workers of `cluster.toml`.
    pub workers: &'a [&'a str],
    /// Nodes that the API server knows.
    pub nodes: &'a [Node],
    /// Machines.
    pub machines: &'a [Machine],
    /// Claims that are bound to volumes of one node.
    pub claims: &'a [Claim],
}

/// What is to be done about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Workers to replace, and why.
    pub due: Vec<(String, String)>,
    /// Broken workers that may still come back.
    pub early: Vec<(String, String)>,
    /// Broken workers that are left to somebody's decision: sentences.
    pub left: Vec<String>,
}

/// What was seen before.
#[derive(Debug, Default)]
pub struct Watch {
    /// Since when workers are broken.
    since: BTreeMap<String, Timestamp>,
    /// Workers that were replaced, and were not seen Ready since.
    tried: BTreeSet<String>,
}

impl Watch {
    /// Judges a look. No more than `most` workers may be broken: what has befallen more is not theirs, and new machines
    /// would not help.
    pub fn judge(
        &mut self,
        look: &Look<'_>,
        lose: &[String],
        patience: Duration,
        most: usize,
        now: Timestamp,
    ) -> Found {
        let mut found = Found::default();
        let mut broken = Vec::new();
        for name in look.workers {
            let node = look.nodes.iter().find(|node| node.name == *name);
            let machine = look.machines.iter().find(|machine| machine.node == *name);
            let why = match (node, machine) {
                (_, None) => "there is no machine of it; `kimg up` makes one".to_owned(),
                (_, Some(machine)) if !machine.running => "its machine does not run".to_owned(),
                (None, _) => "it has not joined".to_owned(),
                (Some(node), _) if !node.ready => format!("it is not Ready: {}", node.reason),
                _ => {
                    self.since.remove(*name);
                    self.tried.remove(*name);
                    continue;
                }
            };
            broken.push(format!("{name} ({why})"));
            let since = *self.since.entry((*name).to_owned()).or_insert(now);
            let keeps_data = machine.is_some_and(|machine| machine.keeps_data);
            let claims: Vec<String> = look
                .claims
                .iter()
                .filter(|claim| claim.node == *name && !keeps_data && !lose.contains(&claim.claim))
                .map(shown)
                .collect();
            if machine.is_none() {
                found.left.push(format!("{name}: {why}"));
            } else if node.is_some_and(|node| node.cordoned && !node.cordoned_by_roll) {
                found.left.push(format!("{name}: {why}; somebody has cordoned it, so it is left to them"));
            } else if self.tried.contains(*name) {
                found.left.push(format!(
                    "{name}: {why}; it was replaced already, and nobody has seen it Ready since: `kimg node --node {name} \
                     status` may tell why"
                ));
            } else if !claims.is_empty() {
                found.left.push(format!(
                    "{name}: {why}; a new machine would not have the data of {}: give each up with `--lose-data NAMESPACE/CLAIM`",
                    claims.join(", ")
                ));
            } else if Duration::try_from(now.duration_since(since)).unwrap_or_default() >= patience {
                found.due.push(((*name).to_owned(), why));
            } else {
                found.early.push(((*name).to_owned(), why));
            }
        }
        if broken.len() > most && !found.due.is_empty() {
            found.left = vec![format!(
                "nothing is replaced: {} of {} workers are broken, and no more than {most} may be (--max-unavailable): {}",
                broken.len(),
                look.workers.len(),
                broken.join(", ")
            )];
            found.due.clear();
            found.early.clear();
        }
        found
    }

    /// These are being replaced.
    fn try_now(&mut self, nodes: &[String]) {
        self.tried.extend(nodes.iter().cloned());
    }

    /// Nothing was seen for a while: what is broken then may be so because of that.
    fn forget(&mut self) {
        self.since.clear();
    }
}

/// What a healer is told.
#[derive(Debug)]
pub struct Rules {
    /// How long a worker must have been broken.
    pub patience: Duration,
    /// How many may be broken.
    pub most: Amount,
    /// Claims that may be lost.
    pub lose: Vec<String>,
    /// The pause between two looks, where it goes on for ever.
    pub every: Option<Duration>,
}

/// Replaces these workers, or goes on with what was interrupted where there are none; none where there was nothing to go
/// on with.
pub type Replace<'a> = &'a mut dyn FnMut(&mut dyn Machines, &[String]) -> Result<Option<Outcome>>;

/// Looks, and replaces.
pub struct Healer<'a> {
    /// The API server.
    pub kube: Kube<'a>,
    /// Workers of `cluster.toml`.
    pub workers: Vec<&'a str>,
    /// What is wanted.
    pub rules: Rules,
    /// The time.
    pub clock: &'a dyn Clock,
    /// Whether the user wants an end.
    pub stop: &'a dyn Fn() -> bool,
    /// Where lines about what happens go.
    pub say: &'a dyn Fn(&str),
}

impl std::fmt::Debug for Healer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Healer").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Healer<'_> {
    /// Until no worker is broken that could be healed, or for ever: whether all workers are whole.
    ///
    /// # Errors
    /// [`Stop`]; and where it does not go on for ever, whatever is in the way.
    pub fn run(&self, machines: &mut dyn Machines, replace: Replace<'_>) -> Result<bool> {
        let mut watch = Watch::default();
        let mut said = Vec::new();
        let mut whole = true;
        loop {
            let looked = self.round(machines, replace, &mut watch, &mut whole);
            let (lines, waits) = match (looked, self.rules.every) {
                // It is seen at once what came of it.
                (Ok(None), _) => continue,
                (Ok(Some(found)), _) => {
                    let secs = self.rules.patience.as_secs();
                    let early = found.early.iter();
                    let early = early.map(|(name, why)| format!("{name}: {why}; replaced once it was so for {secs} s"));
                    whole &= found.left.is_empty();
                    (found.left.iter().cloned().chain(early).collect(), !found.early.is_empty())
                }
                (Err(error), Some(_)) if !error.is::<Stop>() => {
                    watch.forget();
                    (vec![format!("{error:#}")], true)
                }
                (Err(error), _) => return Err(error),
            };
            // The same sentence is said once; a loop says nothing while all is well.
            lines.iter().filter(|line| !said.contains(*line)).for_each(|line| (self.say)(line));
            if !said.is_empty() && lines.is_empty() {
                (self.say)("all workers are whole again");
            }
            said = lines;
            match self.rules.every {
                None if !waits => return Ok(whole),
                None => self.pause(POLL)?,
                Some(every) => self.pause(every)?,
            }
        }
    }

    /// What is broken; none where some of it was replaced.
    fn round(
        &self,
        machines: &mut dyn Machines,
        replace: Replace<'_>,
        watch: &mut Watch,
        whole: &mut bool,
    ) -> Result<Option<Found>> {
        if let Some(outcome) = replace(machines, &[])? {
            *whole &= outcome == Outcome::Done;
        }
        let (nodes, listed, claims) = (self.kube.nodes()?, machines.list()?, self.kube.local_claims()?);
        let look = Look { workers: &self.workers, nodes: &nodes, machines: &listed, claims: &claims };
        let Rules { patience, most, lose, .. } = &self.rules;
        let most = most.unavailable_of(self.workers.len());
        let found = watch.judge(&look, lose, *patience, most, self.clock.now());
        if found.due.is_empty() {
            return Ok(Some(found));
        }
        for (name, why) in &found.due {
            (self.say)(&format!("{name}: {why}, for {} s; it is replaced", patience.as_secs()));
        }
        let names: Vec<String> = found.due.into_iter().map(|(name, _)| name).collect();
        let outcome = replace(machines, &names)?;
        // Not before: where a lock or another broken node was in the way, nothing was tried.
        watch.try_now(&names);
        *whole &= outcome == Some(Outcome::Done);
        Ok(None)
    }

    fn pause(&self, time: Duration) -> Result<()> {
        let begun = self.clock.now();
        loop {
            if (self.stop)() {
                bail!(Stop);
            }
            if Duration::try_from(self.clock.now().duration_since(begun)).unwrap_or_default() >= time.min(SAY * 120) {
                return Ok(());
            }
            self.clock.sleep(POLL);
        }
    }
}

/// The image that a worker is made anew from: the one that it has, else one that another worker has.
///
/// # Errors
/// None of them is kept.
pub fn image(machines: &dyn Machines, node: &str, workers: &[&str]) -> Result<String> {
    let listed = machines.list()?;
    let own = listed.iter().filter(|machine| machine.node == node);
    let others = listed.iter().filter(|machine| machine.node != node && workers.contains(&machine.node.as_str()));
    for machine in own.chain(others) {
        if machines.holds(&machine.image)? {
            return Ok(machine.image.clone());
        }
    }
    bail!("the image of {node} is kept no more; `kimg build worker`, then `kimg roll {node}` replaces it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roll::fake::Fake;
    use crate::roll::journal::Journal;
    use crate::roll::plan::Wish;
    use crate::roll::plan::tests::node;
    use crate::roll::tests::{command_on, journal_on, never, rules};
    use std::cell::RefCell;

    #[test]
    fn only_what_stays_broken_is_replaced() {
        let at = |second| Timestamp::from_second(second).expect("time");
        let workers = ["w1", "w2", "w3"];
        let mut nodes = workers.map(|name| node(name, true));
        let mut machines = workers
            .map(|name| Machine {
                node: name.into(),
                image: "i".into(),
                running: true,
                keeps_data: true,
                on_volume: false,
            })
            .to_vec();
        let claims =
            [Claim { node: "w2".into(), claim: "a/db".into(), size: "1Gi".into(), pods: Vec::new(), volume: None }];
        let mut watch = Watch::default();
        let mut judge = |nodes: &[Node], machines: &[Machine], keeps_data, lose: &[&str], now| {
            let mut machines = machines.to_vec();
            machines.iter_mut().for_each(|machine| machine.keeps_data = keeps_data);
            let look = Look { workers: &workers, nodes, machines: &machines, claims: &claims };
            let lose: Vec<String> = lose.iter().map(ToString::to_string).collect();
            let found = watch.judge(&look, &lose, Duration::from_secs(100), 1, at(now));
            let names = |list: Vec<(String, String)>| list.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
            (names(found.due), names(found.early), found.left.join("; "))
        };
        let none: Vec<String> = Vec::new();
        assert_eq!(judge(&nodes, &machines, true, &[], 0), (none.clone(), none.clone(), String::new()));
        nodes[1].ready = false;
        assert_eq!(judge(&nodes, &machines, true, &[], 10).1, ["w2"]);
        assert_eq!(judge(&nodes, &machines, true, &[], 109).1, ["w2"]);
        assert_eq!(judge(&nodes, &machines, true, &[], 110).0, ["w2"]);
        // It was Ready in between.
        nodes[1].ready = true;
        judge(&nodes, &machines, true, &[], 111);
        nodes[1].ready = false;
        assert_eq!(judge(&nodes, &machines, true, &[], 112).1, ["w2"]);
        // Its data would be lost.
        let (due, early, left) = judge(&nodes, &machines, false, &[], 300);
        assert!(due.is_empty() && early.is_empty() && left.contains("a/db (1Gi, no pod)"), "{left}");
        assert_eq!(judge(&nodes, &machines, false, &["a/db"], 300).0, ["w2"]);
        // Somebody works on it.
        nodes[1].cordoned = true;
        let left = judge(&nodes, &machines, true, &[], 400).2;
        assert!(left.starts_with("w2: ") && left.contains("cordoned"), "{left}");
        nodes[1].cordoned = false;
        // More than may be.
        machines[0].running = false;
        let (due, _, left) = judge(&nodes, &machines, true, &[], 500);
        assert!(due.is_empty() && left.contains("2 of 3 workers are broken"), "{left}");
        machines.remove(0);
        nodes[1].ready = true;
        let left = judge(&nodes, &machines, true, &[], 600).2;
        assert!(left.contains("w1: there is no machine of it; `kimg up`"), "{left}");
    }

    fn journal(fake: &Fake, due: &[String]) -> Journal {
        let image = |name: &String| (name.clone(), image(fake, name, &["w1", "w2", "w3"]).expect("an image"));
        let wish = Wish { nodes: due.to_vec(), images: due.iter().map(image).collect(), ..Wish::default() };
        journal_on(fake, fake, &wish, rules(), false)
    }

    /// `kimg heal`, that is ended at a point.
    fn heal(fake: &Fake, failpoint: &dyn Fn(&str) -> Result<()>) -> Result<(bool, Vec<String>)> {
        let lines = RefCell::new(Vec::new());
        let healer = Healer {
            kube: Kube(fake),
            workers: vec!["w1", "w2", "w3"],
            rules: Rules { patience: Duration::from_secs(100), most: Amount::Number(1), lose: Vec::new(), every: None },
            clock: fake,
            stop: &|| false,
            say: &|line| lines.borrow_mut().push(line.to_owned()),
        };
        let me = fake.process();
        let whole = healer.run(&mut fake.clone(), &mut |_, due| {
            let last = Kube(fake).journal()?;
            let goes_on = last.is_some_and(|(last, _)| last.outcome == Outcome::Running);
            if due.is_empty() && !goes_on {
                return Ok(None);
            }
            let (outcome, _) = command_on(fake, &mut fake.clone(), me.clone(), failpoint, |_| journal(fake, due))?;
            Ok(Some(outcome))
        })?;
        Ok((whole, lines.into_inner()))
    }

    #[test]
    fn a_worker_that_is_gone_comes_back_and_nobody_notices() {
        let fake = Fake::new(3);
        assert_eq!(heal(&fake, &never).expect("whole"), (true, Vec::new()));
        fake.stop("w3");
        let begun = fake.now();
        let (whole, lines) = heal(&fake, &never).expect("healed");
        assert!(whole && fake.now().duration_since(begun).as_secs() >= 100, "{lines:?}");
        assert!(lines[0].contains("w3: its machine does not run; replaced once"), "{lines:?}");
        let world = fake.0.borrow();
        assert!(world.faults.is_empty(), "{:?}", world.faults);
        assert_eq!(world.order, ["w3"]);
        assert_eq!(fake.images(), ["old", "old", "old"]);
    }

    #[test]
    fn wherever_it_is_killed_it_goes_on() {
        for number in 0.. {
            let fake = Fake::new(3);
            fake.stop("w3");
            let point = RefCell::new((0, None));
            let ended = heal(&fake, &|name| {
                let mut point = point.borrow_mut();
                point.0 += 1;
                if point.0 == number + 1 {
                    point.1 = Some(name.to_owned());
                    bail!(crate::roll::engine::Killed(name.into()));
                }
                Ok(())
            });
            let Some(point) = point.into_inner().1 else {
                ended.expect("nothing more to be killed at");
                assert!(number > 10, "{number}");
                return;
            };
            assert!(ended.is_err(), "{point}");
            let (whole, lines) = heal(&fake, &never).unwrap_or_else(|error| panic!("{point}: {error:#}"));
            assert!(whole, "{point}: {lines:?}");
            let world = fake.0.borrow();
            assert!(world.faults.is_empty(), "{point}: {:?}", world.faults);
            assert!(world.machines["w3"].running && world.machines["w3"].rebuilt > 0, "{point}");
            drop(world);
            assert!(fake.names("/api/v1/namespaces/kube-system/secrets/").is_empty(), "{point}: a token is left");
            // Nothing is left to do after the end; the lock of a dead process is nobody's.
            let lock = fake.names("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/");
            assert!(lock.is_empty() || ["half-end", "end"].contains(&point.as_str()), "{point}: the lock is left");
        }
    }

    #[test]
    fn one_that_is_never_ready_again_is_not_tried_for_ever() {
        let fake = Fake::new(3);
        fake.stop("w3");
        fake.0.borrow_mut().broken.insert("old".into());
        let (whole, lines) = heal(&fake, &never).expect("an end");
        assert!(!whole && lines.iter().any(|line| line.contains("w3: it is not Ready")), "{lines:?}");
        assert_eq!(fake.0.borrow().order, ["w3"]);
    }
}
