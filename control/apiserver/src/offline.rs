//! `kube-apiserver store …`: the store without the server, or beside it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::storage::{commands, member};

/// The store without the server, or beside it.
#[derive(Debug, Parser)]
#[command(name = "kube-apiserver store", next_line_help = true)]
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
    /// Finds out how this master's etcd begins or joins, among several, and becomes it.
    Member(member::MemberArgs),
    /// Ends once this master's etcd has its vote.
    Promote(member::PromoteArgs),
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
            if is_of_a_file(&error) { ExitCode::from(2) } else { crate::storage::exit_code(&error) }
        }
    }
}

/// Whether a file that the caller named is not there, or one that is to be made is.
fn is_of_a_file(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind;
    let io = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(store::StoreError::Io { why, .. }) => Some(why),
        _ => cause.downcast_ref(),
    });
    io.is_some_and(|why: &std::io::Error| matches!(why.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists))
}

fn run(args: Args) -> anyhow::Result<String> {
    match args.command {
        Command::Verify { file } => {
            let report = store::verify(&file)?;
            let (entries, _) = store::read_picture(&file)?;
            let mut out = format!(
                "{}: {} keys, revision {}, {} bytes live, {} bytes whole",
                file.display(),
                report.keys,
                report.revision,
                report.live_bytes,
                report.whole_bytes
            );
            if let Some(line) = report.tail() {
                out.push('\n');
                out.push_str(&line);
            }
            for line in crate::encryption::keys_in_use(&entries, &store::Keyring::default()) {
                out.push('\n');
                out.push_str(&line);
            }
            Ok(out)
        }
        Command::Check(args) => commands::check(&args),
        Command::Snapshot(args) => commands::snapshot(&args),
        Command::Restore(args) => commands::restore(&args),
        Command::Migrate(args) => commands::migrate(&args),
        Command::Member(args) => member::member(&args),
        Command::Promote(args) => member::promote(&args),
        Command::Rewrite(args) => crate::rewrite::run(&args),
        Command::Torture(args) => crate::torture::run(&args),
        Command::TortureChild { spec } => {
            store::torture::child(&spec).map(|()| String::new()).map_err(anyhow::Error::msg)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn help_takes_two_or_three_lines_a_flag() {
        let mut store = Args::command();
        store.build();
        let commands = store.get_subcommands().filter(|c| !c.is_hide_set()).cloned();
        for command in commands.chain([store.clone(), crate::config::Config::command()]) {
            let flags = command.get_arguments().count() + command.get_subcommands().count();
            let name = command.get_name().to_string();
            let help = command.term_width(100).render_help().to_string();
            assert!(help.lines().count() <= 3 * flags + 8, "{name}:\n{help}");
        }
    }
}
