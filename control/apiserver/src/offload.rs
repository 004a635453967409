//! Large bodies and objects: read, checked and written off the async workers, few at a time, so that health checks,
//! leases and watches go on while they are worked on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::error::{ApiError, Result};
use crate::handlers::BODY_LIMIT;

/// What is smaller is worked on at once, bytes; YAML, which is read slowly, never is.
pub(crate) const LARGE: usize = 64 << 10;
/// Requests with large bodies or objects that are worked on at one time.
const TURNS: usize = 2;
/// Bytes of large bodies that are held at one time, in all.
const ROOM: usize = 64 << 20;
/// The unit in which room is given.
const UNIT: usize = 1 << 10;

/// Turns and room for large bodies.
#[derive(Debug)]
pub(crate) struct Offload {
    turns: Arc<Semaphore>,
    room: Arc<Semaphore>,
    /// Of the room, what is kept for one whole body.
    last: Arc<Semaphore>,
}

impl Default for Offload {
    fn default() -> Offload {
        let (turns, room) = (Semaphore::new(TURNS), Semaphore::new((ROOM - BODY_LIMIT) / UNIT));
        Offload { turns: Arc::new(turns), room: Arc::new(room), last: Arc::new(Semaphore::new(1)) }
    }
}

/// The room that a body has taken so far; given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Room {
    taken: Option<OwnedSemaphorePermit>,
    last: Option<OwnedSemaphorePermit>,
}

/// How much a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Done in no time.
    Light,
    /// Needs time but little memory: its turn ends when it first waits for something.
    Slow,
    /// Needs memory too: its turn lasts until it is answered.
    Large,
}

impl Offload {
    /// Waits until a body has room for so many bytes in all: for what has come of it, as what is only announced may
    /// never come. Many may hold a part each and wait for the rest; so one of them goes on into what is kept for that.
    pub(crate) async fn grow(&self, room: &mut Room, bytes: usize) -> Result<()> {
        let has = room.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let units = bytes.div_ceil(UNIT).saturating_sub(has);
        if units == 0 || room.last.is_some() {
            return Ok(());
        }
        let units = u32::try_from(units).map_err(ApiError::internal)?;
        tokio::select! {
            biased;
            more = self.room.clone().acquire_many_owned(units) => {
                let more = more.map_err(ApiError::internal)?;
                match &mut room.taken {
                    Some(taken) => taken.merge(more),
                    taken => *taken = Some(more),
                }
            }
            last = self.last.clone().acquire_owned() => room.last = Some(last.map_err(ApiError::internal)?),
        }
        Ok(())
    }

    /// Does the work, off the workers unless it is light.
    pub(crate) async fn run<T>(&self, weight: Weight, work: impl Future<Output = T>) -> T {
        if weight == Weight::Light {
            return work.await;
        }
        let turns = PollSemaphore::new(self.turns.clone());
        Turn { work: Box::pin(work), turns, turn: None, begun: false, keep: weight == Weight::Large }.await
    }
}

/// Work that waits for its turn.
struct Turn<F> {
    work: Pin<Box<F>>,
    turns: PollSemaphore,
    turn: Option<OwnedSemaphorePermit>,
    /// Work that has begun never waits for a turn again: it may hold a lock that owners of turns wait for.
    begun: bool,
    keep: bool,
}

impl<F: Future> Future for Turn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if !self.begun {
            // None would say that the semaphore is closed, which nobody does.
            self.turn = ready!(self.turns.poll_acquire(context));
            self.begun = true;
        }
        let done = tokio::task::block_in_place(|| self.work.as_mut().poll(context));
        if done.is_ready() || !self.keep {
            self.turn = None;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn few_at_a_time_and_others_go_on() {
        let (offload, inside) = (Arc::new(Offload::default()), Arc::new(AtomicUsize::new(0)));
        let (open, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        let works: Vec<_> = (0..6)
            .map(|_| {
                let (offload, inside, gate) = (offload.clone(), inside.clone(), gate.clone());
                tokio::spawn(async move {
                    let work = async {
                        inside.fetch_add(1, Ordering::SeqCst);
                        gate.lock().unwrap().recv().unwrap();
                    };
                    offload.run(Weight::Large, work).await;
                })
            })
            .collect();
        // The only worker is free to look, though two of the works block.
        while inside.load(Ordering::SeqCst) < TURNS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(inside.load(Ordering::SeqCst), TURNS, "the others wait");
        for _ in &works {
            open.send(()).unwrap();
        }
        for work in works {
            work.await.unwrap();
        }
        assert_eq!(inside.load(Ordering::SeqCst), 6);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_holds_a_lock_waits_for_no_turn() {
        let (offload, lock) = (Offload::default(), tokio::sync::Mutex::new(()));
        let (locked, go) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
        let slow = offload.run(Weight::Slow, async {
            let _held = lock.lock().await;
            locked.notify_one();
            go.notified().await;
        });
        let large = async {
            locked.notified().await;
            let waits = || async {
                go.notify_one();
                drop(lock.lock().await);
            };
            tokio::join!(offload.run(Weight::Large, waits()), offload.run(Weight::Large, waits()));
        };
        let all = async { tokio::join!(slow, large) };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("nobody waits for each other");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_nobody_waits_for_is_not_begun() {
        let offload = Offload::default();
        let turns = offload.turns.clone().acquire_many_owned(TURNS as u32).await.unwrap();
        let begun = AtomicUsize::new(0);
        let work = || async { begun.fetch_add(1, Ordering::SeqCst) };
        {
            let mut gone = std::pin::pin!(offload.run(Weight::Large, work()));
            assert!(futures::poll!(gone.as_mut()).is_pending());
        }
        drop(turns);
        offload.run(Weight::Large, work()).await;
        assert_eq!(begun.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn room_is_for_what_has_come() {
        let offload = Offload::default();
        let mut room = Room::default();
        for bytes in [1, 100 * UNIT, 50 * UNIT] {
            offload.grow(&mut room, bytes).await.unwrap();
        }
        assert_eq!(room.taken.as_ref().map(OwnedSemaphorePermit::num_permits), Some(100), "as much as it was at most");
        // When nothing is left, one body goes on; the others wait for it.
        let free = offload.room.available_permits();
        let mut all = Room::default();
        offload.grow(&mut all, free * UNIT).await.unwrap();
        offload.grow(&mut room, BODY_LIMIT).await.unwrap();
        let mut other = Room::default();
        {
            let mut waits = std::pin::pin!(offload.grow(&mut other, UNIT));
            assert!(futures::poll!(waits.as_mut()).is_pending());
            drop(room);
            waits.await.unwrap();
        }
        drop((all, other));
        assert_eq!(offload.room.available_permits(), free + 100);
        assert_eq!(offload.last.available_permits(), 1);
    }
}
