//! The wall clock: the hardware clock, never earlier than the CA's start and the time saved last, then SNTP.
//! A clock that nobody confirms is a warning, no more.

use crate::machine::Shared;
use anyhow::{Context, Result, bail};
use node_metadata::Cluster;
use std::fs::File;
use std::net::UdpSocket;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{sleep, timeout};

const SAVED: &str = "/var/lib/kimg/clock";
const CA: &str = "/run/kimg/config/pki/cluster-ca.crt";
/// A clock that seems right is confirmed in the background after this.
const SHORT_WAIT: Duration = Duration::from_millis(1500);
/// One that is surely wrong is worth waiting for.
const LONG_WAIT: Duration = Duration::from_secs(15);
const PERIOD: Duration = Duration::from_secs(1800);
/// While nobody has confirmed it: names and routes may come after the first question (from routers, say).
const RETRY: Duration = Duration::from_secs(60);
const SAVE_PERIOD: Duration = Duration::from_secs(600);
/// Smaller differences are left alone: a clock that jumps does more harm.
const TOLERANCE: Duration = Duration::from_millis(400);
const UNCONFIRMED: &str = "the clock is not confirmed";
/// Seconds from 1900 to 1970.
const NTP_EPOCH: u64 = 2_208_988_800;

/// Sets the clock as well as it can be, and keeps it.
pub(super) async fn set(machine: &Shared, cluster: &Cluster) {
    machine.stage("clock");
    machine.begin("clock");
    let late = raise_to_floor(machine);
    let servers = cluster.ntp_servers.clone();
    let mut note = "hardware clock".to_owned();
    if !servers.is_empty() {
        let asked = servers.clone();
        let first = tokio::task::spawn_blocking(move || synchronise(&asked));
        let wait = if late { LONG_WAIT } else { SHORT_WAIT };
        match timeout(wait, first).await {
            Ok(Ok(Ok(sentence))) => note = sentence,
            Ok(Ok(Err(error))) => machine.warn(format!("{UNCONFIRMED}: {error:#}")),
            Ok(Err(_)) | Err(_) => note = "hardware clock, no time server has answered yet".to_owned(),
        }
    }
    machine.end("clock", &note);
    tokio::task::spawn_local(keep(machine.clone(), servers));
}

/// True when the clock was behind what it must be.
fn raise_to_floor(machine: &Shared) -> bool {
    let saved = std::fs::read_to_string(SAVED).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let floor = Duration::from_secs(ca_start().unwrap_or(0).max(saved));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if now >= floor {
        return false;
    }
    match node_sys::machine::set_clock(floor) {
        Ok(()) => {
            machine.warn(format!("the hardware clock was {} s behind the last known time", (floor - now).as_secs()))
        }
        Err(error) => machine.warn(format!("the clock cannot be set: {error}")),
    }
    true
}

fn ca_start() -> Option<u64> {
    let pem = std::fs::read(CA).ok()?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).ok()?;
    u64::try_from(block.parse_x509().ok()?.validity().not_before.timestamp()).ok()
}

async fn keep(machine: Shared, servers: Vec<String>) {
    let mut since_sync = PERIOD;
    loop {
        if !servers.is_empty() && since_sync >= PERIOD {
            let asked = servers.clone();
            match tokio::task::spawn_blocking(move || synchronise(&asked)).await {
                Ok(Ok(_)) => {
                    since_sync = Duration::ZERO;
                    machine.update(|status| status.warnings.retain(|warning| !warning.starts_with(UNCONFIRMED)));
                }
                Ok(Err(error)) => machine.warn(format!("{UNCONFIRMED}: {error:#}")),
                Err(error) => tracing::warn!("asking for the time was interrupted: {error}"),
            }
        }
        save();
        let pause = if servers.is_empty() || since_sync < PERIOD { SAVE_PERIOD } else { RETRY };
        sleep(pause).await;
        since_sync += pause;
    }
}

/// Remembers the time for the next boot. A loss only costs the floor of that boot.
pub(super) fn save() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    if let Err(error) = crate::pki::write(std::path::Path::new(SAVED), now.as_secs().to_string().as_bytes(), 0o644) {
        tracing::warn!("{error:#}");
    }
}

fn synchronise(servers: &[String]) -> Result<String> {
    let mut faults = Vec::new();
    for server in servers {
        match ask(server) {
            Ok(offset_ns) => return apply(server, offset_ns),
            Err(error) => faults.push(format!("{server}: {error:#}")),
        }
    }
    // One reason is enough for a console; they are mostly the same.
    bail!("no time server answers ({})", faults.first().map_or("none is configured", String::as_str))
}

fn apply(server: &str, offset_ns: i128) -> Result<String> {
    let shown = format!("{server}, off by {} ms", offset_ns / 1_000_000);
    if offset_ns.unsigned_abs() < TOLERANCE.as_nanos() {
        return Ok(shown);
    }
    let now = i128::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?;
    let right = u64::try_from(now + offset_ns).context("the time server's time is out of range")?;
    let time = Duration::from_nanos(right);
    node_sys::machine::set_clock(time).context("cannot set the clock")?;
    write_rtc(time);
    Ok(shown)
}

fn ask(server: &str) -> Result<i128> {
    let socket = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect((server, 123)).context("cannot be found")?;
    let mut query = [0u8; 48];
    if let Some(first) = query.first_mut() {
        // No leap warning, version 4, client.
        *first = 0x23;
    }
    // An answer must repeat this number, which a stranger cannot know.
    let mut cookie = [0u8; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut cookie)
        .map_err(|_| anyhow::anyhow!("the kernel gives no random numbers"))?;
    if let Some(place) = query.get_mut(40..48) {
        place.copy_from_slice(&cookie);
    }
    let sent = SystemTime::now();
    socket.send(&query).context("cannot send")?;
    let mut answer = [0u8; 256];
    let length = socket.recv(&mut answer).context("no answer in 2 s")?;
    let round_trip = sent.elapsed().unwrap_or_default();
    let server_time = read_answer(answer.get(..length).unwrap_or_default(), &cookie)?;
    let middle = i128::try_from((sent.duration_since(UNIX_EPOCH)? + round_trip / 2).as_nanos())?;
    Ok(server_time - middle)
}

/// Nanoseconds since 1970 by the server's transmit time.
pub fn read_answer(answer: &[u8], cookie: &[u8; 8]) -> Result<i128> {
    let (Some(&flags), Some(&stratum)) = (answer.first(), answer.get(1)) else { bail!("an empty answer") };
    if flags & 7 != 4 || flags >> 6 == 3 || stratum == 0 || stratum > 15 || answer.get(24..32) != Some(&cookie[..]) {
        bail!("an answer that is none");
    }
    let field = |at: usize| {
        answer.get(at..at + 4).and_then(|part| part.try_into().ok()).map(u32::from_be_bytes).context("a cut answer")
    };
    let (seconds, fraction) = (u64::from(field(40)?), u64::from(field(44)?));
    // The 32-bit era ends in 2036; times before 1970 are of the next one.
    let seconds = if seconds < NTP_EPOCH { seconds + (1 << 32) } else { seconds } - NTP_EPOCH;
    let nanoseconds = (fraction * 1_000_000_000) >> 32;
    Ok(i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds))
}

/// The hardware clock then is right at the next boot; machines without one do as well.
fn write_rtc(time: Duration) {
    let Ok(seconds) = i64::try_from(time.as_secs()) else { return };
    let Ok(date) = time::OffsetDateTime::from_unix_timestamp(seconds) else { return };
    let Ok(rtc) = File::open("/dev/rtc0") else { return };
    let day = (date.year(), i32::from(u8::from(date.month())), i32::from(date.day()));
    let clock = (i32::from(date.hour()), i32::from(date.minute()), i32::from(date.second()));
    if let Err(error) = node_sys::machine::set_rtc(&rtc, day, clock) {
        tracing::warn!("the hardware clock cannot be set: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let cookie = [1, 2, 3, 4, 5, 6, 7, 8];
        let mut answer = [0u8; 48];
        answer[0] = 0x24;
        answer[1] = 2;
        answer[24..32].copy_from_slice(&cookie);
        answer[40..44].copy_from_slice(&(3_900_000_000u32).to_be_bytes());
        answer[44] = 0x80;
        let wanted = i128::from(3_900_000_000u64 - NTP_EPOCH) * 1_000_000_000 + 500_000_000;
        assert_eq!(read_answer(&answer, &cookie).unwrap(), wanted);
        assert!(read_answer(&answer, &[0; 8]).is_err(), "another's answer");
        assert!(read_answer(&answer[..44], &cookie).is_err());
        answer[1] = 0;
        assert!(read_answer(&answer, &cookie).is_err(), "a kiss of death");
    }

    #[test]
    fn spoiled_answers_do_no_harm() {
        let mut good = [0u8; 48];
        good[..2].copy_from_slice(&[0x24, 2]);
        good[40..44].copy_from_slice(&u32::MAX.to_be_bytes());
        let mut dice = test_spoil::Dice::new(2);
        let read = (0..20_000).filter(|_| read_answer(&test_spoil::bytes(&good, &mut dice), &[0; 8]).is_ok()).count();
        assert!((1000..20_000).contains(&read), "{read} were read");
    }
}
