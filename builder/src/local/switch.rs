//! The switch of a cluster's VMs as a process of its own in the background.

use super::process::{self, Process};
use super::state::State;
use crate::cache;
use crate::config::Settings;
use crate::pki::secrets;
use crate::seed;
use crate::switch::{Mac, Port, Rules, Switch};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The nodes' places on the switch, and the spare ones.
pub fn ports(settings: &Settings) -> Result<Vec<Port>> {
    let nodes = settings.nodes.iter().map(|n| (n.entry.name.clone(), vec![n.local_address]));
    let spare = (1..=settings.local.spare_ports).map(|number| (spare(number), Vec::new()));
    nodes
        .chain(spare)
        .map(|(name, addresses)| {
            let text = seed::mac(&settings.name, &name, 0);
            let mac = Mac::parse(&text).with_context(|| format!("{text} is no hardware address"))?;
            Ok(Port { name, mac, addresses })
        })
        .collect()
}

/// Name of a spare place; no node can have it. The rules of `cluster.toml` do not hold there: who uses it
/// may send what it likes.
pub fn spare(number: u8) -> String {
    format!("_spare{number}")
}

/// Starts the switch where it does not run.
pub fn ensure(run_dir: &Path, settings: &Settings, state: &mut State) -> Result<()> {
    let sockets: Vec<_> = ports(settings)?.iter().map(|port| run_dir.join(format!("{}.sw", port.name))).collect();
    if let Some(running) = state.switch.filter(|p| p.alive()) {
        if sockets.iter().all(|s| s.exists()) {
            return Ok(());
        }
        // A node or a spare place was added since. Frames in flight are lost, and nothing else: cables are datagrams.
        running.end(Duration::from_secs(2))?;
    }
    remove_sockets(run_dir)?;
    let program = std::env::current_exe().context("finding kimg itself")?;
    let log = cache::open_private(&run_dir.join("switch.log"))?;
    log.set_len(0).context("emptying switch.log")?;
    let mut command = Command::new(program);
    command.arg("--dir").arg(&settings.dir).arg("switch").current_dir(run_dir).stdout(Stdio::null()).stderr(log);
    let pid = process::start(&mut command, |process| {
        state.switch = Some(process);
        state.save(run_dir)
    })?;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let Some(process) = Process::find(pid) else {
            let said = std::fs::read_to_string(run_dir.join("switch.log")).unwrap_or_default();
            bail!("the switch between the VMs ended at once: {}", said.trim());
        };
        // It has left our session once its log says so; from then on Ctrl-C here does not reach it.
        let log = std::fs::read_to_string(run_dir.join("switch.log")).unwrap_or_default();
        if log.contains(READY) && sockets.iter().all(|s| s.exists()) {
            return Ok(());
        }
        if Instant::now() > end {
            process.end(Duration::from_secs(1))?;
            bail!(
                "the switch between the VMs did not start, and those that run are without their network; `kimg up` starts it \
                 again; see {}",
                run_dir.join("switch.log").display()
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A switch that was ended leaves its sockets. One of a node that is no more would later look like the running switch's.
fn remove_sockets(run_dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(run_dir).with_context(|| format!("reading {}", run_dir.display()))? {
        let path = entry.with_context(|| format!("reading {}", run_dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "sw") {
            super::down::remove_file(&path)?;
        }
    }
    Ok(())
}

const READY: &str = "switch: ready";

/// The switch process itself: runs until it is ended.
pub fn run(settings: &Settings) -> Result<()> {
    rustix::process::setsid().context("leaving the terminal's session")?;
    process::await_leave()?;
    let run_dir = settings.run_dir();
    std::env::set_current_dir(&run_dir).with_context(|| format!("entering {}", run_dir.display()))?;
    // Relative, so that the sockets' paths stay within 108 bytes wherever the cluster lies.
    let switch = Switch::start(Path::new("."), &ports(settings)?).context("binding the switch's ports")?;
    let mut applied = None;
    eprintln!("{READY}");
    loop {
        let wanted = read_rules(Path::new(RULES))?;
        if applied.as_ref() != Some(&wanted) {
            for node in &settings.nodes {
                let name = &node.entry.name;
                switch.set(name, wanted.get(name).copied().unwrap_or_else(|| default_rules(settings)));
            }
            applied = Some(wanted);
        }
        std::thread::sleep(RULES_INTERVAL);
    }
}

/// Rules of ports that differ from `cluster.toml`, by node; in `run/`, read again and again by the switch.
const RULES: &str = "switch.json";
const RULES_INTERVAL: Duration = Duration::from_millis(100);

fn default_rules(settings: &Settings) -> Rules {
    Rules { check_source: settings.local.check_source, ..Rules::default() }
}

fn read_rules(path: &Path) -> Result<BTreeMap<String, Rules>> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Changes the rules of these nodes' ports on the running switch; `None` puts back what `cluster.toml` says.
pub fn set_rules(settings: &Settings, nodes: &[String], rules: Option<Rules>) -> Result<()> {
    let path = settings.run_dir().join(RULES);
    let mut all = read_rules(&path)?;
    for node in nodes {
        match rules {
            Some(rules) => all.insert(node.clone(), rules),
            None => all.remove(node),
        };
    }
    secrets::write_private(&path, &serde_json::to_vec_pretty(&all).context("writing the switch's rules")?)?;
    // Twice the switch's own interval: when this returns, the rules hold.
    std::thread::sleep(RULES_INTERVAL * 2);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_an_ended_switch_do_not_look_like_those_of_the_next() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["gone.sw", "gone.vm", "state.json"] {
            std::fs::write(dir.path().join(name), "").expect("file");
        }
        remove_sockets(dir.path()).expect("removed");
        assert_eq!(
            ["gone.sw", "gone.vm", "state.json"].map(|name| dir.path().join(name).exists()),
            [false, true, true],
            "what is the VMs' or ours stays"
        );
    }
}
