//! Which packages are needed: the ones a recipe names, and of their dependencies those that the recipe follows.

use super::index::{Dependency, Offer};
use super::version;
use crate::image::glob;
use crate::input;
use anyhow::{Result, bail};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// What is wanted: a package, and which of its dependencies come along.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Package name.
    pub name: String,
    /// Globs over dependency names; `None`: libraries only.
    pub follow: Option<Vec<String>>,
    /// The file that names it, and where in it, for messages.
    pub named_in: String,
}

/// What dependencies of dependencies are followed to: shared libraries. Programs that an image needs are named.
/// `gcc-*-base` holds the copyright file of gcc's libraries.
const LIBRARIES: [&str; 3] = ["lib*", "zlib1g", "gcc-*-base"];

/// A chosen package with the names of the dependencies that were followed.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The version taken.
    pub offer: Offer,
    /// Names of followed dependencies, sorted.
    pub depends: Vec<String>,
}

/// The newest offer of each name.
pub struct Catalog<'a> {
    newest: BTreeMap<&'a str, &'a Offer>,
    providers: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Catalog<'a> {
    /// Indexes all offers of all suites.
    pub fn new(offers: &'a [Offer]) -> Catalog<'a> {
        let mut newest: BTreeMap<&str, &Offer> = BTreeMap::new();
        let mut providers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for offer in offers {
            let better = newest
                .get(offer.name.as_str())
                .is_none_or(|known| version::compare(&offer.version, &known.version) == Ordering::Greater);
            if better {
                newest.insert(&offer.name, offer);
            }
            for name in &offer.provides {
                providers.entry(name).or_default().push(&offer.name);
            }
        }
        Catalog { newest, providers }
    }

    /// The newest offer of a name.
    pub fn newest(&self, name: &str) -> Option<&'a Offer> {
        self.newest.get(name).copied()
    }

    fn find(&self, dependency: &Dependency) -> Option<&'a Offer> {
        if let Some(offer) = self.newest.get(dependency.name.as_str()) {
            let fits = dependency.bound.as_ref().is_none_or(|(op, v)| version::satisfies(&offer.version, op, v));
            if fits {
                return Some(offer);
            }
        }
        let providers = self.providers.get(dependency.name.as_str())?;
        providers.iter().find_map(|name| self.newest.get(name).copied())
    }
}

/// Resolves all wishes to a closed set, sorted by name.
pub fn resolve(catalog: &Catalog<'_>, wishes: &[Wish]) -> Result<BTreeMap<String, Choice>> {
    let mut chosen: BTreeMap<String, Choice> = BTreeMap::new();
    let mut queue: Vec<(String, Option<Vec<String>>)> = Vec::new();
    let mut unknown = BTreeSet::new();
    for wish in wishes {
        if !catalog.newest.contains_key(wish.name.as_str()) {
            unknown.insert(format!("a package '{}'; correct its name in {}", wish.name, wish.named_in));
        }
        queue.push((wish.name.clone(), wish.follow.clone()));
    }
    if !unknown.is_empty() {
        let all: Vec<String> = unknown.into_iter().collect();
        return input::bad(format!("no suite of Debian has {}", all.join(", nor ")));
    }
    let mut seen: BTreeSet<(String, Option<Vec<String>>)> = BTreeSet::new();
    while let Some((name, follow)) = queue.pop() {
        if !seen.insert((name.clone(), follow.clone())) {
            continue;
        }
        let Some(offer) = catalog.newest.get(name.as_str()).copied() else {
            bail!("no suite has a package '{name}'");
        };
        let mut depends: BTreeSet<String> =
            chosen.get(&name).map(|c| c.depends.iter().cloned().collect()).unwrap_or_default();
        for group in &offer.depends {
            let Some(found) = followed(catalog, group, follow.as_deref()) else { continue };
            let Some(dependency) = found else {
                let wanted: Vec<&str> = group.iter().map(|d| d.name.as_str()).collect();
                bail!(
                    "package {name} {} needs {} which no suite has; run `kimg lock` again later, the mirror may be in the middle of an update",
                    offer.version,
                    wanted.join(" or ")
                );
            };
            depends.insert(dependency.name.clone());
            // A kernel's meta package follows to the kernel itself, which follows to nothing further.
            let next = follow.as_ref().map(|_| Vec::new());
            queue.push((dependency.name.clone(), next));
        }
        chosen.insert(name, Choice { offer: offer.clone(), depends: depends.into_iter().collect() });
    }
    Ok(chosen)
}

/// `None`: the group is not followed. `Some(None)`: followed, but nothing fits.
fn followed<'a>(catalog: &Catalog<'a>, group: &[Dependency], follow: Option<&[String]>) -> Option<Option<&'a Offer>> {
    let wanted = |name: &str| match follow {
        Some(globs) => globs.iter().any(|g| glob::matches(g, name)),
        None => LIBRARIES.iter().any(|g| glob::matches(g, name)),
    };
    let alternatives: Vec<&Dependency> = group.iter().filter(|d| wanted(&d.name)).collect();
    if alternatives.is_empty() {
        return None;
    }
    Some(alternatives.iter().find_map(|d| catalog.find(d)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packages::index::parse_packages;

    fn stanza(name: &str, version: &str, depends: &str) -> String {
        format!(
            "Package: {name}\nVersion: {version}\nArchitecture: amd64\nDepends: {depends}\nFilename: p/{name}_{version}\nSize: 1\nSHA256: 00\n\n"
        )
    }

    fn wish(name: &str, follow: Option<&[&str]>) -> Wish {
        let follow = follow.map(|f| f.iter().map(|s| s.to_string()).collect());
        Wish { name: name.into(), follow, named_in: "web/image.toml".into() }
    }

    #[test]
    fn the_newest_version_and_only_followed_dependencies_are_taken() {
        let mut offers = parse_packages(
            "trixie",
            &[
                stanza("crun", "1.0", "libc6 (>= 2), init-system"),
                stanza("libc6", "2.40", "libgcc-s1"),
                stanza("libgcc-s1", "14", ""),
                stanza("init-system", "1", ""),
                stanza("meta", "1", "linux-image-1, kmod"),
                stanza("linux-image-1", "1", "kmod, lib-x"),
            ]
            .concat(),
        )
        .unwrap();
        offers.extend(parse_packages("trixie-security", &stanza("libc6", "2.41", "libgcc-s1")).unwrap());
        let catalog = Catalog::new(&offers);
        let chosen = resolve(&catalog, &[wish("crun", None), wish("meta", Some(&["linux-image-*"]))]).unwrap();
        let names: Vec<&str> = chosen.keys().map(String::as_str).collect();
        assert_eq!(names, ["crun", "libc6", "libgcc-s1", "linux-image-1", "meta"]);
        assert_eq!(chosen["libc6"].offer.suite, "trixie-security");
        assert_eq!(chosen["crun"].depends, ["libc6"]);
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let offers = parse_packages("trixie", &stanza("a", "1", "libz (>= 2)")).unwrap();
        let catalog = Catalog::new(&offers);
        assert!(resolve(&catalog, &[wish("a", None)]).unwrap_err().to_string().contains("package a 1 needs libz"));
        let error = resolve(&catalog, &[wish("a", Some(&[])), wish("b", None)]).unwrap_err();
        assert!(error.is::<input::BadInput>(), "{error}");
        assert!(error.to_string().ends_with("has a package 'b'; correct its name in web/image.toml"), "{error}");
        let error = resolve(&catalog, &[wish("c", None), wish("b", None), wish("c", None)]).unwrap_err().to_string();
        assert!(error.contains("has a package 'b'; ") && error.contains(", nor a package 'c'; "), "{error}");
        assert_eq!(error.matches("correct").count(), 2, "{error}");
    }
}
