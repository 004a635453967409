//! The command line: one file for each group of commands, this one for the tree and the exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong arguments or a faulty file of the user's, 130 ended by Ctrl-C.
//! Results go to standard output, progress and hints to standard error.

mod backup;
mod cloud;
mod heal;
mod image;
mod init;
mod logs;
mod masters;
mod node;
mod pki;
mod restore;
mod roll;
mod scale;
mod seed;
mod status;
mod store;
mod vm;

use crate::config::{self, ConfigError, Settings};
use crate::image::leave::KeysInClear;
use crate::input::BadInput;
use crate::local::up::Interrupted;
use crate::logs::line::harmless;
use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// A Kubernetes cluster as two disk images.
#[derive(Debug, Parser)]
#[command(name = "kimg", version, about, arg_required_else_help = true)]
struct Cli {
    /// The cluster's folder, with its cluster.toml
    #[arg(long, global = true, default_value = ".", value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a cluster's folder with a commented cluster.toml
    Init(init::InitArgs),
    /// Take the current package versions into kimg.lock
    Lock(crate::image::cmd::LockArgs),
    /// Build disk images
    Build(image::BuildWhat),
    /// Packages and programs of images, kept for later
    #[command(subcommand)]
    Cache(image::CacheCommand),
    /// Push a container image, or a node image, to an OCI registry
    Push(crate::oci::transfer::PushArgs),
    /// Fetch an image from an OCI registry
    Pull(crate::oci::transfer::PullArgs),
    /// The images of the cluster's own registry
    #[command(subcommand)]
    Registry(crate::oci::own::RegistryCommand),
    /// Bring a node image to a provider
    Upload(crate::upload::cmd::UploadArgs),
    /// kimg's images at a provider
    #[command(subcommand)]
    Image(crate::upload::cmd::ImageCommand),
    /// Remove what interrupted uploads left at a provider
    Gc(crate::upload::cmd::GcArgs),
    /// Show what is in an image
    Inspect(crate::image::cmd::InspectArgs),
    /// Show which known vulnerabilities an image has; ends with 1 when newer packages have a fix
    Vulnerabilities(crate::image::cmd::VulnerabilitiesArgs),
    /// Sign an image and where it comes from, as cosign verifies it
    Sign(crate::image::cmd::SignArgs),
    /// Show what changed between two images
    Diff(crate::image::cmd::DiffArgs),
    /// Keys and certificates of the cluster
    #[command(subcommand)]
    Pki(pki::PkiCommand),
    /// Write a kubeconfig for the administrator
    Kubeconfig(pki::KubeconfigArgs),
    /// Print a node's user-data with a fresh token, or write its NoCloud drive
    Seed(seed::SeedArgs),
    /// Run the cluster: as VMs on this machine, or at the [provider] of cluster.toml; what already runs is kept
    #[command(visible_alias = "start")]
    Up(vm::UpArgs),
    /// Show what `up` would do at the provider, and what a month of it costs
    Plan(cloud::PlanArgs),
    /// End the VMs, or power off the machines, workers first; their disks stay
    #[command(visible_alias = "stop")]
    Down(vm::DownArgs),
    /// Remove the cluster's machines, networks and firewalls at the provider
    Destroy(cloud::DestroyArgs),
    /// Put a new image under the running nodes, one after the other, without losing a request
    Roll(Box<roll::RollArgs>),
    /// Change the number of workers or masters, in cluster.toml and in the cluster
    Scale(scale::ScaleArgs),
    /// Replace workers that stay broken; or make a master anew that was lost with its disk, from the newest backup
    Heal(heal::HealArgs),
    /// Bring a cluster back of which nothing is left but its folder and a copy of its store
    Restore(restore::RestoreArgs),
    /// VMs and nodes
    Status(status::StatusArgs),
    /// Logs of all nodes' services, kernels and PID 1s as one, by time; ends with 1 when a node did not answer
    Logs(logs::LogsArgs),
    /// Ask a node: services, logs, pods, network, …
    Node(node::NodeArgs),
    /// The store of a master: snapshot, restore, integrity check
    Store(store::StoreArgs),
    /// The copies of the store that workers keep: show, fetch, restore
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// What this machine lacks, and the command that brings it
    Doctor(image::DoctorArgs),
    /// What this release is, and which versions of the API, the store and cluster.toml it reads and writes
    Version {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// The network between the VMs; `kimg up` starts it
    #[command(hide = true)]
    Switch(vm::SwitchArgs),
    /// Run a program in a session of its own
    #[command(hide = true)]
    Launch {
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Print completions for a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Runs `kimg` with the given arguments.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    end_when_nothing_can_be_printed();
    close_to_everybody();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let code = error.exit_code();
            let _ = error.print();
            return ExitCode::from(u8::try_from(code).unwrap_or(2));
        }
    };
    let between = cli.dir.join("secrets/admin.next.crt");
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            let said = report(&error);
            // Where nobody reads it, the exit code still tells.
            let _ = writeln!(std::io::stderr(), "kimg: {said}");
            if said.contains("Unauthorized") && between.exists() {
                let way =
                    "`kimg pki rotate admin` was interrupted, and the old certificate may be refused; run it again";
                let _ = writeln!(std::io::stderr(), "kimg: {way}");
            }
            ExitCode::from(exit_code(&error))
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|e| e.is::<BadInput>() || e.is::<ConfigError>() || e.is::<KeysInClear>()) {
        2
    } else if error.chain().any(|e| e.is::<Interrupted>() || e.is::<crate::web::Interrupted>()) {
        130
    } else {
        1
    }
}

/// Whatever the umask is: nothing that kimg makes may be written by everybody, its cache least of all.
fn close_to_everybody() {
    use rustix::fs::Mode;
    let wanted = rustix::process::umask(Mode::WOTH);
    rustix::process::umask(wanted | Mode::WOTH);
}

/// A shell's code of a program that SIGPIPE has ended.
const SIGPIPE: i32 = 128 + 13;

/// `println!` panics where it cannot write. `kimg … | head` is no fault to report, as the reader has seen enough; but what
/// was under way is not done, so the code is a shell's of SIGPIPE. A full disk is a fault, and none of kimg's.
fn end_when_nothing_can_be_printed() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        match panic.payload_as_str().and_then(|text| text.strip_prefix("failed printing to ")) {
            Some(what) if what.starts_with("stdout") && what.contains("Broken pipe") => std::process::exit(SIGPIPE),
            Some(what) => {
                // Where that cannot be printed, either, the exit code still tells.
                let _ = writeln!(std::io::stderr(), "kimg: writing to {what}");
                std::process::exit(1);
            }
            None => report(panic),
        }
    }));
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let dir = cli.dir;
    let settings = || -> Result<Settings> { config::load(&dir) };
    match cli.command {
        Command::Init(args) => init::run(&args)?,
        Command::Lock(args) => return image::lock(&args, &settings()?),
        Command::Build(what) => image::run_build(&what, &dir, &settings)?,
        Command::Cache(command) => image::run_cache(&command, &settings)?,
        Command::Push(args) => crate::oci::transfer::push(&args, &settings)?,
        Command::Pull(args) => crate::oci::transfer::pull(&args, &settings)?,
        Command::Registry(command) => crate::oci::own::run(&command, &settings()?)?,
        Command::Upload(args) => crate::upload::cmd::run_upload(&args, &settings()?)?,
        Command::Image(command) => crate::upload::cmd::run_image(&command)?,
        Command::Gc(args) => crate::upload::cmd::run_gc(&args)?,
        Command::Inspect(args) => image::inspect(&args, &settings)?,
        Command::Vulnerabilities(args) => return crate::image::cmd::vulnerabilities(&args, &settings),
        Command::Sign(args) => crate::image::cmd::sign(&args, &settings()?)?,
        Command::Diff(args) => image::diff(&args, &settings)?,
        Command::Pki(command) => return pki::run(command, &settings),
        Command::Kubeconfig(args) => pki::kubeconfig(&args, &settings()?)?,
        Command::Seed(args) => seed::run(&args, &settings()?)?,
        Command::Up(args) => vm::up(&args, &settings()?)?,
        Command::Plan(args) => cloud::show_plan(&args, &settings()?)?,
        Command::Down(args) => vm::down(&args, &settings()?)?,
        Command::Destroy(args) => cloud::destroy(&args, &settings()?)?,
        Command::Roll(args) => return roll::run(&args, &settings()?),
        Command::Scale(args) => return scale::run(&args, &settings()?),
        Command::Heal(args) => return heal::run(&args, &settings()?),
        Command::Restore(args) => restore::run(&args, &settings()?)?,
        Command::Status(args) => return status::show(&args, &settings()?),
        Command::Logs(args) => return logs::run(&args, &settings()?),
        Command::Node(args) => return node::run(&args, &settings()?),
        Command::Store(args) => store::run(&args, &settings()?)?,
        Command::Backup(command) => return backup::run(&command, &settings()?),
        Command::Doctor(args) => return image::doctor(&args, &dir),
        Command::Version { json } => {
            let release = node_api::Release::this();
            let text = match json {
                true => serde_json::to_string_pretty(&release)? + "\n",
                false => crate::release::table(&release),
            };
            write_out(text.as_bytes())?;
        }
        Command::Switch(args) => vm::switch(&args, &settings()?)?,
        Command::Launch { command } => crate::local::qemu::launch(&command)?,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "kimg", &mut script);
            write_out(&script)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Output that nobody reads any more (`| head`) ends the command, and is no fault to report.
fn write_out(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(SIGPIPE),
        result => result.context("writing to standard output"),
    }
}

/// The chain of causes in one line, no part twice; what servers and files say in it does nothing to a terminal.
fn report(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
    }
    text.split('\n').map(harmless).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_not_said_twice() {
        let error = anyhow::anyhow!("no room").context("writing x: no room");
        assert_eq!(report(&error), "writing x: no room");
        let error = anyhow::anyhow!("\u{1b}[2J said the server").context("none:\n  a");
        assert_eq!(report(&error), "none:\n  a: \\u{1b}[2J said the server");
    }

    #[test]
    fn exit_codes_tell_mistakes_from_failures() {
        let wrong: anyhow::Error = BadInput("x".into()).into();
        assert_eq!(exit_code(&wrong.context("building the master image")), 2);
        assert_eq!(exit_code(&anyhow::Error::from(Interrupted("x".into()))), 130);
        assert_eq!(exit_code(&anyhow::anyhow!("no room")), 1);
    }
}
