//! Progress on a terminal; nothing in a pipe.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// The progress bars of one command.
#[derive(Debug, Clone)]
pub struct Progress {
    bars: MultiProgress,
}

impl Progress {
    /// Bars on standard error where that is a terminal, else none.
    pub fn new() -> Progress {
        let target =
            if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Progress { bars: MultiProgress::with_draw_target(target) }
    }

    /// Bars that are never shown.
    pub fn hidden() -> Progress {
        Progress { bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()) }
    }

    /// A bar that counts bytes.
    pub fn bytes(&self, what: &str, total: u64) -> ProgressBar {
        let style =
            ProgressStyle::with_template("{msg:34} {bar:28} {bytes:>10}/{total_bytes:10} {bytes_per_sec} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bars.add(ProgressBar::new(total).with_style(style).with_message(what.to_string()))
    }

    /// A bar that counts things.
    pub fn count(&self, what: &str, total: u64) -> ProgressBar {
        let style = ProgressStyle::with_template("{msg:34} {bar:28} {pos}/{len}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bars.add(ProgressBar::new(total).with_style(style).with_message(what.to_string()))
    }

    /// A step whose length is not known.
    pub fn step(&self, what: &str) -> ProgressBar {
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = self.bars.add(ProgressBar::new_spinner().with_style(style).with_message(what.to_string()));
        if !self.bars.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        bar
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}
