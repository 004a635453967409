//! Each form of a disk, read back by QEMU's own tools and by GNU tar.
//!
//! `cargo test -p kimg --test formats -- --include-ignored`; `make test` runs it.

use kimg::image::output::Format;
use std::path::Path;
use std::process::Command;

/// Data that deflates well, data that does not, holes, and an end in the middle of a cluster.
fn disk(path: &Path) -> Vec<u8> {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let mut bytes = vec![0u8; 9 << 20];
    bytes[..512].fill(0x55);
    for (n, byte) in bytes[1 << 20..2 << 20].iter_mut().enumerate() {
        *byte = (n / 100) as u8;
    }
    bytes[3 << 20..(4 << 20) + 777].fill_with(&mut random);
    bytes.extend((0..1024 * 3).map(|_| random()));
    std::fs::write(path, &bytes).expect("writing the disk");
    bytes
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; `make packages` brings it"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {said}");
    said
}

#[test]
#[ignore = "needs qemu-img"]
fn qemu_reads_each_form_as_the_same_disk() {
    let dir = tempfile::tempdir().expect("dir");
    let raw = dir.path().join("disk.raw");
    let content = disk(&raw);
    let forms = [(Format::Qcow2, "qcow2"), (Format::Vhd, "vpc"), (Format::Vhdx, "vhdx"), (Format::Vmdk, "vmdk")];
    for (format, qemu) in forms {
        let out = dir.path().join(format.file());
        format.write(&raw, &out).expect("converting");
        let (raw, path) = (raw.to_str().expect("path"), out.to_str().expect("path"));
        if qemu != "vpc" {
            let said = run("qemu-img", &["check", "-f", qemu, path]);
            assert!(said.contains("No errors"), "{qemu}: {said}");
        }
        run("qemu-img", &["compare", "-f", "raw", "-F", qemu, raw, path]);
        let back = dir.path().join("back.raw");
        run("qemu-img", &["convert", "-f", qemu, "-O", "raw", path, back.to_str().expect("path")]);
        let back = std::fs::read(back).expect("reading");
        // Some forms round the size up.
        assert!(back.starts_with(&content) && back[content.len()..].iter().all(|byte| *byte == 0), "{qemu}");
        let first = std::fs::read(&out).expect("reading");
        format.write(Path::new(raw), &out).expect("converting again");
        assert!(first == std::fs::read(&out).expect("reading"), "{qemu}: not the same bytes twice");
    }
}

#[test]
#[ignore = "needs GNU tar"]
fn tar_unpacks_what_gce_takes() {
    let dir = tempfile::tempdir().expect("dir");
    let raw = dir.path().join("source.raw");
    let content = disk(&raw);
    let out = dir.path().join(Format::Gce.file());
    Format::Gce.write(&raw, &out).expect("converting");
    let path = out.to_str().expect("path");
    assert_eq!(run("tar", &["-tzf", path]).trim(), "disk.raw");
    run("tar", &["-xzSf", path, "-C", dir.path().to_str().expect("path")]);
    let unpacked = std::fs::read(dir.path().join("disk.raw")).expect("reading");
    assert_eq!(unpacked.len(), 1 << 30);
    assert!(unpacked[..content.len()] == content && unpacked[content.len()..].iter().all(|b| *b == 0));
}
