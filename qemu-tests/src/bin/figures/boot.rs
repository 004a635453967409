//! One VM alone, from power-on to its services: what firmware and loader take, what the kernel, and each step of PID 1.

use anyhow::{Context, Result};
use kimg::local::qemu::Bus;
use node_api::{BootTimeline, NodeStatus, path};
use qemu_tests::Bench;
use qemu_tests::machine::Firmware;
use serde_json::{Map, Value, json};
use std::path::Path;
use std::time::Instant;

/// Both roles by BIOS and by UEFI.
pub fn figures(dir: &Path, cluster_toml: &str, into: &mut Map<String, Value>) -> Result<()> {
    let bench = Bench::build(dir, cluster_toml, None)?;
    for (role, node) in [("master", "master-1"), ("worker", "worker-1")] {
        for (firmware, name) in [(Firmware::Bios, "bios"), (Firmware::Uefi, "uefi")] {
            let what = format!("boot.{role}.{name}");
            bench.with(&what, node, |machine| {
                machine.attach_by(firmware, Bus::default())?;
                let power_on = Instant::now();
                machine.start()?;
                machine.booted()?;
                let status: NodeStatus = machine.node(path::STATUS)?;
                // The node's clock begins with the kernel, ours with the power: firmware and loader are in between.
                let since_power_on = u64::try_from(power_on.elapsed().as_millis()).context("a time")?;
                let timeline: BootTimeline = machine.node(path::BOOT)?;
                let mut add = |part: &str, ms: u64| into.insert(format!("{what}.{part}_ms"), json!(ms));
                add("firmware", since_power_on.saturating_sub(status.uptime_ms));
                add("kernel", timeline.init_ms);
                for step in timeline.steps {
                    if let Some(end) = step.end_ms {
                        add(&step.name.replace(' ', "."), end.saturating_sub(step.start_ms));
                    }
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}
