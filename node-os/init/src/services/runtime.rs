//! Carries out what [`super::core`] decides: processes, control groups, notification sockets, logs.

use super::core::{Action, Core, Event};
use super::table::COMPONENTS;
use super::{Kind, Spec};
use crate::console::printable;
use crate::logs::Logs;
use crate::machine::{Shared, now_ms};
use crate::mounts::SERVICES_CGROUP;
use anyhow::{Context, Result};
use node_sys::process;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixDatagram;
use tokio::sync::mpsc;

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const NOTIFY_FOLDER: &str = "/run/notify";
/// What services say waits in their sockets, not in PID 1: its memory stays the same however much they say.
const SAID_AT_ONCE: usize = 8;
/// From one word of a service to its next: also the time of PID 1 is not theirs.
const BETWEEN_WORDS: Duration = Duration::from_millis(20);
const LONGEST_STATUS: usize = 300;

/// What happened and was not dealt with yet.
#[derive(Debug)]
pub struct Queues {
    from_within: mpsc::UnboundedReceiver<Event>,
    from_services: mpsc::Receiver<Event>,
}

/// The supervisor.
#[derive(Debug)]
pub struct Supervisor {
    core: RefCell<Core>,
    machine: Shared,
    events: mpsc::UnboundedSender<Event>,
    said: mpsc::Sender<Event>,
    /// Readers of the notification sockets, by service.
    listeners: RefCell<BTreeMap<usize, tokio::task::JoinHandle<()>>>,
}

impl Supervisor {
    /// With the table of this node, and the queues that [`Supervisor::run`] reads.
    pub fn new(specs: Vec<Spec>, machine: Shared) -> (Rc<Supervisor>, Queues) {
        let (events, from_within) = mpsc::unbounded_channel();
        let (said, from_services) = mpsc::channel(SAID_AT_ONCE);
        let supervisor =
            Supervisor { core: RefCell::new(Core::new(specs)), machine, events, said, listeners: RefCell::default() };
        (Rc::new(supervisor), Queues { from_within, from_services })
    }

    /// Something happened.
    pub fn tell(&self, event: Event) {
        // The receiver lives as long as PID 1.
        let _ = self.events.send(event);
    }

    /// Takes events until everything has been stopped.
    pub async fn run(self: Rc<Self>, mut queues: Queues) {
        let mut stopping = false;
        self.tell(Event::Tick);
        loop {
            let event = tokio::select! {
                event = queues.from_within.recv() => event.unwrap_or(Event::Tick),
                event = queues.from_services.recv() => event.unwrap_or(Event::Tick),
                () = self.pause(stopping) => Event::Tick,
            };
            stopping |= event == Event::StopAll;
            self.handle(event);
            if stopping && self.core.borrow().all_ended() {
                return;
            }
        }
    }

    async fn pause(&self, stopping: bool) {
        let longest: u64 = if stopping { 100 } else { 10_000 };
        let due = self.core.borrow().next_due_ms().map_or(longest, |due| due.saturating_sub(now_ms())).min(longest);
        tokio::time::sleep(Duration::from_millis(due + 1)).await;
    }

    fn handle(self: &Rc<Self>, event: Event) {
        let actions = self.core.borrow_mut().step(event, now_ms());
        for action in actions {
            self.act(action);
        }
        self.publish();
    }

    fn act(self: &Rc<Self>, action: Action) {
        match action {
            Action::Start(index) => {
                let Some(spec) = self.core.borrow().spec(index).cloned() else { return };
                match self.start(index, &spec) {
                    Ok(pid) => self.handle(Event::Started(index, pid)),
                    Err(error) => self.handle(Event::NotStarted(index, format!("{error:#}"))),
                }
            }
            Action::Terminate(index, pid) => self.signal(index, process::terminate(pid)),
            Action::Kill(index, pid) => {
                tracing::warn!("{} does not end by itself and is killed", self.name(index));
                self.signal(index, process::kill(pid));
            }
            Action::Log(sentence) => tracing::warn!("{sentence}"),
            Action::Began(index) => self.machine.begin(&format!("service {}", self.name(index))),
            Action::FirstReady(index) => self.machine.end(&format!("service {}", self.name(index)), ""),
        }
    }

    fn name(&self, index: usize) -> &'static str {
        self.core.borrow().spec(index).map_or("?", |spec| spec.name)
    }

    fn signal(&self, index: usize, result: std::io::Result<()>) {
        if let Err(error) = result {
            tracing::error!("cannot signal {}: {error}", self.name(index));
        }
    }

    fn start(self: &Rc<Self>, index: usize, spec: &Spec) -> Result<u32> {
        let group = control_group(Path::new(SERVICES_CGROUP), spec)?;
        let folder = match spec.user {
            Some(user) if spec.kind == Kind::Component => own_folder(spec.name, user)?,
            _ => PathBuf::from("/"),
        };
        let (reader, writer) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
        let mut command = Command::new(&spec.program);
        if let Some((first, rest)) = spec.command.split_first() {
            std::os::unix::process::CommandExt::arg0(&mut command, first);
            command.args(rest);
        }
        command
            .env_clear()
            .env("PATH", PATH)
            .envs(spec.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::from(writer.try_clone().context("cannot copy a pipe")?))
            .stderr(Stdio::from(writer));
        if spec.kind != Kind::Component {
            command.env("NOTIFY_SOCKET", self.listen(index, spec)?);
        }
        let pid = process::spawn(command, Some(&group), spec.oom_score, spec.user)
            .with_context(|| format!("cannot start {}", spec.program))?;
        tokio::task::spawn_local(collect(reader, spec.name, self.machine.logs.clone()));
        Ok(pid)
    }

    /// A fresh notification socket: what a former process still says does not count for its successor.
    fn listen(self: &Rc<Self>, index: usize, spec: &Spec) -> Result<PathBuf> {
        let path = PathBuf::from(NOTIFY_FOLDER).join(spec.name);
        if path.exists() {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        let socket = UnixDatagram::bind(&path).with_context(|| format!("cannot make the socket {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        if let Some(user) = spec.user {
            std::os::unix::fs::lchown(&path, Some(user), None)
                .with_context(|| format!("cannot give {} to its user", path.display()))?;
        }
        let listener = tokio::task::spawn_local(hear(socket, index, self.said.clone()));
        if let Some(former) = self.listeners.borrow_mut().insert(index, listener) {
            former.abort();
        }
        Ok(path)
    }

    fn publish(&self) {
        let core = self.core.borrow();
        let mut services = core.describe();
        for service in &mut services {
            service.memory = memory_of(&service.name);
        }
        let waits = core.waits_for().join(", ");
        let running = waits.is_empty();
        let status = self.machine.status();
        // On the way to the end the stage says so.
        let is_ours = status.stage == "services" || status.stage == "running";
        if is_ours && (status.running != running || status.waits_for != waits) {
            self.machine.update(|status| {
                status.running = running;
                status.stage = if running { "running".to_owned() } else { "services".to_owned() };
                status.waits_for = waits;
            });
        }
        self.machine.set_services(services);
    }
}

/// Hands on what a service says, as fast as it is dealt with.
async fn hear(socket: UnixDatagram, index: usize, said: mpsc::Sender<Event>) {
    let mut bytes = vec![0u8; 2048];
    while let Ok(length) = socket.recv(&mut bytes).await {
        let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
        for event in events_of(index, &text) {
            if said.send(event).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(BETWEEN_WORDS).await;
    }
}

/// That it is ready, and the last sentence: whatever else a datagram holds is no event.
fn events_of(index: usize, text: &str) -> impl Iterator<Item = Event> + use<> {
    let ready = text.lines().any(|line| line == "READY=1").then_some(Event::Ready(index));
    let status = text.lines().filter_map(|line| line.strip_prefix("STATUS=")).next_back();
    let status = status.map(|sentence| Event::Status(index, printable(sentence).take(LONGEST_STATUS).collect()));
    ready.into_iter().chain(status)
}

fn control_group(groups: &Path, spec: &Spec) -> Result<fs::File> {
    let folder = groups.join(spec.name);
    let context = || format!("cannot make the control group {}", folder.display());
    fs::create_dir_all(&folder).with_context(context)?;
    if spec.user.is_some() {
        // What its last process has left behind: whoever took that over does not outlive it.
        fs::write(folder.join("cgroup.kill"), "1").with_context(context)?;
    }
    if let Some(bytes) = spec.memory_max {
        fs::write(folder.join("memory.max"), bytes.to_string()).with_context(context)?;
    }
    fs::OpenOptions::new().write(true).open(folder.join("cgroup.procs")).with_context(context)
}

/// A folder on STATE that is this user's alone.
fn own_folder(name: &str, user: u32) -> Result<PathBuf> {
    let folder = Path::new(COMPONENTS).join(name);
    fs::create_dir_all(&folder)
        .and_then(|()| std::os::unix::fs::lchown(&folder, Some(user), Some(user)))
        .and_then(|()| fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)))
        .with_context(|| format!("cannot make its folder {}", folder.display()))?;
    Ok(folder)
}

fn memory_of(name: &str) -> u64 {
    let file = format!("{SERVICES_CGROUP}/{name}/memory.current");
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Copies what a service writes into its log until the last writer has closed.
async fn collect(reader: OwnedFd, name: &'static str, logs: Logs) {
    let log = logs.open(name);
    let mut reader = match tokio::net::unix::pipe::Receiver::from_owned_fd(reader) {
        Ok(reader) => reader,
        Err(error) => return tracing::error!("the output of {name} is lost: {error}"),
    };
    let mut bytes = vec![0u8; 4096];
    loop {
        match reader.read(&mut bytes).await {
            Ok(0) => return,
            Ok(length) => logs.write(&log, bytes.get(..length).unwrap_or_default()),
            Err(error) => return tracing::error!("the output of {name} is lost: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<Event> {
        events_of(3, text).collect()
    }

    #[test]
    fn notifications_are_read_line_by_line() {
        let events = said("READY=1\nSTATUS=serves\nMAINPID=7\njunk");
        assert_eq!(events, [Event::Ready(3), Event::Status(3, "serves".into())]);
        assert_eq!(said("READY=0\nREADY=1=1"), []);
    }

    #[test]
    fn a_datagram_says_each_thing_once() {
        assert_eq!(said(&"READY=1\n".repeat(256)), [Event::Ready(3)]);
        let many: String = (0..200).map(|number| format!("STATUS={number}\n")).collect();
        assert_eq!(said(&many), [Event::Status(3, "199".into())]);
    }

    #[test]
    fn a_status_is_short_and_moves_no_cursor() {
        assert_eq!(said("STATUS=a\x1b[2Jb\rc\td\u{9b}31me\0"), [Event::Status(3, "a[2Jbc d31me".into())]);
        assert_eq!(said(&format!("STATUS={}", "ä".repeat(1000))), [Event::Status(3, "ä".repeat(LONGEST_STATUS))]);
    }

    #[tokio::test]
    async fn who_talks_without_end_waits_for_itself() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let (said, mut events) = mpsc::channel(SAID_AT_ONCE);
        let hearing = tokio::spawn(hear(socket, 0, said));
        let service = std::os::unix::net::UnixDatagram::unbound().unwrap();
        service.connect(&path).unwrap();
        service.set_nonblocking(true).unwrap();
        let mut taken = 0;
        loop {
            match service.send(b"READY=1\nSTATUS=again") {
                Ok(_) => taken += 1,
                // The kernel refuses it, and the reader goes on only when it is listened to.
                Err(_) if events.len() == SAID_AT_ONCE => break,
                Err(_) => tokio::time::sleep(BETWEEN_WORDS).await,
            }
        }
        // Nothing that was taken is lost, and the last that it says is heard.
        for _ in 0..taken {
            assert_eq!(events.recv().await, Some(Event::Ready(0)));
            assert_eq!(events.recv().await, Some(Event::Status(0, "again".into())));
        }
        service.send(b"STATUS=last").unwrap();
        assert_eq!(events.recv().await, Some(Event::Status(0, "last".into())));
        hearing.abort();
    }

    #[test]
    fn what_a_user_s_process_left_behind_ends_before_the_next() {
        for (user, ends) in [(Some(7), true), (None, false)] {
            let groups = tempfile::tempdir().unwrap();
            let folder = groups.path().join("a");
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("cgroup.procs"), "").unwrap();
            let spec = Spec {
                name: "a",
                command: Vec::new(),
                program: String::new(),
                environment: Vec::new(),
                needs: Vec::new(),
                kind: Kind::Daemon,
                oom_score: 0,
                memory_max: None,
                grace_s: 1,
                again_s: None,
                user,
            };
            control_group(groups.path(), &spec).unwrap();
            assert_eq!(folder.join("cgroup.kill").exists(), ends, "{user:?}");
        }
    }
}
