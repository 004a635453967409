//! What a process uses, as /proc tells.

use anyhow::{Context, Result};
use std::time::Duration;

/// The kernel's unit in /proc/PID/stat: `USER_HZ` is 100 on every Linux that we run on.
const TICK: Duration = Duration::from_millis(10);

/// A process that is measured.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

/// What it has used since its start.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub cpu: Duration,
    /// Bytes given to the disk.
    pub written: u64,
}

impl Process {
    fn read(self, name: &str) -> Result<String> {
        let path = format!("/proc/{}/{name}", self.0);
        std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    }

    pub fn usage(&self) -> Result<Usage> {
        // The scheduler's account of each thread is in nanoseconds; stat counts ticks of 10 ms.
        let mut cpu = Duration::ZERO;
        let tasks = format!("/proc/{}/task", self.0);
        for task in std::fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
            let path = task.with_context(|| format!("reading {tasks}"))?.path().join("schedstat");
            // A thread may end meanwhile.
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let ran = text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            cpu += Duration::from_nanos(ran);
        }
        if cpu.is_zero() {
            cpu = self.ticks()?;
        }
        let written = field(&self.read("io")?, "write_bytes:").context("no write_bytes")?;
        Ok(Usage { cpu, written })
    }

    fn ticks(&self) -> Result<Duration> {
        let stat = self.read("stat")?;
        let after = stat.rsplit(") ").next().unwrap_or_default();
        let ticks: u32 = after.split(' ').skip(11).take(2).filter_map(|n| n.parse::<u32>().ok()).sum();
        Ok(TICK * ticks)
    }

    /// Its share of the memory, in KiB.
    pub fn pss_kib(&self) -> Result<u64> {
        field(&self.read("smaps_rollup")?, "Pss:").context("no Pss")
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
