//! `kimg build`: how long, how much memory, how large.

use crate::measured::{self, Measured};
use anyhow::{Context, Result};
use kimg::image::output::Format;
use qemu_tests::tools::kimg;
use serde_json::{Map, Value, json};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

/// The programs that recipes name.
const COMPONENTS: [&str; 3] = ["kimg-node", "kimg-control", "kimg-stage1"];

/// Builds in `dir`, with these arguments.
pub fn build(dir: &Path, what: &[&str]) -> Result<Measured> {
    measured::run(Command::new(kimg()).arg("build").args(what).current_dir(dir)).context("kimg build")
}

/// As after a first clone whose packages are there: nothing that any build has made.
pub fn cold(dir: &Path, what: &[&str]) -> Result<Measured> {
    for made in [dir.join("build"), kimg::cache::user_dir()?.join("steps")] {
        if made.exists() {
            std::fs::remove_dir_all(&made).with_context(|| format!("removing {}", made.display()))?;
        }
    }
    build(dir, what)
}

/// All figures of building the cluster in `dir`.
pub fn figures(dir: &Path, into: &mut Map<String, Value>) -> Result<()> {
    // Packages and tools are fetched and unpacked before anything is timed.
    build(dir, &["all"])?;
    let first = cold(dir, &["all"])?;
    into.insert("build.cold_s".into(), json!(first.seconds));
    into.insert("build.unchanged_s".into(), json!(build(dir, &["all"])?.seconds));
    let components = dir.join("components");
    let changed = change_a_component(&components)
        .and_then(|()| build(dir, &["all", "--components", &components.display().to_string()]))?;
    into.insert("build.component_changed_s".into(), json!(changed.seconds));
    let formats: Vec<String> = Format::all().iter().map(|format| format!("--format={}", format.name())).collect();
    let all: Vec<&str> = std::iter::once("all").chain(formats.iter().map(String::as_str)).collect();
    let every_format = build(dir, &all)?;
    let peak = [first, changed, every_format].map(|build| build.peak_kib).into_iter().max();
    into.insert("build.peak_kib".into(), json!(peak));
    for role in ["master", "worker"] {
        for format in Format::all() {
            let image = dir.join("build").join(role).join(format.file());
            into.insert(format!("image.{role}.{}_bytes", format.name()), json!(on_disk(&image)?));
        }
    }
    Ok(())
}

/// What a file takes: of one with holes only what is written.
pub fn on_disk(file: &Path) -> Result<u64> {
    let meta = std::fs::metadata(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(meta.len().min(meta.blocks() * 512))
}

/// Copies the programs, and changes one that both images have, as a changed line of it would.
fn change_a_component(to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    let kimg = kimg();
    let from = kimg.canonicalize().with_context(|| format!("resolving {}", kimg.display()))?;
    for name in COMPONENTS {
        std::fs::copy(from.with_file_name(name), to.join(name)).with_context(|| format!("copying {name}"))?;
    }
    let changed = to.join(COMPONENTS[0]);
    let mut bytes = std::fs::read(&changed).with_context(|| format!("reading {}", changed.display()))?;
    bytes.extend_from_slice(b"changed");
    std::fs::write(&changed, bytes).with_context(|| format!("writing {}", changed.display()))
}
