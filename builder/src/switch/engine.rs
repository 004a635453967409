//! The thread that moves frames: sockets, queues, delays.

use super::{Forwarding, Port, Rules, Shared, frame, lock};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Frames that wait for a slow machine; more are lost, as on a real switch.
const QUEUE_LIMIT: usize = 2048;
/// Frames taken from one port before the others get their turn.
const BURST: usize = 64;
/// How soon a request to end is seen.
const TICK: Duration = Duration::from_millis(100);
const FRAME_LIMIT: usize = 65_536;

struct Socket {
    port: Port,
    /// What the machine sends.
    receive: UnixDatagram,
    /// Connected to the machine's end, so that poll tells when there is room in its queue.
    send: Option<UnixDatagram>,
    peer: PathBuf,
    queue: VecDeque<(Instant, Vec<u8>)>,
    rules: Rules,
}

pub(super) struct Engine {
    sockets: Vec<Socket>,
    table: Forwarding,
    shared: Arc<Shared>,
    random: SmallRng,
}

impl Engine {
    pub(super) fn bind(dir: &Path, ports: &[Port], shared: Arc<Shared>) -> io::Result<Engine> {
        let sockets = ports
            .iter()
            .map(|port| {
                let path = dir.join(format!("{}.sw", port.name));
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let receive = UnixDatagram::bind(&path)?;
                receive.set_nonblocking(true)?;
                Ok(Socket {
                    port: port.clone(),
                    receive,
                    send: None,
                    peer: dir.join(format!("{}.vm", port.name)),
                    queue: VecDeque::new(),
                    rules: Rules::default(),
                })
            })
            .collect::<io::Result<_>>()?;
        // A fixed seed: a test that loses frames loses the same ones each time.
        Ok(Engine { sockets, table: Forwarding::default(), shared, random: SmallRng::seed_from_u64(1) })
    }

    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.wait();
            {
                let rules = lock(&self.shared.rules);
                for socket in &mut self.sockets {
                    socket.rules = rules.get(&socket.port.name).copied().unwrap_or_default();
                }
            }
            for from in 0..self.sockets.len() {
                self.take(from);
            }
            let now = Instant::now();
            for socket in &mut self.sockets {
                let (sent, lost) = socket.flush(now);
                if sent + lost > 0 {
                    let mut counters = lock(&self.shared.counters);
                    let entry = counters.entry(socket.port.name.clone()).or_default();
                    entry.sent += sent;
                    entry.lost += lost;
                }
            }
        }
    }

    /// Sleeps until a frame comes, a full queue has room, or a delayed frame is due.
    fn wait(&self) {
        let now = Instant::now();
        let mut limit = TICK;
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(self.sockets.len() * 2);
        for socket in &self.sockets {
            fds.push(PollFd::new(&socket.receive, PollFlags::IN));
            if let Some((due, _)) = socket.queue.front() {
                match &socket.send {
                    Some(send) if *due <= now => fds.push(PollFd::new(send, PollFlags::OUT)),
                    _ => limit = limit.min(due.saturating_duration_since(now).max(Duration::from_micros(200))),
                }
            }
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: limit.subsec_nanos().into() };
        // An interrupted wait is as good as one that ended.
        let _ = poll(&mut fds, Some(&timeout));
    }

    fn take(&mut self, from: usize) {
        let mut buffer = [0u8; FRAME_LIMIT];
        for _ in 0..BURST {
            let Ok(length) = self.sockets[from].receive.recv(&mut buffer) else {
                return;
            };
            self.forward(from, &buffer[..length]);
        }
    }

    fn forward(&mut self, from: usize, frame: &[u8]) {
        let sender = &self.sockets[from];
        {
            let mut counters = lock(&self.shared.counters);
            let entry = counters.entry(sender.port.name.clone()).or_default();
            entry.received += 1;
            if sender.rules.cut {
                return;
            }
            if sender.rules.check_source && !frame::source_is_own(frame, sender.port.mac, &sender.port.addresses) {
                entry.foreign += 1;
                return;
            }
        }
        let now = Instant::now();
        for to in self.table.route(frame, from, self.sockets.len()) {
            let rules = self.sockets[to].rules;
            let unlucky = rules.loss > 0.0 && self.random.random::<f64>() < rules.loss;
            let socket = &mut self.sockets[to];
            if rules.cut || unlucky || socket.queue.len() >= QUEUE_LIMIT {
                lock(&self.shared.counters).entry(socket.port.name.clone()).or_default().lost += 1;
                continue;
            }
            socket.queue.push_back((now + Duration::from_millis(rules.delay_ms), frame.to_vec()));
        }
    }
}

impl Socket {
    /// Hands over what is due; returns how many frames were sent and lost.
    fn flush(&mut self, now: Instant) -> (u64, u64) {
        let (mut sent, mut lost) = (0, 0);
        while self.queue.front().is_some_and(|(due, _)| *due <= now) {
            let Some((due, frame)) = self.queue.pop_front() else { break };
            match self.hand_over(&frame) {
                Ok(()) => sent += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.queue.push_front((due, frame));
                    break;
                }
                // No machine there: the frame is lost, as on a cable without one.
                Err(_) => lost += 1,
            }
        }
        (sent, lost)
    }

    fn hand_over(&mut self, frame: &[u8]) -> io::Result<()> {
        if let Some(send) = &self.send {
            match send.send(frame) {
                // The machine was started again since: its end is a new socket.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => self.send = None,
                result => return result.map(|_| ()),
            }
        }
        let fresh = self.connected().ok_or(ErrorKind::NotConnected)?;
        let result = fresh.send(frame).map(|_| ());
        self.send = Some(fresh);
        result
    }

    fn connected(&self) -> Option<UnixDatagram> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(&self.peer).ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(socket)
    }
}
