//! The root file system of a role as a tree.

use super::components::{Component, Components};
use super::glob;
use super::modules::{self, Kernel};
use super::recipe::Recipe;
use super::tree::{Data, Tree};
use super::unpack::Packages;
use crate::cache::hash;
use crate::input;
use crate::lock::Lock;
use crate::oci;
use crate::packages::deb;
use anyhow::{Context, Result, bail};
use node_metadata::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where baked container images lie.
const IMAGES: &str = "/usr/share/kimg/images";
/// The file of the sandbox image among them.
const PAUSE_FILE: &str = "pause.tar";
/// The packages that gave files to the root: `NAME VERSION`, one a line.
pub const PACKAGE_LIST: &str = "/usr/share/kimg/packages";
/// Whose each file is: path, tab, owner, one a line.
pub const FILE_LIST: &str = "/usr/share/kimg/files";
/// Owner of what comes from the kernel's package.
pub const KERNEL_OWNER: &str = "linux";
/// Owner of the files that `cluster.toml` names.
const CLUSTER: &str = "cluster.toml";
/// Owner of what kimg itself writes.
const OWN: &str = "kimg";

/// A file of which the sum is known.
fn on_disk(path: &Path, sha256: &str) -> Result<Data> {
    let size = std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
    Ok(Data::on_disk(path, size, Some(sha256)))
}

/// The most that the cluster's own files and container images may have in a role's root, in bytes.
const MOST_OWN: u64 = 2 << 30;

/// Checks that these files have room in a root.
///
/// # Errors
/// [`input::BadInput`] when they have not.
pub fn check_size<'p>(paths: impl Iterator<Item = &'p PathBuf>) -> Result<()> {
    let mut left = MOST_OWN;
    for path in paths {
        let size = std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
        let Some(rest) = left.checked_sub(size) else {
            return input::bad(format!(
                "with {} the files and container images under [image] have more than {} MiB, which is more than kimg \
                 puts into a node's image; let nodes fetch the large ones from a registry",
                path.display(),
                MOST_OWN >> 20
            ));
        };
        left = rest;
    }
    Ok(())
}

/// What the root of a role is made of.
#[derive(Debug)]
pub struct Ingredients<'a> {
    /// The role's recipe.
    pub recipe: &'a Recipe,
    /// Locked packages.
    pub lock: &'a Lock,
    /// Own executables.
    pub components: &'a Components,
    /// The executables that the recipe names.
    pub executables: &'a [Component],
    /// More modules, by name.
    pub modules: &'a [String],
    /// OCI archives to bake in.
    pub images: &'a [BakedImage],
    /// The cluster's own files.
    pub files: &'a [BakedFile],
}

/// A file of `[image.files]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BakedFile {
    /// Path in the image.
    pub path: String,
    /// Where it lies.
    pub source: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
    /// Permission bits in the image.
    pub mode: u32,
}

impl BakedFile {
    /// Of a path in the image and a file here, whose permission to be executed is kept. `sums` is the memory of
    /// [`hash::hex_of_file_remembered`].
    pub fn new(path: &str, source: &Path, sums: &Path) -> Result<BakedFile> {
        let meta = std::fs::metadata(source).with_context(|| format!("reading {}", source.display()))?;
        let mode = if meta.permissions().mode() & 0o100 != 0 { 0o755 } else { 0o644 };
        let sha256 = hash::hex_of_file_remembered(source, sums)?;
        Ok(BakedFile { path: path.to_string(), source: source.to_path_buf(), sha256, mode })
    }
}

/// An OCI archive that is baked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BakedImage {
    /// File name in the image.
    pub name: String,
    /// What the container images in it are called.
    pub references: Vec<String>,
    /// Where the archive lies.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
}

/// Checks that no two of a role's container images, each with the path that names it, are one to a node: of two with one
/// name containerd would keep either, and of two archives with one file name the image has the second.
///
/// # Errors
/// [`input::BadInput`], with both paths.
pub fn check_names<'a>(role: Role, images: impl IntoIterator<Item = (&'a Path, &'a BakedImage)>) -> Result<()> {
    let (mut references, mut files) = (BTreeMap::new(), BTreeMap::from([(PAUSE_FILE, None)]));
    for (path, image) in images {
        let shown = path.display();
        // One archive may have an image of each platform under one name.
        for reference in image.references.iter().collect::<BTreeSet<_>>() {
            if let Some(other) = references.insert(reference.as_str(), shown.to_string()) {
                return input::bad(format!(
                    "the container image {reference} is both in {other} and in {shown}; take one of them out of \
                     `images` under [image] or [image.{role}], or give it another name"
                ));
            }
        }
        if let Some(other) = files.insert(image.name.as_str(), Some(shown.to_string())) {
            let other = other.unwrap_or_else(|| "kimg's own".to_string());
            return input::bad(format!(
                "{shown}, under [image] or [image.{role}], and {other} would be one file of the image, {}; rename it",
                image.name
            ));
        }
    }
    Ok(())
}

impl Ingredients<'_> {
    /// Identifies all that the tree depends on.
    pub fn inputs(&self, kernel_sha256: &str) -> Result<hash::Inputs> {
        let mut inputs = hash::Inputs::new("root")
            .with("version", env!("CARGO_PKG_VERSION"))
            .with("recipe", &self.recipe.text)
            .with("kernel", kernel_sha256);
        let names: Vec<&str> = self.recipe.packages.iter().map(|p| p.name.as_str()).collect();
        for package in self.lock.closure(&names)? {
            inputs = inputs.with(&package.name, &package.sha256);
        }
        for component in self.executables {
            inputs = inputs.with(&component.name, &component.sha256);
        }
        for module in self.modules {
            inputs = inputs.with("module", module);
        }
        for image in self.images {
            inputs = inputs.with("image", &image.name).with("content", &image.sha256);
        }
        for file in self.files {
            inputs = inputs.with("file", format!("{} {:o}", file.path, file.mode)).with("content", &file.sha256);
        }
        // The recipe's text does not know the packages that cluster.toml adds.
        for package in &self.recipe.packages {
            inputs = inputs.with("package", format!("{package:?}"));
        }
        Ok(inputs)
    }

    /// Names of the packages that must have been fetched.
    pub fn packages(&self) -> Result<Vec<String>> {
        let names: Vec<&str> = self.recipe.packages.iter().map(|p| p.name.as_str()).collect();
        Ok(self.lock.closure(&names)?.into_iter().map(|p| p.name.clone()).collect())
    }

    /// Builds the tree.
    pub fn assemble(&self, kernel: &Kernel) -> Result<Tree> {
        let mut tree = Tree::default();
        tree.owned_by(OWN);
        for link in &self.recipe.links {
            tree.link(&link.path, &link.target)?;
        }
        for directory in &self.recipe.directories {
            tree.dir(&directory.path, directory.mode)?;
        }
        for file in &self.recipe.files {
            let text = file.text.replace("{{version}}", env!("CARGO_PKG_VERSION"));
            tree.file(&file.path, file.mode, text.into_bytes())?;
        }
        tree.owned_by(CLUSTER);
        for file in self.files {
            tree.file(&file.path, file.mode, on_disk(&file.source, &file.sha256)?)?;
        }
        self.put_packages(&mut tree)?;
        self.put_components(&mut tree)?;
        let names = self.recipe.modules.iter().chain(self.modules).map(String::as_str);
        tree.owned_by(KERNEL_OWNER);
        modules::put(&mut tree, kernel, &kernel.closure(names)?)?;
        self.put_images(&mut tree)?;
        self.put_lists(&mut tree, kernel)?;
        Ok(tree)
    }

    fn put_packages(&self, tree: &mut Tree) -> Result<()> {
        let mut wanted = self.recipe.packages.clone();
        for bundle in &self.recipe.bundles {
            for package in wanted.iter_mut().filter(|p| p.name == bundle.package) {
                package.files.push(bundle.parts.clone());
            }
        }
        let packages = Packages::read(self.lock, &wanted)?;
        packages.put(tree, &self.recipe.packages)?;
        for bundle in &self.recipe.bundles {
            let mut joined = Vec::new();
            for (path, entry) in packages.of(&bundle.package)? {
                if let deb::Entry::File(_, data) = entry
                    && glob::matches(&bundle.parts, path)
                {
                    joined.extend_from_slice(data);
                    if !data.ends_with(b"\n") {
                        joined.push(b'\n');
                    }
                }
            }
            if joined.is_empty() {
                bail!("the package {} has no files {}; correct images/*.toml", bundle.package, bundle.parts);
            }
            tree.owned_by(&bundle.package);
            tree.file(&bundle.path, 0o644, joined)?;
        }
        Ok(())
    }

    fn put_components(&self, tree: &mut Tree) -> Result<()> {
        for recipe in &self.recipe.components {
            let component = self
                .executables
                .iter()
                .find(|c| c.name == recipe.name)
                .with_context(|| format!("the component {} was not identified", recipe.name))?;
            tree.owned_by(&component.name);
            if !tree.has(&recipe.path) {
                tree.file(&recipe.path, 0o755, self.components.read(component)?)?;
            }
            for link in &recipe.links {
                tree.link(link, &recipe.path)?;
            }
        }
        Ok(())
    }

    fn put_images(&self, tree: &mut Tree) -> Result<()> {
        tree.owned_by(OWN);
        if self.recipe.pause_image {
            tree.file(&format!("{IMAGES}/{PAUSE_FILE}"), 0o644, oci::pause_content()?.to_archive()?)?;
        }
        for BakedImage { name, path, sha256, .. } in self.images {
            tree.owned_by(name);
            tree.file(&format!("{IMAGES}/{name}"), 0o644, on_disk(path, sha256)?)?;
        }
        Ok(())
    }

    /// A node, and whoever holds its image, can say what it is made of and whose each file is.
    fn put_lists(&self, tree: &mut Tree, kernel: &Kernel) -> Result<()> {
        let mut packages = format!("{KERNEL_OWNER} {}\n", kernel.version);
        let owners: BTreeSet<&str> = tree.owners().map(|(_, owner)| owner).collect();
        for package in self.lock.packages.iter().filter(|p| owners.contains(p.name.as_str())) {
            packages.push_str(&format!("{} {}\n", package.name, package.version));
        }
        let files: String = tree.owners().map(|(path, owner)| format!("{path}\t{owner}\n")).collect();
        tree.owned_by(OWN);
        tree.file(PACKAGE_LIST, 0o644, packages.into_bytes())?;
        tree.file(FILE_LIST, 0o644, files.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_images_of_one_name_are_refused_with_both_files() {
        let image = |name: &str, reference: &str| BakedImage {
            name: name.into(),
            references: vec![reference.into()],
            path: PathBuf::new(),
            sha256: String::new(),
        };
        let check = |images: &[(&str, BakedImage)]| {
            let images = images.iter().map(|(path, image)| (Path::new(*path), image));
            check_names(Role::Worker, images).map_err(|error| (error.is::<input::BadInput>(), error.to_string()))
        };
        let web = || ("a/web.tar", image("web.tar", "r.example/web:1"));
        check(&[web(), ("b", image("b.tar", "r.example/web:2"))]).unwrap();
        let (mistake, said) = check(&[web(), ("b", image("b.tar", "r.example/web:1"))]).unwrap_err();
        assert!(mistake && said.contains("r.example/web:1 is both in a/web.tar and in b;"), "{said}");
        let (mistake, said) = check(&[web(), ("b/web.tar", image("web.tar", "x"))]).unwrap_err();
        assert!(mistake && said.contains("b/web.tar") && said.contains("a/web.tar would be one file"), "{said}");
        let (_, said) = check(&[("x/pause.tar", image(PAUSE_FILE, "x"))]).unwrap_err();
        assert!(said.contains("x/pause.tar") && said.contains("kimg's own"), "{said}");
    }

    #[test]
    fn files_of_any_size_are_told_before_they_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| dir.path().join(name));
        for path in &paths {
            // Sparse.
            std::fs::File::create(path).unwrap().set_len(MOST_OWN / 2).unwrap();
        }
        check_size(paths.iter()).unwrap();
        let error = check_size(paths.iter().chain(&paths[..1])).unwrap_err();
        assert!(error.is::<input::BadInput>() && error.to_string().contains("more than 2048 MiB"), "{error:#}");
    }
}
