//! The programs that write image bytes, unpacked from locked packages and run with their own loader and
//! libraries, so that nothing depends on what the host has installed.

use super::recipe::{self, PackageRecipe};
use super::tree::Tree;
use super::unpack;
use crate::cache;
use crate::cache::hash::Inputs;
use crate::lock::Lock;
use anyhow::{Context, Result, bail};
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

    /// Unpacks the tools into the user's cache, unless they are there.
    pub fn open(lock: &Lock) -> Result<Toolbox> {
        let key = Self::key_of(lock)?;
        let parent = cache::user_dir()?.join("tools");
        let dir = parent.join(&key);
        if !dir.exists() {
            let tree = Self::tree(lock)?;
            let temporary = cache::temporary_beside(&dir)?;
            cache::sweep(&parent);
            tree.write_to_new(&temporary)?;
            if let Err(error) = std::fs::rename(&temporary, &dir) {
                std::fs::remove_dir_all(&temporary).with_context(|| format!("removing {}", temporary.display()))?;
                // Another build may have been first; then its folder serves as well.
                if !dir.exists() {
                    return Err(error).with_context(|| format!("storing the build tools in {}", dir.display()));
                }
            }
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
