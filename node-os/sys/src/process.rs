//! Starting supervised processes, and reaping them and all orphans.

use rustix::process::{Pid, Signal, WaitOptions};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The children that [`run`] waits for, and how they ended where [`reap`] met them first. It is held while one starts,
/// so that none can end unknown, and while one is taken off the kernel's list.
static AWAITED: Mutex<BTreeMap<u32, Option<Ending>>> = Mutex::new(BTreeMap::new());

fn awaited() -> MutexGuard<'static, BTreeMap<u32, Option<Ending>>> {
    AWAITED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Ending {
    fn of(code: Option<i32>, signal: Option<i32>) -> Ending {
        match (code, signal) {
            (Some(code), _) => Ending::Code(code),
            (None, Some(signal)) => Ending::Signal(signal),
            (None, None) => Ending::Code(-1),
        }
    }
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Ending {
        Ending::of(status.code(), status.signal())
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Ending::Code(code) => write!(f, "exit code {code}"),
            Ending::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Starts `command` as the leader of its own session, inside the control group whose `cgroup.procs` is open
/// for writing, and gives its process id. With a `user` it is that user and group alone, without any privilege or the
/// way to one; it does not start outside of its control group then. The caller reaps it with [`reap`].
pub fn spawn(mut command: Command, cgroup: Option<&File>, oom_score_adj: i32, user: Option<u32>) -> io::Result<u32> {
    let cgroup = cgroup.map(AsRawFd::as_raw_fd);
    let score = format!("{oom_score_adj}\n");
    // SAFETY: between fork and exec only system calls that are async-signal-safe are made, on memory made before.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            let mut signals = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(signals.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, signals.as_ptr(), std::ptr::null_mut());
            if let Some(group) = cgroup
                && libc::write(group, c"0".as_ptr().cast(), 1) < 0
                && user.is_some()
            {
                return Err(io::Error::last_os_error());
            }
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                libc::write(file, score.as_ptr().cast(), score.len());
                libc::close(file);
            }
            user.map_or(Ok(()), become_user)
        });
    }
    Ok(command.spawn()?.id())
}

/// Makes the calling process this user and group for good: it has no capability, and no program gives it one. Only
/// system calls that are async-signal-safe.
fn become_user(user: u32) -> io::Result<()> {
    let done = |result: libc::c_long| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: no call touches memory. They are the kernel's own, as the C library would look for threads.
    unsafe {
        for capability in 0..=63 {
            match done(libc::syscall(libc::SYS_prctl, libc::PR_CAPBSET_DROP, capability, 0, 0, 0)) {
                // It is beyond the last that this kernel knows.
                Err(error) if capability > 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
                result => result?,
            }
        }
        done(libc::syscall(libc::SYS_setgroups, 0, 0))?;
        done(libc::syscall(libc::SYS_setresgid, user, user, user))?;
        // With the last id of root's go the capabilities.
        done(libc::syscall(libc::SYS_setresuid, user, user, user))?;
        done(libc::syscall(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    }
}

/// Runs `command` to its end: how it ended, and what it said on its standard error. For other threads than the one that
/// calls [`reap`], which takes whatever has ended, and so may meet the child before its caller does.
///
/// # Errors
/// It cannot be started.
pub fn run(command: &mut Command) -> io::Result<(Ending, Vec<u8>)> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = {
        let mut awaited = awaited();
        let child = command.spawn()?;
        awaited.insert(child.id(), None);
        child
    };
    let mut said = Vec::new();
    let read = child.stderr.take().map_or(Ok(0), |mut stderr| stderr.read_to_end(&mut said));
    let waited = child.wait();
    let met = awaited().remove(&child.id()).flatten();
    read?;
    match (waited, met) {
        (Ok(status), _) => Ok((status.into(), said)),
        (Err(error), Some(ending)) if error.raw_os_error() == Some(libc::ECHILD) => Ok((ending, said)),
        (Err(error), _) => Err(error),
    }
}

/// Takes one ended child that nobody waits for off the kernel's list: its id and how it ended. `None` when none has ended.
pub fn reap() -> io::Result<Option<(u32, Ending)>> {
    loop {
        let mut awaited = awaited();
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(None),
            Err(error) => return Err(error.into()),
            Ok(Some((pid, status))) => {
                let pid = pid.as_raw_nonzero().get().unsigned_abs();
                let ending = Ending::of(status.exit_status(), status.terminating_signal());
                match awaited.get_mut(&pid) {
                    Some(place) => *place = Some(ending),
                    None => return Ok(Some((pid, ending))),
                }
            }
        }
    }
}

/// Asks a process to end.
pub fn terminate(pid: u32) -> io::Result<()> {
    signal(pid, Signal::TERM)
}

/// Ends a process at once.
pub fn kill(pid: u32) -> io::Result<()> {
    signal(pid, Signal::KILL)
}

/// Asks every process but PID 1 and kernel threads to end, or ends them at once.
pub fn signal_all(at_once: bool) -> io::Result<()> {
    let number = if at_once { libc::SIGKILL } else { libc::SIGTERM };
    // SAFETY: kill with -1 touches no memory; the caller is PID 1 and wants all others to end.
    if unsafe { libc::kill(-1, number) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let raw = i32::try_from(pid).map_err(|_| io::Error::other("no such process id"))?;
    let Some(pid) = Pid::from_raw(raw) else { return Ok(()) };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_s_process_has_no_privilege_and_no_way_to_one() {
        if !rustix::process::geteuid().is_root() {
            return test_spoil::skipped("only root becomes another user");
        }
        let mut command = Command::new("/bin/sleep");
        command.arg("1000");
        let pid = spawn(command, None, 0, Some(0x7000_0001)).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        kill(pid).unwrap();
        rustix::process::waitpid(Pid::from_raw(pid.cast_signed()), WaitOptions::empty()).unwrap();
        let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
        let user = ["1879048193"; 4].join("\t");
        assert_eq!((of("Uid"), of("Gid"), of("Groups")), (Some(&*user), Some(&*user), Some("")), "{status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(of(set), Some("0000000000000000"), "{set}");
        }
        assert_eq!(of("NoNewPrivs"), Some("1"));
    }
}
