//! The commands of the image pipeline: `kimg lock`, `kimg build`, `kimg inspect`.

use super::build::{self, Options};
use super::output::Format;
use crate::cli::{dir_flag, next, program};
use crate::config::Settings;
use crate::input;
use crate::lock::{self, Lock};
use crate::progress::Progress;
use anyhow::Result;
use node_metadata::Role;
use std::path::PathBuf;
use std::time::Instant;

/// `kimg lock`
#[derive(Debug, clap::Args)]
pub struct LockArgs {
    /// Only tell what would change
    #[arg(long)]
    dry_run: bool,
}

/// Takes the current package versions into `kimg.lock`.
pub fn lock(args: &LockArgs, settings: &Settings) -> Result<()> {
    let old = Lock::read(&settings.dir).ok();
    let new = build::make_lock(settings, &Progress::new())?;
    let changes = lock::changes(old.as_ref(), &new);
    for line in &changes {
        println!("{line}");
    }
    if args.dry_run {
        println!("{} changes; nothing written", changes.len());
        return Ok(());
    }
    new.write(&settings.dir)?;
    let size: u64 = new.packages.iter().map(|p| p.size).sum();
    println!("{}: {} packages, {}", lock::FILE, new.packages.len(), mib(size));
    next(&format!("{} build all{}", program(), dir_flag(settings)));
    Ok(())
}

/// What `kimg build` builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// The master image
    Master,
    /// The worker image
    Worker,
    /// Both images
    All,
}

/// `kimg build master|worker|all`
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// Folder with kimg-node, kimg-control and kimg-stage1
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    components: Option<PathBuf>,
    /// Forms of the disk besides disk.raw
    #[arg(long, value_delimiter = ',', default_value = "raw,raw.zst")]
    format: Vec<Format>,
}

impl Target {
    /// The roles it stands for.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Target::Master => &[Role::Master],
            Target::Worker => &[Role::Worker],
            Target::All => &[Role::Master, Role::Worker],
        }
    }
}

/// Builds images and says what came of it.
pub fn build(target: Target, args: &BuildArgs, settings: &Settings) -> Result<()> {
    let started = Instant::now();
    let options = Options { components: args.components.clone(), formats: args.format.clone() };
    let built = build::build(settings, target.roles(), &options, &Progress::new())?;
    for image in &built {
        let manifest = &image.manifest;
        let state = if image.changed { "built" } else { "unchanged" };
        println!("{:6} {state}: {} (root {}…)", manifest.role.as_str(), image.dir.display(), &manifest.root_hash[..12]);
        for (name, sum) in manifest.files.iter().filter(|(name, _)| name.starts_with("disk.")) {
            println!("       {name:13} {:>10}  sha256 {}", mib(sum.size), sum.sha256);
        }
        for component in &manifest.components {
            println!("       {:13} {:>10}  sha256 {}…", component.name, mib(component.size), &component.sha256[..16]);
        }
    }
    if let Some(first) = built.first() {
        println!("components from {}; {:.1} s", first.components_dir.display(), started.elapsed().as_secs_f32());
    }
    next(&format!("{} up{}", program(), dir_flag(settings)));
    Ok(())
}

/// `kimg inspect IMAGE`
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// A disk image (raw, raw.zst, raw.gz), a folder with one, or a role of this cluster
    image: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Shows what is in an image. `cluster` is looked for only where the name of a role is given.
pub fn inspect(args: &InspectArgs, cluster: &dyn Fn() -> Result<Settings>) -> Result<()> {
    let mut path = args.image.clone();
    if !path.exists()
        && let Some(role) = [Role::Master, Role::Worker].into_iter().find(|r| path.as_os_str() == r.as_str())
    {
        path = build::output_dir(&cluster()?, role);
    }
    if path.is_dir() {
        path = path.join(Format::Raw.file());
    }
    if !path.exists() {
        return input::bad(format!("there is no {}; build it with `kimg build`", path.display()));
    }
    let report = super::inspect::inspect(&path)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.to_text());
    }
    Ok(())
}

/// Bytes as people read them.
pub fn mib(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{:.1} KiB", bytes as f64 / 1024.0)
    } else {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    }
}
