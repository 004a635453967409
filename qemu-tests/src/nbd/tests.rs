//! QEMU's own client against the server.

use super::*;
use std::process::Command as Program;

const MIB: u64 = 1 << 20;

/// A disk of 8 MiB in a folder of its own, and its server.
fn served() -> (tempfile::TempDir, PathBuf, Server) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("disk.raw");
    std::fs::File::create(&file).and_then(|f| f.set_len(8 * MIB)).expect("a disk");
    let server = Server::start(&file, &dir.path().join("s")).expect("a server");
    (dir, file, server)
}

/// Runs commands of qemu-io, with writes cached as a VM has them; whether all went well, and what it said.
fn qemu_io(dir: &Path, commands: &[&str]) -> (bool, String) {
    let target = format!("nbd+unix:///{}?socket=s", wire::EXPORT);
    let mut program = Program::new("qemu-io");
    program.current_dir(dir).args(["-f", "raw", "-t", "writeback", "-d", "unmap", &target]);
    for command in commands {
        program.args(["-c", command]);
    }
    let output = program.output().expect("qemu-io is there (images/host-packages names its package)");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success() && !said.contains("failed"), said)
}

#[test]
fn qemu_reads_what_it_wrote() {
    let (dir, _, _server) = served();
    let (ok, said) = qemu_io(
        dir.path(),
        &[
            "write -P 1 0 64k",
            "write -P 2 64k 4k",
            "read -P 1 0 64k",
            "read -P 2 64k 4k",
            "write -f -P 3 1M 4k",
            "read -P 3 1M 4k",
            "discard 0 64k",
            "read -P 0 0 64k",
            "read -P 0 7M 1M",
        ],
    );
    assert!(ok, "{said}");
    assert!(!qemu_io(dir.path(), &["read -P 9 1M 4k"]).0, "a wrong pattern is noticed");
}

#[test]
fn the_plug_loses_only_what_was_not_flushed() {
    let (dir, file, server) = served();
    // `abort` ends qemu-io as a killed QEMU ends: without the flush of an orderly end.
    let script = ["write -P 1 0 64k", "flush", "write -f -P 2 1M 64k", "write -P 3 2M 1M", "abort"];
    qemu_io(dir.path(), &script);
    let loss = server.plug(4).expect("pulled");
    assert_eq!(loss.unsafe_sectors, 2048);
    assert!(loss.lost_sectors > 0, "{loss:?}");
    let bytes = std::fs::read(&file).expect("the disk");
    let count = |value: u8, at: u64, length: u64| {
        bytes[at as usize..(at + length) as usize].iter().filter(|b| **b == value).count() as u64
    };
    assert_eq!(count(1, 0, 64 << 10), 64 << 10, "what was flushed");
    assert_eq!(count(2, MIB, 64 << 10), 64 << 10, "what was forced");
    assert_eq!(count(3, 2 * MIB, MIB), (2048 - loss.lost_sectors as u64) * 512, "what was neither");
    assert!(!qemu_io(dir.path(), &["read 0 4k"]).0, "nothing answers any more");
}

#[test]
fn the_plug_is_pulled_between_requests() {
    for seed in 0..8 {
        let (dir, file, server) = served();
        let writer = std::thread::spawn({
            let dir = dir.path().to_owned();
            // More than will ever be answered.
            move || qemu_io(&dir, &["write -f -P 5 0 64k"; 3000])
        });
        while server.shared.connections().is_empty() {
            std::thread::yield_now();
        }
        server.plug(seed).expect("pulled");
        let (ok, _) = writer.join().expect("qemu-io ran");
        assert!(!ok, "seed {seed}: all requests were answered");
        let written = std::fs::read(&file).expect("the disk")[0];
        assert!(written == 0 || written == 5);
    }
}

#[test]
fn an_orderly_end_loses_nothing() {
    let (dir, file, server) = served();
    qemu_io(dir.path(), &["write -P 7 3M 64k"]);
    drop(server);
    let bytes = std::fs::read(&file).expect("the disk");
    assert!(bytes[3 << 20..(3 << 20) + (64 << 10)].iter().all(|b| *b == 7));
}

#[test]
fn a_stranger_is_refused() {
    let (dir, _, _server) = served();
    let target = "nbd+unix:///other?socket=s";
    let output =
        Program::new("qemu-io").current_dir(dir.path()).args(["-f", "raw", target, "-c", "read 0 4k"]).output();
    let said = String::from_utf8_lossy(&output.expect("qemu-io").stderr).into_owned();
    assert!(said.contains("export") || said.contains("not available"), "{said}");
}
