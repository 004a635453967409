//! All ended children of a process are reaped by one thread while others wait for theirs. It would take those of other
//! tests too, and so is alone in its program.

use node_sys::process::{self, Ending};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

#[test]
fn whoever_waits_for_a_child_learns_how_it_ended() {
    let done = AtomicBool::new(false);
    let orphans = thread::scope(|scope| {
        let reaper = scope.spawn(|| {
            let mut others = Vec::new();
            while !done.load(Ordering::Relaxed) {
                others.extend(process::reap().expect("reaping"));
            }
            others
        });
        let waiters: Vec<_> = (0..2)
            .map(|waiter| {
                scope.spawn(move || {
                    for number in 0..200 {
                        let code = waiter * 100 + number % 100;
                        let line = format!("echo {number} >&2; exit {code}");
                        let (ending, said) =
                            process::run(Command::new("/bin/sh").args(["-c", &line])).expect("a shell");
                        assert_eq!((ending, said), (Ending::Code(code), format!("{number}\n").into_bytes()));
                    }
                })
            })
            .chain([scope.spawn(|| {
                let (ending, _) = process::run(Command::new("/bin/sh").args(["-c", "kill -9 $$"])).expect("a shell");
                assert_eq!(ending, Ending::Signal(9));
                assert!(process::run(&mut Command::new("/nowhere")).is_err());
            })])
            .collect();
        // Nobody waits for this one.
        let other = process::spawn(Command::new("/bin/true"), None, 0, None);
        let ended: Vec<bool> = waiters.into_iter().map(|waiter| waiter.join().is_ok()).collect();
        done.store(true, Ordering::Relaxed);
        assert_eq!(ended, [true; 3]);
        (other.expect("a program"), reaper.join().expect("the reaper"))
    });
    assert_eq!(orphans.1, [(orphans.0, Ending::Code(0))], "one that nobody waits for, and none that somebody does");
}
