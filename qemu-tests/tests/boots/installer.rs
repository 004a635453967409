//! The medium that installs: from a CD drive and a USB stick, by BIOS and by UEFI, onto a disk that is surely meant.

use crate::Test;
use crate::disks::{refuses, same, state_note};
use crate::secure::{enrolled, firmware_refuses};
use anyhow::{Context, ensure};
use kimg::image::output::Format;
use kimg::local::qemu::Bus;
use node_api::path;
use qemu_tests::machine::{Drive, Firmware};
use qemu_tests::{Bench, Machine, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const WORKER: &str = "worker-1";
const MASTER: &str = "master-1";
/// The least that docs/node-images.md promises to be enough.
const MEMORY_MIB: u32 = 512;
/// What the console says when all is done.
const DONE: &str = "was read back; the machine starts again";
const BEGUN: &str = "installing this node's image";

pub(crate) fn tests() -> Vec<Test> {
    let ways = [
        ("cd_by_bios", Firmware::Bios, Drive::Cd, Bus::VirtioBlk, false),
        ("cd_by_uefi", Firmware::Uefi, Drive::Cd, Bus::Nvme, true),
        ("usb_stick_by_bios", Firmware::Bios, Drive::Usb, Bus::Sata, true),
        ("usb_stick_by_uefi", Firmware::Uefi, Drive::Usb, Bus::VirtioScsi, true),
    ];
    let mut tests: Vec<Test> = ways
        .into_iter()
        .map(|(name, firmware, drive, bus, long)| {
            Test::new(format!("boot::a_{name}_installs_the_node"), long, move |bench| {
                bench.with(&format!("install-{name}"), WORKER, |machine| {
                    machine.attach_by(firmware, bus)?;
                    installs(bench, machine, drive)
                })
            })
        })
        .collect();
    tests.extend([
        Test::new("boot::an_installer_leaves_a_disk_alone_that_may_not_be_meant", true, not_meant),
        Test::new("boot::an_installer_says_that_there_is_too_little_memory", true, too_little_memory),
        Test::new("boot::an_interrupted_installation_starts_again", true, interrupted),
        Test::new("boot::an_installer_starts_the_disk_that_is_installed", true, installed),
        Test::new("boot::secure_boot_starts_a_signed_installer", true, signed),
        Test::new("boot::secure_boot_refuses_an_installer_with_another_image", true, altered),
    ]);
    tests
}

/// Installs onto an empty disk, which then is the image bit by bit, and starts it without the medium.
fn installs(bench: &Bench, machine: &mut Machine<'_>, drive: Drive) -> Result {
    let medium = bench.form(WORKER, Format::Iso)?;
    machine.set_memory(MEMORY_MIB);
    machine.empty_disk()?;
    machine.put_in(Some((&medium, drive)));
    machine.start()?;
    done(machine)?;
    machine.kill()?;
    ensure!(same(&bench.image(WORKER)?, &machine.disk())?, "the disk is not the image");
    machine.put_in(None);
    machine.start()?;
    machine.booted()?;
    ensure!(!started_by_a_medium(machine)?, "there is a medium still");
    Ok(())
}

fn done(machine: &mut Machine<'_>) -> Result {
    said(machine, DONE)
}

fn said(machine: &mut Machine<'_>, sentence: &str) -> Result {
    let said = machine.until(&format!("'{sentence}'"), 120, |m| Ok(m.console().contains(sentence).then_some(())));
    said.with_context(|| format!("the console says:\n{}", machine.last_lines()))
}

/// The kernel's own log says how it was started.
fn started_by_a_medium(machine: &Machine<'_>) -> Result<bool> {
    let log = machine.node_text(path::DMESG)?;
    ensure!(log.contains("kimg.roothash="), "the kernel's log has no command line");
    Ok(log.contains("kimg.install="))
}

/// Two empty disks; and one that holds another node's image.
fn not_meant(bench: &Bench) -> Result {
    let medium = bench.form(WORKER, Format::Iso)?;
    bench.with("install-two-empty", WORKER, |machine| {
        machine.set_memory(MEMORY_MIB);
        machine.empty_disk()?;
        let empty = machine.disk().with_file_name("empty.raw");
        std::fs::copy(machine.disk(), &empty).context("making another empty disk")?;
        let other = machine.attach_earlier(&empty)?;
        machine.put_in(Some((&medium, Drive::Cd)));
        machine.start()?;
        refuses(machine, "there are several empty disks", 120)?;
        machine.kill()?;
        for disk in [machine.disk(), other] {
            ensure!(same(&empty, &disk)?, "{} was written to", disk.display());
        }
        std::fs::remove_file(&empty).context("removing the other empty disk")
    })?;
    bench.with("install-full", WORKER, |machine| {
        machine.set_memory(MEMORY_MIB);
        let image = bench.image(MASTER)?;
        machine.take_disk(&image)?;
        machine.put_in(Some((&medium, Drive::Cd)));
        machine.start()?;
        refuses(machine, "vda holds a partition table", 120)?;
        machine.kill()?;
        ensure!(same(&image, &machine.disk())?, "the disk was written to");
        Ok(())
    })
}

fn too_little_memory(bench: &Bench) -> Result {
    let medium = bench.form(WORKER, Format::Iso)?;
    bench.with("install-memory", WORKER, |machine| {
        machine.set_memory(MEMORY_MIB / 2);
        machine.empty_disk()?;
        let empty = machine.disk().with_file_name("empty.raw");
        std::fs::copy(machine.disk(), &empty).context("keeping the empty disk")?;
        machine.put_in(Some((&medium, Drive::Cd)));
        machine.start()?;
        refuses(machine, "the machine has too little of it", 120)?;
        machine.kill()?;
        ensure!(same(&empty, &machine.disk())?, "the disk was written to");
        std::fs::remove_file(&empty).context("removing the empty disk")
    })
}

/// The plug is pulled while the image is being written: what is there boots nowhere, and the medium begins again.
fn interrupted(bench: &Bench) -> Result {
    let medium = bench.form(WORKER, Format::Iso)?;
    bench.with("install-interrupted", WORKER, |machine| {
        machine.set_memory(MEMORY_MIB);
        machine.empty_disk()?;
        machine.put_in(Some((&medium, Drive::Cd)));
        machine.serve_disk()?;
        machine.start()?;
        said(machine, BEGUN)?;
        let loss = machine.pull_plug(|server| server.plug(7))?;
        eprintln!("{} of {} unsafe sectors lost", loss.lost_sectors, loss.unsafe_sectors);
        let mut first = [0; 512];
        File::open(machine.disk())
            .and_then(|disk| disk.read_exact_at(&mut first, 0))
            .context("reading the disk's first sector")?;
        ensure!(first.starts_with(b"kimg: this disk is being installed"), "the plug was not pulled in the middle");
        machine.serve_disk()?;
        machine.start()?;
        done(machine)?;
        // Nothing that was not flushed may be needed.
        machine.pull_plug(qemu_tests::nbd::Server::plug_with_full_cache)?;
        ensure!(same(&bench.image(WORKER)?, &machine.disk())?, "the disk is not the image");
        machine.put_in(None);
        machine.serve_disk()?;
        machine.start()?;
        machine.booted()?;
        Ok(())
    })
}

/// With the medium left in, the disk's system runs and keeps its state.
fn installed(bench: &Bench) -> Result {
    let medium = bench.form(WORKER, Format::Iso)?;
    bench.with("install-installed", WORKER, |machine| {
        machine.set_memory(MEMORY_MIB);
        machine.put_in(Some((&medium, Drive::Cd)));
        for boot in 0..2 {
            machine.start()?;
            machine.booted()?;
            ensure!(started_by_a_medium(machine)?, "it was not started by the medium");
            ensure!(!machine.console().contains(BEGUN), "it was installed again");
            let made = state_note(machine)?.contains("made");
            ensure!(made == (boot == 0), "boot {boot} made STATE: {made}");
            machine.power_off()?;
        }
        Ok(())
    })
}

fn signed(bench: &Bench) -> Result {
    let (code, variables) = enrolled(bench)?;
    bench.with("install-signed", WORKER, |machine| {
        machine.attach_guarded(&code, &variables)?;
        installs(bench, machine, Drive::Cd)
    })
}

/// The image on the medium is a part of the signed file.
fn altered(bench: &Bench) -> Result {
    let (code, variables) = enrolled(bench)?;
    let medium = bench.form(WORKER, Format::Iso)?;
    bench.with("install-altered", WORKER, |machine| {
        machine.attach_guarded(&code, &variables)?;
        let other = machine.disk().with_file_name("other.iso");
        std::fs::copy(&medium, &other).context("copying the medium")?;
        flip_in_the_middle(&other)?;
        machine.empty_disk()?;
        machine.put_in(Some((&other, Drive::Cd)));
        machine.start()?;
        firmware_refuses(machine)?;
        std::fs::remove_file(&other).context("removing the medium")
    })
}

fn flip_in_the_middle(file: &Path) -> Result {
    let file = File::options().read(true).write(true).open(file).context("opening the medium")?;
    let at = file.metadata().context("reading the medium's size")?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).context("reading a byte")?;
    file.write_all_at(&[byte[0] ^ 1], at).context("flipping a bit")
}
