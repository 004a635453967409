//! `kimg backup …`.

use super::store;
use crate::backup::{self, Choice};
use crate::config::Settings;
use crate::input;
use crate::node::Target;
use crate::pki::secrets::write_private;
use anyhow::{Context, Result};
use std::path::PathBuf;

#[derive(Debug, clap::Subcommand)]
pub(super) enum BackupCommand {
    /// Show the backups that workers keep, newest first
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Fetch a backup, decrypt it, and write it as a snapshot; Secrets stay encrypted in it
    Get {
        /// File to write; it must not exist
        file: PathBuf,
        #[command(flatten)]
        choice: Choice,
    },
    /// Put a backup in the place of the master's store: what was written after it is lost
    Restore {
        #[command(flatten)]
        choice: Choice,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub(super) fn run(command: &BackupCommand, settings: &Settings) -> Result<()> {
    match command {
        BackupCommand::Ls { json } => list(settings, *json),
        BackupCommand::Get { file, choice } => {
            if file.exists() {
                return input::bad(format!("{} exists; give another name", file.display()));
            }
            input::writable_place(file)?;
            let found = choice.find(settings)?;
            let plain = backup::fetch(settings, &found)?;
            // Not everything in it is encrypted.
            write_private(file, &plain)?;
            println!("{}: {} of {}, {} bytes", file.display(), found.backup.name(), found.node, plain.len());
            Ok(())
        }
        BackupCommand::Restore { choice, yes } => {
            let found = choice.find(settings)?;
            let plain = backup::fetch(settings, &found)?;
            let what =
                format!("Backup {} of {} ({} old)", found.backup.name(), found.node, backup::age_of(&found.backup));
            store::put_in_place(settings, &Target::default(), plain, &what, *yes)
        }
    }
}

fn list(settings: &Settings, json: bool) -> Result<()> {
    let inventory = backup::look(settings)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&inventory).context("writing JSON")?);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = inventory
        .backups
        .iter()
        .map(|found| {
            let b = &found.backup;
            vec![b.name(), found.node.clone(), backup::age_of(b), b.revision.to_string(), b.bytes.to_string()]
        })
        .collect();
    print!("{}", crate::table::render(&["NAME", "NODE", "AGE", "REVISION", "BYTES"], &rows));
    for (_, why) in &inventory.silent {
        eprintln!("kimg: {why}");
    }
    Ok(())
}
