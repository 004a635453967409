//! Ctrl-C while VMs are started: the step at hand is finished, so that no VM runs that nobody knows of.

use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Exit code of a command that a signal ended: 128 and SIGINT's number.
const CODE: i32 = 130;
const LOOK: Duration = Duration::from_millis(50);

/// Whether the user wants an end.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    asked: Arc<AtomicBool>,
    /// A step goes on that is not cut off.
    busy: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on SIGINT and SIGTERM are noted; the second one ends the process.
    ///
    /// # Errors
    /// The handlers cannot be set.
    pub fn watch() -> Result<Interrupt> {
        let interrupt = Interrupt::default();
        let noted = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("watching signals")?;
        let (mut int, mut term) = {
            let _context = runtime.enter();
            let set = |kind| signal(kind).context("watching signals");
            (set(SignalKind::interrupt())?, set(SignalKind::terminate())?)
        };
        std::thread::spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = int.recv() => {}
                        _ = term.recv() => {}
                    }
                    if noted.asked.swap(true, Relaxed) {
                        std::process::exit(CODE);
                    }
                    if noted.busy.load(Relaxed) {
                        eprintln!("\nfinishing the step at hand; Ctrl-C again ends at once");
                    }
                }
            });
        });
        Ok(interrupt)
    }

    /// Says whether a step goes on that is not cut off.
    pub fn busy(&self, busy: bool) {
        self.busy.store(busy, Relaxed);
    }

    /// Whether an end is wanted.
    pub fn asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// Waits until an end is wanted.
    pub async fn wait(&self) {
        while !self.asked() {
            tokio::time::sleep(LOOK).await;
        }
    }
}
