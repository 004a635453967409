//! The initramfs: stage 1 as `/init`, and the modules to reach the root. Nothing else.

use super::cpio;
use super::modules::{self, Kernel};
use super::recipe::Boot;
use super::tree::{Node, Tree};
use anyhow::{Context, Result};
use std::sync::Arc;

/// zstd at its strongest: read once at each boot, written seldom.
const LEVEL: i32 = 19;

/// Builds it. The modules lie in `/lib/modules`; `order` names their files, one a line.
pub fn build(kernel: &Kernel, boot: &Boot, stage1: Arc<[u8]>) -> Result<Vec<u8>> {
    let names = || boot.first.iter().chain(&boot.late).map(String::as_str);
    let closure = kernel.closure(names())?;
    let first = modules::load_order(&closure, boot.first.iter().map(String::as_str));
    let late = modules::load_order(&closure, names()).split_off(first.len());
    let mut tree = Tree::default();
    tree.file("/init", 0o755, stage1)?;
    for dir in ["/dev", "/proc", "/sys", "/run", "/root"] {
        tree.dir(dir, 0o755)?;
    }
    // The kernel opens it before anything is mounted.
    tree.put("/dev/console", Node::Device(0o600, 5, 1))?;
    let mut order = String::new();
    for (group, names) in [("first", first), ("late", late)] {
        order.push_str(&format!("[{group}]\n"));
        for name in names {
            let module = closure.get(&name).with_context(|| format!("module {name} got lost"))?;
            let file = module.path.rsplit('/').next().unwrap_or(&module.path);
            order.push_str(&format!("{file}\n"));
            tree.file(&format!("/lib/modules/{file}"), 0o644, module.data.clone())?;
        }
    }
    tree.file("/lib/modules/order", 0o644, order.into_bytes())?;
    zstd::encode_all(&cpio::archive(&tree)?[..], LEVEL).context("compressing the initramfs")
}
