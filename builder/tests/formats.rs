//! Each form of a disk, read back by QEMU's own tools and by GNU tar; the medium that installs, by xorriso and mtools.
//!
//! `cargo test -p kimg --test formats -- --include-ignored`; `make test` runs it.

use kimg::disk::iso;
use kimg::image::output::Format;
use std::path::{Path, PathBuf};
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

/// xorriso and mtools of Debian; fetched once.
fn iso_readers() -> PathBuf {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/iso-readers-bookworm");
    if !tree.exists() {
        let packages =
            ["xorriso", "libisoburn1", "libisofs6", "libburn4", "libjte2", "libreadline8", "libacl1", "mtools"];
        let wanted = |path: &str| path.contains("/bin/") || path.contains(".so.");
        kimg::packages::fetch_tree("bookworm", &packages, wanted, &tree).expect("Debian's xorriso and mtools");
    }
    tree
}

fn run_of(tree: &Path, program: &str, args: &[&str]) -> String {
    let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|dir| tree.join(dir));
    let output = Command::new(tree.join("usr/bin").join(program))
        .args(args)
        .env("LD_LIBRARY_PATH", std::env::join_paths(libraries).expect("paths"))
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {said}");
    // Columns are told apart by any number of blanks.
    said.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

#[test]
#[ignore = "needs Debian's xorriso and mtools"]
fn xorriso_reads_the_medium_that_installs() {
    let tree = iso_readers();
    let dir = tempfile::tempdir().expect("dir");
    let path = |name: &str| dir.path().join(name).to_str().expect("path").to_owned();
    let mut kernel = disk(&dir.path().join("kernel"));
    kernel[..2].copy_from_slice(b"MZ");
    let esp = iso::esp(&kernel, &[("/loader/keys/db.cer", b"a certificate")]).expect("partition");
    let cores = ((0..40_001u32).map(|n| n as u8).collect(), vec![2; 30 << 10]);
    let parts = iso::Parts { label: "KIMG_MASTER", boot_img: &[9; 512], cores, esp: &esp };
    iso::write(Path::new(&path("disk.iso")), parts).expect("medium");

    let volume = ["-no_rc", "-indev", &path("disk.iso")];
    let reports = ["-pvd_info", "-report_el_torito", "plain", "-report_system_area", "plain"];
    let said = run_of(&tree, "xorriso", &[&volume[..], &reports].concat());
    let sectors = std::fs::metadata(path("disk.iso")).expect("medium").len() / 512;
    for line in [
        "Volume Id : KIMG_MASTER",
        // Number, platform, bootable, emulation, segment, kind of disk, sectors to load, place.
        "El Torito boot img : 1 BIOS y none 0x0000 0x00 4 32",
        "El Torito boot img : 2 UEFI y none 0x0000 0x00 0 256",
        "El Torito img path : 2 /ESP.IMG",
        &format!("ISO image size/512 : {sectors}"),
        &format!("MBR partition : 1 0x80 0xef 1024 {}", sectors - 1024),
        "MBR partition path : 1 /ESP.IMG",
    ] {
        assert!(said.contains(&format!("{line}\n")), "{line} in {said}");
    }
    run_of(&tree, "xorriso", &[&["-osirrox", "on"], &volume[..], &["-extract", "/ESP.IMG", &path("esp")]].concat());
    assert!(std::fs::read(path("esp")).expect("partition") == esp);
    for (file, content) in [("EFI/BOOT/BOOTX64.EFI", &kernel[..]), ("loader/keys/db.cer", b"a certificate")] {
        run_of(&tree, "mtools", &["-c", "mcopy", "-n", "-i", &path("esp"), &format!("::{file}"), &path("out")]);
        assert!(std::fs::read(path("out")).expect("file") == content, "{file}");
        std::fs::remove_file(path("out")).expect("file");
    }
}
