//! From packages to files in a tree: the wanted files, and the libraries that their programs need.

use super::elf;
use super::glob;
use super::recipe::PackageRecipe;
use super::tree::{Data, Node, Tree};
use crate::input;
use crate::lock::{Lock, LockedPackage};
use crate::packages::{self, deb};
use anyhow::{Context, Result, anyhow};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Folders in which the loader looks for libraries.
const LIBRARY_FOLDERS: [&str; 2] = ["/usr/lib/x86_64-linux-gnu/", "/usr/lib64/"];
const LIBRARY_HOME: &str = "/usr/lib/x86_64-linux-gnu";
const LOADER: &str = "/usr/lib64/ld-linux-x86-64.so.2";

/// Unpacked files of a set of packages.
#[derive(Debug, Default)]
pub struct Packages {
    files: BTreeMap<String, deb::Files>,
}

impl Packages {
    /// Unpacks what `recipes` need of their packages and of those that come along.
    pub fn read(lock: &Lock, recipes: &[PackageRecipe]) -> Result<Packages> {
        let names: Vec<&str> = recipes.iter().map(|p| p.name.as_str()).collect();
        let closure = lock.closure(&names)?;
        let wanted = |package: &str, path: &str| {
            path.contains(".so")
                || recipes.iter().filter(|r| r.name == package).any(|r| r.files.iter().any(|g| glob::matches(g, path)))
        };
        let files = unpack_all(&closure, |package, path| wanted(package, path))?;
        Ok(Packages { files })
    }

    /// The files of one package.
    pub fn of(&self, package: &str) -> Result<&deb::Files> {
        self.files.get(package).with_context(|| format!("the package {package} was not unpacked"))
    }

    /// Puts the files that `recipes` name into `tree`, then all libraries that programs in `tree` need.
    pub fn put(&self, tree: &mut Tree, recipes: &[PackageRecipe]) -> Result<()> {
        let mut missing = Vec::new();
        for recipe in recipes {
            let files = self.of(&recipe.name)?;
            tree.owned_by(&recipe.name);
            for pattern in &recipe.files {
                let mut found = false;
                for (path, entry) in files.iter().filter(|(path, _)| glob::matches(pattern, path)) {
                    found |= !matches!(entry, deb::Entry::Dir(_));
                    put_entry(tree, path, entry)?;
                }
                if !found {
                    missing.push(format!("the package {} has no file {pattern}", recipe.name));
                }
            }
        }
        if !missing.is_empty() {
            return input::bad(format!(
                "{}; files have moved, or a name is wrong: correct `files` where the package is named, under `packages` of \
                 [image] or [image.ROLE] in cluster.toml, or in an image.toml",
                missing.join(", ")
            ));
        }
        self.put_libraries(tree)
    }

    /// Adds libraries until no program or library in `tree` lacks one.
    fn put_libraries(&self, tree: &mut Tree) -> Result<()> {
        let mut queue = elf_files(tree)?;
        let mut seen = BTreeSet::new();
        while let Some((path, data)) = queue.pop() {
            let needs = elf::needs(&data.bytes()?).with_context(|| format!("reading {path}"))?;
            let interpreter =
                needs.interpreter.is_some().then(|| LOADER.rsplit('/').next().unwrap_or(LOADER).to_string());
            for library in needs.libraries.into_iter().chain(interpreter) {
                if !seen.insert(library.clone()) {
                    continue;
                }
                let (package, data) =
                    self.library(&library).with_context(|| format!("{path} needs the library {library}"))?;
                let target =
                    if LOADER.ends_with(&library) { LOADER.to_string() } else { format!("{LIBRARY_HOME}/{library}") };
                if !tree.has(&target) {
                    tree.owned_by(package);
                    tree.file(&target, if target == LOADER { 0o755 } else { 0o644 }, data.clone())?;
                }
                queue.push((target, data.into()));
            }
        }
        Ok(())
    }

    /// A library's package and content by its soname, links followed.
    fn library(&self, soname: &str) -> Result<(&str, Arc<[u8]>)> {
        for (package, files) in &self.files {
            for folder in LIBRARY_FOLDERS {
                let mut path = format!("{folder}{soname}");
                // A link names a file beside it, or the loader's place elsewhere.
                for _ in 0..4 {
                    match files.get(&path) {
                        Some(deb::Entry::File(_, data)) => return Ok((package, data.clone())),
                        Some(deb::Entry::Link(to)) => {
                            let file = to.rsplit('/').next().unwrap_or(to);
                            path = if to.contains('/') {
                                format!("{LIBRARY_HOME}/{file}")
                            } else {
                                format!("{folder}{file}")
                            };
                        }
                        _ => break,
                    }
                }
            }
        }
        Err(anyhow!("no package of kimg.lock has it; name its package in images/*.toml and run `kimg lock`"))
    }
}

fn elf_files(tree: &Tree) -> Result<Vec<(String, Data)>> {
    let mut found = Vec::new();
    for (path, node) in tree.iter() {
        if let Node::File(mode, data) = node
            && (mode & 0o111 != 0 || path.contains(".so"))
        {
            let mut begin = Vec::new();
            data.open()?.take(4).read_to_end(&mut begin).with_context(|| format!("reading {path}"))?;
            if elf::is_elf(&begin) {
                found.push((path.to_string(), data.clone()));
            }
        }
    }
    Ok(found)
}

fn put_entry(tree: &mut Tree, path: &str, entry: &deb::Entry) -> Result<()> {
    match entry {
        deb::Entry::File(mode, data) => tree.file(path, *mode & 0o755, data.clone()),
        deb::Entry::Link(target) => tree.link(path, target),
        deb::Entry::Dir(mode) => tree.dir(path, *mode & 0o755),
    }
}

/// Unpacks packages on all cores, the largest first.
pub fn unpack_all(
    packages: &[&LockedPackage],
    wanted: impl Fn(&str, &str) -> bool + Sync,
) -> Result<BTreeMap<String, deb::Files>> {
    let mut order: Vec<&LockedPackage> = packages.to_vec();
    order.sort_by_key(|p| std::cmp::Reverse(p.size));
    let (next, budget) = (AtomicUsize::new(0), deb::Budget::default());
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(order.len().max(1));
    let results: Vec<Result<Vec<(String, deb::Files)>>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut done = Vec::new();
                    while let Some(package) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let path = packages::path_of(package)?;
                        let files = deb::unpack(&path, &budget, |file| wanted(&package.name, file))
                            .with_context(|| format!("unpacking {} {}", package.name, package.version))?;
                        done.push((package.name.clone(), files));
                    }
                    Ok(done)
                })
            })
            .collect();
        workers.into_iter().map(|w| w.join().unwrap_or_else(|_| Err(anyhow!("an unpacking thread stopped")))).collect()
    });
    let mut all = BTreeMap::new();
    for result in results {
        all.extend(result?);
    }
    Ok(all)
}
