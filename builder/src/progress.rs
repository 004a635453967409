//! Progress of a command: bars on a terminal, one plain line for each step in a pipe.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Where plain lines go.
type Lines = Arc<Mutex<dyn Write + Send>>;

/// The progress of one command.
#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
    /// Where there is no terminal; none: nothing is shown.
    lines: Option<Lines>,
}

impl Progress {
    /// Bars on standard error where that is a terminal, else lines there.
    pub fn new() -> Progress {
        if std::io::stderr().is_terminal() {
            Progress { bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()), lines: None }
        } else {
            Progress::to(Arc::new(Mutex::new(std::io::stderr())))
        }
    }

    /// Nothing is shown.
    pub fn hidden() -> Progress {
        Progress { bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()), lines: None }
    }

    /// Plain lines.
    pub fn to(lines: Lines) -> Progress {
        Progress { lines: Some(lines), ..Progress::hidden() }
    }

    /// Whether steps are shown as lines.
    pub fn is_plain(&self) -> bool {
        self.lines.is_some()
    }

    /// A line of its own where there are no bars: what bars of parts add up to.
    pub fn line(&self, text: &str) {
        if let Some(lines) = &self.lines {
            // Nobody reads it any more: no reason to end the work.
            let _ = writeln!(lines.lock().unwrap_or_else(PoisonError::into_inner), "{text}");
        }
    }

    /// A bar that counts bytes; a detail, which has no line.
    pub fn bytes(&self, what: &str, total: u64) -> ProgressBar {
        let style =
            ProgressStyle::with_template("{msg:34} {bar:28} {bytes:>10}/{total_bytes:10} {bytes_per_sec} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bars.add(ProgressBar::new(total).with_style(style).with_message(what.to_string()))
    }

    /// A step whose length is not known.
    pub fn step(&self, what: &str) -> Step {
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = self.bars.add(ProgressBar::new_spinner().with_style(style).with_message(what.to_string()));
        if !self.bars.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(120));
        }
        self.line(what);
        Step { bar, progress: self.clone(), said: Mutex::new(what.to_string()) }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Progress::new()
    }
}

/// One step: a bar, or lines.
pub struct Step {
    bar: ProgressBar,
    progress: Progress,
    /// The last line, so that none stands there twice.
    said: Mutex<String>,
}

impl Step {
    /// What the step does now.
    pub fn set_message(&self, text: impl Into<String>) {
        let text = text.into();
        self.say(&text);
        self.bar.set_message(text);
    }

    /// What passes by while the step goes on; only bars show it.
    pub fn detail(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Done, and this is what came of it.
    pub fn finish_with_message(&self, text: impl Into<String>) {
        let text = text.into();
        self.say(&text);
        self.bar.finish_with_message(text);
    }

    /// Done; the next step says more.
    pub fn finish_and_clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Whether it is done.
    pub fn is_finished(&self) -> bool {
        self.bar.is_finished()
    }

    fn say(&self, text: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != text {
            self.progress.line(text);
            *said = text.to_string();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_terminal_each_step_is_a_line() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let step = Progress::to(lines.clone()).step("w: copying");
        step.set_message("w: boots");
        step.detail("w: [ 0.1] console");
        step.set_message("w: boots");
        step.finish_with_message("w: Ready");
        assert!(step.is_finished());
        let text = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "w: copying\nw: boots\nw: Ready\n");
    }
}
