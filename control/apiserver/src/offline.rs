//! `kube-apiserver store …`: the store without the server, or beside it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::storage::commands;

/// The store without the server, or beside it.
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
    /// Reads the whole store through, beside a server too, and compares etcd's members.
    Check(commands::CheckArgs),
    /// Writes a snapshot, also of a running server's store.
    Snapshot(commands::SnapshotArgs),
    /// Puts a snapshot in the place of the store.
    Restore(commands::RestoreArgs),
    /// Moves everything from the embedded store to etcd, or back.
    Migrate(commands::MigrateArgs),
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
            crate::storage::exit_code(&error)
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
        Command::Check(args) => commands::check(&args),
        Command::Snapshot(args) => commands::snapshot(&args),
        Command::Restore(args) => commands::restore(&args),
        Command::Migrate(args) => commands::migrate(&args),
        Command::Rewrite(args) => crate::rewrite::run(&args),
        Command::Torture(args) => crate::torture::run(&args),
        Command::TortureChild { spec } => {
            store::torture::child(&spec).map(|()| String::new()).map_err(anyhow::Error::msg)
        }
    }
}
