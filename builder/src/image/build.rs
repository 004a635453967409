//! `kimg build`: resolve → fetch → assemble → seal → lay out → convert, each step skipped when its inputs are known.

use super::components::{Component, Components};
use super::manifest::{FileSum, Manifest};
use super::modules::Kernel;
use super::output::{self, Format};
use super::recipe::{self, PackageRecipe, Recipe};
use super::root::{self, BakedFile, BakedImage, Ingredients, KERNEL_OWNER};
use super::sources::{SourceFile, Sources};
use super::toolbox::Toolbox;
use super::{contents, initramfs, installer, kernel, provenance, squashfs, unpack, verity};
use crate::cache::bundle::{self, Material};
use crate::cache::hash::{self, Inputs};
use crate::cache::lockfile::BuildLock;
use crate::cache::{self, steps::Steps};
use crate::config::{self, SecretsForm, Settings};
use crate::disk;
use crate::input;
use crate::lock::{Lock, LockedPackage};
use crate::manifests;
use crate::oci::{self, source};
use crate::packages::index::Offer;
use crate::packages::resolve::Wish;
use crate::packages::{self, Mirrors};
use crate::pki::secure_boot::EnrolmentFile;
use crate::pki::{self, SecureBoot};
use crate::progress::Progress;
use crate::sbom;
use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use node_metadata::{BuildInfo, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Sources of the steps: a changed step makes its results anew.
const ROOT_CODE: &[&str] = &[
    include_str!("root.rs"),
    include_str!("unpack.rs"),
    include_str!("modules.rs"),
    include_str!("tree.rs"),
    include_str!("squashfs.rs"),
    include_str!("verity.rs"),
    include_str!("../packages/deb.rs"),
    include_str!("../oci/build.rs"),
    include_str!("../oci/content.rs"),
    include_str!("../oci/mod.rs"),
    include_str!("../oci/model.rs"),
    include_str!("../oci/pause.rs"),
];
const INITRAMFS_CODE: &[&str] = &[include_str!("initramfs.rs"), include_str!("cpio.rs"), include_str!("modules.rs")];
const DISK_CODE: &[&str] = &[
    include_str!("build.rs"),
    include_str!("cpio.rs"),
    include_str!("installer.rs"),
    include_str!("kernel.rs"),
    include_str!("output/mod.rs"),
    include_str!("output/gce.rs"),
    include_str!("output/qcow2.rs"),
    include_str!("output/vhd.rs"),
    include_str!("output/vhdx.rs"),
    include_str!("output/vmdk.rs"),
    include_str!("../disk/mod.rs"),
    include_str!("../disk/gpt.rs"),
    include_str!("../disk/fat.rs"),
    include_str!("../disk/grub.rs"),
    include_str!("../disk/iso.rs"),
    include_str!("../disk/uki.rs"),
    include_str!("../disk/authenticode.rs"),
    include_str!("../pki/signed_data.rs"),
    include_str!("../disk/config_part.rs"),
    include_str!("../sbom/mod.rs"),
    include_str!("../sbom/crates.rs"),
    include_str!("../sbom/cyclonedx.rs"),
    include_str!("../sbom/debian.rs"),
    include_str!("../sbom/licences.rs"),
    include_str!("../sbom/spdx.rs"),
];
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// Tools whose files stand on the disk themselves.
const ON_DISK: [&str; 2] = ["grub-pc-bin", "systemd-boot-efi"];
/// What is written beside the disk for people who pass the image on.
const PAPERS: [&str; 3] = [sbom::SPDX_FILE, sbom::CYCLONEDX_FILE, sbom::LICENCES_FILE];
const BOOT_IMG: &str = "/usr/lib/grub/i386-pc/boot.img";

/// What a build is asked for besides `cluster.toml`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Folder of the components.
    pub components: Option<PathBuf>,
    /// Forms of the disk; `disk.raw` is always written.
    pub formats: Vec<Format>,
    /// What an earlier image was made of: its packages take the place of those of `kimg.lock`.
    pub sources: Option<Sources>,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Built {
    /// Folder with `disk.raw`, `vmlinux`, `vmlinuz`, `initrd` and `manifest.json`.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether anything had to be done.
    pub changed: bool,
    /// Where the components were found.
    pub components_dir: PathBuf,
}

/// Where the images of a cluster lie.
pub fn output_dir(settings: &Settings, role: Role) -> PathBuf {
    settings.build_dir().join(role.as_str())
}

/// The mirrors that `cluster.toml` names.
pub fn mirrors(settings: &Settings) -> Mirrors {
    Mirrors { main: settings.packages.mirror.clone(), security: settings.packages.security_mirror.clone() }
}

/// What the mirrors offer: now, or at the moment that they show.
pub fn offers(settings: &Settings, progress: &Progress) -> Result<Vec<Offer>> {
    let now = settings.packages.snapshot.unwrap_or_else(jiff::Timestamp::now);
    packages::offers(&mirrors(settings), now, progress)
}

/// The packages of all images of this cluster, out of what the mirrors offer.
pub fn make_lock(settings: &Settings, offers: &[Offer]) -> Result<Lock> {
    let images = [Role::Master, Role::Worker].into_iter().flat_map(|role| &settings.image(role).images);
    let mut wishes = source::wishes(images.map(PathBuf::as_path))?;
    let file = settings.dir.join(config::FILE_NAME).display().to_string();
    let packages = config::written_packages(&settings.text)?;
    wishes.extend(packages.into_iter().map(|(PackageRecipe { name, follow, .. }, place)| Wish {
        name,
        follow,
        named_in: format!("{file}{place}"),
    }));
    crate::lock::make(offers, wishes)
}

/// Builds the images of `roles`.
pub fn build(settings: &Settings, roles: &[Role], options: &Options, progress: &Progress) -> Result<Vec<Built>> {
    let _held = BuildLock::take(&settings.build_dir().join(".lock"))?;
    roles.iter().try_for_each(|role| cache::private_dir(&output_dir(settings, *role)))?;
    let workshop = Workshop::open(settings, options, progress)?;
    let plans = roles.iter().map(|role| workshop.plan(*role)).collect::<Result<Vec<_>>>()?;
    workshop.fetch(&plans)?;
    // Roles share the cores: while one is packed by all of them, the other unpacks by one.
    let results: Vec<Result<Built>> = std::thread::scope(|scope| {
        let threads: Vec<_> = plans.iter().map(|plan| scope.spawn(|| workshop.build(plan, options))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a build thread stopped")))).collect()
    });
    results.into_iter().collect()
}

/// The images of these roles as they were built last; nothing is built. None for a role whose image is missing or for
/// which a build would make another one.
pub fn current(
    settings: &Settings,
    roles: &[Role],
    options: &Options,
    progress: &Progress,
) -> Result<BTreeMap<Role, Option<Built>>> {
    let _held = BuildLock::take(&settings.build_dir().join(".lock"))?;
    let workshop = Workshop::open(settings, options, progress)?;
    roles.iter().map(|role| Ok((*role, workshop.current(&workshop.plan(*role)?)?))).collect()
}

/// Everything that the images of all roles are made of, fetched and made, for [`crate::cache::bundle::export`].
pub fn materials(settings: &Settings, options: &Options, progress: &Progress) -> Result<Vec<Material>> {
    let _held = BuildLock::take(&settings.build_dir().join(".lock"))?;
    let workshop = Workshop::open(settings, options, progress)?;
    let mut found = Vec::new();
    for role in [Role::Master, Role::Worker] {
        let plan = workshop.plan(role)?;
        let packages = workshop.all_packages(&plan)?;
        let names: Vec<&str> = packages.iter().map(|p| p.name.as_str()).collect();
        packages::fetch(&workshop.lock, &names, &mirrors(settings), progress)?;
        for package in packages {
            let path = packages::path_of(package)?;
            found.push(Material { store: bundle::Store::Packages, sha256: package.sha256.clone(), path });
        }
        for component in plan.executables.iter().chain([&workshop.stage1]) {
            let path = workshop.components.dir().join(&component.name);
            found.push(Material { store: bundle::Store::Blobs, sha256: component.sha256.clone(), path });
        }
        let images = plan.images.iter().map(|image| (image.sha256.clone(), image.path.clone()));
        let files = plan.files.iter().map(|file| (file.sha256.clone(), file.source.clone()));
        for (sha256, path) in images.chain(files).chain(workshop.manifests()?) {
            found.push(Material { store: bundle::Store::Blobs, sha256, path });
        }
    }
    Ok(found)
}

/// What all roles of one build share.
struct Workshop<'a> {
    settings: &'a Settings,
    progress: &'a Progress,
    /// Of the image that is made again.
    sources: Option<Sources>,
    lock: Lock,
    boot: recipe::Boot,
    /// Where `cluster.toml` wants signed kernels.
    secure_boot: Option<SecureBoot>,
    stage1: Component,
    components: Components,
    steps: Steps,
    /// Where the sums of unchanged files are remembered.
    sums: PathBuf,
    tools_key: String,
    tools: Mutex<Option<Toolbox>>,
    kernel: Mutex<Option<Arc<Kernel>>>,
}

/// What is known of a role's image before anything is unpacked.
struct Plan {
    role: Role,
    recipe: Recipe,
    executables: Vec<Component>,
    images: Vec<BakedImage>,
    files: Vec<BakedFile>,
    root_key: String,
    initrd_key: String,
}

impl<'a> Workshop<'a> {
    fn open(settings: &'a Settings, options: &Options, progress: &'a Progress) -> Result<Workshop<'a>> {
        // What is wrong with the keys is said now, not after the root has been packed.
        let secrets = pki::Secrets::ensure(&settings.secrets_dir(), &settings.name)?;
        let secure_boot = settings.secure_boot.then(|| SecureBoot::ensure(&secrets, &settings.name)).transpose()?;
        manifests::render(settings)?;
        let sums = cache::sums_dir()?;
        // Before anything is fetched for them.
        let components = Components::find(options.components.as_deref(), &sums)?;
        let steps = Steps::open(&cache::user_dir()?.join("steps"), &sums)?;
        let lock = match &options.sources {
            Some(sources) => sources.lock(),
            None => read_or_make_lock(settings, progress)?,
        };
        let boot = recipe::boot()?;
        Ok(Workshop {
            settings,
            progress,
            sources: options.sources.clone(),
            tools_key: Toolbox::key_of(&lock)?,
            stage1: components.identify(&boot.stage1)?,
            lock,
            boot,
            secure_boot,
            components,
            steps,
            sums,
            tools: Mutex::default(),
            kernel: Mutex::default(),
        })
    }

    fn kernel_package(&self) -> Result<&LockedPackage> {
        let meta = self.boot.kernel.name.as_str();
        let closure = self.lock.closure(&[meta])?;
        closure.into_iter().find(|p| p.name != meta).context("kimg.lock has no kernel; run `kimg lock`")
    }

    fn plan(&self, role: Role) -> Result<Plan> {
        let mut recipe = recipe::of(role, self.settings.store)?;
        recipe.packages.extend(self.settings.image(role).packages.iter().cloned());
        let files = self.settings.image(role).files.iter();
        let files = files.map(|(path, source)| BakedFile::new(path, source, &self.sums)).collect::<Result<Vec<_>>>()?;
        let mut names: Vec<&str> = recipe.components.iter().map(|c| c.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let executables = names.iter().map(|name| self.components.identify(name)).collect::<Result<Vec<_>>>()?;
        let paths = &self.settings.image(role).images;
        let images = paths.iter().map(|path| self.container_image(path)).collect::<Result<Vec<_>>>()?;
        root::check_names(role, paths.iter().map(PathBuf::as_path).zip(&images))?;
        root::check_size(files.iter().map(|file| &file.source).chain(images.iter().map(|image| &image.path)))?;
        let kernel = &self.kernel_package()?.sha256;
        let mut plan =
            Plan { role, recipe, executables, images, files, root_key: String::new(), initrd_key: String::new() };
        let inputs = self.ingredients(&plan).inputs(kernel)?;
        plan.root_key =
            with_code(inputs, ROOT_CODE).with("tools", &self.tools_key).with("parameters", squashfs::PARAMETERS).key();
        plan.initrd_key = with_code(Inputs::new("initrd"), INITRAMFS_CODE)
            .with("kernel", kernel)
            .with("stage1", &self.stage1.sha256)
            .with("modules", format!("{:?} {:?}", self.boot.first, self.boot.late))
            .key();
        Ok(plan)
    }

    /// An OCI archive to bake in, and its sum; one that is a folder is made an archive first.
    fn container_image(&self, path: &Path) -> Result<BakedImage> {
        if !path.is_dir() {
            let references = oci::references(path)?;
            let sha256 = hash::hex_of_file_remembered(path, &self.sums)?;
            let name = path.file_name().and_then(|n| n.to_str());
            let name = name.with_context(|| format!("{} has no usable file name", path.display()))?.to_string();
            return Ok(BakedImage { name, references, path: path.to_path_buf(), sha256 });
        }
        let surroundings = source::Surroundings {
            lock: &|| Ok(self.lock.clone()),
            components: &|| Ok(self.components.clone()),
            mirrors: &mirrors(self.settings),
            bases: &|name, platform| source::base_from_disk(name, platform),
            progress: self.progress,
        };
        let image = source::make(path, &source::Overrides::default(), &surroundings)?;
        let archive = self.steps.work()?;
        image.content.write_archive(&archive)?;
        let sha256 = hash::hex_of_file(&archive)?;
        let stored = self.steps.result("oci", &sha256, |out| {
            std::fs::rename(&archive, out).with_context(|| format!("writing {}", out.display()))
        });
        // Where it was known it lies here still; what cannot be removed the next run sweeps.
        let _ = std::fs::remove_file(&archive);
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
        let reference = image.name.to_string();
        let name = reference.chars().map(plain).collect::<String>() + ".tar";
        Ok(BakedImage { name, references: vec![reference], path: stored?, sha256 })
    }

    fn ingredients<'p>(&'p self, plan: &'p Plan) -> Ingredients<'p> {
        Ingredients {
            recipe: &plan.recipe,
            lock: &self.lock,
            components: &self.components,
            executables: &plan.executables,
            modules: &self.settings.image(plan.role).modules,
            images: &plan.images,
            files: &plan.files,
        }
    }

    /// Fetches the packages of the steps that have to run.
    fn fetch(&self, plans: &[Plan]) -> Result<()> {
        let mut names: BTreeSet<String> = BTreeSet::new();
        for plan in plans {
            let root = self.steps.known("root", &plan.root_key)?;
            if root.is_none() {
                names.extend(self.ingredients(plan).packages()?);
            }
            if root.is_none() || self.steps.known("initrd", &plan.initrd_key)?.is_none() {
                names.insert(self.kernel_package()?.name.clone());
            }
        }
        if !names.is_empty() {
            names.extend(Toolbox::packages(&self.lock)?);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        packages::fetch(&self.lock, &names, &mirrors(self.settings), self.progress)
    }

    fn tools(&self) -> Result<Toolbox> {
        let mut slot = self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tools) = &*slot {
            return Ok(tools.clone());
        }
        let names = Toolbox::packages(&self.lock)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        packages::fetch(&self.lock, &names, &mirrors(self.settings), self.progress)?;
        let tools = Toolbox::open(&self.lock)?;
        *slot = Some(tools.clone());
        Ok(tools)
    }

    /// The unpacked kernel package, unpacked once for all roles.
    fn kernel(&self) -> Result<Arc<Kernel>> {
        let mut slot = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = &*slot {
            return Ok(kernel.clone());
        }
        let package = self.kernel_package()?;
        packages::fetch(&self.lock, &[&package.name], &mirrors(self.settings), self.progress)?;
        let bar = self.progress.step("unpacking the kernel");
        let files = unpack::unpack_all(&[package], |_, path| {
            path.starts_with("/boot/vmlinuz-") || path.starts_with("/usr/lib/modules/")
        })?;
        let files = files.get(&package.name).context("the kernel package was not unpacked")?;
        let kernel = Arc::new(Kernel::from_package(files)?);
        bar.finish_and_clear();
        *slot = Some(kernel.clone());
        Ok(kernel)
    }

    fn build(&self, plan: &Plan, options: &Options) -> Result<Built> {
        self.build_role(plan, options).with_context(|| format!("building the {} image", plan.role))
    }

    fn build_role(&self, plan: &Plan, options: &Options) -> Result<Built> {
        let root = self.root(plan)?;
        let tree = self.steps.result("verity", &plan.root_key, |out| verity::write(&root, out).map(|_| ()))?;
        let (root_hash, command_line, config, inputs) = self.disk_inputs(plan, &tree)?;
        let dir = output_dir(self.settings, plan.role);
        cache::sweep(&dir);
        let known = self.known_image(&dir, &inputs)?;
        let mut changed = known.is_none();
        let mut manifest = match known {
            Some(manifest) => manifest,
            None => {
                let parts =
                    DiskParts { root: &root, tree: &tree, root_hash, command_line: &command_line, config: &config };
                self.write_disk(plan, &dir, &parts, inputs).map_err(|error| {
                    // Where the disk is full, the room is wanted.
                    match remove_outputs(&dir) {
                        Ok(()) => error,
                        Err(left) => error.context(format!("half of it is left behind ({left:#})")),
                    }
                })?
            }
        };
        for format in &options.formats {
            if !manifest.files.contains_key(format.file()) {
                changed = true;
                // What was signed is another manifest.
                remove(&dir, &SIGNATURES)?;
                let bar = self.progress.step(&format!("{}: writing {}", plan.role, format.file()));
                let (raw, out) = (dir.join(Format::Raw.file()), dir.join(format.file()));
                match format {
                    Format::Iso => {
                        // The disk is in memory several times: packed, in a kernel image, on an EFI partition.
                        let _alone = super::much_memory();
                        output::whole(&out, |out| self.write_installer(&dir, &manifest, &raw, out))?;
                    }
                    _ => format.write(&raw, &out)?,
                }
                manifest.files.insert(format.file().into(), FileSum::remembered(&out, &self.sums)?);
                manifest.write(&dir)?;
                bar.finish_and_clear();
            }
        }
        if changed || !dir.join(provenance::STATEMENT_FILE).exists() {
            provenance::write(&manifest, &dir)?;
        }
        Ok(Built { dir, manifest, changed, components_dir: self.components.dir().to_path_buf() })
    }

    /// The manifest in `dir`, where its image is whole and made of these inputs.
    fn known_image(&self, dir: &Path, inputs: &str) -> Result<Option<Manifest>> {
        let Some(manifest) = Manifest::read(dir).filter(|manifest| manifest.inputs == inputs) else { return Ok(None) };
        Ok(manifest.is_complete(dir, &self.sums)?.then_some(manifest))
    }

    /// The image as it was built last; none where a build would make another one.
    fn current(&self, plan: &Plan) -> Result<Option<Built>> {
        let Some(tree) = self.steps.known("verity", &plan.root_key)? else {
            return Ok(None);
        };
        let (.., inputs) = self.disk_inputs(plan, &tree)?;
        let dir = output_dir(self.settings, plan.role);
        let known = self.known_image(&dir, &inputs)?;
        let components_dir = self.components.dir().to_path_buf();
        Ok(known.map(|manifest| Built { dir, manifest, changed: false, components_dir }))
    }

    /// Root hash, command line and CONFIG of a disk, and the hash of all that it is made of.
    fn disk_inputs(&self, plan: &Plan, tree: &Path) -> Result<([u8; 32], String, Vec<u8>, String)> {
        let root_hash = verity::root_of(tree)?;
        let command_line = self.command_line(plan, &root_hash);
        let info = BuildInfo { version: env!("CARGO_PKG_VERSION").into(), root_hash: hex::encode(root_hash) };
        let config_files = pki::config_partition(self.settings, plan.role, info)?;
        let config = disk::config_part::encode(&config_files)?;
        let mut inputs = with_code(Inputs::new("disk"), DISK_CODE)
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("root", &plan.root_key)
            .with("root-hash", root_hash)
            .with("initrd", &plan.initrd_key)
            .with("kernel", &self.kernel_package()?.sha256)
            .with("tools", &self.tools_key)
            .with("command-line", &command_line)
            .with("config", hash::sha256(&config));
        if let Some(keys) = &self.secure_boot {
            inputs = inputs.with("secure-boot", keys.fingerprint());
        }
        Ok((root_hash, command_line, config, inputs.key()))
    }

    fn root(&self, plan: &Plan) -> Result<PathBuf> {
        self.steps.result("root", &plan.root_key, |out| {
            let kernel = self.kernel()?;
            self.check_modules(plan.role, &kernel)?;
            let _alone = super::much_memory();
            let bar = self.progress.step(&format!("{}: assembling the root", plan.role));
            let tree = self.ingredients(plan).assemble(&kernel)?;
            bar.set_message(format!("{}: packing the root ({} MiB)", plan.role, tree.content_size() >> 20));
            squashfs::write(&self.tools()?, &tree, out)?;
            bar.finish_and_clear();
            Ok(())
        })
    }

    /// Modules that `cluster.toml` names and the kernel has not. Before the kernel is unpacked nobody knows.
    fn check_modules(&self, role: Role, kernel: &Kernel) -> Result<()> {
        match self.settings.image(role).modules.iter().find(|name| !kernel.has(name)) {
            None => Ok(()),
            Some(name) => input::bad(format!(
                "{}: image.{role}.modules: the kernel {} has no module `{name}`; {}",
                self.settings.dir.join(crate::config::FILE_NAME).display(),
                kernel.version,
                kernel
                    .similar(name)
                    .map_or("correct the name, or remove it".into(), |near| format!("did you mean `{near}`?"))
            )),
        }
    }

    fn command_line(&self, plan: &Plan, root_hash: &[u8; 32]) -> String {
        let mut words = vec![format!("kimg.roothash={}", hex::encode(root_hash))];
        words.extend(self.boot.kernel_args.iter().cloned());
        words.extend(plan.recipe.kernel_args.iter().cloned());
        words.extend(self.settings.image(plan.role).kernel_args.iter().cloned());
        words.join(" ")
    }

    fn write_disk(&self, plan: &Plan, dir: &Path, parts: &DiskParts<'_>, inputs: String) -> Result<Manifest> {
        let bar = self.progress.step(&format!("{}: writing the disk", plan.role));
        // From here until the end the folder is not what its manifest says.
        remove_outputs(dir)?;
        let tools = self.tools()?;
        let alone = super::much_memory();
        let initrd = self.steps.bytes("initrd", &plan.initrd_key, || {
            initramfs::build(&*self.kernel()?, &self.boot, self.components.read(&self.stage1)?)
        })?;
        let kernel_key =
            with_code(Inputs::new("kernel"), DISK_CODE).with("package", &self.kernel_package()?.sha256).key();
        let vmlinuz = self.steps.bytes("vmlinuz", &kernel_key, || Ok(self.kernel()?.vmlinuz.to_vec()))?;
        let release = self.steps.bytes("release", &kernel_key, || Ok(self.kernel()?.version.clone().into_bytes()))?;
        let vmlinux = self.steps.result("vmlinux", &kernel_key, |out| {
            std::fs::write(out, kernel::uncompressed(&vmlinuz)?).with_context(|| format!("writing {}", out.display()))
        })?;
        let release = String::from_utf8(release).context("the kernel's release is not UTF-8")?;

        let command_line = parts.command_line;
        let uki = self.kernel_image(&tools, plan.role, &release, [command_line.as_bytes(), &initrd, &vmlinuz])?;
        let core = self.in_work_folder(|work| disk::grub::core_image(&tools, command_line, disk::CORE_SECTOR, work))?;
        let boot_img = tools.read(BOOT_IMG)?;
        let keys = self.keys_for_firmware();
        let mut esp: Vec<(&str, &[u8])> =
            vec![("/EFI/BOOT/BOOTX64.EFI", &uki), ("/boot/vmlinuz", &vmlinuz), ("/boot/initrd", &initrd)];
        esp.extend(keys.iter().map(|file| (file.name.as_str(), file.bytes.as_slice())));
        let content = disk::Parts {
            boot_img: &boot_img,
            esp_files: &esp,
            root: parts.root,
            verity: parts.tree,
            root_hash: parts.root_hash,
            config: parts.config,
        };
        output::whole(&dir.join(Format::Raw.file()), |out| disk::write(out, &content, &core).map(|_| ()))?;
        for (name, bytes) in [("vmlinuz", &vmlinuz[..]), ("initrd", &initrd), ("cmdline", command_line.as_bytes())] {
            cache::write_atomic(&dir.join(name), bytes)?;
        }
        let copy = |out: &Path| std::fs::copy(&vmlinux, out).map(|_| ()).context("copying the kernel");
        output::whole(&dir.join("vmlinux"), copy)?;
        drop((uki, initrd, vmlinuz, alone));
        let packages = self.packages_in(parts.root)?;
        for (name, bytes) in self.papers(plan, &packages)? {
            cache::write_atomic(&dir.join(name), &bytes)?;
        }
        let manifest = self.manifest(plan, dir, parts, inputs, release, &packages)?;
        manifest.write(dir)?;
        bar.finish_and_clear();
        Ok(manifest)
    }

    /// The packages that a role's image is made of and with.
    fn all_packages(&self, plan: &Plan) -> Result<Vec<&LockedPackage>> {
        let mut names = self.ingredients(plan).packages()?;
        names.extend(Toolbox::packages(&self.lock)?);
        names.push(self.boot.kernel.name.clone());
        self.lock.closure(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Sums and places of the cluster's own manifests.
    fn manifests(&self) -> Result<Vec<(String, PathBuf)>> {
        let sum = |path: &PathBuf| Ok((hash::hex_of_file(path)?, path.clone()));
        self.settings.manifests.iter().map(sum).collect()
    }

    /// What it takes to make the image again.
    fn sources(&self, plan: &Plan) -> Result<Sources> {
        if let Some(sources) = &self.sources {
            return Ok(sources.clone());
        }
        let mut files = Vec::new();
        let written = config::written_files(&self.settings.text, plan.role)?;
        let images = plan.images.iter().map(|image| (image.name.clone(), image.path.clone()));
        let own = self
            .settings
            .manifests
            .iter()
            .map(|path| (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), path.clone()));
        let baked = plan
            .files
            .iter()
            .map(|file| (file.path.rsplit('/').next().unwrap_or_default().to_string(), file.source.clone()));
        for (written, (name, path)) in written.into_iter().zip(own.chain(images).chain(baked)) {
            let mode = plan.files.iter().find(|file| file.source == path).map_or(0o644, |file| file.mode);
            files.push(SourceFile { written, name, mode, sum: FileSum::remembered(&path, &self.sums)? });
        }
        let packages = self.all_packages(plan)?.into_iter().cloned().collect();
        Ok(Sources { cluster_toml: self.settings.text.clone(), files, packages })
    }

    /// The packages of which something is on the disk: in the root, the kernel, the boot loaders.
    fn packages_in(&self, root: &Path) -> Result<Vec<&LockedPackage>> {
        let file = std::fs::File::open(root).with_context(|| format!("opening {}", root.display()))?;
        let mut names: BTreeSet<String> = contents::packages_of(std::io::BufReader::new(file))?.into_keys().collect();
        names.remove(KERNEL_OWNER);
        names.insert(self.kernel_package()?.name.clone());
        names.extend(recipe::tools()?.packages.into_iter().map(|p| p.name).filter(|n| ON_DISK.contains(&n.as_str())));
        names.iter().map(|name| self.lock.package(name)).collect()
    }

    /// SBOM and licences.
    fn papers(&self, plan: &Plan, packages: &[&LockedPackage]) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let fetch = |names: &[&str]| packages::fetch(&self.lock, names, &mirrors(self.settings), self.progress);
        fetch(&packages.iter().map(|p| p.name.as_str()).collect::<Vec<_>>())?;
        // Roles share most packages, too; what one has read of them the other finds.
        let alone = super::much_memory();
        let sharers = sbom::debian::sharers(&self.lock, packages)?;
        drop(alone);
        fetch(&sharers.iter().map(String::as_str).collect::<Vec<_>>())?;
        let _alone = super::much_memory();
        let mut programs = Vec::new();
        for component in plan.executables.iter().chain([&self.stage1]) {
            let bytes = self.components.read(component)?;
            sbom::crates::check(&component.name, &bytes)?;
            programs.push((component.clone(), sbom::libc_of(&bytes)));
        }
        let bill = sbom::bill(&sbom::Inputs {
            name: &format!("{}-{}", self.settings.name, plan.role),
            lock: &self.lock,
            packages,
            programs: &programs,
            images: &plan.images,
        })?;
        Ok(vec![
            (sbom::SPDX_FILE, bill.document(sbom::Form::Spdx)?),
            (sbom::CYCLONEDX_FILE, bill.document(sbom::Form::Cyclonedx)?),
            (sbom::LICENCES_FILE, sbom::licences::archive(&bill, &self.lock, packages)?),
        ])
    }

    /// The unified kernel image, signed where `cluster.toml` wants it: command line, initramfs and kernel in one file.
    fn kernel_image(
        &self,
        tools: &Toolbox,
        role: Role,
        release: &str,
        [command_line, initrd, vmlinuz]: [&[u8]; 3],
    ) -> Result<Vec<u8>> {
        let os_release =
            format!("ID=kimg\nVERSION_ID={0}\nPRETTY_NAME=\"kimg {0} {role}\"\n", env!("CARGO_PKG_VERSION"));
        let sections: [(&str, &[u8]); 5] = [
            (".osrel", os_release.as_bytes()),
            (".uname", release.as_bytes()),
            (".cmdline", command_line),
            (".initrd", initrd),
            (".linux", vmlinuz),
        ];
        let mut uki = disk::uki::build(&tools.read(STUB)?, &sections)?;
        if let Some(secure_boot) = &self.secure_boot {
            disk::authenticode::sign(&mut uki, secure_boot.signer())?;
        }
        Ok(uki)
    }

    /// For the machine that has nothing but its firmware's menu to learn the keys from.
    fn keys_for_firmware(&self) -> Vec<EnrolmentFile> {
        let mut keys = self.secure_boot.as_ref().map(SecureBoot::certificates).unwrap_or_default();
        keys.iter_mut().for_each(|file| file.name.insert_str(0, "/loader/keys/"));
        keys
    }

    /// The medium that writes a built disk onto a machine's.
    fn write_installer(&self, dir: &Path, manifest: &Manifest, raw: &Path, out: &Path) -> Result<()> {
        let read = |name: &str| {
            let path = dir.join(name);
            std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        let (tools, vmlinuz, keys) = (self.tools()?, read("vmlinuz")?, self.keys_for_firmware());
        let sum = manifest.files.get(Format::Raw.file()).context("the manifest does not name the disk")?;
        let source = installer::Source {
            label: format!("KIMG_{}", manifest.role.as_str().to_ascii_uppercase()),
            raw,
            raw_sha256: &sum.sha256,
            command_line: &manifest.command_line,
            initrd: read("initrd")?,
            boot_img: &tools.read(BOOT_IMG)?,
            kernel: &|line, initrd| {
                self.kernel_image(&tools, manifest.role, &manifest.kernel, [line.as_bytes(), initrd, &vmlinuz])
            },
            esp_files: &keys.iter().map(|file| (file.name.as_str(), file.bytes.as_slice())).collect::<Vec<_>>(),
        };
        self.in_work_folder(|work| installer::write(source, &tools, work, out))
    }

    /// What `make` makes in a folder of its own, which is gone afterwards.
    fn in_work_folder<T>(&self, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let work = self.steps.work()?;
        std::fs::create_dir(&work).with_context(|| format!("creating {}", work.display()))?;
        let made = make(&work);
        std::fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
        made
    }

    fn manifest(
        &self,
        plan: &Plan,
        dir: &Path,
        parts: &DiskParts<'_>,
        inputs: String,
        release: String,
        packages: &[&LockedPackage],
    ) -> Result<Manifest> {
        let mut files = BTreeMap::new();
        for name in [Format::Raw.file(), "vmlinuz", "vmlinux", "initrd", "cmdline"].iter().chain(&PAPERS) {
            files.insert(name.to_string(), FileSum::remembered(&dir.join(name), &self.sums)?);
        }
        let size = |path: &Path| -> Result<u64> { Ok(std::fs::metadata(path)?.len()) };
        let packages = packages.iter().map(|p| (p.name.clone(), p.version.clone())).collect();
        let mut components = plan.executables.clone();
        components.push(self.stage1.clone());
        let secrets = match (plan.role, self.settings.secrets) {
            (Role::Worker, _) => "none",
            (Role::Master, SecretsForm::Plain) => "plain",
            (Role::Master, SecretsForm::Sealed) => "sealed",
        };
        Ok(Manifest {
            version: env!("CARGO_PKG_VERSION").into(),
            states: Some(node_api::Release::this()),
            cluster: self.settings.name.clone(),
            role: plan.role,
            root_hash: hex::encode(parts.root_hash),
            kernel: release,
            command_line: parts.command_line.into(),
            secrets: secrets.into(),
            secure_boot: self.secure_boot.as_ref().map(|keys| hash::hex_of(keys.signer().certificate_der())),
            inputs,
            partitions: [
                ("root", size(parts.root)?),
                ("verity", size(parts.tree)?),
                ("config", parts.config.len() as u64),
            ]
            .map(|(n, s)| (n.to_string(), s))
            .into(),
            packages,
            components,
            files,
            sources: Some(self.sources(plan)?),
        })
    }
}

/// What differs from disk to disk.
struct DiskParts<'a> {
    root: &'a Path,
    tree: &'a Path,
    root_hash: [u8; 32],
    command_line: &'a str,
    config: &'a [u8],
}

fn with_code(inputs: Inputs, sources: &[&str]) -> Inputs {
    sources.iter().fold(inputs, |inputs, source| inputs.with("code", source))
}

/// Removes what an earlier build left under the names that are written now, the manifest first.
fn remove_outputs(dir: &Path) -> Result<()> {
    let forms: Vec<&str> = Format::value_variants().iter().map(|format| format.file()).collect();
    [&[super::manifest::FILE, provenance::STATEMENT_FILE], &forms[..], &PAPERS, &SIGNATURES]
        .into_iter()
        .try_for_each(|names| remove(dir, names))
}

/// What `kimg sign` writes beside an image.
const SIGNATURES: [&str; 3] = [provenance::ENVELOPE_FILE, provenance::SIGNATURE_FILE, provenance::PUBLIC_KEY_FILE];

fn remove(dir: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The lock file; a cluster that has none yet gets one.
fn read_or_make_lock(settings: &Settings, progress: &Progress) -> Result<Lock> {
    if settings.dir.join(crate::lock::FILE).exists() {
        return Lock::read(&settings.dir);
    }
    let lock = make_lock(settings, &offers(settings, progress)?)?;
    lock.write(&settings.dir)?;
    Ok(lock)
}
