//! How the client programs come to run: Debian's Go and client-go, a virtual environment of Python, and
//! packages of the JavaScript registry, all below `target/tools/`.

use anyhow::{Context, bail};
use qemu_tests::Result;
use qemu_tests::tools::{must, once, python_environment, workspace};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    Go,
    Python,
    JavaScript,
}

/// Why a program does not run here.
#[derive(Debug, Clone)]
pub enum Lacking {
    /// Something cannot be fetched, or the language is not on this machine.
    Unavailable(String),
    /// It is all there, and does not build.
    Broken(String),
}

impl Lacking {
    fn unavailable(what: &str, error: &anyhow::Error) -> Lacking {
        Lacking::Unavailable(format!("{what} cannot be had here: {error:#}"))
    }

    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    fn broken(error: anyhow::Error) -> Lacking {
        Lacking::Broken(format!("{error:#}"))
    }
}

type Answer = std::result::Result<Vec<String>, Lacking>;

impl Language {
    pub fn name(self) -> &'static str {
        match self {
            Language::Go => "client_go",
            Language::Python => "python",
            Language::JavaScript => "javascript",
        }
    }
}

/// A language's tools, prepared once by whoever asks first.
#[derive(Debug)]
pub struct Tools {
    language: Language,
    command: OnceLock<Answer>,
}

impl Tools {
    pub fn new(language: Language) -> Tools {
        Tools { language, command: OnceLock::new() }
    }

    pub fn language(&self) -> Language {
        self.language
    }

    /// The program and its first arguments.
    pub fn ready(&self) -> std::result::Result<&[String], &Lacking> {
        let prepare = || match self.language {
            Language::Go => go(),
            Language::Python => python(),
            Language::JavaScript => javascript(),
        };
        self.command.get_or_init(prepare).as_ref().map(Vec::as_slice)
    }
}

fn sources(name: &str) -> PathBuf {
    workspace().join("qemu-tests/clients").join(name)
}

fn tools(name: &str) -> Result<PathBuf> {
    let dir = workspace().join("target/tools").join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// The Go tree of Debian trixie, with the libraries as Debian builds them: no modules, no network.
fn go() -> Answer {
    let fetched = || -> Result<PathBuf> {
        let list = text(&sources("go").join("packages.txt"))?;
        let packages: Vec<&str> = list.lines().collect();
        let tree = workspace().join("target/tools/go");
        once(&workspace().join("target/tools/go.stamp"), &list, || {
            if tree.exists() {
                std::fs::remove_dir_all(&tree).with_context(|| format!("removing {}", tree.display()))?;
            }
            let wanted = |path: &str| {
                let tests = path.contains("/testdata/") || path.ends_with("_test.go");
                let extras = ["/usr/share/go-1.24/test/", "/usr/share/go-1.24/api/", "/usr/share/doc/"];
                !tests && !extras.iter().any(|e| path.starts_with(e))
            };
            std::fs::create_dir_all(workspace().join("target/tools")).context("making target/tools")?;
            kimg::packages::fetch_tree("trixie", &packages, wanted, &tree)
        })?;
        Ok(tree)
    };
    let tree = fetched().map_err(|e| Lacking::unavailable("client-go", &e))?;
    build_go(&tree).map_err(Lacking::broken)
}

fn build_go(tree: &Path) -> Result<Vec<String>> {
    let root = tree.join("usr/lib/go-1.24");
    let program = workspace().join("target/tools/client-go");
    let output = Command::new(root.join("bin/go"))
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(sources("go"))
        .env("GOROOT", &root)
        .env("GOPATH", tree.join("usr/share/gocode"))
        .env("GOCACHE", workspace().join("target/tools/go-cache"))
        .envs([("GO111MODULE", "off"), ("GOFLAGS", ""), ("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local")])
        .output()
        .context("starting go")?;
    if !output.status.success() {
        bail!("building qemu-tests/clients/go: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(vec![program.display().to_string()])
}

fn python() -> Answer {
    let environment = python_environment("python", &sources("python").join("requirements.txt"))
        .map_err(|e| Lacking::unavailable("the Python client", &e))?;
    let python = environment.join("bin/python3");
    Ok(vec![python.display().to_string(), sources("python").join("program.py").display().to_string()])
}

fn javascript() -> Answer {
    let prepared = || -> Result<PathBuf> {
        let dir = tools("javascript")?;
        let mut want = String::new();
        // Packages are found beside the program only, so the program goes where they are.
        for name in ["package.json", "package-lock.json"] {
            want += &text(&sources("js").join(name))?;
        }
        copy(&dir, "program.js")?;
        once(&dir.join("stamp"), &want, || {
            copy(&dir, "package.json")?;
            copy(&dir, "package-lock.json")?;
            must(&dir, "npm", &["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
        })?;
        Ok(dir.join("program.js"))
    };
    let program = prepared().map_err(|e| Lacking::unavailable("the JavaScript client", &e))?;
    Ok(vec!["node".to_owned(), program.display().to_string()])
}

fn copy(dir: &Path, name: &str) -> Result {
    std::fs::copy(sources("js").join(name), dir.join(name))
        .with_context(|| format!("copying {name} to {}", dir.display()))
        .map(|_| ())
}
