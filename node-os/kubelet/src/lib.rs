//! The kubelet: runs the pods that are bound to this node, and `join`, which fetches the
//! node's certificates by TLS bootstrap.
//!
//! ```text
//!  API server ──watch pods──► pods::Pods ──one task a pod──► pods::worker
//!      ▲                                                        │ observe (CRI), plan (pure), act
//!      └── pods::status_sender ◄── pods::status (pure) ◄────────┤
//!  runtime ── events, relist ──► pods::pleg ── wakes the worker ┘
//! ```
//!
//! What is decided (plan, status, admission, environment, resources) is pure and takes the clock
//! as an argument; what acts is thin. All pod state is found again in the runtime, on disk and in
//! the API after a restart, so that the kubelet can end at any time.

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard};

pub mod cgroups;
pub mod client;
pub mod container;
pub mod cri;
pub mod events;
pub mod eviction;
pub mod images;
pub mod join;
pub mod kubelet;
pub mod local_api;
pub mod logs;
pub mod metadata_access;
pub mod mounts;
pub mod node;
pub mod options;
pub mod pods;
pub mod probes;
pub mod quantity;
pub mod server;
pub mod volumes;

/// What the Node says about itself.
pub const VERSION: &str = "v1.36.0+kimg";

/// Runs the kubelet until SIGTERM.
pub fn main(args: Vec<OsString>) -> ExitCode {
    init_logging();
    let options = match options::Options::load(args) {
        Ok(Ok(options)) => options,
        Ok(Err(usage)) => {
            let _ = usage.print();
            return ExitCode::from(if usage.use_stderr() { 2 } else { 0 });
        }
        Err(error) => return fail("kubelet", &error),
    };
    run_async("kubelet", kubelet::run(options))
}

/// Fetches this node's certificates, then ends.
pub fn join_main(args: Vec<OsString>) -> ExitCode {
    init_logging();
    match join::Options::load(args) {
        Ok(Ok(options)) => run_async("join", join::run(options)),
        Ok(Err(usage)) => {
            let _ = usage.print();
            ExitCode::from(if usage.use_stderr() { 2 } else { 0 })
        }
        Err(error) => fail("join", &error),
    }
}

/// Runs a component's future on a small runtime; its error is the last log line.
pub(crate) fn run_async(name: &str, work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    // The first provider that is installed stays; ours is the only one that is linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .build();
    match runtime {
        Err(error) => fail(name, &anyhow::Error::from(error).context("starting the async runtime")),
        Ok(runtime) => match runtime.block_on(work) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(name, &error),
        },
    }
}

fn fail(name: &str, error: &anyhow::Error) -> ExitCode {
    tracing::error!("{name}: {error:#}");
    node_sys::notify::status(&format!("{error:#}"));
    ExitCode::FAILURE
}

pub(crate) fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KIMG_LOG").unwrap_or_else(|_| {
        tracing_subscriber::EnvFilter::new("info,kube_client=warn,kube_runtime=warn,hyper=warn,tonic=warn,h2=warn")
    });
    // A second call (tests, several components in one process) finds a subscriber already there.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .try_init();
}

/// An error with all its sources on one line, without repeating what a source already said.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

/// A lock that a panicked holder does not make unusable: the data is plain maps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
