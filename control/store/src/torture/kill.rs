//! Runs in which a process of its own is killed (SIGKILL) on a real directory.
//!
//! The child runs the load and hands out each event as a line on its standard output.  It is
//! killed at a random moment, or when it says that it is at the point that it was asked to stop at.

use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::{Event, Recorder};
use super::load::{self, Load, Resume};
use super::{Cut, LIVES, Outcome, choose_cut, next_watches, plug, target_life, verify_snapshots};
use crate::io::{Disk, DiskFile};
use crate::{DirDisk, Embedded, Point, Store, read_picture};

/// What each line of a child begins with.
const TAG: &str = "torture: ";
/// A child that takes longer than this hangs.
const TOO_LONG: Duration = Duration::from_secs(60);

/// What a child is to do, as one word of text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spec {
    dir: PathBuf,
    seed: u64,
    first_op: u64,
    stop: Option<(Point, u64)>,
    watches: Vec<Resume>,
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stop = self.stop.map_or("-".to_string(), |(point, nth)| format!("{}:{nth}", point.name()));
        write!(f, "{},{},{stop}", self.seed, self.first_op)?;
        for Resume { watcher, prefix, after } in &self.watches {
            write!(f, ",{watcher}:{prefix}:{after}")?;
        }
        write!(f, ",{}", self.dir.display())
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Spec, String> {
        let bad = || format!("{text:?} is not what a torture run gives to its child");
        let parse = |word: &str| word.parse::<u64>().map_err(|_| bad());
        let words: Vec<&str> = text.split(',').collect();
        let [seed, first_op, stop, watches @ .., dir] = words.as_slice() else { return Err(bad()) };
        let stop = match stop.split_once(':') {
            Some((point, nth)) => Some((Point::parse(point).ok_or_else(bad)?, parse(nth)?)),
            None => None,
        };
        let watch = |word: &&str| {
            let parts: Vec<&str> = word.split(':').collect();
            let [watcher, prefix, after] = parts[..] else { return Err(bad()) };
            Ok(Resume { watcher: parse(watcher)?, prefix: prefix.to_string(), after: parse(after)? })
        };
        let watches = watches.iter().map(watch).collect::<Result<_, _>>()?;
        Ok(Spec { dir: dir.into(), seed: parse(seed)?, first_op: parse(first_op)?, stop, watches })
    }
}

/// Says each event on standard output.
struct Telling(Mutex<std::io::Stdout>);

impl Telling {
    fn say(&self, line: &dyn fmt::Display) {
        let mut out = self.0.lock().unwrap_or_else(|e| e.into_inner());
        // Whoever listened is gone, and with it the need to tell.
        drop(out.write_all(format!("{TAG}{line}\n").as_bytes()).and_then(|()| out.flush()));
    }
}

impl Recorder for Telling {
    fn record(&self, event: Event) {
        self.say(&event);
    }
    fn is_over(&self) -> bool {
        false
    }
}

/// A real disk on which the process stops for good when it comes to a point.
struct Stopping {
    disk: Arc<dyn Disk>,
    stop: Arc<Mutex<Option<(Point, u64)>>>,
    telling: Arc<Telling>,
}

impl Disk for Stopping {
    fn describe(&self, name: &str) -> String {
        self.disk.describe(name)
    }
    fn read(&self, name: &str) -> std::io::Result<Option<Box<dyn std::io::Read + Send>>> {
        self.disk.read(name)
    }
    fn create(&self, name: &str) -> std::io::Result<Box<dyn DiskFile>> {
        self.disk.create(name)
    }
    fn append_to(&self, name: &str, len: u64) -> std::io::Result<Box<dyn DiskFile>> {
        self.disk.append_to(name, len)
    }
    fn rename(&self, from: &str, to: &str) -> std::io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> std::io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_dir(&self) -> std::io::Result<()> {
        self.disk.sync_dir()
    }
    fn beside(&self, dir: &Path) -> std::io::Result<Arc<dyn Disk>> {
        let disk = self.disk.beside(dir)?;
        Ok(Arc::new(Stopping { disk, stop: self.stop.clone(), telling: self.telling.clone() }))
    }
    fn reach(&self, point: Point) {
        let mut stop = self.stop.lock().unwrap_or_else(|e| e.into_inner());
        let Some((at, left)) = stop.as_mut().filter(|(at, _)| *at == point) else { return };
        *left -= 1;
        if *left > 0 {
            return;
        }
        self.telling.say(&format!("at {}", at.name()));
        drop(stop);
        loop {
            std::thread::park();
        }
    }
}

/// The child: runs the load that `spec` describes, until it is done or killed.
pub fn child(spec: &str) -> Result<(), String> {
    let spec: Spec = spec.parse()?;
    let telling = Arc::new(Telling(Mutex::new(std::io::stdout())));
    let real = DirDisk::open(&spec.dir.join("store")).map_err(|e| e.to_string())?;
    let stop = Arc::new(Mutex::new(spec.stop));
    let disk = Arc::new(Stopping { disk: Arc::new(real), stop, telling: telling.clone() });
    let store = Arc::new(Embedded::open(disk, plug::options()).map_err(|e| format!("the store does not open: {e}"))?);
    let load = Load {
        seed: spec.seed,
        first_op: spec.first_op,
        clients: 4,
        operations: 40,
        keys: 6,
        watches: spec.watches,
        snapshots: Some(spec.dir),
        patience: 1,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|e| e.to_string())?;
    let shared: Arc<dyn Store> = store.clone();
    runtime.block_on(load::run(&[shared], &load, telling.clone()))?;
    drop(runtime);
    store.close();
    store.failure().map_or(Ok(()), |what| Err(format!("the store failed: {what}")))?;
    telling.say(&"end");
    Ok(())
}

/// How a child's life ended.
enum End {
    Done,
    AtPoint,
    Killed,
}

/// One run: a store through several lives in `dir`; `command` starts a child, which is to be
/// given the text of its [`Spec`].
pub(super) fn run(seed: u64, point: Option<Point>, dir: &Path, command: &dyn Fn(&str) -> Command) -> Outcome {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut outcome = Outcome::default();
    for life in 0..LIVES {
        let cut = (life + 1 < LIVES).then(|| choose_cut(&mut rng, point.filter(|_| life == target_life(point))));
        let spec = Spec {
            dir: dir.to_path_buf(),
            seed: rng.random(),
            first_op: 1 + life as u64 * 1_000_000,
            stop: match cut {
                Some(Cut::At(point, nth)) => Some((point, nth)),
                _ => None,
            },
            watches: next_watches(&outcome.events, &mut rng),
        };
        let kill_after = match cut {
            Some(Cut::Moment(moment)) => Some(Duration::from_micros(moment * 500)),
            _ => None,
        };
        match (live(&mut outcome.events, command(&spec.to_string()), kill_after), cut) {
            (Err(what), _) => {
                outcome.failure = Some(what);
                return outcome;
            }
            (Ok(End::AtPoint), Some(cut)) | (Ok(End::Killed), Some(cut)) => outcome.cuts.push(cut),
            (Ok(_), _) => {}
        }
        outcome.events.push(Event::Crash);
        let present = |name: &str| dir.join(name).exists();
        let read = |name: &str| read_picture(&dir.join(name)).map_err(|e| e.to_string());
        if let Err(what) = verify_snapshots(&mut outcome.events, present, read) {
            outcome.failure = Some(what);
            return outcome;
        }
    }
    outcome
}

fn live(events: &mut Vec<Event>, mut command: Command, kill_after: Option<Duration>) -> Result<End, String> {
    let io = |what: &'static str| move |e: std::io::Error| format!("{what} the child: {e}");
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io("starting"))?;
    let out = child.stdout.take().ok_or("the child has no output")?;
    let (send, lines) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut out = BufReader::new(out);
        let mut line = String::new();
        // A line without its end was cut off by the kill: what it would say was not told.
        while out.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
            if send.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    let begun = Instant::now();
    // The clock of a kill starts with the first event, so that a slow start does not eat it up.
    let mut first = None;
    let mut end = None;
    let mut wrong = None;
    loop {
        let due = first.zip(kill_after).map(|(at, after): (Instant, Duration)| at + after);
        let until = if end.is_some() { begun + TOO_LONG } else { due.unwrap_or(begun + TOO_LONG) };
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                let Some(text) = line.strip_prefix(TAG) else { continue };
                first.get_or_insert_with(Instant::now);
                match text.trim() {
                    "end" => end = Some(End::Done),
                    at if at.starts_with("at ") => {
                        child.kill().map_err(io("killing"))?;
                        end = Some(End::AtPoint);
                    }
                    event => match event.parse() {
                        Ok(event) => events.push(event),
                        Err(what) => wrong = Some(format!("the child said {event:?}: {what}")),
                    },
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                child.kill().map_err(io("killing"))?;
                if begun.elapsed() >= TOO_LONG {
                    wrong = Some(format!("the child was not done after {TOO_LONG:?}"));
                }
                end = Some(End::Killed);
            }
        }
    }
    let output = child.wait_with_output().map_err(io("waiting for"))?;
    if reader.join().is_err() {
        return Err("the reading thread ended in a panic".into());
    }
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    end.ok_or_else(|| format!("the child failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_text() {
        let spec = Spec {
            dir: "/some/dir".into(),
            seed: 7,
            first_op: 1_000_001,
            stop: Some((Point::CommitSync, 3)),
            watches: vec![Resume { watcher: 1, prefix: "/t/".into(), after: 12 }],
        };
        assert_eq!(spec.to_string().parse(), Ok(spec.clone()));
        let plain = Spec { stop: None, watches: Vec::new(), ..spec };
        assert_eq!(plain.to_string().parse(), Ok(plain));
        assert!("1,2".parse::<Spec>().is_err());
    }
}
