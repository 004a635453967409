//! At which of its calls a run fails, and behind which it ends.

use super::*;

/// Of how many calls one ends a test's run: others at each provider, and in the long set all.
pub(super) fn step() -> usize {
    if std::env::var_os("KIMG_TESTS_EVERY_CALL").is_some() { 1 } else { 5 }
}

/// Behind how many calls a run ends, one after the other.
pub(super) fn ends(which: Which) -> impl Iterator<Item = usize> {
    (which as usize % step()..).step_by(step())
}

/// Runs that end behind one call after the other, until `run` says that one was whole; it has more calls than `least`.
pub(super) fn behind_each_call(which: Which, least: usize, mut run: impl FnMut(usize, &str) -> bool) {
    let ended = ends(which).take_while(|n| !run(*n, &format!("{which:?}, ended behind call {n}"))).count();
    assert!((ended + 1) * step() > least, "{which:?}: {ended}");
}

/// The faults of one call that `up` and `destroy` must come through, sooner or later. What only asks is asked again by
/// the client in all other cases, which its own tests show.
pub(super) fn faults(call: &Call) -> Vec<Fault> {
    if only_asks(call) {
        return vec![Fault::Instead(Reply::new(403))];
    }
    let limited = Reply::json(429, &json!({"id": "too_many_requests"})).header("retry-after", "20");
    vec![
        Fault::CutRequest(100),
        Fault::CutAnswer(0),
        Fault::After(Reply::new(504)),
        Fault::Instead(limited),
        Fault::Instead(Reply::new(403)),
    ]
}
