//! The checker, on histories that are known to be good or bad.

use super::check::check;
use super::history::Event;

fn events(text: &str) -> Vec<Event> {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| l.parse().expect(l)).collect()
}

fn good(text: &str) {
    if let Err(what) = check(&events(text)) {
        panic!("refused: {what}\n{text}");
    }
}

fn bad(text: &str, why: &str) {
    let what = check(&events(text)).expect_err(text);
    assert!(what.contains(why), "{what} has no {why:?}\n{text}");
}

#[test]
fn good_histories_pass() {
    good(
        "opened 1\nput 1 /a v1 absent\nwritten 1 2\nget 2 /a\nfound 2 v1 2\ndelete 3 /a 2\nwritten 3 3\nget 4 /a\nfound 4 -",
    );
    // Overlapping reads may see either side of a write.
    good("put 1 /a v1 any\nget 2 /a\nget 3 /a\nfound 3 v1 2\nwritten 1 2\nfound 2 -");
    // Two compare-and-swaps race; one wins, whoever is answered first.
    good("put 1 /a v1 any\nwritten 1 2\nput 2 /a v2 2\nput 3 /a v3 2\nmismatch 3\nwritten 2 3");
    // What was not answered happened, or did not.
    good("put 1 /a v1 any\ncrash\nopened 1\nget 2 /a\nfound 2 -");
    good("put 1 /a v1 any\ncrash\nopened 2\nget 2 /a\nfound 2 v1 2");
    good("put 1 /a v1 any\nwritten 1 2\ndelete 2 /a any\ncrash\nopened 3\nlist 3 /\nlisted 3 3 0");
    // An unknown write takes effect late, as long as nobody said that it cannot.
    good("put 1 /a v1 any\nunknown 1\nget 2 /a\nfound 2 -\nget 3 /a\nfound 3 v1 5");
    good("put 1 /a v1 any\nunknown 1\nput 2 /a v2 absent\nmismatch 2\nget 3 /a\nfound 3 v1 2");
    // A watch goes on after a crash.
    good(
        "opened 1\nwatching 1 / 1\nput 1 /a v1 any\nseen 1 /a 2 v1\nwritten 1 2\ncrash\nopened 2\n\
         watching 1 / 2\nput 2 /a v2 any\nwritten 2 3\nseen 1 /a 3 v2\nbookmark 1 3",
    );
    good("opened 9\ncompacted 1 3 9\nwatching 1 / 9");
    // Compacted up to a write that has happened and was not answered, or not yet.
    good("opened 9\nput 1 /a v1 any\ncompacted 1 3 10\nwatching 1 / 10");
    good("opened 9\nput 1 /a v1 any\nunknown 1\ncompacted 1 3 10\nwatching 1 / 10");
    bad("opened 9\nput 1 /a v1 any\nunknown 1\ncompacted 1 3 11\n", "refused as compacted");
}

#[test]
fn stale_reads_are_found() {
    bad("put 1 /a v1 any\nwritten 1 2\nput 2 /a v2 any\nwritten 2 3\nget 3 /a\nfound 3 v1 2", "no order");
    bad("put 1 /a v1 any\nwritten 1 2\nget 2 /a\nfound 2 -", "no order");
    // One reader goes back behind what another has seen.
    bad("put 1 /a v1 any\nget 2 /a\nfound 2 v1 2\nget 3 /a\nfound 3 -\nwritten 1 2", "no order");
    bad("put 1 /a v1 any\nwritten 1 2\nlist 2 /\nlisted 2 1 0", "a list is of revision 1");
}

#[test]
fn lost_writes_are_found() {
    bad("put 1 /a v1 any\nwritten 1 2\ncrash\nopened 1", "went back from 2 to 1: the acknowledged write of v1 to /a");
    bad(
        "put 1 /a v1 any\nwritten 1 2\ncrash\nopened 2\nlist 2 /\nlisted 2 2 0",
        "write of v1 to /a at revision 2 is lost",
    );
    bad("put 1 /a v1 any\nwritten 1 2\ncrash\nopened 2\nget 2 /a\nfound 2 -", "no order");
    // What a watcher or a reader has seen is as good as answered.
    bad("watching 1 / 0\nput 1 /a v1 any\nseen 1 /a 2 v1\ncrash\nopened 2\nlist 2 /\nlisted 2 2 0", "is lost");
    bad("put 1 /a v1 any\nget 2 /a\nfound 2 v1 2\ncrash\nopened 2\nget 3 /a\nfound 3 -", "no order");
    // A refusal that rests on a write which then did not happen.
    bad("put 1 /a v1 any\nput 2 /a v2 absent\nmismatch 2\ncrash\nopened 1\nget 3 /a\nfound 3 -", "no order");
    // A removed key that comes back.
    bad(
        "put 1 /a v1 any\nwritten 1 2\ndelete 2 /a any\nwritten 2 3\ncrash\nopened 3\nlist 3 /\nlisted 3 3 1 /a v1 2",
        "removal) of /a at revision 3 is lost",
    );
    // The lost update: both have read revision 2 and both are told that they replaced it.
    bad("put 1 /a v1 any\nwritten 1 2\nput 2 /a v2 2\nput 3 /a v3 2\nwritten 2 3\nwritten 3 4", "no order");
}

#[test]
fn writes_told_twice_or_wrongly_are_found() {
    bad("put 1 /a v1 absent\nput 2 /a v2 absent\nwritten 1 2\nwritten 2 3", "no order");
    bad("put 1 /a v1 any\nput 2 /b v2 any\nwritten 1 2\nwritten 2 2", "given twice");
    bad("put 1 /a v1 any\nwritten 1 5\nput 2 /b v2 any\nwritten 2 4", "5 had been given out");
    bad("put 1 /a v1 absent\nmismatch 1", "no order");
    bad("delete 1 /a any\nwritten 1 2", "no order");
    bad("put 1 /a v1 any\nwritten 1 2\nput 2 /a v2 2\nmismatch 2", "no order");
}

#[test]
fn reads_from_the_future_are_found() {
    bad("get 1 /a\nfound 1 v1 2\nput 2 /a v1 any\nwritten 2 2", "nobody had put there");
    bad("put 1 /b v1 any\nwritten 1 2\nget 2 /a\nfound 2 v1 2", "nobody had put there");
    bad("put 1 /a v1 any\nwritten 1 3\nlist 2 /\nlisted 2 4 1 /a v1 5", "as of 5");
    bad("put 1 /a v1 any\nwritten 1 3\nlist 2 /\nlisted 2 3 1 /a v1-stamped-2-at-3 3", "nobody had put there");
    // What was lost with the store does not come back later.
    bad("put 1 /a v1 any\ncrash\nopened 1\nget 2 /a\nfound 2 -\nget 3 /a\nfound 3 v1 2", "no order");
}

#[test]
fn lists_that_mix_two_moments_are_found() {
    bad(
        "put 1 /a v1 any\nwritten 1 2\nput 2 /b v2 any\nwritten 2 3\nput 3 /a v3 any\nwritten 3 4\n\
         list 4 /\nlisted 4 4 2 /a v1 2 /b v2 3",
        "write of v3 to /a at revision 4 is lost",
    );
    bad("put 1 /a v1 any\nput 2 /b v2 any\nlist 3 /\nlisted 3 3 1 /b v2 3\nwritten 1 2\nwritten 2 3", "is lost");
    bad("put 1 /b v1 any\nput 2 /a v2 any\nlist 3 /\nlisted 3 3 2 /b v1 2 /a v2 3", "out of order");
}

#[test]
fn bad_watches_are_found() {
    let two = "opened 1\nput 1 /a v1 any\nwritten 1 2\nput 2 /a v2 any\nwritten 2 3\n";
    bad(&format!("{two}watching 1 / 1\nseen 1 /a 3 v2"), "watch 1 after 1 missed the acknowledged write of v1");
    bad(&format!("{two}watching 1 / 1\nseen 1 /a 2 v1\nseen 1 /a 2 v1"), "saw revision 2 after 2");
    bad(&format!("{two}watching 1 / 1\nseen 1 /a 3 v2\nseen 1 /a 2 v1"), "saw revision 2 after 3");
    bad(&format!("{two}watching 1 / 1\nseen 1 /a 2 v1\nbookmark 1 3"), "missed the acknowledged write of v2");
    bad(&format!("{two}watching 1 /b 1\nseen 1 /a 2 v1"), "of /b saw /a");
    bad(&format!("{two}watching 1 / 1\nseen 1 /a 2 v2"), "given twice");
    bad(&format!("{two}watching 1 / 1\nbookmark 1 1\nseen 1 /a 2 v1\nbookmark 1 1"), "was told 1");
    // Resumed behind where it was: a repeat; ahead of it: a gap.
    bad(&format!("{two}watching 1 / 1\nseen 1 /a 2 v1\ncrash\nopened 3\nwatching 1 / 2\nseen 1 /a 2 v1"), "after 2");
    bad(&format!("{two}compacted 1 3 2\n"), "refused as compacted");
    bad(&format!("{two}compacted 1 3 9\n"), "refused as compacted");
}
