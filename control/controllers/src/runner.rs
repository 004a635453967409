//! Takes keys from a controller's queue and works on them, a few at a time.

use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control_client::queue::Figures;
use control_client::{Failure, Queue};

/// What a piece of work came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Look again after this long, even if nothing changes.
    After(Duration),
}

impl Outcome {
    /// Look again after some seconds, if there is a time to look again.
    pub fn after_secs(secs: Option<i64>) -> Self {
        match secs {
            Some(secs) => Self::After(Duration::from_secs(secs.max(1) as u64)),
            None => Self::Done,
        }
    }
}

pub type Worked = anyhow::Result<Outcome>;

type Reader = Box<dyn Fn() -> Figures + Send>;

static QUEUES: Mutex<Vec<(&'static str, Reader)>> = Mutex::new(Vec::new());

/// Starts `workers` workers on the queue; they end with the process.
pub fn run<T, F, Fut>(name: &'static str, queue: &Arc<Queue<T>>, workers: usize, work: F)
where
    T: Hash + Eq + Clone + Display + Send + Sync + 'static,
    F: Fn(T) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Worked> + Send,
{
    let figures = queue.clone();
    QUEUES.lock().unwrap_or_else(|e| e.into_inner()).push((name, Box::new(move || figures.figures())));
    for _ in 0..workers {
        let (queue, work) = (queue.clone(), work.clone());
        tokio::spawn(async move {
            loop {
                let key = queue.take().await;
                match work(key.clone()).await {
                    Ok(outcome) => {
                        queue.done(&key);
                        if let Outcome::After(pause) = outcome {
                            queue.add_after(key, pause);
                        }
                    }
                    Err(error) => retry(name, &queue, &key, &error),
                }
            }
        });
    }
}

fn retry<T>(name: &str, queue: &Queue<T>, key: &T, error: &anyhow::Error)
where
    T: Hash + Eq + Clone + Display + Send,
{
    let failure = error.downcast_ref::<Failure>();
    if failure.is_some_and(Failure::namespace_ends) {
        tracing::debug!("{name} {key}: its namespace is being deleted");
        queue.done(key);
        return;
    }
    let pause = queue.failed(key);
    if failure.is_some_and(Failure::is_conflict) || pause < Duration::from_millis(200) {
        // A state that is a moment old; the second look settles it.
        tracing::debug!("{name} {key}: {error:#}");
    } else {
        tracing::warn!("{name} {key}: {error:#}; trying again in {:.1} s", pause.as_secs_f32());
    }
}

/// Calls the function now and then every so often.
pub fn every(period: Duration, mut tick: impl FnMut() + Send + 'static) {
    tokio::spawn(async move {
        let mut timer = tokio::time::interval(period);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            tick();
        }
    });
}

/// The queues' figures for the metrics page.
pub fn metrics() -> String {
    let mut text = String::new();
    for (name, figures) in QUEUES.lock().unwrap_or_else(|e| e.into_inner()).iter() {
        let figures = figures();
        text += &format!(
            "workqueue_depth{{name=\"{name}\"}} {}\nworkqueue_adds_total{{name=\"{name}\"}} {}\nworkqueue_retries_total{{name=\"{name}\"}} {}\n",
            figures.depth, figures.added, figures.retried
        );
    }
    text
}
