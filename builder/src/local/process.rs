//! Processes that outlive the command: known by number and start time, so that a number used again is not mistaken.

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Starts a program of kimg's that outlives this one, and does nothing ([`await_leave`]) before `known` has noted it:
/// whenever this one ends, no process is left that nobody knows of.
///
/// # Errors
/// It cannot be started, or noted; there is none then.
pub fn start(command: &mut Command, known: impl FnOnce(Process) -> Result<()>) -> Result<i32> {
    let mut child = command.stdin(Stdio::piped()).spawn().context("running kimg itself")?;
    let pid = i32::try_from(child.id()).context("running kimg itself")?;
    let leave = child.stdin.take();
    if let Some(process) = Process::find(pid)
        && let Err(error) = known(process)
    {
        process.end(Duration::from_secs(1))?;
        return Err(error);
    }
    // One that has ended meanwhile is found to have.
    let _ended = leave.map(|mut leave| leave.write_all(b"\n"));
    Ok(pid)
}

/// Waits in a program that was begun by [`start`].
///
/// # Errors
/// Whoever started it has ended, and may not know of it.
pub fn await_leave() -> Result<()> {
    std::io::stdin().read_exact(&mut [0]).context("whoever started this has ended")
}

/// A process of which we know that it is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process number.
    pub pid: i32,
    /// Start in clock ticks since boot.
    pub started: u64,
}

impl Process {
    /// The process with this number, if it runs.
    pub fn find(pid: i32) -> Option<Process> {
        start_time(pid).map(|started| Process { pid, started })
    }

    /// Whether it still runs.
    pub fn alive(self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Sends a signal; a process that is gone is no error.
    pub fn signal(self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        if !self.alive() {
            return Ok(());
        }
        match kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("ending process {}", self.pid)),
        }
    }

    /// Waits for its end; false when it still runs after `limit`.
    pub fn wait_gone(self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.alive() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    /// Ends it: asks, and after `grace` no longer asks.
    pub fn end(self, grace: Duration) -> Result<()> {
        self.signal(Signal::TERM)?;
        if !self.wait_gone(grace) {
            self.signal(Signal::KILL)?;
            // Whoever called goes on with what the process holds.
            ensure!(self.wait_gone(Duration::from_secs(5)), "process {} does not end", self.pid);
        }
        Ok(())
    }
}

/// Field 22 of /proc/PID/stat; none for a process that ended and was not yet reaped.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields begin after the last one.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_of_its_number() {
        let me = Process::find(std::process::id() as i32).expect("me");
        assert!(me.alive());
        assert!(!Process { started: me.started + 1, ..me }.alive());
        assert_eq!(Process::find(i32::MAX), None);
    }

    #[test]
    fn nothing_is_done_before_it_is_known() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("done");
        let command = || {
            let mut command = Command::new("sh");
            command.args(["-c", "read line && echo x > done"]).current_dir(dir.path());
            command
        };
        start(&mut command(), |_| anyhow::bail!("the disk is full")).expect_err("not noted");
        assert!(!file.exists());
        let pid = start(&mut command(), |process| {
            assert!(process.alive() && !file.exists());
            Ok(())
        });
        let gone = Process::find(pid.expect("started")).is_none_or(|process| process.wait_gone(Duration::from_secs(5)));
        assert!(gone && file.exists());
    }

    #[test]
    fn ends_what_it_is_told_to() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let process = Process::find(child.id() as i32).expect("runs");
        process.end(Duration::from_secs(5)).expect("ends");
        assert!(!process.alive());
        child.wait().expect("reaped");
    }
}
