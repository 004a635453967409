//! A program of another project that serves on a port of loopback, for as long as a test needs it.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

/// Ends when dropped.
pub struct Served {
    pub child: Child,
    pub port: u16,
}

impl Served {
    /// Starts it and waits until it listens. Where it ends instead, `log` says why.
    pub fn start(command: &mut Command, name: &str, port: u16, log: Option<&Path>) -> Result<Served> {
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        let mut served = Served { child, port };
        for _ in 0..1200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(served);
            }
            if let Some(status) = served.child.try_wait()? {
                bail!("{name} ended: {status}: {}", log.map(std::fs::read_to_string).transpose()?.unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        bail!("{name} does not listen")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself. One with workers ends them, too, when it is asked to.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = pid(&self.child).map(|pid| kill_process(pid, Signal::TERM));
            let _ = self.child.wait();
        }
    }
}

pub fn pid(child: &Child) -> Result<Pid> {
    Pid::from_raw(child.id().cast_signed()).context("no process id")
}

/// A port that nothing listens on at the moment.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
