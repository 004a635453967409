//! A command's time, and the memory that it and all that it starts have at once.

use anyhow::{Context, Result, ensure};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Between two looks, which cost time themselves; what comes and goes in between is not seen.
const LOOK: Duration = Duration::from_millis(50);

/// What a command took.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    pub seconds: f64,
    /// The most that its processes had together. What they share counts once.
    pub peak_kib: u64,
}

/// Runs a command, which must succeed. No other may run meanwhile.
pub fn run(command: &mut Command) -> Result<Measured> {
    // Who outlives the process that started it is still one of ours.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("becoming the parent of orphans")?;
    let name = command.get_program().to_string_lossy().into_owned();
    let (done, waiting) = channel();
    let looker = std::thread::spawn(move || look(&waiting));
    let start = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.spawn().and_then(std::process::Child::wait_with_output);
    let seconds = start.elapsed().as_secs_f64();
    drop(done);
    let peak_kib = looker.join().ok().context("the thread that looks at memory stopped")?;
    let output = output.with_context(|| format!("running {name}"))?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(Measured { seconds, peak_kib })
}

/// Looks until nobody waits any more.
fn look(waiting: &Receiver<()>) -> u64 {
    let mut peak = 0;
    loop {
        peak = peak.max(descendants(std::process::id()).into_iter().map(pss_kib).sum());
        if waiting.recv_timeout(LOOK) != Err(RecvTimeoutError::Timeout) {
            return peak;
        }
    }
}

/// All processes below one, as far as they are there while this looks.
fn descendants(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut open = vec![of];
    while let Some(process) = open.pop() {
        for task in std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok());
            open.extend(children.clone());
            found.extend(children);
        }
    }
    found
}

/// A process's share of memory; none where it has just ended.
fn pss_kib(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
