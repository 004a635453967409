//! Somebody outside who visits a web page over and over, each time on a new connection, and keeps count of what failed.
//!
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
use std::time::{Duration, Instant};

/// As long as a browser's user may look at nothing.
const LIMIT: Duration = Duration::from_secs(15);
/// Until something is sent again the first time; then twice as long.
const AGAIN: Duration = Duration::from_millis(700);
const TICK: Duration = Duration::from_millis(10);
const FIRST_PORT: u16 = 41_000;

/// What came of the visits.
#[derive(Debug, Default)]
pub struct Visits {
    /// How many were begun.
    pub begun: usize,
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

/// A connection under way.
struct Visit {
    target: Ipv4Addr,
    mac: Mac,
    begun: Instant,
    /// What is not acknowledged yet, and when it is sent again.
    unheard: Option<(Segment, Instant, Duration)>,
    next_sequence: u32,
    /// The next byte of theirs; none before their first packet.
    expects: Option<u32>,
    answer: Vec<u8>,
}

impl Stranger {
    /// Visits `path` at port 80 of one of the `targets` after the other, until it is told to stop and all visits that
    /// were begun have come to an end.
    ///
    /// # Errors
    /// The switch is gone, or a target was never to be found on it.
    pub fn visit(&self, path: &str, rate: u32, targets: &Mutex<Vec<Ipv4Addr>>, stop: &AtomicBool) -> Result<Visits> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").into_bytes();
        let (start, pause) = (Instant::now(), Duration::from_secs(1) / rate);
        let mut visits = Visits::default();
        let mut open: HashMap<u16, Visit> = HashMap::new();
        let mut macs: HashMap<Ipv4Addr, Mac> = HashMap::new();
        let (mut due, mut buffer) = (start, vec![0; 65_536]);
        while !stop.load(Relaxed) || !open.is_empty() {
            if !stop.load(Relaxed) && Instant::now() >= due {
                due += pause;
                let targets = targets.lock().map_err(|_| anyhow::anyhow!("the list of targets is lost"))?.clone();
                let Some(target) = targets.get(visits.begun % targets.len().max(1)).copied() else {
                    visits.begun += 1;
                    visits.failed.push(format!("{:.1} s: no address at all", start.elapsed().as_secs_f32()));
                    continue;
                };
                let mac = match macs.get(&target) {
                    Some(mac) => *mac,
                    None => *macs.entry(target).or_insert(self.find(target).context("looking for a target")?),
                };
                let port = FIRST_PORT + (visits.begun % 20_000) as u16;
                visits.begun += 1;
                let sequence = visits.begun as u32 * 7919;
                let syn = Segment { port: 80, to: port, sequence, flags: frames::SYN, ..Segment::default() };
                let mut visit = Visit {
                    target,
                    mac,
                    begun: Instant::now(),
                    unheard: None,
                    next_sequence: sequence + 1,
                    expects: None,
                    answer: Vec::new(),
                };
                self.say(&mut visit, syn)?;
                open.insert(port, visit);
            }
            self.hear_one(&mut buffer, &request, &mut open, &mut visits, start)?;
            self.look_at_clocks(&mut open, &mut visits, start)?;
        }
        visits.lasted = start.elapsed();
        Ok(visits)
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
            visits.failed.push(format!("{when}: the connection was refused or cut"));
            open.remove(&port);
            return Ok(());
        }
        if self.take(visit, &segment, port, request)? {
            let took = visit.begun.elapsed();
            visits.slowest = visits.slowest.max(took);
            let answer = String::from_utf8_lossy(&visit.answer);
            if answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"status\":\"ok\"") {
                *visits.seen.entry(from).or_default() += 1;
            } else {
                visits.failed.push(format!("{when}: it answered {answer:?}"));
            }
            open.remove(&port);
        }
        Ok(())
    }

    /// Takes a packet of a visit; whether it was the last.
    fn take(&self, visit: &mut Visit, segment: &Segment, port: u16, request: &[u8]) -> Result<bool> {
        let own = |visit: &Visit, flags, content: &[u8]| Segment {
            port: 80,
            to: port,
            sequence: visit.next_sequence,
            acknowledges: visit.expects.unwrap_or_default(),
            flags,
            content: content.to_vec(),
        };
        if segment.flags & frames::ACK != 0 && segment.acknowledges == visit.next_sequence {
            visit.unheard = None;
        }
        let Some(expects) = visit.expects else {
            if segment.flags & (frames::SYN | frames::ACK) == frames::SYN | frames::ACK {
                visit.expects = Some(segment.sequence.wrapping_add(1));
                let asks = own(visit, frames::ACK | frames::PSH, request);
                visit.next_sequence = visit.next_sequence.wrapping_add(request.len() as u32);
                self.say(visit, asks)?;
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
            let flags = if ended { frames::ACK | frames::FIN } else { frames::ACK };
            self.send_segment(visit, &own(visit, flags, &[]))?;
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
            let late = visit.begun.elapsed() > LIMIT;
            if late {
                let stage = if visit.expects.is_none() { "no connection" } else { "no answer" };
                let when = start.elapsed().as_secs_f32();
                visits.failed.push(format!("{when:.1} s: {}: {stage} within {} s", visit.target, LIMIT.as_secs()));
            }
            !late
        });
        Ok(())
    }
}
