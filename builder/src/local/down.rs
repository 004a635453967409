//! `kimg down`: ends the VMs cleanly, keeps their disks unless told otherwise.

use super::qmp;
use super::state::{self, State, Vm};
use crate::client::block_on;
use crate::client::node::NodeClient;
use crate::config::Settings;
use crate::machines::Ended;
use crate::pki::Secrets;
use crate::progress::Progress;
use anyhow::{Context, Result};
use node_api::{Done, path};
use node_metadata::Role;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// How long a node that was asked may take to end its pods (30 s, as most have it), its services and itself with KVM.
const GRACE: Duration = Duration::from_secs(90);
/// The same of one that could not be asked: its power button may have no effect at all.
const BUTTON: Duration = Duration::from_secs(20);

/// What `down` did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Down {
    /// VMs that powered off by themselves.
    pub clean: Vec<String>,
    /// VMs that had to be ended.
    pub forced: Vec<String>,
    /// Whether disks were removed.
    pub deleted: bool,
}

/// Ends all VMs of the cluster and the switch; with `delete`, removes their disks too.
pub fn down(settings: &Settings, delete: bool, progress: &Progress) -> Result<Down> {
    if !settings.run_dir().exists() {
        state::check_no_ghosts(settings)?;
        return Ok(Down::default());
    }
    let (run_dir, _lock) = state::lock(settings)?;
    let mut state = State::load(&run_dir)?;
    let secrets = Secrets::open(&settings.secrets_dir());
    let patience = patience(&state);
    // Masters last: what workers say as they end still has somebody who writes it down.
    let stop_all = |role: Role| -> Vec<(String, Result<Ended>)> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = state
                .vms
                .iter()
                .filter(|(_, vm)| vm.running() && vm.role == role)
                .map(|(name, vm)| {
                    let bar = progress.step(&format!("{name}: stopping"));
                    let (run_dir, secrets) = (&run_dir, &secrets);
                    let thread = scope.spawn(move || {
                        let result = stop(run_dir, secrets, name, vm, patience);
                        bar.finish_with_message(format!("{name}: stopped"));
                        result
                    });
                    (name.clone(), thread)
                })
                .collect();
            threads
                .into_iter()
                .map(|(name, t)| (name, t.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread failed")))))
                .collect()
        })
    };
    let mut results = stop_all(Role::Worker);
    results.extend(stop_all(Role::Master));
    let mut done = Down { deleted: delete, ..Down::default() };
    for (name, result) in results {
        match result.with_context(|| format!("stopping {name}"))? {
            Ended::Clean => done.clean.push(name),
            Ended::Forced => done.forced.push(name),
        }
    }
    if let Some(switch) = state.switch.take() {
        switch.end(Duration::from_secs(2))?;
    }
    state.vms.values_mut().for_each(|vm| vm.process = None);
    state.save(&run_dir)?;
    if delete {
        remove_all(settings, &run_dir, &state)?;
    }
    Ok(done)
}

/// How many times longer the cluster's VMs may take to power off than with KVM.
pub(crate) fn patience(state: &State) -> u32 {
    if state.accel == "kvm" { 1 } else { 2 }
}

/// Ends a VM; clean when the node powered off by itself, or did not run.
pub(super) fn stop(run_dir: &Path, secrets: &Secrets, name: &str, vm: &Vm, patience: u32) -> Result<Ended> {
    let Some(process) = vm.process.filter(|p| p.alive()) else { return Ok(Ended::Clean) };
    let dir = run_dir.join(name);
    let asked = ask_node(secrets, name, vm, &dir).is_ok();
    if !asked {
        // A node that does not listen yet still has a power button.
        if let Err(error) = qmp::execute(&dir, "qmp.sock", "system_powerdown", None) {
            tracing::debug!("{name}: {error:#}");
        }
    }
    if process.wait_gone(if asked { GRACE } else { BUTTON } * patience) {
        return Ok(Ended::Clean);
    }
    if qmp::execute(&dir, "qmp.sock", "quit", None).is_ok() && process.wait_gone(Duration::from_secs(5)) {
        return Ok(Ended::Forced);
    }
    process.end(Duration::from_secs(3))?;
    Ok(Ended::Forced)
}

/// Ends one VM, and removes its disk and all that is known of it.
pub fn remove(settings: &Settings, secrets: &Secrets, name: &str) -> Result<Ended> {
    let (run_dir, _lock) = state::lock(settings)?;
    let mut state = State::load(&run_dir)?;
    let Some(vm) = state.vms.get(name) else { return Ok(Ended::Clean) };
    let ended = stop(&run_dir, secrets, name, vm, patience(&state))?;
    remove_dir(&run_dir.join(name))?;
    // The other end of its cable is the switch's for as long as that runs: without it, it would be started anew.
    remove_file(&run_dir.join(format!("{name}.vm")))?;
    // Last: as long as it stands there, it is removed by whoever tries again.
    state.vms.remove(name);
    state.save(&run_dir)?;
    Ok(ended)
}

fn remove_dir(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

fn ask_node(secrets: &Secrets, name: &str, vm: &Vm, dir: &Path) -> Result<()> {
    let fingerprint = super::console::fingerprint(&dir.join("console.log"));
    let target = format!("127.0.0.1:{}", vm.node_port);
    let client = NodeClient::new(secrets, name, target, fingerprint.as_deref())?;
    block_on(async {
        let asked = client.post::<Done>(path::POWEROFF, None);
        tokio::time::timeout(Duration::from_secs(8), asked).await.context("asking the node to power off")?.map(|_| ())
    })
}

fn remove_all(settings: &Settings, run_dir: &Path, state: &State) -> Result<()> {
    for name in state.vms.keys() {
        remove_dir(&run_dir.join(name))?;
    }
    for port in super::switch::ports(settings)?.iter().map(|port| &port.name).chain(state.vms.keys()) {
        for end in ["sw", "vm"] {
            remove_file(&run_dir.join(format!("{port}.{end}")))?;
        }
    }
    remove_dir(&run_dir.join("kept_volumes"))?;
    super::stock::tidy(run_dir, &State::default(), &BTreeSet::new())?;
    for name in ["state.json", "switch.log", "switch.json", "roll.json", "roll.lock"] {
        remove_file(&run_dir.join(name))?;
    }
    remove_file(&settings.dir.join("kubeconfig"))
}

pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn nothing_is_left_of_a_vm_that_is_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let text =
            "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n";
        let settings = config::parse(Path::new("c"), text, dir.path()).expect("valid");
        let run_dir = settings.run_dir();
        std::fs::create_dir_all(run_dir.join("w")).expect("folder");
        for file in ["w/disk.raw", "w.sw", "w.vm", "m.sw", "m.vm"] {
            std::fs::write(run_dir.join(file), "").expect("file");
        }
        let mut state = State::default();
        state.vms.insert("w".into(), Vm::new(Role::Worker, "image"));
        state.save(&run_dir).expect("saved");
        let secrets = Secrets::open(&settings.secrets_dir());
        assert_eq!(remove(&settings, &secrets, "w").expect("removed"), Ended::Clean);
        assert_eq!(
            ["w", "w.sw", "w.vm", "m.sw", "m.vm"].map(|name| run_dir.join(name).exists()),
            [false, true, false, true, true]
        );
        assert!(State::load(&run_dir).expect("state").vms.is_empty());
    }
}
