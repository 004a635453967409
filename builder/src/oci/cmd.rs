//! `kimg build image`: an OCI archive from a folder, a recipe or a static program.

use super::Config;
use super::source::{self, Overrides, Surroundings};
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
use std::path::PathBuf;

/// `kimg build image`
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// A folder (with an image.toml, or taken whole) or a static program
    #[arg(value_hint = clap::ValueHint::AnyPath)]
    source: PathBuf,
    /// Name and tag, e.g. registry.example.com/web:1; default: what image.toml says
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The archive to write; default: the image's name with .tar
    #[arg(long, short, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: Option<PathBuf>,
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
}

/// Makes the archive. `cluster` is looked for only where a recipe takes packages.
pub fn run(args: &ImageArgs, cluster: &dyn Fn() -> Result<Settings>) -> Result<()> {
    if !args.source.exists() {
        return input::bad(format!("there is no {}", args.source.display()));
    }
    let overrides = Overrides {
        name: args.name.clone(),
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
            build::make_lock(&settings, &progress)
        }
    };
    let memory = cache::user_dir()?.join("sums");
    let surroundings = Surroundings {
        lock: &lock,
        components: &|| Components::find(args.components.as_deref(), &memory),
        mirrors: &mirrors,
        progress: &progress,
    };
    let image = source::make(&args.source, &overrides, &surroundings)?;
    let output = match &args.output {
        Some(path) => path.clone(),
        None => {
            let last = image.name.rsplit('/').next().unwrap_or(&image.name);
            PathBuf::from(format!("{}.tar", last.split(':').next().unwrap_or(last)))
        }
    };
    // An absolute path has a folder to write a temporary name into.
    let output = std::path::absolute(&output).with_context(|| format!("reading {}", output.display()))?;
    cache::write_atomic(&output, &image.archive)?;
    println!("{}: {}, {}", output.display(), image.name, mib(image.archive.len() as u64));
    Ok(())
}
