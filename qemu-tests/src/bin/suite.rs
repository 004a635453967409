//! `make test` and `make test-long`: both sets by named parts, in order, with a table of what each took.
//!
//! The fast set ends at the first part that fails.  Of the long set a part whose last result is of this
//! commit and green is not run again; one that was skipped as a whole is not green, and the set then ends with 77.
//! Part, commit, duration and result go to `target/fast.json` and `target/long.json`.

use anyhow::{Context, Result, bail};
use qemu_tests::suite::{SKIPPED, result_of};
use qemu_tests::tools::workspace;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

const RELEASE: &[&str] = &["test", "--release", "--workspace", "--test"];
const DEV: &[&str] = &["test", "--workspace"];

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
    both("unit", DEV, &["--exclude", "qemu-tests"]),
    both("tidy", DEV, &["--test", "tidy"]),
    both("harness", DEV, &["--lib", "--quiet", "--", "leash::", "load::", "nbd::", "stranger::", "suite::", "tpm::"]),
    part(
        "reproducible",
        RELEASE,
        Some(&["reproducible", "--", "--include-ignored", "--skip", "an_image_comes_back"]),
        &["reproducible", "--", "--include-ignored"],
    ),
    part("roots", RELEASE, None, &["roots", "--", "--include-ignored"]),
    part("mkosi", &["run", "--release", "-p", "qemu-tests", "--bin", "figures"], None, &["--", "mkosi"]),
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
    part("boots", RELEASE, Some(&["boots"]), &["boots", "--", "--include-ignored", "boot::"]),
    part("plug", RELEASE, None, &["boots", "--", "--include-ignored", "plug::"]),
    part("memory", RELEASE, None, &["boots", "--", "--ignored", "memory::"]),
    part("clients", RELEASE, Some(&["clients"]), &["clients", "--", "--include-ignored"]),
    part("cluster", RELEASE, Some(&["cluster"]), &["cluster", "--", "--include-ignored"]),
    both("settings", RELEASE, &["settings"]),
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
    part("fuzz", DEV, None, &["--test", "fuzz", "--", "--ignored", "--nocapture"]),
];

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
    let file = workspace().join(format!("target/{set}.json"));
    let mut results: Map<String, Value> = match std::fs::read_to_string(&file) {
        Ok(text) if !fast => serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?,
        _ => Map::new(),
    };
    let commit = commit()?;
    let (mut failed, mut skipped) = (false, 0);
    let mut table = Vec::new();
    for (part, rest) in parts.iter().filter(|(part, _)| wanted.as_deref().is_none_or(|w| w == part.name)) {
        // Which changes a tree had that differed from its commit, nobody knows any more.
        let known = !commit.ends_with("-dirty");
        let done =
            known && results.get(part.name).is_some_and(|r| r["commit"] == commit.as_str() && r["result"] == "passed");
        if done && wanted.is_none() {
            continue;
        }
        let start = Instant::now();
        let arguments = part.cargo.iter().chain(*rest);
        let skips = Skips::new()?;
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).current_dir(workspace()).env("KIMG_TESTS_SKIPS", &skips.0);
        if !fast {
            // The tests of providers end a run at each of its calls then, and else at some; certificates live longer.
            cargo.env("KIMG_TESTS_EVERY_CALL", "1");
        }
        let status = cargo.status();
        let status = status.context("starting cargo")?;
        let result = result_of(status.code());
        failed |= result == "failed";
        skipped += usize::from(result == "skipped");
        let seconds = start.elapsed().as_secs();
        let reasons = skips.read()?;
        table.push(format!("{seconds:>6} s  {result}  {}", part.name));
        table.extend(reasons.iter().map(|why| format!("          skipped  {why}")));
        let row = json!({"commit": commit, "seconds": seconds, "result": result, "skipped": reasons});
        results.insert(part.name.into(), row);
        let text = serde_json::to_string_pretty(&results).context("writing JSON")?;
        std::fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        if failed && fast {
            break;
        }
    }
    println!("\n{}", table.join("\n"));
    if skipped > 0 {
        println!("{skipped} skipped: each has said why");
    }
    Ok(match (failed, skipped) {
        (true, _) => ExitCode::FAILURE,
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::from(SKIPPED),
    })
}

/// Where the tests of one part write what they skip, a line each (`test_spoil::skipped`).
struct Skips(PathBuf);

impl Skips {
    fn new() -> Result<Skips> {
        let file = workspace().join("target/skips");
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
