//! `kimg up`: from built images to a cluster whose nodes are all Ready. What already is so is left alone.

use super::accel::{self, Accel};
use super::interrupt::Interrupt;
use super::qemu::{self, Bus, Disk, VmSpec};
use super::state::{self, State, Vm};
use super::{console, disk, qmp, releases, stock, switch};
use crate::client::kube::{self, NodeState};
use crate::client::node::NodeClient;
use crate::client::{Https, block_on};
use crate::config::{NodeSettings, Settings, VmSize};
use crate::input;
use crate::pki::kubeconfig::{kubeconfig, server_url};
use crate::pki::{Authority, Secrets, Subject, issue, secrets, successor};
use crate::progress::{Progress, Step};
use crate::roll::engine::Stop;
use crate::seed::token::{BootstrapToken, LIFE};
use crate::seed::{self, Begin};
use anyhow::{Context, Result, bail};
use node_api::{NodeStatus, path};
use node_metadata::{Role, STATUS_PORT};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An image to boot from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// The raw disk.
    pub path: PathBuf,
    /// Changes when the content does.
    pub id: String,
}

/// What `up` made.
#[derive(Debug)]
pub struct Up {
    /// The kubeconfig.
    pub kubeconfig: PathBuf,
    /// How instructions are run.
    pub accel: Accel,
    /// All nodes.
    pub nodes: Vec<NodeState>,
    /// NodePort to port on 127.0.0.1.
    pub node_ports: BTreeMap<u16, u16>,
    /// VMs that run from an older image than the built one.
    pub outdated: Vec<String>,
    /// From the start of the first VM to all Ready; nothing when all ran already.
    pub boot_time: Option<Duration>,
}

/// How long all nodes may take to be Ready with KVM; see [`Accel::patience`].
const READY_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(400);
/// How often a VM is started whose ports are taken in between.
const ATTEMPTS: u32 = 3;
/// How often a line says that it still waits, where there are no bars.
const SAY: Duration = Duration::from_secs(20);

/// Starts what does not run and waits until all nodes are Ready.
///
/// # Errors
/// [`Interrupted`] after Ctrl-C; what speaks against local VMs, as [`crate::config::ConfigError`]; and all that keeps a
/// VM from starting or a node from being Ready.
pub fn up(settings: &Settings, images: &BTreeMap<Role, ImageFile>, progress: &Progress) -> Result<Up> {
    up_but(settings, images, progress, &[], None)
}

/// The same with masters that share etcd and are not there yet, or not all: each joins those before it, one after the
/// other, and `joined` sees to it that it has.
///
/// # Errors
/// As [`up`].
pub fn up_by_masters(
    settings: &Settings,
    images: &BTreeMap<Role, ImageFile>,
    progress: &Progress,
    joined: &dyn Fn(&str) -> Result<()>,
) -> Result<Up> {
    let masters: Vec<&str> = settings.nodes_of(Role::Master).map(|node| node.entry.name.as_str()).collect();
    for number in 1..masters.len() {
        up_but(settings, images, progress, &masters[number..], None)?;
        joined(masters[number - 1])?;
    }
    let up = up_but(settings, images, progress, &[], None)?;
    masters.last().map_or(Ok(()), |last| joined(last))?;
    Ok(up)
}

/// Gives a master that waits for a backup its store; it is told whether the user wants an end.
pub type Restore<'a> = &'a dyn Fn(&dyn Fn() -> bool) -> Result<()>;

/// Whether nothing is left of the cluster's VMs, or of an earlier attempt only.
///
/// # Errors
/// Bad input: what is there, and what brings that back.
pub fn check_all_gone(settings: &Settings, state: &State) -> Result<()> {
    if state.vms.values().any(|vm| vm.awaits_backup) {
        return Ok(());
    }
    let dir = crate::hint::dir_flag(settings);
    let has_disk = |name: &String| settings.run_dir().join(name).join("disk.raw").exists();
    let (mut left, mut master) = (Vec::new(), false);
    for (name, vm) in state.vms.iter().filter(|(name, vm)| vm.running() || has_disk(name)) {
        master |= vm.role == Role::Master;
        left.push(name.as_str());
    }
    match (left.as_slice(), master) {
        ([], _) => Ok(()),
        (left, true) => input::bad(format!(
            "the cluster is not lost: there still is {}, and `kimg up{dir}` starts all of it; `kimg backup restore{dir}` puts a \
             backup in its place, `kimg down --delete{dir}` gives all of it up",
            left.join(", ")
        )),
        (left, false) => input::bad(format!(
            "only the master is lost, and there still is {}: `kimg heal master{dir}` brings it back while pods run on; \
             `kimg down --delete{dir}` gives the workers up too",
            left.join(", ")
        )),
    }
}

/// Notes that the master's disk is to be made anew, and to wait for a backup, before anything is made.
///
/// # Errors
/// As [`check_all_gone`].
pub fn begin_anew(settings: &Settings, images: &BTreeMap<Role, ImageFile>) -> Result<()> {
    let (run_dir, _lock) = state::lock(settings)?;
    let mut state = State::load(&run_dir)?;
    check_all_gone(settings, &state)?;
    for (number, master) in settings.nodes_of(Role::Master).enumerate() {
        let vm = state.vms.entry(master.entry.name.clone()).or_insert(new_master(images)?);
        // The first one has the store, and the others join it.
        (vm.awaits_backup, vm.joins_etcd) = (number == 0, number > 0);
        vm.new_disk = number > 0;
    }
    state.save(&run_dir)
}

/// A master of which there is nothing yet.
fn new_master(images: &BTreeMap<Role, ImageFile>) -> Result<Vm> {
    Ok(Vm::new(Role::Master, &images.get(&Role::Master).context("there is no master image")?.id))
}

/// Notes how the etcd of each of several masters begins, before any is started: all together, or by joining those that
/// were there before.
fn note_masters(settings: &Settings, images: &BTreeMap<Role, ImageFile>, state: &mut State) -> Result<()> {
    if !settings.has_several_masters() {
        return Ok(());
    }
    let joins_etcd = state.vms.values().any(|vm| vm.role == Role::Master);
    for master in settings.nodes_of(Role::Master) {
        if !state.vms.contains_key(&master.entry.name) {
            state.vms.insert(master.entry.name.clone(), Vm { joins_etcd, ..new_master(images)? });
        }
    }
    Ok(())
}

/// The same without the nodes `later`, and with a store for a master that waits for one.
///
/// # Errors
/// As [`up`], and where the store is not taken.
pub fn up_but(
    settings: &Settings,
    images: &BTreeMap<Role, ImageFile>,
    progress: &Progress,
    later: &[&str],
    restore: Option<Restore<'_>>,
) -> Result<Up> {
    let wanted: Vec<&NodeSettings> =
        settings.nodes.iter().filter(|node| !later.contains(&node.entry.name.as_str())).collect();
    let (run_dir, _lock) = state::lock(settings)?;
    let secrets = Secrets::ensure(&settings.secrets_dir(), &settings.name)?;
    let mut state = State::load(&run_dir)?;
    releases::check(settings, &state, images, &wanted)?;
    let accel = choose_accel(settings, images, &state, progress)?;
    state.accel = accel.as_str().to_string();
    let interrupt = Interrupt::watch()?;
    interrupt.busy(true);
    note_masters(settings, images, &mut state)?;
    switch::ensure(&run_dir, settings, &mut state)
        .map_err(|error| if interrupt.asked() { interrupted(settings, &state).into() } else { error })?;
    state.save(&run_dir)?;
    let state = Mutex::new(state);
    let started: BTreeSet<String> = {
        let state = lock(&state);
        let runs = |name: &String| state.vms.get(name).is_some_and(Vm::running);
        wanted.iter().map(|n| n.entry.name.clone()).filter(|name| !runs(name)).collect()
    };
    let start = Instant::now();
    let bars: BTreeMap<String, Step> = wanted
        .iter()
        .map(|n| (n.entry.name.clone(), progress.step(&format!("{}: looking at its VM", n.entry.name))))
        .collect();
    let starter =
        Starter { settings, secrets: &secrets, images, accel, run_dir: &run_dir, state: &state, interrupt: &interrupt };
    let all_started = std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = wanted
            .iter()
            .map(|node| {
                let (starter, bar) = (&starter, &bars[&node.entry.name]);
                scope.spawn(move || starter.ensure(node, bar))
            })
            .collect();
        // All are waited for, so that no VM starts after this function has failed.
        let results: Vec<Result<()>> = threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| bail!("a thread that started a VM failed")))
            .collect();
        results.into_iter().collect()
    });
    interrupt.busy(false);
    let mut state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if interrupt.asked() {
        // A VM that did not start says less: the same Ctrl-C may have ended it before it left the terminal's session.
        return Err(interrupted(settings, &state).into());
    }
    all_started?;
    let kubeconfig = write_kubeconfig(settings, &secrets)?;
    if let Some(restore) = restore {
        restore(&|| interrupt.asked()).map_err(|error| match error.is::<Stop>() {
            true => interrupted(settings, &state).into(),
            false => error,
        })?;
        state.vms.values_mut().for_each(|vm| vm.awaits_backup = false);
        state.save(&run_dir)?;
    }
    let limit = READY_LIMIT * accel.patience();
    progress.line(&format!("waiting until all nodes are Ready, up to {} s", limit.as_secs()));
    let waiter = Waiter {
        wanted: &wanted,
        secrets: &secrets,
        run_dir: &run_dir,
        state: &state,
        bars: &bars,
        started: &started,
        progress,
        said: Cell::new(Instant::now()),
        end: Instant::now() + limit,
    };
    let api = state::api_client(settings, &secrets, None)?;
    let nodes = block_on(async {
        tokio::select! {
            nodes = waiter.all_ready(&api) => nodes,
            () = interrupt.wait() => Err(interrupted(settings, &state).into()),
        }
    })?;
    let is_later = |name: &String| later.contains(&name.as_str());
    state.vms.iter_mut().filter(|(name, _)| !is_later(name)).for_each(|(_, vm)| vm.new_disk = false);
    state.save(&run_dir)?;
    let outdated = outdated(&state, images);
    let node_ports = state.vms.values().flat_map(|vm| vm.node_ports.clone()).collect();
    Ok(Up { kubeconfig, accel, nodes, node_ports, outdated, boot_time: (!started.is_empty()).then(|| start.elapsed()) })
}

/// Ctrl-C while the cluster was on its way; nothing is half made, and the next `up` goes on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);

fn interrupted(settings: &Settings, state: &State) -> Interrupted {
    let dir = crate::hint::dir_flag(settings);
    let running: Vec<&str> = state.vms.iter().filter(|(_, vm)| vm.running()).map(|(name, _)| name.as_str()).collect();
    Interrupted(match running.as_slice() {
        [] => format!("interrupted before a VM was started; `kimg up{dir}` goes on"),
        names => format!(
            "interrupted; the VMs go on running ({}): `kimg up{dir}` waits for them again, `kimg down{dir}` ends them",
            names.join(", ")
        ),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn outdated(state: &State, images: &BTreeMap<Role, ImageFile>) -> Vec<String> {
    state
        .vms
        .iter()
        .filter(|(_, vm)| images.get(&vm.role).is_some_and(|image| image.id != vm.image))
        .map(|(name, _)| name.clone())
        .collect()
}

/// VMs that run decide; a probe of KVM boots an image once on a host.
fn choose_accel(
    settings: &Settings,
    images: &BTreeMap<Role, ImageFile>,
    state: &State,
    progress: &Progress,
) -> Result<Accel> {
    if state.vms.values().any(Vm::running) && settings.local.accel.is_none() {
        return Ok(if state.accel == "kvm" { Accel::Kvm } else { Accel::Tcg });
    }
    let image = images.get(&Role::Master).context("there is no master image")?;
    let bar = progress.step("trying KVM");
    let accel = accel::choose(settings.local.accel.as_deref(), &image.path);
    bar.finish_and_clear();
    accel
}

/// Starts VMs, several at a time.
pub(super) struct Starter<'a> {
    pub(super) settings: &'a Settings,
    pub(super) secrets: &'a Secrets,
    pub(super) images: &'a BTreeMap<Role, ImageFile>,
    pub(super) accel: Accel,
    pub(super) run_dir: &'a Path,
    pub(super) state: &'a Mutex<State>,
    pub(super) interrupt: &'a Interrupt,
}

impl Starter<'_> {
    pub(super) fn ensure(&self, node: &NodeSettings, bar: &Step) -> Result<()> {
        let name = &node.entry.name;
        let known = lock(self.state).vms.get(name).cloned();
        if known.as_ref().is_some_and(Vm::running) {
            let dir = self.run_dir.join(name);
            let said = qmp::execute(&dir, "qmp.sock", "query-status", None);
            if let Err(error) = &said {
                // Whether it runs shows in whether its node becomes Ready.
                tracing::debug!("{name}: {error:#}");
            }
            // QEMU pauses a VM for which the disk here had no room, and never tries again by itself.
            if said.is_ok_and(|said| said["status"] == "io-error") {
                qmp::execute(&dir, "qmp.sock", "cont", None).with_context(|| format!("letting {name} run on"))?;
                eprintln!("kimg: {name} was paused, as the disk here was full, and runs on");
            }
            bar.set_message(format!("{name}: runs"));
            return Ok(());
        }
        let image = self
            .images
            .get(&node.entry.role)
            .with_context(|| format!("there is no {} image; run `kimg build all`", node.entry.role))?;
        if let Some(process) = state::running_in(self.run_dir, name) {
            bail!(
                "{name} runs (process {0}), and {1} does not know of it; end it first: kill {0}",
                process.pid,
                self.run_dir.join("state.json").display()
            );
        }
        stock::keep(self.run_dir, image)?;
        let dir = self.run_dir.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let size = self.size(node.entry.role);
        let disk_file = dir.join("disk.raw");
        let has_disk = disk_file.exists();
        let several = self.settings.has_several_masters();
        // One of several that never had a member has nothing to lose; a single one may have served since it was made.
        let empty = |vm: &Vm| vm.awaits_backup || several && vm.new_disk;
        let lost = |vm: &Vm| !has_disk && vm.role == Role::Master && !empty(vm);
        if known.as_ref().is_some_and(lost) {
            let dir = crate::hint::dir_flag(self.settings);
            if several {
                bail!(
                    "the disk of {name} is gone: `kimg heal {name}{dir}` makes it anew, and it joins the other masters; where \
                     theirs are gone too, `kimg down --delete{dir}` gives the cluster up, and `kimg restore{dir}` begins it \
                     with the newest copy"
                );
            }
            bail!(
                "the disk of {name} is gone, and the cluster's store with it; with an empty one the workers would end all \
                 pods. `kimg heal master{dir}` brings it back from a backup, `kimg down --delete{dir}` gives the cluster up"
            );
        }
        if !has_disk {
            disk::remove_leftovers(&dir)?;
            bar.set_message(format!("{name}: copying the image"));
            disk::copy(&image.path, &disk_file, size.disk_mib, |_| ())?;
        } else if known.as_ref().is_some_and(|vm| vm.image != image.id) {
            bar.set_message(format!("{name}: taking the new image, keeping its data"));
            disk::remove_leftovers(&dir)?;
            disk::replace_image(&image.path, &disk_file)
                .with_context(|| format!("{name} cannot take the new image; `kimg down --delete` removes its disk"))?;
        }
        if self.interrupt.asked() {
            return Ok(());
        }
        bar.set_message(format!("{name}: starting"));
        let mut vm = self.plan(node, known, image)?;
        vm.new_disk |= !has_disk;
        for attempt in 1.. {
            self.write_seed(node, &vm, &dir)?;
            let spec = self.spec(node, &vm, size)?;
            // Known before it is started: a token in a seed that nobody knows could never be honoured.
            self.record(name, &vm)?;
            let started = qemu::start(self.run_dir, &spec, |process| {
                vm.process = Some(process);
                self.record(name, &vm)
            });
            match started {
                // Somebody has taken a port since it was found free.
                Err(error) if error.is::<qemu::PortTaken>() && attempt < ATTEMPTS => {
                    vm = self.plan(node, Some(vm), image)?;
                }
                started => {
                    started?;
                    break;
                }
            }
        }
        bar.set_message(format!("{name}: boots"));
        Ok(())
    }

    fn record(&self, name: &str, vm: &Vm) -> Result<()> {
        let mut state = lock(self.state);
        state.vms.insert(name.to_string(), vm.clone());
        state.save(self.run_dir)
    }

    fn size(&self, role: Role) -> VmSize {
        match role {
            Role::Master => self.settings.local.master,
            Role::Worker => self.settings.local.worker,
        }
    }

    /// Ports as before where they are free.
    fn plan(&self, node: &NodeSettings, known: Option<Vm>, image: &ImageFile) -> Result<Vm> {
        let role = node.entry.role;
        let first_worker = self.settings.nodes_of(Role::Worker).next().map(|n| &n.entry.name);
        let takes_node_ports = first_worker == Some(&node.entry.name)
            || (first_worker.is_none() && self.settings.nodes.first().is_some_and(|n| n.entry.name == node.entry.name));
        // Two threads must not be given one port.
        let mut state = lock(self.state);
        let mut taken: BTreeSet<u16> = state
            .vms
            .iter()
            .filter(|(name, _)| **name != node.entry.name)
            .flat_map(|(_, vm)| {
                vm.api_port
                    .into_iter()
                    .chain(vm.status_port)
                    .chain([vm.node_port])
                    .chain(vm.node_ports.values().copied())
            })
            .collect();
        let mut port = |wanted: Option<u16>| -> Result<u16> {
            let mut port = state::free_port(wanted.filter(|p| !taken.contains(p)))?;
            while !taken.insert(port) {
                port = state::free_port(None)?;
            }
            Ok(port)
        };
        let mut node_ports = BTreeMap::new();
        if takes_node_ports {
            for wanted in &self.settings.local.node_ports {
                node_ports.insert(*wanted, port(Some(*wanted))?);
            }
        }
        let before = known.as_ref();
        let mut vm = Vm {
            role,
            process: None,
            api_port: match role {
                Role::Master => Some(port(before.and_then(|vm| vm.api_port))?),
                Role::Worker => None,
            },
            status_port: match role {
                Role::Master if self.settings.status_page => Some(port(before.and_then(|vm| vm.status_port))?),
                _ => None,
            },
            node_port: port(before.map(|vm| vm.node_port))?,
            node_ports,
            token: match role {
                Role::Master => None,
                Role::Worker => {
                    before.and_then(|vm| vm.token.clone()).or_else(|| Some(BootstrapToken::random().to_string()))
                }
            },
            awaits_backup: before.is_some_and(|vm| vm.awaits_backup),
            joins_etcd: before.is_some_and(|vm| vm.joins_etcd),
            new_disk: before.is_some_and(|vm| vm.new_disk),
            image: before.map_or_else(|| image.id.clone(), |vm| vm.image.clone()),
            previous: before.and_then(|vm| vm.previous.clone()),
        };
        vm.turn_to(&image.id);
        state.vms.insert(node.entry.name.clone(), vm.clone());
        Ok(vm)
    }

    fn write_seed(&self, node: &NodeSettings, vm: &Vm, dir: &Path) -> Result<()> {
        let token = vm.token.as_deref().and_then(BootstrapToken::parse);
        let begin = match vm {
            Vm { awaits_backup: true, .. } => Begin::AwaitBackup,
            // The last one that is left has nobody to join.
            Vm { joins_etcd: true, .. } if self.settings.has_several_masters() => Begin::JoinEtcd,
            _ => Begin::Join(token.as_ref()),
        };
        let volume = seed::local_drive(self.settings, node, begin, self.secrets)?;
        secrets::write_private(&dir.join("seed.img"), &volume)
    }

    fn spec(&self, node: &NodeSettings, vm: &Vm, size: VmSize) -> Result<VmSpec> {
        let name = &node.entry.name;
        let mut forwards = vec![(vm.node_port, node_api::PORT)];
        forwards.extend(vm.api_port.map(|port| (port, 6443)));
        forwards.extend(vm.status_port.map(|port| (port, STATUS_PORT)));
        forwards.extend(vm.node_ports.iter().map(|(guest, host)| (*host, *guest)));
        let uefi = if self.settings.local.uefi { Some(qemu::uefi_of(self.run_dir, name)?) } else { None };
        Ok(VmSpec {
            title: format!("kimg-{}-{name}", self.settings.name),
            node: name.clone(),
            memory_mib: size.memory_mib,
            cpus: size.cpus,
            accel: self.accel,
            uefi,
            bus: Bus::default(),
            disk: Disk::default(),
            earlier_disks: Vec::new(),
            macs: [seed::mac(&self.settings.name, name, 0), seed::mac(&self.settings.name, name, 1)],
            forwards,
        })
    }
}

/// Writes `<cluster>/kubeconfig` with the port of the local master.
pub(crate) fn write_kubeconfig(settings: &Settings, secrets: &Secrets) -> Result<PathBuf> {
    let port = state::api_port(settings).context("no master VM runs; see its console under run/")?;
    let ca = successor::bundle(secrets, Authority::Cluster)?;
    let client = issue::admin(secrets)?;
    let text = kubeconfig(&settings.name, &server_url("127.0.0.1", port), &ca, &Subject::admin().user, &client);
    let path = settings.dir.join("kubeconfig");
    secrets::write_private(&path, text.as_bytes())?;
    Ok(path)
}

/// Waits for the cluster.
struct Waiter<'a> {
    wanted: &'a [&'a NodeSettings],
    secrets: &'a Secrets,
    run_dir: &'a Path,
    state: &'a State,
    bars: &'a BTreeMap<String, Step>,
    progress: &'a Progress,
    /// When the last line about waiting was written.
    said: Cell<Instant>,
    /// VMs that were started now: what the API server knows of them may be from before.
    started: &'a BTreeSet<String>,
    end: Instant,
}

impl Waiter<'_> {
    async fn all_ready(&self, api: &Https) -> Result<Vec<NodeState>> {
        let mut last_error = match self.api_ready(api).await {
            Ok(()) => String::new(),
            Err(error) => return Err(error),
        };
        let mut tokens_made = None;
        let mut confirmed = BTreeSet::new();
        loop {
            match self.step(api, &mut tokens_made, &mut confirmed).await {
                Ok(Some(nodes)) => {
                    for token in tokens_made.iter().flatten() {
                        kube::delete_token(api, token).await?;
                    }
                    return Ok(nodes);
                }
                Ok(None) => {}
                Err(error) => last_error = format!("{error:#}"),
            }
            self.check(&last_error)?;
            tokio::time::sleep(POLL).await;
        }
    }

    async fn api_ready(&self, api: &Https) -> Result<()> {
        loop {
            match kube::ready(api).await {
                Ok(()) => return Ok(()),
                Err(error) => self.check(&format!("{error:#}"))?,
            }
            self.show(&[], &BTreeSet::new());
            tokio::time::sleep(POLL).await;
        }
    }

    /// One look: tokens for those that have not joined, then who is Ready.
    async fn step(
        &self,
        api: &Https,
        tokens_made: &mut Option<Vec<BootstrapToken>>,
        confirmed: &mut BTreeSet<String>,
    ) -> Result<Option<Vec<NodeState>>> {
        let nodes = kube::nodes(api).await?;
        if tokens_made.is_none() {
            let mut made = Vec::new();
            for (name, vm) in &self.state.vms {
                let joined = nodes.iter().any(|n| n.name == *name);
                let token = vm.token.as_deref().and_then(BootstrapToken::parse);
                // One whose disk is new takes the place of the one that the API server knows.
                if let (true, Some(token)) = (!joined || vm.new_disk, token) {
                    kube::create_token(api, &token, name, joined, LIFE).await?;
                    made.push(token);
                }
            }
            *tokens_made = Some(made);
        }
        for node in nodes.iter().filter(|n| n.ready) {
            if !confirmed.contains(&node.name) && self.reported_from_this_boot(node).await {
                confirmed.insert(node.name.clone());
            }
        }
        self.show(&nodes, confirmed);
        Ok(self.wanted.iter().all(|n| confirmed.contains(&n.entry.name)).then_some(nodes))
    }

    /// A node that was Ready before its VM was started is so in the API until somebody misses it.
    async fn reported_from_this_boot(&self, node: &NodeState) -> bool {
        let Some(vm) = self.state.vms.get(&node.name).filter(|_| self.started.contains(&node.name)) else {
            return true;
        };
        let fingerprint = console::fingerprint(&self.console(&node.name));
        let target = format!("127.0.0.1:{}", vm.node_port);
        let Ok(client) = NodeClient::new(self.secrets, &node.name, target, fingerprint.as_deref()) else {
            return false;
        };
        match client.get::<NodeStatus>(path::STATUS).await {
            Ok(status) => status.boot_id == node.boot_id,
            // Not listening yet, or not with its certificate: asked again in a moment.
            Err(_) => false,
        }
    }

    fn show(&self, nodes: &[NodeState], confirmed: &BTreeSet<String>) {
        if self.said.get().elapsed() > SAY {
            let missing: Vec<&str> =
                self.bars.keys().filter(|name| !confirmed.contains(*name)).map(String::as_str).collect();
            let left = self.end.saturating_duration_since(Instant::now()).as_secs();
            let missing = if missing.is_empty() { "the nodes".into() } else { missing.join(", ") };
            self.progress.line(&format!("waiting for {missing}, {left} s at most"));
            self.said.set(Instant::now());
        }
        for (name, bar) in self.bars {
            if bar.is_finished() {
                continue;
            }
            match nodes.iter().find(|n| n.name == *name) {
                Some(node) if confirmed.contains(&node.name) => bar.finish_with_message(format!("{name}: Ready")),
                Some(node) if !node.ready => bar.set_message(format!("{name}: joined, not ready: {}", node.reason)),
                _ => {
                    let line = console::last_lines(&self.console(name), 1).pop().unwrap_or_default();
                    bar.detail(format!("{name}: {line}"));
                }
            }
        }
    }

    fn console(&self, name: &str) -> PathBuf {
        self.run_dir.join(name).join("console.log")
    }

    /// Fails when a VM has ended or the time is over, with what the consoles say.
    fn check(&self, why: &str) -> Result<()> {
        for (name, vm) in &self.state.vms {
            if self.wanted.iter().any(|n| n.entry.name == *name) && !vm.running() {
                bail!("the VM {name} has ended; its console said last:\n{}", self.said(name));
            }
        }
        if Instant::now() < self.end {
            return Ok(());
        }
        let consoles: Vec<String> = self
            .wanted
            .iter()
            .map(|n| {
                format!("{} ({}):\n{}", n.entry.name, self.console(&n.entry.name).display(), self.said(&n.entry.name))
            })
            .collect();
        let why = if why.is_empty() { "not every node is Ready" } else { why };
        bail!(
            "the cluster did not become ready in time: {why}\nThe VMs go on running; `kimg up` waits for them again, `kimg down` ends them.\n\n{}",
            consoles.join("\n")
        )
    }

    fn said(&self, name: &str) -> String {
        // A whole status screen: what keeps a node from joining stands at its top.
        let lines = console::last_lines(&self.console(name), 24);
        if lines.is_empty() {
            return "  (nothing on its console yet)".into();
        }
        lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::process::Process;

    #[test]
    fn only_what_is_gone_begins_anew() {
        let dir = tempfile::tempdir().expect("dir");
        let text =
            "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }, { name = \"w\", role = \"worker\" }]\n";
        let settings = crate::config::parse(Path::new("c"), text, dir.path()).expect("valid");
        let images = [(Role::Master, ImageFile { path: "x".into(), id: "i".into() })].into();
        check_all_gone(&settings, &State::default()).expect("nothing is there");
        begin_anew(&settings, &images).expect("noted");
        let mut state = State::load(&settings.run_dir()).expect("state");
        assert!(state.vms["m"].awaits_backup);
        // It may be begun again.
        begin_anew(&settings, &images).expect("noted");
        let master = state.vms.get_mut("m").expect("the master");
        master.awaits_backup = false;
        let worker = Vm { role: Role::Worker, ..master.clone() };
        state.vms.insert("w".into(), worker);
        check_all_gone(&settings, &state).expect("their disks are gone");
        for (name, way) in [("w", "kimg heal master"), ("m", "kimg up")] {
            std::fs::create_dir_all(settings.run_dir().join(name)).expect("folder");
            std::fs::write(settings.run_dir().join(name).join("disk.raw"), "").expect("disk");
            let error = check_all_gone(&settings, &state).expect_err("it is there");
            assert!(error.is::<input::BadInput>() && error.to_string().contains(way), "{error}");
            state.save(&settings.run_dir()).expect("saved");
            assert!(begin_anew(&settings, &images).is_err());
        }
    }

    #[test]
    fn masters_begin_together_or_join_those_that_were_there() {
        let dir = tempfile::tempdir().expect("dir");
        let master = |n: u8| format!("{{ name = \"m{n}\", role = \"master\", addresses = [\"10.77.0.{n}\"] }}");
        let settings = |count: u8| {
            let masters: Vec<String> = (1..=count).map(master).collect();
            let text = format!("name = \"demo\"\nstore = \"etcd\"\nnodes = [{}]\n", masters.join(", "));
            crate::config::parse(Path::new("c"), &text, dir.path()).expect("valid")
        };
        let images = [(Role::Master, ImageFile { path: "x".into(), id: "i".into() })].into();
        let noted = |settings: &Settings, state: &mut State| {
            note_masters(settings, &images, state).expect("noted");
            state.vms.values().map(|vm| vm.joins_etcd).collect::<Vec<_>>()
        };
        let mut state = State::default();
        assert_eq!(noted(&settings(3), &mut state), [false; 3]);
        // Interrupted, they still begin together.
        assert_eq!(noted(&settings(3), &mut state), [false; 3]);
        assert!(state.vms.values().all(|vm| vm.new_disk));
        assert_eq!(noted(&settings(5), &mut state), [false, false, false, true, true]);
        let mut state = State::default();
        assert!(noted(&settings(1), &mut state).is_empty(), "one begins as ever");
        state.vms.insert("m1".into(), new_master(&images).expect("a VM"));
        assert_eq!(noted(&settings(3), &mut state), [false, true, true]);
        // With a store that comes from a copy, the first has it.
        begin_anew(&settings(3), &images).expect("noted");
        let state = State::load(&settings(3).run_dir()).expect("state");
        let how: Vec<_> = state.vms.values().map(|vm| (vm.awaits_backup, vm.joins_etcd)).collect();
        assert_eq!(how, [(true, false), (false, true), (false, true)]);
    }

    #[test]
    fn an_interruption_says_what_goes_on() {
        let text = "name = \"demo\"\nnodes = [{ name = \"m\", role = \"master\" }]\n";
        let settings = crate::config::parse(Path::new("c"), text, Path::new("/nowhere")).expect("valid");
        let mut state = State::default();
        let said = interrupted(&settings, &state).to_string();
        assert_eq!(said, "interrupted before a VM was started; `kimg up --dir /nowhere` goes on");
        let process = Process::find(std::process::id() as i32);
        let vm = Vm { process, ..Vm::new(Role::Master, "") };
        state.vms.insert("m".into(), vm);
        let said = interrupted(&settings, &state).to_string();
        assert!(said.contains("go on running (m)") && said.contains("`kimg down --dir /nowhere` ends them"), "{said}");
    }
}
