//! The programs that write image bytes, unpacked from locked packages and run with their own loader and
//! libraries, so that nothing depends on what the host has installed.

use super::recipe::{self, PackageRecipe};
use super::tree::{Node, Tree};
use super::unpack;
use crate::cache;
use crate::cache::hash::{self, Inputs};
use crate::lock::Lock;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const LOADER: &str = "/usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// An unpacked set of tools.
#[derive(Debug, Clone)]
pub struct Toolbox {
    dir: PathBuf,
    key: String,
}

impl Toolbox {
    /// Names of the packages that must have been fetched.
    pub fn packages(lock: &Lock) -> Result<Vec<String>> {
        let tools = recipe::tools()?;
        let names: Vec<&str> = tools.packages.iter().map(|p| p.name.as_str()).collect();
        Ok(lock.closure(&names)?.into_iter().map(|p| p.name.clone()).collect())
    }

    /// The key of the tools that `lock` names, without unpacking them.
    pub fn key_of(lock: &Lock) -> Result<String> {
        let mut inputs = Inputs::new("tools 1");
        for name in Self::packages(lock)? {
            inputs = inputs.with(&name, &lock.package(&name)?.sha256);
        }
        for package in recipe::tools()?.packages {
            inputs = inputs.with("files", package.files.join("\n"));
        }
        Ok(inputs.key())
    }

    /// Unpacks the tools into the user's cache, unless they are there as they were unpacked.
    pub fn open(lock: &Lock) -> Result<Toolbox> {
        let key = Self::key_of(lock)?;
        Self::open_in(&cache::user_dir()?.join("tools"), key, &cache::sums_dir()?, || Self::tree(lock))
    }

    /// Those of `key` in the folder `parent`, which `tree` makes; `memory` is that of [`hash::hex_of_file_remembered`].
    fn open_in(parent: &Path, key: String, memory: &Path, tree: impl FnOnce() -> Result<Tree>) -> Result<Toolbox> {
        cache::private_dir(parent)?;
        let dir = parent.join(&key);
        // Another build may be about to make the same.
        let turn = cache::open_private(&parent.join(format!("{key}.lock")))?;
        turn.lock().with_context(|| format!("locking {}", dir.display()))?;
        cache::sweep(parent);
        let list = parent.join(format!("{key}.sha256"));
        let known = std::fs::read_to_string(&list).unwrap_or_default();
        if known.is_empty() || known != list_of(&dir, memory)? {
            let tree = tree()?;
            let temporary = cache::temporary_beside(&dir)?;
            tree.write_to_new(&temporary)?;
            if dir.exists() {
                std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
            }
            cache::write_atomic(&list, list_of_tree(&tree)?.as_bytes())?;
            std::fs::rename(&temporary, &dir).with_context(|| format!("storing {}", dir.display()))?;
        }
        Ok(Toolbox { dir, key })
    }

    fn tree(lock: &Lock) -> Result<Tree> {
        let tools: Vec<PackageRecipe> = recipe::tools()?.packages;
        let mut tree = Tree::default();
        let packages = unpack::Packages::read(lock, &tools)?;
        packages.put(&mut tree, &tools)?;
        Ok(tree)
    }

    /// Identifies the tools' versions.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A file of the toolbox by its absolute path in the packages.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    /// Reads a file of the toolbox.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let path = self.path(path);
        std::fs::read(&path)
            .with_context(|| format!("reading {}; remove that folder to have it made again", path.display()))
    }

    /// A command that runs `program` of the toolbox.
    pub fn command(&self, program: &str) -> Result<Command> {
        let program = self.path(program);
        if !program.exists() {
            bail!("the build tool {} is missing; remove that folder to have it made again", program.display());
        }
        let mut command = Command::new(self.path(LOADER));
        command.arg("--inhibit-cache").arg("--library-path").arg(self.path(LIBRARIES)).arg(program);
        // Nothing of the caller's environment may change what is written.
        command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").current_dir("/");
        Ok(command)
    }
}

/// What a tree is unpacked to, one entry a line: path, mode and sum, or where a link leads.
fn list_of_tree(tree: &Tree) -> Result<String> {
    let line = |(path, node): (&str, &Node)| {
        Ok(match node {
            Node::Dir(_) => format!("{path}/\n"),
            Node::File(mode, data) => {
                format!("{path} {:o} {}\n", mode & 0o777, hash::hex_of_reader(&mut *data.open()?)?)
            }
            Node::Link(target) => format!("{path} -> {target}\n"),
            Node::Device(..) => format!("{path} device\n"),
        })
    };
    tree.iter().map(line).collect()
}

/// The same of a folder as it is now.
fn list_of(dir: &Path, memory: &Path) -> Result<String> {
    let (mut open, mut lines) = (vec![dir.to_path_buf()], BTreeMap::new());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.with_context(|| format!("reading {}", folder.display()))?.path();
            let meta = path.symlink_metadata().with_context(|| format!("reading {}", path.display()))?;
            let name = format!("/{}", path.strip_prefix(dir)?.display());
            let line = if meta.is_dir() {
                open.push(path);
                format!("{name}/\n")
            } else if meta.is_symlink() {
                format!("{name} -> {}\n", std::fs::read_link(&path)?.display())
            } else if meta.is_file() {
                let sum = hash::hex_of_file_remembered(&path, memory)?;
                format!("{name} {:o} {sum}\n", meta.permissions().mode() & 0o777)
            } else {
                format!("{name} is no file\n")
            };
            lines.insert(name, line);
        }
    }
    Ok(lines.into_values().collect())
}

/// Runs a tool; what it says is shown only when it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {}", name(command)))?;
    finish(command, &output)
}

/// Judges a finished tool.
pub fn finish(command: &Command, output: &std::process::Output) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{} failed ({}): {}", name(command), output.status, said.trim())
}

fn name(command: &Command) -> String {
    // The fourth argument of the loader is the program.
    let program = command.get_args().nth(3).unwrap_or(command.get_program());
    Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned()
}

impl Tree {
    /// Writes the tree into a folder that is made for it.
    fn write_to_new(&self, folder: &Path) -> Result<()> {
        if folder.exists() {
            std::fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        self.write_to(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_that_were_altered_are_unpacked_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (parent, memory) = (dir.path().join("tools"), dir.path().join("sums"));
        let mut tree = Tree::default();
        tree.file("/usr/bin/tool", 0o755, *b"whole").unwrap();
        tree.file("/usr/lib/x.so.1", 0o644, *b"library").unwrap();
        tree.link("/usr/lib/x.so", "x.so.1").unwrap();
        let unpacked = std::cell::Cell::new(0);
        let open = || {
            let made = || {
                unpacked.set(unpacked.get() + 1);
                Ok(tree.clone())
            };
            Toolbox::open_in(&parent, "key".into(), &memory, made).unwrap()
        };
        let tools = open();
        open();
        assert_eq!(unpacked.get(), 1);
        let (tool, library) = (tools.path("/usr/bin/tool"), tools.path("/usr/lib/x.so"));
        let alterations: [&dyn Fn(); 5] = [
            &|| std::fs::write(&tool, "altered").unwrap(),
            &|| std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o644)).unwrap(),
            &|| std::fs::remove_file(&tool).unwrap(),
            &|| std::fs::rename(&tool, &library).unwrap(),
            &|| std::fs::write(tools.path("/usr/lib/y.so"), "more").unwrap(),
        ];
        for (n, alter) in alterations.iter().enumerate() {
            alter();
            open();
            assert_eq!(unpacked.get(), n + 2);
            assert_eq!(tools.read("/usr/bin/tool").unwrap(), b"whole");
            assert_eq!(tools.read("/usr/lib/x.so").unwrap(), b"library");
            assert!(!tools.path("/usr/lib/y.so").exists());
        }
    }
}
