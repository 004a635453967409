//! Recipes: what goes into each image, as data (`images/*.toml`, compiled in).

use crate::packages::resolve::Wish;
use anyhow::{Context, Result};
use node_metadata::{Role, StoreEngine};
use serde::Deserialize;
use std::collections::BTreeMap;

const BASE: &str = include_str!("../../../images/base.toml");
const MASTER: &str = include_str!("../../../images/master.toml");
const ETCD: &str = include_str!("../../../images/etcd.toml");
const WORKER: &str = include_str!("../../../images/worker.toml");
const BOOT: &str = include_str!("../../../images/boot.toml");
const TOOLS: &str = include_str!("../../../images/tools.toml");

/// What goes into a root file system.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    /// Files from Debian packages; libraries that programs need come along by themselves.
    #[serde(default, rename = "package")]
    pub packages: Vec<PackageRecipe>,
    /// Own executables.
    #[serde(default, rename = "component")]
    pub components: Vec<ComponentRecipe>,
    /// Files with fixed content.
    #[serde(default, rename = "file")]
    pub files: Vec<FileRecipe>,
    /// Symbolic links.
    #[serde(default, rename = "link")]
    pub links: Vec<LinkRecipe>,
    /// Empty directories: mount points.
    #[serde(default, rename = "directory")]
    pub directories: Vec<DirectoryRecipe>,
    /// Files made by joining others, in order of their names.
    #[serde(default, rename = "bundle")]
    pub bundles: Vec<BundleRecipe>,
    /// Kernel modules by name.
    #[serde(default)]
    pub modules: Vec<String>,
    /// More words of the kernel's command line.
    #[serde(default)]
    pub kernel_args: Vec<String>,
    /// Whether the pause image is baked in.
    #[serde(default)]
    pub pause_image: bool,
    /// The text that all of this was read from, for the hash of the inputs.
    #[serde(skip)]
    pub text: String,
}

/// A package and the files to take from it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PackageRecipe {
    /// Debian package.
    pub name: String,
    /// Globs of paths (merged /usr); none: only what others need of it.
    #[serde(default)]
    pub files: Vec<String>,
    /// Globs of dependencies that come along; default: libraries.
    pub follow: Option<Vec<String>>,
}

/// One of the workspace's executables.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ComponentRecipe {
    /// Executable's file name.
    pub name: String,
    /// Where it goes.
    pub path: String,
    /// Links to it, by absolute path.
    #[serde(default)]
    pub links: Vec<String>,
}

/// A file with fixed content.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FileRecipe {
    /// Absolute path.
    pub path: String,
    /// Content; `{{version}}` is kimg's version.
    pub text: String,
    /// Permission bits.
    #[serde(default = "readable")]
    pub mode: u32,
}

fn readable() -> u32 {
    0o644
}

/// A symbolic link.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRecipe {
    /// Absolute path.
    pub path: String,
    /// What it points to.
    pub target: String,
}

/// An empty directory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectoryRecipe {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    #[serde(default = "searchable")]
    pub mode: u32,
}

fn searchable() -> u32 {
    0o755
}

/// A file joined from others.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleRecipe {
    /// Absolute path.
    pub path: String,
    /// Package of the parts.
    pub package: String,
    /// Glob of the parts.
    pub parts: String,
}

/// Kernel, loaders and initramfs.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Boot {
    /// The kernel's meta package.
    pub kernel: PackageRecipe,
    /// Stage 1.
    pub stage1: String,
    /// Modules loaded at once, in this order.
    pub first: Vec<String>,
    /// Modules loaded when no root has appeared.
    pub late: Vec<String>,
    /// The kernel's command line, before the root hash.
    pub kernel_args: Vec<String>,
}

/// Programs that make images, run with their own loader and libraries.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tools {
    /// Packages and the files taken.
    #[serde(rename = "package")]
    pub packages: Vec<PackageRecipe>,
}

/// The recipe of a role: what both have, its own, and on masters the store's.
pub fn of(role: Role, store: StoreEngine) -> Result<Recipe> {
    let mut parts = vec![("base", BASE)];
    match role {
        Role::Master => parts.push(("master", MASTER)),
        Role::Worker => parts.push(("worker", WORKER)),
    }
    if (role, store) == (Role::Master, StoreEngine::Etcd) {
        parts.push(("etcd", ETCD));
    }
    let mut recipe = Recipe::default();
    for (name, text) in &parts {
        let own: Recipe = parse(name, text)?;
        recipe.packages.extend(own.packages);
        recipe.components.extend(own.components);
        recipe.files.extend(own.files);
        recipe.links.extend(own.links);
        recipe.directories.extend(own.directories);
        recipe.bundles.extend(own.bundles);
        recipe.modules.extend(own.modules);
        recipe.kernel_args.extend(own.kernel_args);
        recipe.pause_image |= own.pause_image;
    }
    recipe.text = parts.iter().map(|(_, text)| *text).collect::<Vec<_>>().join("\n");
    Ok(recipe)
}

/// Paths that a role's recipe takes: own programs, links, files and folders; and whether each is a folder.
pub fn paths_of(role: Role, store: StoreEngine) -> Result<BTreeMap<String, bool>> {
    let recipe = of(role, store)?;
    let components = recipe.components.into_iter().flat_map(|c| c.links.into_iter().chain([c.path]));
    let files = recipe.files.into_iter().map(|f| f.path).chain(recipe.bundles.into_iter().map(|b| b.path));
    let files = components.chain(files).chain(recipe.links.into_iter().map(|l| l.path));
    let folders = recipe.directories.into_iter().map(|d| d.path);
    Ok(files.map(|path| (path, false)).chain(folders.map(|path| (path, true))).collect())
}

/// Kernel, loaders and initramfs.
pub fn boot() -> Result<Boot> {
    parse("boot", BOOT)
}

/// The build tools.
pub fn tools() -> Result<Tools> {
    parse("tools", TOOLS)
}

fn parse<T: for<'a> Deserialize<'a>>(name: &str, text: &str) -> Result<T> {
    toml::from_str(text).with_context(|| format!("reading the recipe images/{name}.toml"))
}

/// All packages that any recipe names, so that a lock serves whatever `cluster.toml` chooses.
pub fn all_wishes() -> Result<Vec<Wish>> {
    let mut packages = tools()?.packages;
    packages.push(boot()?.kernel);
    for role in [Role::Master, Role::Worker] {
        packages.extend(of(role, StoreEngine::Etcd)?.packages);
    }
    let wish = |p: PackageRecipe| Wish { name: p.name, follow: p.follow, named_in: "images/*.toml".into() };
    Ok(packages.into_iter().map(wish).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_recipes_can_be_read() {
        for role in [Role::Master, Role::Worker] {
            let recipe = of(role, StoreEngine::Embedded).unwrap();
            assert!(recipe.components.iter().any(|c| c.name == "kimg-node"));
            assert!(recipe.links.iter().all(|l| l.path.starts_with('/')));
        }
        let etcd_in = |role, store| of(role, store).unwrap().packages.iter().any(|p| p.name == "etcd-server");
        assert!(etcd_in(Role::Master, StoreEngine::Etcd) && !etcd_in(Role::Master, StoreEngine::Embedded));
        assert!(!etcd_in(Role::Worker, StoreEngine::Etcd));
        assert!(!boot().unwrap().first.is_empty());
        assert!(all_wishes().unwrap().iter().any(|wish| wish.name == "etcd-server"), "whatever is chosen");
    }
}
