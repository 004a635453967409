//! Waiting for a condition, with a long maximum and a short poll.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// Under TCG everything takes several times as long as with KVM.
pub fn scale(seconds: u64) -> Duration {
    let factor = if crate::cluster::accelerated() { 1 } else { 3 };
    Duration::from_secs(seconds * factor)
}

/// Asks until the answer is `Some`; the error names what was waited for and the last answer.
///
/// # Errors
/// The time is over.
pub fn until<T>(what: &str, max: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    let mut last;
    loop {
        match ask() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => last = String::from("not yet"),
            Err(error) => last = format!("{error:#}"),
        }
        if start.elapsed() > max {
            bail!("waited {} s for {what}; last: {last}", max.as_secs());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}
