//! What a container image is made from: a folder with an `image.toml`, a plain folder, a static program,
//! or an archive that exists already.

use super::build::{self, Base, Common, Config, Variant};
use super::content::Content;
use super::model::{Descriptor, Index, Platform};
use super::reference::Reference;
use crate::cache::hash;
use crate::config::ConfigError;
use crate::image::components::Components;
use crate::image::elf;
use crate::image::recipe::{ComponentRecipe, DirectoryRecipe, FileRecipe, LinkRecipe, PackageRecipe};
use crate::image::tree::{Data, Tree};
use crate::image::unpack::Packages;
use crate::input;
use crate::lock::Lock;
use crate::packages::resolve::Wish;
use crate::packages::{self, Mirrors};
use crate::progress::Progress;
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The recipe's file name.
pub const RECIPE: &str = "image.toml";
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
    /// More names: tags of the same repository, or whole names.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Image to build on: a name at a registry, or `oci:PATH[:TAG]`, a layout or archive on this machine.
    #[serde(default)]
    pub base: Option<String>,
    /// `os/architecture[/variant]`; default: linux/amd64.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Annotations of the manifest.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// More layers, lowest first.
    #[serde(default, rename = "layer")]
    layers: Vec<LayerRecipe>,
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

/// `[[layer]]`: what a layer holds.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct LayerRecipe {
    /// Only for these platforms.
    #[serde(default)]
    platforms: Vec<String>,
    /// Folder beside the recipe whose files go into the image's root.
    #[serde(default)]
    root: Option<String>,
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

    /// All layers, lowest first; what stands at the recipe's top is the first of them.
    fn all_layers(&self) -> Vec<LayerRecipe> {
        let first = LayerRecipe {
            platforms: Vec::new(),
            root: self.root.clone(),
            packages: self.packages.clone(),
            components: self.components.clone(),
            files: self.files.clone(),
            links: self.links.clone(),
            applets: self.applets.clone(),
            directories: self.directories.clone(),
        };
        std::iter::once(first).chain(self.layers.iter().cloned()).collect()
    }

    /// `place` is the file that it was read from.
    fn wishes(&self, place: &str) -> Vec<Wish> {
        let wish = |p: PackageRecipe| Wish { name: p.name, follow: p.follow, named_in: place.to_string() };
        self.all_layers().into_iter().flat_map(|layer| layer.packages).map(wish).collect()
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

    /// The trees of a platform's layers.
    fn trees(&self, folder: &Path, platform: &Platform, surroundings: &Surroundings<'_>) -> Result<Vec<Tree>> {
        let mut trees = Vec::new();
        for layer in self.all_layers() {
            if layer.is_for(platform)? {
                trees.push(layer.tree(folder, platform, surroundings)?);
            }
        }
        trees.retain(|tree| tree.iter().next().is_some());
        Ok(trees)
    }
}

impl LayerRecipe {
    fn is_for(&self, platform: &Platform) -> Result<bool> {
        let named = self.platforms.iter().map(|p| p.parse()).collect::<Result<Vec<Platform>>>()?;
        Ok(named.is_empty() || named.iter().any(|named| named.is_same(platform)))
    }

    fn tree(&self, folder: &Path, platform: &Platform, surroundings: &Surroundings<'_>) -> Result<Tree> {
        if *platform != Platform::default() && !(self.packages.is_empty() && self.components.is_empty()) {
            return input::bad(format!(
                "packages and components are for {} only; in a layer for {platform}, take a `root` with its files",
                Platform::default()
            ));
        }
        let mut tree = match &self.root {
            Some(root) => super::tree_of_folder(&below(folder, root)?)?,
            None => Tree::default(),
        };
        let recipe = || format!("in {}", folder.join(RECIPE).display());
        let modes = self.directories.iter().map(|directory| (&directory.path, directory.mode));
        for (path, mode) in modes.chain(self.files.iter().map(|file| (&file.path, file.mode))) {
            if mode > 0o7777 {
                let message = format!("{path} has the mode {mode:#o}; write permission bits, e.g. mode = 0o755");
                return Err(input::BadInput(message)).with_context(recipe);
            }
        }
        for link in &self.links {
            tree.link(&link.path, &link.target).with_context(recipe)?;
        }
        for directory in &self.directories {
            tree.dir(&directory.path, directory.mode).with_context(recipe)?;
        }
        for file in &self.files {
            tree.file(&file.path, file.mode, file.text.clone().into_bytes()).with_context(recipe)?;
        }
        if !self.packages.is_empty() {
            surroundings.packages(&self.packages)?.put(&mut tree, &self.packages)?;
            if let Some(package) = without_use(&self.packages, &tree) {
                return input::bad(format!(
                    "{}: nothing of the package {package} gets into the image; say which of its files do: \
                     files = [\"/usr/bin/*\"]",
                    folder.join(RECIPE).display()
                ));
            }
        }
        for component in &self.components {
            let components = surroundings.components()?;
            let known = components.identify(&component.name).with_context(recipe)?;
            tree.file(&component.path, 0o755, components.read(&known)?).with_context(recipe)?;
            for link in &component.links {
                tree.link(link, &component.path).with_context(recipe)?;
            }
        }
        for applets in &self.applets {
            for name in &applets.names {
                tree.link(&format!("{}/{name}", applets.folder), &applets.target).with_context(recipe)?;
            }
        }
        Ok(tree)
    }
}

/// A package of which the tree has nothing: no file of it is named, and no program needs a library of it.
fn without_use<'p>(packages: &'p [PackageRecipe], tree: &Tree) -> Option<&'p str> {
    let names = packages.iter().map(|package| package.name.as_str());
    names.into_iter().find(|name| !tree.owners().any(|(_, owner)| owner == *name))
}

/// The folder that a recipe names beside itself. Recipes come from anybody, and their images go to others: nothing else
/// of this machine may get in.
fn below(folder: &Path, root: &str) -> Result<PathBuf> {
    let real = |path: &Path| {
        path.canonicalize()
            .map_err(|error| input::BadInput(format!("the folder {} cannot be read: {error}", path.display())))
    };
    let found = real(&folder.join(root))?;
    if found.starts_with(real(folder)?) {
        Ok(found)
    } else {
        input::bad(format!("root = \"{root}\" in {} leads out of its folder", folder.join(RECIPE).display()))
    }
}

/// The packages that the recipes among these sources name, and those of the shipped example.
pub fn wishes<'p>(sources: impl IntoIterator<Item = &'p Path>) -> Result<Vec<Wish>> {
    let mut all = toml::from_str::<ImageRecipe>(TOOLBOX).context("reading the shipped recipe")?.wishes("the toolbox");
    for source in sources {
        if source.is_dir()
            && let Some(recipe) = ImageRecipe::read(source)?
        {
            all.extend(recipe.wishes(&source.join(RECIPE).display().to_string()));
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
    /// Finds a base image.
    pub bases: &'a dyn Fn(&str, &Platform) -> Result<Base>,
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
    /// Full reference: the first name.
    pub name: Reference,
    /// The image.
    pub content: Content,
}

/// What the command line says, over what a recipe says.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// References, in place of the recipe's.
    pub names: Vec<String>,
    /// Parts of the configuration; what is empty stays as it is.
    pub config: Config,
    /// Image to build on.
    pub base: Option<String>,
    /// Platforms, in place of the recipe's.
    pub platforms: Vec<String>,
    /// More annotations.
    pub annotations: BTreeMap<String, String>,
    /// Compress the layer, for registries.
    pub gzip: bool,
}

/// What a source says for itself.
#[derive(Default)]
struct Said {
    names: Vec<String>,
    config: Config,
    base: Option<String>,
    platforms: Vec<String>,
    annotations: BTreeMap<String, String>,
}

/// Makes an image from `source`.
pub fn make(source: &Path, overrides: &Overrides, surroundings: &Surroundings<'_>) -> Result<Image> {
    type Trees<'a> = Box<dyn Fn(&Platform) -> Result<Vec<Tree>> + 'a>;
    let (said, trees): (Said, Trees<'_>) = if source.is_dir() {
        match ImageRecipe::read(source)? {
            Some(recipe) => {
                let said = Said {
                    names: std::iter::once(&recipe.name).chain(&recipe.tags).cloned().collect(),
                    config: recipe.config(),
                    base: recipe.base.clone(),
                    platforms: recipe.platforms.clone(),
                    annotations: recipe.annotations.clone(),
                };
                (said, Box::new(move |platform: &Platform| recipe.trees(source, platform, surroundings)))
            }
            None => {
                let tree = super::tree_of_folder(source)?;
                (Said::default(), Box::new(move |_: &Platform| Ok(vec![tree.clone()])))
            }
        }
    } else {
        let (tree, config, platform) = program(source)?;
        let said = Said { config, platforms: vec![platform.to_string()], ..Said::default() };
        let trees = move |wanted: &Platform| match (wanted.os.as_str(), wanted.architecture == platform.architecture) {
            ("linux", true) => Ok(vec![tree.clone()]),
            _ => input::bad(format!("{} is a program for {platform}, not for {wanted}", source.display())),
        };
        (said, Box::new(trees))
    };
    let given = if overrides.names.is_empty() { &said.names } else { &overrides.names };
    if given.is_empty() {
        let recipe = source.join(RECIPE);
        let why = format!("the image needs a name: --name NAME:TAG, or `name` in {}", recipe.display());
        return input::bad(why);
    }
    let names = names(given)?;
    let mut platforms = Vec::new();
    for text in if overrides.platforms.is_empty() { &said.platforms } else { &overrides.platforms } {
        let platform: Platform = text.parse()?;
        if !platforms.iter().any(|known: &Platform| known.is_same(&platform)) {
            platforms.push(platform);
        }
    }
    if platforms.is_empty() {
        platforms.push(Platform::default());
    }
    let base = overrides.base.as_ref().or(said.base.as_ref());
    let mut variants = Vec::new();
    for platform in platforms {
        let base = base.map(|name| (surroundings.bases)(name, &platform)).transpose()?;
        let layers = trees(&platform)?;
        if layers.is_empty() && base.is_none() {
            let shown = source.display();
            return input::bad(format!("{shown}: there is nothing to put into the image for {platform}"));
        }
        variants.push(Variant { platform, base, layers });
    }
    let mut annotations = said.annotations;
    annotations.extend(overrides.annotations.clone());
    let config = merged(said.config, &overrides.config);
    let common = Common { names: names.clone(), config, annotations, gzip: overrides.gzip };
    let content =
        build::build(&common, &variants).with_context(|| format!("making an image of {}", source.display()))?;
    let name = names.into_iter().next().context("an image has a name")?;
    Ok(Image { name, content })
}

/// The first is a whole name; the others are that, or tags of the first one's repository.
fn names(given: &[String]) -> Result<Vec<Reference>> {
    let first = given.first().context("there is no name")?;
    let mut names = vec![Reference::parse(first)?];
    for text in &given[1..] {
        let name = if text.contains(['/', ':']) { Reference::parse(text)? } else { names[0].with_tag(text)? };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if let Some(pinned) = names.iter().find(|n| n.digest.is_some()) {
        return input::bad(format!("the name {pinned} has a digest, and that comes from the image"));
    }
    Ok(names)
}

/// How a base on this machine is written.
pub const ON_DISK: &str = "oci:";

/// A base image that lies on this machine: `oci:PATH[:TAG]`.
pub fn base_from_disk(name: &str, platform: &Platform) -> Result<Base> {
    let Some(rest) = name.strip_prefix(ON_DISK) else {
        return input::bad(format!(
            "the base image {name} lies at a registry; an image that goes into a node is built without the network, \
             so fetch it first: kimg pull {name} --output base.tar, and write base = \"oci:base.tar\""
        ));
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !Path::new(rest).exists() => (path, Some(tag)),
        _ => (rest, None),
    };
    let content = Content::read(Path::new(path))?;
    let root = content.choose(tag).or_else(|error| input::bad(format!("{path}: {error:#}")))?.clone();
    choose_platform(&content, &root, None, platform)
}

/// The manifest of a platform below `root`.
pub fn choose_platform(
    content: &Content,
    root: &Descriptor,
    name: Option<String>,
    platform: &Platform,
) -> Result<Base> {
    let manifest = if root.is_index() {
        let index = Index::parse(&content.document(root)?)?;
        let fitting = index.manifests.iter().find(|m| m.platform.as_ref().is_some_and(|p| p.is_same(platform)));
        let known = index.manifests.iter().filter_map(|m| Some(m.platform.as_ref()?.to_string()));
        let known: Vec<String> = known.filter(|p| !p.contains("unknown")).collect();
        match fitting {
            Some(fitting) => fitting.clone(),
            None => {
                return input::bad(format!("the image is not there for {platform}, but for {}", known.join(", ")));
            }
        }
    } else {
        root.clone()
    };
    Ok(Base { name, digest: root.digest.clone(), manifest, content: content.clone() })
}

/// A single static program: `/NAME` is the whole image.
fn program(source: &Path) -> Result<(Tree, Config, Platform)> {
    let bytes = input::bytes(source, super::MOST_FILES)?;
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
    let architecture = elf::architecture(&bytes).with_context(|| format!("reading {}", source.display()))?;
    let platform = Platform { architecture: architecture.into(), ..Platform::default() };
    let size = bytes.len() as u64;
    tree.file(&format!("/{name}"), 0o755, Data::on_disk(source, size, Some(&hash::hex_of(&bytes))))?;
    tree.dir("/tmp", 0o1777)?;
    Ok((tree, Config { entrypoint: vec![format!("/{name}")], ..Config::default() }, platform))
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
            bases: &base_from_disk,
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
            assert_eq!(image.name.to_string(), "docker.io/a/b:1");
            let gzip = Overrides { gzip: true, names: vec!["other".into()], ..Overrides::default() };
            assert_eq!(make(dir.path(), &gzip, around).unwrap().name.to_string(), "docker.io/library/other:latest");
        });
    }

    #[test]
    fn a_recipe_takes_nothing_from_beside_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (recipe, outside) = (dir.path().join("recipe"), dir.path().join("outside"));
        for folder in [&recipe, &outside, &recipe.join("files")] {
            std::fs::create_dir(folder).unwrap();
            std::fs::write(folder.join("id_rsa"), "key").unwrap();
        }
        std::os::unix::fs::symlink(&outside, recipe.join("link")).unwrap();
        let absolute = outside.display().to_string();
        let cases = [("files", true), (".", true), ("../outside", false), ("link", false), (absolute.as_str(), false)];
        for (root, fine) in cases {
            std::fs::write(recipe.join(RECIPE), format!("name = \"a/b:1\"\nroot = \"{root}\"\n")).unwrap();
            let made = nothing("", |around| make(&recipe, &Overrides::default(), around));
            assert_eq!(made.is_ok(), fine, "{root}");
            let error = made.err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(fine || error.contains("leads out of its folder"), "{error}");
        }
    }

    #[test]
    fn a_mistake_in_a_recipe_is_the_users() {
        let dir = tempfile::tempdir().unwrap();
        let file = |path: &str, rest: &str| format!("[[file]]\npath = \"{path}\"\ntext = \"x\"\n{rest}");
        let long = format!("/{}", "x".repeat(256));
        for (recipe, says) in [
            (file("/../x", ""), "no absolute path"),
            (file("x", ""), "no absolute path"),
            (file(&long, ""), "255 bytes"),
            (file("/x", "mode = 0o7777777\n"), "permission bits"),
            (file("/x", "") + "[[link]]\npath = \"/x\"\ntarget = \"y\"\n", "two different things"),
            (file("/x", "") + &file("/x/y", ""), "lies below /x"),
            (
                file("/x", "") + "[[applets]]\nfolder = \"/bin\"\ntarget = \"/x\"\nnames = [\"../a\"]\n",
                "no absolute path",
            ),
            (file("/a/.wh.x", ""), "removes"),
            (String::new(), "there is nothing to put"),
            (file("/x", "mode = -1\n"), "0 or more"),
        ] {
            std::fs::write(dir.path().join(RECIPE), format!("name = \"a/b:1\"\n{recipe}")).unwrap();
            let error = nothing("", |around| make(dir.path(), &Overrides::default(), around)).unwrap_err();
            let bad = error.chain().any(|e| e.is::<input::BadInput>() || e.is::<ConfigError>());
            assert!(bad && format!("{error:#}").contains(says), "{recipe}: {error:#}");
            assert!(format!("{error:#}").contains(&dir.path().display().to_string()), "{error:#}");
        }
        let damaged = dir.path().join("damaged.tar");
        std::fs::write(&damaged, "x".repeat(2000)).unwrap();
        for base in
            [format!("oci:{}", damaged.display()), format!("oci:{}", dir.path().display()), "r.example/x".into()]
        {
            let error = base_from_disk(&base, &Platform::default()).unwrap_err();
            assert!(error.is::<input::BadInput>(), "{error:#}");
        }
    }

    #[test]
    fn a_program_must_be_static() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, super::super::pause::program()).unwrap();
        let named = Overrides { names: vec!["p".into()], ..Overrides::default() };
        nothing("", |around| {
            make(&path, &named, around).unwrap();
            let elsewhere = Overrides { platforms: vec!["linux/arm64".into()], ..named.clone() };
            let error = make(&path, &elsewhere, around).unwrap_err().to_string();
            assert!(error.contains("for linux/amd64, not for linux/arm64"), "{error}");
            std::fs::write(&path, "#!/bin/sh").unwrap();
            assert!(make(&path, &named, around).unwrap_err().to_string().contains("neither a folder nor a program"));
        });
    }

    #[test]
    fn a_recipe_has_tags_platforms_layers_and_a_base() {
        let dir = tempfile::tempdir().unwrap();
        for (folder, text) in [("common", "c"), ("amd", "x"), ("arm", "y")] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
            std::fs::write(dir.path().join(folder).join(folder), text).unwrap();
        }
        let recipe = "name = \"r.example/web:1\"\ntags = [\"latest\", \"other.example/web:2\"]\nroot = \"common\"\n\
            platforms = [\"linux/amd64\", \"linux/arm64\"]\nannotations = { a = \"b\" }\n\
            [[layer]]\nroot = \"amd\"\nplatforms = [\"linux/amd64\"]\n\
            [[layer]]\nroot = \"arm\"\nplatforms = [\"linux/arm64\"]\n";
        std::fs::write(dir.path().join(RECIPE), recipe).unwrap();
        nothing("", |around| {
            let image = make(dir.path(), &Overrides::default(), around).unwrap();
            let names: Vec<String> = image.content.names().into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, ["r.example/web:1", "r.example/web:latest", "other.example/web:2"]);
            let layout = dir.path().join("layout");
            image.content.write_folder(&layout).unwrap();

            let on_top = dir.path().join("top");
            std::fs::create_dir(&on_top).unwrap();
            std::fs::write(on_top.join("file"), "1").unwrap();
            let base = |tag: &str| Overrides {
                names: vec!["top:1".into()],
                base: Some(format!("oci:{}{tag}", layout.display())),
                // One platform, named in both ways.
                platforms: vec!["linux/arm64".into(), "linux/arm64/v8".into()],
                ..Overrides::default()
            };
            let top = make(&on_top, &base(":latest"), around).unwrap();
            // Three layers, a configuration and a manifest.
            assert_eq!(top.content.reach(&top.content.entries[0]).unwrap().len(), 5);
            let error = format!("{:#}", make(&on_top, &base(":no"), around).unwrap_err());
            assert!(error.contains("there is no image no here; there are: r.example/web:1"), "{error}");
            let other = Overrides { platforms: vec!["linux/s390x".into()], ..base("") };
            let error = format!("{:#}", make(&on_top, &other, around).unwrap_err());
            assert!(error.contains("but for linux/amd64, linux/arm64"), "{error}");
        });
        std::fs::write(dir.path().join(RECIPE), format!("{recipe}[[component]]\nname = \"x\"\npath = \"/x\"\n"))
            .unwrap();
        nothing("", |around| {
            let arm = Overrides { platforms: vec!["linux/arm64".into()], ..Overrides::default() };
            let error = format!("{:#}", make(dir.path(), &arm, around).unwrap_err());
            assert!(error.contains("for linux/amd64 only"), "{error}");
            let amd = Overrides { platforms: vec!["linux/amd64".into()], ..Overrides::default() };
            let error = format!("{:#}", make(dir.path(), &amd, around).unwrap_err());
            assert!(error.contains("no components"), "{error}");
        });
    }

    #[test]
    fn a_package_without_use_is_found() {
        let package = |name: &str| PackageRecipe { name: name.into(), files: Vec::new(), follow: None };
        let mut tree = Tree::default();
        tree.owned_by("libssl3t64");
        tree.file("/usr/lib/x86_64-linux-gnu/libssl.so.3", 0o644, *b"library").unwrap();
        assert_eq!(without_use(&[package("libssl3t64")], &tree), None);
        assert_eq!(without_use(&[package("libssl3t64"), package("curl")], &tree), Some("curl"));
    }

    #[test]
    fn the_shipped_recipe_is_readable() {
        assert!(wishes([]).unwrap().iter().any(|w| w.name == "busybox-static"));
    }
}
