//! The power button and Ctrl-Alt-Del.

use crate::machine::{Command, Shared};
use node_sys::machine::Ending;
use std::fs::File;
use std::io::Read;
use tokio::signal::unix::{SignalKind, signal};

/// `struct input_event` of a 64-bit kernel.
const EVENT: usize = 24;
const KEY_EVENT: u16 = 1;
const POWER_KEY: u16 = 116;
const PRESSED: i32 = 1;

/// Turns presses and signals into commands, for ever.
pub(super) fn listen(machine: &Shared) {
    if let Err(error) = node_sys::machine::ctrl_alt_del_is_a_signal() {
        tracing::warn!("Ctrl-Alt-Del restarts the machine at once: {error}");
    }
    let restart = (SignalKind::interrupt(), Ending::Reboot);
    // SIGPWR comes from hypervisors that tell of a power cut.
    let off = (SignalKind::from_raw(libc::SIGPWR), Ending::PowerOff);
    for (kind, ending) in [restart, off] {
        let machine = machine.clone();
        tokio::task::spawn_local(async move {
            match signal(kind) {
                Ok(mut stream) => {
                    if stream.recv().await.is_some() {
                        machine.command(Command::End(ending));
                    }
                }
                Err(error) => tracing::warn!("a signal cannot be listened to: {error}"),
            }
        });
    }
    tokio::task::spawn_local(button(machine.clone()));
}

/// Buttons appear when their driver is loaded, so they are looked for again for a while.
async fn button(machine: Shared) {
    let (press, mut presses) = tokio::sync::mpsc::unbounded_channel();
    let mut known: Vec<String> = Vec::new();
    for _ in 0..30 {
        for name in power_buttons() {
            if known.contains(&name) {
                continue;
            }
            // sysfs shows a device a moment before its node in /dev is there: the next round opens it.
            let Ok(device) = File::open(format!("/dev/input/{name}")) else { continue };
            let press = press.clone();
            // A blocked read needs a thread of its own; it sleeps there and costs a few pages.
            let thread = std::thread::Builder::new().name("power-button".to_owned()).stack_size(64 * 1024);
            match thread.spawn(move || read_presses(device, &press)) {
                Ok(_) => known.push(name),
                Err(error) => return tracing::warn!("the power button cannot be read: {error}"),
            }
        }
        if tokio::time::timeout(std::time::Duration::from_secs(2), presses.recv()).await.is_ok() {
            return machine.command(Command::End(Ending::PowerOff));
        }
    }
    if presses.recv().await.is_some() {
        machine.command(Command::End(Ending::PowerOff));
    }
}

fn power_buttons() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/class/input") else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| name.starts_with("event"))
        .filter(|name| {
            let label = std::fs::read_to_string(format!("/sys/class/input/{name}/device/name"));
            label.is_ok_and(|label| label.trim() == "Power Button")
        })
        .collect()
}

fn read_presses(mut device: File, press: &tokio::sync::mpsc::UnboundedSender<()>) {
    let mut event = [0u8; EVENT];
    while device.read_exact(&mut event).is_ok() {
        if is_press(&event) && press.send(()).is_err() {
            return;
        }
    }
}

fn is_press(event: &[u8; EVENT]) -> bool {
    let [.., k0, k1, c0, c1, v0, v1, v2, v3] = *event;
    u16::from_ne_bytes([k0, k1]) == KEY_EVENT
        && u16::from_ne_bytes([c0, c1]) == POWER_KEY
        && i32::from_ne_bytes([v0, v1, v2, v3]) == PRESSED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_press_of_the_power_key_counts() {
        let mut event = [0u8; EVENT];
        event[16] = 1;
        event[18] = 116;
        event[20] = 1;
        assert!(is_press(&event));
        event[20] = 0;
        assert!(!is_press(&event));
    }
}
