//! Collects what the SBOM of an image says about the crates in its programs: which there are, under which licences,
//! and their licence files. Cargo's own resolver is asked, with the features that a build of the workspace has.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs that images carry, and the packages that they are built from.
const PROGRAMS: [(&str, &str); 3] =
    [("kimg-node", "kimg-node"), ("kimg-control", "kimg-control"), ("kimg-stage1", "node-init")];
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Folders below a crate's in which the licences of bundled sources lie.
const DEPTH: usize = 2;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Err(why) = collect() {
        println!("cargo::error=the crates of the images' programs cannot be listed: {why}");
    }
}

fn env(name: &str) -> Result<PathBuf, String> {
    std::env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set"))
}

fn output(program: &Path, args: &[&str], dir: &Path) -> Result<String, String> {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if !output.status.success() {
        return Err(format!("{} {args:?}: {}", program.display(), String::from_utf8_lossy(&output.stderr)));
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}

fn collect() -> Result<(), String> {
    let workspace = env("CARGO_MANIFEST_DIR")?.join("..");
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.lock").display());
    let tree = output(
        &env("CARGO")?,
        &[
            "tree",
            "--workspace",
            "--locked",
            "--edges",
            "normal,no-proc-macro",
            "--prefix",
            "depth",
            "--target",
            TARGET,
            "--format",
            "{p}\t{l}",
        ],
        &workspace,
    )?;
    let graph = Graph::parse(&tree)?;
    for path in graph.nodes.values().filter_map(|node| node.path.as_deref()) {
        println!("cargo::rerun-if-changed={}/Cargo.toml", path.trim_matches(['(', ')']));
    }
    let lock = std::fs::read_to_string(workspace.join("Cargo.lock")).map_err(|error| format!("Cargo.lock: {error}"))?;
    let checksums = checksums(&lock);
    let places = places(&workspace)?;

    let mut blob = Blob::default();
    let mut code = String::from("pub(super) static CRATES: &[Crate] = &[\n");
    let mut used: BTreeMap<&Id, Vec<&str>> = BTreeMap::new();
    for (program, package) in PROGRAMS {
        for id in graph.reach(package)? {
            used.entry(id).or_default().push(program);
        }
    }
    for (id, programs) in &used {
        let node = &graph.nodes[*id];
        let files = match &node.path {
            // Our own crates stand under the workspace's licence.
            Some(_) => vec![("LICENSE".to_string(), read(&workspace.join("LICENSE"))?)],
            None => licences(&source_of(id, &places)?)?,
        };
        let files: Vec<Licence> = files.into_iter().map(|(name, bytes)| (name, blob.add(bytes))).collect();
        let depends: Vec<&Id> = node.depends.iter().filter(|d| used.contains_key(d)).collect();
        writeln!(
            code,
            "Crate {{ name: {:?}, version: {:?}, licence: {:?}, checksum: {:?}, own: {}, programs: &{programs:?}, \
             depends: &{depends:?}, files: &{files:?} }},",
            id.0,
            id.1,
            node.licence,
            checksums.get(id).map(String::as_str).unwrap_or_default(),
            node.path.is_some(),
        )
        .map_err(|error| error.to_string())?;
    }
    code.push_str("];\n");
    let compiler = output(&env("RUSTC")?, &["--version"], &workspace)?;
    let standard = standard_library(&mut blob)?;
    let version = compiler.split_whitespace().nth(1).unwrap_or("unknown");
    writeln!(code, "pub(super) const RUST_VERSION: &str = {version:?};").map_err(|error| error.to_string())?;
    writeln!(code, "pub(super) static RUST_FILES: &[(&str, (usize, usize))] = &{standard:?};")
        .map_err(|error| error.to_string())?;
    let out = env("OUT_DIR")?;
    let write = |name: &str, bytes: &[u8]| std::fs::write(out.join(name), bytes).map_err(|e| format!("{name}: {e}"));
    write("licences", &blob.bytes)?;
    write("crates.rs", code.as_bytes())
}

/// Name and version.
type Id = (String, String);

struct Crate {
    licence: String,
    /// Folder of a crate of the workspace.
    path: Option<String>,
    depends: BTreeSet<Id>,
}

/// Who depends on whom.
struct Graph {
    nodes: BTreeMap<Id, Crate>,
}

impl Graph {
    /// Reads `cargo tree --prefix depth`: a number, name, version, perhaps a path; a tab; the licence. What was
    /// shown in full before ends in `(*)`.
    fn parse(text: &str) -> Result<Graph, String> {
        let mut nodes: BTreeMap<Id, Crate> = BTreeMap::new();
        let mut above: Vec<Id> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let wrong = || format!("cargo tree wrote {line:?}");
            let digits = line.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let depth: usize = line[..digits].parse().map_err(|_| wrong())?;
            let (package, licence) = line[digits..].split_once('\t').ok_or_else(wrong)?;
            let mut words = package.splitn(3, ' ');
            let (Some(name), Some(version)) = (words.next(), words.next().and_then(|v| v.strip_prefix('v'))) else {
                return Err(wrong());
            };
            let id = (name.to_string(), version.to_string());
            let path = words.next().filter(|rest| rest.starts_with("(/")).map(str::to_string);
            let licence = licence.trim_end_matches("(*)").trim().to_string();
            nodes.entry(id.clone()).or_insert_with(|| Crate { licence, path, depends: BTreeSet::new() });
            above.truncate(depth);
            if let Some(parent) = above.last().and_then(|parent| nodes.get_mut(parent)) {
                parent.depends.insert(id.clone());
            }
            above.push(id);
        }
        Ok(Graph { nodes })
    }

    /// A package and all that it is linked from.
    fn reach(&self, package: &str) -> Result<BTreeSet<&Id>, String> {
        let first = self.nodes.keys().find(|(name, _)| name == package);
        let mut queue = vec![first.ok_or_else(|| format!("the workspace has no package {package}"))?];
        let mut found = BTreeSet::new();
        while let Some(id) = queue.pop() {
            if found.insert(id) {
                queue.extend(&self.nodes[id].depends);
            }
        }
        Ok(found)
    }
}

/// Cargo.lock's checksum of each crate.
fn checksums(lock: &str) -> BTreeMap<Id, String> {
    let value = |stanza: &str, key: &str| {
        let line = stanza.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""))?;
        Some(line.trim_end_matches('"').to_string())
    };
    lock.split("[[package]]")
        .filter_map(|stanza| Some(((value(stanza, "name")?, value(stanza, "version")?), value(stanza, "checksum")?)))
        .collect()
}

/// Folders in which sources of crates lie, as `NAME-VERSION`.
fn places(workspace: &Path) -> Result<Vec<PathBuf>, String> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => env("HOME")?.join(".cargo"),
    };
    let registries = std::fs::read_dir(home.join("registry/src")).into_iter().flatten();
    let mut places: Vec<PathBuf> = registries.flatten().map(|entry| entry.path()).collect();
    places.push(workspace.join("vendor"));
    Ok(places)
}

fn source_of(id: &Id, places: &[PathBuf]) -> Result<PathBuf, String> {
    let names = [format!("{}-{}", id.0, id.1), id.0.clone()];
    let all = places.iter().flat_map(|place| names.iter().map(|name| place.join(name)));
    let mut found = all.filter(|path| path.join("Cargo.toml").is_file());
    found
        .next()
        .ok_or_else(|| format!("the sources of {} {} are neither in cargo's registry nor in vendor/", id.0, id.1))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The licence files of a crate and of what it bundles, by path below its folder.
fn licences(dir: &Path) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut found = Vec::new();
    add_licences(dir, "", DEPTH, &mut found)?;
    found.sort();
    Ok(found)
}

fn add_licences(dir: &Path, prefix: &str, depth: usize, out: &mut Vec<(String, Vec<u8>)>) -> Result<(), String> {
    let wrong = |error: std::io::Error| format!("{}: {error}", dir.display());
    for entry in std::fs::read_dir(dir).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_dir() {
            let passed = ["src", "tests", "benches", "examples", "target"].contains(&name);
            if !passed && depth > 0 {
                add_licences(&path, &format!("{prefix}{name}/"), depth - 1, out)?;
            }
            continue;
        }
        let upper = name.to_uppercase();
        let begins = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
        let code = [".rs", ".py", ".sh", ".toml", ".go", ".c", ".h"].iter().any(|end| name.ends_with(end));
        if begins.iter().any(|word| upper.starts_with(word)) && !code {
            out.push((format!("{prefix}{name}"), read(&path)?));
        }
    }
    Ok(())
}

/// Licence files of Rust's standard library, which every program carries; a toolchain without its documents has none.
fn standard_library(blob: &mut Blob) -> Result<Vec<Licence>, String> {
    let sysroot = output(&env("RUSTC")?, &["--print", "sysroot"], Path::new("."))?;
    let dir = Path::new(sysroot.trim()).join("share/doc/rust");
    // COPYRIGHT.html beside it is the compiler's, of which nothing gets into a program.
    let name = "COPYRIGHT-library.html";
    let path = dir.join(name);
    if path.is_file() { Ok(vec![(name.to_string(), blob.add(read(&path)?))]) } else { Ok(Vec::new()) }
}

/// Its name, and where in the blob its text begins and ends.
type Licence = (String, (usize, usize));

/// All licence files behind one another, each text once.
#[derive(Default)]
struct Blob {
    bytes: Vec<u8>,
    known: BTreeMap<Vec<u8>, (usize, usize)>,
}

impl Blob {
    /// Where the text begins and ends.
    fn add(&mut self, text: Vec<u8>) -> (usize, usize) {
        let start = self.bytes.len();
        let place = *self.known.entry(text.clone()).or_insert((start, start + text.len()));
        if place.0 == start && place.1 == start + text.len() {
            self.bytes.extend(text);
        }
        place
    }
}
