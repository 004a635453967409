//! When a call is sent again, and after how long.

use super::{Request, Unresolved};
use crate::local::interrupt::Interrupt;
use anyhow::Result;
use http::HeaderMap;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Failures in a row after which a call has failed.
const FAILURES: u32 = 6;
/// How often a server may ask for patience.
const PATIENCE: u32 = 12;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A server that wants more patience than this is not waited for.
const LONGEST_WISH: Duration = Duration::from_secs(15 * 60);
/// Nor is one that wants more than this in all.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 60);
/// How soon a sleeper notices an interrupt.
const SLICE: Duration = Duration::from_millis(200);

/// The user interrupted the command.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Time, and whether there is any left.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> jiff::Timestamp;
    /// Waits.
    ///
    /// # Errors
    /// [`Interrupted`].
    fn sleep(&self, time: Duration) -> Result<()>;
    /// Whether to go on.
    ///
    /// # Errors
    /// [`Interrupted`].
    fn check(&self) -> Result<()>;
    /// A clock that no interrupt stops.
    fn for_cleanup(&self) -> Arc<dyn Clock>;
}

/// The machine's clock.
#[derive(Debug, Clone, Default)]
pub struct SystemClock {
    interrupt: Interrupt,
}

impl SystemClock {
    /// From now on SIGINT and SIGTERM end the calls by this clock with [`Interrupted`], so that what is temporary can
    /// be removed; the second one ends the process.
    ///
    /// # Errors
    /// The handlers cannot be set.
    pub fn watching() -> Result<SystemClock> {
        let interrupt = Interrupt::watch()?;
        interrupt.busy(true);
        Ok(SystemClock { interrupt })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    fn sleep(&self, time: Duration) -> Result<()> {
        let mut left = time;
        while !left.is_zero() {
            self.check()?;
            let slice = left.min(SLICE);
            std::thread::sleep(slice);
            left -= slice;
        }
        self.check()
    }

    fn check(&self) -> Result<()> {
        if self.interrupt.asked() { Err(Interrupted.into()) } else { Ok(()) }
    }

    fn for_cleanup(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock::default())
    }
}

/// A reader that an interrupt ends.
pub(super) struct Watched<R> {
    inner: R,
    clock: Arc<dyn Clock>,
}

impl<R> Watched<R> {
    pub(super) fn new(inner: R, clock: Arc<dyn Clock>) -> Watched<R> {
        Watched { inner, clock }
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.clock.check().map_err(|_| io::Error::other(Interrupted))?;
        super::watch::by(Some(&self.clock), || self.inner.read(buffer))
    }
}

/// How slowly a body may come, once it comes: this many bytes in that time. Whoever drips them keeps nobody waiting for
/// ever.
const LEAST: u64 = 30 << 10;
const LEAST_IN: Duration = Duration::from_secs(30);

/// A reader that ends with an error where its source gives less than [`LEAST`] in [`LEAST_IN`]. What counts is the time
/// that it is waited for, and not what the one who reads does between; and it counts from the first byte on, since
/// servers fetch or pack what they are asked for before they send it.
#[derive(Debug)]
pub struct Steady<R> {
    inner: R,
    window: Duration,
    begun: bool,
    waited: Duration,
    bytes: u64,
}

impl<R> Steady<R> {
    /// Reads from `inner`, which ends a read that gets nothing at all by itself.
    pub fn new(inner: R) -> Steady<R> {
        Steady { inner, window: LEAST_IN, begun: false, waited: Duration::ZERO, bytes: 0 }
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let asked = Instant::now();
        let n = self.inner.read(buffer)?;
        if std::mem::replace(&mut self.begun, true) {
            self.waited += asked.elapsed();
        }
        self.bytes += n as u64;
        // The end is never too late.
        if n > 0 && self.waited >= self.window {
            if self.bytes < LEAST {
                let slow = format!("{} bytes came in {} s", self.bytes, self.waited.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, slow));
            }
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        Ok(n)
    }
}

/// What comes of an attempt.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is the answer.
    Counts,
    /// The server wants patience, and says for how long or does not.
    Patience(Option<Duration>, String),
    /// It failed and may be tried again.
    Again(String),
    /// It failed, and may have been done.
    Lost(String),
    /// It will never work.
    Final(String),
}

impl Verdict {
    pub(super) fn why(&self) -> &str {
        match self {
            Verdict::Counts => "",
            Verdict::Patience(_, why) | Verdict::Again(why) | Verdict::Lost(why) | Verdict::Final(why) => why,
        }
    }

    /// The exchange did not come as far as an answer.
    pub(super) fn of_failed(error: &ureq::Error, request: &Request) -> Verdict {
        use ureq::Error::{
            BadUri, ConnectProxyFailed, ConnectionFailed, HostNotFound, Http, InvalidProxyUrl, Io, Rustls, Timeout, Tls,
        };
        let why = error.to_string();
        if let Some(unresolved) = Unresolved::in_error(error) {
            let why = unresolved.to_string();
            return if unresolved.again { Verdict::Again(why) } else { Verdict::Final(why) };
        }
        match error {
            // A certificate does not become better by waiting.
            Rustls(_) | Tls(_) | BadUri(_) | Http(_) | InvalidProxyUrl => Verdict::Final(why),
            HostNotFound | ConnectionFailed | ConnectProxyFailed(_) => Verdict::Again(why),
            Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => Verdict::Again(why),
            Io(error) if error.kind() == io::ErrorKind::ConnectionRefused => Verdict::Again(why),
            Io(error) if error.kind() == io::ErrorKind::InvalidData => Verdict::Final(why),
            _ => Verdict::of_broken(error, request),
        }
    }

    /// The connection broke when the request was on its way.
    pub(super) fn of_broken(error: &ureq::Error, request: &Request) -> Verdict {
        use ureq::Error::{BodyExceedsLimit, LargeResponseHeader, RedirectFailed};
        let why = error.to_string();
        match error {
            _ if !request.is_repeatable() => Verdict::Lost(why),
            // The next answer would be the same.
            BodyExceedsLimit(_) | LargeResponseHeader(..) | RedirectFailed => Verdict::Final(why),
            _ => Verdict::Again(why),
        }
    }
}

/// What a status means: 429 was not done, and so was 503 with a time at which to come again.
pub(super) fn judge(status: u16, headers: &HeaderMap, request: &Request, clock: &dyn Clock) -> Verdict {
    let why = format!("HTTP {status}");
    match status {
        429 => Verdict::Patience(wish(headers, clock), why),
        503 if after(headers, clock).is_some() => Verdict::Patience(after(headers, clock), why),
        408 | 500 | 502 | 503 | 504 if request.is_repeatable() => Verdict::Again(why),
        _ => Verdict::Counts,
    }
}

/// How long the server asks to wait: `Retry-After`, or the Unix time in `RateLimit-Reset` (DigitalOcean, Hetzner).
/// The latter stands in all their answers, and says something where the rate is why.
fn wish(headers: &HeaderMap, clock: &dyn Clock) -> Option<Duration> {
    if headers.contains_key("retry-after") {
        return after(headers, clock);
    }
    let reset: i64 = text(headers, "ratelimit-reset")?.parse().ok()?;
    jiff::Timestamp::from_second(reset).ok().map(|time| until(time, clock))
}

/// `Retry-After` in seconds or as a date (RFC 9110).
fn after(headers: &HeaderMap, clock: &dyn Clock) -> Option<Duration> {
    let after = text(headers, "retry-after")?;
    if !after.is_empty() && after.bytes().all(|digit| digit.is_ascii_digit()) {
        // More than fits is for ever, too.
        return Some(Duration::from_secs(
            after.parse().map_or(u32::MAX, |seconds: u64| seconds.try_into().unwrap_or(u32::MAX)).into(),
        ));
    }
    jiff::fmt::rfc2822::parse(after).ok().map(|date| until(date.timestamp(), clock))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim)
}

fn until(time: jiff::Timestamp, clock: &dyn Clock) -> Duration {
    Duration::try_from(time.duration_since(clock.now())).unwrap_or(Duration::ZERO)
}

/// The pauses between the attempts of one call.
#[derive(Debug, Default)]
pub(super) struct Pause {
    failures: u32,
    waits: u32,
    waited: Duration,
}

impl Pause {
    pub(super) fn new() -> Pause {
        Pause::default()
    }

    pub(super) fn tried(&self) -> u32 {
        self.failures + self.waits + 1
    }

    /// Whether this was one time too many.
    pub(super) fn is_spent(&self, verdict: &Verdict) -> bool {
        match verdict {
            Verdict::Patience(wish, _) => {
                let time = wish.unwrap_or_default();
                let too_long = time > LONGEST_WISH || self.waited.saturating_add(time) > LONGEST_WAIT;
                too_long || self.waits + 1 >= PATIENCE
            }
            _ => self.failures + 1 >= FAILURES,
        }
    }

    /// How long to wait now. A quarter of it is chance, so that many clients do not come back at once.
    pub(super) fn next(&mut self, verdict: &Verdict) -> Duration {
        let (count, wish) = match verdict {
            Verdict::Patience(wish, _) => (&mut self.waits, *wish),
            _ => (&mut self.failures, None),
        };
        let grown = FIRST_PAUSE.saturating_mul(1 << (*count).min(6)).min(LONGEST_PAUSE);
        *count += 1;
        let base = wish.map_or(grown, |wish| wish.max(FIRST_PAUSE));
        let time = base + base.mul_f64(rand::random_range(0.0..0.25));
        self.waited += time;
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_drips_is_not_waited_for() {
        struct Drip(u64);
        impl Read for Drip {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                std::thread::sleep(Duration::from_millis(2));
                self.0 = self.0.saturating_sub(1);
                buffer[0] = 1;
                Ok(usize::from(self.0 > 0))
            }
        }
        let read = |count, window| {
            let mut steady = Steady { window, ..Steady::new(Drip(count)) };
            steady.read_to_end(&mut Vec::new()).map_err(|error| error.kind())
        };
        assert_eq!(read(u64::MAX, Duration::from_millis(20)), Err(io::ErrorKind::TimedOut));
        // Little is no fault, and may be whole.
        assert_eq!(read(10, Duration::from_secs(30)), Ok(9));
        let mut enough = Steady { window: Duration::from_millis(1), ..Steady::new(io::repeat(0)) };
        let mut buffer = vec![0; usize::try_from(LEAST).unwrap()];
        for _ in 0..5 {
            enough.waited = Duration::from_millis(2);
            enough.read_exact(&mut buffer).unwrap();
        }
    }

    #[test]
    fn who_is_slow_to_begin_is_waited_for() {
        struct Late;
        impl Read for Late {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                std::thread::sleep(Duration::from_millis(5));
                buffer[0] = 1;
                Ok(1)
            }
        }
        let mut steady = Steady { window: Duration::from_millis(5), ..Steady::new(Late) };
        steady.read_exact(&mut [0]).unwrap();
        assert_eq!(steady.read_exact(&mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
