//! How the programs start and end: log, runtime, signals, exit codes.

use std::ffi::OsString;
use std::process::ExitCode;

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
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Name resolution is the only user of the blocking pool.
        .max_blocking_threads(2)
        .thread_keep_alive(std::time::Duration::from_secs(2))
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("starting the runtime of {name} failed: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        tokio::select! {
            result = program => result,
            result = end_signal() => result,
        }
    });
    crate::notify::stopping();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{name} ends: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn end_signal() -> anyhow::Result<()> {
    use anyhow::Context;
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
    fn name_is_added_only_where_it_is_missing() {
        let flags = vec![OsString::from("--a=b")];
        assert_eq!(arguments("x", flags).len(), 2);
        let named = vec![OsString::from("x"), OsString::from("--a=b")];
        assert_eq!(arguments("x", named).len(), 2);
    }
}
