//! Which disk drivers can have work here, by what buses and firmware already show. A driver that is left out
//! wrongly costs nothing but time: all of them are loaded when no root appears.

use std::collections::BTreeSet;
use std::fs;

const VIRTIO_BLOCK: u32 = 2;
const VIRTIO_SCSI: u32 = 8;
const VMWARE: &str = "0x15ad";

/// What is known of the machine before any disk driver is loaded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hardware {
    virtio: BTreeSet<u32>,
    vmware: bool,
    hyper_v: bool,
    xen: bool,
}

impl Hardware {
    pub(super) fn read() -> Hardware {
        let virtio =
            values("/sys/bus/virtio/devices", "modalias").iter().filter_map(|alias| virtio_kind(alias)).collect();
        let vmware = values("/sys/bus/pci/devices", "vendor").iter().any(|vendor| vendor == VMWARE);
        let vendor = fs::read_to_string("/sys/class/dmi/id/sys_vendor").unwrap_or_default();
        let xen = fs::read_to_string("/sys/hypervisor/type").unwrap_or_default();
        Hardware { virtio, vmware, hyper_v: vendor.contains("Microsoft"), xen: xen.trim() == "xen" }
    }

    /// True when the module in this file may be needed.
    pub(super) fn may_need(&self, file: &str) -> bool {
        let name = file.rsplit('/').next().unwrap_or(file).split('.').next().unwrap_or(file).replace('-', "_");
        let scsi = self.virtio.contains(&VIRTIO_SCSI) || self.vmware || self.hyper_v;
        match name.as_str() {
            "virtio_blk" => self.virtio.contains(&VIRTIO_BLOCK),
            "virtio_scsi" => self.virtio.contains(&VIRTIO_SCSI),
            "scsi_transport_fc" => self.hyper_v,
            "scsi_common" | "scsi_mod" | "sd_mod" => scsi,
            name if name.starts_with("hv_") => self.hyper_v,
            name if name.starts_with("vmw_") => self.vmware,
            name if name.starts_with("xen_") => self.xen,
            _ => true,
        }
    }
}

/// `virtio:d00000002v00001AF4` is a device of kind 2.
fn virtio_kind(alias: &str) -> Option<u32> {
    u32::from_str_radix(alias.strip_prefix("virtio:d")?.get(..8)?, 16).ok()
}

fn values(folder: &str, file: &str) -> Vec<String> {
    let Ok(devices) = fs::read_dir(folder) else { return Vec::new() };
    let texts = devices.flatten().filter_map(|device| fs::read_to_string(device.path().join(file)).ok());
    texts.map(|text| text.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drivers_of_hardware_that_shows_itself_come_first() {
        let blk = Hardware { virtio: BTreeSet::from([1, 2]), ..Hardware::default() };
        let scsi = Hardware { virtio: BTreeSet::from([8]), ..Hardware::default() };
        let cases = [
            (&blk, "virtio_blk.ko", true),
            (&blk, "sd_mod.ko", false),
            (&blk, "xen-blkfront.ko", false),
            (&blk, "dm-verity.ko", true),
            (&scsi, "virtio_scsi.ko", true),
            (&scsi, "scsi_mod.ko", true),
            (&scsi, "virtio_blk.ko", false),
            (&scsi, "hv_vmbus.ko", false),
        ];
        for (hardware, file, wanted) in cases {
            assert_eq!(hardware.may_need(file), wanted, "{file}");
        }
        assert_eq!(virtio_kind("virtio:d00000008v00001AF4"), Some(8));
        assert_eq!(virtio_kind("pci:x"), None);
    }
}
