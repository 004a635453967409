//! `make test` and `make test-long`: both sets by named parts, in order, with a table of what each took.
//!
//! The fast set ends at the first part that fails.  Of the long set a part whose last result is of this
//! commit and green is not run again; one that was skipped as a whole is not green, and the set then ends with 77.
//! Part, commit, duration and result go to `target/fast.json` and `target/long.json`.

use anyhow::{Context, Result, bail};
use qemu_tests::suite::{SKIPPED, result_of};
use qemu_tests::tools::workspace;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Seek, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

const RELEASE: &[&str] = &["test", "--release", "--workspace", "--test"];
/// Own code fast to compile and with its checks, what others wrote as the release has it (`.cargo/unit.toml` says why).
const UNIT: &[&str] = &["test", "--release", "--config", ".cargo/unit.toml", "--workspace"];

/// No file of tests of a crate that has a program: the program would be made anew in the place of the release's.
const UNIT_TESTS: &[&str] = &[
    "--exclude=qemu-tests",
    "--lib",
    "--bin=example-web",
    "--test=it",
    "--test=rules",
    "--test=forms",
    "--test=robust",
    "--test=defaults",
    "--test=rsyslog",
    "--test=corpora",
    "--test=reaping",
];

/// A part: how cargo begins, what it is asked for in the fast set (None: not in it) and in the long one.
struct Part {
    name: &'static str,
    cargo: &'static [&'static str],
    fast: Option<&'static [&'static str]>,
    long: &'static [&'static str],
}

const fn part(
    name: &'static str,
    cargo: &'static [&'static str],
    fast: Option<&'static [&'static str]>,
    long: &'static [&'static str],
) -> Part {
    Part { name, cargo, fast, long }
}

/// The same in both sets.
const fn both(name: &'static str, cargo: &'static [&'static str], rest: &'static [&'static str]) -> Part {
    part(name, cargo, Some(rest), rest)
}

const PARTS: &[Part] = &[
    both("unit", UNIT, UNIT_TESTS),
    both("mistakes", RELEASE, &["mistakes"]),
    // The programs that come with it are there in release.
    both("tidy", RELEASE, &["tidy"]),
    both("harness", UNIT, &["--lib", "--quiet", "--", "leash::", "load::", "nbd::", "stranger::", "suite::", "tpm::"]),
    part(
        "reproducible",
        RELEASE,
        Some(&["reproducible", "--", "--include-ignored", "--skip", "an_image_comes_back"]),
        &["reproducible", "--", "--include-ignored"],
    ),
    part("roots", RELEASE, None, &["roots", "--", "--include-ignored"]),
    part("mkosi", &["run", "--release", "-p", "qemu-tests", "--bin", "figures"], None, &["--", "mkosi"]),
    both(BESIDE, RELEASE, &["settings"]),
    both("formats", RELEASE, &["formats", "--", "--include-ignored"]),
    // Keystone and Glance take minutes to be fetched and made.
    part(
        "registry",
        RELEASE,
        Some(&["registry", "--", "--include-ignored", "--skip", "glance", "--skip", "keystone"]),
        &["registry", "--", "--include-ignored"],
    ),
    both("extensions", RELEASE, &["extensions", "--", "--include-ignored"]),
    both("signatures", RELEASE, &["signatures", "--", "--include-ignored"]),
    both("faults", RELEASE, &["faults", "--", "--include-ignored"]),
    part("secrets", RELEASE, None, &["secrets", "--", "--include-ignored"]),
    part("sbom", RELEASE, None, &["sbom", "--", "--include-ignored"]),
    part(BEFORE, RELEASE, Some(&["boots"]), &["boots", "--", "--include-ignored", "boot::"]),
    part("plug", RELEASE, None, &["boots", "--", "--include-ignored", "plug::"]),
    part("memory", RELEASE, None, &["boots", "--", "--ignored", "memory::"]),
    part("clients", RELEASE, Some(&["clients"]), &["clients", "--", "--include-ignored"]),
    part("cluster", RELEASE, Some(&["cluster"]), &["cluster", "--", "--include-ignored"]),
    part("roll", RELEASE, Some(&["roll"]), &["roll", "--", "--include-ignored"]),
    part("release", RELEASE, None, &["release", "--", "--include-ignored"]),
    part("masters", RELEASE, None, &["masters", "--", "--include-ignored"]),
    part("etcd", RELEASE, None, &["etcd", "--", "--include-ignored"]),
    part("store", &["test", "--release", "-p", "store", "--lib"], None, &["--", "--ignored", "--nocapture"]),
    part(
        "torture",
        &["run", "--release", "-p", "kimg-control", "--", "kube-apiserver", "store", "torture"],
        None,
        &["--runs", "1000"],
    ),
    part("hollow", &["run", "--release", "-p", "qemu-tests", "--bin", "bench"], None, &["--", "hollow"]),
    part("fuzz", &["test", "--workspace"], None, &["--test", "fuzz", "--", "--ignored", "--nocapture"]),
];

/// Waits for certificates to be renewed nearly all of its time, and so runs beside the parts that follow it ([`BEFORE`]
/// these begin VMs of their own, which two cores would feel).
const BESIDE: &str = "settings";
const BEFORE: &str = "boots";

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let set = arguments.next().unwrap_or_default();
    let fast = match set.as_str() {
        "fast" => true,
        "long" => false,
        _ => bail!("the set '{set}' is not known; say fast or long"),
    };
    let parts: Vec<(&Part, &[&str])> =
        PARTS.iter().filter_map(|p| Some((p, if fast { p.fast? } else { p.long }))).collect();
    let wanted = arguments.next();
    if let Some(name) = &wanted
        && !parts.iter().any(|(part, _)| part.name == name)
    {
        let known: Vec<&str> = parts.iter().map(|(part, _)| part.name).collect();
        bail!("the {set} set has no part '{name}'; there are: {}", known.join(", "));
    }
    let mut book = Book::open(&set, fast)?;
    // Which changes a tree had that differed from its commit, nobody knows any more.
    let known = !book.commit.ends_with("-dirty");
    std::thread::scope(|scope| -> Result<()> {
        let mut beside = None;
        for (part, rest) in parts.iter().filter(|(part, _)| wanted.as_deref().is_none_or(|w| w == part.name)) {
            if part.name == BEFORE
                && let Some(run) = beside.take()
            {
                book.joined(run)?;
            }
            if book.failed && fast {
                break;
            }
            if known && wanted.is_none() && book.is_green(part.name) {
                continue;
            }
            if part.name == BESIDE && wanted.is_none() {
                let output = Output::new(part.name)?;
                beside = Some((part.name, scope.spawn(move || run(part, rest, fast, Some(output)))));
                continue;
            }
            book.note(part.name, run(part, rest, fast, None)?)?;
        }
        beside.map_or(Ok(()), |run| book.joined(run))
    })?;
    println!("\n{}", book.table.join("\n"));
    if book.skipped > 0 {
        println!("{} skipped: each has said why", book.skipped);
    }
    Ok(match (book.failed, book.skipped) {
        (true, _) => ExitCode::FAILURE,
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::from(SKIPPED),
    })
}

/// What a part took, how it ended, and what its tests skipped.
struct Ran {
    seconds: u64,
    result: &'static str,
    skips: Vec<String>,
}

fn run(part: &Part, rest: &[&str], fast: bool, output: Option<Output>) -> Result<Ran> {
    let start = Instant::now();
    let skips = Skips::new(part.name)?;
    let mut cargo = Command::new("cargo");
    cargo.args(part.cargo.iter().chain(rest)).current_dir(workspace()).env("KIMG_TESTS_SKIPS", &skips.0);
    if !fast {
        // The tests of providers end a run at each of its calls then, and else at some; certificates live longer.
        cargo.env("KIMG_TESTS_EVERY_CALL", "1");
    }
    if let Some(Output(file)) = &output {
        let again = || file.try_clone().context("doubling a file handle");
        cargo.stdout(again()?).stderr(again()?);
    }
    let result = result_of(cargo.status().context("starting cargo")?.code());
    let ran = Ran { seconds: start.elapsed().as_secs(), result, skips: skips.read()? };
    output.map_or(Ok(()), Output::show)?;
    Ok(ran)
}

/// The results so far: the file and the table.
struct Book {
    file: PathBuf,
    commit: String,
    results: Map<String, Value>,
    table: Vec<String>,
    failed: bool,
    skipped: usize,
}

impl Book {
    fn open(set: &str, fast: bool) -> Result<Book> {
        let file = workspace().join(format!("target/{set}.json"));
        let results = match std::fs::read_to_string(&file) {
            Ok(text) if !fast => serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?,
            _ => Map::new(),
        };
        Ok(Book { file, commit: commit()?, results, table: Vec::new(), failed: false, skipped: 0 })
    }

    fn is_green(&self, part: &str) -> bool {
        let row = self.results.get(part);
        row.is_some_and(|row| row["commit"] == self.commit.as_str() && row["result"] == "passed")
    }

    fn note(&mut self, part: &str, ran: Ran) -> Result<()> {
        let Ran { seconds, result, skips } = ran;
        self.failed |= result == "failed";
        self.skipped += usize::from(result == "skipped");
        self.table.push(format!("{seconds:>6} s  {result}  {part}"));
        self.table.extend(skips.iter().map(|why| format!("          skipped  {why}")));
        let row = json!({"commit": self.commit, "seconds": seconds, "result": result, "skipped": skips});
        self.results.insert(part.into(), row);
        let text = serde_json::to_string_pretty(&self.results).context("writing JSON")?;
        std::fs::write(&self.file, text).with_context(|| format!("writing {}", self.file.display()))
    }

    /// Waits for the part that ran beside others.
    fn joined(&mut self, (part, thread): (&str, std::thread::ScopedJoinHandle<'_, Result<Ran>>)) -> Result<()> {
        let Ok(ran) = thread.join() else { bail!("the thread that ran {part} panicked") };
        self.note(part, ran?)
    }
}

/// What a part prints that runs beside another: shown as a whole, once it has ended.
struct Output(File);

impl Output {
    fn new(part: &str) -> Result<Output> {
        let file = workspace().join(format!("target/{part}.log"));
        let opened = File::options().read(true).write(true).create(true).truncate(true).open(&file);
        Ok(Output(opened.with_context(|| format!("writing {}", file.display()))?))
    }

    fn show(mut self) -> Result<()> {
        self.0.rewind().context("reading what a part printed")?;
        let mut stderr = std::io::stderr().lock();
        std::io::copy(&mut self.0, &mut stderr).and_then(|_| stderr.flush()).context("showing what a part printed")
    }
}

/// Where the tests of one part write what they skip, a line each (`test_spoil::skipped`).
struct Skips(PathBuf);

impl Skips {
    fn new(part: &str) -> Result<Skips> {
        let file = workspace().join(format!("target/skips-{part}"));
        std::fs::write(&file, "").with_context(|| format!("writing {}", file.display()))?;
        Ok(Skips(file))
    }

    fn read(&self) -> Result<Vec<String>> {
        let text = std::fs::read_to_string(&self.0).with_context(|| format!("reading {}", self.0.display()))?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

/// The commit that is tested, marked where files differ from it.
fn commit() -> Result<String> {
    let git = |args: &[&str]| -> Result<String> {
        let output = Command::new("git").args(args).current_dir(workspace()).output().context("starting git")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let dirty = if git(&["status", "--porcelain"])?.is_empty() { "" } else { "-dirty" };
    Ok(format!("{}{dirty}", git(&["rev-parse", "HEAD"])?))
}
