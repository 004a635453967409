//! A user-space Ethernet switch between local VMs, which can behave like a provider's network.
//!
//! Each port is a pair of Unix datagram sockets in one folder, one frame a datagram: `NAME.sw` is the
//! switch's end, `NAME.vm` QEMU's (`-netdev dgram`). Datagrams need no connection, so either side may be
//! started again at any time. One thread moves all frames; [`Rules`] of a port can be changed while it runs.
//!
//! [`frame`] looks into frames, [`forwarding`] decides where they go; both do no I/O.

pub mod forwarding;
pub mod frame;

mod engine;

pub use forwarding::Forwarding;
pub use frame::Mac;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// A machine's place on the switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Name; the sockets are `NAME.sw` and `NAME.vm`.
    pub name: String,
    /// The machine's hardware address.
    pub mac: Mac,
    /// The machine's own addresses.
    pub addresses: Vec<Ipv4Addr>,
}

/// How a port treats frames.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Rules {
    /// Drop what the machine sends under an address that is not its own, as providers do:
    /// foreign hardware addresses, foreign IPv4 sources, ARP for foreign addresses.
    pub check_source: bool,
    /// Unplugged: nothing comes in or goes out.
    pub cut: bool,
    /// Part of the frames towards the machine that gets lost, 0.0 to 1.0.
    pub loss: f64,
    /// Delay of frames towards the machine, milliseconds.
    pub delay_ms: u64,
}

impl Default for Rules {
    /// An honest layer 2.
    fn default() -> Self {
        Rules { check_source: false, cut: false, loss: 0.0, delay_ms: 0 }
    }
}

/// What a port has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that the machine sent.
    pub received: u64,
    /// Frames handed to the machine.
    pub sent: u64,
    /// Frames of the machine dropped because their source was not its own.
    pub foreign: u64,
    /// Frames towards the machine lost by rule or because its queue was full.
    pub lost: u64,
}

/// What the thread and its owner share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) rules: Mutex<BTreeMap<String, Rules>>,
    pub(crate) counters: Mutex<BTreeMap<String, Counters>>,
    pub(crate) stop: AtomicBool,
}

/// A running switch; ends when dropped.
#[derive(Debug)]
pub struct Switch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    dir: PathBuf,
    ports: Vec<String>,
}

impl Switch {
    /// Binds the ports' sockets in `dir` (a short path: Unix sockets allow 108 bytes) and starts moving frames.
    pub fn start(dir: &Path, ports: &[Port]) -> io::Result<Switch> {
        let shared = Arc::new(Shared::default());
        for port in ports {
            lock(&shared.rules).insert(port.name.clone(), Rules::default());
            lock(&shared.counters).insert(port.name.clone(), Counters::default());
        }
        let engine = engine::Engine::bind(dir, ports, shared.clone())?;
        let thread = std::thread::Builder::new().name("switch".into()).spawn(move || engine.run())?;
        Ok(Switch {
            shared,
            thread: Some(thread),
            dir: dir.to_path_buf(),
            ports: ports.iter().map(|p| p.name.clone()).collect(),
        })
    }

    /// Sets the rules of a port; false where there is no such port.
    pub fn set(&self, port: &str, rules: Rules) -> bool {
        lock(&self.shared.rules).get_mut(port).map(|r| *r = rules).is_some()
    }

    /// Sets the rules of every port.
    pub fn set_all(&self, rules: Rules) {
        lock(&self.shared.rules).values_mut().for_each(|r| *r = rules);
    }

    /// What a port has seen.
    pub fn counters(&self, port: &str) -> Counters {
        lock(&self.shared.counters).get(port).copied().unwrap_or_default()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A switch that panicked has nothing more to give; its sockets go all the same.
            let _ = thread.join();
        }
        for port in &self.ports {
            let _ = std::fs::remove_file(self.dir.join(format!("{port}.sw")));
        }
    }
}

/// A poisoned lock holds plain numbers that are still whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    fn port(n: u8) -> Port {
        Port { name: format!("n{n}"), mac: Mac([2, 0, 0, 0, 0, n]), addresses: vec![Ipv4Addr::new(10, 0, 0, n)] }
    }

    /// An IPv4 frame from machine `from` to machine `to`, saying that it comes from 10.0.0.`source`.
    fn ipv4(from: u8, to: u8, source: u8) -> Vec<u8> {
        let mut frame = vec![0u8; 60];
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, to]);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, from]);
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14] = 0x45;
        frame[26..30].copy_from_slice(&[10, 0, 0, source]);
        frame
    }

    struct Machines {
        dir: tempfile::TempDir,
        switch: Switch,
        sockets: Vec<UnixDatagram>,
    }

    fn machines() -> Machines {
        let dir = tempfile::tempdir().expect("dir");
        let ports = [port(0), port(1), port(2)];
        let switch = Switch::start(dir.path(), &ports).expect("switch");
        let sockets = ports
            .iter()
            .map(|p| {
                let socket = UnixDatagram::bind(dir.path().join(format!("{}.vm", p.name))).expect("bind");
                socket.set_read_timeout(Some(Duration::from_millis(150))).expect("timeout");
                socket
            })
            .collect();
        Machines { dir, switch, sockets }
    }

    impl Machines {
        fn gets(&self, n: usize) -> bool {
            let mut buffer = [0u8; 2048];
            self.sockets[n].recv(&mut buffer).is_ok()
        }

        /// The switch answers from a socket of its own, so a machine's socket is not connected to a peer.
        fn sends(&self, n: usize, frame: &[u8]) {
            let to = self.dir.path().join(format!("n{n}.sw"));
            self.sockets[n].send_to(frame, to).expect("send");
        }
    }

    #[test]
    fn unknown_destinations_are_flooded_and_learnt_ones_are_not() {
        let m = machines();
        m.sends(0, &ipv4(0, 1, 0));
        assert!(m.gets(1) && m.gets(2));
        m.sends(1, &ipv4(1, 0, 1));
        assert!(m.gets(0));
        assert!(!m.gets(2));
    }

    #[test]
    fn a_provider_drops_foreign_sources() {
        let m = machines();
        m.switch.set("n0", Rules { check_source: true, ..Rules::default() });
        m.sends(0, &ipv4(0, 1, 7));
        assert!(!m.gets(1));
        assert_eq!(m.switch.counters("n0").foreign, 1);
        m.sends(0, &ipv4(0, 1, 0));
        assert!(m.gets(1));
    }

    #[test]
    fn a_cut_port_is_silent_and_a_delayed_one_late() {
        let m = machines();
        m.switch.set("n1", Rules { cut: true, ..Rules::default() });
        m.sends(0, &ipv4(0, 1, 0));
        assert!(!m.gets(1));
        m.switch.set("n1", Rules { delay_ms: 60, ..Rules::default() });
        let start = std::time::Instant::now();
        m.sends(0, &ipv4(0, 1, 0));
        assert!(m.gets(1));
        assert!(start.elapsed() >= Duration::from_millis(55));
        m.switch.set("n1", Rules { loss: 1.0, ..Rules::default() });
        m.sends(0, &ipv4(0, 1, 0));
        assert!(!m.gets(1));
        assert_eq!(m.switch.counters("n1").lost, 2);
    }
}
