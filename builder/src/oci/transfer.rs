//! `kimg push` and `kimg pull`: images, and the cluster's node images, to and from registries.

use super::artifact;
use super::build::{Base, named};
use super::content::{Blob, Content, DEPTH};
use super::model::{BASE_NAME, CONFIG, DOCKER_CONFIG, Descriptor, Index, Manifest, Platform};
use super::own;
use super::reference::{Reference, no_password};
use super::registry::{Placed, Registry, credentials};
use super::source::choose_platform;
use crate::cache::{self, download::Store};
use crate::config::Settings;
use crate::image::build::output_dir;
use crate::image::cmd::mib;
use crate::input;
use crate::progress::Progress;
use crate::web::{Client, trust};
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use node_metadata::Role;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The most that the manifests and indexes of one image may have: they are held in memory.
const DOCUMENTS: u64 = 64 << 20;

/// The most that an image may have in all: without an end to it, who holds a registry could fill the disk.
const PARTS: u64 = 64 << 30;

/// Loads the cluster's settings.
pub type Cluster<'a> = &'a dyn Fn() -> Result<Settings>;

/// How registries are reached.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RegistryArgs {
    /// PEM file with authorities to trust besides this machine's
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub ca: Option<PathBuf>,
    /// HTTP without TLS; to this machine that is the default, unless --ca is given
    #[arg(long)]
    pub plain_http: bool,
}

impl RegistryArgs {
    /// The registry of a name, with the credentials that this user has for it; `cluster` is looked for where the name
    /// is that of the cluster's own.
    ///
    /// # Errors
    /// The authorities or the credentials cannot be read, or the cluster has no registry.
    pub fn registry(&self, client: &Client, name: &Reference, cluster: Cluster<'_>) -> Result<Registry> {
        if name.authority == node_metadata::REGISTRY {
            return own::registry(&cluster().with_context(|| own::needs_cluster(name))?, client);
        }
        let known = credentials::find(&name.authority, &credentials::environment)?;
        let plain = self.plain_http || (self.ca.is_none() && trust::is_loopback(&name.authority));
        Ok(Registry::new(client, &name.authority, known, plain))
    }
}

/// `kimg push`
#[derive(Debug, clap::Args)]
pub struct PushArgs {
    /// An OCI archive or layout, or a role of this cluster (master, worker)
    source: String,
    /// Names to push it under; default: those that the archive carries
    names: Vec<String>,
    /// Which image of the archive, by name or tag
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    /// Repository of the same registry that may have parts of it already (repeat)
    #[arg(long, value_name = "REPOSITORY")]
    mount_from: Vec<String>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Pushes an image under all its names.
pub fn push(args: &PushArgs, cluster: Cluster<'_>) -> Result<()> {
    let client = Client::interruptible(args.registry.ca.as_deref())?;
    let names = args.names.iter().map(|n| Reference::parse(n)).collect::<Result<Vec<_>>>()?;
    let role = [Role::Master, Role::Worker].into_iter().find(|r| r.as_str() == args.source);
    let path = Path::new(&args.source);
    let role = role.filter(|_| !path.exists());
    let content = match role {
        Some(role) if names.is_empty() => {
            let why =
                format!("a node image has no name of its own; name one: kimg push {} REGISTRY/NAME:TAG", role.as_str());
            return input::bad(why);
        }
        Some(role) => artifact::of_node_image(&output_dir(&cluster()?, role), &names)?,
        None if !path.exists() => {
            // Who forgot the archive gave the name in its place.
            no_password(&args.source)?;
            return input::bad(format!("there is no {}, and it is no role of a cluster", args.source));
        }
        None => Content::read(path)?,
    };
    let targets = targets(&content, names, args.image.as_deref(), &args.source)?;
    if role.is_none() {
        targets.iter().try_for_each(|(_, root)| no_node_image(&content, root))?;
    }
    let progress = Progress::new();
    for (name, root) in targets {
        let registry = args.registry.registry(&client, &name, cluster)?;
        let sent = send(&content, &root, &name, &registry, &args.mount_from, &progress)?;
        println!("{name}@{}\n  {sent}", root.digest);
    }
    Ok(())
}

/// What is pushed under which names: those given, or those that the images here carry. A bare tag, as other tools
/// write it, is no name: whose image it were nobody has said.
fn targets(
    content: &Content,
    names: Vec<Reference>,
    image: Option<&str>,
    source: &str,
) -> Result<Vec<(Reference, Descriptor)>> {
    if !names.is_empty() {
        let root = content.choose(image)?;
        return Ok(names.into_iter().map(|name| (name, root.clone())).collect());
    }
    let known = content.full_names().filter(|(name, _)| image.is_none_or(|image| image == *name));
    let known: Vec<_> = known.map(|(name, root)| Ok((Reference::parse(name)?, root.clone()))).collect::<Result<_>>()?;
    if known.is_empty() {
        return input::bad(format!("nothing in {source} has the name to push; name one behind it: REGISTRY/NAME:TAG"));
    }
    Ok(known)
}

/// What a disk holds is looked at where it is pushed by its role, and nowhere else.
fn no_node_image(content: &Content, root: &Descriptor) -> Result<()> {
    for manifest in content.reach(root)?.iter().filter(|d| d.is_manifest()) {
        if artifact::is_node_image(&Manifest::parse(&content.document(manifest)?)?) {
            return input::bad(format!("{} is a node image; push it by its role: kimg push ROLE NAME", root.digest));
        }
    }
    Ok(())
}

/// Pushes one image under one name: what is needed before what needs it, so that a name never stands for a part.
///
/// # Errors
/// Something here is damaged, or the registry does not take it.
pub fn send(
    content: &Content,
    root: &Descriptor,
    name: &Reference,
    registry: &Registry,
    mount_from: &[String],
    progress: &Progress,
) -> Result<String> {
    if name.digest.is_some() {
        return input::bad(format!("{name} has a digest, and that comes from the image; push to a tag"));
    }
    let parts = content.reach(root)?;
    let mut from = mount_from.to_vec();
    for manifest in parts.iter().filter(|d| d.is_manifest()) {
        let base = Manifest::parse(&content.document(manifest)?)?.annotations.get(BASE_NAME).cloned();
        from.extend(
            base.and_then(|b| Reference::parse(&b).ok())
                .filter(|b| b.authority == name.authority)
                .map(|b| b.repository),
        );
    }
    let mut seen = BTreeSet::new();
    from.retain(|repository| seen.insert(repository.clone()));
    let total = parts.iter().map(|d| d.size).sum();
    let bar = progress.bytes(&name.to_string(), total);
    let (mut counts, mut bytes) = ([0u32; 3], 0);
    for part in &parts {
        if part.is_manifest() || part.is_index() {
            let target = if part.digest == root.digest { name.target() } else { &part.digest };
            registry.put_manifest(name, target, part, content.document(part)?)?;
            bar.inc(part.size);
            continue;
        }
        let blob = content.verify(part)?;
        let placed = registry
            .put_blob(name, part, blob, &from, &bar)
            .with_context(|| format!("pushing {} to {}", part.digest, name.place()))?;
        counts[placed as usize] += 1;
        if placed == Placed::Sent {
            bytes += part.size;
        }
    }
    bar.finish_and_clear();
    let [there, mounted, sent] = counts;
    Ok(format!("{sent} parts sent ({}), {there} were there, {mounted} mounted", mib(bytes)))
}

/// `kimg pull`
#[derive(Debug, clap::Args)]
pub struct PullArgs {
    /// Name of the image, with tag or digest
    name: String,
    /// FILE.tar for an archive, else a new folder; default: the image's name with .tar, or as a folder for a node image
    #[arg(long, short, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    output: Option<PathBuf>,
    /// Only for this platform; default: all that there are
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// Pulls an image.
pub fn pull(args: &PullArgs, cluster: Cluster<'_>) -> Result<()> {
    // Nothing is made at the registry that would have to be tidied up: Ctrl-C ends it at once, also where a server is
    // silent, and the next run goes on with what came.
    let client = Client::new(args.registry.ca.as_deref())?;
    let name = Reference::parse(&args.name)?;
    let platform = args.platform.as_ref().map(|p| p.parse::<Platform>()).transpose()?;
    // Before gigabytes come for it.
    if let Some(output) = args.output.as_ref().filter(|output| !is_archive(output)) {
        super::content::check_new_folder(output)?;
    }
    let registry = args.registry.registry(&client, &name, cluster)?;
    let (mut content, mut root) = fetch(&name, &registry, platform.as_ref(), &Progress::new())?;
    let last = name.repository.rsplit('/').next().unwrap_or(&name.repository);
    let single = if root.is_manifest() { Some(Manifest::parse(&content.document(&root)?)?) } else { None };
    if let Some(manifest) = single.as_ref().filter(|manifest| artifact::is_node_image(manifest)) {
        // A folder called as a role would stand for it from then on.
        let output = absolute(&args.output.clone().unwrap_or_else(|| PathBuf::from(format!("pulled-{last}"))))?;
        artifact::write_files(&content, manifest, &output)?;
        println!("{}: node image {name}@{}", output.display(), root.digest);
        return Ok(());
    }
    if let Some(manifest) = single {
        let config = content.document(&manifest.config)?;
        // What is no container image says no platform.
        let is_image = [CONFIG, DOCKER_CONFIG].contains(&&*manifest.config.media_type);
        let known: Option<Platform> =
            is_image.then(|| platform_in(&config)).transpose().with_context(|| format!("reading {name}"))?;
        if let Some(wanted) = &platform {
            check_platform(&name, &root, known.as_ref(), wanted)?;
        }
        root.platform = known;
    }
    content.entries = vec![named(&root, &name)];
    let output = absolute(&args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{last}.tar"))))?;
    if is_archive(&output) {
        content.write_archive(&output)?;
    } else {
        content.write_folder(&output)?;
    }
    println!("{}: {name}@{}", output.display(), root.digest);
    Ok(())
}

fn platform_in(config: &[u8]) -> Result<Platform> {
    serde_json::from_slice(config).or_else(|error| input::bad(format!("its configuration is damaged: {error}")))
}

/// Whether an image that no index names is for the platform that is wanted: what an index names was chosen by what the
/// index says. `known` is what the image's own configuration says.
fn check_platform(name: &Reference, root: &Descriptor, known: Option<&Platform>, wanted: &Platform) -> Result<()> {
    match known.filter(|known| root.platform.is_none() && !known.is_same(wanted)) {
        Some(known) => input::bad(format!("{name} is for {known} alone, and not for {wanted}; leave --platform out")),
        None => Ok(()),
    }
}

fn is_archive(output: &Path) -> bool {
    output.extension().is_some_and(|e| e == "tar")
}

/// An absolute path has a folder to write a temporary name into.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("reading {}", path.display()))
}

/// Fetches an image: all its platforms, or one. What was fetched before is taken from the cache.
///
/// # Errors
/// It is not there, or not what its digests say.
pub fn fetch(
    name: &Reference,
    registry: &Registry,
    platform: Option<&Platform>,
    progress: &Progress,
) -> Result<(Content, Descriptor)> {
    let mut content = Content::default();
    let (mut root, bytes) = registry.manifest(name, name.target())?;
    content.put(&root.media_type, bytes);
    if let Some(platform) = platform
        && root.is_index()
    {
        root = choose_platform(&content, &root, None, platform)?.manifest;
        content.put(&root.media_type, document(name, registry, &root)?);
    }
    fetch_below(&mut content, &root, name, registry, progress)?;
    Ok((content, root))
}

fn fetch_below(
    content: &mut Content,
    root: &Descriptor,
    name: &Reference,
    registry: &Registry,
    progress: &Progress,
) -> Result<()> {
    let (mut left, mut parts_left) = (DOCUMENTS.saturating_sub(root.size), PARTS);
    let mut open = vec![(root.clone(), 0)];
    while let Some((from, depth)) = open.pop() {
        if !from.is_index() {
            fetch_parts(content, &from, name, registry, &mut parts_left, progress)?;
            continue;
        }
        if depth > DEPTH {
            bail!("{} and others of {name} are indexes within each other, more than {DEPTH} deep", from.digest);
        }
        for manifest in Index::parse(&content.document(&from)?)?.manifests {
            // An index may name the same twice, and others may, too.
            if content.blob(&manifest).is_ok() {
                continue;
            }
            left = left.checked_sub(manifest.size).with_context(|| {
                format!("the manifests of {name} have more than {} MiB; no image needs that", DOCUMENTS >> 20)
            })?;
            content.put(&manifest.media_type, document(name, registry, &manifest)?);
            open.push((manifest, depth + 1));
        }
    }
    Ok(())
}

/// The manifest or index that an index names, which is of the size and the type that are said there: what is below a
/// document that is taken for another would be missed.
fn document(name: &Reference, registry: &Registry, said: &Descriptor) -> Result<Vec<u8>> {
    let (found, bytes) = registry.manifest(name, &said.digest)?;
    if found.size != said.size {
        bail!("{} has {} bytes and should have {}", said.digest, found.size, said.size);
    }
    if found.media_type != said.media_type {
        bail!("{} is of the type '{}', and the index says '{}'", said.digest, found.media_type, said.media_type);
    }
    Ok(bytes)
}

/// Fetches what a manifest names.
fn fetch_parts(
    content: &mut Content,
    root: &Descriptor,
    name: &Reference,
    registry: &Registry,
    left: &mut u64,
    progress: &Progress,
) -> Result<()> {
    let store = Store::new(&cache::user_dir()?.join("blobs"), &cache::sums_dir()?);
    let manifest = Manifest::parse(&content.document(root)?)?;
    for part in std::iter::once(&manifest.config).chain(&manifest.layers) {
        if content.blob(part).is_ok() {
            continue;
        }
        *left = left
            .checked_sub(part.size)
            .with_context(|| format!("{name} has more than {} GiB, and kimg pulls no image so large", PARTS >> 30))?;
        let bar = progress.bytes(part.digest.get(..19).unwrap_or(&part.digest), part.size);
        let path = fetch_blob(registry, name, part, &store, &bar)?;
        bar.finish_and_clear();
        content.put_blob(&part.digest, Blob::File { path, offset: 0, size: part.size });
    }
    Ok(())
}

fn fetch_blob(
    registry: &Registry,
    name: &Reference,
    part: &Descriptor,
    store: &Store,
    bar: &ProgressBar,
) -> Result<PathBuf> {
    registry.fetch(name, part, store, bar).with_context(|| format!("pulling {} of {}", part.digest, name.place()))
}

/// What the names of base images stand for, once asked.
pub type Pins = RefCell<BTreeMap<String, String>>;

/// A base image: at a registry, or on this machine.
///
/// # Errors
/// It is not there, or not for this platform.
pub fn base(
    name: &str,
    platform: &Platform,
    (args, cluster): (&RegistryArgs, Cluster<'_>),
    pins: &Pins,
    progress: &Progress,
) -> Result<Base> {
    if name.starts_with(super::source::ON_DISK) {
        return super::source::base_from_disk(name, platform);
    }
    let reference = Reference::parse(name)?;
    let registry = args.registry(&Client::new(args.ca.as_deref())?, &reference, cluster)?;
    let known = pins.borrow().get(name).cloned();
    let digest = match known {
        Some(digest) => digest,
        None => registry.manifest(&reference, reference.target())?.0.digest,
    };
    // What the tag stands for may change between two platforms.
    let first = pins.borrow_mut().insert(name.to_string(), digest.clone()).is_none();
    let pinned = Reference { digest: Some(digest.clone()), ..reference.clone() };
    if reference.digest.is_none() && first {
        eprintln!("the base {reference} is {pinned} today; write that to get the same image tomorrow");
    }
    let (content, manifest) = fetch(&pinned, &registry, Some(platform), progress)?;
    let named = Reference { digest: None, ..reference };
    Ok(Base { name: Some(named.to_string()), digest, manifest, content })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::model::{CONTAINERD_NAME, EMPTY, INDEX, MANIFEST, REF_NAME};
    use crate::oci::pause_content;

    #[test]
    fn an_image_goes_where_it_is_said_to_go() {
        let mut content = pause_content().unwrap();
        let place = |content: &Content, names: &[&str], image: Option<&str>| -> Result<Vec<String>> {
            let names = names.iter().map(|name| Reference::parse(name).unwrap()).collect();
            Ok(targets(content, names, image, "x.tar")?.into_iter().map(|(name, _)| name.to_string()).collect())
        };
        assert_eq!(place(&content, &[], None).unwrap(), ["kimg.local/pause:1"]);
        assert_eq!(place(&content, &["r.example/a:2"], Some("1")).unwrap(), ["r.example/a:2"]);
        // As skopeo and umoci leave it.
        content.entries[0].annotations = [(REF_NAME.to_string(), "1".to_string())].into();
        assert!(!content.entries[0].annotations.contains_key(CONTAINERD_NAME));
        let error = place(&content, &[], None).unwrap_err();
        assert!(error.is::<input::BadInput>() && error.to_string().contains("name one behind it"), "{error}");
        assert_eq!(place(&content, &["r.example/a:2"], None).unwrap(), ["r.example/a:2"]);
    }

    #[test]
    fn an_image_without_an_index_is_for_its_own_platform() {
        let content = pause_content().unwrap();
        let name = Reference::parse("r.example/a:1").unwrap();
        let mut root = content.entries[0].clone();
        root.platform = None;
        let [amd64, arm64] = ["linux/amd64", "linux/arm64"].map(|text| text.parse::<Platform>().unwrap());
        check_platform(&name, &root, Some(&amd64), &amd64).unwrap();
        check_platform(&name, &root, None, &arm64).unwrap();
        let error = check_platform(&name, &root, Some(&amd64), &arm64).unwrap_err();
        assert!(error.is::<input::BadInput>() && error.to_string().contains("for linux/amd64 alone"), "{error:#}");
        root.platform = Some(arm64.clone());
        check_platform(&name, &root, Some(&amd64), &arm64).unwrap();
    }

    #[test]
    fn a_place_that_is_taken_is_told_before_anything_is_fetched() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            pull: PullArgs,
        }
        let dir = tempfile::tempdir().unwrap();
        let words = ["pull", "127.0.0.1:1/x:1", "--output", dir.path().to_str().unwrap()];
        let line = <Line as clap::Parser>::try_parse_from(words).unwrap();
        let error = pull(&line.pull, &|| input::bad("no cluster")).unwrap_err();
        assert!(error.is::<input::BadInput>() && error.to_string().contains("exists already"), "{error:#}");
    }

    #[test]
    fn a_node_image_is_pushed_by_its_role() {
        let mut content = pause_content().unwrap();
        no_node_image(&content, &content.entries[0].clone()).unwrap();
        let mut manifest = Manifest::new(content.put(EMPTY, b"{}".to_vec()), Vec::new());
        manifest.artifact_type = Some(artifact::NODE_IMAGE.into());
        let root = content.put_json(MANIFEST, &manifest).unwrap();
        let root = content.put_json(INDEX, &Index::new(vec![root])).unwrap();
        assert!(no_node_image(&content, &root).unwrap_err().to_string().contains("by its role"));
    }
}
