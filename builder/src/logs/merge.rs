//! Lines of several logs in the order in which they were written.

use super::line::Line;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A line, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Microseconds since 1970: where it stands among the others.
    pub at: i64,
    /// Node.
    pub node: Arc<str>,
    /// Service.
    pub service: Arc<str>,
    /// Text.
    pub text: String,
}

/// The lines of one log; those before the first time get that one, and those of a log that says none get `otherwise`.
pub fn entries(node: &Arc<str>, service: &Arc<str>, lines: Vec<Line>, otherwise: i64) -> Vec<Entry> {
    let first = lines.iter().find_map(|line| line.at).unwrap_or(otherwise);
    let entry = |line: Line| Entry {
        at: line.at.unwrap_or(first),
        node: node.clone(),
        service: service.clone(),
        text: line.text,
    };
    lines.into_iter().map(entry).collect()
}

/// Puts lines in order. Those of one log stay as they came: threads write a moment later than they look at the clock,
/// and a clock may be set back. A line is then as old as the oldest behind it.
pub fn sort(entries: &mut [Entry]) {
    let mut oldest: BTreeMap<(Arc<str>, Arc<str>), i64> = BTreeMap::new();
    for entry in entries.iter_mut().rev() {
        let oldest = oldest.entry((entry.node.clone(), entry.service.clone())).or_insert(entry.at);
        *oldest = entry.at.min(*oldest);
        entry.at = *oldest;
    }
    entries.sort_by_key(|entry| entry.at);
}

/// The last so many.
pub fn last(entries: &mut Vec<Entry>, most: Option<usize>) {
    let excess = most.map_or(0, |most| entries.len().saturating_sub(most));
    entries.drain(..excess);
}

/// The last ones whose texts take no more than so many bytes.
pub fn newest(entries: &mut Vec<Entry>, most: usize) {
    let mut bytes = 0usize;
    let fits = entries.iter().rev().take_while(|entry| {
        bytes = bytes.saturating_add(entry.text.len());
        bytes <= most
    });
    let excess = entries.len() - fits.count();
    entries.drain(..excess);
}

/// Lines of logs that go on. They come over several connections, so that each waits a moment for older ones.
#[derive(Debug, Default)]
pub struct Waiting(Vec<(Instant, Entry)>);

impl Waiting {
    /// How long a line waits.
    pub const MOMENT: Duration = Duration::from_millis(400);

    /// One more line.
    pub fn add(&mut self, entry: Entry, now: Instant) {
        self.0.push((now, entry));
    }

    /// When the last line came.
    pub fn newest(&self) -> Option<Instant> {
        self.0.last().map(|(came, _)| *came)
    }

    /// All lines that have waited long enough, in order.
    pub fn due(&mut self, now: Instant) -> Vec<Entry> {
        let (due, left) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(came, _)| now.saturating_duration_since(*came) >= Waiting::MOMENT);
        self.0 = left;
        let due: Vec<(Instant, Entry)> = due;
        let mut due: Vec<Entry> = due.into_iter().map(|(_, entry)| entry).collect();
        sort(&mut due);
        due
    }
}

/// How far a log was read, so that what comes again after a lost connection is not shown again.
#[derive(Debug, Clone, Default)]
pub struct Place {
    last: Option<Line>,
    /// Lines that come now have been seen, until the last one has.
    again: bool,
}

impl Place {
    /// The connection was lost: the end of the log comes again.
    pub fn lost(&mut self) {
        self.again = self.last.is_some();
    }

    /// Whether a line is new.
    pub fn is_new(&mut self, line: &Line) -> bool {
        if let Some(last) = self.last.as_ref().filter(|_| self.again) {
            if line == last {
                self.again = false;
                return false;
            }
            // A log of which the last line has gone: what is later is new.
            if line.at <= last.at {
                return false;
            }
            self.again = false;
        }
        self.last = Some(line.clone());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(all: &[(i64, &str)]) -> Vec<Line> {
        // Below 0: without a time.
        all.iter().map(|(at, text)| Line { at: (*at >= 0).then_some(*at), text: (*text).into() }).collect()
    }

    fn of(node: &str, all: &[(i64, &str)]) -> Vec<Entry> {
        entries(&node.into(), &"s".into(), lines(all), 25)
    }

    fn texts(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|e| e.text.as_str()).collect()
    }

    #[test]
    fn logs_of_several_nodes_become_one() {
        let mut all = of("a", &[(-1, "a0"), (10, "a1"), (10, " a1 goes on"), (30, "a2")]);
        all.extend(of("b", &[(5, "b1"), (10, "b2"), (20, "b3"), (40, "b4")]));
        sort(&mut all);
        assert_eq!(texts(&all), ["b1", "a0", "a1", " a1 goes on", "b2", "b3", "a2", "b4"]);
        last(&mut all, Some(2));
        assert_eq!(texts(&all), ["a2", "b4"]);
        last(&mut all, None);
        assert_eq!(all.len(), 2);
        assert_eq!(of("a", &[(-1, "x")])[0].at, 25, "no line says a time");
        newest(&mut all, 3);
        assert_eq!(texts(&all), ["b4"]);
    }

    #[test]
    fn a_log_stays_in_the_order_in_which_it_was_written() {
        let mut all = of("a", &[(10, "a1"), (12, "a2"), (11, "a3")]);
        // Its clock was set back by an hour.
        all.extend(of("b", &[(3609, "b1"), (3610, "b2"), (11, "b3"), (13, "b4")]));
        sort(&mut all);
        assert_eq!(texts(&all), ["a1", "a2", "a3", "b1", "b2", "b3", "b4"]);
    }

    #[test]
    fn what_goes_on_waits_a_moment_for_what_is_older() {
        let start = Instant::now();
        let mut waiting = Waiting::default();
        let [a, b] = [of("a", &[(20, "a")]).remove(0), of("b", &[(10, "b")]).remove(0)];
        waiting.add(a, start);
        waiting.add(b, start + Waiting::MOMENT / 2);
        assert!(waiting.due(start + Waiting::MOMENT / 2).is_empty());
        assert_eq!(texts(&waiting.due(start + Waiting::MOMENT * 2)), ["b", "a"]);
        assert_eq!(waiting.newest(), None);
    }

    #[test]
    fn nothing_is_shown_twice_after_a_lost_connection() {
        let mut place = Place::default();
        let fresh = |place: &mut Place, all: &[(i64, &str)]| -> Vec<String> {
            lines(all).into_iter().filter(|line| place.is_new(line)).map(|line| line.text).collect()
        };
        place.lost();
        assert_eq!(fresh(&mut place, &[(1, "a"), (2, "b"), (2, "c")]), ["a", "b", "c"], "the first time");
        place.lost();
        assert_eq!(fresh(&mut place, &[(1, "a"), (2, "b"), (2, "c"), (2, "d"), (3, "e")]), ["d", "e"]);
        // The last line has gone from the log.
        place.lost();
        assert_eq!(fresh(&mut place, &[(2, "b"), (4, "f"), (4, "g")]), ["f", "g"]);
        assert_eq!(fresh(&mut place, &[(4, "g")]), ["g"], "said twice is shown twice");
    }
}
