//! `kube-apiserver store …`: looks at a store's files, and restores them, while no server runs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use store::Cipher;

use crate::registry::prefix;

/// Looks at a store's files, and restores them, while no server runs.
#[derive(Debug, Parser)]
#[command(name = "kube-apiserver store")]
struct Args {
    /// File with the key that Secrets are encrypted with on disk.
    #[arg(long, global = true)]
    encryption_key_file: Option<PathBuf>,
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
    let cipher = cipher(args.encryption_key_file.as_deref())?;
    match args.command {
        Command::Verify { file } => {
            let report = store::verify(&file, cipher.as_ref())?;
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
            let revision = store::restore(&snapshot, &store_dir, cipher.as_ref())?;
            Ok(format!("{} restored into {} at revision {revision}", snapshot.display(), store_dir.display()))
        }
    }
}

/// The cipher of the key in a file.
pub(crate) fn cipher(file: Option<&std::path::Path>) -> anyhow::Result<Option<Cipher>> {
    let Some(file) = file else { return Ok(None) };
    let key = std::fs::read(file).with_context(|| format!("reading --encryption-key-file {}", file.display()))?;
    let cipher = Cipher::new(&key, vec![prefix("", "secrets")])
        .map_err(|e| anyhow::anyhow!("--encryption-key-file {}: {e}", file.display()))?;
    Ok(Some(cipher))
}
