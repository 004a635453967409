//! A stranger on the switch between the VMs: a machine of nobody's that knocks at the nodes' ports from outside.
//! It speaks just enough Ethernet, ARP, IPv4, ICMP, TCP and UDP for that; [`frames`] builds and reads the packets.
//!
//! Nothing that a node says is missed: after each burst of knocks it is pinged, and since frames keep their order,
//! the answer to the ping means that every knock before it was heard.

pub mod frames;
pub mod visitor;

use crate::Cluster;
use anyhow::{Context, Result, bail};
use frames::{Heard, Mac};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// Knocks between two pings: less than the switch keeps for a slow machine.
const BURST: usize = 256;
const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: u16 = 4;
/// How much later than a node's own answer one that passes through it may come.
const LATE: Duration = Duration::from_secs(2);

/// What a port says to a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    /// Somebody listens.
    Open,
    /// Nobody listens, and the node says so: the firewall lets strangers through.
    Refused,
}

/// The stranger's machine.
#[derive(Debug)]
pub struct Stranger {
    socket: UnixDatagram,
    /// Sockets' paths may be longer than the 108 bytes that an address takes; the folder's descriptor makes them short.
    folder: File,
    switch: String,
    mac: Mac,
    address: Ipv4Addr,
    port: u16,
}

impl Stranger {
    /// Takes a spare place of the cluster's switch, under this address.
    ///
    /// # Errors
    /// The switch does not run or has no such place.
    pub fn plug_in(cluster: &Cluster, spare: u8, address: Ipv4Addr) -> Result<Stranger> {
        let run = cluster.dir.join("run");
        let folder = File::open(&run).with_context(|| format!("opening {}", run.display()))?;
        let name = kimg::local::switch::spare(spare);
        let end = run.join(format!("{name}.vm"));
        match std::fs::remove_file(&end) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", end.display()));
            }
            _ => {}
        }
        let short = |suffix: &str| format!("/proc/self/fd/{}/{name}.{suffix}", folder.as_raw_fd());
        let socket = UnixDatagram::bind(short("vm")).context("taking a place on the switch")?;
        let switch = short("sw");
        // Another one each time, so that a node's memory of an earlier knock does no harm.
        let port = 20_000 + (std::process::id() % 20_000) as u16;
        let [a, b, c, d] = address.octets();
        Ok(Stranger { socket, folder, switch, mac: Mac([2, 0, a, b, c, d]), address, port })
    }

    /// The hardware address behind an address.
    ///
    /// # Errors
    /// Nobody answers.
    pub fn find(&self, address: Ipv4Addr) -> Result<Mac> {
        for _ in 0..TRIES {
            self.send(&frames::arp_request(self.mac, self.address, address))?;
            let found = self.listen(PATIENCE, |heard| match heard {
                Heard::Arp { mac, address: of } if *of == address => Some(*mac),
                _ => None,
            })?;
            if let Some(mac) = found {
                return Ok(mac);
            }
        }
        bail!("nobody answers for {address} on the switch of {:?}", self.folder)
    }

    /// Knocks at TCP ports; those that do not answer at all are not in the result.
    ///
    /// # Errors
    /// The node does not answer a ping either.
    pub fn tcp(&self, node: Ipv4Addr, ports: impl IntoIterator<Item = u16>) -> Result<BTreeMap<u16, Answer>> {
        self.tcp_behind(node, node, ports)
    }

    /// Knocks at TCP ports of an address that is not on the switch, by way of a node.
    ///
    /// # Errors
    /// The node does not answer a ping.
    pub fn tcp_behind(
        &self,
        node: Ipv4Addr,
        target: Ipv4Addr,
        ports: impl IntoIterator<Item = u16>,
    ) -> Result<BTreeMap<u16, Answer>> {
        let mac = self.find(node)?;
        let ports: Vec<u16> = ports.into_iter().collect();
        let mut found = BTreeMap::new();
        for burst in ports.chunks(BURST) {
            for port in burst {
                self.send_ip(mac, target, frames::TCP, &frames::knock(self.address, target, self.port, *port))?;
            }
            self.settle(mac, node, |heard| self.note(heard, target, &mut found))?;
        }
        // What goes through the node to a pod elsewhere comes back later than the node's own answer.
        self.listen(LATE, |heard| {
            self.note(heard, target, &mut found);
            None::<()>
        })?;
        // No half-open connection is left behind.
        for port in found.iter().filter(|(_, answer)| **answer == Answer::Open).map(|(port, _)| *port) {
            self.send_ip(mac, target, frames::TCP, &frames::reset(self.address, target, self.port, port))?;
        }
        Ok(found)
    }

    fn note(&self, heard: &Heard, target: Ipv4Addr, found: &mut BTreeMap<u16, Answer>) {
        if let Heard::Tcp { from, port, to, open } = heard
            && *from == target
            && *to == self.port
        {
            found.insert(*port, if *open { Answer::Open } else { Answer::Refused });
        }
    }

    /// Sends datagrams to UDP ports, each as often as a port is named; which answered, and how.
    ///
    /// # Errors
    /// The node does not answer a ping.
    pub fn udp(&self, node: Ipv4Addr, datagrams: &[(u16, Vec<u8>)]) -> Result<BTreeMap<u16, Answer>> {
        let mac = self.find(node)?;
        let mut found = BTreeMap::new();
        for (port, content) in datagrams {
            let datagram = frames::datagram(self.address, node, self.port, *port, content);
            self.send_ip(mac, node, frames::UDP, &datagram)?;
        }
        self.settle(mac, node, |heard| match heard {
            Heard::Udp { from, port, .. } if *from == node => {
                found.insert(*port, Answer::Open);
            }
            Heard::Unreachable { from, port } if *from == node => {
                found.entry(*port).or_insert(Answer::Refused);
            }
            _ => {}
        })?;
        Ok(found)
    }

    /// Pings the node and hands over everything that comes before its answer.
    fn settle(&self, mac: Mac, node: Ipv4Addr, mut take: impl FnMut(&Heard)) -> Result<()> {
        for number in 0..TRIES {
            let mark = (self.port << 3) | number;
            self.send_ip(mac, node, frames::ICMP, &frames::ping(mark))?;
            let answered = self.listen(PATIENCE, |heard| {
                take(heard);
                matches!(heard, Heard::Pong { from, mark: of } if *from == node && *of == mark).then_some(())
            })?;
            if answered.is_some() {
                return Ok(());
            }
        }
        bail!("{node} answers no ping, so that its silence means nothing")
    }

    /// Listens until `take` has found what it wants, or the time is over; answers who asks for this machine.
    fn listen<T>(&self, limit: Duration, mut take: impl FnMut(&Heard) -> Option<T>) -> Result<Option<T>> {
        let end = Instant::now() + limit;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left)).context("using the place on the switch")?;
            let length = match self.socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error).context("hearing what the switch brings"),
            };
            match frames::read(&buffer[..length], self.mac, self.address) {
                Some(Heard::AskedFor { mac, address }) => {
                    self.send(&frames::arp_reply(self.mac, self.address, mac, address))?;
                }
                Some(heard) => {
                    if let Some(wanted) = take(&heard) {
                        return Ok(Some(wanted));
                    }
                }
                None => {}
            }
        }
    }

    fn send_ip(&self, mac: Mac, target: Ipv4Addr, protocol: u8, payload: &[u8]) -> Result<()> {
        self.send(&frames::ipv4(self.mac, mac, self.address, target, protocol, payload))
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        self.socket.send_to(frame, &self.switch).map(|_| ()).context("sending a frame to the switch")
    }
}
