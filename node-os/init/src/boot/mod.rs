//! PID 1 on the root: the way from the first mount to running services, and then the watch over them.
//!
//! ```text
//! mounts → CONFIG → firewall → modules → metadata ⇄ network → STATE → secrets → clock → services
//! ```
//! Nothing here ends the process: a step that cannot go on waits with a sentence on the console.

pub mod clock;
mod endpoints;
pub(crate) mod metadata;
mod power;
mod secrets;
mod shutdown;

use crate::disk::{CONFIG_PARTITION, config, data, scan::Disk, state};
use crate::handover::{self, Handover};
use crate::logs::Logs;
use crate::machine::{Command, Machine, Shared, Wait, now_ms};
use crate::network::Network;
use crate::services::core::Event;
use crate::services::runtime::Supervisor;
use crate::services::table::{self, Facts};
use crate::{api, console, firewall, kernel_log, kernel_modules, kernel_settings, mounts, tracing_setup};
use anyhow::{Context, Result};
use node_metadata::{Cluster, Node};
use node_sys::process;
use std::cell::RefCell;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Public part of CONFIG.
pub const CONFIG_FOLDER: &str = "/run/kimg/config";
/// Private part of CONFIG.
pub const SECRETS_FOLDER: &str = "/run/kimg/secrets";
const LOG_FOLDER: &str = "/var/log/kimg";
const RETRY: Duration = Duration::from_secs(10);
/// After so long without a way out of this error the machine starts again.
const HOPELESS: Duration = Duration::from_secs(120);

/// Entry point of PID 1.
pub fn main() -> ExitCode {
    let faults = mounts::set_up();
    tracing_setup::start();
    for fault in faults {
        tracing::error!("{fault}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        // Metadata is parsed on these; only what is used of a stack takes memory.
        .thread_stack_size(node_metadata::STACK_BYTES)
        .build();
    match runtime {
        Ok(runtime) => {
            let local = tokio::task::LocalSet::new();
            runtime.block_on(local.run_until(run()));
        }
        Err(error) => console::print(&format!("kimg: cannot start PID 1's event loop: {error}\n")),
    }
    // Only a refused restart leads here; PID 1 must not end.
    loop {
        std::thread::sleep(HOPELESS);
        if let Err(error) = node_sys::machine::end(node_sys::machine::Ending::Reboot) {
            console::print(&format!("kimg: the kernel refuses to restart: {error}. Reset the machine.\n"));
        }
    }
}

async fn run() {
    let (machine, commands) = Machine::new(Logs::default());
    tokio::task::spawn_local(console::run(machine.clone()));
    let supervisor: Running = Rc::new(RefCell::new(None));
    tokio::task::spawn_local(boot(machine.clone(), supervisor.clone()));
    watch(machine, commands, supervisor).await;
}

/// The supervisor, once there is one.
type Running = Rc<RefCell<Option<Rc<Supervisor>>>>;

/// Takes commands until the machine ends.
async fn watch(machine: Shared, mut commands: mpsc::UnboundedReceiver<Command>, supervisor: Running) {
    power::listen(&machine);
    loop {
        match commands.recv().await {
            Some(Command::End(ending)) => {
                let supervisor = supervisor.borrow().clone();
                shutdown::end(&machine, supervisor, ending).await;
                return;
            }
            Some(Command::Restart(name)) => {
                if let Some(supervisor) = supervisor.borrow().as_ref() {
                    supervisor.tell(Event::Restart(name));
                }
            }
            Some(Command::Unseal(key)) => {
                *machine.seal_key.borrow_mut() = Some(key);
                machine.look_again.notify_waiters();
            }
            None => return,
        }
    }
}

async fn boot(machine: Shared, running: Running) {
    if let Err(error) = steps(&machine, &running).await {
        let why = format!("{error:#}");
        machine.waits(
            "boot",
            Wait { waits_for: "help", why: &why, hint: "reboot the machine, or write the image to its disk again" },
        );
    }
}

async fn steps(machine: &Shared, running: &Running) -> Result<()> {
    let handover = handover::read()?;
    stage1_steps(machine, &handover);
    let disk = Disk { name: handover.disk.clone() };
    let cluster = read_config(machine, &disk).await;
    introduce(machine, &cluster);

    // STATE is checked and mounted while the metadata is read.
    machine.begin("state");
    let state_disk = disk.clone();
    let state = tokio::task::spawn_blocking(move || state::prepare(&state_disk));

    close_firewall(machine, &cluster).await;
    let modules = load_modules(machine, &cluster);
    let network = Network::open().await?;
    let search = metadata::Search::new(machine.clone(), network.clone(), cluster.clone(), handover.disk.clone());
    machine.stage("state");
    let state_fault = state_result(machine, state.await);
    api::start(machine.clone(), network.clone(), state_fault.is_none())?;
    tokio::task::spawn_local(reap(running.clone()));

    let (node, seal_key) = search.run().await;
    if let Some(fault) = state_fault {
        let hint = "attach a disk to which this image was written unchanged, and reboot";
        machine.waits("state", Wait { waits_for: "the STATE partition", why: &fault, hint });
        return Ok(());
    }
    if let Err(error) = firewall::admit(&cluster, &node) {
        machine.warn(format!("{error:#}"));
    }
    if node.await_masters
        && let Err(error) = api::masters::admit()
    {
        machine.warn(format!("{error:#}"));
    }
    secrets::open(machine, &cluster, seal_key).await;
    clock::set(machine, &cluster).await;
    modules_result(machine, modules).await;
    if let Some(gb) = node.data_volume {
        data::mounted(machine, &cluster.name, &node, gb, &handover.disk).await;
    }
    let node = endpoints::resolve(machine, &node).await;
    start_services(machine, running, &cluster, &node);
    tokio::task::spawn_local(search.follow_token());
    Ok(())
}

fn stage1_steps(machine: &Shared, handover: &Handover) {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    machine.set_init_time(ms(handover.stage1_start));
    machine.step_at("find root", ms(handover.stage1_start), Some(ms(handover.root_found)));
    machine.step_at("open root", ms(handover.root_found), Some(ms(handover.root_ready)));
    machine.step_at("mounts", ms(handover.root_ready), Some(now_ms()));
}

/// CONFIG of the disk that carries the root. Without it there is no node: it is tried for ever.
async fn read_config(machine: &Shared, disk: &Disk) -> Cluster {
    machine.begin("config");
    loop {
        match try_config(disk) {
            Ok(cluster) => {
                machine.end("config", "");
                return cluster;
            }
            Err(error) => {
                let why = format!("{error:#}");
                machine.waits(
                    "config",
                    Wait { waits_for: "the CONFIG partition", why: &why, hint: "write the image to the disk again" },
                );
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn try_config(disk: &Disk) -> Result<Cluster> {
    let tar = config::read(&disk.partition(CONFIG_PARTITION))?;
    config::unpack(&tar, Path::new(CONFIG_FOLDER), Path::new(SECRETS_FOLDER))?;
    let path = Path::new(CONFIG_FOLDER).join("cluster.json");
    let text = std::fs::read(&path).with_context(|| format!("CONFIG has no {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is of another version of kimg", path.display()))
}

fn introduce(machine: &Shared, cluster: &Cluster) {
    machine.update(|status| {
        status.role = cluster.role.to_string();
        status.cluster = cluster.name.clone();
        status.states = Some(node_api::Release::this());
        status.image = format!("kimg {} {}", cluster.build.version, cluster.build.root_hash.get(..12).unwrap_or(""));
        status.kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        status.boot_id = id.trim().to_owned();
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        status.memory_total = crate::api::proc::meminfo(&memory, "MemTotal");
    });
}

/// No interface comes up before the firewall is closed: a fault here is waited out.
async fn close_firewall(machine: &Shared, cluster: &Cluster) {
    machine.begin("firewall");
    if let Ok(mut index) = kernel_modules::Index::read() {
        for fault in index.load(kernel_modules::FIREWALL) {
            tracing::warn!("{fault}");
        }
    }
    while let Err(error) = firewall::close(cluster) {
        let why = format!("{error:#}");
        machine.waits(
            "firewall",
            Wait {
                waits_for: "the host firewall",
                why: &why,
                hint: "this image may lack a kernel module; build it again",
            },
        );
        tokio::time::sleep(RETRY).await;
    }
    for fault in kernel_settings::apply() {
        machine.warn(fault);
    }
    machine.end("firewall", "");
    machine.stage("drivers");
}

/// Drivers of the devices that are there; what the services need is loaded while the network comes up.
fn load_modules(machine: &Shared, cluster: &Cluster) -> tokio::task::JoinHandle<Vec<String>> {
    machine.begin("drivers");
    let mut faults = Vec::new();
    match kernel_modules::Index::read() {
        Ok(mut index) => {
            let names = kernel_modules::for_devices(&index);
            faults = index.load(&names.iter().map(String::as_str).collect::<Vec<_>>());
            machine.end("drivers", &names.join(" "));
        }
        Err(error) => faults.push(format!("{error:#}")),
    }
    for fault in faults {
        machine.warn(fault);
    }
    let role = cluster.role;
    tokio::task::spawn_blocking(move || match kernel_modules::Index::read() {
        Ok(mut index) => index.load(&kernel_modules::for_role(role)),
        Err(error) => vec![format!("{error:#}")],
    })
}

async fn modules_result(machine: &Shared, modules: tokio::task::JoinHandle<Vec<String>>) {
    machine.begin("modules");
    for fault in modules.await.unwrap_or_else(|error| vec![format!("loading modules was interrupted: {error}")]) {
        machine.warn(fault);
    }
    machine.end("modules", "");
}

fn state_result(
    machine: &Shared,
    result: std::result::Result<Result<String>, tokio::task::JoinError>,
) -> Option<String> {
    let outcome = match result {
        Ok(outcome) => outcome,
        Err(error) => Err(anyhow::anyhow!("the preparation of STATE was interrupted: {error}")),
    };
    match outcome {
        Ok(note) => {
            machine.end("state", &note);
            if let Err(error) = machine.logs.keep_in(LOG_FOLDER.into()) {
                machine.warn(format!("logs cannot be kept in {LOG_FOLDER}: {error}"));
            }
            None
        }
        Err(error) => Some(format!("{error:#}")),
    }
}

fn start_services(machine: &Shared, running: &Running, cluster: &Cluster, node: &Node) {
    machine.stage("services");
    if cluster.logs.is_some() {
        tokio::task::spawn_local(kernel_log::keep(machine.logs.clone()));
    }
    let specs = table::services(Facts { cluster, node });
    let (supervisor, events) = Supervisor::new(specs, machine.clone());
    *running.borrow_mut() = Some(supervisor.clone());
    tokio::task::spawn_local(supervisor.run(events));
}

/// Takes ended children off the kernel's list: services, and orphans. Whoever runs a program meanwhile uses
/// [`process::run`].
async fn reap(running: Running) {
    let mut children = match signal(SignalKind::child()) {
        Ok(children) => children,
        Err(error) => return tracing::error!("ended processes cannot be noticed: {error}"),
    };
    loop {
        loop {
            match process::reap() {
                Ok(Some((pid, ending))) => {
                    if let Some(supervisor) = running.borrow().as_ref() {
                        supervisor.tell(Event::Ended(pid, ending));
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!("cannot wait for ended processes: {error}");
                    break;
                }
            }
        }
        // A signal that is merged with another must not leave a process unnoticed for long.
        let _ = tokio::time::timeout(Duration::from_secs(5), children.recv()).await;
    }
}
