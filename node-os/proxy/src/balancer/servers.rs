//! Which API server a connection goes to, and which connections end. No I/O; the clock is an argument.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

/// What came of one look at a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Ready,
    /// It answers that it is not, as one that begins, ends, or has lost its store.
    NotReady,
    Nothing,
}

/// After so many looks without an answer a server's connections end.
const SILENT: u32 = 3;
/// The same for one that answers that it is not ready: what ends in order has its time.
const UNREADY: u32 = 10;

/// What is known of one server.
#[derive(Debug, Default)]
struct Known {
    /// When the last look that it answered began.
    answered: Option<Instant>,
    ready: bool,
    /// Looks in a row that it did not answer, and at which it was not ready.
    silent: u32,
    unready: u32,
    connections: usize,
}

/// The API servers.
#[derive(Debug)]
pub struct Servers {
    /// Those that this node was told at its start.
    first: Vec<SocketAddr>,
    list: Vec<SocketAddr>,
    known: HashMap<SocketAddr, Known>,
}

impl Servers {
    /// `kept` is the last list of before.
    pub fn new(first: Vec<SocketAddr>, kept: &[SocketAddr]) -> Servers {
        let mut list = first.clone();
        list.extend(kept.iter().filter(|server| !first.contains(server)));
        Servers { first, list, known: HashMap::new() }
    }

    /// The cluster's list.
    pub fn list(&self) -> &[SocketAddr] {
        &self.list
    }

    /// Takes the cluster's list.
    pub fn set(&mut self, list: Vec<SocketAddr>) {
        self.list = list;
    }

    /// Those of the first list that the cluster does not name.
    fn others(&self) -> impl Iterator<Item = SocketAddr> {
        self.first.iter().copied().filter(|server| !self.list.contains(server))
    }

    /// Whether nothing speaks against it.
    fn is_fine(&self, server: SocketAddr) -> bool {
        self.known.get(&server).is_none_or(|known| known.silent == 0 && known.unready == 0)
    }

    fn is_ready(&self, server: SocketAddr) -> bool {
        self.known.get(&server).is_some_and(|known| known.ready)
    }

    /// In which order a connection tries them, the `turn`th of them first: the healthy ones, then all, as this node may be
    /// wrong about them; and those of the first list last, unless they alone are ready.
    pub fn order(&self, turn: usize) -> Vec<SocketAddr> {
        let mut list = self.list.clone();
        let turn = turn % list.len().max(1);
        list.rotate_left(turn);
        let (fine, bad): (Vec<_>, Vec<_>) = list.into_iter().partition(|server| self.is_fine(*server));
        let (ready, others): (Vec<_>, Vec<_>) = self.others().partition(|server| self.is_ready(*server));
        [fine, ready, bad, others].concat()
    }

    /// Those that are to be looked at: none where there is no choice.
    pub fn wanted(&self) -> Vec<SocketAddr> {
        let mut wanted = self.list.clone();
        let connected = self.known.iter().filter(|(_, known)| known.connections > 0).map(|(server, _)| *server);
        wanted.extend(connected.filter(|server| !self.list.contains(server)));
        if !self.list.iter().any(|server| self.is_fine(*server)) {
            let others: Vec<_> = self.others().filter(|server| !wanted.contains(server)).collect();
            wanted.extend(others);
        }
        if wanted.len() < 2 { Vec::new() } else { wanted }
    }

    /// A look that began at `begun` has ended.
    pub fn saw(&mut self, server: SocketAddr, begun: Instant, seen: Seen) {
        let known = self.known.entry(server).or_default();
        known.ready = seen == Seen::Ready;
        match seen {
            Seen::Ready => (known.silent, known.unready) = (0, 0),
            Seen::NotReady => (known.silent, known.unready) = (0, known.unready.saturating_add(1)),
            Seen::Nothing => known.silent = known.silent.saturating_add(1),
        }
        if seen != Seen::Nothing {
            known.answered = Some(begun);
        }
    }

    /// No more is looked at it.
    pub fn forget(&mut self, server: SocketAddr) {
        match self.known.get_mut(&server) {
            Some(known) if known.connections > 0 => {
                *known = Known { connections: known.connections, ..Known::default() };
            }
            _ => drop(self.known.remove(&server)),
        }
    }

    /// A connection to it begins.
    pub fn opened(&mut self, server: SocketAddr) {
        self.known.entry(server).or_default().connections += 1;
    }

    /// A connection to it has ended.
    pub fn closed(&mut self, server: SocketAddr) {
        if let Some(known) = self.known.get_mut(&server) {
            known.connections = known.connections.saturating_sub(1);
        }
    }

    /// Whether a connection that began at `opened`, and on which the server `has_spoken` or not, is to end, so that its
    /// client comes again and gets another server. While no other one is ready there is nothing to be had by it.
    pub fn is_given_up(&self, server: SocketAddr, opened: Instant, has_spoken: bool) -> bool {
        let Some(known) = self.known.get(&server) else { return false };
        // Nothing has come from it since: who shakes hands there waits for nothing.
        let in_vain = !has_spoken && known.silent > 0 && known.answered.is_none_or(|answered| answered < opened);
        let given_up = in_vain || known.silent >= SILENT || known.unready >= UNREADY;
        given_up && self.known.iter().any(|(other, known)| *other != server && known.ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 6443))
    }

    fn servers(first: &[u8], list: &[u8]) -> Servers {
        let many = |numbers: &[u8]| numbers.iter().map(|number| at(*number)).collect::<Vec<_>>();
        let mut servers = Servers::new(many(first), &[]);
        servers.set(many(list));
        servers
    }

    fn numbers(servers: &[SocketAddr]) -> Vec<u8> {
        let last = |server: &SocketAddr| server.ip().to_string().rsplit('.').next().and_then(|n| n.parse().ok());
        servers.iter().filter_map(last).collect()
    }

    #[test]
    fn connections_go_to_the_healthy_ones_first() {
        let now = Instant::now();
        let mut servers = servers(&[1, 9], &[1, 2, 3]);
        let order = |servers: &Servers, turn| numbers(&servers.order(turn));
        assert_eq!(order(&servers, 0), [1, 2, 3, 9]);
        assert_eq!(order(&servers, 2), [3, 1, 2, 9]);
        servers.saw(at(1), now, Seen::Nothing);
        servers.saw(at(2), now, Seen::NotReady);
        servers.saw(at(3), now, Seen::Ready);
        assert_eq!(order(&servers, 0), [3, 1, 2, 9]);
        servers.saw(at(3), now, Seen::Nothing);
        assert_eq!(order(&servers, 0), [1, 2, 3, 9], "all are tried where none is healthy");
        servers.saw(at(9), now, Seen::Ready);
        assert_eq!(order(&servers, 0), [9, 1, 2, 3], "and one that the cluster does not name, if it is ready");
        servers.saw(at(2), now, Seen::Ready);
        assert_eq!(order(&servers, 0), [2, 9, 1, 3]);
    }

    #[test]
    fn where_there_is_no_choice_nobody_is_asked() {
        let now = Instant::now();
        assert!(servers(&[1], &[1]).wanted().is_empty());
        assert!(servers(&[1, 2], &[1]).wanted().is_empty());
        let mut three = servers(&[1, 9], &[1, 2, 3]);
        assert_eq!(numbers(&three.wanted()), [1, 2, 3]);
        for number in 1..4 {
            three.saw(at(number), now, Seen::Nothing);
        }
        assert_eq!(numbers(&three.wanted()), [1, 2, 3, 9]);
        // One that has left the list is looked at for as long as somebody is connected.
        let mut left = servers(&[1], &[1, 2]);
        left.opened(at(2));
        left.set(vec![at(1)]);
        assert_eq!(numbers(&left.wanted()), [1, 2]);
        left.closed(at(2));
        assert!(left.wanted().is_empty());
    }

    #[test]
    fn connections_to_what_is_dead_end() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut servers = servers(&[], &[1, 2]);
        servers.saw(at(1), now, Seen::Ready);
        servers.saw(at(2), now, Seen::Ready);
        let ends = |servers: &Servers, opened| servers.is_given_up(at(1), opened, false);
        let ends_in_work = |servers: &Servers, opened| servers.is_given_up(at(1), opened, true);
        servers.saw(at(1), later, Seen::Nothing);
        assert!(!ends(&servers, now), "once is no sign");
        assert!(ends(&servers, later), "it has never answered since");
        assert!(!ends_in_work(&servers, later), "it has, if not who looked");
        servers.saw(at(2), later, Seen::Nothing);
        assert!(!ends(&servers, later), "there is no other one");
        servers.saw(at(2), later, Seen::Ready);
        servers.saw(at(1), later, Seen::Nothing);
        assert!(!ends_in_work(&servers, later));
        servers.saw(at(1), later, Seen::Nothing);
        assert!(ends(&servers, now) && ends_in_work(&servers, later));
        // One that says that it is not ready has time to end in order.
        for look in 0..UNREADY {
            servers.saw(at(1), later, Seen::NotReady);
            assert_eq!(ends(&servers, now), look + 1 == UNREADY);
        }
        servers.saw(at(1), later, Seen::Ready);
        assert!(!ends(&servers, now));
    }
}
