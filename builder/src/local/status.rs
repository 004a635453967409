//! `kimg status`: the VMs of this machine and the nodes that the API server knows, side by side.

use super::state::{self, State, Vm};
use crate::client::block_on;
use crate::client::kube::{self, NodeState};
use crate::config::{NodeSettings, Settings};
use crate::pki::Secrets;
use crate::roll::journal::Journal;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;

/// A node in one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Name.
    pub node: String,
    /// `master` or `worker`.
    pub role: String,
    /// `running`, `stopped`, or `-` where the node is no VM here.
    pub vm: String,
    /// QEMU's process.
    pub pid: Option<i32>,
    /// `Ready`, `NotReady`, `unknown` (no API server, or no VM that could be ready), `absent` (not joined).
    pub status: String,
    /// It takes no new pods: somebody has cordoned it, or a roll.
    pub cordoned: bool,
    /// Address.
    pub address: String,
    /// kubelet's version.
    pub version: String,
    /// OS image that the node reports.
    pub image: String,
    /// `127.0.0.1:PORT` of its node API.
    pub node_api: String,
}

/// The whole picture.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Cluster name.
    pub cluster: String,
    /// `kvm`, `tcg`, or nothing.
    pub accel: String,
    /// Why the API server could not be asked; nothing when it answered.
    pub api_error: Option<String>,
    /// The reason is that the VMs do not run.
    #[serde(skip)]
    pub stopped: bool,
    /// The machines are the user's own: `kimg up` starts none of them.
    #[serde(skip)]
    pub by_hand: bool,
    /// `127.0.0.1:PORT` of the local master's API server.
    pub api: Option<String>,
    /// NodePort to port on 127.0.0.1.
    pub node_ports: BTreeMap<u16, u16>,
    /// The nodes.
    pub nodes: Vec<Line>,
    /// The journal of a roll that is under way, or was interrupted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roll: Option<Journal>,
    /// Sentences about copies of the store that are missing or old.
    pub warnings: Vec<String>,
}

/// Looks at VMs and API server.
pub fn status(settings: &Settings) -> Result<Status> {
    let state = State::load(&settings.run_dir())?;
    let stopped = state::stopped(settings, &state, None);
    let (known, api_error) = match &stopped {
        // Not even keys are needed to know that.
        Some(why) => (None, Some(why.clone())),
        None => {
            let secrets = Secrets::of_cluster(&settings.secrets_dir(), &settings.name)?;
            let api = state::api_client(settings, &secrets, None)?;
            match block_on(kube::nodes(&api)) {
                Ok(nodes) => (Some(nodes), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            }
        }
    };
    let by_hand = state::by_hand(settings, &state);
    let address = |n: &NodeSettings| match n.entry.addresses.first() {
        _ if settings.provider.is_some() || by_hand && n.unaddressed => "-".to_string(),
        Some(written) if by_hand => written.to_string(),
        _ => n.local_address.to_string(),
    };
    let mut names: Vec<(String, String, String)> =
        settings.nodes.iter().map(|n| (n.entry.name.clone(), n.entry.role.to_string(), address(n))).collect();
    for node in known.iter().flatten() {
        if !names.iter().any(|(name, ..)| *name == node.name) {
            names.push((node.name.clone(), "-".into(), node.address.clone()));
        }
    }
    let nodes = names
        .into_iter()
        .map(|(name, role, address)| line(&name, role, address, state.vms.get(&name), known.as_deref()))
        .collect();
    let running = || state.vms.values().filter(|vm| vm.running());
    Ok(Status {
        cluster: settings.name.clone(),
        api: running().find_map(|vm| vm.api_port).map(|port| format!("127.0.0.1:{port}")),
        node_ports: running().flat_map(|vm| vm.node_ports.clone()).collect(),
        accel: state.accel,
        api_error,
        stopped: stopped.is_some(),
        by_hand,
        nodes,
        roll: None,
        warnings: Vec::new(),
    })
}

fn line(name: &str, role: String, address: String, vm: Option<&Vm>, known: Option<&[NodeState]>) -> Line {
    let node = known.and_then(|nodes| nodes.iter().find(|n| n.name == name));
    let status = match (known, node) {
        (None, _) => "unknown",
        // For a while the API shows what a node said before its VM ended.
        (Some(_), Some(_)) if vm.is_some_and(|vm| !vm.running()) => "unknown",
        (Some(_), None) => "absent",
        (Some(_), Some(node)) if node.ready => "Ready",
        _ => "NotReady",
    };
    let text = |value: Option<&String>| value.filter(|v| !v.is_empty()).cloned().unwrap_or_else(|| "-".into());
    Line {
        node: name.to_string(),
        role,
        vm: vm.map_or("-", |vm| if vm.running() { "running" } else { "stopped" }).to_string(),
        pid: vm.filter(|vm| vm.running()).and_then(|vm| vm.process).map(|p| p.pid),
        status: status.to_string(),
        cordoned: node.is_some_and(|node| node.cordoned),
        address: node.map(|n| n.address.clone()).filter(|a| !a.is_empty()).unwrap_or(address),
        version: text(node.map(|n| &n.version)),
        image: text(node.map(|n| &n.image)),
        node_api: vm.map_or("-".into(), |vm| format!("127.0.0.1:{}", vm.node_port)),
    }
}

/// A table of the nodes.
pub fn table(status: &Status) -> String {
    let rows: Vec<Vec<String>> = status
        .nodes
        .iter()
        .map(|n| {
            let pid = n.pid.map_or("-".to_string(), |p| p.to_string());
            vec![
                n.node.clone(),
                n.role.clone(),
                n.vm.clone(),
                pid,
                // As kubectl shows it.
                format!("{}{}", n.status, if n.cordoned { ",SchedulingDisabled" } else { "" }),
                n.address.clone(),
                n.version.clone(),
                n.image.clone(),
                n.node_api.clone(),
            ]
        })
        .collect();
    let head = ["NODE", "ROLE", "VM", "PID", "STATUS", "ADDRESS", "VERSION", "IMAGE", "NODE API"];
    crate::table::render(&head, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::process::Process;
    use node_metadata::Role;

    #[test]
    fn a_stopped_vm_is_not_ready_whatever_the_api_still_shows() {
        let mut known = [NodeState {
            name: "w".into(),
            ready: true,
            reason: String::new(),
            cordoned: false,
            version: String::new(),
            image: String::new(),
            address: String::new(),
            boot_id: String::new(),
        }];
        let mut vm = Vm {
            role: Role::Worker,
            process: None,
            api_port: None,
            status_port: None,
            node_port: 1,
            node_ports: BTreeMap::new(),
            token: None,
            awaits_backup: false,
            joins_etcd: false,
            new_disk: false,
            image: String::new(),
            previous: None,
        };
        let of = |vm: Option<&Vm>, known: &[NodeState]| line("w", "worker".into(), String::new(), vm, Some(known));
        let shown = |vm: Option<&Vm>| {
            let line = of(vm, &known);
            (line.vm, line.status)
        };
        assert_eq!(shown(Some(&vm)), ("stopped".into(), "unknown".into()));
        vm.process = Process::find(std::process::id() as i32);
        assert_eq!(shown(Some(&vm)), ("running".into(), "Ready".into()));
        assert_eq!(shown(None), ("-".into(), "Ready".into()));
        known[0].cordoned = true;
        let cordoned = of(None, &known);
        // Scripts compare it with Ready, which it is.
        assert_eq!(cordoned.status, "Ready");
        let status = Status {
            cluster: "demo".into(),
            accel: String::new(),
            api_error: None,
            stopped: false,
            by_hand: false,
            api: None,
            node_ports: BTreeMap::new(),
            nodes: vec![cordoned],
            roll: None,
            warnings: Vec::new(),
        };
        assert!(table(&status).contains(" Ready,SchedulingDisabled "), "{}", table(&status));
    }
}
