//! `[image.components]`: programs of the operator's that init keeps running on the nodes.

use super::fragment::ComponentFragment;
use super::settings::ImageOptions;
use super::value::{Fault, dns_label, fault};
use crate::image::elf;
use crate::input;
use node_metadata::merge::quantity;
use node_metadata::{COMPONENT_PROGRAMS, OwnComponent};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use toml::Spanned;

/// Bytes of a program at most: it is looked at whenever `cluster.toml` is read.
const MOST_PROGRAM: u64 = 128 << 20;
/// Bytes of memory: less starts no program, and more has no node.
const MEMORY: RangeInclusive<u64> = 1 << 20..=1 << 40;
const DEFAULT_MEMORY: u64 = 64 << 20;

/// Adds what stands under `field` to what is known: each program as a file of the image, and how it is run.
pub(super) fn add(
    dir: &Path,
    field: &str,
    written: &BTreeMap<Spanned<String>, ComponentFragment>,
    options: &mut ImageOptions,
) -> Result<(), Fault> {
    for (name, component) in written {
        check_name(name, field, options)?;
        let field = format!("{field}.{}", name.get_ref());
        let program = dir.join(component.binary.get_ref());
        check_program(&program).map_err(|message| fault(&component.binary, &format!("{field}.binary"), message))?;
        if let Some(arg) = component.args.iter().find(|arg| arg.get_ref().contains('\0')) {
            return Err(fault(arg, &format!("{field}.args"), "no argument can hold a NUL; remove it"));
        }
        let own = OwnComponent {
            args: component.args.iter().map(|arg| arg.get_ref().clone()).collect(),
            memory: memory(&component.memory, &format!("{field}.memory"))?,
        };
        options.files.push((path_of(name.get_ref()), program));
        options.components.insert(name.get_ref().clone(), own);
    }
    Ok(())
}

fn path_of(name: &str) -> String {
    format!("{COMPONENT_PROGRAMS}/{name}")
}

fn check_name(name: &Spanned<String>, field: &str, options: &ImageOptions) -> Result<(), Fault> {
    let text = name.get_ref();
    dns_label(name, field)?;
    if !OwnComponent::is_name(text) {
        return Err(fault(name, field, format!("`{text}` is what a node calls its own; choose another name")));
    }
    if options.components.contains_key(text) {
        let message = format!("`{text}` stands under [image.components] too; remove one of the two");
        return Err(fault(name, field, message));
    }
    let path = path_of(text);
    if options.files.iter().any(|(known, _)| *known == path) {
        let message = format!("its program lies at {path}, which stands under [image.files]; remove it there");
        return Err(fault(name, field, message));
    }
    let user = OwnComponent::user(text);
    match options.components.keys().find(|other| OwnComponent::user(other) == user) {
        Some(other) => Err(fault(name, field, format!("it would be the same user as `{other}`; rename one of them"))),
        None => Ok(()),
    }
}

fn check_program(path: &Path) -> Result<(), String> {
    let bytes = input::bytes(path, MOST_PROGRAM)
        .map_err(|error| format!("{error}; paths are relative to the cluster's folder"))?;
    let shown = path.display();
    match elf::alone(&bytes) {
        Ok("amd64") => {}
        Ok(other) => return Err(format!("{shown} is for {other}, and nodes are amd64; build it for x86-64")),
        Err(what) => return Err(format!("{shown} {what}; build it as a static program for x86-64")),
    }
    let mode = path.metadata().map_err(|error| format!("{shown} cannot be read: {error}"))?.permissions().mode();
    if mode & 0o100 == 0 {
        return Err(format!("{shown} may not be executed; run: chmod +x {shown}"));
    }
    Ok(())
}

fn memory(written: &Option<Spanned<String>>, field: &str) -> Result<u64, Fault> {
    let Some(written) = written else { return Ok(DEFAULT_MEMORY) };
    let text = written.get_ref();
    let Some(bytes) = quantity(text) else {
        return Err(fault(written, field, format!("`{text}` is no quantity; write e.g. \"64Mi\"")));
    };
    // Whole bytes: what is beyond the range stays there.
    let bytes = bytes as u64;
    if MEMORY.contains(&bytes) {
        return Ok(bytes);
    }
    Err(fault(written, field, format!("{text} is out of range; write 1Mi to 1Ti, e.g. \"64Mi\"")))
}

#[cfg(test)]
mod tests {
    use crate::config::{parse, written_files};
    use crate::oci::pause;
    use node_metadata::{BuildInfo, OwnComponent, Role};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    const CLUSTER: &str = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";

    /// A folder with programs of many kinds.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8], mode: u32| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let fine = pause::program();
        let other = |at: usize, value: u8| {
            let mut bytes = fine.clone();
            bytes[at] = value;
            bytes
        };
        write("fine", &fine, 0o755);
        write("idle", &fine, 0o644);
        write("script", b"#!/bin/sh\n", 0o755);
        // The machine, the kind of file and the kind of the first segment.
        write("arm", &other(0x12, 183), 0o755);
        write("object", &other(0x10, 1), 0o755);
        write("dynamic", &other(0x40, 3), 0o755);
        write("cut", &fine[..0x50], 0o755);
        let large = std::fs::File::create(dir.path().join("large")).unwrap();
        large.set_len(super::MOST_PROGRAM + 1).unwrap();
        dir
    }

    #[test]
    fn a_component_is_a_file_of_its_role_s_image_and_an_entry_of_its_cluster_json() {
        let dir = folder();
        let text = format!(
            "{CLUSTER}[image.files]\n\"/etc/x\" = \"script\"\n[image.components]\nboth.binary = \"fine\"\n\
             [image.worker.components.agent]\nbinary = \"./fine\"\nargs = [\"--flag\"]\nmemory = \"8Mi\"\n"
        );
        let settings = parse(Path::new("cluster.toml"), &text, dir.path()).unwrap();
        let baked = |role: Role| settings.cluster(role, BuildInfo::default()).components;
        let both = OwnComponent { args: vec![], memory: 64 << 20 };
        assert_eq!(baked(Role::Master), [("both".to_string(), both.clone())].into());
        let agent = OwnComponent { args: vec!["--flag".into()], memory: 8 << 20 };
        assert_eq!(baked(Role::Worker), [("agent".to_string(), agent), ("both".to_string(), both)].into());
        let paths = |role: Role| settings.image(role).files.iter().map(|file| file.0.clone()).collect::<Vec<_>>();
        let folder = "/usr/lib/kimg/components";
        assert_eq!(paths(Role::Master), ["/etc/x".to_string(), format!("{folder}/both")]);
        assert_eq!(paths(Role::Worker)[1..], [format!("{folder}/both"), format!("{folder}/agent")]);
        // In the order of the files: a manifest names each with its sum.
        let written = written_files(&text, Role::Worker).unwrap();
        assert_eq!(written, ["script", "fine", "./fine"].map(std::path::PathBuf::from));
    }

    /// `(what stands under [image.components], what the error says)`
    #[test]
    fn mistakes_are_told_before_anything_is_built() {
        let dir = folder();
        let cases = [
            ("a.binary = \"gone\"", ":4:12: image.components.a.binary: there is no "),
            ("a.binary = \".\"", "is a folder"),
            ("a.binary = \"large\"", "is longer than"),
            ("a.binary = \"script\"", "script is no ELF program"),
            ("a.binary = \"arm\"", "is for arm64, and nodes are amd64"),
            ("a.binary = \"object\"", "object is no program"),
            ("a.binary = \"dynamic\"", "dynamic is linked dynamically"),
            ("a.binary = \"cut\"", "cut is a damaged program"),
            ("a.binary = \"idle\"", "run: chmod +x"),
            ("a.args = []", "image.components.a.binary: missing; add it"),
            ("a.roles = [\"worker\"]", ":4:3: image.components.a.roles: unknown key"),
            ("a.binary = \"fine\"\na.args = [\"\\u0000\"]", ":5:11: image.components.a.args: no argument"),
            ("a.binary = \"fine\"\na.memory = \"much\"", ":5:12: image.components.a.memory: `much` is no quantity"),
            ("a.binary = \"fine\"\na.memory = \"64\"", "64 is out of range; write 1Mi to 1Ti"),
            ("a.binary = \"fine\"\na.memory = \"2Ti\"", "2Ti is out of range"),
            ("kubelet.binary = \"fine\"", "image.components: `kubelet` is what a node calls its own"),
            ("init.binary = \"fine\"", "`init` is what a node calls its own"),
            ("\"a/b\".binary = \"fine\"", "image.components: `a/b` is no name"),
            (
                "a.binary = \"fine\"\n[image.master.components]\na.binary = \"fine\"",
                ":6:1: image.master.components: `a` stands under [image.components] too",
            ),
            (
                "a.binary = \"fine\"\n[image.files]\n\"/usr/lib/kimg/components/a\" = \"fine\"",
                "stands under [image.files]; remove it there",
            ),
        ];
        for (lines, expected) in cases {
            let text = format!("{CLUSTER}[image.components]\n{lines}\n");
            let error = parse(Path::new("cluster.toml"), &text, dir.path()).expect_err(lines).to_string();
            assert!(error.contains(expected), "{lines}: {error}");
        }
    }
}
