//! A card's cable on which a user network of QEMU's lies beside the cluster's switch.
//!
//! QEMU's user network takes every frame for its own, whomever it is for, and resets the connections to others.
//! So the frames go through here: those for its own hardware addresses to it, all others to the switch.

use anyhow::{Context, Result};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const FRAME_LIMIT: usize = 1 << 16;
/// How long it takes at most until a thread sees that it shall end.
const TICK: Duration = Duration::from_millis(200);
/// First bytes of the user network's own hardware addresses (libslirp's `special_ethaddr` and `vnameserver`).
const USER_NETWORK: [[u8; 2]; 2] = [[0x52, 0x55], [0x52, 0x56]];

/// Ends when dropped.
#[derive(Debug)]
pub(super) struct Leash(Arc<AtomicBool>);

impl Leash {
    /// Ties the card and the user network of the machine on this place together, in the folder of the switch's sockets.
    pub(super) fn start(run: &Path, place: &str) -> Result<Leash> {
        let path = |end: &str| run.join(format!("{place}.{end}"));
        let bind = |end: &str| -> Result<Arc<UnixDatagram>> {
            let path = path(end);
            // Of a run that was ended.
            let _ = std::fs::remove_file(&path);
            let socket = UnixDatagram::bind(&path).with_context(|| format!("binding {}", path.display()))?;
            socket.set_read_timeout(Some(TICK)).context("setting a limit to waiting")?;
            Ok(Arc::new(socket))
        };
        // `.vm` is the machine's end of the cable to the switch.
        let (card, user, switch) = (bind("leash-card")?, bind("leash-user")?, bind("vm")?);
        let stop = Arc::new(AtomicBool::new(false));
        let [to_card, to_user, to_switch] = [path("card"), path("user"), path("sw")];
        let from_card = [(user.clone(), to_user), (switch.clone(), to_switch)];
        let into_card = [(card.clone(), to_card)];
        carry(&stop, &card, from_card, |frame| [is_for_user_network(frame), !is_own(frame)]);
        carry(&stop, &user, into_card.clone(), |_| [true]);
        carry(&stop, &switch, into_card, |_| [true]);
        Ok(Leash(stop))
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Hands what comes from one end to those of the others that want it.
fn carry<const N: usize>(
    stop: &Arc<AtomicBool>,
    from: &Arc<UnixDatagram>,
    to: [(Arc<UnixDatagram>, PathBuf); N],
    wanted: fn(&[u8]) -> [bool; N],
) {
    let (stop, from) = (stop.clone(), from.clone());
    std::thread::spawn(move || {
        let mut buffer = vec![0; FRAME_LIMIT];
        while !stop.load(Ordering::Relaxed) {
            let Ok(length) = from.recv(&mut buffer) else { continue };
            let frame = &buffer[..length];
            for ((socket, path), _) in to.iter().zip(wanted(frame)).filter(|(_, wanted)| *wanted) {
                // As on a cable whose other end is not plugged in.
                let _ = socket.send_to(frame, path);
            }
        }
    });
}

fn is_own(frame: &[u8]) -> bool {
    USER_NETWORK.iter().any(|own| frame.starts_with(own))
}

fn is_for_user_network(frame: &[u8]) -> bool {
    // The lowest bit of the first byte: for a group, or for all.
    is_own(frame) || frame.first().is_some_and(|byte| byte & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_frame_goes_where_it_is_for() {
        let dir = tempfile::tempdir().expect("folder");
        let bind = |end: &str| {
            let socket = UnixDatagram::bind(dir.path().join(format!("m.{end}"))).expect("bound");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("limit");
            socket
        };
        let [card, user, switch] = ["card", "user", "sw"].map(bind);
        let _leash = Leash::start(dir.path(), "m").expect("leash");
        let gets = |socket: &UnixDatagram| {
            let mut buffer = [0; 64];
            socket.recv(&mut buffer).ok().map(|n| buffer[..n].to_vec())
        };
        let silent = |socket: &UnixDatagram| {
            socket.set_nonblocking(true).expect("mode");
            let nothing = gets(socket).is_none();
            socket.set_nonblocking(false).expect("mode");
            nothing
        };
        let send = |from: &UnixDatagram, end: &str, frame: &[u8]| {
            from.send_to(frame, dir.path().join(format!("m.{end}"))).expect("sent");
        };
        for (frame, to_user, to_switch) in
            [(*b"\x52\x55own", true, false), (*b"\x52\x54you", false, true), (*b"\xff\xffall", true, true)]
        {
            send(&card, "leash-card", &frame);
            // What is wanted is waited for before what is not is looked for.
            assert!(!to_user || gets(&user).as_deref() == Some(&frame[..]), "{frame:?}");
            assert!(!to_switch || gets(&switch).as_deref() == Some(&frame[..]), "{frame:?}");
            assert!(silent(&user) && silent(&switch), "{frame:?}");
        }
        for (from, end) in [(&user, "leash-user"), (&switch, "vm")] {
            send(from, end, b"answer");
            assert_eq!(gets(&card).as_deref(), Some(&b"answer"[..]));
            assert!(silent(&user) && silent(&switch));
        }
    }
}
