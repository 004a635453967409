//! What is worth a line in the log.

use std::time::{Duration, Instant};

/// The same is said once in so long.
const AGAIN: Duration = Duration::from_secs(60);

/// What was said last, and when. While a master is away each of a node's components tries several times a second, for
/// hours maybe, and a node's logs hold no more than that.
#[derive(Debug, Default)]
pub struct News(Option<(String, Instant)>);

impl News {
    /// Whether `what` was not said just before, or a minute ago.
    pub fn is(&mut self, what: &str, now: Instant) -> bool {
        let news = self.0.as_ref().is_none_or(|(last, when)| last != what || now >= *when + AGAIN);
        if news {
            self.0 = Some((what.to_owned(), now));
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute() {
        let (mut news, now) = (News::default(), Instant::now());
        let heard = ["away", "away", "refused", "refused"].map(|what| news.is(what, now));
        assert_eq!(heard, [true, false, true, false]);
        assert!(news.is("refused", now + AGAIN));
    }
}
