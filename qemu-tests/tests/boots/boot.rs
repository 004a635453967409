//! One image boots everywhere: by BIOS and by UEFI, from every bus that providers have, and in every form.

use crate::{Skipped, Test};
use anyhow::{Context, ensure};
use kimg::image::output::Format;
use kimg::local::qemu::Bus;
use node_api::{NodeStatus, path};
use qemu_tests::machine::Firmware;
use qemu_tests::{Bench, Machine, Result};
use std::fs::File;
use std::path::Path;
use std::process::Command;

const FIRMWARES: [(Firmware, &str); 2] = [(Firmware::Bios, "bios"), (Firmware::Uefi, "uefi")];
/// A bus, its name, and how the kernel calls the first disks on it.
const BUSES: [(Bus, &str, &str); 4] = [
    (Bus::VirtioBlk, "virtio_blk", "vd"),
    (Bus::VirtioScsi, "virtio_scsi", "sd"),
    (Bus::Nvme, "nvme", "nvme"),
    (Bus::Sata, "sata", "sd"),
];
/// The combinations that the fast set has.
const FAST: [(Firmware, Bus); 2] = [(Firmware::Bios, Bus::VirtioBlk), (Firmware::Uefi, Bus::VirtioScsi)];

pub(crate) fn tests() -> Vec<Test> {
    let mut all = Vec::new();
    for node in ["master-1", "worker-1"] {
        for (firmware, firmware_name) in FIRMWARES {
            for (bus, bus_name, disk) in BUSES {
                let role = node.trim_end_matches("-1");
                let name = format!("{role}_by_{firmware_name}_on_{bus_name}");
                let long = !FAST.contains(&(firmware, bus));
                all.push(Test::new(format!("boot::{name}"), long, move |bench| {
                    bench.with(&name, node, |machine| {
                        machine.attach_by(firmware, bus)?;
                        machine.start()?;
                        let status = machine.booted()?;
                        runs_as_it_should(machine, &status, node)?;
                        came_this_way(machine, firmware, disk)
                    })?;
                    Ok(())
                }));
            }
        }
    }
    all.extend(FORMS.map(|(format, firmware, how)| {
        let name = format!("a_worker_from_{}", format.name().replace('.', "_"));
        Test::new(format!("boot::{name}"), true, move |bench| from_a_form(bench, &name, format, firmware, how))
    }));
    all.push(Test::new("boot::a_sealed_master_waits_for_its_key", true, sealed));
    all
}

/// How a form comes to be a machine's disk.
#[derive(Debug, Clone, Copy)]
enum How {
    /// QEMU reads it, and calls it so.
    Read(&'static str),
    /// It is unpacked by this program, which writes the disk to its standard output.
    Unpacked(&'static [&'static str]),
}

/// Each form but the raw disk, from which all others start, and the medium that installs.
const FORMS: [(Format, Firmware, How); 7] = [
    (Format::Qcow2, Firmware::Bios, How::Read("qcow2")),
    (Format::Vhd, Firmware::Bios, How::Read("vpc")),
    (Format::Vhdx, Firmware::Uefi, How::Read("vhdx")),
    (Format::Vmdk, Firmware::Bios, How::Read("vmdk")),
    (Format::RawGz, Firmware::Bios, How::Unpacked(&["gzip", "-dc"])),
    (Format::RawZst, Firmware::Bios, How::Unpacked(&["zstd", "-dc", "--long=31"])),
    (Format::Gce, Firmware::Uefi, How::Unpacked(&["tar", "-xzOf"])),
];

fn from_a_form(bench: &Bench, name: &str, format: Format, firmware: Firmware, how: How) -> Result {
    const WORKER: &str = "worker-1";
    let image = bench.form(WORKER, format)?;
    bench.with(name, WORKER, |machine| {
        match how {
            How::Read(form) => machine.take_form(&image, form)?,
            How::Unpacked(program) => {
                let disk = image.with_file_name("unpacked.raw");
                unpack(program, &image, &disk)?;
                machine.take_disk(&disk)?;
                std::fs::remove_file(&disk).with_context(|| format!("removing {}", disk.display()))?;
            }
        }
        machine.attach_by(firmware, Bus::VirtioBlk)?;
        machine.start()?;
        let status = machine.booted()?;
        runs_as_it_should(machine, &status, WORKER)?;
        came_this_way(machine, firmware, "vd")
    })
}

/// Not by kimg: what others make of its files is the question.
fn unpack(program: &[&str], image: &Path, disk: &Path) -> Result {
    let out = File::create(disk).with_context(|| format!("making {}", disk.display()))?;
    let status = Command::new(program[0]).args(&program[1..]).arg(image).stdout(out).status();
    if status.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Err(Skipped(format!("{} is not installed", program[0])).into());
    }
    let status = status.with_context(|| format!("starting {}", program[0]))?;
    ensure!(status.success(), "{} could not unpack {}", program[0], image.display());
    Ok(())
}

/// Nothing of a master runs before its key came; another key than its own opens nothing.
fn sealed(bench: &Bench) -> Result {
    bench.with("sealed", "master-1", |machine| {
        machine.withhold_seal_key()?;
        machine.start()?;
        let waits = |machine: &mut Machine<'_>, why: &str| {
            machine.until(&format!("the node to say '{why}'"), 60, |machine| {
                let status: NodeStatus = machine.node(path::STATUS)?;
                Ok((status.stage == "secrets" && status.why.contains(why)).then_some(()))
            })
        };
        waits(machine, "no key has come")?;
        let services: Vec<node_api::Service> = machine.node(path::SERVICES)?;
        ensure!(services.is_empty(), "services without their keys: {services:?}");
        let another = node_metadata::SealKey::new([7; 32]).to_base64();
        machine.unseal(&another)?;
        waits(machine, "does not open")?;
        machine.unseal(&bench.secrets().seal_key()?.to_base64())?;
        machine.booted()?;
        machine.api_ready()?;
        Ok(())
    })
}

/// The console's screen and the node API say who the node is; its root is read-only and verified.
fn runs_as_it_should(machine: &mut Machine<'_>, status: &NodeStatus, node: &str) -> Result {
    ensure!(status.name == node, "the node calls itself {}", status.name);
    ensure!(node.starts_with(&status.role), "{node} is a {}", status.role);
    let screen = format!("{node}, {} of cluster boots", status.role);
    machine.until("the console's screen", 20, |m| Ok(m.console().contains(&screen).then_some(())))?;
    let disks: Vec<node_api::Disk> = machine.node(path::DISK)?;
    let root = disks.iter().find(|disk| disk.mount == "/").context("nothing is mounted on /")?;
    ensure!(root.read_only && root.kind == "squashfs", "the root is {root:?}");
    ensure!(root.device.starts_with("/dev/dm-") || root.device == "/dev/mapper/root", "not verified: {root:?}");
    let on_disks = disks.iter().filter(|d| !d.mount.is_empty() && d.device.starts_with("/dev/"));
    let writable: Vec<&str> = on_disks.filter(|d| !d.read_only).map(|d| &*d.mount).collect();
    ensure!(
        writable.iter().all(|mount| ["/state", "/var"].iter().any(|top| mount.starts_with(top))),
        "writable file systems of disks are {writable:?}"
    );
    Ok(())
}

/// The kernel itself says what started it, and from which disk.
fn came_this_way(machine: &Machine<'_>, firmware: Firmware, disk: &str) -> Result {
    let kernel = machine.node_text(path::DMESG)?;
    let efi = kernel.lines().any(|line| line.contains("efi: EFI v"));
    ensure!(efi == (firmware == Firmware::Uefi), "the kernel's log speaks of EFI: {efi}");
    let disks: Vec<node_api::Disk> = machine.node(path::DISK)?;
    let state = disks.iter().find(|d| d.mount == "/state").context("nothing is mounted on /state")?;
    ensure!(state.device.starts_with(&format!("/dev/{disk}")), "STATE is on {}", state.device);
    Ok(())
}
