//! Kernel modules: the wanted ones with all they depend on, and the index files that loading by name needs.

use super::elf;
use super::tree::Tree;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

/// One module, uncompressed: the kernel reads it faster, and the file system compresses it anyway.
#[derive(Debug, Clone)]
pub struct Module {
    /// Path below `/usr/lib/modules/VERSION/`, ending in `.ko`.
    pub path: String,
    /// Content.
    pub data: Arc<[u8]>,
    /// Direct dependencies, normalised names.
    pub depends: Vec<String>,
    /// Modules to load first where they exist.
    pub soft: Vec<String>,
    /// Device and protocol aliases.
    pub aliases: Vec<String>,
}

/// The modules of a kernel package, compressed as they come.
#[derive(Debug, Clone, Default)]
pub struct Kernel {
    /// Release, e.g. `6.12.1-cloud-amd64`.
    pub version: String,
    /// The boot image.
    pub vmlinuz: Arc<[u8]>,
    /// `modules.builtin`.
    pub builtin: String,
    /// `modules.builtin.modinfo`.
    pub builtin_modinfo: Arc<[u8]>,
    /// Normalised name → (path below the version's folder, bytes).
    files: BTreeMap<String, (String, Arc<[u8]>)>,
}

/// `-` and `_` are the same in module names.
pub fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normal(file.split(".ko").next().unwrap_or(file))
}

impl Kernel {
    /// Sorts the files of a kernel package.
    pub fn from_package(files: &crate::packages::deb::Files) -> Result<Kernel> {
        let mut kernel = Kernel::default();
        for (path, entry) in files {
            let crate::packages::deb::Entry::File(_, data) = entry else { continue };
            if path.starts_with("/boot/vmlinuz-") {
                kernel.vmlinuz = data.clone();
                continue;
            }
            let Some((version, inner)) = path.strip_prefix("/usr/lib/modules/").and_then(|p| p.split_once('/')) else {
                continue;
            };
            kernel.version = version.to_string();
            match inner {
                "modules.builtin" => kernel.builtin = String::from_utf8_lossy(data).into_owned(),
                "modules.builtin.modinfo" => kernel.builtin_modinfo = data.clone(),
                _ if inner.contains(".ko") => {
                    kernel.files.insert(name_of(inner), (inner.to_string(), data.clone()));
                }
                _ => {}
            }
        }
        if kernel.vmlinuz.is_empty() || kernel.files.is_empty() {
            bail!("the kernel package holds no kernel or no modules; run `kimg lock` again");
        }
        Ok(kernel)
    }

    fn is_builtin(&self, name: &str) -> bool {
        self.builtin.lines().any(|line| name_of(line) == name)
    }

    /// Whether it has this module, built in or as a file.
    pub fn has(&self, name: &str) -> bool {
        let name = normal(name);
        self.files.contains_key(&name) || self.is_builtin(&name)
    }

    /// The module whose name is nearest to one that it has not.
    pub fn similar(&self, name: &str) -> Option<&str> {
        let known: Vec<&str> = self.files.keys().map(String::as_str).collect();
        crate::config::nearest(&normal(name), &known)
    }

    fn read(&self, name: &str) -> Result<Module> {
        let (path, data) =
            self.files.get(name).with_context(|| format!("the kernel {} has no module {name}", self.version))?;
        let (path, data) = match path.strip_suffix(".xz") {
            Some(path) => {
                let mut plain = Vec::new();
                liblzma::read::XzDecoder::new(&data[..])
                    .read_to_end(&mut plain)
                    .with_context(|| format!("unpacking {path}"))?;
                (path.to_string(), Arc::from(plain))
            }
            None => (path.clone(), data.clone()),
        };
        let info = elf::modinfo(&data).with_context(|| format!("reading module {name}"))?;
        let all = |key: &str| info.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        let depends = all("depends").iter().flat_map(|v| v.split(',')).filter(|v| !v.is_empty()).map(normal).collect();
        let soft = all("softdep").iter().flat_map(|v| pre_dependencies(v)).collect();
        let aliases = all("alias").iter().map(|a| a.to_string()).collect();
        Ok(Module { path, data, depends, soft, aliases })
    }

    /// The modules `names` and all they depend on, by normalised name.
    pub fn closure<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<BTreeMap<String, Module>> {
        let mut found: BTreeMap<String, Module> = BTreeMap::new();
        let mut queue: Vec<String> = Vec::new();
        for name in names {
            if !self.has(name) {
                bail!("the kernel {} has no module '{name}'; correct the name in images/*.toml", self.version);
            }
            queue.push(normal(name));
        }
        while let Some(name) = queue.pop() {
            if found.contains_key(&name) || !self.files.contains_key(&name) {
                continue;
            }
            let module = self.read(&name)?;
            queue.extend(module.depends.iter().cloned());
            queue.extend(module.soft.iter().filter(|s| self.files.contains_key(*s)).cloned());
            found.insert(name, module);
        }
        Ok(found)
    }
}

/// `pre: a b post: c` → a, b.
fn pre_dependencies(text: &str) -> Vec<String> {
    let mut pre = false;
    let mut names = Vec::new();
    for word in text.split_whitespace() {
        match word {
            "pre:" => pre = true,
            "post:" => pre = false,
            name if pre => names.push(normal(name)),
            _ => {}
        }
    }
    names
}

/// Names in an order in which they can be loaded: dependencies first.
pub fn load_order<'n>(modules: &BTreeMap<String, Module>, names: impl IntoIterator<Item = &'n str>) -> Vec<String> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for name in names {
        visit(modules, &normal(name), &mut seen, &mut order);
    }
    order
}

fn visit(modules: &BTreeMap<String, Module>, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) {
    let Some(module) = modules.get(name) else { return };
    if !seen.insert(name.to_string()) {
        return;
    }
    for dependency in module.soft.iter().chain(&module.depends) {
        visit(modules, dependency, seen, order);
    }
    order.push(name.to_string());
}

/// Puts the modules and their index files below `/usr/lib/modules/VERSION`.
pub fn put(tree: &mut Tree, kernel: &Kernel, modules: &BTreeMap<String, Module>) -> Result<()> {
    let base = format!("/usr/lib/modules/{}", kernel.version);
    let mut dep = String::new();
    let mut alias = String::new();
    let mut soft = String::new();
    for (name, module) in modules {
        tree.file(&format!("{base}/{}", module.path), 0o644, module.data.clone())?;
        // As depmod writes it: all that must be loaded before, the one to load first standing last.
        let mut before = load_order(modules, module.depends.iter().map(String::as_str));
        before.reverse();
        let paths: Vec<&str> = before.iter().filter_map(|n| modules.get(n)).map(|m| m.path.as_str()).collect();
        let space = if paths.is_empty() { "" } else { " " };
        dep.push_str(&format!("{}:{space}{}\n", module.path, paths.join(" ")));
        for pattern in &module.aliases {
            alias.push_str(&format!("alias {pattern} {name}\n"));
        }
        if !module.soft.is_empty() {
            soft.push_str(&format!("softdep {name} pre: {}\n", module.soft.join(" ")));
        }
    }
    for (file, text) in [
        ("modules.dep", dep),
        ("modules.alias", alias),
        ("modules.softdep", soft),
        ("modules.builtin", kernel.builtin.clone()),
    ] {
        tree.file(&format!("{base}/{file}"), 0o644, text.into_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, depends: &[&str], soft: &[&str]) -> Module {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        Module {
            path: path.into(),
            data: Arc::from(*b"x"),
            depends: own(depends),
            soft: own(soft),
            aliases: vec!["pci:x".into()],
        }
    }

    #[test]
    fn dependencies_come_first_and_the_index_says_so() {
        let modules: BTreeMap<String, Module> = [
            ("sd_mod", module("kernel/sd_mod.ko", &["scsi_mod"], &[])),
            ("scsi_mod", module("kernel/scsi_mod.ko", &["scsi_common"], &[])),
            ("scsi_common", module("kernel/scsi_common.ko", &[], &[])),
        ]
        .into_iter()
        .map(|(n, m)| (n.to_string(), m))
        .collect();
        assert_eq!(load_order(&modules, ["sd-mod"]), ["scsi_common", "scsi_mod", "sd_mod"]);
        let mut tree = Tree::default();
        put(&mut tree, &Kernel { version: "1".into(), ..Kernel::default() }, &modules).unwrap();
        let Some(super::super::tree::Node::File(_, dep)) = tree.get("/usr/lib/modules/1/modules.dep") else {
            panic!("no index")
        };
        assert!(
            String::from_utf8_lossy(&dep.bytes().unwrap())
                .contains("kernel/sd_mod.ko: kernel/scsi_mod.ko kernel/scsi_common.ko\n")
        );
    }

    #[test]
    fn a_module_is_known_as_a_file_or_built_in() {
        let files = [("dm_crypt".to_string(), ("kernel/dm-crypt.ko".to_string(), Arc::from(*b"x")))].into();
        let kernel = Kernel { files, builtin: "kernel/fs/ext4.ko\n".into(), ..Kernel::default() };
        assert!(kernel.has("dm-crypt") && kernel.has("ext4") && !kernel.has("dm-crpyt"));
        assert_eq!(kernel.similar("dm-crpyt"), Some("dm_crypt"));
        assert_eq!(kernel.similar("nothing"), None);
    }

    #[test]
    fn soft_dependencies_are_read() {
        assert_eq!(pre_dependencies("pre: crc32c sha-256 post: x"), ["crc32c", "sha_256"]);
    }
}
