//! The whole control plane left alone: its CPU and its memory.

use crate::figures::{Figures, say};
use crate::process::Process;
use anyhow::{Context, Result};
use qemu_tests::apiserver::{self, Apiserver};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Until leases are taken and caches filled.
const SETTLE: Duration = Duration::from_secs(8);
const WATCHED: Duration = Duration::from_secs(20);

/// A component that ends with this.
pub struct Component(Child);

impl Component {
    pub fn start(server: &Apiserver, name: &str, port: u16, flags: &[String]) -> Result<Component> {
        let child = Command::new(apiserver::program()?)
            .args([name, "--leader-elect=true"])
            .arg(format!("--kubeconfig={}", server.kubeconfig().display()))
            .arg(format!("--secure-port={port}"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Component(child))
    }

    pub fn process(&self) -> Process {
        Process(self.0.id())
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("ending a component: {error}");
        }
    }
}

pub fn run(figures: &mut Figures) -> Result<()> {
    let server = Apiserver::start(&["--log-level=warn"])?;
    let names = ["kube-controller-manager", "kube-scheduler"];
    let components: Vec<Component> = names
        .iter()
        .zip([21_257, 21_259])
        .map(|(name, port)| Component::start(&server, name, port, &[]))
        .collect::<Result<_>>()?;
    std::thread::sleep(SETTLE);
    let mut all = vec![("kube-apiserver", Process(server.pid().context("the API server does not run")?))];
    all.extend(names.iter().zip(&components).map(|(name, c)| (*name, c.process())));
    let before: Vec<_> = all.iter().map(|(_, p)| p.usage()).collect::<Result<_>>()?;
    std::thread::sleep(WATCHED);
    let (mut cpu, mut memory) = (0.0, 0.0);
    for ((name, process), before) in all.iter().zip(before) {
        let used = process.usage().with_context(|| format!("{name} has ended"))?.cpu.saturating_sub(before.cpu);
        let percent = 100.0 * used.as_secs_f64() / WATCHED.as_secs_f64();
        let mib = process.pss_kib()? as f64 / 1024.0;
        figures.put(format!("idle.{name}.cpu_percent"), percent);
        figures.put(format!("idle.{name}.memory_mib"), mib);
        cpu += percent;
        memory += mib;
    }
    figures.put("idle.cpu_percent", cpu);
    figures.put("idle.memory_mib", memory);
    say("");
    figures.against("idle.cpu_percent", 0.3, "%");
    // A tenth of the peer's four processes.
    figures.against("idle.memory_mib", 45.7, "MiB");
    Ok(())
}
