//! Large bodies and objects: read, checked and written off the async workers, few at a time, so that health checks,
//! leases and watches go on while they are worked on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::HeaderMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

use crate::error::{ApiError, Result};

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
}

impl Default for Offload {
    fn default() -> Offload {
        Offload { turns: Arc::new(Semaphore::new(TURNS)), room: Arc::new(Semaphore::new(ROOM / UNIT)) }
    }
}

/// How much a request costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weight {
    /// Done in no time.
    Light,
    /// Needs time but little memory: its turn ends whenever it waits for something.
    Slow,
    /// Needs memory too: its turn lasts until it is answered.
    Large,
}

impl Offload {
    /// Waits until there is room for a large body: for as much as the client says it is, else for `most`.
    pub(crate) async fn room(&self, headers: &HeaderMap, most: usize) -> Result<OwnedSemaphorePermit> {
        let said = headers.get(http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        let units = said.unwrap_or(most).min(most).div_ceil(UNIT);
        let units = u32::try_from(units).map_err(ApiError::internal)?;
        self.room.clone().acquire_many_owned(units).await.map_err(ApiError::internal)
    }

    /// Does the work, off the workers unless it is light.
    pub(crate) async fn run<T>(&self, weight: Weight, work: impl Future<Output = T>) -> T {
        if weight == Weight::Light {
            return work.await;
        }
        let turns = PollSemaphore::new(self.turns.clone());
        Turn { work: Box::pin(work), turns, turn: None, keep: weight == Weight::Large }.await
    }
}

/// Work that waits for its turn.
struct Turn<F> {
    work: Pin<Box<F>>,
    turns: PollSemaphore,
    turn: Option<OwnedSemaphorePermit>,
    keep: bool,
}

impl<F: Future> Future for Turn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.turn.is_none() {
            // None would say that the semaphore is closed, which nobody does.
            self.turn = ready!(self.turns.poll_acquire(context));
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

    #[tokio::test]
    async fn room_is_what_the_client_says() {
        let offload = Offload::default();
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_LENGTH, (100 * UNIT).into());
        let taken = offload.room(&headers, 1 << 20).await.unwrap();
        assert_eq!(taken.num_permits(), 100);
        assert_eq!(offload.room(&HeaderMap::new(), 1 << 20).await.unwrap().num_permits(), 1 << 10);
        headers.insert(http::header::CONTENT_LENGTH, usize::MAX.into());
        assert_eq!(offload.room(&headers, 1 << 20).await.unwrap().num_permits(), 1 << 10, "more is refused anyway");
    }
}
