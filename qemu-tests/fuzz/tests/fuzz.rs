//! `make test-long PART=fuzz`: every target for `FUZZ_SECONDS` (600), coverage-guided, with the stable tool chain;
//! `FUZZ_TARGET` chooses one. A finding is left in `target/fuzz/findings/`, with the command that shows it again;
//! once mended it belongs into `corpus/`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler's own coverage hooks, which need no nightly: what `cargo fuzz` sets but for the sanitizer.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// The longest that one input may take, in seconds, and the most memory, in MiB.
const LIMITS: [&str; 2] = ["-timeout=10", "-rss_limit_mb=2048"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/fuzz").join(name)
}

/// Builds the program of all targets, in a target folder of its own: every crate below it has the hooks.
fn program() -> PathBuf {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--release", "--quiet", "-p", "fuzz", "--features", "engine", "--bin", "fuzz"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTFLAGS", COVERAGE)
        .env("CARGO_TARGET_DIR", folder(""))
        .envs([
            ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true"),
            ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true"),
            ("CARGO_PROFILE_RELEASE_STRIP", "none"),
        ])
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the fuzz targets do not build; the engine needs a C++ compiler (c++)");
    folder("x86_64-unknown-linux-gnu/release/fuzz")
}

/// Runs one target on its kept inputs and what earlier runs here found; says whether it went well.
fn run(program: &Path, target: &str, seconds: u32) -> bool {
    let (grown, findings) = (folder("corpus").join(target), folder("findings"));
    for dir in [&grown, &findings] {
        std::fs::create_dir_all(dir).expect("a folder below target/fuzz");
    }
    let output = Command::new(program)
        .env("FUZZ_TARGET", target)
        .args(LIMITS)
        .args([format!("-max_total_time={seconds}"), "-print_final_stats=1".into(), "-verbosity=0".into()])
        .arg(format!("-artifact_prefix={}/{target}-", findings.display()))
        .arg(&grown)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target))
        .output()
        .expect("the fuzz program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let runs = said.lines().find_map(|l| l.strip_prefix("stat::number_of_executed_units:"));
        println!("{target}: {} inputs in {seconds} s", runs.unwrap_or("?").trim());
        return true;
    }
    println!("{said}\nagain: FUZZ_TARGET={target} {} FILE", program.display());
    false
}

#[test]
#[ignore = "ten minutes for each target"]
fn no_target_finds_harm() {
    let seconds = std::env::var("FUZZ_SECONDS").unwrap_or_else(|_| "600".into());
    let seconds: u32 = seconds.parse().unwrap_or_else(|_| panic!("FUZZ_SECONDS is '{seconds}', not a number"));
    let only = std::env::var("FUZZ_TARGET").ok();
    let program = program();
    let names = fuzz::targets().map(|(name, _)| name);
    let wanted: Vec<&str> = names.filter(|name| only.as_deref().is_none_or(|o| o == *name)).collect();
    assert!(!wanted.is_empty(), "there is no target {only:?}");
    let found: Vec<&str> = wanted.into_iter().filter(|target| !run(&program, target, seconds)).collect();
    assert!(found.is_empty(), "findings in {found:?}, kept in {}", folder("findings").display());
}
