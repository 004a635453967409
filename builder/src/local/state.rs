//! `run/state.json`: what runs on this machine for a cluster. Written whole or not at all, read by every command.

use super::process::Process;
use super::qemu;
use crate::cache;
use crate::client::{Https, tls};
use crate::cloud::cluster;
use crate::config::{self, SecretsForm, Settings};
use crate::input::{self, BadInput};
use crate::pki::{Authority, ClientCertificate, Secrets, issue, secrets, successor};
use anyhow::{Context, Result, bail};
use node_metadata::Role;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

/// A VM takes a few hundred bytes.
const MOST_BYTES: u64 = 16 << 20;

/// Everything that runs, or ran and may run again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// `kvm` or `tcg`, of the VMs that run.
    #[serde(default)]
    pub accel: String,
    /// The switch.
    #[serde(default)]
    pub switch: Option<Process>,
    /// The VMs by node name.
    #[serde(default)]
    pub vms: BTreeMap<String, Vm>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its role.
    pub role: Role,
    /// QEMU.
    pub process: Option<Process>,
    /// Port on 127.0.0.1 that leads to the API server (masters).
    pub api_port: Option<u16>,
    /// Port on 127.0.0.1 that leads to the status page (masters, where there is one).
    #[serde(default)]
    pub status_port: Option<u16>,
    /// Port on 127.0.0.1 that leads to the node API.
    pub node_port: u16,
    /// NodePort in the cluster to port on 127.0.0.1.
    #[serde(default)]
    pub node_ports: BTreeMap<u16, u16>,
    /// The bootstrap token in its seed (workers).
    #[serde(default)]
    pub token: Option<String>,
    /// Its disk was made for a backup that has not been restored yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub awaits_backup: bool,
    /// Where its etcd has no data, it joins those of the other masters, and begins no cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joins_etcd: bool,
    /// Its disk was made anew, and nobody has seen it Ready since: it has no certificate yet, and the API server may know
    /// its name from before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_disk: bool,
    /// Identity of the image that its disk was made from.
    pub image: String,
    /// The image before this one: the way back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
}

impl Vm {
    /// One of which there is nothing yet.
    pub fn new(role: Role, image: &str) -> Vm {
        Vm {
            role,
            process: None,
            api_port: None,
            status_port: None,
            node_port: 0,
            node_ports: BTreeMap::new(),
            token: None,
            awaits_backup: false,
            joins_etcd: false,
            new_disk: true,
            image: image.to_owned(),
            previous: None,
        }
    }

    /// Whether QEMU runs.
    pub fn running(&self) -> bool {
        self.process.is_some_and(Process::alive)
    }

    /// Its disk is made from this image now.
    pub fn turn_to(&mut self, image: &str) {
        if self.image != image {
            self.previous = Some(std::mem::replace(&mut self.image, image.to_string()));
        }
    }
}

impl State {
    /// The ports on 127.0.0.1 that lead to API servers, and whether the VM of each runs: those come first.
    pub fn api_ports(&self) -> Vec<(u16, bool)> {
        let mut ports: Vec<(u16, bool)> =
            self.vms.values().filter_map(|vm| Some((vm.api_port?, vm.running()))).collect();
        ports.sort_by_key(|(_, running)| !running);
        ports
    }

    /// Reads the state; a cluster that never ran has none.
    pub fn load(run_dir: &Path) -> Result<State> {
        let path = run_dir.join("state.json");
        if !input::is_there(&path)? {
            return Ok(State::default());
        }
        let text = input::bytes(&path, MOST_BYTES)?;
        let read: Option<State> = serde_json::from_slice(&text).ok();
        // Each is the name of a folder that is made and removed.
        let is_name = |name: &String| config::is_dns_label(name) && name != config::RESERVED_NAME;
        match read.filter(|state| state.vms.keys().all(is_name)) {
            Some(mut state) => {
                for (name, vm) in state.vms.iter_mut().filter(|(_, vm)| !vm.running()) {
                    vm.process = running_in(run_dir, name).or(vm.process);
                }
                Ok(state)
            }
            None => input::bad(format!(
                "{} is not as kimg writes it; end leftover VMs by hand and remove this file alone: the folders beside it \
                 hold the nodes' disks, with which `kimg up` starts them again",
                path.display()
            )),
        }
    }

    /// Writes the state.
    pub fn save(&self, run_dir: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).context("writing the state")?;
        secrets::write_private(&run_dir.join("state.json"), &json)
    }
}

/// The QEMU that runs in a node's folder, as its PID file says it: a disk never has two, whatever [`State`] knows.
pub fn running_in(run_dir: &Path, node: &str) -> Option<Process> {
    let pid = std::fs::read_to_string(run_dir.join(node).join("pid")).ok()?.trim().parse().ok()?;
    let process = Process::find(pid)?;
    let proc = Path::new("/proc").join(pid.to_string());
    // The number may be somebody else's by now.
    let here = std::fs::read_link(proc.join("cwd")).ok()? == run_dir.canonicalize().ok()?;
    let words = std::fs::read(proc.join("cmdline")).ok()?;
    let file = format!("{node}/pid");
    (here && words.split(|byte| *byte == 0).any(|word| word == file.as_bytes())).then_some(process)
}

/// Notes that a master has its store again: from now on it starts like any other. Nothing, where it did not wait for one.
pub fn backup_has_come(settings: &Settings, node: &str) -> Result<()> {
    if !State::load(&settings.run_dir())?.vms.get(node).is_some_and(|vm| vm.awaits_backup) {
        return Ok(());
    }
    let (run_dir, _lock) = lock(settings)?;
    let mut state = State::load(&run_dir)?;
    if let Some(vm) = state.vms.get_mut(node) {
        vm.awaits_backup = false;
    }
    state.save(&run_dir)
}

/// The VMs and the switch whose `run/` was removed: beside them a second cluster would have their names. Others may stay in
/// a folder that is gone, as shells do.
fn ghosts(dir: &Path) -> Vec<String> {
    let Ok(here) = dir.canonicalize() else { return Vec::new() };
    let gone = PathBuf::from(format!("{}/run (deleted)", here.display()));
    let is_ours = |words: Vec<u8>| {
        let mut words = words.split(|byte| *byte == 0);
        words.next().is_some_and(|program| program.ends_with(qemu::PROGRAM.as_bytes()))
            || words.any(|word| word == b"switch")
    };
    let is_one = |entry: &std::fs::DirEntry| {
        let proc = entry.path();
        std::fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd == gone)
            && std::fs::read(proc.join("cmdline")).is_ok_and(is_ours)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes.filter(is_one).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Looks whether VMs run whose `run/` was removed.
///
/// # Errors
/// They do, and what to do.
pub fn check_no_ghosts(settings: &Settings) -> Result<()> {
    let ghosts = ghosts(&settings.dir);
    if ghosts.is_empty() {
        return Ok(());
    }
    let pids = ghosts.join(" ");
    bail!(
        "{0} was removed while the cluster's VMs ran, and they go on without disks that anybody could start again; copy from \
         them what you need, end them (kill {pids}), and `kimg restore` brings the cluster back from a copy",
        settings.run_dir().display()
    )
}

/// Makes `run/` and holds it: two `up` or `down` at a time would start everything twice.
pub fn lock(settings: &Settings) -> Result<(PathBuf, std::fs::File)> {
    let run_dir = settings.run_dir();
    cache::private_dir(&run_dir)?;
    check_no_ghosts(settings)?;
    let path = run_dir.join(".lock");
    let file = cache::open_private(&path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok((run_dir, file)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("another `kimg up` or `kimg down` works on this cluster; wait for its end")
        }
        Err(error) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// The port on 127.0.0.1 that leads to the first running master, if there is one.
pub fn api_port(settings: &Settings) -> Option<u16> {
    let state = State::load(&settings.run_dir()).ok()?;
    state.api_ports().first().filter(|(_, running)| *running).map(|(port, _)| *port)
}

/// The port on 127.0.0.1 that leads to the running master's status page, if there is one.
pub fn status_port(settings: &Settings) -> Option<u16> {
    let state = State::load(&settings.run_dir()).ok()?;
    state.vms.values().find(|vm| vm.running() && vm.status_port.is_some())?.status_port
}

/// Why nothing answers where the cluster's VMs belong on this machine and do not run, with the way out: of one node's
/// VM, or of the masters'. None where one runs, and where the machines are elsewhere.
pub fn stopped(settings: &Settings, state: &State, node: Option<&str>) -> Option<String> {
    let asked = |name: &String, vm: &Vm| node.map_or(vm.role == Role::Master, |node| node == name);
    let vms: Vec<&Vm> = state.vms.iter().filter(|(name, vm)| asked(name, vm)).map(|(_, vm)| vm).collect();
    // Images with their keys in clear are for local VMs only.
    let local = !vms.is_empty() || settings.secrets == SecretsForm::Plain;
    if !local || vms.iter().any(|vm| vm.running()) {
        return None;
    }
    let up = format!("`kimg up{}`", crate::hint::dir_flag(settings));
    Some(match node {
        Some(node) if state.vms.values().any(Vm::running) => format!("the VM {node} does not run; start it with {up}"),
        None if state.vms.values().any(Vm::running) => {
            format!("no master of cluster {} runs; start it with {up}", settings.name)
        }
        _ => format!("the VMs of cluster {} do not run; start them with {up}", settings.name),
    })
}

/// Whether the cluster's machines are neither VMs on this machine nor at a `[provider]`: the user makes them.
pub fn by_hand(settings: &Settings, state: &State) -> bool {
    settings.provider.is_none() && settings.secrets == SecretsForm::Sealed && state.vms.is_empty()
}

/// A client of the API server with the administrator's certificate: the URL told, the local master, or the masters' address.
pub fn api_client(settings: &Settings, secrets: &Secrets, url: Option<&str>) -> Result<Https> {
    api_client_with(settings, secrets, url, &issue::admin(secrets)?)
}

/// The same with another certificate.
pub fn api_client_with(
    settings: &Settings,
    secrets: &Secrets,
    url: Option<&str>,
    client: &ClientCertificate,
) -> Result<Https> {
    let at_provider = if url.is_none() { cluster::server(settings)? } else { None };
    let state = State::load(&settings.run_dir())?;
    let running: Vec<u16> =
        state.api_ports().into_iter().filter(|(_, running)| *running).map(|(port, _)| port).collect();
    let places = match url.or(at_provider.as_deref()) {
        Some(url) => vec![parse_url(url)?],
        None if !running.is_empty() => running.into_iter().map(|port| ("127.0.0.1".to_string(), port)).collect(),
        None => {
            if let Some(why) = stopped(settings, &state, None) {
                bail!(why);
            }
            // The address of a local VM, which nobody has made, is nobody's, or a stranger's.
            if by_hand(settings, &state)
                && let Some(missing) = settings.api_missing()
            {
                return input::bad(missing);
            }
            settings.api_hosts().into_iter().map(|host| (host, 6443)).collect()
        }
    };
    let ca = successor::bundle(secrets, Authority::Cluster)?;
    let tls = tls::config(&ca, client, None)?;
    let target =
        |host: &str, port: u16| if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut places = places.into_iter();
    let (host, port) = places.next().context("cluster.toml names no address of the API; use --server")?;
    let first = Https::new(target(&host, port), host, tls);
    Ok(places.fold(first, |https, (host, port)| https.or(target(&host, port), host)))
}

fn parse_url(url: &str) -> Result<(String, u16)> {
    let rest = url.strip_prefix("https://").unwrap_or(url).trim_end_matches('/');
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let wrong = || BadInput(format!("{url} is no URL of an API server; write it as https://HOST:6443"));
            (host, port.parse().map_err(|_| wrong())?)
        }
        _ => (rest, 6443),
    };
    Ok((host.trim_matches(['[', ']']).to_string(), port))
}

/// `wanted` where it is free on 127.0.0.1, else one that is.
pub fn free_port(wanted: Option<u16>) -> Result<u16> {
    let try_port = |port: u16| TcpListener::bind(("127.0.0.1", port)).and_then(|l| l.local_addr()).map(|a| a.port());
    if let Some(wanted) = wanted
        && let Ok(port) = try_port(wanted)
    {
        return Ok(port);
    }
    try_port(0).context("finding a free port on 127.0.0.1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;

    #[test]
    fn urls() {
        let cases = [
            ("https://127.0.0.1:1234", ("127.0.0.1", 1234)),
            ("https://api.example.org/", ("api.example.org", 6443)),
            ("https://[::1]:6443", ("::1", 6443)),
            ("https://[::1]", ("::1", 6443)),
        ];
        for (url, (host, port)) in cases {
            assert_eq!(parse_url(url).expect(url), (host.to_string(), port));
        }
        assert!(parse_url("https://host:x").is_err());
    }

    #[test]
    fn stopped_vms_are_the_reason() {
        let settings = |secrets: &str| {
            let text =
                format!("name = \"demo\"\nsecrets = \"{secrets}\"\nnodes = [{{ name = \"m\", role = \"master\" }}]\n");
            crate::config::parse(Path::new("c"), &text, Path::new("/nowhere")).expect("valid")
        };
        let none = State::default();
        let why = stopped(&settings("plain"), &none, Some("m")).expect("stopped");
        assert_eq!(why, "the VMs of cluster demo do not run; start them with `kimg up --dir /nowhere`");
        // Machines elsewhere are asked.
        assert_eq!(stopped(&settings("sealed"), &none, None), None);
        let mut vm = Vm {
            role: Role::Master,
            process: None,
            api_port: Some(1),
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
        let mut state = State { vms: BTreeMap::from([("m".into(), vm.clone())]), ..State::default() };
        assert!(stopped(&settings("sealed"), &state, None).is_some());
        vm.process = Process::find(std::process::id() as i32);
        state.vms.insert("other".into(), Vm { role: Role::Worker, ..vm.clone() });
        let why = stopped(&settings("sealed"), &state, Some("m")).expect("stopped");
        assert!(why.starts_with("the VM m does not run"), "{why}");
        let why = stopped(&settings("sealed"), &state, None).expect("stopped");
        assert!(why.starts_with("no master of cluster demo runs"), "{why}");
        state.vms.insert("m".into(), vm);
        assert_eq!(stopped(&settings("plain"), &state, Some("m")), None);
    }

    fn vm() -> Vm {
        Vm {
            role: Role::Worker,
            process: None,
            api_port: None,
            status_port: None,
            node_port: 1,
            node_ports: BTreeMap::from([(30080, 30080)]),
            token: None,
            awaits_backup: false,
            joins_etcd: false,
            new_disk: false,
            image: "x".into(),
            previous: None,
        }
    }

    #[test]
    fn a_state_that_kimg_did_not_write_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["../../evil", "a/b", "", "images"] {
            let mut state = State::default();
            state.vms.insert(name.into(), vm());
            state.save(dir.path()).expect("saved");
            let why = State::load(dir.path()).expect_err("refused").to_string();
            assert!(why.contains("state.json is not as kimg writes it") && why.contains("this file alone"), "{why}");
        }
    }

    #[test]
    fn a_vm_that_runs_is_known_by_its_pid_file() {
        let dir = tempfile::tempdir().expect("dir");
        let state = State { vms: BTreeMap::from([("w".into(), vm()), ("v".into(), vm())]), ..State::default() };
        state.save(dir.path()).expect("saved");
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", "sh", "w/pid"])
            .current_dir(dir.path())
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        for node in ["w", "v"] {
            std::fs::create_dir(dir.path().join(node)).expect("folder");
            std::fs::write(dir.path().join(node).join("pid"), format!("{}\n", child.id())).expect("pid");
        }
        let vms = State::load(dir.path()).expect("loaded").vms;
        assert_eq!((vms["w"].running(), vms["v"].running()), (true, false));
        drop(child.stdin.take());
        child.wait().expect("ended");
        assert!(!State::load(dir.path()).expect("loaded").vms["w"].running());
    }

    #[test]
    fn who_runs_in_a_folder_that_was_removed_is_found() {
        let dir = tempfile::tempdir().expect("dir");
        let run_dir = dir.path().join("run");
        std::fs::create_dir(&run_dir).expect("folder");
        let start = |name: &str| {
            let mut command = std::process::Command::new("sleep");
            command.arg0(name).arg("60").current_dir(&run_dir).spawn().expect("sleep")
        };
        let (mut vm, mut other) = (start(qemu::PROGRAM), start("somebody"));
        assert!(ghosts(dir.path()).is_empty());
        std::fs::remove_dir(&run_dir).expect("removed");
        assert_eq!(ghosts(dir.path()), [vm.id().to_string()]);
        std::fs::create_dir(&run_dir).expect("folder");
        assert_eq!(ghosts(dir.path()), [vm.id().to_string()]);
        for child in [&mut vm, &mut other] {
            child.kill().expect("ended");
            child.wait().expect("reaped");
        }
    }

    #[test]
    fn state_survives_a_round() {
        let dir = tempfile::tempdir().expect("dir");
        assert_eq!(State::load(dir.path()).expect("none"), State::default());
        let state = State { accel: "tcg".into(), switch: None, vms: BTreeMap::from([("w".into(), vm())]) };
        state.save(dir.path()).expect("saved");
        assert_eq!(State::load(dir.path()).expect("loaded"), state);
    }
}
