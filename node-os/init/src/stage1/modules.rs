//! The initramfs's kernel modules: `/lib/modules/order` names the files in `/lib/modules`, one a line,
//! dependencies before what needs them. Lines after `[late]` are loaded only when no root has appeared:
//! probing empty AHCI and IDE ports costs time on machines that have their disk elsewhere.

use anyhow::{Context, Result};
use std::path::Path;

const FOLDER: &str = "/lib/modules";
const LATE: &str = "[late]";

/// The modules in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    first: Vec<String>,
    late: Vec<String>,
}

impl Order {
    pub(super) fn read() -> Result<Order> {
        let file = format!("{FOLDER}/order");
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {file} of the initramfs"))?;
        Ok(Order::parse(&text))
    }

    fn parse(text: &str) -> Order {
        let mut order = Order::default();
        let mut late = false;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if line.starts_with('[') {
                late = line == LATE;
            } else if late {
                order.late.push(line.to_owned());
            } else {
                order.first.push(line.to_owned());
            }
        }
        order
    }

    /// Loads of the first group what may be needed.
    pub(super) fn load_first(&self, may_need: impl Fn(&str) -> bool, say: &mut dyn FnMut(&str)) {
        load(self.first.iter().filter(|name| may_need(name)), say);
    }

    /// Loads everything; what is loaded already costs nothing.
    pub(super) fn load_late(&self, say: &mut dyn FnMut(&str)) {
        load(self.first.iter().chain(&self.late), say);
    }
}

/// A module that does not load is named; whether it was needed shows when the root is looked for.
fn load<'a>(names: impl Iterator<Item = &'a String>, say: &mut dyn FnMut(&str)) {
    for name in names {
        let path = Path::new(FOLDER).join(name);
        if let Err(error) = node_sys::module::load(&path, "") {
            // Drivers of hardware that is not there answer so; that is no news.
            if error.kind() != std::io::ErrorKind::NotFound || !path.exists() {
                say(&error.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_late_group_is_apart() {
        let order = Order::parse("# disks\n[first]\nvirtio_blk.ko\n\nsd_mod.ko\n[late]\nahci.ko\n");
        assert_eq!(order.first, ["virtio_blk.ko", "sd_mod.ko"]);
        assert_eq!(order.late, ["ahci.ko"]);
    }
}
