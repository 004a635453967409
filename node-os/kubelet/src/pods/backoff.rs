//! How long a container that keeps ending waits before it runs again. Pure: the clock is an argument.

use std::collections::HashMap;
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy)]
struct Entry {
    length: Duration,
    updated: i64,
}

/// Waits by container. Times are Unix nanoseconds.
#[derive(Debug, Default)]
pub struct Backoff {
    entries: HashMap<String, Entry>,
}

impl Backoff {
    /// Asks to start a container that ended at `finished`: either it may (and the next wait is
    /// longer), or how long it still waits and the whole length of the wait.
    pub fn ask(&mut self, name: &str, finished: i64, now: i64) -> Result<(), (Duration, Duration)> {
        let since = |then: i64| Duration::from_nanos(now.saturating_sub(then).max(0) as u64);
        match self.entries.get_mut(name) {
            Some(entry) if since(entry.updated) <= 2 * LONGEST => {
                let ended = since(finished);
                if ended < entry.length {
                    return Err((entry.length - ended, entry.length));
                }
                entry.length = (entry.length * 2).min(LONGEST);
                entry.updated = now;
            }
            _ => {
                self.entries.insert(name.to_string(), Entry { length: FIRST, updated: now });
            }
        }
        Ok(())
    }

    /// Forgets a container, because its spec changed.
    pub fn forget(&mut self, name: &str) {
        self.entries.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    #[test]
    fn waits_double_and_are_forgotten() {
        let mut backoff = Backoff::default();
        assert!(backoff.ask("a", 100 * S, 100 * S).is_ok(), "the first restart is at once");
        assert_eq!(backoff.ask("a", 101 * S, 102 * S), Err((Duration::from_secs(9), Duration::from_secs(10))));
        assert!(backoff.ask("a", 101 * S, 111 * S).is_ok());
        assert_eq!(backoff.ask("a", 112 * S, 112 * S).unwrap_err().1, Duration::from_secs(20));
        assert!(backoff.ask("a", 112 * S, 132 * S).is_ok());
        assert!(backoff.ask("a", 2000 * S, 2000 * S).is_ok(), "forgotten after long quiet");
        assert_eq!(backoff.ask("a", 2001 * S, 2001 * S).unwrap_err().1, Duration::from_secs(10));
    }
}
