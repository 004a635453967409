//! How a component starts and ends.

use std::ffi::OsString;
use std::future::Future;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// A component's flags; on wrong ones (2) and `--help` (0) the exit code, after saying why.
///
/// # Errors
/// The exit code to end with.
pub fn flags<F: clap::Parser>(args: Vec<OsString>) -> Result<F, ExitCode> {
    F::try_parse_from(args).map_err(|error| {
        // Nothing can be done where even standard error is closed.
        drop(error.print());
        ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
    })
}

/// Runs a component until it fails or is told to stop: one thread, so that memory stays small.
/// An error is printed with its whole chain and ends the component with 1; the supervisor starts it again.
pub fn run<F>(name: &str, body: F) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    init_logging();
    // A second call finds the provider already there, which is what is wanted.
    drop(rustls::crypto::ring::default_provider().install_default());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(r) => r,
        Err(e) => {
            tracing::error!("{name}: cannot start: {e}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = body => result,
            _ = term.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{name}: {error:#}");
            node_sys::notify::status(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// kube's client logs each connection that it cannot make as an error, and gives the error to who asked, who says what
/// it means.
const LOGGED: &str = "info,kube_client::client::builder=off";

fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("KIMG_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(LOGGED));
    // Already set where a test runs several components; that one stays.
    drop(
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(false)
            .with_env_filter(filter)
            .try_init(),
    );
}
