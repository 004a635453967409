//! `kimg build image`: an OCI archive or layout from a folder, a recipe or a static program.

use super::build::Config;
use super::source::{self, Overrides, Surroundings};
use super::transfer::{self, RegistryArgs};
use crate::cache;
use crate::config::Settings;
use crate::image::build;
use crate::image::cmd::mib;
use crate::image::components::Components;
use crate::input;
use crate::lock::Lock;
use crate::packages::Mirrors;
use crate::progress::Progress;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `kimg build image`
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// A folder (with an image.toml, or taken whole) or a static program
    #[arg(value_hint = clap::ValueHint::AnyPath)]
    source: PathBuf,
    /// Name and tag, e.g. registry.example.com/web:1; more of them, or more tags (repeat); default: what image.toml says
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// FILE.tar for an archive, else a new folder with a layout; default: the image's name with .tar
    #[arg(long, short, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    output: Option<PathBuf>,
    /// Image to build on: a name at a registry, or oci:PATH[:TAG], an archive or layout on this machine
    #[arg(long, value_name = "NAME")]
    base: Option<String>,
    /// Where it runs (repeat); default: what image.toml or the program says, else linux/amd64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Vec<String>,
    /// KEY=VALUE for the manifest (repeat)
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Program to run, and its first arguments (repeat)
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// Default arguments (repeat)
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// NAME=VALUE (repeat)
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Port that it listens on, e.g. 8080 or 53/udp (repeat)
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,
    /// KEY=VALUE (repeat)
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// User, and group, by number
    #[arg(long, value_name = "UID[:GID]", default_value = "")]
    user: String,
    /// Working directory
    #[arg(long, value_name = "PATH", default_value = "")]
    workdir: String,
    /// Compress the layer, for registries; baked-in images are compressed by the disk anyway
    #[arg(long)]
    gzip: bool,
    /// Folder with the programs that image.toml names
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    components: Option<PathBuf>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Makes the archive. `cluster` is looked for only where a recipe takes packages.
pub fn run(args: &ImageArgs, cluster: &dyn Fn() -> Result<Settings>) -> Result<()> {
    if !args.source.exists() {
        return input::bad(format!("there is no {}", args.source.display()));
    }
    let mut annotations = BTreeMap::new();
    for text in &args.annotation {
        let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
        let Some((key, value)) = pair else {
            return input::bad(format!("the annotation '{text}' is not KEY=VALUE"));
        };
        annotations.insert(key.to_string(), value.to_string());
    }
    let overrides = Overrides {
        names: args.name.clone(),
        base: args.base.clone(),
        platforms: args.platform.clone(),
        annotations,
        config: Config {
            entrypoint: args.entrypoint.clone(),
            cmd: args.cmd.clone(),
            env: args.env.clone(),
            user: args.user.clone(),
            working_dir: args.workdir.clone(),
            ports: args.port.clone(),
            labels: args.label.clone(),
        },
        gzip: args.gzip,
    };
    let mirrors = cluster().map(|settings| build::mirrors(&settings)).unwrap_or_else(|_| Mirrors::default());
    let progress = Progress::new();
    let lock = || -> Result<Lock> {
        let settings =
            cluster().context("the recipe takes packages, and kimg.lock of a cluster says which versions")?;
        if settings.dir.join(crate::lock::FILE).exists() {
            Lock::read(&settings.dir)
        } else {
            build::make_lock(&settings, &build::offers(&settings, &progress)?)
        }
    };
    let memory = cache::sums_dir()?;
    let pins = transfer::Pins::default();
    let surroundings = Surroundings {
        lock: &lock,
        components: &|| Components::find(args.components.as_deref(), &memory),
        mirrors: &mirrors,
        bases: &|name, platform| transfer::base(name, platform, (&args.registry, cluster), &pins, &progress),
        progress: &progress,
    };
    let image = source::make(&args.source, &overrides, &surroundings)?;
    let output = match &args.output {
        Some(path) => path.clone(),
        None => {
            let repository = &image.name.repository;
            PathBuf::from(format!("{}.tar", repository.rsplit('/').next().unwrap_or(repository)))
        }
    };
    // An absolute path has a folder to write a temporary name into.
    let output = std::path::absolute(&output).with_context(|| format!("reading {}", output.display()))?;
    let size = if output.extension().is_some_and(|e| e == "tar") {
        mib(image.content.write_archive(&output)?)
    } else {
        image.content.write_folder(&output)?;
        "a layout".into()
    };
    let names: Vec<String> = image.content.names().into_iter().map(|(name, _)| name).collect();
    println!("{}: {}, {size}", output.display(), names.join(", "));
    if let Some(entry) = image.content.entries.first() {
        println!("  {}", entry.digest);
    }
    Ok(())
}
