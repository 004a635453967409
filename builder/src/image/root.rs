//! The root file system of a role as a tree.

use super::components::{Component, Components};
use super::glob;
use super::modules::{self, Kernel};
use super::recipe::Recipe;
use super::tree::Tree;
use super::unpack::Packages;
use crate::cache::hash;
use crate::lock::Lock;
use crate::oci;
use crate::packages::deb;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

/// Where baked container images lie.
const IMAGES: &str = "/usr/share/kimg/images";

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
}

/// An OCI archive that is baked in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BakedImage {
    /// File name in the image.
    pub name: String,
    /// Where the archive lies.
    pub path: PathBuf,
    /// Its SHA-256.
    pub sha256: String,
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
        self.put_packages(&mut tree)?;
        self.put_components(&mut tree)?;
        let names = self.recipe.modules.iter().chain(self.modules).map(String::as_str);
        modules::put(&mut tree, kernel, &kernel.closure(names)?)?;
        self.put_images(&mut tree)?;
        self.put_package_list(&mut tree, kernel)?;
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
        if self.recipe.pause_image {
            tree.file(&format!("{IMAGES}/pause.tar"), 0o644, oci::pause_content()?.to_archive()?)?;
        }
        for BakedImage { name, path, sha256 } in self.images {
            let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            if hash::hex_of(&bytes) != *sha256 {
                bail!("{} changed while the image was being built; run the build again", path.display());
            }
            tree.file(&format!("{IMAGES}/{name}"), 0o644, bytes)?;
        }
        Ok(())
    }

    /// A node can say what it is made of.
    fn put_package_list(&self, tree: &mut Tree, kernel: &Kernel) -> Result<()> {
        let names: Vec<&str> = self.recipe.packages.iter().map(|p| p.name.as_str()).collect();
        let mut text = format!("linux {}\n", kernel.version);
        for package in self.lock.closure(&names)? {
            text.push_str(&format!("{} {}\n", package.name, package.version));
        }
        tree.file("/usr/share/kimg/packages", 0o644, text.into_bytes())
    }
}
