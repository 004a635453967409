//! Stage 1: `/init` of the initramfs. Finds the disk that carries this kernel's root, sets up dm-verity,
//! and hands over to `/sbin/init` on it. Nothing is written to any disk, but by [`install`].
//!
//! ```text
//! mounts → modules (first group) → find root ⇄ modules (late group) → verity → squashfs → switch root
//!                                  └ started from a medium, no root → install → start again
//! ```

mod cmdline;
mod hardware;
mod install;
mod modules;
mod root;
pub mod superblock;

use crate::handover::{self, Handover};
use anyhow::{Context, Result};
use node_sys::machine;
use node_sys::mount::{Options, mount};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

const NEW_ROOT: &str = "/root";
const INIT: &str = "/sbin/init";
/// After a failure the sentence stays on the console this long; then the machine tries again from the start.
const PAUSE_BEFORE_REBOOT: Duration = Duration::from_secs(60);

/// Entry point. Does not return while all is well.
pub fn main() -> ExitCode {
    let started = machine::uptime();
    let Err(error) = run(started);
    say(3, &format!("kimg cannot start this machine: {error:#}."));
    say(3, &format!("The machine starts again in {} seconds.", PAUSE_BEFORE_REBOOT.as_secs()));
    std::thread::sleep(PAUSE_BEFORE_REBOOT);
    if let Err(error) = machine::end(machine::Ending::Reboot) {
        say(3, &format!("The kernel refuses to restart: {error}. Reset the machine."));
    }
    loop {
        std::thread::park();
    }
}

fn run(started: Duration) -> Result<std::convert::Infallible> {
    mount_kernel_file_systems()?;
    let modules = modules::Order::read()?;
    let line = std::fs::read_to_string("/proc/cmdline").context("cannot read the kernel's command line")?;
    let hash = cmdline::root_hash(&line)?;
    let hardware = hardware::Hardware::read();
    modules.load_first(|file| hardware.may_need(file), &mut |text| say(4, text));
    let load_late = || modules.load_late(&mut |text| say(4, text));
    let root = match cmdline::install(&line) {
        None => root::find(&hash, load_late, |text| say(4, text))?,
        // What an installer does is to be seen, whatever the log's level.
        Some(wanted) => install::find_or_install(&hash, &wanted, load_late, |text| say(3, text))?,
    };
    let found = machine::uptime();
    root::open(&root, &hash, Path::new(NEW_ROOT))?;
    let handover = Handover {
        disk: root.disk.name.clone(),
        stage1_start: started,
        root_found: found,
        root_ready: machine::uptime(),
    };
    handover::write(&handover)?;
    node_sys::switch_root::switch_root(Path::new(NEW_ROOT)).context("cannot switch to the root file system")?;
    let error = Command::new(INIT).env_clear().exec();
    Err(error).with_context(|| format!("cannot start {INIT} of the image"))
}

fn mount_kernel_file_systems() -> Result<()> {
    let devices = Options { no_exec: true, ..Options::PLAIN };
    mount("devtmpfs", Path::new("/dev"), "devtmpfs", devices, "mode=0755")?;
    mount("proc", Path::new("/proc"), "proc", Options::KERNEL, "")?;
    mount("sysfs", Path::new("/sys"), "sysfs", Options::KERNEL, "")?;
    mount(
        "tmpfs",
        Path::new("/run"),
        "tmpfs",
        Options { no_suid_no_dev: true, ..Options::PLAIN },
        "mode=0755,size=25%",
    )?;
    Ok(())
}

/// Writes a line to the kernel log, which shows it on every console. The level is syslog's.
fn say(level: u8, text: &str) {
    // One write is one record; in pieces the level would be lost, and with it the sentence on the console.
    let record = format!("<{level}>kimg: {text}\n");
    let written = OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(record.as_bytes()));
    if written.is_err() {
        // Before /dev is mounted there is only the console that the kernel opened for us.
        let _ = writeln!(std::io::stderr(), "kimg: {text}");
    }
}
