//! One roll at a time: a Lease in kube-system that names who rolls.
//!
//! A holder that is dead is known at once where it ran on this machine, by its process; one elsewhere is taken to be dead
//! when its Lease has not changed for as long as the Lease says, by the clock of the one who looks, as clients of Leases do.

use crate::local::process::Process;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;

/// Longer than one step without a look at the lock may take: a VM that does not power off.
pub const LIFE: Duration = Duration::from_secs(300);

/// Who rolls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The machine, as people call it.
    pub host: String,
    /// This boot of it.
    pub boot: String,
    /// The process.
    pub process: Process,
}

impl Holder {
    /// This process.
    pub fn me() -> Holder {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        Holder {
            host: read("/proc/sys/kernel/hostname"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            process: Process::find(pid).unwrap_or(Process { pid, started: 0 }),
        }
    }

    /// As it stands in the Lease.
    pub fn identity(&self) -> String {
        format!("{}/{}/{}/{}", self.host, self.boot, self.process.pid, self.process.started)
    }

    fn parse(identity: &str) -> Option<Holder> {
        let parts: Vec<&str> = identity.split('/').collect();
        let [host, boot, pid, started] = parts.as_slice() else { return None };
        let process = Process { pid: pid.parse().ok()?, started: started.parse().ok()? };
        Some(Holder { host: (*host).into(), boot: (*boot).into(), process })
    }

    /// For people.
    pub fn shown(identity: &str) -> String {
        match Holder::parse(identity) {
            Some(holder) => format!("process {} on {}", holder.process.pid, holder.host),
            None => identity.to_string(),
        }
    }

    /// Whether the process of the other one has surely ended; none where that cannot be known from here.
    fn has_ended(&self, other: &Holder) -> Option<bool> {
        (self.boot == other.boot).then(|| !other.process.alive())
    }
}

/// What the Lease means for whoever wants it.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is free, or its holder is dead.
    Take,
    /// It is one's own.
    Mine,
    /// Its holder lives: it has renewed the Lease while we looked, or its process runs.
    Held(String),
    /// Nobody knows; it is free in this time unless its holder shows itself.
    Wait(String, Duration),
}

/// What was seen of the Lease at first, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    renewed: String,
    at: Timestamp,
}

/// Judges a Lease. `first` is what an earlier call saw; this one puts it there.
pub fn judge(lease: Option<&Value>, me: &Holder, first: &mut Option<Look>, now: Timestamp) -> Verdict {
    let Some(lease) = lease else { return Verdict::Take };
    let spec = &lease["spec"];
    let identity = spec["holderIdentity"].as_str().unwrap_or_default();
    if identity.is_empty() {
        return Verdict::Take;
    }
    if identity == me.identity() {
        return Verdict::Mine;
    }
    match Holder::parse(identity).and_then(|other| me.has_ended(&other)) {
        Some(true) => return Verdict::Take,
        Some(false) => return Verdict::Held(Holder::shown(identity)),
        None => {}
    }
    let renewed = format!("{identity} {}", spec["renewTime"].as_str().unwrap_or_default());
    let look = first.get_or_insert_with(|| Look { renewed: renewed.clone(), at: now });
    if look.renewed != renewed {
        return Verdict::Held(Holder::shown(identity));
    }
    let life = Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or(LIFE.as_secs()));
    let unseen = Duration::try_from(now.duration_since(look.at)).unwrap_or_default();
    match life.checked_sub(unseen) {
        Some(left) if !left.is_zero() => Verdict::Wait(Holder::shown(identity), left),
        _ => Verdict::Take,
    }
}

/// The Lease of this holder.
pub fn lease(me: &Holder, now: Timestamp) -> Value {
    let time = format!("{now:.6}");
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": super::api::NAME, "namespace": super::api::NAMESPACE},
        "spec": {
            "holderIdentity": me.identity(),
            "leaseDurationSeconds": LIFE.as_secs(),
            "acquireTime": time,
            "renewTime": time,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_holder_gives_way_and_a_live_one_does_not() {
        let at = |second| Timestamp::from_second(second).expect("time");
        let me = Holder::me();
        let dead = Holder { process: Process { pid: me.process.pid, started: me.process.started + 1 }, ..me.clone() };
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let alive = Holder { process: Process::find(sleeper.id() as i32).expect("runs"), ..me.clone() };
        let far = Holder { boot: "another".into(), ..me.clone() };
        let judged = |lease: Option<&Value>, first: &mut Option<Look>, now| judge(lease, &me, first, at(now));
        assert_eq!(judged(None, &mut None, 0), Verdict::Take);
        assert_eq!(judged(Some(&lease(&me, at(0))), &mut None, 1000), Verdict::Mine);
        assert_eq!(judged(Some(&lease(&dead, at(0))), &mut None, 0), Verdict::Take);
        let held = judged(Some(&lease(&alive, at(0))), &mut None, 1000);
        assert_eq!(held, Verdict::Held(format!("process {} on {}", sleeper.id(), me.host)));
        sleeper.kill().expect("ended");
        sleeper.wait().expect("reaped");
        // Elsewhere, with a clock that may be wrong by any time: only what changes while one looks tells.
        let (old, life) = (lease(&far, at(-100_000)), LIFE.as_secs() as i64);
        let mut first = None;
        let Verdict::Wait(_, left) = judged(Some(&old), &mut first, 0) else { panic!("must wait") };
        assert_eq!(left, LIFE);
        assert!(matches!(judged(Some(&old), &mut first, life - 1), Verdict::Wait(..)));
        assert_eq!(judged(Some(&old), &mut first, life), Verdict::Take);
        assert!(matches!(judged(Some(&lease(&far, at(-99_990))), &mut first, 10), Verdict::Held(_)));
    }
}
