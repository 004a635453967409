//! `kube-apiserver store …`: looks at a store's files, and restores them, while no server runs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Looks at a store's files, and restores them, while no server runs.
#[derive(Debug, Parser)]
#[command(name = "kube-apiserver store")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reads a log or a snapshot through, and says what is in it.
    Verify {
        /// The file: `store.log` in the store's directory, or a snapshot.
        file: PathBuf,
    },
    /// Puts a snapshot in the place of the store.
    Restore {
        /// The snapshot.
        snapshot: PathBuf,
        /// Directory of the store.
        #[arg(long, default_value = "/var/lib/kimg/store")]
        store_dir: PathBuf,
    },
    /// Seals everything by the key that writes, and says which keys are in use.
    Rewrite(crate::rewrite::Args),
    /// Cuts stores off, again and again, and proves that they lose nothing.
    Torture(crate::torture::Args),
    #[command(hide = true)]
    TortureChild { spec: String },
}

/// `args` are the program's name, `store`, and the rest.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let parsed = match Args::try_parse_from(&args[1..]) {
        Ok(parsed) => parsed,
        Err(error) => {
            let code = if error.use_stderr() { 2 } else { 0 };
            // A message that cannot be printed cannot be reported either.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    match run(parsed) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> anyhow::Result<String> {
    match args.command {
        Command::Verify { file } => {
            let report = store::verify(&file)?;
            Ok(format!(
                "{}: {} keys, revision {}, {} bytes live, {} bytes whole",
                file.display(),
                report.keys,
                report.revision,
                report.live_bytes,
                report.whole_bytes
            ))
        }
        Command::Restore { snapshot, store_dir } => {
            let revision = store::restore(&snapshot, &store_dir)?;
            Ok(format!("{} restored into {} at revision {revision}", snapshot.display(), store_dir.display()))
        }
        Command::Rewrite(args) => crate::rewrite::run(&args),
        Command::Torture(args) => crate::torture::run(&args),
        Command::TortureChild { spec } => {
            store::torture::child(&spec).map(|()| String::new()).map_err(anyhow::Error::msg)
        }
    }
}
