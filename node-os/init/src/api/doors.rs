//! How many may be connected. Anybody may begin, so whoever has not shown yet who he is gives way to the next.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::task::AbortHandle;

/// Open connections, and of them those of strangers, the oldest first.
#[derive(Debug)]
pub(super) struct Doors {
    most: usize,
    open: Cell<usize>,
    number: Cell<u64>,
    strangers: RefCell<VecDeque<(u64, AbortHandle)>>,
}

/// One connection; counted until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Rc<Doors>, u64);

impl Doors {
    pub(super) fn new(most: usize) -> Rc<Doors> {
        Rc::new(Doors { most, open: Cell::new(0), number: Cell::new(0), strangers: RefCell::default() })
    }

    /// Lets a connection in, that of a stranger. Where all places are taken the one who has been a stranger for longest
    /// loses his; where there is no stranger, this one is not let in.
    pub(super) fn admit<F: Future<Output = ()> + 'static>(self: &Rc<Self>, work: impl FnOnce(Place) -> F) {
        if self.open.get() >= self.most {
            let Some((_, oldest)) = self.strangers.borrow_mut().pop_front() else { return };
            oldest.abort();
        }
        self.open.set(self.open.get() + 1);
        self.number.set(self.number.get() + 1);
        let number = self.number.get();
        let task = tokio::task::spawn_local(work(Place(self.clone(), number)));
        self.strangers.borrow_mut().push_back((number, task.abort_handle()));
    }
}

impl Place {
    /// This one has shown who he is.
    pub(super) fn is_known(&self) {
        self.0.strangers.borrow_mut().retain(|(number, _)| *number != self.1);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.is_known();
        self.0.open.set(self.0.open.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[tokio::test]
    async fn strangers_give_way_and_the_known_stay() {
        let test = async {
            let doors = Doors::new(4);
            let inside: Rc<RefCell<BTreeSet<u64>>> = Rc::default();
            let admit = |known: bool| {
                let inside = inside.clone();
                doors.admit(|place| async move {
                    if known {
                        place.is_known();
                    }
                    let number = place.1;
                    inside.borrow_mut().insert(number);
                    let _leaves = Leaves(inside, number);
                    std::future::pending::<()>().await;
                });
            };
            let seen = async || {
                // The others get their turn.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                inside.borrow().iter().copied().collect::<Vec<_>>()
            };
            for known in [true, false, true, false] {
                admit(known);
            }
            assert_eq!(seen().await, [1, 2, 3, 4]);
            admit(false);
            assert_eq!(seen().await, [1, 3, 4, 5], "the oldest stranger has gone");
            admit(true);
            assert_eq!(seen().await, [1, 3, 5, 6]);
            admit(true);
            assert_eq!(seen().await, [1, 3, 6, 7]);
            admit(false);
            assert_eq!(seen().await, [1, 3, 6, 7], "nobody gives way");
            assert_eq!(doors.open.get(), 4);
        };
        tokio::task::LocalSet::new().run_until(test).await;
    }

    struct Leaves(Rc<RefCell<BTreeSet<u64>>>, u64);

    impl Drop for Leaves {
        fn drop(&mut self) {
            self.0.borrow_mut().remove(&self.1);
        }
    }
}
