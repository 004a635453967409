//! Rules about the repository itself, as plain code. No VM.

use qemu_tests::tools::workspace;
use serde_yaml_ng::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Longer files have become two things.
const MAX_LINES: usize = 800;

fn rust_files() -> Vec<PathBuf> {
    let mut out = Vec::new();
    for top in ["builder", "node-os", "control", "images", "qemu-tests"] {
        collect(&workspace().join(top), &mut out);
    }
    out
}

fn collect(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && path.file_name().is_none_or(|n| n != "target") {
            collect(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Each crate's folder, name and dependencies within the workspace.
fn crates() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut manifests = Vec::new();
    for top in ["builder", "qemu-tests", "qemu-tests/fuzz"] {
        manifests.push(top.to_owned());
    }
    for group in ["control", "node-os"] {
        for entry in std::fs::read_dir(workspace().join(group)).into_iter().flatten().flatten() {
            manifests.push(format!("{group}/{}", entry.file_name().to_string_lossy()));
        }
    }
    let parsed: Vec<(String, String, String)> = manifests
        .into_iter()
        .filter_map(|dir| {
            let text = std::fs::read_to_string(workspace().join(&dir).join("Cargo.toml")).ok()?;
            let name = text.lines().find_map(|l| l.strip_prefix("name = \""))?.trim_end_matches('"').to_owned();
            Some((dir, name, text))
        })
        .collect();
    let names: BTreeSet<String> = parsed.iter().map(|(_, n, _)| n.clone()).collect();
    let deps = |text: &str| {
        let keys = text.lines().filter_map(|l| l.split(['.', ' ', '=']).next());
        keys.filter(|k| names.contains(*k)).map(str::to_owned).collect()
    };
    parsed.iter().map(|(dir, name, text)| (name.clone(), (dir.clone(), deps(text)))).collect()
}

#[test]
fn dependencies_point_the_allowed_way() {
    let crates = crates();
    assert!(crates.len() > 15, "the workspace was not read: {crates:?}");
    for (name, (dir, deps)) in &crates {
        for dep in deps {
            let target = &crates[dep].0;
            let allowed = match dir.as_str() {
                "builder" => matches!(dep.as_str(), "node-metadata" | "node-api"),
                "qemu-tests" => matches!(dep.as_str(), "kimg" | "node-api" | "node-metadata"),
                // It tests both halves, and nothing depends on it.
                "qemu-tests/fuzz" => target.starts_with("control/") || target.starts_with("node-os/"),
                d if d.starts_with("control/") => target.starts_with("control/"),
                d => d.starts_with("node-os/") && target.starts_with("node-os/"),
            };
            assert!(allowed || dep == name, "{name} ({dir}) must not depend on {dep} ({target})");
        }
    }
}

/// Else `cargo build` and `cargo test` need two builds of every third-party crate (docs/decisions/0004).
#[test]
fn tests_ask_for_no_other_features() {
    for (dir, _) in crates().values() {
        let text = std::fs::read_to_string(workspace().join(dir).join("Cargo.toml")).unwrap_or_default();
        let tests_only = text.split("[dev-dependencies]").nth(1).unwrap_or("");
        let lines = tests_only.lines().take_while(|line| !line.starts_with('['));
        let bad: Vec<&str> = lines.filter(|line| line.contains("features")).collect();
        assert!(
            bad.is_empty(),
            "{dir}/Cargo.toml: features of a dev-dependency: {bad:?}; put them into [dependencies]"
        );
    }
}

/// `.cargo/unit.toml` says how kimg's own crates are compiled for their tests, and can do so only by their names.
#[test]
fn every_crate_is_compiled_for_its_tests() {
    let text = std::fs::read_to_string(workspace().join(".cargo/unit.toml")).expect(".cargo/unit.toml");
    for name in crates().keys().map(String::as_str).chain(["example-web"]) {
        assert!(text.lines().any(|line| line.starts_with(&format!("{name} = {{"))), ".cargo/unit.toml lacks {name}");
    }
}

/// A file of tests that no part of the suite names would never run.
#[test]
fn every_file_of_tests_is_in_a_part() {
    let suite = std::fs::read_to_string(workspace().join("qemu-tests/src/bin/suite.rs")).expect("suite.rs");
    let mut seen = 0;
    for (dir, _) in crates().values() {
        for entry in std::fs::read_dir(workspace().join(dir).join("tests")).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_test = path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").exists();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            seen += usize::from(is_test);
            assert!(
                !is_test || suite.contains(&format!("\"{name}\"")) || suite.contains(&format!("\"--test={name}\"")),
                "no part runs {dir}/tests/{name}"
            );
        }
    }
    assert!(seen > 15, "the tests were not found: {seen}");
}

#[test]
fn pure_crates_do_no_io() {
    for (crate_dir, banned) in [
        ("control/api/src", &["std::fs", "std::net::Tcp", "tokio::", "SystemTime::now", "Instant::now"][..]),
        ("node-os/metadata/src", &["std::fs", "std::net::Tcp", "tokio::", "SystemTime::now", "Instant::now"][..]),
    ] {
        let mut files = Vec::new();
        collect(&workspace().join(crate_dir), &mut files);
        for file in files.iter().filter(|f| !f.to_string_lossy().contains("test")) {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let code = text.split("#[cfg(test)]").next().unwrap_or("");
            for word in banned {
                assert!(
                    !code.contains(word),
                    "{} uses {word}: this crate does no I/O and takes the clock as an argument",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn files_stay_readable() {
    let long: Vec<String> = rust_files()
        .iter()
        .filter_map(|f| {
            let lines = std::fs::read_to_string(f).unwrap_or_default().lines().count();
            (lines > MAX_LINES).then(|| format!("{} has {lines} lines", f.display()))
        })
        .collect();
    assert!(long.is_empty(), "longer than {MAX_LINES} lines: {long:#?}");
}

#[test]
fn unsafe_lives_in_node_sys_only() {
    for file in rust_files() {
        let path = file.to_string_lossy().into_owned();
        let exempt =
            path.contains("/node-os/sys/") || path.contains("/builder/pause/") || path.ends_with("tests/tidy.rs");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let code = text.lines().filter(|l| !l.trim_start().starts_with("//"));
        let found = code.into_iter().find(|l| l.contains("unsafe {") || l.contains("unsafe fn"));
        assert!(exempt || found.is_none(), "{path}: {found:?}");
    }
}

#[test]
fn nothing_in_kimg_uses_its_command_line() {
    let (src, mut files) = (workspace().join("builder/src"), Vec::new());
    collect(&src, &mut files);
    files.retain(|file| !file.starts_with(src.join("cli")));
    assert!(files.len() > 100, "builder/src was not read: {files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(!text.contains("crate::cli::"), "{} uses cli, which is above it", file.display());
    }
}

#[test]
fn every_crate_stands_in_the_architecture() {
    let text = std::fs::read_to_string(workspace().join("docs/architecture.md")).expect("docs/architecture.md");
    for (name, (dir, _)) in crates() {
        assert!(
            text.contains(&format!("`{dir}`")) || text.contains(&format!("`{dir}/`")),
            "{name} ({dir}) is not in docs/architecture.md"
        );
    }
}

#[test]
fn paths_named_in_documents_exist() {
    let mut documents =
        vec![workspace().join("README.md"), workspace().join("CONTRIBUTING.md"), workspace().join("SECURITY.md")];
    let docs = std::fs::read_dir(workspace().join("docs")).into_iter().flatten().flatten().map(|e| e.path());
    documents.extend(docs.filter(|p| p.extension().is_some_and(|e| e == "md")));
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap_or_default();
        for word in text.split('`').skip(1).step_by(2) {
            let ours = ["builder/", "node-os/", "control/", "images/", "qemu-tests/", "docs/"]
                .iter()
                .any(|p| word.starts_with(p));
            if ours && !word.contains(['*', ' ', '{']) {
                assert!(workspace().join(word).exists(), "{} names {word}, which does not exist", document.display());
            }
        }
    }
}

/// The table of `docs/platforms.md` has a row for every data source of the code, in its order, and no other.
#[test]
fn the_table_of_platforms_is_true() {
    let text = std::fs::read_to_string(workspace().join("docs/platforms.md")).expect("docs/platforms.md");
    let sources = text.lines().skip_while(|line| !line.starts_with("| source ")).skip(2);
    let rows: Vec<Vec<&str>> = sources
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let named: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
    let known: Vec<&str> = node_metadata::sources::all().iter().map(|source| source.name()).collect();
    assert_eq!(named, known, "docs/platforms.md and node_metadata::sources::all() differ");
    for (row, source) in rows.iter().zip(node_metadata::sources::all()) {
        let limit = match source.user_data_limit() {
            Some(limit) => format!("{}{}", limit.bytes, if limit.as_base64 { " as base64" } else { "" }),
            None => "?".to_owned(),
        };
        assert_eq!(row.last().copied(), Some(limit.as_str()), "the limit of {} in docs/platforms.md", source.name());
        let fixtures = workspace().join("node-os/metadata/tests/fixtures").join(source.name());
        assert!(fixtures.is_dir(), "{} has no recorded answers in {}", source.name(), fixtures.display());
        row_is_true(row, &expected_of(&fixtures));
    }
}

/// What the fixtures of one source expect.
fn expected_of(fixtures: &Path) -> Vec<Value> {
    let files = std::fs::read_dir(fixtures).expect("the folder of a source's fixtures").flatten();
    let documents = files.map(|file| {
        let text = std::fs::read_to_string(file.path()).expect("a fixture");
        let document: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|e| panic!("{:?}: {e}", file.path()));
        document["expected"].clone()
    });
    documents.filter(Value::is_mapping).collect()
}

/// One row of the table of platforms says what its source's fixtures expect, V where a VM test is of it, and L where
/// init's client is tested with it.
fn row_is_true(row: &[&str], expected: &[Value]) {
    let [source, _, _, _, _, provider_id, places, public, tests, _] = row else {
        panic!("a row of docs/platforms.md has other columns: {row:?}");
    };
    let source = source.trim_matches('`');
    let seen = |key: &str| expected.iter().any(|document| !document[key].is_null());
    // Elsewhere the machine's owner writes these, whatever a fixture has.
    if *provider_id != "meta-data" {
        let ids: Vec<&str> = expected.iter().filter_map(|document| document["provider-id"].as_str()).collect();
        // Up to the first placeholder.
        let forms = provider_id.split('`').skip(1).step_by(2);
        let forms: Vec<&str> =
            forms.map(|form| form.split(|c: char| c.is_uppercase() || c == '…').next().unwrap_or_default()).collect();
        for form in &forms {
            assert!(ids.iter().any(|id| id.starts_with(form)), "{source}: no fixture has a providerID {form}");
        }
        for id in ids {
            assert!(forms.iter().any(|form| id.starts_with(form)), "{source}: docs/platforms.md does not say {id}");
        }
    }
    if *places != "meta-data" {
        let said: Vec<bool> = places.split('/').map(|place| place.trim() != "–").collect();
        let fixtures: Vec<bool> = ["region", "zone", "instance-type"].into_iter().map(seen).collect();
        assert_eq!(said, fixtures, "{source}: region, zone and type in docs/platforms.md and in the fixtures");
    }
    if *public != "meta-data" {
        let said = *public != "no";
        assert_eq!(said, seen("external-addresses"), "{source}: the public address in docs/platforms.md");
    }
    let read = |file: &str| std::fs::read_to_string(workspace().join("qemu-tests/tests").join(file)).expect("a test");
    let (platforms, drives) = (read("cluster/platforms.rs"), read("boots/sources.rs"));
    // The harness's own VMs: `kimg up` gives each a drive, a `Guest` a server of its own.
    let booted = ["nocloud", "nocloud-line"].contains(&source)
        || platforms.lines().any(|line| line.starts_with("    (\"") && line.ends_with(&format!(", {source}),")))
        || drives.contains(&format!("wakes_by(machine, \"{source}\")"));
    let letters: BTreeSet<&str> = tests.split(' ').collect();
    assert!(letters.contains("R"), "{source}: it has recorded answers, docs/platforms.md does not say R");
    assert_eq!(letters.contains("V"), booted, "{source}: V in docs/platforms.md and the VM tests");
    let client = std::fs::read_to_string(workspace().join("node-os/init/src/platform/tests.rs")).expect("a test");
    let asked = ["read", "on"].iter().any(|call| client.contains(&format!("{call}(\"{source}\", ")));
    assert_eq!(letters.contains("L"), asked, "{source}: L in docs/platforms.md and the tests of init's client");
}

#[test]
fn the_readme_is_short() {
    let lines = std::fs::read_to_string(workspace().join("README.md")).expect("README.md").lines().count();
    assert!(lines <= 70, "README.md has {lines} lines; a newcomer reads 70");
}
