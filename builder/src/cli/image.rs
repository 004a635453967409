//! `kimg lock`, `build`, `inspect`, `doctor`: the image pipeline's commands in the tree.

use crate::config::{self, Settings};
use crate::doctor;
use crate::hint::{dir_flag, next, program, shown};
use crate::image::build::{self, Options};
use crate::image::cmd::{self, BuildArgs, DiffArgs, ExportArgs, InspectArgs, LockArgs, Target};
use crate::image::output::Format;
use crate::input;
use crate::kubectl;
use crate::local::accel::{self, Kvm};
use crate::local::up::ImageFile;
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use node_metadata::Role;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `kimg build`
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub(super) struct BuildWhat {
    /// Make the image of this manifest.json again, bit for bit, also after kimg.lock and the mirrors have moved on
    #[arg(long, value_name = "MANIFEST", value_hint = clap::ValueHint::FilePath)]
    from_manifest: Option<PathBuf>,
    /// Folder with the programs of then, where they are not in the cache
    #[arg(long, value_name = "DIR", requires = "from_manifest", value_hint = clap::ValueHint::DirPath)]
    components: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<BuildCommand>,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum BuildCommand {
    /// The master image
    Master(BuildArgs),
    /// The worker image
    Worker(BuildArgs),
    /// Both images
    All(BuildArgs),
    /// A container image (an OCI archive) from a folder or a static program
    Image(Box<crate::oci::cmd::ImageArgs>),
}

pub(super) fn lock(args: &LockArgs, settings: &Settings) -> Result<ExitCode> {
    cmd::lock(args, settings)
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum CacheCommand {
    /// Write everything that this cluster's images are made of, but the keys, into one file
    Export(ExportArgs),
    /// Take in what an export wrote, on this machine or another
    Import {
        /// The file
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
    },
}

pub(super) fn run_cache(command: &CacheCommand, settings: &dyn Fn() -> Result<Settings>) -> Result<()> {
    match command {
        CacheCommand::Export(args) => cmd::export(args, &settings()?),
        CacheCommand::Import { file } => cmd::import(file),
    }
}

pub(super) fn run_build(what: &BuildWhat, dir: &Path, settings: &dyn Fn() -> Result<Settings>) -> Result<()> {
    match (&what.command, &what.from_manifest) {
        (Some(BuildCommand::Master(args)), _) => cmd::build(Target::Master, args, &settings()?),
        (Some(BuildCommand::Worker(args)), _) => cmd::build(Target::Worker, args, &settings()?),
        (Some(BuildCommand::All(args)), _) => cmd::build(Target::All, args, &settings()?),
        (Some(BuildCommand::Image(args)), _) => crate::oci::cmd::run(args, settings),
        (None, Some(manifest)) => cmd::again(manifest, what.components.as_deref(), dir),
        (None, None) => input::bad("say what to build: master, worker, all or image; or --from-manifest"),
    }
}

pub(super) fn inspect(args: &InspectArgs, settings: &dyn Fn() -> Result<Settings>) -> Result<()> {
    cmd::inspect(args, settings)
}

pub(super) fn diff(args: &DiffArgs, settings: &dyn Fn() -> Result<Settings>) -> Result<()> {
    cmd::diff(args, settings)
}

/// The images of the roles that the cluster has, built where they are missing or out of date.
pub(super) fn ensure_images(
    settings: &Settings,
    components: Option<&Path>,
    progress: &Progress,
) -> Result<BTreeMap<Role, ImageFile>> {
    let roles: Vec<Role> =
        [Role::Master, Role::Worker].into_iter().filter(|r| settings.nodes_of(*r).next().is_some()).collect();
    let options = Options { components: components.map(Path::to_path_buf), formats: vec![Format::Raw], sources: None };
    progress.line("images: making what is missing or out of date");
    build::build(settings, &roles, &options, progress)?
        .into_iter()
        .map(|built| {
            let state = if built.changed { "built" } else { "up to date" };
            progress.line(&format!("{} image: {state}", built.manifest.role));
            let name = Format::Raw.file();
            let sum = built.manifest.files.get(name).with_context(|| format!("the manifest names no {name}"))?;
            Ok((built.manifest.role, ImageFile { path: built.dir.join(name), id: sum.sha256.clone() }))
        })
        .collect()
}

/// Images of roles, where they are what a build would make.
pub(super) fn built_images(
    settings: &Settings,
    roles: &[Role],
    components: Option<&Path>,
    progress: &Progress,
) -> Result<BTreeMap<Role, ImageFile>> {
    let options = Options { components: components.map(Path::to_owned), formats: vec![Format::Raw], sources: None };
    let found = build::current(settings, roles, &options, progress)?;
    let mut images = BTreeMap::new();
    for (role, built) in found {
        let Some(built) = built else {
            bail!(
                "the {role} image is missing, or older than cluster.toml, kimg.lock or the components; build it first: \
                 {} build {}{}",
                program(),
                if roles.len() > 1 { "all".to_owned() } else { role.to_string() },
                dir_flag(settings)
            );
        };
        let name = Format::Raw.file();
        let sum = built.manifest.files.get(name).with_context(|| format!("the manifest names no {name}"))?;
        images.insert(role, ImageFile { path: built.dir.join(name), id: sum.sha256.clone() });
    }
    Ok(images)
}

#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// Print only how VMs run here: kvm or tcg
    #[arg(long)]
    accel: bool,
    /// Fetch Debian's kubectl where this machine has none, and print which one to use
    #[arg(long, conflicts_with = "accel")]
    kubectl: bool,
}

/// Exit code 1 when something that is needed is missing.
pub(super) fn doctor(args: &DoctorArgs, dir: &Path) -> Result<ExitCode> {
    if args.kubectl {
        println!("{}", shown(&kubectl::ensure(&Progress::new())?));
        return Ok(ExitCode::SUCCESS);
    }
    // A machine can be looked at before there is a cluster.
    let settings = if dir.join(config::FILE_NAME).exists() { Some(config::load(dir)?) } else { None };
    let image = settings
        .map(|settings| build::output_dir(&settings, Role::Master).join(Format::Raw.file()))
        .filter(|path| path.is_file());
    if args.accel {
        let kvm = match (accel::known(), &image) {
            (Some(known), _) => known,
            (None, Some(image)) => accel::probe(image)?,
            (None, None) => bail!("whether KVM boots is known once there is an image; run `kimg build master`"),
        };
        println!("{}", if kvm == Kvm::Works { "kvm" } else { "tcg" });
        return Ok(ExitCode::SUCCESS);
    }
    let found = doctor::examine(image.as_deref());
    for line in &found.lines {
        println!("{line}");
    }
    if let Some(command) = &found.command {
        println!("\n{command}");
    }
    next(&match (&found.command, found.fit) {
        (Some(_), false) => "run the command above".to_string(),
        (None, false) => format!("{} doctor --kubectl", program()),
        _ => format!("{} init demo", program()),
    });
    Ok(if found.fit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
