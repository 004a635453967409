//! Kernel modules of the root: by name, with what they need first, as `modules.dep` says.

use anyhow::{Context, Result};
use node_metadata::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// For the firewall, before any interface is up.
pub const FIREWALL: &[&str] = &["nf_tables", "nf_conntrack", "nft_ct", "nft_reject_inet", "nft_socket", "nft_fib_inet"];

/// For every node: pod network and service rules. The kernel asks `modprobe` for what is missing here;
/// naming them saves it the way.
const EVERYWHERE: &[&str] = &[
    "veth",
    "vxlan",
    "dummy",
    "nf_nat",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_numgen",
    "nft_reject",
    "nf_conntrack_netlink",
    "button",
    "evdev",
];

/// Metadata drives behind controllers that cost time to probe; loaded only when no metadata has been found without.
pub const DRIVES: &[&str] = &["ata_piix", "ahci", "sr_mod", "sd_mod"];

/// For workers, beside [`EVERYWHERE`].
const WORKER: &[&str] = &["overlay"];

/// Parameters that the defaults of a module make necessary.
const PARAMETERS: &[(&str, &str)] = &[("dummy", "numdummies=0")];

/// Controllers of [`DRIVES`], left to those who need them.
const LEFT_ALONE: &[&str] = &["ahci", "ata_piix", "ata_generic", "i6300esb"];

/// Names for a role.
pub fn for_role(role: Role) -> Vec<&'static str> {
    let more: &[&str] = if role == Role::Worker { WORKER } else { &[] };
    EVERYWHERE.iter().chain(more).copied().collect()
}

/// The kernel's index of modules.
#[derive(Debug, Default)]
pub struct Index {
    folder: PathBuf,
    /// Path and the paths of what it needs, in the order of loading, by name.
    modules: BTreeMap<String, (String, Vec<String>)>,
    loaded: BTreeSet<String>,
}

impl Index {
    /// Reads `modules.dep` of the running kernel.
    pub fn read() -> Result<Index> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let folder = PathBuf::from("/usr/lib/modules").join(release);
        let file = folder.join("modules.dep");
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Index { folder, modules: parse(&text), loaded: BTreeSet::new() })
    }

    /// The folder of the running kernel's modules.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// True when the image has a module of that name.
    pub fn has(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }

    /// Loads what of `names` the image has; modules it lacks are built in or not wanted. Faults come back.
    pub fn load(&mut self, names: &[&str]) -> Vec<String> {
        let mut faults = Vec::new();
        for name in names {
            let Some((path, needs)) = self.modules.get(*name).cloned() else { continue };
            for path in needs.into_iter().chain([path]) {
                if !self.loaded.insert(path.clone()) {
                    continue;
                }
                // Drivers of hardware that is not there refuse with ENODEV.
                let own = name_of(&path);
                let parameters = PARAMETERS.iter().find(|(module, _)| *module == own).map_or("", |(_, text)| *text);
                if let Err(error) = node_sys::module::load(&self.folder.join(&path), parameters)
                    && error.raw_os_error() != Some(libc::ENODEV)
                    && !error.to_string().contains("No such device")
                {
                    faults.push(error.to_string());
                }
            }
        }
        faults
    }
}

/// Names of the modules that drive the devices that are there, as far as the image has them.
pub fn for_devices(index: &Index) -> Vec<String> {
    let aliases = std::fs::read_to_string(index.folder().join("modules.alias")).unwrap_or_default();
    let table = crate::modprobe::Aliases::parse(&aliases);
    let mut names = BTreeSet::new();
    for device in device_aliases() {
        names.extend(table.find(&device).into_iter().filter(|name| !LEFT_ALONE.contains(name)).map(str::to_owned));
    }
    names.into_iter().collect()
}

/// What each device says that it is.
fn device_aliases() -> BTreeSet<String> {
    let mut aliases = BTreeSet::new();
    for bus in ["pci", "virtio", "vmbus", "xen", "scsi", "acpi"] {
        let Ok(devices) = std::fs::read_dir(format!("/sys/bus/{bus}/devices")) else { continue };
        for device in devices.flatten() {
            let text = std::fs::read_to_string(device.path().join("modalias")).unwrap_or_default();
            aliases.insert(text.trim().to_owned());
        }
    }
    aliases.remove("");
    aliases
}

fn parse(text: &str) -> BTreeMap<String, (String, Vec<String>)> {
    let mut modules = BTreeMap::new();
    for line in text.lines() {
        let Some((path, needs)) = line.split_once(':') else { continue };
        // The index lists the nearest first; loading goes the other way.
        let needs = needs.split_ascii_whitespace().rev().map(str::to_owned).collect();
        modules.insert(name_of(path), (path.to_owned(), needs));
    }
    modules
}

fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_loaded_from_the_far_end() {
        let modules = parse("kernel/a/nft-ct.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko.xz:\n");
        assert_eq!(modules["nft_ct"], ("kernel/a/nft-ct.ko".into(), vec!["kernel/c.ko".into(), "kernel/b.ko".into()]));
        assert!(modules["c"].1.is_empty());
    }
}
