//! Somebody outside who visits a web page over and over, and keeps count of what failed.
//!
//! Each time on a new connection, or on those that are open: until the server says `Connection: close`, or the address
//! is no longer among those to go to.
//! Speaks TCP itself, no more of it than a short request and its answer take: what is lost is sent again as every TCP
//! does it, and a visit that fails is not tried again.

use super::Stranger;
use super::frames::{self, Mac, Segment};
use crate::Result;
use anyhow::Context;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// As long as a browser's user may look at nothing.
const LIMIT: Duration = Duration::from_secs(15);
/// An open connection is not asked any more after this pause: its server may be about to end it.
const STALE: Duration = Duration::from_secs(5);
/// Until something is sent again the first time; then twice as long.
const AGAIN: Duration = Duration::from_millis(700);
const TICK: Duration = Duration::from_millis(10);
const FIRST_PORT: u16 = 41_000;
const PORTS: usize = 20_000;

/// What came of the visits.
#[derive(Debug, Default)]
pub struct Visits {
    /// How many were begun.
    pub begun: usize,
    /// On how many connections.
    pub connections: usize,
    /// How many saw the page, by the address that they went to.
    pub seen: BTreeMap<Ipv4Addr, usize>,
    /// Why others did not.
    pub failed: Vec<String>,
    /// The longest that one took.
    pub slowest: Duration,
    /// From the first to the end.
    pub lasted: Duration,
}

impl Visits {
    /// Visits a second.
    pub fn rate(&self) -> f64 {
        self.begun as f64 / self.lasted.as_secs_f64().max(0.001)
    }
}

/// What a connection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A visit is under way.
    Asking,
    /// It may be asked again.
    Idle,
    /// It ends.
    Leaving,
}

/// A connection.
struct Visit {
    target: Ipv4Addr,
    mac: Mac,
    stage: Stage,
    /// Whether our end was sent.
    left: bool,
    /// When it was asked last.
    begun: Instant,
    /// What is not acknowledged yet, and when it is sent again.
    unheard: Option<(Segment, Instant, Duration)>,
    next_sequence: u32,
    /// The next byte of theirs; none before their first packet.
    expects: Option<u32>,
    answer: Vec<u8>,
}

/// A segment of ours.
fn own(visit: &Visit, port: u16, flags: u8, content: &[u8]) -> Segment {
    Segment {
        port: 80,
        to: port,
        sequence: visit.next_sequence,
        acknowledges: visit.expects.unwrap_or_default(),
        flags,
        content: content.to_vec(),
    }
}

/// Whether an answer has all the bytes that its head promises.
fn whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok());
    length.is_some_and(|length| body.len() >= length)
}

impl Stranger {
    /// Visits `path` at port 80 of one of the `targets` after the other, until it is told to stop and all visits that
    /// were begun have come to an end; with `keep` on connections that stay open.
    ///
    /// # Errors
    /// The switch is gone, or a target was never to be found on it.
    pub fn visit(
        &self,
        path: &str,
        rate: u32,
        keep: bool,
        targets: &Mutex<Vec<Ipv4Addr>>,
        stop: &AtomicBool,
    ) -> Result<Visits> {
        let word = if keep { "keep-alive" } else { "close" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: {word}\r\n\r\n").into_bytes();
        let (start, pause) = (Instant::now(), Duration::from_secs(1) / rate);
        let mut visits = Visits::default();
        let mut open: HashMap<u16, Visit> = HashMap::new();
        let mut macs: HashMap<Ipv4Addr, Mac> = HashMap::new();
        let (mut due, mut buffer) = (start, vec![0; 65_536]);
        // Others each time: nodes and pods remember connections of a visitor before for minutes.
        let first =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() as usize * rate as usize);
        while !stop.load(Relaxed) || !open.is_empty() {
            let targets = targets.lock().map_err(|_| anyhow::anyhow!("the list of targets is lost"))?.clone();
            for (port, visit) in open.iter_mut().filter(|(_, visit)| visit.stage == Stage::Idle) {
                let stale = visit.begun.elapsed() > STALE;
                if stop.load(Relaxed) || stale || !targets.contains(&visit.target) {
                    let ends = own(visit, *port, frames::ACK | frames::FIN, &[]);
                    visit.next_sequence = visit.next_sequence.wrapping_add(1);
                    (visit.stage, visit.left, visit.begun) = (Stage::Leaving, true, Instant::now());
                    self.say(visit, ends)?;
                }
            }
            if !stop.load(Relaxed) && Instant::now() >= due {
                due += pause;
                visits.begun += 1;
                let Some(target) = targets.get(visits.begun % targets.len().max(1)).copied() else {
                    visits.failed.push(format!("{:.1} s: no address at all", start.elapsed().as_secs_f32()));
                    continue;
                };
                let idle = open.iter_mut().find(|(_, visit)| visit.target == target && visit.stage == Stage::Idle);
                if let Some((port, visit)) = idle {
                    (visit.stage, visit.begun) = (Stage::Asking, Instant::now());
                    self.ask(visit, *port, &request)?;
                } else {
                    let mac = match macs.get(&target) {
                        Some(mac) => *mac,
                        None => *macs.entry(target).or_insert(self.find(target).context("looking for a target")?),
                    };
                    let (port, visit) = self.connect(target, mac, first + visits.connections)?;
                    visits.connections += 1;
                    open.insert(port, visit);
                }
            }
            self.hear_one(&mut buffer, &request, keep, &mut open, &mut visits, start)?;
            self.look_at_clocks(&mut open, &mut visits, start)?;
        }
        visits.lasted = start.elapsed();
        Ok(visits)
    }

    fn connect(&self, target: Ipv4Addr, mac: Mac, number: usize) -> Result<(u16, Visit)> {
        let port = FIRST_PORT + (number % PORTS) as u16;
        let sequence = (number as u32 + 1).wrapping_mul(7919);
        let syn = Segment { port: 80, to: port, sequence, flags: frames::SYN, ..Segment::default() };
        let mut visit = Visit {
            target,
            mac,
            stage: Stage::Asking,
            left: false,
            begun: Instant::now(),
            unheard: None,
            next_sequence: sequence.wrapping_add(1),
            expects: None,
            answer: Vec::new(),
        };
        self.say(&mut visit, syn)?;
        Ok((port, visit))
    }

    fn ask(&self, visit: &mut Visit, port: u16, request: &[u8]) -> Result<()> {
        let asks = own(visit, port, frames::ACK | frames::PSH, request);
        visit.next_sequence = visit.next_sequence.wrapping_add(request.len() as u32);
        self.say(visit, asks)
    }

    /// Sends what must be acknowledged.
    fn say(&self, visit: &mut Visit, segment: Segment) -> Result<()> {
        self.send_segment(visit, &segment)?;
        visit.unheard = Some((segment, Instant::now() + AGAIN, AGAIN));
        Ok(())
    }

    fn send_segment(&self, visit: &Visit, segment: &Segment) -> Result<()> {
        let bytes = frames::segment(self.address, visit.target, segment);
        self.send_ip(visit.mac, visit.target, frames::TCP, &bytes)
    }

    fn hear_one(
        &self,
        buffer: &mut [u8],
        request: &[u8],
        keep: bool,
        open: &mut HashMap<u16, Visit>,
        visits: &mut Visits,
        start: Instant,
    ) -> Result<()> {
        self.socket.set_read_timeout(Some(TICK)).context("using the place on the switch")?;
        let length = match self.socket.recv(buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                return Ok(());
            }
            Err(error) => return Err(error).context("hearing what the switch brings"),
        };
        if let Some(frames::Heard::AskedFor { mac, address }) = frames::read(&buffer[..length], self.mac, self.address)
        {
            return self.send(&frames::arp_reply(self.mac, self.address, mac, address));
        }
        let Some((from, segment)) = frames::read_segment(&buffer[..length], self.mac, self.address) else {
            return Ok(());
        };
        let port = segment.to;
        let Some(visit) = open.get_mut(&port).filter(|visit| visit.target == from) else { return Ok(()) };
        let when = format!("{:.1} s: {from}", start.elapsed().as_secs_f32());
        if segment.flags & frames::RST != 0 {
            if visit.stage == Stage::Asking {
                visits.failed.push(format!("{when}: the connection was refused or cut"));
            }
            open.remove(&port);
            return Ok(());
        }
        let ended = self.take(visit, &segment, port, request)?;
        if visit.stage == Stage::Asking && (ended || keep && whole(&visit.answer)) {
            let took = visit.begun.elapsed();
            visits.slowest = visits.slowest.max(took);
            let answer = String::from_utf8_lossy(&visit.answer).into_owned();
            visit.answer.clear();
            visit.stage = if answer.contains("\r\nConnection: close\r\n") { Stage::Leaving } else { Stage::Idle };
            if answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"status\":\"ok\"") {
                *visits.seen.entry(from).or_default() += 1;
            } else {
                visits.failed.push(format!("{when}: it answered {answer:?}"));
            }
        }
        if ended {
            open.remove(&port);
        }
        Ok(())
    }

    /// Takes a packet of a visit; whether it was the last.
    fn take(&self, visit: &mut Visit, segment: &Segment, port: u16, request: &[u8]) -> Result<bool> {
        if segment.flags & frames::ACK != 0 && segment.acknowledges == visit.next_sequence {
            visit.unheard = None;
        }
        let Some(expects) = visit.expects else {
            if segment.flags & (frames::SYN | frames::ACK) == frames::SYN | frames::ACK {
                visit.expects = Some(segment.sequence.wrapping_add(1));
                self.ask(visit, port, request)?;
            }
            return Ok(false);
        };
        let mut ended = false;
        if segment.sequence == expects {
            visit.answer.extend(&segment.content);
            ended = segment.flags & frames::FIN != 0;
            let more = segment.content.len() as u32 + u32::from(ended);
            visit.expects = Some(expects.wrapping_add(more));
        }
        if !segment.content.is_empty() || segment.flags & (frames::FIN | frames::SYN) != 0 {
            let flags = if ended && !visit.left { frames::ACK | frames::FIN } else { frames::ACK };
            self.send_segment(visit, &own(visit, port, flags, &[]))?;
        }
        Ok(ended)
    }

    fn look_at_clocks(&self, open: &mut HashMap<u16, Visit>, visits: &mut Visits, start: Instant) -> Result<()> {
        let now = Instant::now();
        for visit in open.values_mut() {
            let Some((segment, due, pause)) = visit.unheard.take() else { continue };
            visit.unheard = if now >= due {
                self.send_segment(visit, &segment)?;
                Some((segment, now + pause * 2, pause * 2))
            } else {
                Some((segment, due, pause))
            };
        }
        open.retain(|_, visit| {
            let late = visit.stage != Stage::Idle && visit.begun.elapsed() > LIMIT;
            if late && visit.stage == Stage::Asking {
                let stage = if visit.expects.is_none() { "no connection" } else { "no answer" };
                let when = start.elapsed().as_secs_f32();
                visits.failed.push(format!("{when:.1} s: {}: {stage} within {} s", visit.target, LIMIT.as_secs()));
            }
            !late
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::whole;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert!(!whole(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"), "half a head");
        assert!(!whole(format!("{head}1234").as_bytes()));
        assert!(whole(format!("{head}12345").as_bytes()));
        assert!(!whole(b"HTTP/1.1 200 OK\r\n\r\n12345"), "nobody knows where it ends");
    }
}
