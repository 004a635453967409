//! Where a machine without a metadata server is told who it is: a config drive, and QEMU's own files.

use crate::{Skipped, Test};
use anyhow::{Context, ensure};
use qemu_tests::{Bench, Machine, Result, tools};
use std::path::PathBuf;
use std::process::Command;

const NODE: &str = "worker-1";
/// xorriso and what it needs.
const XORRISO: [&str; 7] = ["xorriso", "libisoburn1", "libisofs6", "libburn4", "libjte2", "libreadline8", "libacl1"];

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("boot::a_node_reads_its_config_drive", true, config_drive),
        Test::new("boot::a_node_reads_the_files_of_qemu", true, fw_cfg),
    ]
}

/// ISO 9660 with Rock Ridge and Joliet, as Nova writes it with genisoimage.
fn config_drive(bench: &Bench) -> Result {
    let xorriso = xorriso().map_err(|why| Skipped(format!("Debian's xorriso cannot be had: {why:#}")))?;
    bench.with("config-drive", NODE, |machine| {
        let [lan, nat] = machine.macs();
        let network = serde_json::json!({
            "links": [
                {"id": "lan", "type": "phy", "ethernet_mac_address": lan},
                {"id": "nat", "type": "phy", "ethernet_mac_address": nat},
            ],
            "networks": [
                {"id": "a", "link": "lan", "type": "ipv4", "ip_address": "10.77.0.11", "netmask": "255.255.255.0"},
                {"id": "b", "link": "nat", "type": "ipv4_dhcp"},
            ],
        });
        let files = [
            ("meta_data.json", serde_json::json!({"uuid": "5f1c", "hostname": NODE}).to_string()),
            ("network_data.json", network.to_string()),
            ("user_data", machine.user_data()?),
        ];
        let folder = tempfile::tempdir().context("making a folder")?;
        let latest = folder.path().join("drive/openstack/latest");
        std::fs::create_dir_all(&latest).context("making openstack/latest")?;
        for (name, text) in files {
            std::fs::write(latest.join(name), text).with_context(|| format!("writing {name}"))?;
        }
        let drive = folder.path().join("config.iso");
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|part| xorriso.join(part));
        let made = Command::new(xorriso.join("usr/bin/xorriso"))
            .args(["-as", "mkisofs", "-quiet", "-J", "-R", "-V", "config-2", "-o"])
            .args([&drive, &folder.path().join("drive")])
            .env("LD_LIBRARY_PATH", std::env::join_paths(libraries).context("joining paths")?)
            .output()
            .context("starting xorriso")?;
        ensure!(made.status.success(), "xorriso: {}", String::from_utf8_lossy(&made.stderr));
        let drive = std::fs::read(&drive).context("reading the drive")?;
        machine.wake_by("product=OpenStack Nova", &drive, &[])?;
        wakes_by(machine, "config-drive")
    })
}

fn xorriso() -> Result<PathBuf> {
    let tree = tools::workspace().join("target/tools/xorriso");
    if !tree.exists() {
        let wanted = |path: &str| path.contains("/bin/") || path.contains(".so.");
        kimg::packages::fetch_tree("bookworm", &XORRISO, wanted, &tree)?;
    }
    Ok(tree)
}

fn fw_cfg(bench: &Bench) -> Result {
    bench.with("fw-cfg", NODE, |machine| {
        let [lan, nat] = machine.macs();
        let interfaces = [
            kimg::seed::Interface { name: "lan".into(), mac: lan, address: Some("10.77.0.11/24".into()) },
            kimg::seed::Interface { name: "nat".into(), mac: nat, address: None },
        ];
        let folder = tempfile::tempdir().context("making a folder")?;
        let files = [
            ("user-data", machine.user_data()?),
            ("meta-data", format!("instance-id: a\nlocal-hostname: {NODE}\n")),
            ("network-config", kimg::seed::network_config(&interfaces)),
        ];
        let mut arguments = Vec::new();
        for (name, text) in files {
            let file = folder.path().join(name);
            std::fs::write(&file, text).with_context(|| format!("writing {name}"))?;
            arguments.extend(["-fw_cfg".to_owned(), format!("name=opt/kimg/{name},file={}", file.display())]);
        }
        machine.wake_by("product=a machine", &[0; 1 << 20], &arguments)?;
        wakes_by(machine, "fw-cfg")
    })
}

fn wakes_by(machine: &mut Machine<'_>, source: &str) -> Result {
    machine.start()?;
    let status = machine.booted()?;
    ensure!(status.source == source && status.name == NODE, "{} by {}", status.name, status.source);
    ensure!(status.addresses.iter().any(|a| a.starts_with("10.77.0.11")), "addresses: {:?}", status.addresses);
    Ok(())
}
