//! How the programs start and end: log, runtime, signals, exit codes.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;

/// Logs go to standard error, one line an event; `RUST_LOG` says how much.
fn start_log() {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=error,hyper=error,h2=error,rustls=error"));
    // The log may have been set by a process that carries several programs.
    let set = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .try_init();
    if set.is_err() {
        tracing::debug!("the log was set before");
    }
}

/// Starts the log, and reads a program's flags; on wrong ones (2) and `--help` (0) the exit code, after saying why.
///
/// # Errors
/// The exit code to end with.
pub fn settings<S: clap::Parser>(name: &str, args: Vec<OsString>) -> Result<S, ExitCode> {
    start_log();
    S::try_parse_from(arguments(name, args)).map_err(|error| {
        // Where the message cannot be printed, nobody is there to read it.
        drop(error.print());
        ExitCode::from(if error.use_stderr() { 2 } else { 0 })
    })
}

/// The program name at the front, as the argument parser wants it, whether or not the caller gave it.
fn arguments(name: &str, args: Vec<OsString>) -> Vec<OsString> {
    let has_name = args.first().is_some_and(|first| !first.to_string_lossy().starts_with('-'));
    if has_name { args } else { std::iter::once(OsString::from(name)).chain(args).collect() }
}

/// Runs the program on a runtime of one thread until it fails or is told to end.
pub fn run<F>(name: &str, program: F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    run_then(name, program, async {})
}

/// The same; where it is told to end, does what comes last once nothing of the program runs any more.
pub fn run_then<F>(name: &str, program: F, last: impl Future<Output = ()>) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let result = start_runtime(name).and_then(|runtime| {
        let result = runtime.block_on(async {
            tokio::select! {
                result = program => result,
                result = end_signal() => result,
            }
        });
        crate::notify::stopping();
        // With it all tasks end.
        runtime.shutdown_timeout(Duration::from_millis(100));
        result
    });
    let result = result.and_then(|()| {
        let runtime = start_runtime(name)?;
        runtime.block_on(last);
        runtime.shutdown_timeout(Duration::from_millis(100));
        Ok(())
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{name} ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_runtime(name: &str) -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Name resolution is the only user of the blocking pool.
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .with_context(|| format!("starting the runtime of {name}"))
}

async fn end_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("catching SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("catching SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("told to end");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_last_comes_when_all_tasks_have_ended() {
        struct Ends(std::sync::Arc<std::sync::Mutex<Vec<&'static str>>>);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.lock().unwrap().push("task ended");
            }
        }
        let said = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let (task, last) = (Ends(said.clone()), said.clone());
        let program = async {
            tokio::spawn(async move {
                let _task = task;
                std::future::pending::<()>().await;
            });
            // By now the signal is caught: both were begun.
            tokio::time::sleep(Duration::from_millis(1)).await;
            std::process::Command::new("kill").args(["-TERM", &std::process::id().to_string()]).status()?;
            std::future::pending().await
        };
        let code = run_then("x", program, async move { last.lock().unwrap().push("last") });
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(*said.lock().unwrap(), ["task ended", "last"]);
    }

    #[test]
    fn name_is_added_only_where_it_is_missing() {
        let flags = vec![OsString::from("--a=b")];
        assert_eq!(arguments("x", flags).len(), 2);
        let named = vec![OsString::from("x"), OsString::from("--a=b")];
        assert_eq!(arguments("x", named).len(), 2);
    }
}
