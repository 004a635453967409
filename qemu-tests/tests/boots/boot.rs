//! One image boots everywhere: by BIOS and by UEFI, from every bus that providers have.

use crate::Test;
use anyhow::{Context, ensure};
use kimg::local::qemu::Bus;
use node_api::{NodeStatus, path};
use qemu_tests::machine::Firmware;
use qemu_tests::{Machine, Result};

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
    all
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
