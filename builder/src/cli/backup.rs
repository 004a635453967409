//! `kimg backup …`.

use super::store;
use crate::backup::away::Away;
use crate::backup::{self, Choice, Found, here};
use crate::config::Settings;
use crate::heal::Copy;
use crate::input;
use crate::local::state;
use crate::node::Target;
use crate::oci::registry::credentials::environment;
use crate::pki::Secrets;
use crate::pki::secrets::write_private;
use crate::web::Client;
use anyhow::{Context, Result, bail};
use node_api::Backup;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(super) enum BackupCommand {
    /// Show the backups that workers keep, newest first, then those of `[backup] to`
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
    /// Take a fresh copy, and keep it where `[backup] to` says, encrypted as all are; for cron or a timer
    Send,
    /// Put a backup in the place of the master's store: what was written after it is lost
    Restore {
        #[command(flatten)]
        choice: Choice,
        /// Do not ask
        #[arg(long, short)]
        yes: bool,
    },
}

pub(super) fn run(command: &BackupCommand, settings: &Settings) -> Result<ExitCode> {
    let done = match command {
        BackupCommand::Ls { json } => return list(settings, *json),
        BackupCommand::Get { file, choice } => {
            if file.exists() {
                return input::bad(format!("{} exists; give another name", file.display()));
            }
            input::writable_place(file)?;
            let (what, plain) = chosen(settings, choice)?;
            // Not everything in it is encrypted.
            write_private(file, &plain)?;
            println!("{}: {what}, {} bytes", file.display(), plain.len());
            Ok(())
        }
        BackupCommand::Send => send(settings),
        BackupCommand::Restore { choice, yes } => {
            let (what, plain) = chosen(settings, choice)?;
            store::put_in_place(settings, &Target::default(), plain, &what, *yes)
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// What is meant, wherever it is, decrypted; the newest one of all where nothing is said.
fn chosen(settings: &Settings, choice: &Choice) -> Result<(String, Vec<u8>)> {
    let client = Client::new(None)?;
    let away = match choice.node {
        Some(_) => None,
        None => Away::look(settings, &client, &environment)
            .context("[backup] to could not be asked; --node takes one that a worker keeps")?,
    };
    let copy = Copy::find(settings, choice, away.as_ref())?;
    let plain = copy.open(settings, away.as_ref().map(|(_, away)| away))?;
    Ok((copy.shown(), plain))
}

fn send(settings: &Settings) -> Result<()> {
    let client = Client::interruptible(None)?;
    let Some(away) = Away::open(settings, &client, &environment)? else {
        return input::bad(
            "cluster.toml does not say where to: write to = \"s3://BUCKET/PREFIX\", or a folder, under [backup]",
        );
    };
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    let api = state::api_client(settings, &secrets, None)?;
    let (said, file) = here::make(settings, &secrets, &api)?;
    let Some(file) = file else { bail!(said) };
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let bytes = std::fs::metadata(&file).with_context(|| format!("reading {}", file.display()))?.len();
    let backup = Backup::of_file(name, bytes).with_context(|| format!("{} is no backup", file.display()))?;
    away.send(&file, &backup)?;
    println!("{said}; also in {}", away.shown());
    Ok(())
}

/// What could not be asked may have the newest copy: then the list is no success.
fn list(settings: &Settings, json: bool) -> Result<ExitCode> {
    let mut inventory = backup::look(settings)?;
    let client = Client::new(None)?;
    match Away::look(settings, &client, &environment) {
        Ok(None) => {}
        Ok(Some((list, away))) => {
            inventory.backups.extend(list.into_iter().map(|backup| Found { node: away.shown().to_owned(), backup }));
        }
        Err(error) => inventory.silent.push(("[backup] to".into(), format!("{error:#}"))),
    }
    let code = if inventory.silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if json {
        println!("{}", serde_json::to_string_pretty(&inventory).context("writing JSON")?);
        return Ok(code);
    }
    let rows: Vec<Vec<String>> = inventory
        .backups
        .iter()
        .map(|found| {
            let b = &found.backup;
            vec![b.name(), found.node.clone(), backup::age_of(b), b.revision.to_string(), b.bytes.to_string()]
        })
        .collect();
    print!("{}", crate::table::render(&["NAME", "WHERE", "AGE", "REVISION", "BYTES"], &rows));
    for (_, why) in &inventory.silent {
        eprintln!("kimg: {why}");
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_for_which_nobody_could_be_asked_is_no_success() {
        let dir = tempfile::tempdir().expect("dir");
        let list = |nodes: &str| {
            let text = format!("name = \"demo\"\nnodes = [{{ name = \"m\", role = \"master\" }}{nodes}]\n");
            let settings =
                crate::config::parse(std::path::Path::new("cluster.toml"), &text, dir.path()).expect("valid");
            Secrets::ensure(&settings.secrets_dir(), "demo").expect("secrets");
            format!("{:?}", list(&settings, false).expect("listed"))
        };
        assert_eq!(list(""), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(list(", { name = \"w\", role = \"worker\" }"), format!("{:?}", ExitCode::FAILURE));
    }
}
