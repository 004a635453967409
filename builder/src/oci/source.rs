//! What a container image is made from: a folder with an `image.toml`, a plain folder, a static program,
//! or an archive that exists already.

use super::Config;
use crate::config::ConfigError;
use crate::image::components::Components;
use crate::image::elf;
use crate::image::recipe::{ComponentRecipe, DirectoryRecipe, FileRecipe, LinkRecipe, PackageRecipe};
use crate::image::tree::Tree;
use crate::image::unpack::Packages;
use crate::input;
use crate::lock::Lock;
use crate::packages::resolve::Wish;
use crate::packages::{self, Mirrors};
use crate::progress::Progress;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::path::Path;

/// The recipe's file name.
pub const RECIPE: &str = "image.toml";
/// The most that a program alone may have, in bytes.
const MOST_PROGRAM: u64 = 2 << 30;
/// The example whose packages stand in every lock file.
const TOOLBOX: &str = include_str!("../../../images/examples/toolbox/image.toml");

/// `image.toml`
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ImageRecipe {
    /// Reference, e.g. `registry.example.com/web:1`.
    pub name: String,
    /// Program and fixed arguments.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Default arguments.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// `user[:group]`, numbers.
    #[serde(default)]
    pub user: String,
    /// Working directory.
    #[serde(default)]
    pub working_dir: String,
    /// `port[/protocol]`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// `key=value`.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Folder beside the recipe whose files go into the image's root.
    #[serde(default)]
    pub root: Option<String>,
    /// Files from Debian packages.
    #[serde(default, rename = "package")]
    packages: Vec<PackageRecipe>,
    /// Executables from the components' folder.
    #[serde(default, rename = "component")]
    components: Vec<ComponentRecipe>,
    /// Files with fixed content.
    #[serde(default, rename = "file")]
    files: Vec<FileRecipe>,
    /// Links.
    #[serde(default, rename = "link")]
    links: Vec<LinkRecipe>,
    /// Many links to one program.
    #[serde(default, rename = "applets")]
    applets: Vec<AppletRecipe>,
    /// Empty directories.
    #[serde(default, rename = "directory")]
    directories: Vec<DirectoryRecipe>,
}

/// Links of many names to one program.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct AppletRecipe {
    folder: String,
    target: String,
    names: Vec<String>,
}

impl ImageRecipe {
    /// Reads the recipe of a folder, if it has one.
    pub fn read(folder: &Path) -> Result<Option<ImageRecipe>> {
        let path = folder.join(RECIPE);
        if !path.exists() {
            return Ok(None);
        }
        let text = input::text(&path, input::SMALL)?;
        match toml::from_str(&text) {
            Ok(recipe) => Ok(Some(recipe)),
            Err(error) => Err(ConfigError::from_toml(&path, &text, &error).into()),
        }
    }

    fn wishes(&self) -> impl Iterator<Item = Wish> {
        self.packages.iter().map(|p| Wish { name: p.name.clone(), follow: p.follow.clone() })
    }

    fn config(&self) -> Config {
        Config {
            entrypoint: self.entrypoint.clone(),
            cmd: self.cmd.clone(),
            env: self.env.clone(),
            user: self.user.clone(),
            working_dir: self.working_dir.clone(),
            ports: self.ports.clone(),
            labels: self.labels.clone(),
        }
    }

    fn tree(&self, folder: &Path, surroundings: &Surroundings<'_>) -> Result<Tree> {
        let mut tree = match &self.root {
            Some(root) => super::tree_of_folder(&folder.join(root))?,
            None => Tree::default(),
        };
        for link in &self.links {
            tree.link(&link.path, &link.target)?;
        }
        for directory in &self.directories {
            tree.dir(&directory.path, directory.mode)?;
        }
        for file in &self.files {
            tree.file(&file.path, file.mode, file.text.clone().into_bytes())?;
        }
        if !self.packages.is_empty() {
            surroundings.packages(&self.packages)?.put(&mut tree, &self.packages)?;
        }
        for component in &self.components {
            let components = surroundings.components()?;
            let bytes = components.read(&components.identify(&component.name)?)?;
            tree.file(&component.path, 0o755, bytes)?;
            for link in &component.links {
                tree.link(link, &component.path)?;
            }
        }
        for applets in &self.applets {
            for name in &applets.names {
                tree.link(&format!("{}/{name}", applets.folder), &applets.target)?;
            }
        }
        Ok(tree)
    }
}

/// The packages that the recipes among these sources name, and those of the shipped example.
pub fn wishes<'p>(sources: impl IntoIterator<Item = &'p Path>) -> Result<Vec<Wish>> {
    let mut all: Vec<Wish> =
        toml::from_str::<ImageRecipe>(TOOLBOX).context("reading the shipped recipe")?.wishes().collect();
    for source in sources {
        if source.is_dir()
            && let Some(recipe) = ImageRecipe::read(source)?
        {
            all.extend(recipe.wishes());
        }
    }
    Ok(all)
}

/// What recipes may draw on besides their own folder; looked for only when they do.
pub struct Surroundings<'a> {
    /// Finds the lock file.
    pub lock: &'a dyn Fn() -> Result<Lock>,
    /// Finds the components.
    pub components: &'a dyn Fn() -> Result<Components>,
    /// Mirrors to fetch packages from.
    pub mirrors: &'a Mirrors,
    /// Progress of fetching.
    pub progress: &'a Progress,
}

impl Surroundings<'_> {
    fn packages(&self, recipes: &[PackageRecipe]) -> Result<Packages> {
        let lock = (self.lock)()?;
        let names: Vec<&str> = recipes.iter().map(|p| p.name.as_str()).collect();
        let names: Vec<&str> = lock.closure(&names)?.into_iter().map(|p| p.name.as_str()).collect();
        packages::fetch(&lock, &names, self.mirrors, self.progress)?;
        Packages::read(&lock, recipes)
    }

    fn components(&self) -> Result<Components> {
        (self.components)()
    }
}

/// An image ready to be written.
#[derive(Debug)]
pub struct Image {
    /// Full reference.
    pub name: String,
    /// The OCI archive.
    pub archive: Vec<u8>,
}

/// What the command line says, over what a recipe says.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Reference.
    pub name: Option<String>,
    /// Parts of the configuration; what is empty stays as it is.
    pub config: Config,
    /// Compress the layer, for registries.
    pub gzip: bool,
}

/// Makes an image from `source`.
pub fn make(source: &Path, overrides: &Overrides, surroundings: &Surroundings<'_>) -> Result<Image> {
    let made = if source.is_dir() {
        match ImageRecipe::read(source)? {
            Some(recipe) => (recipe.tree(source, surroundings)?, recipe.config(), Some(recipe.name)),
            None => (super::tree_of_folder(source)?, Config::default(), None),
        }
    } else {
        let (tree, config) = program(source)?;
        (tree, config, None)
    };
    let (tree, config, name) = made;
    let Some(name) = overrides.name.clone().or(name) else {
        let recipe = source.join(RECIPE);
        return input::bad(format!("the image needs a name: --name NAME:TAG, or `name` in {}", recipe.display()));
    };
    let config = merged(config, &overrides.config);
    let archive = super::archive(&name, &tree, &config, overrides.gzip)
        .with_context(|| format!("making an image of {}", source.display()))?;
    Ok(Image { name: super::full_reference(&name)?, archive })
}

/// A single static program: `/NAME` is the whole image.
fn program(source: &Path) -> Result<(Tree, Config)> {
    let bytes = input::bytes(source, MOST_PROGRAM)?;
    if !elf::is_elf(&bytes) {
        return input::bad(format!("{} is neither a folder nor a program", source.display()));
    }
    let needs = elf::needs(&bytes).or_else(|_| input::bad(format!("{} is a damaged program", source.display())))?;
    if needs.interpreter.is_some() || !needs.libraries.is_empty() {
        return input::bad(format!(
            "{} needs shared libraries ({}), and the image would have none; link it statically, or name a folder that holds all it needs",
            source.display(),
            needs.libraries.join(", ")
        ));
    }
    let name = source.file_name().and_then(|n| n.to_str()).context("the program's name is not UTF-8")?;
    let mut tree = Tree::default();
    tree.file(&format!("/{name}"), 0o755, bytes)?;
    tree.dir("/tmp", 0o1777)?;
    Ok((tree, Config { entrypoint: vec![format!("/{name}")], ..Config::default() }))
}

fn merged(mut config: Config, over: &Config) -> Config {
    for (place, value) in [(&mut config.entrypoint, &over.entrypoint), (&mut config.cmd, &over.cmd)] {
        if !value.is_empty() {
            place.clone_from(value);
        }
    }
    for (place, value) in [(&mut config.user, &over.user), (&mut config.working_dir, &over.working_dir)] {
        if !value.is_empty() {
            place.clone_from(value);
        }
    }
    config.env.extend(over.env.iter().cloned());
    config.ports.extend(over.ports.iter().cloned());
    config.labels.extend(over.labels.iter().cloned());
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    fn nothing<R>(_: &str, run: impl FnOnce(&Surroundings<'_>) -> R) -> R {
        run(&Surroundings {
            lock: &|| bail!("no lock"),
            components: &|| bail!("no components"),
            mirrors: &Mirrors::default(),
            progress: &Progress::hidden(),
        })
    }

    #[test]
    fn a_folder_needs_a_name_and_gets_the_settings_of_its_recipe() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        std::fs::write(dir.path().join("files/index.html"), "hello").unwrap();
        nothing("", |around| {
            let error = make(dir.path(), &Overrides::default(), around).unwrap_err().to_string();
            assert!(error.contains("--name"), "{error}");
            std::fs::write(dir.path().join(RECIPE), "name = \"a/b:1\"\nroot = \"files\"\ncmd = [\"x\"]\n").unwrap();
            let image = make(dir.path(), &Overrides::default(), around).unwrap();
            assert_eq!(image.name, "docker.io/a/b:1");
            let gzip = Overrides { gzip: true, name: Some("other".into()), ..Overrides::default() };
            assert_eq!(make(dir.path(), &gzip, around).unwrap().name, "docker.io/library/other:latest");
        });
    }

    #[test]
    fn a_program_must_be_static() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, super::super::pause::program()).unwrap();
        let named = Overrides { name: Some("p".into()), ..Overrides::default() };
        nothing("", |around| {
            make(&path, &named, around).unwrap();
            std::fs::write(&path, "#!/bin/sh").unwrap();
            assert!(make(&path, &named, around).unwrap_err().to_string().contains("neither a folder nor a program"));
        });
    }

    #[test]
    fn the_shipped_recipe_is_readable() {
        assert!(wishes([]).unwrap().iter().any(|w| w.name == "busybox-static"));
    }
}
