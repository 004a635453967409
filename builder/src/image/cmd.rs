//! The commands of node images: lock, build, again, export and import, inspect, vulnerabilities, diff, sign.

use super::build::{self, Built, Options};
use super::manifest::{self, Manifest};
use super::output::Format;
use super::provenance;
use super::sources::Sources;
use crate::cache::{self, bundle, hash};
use crate::config::{self, SecretsForm, Settings};
use crate::hint::{dir_flag, next, program};
use crate::input;
use crate::lock::{self, Lock};
use crate::pki::Secrets;
use crate::progress::Progress;
use crate::sbom::tracker::{self, Finding};
use crate::sbom::{Form, cyclonedx};
use crate::table::render;
use anyhow::{Context, Result};
use node_metadata::Role;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// `kimg lock`
#[derive(Debug, clap::Args)]
pub struct LockArgs {
    /// Only tell what would change
    #[arg(long)]
    dry_run: bool,
    /// Tell whether the security archive has newer versions, and end with 1 if so; nothing is written
    #[arg(long, conflicts_with = "dry_run")]
    check: bool,
}

/// Takes the current package versions into `kimg.lock`.
pub fn lock(args: &LockArgs, settings: &Settings) -> Result<ExitCode> {
    if args.check {
        let (lines, pressing) = check_lock(settings)?;
        for line in lines {
            println!("{line}");
        }
        return Ok(if pressing { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let old = Lock::read(&settings.dir).ok();
    let new = build::make_lock(settings, &build::offers(settings, &Progress::new())?)?;
    let changes = lock::changes(old.as_ref(), &new);
    for line in &changes {
        println!("{line}");
    }
    if args.dry_run {
        println!("{} changes; nothing written", changes.len());
        return Ok(ExitCode::SUCCESS);
    }
    new.write(&settings.dir)?;
    let size: u64 = new.packages.iter().map(|p| p.size).sum();
    println!("{}: {} packages, {}", lock::FILE, new.packages.len(), mib(size));
    next(&format!("{} build all{}", program(), dir_flag(settings)));
    Ok(ExitCode::SUCCESS)
}

/// What `kimg lock --check` says, and whether the security archive has newer versions.
fn check_lock(settings: &Settings) -> Result<(Vec<String>, bool)> {
    let old = Lock::read(&settings.dir)?;
    let offers = build::offers(settings, &Progress::new())?;
    let new = build::make_lock(settings, &offers)?;
    let mut lines = lock::security_updates(&old, &offers);
    let urgent = lines.len();
    let others = lock::changes(Some(&old), &new).len() - urgent;
    lines.push(format!("{urgent} security updates, {others} other changes; `kimg lock` takes them"));
    Ok((lines, urgent > 0))
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
    let options = Options { components: args.components.clone(), formats: args.format.clone(), sources: None };
    let built = build::build(settings, target.roles(), &options, &Progress::new())?;
    tell(&built, started);
    // No error: the VMs of `kimg up` know their master without it.
    if settings.secrets == SecretsForm::Sealed
        && let Some(missing) = settings.api_missing()
    {
        eprintln!(
            "warning: {missing}, and build again: names and addresses are part of the images, and a worker outside of \
             this machine cannot be seeded without"
        );
    }
    next(&format!("{} up{}", program(), dir_flag(settings)));
    Ok(())
}

/// Makes an image again from its manifest, in the cluster's folder `dir`.
pub fn again(path: &Path, components: Option<&Path>, dir: &Path) -> Result<()> {
    let started = Instant::now();
    let text = input::bytes(path, manifest::MOST_BYTES)?;
    let manifest = Manifest::parse(&text).with_context(|| format!("reading {}", path.display()))?;
    let dir = dir.canonicalize().with_context(|| format!("resolving {}", dir.display()))?;
    // The mirror of then may be gone; the cluster's present one is asked where there is one.
    let present = if dir.join(config::FILE_NAME).exists() { Some(config::load(&dir)?.packages) } else { None };
    // It may lie where is built. It is the only way back, and must outlive a failure, also that of this process.
    let path = std::path::absolute(path)?;
    let kept = path.canonicalize()?.starts_with(dir.join("build")).then(|| path.with_added_extension("kept"));
    if let Some(kept) = &kept {
        cache::write_atomic(kept, &text)?;
    }
    let built = Sources::again(&manifest, &dir, present, components, &Progress::new());
    if let Some(kept) = &kept {
        match built {
            Ok(_) => std::fs::remove_file(kept),
            Err(_) => std::fs::rename(kept, &path),
        }
        .with_context(|| format!("{} is what {} was", kept.display(), path.display()))?;
    }
    let built = built?;
    tell(&[built], started);
    println!("every file is the one that {} names", path.display());
    Ok(())
}

fn tell(built: &[Built], started: Instant) {
    for image in built {
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
}

/// `kimg cache export FILE`
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// The tar to write
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Folder with kimg-node, kimg-control and kimg-stage1
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    components: Option<PathBuf>,
}

/// Writes everything that the cluster's images are made of, keys excepted, into one file.
pub fn export(args: &ExportArgs, settings: &Settings) -> Result<()> {
    crate::input::free_place(&args.file)?;
    let options = Options { components: args.components.clone(), ..Options::default() };
    let materials = build::materials(settings, &options, &Progress::new())?;
    let out = std::path::absolute(&args.file).with_context(|| format!("reading {}", args.file.display()))?;
    let size = bundle::export(&materials, &out)?;
    println!("{}: {}", out.display(), mib(size));
    Ok(())
}

/// Takes in what [`export`] wrote.
pub fn import(file: &Path) -> Result<()> {
    let new = bundle::import(file, &cache::user_dir()?)?;
    println!("{new} files were new");
    Ok(())
}

/// `kimg inspect IMAGE`
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// A disk image in any form, a folder with one, or a role of this cluster
    image: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Print an HTML page that draws what takes the space
    #[arg(long, conflicts_with_all = ["json", "sbom"])]
    treemap: bool,
    /// Print the bill of materials that lies beside the image
    #[arg(long, value_name = "FORM", conflicts_with = "json")]
    sbom: Option<Form>,
}

/// Shows what is in an image. `cluster` is looked for only where the name of a role is given.
pub fn inspect(args: &InspectArgs, cluster: &dyn Fn() -> Result<Settings>) -> Result<()> {
    let path = image_path(&args.image, cluster)?;
    if args.treemap {
        print!("{}", super::treemap::page(&path)?);
    } else if let Some(form) = args.sbom {
        print!("{}", sbom_of(&path, form)?);
    } else {
        let report = super::inspect::inspect(&path)?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            print!("{}", report.to_text());
        }
    }
    Ok(())
}

/// `kimg sign IMAGE`
#[derive(Debug, clap::Args)]
pub struct SignArgs {
    /// The folder of a built image, or a role of this cluster
    image: PathBuf,
}

/// Signs an image with the cluster's signing key, and says how to verify it.
pub fn sign(args: &SignArgs, settings: &Settings) -> Result<()> {
    let image = image_path(&args.image, &|| Ok(settings.clone()))?;
    let dir = image.parent().unwrap_or(Path::new("."));
    let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
    for path in provenance::sign(dir, &secrets)? {
        println!("{}", path.display());
    }
    let at = |name: &str| dir.join(name).display().to_string();
    println!(
        "\ncosign verify-blob --insecure-ignore-tlog=true --key {key} --signature {} {}\n\
         cosign verify-blob-attestation --insecure-ignore-tlog=true --key {key} --type slsaprovenance1 --signature {} {}",
        at(provenance::SIGNATURE_FILE),
        at(manifest::FILE),
        at(provenance::ENVELOPE_FILE),
        image.display(),
        key = at(provenance::PUBLIC_KEY_FILE),
    );
    Ok(())
}

/// `kimg diff A B`
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// A disk image in any form, a folder with one, or a role of this cluster
    before: PathBuf,
    /// Another
    after: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Shows what changed between two images.
pub fn diff(args: &DiffArgs, cluster: &dyn Fn() -> Result<Settings>) -> Result<()> {
    let found = super::diff::diff(&image_path(&args.before, cluster)?, &image_path(&args.after, cluster)?)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print!("{}", found.to_text());
    }
    Ok(())
}

/// `kimg vulnerabilities IMAGE --tracker FILE`
#[derive(Debug, clap::Args)]
pub struct VulnerabilitiesArgs {
    /// A disk image in any form, a folder with one, or a role of this cluster
    image: PathBuf,
    /// The file of Debian's security tracker: https://security-tracker.debian.org/tracker/data/json
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    tracker: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Bytes of the tracker's file at most; it has some 60 MB.
const MOST_TRACKER: u64 = 256 << 20;

/// Shows which known vulnerabilities an image has. Exit code 1 when newer packages have a fix.
pub fn vulnerabilities(args: &VulnerabilitiesArgs, cluster: &dyn Fn() -> Result<Settings>) -> Result<ExitCode> {
    let file = input::open(&args.tracker)?;
    let (found, sources) = known_of(&image_path(&args.image, cluster)?, file, &args.tracker)?;
    let fixed = found.iter().filter(|finding| finding.is_fixed()).count();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print!("{}", table(found.clone()));
        println!(
            "{} known vulnerabilities in {sources} source packages; fixed in newer ones, which `kimg lock` takes: {fixed}",
            found.len(),
        );
    }
    Ok(if fixed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the tracker's file says of the image, and the number of its source packages.
fn known_of(image: &Path, file: File, tracker_path: &Path) -> Result<(Vec<Finding>, usize)> {
    let shown = tracker_path.display();
    if file.metadata().with_context(|| format!("reading {shown}"))?.len() > MOST_TRACKER {
        return input::bad(format!("{shown} is longer than the {} that such a file may have", mib(MOST_TRACKER)));
    }
    let sources = cyclonedx::sources(&sbom_of(image, Form::Cyclonedx)?)?;
    let found = tracker::findings(BufReader::with_capacity(1 << 20, file), &sources)
        .or_else(|error| input::bad(format!("{shown} {error}")))?;
    Ok((found, sources.len()))
}

/// For people: first what can be done something about.
fn table(mut found: Vec<Finding>) -> String {
    found.sort_by_key(|finding| !finding.is_fixed());
    let cells = |f: Finding| vec![f.name, f.source, f.installed, f.fix.to_string(), f.urgency];
    let rows: Vec<Vec<String>> = found.into_iter().map(cells).collect();
    if rows.is_empty() { String::new() } else { render(&["NAME", "SOURCE", "INSTALLED", "FIXED IN", "URGENCY"], &rows) }
}

/// The disk that is meant by a path, a folder or a role.
fn image_path(given: &Path, cluster: &dyn Fn() -> Result<Settings>) -> Result<PathBuf> {
    let mut path = given.to_path_buf();
    if !input::is_there(&path)?
        && let Some(role) = [Role::Master, Role::Worker].into_iter().find(|r| path.as_os_str() == r.as_str())
    {
        path = build::output_dir(&cluster()?, role);
    }
    if path.is_dir() {
        let there = Format::all().iter().map(|form| path.join(form.file())).find(|file| file.exists());
        path = there.unwrap_or_else(|| path.join(Format::Raw.file()));
    }
    if !input::is_there(&path)? {
        return input::bad(format!("there is no {}; build it with `kimg build all`", path.display()));
    }
    Ok(path)
}

/// Bytes of an SBOM at most; one has a few megabytes.
const MOST_SBOM: u64 = 64 << 20;

/// The SBOM beside an image, which must be the one that the image's manifest names.
fn sbom_of(image: &Path, form: Form) -> Result<String> {
    let dir = image.parent().unwrap_or(Path::new("."));
    let path = dir.join(form.file());
    let root_hash = super::inspect::inspect(image)?.root_hash;
    let Some(manifest) = Manifest::known(dir)?.filter(|m| m.root_hash == root_hash) else {
        return input::bad(format!(
            "there is no {} of this image beside it; its SBOM lies where it was built",
            manifest::FILE
        ));
    };
    if !path.exists() {
        return input::bad(format!("there is no {}; an image's SBOM lies where it was built", path.display()));
    }
    let text = input::text(&path, MOST_SBOM)?;
    if manifest.files.get(form.file()).is_none_or(|sum| sum.sha256 != hash::hex_of(text.as_bytes())) {
        return input::bad(format!(
            "{} is not the file that was built with this image; build it again",
            path.display()
        ));
    }
    Ok(text)
}

/// Bytes as people read them.
pub fn mib(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{:.1} KiB", bytes as f64 / 1024.0)
    } else {
        format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::testing::{self, Fixture};
    use crate::packages::RELEASE;
    use crate::packages::testing::Mirror;
    use serde_json::json;

    #[test]
    fn a_newer_security_version_is_named_and_presses() {
        let (dir, mirror) = (tempfile::tempdir().unwrap(), Mirror::start());
        let mut wishes = crate::image::recipe::all_wishes().unwrap();
        wishes.extend(crate::oci::source::wishes([]).unwrap());
        // More versions of crun stand where they are given.
        let publish = |suite: &str, until: &str, more: &[(&str, &str)]| {
            let all = wishes.iter().filter(|_| suite == RELEASE).map(|wish| (wish.name.as_str(), "1.0"));
            mirror.publish(suite, until, &all.chain(more.iter().copied()).collect::<Vec<_>>());
        };
        let settings = |more: &str| {
            let text = format!(
                "name = \"demo\"\nnodes = [{{ name = \"m\", role = \"master\" }}]\n\
                 [packages]\nmirror = \"{0}\"\nsecurity-mirror = \"{0}\"\n{more}",
                mirror.url()
            );
            config::parse(Path::new("cluster.toml"), &text, dir.path()).unwrap()
        };
        let settings_now = settings("");
        let (far, check) = ("2100-01-01T00:00:00Z", LockArgs { dry_run: false, check: true });
        publish(RELEASE, far, &[]);
        assert_eq!(lock(&LockArgs { dry_run: false, check: false }, &settings_now).unwrap(), ExitCode::SUCCESS);
        let written = std::fs::read(dir.path().join(lock::FILE)).unwrap();
        let says = |settings: &Settings| {
            let (lines, pressing) = check_lock(settings).unwrap();
            let code = lock(&check, settings).unwrap();
            assert_eq!(code == ExitCode::FAILURE, pressing);
            (lines.join("\n"), pressing)
        };
        let none = "0 security updates, 0 other changes; `kimg lock` takes them";
        assert_eq!(says(&settings_now), (none.to_string(), false));
        publish("trixie-updates", far, &[("crun", "1.1")]);
        assert_eq!(says(&settings_now), (none.replace("0 other", "1 other"), false));
        publish("trixie-security", far, &[("crun", "1.0.1"), ("not-ours", "7")]);
        let one = "crun 1.0 → 1.0.1\n1 security updates, 0 other changes; `kimg lock` takes them";
        assert_eq!(says(&settings_now), (one.to_string(), true));
        // Nothing was written by looking.
        assert_eq!(std::fs::read(dir.path().join(lock::FILE)).unwrap(), written);

        // A snapshot's Release files are out of date today, and were not at its moment.
        publish("trixie-security", "2020-01-08T00:00:00Z", &[("crun", "1.0.1")]);
        let error = format!("{:#}", lock(&check, &settings_now).unwrap_err());
        assert!(error.contains("trixie-security was valid until 2020-01-08T00:00:00Z only"), "{error}");
        assert_eq!(says(&settings("snapshot = \"2020-01-02T00:00:00Z\"\n")), (one.to_string(), true));
    }

    #[test]
    fn vulnerabilities_are_those_of_the_bill_beside_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let (image, tracker) = (dir.path().join("disk.raw"), dir.path().join("tracker.json"));
        testing::image(&Fixture::new(dir.path()), &image);
        let part = |name: &str, version: &str| {
            let properties = [("kimg:source-package", name), ("kimg:source-version", version)];
            let properties = properties.map(|(name, value)| json!({"name": name, "value": value}));
            json!({"name": name, "purl": "pkg:deb/debian/x@1?arch=amd64&distro=trixie", "properties": properties})
        };
        let bill = json!({"components": [part("crun", "1.21-1"), part("linux-signed-amd64", "6.12.57+1")]}).to_string();
        std::fs::write(dir.path().join(Form::Cyclonedx.file()), &bill).unwrap();
        let manifest: Manifest = serde_json::from_value(json!({
            "version": "1", "cluster": "demo", "role": "master", "kernel": "", "command-line": "", "secrets": "none",
            "inputs": "", "partitions": {}, "packages": {}, "components": [],
            "root-hash": crate::image::inspect::inspect(&image).unwrap().root_hash,
            "files": {Form::Cyclonedx.file(): {"size": bill.len(), "sha256": hash::hex_of(bill.as_bytes())}},
        }))
        .unwrap();
        manifest.write(dir.path()).unwrap();
        let known = |text: &str| {
            std::fs::write(&tracker, text).unwrap();
            known_of(&image, File::open(&tracker).unwrap(), &tracker)
        };

        let (found, sources) = known(
            r#"{"crun": {"CVE-1": {"releases": {"trixie": {"status": "open", "urgency": "low"}}}},
                "linux": {"CVE-2": {"releases": {"trixie": {"status": "resolved", "fixed_version": "6.12.58-1"}}},
                          "CVE-3": {"releases": {"trixie": {"status": "resolved", "fixed_version": "6.12.57-1"}}}}}"#,
        )
        .unwrap();
        assert_eq!(sources, 2);
        let text = table(found);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["CVE-2", "linux", "6.12.57-1", "6.12.58-1", "not", "yet", "assigned"]);
        assert_eq!(lines[2], ["CVE-1", "crun", "1.21-1", "none", "low"]);
        assert_eq!(lines.len(), 3);

        for text in ["", "{\"crun\": [", "[[[["] {
            let error = known(text).unwrap_err();
            assert!(
                error.is::<input::BadInput>() && error.to_string().contains("tracker.json is not what"),
                "{error:#}"
            );
        }
        // Sparse: nothing of it is read.
        let long = File::create(&tracker).unwrap();
        long.set_len(MOST_TRACKER + 1).unwrap();
        let error = known_of(&image, File::open(&tracker).unwrap(), &tracker).unwrap_err();
        assert!(error.to_string().contains("longer than the 256.0 MiB"), "{error:#}");
        // Another bill than the one that was built.
        std::fs::write(dir.path().join(Form::Cyclonedx.file()), bill.replace("crun", "runc")).unwrap();
        assert!(known("{}").unwrap_err().to_string().contains("not the file that was built"));
    }
}
